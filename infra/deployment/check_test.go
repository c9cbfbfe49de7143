package deployment

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table/dynamo"
)

// template is a template under check.
type template struct {
	doc      object
	problems []string
}

func (c *template) add(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// want compares what is at a place with what should be there.
func (c *template) want(place string, got, want any) {
	if diff := cmp.Diff(normal(want), normal(got)); diff != "" {
		c.add("%s: -want +got\n%s", place, diff)
	}
}

// resources returns those of a type by their names.
func (c *template) resources(kind string) map[string]object {
	found := map[string]object{}
	all, _ := c.doc["Resources"].(object)
	for name, v := range all {
		if at(v, "Type") == kind {
			found[name], _ = v.(object)["Properties"].(object)
		}
	}
	return found
}

// check returns everything that is wrong with a template, as far as the
// validator cannot tell.
func check(text string) []string {
	doc, err := parse(text)
	if err != nil {
		return []string{err.Error()}
	}
	c := &template{doc: doc}
	c.checkReferences()
	c.checkRings()
	c.checkFunctions()
	c.checkGateways()
	c.checkQueues()
	c.checkPolicies()
	c.checkStores()
	c.checkAlarms()
	return c.problems
}

// attributes are those that GetAtt knows, by resource type ("Template
// reference": Return values).
var attributes = map[string][]string{
	"AWS::Serverless::Function": {"Arn"},
	"AWS::Serverless::HttpApi":  {"ApiEndpoint", "ApiId"},
	"AWS::ApiGatewayV2::Api":    {"ApiEndpoint", "ApiId"},
	"AWS::DynamoDB::Table":      {"Arn", "StreamArn"},
	"AWS::KMS::Key":             {"Arn", "KeyId"},
	"AWS::IAM::Role":            {"Arn", "RoleId"},
	"AWS::Logs::LogGroup":       {"Arn"},
	"AWS::Events::EventBus":     {"Arn", "Name"},
	"AWS::SQS::Queue":           {"Arn", "QueueName", "QueueUrl"},
}

var substitution = regexp.MustCompile(`\$\{([^}]*)\}`)

func (c *template) checkReferences() {
	ref := func(name string) {
		pseudo := []string{"AWS::AccountId", "AWS::NoValue", "AWS::Partition", "AWS::Region", "AWS::StackName", "AWS::URLSuffix"}
		if at(c.doc, "Resources", name) == nil && at(c.doc, "Parameters", name) == nil && !slices.Contains(pseudo, name) {
			c.add("there is nothing named %s to refer to", name)
		}
	}
	attribute := func(s string) {
		name, attr, _ := strings.Cut(s, ".")
		kind, _ := at(c.doc, "Resources", name, "Type").(string)
		if !slices.Contains(attributes[kind], attr) {
			c.add("%s: a resource of type %q has no attribute %q", s, kind, attr)
		}
	}
	walk(c.doc, func(o object) {
		if name, ok := o["Ref"].(string); ok {
			ref(name)
		}
		if s, ok := o["Fn::GetAtt"].(string); ok {
			attribute(s)
		}
		if s, ok := o["Fn::Sub"].(string); ok {
			for _, m := range substitution.FindAllStringSubmatch(s, -1) {
				if strings.Contains(m[1], ".") {
					attribute(m[1])
				} else {
					ref(m[1])
				}
			}
		}
		if args, ok := o["Fn::If"].([]any); ok && at(c.doc, "Conditions", one(args[0])) == nil {
			c.add("there is no condition named %s", args[0])
		}
	})
}

// checkRings finds resources that need each other: none of them could be made first.
func (c *template) checkRings() {
	all, _ := c.doc["Resources"].(object)
	needs := map[string][]string{}
	for name, v := range all {
		var parts any = v
		if at(v, "Type") == "AWS::Serverless::Function" {
			properties, _ := at(v, "Properties").(object)
			own := maps.Clone(properties)
			delete(own, "Events") // which become resources of their own
			parts = []any{own, c.doc["Globals"]}
			events, _ := properties["Events"].(object)
			for _, e := range events { // and an API's definition names the function
				if api := strings.Trim(one(at(e, "Properties", "ApiId")), "${}"); api != "" {
					needs[api] = append(needs[api], name)
				}
			}
		}
		walk(parts, func(o object) {
			for _, function := range []string{"Ref", "Fn::GetAtt", "Fn::Sub"} {
				s, _ := o[function].(string)
				if function != "Fn::Sub" {
					s = "${" + s + "}"
				}
				for _, m := range substitution.FindAllStringSubmatch(s, -1) {
					other, _, _ := strings.Cut(m[1], ".")
					if all[other] != nil && other != name {
						needs[name] = append(needs[name], other)
					}
				}
			}
		})
	}
	for len(needs) > 0 { // take away what needs nothing that is left
		before := len(needs)
		maps.DeleteFunc(needs, func(_ string, others []string) bool {
			return !slices.ContainsFunc(others, func(other string) bool { return needs[other] != nil })
		})
		if len(needs) == before {
			c.add("resources need each other: %s", strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
			return
		}
	}
}

// longest is how long a function may take in seconds: an HTTP API waits 30, a WebSocket
// API 29, and the sweep runs each minute.
var longest = map[string]int{"api": 29, "relay": 29, "console": 29, "sweep": 60, "trigger": 60}

func (c *template) checkFunctions() {
	mains, _ := filepath.Glob(filepath.Join(root, "functions", "*", "main.go"))
	var want, got []string
	for _, m := range mains {
		want = append(want, "build/"+filepath.Base(filepath.Dir(m)))
	}
	for name, own := range c.resources("AWS::Serverless::Function") {
		f := object{}
		if global, ok := at(c.doc, "Globals", "Function").(object); ok {
			maps.Copy(f, global)
		}
		maps.Copy(f, own)
		got = append(got, one(f["CodeUri"]))
		folder := strings.TrimPrefix(one(f["CodeUri"]), "build/")

		c.want(name, []any{f["Runtime"], f["Architectures"], f["Handler"]}, []any{"provided.al2023", []string{"arm64"}, "bootstrap"})
		c.want(name+" Metadata", at(c.doc, "Resources", name, "Metadata"), object{"SkipBuild": true})
		if seconds, _ := f["Timeout"].(int); seconds < 1 || seconds > longest[folder] {
			c.add("%s: a timeout of %v s, want 1 to %d", name, f["Timeout"], longest[folder])
		}
		variables := object{} // of all functions, and its own besides
		for _, of := range []any{at(c.doc, "Globals", "Function"), own} {
			some, _ := at(of, "Environment", "Variables").(object)
			maps.Copy(variables, some)
		}
		read := variablesRead()
		if folder != "console" { // API_URL would make all functions depend on the API, and it on one of them
			read = slices.DeleteFunc(read, func(v string) bool { return v == "API_URL" })
		} else {
			c.want(name+" API_URL", variables["API_URL"], object{"Fn::GetAtt": "Api.ApiEndpoint"})
		}
		c.want(name+" Environment", slices.Sorted(maps.Keys(variables)), read)
		if log := one(at(f, "LoggingConfig", "LogGroup")); c.resources("AWS::Logs::LogGroup")[strings.Trim(log, "${}")] == nil {
			c.add("%s: its log group is %q", name, log)
		}
		c.want(name+" RELAY_URL", variables["RELAY_URL"], object{"Fn::Sub": "wss://" + stageURL})
		c.want(name+" CONSOLE_URL", variables["CONSOLE_URL"], object{"Fn::If": []any{"HasConsoleUrl", object{"Ref": "ConsoleUrl"}, object{"Fn::Sub": "https://" + consoleHost}}})
		c.want(name+" RELAY_ENDPOINT", variables["RELAY_ENDPOINT"], object{"Fn::Sub": "https://" + stageURL})
		events, _ := f["Events"].(object)
		if len(events) == 0 && name != "RelayFunction" && name != "ConsoleFunction" { // see checkGateways
			c.add("%s: nothing invokes it", name)
		}
		for _, e := range events {
			c.checkEvent(name, f, e)
		}
	}
	slices.Sort(got)
	c.want("functions", got, want)
}

func (c *template) checkEvent(name string, f object, event any) {
	switch kind := at(event, "Type"); kind {
	case "HttpApi":
		if api := one(at(event, "Properties", "ApiId")); c.resources("AWS::Serverless::HttpApi")[strings.Trim(api, "${}")] == nil {
			c.add("%s: its API is %q", name, api)
		}
		c.want(name+" payload", at(event, "Properties", "PayloadFormatVersion"), "2.0") // what shared/gateway reads
	case "ScheduleV2":
		c.want(name+" schedule", at(event, "Properties"), object{
			"ScheduleExpression": "rate(1 minute)",
			"RoleArn":            object{"Fn::GetAtt": "ScheduleRole.Arn"},
			"RetryPolicy":        object{"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60},
		})
		c.want(name+" EventInvokeConfig", f["EventInvokeConfig"], object{"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60})
	case "SQS":
		c.want(name+" queue", at(event, "Properties"), object{
			"Queue": object{"Fn::GetAtt": "EventQueue.Arn"}, "BatchSize": 10,
			"FunctionResponseTypes": []any{"ReportBatchItemFailures"}, // without it one bad event would hold up nine good ones
		})
	case "EventBridgeRule":
		c.want(name+" bus", at(event, "Properties"), buses[one(at(event, "Properties", "EventBusName"))])
		c.want(name+" EventInvokeConfig", f["EventInvokeConfig"], object{"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 21600,
			"DestinationConfig": object{"OnFailure": object{"Type": "SQS", "Destination": object{"Fn::GetAtt": "FailedEvents.Arn"}}}})
	default:
		c.add("%s: event type %v", name, kind)
	}
}

// buses are what is taken from which event bus, by its name: all that this account puts into
// the installation's own, and what SES tells on the account's.
var buses = map[string]object{
	"${EventBus}": {"EventBusName": object{"Ref": "EventBus"}, "Pattern": object{"account": []any{object{"Ref": "AWS::AccountId"}}}},
	"":            {"Pattern": object{"source": []any{"aws.ses"}, "detail-type": []any{"Email Bounced", "Email Complaint Received"}}},
}

// checkQueues checks that no event is lost in a queue, nor lies there in the clear.
func (c *template) checkQueues() {
	c.want("queues", c.resources("AWS::SQS::Queue"), map[string]object{
		"EventQueue": {"VisibilityTimeout": 360, "MessageRetentionPeriod": int(rule.MaxAge.Seconds()), "SqsManagedSseEnabled": true,
			"RedrivePolicy": object{"deadLetterTargetArn": object{"Fn::GetAtt": "FailedEvents.Arn"}, "maxReceiveCount": 5}},
		"FailedEvents": {"MessageRetentionPeriod": 1209600, "SqsManagedSseEnabled": true},
	})
}

// stageURL is where the WebSocket API's stage is.
const stageURL = "${RelayApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live"

// consoleHost is where the pages are.
const consoleHost = "${ConsoleApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}"

// checkGateways checks the WebSocket API and that of the pages: that they call their
// function for all that happens, and that a message cannot choose its route.
func (c *template) checkGateways() {
	stage := func(api, name string) object {
		return object{"ApiId": object{"Ref": api}, "StageName": name, "AutoDeploy": true,
			"DefaultRouteSettings": object{"ThrottlingRateLimit": 500, "ThrottlingBurstLimit": 1000}}
	}
	calls := func(function string) object {
		return object{"Fn::Sub": "arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/${" + function + ".Arn}/invocations"}
	}
	route := func(of, key string) object {
		return object{"ApiId": object{"Ref": of + "Api"}, "RouteKey": key, "AuthorizationType": "NONE",
			"Target": object{"Fn::Sub": "integrations/${" + of + "Integration}"}}
	}
	permission := func(of, routes string) object {
		return object{"FunctionName": object{"Ref": of + "Function"}, "Action": "lambda:InvokeFunction", "Principal": "apigateway.amazonaws.com",
			"SourceArn": object{"Fn::Sub": "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${" + of + "Api}/" + routes}}
	}
	for kind, want := range map[string]map[string]any{
		"AWS::ApiGatewayV2::Api": {
			"RelayApi":   object{"ProtocolType": "WEBSOCKET", "RouteSelectionExpression": `\$default`},
			"ConsoleApi": object{"ProtocolType": "HTTP"}},
		"AWS::ApiGatewayV2::Stage": {"RelayStage": stage("RelayApi", "live"), "ConsoleStage": stage("ConsoleApi", "$default")},
		"AWS::ApiGatewayV2::Integration": {
			"RelayIntegration":   object{"ApiId": object{"Ref": "RelayApi"}, "IntegrationType": "AWS_PROXY", "IntegrationUri": calls("RelayFunction")},
			"ConsoleIntegration": object{"ApiId": object{"Ref": "ConsoleApi"}, "IntegrationType": "AWS_PROXY", "IntegrationUri": calls("ConsoleFunction"), "PayloadFormatVersion": "2.0"}},
		"AWS::ApiGatewayV2::Route": {"RelayConnect": route("Relay", "$connect"), "RelayMessage": route("Relay", "$default"), "RelayDisconnect": route("Relay", "$disconnect"),
			"ConsoleEverything": route("Console", "$default")},
		"AWS::Lambda::Permission": {"RelayPermission": permission("Relay", "live/*"), "ConsolePermission": permission("Console", "*/$default")},
	} {
		got := map[string]any{}
		for name, properties := range c.resources(kind) {
			properties = maps.Clone(properties)
			maps.DeleteFunc(properties, func(property string, _ any) bool { return property == "Name" || property == "AccessLogSettings" })
			got[name] = properties
		}
		c.want(kind, got, want)
	}

	// A WebSocket API logs only in an account that is set up for it.
	choice, _ := at(c.doc, "Resources", "RelayStage", "Properties", "AccessLogSettings", "Fn::If").([]any)
	if len(choice) != 3 || choice[0] != "HasRelayAccessLog" || one(choice[2]) != "${AWS::NoValue}" {
		c.add("RelayStage: accesses are logged unasked")
	}
	walk(c.doc["Resources"], func(o object) {
		format, _ := o["Format"].(string)
		for _, m := range logged.FindAllString(format, -1) {
			if !slices.Contains(loggable, m) {
				c.add("accesses are logged with %s", m)
			}
		}
	})
}

var logged = regexp.MustCompile(`\$[\w.-]+`)

// loggable is what may stand in an access log: no headers, which hold keys and tokens, and
// no query, in which people's names may stand.
var loggable = []string{
	"$context.requestId", "$context.requestTime", "$context.identity.sourceIp", "$context.httpMethod", "$context.path", "$context.protocol",
	"$context.status", "$context.responseLength", "$context.responseLatency", "$context.integrationErrorMessage",
	"$context.connectionId", "$context.eventType", "$context.routeKey", "$context.integrationLatency",
}

// variablesRead returns the environment variables that functions/wiring reads,
// sorted.
func variablesRead() []string {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "functions/wiring/wiring.go"), nil, 0)
	if err != nil {
		panic(err)
	}
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if lit, isLit := call.Args[0].(*ast.BasicLit); ok && isLit && f.Sel.Name == "Getenv" {
			name, _ := strconv.Unquote(lit.Value)
			names = append(names, name)
		}
		return true
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// checkStores checks the table, the key and the log groups.
func (c *template) checkStores() {
	want, _ := normal(dynamo.Definition("")).(object)
	delete(want, "TableName")
	maps.Copy(want, object{
		"TimeToLiveSpecification":          object{"AttributeName": dynamo.TTLAttribute, "Enabled": true},
		"PointInTimeRecoverySpecification": object{"PointInTimeRecoveryEnabled": true},
		"SSESpecification":                 object{"SSEEnabled": true, "SSEType": "KMS", "KMSMasterKeyId": object{"Fn::GetAtt": "Key.Arn"}},
		"DeletionProtectionEnabled":        true,
	})
	c.want("Table", at(c.doc, "Resources", "Table", "Properties"), want)
	c.want("Key rotation", at(c.doc, "Resources", "Key", "Properties", "EnableKeyRotation"), true)
	for _, name := range []string{"Table", "Key"} {
		for _, policy := range []string{"DeletionPolicy", "UpdateReplacePolicy"} {
			c.want(name+" "+policy, at(c.doc, "Resources", name, policy), "Retain")
		}
	}
	for name, log := range c.resources("AWS::Logs::LogGroup") {
		c.want(name+" retention", log["RetentionInDays"], object{"Ref": "LogRetentionDays"})
	}
}

// alarms are what is watched: when it alarms, and of which metrics.
var alarms = map[string][]string{
	"SweepNotSucceeding": {"breaching without data", "AWS/Lambda Errors FunctionName=${SweepFunction}", "AWS/Lambda Invocations FunctionName=${SweepFunction}"},
	"SweepErrors":        {"AWS/Lambda Errors FunctionName=${SweepFunction}"},
	"SweepThrottles":     {"AWS/Lambda Throttles FunctionName=${SweepFunction}"},
	"RelayErrors":        {"AWS/Lambda Errors FunctionName=${RelayFunction}"},
	"RelayThrottles":     {"AWS/Lambda Throttles FunctionName=${RelayFunction}"},
	"TriggerErrors":      {"AWS/Lambda Errors FunctionName=${TriggerFunction}"},
	"TriggerThrottles":   {"AWS/Lambda Throttles FunctionName=${TriggerFunction}"},
	"EventsFailed":       {"AWS/SQS ApproximateNumberOfMessagesVisible QueueName=${FailedEvents.QueueName}"},
	"ApiErrors":          {"AWS/Lambda Errors FunctionName=${ApiFunction}"},
	"ApiThrottles":       {"AWS/Lambda Throttles FunctionName=${ApiFunction}"},
	"ConsoleErrors":      {"AWS/Lambda Errors FunctionName=${ConsoleFunction}"},
	"ConsoleThrottles":   {"AWS/Lambda Throttles FunctionName=${ConsoleFunction}"},
	"Console5xx":         {"AWS/ApiGateway 5xx ApiId=${ConsoleApi}"},
	"Api5xx":             {"AWS/ApiGateway 5xx ApiId=${Api}"},
	"TableThrottles": {
		"AWS/DynamoDB ThrottledRequests TableName=${Table} Operation=DeleteItem",
		"AWS/DynamoDB ThrottledRequests TableName=${Table} Operation=GetItem",
		"AWS/DynamoDB ThrottledRequests TableName=${Table} Operation=PutItem",
		"AWS/DynamoDB ThrottledRequests TableName=${Table} Operation=Query",
		"AWS/DynamoDB ThrottledRequests TableName=${Table} Operation=TransactWriteItems",
	},
}

var identifier = regexp.MustCompile(`\b[a-z]\w*`)

func (c *template) checkAlarms() {
	got := map[string][]string{}
	for name, alarm := range c.resources("AWS::CloudWatch::Alarm") {
		var ids, used []string
		walk(alarm, func(o object) {
			if o["MetricName"] != nil {
				metric := fmt.Sprintf("%v %v", o["Namespace"], o["MetricName"])
				dimensions, _ := o["Dimensions"].([]any)
				for _, d := range dimensions {
					metric += fmt.Sprintf(" %v=%s", at(d, "Name"), one(at(d, "Value")))
				}
				got[name] = append(got[name], metric)
			}
			if o["Id"] != nil {
				ids = append(ids, one(o["Id"]))
			}
			if e, ok := o["Expression"].(string); ok {
				used = append(used, identifier.FindAllString(e, -1)...)
			}
		})
		for _, id := range used {
			if !slices.Contains(ids, id) {
				c.add("%s: its expression has no metric %s", name, id)
			}
		}
		slices.Sort(got[name])
		if alarm["TreatMissingData"] == "breaching" {
			got[name] = append([]string{"breaching without data"}, got[name]...)
		}
		c.want(name+" actions", alarm["AlarmActions"], object{"Fn::If": []any{"HasAlarmTopic", []any{object{"Ref": "AlarmTopicArn"}}, object{"Ref": "AWS::NoValue"}}})
	}
	c.want("alarms", got, alarms)
}
