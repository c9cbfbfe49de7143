// Package script holds the pages' scripts as they are written, and the tests that what
// pages load (../assets) is made of them and does its work in a real browser.
package script

import (
	"bytes"
	"compress/gzip"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/evanw/esbuild/pkg/api"

	"github.com/pinward/pinward/infra/testserver"
)

var update = flag.Bool("update", false, "write ../assets anew (make assets)")

// asset is a script that pages load.
type asset struct {
	name string
	// most is its greatest size over the wire, in bytes. A page's first load is to have
	// at most 100 KB in all.
	most int
	make func(t *testing.T) []byte
}

var assets = []asset{
	{"htmx.js", 17_000, func(t *testing.T) []byte { return npm(t, "htmx.org", "dist/htmx.min.js") }},
	{"seal.js", 10_500, func(t *testing.T) []byte {
		banner := "/*! Contains @hpke/core and @hpke/common.\n" + string(npm(t, "@hpke/core", "LICENSE")) + "\n" + string(npm(t, "@hpke/common", "LICENSE")) + "*/"
		return bundle(t, "seal.js", banner)
	}},
	{"keypad.js", 1_000, func(t *testing.T) []byte { return bundle(t, "keypad.js", "") }},
	{"page.js", 1_000, func(t *testing.T) []byte { return bundle(t, "page.js", "") }},
}

// npm returns a file of an npm package.
func npm(t *testing.T, module, file string) []byte {
	t.Helper()
	dir, err := testserver.Module(module)
	testserver.Need(t, err)
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// bundle makes one script of a file and of what it imports.
func bundle(t *testing.T, file, banner string) []byte {
	t.Helper()
	hpke, err := testserver.Module("@hpke/core")
	testserver.Need(t, err)
	result := api.Build(api.BuildOptions{
		EntryPoints:       []string{file},
		NodePaths:         []string{filepath.Dir(filepath.Dir(hpke))},
		Bundle:            true,
		MinifyWhitespace:  true,
		MinifyIdentifiers: true,
		MinifySyntax:      true,
		Format:            api.FormatIIFE,
		Target:            api.ES2022,
		Charset:           api.CharsetUTF8,
		LegalComments:     api.LegalCommentsEndOfFile,
		Banner:            map[string]string{"js": banner},
	})
	for _, m := range append(result.Errors, result.Warnings...) {
		t.Errorf("%s: %s", file, m.Text)
	}
	if t.Failed() {
		t.FailNow()
	}
	return result.OutputFiles[0].Contents
}

// TestAssets holds what pages load to its sources. The files are committed, so that
// `make run` needs no npm.
func TestAssets(t *testing.T) {
	for _, a := range assets {
		file := filepath.Join("..", "assets", a.name)
		want := a.make(t)
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what its sources make: run `make assets`", file)
		}
		if n := zipped(got); n > a.most {
			t.Errorf("%s has %d bytes over the wire, more than %d", a.name, n, a.most)
		} else {
			t.Logf("%s: %d bytes, %d over the wire", a.name, len(got), n)
		}
	}
}

func zipped(content []byte) int {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	_, _ = z.Write(content)
	_ = z.Close()
	return b.Len()
}
