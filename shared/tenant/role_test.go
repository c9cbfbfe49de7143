package tenant_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/tenant"
)

// permissions is who may do what: yes, on the own user only, or not (-).
const permissions = `
                    platform admin operator helpdesk kiosk events self auditor
tenants.manage      yes      -     -        -        -     -      -    -
caller.read         yes      yes   yes      yes      yes   yes    yes  yes
settings.read       -        yes   yes      -        -     -      -    yes
settings.write      -        yes   -        -        -     -      -    -
policy.read         -        yes   yes      yes      -     -      yes  yes
policy.write        -        yes   -        -        -     -      -    -
keys.manage         -        yes   -        -        -     -      -    -
people.manage       -        yes   -        -        -     -      -    -
tokens.mint         -        yes   -        -        -     -      -    -
users.list          -        yes   yes      yes      -     -      -    yes
users.read          -        yes   yes      yes      -     -      own  yes
users.create        -        yes   yes      -        -     -      -    -
users.update        -        yes   yes      -        -     -      own  -
users.delete        -        yes   -        -        -     -      -    -
users.clearMail     -        yes   yes      -        -     -      -    -
pin.read            -        yes   yes      yes      -     -      own  yes
pin.set             -        yes   yes      -        -     -      own  -
pin.generate        -        yes   yes      -        -     -      own  -
pin.issue           -        yes   yes      yes      -     -      own  -
pin.requireChange   -        yes   yes      -        -     -      -    -
pin.bulk            -        yes   -        -        -     -      -    -
pin.delete          -        yes   yes      -        -     -      -    -
pin.unlock          -        yes   yes      yes      -     -      -    -
pin.verify          -        yes   -        -        yes   -      -    -
pin.identify        -        yes   -        -        yes   -      -    -
messaging.read      -        yes   -        -        -     -      -    yes
messaging.write     -        yes   -        -        -     -      -    -
audit.read          -        yes   -        -        -     -      -    yes
bridges.read        -        yes   yes      yes      -     -      -    yes
bridges.manage      -        yes   -        -        -     -      -    -
credentials.read    -        yes   yes      yes      -     -      -    yes
credentials.write   -        yes   yes      -        -     -      -    -
cardTemplates.read  -        yes   yes      yes      -     -      -    yes
cardTemplates.write -        yes   -        -        -     -      -    -
unblock.read        -        yes   yes      yes      yes   -      -    yes
unblock.list        -        yes   yes      yes      -     -      -    yes
unblock.start       -        yes   yes      -        yes   -      -    -
unblock.cancel      -        yes   yes      -        yes   -      -    -
offline.answer      -        yes   yes      yes      -     -      -    -
offline.tellPUK     -        yes   yes      -        -     -      -    -
sanityCheck.run     -        yes   -        -        -     -      -    -
events.send         -        yes   -        -        -     yes    -    -
events.read         -        yes   yes      -        -     -      -    yes
rules.read          -        yes   yes      -        -     -      -    yes
rules.write         -        yes   -        -        -     -      -    -
deliveries.read     -        yes   -        -        -     -      -    yes
deliveries.manage   -        yes   -        -        -     -      -    -
`

func TestMay(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(permissions), "\n")
	roles := strings.Fields(rows[0])
	var actions []string
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		actions = append(actions, cells[0])
		for i, role := range roles {
			got := map[tenant.Grant]string{tenant.No: "-", tenant.Own: "own", tenant.Yes: "yes"}[tenant.May(tenant.Role(role), tenant.Action(cells[0]))]
			if got != cells[i+1] {
				t.Errorf("%s may %s: %s, want %s", role, cells[0], got, cells[i+1])
			}
		}
		if tenant.May("janitor", tenant.Action(cells[0])) != tenant.No {
			t.Errorf("an unknown role may %s", cells[0])
		}
	}
	if d := cmp.Diff(constants(t, "Role"), slices.Sorted(slices.Values(roles))); d != "" {
		t.Errorf("roles (-declared +pinned):\n%s", d)
	}
	if d := cmp.Diff(constants(t, "Action"), slices.Sorted(slices.Values(actions))); d != "" {
		t.Errorf("actions (-declared +pinned):\n%s", d)
	}
}

// TestAuditor: an auditor reads whatever can be read, and changes nothing.
func TestAuditor(t *testing.T) {
	for _, action := range constants(t, "Action") {
		_, verb, _ := strings.Cut(action, ".")
		want := tenant.No
		if verb == "read" || verb == "list" {
			want = tenant.Yes
		}
		if got := tenant.May(tenant.RoleAuditor, tenant.Action(action)); got != want {
			t.Errorf("an auditor may %s: %v, want %v", action, got, want)
		}
	}
	if slices.Contains(tenant.KeyRoles(), tenant.RoleAuditor) {
		t.Error("an API key can have the role auditor")
	}
}

func TestMayAny(t *testing.T) {
	for _, test := range []struct {
		roles  []tenant.Role
		action tenant.Action
		want   tenant.Grant
	}{
		{nil, tenant.ReadCaller, tenant.No},
		{[]tenant.Role{"janitor"}, tenant.ReadCaller, tenant.No},
		{[]tenant.Role{tenant.RoleHelpdesk, tenant.RoleAuditor}, tenant.ReadAudit, tenant.Yes},
		{[]tenant.Role{tenant.RoleHelpdesk, tenant.RoleAuditor}, tenant.IssuePIN, tenant.Yes},
		{[]tenant.Role{tenant.RoleHelpdesk, tenant.RoleAuditor}, tenant.SetPIN, tenant.No},
		{[]tenant.Role{tenant.RoleSelf, tenant.RoleEvents}, tenant.SetPIN, tenant.Own},
		{[]tenant.Role{tenant.RoleSelf, tenant.RoleOperator}, tenant.SetPIN, tenant.Yes},
	} {
		if got := tenant.MayAny(test.roles, test.action); got != test.want {
			t.Errorf("%v may %s: %v, want %v", test.roles, test.action, got, test.want)
		}
	}
}

// constants returns the values of role.go's constants of a type, so that none
// is left out of the table.
func constants(t *testing.T, kind string) (values []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "role.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == kind {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value)
		}
		return true
	})
	slices.Sort(values)
	return values
}
