package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/tenant"
)

// ImportPath names an import in a path.
type ImportPath struct {
	Import string `path:"import" maxLength:"60"`
}

// ImportOptions are what imports of every kind have. huma looks into what is embedded only
// if it is exported.
type ImportOptions struct {
	Format       string `json:"format" enum:"csv,jsonLines" doc:"csv: RFC 4180 in UTF-8, its first line the header. jsonLines: one object a line, whose values are strings."`
	Delimiter    string `json:"delimiter,omitempty" doc:"Of csv, if it is not a comma: a semicolon or a tab."`
	IgnoreOthers bool   `json:"ignoreOthers,omitempty" doc:"Other columns may be there, and are not looked at."`
	DryRun       bool   `json:"dryRun,omitempty" doc:"Only tell what would happen. The parts have to come in their order then."`
}

func (in ImportOptions) options(columns map[string]string, template string, update bool) intake.Options {
	o := intake.Options{Format: intake.Format(in.Format), Delimiter: in.Delimiter, IgnoreOthers: in.IgnoreOthers, DryRun: in.DryRun, Template: template, Update: update}
	for field, name := range columns {
		if o.Columns == nil {
			o.Columns = make(map[intake.Field]string, len(columns))
		}
		o.Columns[intake.Field(field)] = name
	}
	return o
}

type importFields struct {
	ImportOptions
	Columns  map[string]string `json:"columns,omitempty" doc:"What the file calls its columns, by what they hold: cardId (hex; needed), family, template (id or name), one of holderId, holderUsername and holderExternalId, label, serial, puk, adminKey (hex), pinExpiresAt (a date, which is its beginning in the tenant's time zone, or an RFC 3339 time). Left out, they have these names." example:"{\"cardId\": \"GUID\", \"puk\": \"Code\"}"`
	Template string            `json:"template,omitempty" doc:"The id of the credential template of rows that name none."`
	Update   bool              `json:"update,omitempty" doc:"Rows of cards that are there already change the card's label and holder. Without it, and always where anything else is not as on record, such rows are refused."`
}

func (in importFields) read() intake.Options { return in.options(in.Columns, in.Template, in.Update) }

type userImportFields struct {
	ImportOptions
	Columns map[string]string `json:"columns,omitempty" doc:"What the file calls its columns, by what they hold: username (needed), displayName, mail, phone, staffNumber, externalId, groups (separated by semicolons; in jsonLines a list of strings too), pin. Left out, they have these names." example:"{\"username\": \"Login\", \"externalId\": \"HR number\"}"`
	Update  bool              `json:"update,omitempty" doc:"Rows of users who are there already change what the row says: an empty cell says nothing. A PIN is given to who never had one; one that is there, or was, is neither changed nor compared. Without it, rows that say anything else than what is on record are refused."`
}

func (in userImportFields) read() intake.Options { return in.options(in.Columns, "", in.Update) }

type importBody struct {
	ID string `json:"id"`
	ImportOptions
	Columns   map[string]string `json:"columns,omitempty" doc:"What the file calls its columns, by what they hold."`
	Template  string            `json:"template,omitempty" doc:"Of cards whose rows name none."`
	Update    bool              `json:"update,omitempty"`
	State     string            `json:"state" enum:"open,finished,cancelled"`
	CreatedAt time.Time         `json:"createdAt"`
	EndedAt   time.Time         `json:"endedAt,omitzero"`
	Rows      *rowCounts        `json:"rows,omitempty" doc:"Of all parts by now. Not in lists."`
	Parts     []*partBody       `json:"parts,omitempty" doc:"Those that have been begun. Not in lists."`
	Warnings  []string          `json:"warnings,omitempty" doc:"What should be seen to, though it keeps nothing out. Not in lists."`
}

type rowCounts struct {
	Taken     int `json:"taken" doc:"Cards that were registered, or users who were created; in a dry run, that would be."`
	Updated   int `json:"updated" doc:"Cards or users who were changed."`
	Unchanged int `json:"unchanged" doc:"Cards or users who were there as the row has them."`
	Refused   int `json:"refused"`
}

type partBody struct {
	Part  int       `json:"part"`
	Done  bool      `json:"done"`
	Lines int       `json:"lines"`
	Rows  rowCounts `json:"rows"`
}

// originBody is the row of an import that a card or user comes from.
type originBody struct {
	ID   string `json:"id"`
	Part int    `json:"part"`
	Line int    `json:"line" doc:"Of the part."`
}

// originOut reads where something comes from; nil if from no import.
func originOut(from string) *originBody {
	id, part, line, ok := intake.Origin(from)
	if !ok {
		return nil
	}
	return &originBody{id, part, line}
}

func rowsOut(c intake.Counts) rowCounts {
	return rowCounts{c.Taken, c.Updated, c.Unchanged, c.Refused}
}

func partOut(p intake.Part) *partBody {
	return &partBody{p.Number, p.Done, p.Lines, rowsOut(p.Counts)}
}

func importOut(im intake.Import) importBody {
	b := importBody{ID: im.ID, ImportOptions: ImportOptions{string(im.Format), im.Delimiter, im.IgnoreOthers, im.DryRun},
		Template: im.Template, Update: im.Update, State: string(im.State), CreatedAt: im.CreatedAt, EndedAt: im.EndedAt}
	for field, name := range im.Columns {
		if b.Columns == nil {
			b.Columns = make(map[string]string, len(im.Columns))
		}
		b.Columns[string(field)] = name
	}
	return b
}

// imports are the operations on imports of a kind over what the API works on.
func (a *API) imports(kind intake.Kind) *intake.Imports {
	return &intake.Imports{Kind: kind, Table: a.Table, Credentials: a.Credentials, Users: a.Users, Audit: a.Audit, Now: a.Now, Rand: a.Rand}
}

// wholeImport tells also of the parts.
func (a *API) wholeImport(ctx context.Context, im intake.Import) (*Body[importBody], error) {
	parts, err := a.imports(im.Kind).PartsOf(ctx, caller(ctx).Core.Tenant.ID, im.ID)
	if err != nil {
		return nil, err
	}
	b := importOut(im)
	total := intake.Total(parts)
	rows := rowsOut(total)
	b.Rows, b.Warnings = &rows, intake.Warnings(total)
	for _, p := range parts {
		b.Parts = append(b.Parts, partOut(p))
	}
	return answer(b), nil
}

// importKind is what the operations on imports of one kind have of their own.
type importKind struct {
	kind         intake.Kind
	name         string // in operations' ids
	path         string
	things       string
	read, change tenant.Action
}

var importKinds = []importKind{
	{intake.Cards, "import", "/v1/imports", "cards", tenant.ReadCredentials, tenant.WriteCredentials},
	{intake.Users, "user-import", "/v1/user-imports", "users", tenant.ListUsers, tenant.CreateUser},
}

// loop is how a file is sent.
func (k importKind) loop() string {
	return "split -C 4m -a 4 " + k.things + ".csv part. && n=0 && for f in part.*; do n=$((n+1)); " +
		"curl -sS --fail-with-body --retry 100 -H \"Authorization: Bearer $KEY\" -H 'Content-Type: text/csv' -T \"$f\" \"$API" + k.path + "/$ID/parts/$n\" || break; done"
}

func (a *API) importOperations(api huma.API) {
	createImport[importFields](a, api, importKinds[0],
		"PUKs and admin keys may be in the clear, or each as a JWE in compact form to the import key: then they are in the clear nowhere on the way. They are stored sealed.")
	createImport[userImportFields](a, api, importKinds[1],
		"PINs may be in the clear, or each as a JWE in compact form to the import key. A row whose PIN the policy refuses is refused, with every reason by its code; so is one whose username or externalId is another user's.")
	for _, k := range importKinds {
		a.operationsOnImports(api, k)
	}

	register(a, api, operation{
		id: "get-import-key", summary: "Get the import key", method: http.MethodGet, path: "/v1/import-key",
		action: tenant.WriteCredentials, tag: importTag,
		about: "The public key to which PUKs, admin keys and PINs in imports may be encrypted, as JWE with ECDH-ES+A256KW and A256GCM. It is made when it is asked for first.",
	}, func(ctx context.Context, _ *struct{}) (*Body[importKeyBody], error) {
		c := caller(ctx)
		key, err := a.imports(intake.Cards).Key(ctx, c.Core, c.Actor)
		if err != nil {
			return nil, err
		}
		var b importKeyBody
		if err := json.Unmarshal(key.JWK, &b); err != nil {
			return nil, fmt.Errorf("read import key: %w", err)
		}
		return answer(b), nil
	})
}

const importTag = "Imports"

func createImport[In interface{ read() intake.Options }](a *API, api huma.API, k importKind, about string) {
	register(a, api, operation{
		id: "create-" + k.name, summary: "Begin an import of " + k.things, method: http.MethodPost, path: k.path,
		action: k.change, status: http.StatusCreated, tag: importTag,
		about: "Then send the file in parts of whole lines, and finish the import: `" + k.loop() + "`.\n\n" +
			"A row is taken or refused as a whole. What is on record is not overwritten, but for what update allows, and the same file imported again changes nothing. " +
			about + " Imports and their results are kept for 90 days.",
	}, func(ctx context.Context, in *struct{ Body In }) (*struct {
		Location string `header:"Location"`
		Body     importBody
	}, error) {
		c := caller(ctx)
		im, err := a.imports(k.kind).Create(ctx, c.Core, c.Actor, in.Body.read())
		if err != nil {
			return nil, err
		}
		return &struct {
			Location string `header:"Location"`
			Body     importBody
		}{k.path + "/" + im.ID, importOut(im)}, nil
	})
}

func (a *API) operationsOnImports(api huma.API, k importKind) {
	register(a, api, operation{
		id: "list-" + k.name + "s", summary: "List imports of " + k.things, method: http.MethodGet, path: k.path,
		action: k.read, tag: importTag, about: "Newest first.",
	}, func(ctx context.Context, in *struct{ Paging }) (*Body[List[importBody]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		all, next, err := a.imports(k.kind).List(ctx, caller(ctx).Core.Tenant.ID, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(all, next, importOut), nil
	})

	register(a, api, operation{
		id: "get-" + k.name, summary: "See how far an import of " + k.things + " is", method: http.MethodGet, path: k.path + "/{import}",
		action: k.read, tag: importTag, about: "Also while a part is being worked on; the counts are some seconds old then.",
	}, func(ctx context.Context, in *ImportPath) (*Body[importBody], error) {
		im, err := a.imports(k.kind).Get(ctx, caller(ctx).Core.Tenant.ID, in.Import)
		if err != nil {
			return nil, err
		}
		return a.wholeImport(ctx, im)
	})

	register(a, api, operation{
		id: "send-" + k.name + "-part", summary: "Send a part of a file of " + k.things, method: http.MethodPut, path: k.path + "/{import}/parts/{part}",
		action: k.change, tag: importTag, maxBody: intake.MaxPart,
		about: "Parts are numbered from 1, and hold whole rows; the first part of csv begins with the header. At most 4 MiB are safe to send at once. " +
			"Part 1 of csv comes first; the others may come in any order and several at a time, but for a dry run. " +
			"A part may be sent again at any time: after 503, or when the answer was lost, it goes on where it was, and when it is done nothing is changed any more. " +
			"What is wrong with single rows is in the result; if the part cannot be read at all, it is refused as a whole.",
	}, func(ctx context.Context, in *struct {
		ImportPath
		Part    int    `path:"part" minimum:"1" maximum:"2000"`
		RawBody []byte `contentType:"text/csv"`
	}) (*Body[*partBody], error) {
		c := caller(ctx)
		p, err := a.imports(k.kind).Part(ctx, c.Core, c.Actor, in.Import, in.Part, in.RawBody)
		if err != nil {
			return nil, err
		}
		if !p.Done {
			more := newProblem(nil, http.StatusServiceUnavailable, fmt.Sprintf("%d rows of the part are done by now; send it again, and it goes on from there", p.Rows)).(*Problem)
			more.retryIn = time.Second
			return nil, more
		}
		return answer(partOut(p)), nil
	})

	register(a, api, operation{
		id: "get-" + k.name + "-result", summary: "Get what became of the rows of an import of " + k.things, method: http.MethodGet, path: k.path + "/{import}/result",
		action: k.read, tag: importTag,
		about: "As CSV: part, line, " + k.kind.Noun() + ", outcome, column and reason of each row that was not simply taken, and a line for each reason. " +
			"Of a part, about 2 MB are kept; how many rows there are more is said. If there is a header Link with rel=\"next\", the result goes on there.",
	}, func(ctx context.Context, in *struct {
		ImportPath
		From int `query:"from" default:"1" minimum:"1" doc:"The part to begin with."`
	}) (*csvAnswer, error) {
		var b bytes.Buffer
		next, err := a.imports(k.kind).Result(ctx, caller(ctx).Core.Tenant.ID, in.Import, in.From, &b)
		if err != nil {
			return nil, err
		}
		out := &csvAnswer{ContentType: "text/csv; charset=utf-8; header=present", Disposition: `attachment; filename="` + k.name + `-` + in.Import + `.csv"`, Body: b.Bytes()}
		if next > 0 {
			out.Link = fmt.Sprintf("<%s/%s/result?from=%d>; rel=\"next\"", k.path, in.Import, next)
		}
		return out, nil
	})

	for _, end := range []struct {
		verb, summary, about string
		do                   func(*intake.Imports, context.Context, tenant.Caller, string) (intake.Import, error)
	}{
		{"finish", "Finish an import", "When all parts are done.",
			func(is *intake.Imports, ctx context.Context, c tenant.Caller, id string) (intake.Import, error) {
				return is.Finish(ctx, c.Core, c.Actor, id)
			}},
		{"cancel", "Cancel an import", "A part that is being worked on stops within seconds. What has come stays.",
			func(is *intake.Imports, ctx context.Context, c tenant.Caller, id string) (intake.Import, error) {
				return is.Cancel(ctx, c.Core, c.Actor, id)
			}},
	} {
		register(a, api, operation{
			id: end.verb + "-" + k.name, summary: end.summary + " of " + k.things, method: http.MethodPost, path: k.path + "/{import}/" + end.verb,
			action: k.change, tag: importTag, about: end.about,
		}, func(ctx context.Context, in *ImportPath) (*Body[importBody], error) {
			im, err := end.do(a.imports(k.kind), ctx, caller(ctx), in.Import)
			if err != nil {
				return nil, err
			}
			return a.wholeImport(ctx, im)
		})
	}

	// What is sent and answered here is no JSON.
	file := func(about string) *huma.MediaType {
		return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Description: about}}
	}
	paths := api.OpenAPI().Paths
	paths[k.path+"/{import}/result"].Get.Responses["200"].Content = map[string]*huma.MediaType{"text/csv": file("CSV with a header.")}
	paths[k.path+"/{import}/parts/{part}"].Put.RequestBody.Content = map[string]*huma.MediaType{
		"text/csv": file("Whole rows."), "application/x-ndjson": file("Whole lines."),
	}
}

// importKeyBody is a public key on a curve as JWK (RFC 7517; RFC 7518, 6.2.1).
type importKeyBody struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	KeyID     string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
}

// csvAnswer is a file of CSV.
type csvAnswer struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Link        string `header:"Link"`
	Body        []byte
}
