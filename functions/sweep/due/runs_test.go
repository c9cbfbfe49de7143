package due

import (
	"testing"
	"time"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// An import ends, and the cards that it brought without a flag get one: the sweep does it,
// with the shard that it is asked to be done with.
func TestSanityCheckAfterImport(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	w.settings(acme, func(s *tenant.Settings) {
		s.SupportFunctions, s.AfterImport = true, tenant.SanityCheck{On: true, Random: true, Before: 3, After: 3}
	})
	core := w.core(acme)
	f, err := card.FamilyNamed("PIV")
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := w.Credentials.CreateTemplate(t.Context(), core, admin, credential.Template{Name: "Staff", Family: "PIV", Policy: f.Policy(), PINValidDays: 100}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Credentials.Register(t.Context(), core, admin, credential.New{Family: "PIV", CardID: "00112233445566778899AABBCCDDEEFF", Template: tmpl.ID})
	if err != nil {
		t.Fatal(err)
	}
	ops, err := w.Credentials.AfterImport(t.Context(), core)
	if err == nil {
		err = w.Table.Write(t.Context(), ops...)
	}
	if err != nil {
		t.Fatal(err)
	}
	if report, err := w.Handle(t.Context(), []byte(`{"shards":[1,2]}`)); err != nil || report.SanityRuns != (credential.RunReport{}) {
		t.Errorf("with other shards: %+v, %v", report, err)
	}
	if report, err := w.Handle(t.Context(), nil); err != nil || report.SanityRuns != (credential.RunReport{Due: 1, Ended: 1}) {
		t.Errorf("got %+v, %v", report, err)
	}
	got, err := w.Credentials.Get(t.Context(), acme, c.ID)
	if days := got.PINExpiresAt.Sub(w.Now()).Hours() / 24; err != nil || got.Flagged.How != credential.FlagBySanityCheck || days < 96 || days > 103 {
		t.Errorf("the card has %+v, %.1f days ahead, %v", got.Flagged, days, err)
	}
}

// A run that cannot be read is an error that is seen, and does not stop the rest.
func TestBadRun(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	bad := tabletest.Record{Key: table.JobKey(acme, "01JBAD"), Indexes: []table.IndexKey{table.JobDue(acme, "01JBAD", w.Now().Add(-time.Minute))}, Data: []byte(`{"kind":"sanity","id":"01JBAD","templates":7}`)}
	other := tabletest.Record{Key: table.JobKey(acme, "01JOTHER"), Indexes: []table.IndexKey{table.JobDue(acme, "01JOTHER", w.Now())}, Data: []byte(`{"kind":"import"}`)}
	if err := w.Table.Write(t.Context(), table.Put(bad, table.Absent()), table.Put(other, table.Absent())); err != nil {
		t.Fatal(err)
	}
	if report, err := w.Handle(t.Context(), nil); err == nil || report.SanityRuns != (credential.RunReport{Due: 1, Errors: 1}) || report.Errors != 1 {
		t.Errorf("got %+v, %v", report, err)
	}
}
