package mail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pinward/pinward/shared/problem"
)

// Outbox is a folder of mails, one file each, for an installation without a
// mail system. A file appears whole or not at all, and only its owner can read
// it.
type Outbox struct {
	root *os.Root
	mu   sync.Mutex // one message under an ID, also when two senders run
}

// Mail is a mail in an Outbox.
type Mail struct {
	Name       string // for Open; names sort by time
	ID         string // Message.ID
	From, To   string
	Subject    string
	Date       time.Time
	Text, HTML string // as the sender wrote them: show HTML in a sandbox only
}

// OpenOutbox opens a folder, and makes it if it is missing, with mode 0700.
func OpenOutbox(folder string) (*Outbox, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("open outbox: %w", err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, fmt.Errorf("open outbox: %w", err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("open outbox: %w", err)
	}
	return &Outbox{root: root}, nil
}

// Close closes the folder.
func (o *Outbox) Close() error { return o.root.Close() }

const (
	outboxTime = "20060102T150405.000Z"
	outboxExt  = ".eml"
)

var outboxName = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z-([A-Za-z0-9._-]{1,100})$`)

// names returns the names of all mails, oldest first.
func (o *Outbox) names() ([]string, error) {
	entries, err := fs.ReadDir(o.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list outbox: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), outboxExt); ok && outboxName.MatchString(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// List returns the newest mails, newest first, at most limit. A file that is
// not a mail is listed with its name and a subject that says so.
func (o *Outbox) List(limit int) ([]Mail, error) {
	names, err := o.names()
	if err != nil {
		return nil, err
	}
	slices.Reverse(names)
	names = names[:min(max(limit, 0), len(names))]
	mails := make([]Mail, len(names))
	for i, name := range names {
		if mails[i], err = o.Open(name); err != nil {
			mails[i] = Mail{Name: name, Subject: "(this file cannot be read as a mail)"}
		}
	}
	return mails, nil
}

// Open returns the mail with a name from List, or problem.ErrNotFound.
func (o *Outbox) Open(name string) (Mail, error) {
	match := outboxName.FindStringSubmatch(name)
	if match == nil {
		return Mail{}, problem.ErrNotFound
	}
	b, err := o.root.ReadFile(name + outboxExt)
	if errors.Is(err, fs.ErrNotExist) {
		return Mail{}, problem.ErrNotFound
	}
	if err != nil {
		return Mail{}, fmt.Errorf("open mail: %w", err)
	}
	m, err := parseMail(b)
	if err != nil {
		return Mail{}, fmt.Errorf("open mail %s: %w", name, err)
	}
	m.Name, m.ID = name, match[1]
	return m, nil
}

// write stores a mail under its ID. If there is one already it stays as it is.
func (o *Outbox) write(id string, at time.Time, eml []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	entries, err := fs.ReadDir(o.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list outbox: %w", err)
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		at, ok := strings.CutSuffix(e.Name(), "-"+id+outboxExt)
		return ok && len(at) == len(outboxTime)
	}) {
		return nil
	}
	name := at.UTC().Format(outboxTime) + "-" + id
	temporary := name + ".tmp"
	f, err := o.root.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(eml)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, o.root.Remove(temporary))
	}
	return o.root.Rename(temporary, name+outboxExt)
}

type outboxSender struct {
	configuration Configuration
	outbox        *Outbox
	now           func() time.Time
}

// Send implements Sender.
func (s *outboxSender) Send(ctx context.Context, messages []Message) []Result {
	results := make([]Result, len(messages))
	for i, m := range messages {
		results[i] = s.send(ctx, m)
	}
	return results
}

func (s *outboxSender) send(ctx context.Context, m Message) Result {
	if ctx.Err() != nil {
		return notTried
	}
	if r, ok := m.check(); !ok {
		return r
	}
	at := s.now()
	eml, err := s.configuration.encode(m, at)
	if err == nil {
		err = s.outbox.write(m.ID, at, eml)
	}
	if err != nil {
		return Result{Outcome: Failed, Code: "outbox.write", Reason: "the mail could not be written to the outbox folder; is the disk full?"}
	}
	return Result{Outcome: Accepted}
}

// parseMail reads what encode writes.
func parseMail(b []byte) (Mail, error) {
	msg, err := netmail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		return Mail{}, err
	}
	var words mime.WordDecoder
	var m Mail
	for field, value := range map[string]*string{"From": &m.From, "To": &m.To, "Subject": &m.Subject} {
		if *value, err = words.DecodeHeader(msg.Header.Get(field)); err != nil {
			return Mail{}, fmt.Errorf("%s: %w", field, err)
		}
	}
	if m.Date, err = msg.Header.Date(); err != nil {
		return Mail{}, err
	}
	kind, parameters, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return Mail{}, err
	}
	if kind == "text/plain" {
		text, err := io.ReadAll(quotedprintable.NewReader(msg.Body))
		m.Text = string(text)
		return m, err
	}
	parts := multipart.NewReader(msg.Body, parameters["boundary"]) // it decodes quoted-printable
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			return m, nil
		}
		if err != nil {
			return Mail{}, err
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return Mail{}, err
		}
		switch kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type")); kind {
		case "text/plain":
			m.Text = string(content)
		case "text/html":
			m.HTML = string(content)
		}
	}
}
