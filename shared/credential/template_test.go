package credential

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

func TestTemplates(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	want := aTemplate("PIV")
	want.Channels, want.Messaging = Channels(), messaging
	made := must(w.CreateTemplate(ctx, w.core, admin, want, nil))(t)
	want.ID, want.Version = made.ID, 1
	if d := cmp.Diff(want, must(w.Template(ctx, acme, made.ID))(t)); d != "" {
		t.Errorf("-made +stored:\n%s", d)
	}
	changed := must(w.UpdateTemplate(ctx, w.core, admin, made.ID, 1, func(tmpl *Template) { tmpl.Name, tmpl.PINValidDays = "Staff", 0 }, nil))(t)
	want.Name, want.PINValidDays, want.Version = "Staff", 0, 2
	if d := cmp.Diff(want, changed); d != "" {
		t.Errorf("-want +changed:\n%s", d)
	}
	if same := must(w.UpdateTemplate(ctx, w.core, admin, made.ID, 0, func(*Template) {}, nil))(t); same.Version != 2 {
		t.Errorf("a change of nothing made version %d", same.Version)
	}
	w.pass(time.Millisecond)
	second := w.template("GIDS", "")
	if d := cmp.Diff([]Template{want, second}, must(w.Templates(ctx, acme))(t)); d != "" {
		t.Errorf("-want +listed:\n%s", d)
	}
	_, err := w.UpdateTemplate(ctx, w.core, admin, made.ID, 1, func(tmpl *Template) { tmpl.Name = "Guests" }, nil)
	if !errors.Is(err, problem.ErrConflict) {
		t.Errorf("a change of version 1: %v", err)
	}
	if err := w.DeleteTemplate(ctx, w.core, admin, made.ID, 1); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("a deletion of version 1: %v", err)
	}

	// Another tenant's is as unknown as one that nobody has.
	for _, id := range []string{made.ID, "01JNOBODY", strings.Repeat("x", 3000)} {
		_, got := w.Template(ctx, globex, id)
		_, changed := w.UpdateTemplate(ctx, w.other, admin, id, 0, func(*Template) {}, nil)
		for name, err := range map[string]error{"got": got, "changed": changed, "deleted": w.DeleteTemplate(ctx, w.other, admin, id, 0)} {
			if !errors.Is(err, problem.ErrNotFound) {
				t.Errorf("%s by another tenant: %v", name, err)
			}
		}
	}
	if err := w.DeleteTemplate(ctx, w.core, admin, made.ID, 2); err != nil {
		t.Error(err)
	}
	if _, err := w.Template(ctx, acme, made.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("after its deletion: %v", err)
	}
	w.check()
}

func TestBadTemplates(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.put(table.MessagingKey(globex, "01JTHEIRS"))
	gids := aTemplate("GIDS").Policy
	for _, c := range []struct {
		name   string
		family string
		edit   func(*Template)
		master string
		want   []string
	}{
		{"no name", "PIV", func(x *Template) { x.Name = "" }, "", []string{"name:name"}},
		{"line break in name", "PIV", func(x *Template) { x.Name = "a\nb" }, "", []string{"name:name"}},
		{"no family", "PIV", func(x *Template) { x.Family = "" }, "", []string{"family:unknown"}},
		{"family in another case", "PIV", func(x *Template) { x.Family = "piv" }, "", []string{"family:unknown"}},
		{"policy of the other family", "PIV", func(x *Template) { x.Policy = gids }, "", []string{"policy.minLength:range", "policy.alphabet:inconsistent"}},
		{"PINs of three", "PIV", func(x *Template) { x.Policy.MinLength = 3 }, "", []string{"policy.minLength:range", "policy.minLength:range"}},
		{"a policy that no bridge takes", "PIV", func(x *Template) { x.Policy.BlocklistEntries = slices.Repeat([]string{"73915846"}, 2000) }, "", []string{"policy.blocklistEntries:range", "policy.blocklistEntries:tooLarge"}},
		{"unknown channel", "PIV", func(x *Template) { x.Channels = []Channel{"pigeon"} }, "", []string{"channels.0:unknown"}},
		{"channel twice", "PIV", func(x *Template) { x.Channels = []Channel{Operator, Operator} }, "", []string{"channels.1:repeated"}},
		{"self-service without mail", "PIV", func(x *Template) { x.Channels = Channels() }, "", []string{"messaging:missing"}},
		{"unknown messaging", "PIV", func(x *Template) { x.Messaging = "01JNOBODY" }, "", []string{"messaging:unknown"}},
		{"another tenant's messaging", "PIV", func(x *Template) { x.Messaging = "01JTHEIRS" }, "", []string{"messaging:unknown"}},
		{"messaging without end", "PIV", func(x *Template) { x.Messaging = strings.Repeat("x", 3000) }, "", []string{"messaging:unknown"}},
		{"negative days", "PIV", func(x *Template) { x.PINValidDays = -1 }, "", []string{"pinValidDays:range"}},
		{"a century", "PIV", func(x *Template) { x.PINValidDays = 36500 }, "", []string{"pinValidDays:range"}},
		{"offline by a mailed code", "PIV", func(x *Template) { x.Proofs = map[Channel]Proof{SelfServiceOffline: MailedCode, "pigeon": Statement} }, "", []string{"proofs.pigeon:unknown", "proofs.selfServiceOffline:unknown"}},
		{"logon screen without mail", "PIV", func(x *Template) { x.Channels = []Channel{LogonScreen} }, "", []string{"messaging:missing"}},
		{"a limit of none", "PIV", func(x *Template) { x.Limit = Limit{0, 7} }, "", []string{"limit:range"}},
		{"a limit for ever", "PIV", func(x *Template) { x.Limit = Limit{5, 367} }, "", []string{"limit:range"}},
		{"reminders without mail", "PIV", func(x *Template) { x.Reminders = []Reminder{{DaysBefore: 5}} }, "", []string{"reminders.0.messaging:missing"}},
		{"reminders on days that cannot be", "PIV", func(x *Template) {
			x.Messaging, x.Reminders = messaging, []Reminder{{DaysBefore: 0}, {DaysBefore: 366}, {DaysBefore: 90}, {DaysBefore: 89}, {DaysBefore: 89}}
		}, "", []string{"reminders.0.daysBefore:range", "reminders.1.daysBefore:range", "reminders.2.daysBefore:range", "reminders.4.daysBefore:repeated"}},
		{"too many reminders", "PIV", func(x *Template) {
			x.Messaging = messaging
			for d := range 11 {
				x.Reminders = append(x.Reminders, Reminder{DaysBefore: d + 1})
			}
		}, "", []string{"reminders:count"}},
		{"operators without an address", "PIV", func(x *Template) { x.Messaging, x.OperatorMail = messaging, "Help <desk@acme.example>" }, "", []string{"operatorMail:form"}},
		{"operators without mail", "PIV", func(x *Template) { x.OperatorMail = "desk@acme.example" }, "", []string{"messaging:missing"}},
		{"master key for PUKs", "PIV", func(*Template) {}, masterHex, []string{"masterKey:inconsistent"}},
		{"master key not in hex", "GIDS", func(*Template) {}, "x" + masterHex[1:], []string{"masterKey:malformed"}},
		{"half a byte of master key", "GIDS", func(*Template) {}, masterHex[1:], []string{"masterKey:malformed"}},
		{"short master key", "GIDS", func(*Template) {}, masterHex[:30], []string{"masterKey:length"}},
		{"empty master key", "GIDS", func(*Template) {}, "", nil},
		{"long master key", "GIDS", func(*Template) {}, masterHex + masterHex + "00", []string{"masterKey:length"}},
		{"everything at once", "PIV", func(x *Template) { x.Name, x.Messaging = "", "01JNOBODY" }, masterHex, []string{"name:name", "masterKey:inconsistent", "messaging:unknown"}},
	} {
		tmpl := aTemplate(c.family)
		c.edit(&tmpl)
		var master *secret.Text
		if c.master != "" {
			master = given(c.master)
		}
		if c.want == nil {
			master, c.want = given(""), []string{"masterKey:length"}
		}
		_, err := w.CreateTemplate(ctx, w.core, admin, tmpl, master)
		if d := cmp.Diff(c.want, objections(err)); d != "" {
			t.Errorf("%s (-want +got): %v\n%s", c.name, err, d)
		}
		if err != nil && c.master != "" && strings.Contains(err.Error(), c.master) {
			t.Errorf("%s: the error repeats the key", c.name)
		}
	}
	if all := must(w.Templates(ctx, acme))(t); len(all) != 0 || len(w.audited(acme)) != 0 {
		t.Errorf("%d templates were made, and %d records", len(all), len(w.audited(acme)))
	}
	made := w.template("PIV", "")
	_, err := w.UpdateTemplate(ctx, w.core, admin, made.ID, 0, func(x *Template) { x.Family, x.Name = "GIDS", "" }, nil)
	if d := cmp.Diff([]string{"family:fixed", "name:name"}, objections(err)); d != "" {
		t.Errorf("another family (-want +got): %v\n%s", err, d)
	}
	w.check()
}

func TestMaxTemplates(t *testing.T) {
	w := newWorld(t)
	for range maxTemplates {
		w.template("PIV", "")
	}
	_, err := w.CreateTemplate(t.Context(), w.core, admin, aTemplate("PIV"), nil)
	if !errors.Is(err, problem.ErrState) || len(must(w.Templates(t.Context(), acme))(t)) != maxTemplates {
		t.Errorf("one more: %v", err)
	}
}

// A template that cards have is changed but not deleted, and keeps its master key.
func TestTemplateInUse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	used, spare := w.template("GIDS", masterHex), w.template("GIDS", "")
	c := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: used.ID}))(t)
	key := must(c.AdminKeyOf(w.core.Keys, acme, used))(t)

	if err := w.DeleteTemplate(ctx, w.core, admin, used.ID, 0); !errors.Is(err, problem.ErrState) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := w.UpdateTemplate(ctx, w.core, admin, used.ID, 0, func(*Template) {}, given(keyHex)); !errors.Is(err, problem.ErrState) {
		t.Errorf("its master key was replaced: %v", err)
	}
	changed := must(w.UpdateTemplate(ctx, w.core, admin, used.ID, 0, func(x *Template) { x.Name, x.MasterKey = "Guests", nil }, nil))(t)
	if got := must(c.AdminKeyOf(w.core.Keys, acme, changed))(t); !got.Equal(key) {
		t.Error("the card's admin key is another one after the template was changed")
	}

	moved := must(w.Update(ctx, w.core, admin, tenant.RoleAdmin, c.ID, 0, func(x *About) { x.Template = spare.ID }))(t)
	if got := must(moved.AdminKeyOf(w.core.Keys, acme, spare))(t); !got.Equal(key) {
		t.Error("the card's admin key is another one after the credential got another template")
	}
	if _, err := w.UpdateTemplate(ctx, w.core, admin, used.ID, 0, func(*Template) {}, given(keyHex)); err != nil {
		t.Errorf("without cards its master key is not replaced: %v", err)
	}
	// One that had no master key gets its first while it has cards.
	if _, err := w.UpdateTemplate(ctx, w.core, admin, spare.ID, 0, func(*Template) {}, given(keyHex)); err != nil {
		t.Error(err)
	}
	if got := must(moved.AdminKeyOf(w.core.Keys, acme, must(w.Template(ctx, acme, spare.ID))(t)))(t); !got.Equal(key) {
		t.Error("the template's first master key has displaced the card's own admin key")
	}
	if err := w.DeleteTemplate(ctx, w.core, admin, used.ID, 0); err != nil {
		t.Error(err)
	}
	if err := w.Delete(ctx, w.core, admin, c.ID, 0, true); err != nil {
		t.Error(err)
	}
	if err := w.DeleteTemplate(ctx, w.core, admin, spare.ID, 0); err != nil {
		t.Error(err)
	}
	w.check()
}

// Of those who delete a template and those who give it to cards at the same time, either
// the one succeeds or the others.
func TestTemplateRace(t *testing.T) {
	for range 10 {
		w := newWorld(t)
		ctx := t.Context()
		tmpl := w.template("PIV", "")
		const cards = 4
		errs := racing(cards+1, func(i int) error {
			if i == cards {
				return w.DeleteTemplate(ctx, w.core, admin, tmpl.ID, 0)
			}
			_, err := w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard[:31] + string(rune('1'+i)), Template: tmpl.ID})
			return err
		})
		registered := 0
		for _, err := range errs[:cards] {
			if err == nil {
				registered++
			} else if d := cmp.Diff([]string{"template:unknown"}, objections(err)); d != "" {
				t.Errorf("register: %v", err)
			}
		}
		deleted := errs[cards] == nil
		if !deleted && !errors.Is(errs[cards], problem.ErrState) && !errors.Is(errs[cards], problem.ErrConflict) {
			t.Errorf("delete: %v", errs[cards])
		}
		if deleted == (registered > 0) {
			t.Errorf("the template was deleted: %v, and %d cards have it", deleted, registered)
		}
		w.check()
	}
}
