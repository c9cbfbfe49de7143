package unblock

import (
	"context"
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Answer is an answer to a challenge that a person has read out, by which a card's PIN is
// reset without a connection. The answer itself is kept nowhere: it is made anew.
type Answer struct {
	ID         string // ULID
	Credential string
	// Channel is one without a connection. By WindowsChallengeResponse it is for Windows'
	// own screen: the response under the admin key or, for a card with a PUK, the PUK; by
	// the others for the bridge Bridge.
	Channel credential.Channel
	Bridge  string
	// Challenge is as it was understood; "" for a PUK.
	Challenge string
	AnyDay    bool
	Statement string // how the person was identified
	Reason    string // why a PUK is told

	By       audit.Actor // who asked for it
	Approved audit.Actor // the second operator, where one was needed
	State    AnswerState
	// Until is until when it can be approved, given, or shown again.
	Until time.Time
	// Slot is that of the PUK in it; 0 for none.
	Slot int
	// Former is what was known of the PIN before the answer was given.
	Former Former
	Notice Notice // to the holder, that it was given

	CreatedAt time.Time
	GivenAt   time.Time
	Version   int64
}

// AnswerState is how far an answer is.
type AnswerState string

// The states.
const (
	AnswerRequested AnswerState = "requested" // a second operator has to approve it
	AnswerApproved  AnswerState = "approved"  // it may be given
	AnswerGiven     AnswerState = "given"     // the PIN is presumed to be reset
	AnswerConfirmed AnswerState = "confirmed" // it was
	AnswerRefuted   AnswerState = "refuted"   // it was not
)

// Former is what a credential had that an answer's presumption has changed.
type Former struct {
	Change     credential.PINChange
	ExpiresAt  time.Time
	Flagged    credential.Flagged
	State      credential.State
	Resets     []time.Time
	Expiration bool // was recorded
}

// OfflineRequest asks for an answer.
type OfflineRequest struct {
	Credential string
	Channel    credential.Channel
	Bridge     string // "" where that can be told by the challenge
	Challenge  string // as it was typed; "" for a PUK
	// AnyDay has a challenge answered that by the bridge's clock is not of these days: the
	// operator knows that the person has it on the screen now.
	AnyDay    bool
	Statement string
	Reason    string // needed for a PUK
	// TellPUK: who asks may learn a PUK.
	TellPUK bool
}

// Given is an answer in the clear, for the person who asked for it.
type Given struct {
	Response secret.Text // in groups
	Replaced []offline.Replacement
}

const (
	// AnswersPerCard and AnswersPerKey are how many answers may be given in an hour for a
	// card, and by one API key or person.
	AnswersPerCard = 5
	AnswersPerKey  = 30
	// shownFor is how long an answer is shown again: as long as a bridge keeps a challenge.
	shownFor = offline.Life
	// bridgesTried is in how many bridges' names a challenge is read if none is given.
	bridgesTried = 200
)

// Windows tells whether it is for Windows' own screen.
func (a Answer) Windows() bool { return a.Channel == credential.WindowsChallengeResponse }

// TellsPUK tells whether the answer is a PUK in the clear.
func (a Answer) TellsPUK() bool { return a.Windows() && a.Challenge == "" }

// Validate implements table.Record.
func (a Answer) Validate() error {
	var vs problem.Violations
	for _, f := range []struct {
		field, text string
		least       int
	}{{"statement", a.Statement, 3}, {"reason", a.Reason, 0}} {
		n := utf8.RuneCountInString(f.text)
		switch {
		case n < f.least:
			vs.Add("missing", f.field, "must say how the person was identified, such as \"called back on the number on record\"")
		case n > 500 || !utf8.ValidString(f.text) || strings.ContainsFunc(f.text, unicode.IsControl):
			vs.Add("length", f.field, "must be at most 500 characters, without control characters")
		}
	}
	return vs.Err()
}

type storedAnswer struct {
	Tenant     table.TenantID     `json:"tenant"`
	ID         string             `json:"id"`
	Credential string             `json:"credential"`
	Channel    credential.Channel `json:"channel"`
	Bridge     string             `json:"bridge,omitempty"`
	Challenge  string             `json:"challenge,omitempty"`
	AnyDay     bool               `json:"anyDay,omitzero"`
	Statement  string             `json:"statement"`
	Reason     string             `json:"reason,omitempty"`
	By         audit.Actor        `json:"by"`
	Approved   audit.Actor        `json:"approved,omitzero"`
	State      AnswerState        `json:"state"`
	Until      time.Time          `json:"until,omitzero"`
	Slot       int                `json:"slot,omitzero"`
	Former     Former             `json:"former,omitzero"`
	Notice     Notice             `json:"notice,omitzero"`
	CreatedAt  time.Time          `json:"createdAt"`
	GivenAt    time.Time          `json:"givenAt,omitzero"`
}

type answerRecord struct {
	tenant table.TenantID
	Answer
}

// Item implements table.Record.
func (r answerRecord) Item() (table.Item, error) {
	a := r.Answer
	data, err := json.Marshal(storedAnswer{r.tenant, a.ID, a.Credential, a.Channel, a.Bridge, a.Challenge, a.AnyDay, a.Statement, a.Reason,
		a.By, a.Approved, a.State, a.Until, a.Slot, a.Former, a.Notice, a.CreatedAt, a.GivenAt})
	item := table.Item{Key: table.OfflineAnswerKey(r.tenant, a.ID), Indexes: []table.IndexKey{table.OfflineAnswerOf(r.tenant, a.Credential, a.ID)},
		ExpiresAt: a.CreatedAt.Add(keepFor), Data: data}
	if a.Notice.State == NoticePlanned {
		item.Indexes = append(item.Indexes, table.OfflineAnswerDue(r.tenant, a.ID, a.Notice.At))
	}
	return item, err
}

// decodeAnswer returns also whose it is, which the sweep learns only here.
func decodeAnswer(item table.Item) (table.TenantID, Answer, error) {
	var s storedAnswer
	if err := item.Decode(&s); err != nil {
		return "", Answer{}, err
	}
	return s.Tenant, Answer{s.ID, s.Credential, s.Channel, s.Bridge, s.Challenge, s.AnyDay, s.Statement, s.Reason,
		s.By, s.Approved, s.State, s.Until, s.Slot, s.Former, s.Notice, s.CreatedAt, s.GivenAt, item.Version}, nil
}

// answers are those given lately for a card, or by a key.
type answers struct {
	key     table.Key
	version int64

	Given []time.Time `json:"given,omitempty"` // within the last hour
	// Of a card: the challenges answered, by their keyed hash, and what bridges have
	// reported, by its id.
	Challenges []string `json:"challenges,omitempty"`
	Reports    []string `json:"reports,omitempty"`
}

// remembered is how many challenges and reports of a card are remembered: more than can be
// answered in a day.
const remembered = 24 * AnswersPerCard

// Validate implements table.Record.
func (answers) Validate() error { return nil }

// Item implements table.Record.
func (r answers) Item() (table.Item, error) {
	data, err := json.Marshal(r)
	return table.Item{Key: r.key, Data: data}, err
}

func (r answers) put() table.Op { return table.Put(r, table.After(r.version)) }

func (us *Unblocks) answersOf(ctx context.Context, t table.TenantID, who string) (answers, error) {
	r := answers{key: table.OfflineAnswersKey(t, who)}
	item, err := us.Table.Get(ctx, r.key)
	if errors.Is(err, problem.ErrNotFound) {
		return r, nil
	} else if err != nil {
		return r, fmt.Errorf("load answers given lately: %w", err)
	}
	r.version = item.Version
	return r, item.Decode(&r)
}

// count counts one more, or returns a LimitError.
func (r *answers) count(now time.Time, most int, reason string) error {
	r.Given = slices.DeleteFunc(r.Given, func(at time.Time) bool { return now.Sub(at) >= time.Hour })
	if len(r.Given) >= most {
		return &problem.LimitError{Code: "tooManyAnswers", Reason: reason, Until: r.Given[0].Add(time.Hour)}
	}
	r.Given = append(r.Given, now.UTC().Truncate(time.Second))
	return nil
}

func remember(all []string, one string) []string {
	all = append(all, one)
	return all[max(0, len(all)-remembered):]
}

// Answer returns an answer by id.
func (us *Unblocks) Answer(ctx context.Context, t table.TenantID, id string) (Answer, error) {
	item, err := us.Table.Get(ctx, table.OfflineAnswerKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Answer{}, fmt.Errorf("offline answer %w", problem.ErrNotFound)
	} else if err != nil {
		return Answer{}, fmt.Errorf("load offline answer: %w", err)
	}
	_, a, err := decodeAnswer(item)
	return a, err
}

// Answers returns up to limit answers for a credential, newest first, beyond the given
// place ("" is the start), and the place to go on from, "" if there are no more.
func (us *Unblocks) Answers(ctx context.Context, t table.TenantID, credential, beyond string, limit int) (all []Answer, next string, err error) {
	page, next, err := table.Merge(ctx, us.Table, []table.Range{table.OfflineAnswersOf(t, credential).Descending()}, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list offline answers: %w", err)
	}
	all = make([]Answer, len(page.Items))
	for i, item := range page.Items {
		if _, all[i], err = decodeAnswer(item); err != nil {
			return nil, "", err
		}
	}
	return all, next, nil
}

// question is what an answer is made of.
type question struct {
	core     tenant.Core
	cred     credential.Credential
	template credential.Template
	// For a bridge:
	key offline.Key
	puk offline.PUKChallenge // of a card with a PUK
	// Else, of a card with an admin key:
	challenge []byte
	replaced  []offline.Replacement
}

func (q question) escrowsPUK() bool { return q.template.Custody() == credential.PUKRotated }

// Ask asks for an answer. Where the statement is enough it is given at once, and else once
// a second operator has approved it, to who has asked, by Give. A PUK always needs two. A
// challenge is answered once: Give shows that answer again for a while.
func (us *Unblocks) Ask(ctx context.Context, core tenant.Core, by audit.Actor, r OfflineRequest) (Answer, Given, error) {
	id, err := us.newID()
	if err != nil {
		return Answer{}, Given{}, err
	}
	now := us.Now().UTC().Truncate(time.Second)
	a := Answer{ID: id, Credential: r.Credential, Channel: r.Channel, Bridge: r.Bridge, Challenge: r.Challenge, AnyDay: r.AnyDay,
		Statement: strings.TrimSpace(r.Statement), Reason: strings.TrimSpace(r.Reason), By: by, State: AnswerApproved, Until: now.Add(approvalLife), CreatedAt: now}
	q, err := us.question(ctx, core, &a)
	if err == nil {
		err = us.mayAsk(q, a)
	}
	if err == nil && a.TellsPUK() && !r.TellPUK {
		err = fmt.Errorf("%w: the card has a PUK, and that may be told by an operator only", problem.ErrForbidden)
	}
	if err != nil {
		return Answer{}, Given{}, us.refused(ctx, core, by, a, err)
	}
	if q.template.ProofFor(a.Channel) != credential.TwoOperators && !a.TellsPUK() {
		a, given, err := us.give(ctx, core, by, a)
		given.Replaced = q.replaced // it is read anew as it was understood
		return a, given, err
	}
	a.State = AnswerRequested
	if err := us.Table.Write(ctx, table.Put(answerRecord{core.Tenant.ID, a}, table.Absent()), us.Audit.Op(ctx, core.Tenant.ID, a.record(by, "offline.requested"))); err != nil {
		return Answer{}, Given{}, fmt.Errorf("ask for an offline answer: %w", err)
	}
	a.Version = 1
	return a, Given{Replaced: q.replaced}, nil
}

// Understand reads a challenge as Ask does, so that it can be read back before an answer is
// given: the answer that Ask would begin with, without id, and what was taken for something
// else in the challenge. The errors are those of Ask, which says also what is true by then.
// One that is of another card or bridge counts as it does there.
func (us *Unblocks) Understand(ctx context.Context, core tenant.Core, by audit.Actor, r OfflineRequest) (Answer, []offline.Replacement, error) {
	a := Answer{Credential: r.Credential, Channel: r.Channel, Bridge: r.Bridge, Challenge: r.Challenge, AnyDay: r.AnyDay,
		Statement: strings.TrimSpace(r.Statement), Reason: strings.TrimSpace(r.Reason), By: by, State: AnswerApproved}
	q, err := us.question(ctx, core, &a)
	if err == nil {
		err = us.mayAsk(q, a)
	}
	if err != nil {
		return Answer{}, nil, us.refused(ctx, core, by, a, err)
	}
	if a.TellsPUK() || q.template.ProofFor(a.Channel) == credential.TwoOperators {
		a.State = AnswerRequested
	}
	return a, q.replaced, nil
}

// record is an audit record about an answer.
func (a Answer) record(by audit.Actor, action string) audit.Record {
	r := audit.Record{Actor: by, Action: action, Subject: credential.Subject(a.Credential), Outcome: audit.Done,
		Details: map[string]string{"answer": a.ID, "channel": string(a.Channel), "statement": a.Statement}}
	for name, value := range map[string]string{"bridge": a.Bridge, "reason": a.Reason} {
		if value != "" {
			r.Details[name] = value
		}
	}
	return r
}

// refused notes that a challenge was of another card or bridge, and counts it against the
// key: somebody may be guessing.
func (us *Unblocks) refused(ctx context.Context, core tenant.Core, by audit.Actor, a Answer, why error) error {
	if !errors.Is(why, offline.ErrForeign) {
		return why
	}
	t := core.Tenant.ID
	record := a.record(by, "offline.asked")
	record.Outcome, record.Reason = audit.Refused, "foreign"
	for range tries {
		mine, err := us.answersOf(ctx, t, "key/"+by.ID)
		if err != nil {
			return err
		}
		if err := mine.count(us.Now(), AnswersPerKey, errKeyAnswers); err != nil {
			return err
		}
		if err = us.Table.Write(ctx, mine.put(), us.Audit.Op(ctx, t, record)); err == nil {
			return why
		} else if !errors.Is(err, problem.ErrConflict) {
			return fmt.Errorf("note a refused challenge: %w", err)
		}
	}
	return errBusy
}

const (
	errCardAnswers = "as many answers as may be in an hour were given out for this card"
	errKeyAnswers  = "as many answers as may be in an hour were asked for with this key"
)

// mayAsk returns why there must be no answer, if so.
func (us *Unblocks) mayAsk(q question, a Answer) error {
	now := us.Now()
	if err := a.Validate(); err != nil {
		return err
	}
	if a.TellsPUK() && utf8.RuneCountInString(a.Reason) < 3 {
		return problem.Invalid("missing", "reason", "must say why the PUK is told")
	}
	if err := q.cred.CheckUnblockable(); err != nil {
		return err
	}
	if q.cred.Leased(now) {
		return fmt.Errorf("%w: another unblock of this card (%s) is under way; wait until %s, or cancel it", problem.ErrState,
			q.cred.Lease.Operation, q.cred.Lease.Until.UTC().Format(time.RFC3339))
	}
	return q.template.CheckLimit(q.cred, now)
}

// question reads what an answer needs, and puts the challenge and the bridge as they were
// understood into it.
func (us *Unblocks) question(ctx context.Context, core tenant.Core, a *Answer) (question, error) {
	q := question{core: core}
	var err error
	t := core.Tenant.ID
	if q.cred, err = us.Credentials.Get(ctx, t, a.Credential); err != nil {
		return q, err
	}
	if q.template, err = us.Credentials.Template(ctx, t, q.cred.Template); err != nil {
		return q, err
	}
	switch {
	case a.Channel.Online() || !slices.Contains(credential.Channels(), a.Channel):
		return q, problem.Invalid("unknown", "channel", "must be %s, %s or %s", credential.SelfServiceOffline, credential.LogonScreenOffline, credential.WindowsChallengeResponse)
	case !q.template.Allows(a.Channel):
		return q, fmt.Errorf("%w: the card's template does not allow an unblock by %s", problem.ErrState, a.Channel)
	case a.Windows() && a.Bridge != "":
		return q, problem.Invalid("inconsistent", "bridge", "has no part in an unblock at Windows' own screen")
	case a.Windows() && q.escrowsPUK() && strings.TrimSpace(a.Challenge) != "":
		return q, problem.Invalid("inconsistent", "challenge", "is not for a card with a PUK: Windows' screen takes the PUK itself in place of a response")
	case a.Windows() && q.escrowsPUK():
		a.Challenge = ""
		return q, nil
	case a.Windows():
		c, err := offline.ParseChallenge(a.Challenge)
		if err != nil {
			return q, err
		}
		a.Challenge, q.challenge, q.replaced = c.String(), c.Bytes(), c.Replaced
		return q, nil
	}
	return q, us.bridgesQuestion(ctx, &q, a)
}

// bridgesQuestion reads a challenge that a bridge has made.
func (us *Unblocks) bridgesQuestion(ctx context.Context, q *question, a *Answer) error {
	private, err := us.Tenants.OfflineKey(ctx, q.core)
	if err != nil {
		return err
	}
	bridges, err := us.candidates(ctx, q.core, a.Bridge)
	if err != nil {
		return err
	}
	var found []string
	failed := error(offline.ErrForeign)
	for _, b := range bridges {
		read := *q
		var late *offline.ClockError
		err := read.read(private, b, a.Challenge, us.Now())
		switch {
		case errors.As(err, &late) && !a.AnyDay:
			failed = problem.Invalid("clock", "challenge", "%s; if the person has it on the screen now, say so", late)
		case err == nil || late != nil:
			found = append(found, b.ID)
			*q = read
		case !errors.Is(err, offline.ErrForeign):
			return err // it was misheard, whichever bridge it is of
		}
	}
	switch {
	case len(found) == 0:
		return failed
	case len(found) > 1:
		return problem.Invalid("ambiguous", "bridge", "must be given: the challenge may be of any of %s", strings.Join(found, ", "))
	}
	a.Bridge = found[0]
	if q.escrowsPUK() {
		a.Challenge = q.puk.String()
	} else if a.Challenge, err = q.key.EncodeChallenge(q.challenge); err != nil {
		return err
	}
	return nil
}

// candidates are the bridges that a challenge may be of.
func (us *Unblocks) candidates(ctx context.Context, core tenant.Core, id string) (all []tenant.Bridge, err error) {
	if id != "" {
		b, err := us.Tenants.Bridge(ctx, core.Tenant.ID, id)
		if err == nil && !b.Enrolled() {
			err = problem.Invalid("state", "bridge", "is not an enrolled bridge")
		}
		return []tenant.Bridge{b}, err
	}
	all, next, err := us.Tenants.Bridges(ctx, core.Tenant.ID, "", bridgesTried)
	if next != "" {
		err = problem.Invalid("missing", "bridge", "must be given, for there are more than %d", bridgesTried)
	}
	return slices.DeleteFunc(all, func(b tenant.Bridge) bool { return !b.Enrolled() }), err
}

// read reads a challenge in the name of a bridge.
func (q *question) read(private *ecdh.PrivateKey, b tenant.Bridge, typed string, now time.Time) (err error) {
	if q.key, err = offline.NewKey(private, b.Sealing, offline.Binding{Tenant: string(q.core.Tenant.ID), Bridge: b.ID, Credential: q.cred.ID}); err != nil {
		return fmt.Errorf("offline key of bridge %s: %w", b.ID, err)
	}
	if q.escrowsPUK() {
		q.puk, err = q.key.Check(typed, now)
	} else {
		q.challenge, err = q.key.DecodeChallenge(typed)
	}
	return err
}

// slot is that of the PUK which the card has.
func (q question) slot(a Answer) (int, error) {
	c := q.cred.Custody
	doubt := fmt.Errorf("%w: it is in doubt which PUK the card has; it has to be in a reader of a connected bridge first", problem.ErrState)
	switch {
	case c.Current == 0:
		return 0, fmt.Errorf("%w: no PUK is known for the card; an operator has to enter it first", problem.ErrState)
	case q.cred.Stuck != "" || c.Stage == card.Refused:
		return 0, fmt.Errorf("%w: the card has another PUK than is known; an operator has to enter it first", problem.ErrState)
	case a.State == AnswerGiven: // it is shown again, and was counted
	case c.Tries < 1:
		return 0, fmt.Errorf("%w: the card's PUK is blocked", problem.ErrState)
	case c.Claimed && c.Tries < 2:
		return 0, fmt.Errorf("%w: the PUK on record was never shown to be the card's, and may have one try left; the card has to be in a reader of a connected bridge first", problem.ErrState)
	}
	switch {
	case c.Stage == card.Settled:
		return c.Current, nil
	case c.Stage == card.Eliminated:
		return c.Proposed, nil
	case a.Windows():
		return 0, doubt
	}
	// An intent is open. The bridge knows what came of it if it has seen its fence.
	report := q.puk.Report()
	if report.Fence != q.cred.Lease.Fence%10 {
		return 0, doubt
	}
	switch report.Change {
	case offline.Changed:
		return c.Proposed, nil
	case offline.Unchanged:
		return c.Current, nil
	}
	return 0, doubt
}

// answer makes the answer, with an audit record for the secret that it was made of.
func (q question) answer(a *Answer) (response secret.Text, read audit.Record, err error) {
	t := q.core.Tenant.ID
	read = audit.Record{Actor: a.By, Subject: credential.Subject(a.Credential), Outcome: audit.Done, Reason: "offline",
		Details: map[string]string{"answer": a.ID, "channel": string(a.Channel)}}
	if !q.escrowsPUK() {
		read.Action = "adminKey.read"
		key, err := q.cred.AdminKeyOf(q.core.Keys, t, q.template)
		if err != nil {
			return response, read, err
		}
		b, err := card.Answer(key, q.challenge)
		if err != nil {
			return response, read, err
		}
		text := offline.Hex(b)
		if !a.Windows() {
			text, err = q.key.EncodeAnswer(q.challenge, b)
		}
		return secret.New(text), read, err
	}
	slot, err := q.slot(*a)
	if err != nil {
		return response, read, err
	}
	if a.Slot != 0 && a.Slot != slot {
		return response, read, fmt.Errorf("%w: the card has another PUK by now; ask anew", problem.ErrState)
	}
	a.Slot = slot
	read.Action, read.Details["slots"] = "puk.read", strconv.Itoa(slot)
	puk, err := q.cred.PUK(q.core.Keys, t, slot)
	if err != nil {
		return response, read, err
	}
	if a.Windows() {
		response, err = offline.PUKHex(puk)
		return response, read, err
	}
	text, err := q.key.Mask(q.puk, puk)
	return secret.New(text), read, err
}

// ApproveAnswer is a second operator's word for an answer. Who has asked for it cannot give it.
func (us *Unblocks) ApproveAnswer(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Answer, error) {
	a, err := us.Answer(ctx, core.Tenant.ID, id)
	if err != nil {
		return a, err
	}
	switch {
	case a.State != AnswerRequested:
		return a, fmt.Errorf("%w: no approval is asked for", problem.ErrState)
	case !us.Now().Before(a.Until):
		return a, fmt.Errorf("%w: it was not approved in time; ask anew", problem.ErrState)
	case by.Kind == a.By.Kind && by.ID == a.By.ID:
		return a, fmt.Errorf("%w: who has asked for an answer cannot approve it; another operator has to", problem.ErrForbidden)
	}
	a.State, a.Approved, a.Until = AnswerApproved, by, us.Now().Add(approvalLife).UTC().Truncate(time.Second)
	err = us.Table.Write(ctx, table.Put(answerRecord{core.Tenant.ID, a}, table.IfVersion(a.Version)), us.Audit.Op(ctx, core.Tenant.ID, a.record(by, "offline.approved")))
	if err != nil {
		return a, fmt.Errorf("approve offline answer: %w", err)
	}
	a.Version++
	return a, nil
}

// Give gives an answer that was approved to who has asked for it, and shows one again
// that was given.
func (us *Unblocks) Give(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Answer, Given, error) {
	a, err := us.Answer(ctx, core.Tenant.ID, id)
	if err != nil {
		return a, Given{}, err
	}
	switch {
	case by.Kind != a.By.Kind || by.ID != a.By.ID:
		return a, Given{}, fmt.Errorf("%w: an answer is for who has asked for it", problem.ErrForbidden)
	case a.State == AnswerRequested:
		return a, Given{}, fmt.Errorf("%w: another operator has to approve it first", problem.ErrState)
	case !us.Now().Before(a.Until):
		return a, Given{}, fmt.Errorf("%w: it is over; let the person begin anew", problem.ErrState)
	case a.State == AnswerApproved:
		return us.give(ctx, core, by, a)
	}
	q, err := us.question(ctx, core, &a)
	if err != nil {
		return a, Given{}, err
	}
	response, read, err := q.answer(&a)
	if err != nil {
		return a, Given{}, err
	}
	if err := us.Table.Write(ctx, us.Audit.Op(ctx, core.Tenant.ID, read), us.Audit.Op(ctx, core.Tenant.ID, a.record(by, "offline.shownAgain"))); err != nil {
		return a, Given{}, fmt.Errorf("show an offline answer again: %w", err)
	}
	return a, Given{Response: response}, nil
}

// give gives an answer: it is counted, the reset presumed, the PUK in it marked as told,
// and the holder mailed.
func (us *Unblocks) give(ctx context.Context, core tenant.Core, by audit.Actor, asked Answer) (Answer, Given, error) {
	t := core.Tenant.ID
	fail := func(err error) (Answer, Given, error) { return asked, Given{}, err }
	for range tries {
		a := asked
		q, err := us.question(ctx, core, &a)
		if err == nil {
			err = us.mayAsk(q, a)
		}
		if err != nil {
			return fail(us.refused(ctx, core, by, a, err))
		}
		forCard, err := us.answersOf(ctx, t, "card/"+a.Credential)
		if err != nil {
			return fail(err)
		}
		byKey, err := us.answersOf(ctx, t, "key/"+by.ID)
		if err != nil {
			return fail(err)
		}
		if a.Challenge != "" {
			hash, err := core.Keys.Fingerprint("offline challenge", []byte(a.Credential+" "+a.Challenge))
			if err != nil {
				return fail(err)
			}
			if slices.Contains(forCard.Challenges, hash) {
				return fail(fmt.Errorf("%w: this challenge was answered already; have that answer shown again, or let the person begin anew", problem.ErrState))
			}
			forCard.Challenges = remember(forCard.Challenges, hash)
		}
		now := us.Now()
		if err := errors.Join(forCard.count(now, AnswersPerCard, errCardAnswers), byKey.count(now, AnswersPerKey, errKeyAnswers)); err != nil {
			return fail(err)
		}
		response, read, err := q.answer(&a)
		if err != nil {
			return fail(err)
		}
		now = now.UTC().Truncate(time.Second)
		a.State, a.GivenAt, a.Until = AnswerGiven, now, now.Add(shownFor)
		a.Former = former(q.cred)
		a.Notice = Notice{State: NoticePlanned, At: now.Add(noticeClaim)} // whoever stores this sends it
		ops := []table.Op{table.Put(answerRecord{t, a}, table.After(a.Version)), forCard.put(), byKey.put(),
			us.Audit.Op(ctx, t, read), us.Audit.Op(ctx, t, a.record(by, "offline.answered"))}
		ops = append(ops, credential.Put(t, q.cred, presumed(q, a, now))...)
		if err := us.Table.Write(ctx, ops...); errors.Is(err, problem.ErrConflict) {
			continue
		} else if err != nil {
			return fail(fmt.Errorf("give an offline answer: %w", err))
		}
		a.Version++
		if err := us.announceAnswer(ctx, core, a); err != nil { // the sweep does it
			us.Log.WarnContext(ctx, "holder not told of an offline answer yet", "answer", a.ID, "cause", err)
		}
		return a, Given{Response: response}, nil
	}
	return fail(errBusy)
}

func former(c credential.Credential) Former {
	return Former{c.LastPINChange, c.PINExpiresAt, c.Flagged, c.State, c.Resets, c.ExpiryRecorded}
}

// presumed is the credential once an answer is given.
func presumed(q question, a Answer, now time.Time) credential.Credential {
	c := q.cred.PINChanged(credential.PINChange{At: now, How: credential.ResetOffline, Operation: a.ID, Presumed: true}, q.template)
	c.UpdatedAt = now
	if a.Slot == 0 {
		return c
	}
	if c.PUKDisclosedAt.IsZero() {
		c.PUKDisclosedAt = now
	}
	switch custody := c.Custody; {
	case a.Windows(): // somebody types it, and may mistype it
		c.Custody = custody.Observe(card.RetryCounter{Known: true, TriesLeft: 1})
	case custody.Claimed:
		c.Custody = custody.Observe(card.RetryCounter{Known: true, TriesLeft: custody.Tries - 1})
	}
	return c
}

// refute takes back what was presumed.
func (a Answer) refute(c credential.Credential, tmpl credential.Template, now time.Time) credential.Credential {
	f := a.Former
	c.LastPINChange, c.Resets = f.Change, f.Resets
	c = c.Flag(f.ExpiresAt, f.Flagged, tmpl, now)
	c.ExpiryRecorded = f.Expiration
	if c.State == credential.Active {
		c.State = f.State
	}
	return c
}
