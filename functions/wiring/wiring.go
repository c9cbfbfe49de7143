// Package wiring puts the parts together, for the Lambda functions and for one
// machine alike: what they share is what they run.
package wiring

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/sesv2"
	"github.com/oklog/ulid/v2"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/console/page"
	"github.com/pinward/pinward/functions/relay/line"
	"github.com/pinward/pinward/functions/sweep/due"
	"github.com/pinward/pinward/functions/trigger/inbox"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/federation"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/dynamo"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

// Parts are what an installation is made of.
type Parts struct {
	Table           table.Table
	Root            tink.AEADWithContext
	Senders         mail.Senders
	Now             func() time.Time
	Log             *slog.Logger
	PlatformKeyHash string
	Rate            rest.Rate
	Connections     gateway.Connections // to bridges
	RelayURL        string              // that they connect to
	ConsoleURL      string              // where the pages are, "https://..."; without it nobody is mailed a sign-in
	APIURL          string              // where the API is, at which bridges enrol; only the pages name it
	SignInTime      time.Duration       // that an answer to who asks to sign in takes; 0 is as long as it takes
	WebhooksTo      WebhooksTo

	ProvidersAnywhere bool // where people sign in may be in the installation's own network, and without TLS
}

// WebhooksTo is where webhooks may go. Its zero value is public addresses, by TLS that the
// system's authorities vouch for.
type WebhooksTo struct {
	Anywhere bool // this machine and its network too, and without TLS
	RootCAs  *x509.CertPool
}

// System is an installation at work.
type System struct {
	Parts
	Audit       audit.Log
	Tenants     *tenant.Tenants
	Users       *user.Users
	People      *person.People
	Federation  *federation.Federation
	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Deliveries  *delivery.Deliveries
	Rules       *rule.Rules
	Engine      *rule.Engine
}

// New returns an installation of the parts.
func New(p Parts) *System {
	// Ids made within one millisecond rise too, so records keep their order.
	log := audit.Log{Now: p.Now, Rand: &ulid.LockedMonotonicReader{MonotonicReader: ulid.Monotonic(rand.Reader, 0)}}
	s := &System{
		Parts:       p,
		Audit:       log,
		Tenants:     &tenant.Tenants{Table: p.Table, Vault: vault.New(p.Root), Audit: log, Now: p.Now, Rand: rand.Reader, PlatformKeyHash: p.PlatformKeyHash},
		Users:       &user.Users{Table: p.Table, Audit: log, Now: p.Now, Rand: rand.Reader},
		Credentials: &credential.Credentials{Table: p.Table, Audit: log, Now: p.Now, Rand: rand.Reader},
	}
	s.People = &person.People{Table: p.Table, Tenants: s.Tenants, Senders: p.Senders, Audit: log, Now: p.Now, Rand: rand.Reader, Log: p.Log, BaseURL: p.ConsoleURL,
		Holder: holders(s.Users)}
	if p.SignInTime > 0 {
		s.People.Pad = person.PadTo(p.SignInTime)
	}
	s.Federation = &federation.Federation{Table: p.Table, Tenants: s.Tenants, People: s.People, Audit: log, Now: p.Now, Rand: rand.Reader,
		BaseURL: p.ConsoleURL, Anywhere: p.ProvidersAnywhere}
	s.Unblocks = &unblock.Unblocks{Table: p.Table, Tenants: s.Tenants, Users: s.Users, Credentials: s.Credentials, Senders: p.Senders,
		Connections: p.Connections, Audit: log, Now: p.Now, Rand: rand.Reader, Log: p.Log}
	s.Deliveries = &delivery.Deliveries{Table: p.Table, Tenants: s.Tenants, Users: s.Users, Senders: p.Senders, Audit: log, Now: p.Now, Rand: rand.Reader, Log: p.Log,
		Anywhere: p.WebhooksTo.Anywhere, RootCAs: p.WebhooksTo.RootCAs}
	s.Rules = &rule.Rules{Table: p.Table, Audit: log, Now: p.Now, Rand: rand.Reader}
	s.Engine = &rule.Engine{Table: p.Table, Tenants: s.Tenants, Rules: s.Rules, Users: s.Users, Credentials: s.Credentials, Unblocks: s.Unblocks,
		Deliveries: s.Deliveries, Senders: p.Senders, Audit: log, Now: p.Now, Log: p.Log}
	return s
}

// API returns the HTTP API.
func (s *System) API() http.Handler {
	api := &rest.API{Table: s.Table, Tenants: s.Tenants, Users: s.Users, People: s.People, Federation: s.Federation, Credentials: s.Credentials, Unblocks: s.Unblocks, Deliveries: s.Deliveries,
		Rules: s.Rules, Engine: s.Engine,
		Senders: s.Senders, Audit: s.Audit, Now: s.Now, Rand: rand.Reader, Log: s.Log, Rate: s.Rate,
		Connections: s.Connections, RelayURL: s.RelayURL}
	return api.Handler()
}

// Console returns the web pages.
func (s *System) Console() http.Handler { return s.Pages().Handler() }

// Pages returns what the web pages are made of.
func (s *System) Pages() *page.Console {
	return &page.Console{Table: s.Table, Tenants: s.Tenants, People: s.People, Federation: s.Federation, Users: s.Users, Credentials: s.Credentials, Unblocks: s.Unblocks,
		Rules: s.Rules, Engine: s.Engine, Deliveries: s.Deliveries,
		Senders: s.Senders, Connections: s.Connections, RelayURL: s.RelayURL, BaseURL: s.ConsoleURL, APIURL: s.APIURL,
		Audit: s.Audit, Now: s.Now, Rand: rand.Reader, Log: s.Log}
}

// Relay returns the cloud's end of the bridges' WebSockets.
func (s *System) Relay() gateway.Socket {
	return &line.Line{Tenants: s.Tenants, Credentials: s.Credentials, Unblocks: s.Unblocks, Connections: s.Connections, RelayURL: s.RelayURL, ConsoleURL: s.ConsoleURL,
		Now: s.Now, Rand: rand.Reader, Log: s.Log}
}

// Sweep returns the sweep.
func (s *System) Sweep() *due.Sweep {
	return &due.Sweep{Table: s.Table, Tenants: s.Tenants, Users: s.Users, Unblocks: s.Unblocks, Credentials: s.Credentials, Deliveries: s.Deliveries,
		Engine: s.Engine, Senders: s.Senders, Now: s.Now, Log: s.Log}
}

// Trigger returns what takes in events that AWS delivers.
func (s *System) Trigger() *inbox.Inbox {
	return &inbox.Inbox{Tenants: s.Tenants, Engine: s.Engine, Bounces: &user.Bounces{Users: s.Users, Tenants: s.Tenants, Log: s.Log}, Log: s.Log}
}

// Cloud returns the installation that a Lambda function's environment names:
// TABLE_NAME, KMS_KEY_ARN, RELAY_URL, RELAY_ENDPOINT, CONSOLE_URL and PLATFORM_KEY_HASH, as
// the template sets them, and for the pages API_URL. Each function speaks to bridges: the API with scripts and when one
// is revoked, the sweep with the person there whose unblock is over.
func Cloud(ctx context.Context) (*System, error) {
	aws, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("load AWS configuration: %w", err)
	}
	for _, name := range []string{"TABLE_NAME", "KMS_KEY_ARN", "RELAY_URL", "RELAY_ENDPOINT", "CONSOLE_URL"} {
		if os.Getenv(name) == "" {
			return nil, fmt.Errorf("environment variable %s is not set", name)
		}
	}
	root, err := vault.KMSRoot(ctx, os.Getenv("KMS_KEY_ARN"))
	if err != nil {
		return nil, err
	}
	connections, err := gateway.NewConnections(os.Getenv("RELAY_ENDPOINT"), aws.Credentials, aws.Region, &http.Client{Timeout: 10 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("RELAY_ENDPOINT: %w", err)
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	slog.SetDefault(log)
	return New(Parts{
		Table:           dynamo.New(dynamodb.NewFromConfig(aws), os.Getenv("TABLE_NAME")),
		Root:            root,
		Senders:         mail.Senders{SES: mail.NewSES(sesv2.NewFromConfig(aws)), Dial: mail.PublicDial, Now: time.Now},
		Now:             time.Now,
		Log:             log,
		PlatformKeyHash: os.Getenv("PLATFORM_KEY_HASH"),
		Rate:            rest.Rate{PerSecond: 50, Burst: 200},
		Connections:     connections,
		RelayURL:        os.Getenv("RELAY_URL"),
		ConsoleURL:      os.Getenv("CONSOLE_URL"),
		APIURL:          os.Getenv("API_URL"),
		SignInTime:      2 * time.Second, // SES takes a fraction of it
	}), nil
}
