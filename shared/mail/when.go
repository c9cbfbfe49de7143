package mail

import (
	"fmt"
	"strings"
	"time"

	"github.com/goodsign/monday"
	"golang.org/x/text/language"
)

// style is how a language writes a date and a time of day. The names of days
// and months are monday's; its own layouts are not used, because some of them
// are wrong (its Korean one always says Monday).
type style struct {
	tag         language.Tag
	names       monday.Locale
	date, clock string // Go layouts
	join        string
}

// styles are the languages whose monday names are right in a date. Others, such
// as Czech and Croatian, lack the genitive and get English. The first is the
// fallback.
var styles = []style{
	{language.English, monday.LocaleEnGB, "Monday, 2 January 2006", "15:04", " at "},
	{language.AmericanEnglish, monday.LocaleEnUS, "Monday, January 2, 2006", "3:04 PM", " at "},
	{language.German, monday.LocaleDeDE, "Monday, 2. January 2006", "15:04 Uhr", " um "},
	{language.French, monday.LocaleFrFR, "Monday 2 January 2006", "15:04", " à "},
	{language.Spanish, monday.LocaleEsES, "Monday, 2 de January de 2006", "15:04", ", "},
	{language.Italian, monday.LocaleItIT, "Monday 2 January 2006", "15:04", " alle ore "},
	{language.Dutch, monday.LocaleNlNL, "Monday 2 January 2006", "15:04", " om "},
	{language.Portuguese, monday.LocalePtBR, "Monday, 2 de January de 2006", "15:04", ", "},
	{language.Swedish, monday.LocaleSvSE, "Monday 2 January 2006", "15:04", " kl. "},
	{language.Danish, monday.LocaleDaDK, "Monday den 2. January 2006", "15.04", " kl. "},
	{language.MustParse("nb"), monday.LocaleNbNO, "Monday 2. January 2006", "15:04", " kl. "},
	{language.Finnish, monday.LocaleFiFI, "Monday 2. January 2006", "15.04", " klo "},
	{language.Japanese, monday.LocaleJaJP, "2006年1月2日 Monday", "15:04", " "},
	{language.Chinese, monday.LocaleZhCN, "2006年1月2日 Monday", "15:04", " "},
	{language.Korean, monday.LocaleKoKR, "2006년 1월 2일 Monday", "15:04", " "},
}

var styleMatcher = func() language.Matcher {
	tags := make([]language.Tag, len(styles))
	for i, s := range styles {
		tags[i] = s.tag
	}
	return language.NewMatcher(tags)
}()

// FormatTime writes a time for people in a zone and in the language of a BCP 47
// tag, to the minute, with the zone: "Saturday, 21 November 2026 at 14:00 CET".
// Languages it does not know are written in English; a nil zone is UTC.
func FormatTime(t time.Time, zone *time.Location, tag string) string {
	if zone == nil {
		zone = time.UTC
	}
	t = t.In(zone)
	_, i := language.MatchStrings(styleMatcher, tag)
	s := styles[i]
	return monday.Format(t, s.date, s.names) + s.join + t.Format(s.clock) + " " + zoneName(t, s.tag)
}

func zoneName(t time.Time, tag language.Tag) string {
	name, offset := t.Zone()
	if name == "" || strings.ContainsAny(name[:1], "+-") { // a zone without letters of its own
		return fmt.Sprintf("UTC%+03d:%02d", offset/3600, max(offset, -offset)/60%60)
	}
	if german, ok := map[string]string{"CET": "MEZ", "CEST": "MESZ"}[name]; ok && tag == language.German {
		return german
	}
	return name
}
