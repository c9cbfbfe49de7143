package intake_test

import "testing"

// TestSanityCheckAfterImport: the end of an import sets off the sanity check, if the tenant
// wants it; a dry run and a cancelled import do not.
func TestSanityCheckAfterImport(t *testing.T) {
	w := newWorld(t)
	runs := func() int {
		t.Helper()
		all, _, err := w.Credentials.Runs(t.Context(), acme, "", 10)
		w.must(err)
		return len(all)
	}
	file := "cardId,puk\n" + cardID(1) + "," + puk(1) + "\n"
	w.bring(w.create(), file)
	if n := runs(); n != 0 {
		t.Fatalf("%d runs, though nobody asked for them", n)
	}
	w.core.Tenant.Settings.SupportFunctions, w.core.Tenant.Settings.AfterImport.On = true, true
	w.bring(w.create(dry), file)
	im := w.create()
	if _, err := w.Cancel(t.Context(), w.core, admin, im.ID); err != nil {
		t.Fatal(err)
	}
	if n := runs(); n != 0 {
		t.Fatalf("%d runs after a dry run and a cancelled import", n)
	}
	im = w.create()
	w.bring(im, file)
	if _, err := w.Finish(t.Context(), w.core, admin, im.ID); err != nil { // once more
		t.Fatal(err)
	}
	if n := runs(); n != 1 {
		t.Errorf("%d runs after an import that was finished twice, want 1", n)
	}
}
