package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/sesv2"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	people "github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/dynamo"
	"github.com/pinward/pinward/shared/tenant"
)

// store is the table in use.
type store struct {
	table   table.Table
	name    string
	collect func(context.Context, time.Time) (int, error) // removes what has expired; DynamoDB does it by itself
	close   func() error
}

// openTable opens the embedded table, or with TABLE=dynamodb the table
// TABLE_NAME (pinward) on any DynamoDB, at ENDPOINT if that is given. It makes
// a table that is not there.
func openTable(ctx context.Context, data string) (store, error) {
	switch kind := os.Getenv("TABLE"); kind {
	case "", "bolt":
		path := filepath.Join(data, "pinward.db")
		db, err := bolt.Open(path)
		if err != nil {
			return store{}, err
		}
		return store{db, "embedded table", db.Collect, db.Close}, nil
	case "dynamodb":
		conf, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return store{}, fmt.Errorf("load AWS configuration: %w", err)
		}
		endpoint, name := os.Getenv("ENDPOINT"), os.Getenv("TABLE_NAME")
		if name == "" {
			name = "pinward"
		}
		client := dynamodb.NewFromConfig(conf, func(o *dynamodb.Options) {
			if endpoint != "" {
				o.BaseEndpoint = aws.String(endpoint)
			}
		})
		if err := dynamo.Create(ctx, client, name); err != nil {
			return store{}, err
		}
		return store{dynamo.New(client, name), "DynamoDB table " + name,
			func(context.Context, time.Time) (int, error) { return 0, nil }, func() error { return nil }}, nil
	default:
		return store{}, fmt.Errorf("TABLE=%s is not known; it is bolt (the default) or dynamodb", kind)
	}
}

// localSES returns SES at SES_ENDPOINT, or none without it.
func localSES(ctx context.Context) (*mail.SES, error) {
	endpoint := os.Getenv("SES_ENDPOINT")
	if endpoint == "" {
		return nil, nil
	}
	conf, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("load AWS configuration: %w", err)
	}
	return mail.NewSES(sesv2.NewFromConfig(conf, func(o *sesv2.Options) { o.BaseEndpoint = aws.String(endpoint) })), nil
}

// rootKeyNotLost refuses to make a new root key beside a table whose tenants'
// keys are sealed with another.
func rootKeyNotLost(ctx context.Context, t table.Table, path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	switch _, err := t.Get(ctx, table.KeysetsKey(demo)); {
	case err == nil:
		return fmt.Errorf("%s is missing, and the PINs in the table are worth nothing without it: restore it from your backup, or begin with another data folder", path)
	case errors.Is(err, problem.ErrNotFound):
		return nil
	default:
		return err
	}
}

// platformKey returns the hash of the platform key, and at first start the key,
// which is not kept.
func platformKey(path string) (hash, key string, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(text)), "", nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("read platform key's hash: %w", err)
	}
	made, hash, err := tenant.NewPlatformKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	if err := os.WriteFile(path, []byte(hash+"\n"), 0o600); err != nil {
		return "", "", fmt.Errorf("keep platform key's hash: %w", err)
	}
	return hash, made.Reveal(), nil
}

// demo is the tenant that a local installation begins with.
const demo table.TenantID = "demo"

// seed makes the tenant demo at first start, with mails going to the outbox,
// and returns its API key, once. With another it returns a new key.
func seed(ctx context.Context, system *wiring.System, another bool) (string, error) {
	by := audit.Actor{Kind: audit.System, ID: "local"}
	var key secret.Text
	core, err := system.Tenants.Load(ctx, demo)
	switch {
	case errors.Is(err, problem.ErrNotFound):
		core, key, err = system.Tenants.Create(ctx, by, tenant.Tenant{ID: demo,
			Settings: tenant.Settings{DisplayName: "Demo Ltd", TimeZone: "UTC", Language: "en"}})
	case err == nil && another:
		_, key, err = system.Tenants.MakeKey(ctx, demo, by, tenant.APIKey{Name: "made at the console", Role: tenant.RoleAdmin})
	}
	if err != nil || core.Tenant.Version > 1 { // its settings have been made, now or by somebody since
		return key.Reveal(), err
	}
	conf := mail.Configuration{ID: "outbox", Name: "Outbox of this machine", Kind: mail.KindOutbox, From: "Pinward <pinward@localhost.localdomain>"}
	op, err := mail.Store{Table: system.Table, Tenant: demo, Keys: core.Keys}.PutConfiguration(ctx, conf)
	if err != nil {
		return "", err
	}
	settings := core.Tenant.Settings
	settings.ExpiryMail = tenant.ExpiryMailRefs{Messaging: conf.ID, Template: mail.PINExpiryID}
	if _, err := system.Tenants.ChangeSettings(ctx, by, core, settings, op); err != nil {
		return "", err
	}
	return key.Reveal(), nil
}

// signInLink returns a link by which somebody who administers the tenant demo signs in: "Demo
// Administrator", who is made if the tenant has no people. It is "" if nobody administers it.
func signInLink(ctx context.Context, system *wiring.System) (string, error) {
	by := audit.Actor{Kind: audit.System, ID: "local"}
	core, err := system.Tenants.Load(ctx, demo)
	if err != nil {
		return "", err
	}
	all, err := system.People.List(ctx, demo)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		p, err := system.People.Create(ctx, core, by, people.Person{Name: "Demo Administrator", Mail: "admin@demo.example", Roles: []tenant.Role{tenant.RoleAdmin}})
		if err != nil {
			return "", err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b people.Person) int { return strings.Compare(a.ID, b.ID) }) // the oldest first
	i := slices.IndexFunc(all, people.Person.Administers)
	if i < 0 || core.Tenant.Suspended {
		return "", nil
	}
	link, _, err := system.People.Link(ctx, core, by, all[i].ID, 12*time.Hour)
	if err != nil {
		return "", err
	}
	return system.People.LinkURL(link).Reveal(), nil
}
