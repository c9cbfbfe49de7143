package page_test

import (
	"crypto/rand"
	"fmt"
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

var largeGroup = regexp.MustCompile(`<span class="large mono">([^<]+)</span>`)

// groups are what the page shows large.
func (p *answer) groups() string {
	var groups []string
	for _, m := range largeGroup.FindAllStringSubmatch(p.body, -1) {
		groups = append(groups, html.UnescapeString(m[1]))
	}
	return strings.Join(groups, " ")
}

// read is what a bridge shows to be read out.
func (n *counter) read(at time.Time) string {
	n.Helper()
	private, err := n.Tenants.OfflineKey(n.Context(), n.Core)
	n.Must(err)
	key, err := offline.NewKey(n.b.Sealing, private.PublicKey().Bytes(), offline.Binding{Tenant: string(desk.Acme), Bridge: n.b.ID, Credential: n.cred.ID})
	n.Must(err)
	c, err := key.Challenge(rand.Reader, at, offline.Report{})
	n.Must(err)
	return c.String()
}

func TestFindACard(t *testing.T) {
	n := newCounter(t, false)
	c := n.f.signedIn(tenant.RoleHelpdesk)
	u, err := n.Users.Get(t.Context(), desk.Acme, n.Holder.ID)
	n.Must(err)
	_, err = n.Users.Update(t.Context(), n.Core, desk.Admin, u.ID, u.Version, func(p *user.Profile) { p.DisplayName = "Ada Lovelace" }, nil)
	n.Must(err)
	c.get("/console/help-desk").want(200).has("Find the card", "At most 5 answers an hour are given for a card.")
	id := strings.ToLower(n.cred.CardID)
	for search, want := range map[string]string{
		"ada": "", "AD": "", "Ada's": "", "lovelace": "", "Lovelace Ada": "", id[:6]: "", "piv-" + id: "", id[:4] + " " + id[4:8]: "",
		"nobody": "No card was found", id[:3] + "z": "No card was found", strings.Repeat("x", 201): "is too long",
	} {
		p := c.get("/console/help-desk?" + url.Values{"search": {search}}.Encode())
		if want != "" {
			p.has(want)
		} else if p.want(200).has("1 card was found", "Ada Lovelace", "Ada's card"); !strings.Contains(p.body, `"/console/help-desk/cards/`+n.cred.ID+`"`) {
			t.Errorf("%q does not find the card", search)
		}
	}
}

// A challenge that is read out from a bridge: misheard, understood, read back, answered once.
func TestAnswerABridgesChallenge(t *testing.T) {
	n := newCounter(t, false)
	c := n.f.signedIn(tenant.RoleHelpdesk)
	path := "/console/help-desk/cards/" + n.cred.ID
	read := n.read(n.Clock.Now())
	groups := strings.Fields(read)
	p := c.get(path).want(200).has("Where does the person see it?", "ada", "Only an operator may tell that")
	ask := func(changes ...string) *answer {
		return p.submit(path+"/challenge", append([]string{"channel", "selfServiceOffline", "statement", statement}, changes...)...)
	}
	misheard := []byte(groups[1])
	misheard[2] = '0' + (misheard[2]-'0'+1)%10
	wrong := ask("challenge", strings.Join([]string{groups[0], string(misheard), strings.Join(groups[2:], " ")}, " ")).want(422)
	wrong.has("Challenge: group 2 was misheard, or is not in its place", groups[0]+" fits", string(misheard)+" does not fit", statement)
	if !strings.Contains(wrong.body, `href="#challenge"`) || !strings.Contains(wrong.body, string(misheard)) {
		t.Error("the fault does not lead to the field, or what was typed is gone")
	}
	ask("challenge", groups[0]).want(422).has("has 6 digits, must have")
	ask("challenge", "12x").want(422).has("'x' at place 3 of group 1 is no digit")
	ask("challenge", read, "statement", "").want(422).has("must say how the person was identified")

	typed := strings.NewReplacer("0", "O", "1", "l").Replace(strings.ReplaceAll(read, " ", "-"))
	back := ask("challenge", typed).want(200).has("Read it back to the person", "desk 2", statement)
	if back.groups() != read {
		t.Errorf("%s was understood as %s", typed, back.groups())
	}
	back.submit(path).want(200).has("Check the challenge").has(statement) // corrected, with what was typed
	shown := back.submit(path+"/answer").want(200).has("Read this answer out", "have each group read back", "In German", "kept nowhere", "It is shown for")
	response := shown.groups()
	if len(response) < 12 || shown.header.Get("Cache-Control") != "no-store" || !strings.Contains(shown.body, "data-forget") || strings.Contains(shown.path, strings.Fields(response)[0]) {
		t.Errorf("the answer is %q at %s", response, shown.path)
	}
	spoken := offline.Spoken(offline.German, strings.Fields(response)[0])
	shown.has(spoken, offline.Spoken(offline.English, strings.Fields(response)[0]))
	n.Secret("response", response)
	n.Secret("response's group", strings.Fields(response)[1])
	back.submit(path + "/answer").want(409).has("This challenge was answered already; have that answer shown again")

	card := c.get(path).want(200).has("Bridge, offline", "given").hasNot(response)
	link := regexp.MustCompile(`/console/help-desk/answers/\w+`).FindString(card.body)
	given := c.get(link).want(200).has("The answer was given", "found out by itself", statement, "Show the answer again").hasNot(response, strings.Fields(response)[0])
	if to := c.asks(given); to != "" {
		t.Errorf("nothing has changed, and it goes to %s", to)
	}
	if again := given.submit(link + "/response").want(200); again.groups() != response {
		t.Errorf("shown again: %s, and before %s", again.groups(), response)
	}
	other := n.f.signedIn(tenant.RoleOperator)
	other.get(link).want(200).hasNot("Show the answer")
	other.post(link+"/response", url.Values{}).want(404)
	n.f.signedIn(tenant.RoleAuditor).get(link).want(404)
	if csv := c.get(path + "?format=csv").want(200); !strings.Contains(csv.body, statement) || strings.Contains(csv.body, response) {
		t.Errorf("the file: %s", csv.body)
	}
	n.Clock.Pass(31 * time.Minute)
	c = n.f.signIn(desk.Acme, c.person)
	c.get(link).want(200).hasNot("Show the answer again")
	c.post(link+"/response", url.Values{}).want(409).has("It is over; let the person begin anew.")
	n.Search()
	if sent := n.sent.all(); strings.Contains(string(sent), response) {
		t.Error("the answer came back")
	}
}

// A challenge whose day is another is answered by who says that it is on the screen now.
func TestAnswerChallengeOfAnotherDay(t *testing.T) {
	n := newCounter(t, false)
	c := n.f.signedIn(tenant.RoleOperator)
	path := "/console/help-desk/cards/" + n.cred.ID
	p := c.get(path).want(200).hasNot("anyDay")
	late := p.submit(path+"/challenge", "challenge", n.read(n.Clock.Now().Add(-120*time.Hour)), "statement", statement).want(422).has("5 days old", "The person has this challenge on the screen now").hasNot("say so by")
	late.submit(path+"/challenge", "anyDay", "on").want(200).has("Read it back").submit(path + "/answer").want(200).has("Read this answer out")
}

func TestAnswerAtWindowsScreen(t *testing.T) {
	d := newCounter(t, false)
	_, cred := d.Issue(softcard.GIDS)
	c := d.f.signedIn(tenant.RoleHelpdesk)
	path := "/console/help-desk/cards/" + cred.ID
	p := c.get(path).want(200).has("At Windows' own logon screen: 16 or 32 digits")
	ask := func(challenge string) *answer {
		return p.submit(path+"/challenge", "channel", "windowsChallengeResponse", "statement", statement, "challenge", challenge)
	}
	ask("BF09 E22D E553").want(422).has("has 12 hex digits, must have 16 or 32")
	ask("BF09 S22D E553 55F6").want(422).has("'S' at place 1 of group 2 is no hex digit: ask whether it is 5, 8 or F")
	back := ask("bf o9-e22d E553 55F6").want(200).has("Some characters were taken for others", "In group 1, place 3: o was taken for 0.", "Bravo Foxtrot zero nine")
	shown := back.submit(path + "/answer").want(200)
	if len(shown.groups()) != 19 {
		t.Errorf("the answer is %q", shown.groups())
	}
}

// Who has not shown lately who they are is asked before an answer is shown; what they have
// typed is kept.
func TestAnswerAsksWhoYouAre(t *testing.T) {
	f := newFixture(t)
	core := f.core(acme)
	family, err := card.FamilyNamed("GIDS")
	must(t, err)
	template, err := f.Credentials.CreateTemplate(t.Context(), core, platform, credential.Template{Name: "Tokens", Family: "GIDS", Policy: family.Policy(), Channels: []credential.Channel{credential.WindowsChallengeResponse}}, nil)
	must(t, err)
	key := secret.New(desk.AdminKey)
	cred, err := f.Credentials.Register(t.Context(), core, platform, credential.New{Family: "GIDS", CardID: "00112233445566778899AABBCCDDEEFF", Template: template.ID, AdminKey: &key})
	must(t, err)
	c := f.signedIn(tenant.RoleHelpdesk)
	f.clock.advance(16 * time.Minute)
	path := "/console/help-desk/cards/" + cred.ID
	back := c.get(path).want(200).submit(path+"/challenge", "challenge", "BF09 E22D E553 55F6", "statement", statement).want(200)
	asked := back.submit(path + "/answer").want(401).hasNot("Read this answer out")
	code := codeInMail.FindString(f.lastMail(c.person.Mail))
	asked.submit(path+"/answer", "secret.confirm", code).want(200).has("Read this answer out", statement)
}

// A PUK is told by operators only, of whom two are needed.
func TestTellAPUK(t *testing.T) {
	n := newCounter(t, false)
	path := "/console/help-desk/cards/" + n.cred.ID
	helpdesk, first, second := n.f.signedIn(tenant.RoleHelpdesk), n.f.signedIn(tenant.RoleOperator), n.f.signedIn(tenant.RoleOperator)
	puk := url.Values{"channel": {"windowsChallengeResponse"}, "statement": {statement}, "reason": {"abroad"}}
	helpdesk.get(path).want(200).has("pass the call on").hasNot("Why the PUK is told")
	helpdesk.post(path+"/challenge", puk).want(404)
	helpdesk.post(path+"/answer", puk).want(404)

	first.get(path).want(200).has("Tell the card's PUK", "Tell the PUK instead")
	form := first.get(path + "?channel=windowsChallengeResponse").want(200).has("knows it until Pinward has changed it").hasNot(`name="challenge"`)
	form.submit(path+"/challenge", "reason", "abroad").want(422).has("must say how the person was identified")
	first.post(path+"/challenge", url.Values{"channel": {"windowsChallengeResponse"}, "statement": {statement}}).want(422).has("Why the PUK is told", "must say why")
	back := first.post(path+"/challenge", puk).want(200).has("Ask for the card's PUK?", "another operator has to approve it")
	asked := back.submit(path+"/answer").want(200).has("It was asked for.", "Waiting for an approval").hasNot("Approve this answer", "Show the answer")
	link, _, _ := strings.Cut(asked.path, "?")
	first.post(link+"/approve", url.Values{}).want(404)
	helpdesk.get(link).want(200).hasNot("Approve this answer")
	helpdesk.post(link+"/approve", url.Values{}).want(404)
	first.post(link+"/response", url.Values{}).want(409).has("Another operator has to approve it first.")
	second.get(link).want(200).has(statement, "abroad").submit(link + "/approve").want(200).has("You have approved it.")
	if to := first.asks(asked); to != link {
		t.Errorf("it is approved, and it goes to %q", to)
	}
	shown := first.get(link).want(200).submit(link+"/response").want(200).has("Read this PUK out", "changes the PUK when the card is next")
	if shown.groups() != offline.Hex([]byte(desk.FirstPUK)) {
		t.Errorf("the PUK is %q", shown.groups())
	}
	n.Search()
}

// Limits are told plainly.
func TestTooManyAnswers(t *testing.T) {
	n := newCounter(t, false)
	_, cred := n.Issue(softcard.GIDS)
	c := n.f.signedIn(tenant.RoleHelpdesk)
	path := "/console/help-desk/cards/" + cred.ID
	p := c.get(path)
	for i := range unblock.AnswersPerCard + 1 {
		got := p.submit(path+"/challenge", "channel", "windowsChallengeResponse", "challenge", fmt.Sprintf("%016X", i), "statement", statement).want(200).submit(path + "/answer")
		if i < unblock.AnswersPerCard {
			got.want(200)
		} else {
			got.want(429).has("As many answers as may be in an hour were given out for this card. Try again after", statement)
		}
	}
}
