package intake

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
)

// The longest of a row's texts, in bytes. A PUK or PIN as JWE has about 450.
const (
	maxValue = 4096
	maxLine  = 64 << 10
)

// row is one card or user of a file, as it is written there.
type row struct {
	line   int // in its part, from 1
	values map[Field]string
	groups []string // if they are a list
	faults []fault
}

// value returns what a row says, without space around it.
func (r *row) value(f Field) string { return strings.TrimSpace(r.values[f]) }

// fault is one thing that is wrong with a row, or to be told of it.
type fault struct{ column, reason string }

// tell adds what is to be told of a row. A reader's row that has any is refused.
func (r *row) tell(column, reason string, args ...any) {
	r.faults = append(r.faults, fault{column, fmt.Sprintf(reason, args...)})
}

// reader reads the rows of a part, one by one, until io.EOF. Any other error is the part's:
// from there on it cannot be read.
type reader interface{ next() (row, error) }

// lines are how many a text has.
func lines(data []byte) int {
	n := bytes.Count(data, []byte{'\n'})
	if len(data) > 0 && data[len(data)-1] != '\n' {
		n++
	}
	return n
}

// broken is the error of a part that cannot be read. It never repeats what is there: it
// may be a PUK or a PIN.
func broken(line int, reason string, args ...any) error {
	return problem.Invalid("malformed", "part", "line %d %s; nothing of the part was taken", line, fmt.Sprintf(reason, args...))
}

// columns returns what CSV's columns hold, from part 1, whose first row is the header.
func (im Import) columns(data []byte) ([]Field, error) {
	r := im.csv(data)
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, problem.Invalid("empty", "part", "is empty; the first part begins with the header, which names the columns")
	} else if err != nil {
		return nil, malformed(err)
	}
	names := im.names()
	fields := make([]Field, len(header))
	var vs problem.Violations
	var unknown []string
	for i, name := range header {
		f := names[strings.TrimSpace(name)]
		switch {
		case f == "":
			unknown = append(unknown, fmt.Sprint(i+1))
		case slices.Contains(fields, f):
			vs.Add("repeated", "part", "has the column %q twice", im.Column(f))
		}
		fields[i] = f
	}
	if len(unknown) == len(header) {
		return nil, problem.Invalid("header", "part", "has no header: its first line names none of the columns that the import knows")
	}
	if len(unknown) > 0 && !im.IgnoreOthers {
		// Their names are not repeated: this may be no header at all.
		vs.Add("unknown", "part", "has columns that the import does not know, by number: %s; those it knows are %s: name others in the import, or let it ignore them",
			strings.Join(unknown[:min(len(unknown), 20)], ", "), im.Kind.fieldNames())
	}
	for f, name := range im.Columns {
		if !slices.Contains(fields, f) {
			vs.Add("missing", "part", "has no column %q, which the import says is %s", name, f)
		}
	}
	if key := im.Kind.key(); len(im.Columns) == 0 && !slices.Contains(fields, key) {
		vs.Add("missing", "part", "has no column %q", key)
	}
	if im.Kind == Cards && im.Template == "" && !slices.Contains(fields, Template) {
		vs.Add("missing", "part", "has no column %q, and the import no template for all rows", im.Column(Template))
	}
	return fields, vs.Err()
}

func (im Import) csv(data []byte) *csv.Reader {
	r := csv.NewReader(bytes.NewReader(data))
	r.Comma, r.ReuseRecord, r.FieldsPerRecord = im.comma(), true, -1
	return r
}

// malformed tells where CSV cannot be read.
func malformed(err error) error {
	var p *csv.ParseError
	if !errors.As(err, &p) {
		return fmt.Errorf("read CSV: %w", err)
	}
	if errors.Is(err, csv.ErrQuote) && p.Line > p.StartLine {
		return broken(p.StartLine, "begins a row whose quotes do not end as they should by line %d; a part must hold whole rows", p.Line)
	}
	return broken(p.Line, "has a quotation mark at byte %d where none may be (RFC 4180, 2.5 to 2.7)", p.Column)
}

// text returns a part's text without the mark that some programs begin UTF-8 with.
func text(data []byte) ([]byte, error) {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if !utf8.Valid(data) {
		at := 0
		for rest := data; ; {
			r, n := utf8.DecodeRune(rest)
			if r == utf8.RuneError && n == 1 {
				break
			}
			at, rest = at+n, rest[n:]
		}
		return nil, broken(1+bytes.Count(data[:at], []byte{'\n'}), "is not UTF-8")
	}
	return data, nil
}

// rows returns a reader of a part. header tells that its first row is the header.
func (im Import) rows(data []byte, header bool) reader {
	if im.Format == JSONLines {
		return &jsonRows{data: data, names: im.names(), ignore: im.IgnoreOthers, column: im.Column}
	}
	return &csvRows{r: im.csv(data), im: im, header: header}
}

// csvRows reads CSV.
type csvRows struct {
	r      *csv.Reader
	im     Import
	header bool
	begun  bool
}

func (c *csvRows) next() (row, error) {
	record, err := c.r.Read()
	if errors.Is(err, io.EOF) {
		return row{}, err
	} else if err != nil {
		return row{}, malformed(err)
	}
	first := !c.begun
	if c.begun = true; first && (c.header || c.isHeader(record)) {
		return c.next()
	}
	line, _ := c.r.FieldPos(0)
	r := row{line: line, values: make(map[Field]string, len(record))}
	if len(record) != len(c.im.fields) {
		r.tell("", "has %d columns, the header %d", len(record), len(c.im.fields))
		return r, nil
	}
	for i, f := range c.im.fields {
		if f == "" {
			continue
		}
		if len(record[i]) > maxValue {
			line, at := c.r.FieldPos(i)
			r.tell(c.im.Column(f), "is longer than %d bytes (column %d, from line %d, byte %d)", maxValue, i+1, line, at)
			continue
		}
		r.values[f] = record[i]
	}
	return r, nil
}

// isHeader tells that a later part repeats the header.
func (c *csvRows) isHeader(record []string) bool {
	key := c.im.Kind.key()
	i := slices.Index(c.im.fields, key)
	return i >= 0 && i < len(record) && strings.TrimSpace(record[i]) == c.im.Column(key)
}

// jsonRows reads JSON Lines.
type jsonRows struct {
	data   []byte
	line   int
	names  map[string]Field
	ignore bool
	column func(Field) string
}

func (j *jsonRows) next() (row, error) {
	for len(j.data) > 0 {
		text, rest, _ := bytes.Cut(j.data, []byte{'\n'})
		j.data = rest
		j.line++
		if text = bytes.TrimSpace(text); len(text) > 0 {
			return j.row(text), nil
		}
	}
	return row{}, io.EOF
}

func (j *jsonRows) row(text []byte) row {
	r := row{line: j.line, values: make(map[Field]string, 8)}
	if len(text) > maxLine {
		r.tell("", "is longer than %d bytes", maxLine)
		return r
	}
	if !json.Valid(text) || text[0] != '{' {
		r.tell("", "is not one JSON object")
		return r
	}
	d := json.NewDecoder(bytes.NewReader(text))
	_, _ = d.Token() // valid JSON: it has no errors
	for n := 1; d.More(); n++ {
		name, _ := d.Token()
		var value any
		_ = d.Decode(&value)
		f := j.names[name.(string)]
		_, twice := r.values[f]
		s, isText := value.(string)
		list, isList := texts(value)
		switch {
		case f == "" && !j.ignore:
			r.tell("", "has a member that the import does not know, the %d.", n)
		case f == "":
		case twice:
			r.tell(j.column(f), "is there twice")
		case value == nil:
			r.values[f] = ""
		case f == Groups && isList:
			r.values[f], r.groups = "", list
		case f == Groups && !isText:
			r.tell(j.column(f), "must be a string, or a list of strings")
		case !isText:
			r.tell(j.column(f), "must be a string")
		case len(s) > maxValue:
			r.tell(j.column(f), "is longer than %d bytes", maxValue)
		default:
			r.values[f] = s
		}
	}
	return r
}

// texts returns a list of strings.
func texts(value any) (list []string, ok bool) {
	values, ok := value.([]any)
	for _, v := range values {
		s, isText := v.(string)
		if !isText {
			return nil, false
		}
		list = append(list, s)
	}
	return list, ok
}
