// Prints what CloudFormation's validator finds in templates, as one JSON array
// of findings for each: node validate.mjs <validator's folder> <template>...
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [folder, ...templates] = process.argv.slice(2);
const { RegoEngine, TemplateFile } = await import(pathToFileURL(join(folder, "index.js")));
const engine = new RegoEngine();
const config = {
  severityLevel: "WARN", // below are hints, such as that a resource has no tags
  // It does not see that AlarmActions are there only if the topic is.
  parameterOverrides: { AlarmTopicArn: "arn:aws:sns:eu-central-1:123456789012:alarms" },
};
console.log(JSON.stringify(templates.map((path) =>
  engine.validateStandard(new TemplateFile(path), config).diagnostics.map(
    (d) => `${d.ruleId} ${d.entity?.logicalId ?? ""} ${d.propertyPath ?? ""}: ${d.message}`))));
