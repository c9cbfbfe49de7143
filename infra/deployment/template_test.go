// Package deployment holds the tests of what is deployed: of template.yaml, and
// of the functions' binaries against stand-ins for AWS.
package deployment

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/testserver"
)

const root = "../.." // of the repository

func templateText(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(root, "template.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

func TestTemplate(t *testing.T) {
	for _, problem := range check(templateText(t)) {
		t.Error(problem)
	}
}

func TestValidator(t *testing.T) {
	for _, finding := range validate(t, templateText(t))[0] {
		t.Error(finding)
	}
}

// An error in the template is found by CloudFormation's validator or by check.
func TestPlantedErrors(t *testing.T) {
	text := templateText(t)
	if len(check(text)) > 0 {
		t.Fatal("there are errors before any is planted")
	}
	planted := []struct{ name, old, new string }{
		{"event type", "Type: HttpApi", "Type: HttpAPI"},
		{"schedule type", "Type: ScheduleV2", "Type: ScheduleV3"},
		{"schedule expression", "rate(1 minute)", "cron(* * * *)"},
		{"schedule retried", "RetryPolicy:\n              MaximumRetryAttempts: 0", "RetryPolicy:\n              MaximumRetryAttempts: 5"},
		{"payload of another version", "PayloadFormatVersion: \"2.0\"", "PayloadFormatVersion: \"1.0\""},
		{"runtime", "provided.al2023", "provided.al2032"},
		{"architecture", "[arm64]", "[x86_64]"},
		{"handler", "Handler: bootstrap", "Handler: main"},
		{"folder that is not there", "CodeUri: build/sweep", "CodeUri: build/swep"},
		{"two functions with one binary", "CodeUri: build/sweep", "CodeUri: build/api"},
		{"timeout over the gateway's", "Timeout: 29", "Timeout: 31"},
		{"attribute typo", "!GetAtt Key.Arn", "!GetAtt Key.ARN"},
		{"attribute typo in Sub", "${Table.Arn}/index/due", "${Table.ARN}/index/due"},
		{"reference typo", "!Ref SweepLog", "!Ref SweepLogs"},
		{"condition typo", "!If [HasAlarmTopic,", "!If [HasTopic,"},
		{"output of nothing", "!GetAtt Api.ApiEndpoint", "!GetAtt Api.Url"},
		{"unknown tag", "!Sub \"Pinward", "!Subst \"Pinward"},
		{"property given twice", "SSEEnabled: true", "SSEEnabled: true\n        SSEEnabled: false"},
		{"property typo", "EnableKeyRotation: true", "EnableKeyRotations: true"},
		{"key not rotated", "EnableKeyRotation: true", "EnableKeyRotation: false"},
		{"INCLUDE without attributes", "Projection: {ProjectionType: ALL}", "Projection: {ProjectionType: INCLUDE}"},
		{"index missing", "        - IndexName: list\n          KeySchema:\n            - {AttributeName: list_p, KeyType: HASH}\n            - {AttributeName: list_s, KeyType: RANGE}\n          Projection: {ProjectionType: ALL}\n", ""},
		{"index name", "IndexName: history", "IndexName: historic"},
		{"index keys exchanged", "{AttributeName: due_p, KeyType: HASH}", "{AttributeName: list_p, KeyType: HASH}"},
		{"key type", "{AttributeName: due_s, AttributeType: S}", "{AttributeName: due_s, AttributeType: N}"},
		{"TTL attribute", "AttributeName: x\n", "AttributeName: ttl\n"},
		{"table not kept", "DeletionProtectionEnabled: true", "DeletionProtectionEnabled: false"},
		{"table deleted with the stack", "DeletionPolicy: Retain", "DeletionPolicy: Delete"},
		{"no recovery", "PointInTimeRecoveryEnabled: true", "PointInTimeRecoveryEnabled: false"},
		{"variable's name", "KMS_KEY_ARN:", "KMS_KEY:"},
		{"variable missing", "        TABLE_NAME: !Ref Table\n", ""},
		{"every action", "Action: kms:Decrypt", "Action: kms:*"},
		{"action nobody needs", "Action: kms:Decrypt", "Action: [kms:Decrypt, kms:ScheduleKeyDeletion]"},
		{"action typo", "dynamodb:ConditionCheckItem", "dynamodb:ConditionCheck"},
		{"condition lost", "dynamodb:LeadingKeys: [\"due/*\", \"t/*\"]", "dynamodb:LeadingKeys: [\"*\"]"},
		{"role of the other function", "Role: !GetAtt SweepRole.Arn", "Role: !GetAtt ApiRole.Arn"},
		{"second action list", "Role: !GetAtt SweepRole.Arn", "Role: !GetAtt SweepRole.Arn\n      Policies: [AmazonDynamoDBFullAccess]"},
		{"alarm's metric", "MetricName: Throttles", "MetricName: Throttle"},
		{"alarm's dimension", "Name: ApiId", "Name: ApiName"},
		{"alarm's expression", "FILL(errors, 0)", "FILL(error, 0)"},
		{"alarm silent without data", "TreatMissingData: breaching", "TreatMissingData: notBreaching"},
		{"alarm goes nowhere", "      TreatMissingData: breaching\n      AlarmActions: !If [HasAlarmTopic, [!Ref AlarmTopicArn], !Ref AWS::NoValue]\n", "      TreatMissingData: breaching\n"},
		{"logs kept for ever", "      RetentionInDays: !Ref LogRetentionDays\n  ApiAccessLog", "  ApiAccessLog"},
		{"routes by what a message says", `RouteSelectionExpression: \$default`, "RouteSelectionExpression: $request.body.action"},
		{"HTTP in place of WebSockets", "ProtocolType: WEBSOCKET", "ProtocolType: HTTP"},
		{"stage of another name", "StageName: live", "StageName: prod"},
		{"routes never deployed", "AutoDeploy: true", "AutoDeploy: false"},
		{"no throttling", "      AutoDeploy: true\n      DefaultRouteSettings:\n        ThrottlingRateLimit: 500\n        ThrottlingBurstLimit: 1000\n", "      AutoDeploy: true\n"},
		{"tokens logged", `"$context.connectionId"`, `"$request.header.Authorization"`},
		{"query logged", `"$context.path"`, `"$context.path$context.query"`},
		{"WebSockets logged unasked", "HasRelayAccessLog: !Equals [!Ref RelayAccessLogging, \"yes\"]", "HasRelayLog: !Equals [!Ref RelayAccessLogging, \"yes\"]"},
		{"function told the request only", "IntegrationType: AWS_PROXY", "IntegrationType: AWS"},
		{"messages to the other function", "functions/${RelayFunction.Arn}/invocations", "functions/${ApiFunction.Arn}/invocations"},
		{"route's key", "RouteKey: $disconnect", "RouteKey: disconnect"},
		{"route missing", "RouteKey: $disconnect", "RouteKey: $connect"},
		{"route's target", "Target: !Sub \"integrations/${RelayIntegration}\"", "Target: !Ref RelayIntegration"},
		{"function may not be called", "FunctionName: !Ref RelayFunction\n", "FunctionName: !Ref ApiFunction\n"},
		{"anybody's API may call", "${RelayApi}/live/*\"", "*/live/*\""},
		{"bridges called without TLS", "wss://${RelayApi}", "ws://${RelayApi}"},
		{"posts to another stage", "https://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live", "https://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/prod"},
		{"posts to other APIs", "${RelayApi}/live/POST/@connections/*", "*/live/POST/@connections/*"},
		{"relay without a role of its own", "Role: !GetAtt RelayRole.Arn", "Role: !GetAtt ApiRole.Arn"},
		{"pages read from the other version's events", "PayloadFormatVersion: \"2.0\"\n      IntegrationUri", "PayloadFormatVersion: \"1.0\"\n      IntegrationUri"},
		{"pages from the API's function", "functions/${ConsoleFunction.Arn}/invocations", "functions/${ApiFunction.Arn}/invocations"},
		{"some pages only", "RouteKey: $default\n      AuthorizationType: NONE # the function checks the session", "RouteKey: GET /console\n      AuthorizationType: NONE # the function checks the session"},
		{"links to sign in by in the log", "\"$context.path\",\"protocol\":\"$context.protocol\",\"status\":\"$context.status\",\n          \"bytes\":\"$context.responseLength\",\"took\":\"$context.responseLatency\",\n          \"error\":\"$context.integrationErrorMessage\"}\n\n  ConsoleIntegration", "\"$context.path?$context.requestOverride.querystring\"}\n\n  ConsoleIntegration"},
		{"links without TLS", "https://${ConsoleApi}", "http://${ConsoleApi}"},
		{"pages with the API's role", "Role: !GetAtt ConsoleRole.Arn", "Role: !GetAtt ApiRole.Arn"},
		{"pages that nobody may call", "${ConsoleApi}/*/$default", "${ConsoleApi}/live/*"},
		{"one bad event fails all of a batch", "            FunctionResponseTypes: [ReportBatchItemFailures]\n", ""},
		{"events of the queue tried for ever", "      RedrivePolicy:\n        deadLetterTargetArn: !GetAtt FailedEvents.Arn\n        maxReceiveCount: 5\n", ""},
		{"events of the queue dropped early", "MessageRetentionPeriod: 604800", "MessageRetentionPeriod: 60"},
		{"events in the clear", "SqsManagedSseEnabled: true", "SqsManagedSseEnabled: false"},
		{"events delivered again while they are acted on", "VisibilityTimeout: 360", "VisibilityTimeout: 30"},
		{"events of the bus lost", "            Destination: !GetAtt FailedEvents.Arn", "            Destination: !GetAtt EventQueue.Arn"},
		{"events of anybody's account", "              account: [!Ref AWS::AccountId]", "              account: [{exists: true}]"},
		{"bus of another", "            EventBusName: !Ref EventBus\n", ""},
		{"bounces unheard", "              source: [aws.ses]", "              source: [aws.sns]"},
		{"complaints unheard", "[Email Bounced, Email Complaint Received]", "[Email Bounced]"},
		{"failed events unseen", "MetricName: ApproximateNumberOfMessagesVisible", "MetricName: NumberOfMessagesSent"},
		{"resources in a ring", "RELAY_URL: !Sub \"wss://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live\"", "RELAY_URL: !Sub \"wss://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/${RelayStage}\""},
		{"functions in a ring with their API", "RELAY_URL: !Sub \"wss://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live\"", "RELAY_URL: !Sub \"wss://${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live\"\n        API_URL: !GetAtt Api.ApiEndpoint"},
	}
	mutants := make([]string, len(planted))
	for i, p := range planted {
		if mutants[i] = strings.Replace(text, p.old, p.new, 1); mutants[i] == text {
			t.Fatalf("%s: %q is not in the template", p.name, p.old)
		}
	}
	byValidator := 0
	for i, findings := range validate(t, mutants...) {
		if len(findings) > 0 {
			byValidator++
		} else if len(check(mutants[i])) == 0 {
			t.Errorf("%s: nothing was found", planted[i].name)
		}
	}
	t.Logf("%d errors planted, of which the validator finds %d", len(planted), byValidator)
}

// validate returns what CloudFormation's validator finds in each text.
func validate(t *testing.T, texts ...string) [][]string {
	t.Helper()
	module, err := testserver.Module("@aws/cloudformation-validate")
	testserver.Need(t, err)
	_, err = exec.LookPath("node")
	testserver.Need(t, err)
	args, dir := []string{"validate.mjs", module}, t.TempDir()
	for i, text := range texts {
		name := filepath.Join(dir, strconv.Itoa(i)+".yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	cmd := exec.Command("node", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the validator: %v", err)
	}
	var findings [][]string
	if err := json.Unmarshal(out, &findings); err != nil || len(findings) != len(texts) {
		t.Fatalf("the validator printed %q: %v", out, err)
	}
	return findings
}
