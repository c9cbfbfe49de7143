package softcard

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

// OpenFile returns the card that is kept in a file; if there is no such file, it makes a
// card by c and keeps it there. Of a card that is there already only c.Rand is looked
// at. What a command changes for good is in the file, with fsync, before the card
// answers; if it cannot be written, the command has no effect and is answered 6581. The
// file is for one process at a time.
//
// A chip keeps its PIN, PUK and keys to itself, and a file cannot: they are in it in the
// clear, and its mode, 0600, is all that protects them. It is for demonstrations and
// tests, never for a card that anything of value depends on.
func OpenFile(path string, c Config) (*Card, error) {
	b, err := os.ReadFile(path)
	var card *Card
	switch {
	case err == nil:
		card, err = decode(b, c)
	case errors.Is(err, fs.ErrNotExist):
		if card, err = New(c); err == nil {
			card.file = &file{path: path}
			if err = card.file.write(card.encode()); err == nil {
				return card, nil
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open card file %s: %w", path, err)
	}
	card.file = &file{path: path, last: b}
	return card, nil
}

// keep carries out a command and has what it changes written, or undoes it. It is called
// with mu held.
func (c *Card) keep(command []byte) apdu.Response {
	if c.file == nil {
		return c.receive(command)
	}
	before := c.body.copy()
	answer := c.receive(command)
	if err := c.file.write(c.encode()); err != nil {
		c.body = before
		return status(apdu.SWMemoryFailure)
	}
	return answer
}

type file struct {
	path string
	last []byte // what is in it
}

// write replaces the file, so that at any time it is whole.
func (f *file) write(b []byte) error {
	if bytes.Equal(b, f.last) {
		return nil
	}
	temporary, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(b)
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary.Name(), f.path); err != nil {
		return err
	}
	// The new name is on the disk once its folder is. There are systems where a folder
	// cannot be synced, and needs not.
	if folder, err := os.Open(filepath.Dir(f.path)); err == nil {
		_ = folder.Sync()
		_ = folder.Close()
	}
	f.last = b
	return nil
}

// fileVersion is that of the file's form.
const fileVersion = 1

// The file's form. Bytes are in hex; tags, file ids and key references too.
type (
	savedCard struct {
		Version   int            `json:"version"`
		Profile   Profile        `json:"profile"`
		PIN       savedReference `json:"pin"`
		PUK       savedReference `json:"puk,omitzero"`
		Algorithm byte           `json:"algorithm,omitzero"`
		AdminKey  octets         `json:"adminKey,omitempty"`
		Chunk     int            `json:"chunk,omitzero"` // as in Config
		ExactLe   bool           `json:"exactLe,omitzero"`
		// Of PIV:
		Serial  octets              `json:"serial,omitempty"`
		Objects map[string]octets   `json:"objects,omitempty"`
		Keys    map[string]savedKey `json:"keys,omitempty"`
		// Of GIDS:
		Blank bool                 `json:"blank,omitzero"`
		Files map[string]savedFile `json:"files,omitempty"`
	}
	savedReference struct {
		Value   quoted `json:"value"`
		Tries   int    `json:"triesLeft"`
		Changed bool   `json:"changed,omitzero"` // PIV
	}
	savedKey struct {
		Public  octets `json:"public"`
		Private octets `json:"private,omitempty"` // PKCS #8
	}
	savedFile struct {
		Put     byte   `json:"put"`
		Get     byte   `json:"get"`
		IsKey   bool   `json:"isKey,omitzero"`
		Objects octets `json:"objects,omitempty"` // TLV
	}
)

type octets []byte

func (o octets) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, o), nil }

func (o *octets) UnmarshalText(b []byte) (err error) {
	if *o, err = hex.AppendDecode(nil, b); err != nil {
		return errors.New("must be hex")
	}
	return nil
}

// quoted are bytes that mostly are text; the others are as in Go's strings.
type quoted []byte

func (q quoted) MarshalText() ([]byte, error) {
	s := strconv.QuoteToASCII(string(q))
	return []byte(s[1 : len(s)-1]), nil
}

func (q *quoted) UnmarshalText(b []byte) error {
	s, err := strconv.Unquote(`"` + string(b) + `"`)
	if err != nil {
		return errors.New("must be as in a Go string")
	}
	*q = []byte(s)
	return nil
}

// encode is called with mu held, or before anybody has the card.
func (c *Card) encode() []byte {
	saved := savedCard{Version: fileVersion, Profile: c.profile, ExactLe: c.exactLe}
	if c.chunk != c.app.chunk() {
		saved.Chunk = c.chunk
	}
	c.app.save(&saved)
	b, err := json.MarshalIndent(saved, "", "  ")
	if err != nil {
		panic(err) // there is nothing in it that cannot be written
	}
	return append(b, '\n')
}

func decode(b []byte, c Config) (*Card, error) {
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	var saved savedCard
	if err := decoder.Decode(&saved); err != nil {
		return nil, err
	}
	if saved.Version != fileVersion {
		return nil, fmt.Errorf("its version is %d, not %d: %w", saved.Version, fileVersion, problem.ErrState)
	}
	// What is known of any card is checked as for a new one.
	card, err := New(Config{
		Profile: saved.Profile, Algorithm: saved.Algorithm, AdminKey: saved.AdminKey,
		Chunk: saved.Chunk, ExactLe: saved.ExactLe, Blank: saved.Blank, Rand: c.Rand,
	})
	if err != nil {
		return nil, err
	}
	if err := card.app.load(saved); err != nil {
		return nil, err
	}
	return card, nil
}

func (r *reference) save(changed bool) savedReference {
	return savedReference{Value: r.value, Tries: r.left, Changed: changed}
}

func (r *reference) load(s savedReference, field string, vs *problem.Violations) {
	if s.Tries < 0 || s.Tries > r.most {
		vs.Add("range", field+".triesLeft", "must be 0 to %d", r.most)
	}
	r.value, r.left = s.Value, s.Tries
}

func (p *piv) save(s *savedCard) {
	s.PIN, s.PUK = p.pin.save(p.pinChanged), p.puk.save(p.pukChanged)
	s.Algorithm, s.AdminKey, s.Serial = p.algorithm, p.adminKey, p.serial
	s.Objects, s.Keys = map[string]octets{}, map[string]savedKey{}
	for tag, object := range p.objects {
		s.Objects[fmt.Sprintf("%06X", uint32(tag))] = object
	}
	for slot, key := range p.keys {
		k := savedKey{Public: key.public}
		if key.private != nil {
			private, err := x509.MarshalPKCS8PrivateKey(key.private)
			if err != nil {
				panic(err) // the card has made it, on a curve that is known
			}
			k.Private = private
		}
		s.Keys[fmt.Sprintf("%02X", slot)] = k
	}
}

func (p *piv) load(s savedCard) error {
	var vs problem.Violations
	p.pin.load(s.PIN, "pin", &vs)
	p.puk.load(s.PUK, "puk", &vs)
	p.pinChanged, p.pukChanged = s.PIN.Changed, s.PUK.Changed
	if len(s.PIN.Value) != 8 || len(s.PUK.Value) != 8 {
		vs.Add("length", "pin", "and puk must have 8 bytes")
	}
	if p.serial = s.Serial; len(p.serial) != 4 {
		vs.Add("length", "serial", "must have 4 bytes")
	}
	p.objects, p.keys = map[apdu.Tag][]byte{}, map[byte]*keyPair{}
	for text, object := range s.Objects {
		tag, err := strconv.ParseUint(text, 16, 24)
		if err != nil {
			vs.Add("malformed", "objects", "must be by their tags")
		}
		p.objects[apdu.Tag(tag)] = object
	}
	for text, saved := range s.Keys {
		slot, err := strconv.ParseUint(text, 16, 8)
		if err != nil {
			vs.Add("malformed", "keys", "must be by their slots")
		}
		key := &keyPair{algorithm: p256, public: saved.Public}
		if len(saved.Private) > 0 {
			parsed, err := x509.ParsePKCS8PrivateKey(saved.Private)
			private, ok := parsed.(*ecdsa.PrivateKey)
			if err != nil || !ok || private.Curve != elliptic.P256() {
				vs.Add("malformed", "keys."+text, "must be a key of P-256")
			}
			key.private = private
		}
		p.keys[byte(slot)] = key
	}
	return vs.Err()
}

func (g *gids) save(s *savedCard) {
	s.PIN, s.AdminKey, s.Blank = g.pin.save(false), g.key, g.blank
	s.Files = map[string]savedFile{}
	for id, f := range g.files {
		s.Files[fmt.Sprintf("%04X", id)] = savedFile{f.put, f.get, f.isKey, apdu.EncodeTLV(f.objects...)}
	}
}

func (g *gids) load(s savedCard) error {
	var vs problem.Violations
	g.pin.load(s.PIN, "pin", &vs)
	if n := len(s.PIN.Value); (n < gidsPINMin || n > gidsPINMax) && (n > 0 || !s.Blank) {
		vs.Add("length", "pin.value", "must have %d to %d bytes", gidsPINMin, gidsPINMax)
	}
	if g.key, g.block = nil, nil; len(s.AdminKey) > 0 {
		g.setKey(s.AdminKey)
	}
	g.files = map[uint16]*gidsFile{}
	for text, saved := range s.Files {
		id, err := strconv.ParseUint(text, 16, 16)
		objects, errTLV := apdu.ParseTLV(saved.Objects)
		if err != nil || errTLV != nil {
			vs.Add("malformed", "files."+text, "must be a file id with data objects")
		}
		g.files[uint16(id)] = &gidsFile{id: uint16(id), put: saved.Put, get: saved.Get, isKey: saved.IsKey, objects: objects}
	}
	return vs.Err()
}
