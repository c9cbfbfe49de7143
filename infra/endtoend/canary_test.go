//go:build linux && cgo && !nopcsc

package endtoend

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keepsSecret fails the test if a secret is in what the programs have logged, in the
// bridge's folder, or in the clear in the table. The admin key of the API is printed once,
// when it is made.
func (in *installation) keepsSecret(secrets ...string) {
	in.Helper()
	type place struct {
		name string
		text []byte
	}
	var places []place
	add := func(file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			in.Fatal(err)
		}
		places = append(places, place{file, b})
	}
	add(in.outputOf("bridge"))
	add(filepath.Join(in.data, "log.jsonl"))
	add(filepath.Join(in.data, "pinward.db"))
	if _, err := os.Stat(in.outputOf("terminal")); err == nil {
		add(in.outputOf("terminal"))
	}
	printed, err := os.ReadFile(in.outputOf("pinward"))
	if err != nil {
		in.Fatal(err)
	}
	places = append(places, place{"the cloud's output", bytes.Replace(printed, []byte("export KEY="+in.key+"\n"), nil, 1)})
	err = filepath.WalkDir(in.state, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			add(path)
		}
		return err
	})
	if err != nil {
		in.Fatal(err)
	}
	for _, p := range places {
		// What is looked at must be what was written to.
		if len(p.text) == 0 && !strings.HasPrefix(p.name, in.state) {
			in.Errorf("%s is empty", p.name)
		}
		for i, s := range append(secrets, in.key, keyPart(in.key)) {
			if how := reveals(p.text, s); how != "" {
				in.Errorf("%s has secret %d (%d bytes) in %s", p.name, i, len(s), how)
			}
		}
	}
}

// keyPart is the part of an API key that is secret.
func keyPart(key string) string { return key[strings.LastIndex(key, "_")+1:] }

// reveals tells in which form a text has a secret, "" if it has not.
func reveals(text []byte, secret string) string {
	for rest := text; ; {
		at := bytes.Index(rest, []byte(secret))
		if at < 0 {
			break
		}
		end := at + len(secret)
		// Digits among digits, as in a time, are a coincidence.
		among := at > 0 && isDigit(rest[at-1]) && isDigit(secret[0]) || end < len(rest) && isDigit(rest[end]) && isDigit(secret[len(secret)-1])
		if !among {
			return "the clear"
		}
		rest = rest[at+1:]
	}
	h := []byte(hex.EncodeToString([]byte(secret)))
	if bytes.Contains(text, h) || bytes.Contains(text, bytes.ToUpper(h)) {
		return "hex"
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		// Within a longer text it may begin at any of three places; the characters at
		// the ends are shared with what is around it.
		for before := range 3 {
			e := encoding.EncodeToString(append(make([]byte, before), secret...))
			from := []int{0, 2, 3}[before]
			to := (before + len(secret)) * 8 / 6
			if bytes.Contains(text, []byte(e[from:to])) {
				return "base64"
			}
		}
	}
	return ""
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

// TestReveals shows that a secret is found.
func TestReveals(t *testing.T) {
	const secret = "48291736"
	for _, text := range []string{
		"PIN=48291736", "a\x0848291736\xFF", hex.EncodeToString([]byte("x" + secret + "\xFF\xFF")), strings.ToUpper(hex.EncodeToString([]byte(secret))),
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("a" + secret + "b")),
		base64.URLEncoding.EncodeToString([]byte("ab" + secret)), base64.StdEncoding.EncodeToString([]byte("abc" + secret + "xyz")),
	} {
		if reveals([]byte(text), secret) == "" {
			t.Errorf("not found in %q", text)
		}
	}
	for _, text := range []string{"", "PIN=48291737", "T12:30:01.482917365Z"} {
		if how := reveals([]byte(text), secret); how != "" {
			t.Errorf("found in %q in %s", text, how)
		}
	}
}

// listening returns the sockets of a process that others can reach it by.
func listening(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, fd := range fds {
		target, _ := os.Readlink(dir + "/fd/" + fd.Name())
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var found []string
	// Which column has the inode, and what tells that it waits for others (proc(5)).
	for _, table := range []struct {
		name  string
		inode int
		waits func(fields []string) bool
	}{
		{"tcp", 9, func(f []string) bool { return f[3] == "0A" }},
		{"tcp6", 9, func(f []string) bool { return f[3] == "0A" }},
		{"udp", 9, func(f []string) bool { return f[3] == "07" }},
		{"udp6", 9, func(f []string) bool { return f[3] == "07" }},
		{"unix", 6, func(f []string) bool { return f[3] == "00010000" }},
	} {
		b, err := os.ReadFile(dir + "/net/" + table.name)
		if err != nil {
			if os.IsNotExist(err) { // a kernel without IPv6
				continue
			}
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > table.inode && own[f[table.inode]] && table.waits(f) {
				found = append(found, table.name+" "+line)
			}
		}
	}
	if len(own) == 0 {
		return nil, fmt.Errorf("process %d has no sockets at all", pid)
	}
	return found, nil
}

// listensNowhere fails the test if the bridge can be reached from outside.
func (in *installation) listensNowhere() {
	in.Helper()
	found, err := listening(in.bridge.cmd.Process.Pid)
	if err != nil || len(found) > 0 {
		in.Errorf("the bridge listens: %v %v", found, err)
	}
	// The cloud does, which shows that this can be seen.
	if found, err := listening(in.cloud.cmd.Process.Pid); err != nil || !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, "tcp") }) {
		in.Errorf("the cloud does not listen: %v %v", found, err)
	}
}
