package softcard

import (
	"bytes"
	"crypto/cipher"
	"io"
	"maps"
	"slices"

	"github.com/pinward/pinward/shared/apdu"
)

// Instructions that GIDS has besides those of PIV (ISO 7816-4, 7.5.11; ISO 7816-9).
const (
	insManageSecurityEnvironment = 0x22
	insActivateFile              = 0x44
	insCreateFile                = 0xE0
)

// The PIN of a GIDS card.
const (
	gidsPINMin   = 4
	gidsPINMax   = 16
	gidsPINTries = 3
)

// Status words that are GIDS's own choice (ISO 7816-4, table 6).
const (
	swFileStructure apdu.SW = 0x6981 // command incompatible with file structure
	swInvalid               = apdu.SWReferenceDataNotUsable
)

var (
	gidsATR      = unhex("3B80800101")
	gidsAID      = unhex("A000000397425446590201")
	gidsTemplate = unhex("61124F0BA00000039742544659020173034001C0")
	// gidsEFATR has the card's capabilities and who made the application.
	gidsEFATR = unhex("4301F44703080180460C4D79536D6172744C6F676F6E")
)

// gidsApplication is the file that stands for the application itself.
const gidsApplication = 0x3FFF

// gidsKeyFile is where the key with reference 80 is.
const gidsKeyFile, gidsKeyReference = 0xB080, 0x80

// Security conditions, in bits (ISO 7816-4, 5.4.3.1): one of those that are set must
// hold. The other bits, such as for a contact interface only, are not looked at.
const (
	always   = 0x00
	afterPIN = 0x10
	afterKey = 0x20
	never    = 0xFF
)

// gidsFile is an elementary file: data objects, and who may put and get them. The
// file of a key has none. It is replaced, not changed.
type gidsFile struct {
	id       uint16
	put, get byte
	isKey    bool
	objects  []apdu.TLV
}

// gids is the GIDS application. Its slices, maps and files are replaced, not changed.
type gids struct {
	rand  io.Reader
	files map[uint16]*gidsFile
	pin   reference
	key   []byte
	block cipher.Block // of key; nil if there is none
	blank bool         // being initialized: everything is allowed, but nothing is protected

	// These do not outlive SELECT.
	current  *gidsFile
	verified bool
	admin    bool
	chosen   bool   // the admin key, for what follows
	awaits   byte   // external or mutual
	given    []byte // our challenge
	received []byte // theirs
}

// What a GENERAL AUTHENTICATE may be the second part of.
const (
	external = 1
	mutual   = 2
)

func newGIDS(c Config) (*gids, error) {
	g := &gids{rand: c.Rand, files: map[uint16]*gidsFile{}, blank: c.Blank, pin: reference{nil, gidsPINTries, gidsPINTries}}
	if c.Blank {
		return g, nil
	}
	id := slices.Clone(c.ID)
	if len(id) == 0 {
		var err error
		if id, err = draw(c.Rand, 16); err != nil {
			return nil, err
		}
	}
	g.pin.set([]byte(c.pin()))
	if c.Blocked {
		g.pin.left = 0
	}
	g.setKey(c.adminKey())
	// What gids-tool makes of a blank card: files with these conditions, and where a
	// minidriver finds what it calls files.
	g.files = map[uint16]*gidsFile{
		0xA000: {put: afterPIN | afterKey, get: always, objects: []apdu.TLV{{Tag: 0xDF1F, Value: masterFile()}}},
		0xA010: {put: afterPIN | afterKey, get: always, objects: []apdu.TLV{
			{Tag: 0xDF21, Value: []byte("mscp\x00\x00\x00\x00")},
			{Tag: 0xDF22, Value: make([]byte, 6)},
			{Tag: 0xDF23},
		}},
		0xA011:      {put: afterPIN | afterKey, get: never},
		0xA012:      {put: afterKey, get: always, objects: []apdu.TLV{{Tag: 0xDF20, Value: id}}},
		0xA013:      {put: afterPIN | afterKey, get: afterPIN | afterKey},
		0xA014:      {put: afterKey, get: afterKey},
		gidsKeyFile: {isKey: true},
	}
	for id, file := range g.files {
		file.id = id
	}
	return g, nil
}

// masterFile names the objects: directory and file name of 8 and 12 bytes with zeros
// after them, number of the object and of the file, little endian.
func masterFile() []byte {
	b := []byte{1}
	for _, entry := range []struct {
		directory, name string
		object, file    uint16
	}{
		{"mscp", "", 0, 0xA000},
		{"", "cardid", 0xDF20, 0xA012},
		{"", "cardapps", 0xDF21, 0xA010},
		{"", "cardcf", 0xDF22, 0xA010},
		{"mscp", "cmapfile", 0xDF23, 0xA010},
	} {
		record := make([]byte, 28)
		copy(record, entry.directory)
		copy(record[9:], entry.name)
		record[20], record[21] = byte(entry.object), byte(entry.object>>8)
		record[24], record[25] = byte(entry.file), byte(entry.file>>8)
		b = append(b, record...)
	}
	return b
}

func (g *gids) setKey(key []byte) { g.key, g.block = key, newCipher(tdes, key) }

func (g *gids) name() []byte { return gidsAID }
func (g *gids) chunk() int   { return 256 }

func (g *gids) selected(c apdu.Command) apdu.Response {
	g.reset()
	return g.describe(c.P2)
}

// describe answers SELECT of the application: P2 says with what (ISO 7816-4, table 40).
func (g *gids) describe(p2 byte) apdu.Response {
	if p2 == 0x0C {
		return status(apdu.SWOK)
	}
	return data(gidsTemplate)
}

// reset forgets who was authenticated, the key chosen and the challenge.
func (g *gids) reset() {
	g.current = nil
	g.verified, g.chosen = false, false
	g.forget()
}

func (g *gids) forget() { g.admin, g.awaits, g.given, g.received = false, 0, nil, nil }

func (g *gids) refuses(c apdu.Command) apdu.SW {
	switch {
	case c.CLA&0x0C != 0:
		return apdu.SWSMNotSupported
	case c.CLA&^chained != 0:
		return apdu.SWClassNotSupported
	case c.CLA&chained != 0 && c.INS != insPutData:
		return apdu.SWChainingNotSupported
	}
	return 0
}

func (g *gids) inspect(s *State) {
	s.PINVerified, s.AdminVerified = g.verified, g.admin
	s.PINTries, s.PINMost = g.pin.left, g.pin.most
}

func (g *gids) clone() application {
	copied := *g
	return &copied
}

func (g *gids) digest(d *Digest) {
	d.pin = g.pin.digest()
	d.chosen, d.awaits = g.chosen, g.awaits
	if g.current != nil {
		d.current = g.current.id
	}
	d.add(g.given)
	d.add(g.received)
}

func (g *gids) pinIs(pin string) bool      { return !g.blank && bytes.Equal(g.pin.value, []byte(pin)) }
func (g *gids) pukIs(string) bool          { return false }
func (g *gids) adminKeyIs(key []byte) bool { return g.block != nil && bytes.Equal(g.key, key) }

func (g *gids) perform(c apdu.Command) apdu.Response {
	switch c.INS {
	case insSelect:
		return g.selectFile(c)
	case insVerify:
		return status(g.verify(c))
	case insChangeReferenceData:
		return status(g.change(c))
	case insResetRetryCounter:
		return status(g.unblock(c))
	case insManageSecurityEnvironment:
		return status(g.chooseKey(c))
	case insGeneralAuthenticate:
		return g.authenticate(c)
	case insGetData:
		return g.getData(c)
	case insPutData:
		return status(g.putData(c))
	case insCreateFile:
		return status(g.createFile(c))
	case insActivateFile:
		return status(g.activate(c))
	}
	return status(apdu.SWInstructionNotSupported)
}

// selectFile is SELECT of the application by its file identifier. Elementary files
// need not be selected: GET DATA names them.
func (g *gids) selectFile(c apdu.Command) apdu.Response {
	if c.P1 != 0x00 || c.P2 != 0x00 && c.P2 != 0x0C {
		return status(apdu.SWIncorrectP1P2)
	}
	if !bytes.Equal(c.Data, []byte{gidsApplication >> 8, gidsApplication & 0xFF}) {
		return status(apdu.SWNotFound)
	}
	g.current = nil
	return g.describe(c.P2)
}

// verify is VERIFY (ISO 7816-4, 7.5.6). It never tells that the PIN is verified.
func (g *gids) verify(c apdu.Command) apdu.SW {
	const logOut = 0x82
	switch {
	case c.P1 != 0x00:
		return apdu.SWIncorrectP1P2
	case c.P2 == logOut:
		g.deauthenticate()
		return apdu.SWOK
	case c.P2 != refPIN && c.P2 != 0x00:
		return apdu.SWReferenceDataNotFound
	case g.pin.left == 0:
		return apdu.SWBlocked
	case len(c.Data) == 0 && g.blank:
		return apdu.SWOK
	case len(c.Data) < gidsPINMin || len(c.Data) > gidsPINMax:
		return g.pin.triesLeft()
	}
	if g.verified = g.pin.check(c.Data); !g.verified {
		return g.pin.triesLeft()
	}
	return apdu.SWOK
}

func (g *gids) deauthenticate() {
	g.verified, g.chosen = false, false
	g.forget()
}

// change is CHANGE REFERENCE DATA (ISO 7816-4, 7.5.7): old and new without padding
// between them, or with P1=01 the first PIN, or a new one once the old is verified.
func (g *gids) change(c apdu.Command) apdu.SW {
	if c.P1 > 0x01 {
		return apdu.SWIncorrectP1P2
	}
	if c.P2 != refPIN && c.P2 != 0x00 {
		return apdu.SWReferenceDataNotFound
	}
	if c.P1 == 0x01 {
		switch n := len(c.Data); {
		case n < gidsPINMin || n > gidsPINMax:
			return apdu.SWWrongLength
		case !g.blank && !g.verified:
			return apdu.SWSecurityStatus
		}
		g.pin.set(c.Data)
		g.verified = false
		return apdu.SWOK
	}
	old := min(len(g.pin.value), len(c.Data))
	switch n := len(c.Data); {
	case n < 2*gidsPINMin || n > 2*gidsPINMax:
		return g.pin.triesLeft()
	case g.pin.left == 0:
		return apdu.SWBlocked
	case !g.pin.check(c.Data[:old]):
		g.verified = false
		return g.pin.triesLeft()
	case n-old < gidsPINMin || n-old > gidsPINMax:
		g.verified = true
		return apdu.SWWrongLength
	}
	g.pin.set(c.Data[old:])
	g.verified = true
	return apdu.SWOK
}

// unblock is RESET RETRY COUNTER (ISO 7816-4, 7.5.10) with a new PIN only, once for
// every time that the admin key was shown.
func (g *gids) unblock(c apdu.Command) apdu.SW {
	switch {
	case g.blank:
		return apdu.SWCommandNotAllowed
	case c.P1 != 0x02:
		return apdu.SWIncorrectP1P2
	case c.P2 != refPIN:
		return apdu.SWReferenceDataNotFound
	case !g.admin:
		return apdu.SWSecurityStatus
	case len(c.Data) < gidsPINMin || len(c.Data) > gidsPINMax:
		return apdu.SWWrongLength
	}
	g.pin.set(c.Data)
	g.deauthenticate()
	return apdu.SWOK
}

// chooseKey is MANAGE SECURITY ENVIRONMENT: SET for external (81) or mutual (C1)
// authentication (ISO 7816-4, 7.5.11).
func (g *gids) chooseKey(c apdu.Command) apdu.SW {
	if c.P1 != 0x81 && c.P1 != 0xC1 {
		return apdu.SWFunctionNotSupported
	}
	reference, err := apdu.FindTLV(c.Data, 0x83)
	file := g.files[gidsKeyFile]
	if err != nil || !bytes.Equal(reference, []byte{gidsKeyReference}) || c.P2 != 0xA4 || file == nil || !file.isKey || g.block == nil {
		return swInvalid
	}
	g.chosen = true
	return apdu.SWOK
}

// authenticate is GENERAL AUTHENTICATE (ISO 7816-4, 7.5.5): a challenge is asked for,
// with 16 bytes of one's own if the card is to prove itself too, and then answered.
func (g *gids) authenticate(c apdu.Command) apdu.Response {
	if g.blank {
		return status(apdu.SWCommandNotAllowed)
	}
	if c.P1 != 0x00 || c.P2 != 0x00 {
		return status(apdu.SWIncorrectP1P2)
	}
	if challenge, err := apdu.FindTLV(c.Data, tagDynamic, tagChallenge); err == nil {
		return g.challenge(challenge)
	}
	response, err := apdu.FindTLV(c.Data, tagDynamic, tagResponse)
	if err != nil || len(response) == 0 || len(response) > 40 {
		return status(swInvalid)
	}
	switch {
	case g.awaits == 0:
		return status(apdu.SWConditionsNotSatisfied)
	case !g.chosen || len(response)%g.block.BlockSize() != 0:
		return status(apdu.SWNoDiagnosis)
	case g.awaits == mutual:
		return g.answerMutual(response)
	}
	right := bytes.HasPrefix(decipher(g.block, response), g.given)
	g.forget()
	if g.admin = right; !right {
		return status(apdu.SWSecurityStatus)
	}
	return status(apdu.SWOK)
}

func (g *gids) challenge(theirs []byte) apdu.Response {
	g.forget()
	var size int
	switch len(theirs) {
	case 0:
		g.awaits, size = external, 8
	case 16:
		g.awaits, size = mutual, 16
	default:
		return status(swInvalid)
	}
	given, err := draw(g.rand, size)
	if err != nil {
		g.awaits = 0
		return status(apdu.SWMemoryFailure)
	}
	g.given, g.received = given, slices.Clone(theirs)
	return dynamic(tagChallenge, given)
}

// answerMutual takes our challenge, theirs, 7 bytes of a session key and 80, and
// answers the same with the challenges the other way round.
func (g *gids) answerMutual(response []byte) apdu.Response {
	given, received := g.given, g.received
	g.forget()
	if len(response) != 40 {
		return status(apdu.SWSecurityStatus)
	}
	plain := decipher(g.block, response)
	if !bytes.Equal(plain[:32], slices.Concat(given, received)) || plain[39] != 0x80 {
		return status(apdu.SWSecurityStatus)
	}
	half, err := draw(g.rand, 7)
	if err != nil {
		return status(apdu.SWMemoryFailure)
	}
	g.admin = true
	return dynamic(tagResponse, encipher(g.block, slices.Concat(received, given, half, []byte{0x80})))
}

func (g *gids) allowed(condition byte) bool {
	switch {
	case condition == never:
		return false
	case condition == always, g.blank:
		return true
	}
	return condition&afterPIN != 0 && g.verified || condition&afterKey != 0 && g.admin
}

// getData is GET DATA (ISO 7816-4, 7.4.2): P1 and P2 name the file, 5C the object.
func (g *gids) getData(c apdu.Command) apdu.Response {
	items, err := apdu.ParseTLV(c.Data)
	isTagList := err == nil && len(items) == 1 && items[0].Tag == tagTagList
	switch id := uint16(c.P1)<<8 | uint16(c.P2); id {
	case gidsApplication:
		if isTagList {
			switch tagIn(items[0].Value) {
			case 0x7F71, 0x7F72:
				return data([]byte{0x7F, items[0].Value[1], 0x06, 0x97, 1, byte(g.pin.left), 0x93, 1, byte(g.pin.most)})
			case 0x7F73: // the PUK, which there is none of
				return status(apdu.SWReferenceDataNotFound)
			}
		}
		return status(swInvalid)
	case 0x2F01:
		if isTagList && len(items[0].Value) == 0 {
			return data(gidsEFATR)
		}
		return status(swInvalid)
	}
	file, sw := g.file(c)
	if sw != apdu.SWOK {
		return status(sw)
	}
	if !g.allowed(file.get) {
		return status(apdu.SWSecurityStatus)
	}
	g.current = file
	if !isTagList {
		return status(swInvalid)
	}
	if len(items[0].Value) == 0 {
		return data(apdu.EncodeTLV(file.objects...))
	}
	tag := tagIn(items[0].Value)
	for _, object := range file.objects {
		if object.Tag == tag {
			return data(apdu.EncodeTLV(object))
		}
	}
	return status(apdu.SWReferenceDataNotFound)
}

// file returns the file with data objects that P1 and P2 name; 0000 is the current.
func (g *gids) file(c apdu.Command) (*gidsFile, apdu.SW) {
	id := uint16(c.P1)<<8 | uint16(c.P2)
	file := g.files[id]
	switch {
	case id == 0xFFFF:
		return nil, apdu.SWIncorrectP1P2
	case id == 0x0000 && g.current != nil:
		file = g.current
	case id == 0x0000:
		return nil, swFileStructure
	case file == nil:
		return nil, apdu.SWNotFound
	}
	if file.isKey {
		return nil, swFileStructure
	}
	return file, apdu.SWOK
}

// maxObjects is how many data objects a file may have.
const maxObjects = 64

// putData is PUT DATA (ISO 7816-4, 7.4.3).
func (g *gids) putData(c apdu.Command) apdu.SW {
	if c.P1 == gidsApplication>>8 && c.P2 == gidsApplication&0xFF {
		return g.putKey(c)
	}
	file, sw := g.file(c)
	if sw != apdu.SWOK {
		return sw
	}
	if !g.allowed(file.put) {
		return apdu.SWSecurityStatus
	}
	g.current = file
	items, err := apdu.ParseTLV(c.Data)
	if err != nil || len(items) != 1 {
		return swInvalid
	}
	object := apdu.TLV{Tag: items[0].Tag, Value: slices.Clone(items[0].Value)}
	objects := slices.Clone(file.objects)
	at := slices.IndexFunc(objects, func(o apdu.TLV) bool { return o.Tag == object.Tag })
	switch {
	case at >= 0:
		objects[at] = object
	case len(objects) >= maxObjects:
		return apdu.SWNotEnoughMemory
	default:
		objects = append(objects, object)
	}
	g.put(gidsFile{id: file.id, put: file.put, get: file.get, objects: objects})
	return apdu.SWOK
}

// putKey sets the admin key: its reference and the key (87). A check value that follows
// it (88) is not checked, for gids-tool sends that of the factory's key with any.
func (g *gids) putKey(c apdu.Command) apdu.SW {
	if !g.blank && !g.admin {
		return apdu.SWSecurityStatus
	}
	reference, err := apdu.FindTLV(c.Data, 0x70, 0x84)
	if err != nil || !bytes.Equal(reference, []byte{gidsKeyReference}) || g.files[gidsKeyFile] == nil {
		return swInvalid
	}
	key, err := apdu.FindTLV(c.Data, 0x70, 0xA5, 0x87)
	if err != nil || len(key) != keyLength(tdes) {
		return swInvalid
	}
	g.setKey(slices.Clone(key))
	return apdu.SWOK
}

// createFile is CREATE FILE (ISO 7816-9), of files with data objects (39) and of
// the one for the admin key (18). 8C has the conditions: put, get.
func (g *gids) createFile(c apdu.Command) apdu.SW {
	const withObjects, forKey = 0x39, 0x18
	kind, _ := apdu.FindTLV(c.Data, 0x62, 0x82)
	name, _ := apdu.FindTLV(c.Data, 0x62, 0x83)
	conditions, _ := apdu.FindTLV(c.Data, 0x62, 0x8C)
	switch {
	case c.P1 != 0x00 || c.P2 != 0x00:
		return apdu.SWIncorrectP1P2
	case len(kind) != 1 || len(name) != 2:
		return swInvalid
	case !g.allowed(afterPIN | afterKey):
		return apdu.SWSecurityStatus
	}
	id := uint16(name[0])<<8 | uint16(name[1])
	if g.files[id] != nil || len(g.files) >= maxObjects {
		return swInvalid
	}
	file := gidsFile{id: id}
	switch {
	case kind[0] == withObjects && len(conditions) == 3 && conditions[0] == 0x03:
		file.put, file.get = conditions[1], conditions[2]
	case kind[0] == forKey && id == gidsKeyFile:
		file.isKey = true
	default:
		return swInvalid
	}
	g.put(file)
	return apdu.SWOK
}

// put makes a file, or another of one, and makes it the current.
func (g *gids) put(file gidsFile) {
	g.files = maps.Clone(g.files)
	g.files[file.id], g.current = &file, &file
}

// activate is ACTIVATE FILE (ISO 7816-9). That of the application ends its
// initialization; files are always active.
func (g *gids) activate(c apdu.Command) apdu.SW {
	if c.P1 != 0x00 || c.P2 != 0x00 {
		return apdu.SWIncorrectP1P2
	}
	if g.current == nil {
		g.blank = false
		g.deauthenticate()
	}
	return apdu.SWOK
}
