package apdu_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

func TestParseTLVErrors(t *testing.T) {
	for _, in := range []string{
		"53",                            // no length
		"5F",                            // half a tag
		"5F C1",                         // two thirds of one
		"5F C1 82 03 00",                // a tag of 4 bytes
		"00 00",                         // padding is not a tag
		"5F 1E 00",                      // 30 has room in one byte
		"5F 80 01 00",                   // a number that begins with nothing
		"53 80 00 00",                   // indefinite
		"53 81",                         // no second byte of the length
		"53 82 01",                      // no third
		"53 85 00 00 00 00 00",          // longer than a length may be
		"53 FF",                         // reserved
		"53 02 30",                      // one byte missing
		"53 84 FF FF FF FF 00",          // 4 GiB missing
		"53 00 53",                      // an object, and a half
		"7F 71 06 97 01 03 93 01 03 FF", // half a tag after the end
	} {
		if items, err := apdu.ParseTLV(unhex(in)); err == nil {
			t.Errorf("%s is taken as %v", in, items)
		}
	}
}

func TestEncodeTLV(t *testing.T) {
	for _, test := range []struct {
		in   apdu.TLV
		want string // the beginning
	}{
		{apdu.TLV{0x53, nil}, "53 00"},
		{apdu.TLV{0x5FC102, make([]byte, 127)}, "5F C1 02 7F 00"},
		{apdu.TLV{0x7F71, make([]byte, 128)}, "7F 71 81 80 00"},
		{apdu.TLV{0x53, make([]byte, 256)}, "53 82 01 00 00"},
		{apdu.TLV{0x53, make([]byte, 65536)}, "53 84 00 01 00 00 00"},
	} {
		got := apdu.EncodeTLV(test.in)
		if !bytes.HasPrefix(got, unhex(test.want)) {
			t.Errorf("%s of %d: % .10X, want %s", test.in.Tag, len(test.in.Value), got, test.want)
		}
		if back, err := apdu.ParseTLV(got); err != nil || len(back) != 1 || back[0].Tag != test.in.Tag || len(back[0].Value) != len(test.in.Value) {
			t.Errorf("%s of %d: read as %d objects, %v", test.in.Tag, len(test.in.Value), len(back), err)
		}
	}
}

func TestFindTLV(t *testing.T) {
	in := unhex("53 04 30 02 D4 E7 53 02 34 00 70 01 FF")
	for _, test := range []struct {
		path []apdu.Tag
		want string
	}{
		{nil, "53 04 30 02 D4 E7 53 02 34 00 70 01 FF"},
		{[]apdu.Tag{0x53}, "30 02 D4 E7"}, // the first of two
		{[]apdu.Tag{0x53, 0x30}, "D4 E7"},
	} {
		if got, err := apdu.FindTLV(in, test.path...); err != nil || !bytes.Equal(got, unhex(test.want)) {
			t.Errorf("%v: % X, %v; want %s", test.path, got, err, test.want)
		}
	}
	if _, err := apdu.FindTLV(in, 0x53, 0x34); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("only in the second 53: %v, want ErrNotFound", err)
	}
	if _, err := apdu.FindTLV(in, 0x70, 0x30); err == nil || errors.Is(err, problem.ErrNotFound) {
		t.Errorf("in bytes that are not BER-TLV: %v", err)
	}
}

func FuzzTLV(f *testing.F) {
	for _, exchanges := range traces(f) {
		for _, x := range exchanges {
			if len(x.answer) > 2 {
				f.Add(x.answer[:len(x.answer)-2])
			}
		}
	}
	f.Add(unhex("53 84 00 00 00 01 AA 5F C1 02 82 00 00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := apdu.ParseTLV(b)
		if err != nil {
			return
		}
		written := apdu.EncodeTLV(items...)
		if len(written) > len(b) {
			t.Errorf("% X written longer, as % X", b, written)
		}
		back, err := apdu.ParseTLV(written)
		if diff := cmp.Diff(items, back); err != nil || diff != "" {
			t.Errorf("% X read again: %v\n%s", b, err, diff)
		}
		for _, item := range items {
			if !item.Tag.Valid() {
				t.Errorf("read a tag %s", item.Tag)
			}
			if _, err := apdu.FindTLV(b, item.Tag); err != nil {
				t.Errorf("%s is not found: %v", item.Tag, err)
			}
		}
	})
}
