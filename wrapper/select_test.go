package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
)

// packedNames packs what the patterns select of a tree, and gives the names in the index.
func packedNames(t *testing.T, base string, patterns ...string) (names []string, packing *packer) {
	t.Helper()
	selected, err := newSelection(base, patterns)
	if err != nil {
		t.Fatal(err)
	}
	index := newIndexWriter()
	packing, archive, err := packInto(context.Background(), io.Discard, base, selected, index, unlimited())
	if err != nil {
		t.Fatal(err)
	}
	if err := index.finish(indexEnd{Bytes: archive.size, Offsets: archive.offsets}); err != nil {
		t.Fatal(err)
	}
	from, _ := index.open()
	text, _ := io.ReadAll(from)
	if int64(len(text)) != index.size {
		t.Errorf("the index has %d bytes, %d were announced", len(text), index.size)
	}
	var decoded struct{ Entries []indexEntry }
	if err := json.Unmarshal(text, &decoded); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, entry := range decoded.Entries {
		names = append(names, entry.Path)
	}
	return names, packing
}

func plant(t *testing.T, files ...string) string {
	t.Helper()
	base := t.TempDir()
	for _, name := range files {
		path := filepath.Join(base, name)
		if strings.HasSuffix(name, "/") {
			os.MkdirAll(path, 0o755)
			continue
		}
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

func TestPatterns(t *testing.T) {
	base := plant(t, "a.go", "b.go", "c.txt", ".hidden", "x/a.go", "x/y/a.go", "x/y/z/a.go", "x/empty/", "target/classes/A.class", "target/B.class", "**literal", "a[1]", "node_modules/p/index.js")
	for _, c := range []struct {
		patterns []string
		want     string
		missing  int
	}{
		{[]string{"*.go"}, "a.go b.go", 0},
		{[]string{"a.go", "a.go", "./a.go"}, "a.go", 0},
		{[]string{"**/*.go"}, "a.go b.go x/a.go x/y/a.go x/y/z/a.go", 0},
		{[]string{"x/**/a.go"}, "x/a.go x/y/a.go x/y/z/a.go", 0},
		{[]string{"**/y/**/a.go"}, "x/y/a.go x/y/z/a.go", 0},
		{[]string{"**/z"}, "x/y/z/ x/y/z/a.go", 0},
		{[]string{"x/*/"}, "x/a.go x/empty/ x/y/ x/y/a.go x/y/z/ x/y/z/a.go", 0},
		{[]string{"x/empty"}, "x/empty/", 0},
		{[]string{"**/*.class"}, "target/B.class target/classes/A.class", 0},
		{[]string{"target/**"}, "target/B.class target/classes/ target/classes/A.class", 0},
		{[]string{".*"}, ".hidden", 0},
		{[]string{"?.go"}, "a.go b.go", 0},
		{[]string{"[b-z].go"}, "b.go", 0},
		{[]string{"[^b].go"}, "a.go", 0},
		{[]string{`a\[1\]`}, "a[1]", 0},
		{[]string{`\*\*literal`}, "**literal", 0},
		{[]string{"none", "c.txt", "no*"}, "c.txt node_modules/ node_modules/p/ node_modules/p/index.js", 1},
		{[]string{"x/a.go/deeper"}, "", 1},
		{[]string{"x/../c.txt"}, "c.txt", 0},
		{[]string{base + "/c.txt"}, "c.txt", 0},
		{[]string{base + "/x/y"}, "x/y/ x/y/a.go x/y/z/ x/y/z/a.go", 0},
		{[]string{"**/**/a.go"}, "a.go x/a.go x/y/a.go x/y/z/a.go", 0},
		{[]string{"x/y", "x/y/z/a.go"}, "x/y/ x/y/a.go x/y/z/ x/y/z/a.go", 0},
	} {
		names, packing := packedNames(t, base, c.patterns...)
		sort.Strings(names)
		if got := strings.Join(names, " "); got != c.want || len(packing.missing()) != c.missing {
			t.Errorf("%q:\n got %s\nwant %s; missing %q", c.patterns, got, c.want, packing.missing())
		}
	}
	all, _ := packedNames(t, base, ".")
	everything, _ := packedNames(t, base, "**")
	if !reflect.DeepEqual(all, everything) || len(all) != 20 {
		t.Errorf("%d and %d: %q", len(all), len(everything), all)
	}
}

func TestPatternsThatAreRefused(t *testing.T) {
	for _, pattern := range []string{"..", "../x", "x/../../y", "/etc/passwd", "/", "[", "a/[z-", "x/[]"} {
		if _, err := newSelection("/base", []string{"good", pattern}); err == nil || len(err.Error()) < 30 {
			t.Errorf("%q: %v", pattern, err)
		}
	}
	for _, pattern := range []string{"", ".", "./", "x/..", "/base", "/base/", "...", "..x", "a..b"} {
		if _, err := newSelection("/base", []string{pattern}); err != nil {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

func TestLinksOnTheWay(t *testing.T) {
	base := plant(t, "real/sub/f", "other/g")
	os.Symlink("real", filepath.Join(base, "way"))
	os.Symlink("../..", filepath.Join(base, "real/out"))
	os.Symlink("/etc", filepath.Join(base, "abs"))
	os.Symlink("loop", filepath.Join(base, "loop"))
	for pattern, want := range map[string]string{
		"way/sub/f":    "way/sub/f",
		"way":          "way/ way/sub/ way/sub/f",
		"real":         "real/ real/sub/ real/sub/f",
		"real/out/*":   "",
		"abs/passwd":   "",
		"abs":          "",
		"loop":         "",
		"loop/x":       "",
		"*/sub":        "real/sub/ real/sub/f way/sub/ way/sub/f",
		"other/../way": "way/ way/sub/ way/sub/f",
	} {
		names, _ := packedNames(t, base, pattern)
		sort.Strings(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q: got %q, want %q", pattern, got, want)
		}
	}
}

// The index leads to the content of every single file, without unpacking the rest.
func TestIndexLeadsToEveryFile(t *testing.T) {
	base := t.TempDir()
	want := map[string][]byte{}
	for i, size := range []int{0, 1, 511, 512, 513, 100_000, chunkBytes - 512, chunkBytes, 2*chunkBytes + 99, 7, 300_000} {
		name := fmt.Sprintf("d%d/file-%d", i%3, i)
		os.MkdirAll(filepath.Join(base, filepath.Dir(name)), 0o755)
		want[name] = textOf(size)
		if err := os.WriteFile(filepath.Join(base, name), want[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	selected, _ := newSelection(base, []string{"."})
	index := newIndexWriter()
	var packed bytes.Buffer
	_, archive, err := packInto(context.Background(), &packed, base, selected, index, unlimited())
	if err != nil {
		t.Fatal(err)
	}
	if err := index.finish(indexEnd{Bytes: archive.size, SHA256: archive.sum(), ChunkBytes: chunkBytes, Offsets: archive.offsets}); err != nil {
		t.Fatal(err)
	}
	from, _ := index.open()
	var decoded struct {
		Version int
		Entries []indexEntry
		Archive indexEnd
	}
	if err := json.NewDecoder(from).Decode(&decoded); err != nil || decoded.Version != 1 || decoded.Archive.Bytes != int64(packed.Len()) {
		t.Fatalf("%v %+v", err, decoded.Archive)
	}
	found := 0
	for _, entry := range decoded.Entries {
		if entry.Type != "file" {
			continue
		}
		found++
		if writesFormat != "zstd" {
			continue
		}
		offset := entry.Offset
		if entry.Size == 0 {
			continue // may stand right behind the last chunk
		}
		stream, err := openArchive(bytes.NewReader(packed.Bytes()[decoded.Archive.Offsets[offset/chunkBytes]:]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, stream, offset%chunkBytes); err != nil {
			t.Fatal(err)
		}
		content := make([]byte, entry.Size)
		if _, err := io.ReadFull(stream, content); err != nil || !bytes.Equal(content, want[entry.Path]) {
			t.Errorf("%s at %d: %v, or other content", entry.Path, offset, err)
		}
		stream.Close()
	}
	if found != len(want) {
		t.Errorf("%d of %d files", found, len(want))
	}
}

// A link may climb out of its own directory and still stay in the saved tree: only the top can judge it.
func TestNamedLinksThatClimb(t *testing.T) {
	base := plant(t, "out/v3/app", "out/v3/sub/deep", "out/f")
	for name, target := range map[string]string{
		"build/latest": "../out/v3", "build/file": "../out/f", "build/dead": "../out/v4", "build/away": "../../elsewhere",
		"out/v3/up": "../f", "out/v3/circle": "../../build",
	} {
		os.MkdirAll(filepath.Dir(filepath.Join(base, name)), 0o755)
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ pattern, want, why string }{
		{"build/latest", "build/latest/ build/latest/app build/latest/circle build/latest/sub/ build/latest/sub/deep build/latest/up", ""},
		{"build/latest/app", "build/latest/app", ""},
		{"build/latest/up", "build/latest/up", ""},
		{"build/latest/sub/*", "build/latest/sub/deep", ""},
		{"build/*/app", "build/latest/app", ""},
		{"build/file", "build/file", ""},
		{"build/dead", "", `: "build/dead" is a link that leads nowhere or out`},
		{"build/away", "", `: "build/away" is a link that leads nowhere or out`},
		{"build/dead/app", "", `: "build/dead" is a link that leads nowhere or out`},
		{"build/none", "", ""},
		{"**/app", "out/v3/app", ""},                           // ** does not go through links
		{"build/**", "build/dead build/file build/latest", ""}, // as they are: what leads nowhere is kept, what leads out is not
	} {
		names, packing := packedNames(t, base, c.pattern)
		sort.Strings(names)
		missing := 0
		if c.want == "" {
			missing = 1
		}
		if got := strings.Join(names, " "); got != c.want || len(packing.missing()) != missing || !strings.HasPrefix(packing.whyMissing(), c.why) || c.why == "" && packing.whyMissing() != "" {
			t.Errorf("%q:\n got %s\nwant %s; missing %q%s", c.pattern, got, c.want, packing.missing(), packing.whyMissing())
		}
	}
}

// A required save of a link that leads nowhere fails, and says why.
func TestNamedDeadLinkFailsARequiredSave(t *testing.T) {
	s := newStore(t)
	shell(t, "ln -s ../gone dist").set("save", []any{save(s, "artifact", "a", "dist")}).run().
		expect(outcomeSaveFailed, exitWrapper).expectMessage(`nothing matches "dist"`, `"dist" is a link that leads nowhere or out`)
	if s.object("a") != nil {
		t.Error("an empty archive was stored")
	}
}
