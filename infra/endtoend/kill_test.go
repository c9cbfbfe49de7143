//go:build linux && cgo && !nopcsc

package endtoend

import (
	"cmp"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
)

// killRounds is how many rounds TestKillRounds has for each card, unless KILL_ROUNDS says
// so. The programs are built without the race detector.
var killRounds = testserver.Rounds(35, 5)

// TestKillRounds kills bridge, cloud and pcscd, one, two or all of them, at random moments
// of an unblock, starts them again, and has the unblock made until it succeeds. After every
// round the card works, its PUK is known, and nothing that an operation says of itself is
// false. KILL_SEED repeats the choices, if not the moments.
func TestKillRounds(t *testing.T) {
	rounds := int(number(t, "KILL_ROUNDS", uint64(killRounds)))
	seed := number(t, "KILL_SEED", uint64(time.Now().UnixNano()))
	for i, profile := range softcard.Profiles {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			t.Logf("KILL_SEED=%d KILL_ROUNDS=%d", seed, rounds)
			k := newKiller(t, profile, rand.New(rand.NewPCG(seed, uint64(i))))
			for n := range rounds {
				k.round(n)
			}
			t.Log(k.String())
			secrets, puk := k.watcher.known()
			secrets = secrets[max(0, len(secrets)-50):] // to look for more takes too long
			for _, id := range slices.Sorted(maps.Keys(k.pins))[max(0, len(k.pins)-50):] {
				secrets = append(secrets, k.pins[id])
			}
			if profile != softcard.GIDS && !k.card.PUKIs(puk) {
				t.Error("what the card was sent does not tell its PUK: this test is wrong")
			}
			k.keepsSecret(secrets...)
		})
	}
}

// number is a number that the environment may set.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

type killer struct {
	*installation
	rand    *rand.Rand
	card    *softcard.Card
	watcher *watcher
	cred    string
	hasPUK  bool
	span    time.Duration // of an unblock that nothing disturbs

	pins    map[string]string // by operation
	checked map[string]bool   // operations of former rounds
	newest  string            // operation that has succeeded
	kills   map[string]int    // by program
	ends    map[string]int    // operations, by what came of them
	doubts  int               // operations that were seen as unknown
	unknown int               // of them, those that were so for good
	most    int               // presentations of a wrong PUK in a round
	retries int               // unblocks after the first of a round
	slowest time.Duration     // from the first kill to the success
}

// newKiller installs everything. The card is as slow as a chip, so that a kill is likely to
// come while a command is under way.
func newKiller(t *testing.T, profile softcard.Profile, random *rand.Rand) *killer {
	k := &killer{installation: install(t), rand: random, hasPUK: profile != softcard.GIDS,
		pins: map[string]string{}, checked: map[string]bool{}, kills: map[string]int{}, ends: map[string]int{}}
	var id []byte
	k.card, id = newCard(t, softcard.Config{Profile: profile})
	k.watcher = watch(k.card, softcard.FactoryPUK)
	family, known := "PIV", object{"puk": softcard.FactoryPUK}
	if !k.hasPUK {
		family, known = "GIDS", object{"adminKey": hex.EncodeToString(softcard.FactoryAdminKey)}
	}
	k.cred = k.register(family, id, k.template(family, ""), known)
	k.pcscd.Insert(0, k.card)
	k.seen(k.cred)
	slow(k.card, chipTime)
	k.span = patience
	for range 3 {
		began := time.Now()
		k.final()
		k.span = min(k.span, time.Since(began))
	}
	return k
}

// newPIN is one that no operation has yet, and that the policy lets through.
func (k *killer) newPIN() string {
	for {
		b := make([]byte, 8)
		_, _ = crand.Read(b) // never fails
		distinct := map[byte]bool{}
		for i := range b {
			b[i] = '0' + b[i]%10
			distinct[b[i]] = true
		}
		if pin := string(b); len(distinct) > 5 && !slices.Contains(slices.Collect(maps.Values(k.pins)), pin) {
			return pin
		}
	}
}

// round is one unblock, disturbed by kills.
func (k *killer) round(n int) {
	k.Helper()
	wrongBefore, _ := k.watcher.counts()
	blocked := k.rand.IntN(2) == 0
	if blocked {
		k.card.Inject()
		block(k, k.card) // nobody else speaks to it between rounds
	}
	slow(k.card, chipTime)
	waves := []wave{k.wave(k.span)}
	for k.rand.IntN(3) == 0 { // and again, while what the first has left is found out
		waves = append(waves, k.wave(time.Second))
	}
	k.Logf("round %d: blocked %t, kills %v", n, blocked, waves)

	done := make(chan operation, 1)
	began := time.Now()
	go func() { done <- k.insist(k.newest) }()
	kills := 0
	for _, w := range waves {
		k.strike(w)
		kills += len(w)
	}
	var op operation
	select {
	case op = <-done:
	case <-time.After(3 * patience):
	}
	k.slowest = max(k.slowest, time.Since(began))
	if op.State == "" {
		k.Fatalf("round %d: no unblock succeeds; the bridge:\n%s\n%s", n, k.logOf("bridge"), k.list())
	}
	if !k.card.PINIs(k.pins[op.ID]) {
		k.Errorf("round %d: the card does not have the PIN of %v", n, op)
	}
	if !k.bridge.alive() || !k.cloud.alive() {
		k.Errorf("round %d: bridge or cloud have ended by themselves", n)
	}
	// That the product has the card's PUK it proves by using it.
	k.newest = op.ID
	k.final()
	k.claims(n)
	wrong, worst := k.watcher.counts()
	k.most = max(k.most, wrong-wrongBefore)
	if wrong-wrongBefore > kills {
		k.Errorf("round %d: %d wrong PUKs were presented after %d kills", n, wrong-wrongBefore, kills)
	}
	state := k.card.Inspect()
	if k.hasPUK && worst >= state.PUKMost {
		k.Errorf("round %d: %d wrong PUKs one after the other", n, worst)
	}
	if state.PUKTries != state.PUKMost || state.PINTries != state.PINMost {
		k.Errorf("round %d: tries left are %d of %d for the PIN, %d of %d for the PUK", n, state.PINTries, state.PINMost, state.PUKTries, state.PUKMost)
	}
}

// wave are kills, in their order, before all that were killed are started again.
type wave []kill

type kill struct {
	program string
	at      time.Duration // from the wave's begin
}

// wave kills one, two or all of the programs, at moments within the span.
func (k *killer) wave(span time.Duration) wave {
	programs := []string{"bridge", "cloud", "pcscd"}
	k.rand.Shuffle(len(programs), func(i, j int) { programs[i], programs[j] = programs[j], programs[i] })
	var w wave
	for _, p := range programs[:1+k.rand.IntN(len(programs))] {
		w = append(w, kill{p, time.Duration(k.rand.Int64N(int64(span)))})
	}
	slices.SortFunc(w, func(a, b kill) int { return cmp.Compare(a.at, b.at) })
	return w
}

// String implements fmt.Stringer.
func (k kill) String() string { return fmt.Sprintf("%s %v", k.program, k.at.Round(time.Millisecond)) }

// strike kills, and starts again.
func (k *killer) strike(w wave) {
	k.Helper()
	began := time.Now()
	for _, kill := range w {
		time.Sleep(time.Until(began.Add(kill.at)))
		k.kills[kill.program]++
		switch kill.program {
		case "bridge":
			k.bridge.kill()
		case "cloud":
			k.cloud.kill()
		case "pcscd":
			k.pcscd.Kill()
		}
	}
	for _, at := range k.rand.Perm(len(w)) {
		switch w[at].program {
		case "bridge":
			k.startBridge()
		case "cloud":
			k.startCloud()
		case "pcscd":
			k.pcscd.Run()
		}
	}
}

// final is an unblock that nothing disturbs, once bridge and card are there again. It must
// change the PUK too.
func (k *killer) final() {
	k.Helper()
	op := k.insist(k.newest)
	if op.State != "succeeded" || op.Reason != "" || k.hasPUK && op.Outcome.PUK != "yes" || !k.card.PINIs(k.pins[op.ID]) {
		k.Fatalf("undisturbed: %v: %s; the bridge:\n%s\n%s", op, op.Sentence, k.logOf("bridge"), k.list())
	}
	k.newest = op.ID
}

// insist has an unblock made after the one given until one succeeds, whatever happens, and
// returns that. It does what a patient person would: goes on with what is under way, waits,
// and starts again.
func (k *killer) insist(after string) operation {
	starts := 0
	waited := map[string]time.Time{} // until when, for an operation in doubt
	for began := time.Now(); time.Since(began) < 2*patience; time.Sleep(10 * time.Millisecond) {
		ops, ok := k.operations()
		if !ok {
			continue
		}
		if at := slices.IndexFunc(ops, func(op operation) bool { return !op.finished() }); at >= 0 {
			k.goOn(ops[at].ID)
			continue
		}
		at := slices.IndexFunc(ops, func(op operation) bool { return op.Kind == "unblock" && op.ID > after })
		if at >= 0 {
			op := ops[at]
			if op.State == "succeeded" || op.State == "reconciled" && op.Outcome.PIN == "yes" {
				return op
			}
			if op.State == "unknown" {
				if waited[op.ID].IsZero() {
					// Not everybody waits until it is found out.
					waited[op.ID] = time.Now().Add(time.Duration(k.doubts%2) * 3 * time.Second)
					k.doubts++
				}
				if time.Now().Before(waited[op.ID]) {
					continue
				}
			}
		}
		if op, status, err := k.begin(k.cred); err == nil && status == 201 {
			if starts++; starts > 1 {
				k.retries++
			}
			k.pins[op.ID] = k.newPIN()
			_, _, _ = k.givePIN(op, k.pins[op.ID])
		}
	}
	return operation{}
}

// goOn gives an operation the PIN that it waits for: its beginning, or its PIN, was lost.
func (k *killer) goOn(id string) {
	op, status, err := k.look(id)
	if err != nil || status != 200 || op.State != "proven" || op.Next.Do != "pin" {
		return
	}
	if k.pins[id] == "" {
		k.pins[id] = k.newPIN()
	}
	_, _, _ = k.givePIN(op, k.pins[id])
}

// operations returns those of the card, newest first, and false if the cloud does not
// answer.
func (k *killer) operations() ([]operation, bool) {
	status, answer, err := k.try("GET", "/v1/unblocks?limit=100&credential="+k.cred, nil)
	var list struct{ Items []operation }
	if err != nil || status != 200 {
		return nil, false
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		k.Errorf("list of unblocks: %v: %s", err, answer)
	}
	return list.Items, true
}

// list is for reading.
func (k *killer) list() string {
	var b strings.Builder
	ops, _ := k.operations()
	for _, op := range ops[:min(len(ops), 12)] {
		set, _ := k.watcher.was(k.pins[op.ID])
		fmt.Fprintf(&b, "%v, its PIN was set %t\n", op, set)
	}
	return b.String()
}

// claims holds what the operations of a round say against what the card was sent.
func (k *killer) claims(n int) {
	k.Helper()
	ops, ok := k.operations()
	if !ok {
		k.Fatal("no list of unblocks")
	}
	for _, op := range ops {
		if k.checked[op.ID] {
			continue
		}
		k.checked[op.ID] = true
		if !op.finished() {
			k.Errorf("round %d: %v is not over", n, op)
		}
		if op.Kind != "unblock" {
			k.ends[op.Kind+" "+op.State+" "+op.Reason]++
			continue
		}
		k.ends[op.State+" "+op.Reason+" PIN "+op.Outcome.PIN]++
		pin := k.pins[op.ID]
		set, rotated := k.watcher.was(pin)
		set, rotated = set && pin != "", rotated && pin != ""
		says := op.Outcome.PIN
		if op.State == "failed" && says == "" && op.Reason != "overtaken" {
			says = "no"
		}
		if says == "yes" && !set || says == "no" && set || op.State == "succeeded" && says != "yes" {
			k.Errorf("round %d: %v (%s), but that the PIN was set is %t", n, op, op.Sentence, set)
		}
		if puk := op.Outcome.PUK; puk == "yes" && !rotated || puk == "no" && rotated {
			k.Errorf("round %d: %v, but that the PUK was changed is %t", n, op, rotated)
		}
		if op.State == "unknown" {
			k.unknown++
		}
	}
}

func (k *killer) String() string {
	var b strings.Builder
	total := 0
	for _, n := range k.kills {
		total += n
	}
	wrong, worst := k.watcher.counts()
	fmt.Fprintf(&b, "%d kills %v, %d retries, %d wrong PUKs presented, at most %d in a round and %d one after the other, slowest %v, undisturbed %v\n",
		total, k.kills, k.retries, wrong, k.most, worst, k.slowest.Round(time.Millisecond), k.span.Round(time.Millisecond))
	fmt.Fprintf(&b, "seen as unknown: %d, for good: %d\n", k.doubts, k.unknown)
	for _, end := range slices.Sorted(maps.Keys(k.ends)) {
		fmt.Fprintf(&b, "%5d %s\n", k.ends[end], end)
	}
	return b.String()
}
