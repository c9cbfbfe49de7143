package softcard

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"io"
	"maps"
	"slices"

	"github.com/pinward/pinward/shared/apdu"
)

// Instructions of SP 800-73, 3, which GIDS shares where it has them (ISO 7816-4, 7),
// and those that Yubico added.
const (
	insVerify              = 0x20
	insChangeReferenceData = 0x24
	insResetRetryCounter   = 0x2C
	insGenerateKeyPair     = 0x47
	insGeneralAuthenticate = 0x87
	insGetData             = 0xCB
	insPutData             = 0xDB

	insGetMetadata      = 0xF7
	insGetSerial        = 0xF8
	insResetApplication = 0xFB
	insGetVersion       = 0xFD
	insSetManagementKey = 0xFF
)

// Key references (SP 800-73 part 1, table 4b).
const (
	refPIN   = 0x80
	refPUK   = 0x81
	refAdmin = 0x9B
)

// Data objects (SP 800-73 part 1, table 3) and templates (SP 800-73, table 7 and 3.3.2).
const (
	tagData      apdu.Tag = 0x53
	tagTagList   apdu.Tag = 0x5C
	tagDiscovery apdu.Tag = 0x7E
	tagCHUID     apdu.Tag = 0x5FC102
	tagCCC       apdu.Tag = 0x5FC107

	tagDynamic   apdu.Tag = 0x7C
	tagWitness   apdu.Tag = 0x80
	tagChallenge apdu.Tag = 0x81
	tagResponse  apdu.Tag = 0x82
	tagPublicKey apdu.Tag = 0x7F49
	tagECPoint   apdu.Tag = 0x86
)

// p256 is the algorithm reference of ECC P-256 (SP 800-78-4, table 6-2).
const p256 = 0x11

// traits are what real PIV cards differ in.
type traits struct {
	atr, template, discovery []byte
	version                  []byte
	serial                   []byte // random without
	fascn                    []byte
	cccPrefix                []byte // of the card identifier, the rest of which is random
	cccArchitecture          []byte // F4
	pinTries, pukTries       int
	chunk                    int

	lastWrong    apdu.SW // of the wrong PIN or PUK that blocks
	wrongAnswer  apdu.SW // to a challenge, or a witness
	wrongLength  apdu.SW // of the data of VERIFY and the like
	blockedFirst bool    // a blocked PIN answers 6983 to every VERIFY, empty or logout too
	checksDigits bool    // a new PIN or PUK must be 6 to 8 digits
	erases       bool    // keys, when PIN and PUK are blocked
	// pinMetadata precedes what GET METADATA tells of a PIN or PUK.
	pinMetadata []byte
	// tellsChanges: GET METADATA tells a PIN to be the default until CHANGE REFERENCE DATA
	// has set one, whatever it is; the others compare.
	tellsChanges  bool
	adminMetadata func(algorithm, isDefault byte) []byte
}

var pivAID = unhex("A000000308000010000100") // SP 800-73 part 1, 2.2

var pivTraits = map[Profile]traits{
	PivApplet: {
		atr: unhex("3B80800101"),
		template: unhex("6181794F0BA00000030800001000010079074F05A000000308" +
			"50185069764170706C65742076302E392E302F52456541786144" + // "PivApplet v0.9.0/REeAxaD"
			"5F501E6769746875622E636F6D2F6172656B696E6174682F5069764170706C6574" + // "github.com/arekinath/PivApplet"
			"AC06800103060100AC0680010C060100AC06800107060100AC06800111060100AC06800114060100"),
		discovery: unhex("7E124F0BA0000003080000100001005F2F024000"),
		version:   []byte{5, 4, 0},
		fascn:     make([]byte, 25),
		cccPrefix: unhex("A000000116FF02"),
		pinTries:  5, pukTries: 3,
		chunk:        255,
		lastWrong:    0x63C0,
		wrongAnswer:  apdu.SWWrongData,
		wrongLength:  apdu.SWWrongData,
		blockedFirst: true,
		checksDigits: true,
		erases:       true,
		tellsChanges: true,
		adminMetadata: func(algorithm, isDefault byte) []byte {
			return []byte{1, 1, algorithm, 5, 1, isDefault, 2, 2, 1, 1, 3, 1, 0}
		},
	},
	CanoKey: {
		atr:             unhex("3BF71100008131FE6543616E6F6B657999"),
		template:        unhex("61114F0600001000010079074F05A000000308"),
		discovery:       unhex("7E124F0BA0000003080000100001005F2F024010"),
		version:         []byte{5, 7, 0},
		serial:          make([]byte, 4),
		fascn:           unhex("D4E739DA739CED39CE739D836858210842108421C84210C3EB"), // agency 9999
		cccArchitecture: []byte{0},
		pinTries:        3, pukTries: 3,
		chunk:       65536,
		lastWrong:   apdu.SWBlocked,
		wrongAnswer: apdu.SWSecurityStatus,
		wrongLength: apdu.SWWrongLength,
		pinMetadata: []byte{1, 1, 0xFF},
		adminMetadata: func(algorithm, isDefault byte) []byte {
			return []byte{1, 1, algorithm, 2, 2, 0, 1, 5, 1, isDefault}
		},
	},
}

// piv is the PIV card application. Its slices, maps and keys are replaced, not changed.
type piv struct {
	traits
	rand io.Reader

	pin, puk               reference
	pinChanged, pukChanged bool // by CHANGE REFERENCE DATA
	algorithm              byte
	adminKey               []byte
	block                  cipher.Block
	objects                map[apdu.Tag][]byte // 53 and all
	keys                   map[byte]*keyPair

	// These do not outlive a reset.
	verified, admin bool
	awaited         []byte // the right answer to the challenge or witness given last, if any
	witness         bool   // which of them it was
}

// keyPair is what is in a key slot. Without private it was erased.
type keyPair struct {
	algorithm byte
	public    []byte // the value of 7F49
	private   *ecdsa.PrivateKey
}

func newPIV(c Config, traits traits) (*piv, error) {
	p := &piv{traits: traits, rand: c.Rand}
	if err := p.manufacture(c); err != nil {
		return nil, err
	}
	return p, nil
}

// manufacture makes the application as Yubico's reset leaves it, except for c.
func (p *piv) manufacture(c Config) error {
	p.pin = reference{pad8(c.pin()), p.pinTries, p.pinTries}
	p.puk = reference{pad8(c.puk()), p.pukTries, p.pukTries}
	if c.Blocked {
		p.pin.left = 0
	}
	p.pinChanged, p.pukChanged = c.pin() != FactoryPIN, c.puk() != FactoryPUK
	p.setAdminKey(c.algorithm(), c.adminKey())
	p.keys = map[byte]*keyPair{}
	p.reset()
	guid := slices.Clone(c.ID)
	var err error
	if len(guid) == 0 {
		if guid, err = draw(p.rand, 16); err != nil {
			return err
		}
	}
	cccID, err := draw(p.rand, 21-len(p.cccPrefix))
	if err != nil {
		return err
	}
	if p.serial == nil {
		if p.serial, err = draw(p.rand, 4); err != nil {
			return err
		}
		p.serial[0] |= 0x80
	}
	p.objects = map[apdu.Tag][]byte{}
	p.put(tagCHUID, // SP 800-73 part 1, table 9
		apdu.TLV{Tag: 0x30, Value: orElseBytes(c.FASCN, p.fascn)},
		apdu.TLV{Tag: 0x34, Value: guid},
		apdu.TLV{Tag: 0x35, Value: []byte("20500101")},
		apdu.TLV{Tag: 0x3E},
		apdu.TLV{Tag: 0xFE})
	p.put(tagCCC, // SP 800-73 part 1, table 8
		apdu.TLV{Tag: 0xF0, Value: slices.Concat(p.cccPrefix, cccID)},
		apdu.TLV{Tag: 0xF1, Value: []byte{0x21}},
		apdu.TLV{Tag: 0xF2, Value: []byte{0x21}},
		apdu.TLV{Tag: 0xF3},
		apdu.TLV{Tag: 0xF4, Value: p.cccArchitecture},
		apdu.TLV{Tag: 0xF5, Value: []byte{0x10}},
		apdu.TLV{Tag: 0xF6}, apdu.TLV{Tag: 0xF7}, apdu.TLV{Tag: 0xFA}, apdu.TLV{Tag: 0xFB},
		apdu.TLV{Tag: 0xFC}, apdu.TLV{Tag: 0xFD}, apdu.TLV{Tag: 0xFE})
	return nil
}

func (p *piv) put(tag apdu.Tag, items ...apdu.TLV) {
	p.objects[tag] = apdu.EncodeTLV(apdu.TLV{Tag: tagData, Value: apdu.EncodeTLV(items...)})
}

func (p *piv) setAdminKey(algorithm byte, key []byte) {
	p.algorithm, p.adminKey, p.block = algorithm, key, newCipher(algorithm, key)
}

func (p *piv) name() []byte { return pivAID }
func (p *piv) chunk() int   { return p.traits.chunk }

// selected leaves the PIN verified (SP 800-73, 3.1.1), but the management key has to be
// shown anew: both cards want that.
func (p *piv) selected(apdu.Command) apdu.Response {
	p.admin, p.awaited = false, nil
	return data(p.template)
}

func (p *piv) reset() { p.verified, p.admin, p.awaited = false, false, nil }

func (p *piv) refuses(c apdu.Command) apdu.SW {
	if c.CLA&^chained != 0 {
		return apdu.SWClassNotSupported
	}
	return 0
}

func (p *piv) inspect(s *State) {
	s.PINVerified, s.AdminVerified = p.verified, p.admin
	s.PINTries, s.PINMost = p.pin.left, p.pin.most
	s.PUKTries, s.PUKMost = p.puk.left, p.puk.most
	for _, k := range p.keys {
		if k.private != nil {
			s.Keys++
		}
	}
}

func (p *piv) clone() application {
	copied := *p
	return &copied
}

func (p *piv) digest(d *Digest) {
	d.pin, d.puk = p.pin.digest(), p.puk.digest()
	d.pinChanged, d.pukChanged = p.pinChanged, p.pukChanged
	d.awaits = flag(p.awaited != nil && p.witness)
	d.add(p.awaited)
}

func (p *piv) pinIs(pin string) bool      { return bytes.Equal(p.pin.value, pad8(pin)) }
func (p *piv) pukIs(puk string) bool      { return bytes.Equal(p.puk.value, pad8(puk)) }
func (p *piv) adminKeyIs(key []byte) bool { return bytes.Equal(p.adminKey, key) }

// pad8 pads with FF (SP 800-73, 2.4.3).
func pad8(s string) []byte {
	b := bytes.Repeat([]byte{0xFF}, max(8, len(s)))
	copy(b, s)
	return b
}

func (p *piv) perform(c apdu.Command) apdu.Response {
	switch c.INS {
	case insVerify:
		return status(p.verify(c))
	case insChangeReferenceData:
		return status(p.change(c))
	case insResetRetryCounter:
		return status(p.unblock(c))
	case insGetData:
		return p.getData(c)
	case insPutData:
		return status(p.putData(c))
	case insGeneralAuthenticate:
		return p.authenticate(c)
	case insGenerateKeyPair:
		return p.generate(c)
	case insGetMetadata:
		return p.metadata(c)
	case insGetVersion:
		return data(p.version)
	case insGetSerial:
		return data(p.serial)
	case insSetManagementKey:
		return status(p.changeAdminKey(c))
	case insResetApplication:
		if p.pin.left > 0 || p.puk.left > 0 {
			return status(apdu.SWSecurityStatus)
		}
		if p.manufacture(Config{}) != nil {
			return status(apdu.SWMemoryFailure)
		}
		return status(apdu.SWOK)
	}
	return status(apdu.SWInstructionNotSupported)
}

// verify is VERIFY (SP 800-73, 3.2.1).
func (p *piv) verify(c apdu.Command) apdu.SW {
	switch {
	case c.P1 != 0x00 && c.P1 != 0xFF:
		return apdu.SWIncorrectP1P2
	case c.P2 != refPIN:
		return apdu.SWReferenceDataNotFound
	case p.blockedFirst && p.pin.left == 0:
		return apdu.SWBlocked
	case c.P1 == 0xFF:
		p.verified = false
		return apdu.SWOK
	case len(c.Data) == 0 && p.verified:
		return apdu.SWOK
	case len(c.Data) == 0:
		return p.pin.triesLeft()
	case len(c.Data) != 8:
		return p.wrongLength
	}
	return p.check(&p.pin, c.Data)
}

// check presents a PIN or PUK.
func (p *piv) check(r *reference, candidate []byte) apdu.SW {
	if r.left == 0 {
		return apdu.SWBlocked
	}
	right := r.check(candidate)
	if r == &p.pin {
		p.verified = right
	}
	if right {
		return apdu.SWOK
	}
	if p.erases && p.pin.left == 0 && p.puk.left == 0 {
		erased := map[byte]*keyPair{}
		for slot, k := range p.keys {
			erased[slot] = &keyPair{algorithm: k.algorithm, public: k.public}
		}
		p.keys = erased
	}
	if r.left == 0 {
		return p.lastWrong
	}
	return r.triesLeft()
}

// change is CHANGE REFERENCE DATA (SP 800-73, 3.2.2).
func (p *piv) change(c apdu.Command) apdu.SW {
	r, changed := &p.pin, &p.pinChanged
	switch {
	case c.P1 != 0x00:
		return apdu.SWIncorrectP1P2
	case c.P2 == refPUK:
		r, changed = &p.puk, &p.pukChanged
	case c.P2 != refPIN:
		return apdu.SWReferenceDataNotFound
	}
	sw := p.replace(r, c.Data, r)
	if sw == apdu.SWOK {
		*changed = true
	}
	return sw
}

// unblock is RESET RETRY COUNTER (SP 800-73, 3.2.3).
func (p *piv) unblock(c apdu.Command) apdu.SW {
	switch {
	case c.P1 != 0x00:
		return apdu.SWIncorrectP1P2
	case c.P2 != refPIN:
		return apdu.SWReferenceDataNotFound
	}
	return p.replace(&p.puk, c.Data, &p.pin)
}

// replace presents the first 8 bytes and sets the other 8. A PIN that was set is not
// verified by that.
func (p *piv) replace(old *reference, both []byte, target *reference) apdu.SW {
	if len(both) != 16 {
		return p.wrongLength
	}
	if sw := p.check(old, both[:8]); sw != apdu.SWOK {
		return sw
	}
	if p.checksDigits && !digits(both[8:]) {
		return apdu.SWWrongData
	}
	target.set(both[8:])
	if target == &p.pin {
		p.verified = false
	}
	return apdu.SWOK
}

// digits tells whether these are 6 digits and 2 more or FF.
func digits(b []byte) bool {
	for i, x := range b {
		if (x < '0' || x > '9') && (i < 6 || x != 0xFF) {
			return false
		}
	}
	return true
}

// getData is GET DATA (SP 800-73, 3.1.2).
func (p *piv) getData(c apdu.Command) apdu.Response {
	if c.P1 != 0x3F || c.P2 != 0xFF {
		return status(apdu.SWIncorrectP1P2)
	}
	items, err := apdu.ParseTLV(c.Data)
	if err != nil || len(items) != 1 || items[0].Tag != tagTagList {
		return status(apdu.SWWrongData)
	}
	tag := tagIn(items[0].Value)
	if tag == tagDiscovery {
		return data(p.discovery)
	}
	object, ok := p.objects[tag]
	if !ok {
		return status(apdu.SWNotFound)
	}
	return data(object)
}

// tagIn reads a tag that is a value; 0 is none.
func tagIn(b []byte) apdu.Tag {
	if len(b) > 3 {
		return 0
	}
	var tag apdu.Tag
	for _, x := range b {
		tag = tag<<8 | apdu.Tag(x)
	}
	return tag
}

// putData is PUT DATA (SP 800-73, 3.3.1).
func (p *piv) putData(c apdu.Command) apdu.SW {
	if c.P1 != 0x3F || c.P2 != 0xFF {
		return apdu.SWIncorrectP1P2
	}
	if !p.admin {
		return apdu.SWSecurityStatus
	}
	items, err := apdu.ParseTLV(c.Data)
	if err != nil || len(items) != 2 || items[0].Tag != tagTagList || items[1].Tag != tagData {
		return apdu.SWWrongData
	}
	// The objects of SP 800-73 part 1, table 3, and those that Yubico added.
	tag := tagIn(items[0].Value)
	if (tag < 0x5FC101 || tag > 0x5FC123) && (tag < 0x5FFF00 || tag > 0x5FFF15) {
		return apdu.SWFunctionNotSupported
	}
	p.objects = maps.Clone(p.objects)
	delete(p.objects, tag)
	if len(items[1].Value) > 0 {
		p.objects[tag] = apdu.EncodeTLV(items[1])
	}
	return apdu.SWOK
}

// authenticate is GENERAL AUTHENTICATE (SP 800-73, 3.2.4).
func (p *piv) authenticate(c apdu.Command) apdu.Response {
	algorithm := orElse(c.P1, tdes) // SP 800-78-4, table 6-2: 00 is 3DES
	key := p.keys[c.P2]
	if c.P2 != refAdmin && key == nil || c.P2 == refAdmin && algorithm != p.algorithm || key != nil && algorithm != key.algorithm {
		return status(apdu.SWIncorrectP1P2)
	}
	template, err := apdu.FindTLV(c.Data, tagDynamic)
	if err != nil {
		return status(apdu.SWWrongData)
	}
	items, err := apdu.ParseTLV(template)
	if err != nil {
		return status(apdu.SWWrongData)
	}
	fields := map[apdu.Tag][]byte{}
	for _, item := range items {
		fields[item.Tag] = item.Value
	}
	if key != nil {
		return p.sign(c.P2, key, fields[tagChallenge])
	}
	return p.authenticateAdmin(fields)
}

// dynamic is a dynamic authentication template (SP 800-73, table 7).
func dynamic(tag apdu.Tag, value []byte) apdu.Response {
	return data(apdu.EncodeTLV(apdu.TLV{Tag: tagDynamic, Value: apdu.EncodeTLV(apdu.TLV{Tag: tag, Value: value})}))
}

// authenticateAdmin lets the management key be shown, by answering a challenge or by
// deciphering a witness (SP 800-73, appendix A.1 and A.2).
func (p *piv) authenticateAdmin(fields map[apdu.Tag][]byte) apdu.Response {
	witness, isWitness := fields[tagWitness]
	challenge, isChallenge := fields[tagChallenge]
	response := fields[tagResponse]
	awaited, awaitsWitness := p.awaited, p.witness
	p.awaited = nil
	asksWitness := isWitness && len(witness) == 0
	switch {
	case asksWitness || isChallenge && len(challenge) == 0:
		p.admin = false
		nonce, err := draw(p.rand, p.block.BlockSize())
		if err != nil {
			return status(apdu.SWMemoryFailure)
		}
		enciphered := make([]byte, len(nonce))
		p.block.Encrypt(enciphered, nonce)
		if p.witness = asksWitness; asksWitness {
			p.awaited = nonce
			return dynamic(tagWitness, enciphered)
		}
		p.awaited = enciphered
		return dynamic(tagChallenge, nonce)
	case isWitness && isChallenge:
		if awaited == nil || !awaitsWitness || !bytes.Equal(witness, awaited) || len(challenge) != len(awaited) {
			return status(p.wrongAnswer)
		}
		p.admin = true
		enciphered := make([]byte, len(challenge))
		p.block.Encrypt(enciphered, challenge)
		return dynamic(tagResponse, enciphered)
	case len(response) > 0:
		if awaited == nil || awaitsWitness || !bytes.Equal(response, awaited) {
			return status(p.wrongAnswer)
		}
		p.admin = true
		return status(apdu.SWOK)
	}
	return status(apdu.SWWrongData)
}

// needsPIN: the card authentication key does not (SP 800-73 part 1, table 4b).
func needsPIN(slot byte) bool { return slot != 0x9E }

// sign signs a hash. That 9C wants the PIN before every signature is left out.
func (p *piv) sign(slot byte, key *keyPair, hash []byte) apdu.Response {
	switch {
	case needsPIN(slot) && !p.verified:
		return status(apdu.SWSecurityStatus)
	case len(hash) == 0:
		return status(apdu.SWWrongData)
	case key.private == nil:
		return status(apdu.SWNoDiagnosis)
	}
	signature, err := ecdsa.SignASN1(p.rand, key.private, hash)
	if err != nil {
		return status(apdu.SWNoDiagnosis)
	}
	return dynamic(tagResponse, signature)
}

// generate is GENERATE ASYMMETRIC KEY PAIR (SP 800-73, 3.3.2), of P-256 only.
func (p *piv) generate(c apdu.Command) apdu.Response {
	slots := []byte{0x9A, 0x9C, 0x9D, 0x9E}
	algorithm, err := apdu.FindTLV(c.Data, 0xAC, 0x80)
	switch {
	case c.P1 != 0x00 || !slices.Contains(slots, c.P2):
		return status(apdu.SWIncorrectP1P2)
	case !p.admin:
		return status(apdu.SWSecurityStatus)
	case err != nil || !bytes.Equal(algorithm, []byte{p256}):
		return status(apdu.SWWrongData)
	}
	key, err := newKeyPair(p.rand)
	if err != nil {
		return status(apdu.SWMemoryFailure)
	}
	p.keys = maps.Clone(p.keys)
	p.keys[c.P2] = key
	return data(apdu.EncodeTLV(apdu.TLV{Tag: tagPublicKey, Value: key.public}))
}

func newKeyPair(rand io.Reader) (*keyPair, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, err
	}
	var public *ecdh.PublicKey
	if public, err = private.PublicKey.ECDH(); err != nil {
		return nil, err
	}
	return &keyPair{p256, apdu.EncodeTLV(apdu.TLV{Tag: tagECPoint, Value: public.Bytes()}), private}, nil
}

// metadata is Yubico's GET METADATA: 01 algorithm, 02 policies for PIN and touch, 03
// generated or imported, 04 public key, 05 whether it is the default, 06 tries in all
// and left.
func (p *piv) metadata(c apdu.Command) apdu.Response {
	switch c.P2 {
	case refPIN:
		return data(p.describe(&p.pin, FactoryPIN, p.pinChanged))
	case refPUK:
		return data(p.describe(&p.puk, FactoryPUK, p.pukChanged))
	case refAdmin:
		isDefault := p.algorithm == tdes && bytes.Equal(p.adminKey, FactoryAdminKey)
		return data(p.adminMetadata(p.algorithm, flag(isDefault)))
	}
	key := p.keys[c.P2]
	if key == nil {
		return status(apdu.SWReferenceDataNotFound)
	}
	const never, once, generated = 1, 2, 1
	policy := byte(never)
	if needsPIN(c.P2) {
		policy = once
	}
	return data(apdu.EncodeTLV(
		apdu.TLV{Tag: 0x01, Value: []byte{key.algorithm}},
		apdu.TLV{Tag: 0x02, Value: []byte{policy, never}},
		apdu.TLV{Tag: 0x03, Value: []byte{generated}},
		apdu.TLV{Tag: 0x04, Value: key.public}))
}

func (p *piv) describe(r *reference, factory string, changed bool) []byte {
	isDefault := bytes.Equal(r.value, pad8(factory))
	if p.tellsChanges {
		isDefault = !changed
	}
	return append(slices.Clone(p.pinMetadata), 5, 1, flag(isDefault), 6, 2, byte(r.most), byte(r.left))
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// changeAdminKey is Yubico's SET MANAGEMENT KEY: algorithm, reference, length, key.
func (p *piv) changeAdminKey(c apdu.Command) apdu.SW {
	switch {
	case c.P1 != 0xFF || c.P2 != 0xFF:
		return apdu.SWIncorrectP1P2
	case !p.admin:
		return apdu.SWSecurityStatus
	case len(c.Data) < 3 || c.Data[1] != refAdmin || len(c.Data) != 3+int(c.Data[2]):
		return apdu.SWWrongData
	}
	algorithm, key := c.Data[0], c.Data[3:]
	if n := keyLength(algorithm); n == 0 || n != len(key) {
		return apdu.SWWrongData
	}
	p.setAdminKey(algorithm, slices.Clone(key))
	return apdu.SWOK
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
