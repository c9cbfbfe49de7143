package delivery

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
	"golang.org/x/net/idna"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Endpoint is where a tenant takes webhooks. What is sent there is signed as Standard
// Webhooks 1.0.0 has it (https://www.standardwebhooks.com), with a secret of the endpoint's
// own that is shown once.
type Endpoint struct {
	ID        string // ULID
	Name      string // 1 to 100 characters
	URL       string // at most 2000 bytes
	On        bool
	Gone      bool // it was turned off because it answered 410
	RotatedAt time.Time
	CreatedAt time.Time
	Version   int64

	secrets []sealedSecret // newest first
}

// sealedSecret is a signing secret under the tenant's keys.
type sealedSecret struct {
	Sealed []byte    `json:"sealed"`         // 32 bytes
	Until  time.Time `json:"until,omitzero"` // of a former one: as long it signs too
}

const (
	maxURL       = 2000
	maxEndpoints = 100 // of a tenant
	maxSecrets   = 4   // that sign at the same time

	// MaxOverlap is how long a former secret may go on signing.
	MaxOverlap = 7 * 24 * time.Hour
)

// Subject is what the audit log calls an endpoint.
func Subject(id string) string { return "webhook/" + id }

// numeric is the last label of a host that some resolvers read as an IPv4 address
// ("0x7f.1", "2130706433").
var numeric = regexp.MustCompile(`^([0-9]+|0[xX][0-9a-fA-F]*)$`)

// Validate reports everything that is wrong with the endpoint. Whether its URL may be used
// in an installation is for checkURL.
func (e Endpoint) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(e.Name); n < 1 || n > 100 || !utf8.ValidString(e.Name) || strings.ContainsFunc(e.Name, unicode.IsControl) {
		vs.Add("name", "name", "must be 1 to 100 characters without control characters")
	}
	u, err := url.Parse(e.URL)
	switch {
	case len(e.URL) > maxURL:
		vs.Add("tooLong", "url", "is %d bytes, at most %d are allowed", len(e.URL), maxURL)
	case err != nil || u.Hostname() == "" || u.Opaque != "" || strings.ContainsFunc(e.URL, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) || !utf8.ValidString(e.URL):
		vs.Add("form", "url", "is not a URL such as https://example.org/hooks")
	default:
		if u.User != nil {
			vs.Add("userInfo", "url", "must not hold a user name or password")
		}
		if strings.Contains(e.URL, "#") {
			vs.Add("fragment", "url", "must not have a fragment (#...)")
		}
		if port := u.Port(); port != "" {
			if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
				vs.Add("port", "url", "has a port that is not 1 to 65535")
			}
		}
	}
	return vs.Err()
}

// checkURL refuses what an endpoint's URL must not be in this installation, as a violation
// of the field url.
func (ds *Deliveries) checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return problem.Invalid("form", "url", "is not a URL")
	}
	if u.Scheme != "https" && !(ds.Anywhere && u.Scheme == "http") {
		return problem.Invalid("scheme", "url", "must begin with https://")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		if !ds.Anywhere && !mail.Public(ip) {
			return problem.Invalid("notPublic", "url", "has an address that is not a public one")
		}
		return nil
	}
	if _, err := idna.Lookup.ToASCII(host); err != nil || numeric.MatchString(host[strings.LastIndex(host, ".")+1:]) {
		return problem.Invalid("host", "url", "has no valid host name")
	}
	if !ds.Anywhere && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
		return problem.Invalid("notPublic", "url", "names this machine")
	}
	return nil
}

// Endpoints returns the tenant's endpoints, oldest first.
func (ds *Deliveries) Endpoints(ctx context.Context, t table.TenantID) ([]Endpoint, error) {
	page, err := ds.Table.Query(ctx, table.Endpoints(t)) // maxEndpoints fit in a page
	if err != nil {
		return nil, fmt.Errorf("list webhook endpoints: %w", err)
	}
	es := make([]Endpoint, len(page.Items))
	for i, item := range page.Items {
		if es[i], err = decodeEndpoint(item); err != nil {
			return nil, err
		}
	}
	return es, nil
}

// Endpoint returns an endpoint by id.
func (ds *Deliveries) Endpoint(ctx context.Context, t table.TenantID, id string) (Endpoint, error) {
	item, err := ds.Table.Get(ctx, table.EndpointKey(t, id))
	if err != nil {
		return Endpoint{}, fmt.Errorf("load webhook endpoint: %w", err)
	}
	return decodeEndpoint(item)
}

// CreateEndpoint stores a new endpoint, of which Name, URL and On are taken, and returns it
// with its secret, which cannot be had again.
func (ds *Deliveries) CreateEndpoint(ctx context.Context, core tenant.Core, by audit.Actor, e Endpoint) (Endpoint, secret.Text, error) {
	all, err := ds.Endpoints(ctx, core.Tenant.ID)
	if err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	if len(all) >= maxEndpoints {
		return Endpoint{}, secret.Text{}, fmt.Errorf("%w: there are %d webhook endpoints, which is the most a tenant can have", problem.ErrState, len(all))
	}
	id, err := ds.newID()
	if err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	e = Endpoint{ID: id, Name: e.Name, URL: e.URL, On: e.On, CreatedAt: second(ds.Now())}
	if err := ds.checkEndpoint(e); err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	e, text, err := ds.rotated(core, e, 0)
	if err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	e, err = ds.storeEndpoint(ctx, core.Tenant.ID, by, e, "webhook.created", nil)
	return e, text, err
}

// ChangeEndpoint gives the endpoint of e's ID and Version e's Name, URL and On.
func (ds *Deliveries) ChangeEndpoint(ctx context.Context, core tenant.Core, by audit.Actor, e Endpoint) (Endpoint, error) {
	was, err := ds.Endpoint(ctx, core.Tenant.ID, e.ID)
	if err != nil {
		return Endpoint{}, err
	}
	if was.Version != e.Version {
		return Endpoint{}, fmt.Errorf("webhook endpoint: %w", problem.ErrConflict)
	}
	was.Name, was.URL, was.On = e.Name, e.URL, e.On
	was.Gone = was.Gone && !was.On
	if err := ds.checkEndpoint(was); err != nil {
		return Endpoint{}, err
	}
	return ds.storeEndpoint(ctx, core.Tenant.ID, by, was, "webhook.changed", map[string]string{"on": strconv.FormatBool(was.On)})
}

// RotateSecret gives an endpoint a new secret, and returns it. For the time of the overlap,
// up to MaxOverlap, the former ones sign too; with 0 they do not any more.
func (ds *Deliveries) RotateSecret(ctx context.Context, core tenant.Core, by audit.Actor, id string, overlap time.Duration) (Endpoint, secret.Text, error) {
	if overlap < 0 || overlap > MaxOverlap {
		return Endpoint{}, secret.Text{}, problem.Invalid("range", "overlapHours", "must be 0 to %d", int(MaxOverlap.Hours()))
	}
	e, err := ds.Endpoint(ctx, core.Tenant.ID, id)
	if err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	e, text, err := ds.rotated(core, e, overlap)
	if err != nil {
		return Endpoint{}, secret.Text{}, err
	}
	e, err = ds.storeEndpoint(ctx, core.Tenant.ID, by, e, "webhook.secretRotated", map[string]string{"overlap": overlap.String()})
	return e, text, err
}

// DeleteEndpoint deletes an endpoint. What is still to be sent there is given up when it
// is due. checks are further conditions of the write.
func (ds *Deliveries) DeleteEndpoint(ctx context.Context, core tenant.Core, by audit.Actor, id string, checks ...table.Op) error {
	t := core.Tenant.ID
	e, err := ds.Endpoint(ctx, t, id)
	if err != nil {
		return err
	}
	err = ds.Table.Write(ctx, append([]table.Op{table.Delete(table.EndpointKey(t, e.ID), table.IfVersion(e.Version)),
		ds.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "webhook.deleted", Subject: Subject(e.ID), Outcome: audit.Done})}, checks...)...)
	if err != nil {
		return fmt.Errorf("delete webhook endpoint: %w", err)
	}
	return nil
}

func (ds *Deliveries) checkEndpoint(e Endpoint) error {
	if err := e.Validate(); err != nil {
		return err
	}
	return ds.checkURL(e.URL)
}

func (ds *Deliveries) storeEndpoint(ctx context.Context, t table.TenantID, by audit.Actor, e Endpoint, action string, details map[string]string) (Endpoint, error) {
	err := ds.Table.Write(ctx, table.Put(endpointRecord{t, e}, table.After(e.Version)),
		ds.Audit.Op(ctx, t, audit.Record{Actor: by, Action: action, Subject: Subject(e.ID), Outcome: audit.Done, Details: details}))
	if err != nil {
		return Endpoint{}, fmt.Errorf("%s: %w", action, err)
	}
	e.Version++
	return e, nil
}

// secretPrefix begins the secrets of Standard Webhooks.
const secretPrefix = "whsec_"

func secretPurpose(t table.TenantID, endpoint string) string {
	return "delivery/webhook-secret|" + string(t) + "|" + endpoint
}

// rotated returns the endpoint with a new secret, in which the former ones sign for the
// time of the overlap, and none for longer than it would have.
func (ds *Deliveries) rotated(core tenant.Core, e Endpoint, overlap time.Duration) (Endpoint, secret.Text, error) {
	var key [32]byte
	defer clear(key[:])
	if _, err := io.ReadFull(ds.Rand, key[:]); err != nil {
		return e, secret.Text{}, fmt.Errorf("make a webhook secret: %w", err)
	}
	sealed, err := core.Keys.Seal(secretPurpose(core.Tenant.ID, e.ID), key[:])
	if err != nil {
		return e, secret.Text{}, fmt.Errorf("seal a webhook secret: %w", err)
	}
	now := second(ds.Now())
	secrets := []sealedSecret{{Sealed: sealed}}
	for _, s := range e.usable(now) {
		if until := now.Add(overlap); s.Until.IsZero() || s.Until.After(until) {
			s.Until = until
		}
		if now.Before(s.Until) {
			secrets = append(secrets, s)
		}
	}
	if len(secrets) > maxSecrets {
		return e, secret.Text{}, fmt.Errorf("%w: %d secrets sign already; wait until %s, or rotate without overlap", problem.ErrState,
			maxSecrets, secrets[maxSecrets].Until.Format(time.RFC3339))
	}
	e.secrets, e.RotatedAt = secrets, now
	return e, secret.New(secretPrefix + base64.StdEncoding.EncodeToString(key[:])), nil
}

// usable are the secrets that sign at a time.
func (e Endpoint) usable(now time.Time) (secrets []sealedSecret) {
	for _, s := range e.secrets {
		if s.Until.IsZero() || now.Before(s.Until) {
			secrets = append(secrets, s)
		}
	}
	return secrets
}

// FormerUntil is how long former secrets go on signing; zero if they do not.
func (e Endpoint) FormerUntil(now time.Time) (until time.Time) {
	for _, s := range e.usable(now) {
		if s.Until.After(until) {
			until = s.Until
		}
	}
	return until
}

func (ds *Deliveries) newID() (string, error) {
	id, err := ulid.New(ulid.Timestamp(ds.Now()), ds.Rand)
	if err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return id.String(), nil
}

// endpointRecord is an Endpoint as stored.
type endpointRecord struct {
	tenant table.TenantID
	Endpoint
}

type storedEndpoint struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	URL       string         `json:"url"`
	On        bool           `json:"on"`
	Gone      bool           `json:"gone,omitempty"`
	RotatedAt time.Time      `json:"rotatedAt"`
	CreatedAt time.Time      `json:"createdAt"`
	Secrets   []sealedSecret `json:"secrets"`
}

// Validate implements table.Record.
func (r endpointRecord) Validate() error {
	if len(r.secrets) == 0 {
		return errors.New("a webhook endpoint without a secret")
	}
	return r.Endpoint.Validate()
}

// Item implements table.Record.
func (r endpointRecord) Item() (table.Item, error) {
	e := r.Endpoint
	data, err := json.Marshal(storedEndpoint{e.ID, e.Name, e.URL, e.On, e.Gone, e.RotatedAt, e.CreatedAt, e.secrets})
	return table.Item{Key: table.EndpointKey(r.tenant, e.ID), Data: data}, err
}

func decodeEndpoint(item table.Item) (Endpoint, error) {
	var s storedEndpoint
	if err := item.Decode(&s); err != nil {
		return Endpoint{}, err
	}
	return Endpoint{s.ID, s.Name, s.URL, s.On, s.Gone, s.RotatedAt, s.CreatedAt, item.Version, s.Secrets}, nil
}
