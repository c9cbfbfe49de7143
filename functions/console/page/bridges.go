package page

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

const bridgesPath = Root + "/bridges"

// liveEvery is how often a list of what is at bridges is asked for.
const liveEvery = "3s"

func (c *Console) bridgeRoutes() []route {
	const one = bridgesPath + "/{bridge}"
	return []route{
		{pattern: "GET " + bridgesPath, action: tenant.ReadBridges, do: (*view).listBridges},
		{pattern: "GET " + bridgesPath + "/live", action: tenant.ReadBridges, asked: true, do: (*view).liveBridges},
		{pattern: "GET " + bridgesPath + "/new", action: tenant.ManageBridges, do: (*view).newBridge},
		{pattern: "POST " + bridgesPath + "/new", action: tenant.ManageBridges, do: (*view).inviteBridge},
		{pattern: "GET " + one, action: tenant.ReadBridges, do: (*view).showBridge},
		{pattern: "GET " + one + "/live", action: tenant.ReadBridges, asked: true, do: (*view).liveBridge},
		{pattern: "GET " + one + "/enrolled", action: tenant.ManageBridges, asked: true, do: (*view).bridgeEnrolled},
		{pattern: "POST " + one + "/code", action: tenant.ManageBridges, do: (*view).inviteBridgeAgain},
		{pattern: "GET " + one + "/revoke", action: tenant.ManageBridges, do: (*view).revokeBridgePage},
		{pattern: "POST " + one + "/revoke", action: tenant.ManageBridges, do: (*view).revokeBridge},
	}
}

// pinSeen is what is known of a card's PIN where the card is seen.
type pinSeen struct {
	State           string // "blocked", "tries", "set" just now, "unknown"
	TriesLeft, Most int
}

// Dot is one try in a picture.
type Dot struct {
	X    int
	Left bool
}

// Dots are the tries, as many as a picture has room for.
func (p pinSeen) Dots() (dots []Dot) {
	for i := range min(max(p.Most, p.TriesLeft), 9) {
		dots = append(dots, Dot{14 + 11*i, i < p.TriesLeft})
	}
	return dots
}

// pinOf tells of a card's PIN by what the card has said, unless that is from before a script.
func pinOf(told card.Identity, insertion string, c credential.Credential) pinSeen {
	switch {
	case insertion != "" && c.Touched == insertion && c.Doubt == "":
		return pinSeen{State: "set"}
	case !told.PIN.Known:
		return pinSeen{State: "unknown"}
	case told.PIN.TriesLeft == 0:
		return pinSeen{State: "blocked"}
	}
	return pinSeen{"tries", told.PIN.TriesLeft, told.PIN.Most}
}

// seenReader is a reader at a bridge and what is in it.
type seenReader struct {
	Name, Insertion string
	State           string // "empty", "silent", "reading", "strange", "unregistered" or "card"
	Why             string // it is strange
	CardName        string
	PIN             pinSeen
	Credential      credential.Credential
	Holder          user.User
}

// seenReaders are what is at bridges now, with who holds the cards if that is wanted.
func (v *view) seenReaders(bridges []tenant.Bridge, holders bool) ([][]seenReader, error) {
	all := make([][]seenReader, len(bridges))
	g, ctx := errgroup.WithContext(v.ctx())
	g.SetLimit(16)
	for i, b := range bridges {
		here := b.Here(v.Now())
		all[i] = make([]seenReader, len(here))
		for j, r := range here {
			s := &all[i][j]
			*s = v.seenReader(r)
			if s.State != "card" {
				continue
			}
			g.Go(func() (err error) {
				s.Credential, err = v.Credentials.Get(ctx, v.tenant(), unblock.CredentialOf(r))
				if errors.Is(err, problem.ErrNotFound) {
					s.State = "unregistered"
					return nil
				}
				s.PIN = pinOf(r.Identify.Identity, r.Insertion, s.Credential)
				if err == nil && holders {
					s.Holder, err = v.holderOf(ctx, s.Credential.Holder)
				}
				return err
			})
		}
	}
	return all, g.Wait()
}

func (v *view) seenReader(r tenant.Reader) seenReader {
	s := seenReader{Name: r.Name, Insertion: r.Insertion, State: "card"}
	switch {
	case r.Insertion == "":
		s.State = "empty"
	case r.Silent:
		s.State = "silent"
	case r.Identify.Leg == card.Failed:
		s.State, s.Why = "strange", v.words.Text(r.Identify.Failure.Sentence())
	case r.Identify.Leg != card.Done:
		s.State = "reading"
	default:
		s.CardName = cardName(r.Identify.Identity.Family, r.Identify.Identity.ID)
	}
	return s
}

// bridgeSeen is a bridge as pages show it.
type bridgeSeen struct {
	tenant.Bridge
	State     string // "revoked", "invited", "online" or "offline"
	Since     time.Time
	CodeUntil time.Time
	Readers   []seenReader
}

func (v *view) bridgesSeen(bridges []tenant.Bridge) ([]bridgeSeen, error) {
	readers, err := v.seenReaders(bridges, false)
	if err != nil {
		return nil, err
	}
	all := make([]bridgeSeen, len(bridges))
	for i, b := range bridges {
		all[i] = bridgeSeen{b, bridgeState(b, v.Now()), bridgeSince(b, v.Now()), b.CodeUntil(v.Now()), readers[i]}
	}
	return all, nil
}

func bridgeState(b tenant.Bridge, now time.Time) string {
	switch {
	case !b.RevokedAt.IsZero():
		return "revoked"
	case !b.Enrolled():
		return "invited"
	case b.Online(now):
		return "online"
	}
	return "offline"
}

// bridgeSince is since when a bridge is connected or, if it is not, when it was heard of last.
func bridgeSince(b tenant.Bridge, now time.Time) (since time.Time) {
	online := b.Online(now)
	for _, p := range b.Sessions {
		switch {
		case online && p.Online(now) && (since.IsZero() || p.ConnectedAt.Before(since)):
			since = p.ConnectedAt
		case !online && p.SeenAt.After(since):
			since = p.SeenAt
		}
	}
	return since
}

type bridgeList struct {
	Bridges List[bridgeSeen]
}

func (v *view) bridgeList() (bridgeList, error) {
	from, err := v.place()
	if err != nil {
		return bridgeList{}, err
	}
	bridges, next, err := v.Tenants.Bridges(v.ctx(), v.tenant(), from, pageSize)
	if err != nil {
		return bridgeList{}, err
	}
	seen, err := v.bridgesSeen(bridges)
	return bridgeList{list(v, seen, next)}, err
}

func (v *view) listBridges() error {
	if v.value("format") == "csv" {
		return v.bridgesCSV()
	}
	l, err := v.livingBridges()
	if err != nil {
		return err
	}
	return v.show("bridges", l)
}

func (v *view) livingBridges() (Live, error) {
	l, err := v.bridgeList()
	if err != nil {
		return Live{}, err
	}
	return v.live("bridges", "bridge-list", l, liveEvery, bridgesPath+"/live")
}

func (v *view) liveBridges() error {
	l, err := v.livingBridges()
	if err != nil {
		return err
	}
	return v.stillLive("bridges", l)
}

func (v *view) bridgesCSV() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	var rows iter.Seq2[tenant.Bridge, error] = rowsOf(from, func(beyond string) ([]tenant.Bridge, string, error) {
		return v.Tenants.Bridges(v.ctx(), v.tenant(), beyond, 200)
	})
	return csvFile(v, "bridges", []string{"id", "name", "state", "since", "version", "system", "host", "readers", "createdAt", "enrolledAt", "revokedAt"}, rows, func(b tenant.Bridge) []string {
		now := v.Now()
		return []string{b.ID, b.Name, bridgeState(b, now), csvTime(bridgeSince(b, now)), b.Program, b.System, b.Host, strconv.Itoa(len(b.Here(now))),
			csvTime(b.CreatedAt), csvTime(b.EnrolledAt), csvTime(b.RevokedAt)}
	})
}

func (v *view) newBridge() error { return v.show("bridge-new", "") }

// invitedBridge is a code, which is shown this once.
type invitedBridge struct {
	Bridge         tenant.Bridge
	Linux, Windows string // what is to be pasted
	Until          countdown
	Watch          string
}

// countdown is what the template "countdown" shows.
type countdown struct{ Until, Now, Text string }

func (v *view) countdown(until time.Time) countdown {
	return countdown{until.UTC().Format(time.RFC3339), v.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"), v.words.Time(until, v.loc)}
}

func (v *view) inviteBridge() error {
	name := v.value("name")
	if name == "" {
		return v.refused(problem.Invalid("missing", "name", "is missing; say where the machine stands"), "bridge-new", name)
	}
	b, code, err := v.Tenants.Invite(v.ctx(), v.core, v.actor(), name)
	if err != nil {
		return v.refused(err, "bridge-new", name)
	}
	return v.showCode(b, relay.EnrolCommand(code, v.APIURL))
}

func (v *view) inviteBridgeAgain() error {
	b, code, err := v.Tenants.InviteAgain(v.ctx(), v.core, v.actor(), v.r.PathValue("bridge"))
	if err != nil {
		return err
	}
	return v.showCode(b, relay.EnrolCommand(code, v.APIURL))
}

// showCode shows a command with its code. It is the answer to the form itself: the code can
// be had but once, and must be in no address.
func (v *view) showCode(b tenant.Bridge, command string) error {
	path := bridgesPath + "/" + b.ID
	return v.show("bridge-code", invitedBridge{b, command, `.\` + command, v.countdown(b.CodeUntil(v.Now())), watch(path+"/enrolled", enrolment(b, v.Now()))})
}

// enrolment tells how far it is with a code: a machine has used it, its time is over, or neither.
func enrolment(b tenant.Bridge, now time.Time) string {
	return seenAs(b.EnrolledAt, !b.CodeUntil(now).IsZero())
}

// bridgeEnrolled answers the page with a code, until that was used or its time is over.
func (v *view) bridgeEnrolled() error {
	b, err := v.Tenants.Bridge(v.ctx(), v.tenant(), v.r.PathValue("bridge"))
	if err != nil {
		return err
	}
	done := "bridgeEnrolled"
	if v.value("seen") == seenAs(b.EnrolledAt, true) { // nobody has enrolled since
		done = "bridgeCodeOver"
	}
	return v.stillSo(enrolment(b, v.Now()), bridgesPath+"/"+b.ID+"?done="+done)
}

// recentlyRead is among how many unblocks those of a bridge are looked for.
const recentlyRead = 100

type bridgePage struct {
	Bridge bridgeSeen
	Live   Live
	Recent []unblock.Operation
}

func (v *view) livingBridge() (bridgeSeen, Live, error) {
	b, err := v.Tenants.Bridge(v.ctx(), v.tenant(), v.r.PathValue("bridge"))
	if err != nil {
		return bridgeSeen{}, Live{}, err
	}
	seen, err := v.bridgesSeen([]tenant.Bridge{b})
	if err != nil {
		return bridgeSeen{}, Live{}, err
	}
	l, err := v.live("bridge", "bridge-facts", seen[0], liveEvery, bridgesPath+"/"+b.ID+"/live")
	return seen[0], l, err
}

func (v *view) showBridge() error {
	var p bridgePage
	var g errgroup.Group
	g.Go(func() (err error) { p.Bridge, p.Live, err = v.livingBridge(); return err })
	if v.may(tenant.ListUnblocks) {
		g.Go(func() error {
			ops, _, err := v.Unblocks.List(v.ctx(), v.tenant(), "", "", recentlyRead)
			p.Recent = slices.DeleteFunc(ops, func(op unblock.Operation) bool { return op.Bridge != v.r.PathValue("bridge") })
			p.Recent = p.Recent[:min(len(p.Recent), 10)]
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return v.show("bridge", p)
}

func (v *view) liveBridge() error {
	_, l, err := v.livingBridge()
	if err != nil {
		return err
	}
	return v.stillLive("bridge", l)
}

func (v *view) revokeBridgePage() error {
	b, err := v.Tenants.Bridge(v.ctx(), v.tenant(), v.r.PathValue("bridge"))
	if err != nil {
		return err
	}
	if !b.RevokedAt.IsZero() {
		return v.goTo(bridgesPath + "/" + b.ID)
	}
	seen, err := v.bridgesSeen([]tenant.Bridge{b})
	if err != nil {
		return err
	}
	return v.show("bridge-revoke", seen[0])
}

func (v *view) revokeBridge() error {
	id := v.r.PathValue("bridge")
	connections, err := v.Tenants.Revoke(v.ctx(), v.core, v.actor(), id)
	if err != nil {
		return err
	}
	goodbye, err := relay.Encode(relay.Message{Goodbye: &relay.Goodbye{Code: relay.Revoked, Reason: "the bridge was revoked by an administrator"}})
	if err != nil {
		return fmt.Errorf("say goodbye to bridge %s: %w", id, err)
	}
	gateway.HangUp(v.ctx(), v.Connections, v.Log.With("requestId", audit.RequestID(v.ctx())), goodbye, connections...)
	return v.done(bridgesPath+"/"+id, words.Key("done.bridgeRevoked"))
}

// RecentName is what a card of a list is called, by its credential's id.
func (bridgePage) RecentName(credential string) string { return nameOf(credential) }
