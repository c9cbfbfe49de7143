package page

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// The page that `bridge open` opens, on which the holder of a card at that bridge gives it a
// new PIN. All of it is at one address, which shows how things stand; what is sent leads back
// there. So nothing is sent again by going back or loading anew, and no id is in an address.

const kioskPath = Root + "/kiosk"

const (
	windowCookie         = "__Host-pinward-kiosk"
	windowLanguageCookie = "__Host-pinward-kiosk-language"

	kioskIdle = 60 // seconds without a touch, after which a kiosk forgets
	// lookAfter is when a script that is under way is asked after.
	lookAfter = 10 * time.Second
)

func (c *Console) kioskRoutes() []route {
	return []route{
		{pattern: "GET " + kioskPath + "/open", open: true, do: (*view).openWindow},
		{pattern: "GET " + kioskPath, open: true, do: inWindow((*kiosk).page)},
		{pattern: "GET " + kioskPath + "/state", open: true, do: inWindow((*kiosk).state)},
		{pattern: "POST " + kioskPath + "/start", open: true, do: inWindow((*kiosk).start)},
		{pattern: "POST " + kioskPath + "/code", open: true, do: inWindow((*kiosk).prove)},
		{pattern: "POST " + kioskPath + "/pin", open: true, do: inWindow((*kiosk).givePIN)},
		{pattern: "POST " + kioskPath + "/stop", open: true, do: inWindow((*kiosk).stop)},
		{pattern: "GET " + kioskPath + "/forget", open: true, do: inWindow((*kiosk).forgetAll)},
		{pattern: "POST " + kioskPath + "/language", open: true, do: inWindow((*kiosk).chooseLanguage)},
	}
}

// kiosk is a request from a window that a bridge has opened.
type kiosk struct {
	*view
	bridge tenant.Bridge
	window tenant.Window
}

// setWindowCookie sets a cookie that no other site's link brings here, until the browser ends
// if it is valid for no time.
func (v *view) setWindowCookie(name, value string, valid time.Duration) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(valid / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// openWindow takes the link that the bridge has got, and leaves nothing of it in an address.
func (v *view) openWindow() error {
	if v.r.Method != http.MethodGet { // a HEAD would use it up
		return v.notFound()
	}
	_, token, err := v.Tenants.OpenWindow(v.ctx(), secret.New(v.value("t")))
	if errors.Is(err, problem.ErrUnauthenticated) {
		return (&kiosk{view: v}).closed(http.StatusGone, words.Key("kiosk.usedLink"))
	} else if err != nil {
		return err
	}
	v.setWindowCookie(windowCookie, token.Reveal(), tenant.WindowLife)
	return v.goTo(kioskPath)
}

// inWindow has a window's request done; what is in none is told so.
func inWindow(do func(*kiosk) error) func(*view) error {
	return func(v *view) error {
		k := &kiosk{view: v}
		core, b, w, err := v.Tenants.Window(v.ctx(), v.cookie(windowCookie))
		switch {
		case errors.Is(err, problem.ErrUnauthenticated) && v.r.Header.Get("HX-Request") != "":
			return k.leadTo(kioskPath)
		case errors.Is(err, problem.ErrUnauthenticated):
			return k.closed(http.StatusUnauthorized, words.Key("kiosk.closed"))
		case err != nil:
			return err
		}
		k.bridge, k.window, v.core, v.loc = b, w, core, core.Tenant.Settings.Location()
		v.words = words.In(cmp.Or(v.cookie(windowLanguageCookie).Reveal(), core.Tenant.Settings.Language)).In(v.loc)
		observed(v.ctx()).tenant = core.Tenant.ID
		if err := do(k); err != nil {
			return k.failed(err)
		}
		return nil
	}
}

// by is who the audit log says it was.
func (k *kiosk) by() audit.Actor {
	return audit.Actor{Kind: audit.Bridge, ID: k.bridge.ID, Name: k.bridge.Name}
}

// Screen is what the template "kiosk" shows.
type Screen struct {
	Step  string // which of its parts
	Kiosk bool
	Seen  string // tells this screen from others
	Place string // the bridge's name
	Note  string // what has happened
	Idle  int    // seconds; 0 is for ever
	Every string // how often it is looked whether the screen is another; "" is never

	Cards []HereCard // to choose from
	Card  HereCard
	Why   string // it goes no further, or how it ended

	Operation string
	SentTo    string
	TriesLeft int
	Wrong     bool // the code was
	Until     time.Time
	Seal      *Seal
	Keypad    *Keypad
	Good      bool // it has ended well
	Operator  bool // somebody has to help

	gone   bool // the card was taken out of a kiosk
	chosen bool // it is one of several
}

// The steps. Those of operations come after those of cards.
const (
	stepClosed       = "closed"       // it is not, or no more, a window of a bridge
	stepFailed       = "failed"       // something went wrong
	stepAway         = "away"         // the bridge is not connected
	stepNoReader     = "noReader"     // is plugged in
	stepInsert       = "insert"       // a card
	stepChoose       = "choose"       // among several cards
	stepSilent       = "silent"       // the card does not answer
	stepReading      = "reading"      // the card is asked what it is
	stepStrange      = "strange"      // the card is of no kind that is managed
	stepUnregistered = "unregistered" // the card is not ours
	stepOffer        = "offer"        // a new PIN
	stepOperator     = "operator"     // is needed

	stepCode     = "code"     // was mailed
	stepApproval = "approval" // of a second operator is waited for
	stepPIN      = "pin"
	stepPutIn    = "putIn" // the card was taken out
	stepWait     = "wait"  // the card is spoken to
	stepEnd      = "end"
)

// Waits tells whether there is nothing to type, and something may happen by itself.
func (s Screen) Waits() bool {
	switch s.Step {
	case stepClosed, stepFailed, stepOffer, stepChoose, stepCode, stepPIN:
		return false
	}
	return true
}

// Watch is the query by which it is asked whether the screen is another.
func (s Screen) Watch() string {
	q := url.Values{"seen": {s.Seen}}
	if s.chosen {
		q.Set("card", s.Card.Insertion)
	}
	return q.Encode()
}

// HereCard is a card in a reader, as much of it as others may see.
type HereCard struct {
	Reader, Insertion string
	Name              string // its kind and the end of its number
	State             string // of its PIN: "blocked", "tries", "set" just now, "unknown"
	TriesLeft         int
	ExpiredAt         time.Time // zero: it has not
}

// numberShown is how many characters of a card's number others may see, as `bridge change`.
const numberShown = 8

func cardName(family, id string) string { return family + " …" + id[max(0, len(id)-numberShown):] }

func (k *kiosk) screen() (Screen, error) {
	s := Screen{Kiosk: k.window.Kiosk, Place: k.bridge.Name, Every: "2s"}
	op, err := k.operation()
	if err == nil && op.ID != "" {
		err = k.operationScreen(&s, op)
	} else if err == nil {
		err = k.cardScreen(&s)
	}
	if err != nil {
		return s, err
	}
	parts := fmt.Sprint(s.Step, s.Card, s.Cards, s.Why, s.Operation, s.TriesLeft, s.Until.Unix(), s.Good)
	if s.Seal != nil {
		parts += fmt.Sprint(s.Seal.AssociatedData, s.Seal.Refused)
	}
	sum := sha256.Sum256([]byte(parts))
	s.Seen = hex.EncodeToString(sum[:8])
	if note := words.Family("kiosk.note.", k.value("note")); k.words.Has(note) {
		s.Note = k.words.Say(note)
	}
	if s.Kiosk && (s.Step != stepInsert || s.Note != "" || !k.cookie(windowLanguageCookie).Empty()) {
		s.Idle = kioskIdle
	}
	return s, nil
}

// operation is what the person here has begun, asked after if its time is over or it may be
// stuck; the zero one if there is none.
func (k *kiosk) operation() (unblock.Operation, error) {
	if k.window.Operation == "" {
		return unblock.Operation{}, nil
	}
	op, err := k.Unblocks.Get(k.ctx(), k.tenant(), k.window.Operation)
	if errors.Is(err, problem.ErrNotFound) {
		return unblock.Operation{}, nil
	} else if err != nil || op.State.Finished() {
		return op, err
	}
	if now := k.Now(); !now.Before(op.Until) || op.State == unblock.Running && now.Sub(op.UpdatedAt) >= lookAfter {
		return k.Unblocks.Look(k.ctx(), k.core, op.ID)
	}
	return op, nil
}

func (k *kiosk) operationScreen(s *Screen, op unblock.Operation) error {
	shown, err := k.Unblocks.Show(k.ctx(), k.core, op)
	if err != nil {
		return err
	}
	s.Operation, s.Until = op.ID, shown.Until
	s.Card = HereCard{Name: nameOf(op.Credential)}
	s.gone = k.gone(op)
	switch {
	case op.State == unblock.Running:
		s.Step, s.Every, s.Until = stepWait, "1s", time.Time{}
	case op.State.Finished():
		s.Step, s.Good, s.Why = stepEnd, op.State == unblock.Succeeded || op.State == unblock.Reconciled && op.Outcome.PIN == card.Yes, k.words.Text(op.Sentence())
		s.Operator = op.State == unblock.Failed && helpless(op.Reason)
	case !k.bridge.Online(k.Now()):
		s.Step = stepAway
	case !k.here(op):
		s.Step = stepPutIn
	case shown.Next == relay.NextCode:
		s.Step, s.SentTo, s.TriesLeft, s.Wrong = stepCode, shown.SentTo, shown.TriesLeft, shown.TriesLeft < unblock.CodeTries
		if s.Kiosk {
			s.Keypad = codeKeypad()
		}
	case shown.Next == relay.NextWait:
		s.Step = stepApproval
	default:
		s.Step = stepPIN
		seal := k.seal(kioskPath+"/pin", op, shown, k.bridge)
		if s.Kiosk && shown.Policy != nil {
			seal.Keypad = pinKeypad(*shown.Policy)
		}
		s.Seal = &seal
	}
	return nil
}

// nameOf is cardName of a credential's id.
func nameOf(id string) string {
	family, number, _ := strings.Cut(strings.ToUpper(id), "-")
	return cardName(family, number)
}

// helpless tells whether an unblock has failed for what the person alone cannot mend.
func helpless(reason string) bool {
	switch reason {
	case unblock.ReasonNoPUK, string(card.PUKWrong), string(card.PUKBlocked), string(card.PUKUncertain), string(card.AdminKeyWrong), string(card.AdminKeyBlocked),
		string(card.NotSupported), string(card.CardAnswered), string(card.ScriptRefused):
		return true
	}
	return false
}

func (k *kiosk) cardScreen(s *Screen) error {
	readers := k.bridge.Here(k.Now())
	var in []tenant.Reader
	for _, r := range readers {
		if r.Insertion != "" {
			in = append(in, r)
			s.Cards = append(s.Cards, HereCard{Reader: r.Name, Insertion: r.Insertion})
		}
	}
	chosen := slices.IndexFunc(in, func(r tenant.Reader) bool { return r.Insertion == k.value("card") })
	switch {
	case !k.bridge.Online(k.Now()):
		s.Step = stepAway
	case len(readers) == 0:
		s.Step = stepNoReader
	case len(in) == 0:
		s.Step = stepInsert
	case len(in) == 1:
		s.Cards = nil
		return k.oneCard(s, in[0])
	case chosen >= 0:
		s.Cards, s.chosen = nil, true
		return k.oneCard(s, in[chosen])
	default:
		s.Step = stepChoose
	}
	return nil
}

func (k *kiosk) oneCard(s *Screen, r tenant.Reader) error {
	s.Card = HereCard{Reader: r.Name, Insertion: r.Insertion}
	switch {
	case r.Silent:
		s.Step = stepSilent
		return nil
	case r.Identify.Leg == card.Failed:
		s.Step, s.Why = stepStrange, k.words.Text(r.Identify.Failure.Sentence())
		return nil
	case r.Identify.Leg != card.Done:
		s.Step, s.Every = stepReading, "1s"
		return nil
	}
	told := r.Identify.Identity
	s.Card.Name = cardName(told.Family, told.ID)
	c, err := k.Credentials.Get(k.ctx(), k.tenant(), unblock.CredentialOf(r))
	if errors.Is(err, problem.ErrNotFound) {
		s.Step = stepUnregistered
		return nil
	} else if err != nil {
		return err
	}
	t, err := k.Credentials.Template(k.ctx(), k.tenant(), c.Template)
	if err != nil {
		return err
	}
	pin := pinOf(told, r.Insertion, c)
	s.Card.State, s.Card.TriesLeft = pin.State, pin.TriesLeft
	if c.Expired(k.Now()) {
		s.Card.ExpiredAt = c.PINExpiresAt
	}
	s.Step = stepOffer
	if err := k.Unblocks.SelfService(k.ctx(), k.core, c, t, told); err != nil {
		why, ok := k.why(err)
		if !ok {
			return err
		}
		s.Step, s.Why, s.Operator = stepOperator, why, true
	}
	return nil
}

// page shows how things stand. At a kiosk whose card was taken out all is forgotten first.
func (k *kiosk) page() error {
	s, err := k.screen()
	if err != nil {
		return err
	}
	if s.gone {
		return k.forgetAll()
	}
	return k.display(http.StatusOK, s, nil)
}

// state answers what is asked every second or two: nothing, or where else to go.
func (k *kiosk) state() error {
	s, err := k.screen()
	if err != nil {
		return err
	}
	if s.gone {
		return k.leadTo(kioskPath + "/forget?" + url.Values{"why": {"cardOut"}}.Encode())
	}
	if s.Seen == k.value("seen") {
		k.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return k.leadTo(kioskPath + k.chosen())
}

// chosen is the query for the card that was chosen among several.
func (k *kiosk) chosen() string {
	if c := k.value("card"); c != "" {
		return "?" + url.Values{"card": {c}}.Encode()
	}
	return ""
}

// gone tells whether this is a kiosk whose person has taken their card out.
func (k *kiosk) gone(op unblock.Operation) bool {
	return k.window.Kiosk && op.ID != "" && op.State != unblock.Running && k.bridge.Online(k.Now()) && !k.here(op)
}

// here tells whether the card of an unblock is in a reader of this bridge.
func (k *kiosk) here(op unblock.Operation) bool {
	return slices.ContainsFunc(k.bridge.Here(k.Now()), func(r tenant.Reader) bool { return r.Insertion != "" && unblock.CredentialOf(r) == op.Credential })
}

func (k *kiosk) display(status int, s Screen, faults []Fault) error {
	return k.render(status, "kiosk", "window", Frame{v: k.view, Faults: faults, D: s})
}

// back shows how things stand, with what was wrong with what was sent.
func (k *kiosk) back(err error) error {
	status, faults := k.faults(err)
	if why, ok := k.why(err); ok && len(faults) == 1 && faults[0].Field == "" {
		faults[0].Text = why // a card's failure is one of many ErrStates
	}
	if len(faults) == 0 {
		return err
	}
	s, failed := k.screen()
	if failed != nil {
		return failed
	}
	return k.display(status, s, faults)
}

// closed says that this is no window of a bridge.
func (k *kiosk) closed(status int, key string) error {
	return k.display(status, Screen{Step: stepClosed, Why: k.words.Say(key)}, nil)
}

// failed says what went wrong in the window's own layout.
func (k *kiosk) failed(err error) error {
	s := Screen{Step: stepFailed, Kiosk: k.window.Kiosk, Place: k.bridge.Name, Why: k.words.Say("problem.internal")}
	if s.Kiosk {
		s.Idle = kioskIdle
	}
	status := http.StatusInternalServerError
	switch why, ok := k.why(err); {
	case errors.Is(err, problem.ErrUnavailable):
		status, s.Why = http.StatusServiceUnavailable, k.words.Say("problem.unavailable")
	case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrForbidden):
		status, s.Why = http.StatusNotFound, k.words.Say("kiosk.notHere")
	case ok:
		status, s.Why = http.StatusConflict, why
	}
	if status >= 500 {
		observed(k.ctx()).cause = err
	}
	return k.display(status, s, nil)
}

// start begins the unblock of the card in a reader, or goes on with the one that has it.
func (k *kiosk) start() error {
	if op, err := k.operation(); err != nil {
		return err
	} else if op.ID != "" { // pressed twice, or sent again by a page of before
		return k.onward("")
	}
	insertion := k.value("insertion")
	if !slices.ContainsFunc(k.bridge.Here(k.Now()), func(r tenant.Reader) bool { return r.Insertion != "" && r.Insertion == insertion }) {
		return k.onward("") // the card was taken out, or put in anew
	}
	op, err := k.Unblocks.AtBridge(k.ctx(), k.core, k.bridge.ID, insertion)
	if err != nil {
		return k.back(err)
	}
	if err := k.note(op.ID); err != nil {
		return err
	}
	return k.onward("")
}

// note keeps which unblock the person here has begun.
func (k *kiosk) note(operation string) error {
	w, err := k.Tenants.ChangeWindow(k.ctx(), k.tenant(), k.bridge.ID, k.window, func(w *tenant.Window) { w.Operation = operation })
	if err == nil {
		k.window = w
	}
	return err
}

// onward goes to how things stand, and says what has happened.
func (k *kiosk) onward(note string) error {
	if note == "" {
		return k.goTo(kioskPath)
	}
	return k.goTo(kioskPath + "?" + url.Values{"note": {note}}.Encode())
}

// mine tells whether a form is of the unblock that is under way here.
func (k *kiosk) mine() bool {
	return k.window.Operation != "" && k.value("operation") == k.window.Operation
}

func (k *kiosk) prove() error {
	code := k.secretValue("code")
	if !k.mine() {
		return k.onward("other")
	}
	if strings.TrimSpace(code.Reveal()) == "" { // it would cost a try
		return k.back(problem.Invalid("missing", "code", "is missing; it is in the mail"))
	}
	_, err := k.Unblocks.Prove(k.ctx(), k.core, k.by(), k.window.Operation, code)
	if errors.As(err, new(*problem.InvalidError)) { // the page tells how many tries are left
		return k.onward("")
	} else if err != nil {
		return k.back(err)
	}
	return k.onward("")
}

func (k *kiosk) givePIN() error {
	if !k.mine() {
		return k.onward("other")
	}
	sealed, err := k.sealedPIN()
	if err == nil {
		_, err = k.Unblocks.GivePIN(k.ctx(), k.core, k.by(), k.window.Operation, sealed)
	}
	if err != nil {
		return k.back(err)
	}
	return k.onward("")
}

// stop gives up what has not begun, and leaves what has ended.
func (k *kiosk) stop() error {
	if !k.mine() {
		return k.onward("")
	}
	op, err := k.giveUp()
	switch {
	case err != nil:
		return err
	case op.State == unblock.Running:
		return k.onward("running")
	case op.State == unblock.Failed && op.Reason == unblock.ReasonCancelled:
		return k.leave("stopped")
	}
	return k.leave("")
}

// forgetAll begins anew for the next person: where the card was taken out, and where nobody
// has touched a kiosk for a while. Of what has ended it says how once more.
func (k *kiosk) forgetAll() error {
	if k.window.Kiosk {
		k.dropCookie(windowLanguageCookie)
	}
	op, err := k.giveUp()
	if err != nil {
		return err
	}
	switch {
	case op.State == unblock.Running, op.State == unblock.Unknown:
		return k.leave("unknown")
	case op.State == unblock.Succeeded:
		return k.leave("set")
	case k.value("why") == "cardOut" || k.gone(op):
		return k.leave("cardOut")
	}
	return k.leave("idle")
}

// giveUp cancels what is under way here, if it has not begun, and returns how it stands.
func (k *kiosk) giveUp() (unblock.Operation, error) {
	op, err := k.operation()
	if err != nil || op.ID == "" || op.State.Finished() || op.State == unblock.Running {
		return op, err
	}
	op, err = k.Unblocks.Cancel(k.ctx(), k.core, k.by(), op.ID)
	if errors.Is(err, problem.ErrState) { // it has begun just now
		op.State, err = unblock.Running, nil
	}
	return op, err
}

// leave has nothing under way here any more, and says what has happened.
func (k *kiosk) leave(note string) error {
	if err := k.note(""); err != nil {
		return err
	}
	return k.onward(note)
}

func (k *kiosk) chooseLanguage() error {
	valid := time.Duration(0) // a kiosk's ends with the person
	if !k.window.Kiosk {
		valid = tenant.WindowLife
	}
	k.setWindowCookie(windowLanguageCookie, words.In(k.value("language")).Language(), valid)
	return k.onward("")
}
