package page

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

// importKind is what the pages of imports of one kind have of their own.
type importKind struct {
	Kind         intake.Kind
	section      string // that the pages are under
	API          string // where its operations are
	read, change tenant.Action
}

// importKinds are all kinds. Each has its pages under its section, at /import.
var importKinds = []importKind{
	{intake.Users, "/users", "/v1/user-imports", tenant.ListUsers, tenant.CreateUser},
	{intake.Cards, "/cards", "/v1/imports", tenant.ReadCredentials, tenant.WriteCredentials},
}

// Path is where the list of its imports is, below Root.
func (k importKind) Path() string { return k.section + "/import" }

// Change is the action of whoever may import.
func (k importKind) Change() string { return string(k.change) }

// Loop is how a file of any size is sent by the API.
func (k importKind) Loop() string {
	return "split -C 4m -a 4 " + string(k.Kind) + ".csv part.\nn=0\nfor f in part.*; do n=$((n+1))\n" +
		"  curl -sS --fail-with-body --retry 100 -H \"Authorization: Bearer $KEY\" -H 'Content-Type: text/csv' -T \"$f\" \"$API" + k.API + "/$ID/parts/$n\" || break\ndone"
}

// maxFile is the largest file in bytes that a page takes: more does not go through a
// function safely.
const maxFile = 4 << 20

// maxOutcomes is how many rows that were not taken a page shows; the file of the result has all.
const maxOutcomes = 200

// importRoutes are the pages of imports. A file is not kept, for there may be PINs and PUKs in
// it: what is to be done with it once more wants it once more. With scripts the page on which it
// was chosen sends it as often as needed; without, people choose it again.
func (c *Console) importRoutes() (all []route) {
	for _, k := range importKinds {
		p := Root + k.Path()
		with := func(do func(*view, importKind) error) func(*view) error {
			return func(v *view) error { return do(v, k) }
		}
		all = append(all,
			route{pattern: "GET " + p, action: k.read, do: with((*view).listImports)},
			route{pattern: "GET " + p + "/new", action: k.change, do: with((*view).newImport)},
			route{pattern: "POST " + p + "/new", action: k.change, maxBody: intake.MaxPart, do: with((*view).checkImport)},
			route{pattern: "GET " + p + "/of/{import}", action: k.read, do: with((*view).showImport)},
			route{pattern: "GET " + p + "/of/{import}/progress", action: k.read, asked: true, do: with((*view).importProgress)},
			route{pattern: "GET " + p + "/of/{import}/result", action: k.read, do: with((*view).importResult)},
			route{pattern: "POST " + p + "/of/{import}/run", action: k.change, maxBody: intake.MaxPart, do: with((*view).runImport)},
			route{pattern: "POST " + p + "/of/{import}/part", action: k.change, maxBody: intake.MaxPart, do: with((*view).sendPart)},
			route{pattern: "POST " + p + "/of/{import}/finish", action: k.change, do: with((*view).finishImport)},
			route{pattern: "POST " + p + "/of/{import}/cancel", action: k.change, do: with((*view).cancelImport)},
		)
	}
	return all
}

func (v *view) imports(k importKind) *intake.Imports {
	return &intake.Imports{Kind: k.Kind, Table: v.Table, Credentials: v.Credentials, Users: v.Users, Audit: v.Audit, Now: v.Now, Rand: v.Rand}
}

type importList struct {
	Kind    importKind
	Imports List[intake.Import]
}

func (v *view) listImports(k importKind) error {
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) ([]intake.Import, string, error) {
		return v.imports(k).List(v.ctx(), v.tenant(), beyond, limit)
	}
	if v.value("format") == "csv" {
		rows := rowsOf(from, func(beyond string) ([]intake.Import, string, error) { return more(beyond, 200) })
		return csvFile(v, string(k.Kind)+"-imports", []string{"id", "createdAt", "endedAt", "dryRun", "update", "format", "parts", "state"}, rows, func(im intake.Import) []string {
			return []string{im.ID, csvTime(im.CreatedAt), csvTime(im.EndedAt), strconv.FormatBool(im.DryRun), strconv.FormatBool(im.Update), string(im.Format), strconv.Itoa(im.Parts), string(im.State)}
		})
	}
	all, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	return v.show("imports", importList{k, list(v, all, next)})
}

// importForm is what somebody says of a file.
type importForm struct {
	Kind         importKind
	Format       string
	Delimiter    string
	Template     string
	IgnoreOthers bool
	Update       bool
	More         bool // parts are to follow
	Columns      []importColumn
	Templates    []Option // of cards
}

type importColumn struct {
	Field intake.Field
	Name  string // in the file
	Needs bool
}

// Named tells whether any column has a name of its own.
func (f importForm) Named() bool {
	for _, c := range f.Columns {
		if c.Name != "" {
			return true
		}
	}
	return false
}

func (v *view) importForm(k importKind) (importForm, error) {
	f := importForm{Kind: k, Format: v.value("format"), Delimiter: v.value("delimiter"), Template: v.value("template"),
		IgnoreOthers: v.value("ignoreOthers") != "", Update: v.value("update") != "", More: v.value("more") != ""}
	for i, field := range k.Kind.Fields() {
		f.Columns = append(f.Columns, importColumn{field, v.value("columns." + string(field)), i == 0})
	}
	if k.Kind != intake.Cards {
		return f, nil
	}
	templates, err := v.Credentials.Templates(v.ctx(), v.tenant())
	if err != nil {
		return importForm{}, err
	}
	f.Templates = append(f.Templates, Option{"", v.words.Say("imports.templateByRow")})
	for _, t := range templates {
		f.Templates = append(f.Templates, Option{t.ID, t.Name})
	}
	return f, nil
}

// delimiters are the names of a delimiter in forms, which lose a tab.
var delimiters = map[string]string{"comma": ",", "semicolon": ";", "tab": "\t"}

func (f importForm) options() intake.Options {
	o := intake.Options{Kind: f.Kind.Kind, Format: intake.Format(f.Format), Template: f.Template, IgnoreOthers: f.IgnoreOthers, Update: f.Update, DryRun: true}
	if o.Format == intake.CSV {
		if o.Delimiter = delimiters[f.Delimiter]; o.Delimiter == "" && f.Delimiter != "" {
			o.Delimiter = f.Delimiter // to be refused
		}
	}
	if !f.Named() {
		return o
	}
	o.Columns = map[intake.Field]string{}
	for _, c := range f.Columns {
		if c.Name != "" {
			o.Columns[c.Field] = c.Name
		}
	}
	return o
}

func (v *view) newImport(k importKind) error {
	f, err := v.importForm(k)
	if err != nil {
		return err
	}
	return v.show("import-new", f)
}

// file returns the file of a form, which its field part has.
func (v *view) file() ([]byte, error) {
	file, header, err := v.r.FormFile("part")
	if errors.Is(err, http.ErrMissingFile) || errors.Is(err, http.ErrNotMultipart) {
		return nil, problem.Invalid("missing", "part", "is missing; choose the file on your computer")
	} else if err != nil {
		return nil, &unreadable{err}
	}
	defer file.Close()
	if header.Size > maxFile {
		return nil, problem.Invalid("tooLarge", "part", "is larger than 4 MiB; split it into parts of whole lines, or send it by the API")
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read a file: %w", err)
	}
	if len(data) == 0 {
		return nil, problem.Invalid("empty", "part", "is empty")
	}
	return data, nil
}

// checkImport begins a dry run, and does it as far as the time of one call is enough.
func (v *view) checkImport(k importKind) error {
	f, err := v.importForm(k)
	if err != nil {
		return err
	}
	var vs problem.Violations
	data, err := v.file()
	if err := errors.Join(vs.Merge(f.options().Validate()), vs.Merge(err)); err != nil {
		return err
	}
	if err := vs.Err(); err != nil {
		return v.importRefused(err, "import-new", f)
	}
	if err := v.imports(k).Check(v.ctx(), v.core, f.options(), data); err != nil {
		return v.importRefused(err, "import-new", f)
	}
	im, err := v.imports(k).Create(v.ctx(), v.core, v.actor(), f.options())
	if err != nil {
		return v.importRefused(err, "import-new", f)
	}
	return v.begin(k, im, data, f.More)
}

// byScript tells whether a script asks, that puts the answer into the page.
func (v *view) byScript() bool { return v.r.Header.Get("HX-Request") == "true" }

// importRefused is refused, in a page or, for a script, in its part for outcomes.
func (v *view) importRefused(err error, name string, data any) error {
	if !v.byScript() {
		return v.refused(err, name, data)
	}
	_, faults := v.faults(err)
	if len(faults) == 0 {
		return err
	}
	return v.render(http.StatusOK, "import-new", "refused", Frame{v: v, Faults: faults, D: data})
}

// begin begins the work on the first part. A script is given what sends it, and what tells
// meanwhile how far it is.
func (v *view) begin(k importKind, im intake.Import, data []byte, more bool) error {
	if v.byScript() {
		return v.fragment("import-new", "working", importPage{Kind: k, Import: im})
	}
	return v.work(k, im, 1, data, more)
}

// work does a part of an import as far as the time of one call is enough, and finishes the
// import if that was its last part.
func (v *view) work(k importKind, im intake.Import, number int, data []byte, more bool) error {
	p, err := v.imports(k).Part(v.ctx(), v.core, v.actor(), im.ID, number, data)
	if err == nil && p.Done && !more {
		_, err = v.imports(k).Finish(v.ctx(), v.core, v.actor(), im.ID)
	}
	path := v.importPath(k, im.ID, more)
	if err != nil {
		page, failed := v.importPage(k, im.ID)
		if failed != nil {
			return failed
		}
		page.More = more
		return v.importRefused(err, "import", page)
	}
	if !v.byScript() {
		return v.goTo(path)
	}
	page, err := v.importPage(k, im.ID)
	switch {
	case err != nil:
		return err
	case page.Begun != nil:
		return v.fragment("import-new", "working", page)
	case page.Checked():
		return v.fragment("import-new", "checked", page)
	}
	v.w.Header().Set("HX-Redirect", path)
	return nil
}

func (v *view) importPath(k importKind, id string, more bool) string {
	path := join(k.Path()+"/of/", id)
	if more {
		path += "?more=on"
	}
	return path
}

// importPage is what is to be seen of an import.
type importPage struct {
	Kind     importKind
	Import   intake.Import
	Parts    []intake.Part
	Counts   intake.Counts
	Warnings []string
	Outcomes []intake.Outcome
	Cut      bool // there are more of them
	Next     int  // the part that is to be sent next
	Begun    *intake.Part
	More     bool // parts are to follow it
}

// Open tells whether parts are taken.
func (p importPage) Open() bool { return p.Import.State == intake.Open }

// Ready tells whether all that was sent is done.
func (p importPage) Ready() bool { return p.Begun == nil && len(p.Parts) > 0 }

// Rows are those that came, or would come.
func (p importPage) Rows() int { return p.Counts.Taken + p.Counts.Updated }

// Checked tells whether it is a dry run that can be followed by the import itself.
func (p importPage) Checked() bool {
	return p.Import.DryRun && p.Import.State == intake.Finished && p.Rows() > 0
}

// begun finds the first part that is not done.
func (p *importPage) begun() {
	if i := slices.IndexFunc(p.Parts, func(part intake.Part) bool { return !part.Done }); i >= 0 {
		p.Begun = &p.Parts[i]
	}
}

// codeBefore is the code that a reason of the PIN policy begins with in a result, for programs.
var codeBefore = regexp.MustCompile(`^[a-zA-Z]+: `)

func (v *view) importPage(k importKind, id string) (importPage, error) {
	is := v.imports(k)
	im, err := is.Get(v.ctx(), v.tenant(), id)
	if err != nil {
		return importPage{}, err
	}
	p := importPage{Kind: k, Import: im, Next: 1, More: v.value("more") != ""}
	if p.Parts, err = is.PartsOf(v.ctx(), v.tenant(), id); err != nil {
		return importPage{}, err
	}
	for _, part := range p.Parts {
		if part.Number == p.Next {
			p.Next++
		}
	}
	if p.begun(); p.Begun != nil {
		p.Next = p.Begun.Number
	}
	p.Counts = intake.Total(p.Parts)
	for _, text := range intake.Warnings(p.Counts) {
		p.Warnings = append(p.Warnings, v.words.Text(text))
	}
	if p.Outcomes, p.Cut, err = is.Outcomes(v.ctx(), v.tenant(), id, maxOutcomes); err != nil {
		return importPage{}, err
	}
	for i, o := range p.Outcomes {
		p.Outcomes[i].Reason = v.words.Text(codeBefore.ReplaceAllString(o.Reason, ""))
	}
	return p, nil
}

func (v *view) showImport(k importKind) error {
	p, err := v.importPage(k, v.r.PathValue("import"))
	if err != nil {
		return err
	}
	return v.show("import", p)
}

// importProgress is the part of the page that tells how far a part is that is being worked on.
func (v *view) importProgress(k importKind) error {
	is, id := v.imports(k), v.r.PathValue("import")
	im, err := is.Get(v.ctx(), v.tenant(), id)
	if err != nil {
		return err
	}
	p := importPage{Kind: k, Import: im}
	if p.Parts, err = is.PartsOf(v.ctx(), v.tenant(), id); err != nil {
		return err
	}
	p.begun()
	return v.fragment("import-new", "progress", p)
}

func (v *view) importResult(k importKind) error {
	b := bytes.NewBufferString("\ufeff") // without it spreadsheets take UTF-8 for something else
	id := v.r.PathValue("import")
	next, err := v.imports(k).Result(v.ctx(), v.tenant(), id, 1, b)
	if err != nil {
		return err
	}
	if next > 0 {
		fmt.Fprintf(b, "%d,,,,,\"%s\"\n", next, v.words.Say("layout.csvCut"))
	}
	v.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	v.w.Header().Set("Content-Disposition", `attachment; filename="`+string(k.Kind)+`-import-`+id+`.csv"`)
	_, _ = v.w.Write(b.Bytes())
	return nil
}

// runImport imports what a dry run has checked. The file must be the one that was checked.
func (v *view) runImport(k importKind) error {
	id := v.r.PathValue("import")
	page, err := v.importPage(k, id)
	if err != nil {
		return err
	}
	data, err := v.file()
	if err != nil {
		return v.importRefused(err, "import", page)
	}
	if same, err := v.imports(k).Same(v.ctx(), v.core, id, 1, data); err != nil {
		return v.importRefused(err, "import", page)
	} else if !same || !page.Checked() {
		return v.importRefused(problem.Invalid("other", "part", "is not the file that was checked; choose that one, or check this one first"), "import", page)
	}
	o := page.Import.Options
	o.DryRun = false
	im, err := v.imports(k).Create(v.ctx(), v.core, v.actor(), o)
	if err != nil {
		return v.importRefused(err, "import", page)
	}
	return v.begin(k, im, data, len(page.Parts) > 1)
}

// sendPart goes on with a part, or takes the next.
func (v *view) sendPart(k importKind) error {
	page, err := v.importPage(k, v.r.PathValue("import"))
	if err != nil {
		return err
	}
	page.More = v.value("more") != ""
	data, err := v.file()
	if err != nil {
		return v.importRefused(err, "import", page)
	}
	return v.work(k, page.Import, page.Next, data, page.More)
}

func (v *view) finishImport(k importKind) error {
	return v.endImport(k, v.imports(k).Finish, words.Key("done.importFinished"))
}

func (v *view) cancelImport(k importKind) error {
	return v.endImport(k, v.imports(k).Cancel, words.Key("done.importCancelled"))
}

func (v *view) endImport(k importKind, end func(context.Context, tenant.Core, audit.Actor, string) (intake.Import, error), done string) error {
	id := v.r.PathValue("import")
	_, err := end(v.ctx(), v.core, v.actor(), id)
	if err == nil {
		return v.done(v.importPath(k, id, false), done)
	}
	page, failed := v.importPage(k, id)
	if failed != nil {
		return failed
	}
	return v.refused(err, "import", page)
}
