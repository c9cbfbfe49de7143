package deployment

import "strings"

// statement is one of a role's policy: it allows the actions on the resources
// if all of the request's values for the condition's key match one of Values.
type statement struct {
	Actions   []string
	Resources []string
	Operator  string
	Key       string
	Values    []string
}

const (
	forAll      = "ForAllValues:StringLike"
	leadingKeys = "dynamodb:LeadingKeys"
	kmsContext  = "kms:EncryptionContext:associatedData"
	keysets     = "70696e776172647c6b6579736574737c*" // hex of "pinward|keysets|"
)

var sesFrom = []string{
	"arn:${AWS::Partition}:ses:${AWS::Region}:${AWS::AccountId}:identity/${MailIdentity}",
	"arn:${AWS::Partition}:ses:${AWS::Region}:${AWS::AccountId}:configuration-set/*",
}

// relayConnections are the connections of the WebSocket API's stage: to post, to close.
var relayConnections = []string{
	"arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${RelayApi}/live/POST/@connections/*",
	"arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${RelayApi}/live/DELETE/@connections/*",
}

// allowed is all that each role may do. TransactWriteItems is allowed by what it
// consists of. TestBootstraps finds out whether the functions need more or less.
var allowed = map[string][]statement{
	"ApiRole": {
		{[]string{"dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
			[]string{"${Table.Arn}"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/list"}, forAll, leadingKeys, []string{"t/*", "tenants/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/history"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/due"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"kms:Encrypt", "kms:Decrypt"}, []string{"${Key.Arn}"}, "StringLike", kmsContext, []string{keysets}},
		{[]string{"ses:SendBulkEmail"}, sesFrom, "", "", nil},
		{[]string{"ses:GetAccount"}, []string{"*"}, "", "", nil},
		{[]string{"execute-api:ManageConnections"}, relayConnections, "", "", nil},
		{[]string{"logs:CreateLogStream", "logs:PutLogEvents"}, []string{"${ApiLog.Arn}"}, "", "", nil},
	},
	"RelayRole": {
		{[]string{"dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
			[]string{"${Table.Arn}"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"kms:Decrypt"}, []string{"${Key.Arn}"}, "StringLike", kmsContext, []string{keysets}},
		{[]string{"ses:SendBulkEmail"}, sesFrom, "", "", nil},
		{[]string{"ses:GetAccount"}, []string{"*"}, "", "", nil},
		{[]string{"execute-api:ManageConnections"}, relayConnections, "", "", nil},
		{[]string{"logs:CreateLogStream", "logs:PutLogEvents"}, []string{"${RelayLog.Arn}"}, "", "", nil},
	},
	"ConsoleRole": {
		{[]string{"dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
			[]string{"${Table.Arn}"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/due", "${Table.Arn}/index/history", "${Table.Arn}/index/list"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"kms:Decrypt"}, []string{"${Key.Arn}"}, "StringLike", kmsContext, []string{keysets}},
		{[]string{"ses:SendBulkEmail"}, sesFrom, "", "", nil},
		{[]string{"ses:GetAccount"}, []string{"*"}, "", "", nil},
		{[]string{"execute-api:ManageConnections"}, relayConnections, "", "", nil},
		{[]string{"logs:CreateLogStream", "logs:PutLogEvents"}, []string{"${ConsoleLog.Arn}"}, "", "", nil},
	},
	"SweepRole": {
		{[]string{"dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
			[]string{"${Table.Arn}"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/list"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/due"}, forAll, leadingKeys, []string{"due/*", "t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/history"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"kms:Decrypt"}, []string{"${Key.Arn}"}, "StringLike", kmsContext, []string{keysets}},
		{[]string{"ses:SendBulkEmail"}, sesFrom, "", "", nil},
		{[]string{"ses:GetAccount"}, []string{"*"}, "", "", nil},
		{[]string{"execute-api:ManageConnections"}, relayConnections[:1], "", "", nil},
		{[]string{"logs:CreateLogStream", "logs:PutLogEvents"}, []string{"${SweepLog.Arn}"}, "", "", nil},
	},
	"TriggerRole": {
		{[]string{"dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
			[]string{"${Table.Arn}"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"dynamodb:Query"}, []string{"${Table.Arn}/index/history", "${Table.Arn}/index/list"}, forAll, leadingKeys, []string{"t/*"}},
		{[]string{"kms:Decrypt"}, []string{"${Key.Arn}"}, "StringLike", kmsContext, []string{keysets}},
		{[]string{"ses:SendBulkEmail"}, sesFrom, "", "", nil},
		{[]string{"ses:GetAccount"}, []string{"*"}, "", "", nil},
		{[]string{"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}, []string{"${EventQueue.Arn}"}, "", "", nil},
		{[]string{"sqs:SendMessage"}, []string{"${FailedEvents.Arn}"}, "", "", nil},
		{[]string{"logs:CreateLogStream", "logs:PutLogEvents"}, []string{"${TriggerLog.Arn}"}, "", "", nil},
	},
	"ScheduleRole": {
		{[]string{"lambda:InvokeFunction"}, []string{"${SweepFunction.Arn}"}, "", "", nil},
	},
}

// roles are who takes on which role.
var roles = map[string]struct{ service, function string }{
	"ApiRole":      {"lambda.amazonaws.com", "ApiFunction"},
	"RelayRole":    {"lambda.amazonaws.com", "RelayFunction"},
	"ConsoleRole":  {"lambda.amazonaws.com", "ConsoleFunction"},
	"SweepRole":    {"lambda.amazonaws.com", "SweepFunction"},
	"TriggerRole":  {"lambda.amazonaws.com", "TriggerFunction"},
	"ScheduleRole": {"scheduler.amazonaws.com", ""},
}

func (c *template) checkPolicies() {
	walk(c.doc["Resources"], func(o object) {
		for _, action := range list(o["Action"]) {
			if strings.Contains(action, "*") {
				c.add("action %s is more than one", action)
			}
		}
	})
	got := map[string][]statement{}
	for name, role := range c.resources("AWS::IAM::Role") {
		if role["ManagedPolicyArns"] != nil {
			c.add("%s: managed policies besides its action list", name)
		}
		trust, _ := at(role, "AssumeRolePolicyDocument", "Statement").([]any)
		if len(trust) != 1 || one(at(trust[0], "Principal")) != one(object{"Service": roles[name].service}) {
			c.add("%s: it is not %s alone that may take it on", name, roles[name].service)
		}
		policies, _ := role["Policies"].([]any)
		if len(policies) != 1 {
			c.add("%s: %d action lists, want one", name, len(policies))
			continue
		}
		got[name] = statements(policies[0])
	}
	c.want("roles", got, allowed)
	for name, role := range roles {
		f := c.resources("AWS::Serverless::Function")[role.function]
		if role.function != "" && (one(f["Role"]) != "${"+name+".Arn}" || f["Policies"] != nil) {
			c.add("%s: its role is not %s, or not all", role.function, name)
		}
	}
}

// statements returns those of a role's policy, which all allow.
func statements(policy any) []statement {
	var all []statement
	items, _ := at(policy, "PolicyDocument", "Statement").([]any)
	for _, s := range items {
		next := statement{Actions: list(at(s, "Action")), Resources: list(at(s, "Resource"))}
		if at(s, "Effect") != "Allow" {
			next.Actions = nil
		}
		conditions, _ := at(s, "Condition").(object)
		for operator, v := range conditions {
			keys, _ := v.(object)
			for key, values := range keys { // two conditions run into one that nobody expects
				next.Operator += operator
				next.Key += key
				next.Values = append(next.Values, list(values)...)
			}
		}
		all = append(all, next)
	}
	return all
}
