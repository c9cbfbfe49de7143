package page_test

import (
	"fmt"
	"strings"

	"github.com/pinward/pinward/shared/intake"
)

// fillCards gives each page about cards something to show.
func (g *gallery) fillCards() {
	g.Helper()
	type o = map[string]any
	g.call("POST", "/v1/card-templates", o{"name": g.text("office"), "family": "GIDS", "masterKey": strings.Repeat("d41d8cd98f00b204", 4)})
	staff := g.call("POST", "/v1/card-templates", o{"name": g.text("template"), "family": "PIV", "pinValidDays": 100, "channels": []string{"operator", "windowsChallengeResponse"}})["id"].(string)
	var id string // the first of them by id, after the one that there is
	for i := range 60 {
		last := g.call("POST", "/v1/credentials", o{"family": "PIV", "cardId": fmt.Sprintf("FFFFFFFF%024X", 100-i), "template": staff, "label": g.text("label"), "serial": fmt.Sprintf("S-%d", i), "puk": "73915846"})
		id = last["id"].(string)
	}
	g.call("POST", "/v1/offline-answers", o{"credential": id, "channel": "windowsChallengeResponse", "statement": "called back on the number on record", "reason": "no bridge there"})
	run := g.call("POST", "/v1/sanity-check/runs", o{"templates": []string{staff}, "random": true, "beforeDays": 12, "afterDays": 12})["id"].(string)
	g.call("POST", "/v1/sanity-check/runs/"+run+"/start", nil)
	g.call("POST", "/v1/credentials/"+id+"/pin-changed", o{})
	for i := range 3 {
		g.call("POST", "/v1/credentials", o{"family": "PIV", "cardId": fmt.Sprintf("FFFFFFFF%024X", i+1000), "template": staff})
	}
	g.call("POST", "/v1/sanity-check/runs", o{"templates": []string{staff}})

	is := &intake.Imports{Kind: intake.Cards, Table: g.Credentials.Table, Credentials: g.Credentials, Users: g.Users, Audit: g.Credentials.Audit, Now: g.Credentials.Now, Rand: g.Credentials.Rand}
	core := g.core(acme)
	im, err := is.Create(g.Context(), core, platform, intake.Options{Kind: intake.Cards, Format: intake.CSV, Template: staff, DryRun: true})
	must(g, err)
	_, err = is.Part(g.Context(), core, platform, im.ID, 1, []byte("cardId,family,label\n"+strings.Repeat("E", 32)+",PIV,"+strings.ReplaceAll(strings.ReplaceAll(g.text("label"), "\"", ""), ",", "")+"\n12,PIV,wrong\n"))
	must(g, err)
}
