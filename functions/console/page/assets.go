package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
)

//go:embed assets
var assetFiles embed.FS

const assetRoot = Root + "/assets/"

// asset is a file that pages load. Its URL holds its hash, so browsers keep it for good.
type asset struct {
	hash, kind      string
	content, zipped []byte
}

var assets = sync.OnceValue(func() map[string]asset {
	all := make(map[string]asset)
	files, _ := fs.ReadDir(assetFiles, "assets")
	for _, file := range files {
		content, err := assetFiles.ReadFile("assets/" + file.Name())
		if err != nil {
			panic(err) // it is built in
		}
		sum := sha256.Sum256(content)
		var zipped bytes.Buffer
		z, _ := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
		_, _ = z.Write(content)
		_ = z.Close()
		all[file.Name()] = asset{hex.EncodeToString(sum[:8]), mime.TypeByExtension(path.Ext(file.Name())), content, zipped.Bytes()}
	}
	return all
})

// assetURL returns where a file of assets is.
func assetURL(name string) string { return assetRoot + assets()[name].hash + "/" + name }

func serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := assets()[r.PathValue("name")]
	if !ok || a.hash != r.PathValue("hash") {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	content := a.content
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		content = a.zipped
	}
	_, _ = w.Write(content)
}

// join returns a path under Root, of parts that are ours and parts that are not: every
// second one is escaped.
func join(parts ...any) string {
	var b strings.Builder
	b.WriteString(Root)
	for i, p := range parts {
		if i%2 == 1 {
			b.WriteString(url.PathEscape(text(p)))
		} else {
			b.WriteString(text(p))
		}
	}
	return b.String()
}
