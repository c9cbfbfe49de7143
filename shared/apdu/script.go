package apdu

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
)

// The limits of a script, so that it fits one message to a bridge.
const (
	MaxScriptSize = 32<<10 - 1 // bytes, as EncodeScript writes it
	MaxSteps      = 32

	maxSlots, maxExpect, maxGuards, maxPath = 4, 16, 4, 4
)

// scriptVersion is that of the JSON form.
const scriptVersion = 1

// The commands whose data holds a PIN or a PUK.
const (
	insVerify              = 0x20 // ISO 7816-4, 7.5.6; SP 800-73, 3.2.1
	insChangeReferenceData = 0x24 // ISO 7816-4, 7.5.7; SP 800-73, 3.2.2
	insResetRetryCounter   = 0x2C // ISO 7816-4, 7.5.10; SP 800-73, 3.2.3
)

// Script is a sequence of commands that a bridge runs on one card in one
// transaction, or not at all: a part of an operation.
type Script struct {
	// Operation is the id of the operation, 1 to 64 letters, digits, '-' and '_'.
	Operation string
	// Part numbers the scripts of an operation from 1, so that a bridge that has
	// run one already answers with its result instead of running it again.
	Part int
	// Fence rises whenever somebody takes the lease on the card's credential. 0 is
	// no fence: such a script, which identifies a card, has no secrets.
	Fence int64
	// Deadline is when the script must not be begun any more.
	Deadline time.Time

	Steps []Step // 1 to MaxSteps
}

// Step is one command, what the card may answer, and what it takes to go on.
type Step struct {
	Command Command
	// Slots are the secrets that the bridge fills into the command's data, in the
	// order of their offsets.
	Slots []Slot
	// Secret says that the command's data holds a secret already, such as a PUK.
	// CHANGE REFERENCE DATA and RESET RETRY COUNTER without a slot must be marked.
	Secret bool
	// Expect lists the SWs that the card may answer; at any other the script ends.
	Expect []Expect
	// Guards must all hold for the answer's data, or the script ends.
	Guards []Guard
}

// sealed tells whether no more of the step's answer may be reported than its SW.
func (s Step) sealed() bool { return s.Secret || len(s.Slots) > 0 }

// Slot is a place in a command's data for a secret that the cloud does not know.
type Slot struct {
	Secret string // which one: "newPIN"; 1 to 32 letters and digits
	// Offset is where, in the data as it is in the script.
	Offset int
	// Length is the length of the field there, whose bytes are replaced; what the
	// secret leaves of them is filled with Pad. Length 0 inserts the secret as it
	// is, and Lc grows.
	Length   int
	Pad      byte
	Encoding Encoding
}

// Encoding says what a slot's secret may consist of. Its bytes are put into the
// command as they are.
type Encoding string

// The encodings.
const (
	Digits Encoding = "digits" // 0 to 9 in ASCII, as PIV has its PIN (SP 800-73, 2.4.3)
	ASCII  Encoding = "ascii"  // printable ASCII without the space
	Raw    Encoding = "raw"    // any bytes
)

// holds tells whether a secret may be put into the command so.
func (e Encoding) holds(secret []byte) bool {
	low, high := byte(0), byte(0xFF)
	switch e {
	case Digits:
		low, high = '0', '9'
	case ASCII:
		low, high = '!', '~'
	}
	return !slices.ContainsFunc(secret, func(b byte) bool { return b < low || b > high })
}

// Expect matches an SW whose bits in Mask are those of SW: {0x63C0, 0xFFF0} is any
// number of tries left, {0, 0} anything.
type Expect struct{ SW, Mask SW }

// Exactly expects each of the SWs.
func Exactly(sws ...SW) []Expect {
	expect := make([]Expect, len(sws))
	for i, sw := range sws {
		expect[i] = Expect{sw, 0xFFFF}
	}
	return expect
}

// Guard is what the data of an answer must be: is it still that card?
type Guard struct {
	// Path leads to a data object in the answer, as for FindTLV; without one the
	// guard is about the whole data.
	Path []Tag
	// Value is what must be there, 1 to 255 bytes: all of it, or, with Part, what
	// begins at Offset.
	Value  []byte
	Part   bool
	Offset int
}

func (g Guard) holds(data []byte) bool {
	value, err := FindTLV(data, g.Path...)
	if err != nil {
		return false
	}
	if g.Part {
		return len(value) >= g.Offset && bytes.HasPrefix(value[g.Offset:], g.Value)
	}
	return bytes.Equal(value, g.Value)
}

// CheckDeadline returns problem.ErrState if it is too late to begin the script.
func (s Script) CheckDeadline(now time.Time) error {
	if !now.Before(s.Deadline) {
		return fmt.Errorf("script %s/%d: past its deadline: %w", s.Operation, s.Part, problem.ErrState)
	}
	return nil
}

// CheckFence returns problem.ErrConflict if a script with a higher fence was seen
// for the same card: whoever made this one has lost the lease. A bridge remembers
// the fence before it sends the script's first command.
func (s Script) CheckFence(highest int64) error {
	if s.Fence < highest {
		return fmt.Errorf("script %s/%d: its fence %d is older than %d: %w", s.Operation, s.Part, s.Fence, highest, problem.ErrConflict)
	}
	return nil
}

// Wipe overwrites the data of the steps that are marked Secret.
func (s Script) Wipe() {
	for _, step := range s.Steps {
		if step.Secret {
			clear(step.Command.Data)
		}
	}
}

// Validate checks the shape of a script. Whether its commands are allowed can be
// said only once their slots are filled, by Run.
func (s Script) Validate() error {
	var vs problem.Violations
	if !isName(s.Operation, 64, "-_") {
		vs.Add("malformed", "operation", "must be 1 to 64 letters, digits, '-' and '_'")
	}
	if s.Part < 1 {
		vs.Add("malformed", "part", "must be at least 1")
	}
	if s.Deadline.IsZero() {
		vs.Add("missing", "deadline", "is missing")
	}
	if len(s.Steps) < 1 || len(s.Steps) > MaxSteps {
		vs.Add("malformed", "steps", "must be 1 to %d", MaxSteps)
	}
	sealed := slices.ContainsFunc(s.Steps, Step.sealed)
	if s.Fence < 0 || s.Fence == 0 && sealed {
		vs.Add("malformed", "fence", "must be at least 1 with secrets, and at least 0 without")
	}
	for i, step := range s.Steps {
		vs.Under("steps."+strconv.Itoa(i), step.validate())
	}
	return vs.Err()
}

func (s Step) validate() error {
	var vs problem.Violations
	c := s.Command
	if c.Extended || len(c.Data) > maxShortLc || c.Le < 0 || c.Le > maxShortLe {
		vs.Add("malformed", "apdu", "must be in short form")
	}
	if (c.INS == insChangeReferenceData || c.INS == insResetRetryCounter) && !s.sealed() {
		vs.Add("missing", "secret", "must be set, for the command holds a PIN or PUK")
	}
	if len(s.Slots) > maxSlots {
		vs.Add("malformed", "slots", "must be at most %d", maxSlots)
	}
	end := 0
	for i, slot := range s.Slots {
		field := "slots." + strconv.Itoa(i)
		if !isName(slot.Secret, 32, "") {
			vs.Add("malformed", field+".secret", "must be 1 to 32 letters and digits")
		}
		if !slices.Contains([]Encoding{Digits, ASCII, Raw}, slot.Encoding) {
			vs.Add("malformed", field+".encoding", "must be %s, %s or %s", Digits, ASCII, Raw)
		}
		if slot.Offset < end || slot.Length < 0 || slot.Offset > len(c.Data) || slot.Length > len(c.Data)-slot.Offset {
			vs.Add("malformed", field, "must be within the %d bytes of data, and after the slot before it", len(c.Data))
			continue
		}
		end = slot.Offset + slot.Length
	}
	if len(s.Expect) < 1 || len(s.Expect) > maxExpect {
		vs.Add("malformed", "expect", "must be 1 to %d", maxExpect)
	}
	for i, e := range s.Expect {
		if e.SW&^e.Mask != 0 {
			vs.Add("malformed", "expect."+strconv.Itoa(i), "has bits that its mask has not")
		}
	}
	if len(s.Guards) > maxGuards {
		vs.Add("malformed", "guards", "must be at most %d", maxGuards)
	}
	for i, g := range s.Guards {
		field := "guards." + strconv.Itoa(i)
		if len(g.Path) > maxPath || slices.ContainsFunc(g.Path, func(t Tag) bool { return !t.Valid() }) {
			vs.Add("malformed", field+".path", "must be at most %d tags", maxPath)
		}
		if len(g.Value) < 1 || len(g.Value) > 255 {
			vs.Add("malformed", field+".value", "must be 1 to 255 bytes")
		}
		if g.Offset < 0 || g.Offset > 0 && !g.Part {
			vs.Add("malformed", field+".offset", "must be at least 0, and 0 unless part is set")
		}
	}
	return vs.Err()
}

// isName tells whether s is 1 to most ASCII letters, digits and characters of more.
func isName(s string, most int, more string) bool {
	return s != "" && len(s) <= most && strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(more, r))
	}) < 0
}

// The JSON form of a script. Bytes are in hex; an expected SW is "9000", or
// "63C0/FFF0" with a mask.
type (
	scriptJSON struct {
		Version   int        `json:"version"`
		Operation string     `json:"operation"`
		Part      int        `json:"part"`
		Fence     int64      `json:"fence,omitzero"`
		Deadline  time.Time  `json:"deadline"`
		Steps     []stepJSON `json:"steps"`
	}
	stepJSON struct {
		APDU   string      `json:"apdu"`
		Slots  []slotJSON  `json:"slots,omitempty"`
		Secret bool        `json:"secret,omitzero"`
		Expect []string    `json:"expect"`
		Guards []guardJSON `json:"guards,omitempty"`
	}
	slotJSON struct {
		Secret   string   `json:"secret"`
		Offset   int      `json:"offset,omitzero"`
		Length   int      `json:"length,omitzero"`
		Pad      byte     `json:"pad,omitzero"`
		Encoding Encoding `json:"encoding"`
	}
	guardJSON struct {
		Path   []string `json:"path,omitempty"`
		Value  string   `json:"value"`
		Part   bool     `json:"part,omitzero"`
		Offset int      `json:"offset,omitzero"`
	}
)

// EncodeScript writes a script in JSON, in the clear: it is for the bridge and
// nobody else. The script must be valid.
func EncodeScript(s Script) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	out := scriptJSON{scriptVersion, s.Operation, s.Part, s.Fence, s.Deadline.UTC(), nil}
	for _, step := range s.Steps {
		apdu, err := step.Command.Encode()
		if err != nil {
			return nil, err
		}
		j := stepJSON{APDU: hex.EncodeToString(apdu), Secret: step.Secret}
		clear(apdu)
		for _, slot := range step.Slots {
			j.Slots = append(j.Slots, slotJSON(slot))
		}
		for _, e := range step.Expect {
			text := fmt.Sprintf("%04X", uint16(e.SW))
			if e.Mask != 0xFFFF {
				text += fmt.Sprintf("/%04X", uint16(e.Mask))
			}
			j.Expect = append(j.Expect, text)
		}
		for _, g := range step.Guards {
			guard := guardJSON{Value: hex.EncodeToString(g.Value), Part: g.Part, Offset: g.Offset}
			for _, tag := range g.Path {
				guard.Path = append(guard.Path, tag.String())
			}
			j.Guards = append(j.Guards, guard)
		}
		out.Steps = append(out.Steps, j)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode script: %w", err)
	}
	if len(b) > MaxScriptSize {
		return nil, problem.Invalid("tooLong", "script", "must be at most %d bytes", MaxScriptSize)
	}
	return b, nil
}

// DecodeScript reads what EncodeScript wrote and nothing else: a field it does
// not know is an error. The script it returns is valid. Its errors are
// InvalidErrors that do not repeat the input.
func DecodeScript(b []byte) (Script, error) {
	if len(b) > MaxScriptSize {
		return Script{}, problem.Invalid("tooLong", "script", "must be at most %d bytes", MaxScriptSize)
	}
	var in scriptJSON
	// A newer version is called one, whatever else it has.
	if err := json.Unmarshal(b, &struct {
		Version *int `json:"version"`
	}{&in.Version}); err == nil && in.Version != scriptVersion {
		return Script{}, problem.Invalid("version", "version", "must be %d; this is %d", scriptVersion, in.Version)
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil {
		return Script{}, problem.Invalid("malformed", "script", "%s", reason(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Script{}, problem.Invalid("malformed", "script", "goes on after its end")
	}
	s := Script{Operation: in.Operation, Part: in.Part, Fence: in.Fence, Deadline: in.Deadline}
	var vs problem.Violations
	for i, j := range in.Steps {
		step, err := j.step()
		vs.Under("steps."+strconv.Itoa(i), err)
		s.Steps = append(s.Steps, step)
	}
	if err := vs.Err(); err != nil {
		return Script{}, err
	}
	if err := s.Validate(); err != nil {
		return Script{}, err
	}
	return s, nil
}

// reason says what is wrong with JSON; the errors of encoding/json may repeat a
// value, and here a value may be a PUK.
func reason(err error) string {
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("is not JSON at byte %d", syntax.Offset)
	case errors.As(err, &wrongType):
		return fmt.Sprintf("has the wrong type at %q", wrongType.Field)
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return "has an unknown field"
	default:
		return "is not a script"
	}
}

// step reports what cannot even be held in a Step.
func (j stepJSON) step() (Step, error) {
	var vs problem.Violations
	step := Step{Secret: j.Secret}
	apdu, err := hex.DecodeString(j.APDU)
	if err == nil {
		step.Command, err = ParseCommand(apdu)
	}
	if err != nil {
		vs.Add("malformed", "apdu", "must be a command APDU in hex")
	}
	for _, slot := range j.Slots {
		step.Slots = append(step.Slots, Slot(slot))
	}
	for i, text := range j.Expect {
		text, maskText, masked := strings.Cut(text, "/")
		sw, err := ParseSW(text)
		mask := SW(0xFFFF)
		if masked && err == nil {
			mask, err = ParseSW(maskText)
		}
		if err != nil {
			vs.Add("malformed", "expect."+strconv.Itoa(i), "must be an SW in hex, as 9000 or 63C0/FFF0")
		}
		step.Expect = append(step.Expect, Expect{sw, mask})
	}
	for i, g := range j.Guards {
		guard := Guard{Part: g.Part, Offset: g.Offset}
		if guard.Value, err = hex.DecodeString(g.Value); err != nil {
			vs.Add("malformed", fmt.Sprintf("guards.%d.value", i), "must be in hex")
		}
		for _, text := range g.Path {
			tag, err := strconv.ParseUint(text, 16, 32)
			if err != nil {
				vs.Add("malformed", fmt.Sprintf("guards.%d.path", i), "must be tags in hex")
			}
			guard.Path = append(guard.Path, Tag(tag))
		}
		step.Guards = append(step.Guards, guard)
	}
	return step, vs.Err()
}

// ParseSW reads an SW of four hex digits.
func ParseSW(text string) (SW, error) {
	n, err := strconv.ParseUint(text, 16, 16)
	if err != nil || len(text) != 4 {
		return 0, problem.Invalid("malformed", "sw", "must be an SW of four hex digits, as 9000")
	}
	return SW(n), nil
}
