package page

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// Seal is what the template "seal" shows: the form that takes a new PIN, which the browser
// seals for one bridge and one operation, as script/seal.js says.
type Seal struct {
	Action    string // where the form goes
	Operation string // that the PIN is for

	PublicKey, Info, AssociatedData string // the key in hex
	Length                          int    // of what is sealed, in bytes

	Rules   []SealRule
	Digits  bool     // it consists of nothing else
	Common  bool     // what everybody uses is refused too, which only the bridge can tell
	Refused []string // why the bridge has not taken the PIN that was given last
	Keypad  *Keypad  // nil where there is a keyboard
}

// SealRule is a rule that is ticked off as somebody types.
type SealRule struct{ Name, Value, Text string }

// seal returns the form for an operation that waits for its new PIN, at its bridge.
func (v *view) seal(action string, op unblock.Operation, shown relay.Operation, b tenant.Bridge) Seal {
	binding := relay.Binding{Tenant: string(v.tenant()), Operation: op.ID, Credential: op.Credential, Fence: shown.Fence}
	s := Seal{Action: action, Operation: op.ID, PublicKey: hex.EncodeToString(b.Sealing), Info: relay.PINInfo, AssociatedData: string(binding.AssociatedData()), Length: relay.PINLength}
	if shown.Policy != nil {
		s.Rules, s.Digits, s.Common = sealRules(v.words, *shown.Policy), shown.Policy.Alphabet == pin.Digits, shown.Policy.Blocklist == pin.BlocklistCommon
	}
	for _, x := range shown.Violations {
		s.Refused = append(s.Refused, v.words.Text(x.Reason))
	}
	return s
}

// sealRules are the rules of a policy that can be told while somebody types.
func sealRules(w words.Words, p pin.Policy) []SealRule {
	rules := []SealRule{
		{"minLength", strconv.Itoa(p.MinLength), w.Say("seal.minLength", p.MinLength)},
		{"maxLength", strconv.Itoa(p.MaxLength), w.Say("seal.maxLength", p.MaxLength)},
		{"alphabet", string(p.Alphabet), w.Say(words.Family("seal.alphabet.", p.Alphabet))},
	}
	for _, c := range p.RequireClasses {
		rules = append(rules, SealRule{"class", string(c), w.Say(words.Family("seal.class.", c))})
	}
	if p.DisallowSequential {
		rules = append(rules, SealRule{"sequential", "", w.Say("seal.sequential")}, SealRule{"repeated", "", w.Say("seal.repeated")})
	}
	if p.MaxRun > 0 {
		rules = append(rules, SealRule{"maxRun", strconv.Itoa(p.MaxRun), w.Say("seal.maxRun", p.MaxRun)})
	}
	if p.DisallowConstantDelta {
		rules = append(rules, SealRule{"constantDelta", "", w.Say("seal.constantDelta")})
	}
	return append(rules, SealRule{"same", "", w.Say("seal.same")})
}

// sealedPIN takes the sealed PIN from the form that was sent.
func (v *view) sealedPIN() (relay.SealedPIN, error) {
	var sealed relay.SealedPIN
	text := v.value("sealed")
	if text == "" {
		return sealed, problem.Invalid("missing", "sealed", "was not sealed by this browser; turn JavaScript on and load the page anew")
	}
	if json.Unmarshal([]byte(text), &sealed) != nil || sealed.Validate() != nil {
		return sealed, problem.Invalid("malformed", "sealed", "was not sealed as it must be; load the page anew")
	}
	return sealed, nil
}

// Keypad is what the template "keypad" shows: rows of keys for a screen that is touched, and
// below them one with 0.
type Keypad struct{ Rows [][]string }

// codeKeypad has the digits.
func codeKeypad() *Keypad {
	return &Keypad{[][]string{{"1", "2", "3"}, {"4", "5", "6"}, {"7", "8", "9"}}}
}

// pinKeypad has the characters of a policy's PINs: the digits, small letters where there may
// be letters, and of the rest what is required.
func pinKeypad(p pin.Policy) *Keypad {
	var letters [][]string
	row := func(characters string) { letters = append(letters, strings.Split(characters, "")) }
	if p.Alphabet != pin.Digits {
		row("abcdefghijklmnopqrstuvwxyz")
	}
	if slices.Contains(p.RequireClasses, pin.Upper) {
		row("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	}
	if slices.Contains(p.RequireClasses, pin.Special) {
		row("!#$%&*+-./:=?@_")
	}
	return &Keypad{append(letters, codeKeypad().Rows...)}
}
