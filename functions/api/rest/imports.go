package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/tenant"
)

// ImportPath names an import in a path.
type ImportPath struct {
	Import string `path:"import" maxLength:"60"`
}

// importOptions are what all imports have.
type importOptions struct {
	Format       string `json:"format" enum:"csv,jsonLines" doc:"csv: RFC 4180 in UTF-8, its first line the header. jsonLines: one object a line, whose values are strings."`
	Delimiter    string `json:"delimiter,omitempty" doc:"Of csv, if it is not a comma: a semicolon or a tab."`
	IgnoreOthers bool   `json:"ignoreOthers,omitempty" doc:"Other columns may be there, and are not looked at."`
	DryRun       bool   `json:"dryRun,omitempty" doc:"Only tell what would happen. The parts have to come in their order then."`
}

type importFields struct {
	importOptions
	Columns  map[string]string `json:"columns,omitempty" doc:"What the file calls its columns, by what they hold: cardId (hex; needed), family, template (id or name), one of holderId, holderUsername and holderExternalId, label, serial, puk, adminKey (hex), pinExpiresAt (a date, which is its beginning in the tenant's time zone, or an RFC 3339 time). Left out, they have these names." example:"{\"cardId\": \"GUID\", \"puk\": \"Code\"}"`
	Template string            `json:"template,omitempty" doc:"The id of the credential template of rows that name none."`
	Update   bool              `json:"update,omitempty" doc:"Rows of cards that are there already change the card's label and holder. Without it, and always where anything else is not as on record, such rows are refused."`
}

type importBody struct {
	ID string `json:"id"`
	importFields
	State     string      `json:"state" enum:"open,finished,cancelled"`
	CreatedAt time.Time   `json:"createdAt"`
	EndedAt   time.Time   `json:"endedAt,omitzero"`
	Rows      *rowCounts  `json:"rows,omitempty" doc:"Of all parts by now. Not in lists."`
	Parts     []*partBody `json:"parts,omitempty" doc:"Those that have been begun. Not in lists."`
	Warnings  []string    `json:"warnings,omitempty" doc:"What should be seen to, though it keeps no card out. Not in lists."`
}

type rowCounts struct {
	Taken     int `json:"taken" doc:"Cards that were registered; in a dry run, that would be."`
	Updated   int `json:"updated" doc:"Cards whose label or holder was changed."`
	Unchanged int `json:"unchanged" doc:"Cards that were there as the row has them."`
	Refused   int `json:"refused"`
}

type partBody struct {
	Part  int       `json:"part"`
	Done  bool      `json:"done"`
	Lines int       `json:"lines"`
	Rows  rowCounts `json:"rows"`
}

// originBody is the row of an import that a credential comes from.
type originBody struct {
	ID   string `json:"id"`
	Part int    `json:"part"`
	Line int    `json:"line" doc:"Of the part."`
}

func originOut(c credential.Credential) *originBody {
	id, part, line, ok := intake.Origin(c)
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
	f := importFields{string(im.Format), im.Delimiter, nil, im.IgnoreOthers, im.Template, im.DryRun, im.Update}
	for field, name := range im.Columns {
		if f.Columns == nil {
			f.Columns = make(map[string]string, len(im.Columns))
		}
		f.Columns[string(field)] = name
	}
	return importBody{ID: im.ID, importFields: f, State: string(im.State), CreatedAt: im.CreatedAt, EndedAt: im.EndedAt}
}

// imports are the operations on imports over what the API works on.
func (a *API) imports() *intake.Imports {
	return &intake.Imports{Table: a.Table, Credentials: a.Credentials, Users: a.Users, Audit: a.Audit, Now: a.Now, Rand: a.Rand}
}

// wholeImport tells also of the parts.
func (a *API) wholeImport(ctx context.Context, im intake.Import) (*Body[importBody], error) {
	parts, err := a.imports().PartsOf(ctx, caller(ctx).Core.Tenant.ID, im.ID)
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

// importLoop is how a file is sent.
const importLoop = "split -C 4m -a 4 cards.csv part. && n=0 && for f in part.*; do n=$((n+1)); " +
	"curl -sS --fail-with-body --retry 100 -H \"Authorization: Bearer $KEY\" -H 'Content-Type: text/csv' -T \"$f\" \"$API/v1/imports/$ID/parts/$n\" || break; done"

func (a *API) importOperations(api huma.API) {
	const tag = "Imports"
	register(a, api, operation{
		id: "create-import", summary: "Begin an import of cards", method: http.MethodPost, path: "/v1/imports",
		action: tenant.WriteCredentials, status: http.StatusCreated, tag: tag,
		about: "Then send the file in parts of whole lines, and finish the import: `" + importLoop + "`.\n\n" +
			"A row is taken or refused as a whole. What is on record is never overwritten, and the same file imported again changes nothing. " +
			"PUKs and admin keys may be in the clear, or each as a JWE in compact form to the import key: then they are in the clear nowhere on the way. They are stored sealed. " +
			"Imports and their results are kept for 90 days.",
	}, func(ctx context.Context, in *struct{ Body importFields }) (*struct {
		Location string `header:"Location"`
		Body     importBody
	}, error) {
		b := in.Body
		o := intake.Options{Format: intake.Format(b.Format), Delimiter: b.Delimiter, IgnoreOthers: b.IgnoreOthers, Template: b.Template, DryRun: b.DryRun, Update: b.Update}
		for field, name := range b.Columns {
			if o.Columns == nil {
				o.Columns = make(map[intake.Field]string, len(b.Columns))
			}
			o.Columns[intake.Field(field)] = name
		}
		c := caller(ctx)
		im, err := a.imports().Create(ctx, c.Core, c.Actor, o)
		if err != nil {
			return nil, err
		}
		return &struct {
			Location string `header:"Location"`
			Body     importBody
		}{"/v1/imports/" + im.ID, importOut(im)}, nil
	})

	register(a, api, operation{
		id: "list-imports", summary: "List imports", method: http.MethodGet, path: "/v1/imports",
		action: tenant.ReadCredentials, tag: tag, about: "Newest first.",
	}, func(ctx context.Context, in *struct{ Paging }) (*Body[List[importBody]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		all, next, err := a.imports().List(ctx, caller(ctx).Core.Tenant.ID, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(all, next, importOut), nil
	})

	register(a, api, operation{
		id: "get-import", summary: "See how far an import is", method: http.MethodGet, path: "/v1/imports/{import}",
		action: tenant.ReadCredentials, tag: tag, about: "Also while a part is being worked on; the counts are some seconds old then.",
	}, func(ctx context.Context, in *ImportPath) (*Body[importBody], error) {
		im, err := a.imports().Get(ctx, caller(ctx).Core.Tenant.ID, in.Import)
		if err != nil {
			return nil, err
		}
		return a.wholeImport(ctx, im)
	})

	register(a, api, operation{
		id: "send-import-part", summary: "Send a part of a file", method: http.MethodPut, path: "/v1/imports/{import}/parts/{part}",
		action: tenant.WriteCredentials, tag: tag, maxBody: intake.MaxPart,
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
		p, err := a.imports().Part(ctx, c.Core, c.Actor, in.Import, in.Part, in.RawBody)
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
		id: "get-import-result", summary: "Get what became of an import's rows", method: http.MethodGet, path: "/v1/imports/{import}/result",
		action: tenant.ReadCredentials, tag: tag,
		about: "As CSV: part, line, card, outcome, column and reason of each row that was not simply taken, and a line for each reason. " +
			"Of a part, about 2 MB are kept; how many rows there are more is said. If there is a header Link with rel=\"next\", the result goes on there.",
	}, func(ctx context.Context, in *struct {
		ImportPath
		From int `query:"from" default:"1" minimum:"1" doc:"The part to begin with."`
	}) (*csvAnswer, error) {
		var b bytes.Buffer
		next, err := a.imports().Result(ctx, caller(ctx).Core.Tenant.ID, in.Import, in.From, &b)
		if err != nil {
			return nil, err
		}
		out := &csvAnswer{ContentType: "text/csv; charset=utf-8; header=present", Disposition: `attachment; filename="import-` + in.Import + `.csv"`, Body: b.Bytes()}
		if next > 0 {
			out.Link = fmt.Sprintf("</v1/imports/%s/result?from=%d>; rel=\"next\"", in.Import, next)
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
		{"cancel", "Cancel an import", "A part that is being worked on stops within seconds. Cards that have come stay.",
			func(is *intake.Imports, ctx context.Context, c tenant.Caller, id string) (intake.Import, error) {
				return is.Cancel(ctx, c.Core, c.Actor, id)
			}},
	} {
		register(a, api, operation{
			id: end.verb + "-import", summary: end.summary, method: http.MethodPost, path: "/v1/imports/{import}/" + end.verb,
			action: tenant.WriteCredentials, tag: tag, about: end.about,
		}, func(ctx context.Context, in *ImportPath) (*Body[importBody], error) {
			im, err := end.do(a.imports(), ctx, caller(ctx), in.Import)
			if err != nil {
				return nil, err
			}
			return a.wholeImport(ctx, im)
		})
	}

	register(a, api, operation{
		id: "get-import-key", summary: "Get the import key", method: http.MethodGet, path: "/v1/import-key",
		action: tenant.WriteCredentials, tag: tag,
		about: "The public key to which PUKs and admin keys in imports may be encrypted, as JWE with ECDH-ES+A256KW and A256GCM. It is made when it is asked for first.",
	}, func(ctx context.Context, _ *struct{}) (*Body[importKeyBody], error) {
		c := caller(ctx)
		key, err := a.imports().Key(ctx, c.Core, c.Actor)
		if err != nil {
			return nil, err
		}
		var b importKeyBody
		if err := json.Unmarshal(key.JWK, &b); err != nil {
			return nil, fmt.Errorf("read import key: %w", err)
		}
		return answer(b), nil
	})

	// What is sent and answered here is no JSON.
	file := func(about string) *huma.MediaType {
		return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Description: about}}
	}
	paths := api.OpenAPI().Paths
	paths["/v1/imports/{import}/result"].Get.Responses["200"].Content = map[string]*huma.MediaType{"text/csv": file("CSV with a header.")}
	paths["/v1/imports/{import}/parts/{part}"].Put.RequestBody.Content = map[string]*huma.MediaType{
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
