package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Hostile archives that archive/tar would not write: headers made by hand, extended headers that say something else than the
// plain ones, lengths that lie.

// raw is a tar stream in the making.
type raw struct{ bytes.Buffer }

func (r *raw) block(kind byte, name, link string, size int64, content string) *raw {
	header := tar.Header{Mode: 0o644, ModTime: epoch}
	block := plainHeader(kind, name, &header, size)
	copy(block[157:257], link)
	return r.sealed(block, content)
}

// sealed writes a header with its checksum made right, and content in whole blocks.
func (r *raw) sealed(block [512]byte, content string) *raw {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(block[:])
	r.WriteString(content)
	r.Write(make([]byte, (512-len(content)%512)%512))
	return r
}

func (r *raw) pax(records ...string) *raw { return r.extended('x', records...) }

func (r *raw) extended(kind byte, records ...string) *raw {
	text := ""
	for i := 0; i < len(records); i += 2 {
		text += paxRecord(records[i], records[i+1])
	}
	return r.block(kind, "PaxHeaders.0/x", "", int64(len(text)), text)
}

func (r *raw) end() []byte {
	r.Write(make([]byte, 1024))
	return r.Bytes()
}

func TestHandMadeArchives(t *testing.T) {
	long := strings.Repeat("l/", 100) + "f"
	for name, c := range map[string]struct {
		stream []byte
		good   string // a file that must be there; "" = must be refused, or unreadable, and nothing be left
	}{
		"plain":                             {(&raw{}).block('0', "f", "", 4, "evil").end(), "f"},
		"old style, kind NUL":               {(&raw{}).block(0, "f", "", 4, "evil").end(), "f"},
		"kind NUL with a slash":             {(&raw{}).block(0, "d/", "", 0, "").block('0', "d/f", "", 4, "evil").end(), "d/f"},
		"PAX path, good":                    {(&raw{}).pax("path", "inner/f").block('0', "x", "", 4, "evil").end(), "inner/f"},
		"PAX path climbs":                   {(&raw{}).pax("path", "../precious").block('0', "x", "", 4, "evil").end(), ""},
		"PAX path is absolute":              {(&raw{}).pax("path", "/tmp/hubflow-evil").block('0', "x", "", 4, "evil").end(), ""},
		"PAX path is empty":                 {(&raw{}).pax("path", "").block('0', "x", "", 4, "evil").end(), "x"},
		"PAX path with NUL":                 {(&raw{}).pax("path", "a\x00b").block('0', "x", "", 4, "evil").end(), ""},
		"PAX linkpath climbs":               {(&raw{}).pax("linkpath", "../outside").block('2', "l", "inside", 0, "").end(), ""},
		"PAX linkpath, hard, climbs":        {(&raw{}).pax("linkpath", "../precious").block('1', "h", "f", 0, "").end(), ""},
		"PAX path and a plain one":          {(&raw{}).pax("path", "good").block('0', "../precious", "", 4, "evil").end(), "good"},
		"global PAX path":                   {(&raw{}).extended('g', "path", "../precious").block('0', "x", "", 4, "evil").end(), "x"},
		"global PAX comment":                {(&raw{}).extended('g', "comment", "0123abc").block('0', "x", "", 4, "evil").end(), "x"},
		"GNU long name, good":               {(&raw{}).block('L', "././@LongLink", "", int64(len(long)+1), long+"\x00").block('0', "x", "", 4, "evil").end(), ""}, // 101 deep is allowed, see below
		"GNU long name climbs":              {(&raw{}).block('L', "././@LongLink", "", 12, "../precious\x00").block('0', "x", "", 4, "evil").end(), ""},
		"GNU long link climbs":              {(&raw{}).block('K', "././@LongLink", "", 11, "../outside\x00").block('2', "l", "inside", 0, "").end(), ""},
		"a prefix that climbs":              {(&raw{}).sealed(withPrefix("..", "precious"), "evil").end(), ""},
		"an absolute prefix":                {(&raw{}).sealed(withPrefix("/tmp", "hubflow-evil"), "evil").end(), ""},
		"a good prefix":                     {(&raw{}).sealed(withPrefix("inner", "f"), "evil").end(), "inner/f"},
		"backslashes are a name":            {(&raw{}).block('0', `..\precious`, "", 4, "evil").end(), `..\precious`},
		"more content announced than there": {(&raw{}).block('0', "f", "", 1000, "evil").Bytes(), ""},
		"a size of 8 GiB in 4 bytes":        {(&raw{}).block('0', "f", "", 8<<30-1, "evil").end(), ""},
		"PAX size lies":                     {(&raw{}).pax("size", "99999999").block('0', "f", "", 4, "evil").end(), ""},
		"PAX size is negative":              {(&raw{}).pax("size", "-1").block('0', "f", "", 4, "evil").end(), ""},
		"PAX size is no number":             {(&raw{}).pax("size", "many").block('0', "f", "", 4, "evil").end(), ""},
		"a wrong checksum":                  {func() []byte { s := (&raw{}).block('0', "f", "", 4, "evil").end(); s[148] = '7'; return s }(), ""},
		"a device":                          {(&raw{}).block('3', "null", "", 0, "").end(), ""},
		"a block device":                    {(&raw{}).block('4', "sda", "", 0, "").end(), ""},
		"a pipe":                            {(&raw{}).block('6', "p", "", 0, "").end(), ""},
		"a contiguous file":                 {(&raw{}).block('7', "f", "", 4, "evil").end(), ""},
		"an unknown kind":                   {(&raw{}).block('Z', "f", "", 4, "evil").end(), ""},
		"a volume label":                    {(&raw{}).block('V', "label", "", 0, "").end(), ""},
		"a multi-volume file":               {(&raw{}).block('M', "f", "", 4, "evil").end(), ""},
		"a directory with content":          {(&raw{}).block('5', "d", "", 4, "evil").block('0', "d/f", "", 4, "evil").end(), ""},
		"a link with content":               {(&raw{}).block('2', "l", "f", 4, "evil").block('0', "f", "", 4, "evil").end(), ""},
		"a name of dots and slashes":        {(&raw{}).block('0', "./././f", "", 4, "evil").end(), "f"},
		"the top itself as a file":          {(&raw{}).block('0', ".", "", 4, "evil").block('0', "f", "", 4, "evil").end(), ""},
		"the top itself as a link":          {(&raw{}).block('2', "./", "f", 0, "").block('0', "f", "", 4, "evil").end(), ""},
		"the top itself":                    {(&raw{}).block('5', "./", "", 0, "").block('0', "f", "", 4, "evil").end(), "f"},
		"an empty name":                     {(&raw{}).block('0', "", "", 4, "evil").end(), ""},
		"a name that is a slash":            {(&raw{}).block('0', "/", "", 4, "evil").end(), ""},
		"no end":                            {(&raw{}).block('0', "f", "", 4, "evil").Bytes(), ""},
		"one block of zeros as end":         {append((&raw{}).block('0', "f", "", 4, "evil").Bytes(), make([]byte, 512)...), ""},
		"something behind the end":          {append((&raw{}).block('0', "f", "", 4, "evil").end(), (&raw{}).block('0', "g", "", 4, "evil").end()...), ""},
		"zeros behind the end":              {append((&raw{}).block('0', "f", "", 4, "evil").end(), make([]byte, 9216)...), "f"},
		"an extended header of its own":     {(&raw{}).pax("path", "x").Bytes(), ""},
		"two extended headers":              {(&raw{}).pax("path", "../precious").pax("path", "good").block('0', "x", "", 4, "evil").end(), "good"},
		"a PAX record without end":          {(&raw{}).block('x', "x", "", 9, "999 path=").block('0', "f", "", 4, "evil").end(), ""},
		"a PAX record of length 0":          {(&raw{}).block('x', "x", "", 9, "0 path=x\n").block('0', "f", "", 4, "evil").end(), ""},
		"sparse names climb":                {sparseRaw("../precious", "9999", []segment{{9999, 0}}, ""), ""},
		"sparse, good":                      {sparseRaw("s", "9999", []segment{{9999, 0}}, ""), "s"},
		"sparse, overlapping":               {sparseRaw("s", "9999", []segment{{0, 512}, {100, 512}}, strings.Repeat("x", 1024)), ""},
		"sparse, beyond its size":           {sparseRaw("s", "100", []segment{{0, 512}}, strings.Repeat("x", 512)), ""},
		"sparse, backwards":                 {sparseRaw("s", "9999", []segment{{5000, 10}, {0, 10}}, strings.Repeat("x", 20)), ""},
		"sparse, of an exabyte":             {sparseRaw("s", "1152921504606846976", []segment{{1 << 60, 0}}, ""), ""},
		"sparse, negative":                  {sparseRaw("s", "-5", []segment{{0, 0}}, ""), ""},
		"sparse, less data than its map":    {sparseRaw("s", "9999", []segment{{0, 5000}}, "x"), ""},
		"setuid by an octal field": {func() []byte {
			b := plainHeader('0', "su", &tar.Header{Mode: 0o4755, ModTime: epoch}, 4)
			return (&raw{}).sealed(b, "evil").end()
		}(), ""},
		"setgid by an octal field": {func() []byte {
			b := plainHeader('0', "sg", &tar.Header{Mode: 0o2755, ModTime: epoch}, 4)
			return (&raw{}).sealed(b, "evil").end()
		}(), ""},
		"a setuid link": {func() []byte {
			b := plainHeader('2', "l", &tar.Header{Mode: 0o4777, ModTime: epoch}, 0)
			copy(b[157:], "f")
			return (&raw{}).sealed(b, "").end()
		}(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			err := restoreHere(t, base, c.stream, ArchiveLimits{})
			expectUntouched(t, base)
			checkTarget(t, filepath.Join(base, "target"), err)
			_, statErr := os.Lstat(filepath.Join(base, "target", c.good))
			switch {
			case c.good != "" && (err != nil || statErr != nil):
				t.Errorf("%v, %v", err, statErr)
			case c.good == "" && err == nil && name != "GNU long name, good":
				names := []string{}
				walk(filepath.Join(base, "target"), "", &names)
				t.Errorf("it was taken: %q", names)
			}
			if err != nil && len(err.Error()) < 15 {
				t.Errorf("says too little: %v", err)
			}
		})
	}
}

func withPrefix(prefix, name string) [512]byte {
	block := plainHeader('0', name, &tar.Header{Mode: 0o644, ModTime: epoch}, 4)
	copy(block[345:500], prefix)
	return block
}

// sparseRaw is one file in GNU's format 1.0, with whatever map.
func sparseRaw(name, size string, segments []segment, data string) []byte {
	r := (&raw{}).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name, "GNU.sparse.realsize", size)
	content := string(sparseMap(segments)) + data
	return r.block('0', "GNUSparseFile.0/x", "", int64(len(content)), content).end()
}

// Limits hold for what the archive says and for what it really brings, whichever comes first.
func TestBombs(t *testing.T) {
	limits := ArchiveLimits{Bytes: 1 << 20, Entries: 100, Depth: 10}
	for name, entries := range map[string][]tar.Header{
		"101 empty files":        many(101, func(i int) tar.Header { return entryOf(tar.TypeReg, fmt.Sprint("f", i), "", "") }),
		"101 directories":        many(101, func(i int) tar.Header { return dir(fmt.Sprint("d", i)) }),
		"101 links":              many(101, func(i int) tar.Header { return link(fmt.Sprint("l", i), "x") }),
		"101 hard links":         append([]tar.Header{file("f")}, many(101, func(i int) tar.Header { return hard(fmt.Sprint("h", i), "f") })...),
		"the same directory":     many(101, func(int) tar.Header { return dir("d") }),
		"11 deep":                {file("1/2/3/4/5/6/7/8/9/10/11")},
		"11 deep by directories": {dir("1/2/3/4/5/6/7/8/9/10/11")},
		"11 deep by a link":      {link("1/2/3/4/5/6/7/8/9/10/11", "x")},
		"a byte too many":        {sized("f", 1<<20+1)},
		"in two halves":          {sized("f", 1<<19), sized("g", 1<<19+1)},
		"in many":                many(99, func(i int) tar.Header { return sized(fmt.Sprint("f", i), 11_000) }),
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			if err := restoreHere(t, base, tarOf(t, entries...), limits); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%v", err)
			}
			expectUntouched(t, base)
			if exists(filepath.Join(base, "target")) {
				t.Error("something was left")
			}
		})
	}
	for name, entries := range map[string][]tar.Header{
		"100 entries":    many(100, func(i int) tar.Header { return file(fmt.Sprint("f", i)) }),
		"10 deep":        {file("1/2/3/4/5/6/7/8/9/10")},
		"all the bytes":  {sized("f", 1<<20)},
		"in two halves,": {sized("f", 1<<19), sized("g", 1<<19)},
	} {
		if err := restoreHere(t, sandbox(t), tarOf(t, entries...), limits); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func many(count int, make func(int) tar.Header) (entries []tar.Header) {
	for i := range count {
		entries = append(entries, make(i))
	}
	return entries
}

func sized(name string, size int64) tar.Header {
	header := file(name)
	header.Size = size
	return header
}

// What nothing is made of counts all the same; what comes in front of an entry is bounded.
func TestWhatIsNotUnpackedCounts(t *testing.T) {
	for name, c := range map[string]struct {
		fill   func(*raw)
		limits ArchiveLimits
		says   string
	}{
		"the top, as a file of 8 GiB": {func(r *raw) { r.block('0', ".", "", 8<<30-1, "") }, ArchiveLimits{Bytes: 1000}, "more than 1000 bytes"},
		"the top, many times":         {func(r *raw) { r.block('5', "./", "", 0, "") }, ArchiveLimits{Entries: 10}, "more than 10 entries"},
		"global headers":              {func(r *raw) { r.extended('g', "comment", "x") }, ArchiveLimits{Entries: 10}, "more than 10 entries"},
		"extended headers":            {func(r *raw) { r.pax("comment", strings.Repeat("x", 100_000)) }, ArchiveLimits{}, "bytes of headers"},
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			stream := &raw{}
			for range 60 {
				c.fill(stream)
			}
			stream.block('0', "f", "", 4, "evil")
			err := restoreHere(t, base, stream.end(), c.limits)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			expectUntouched(t, base)
		})
	}
}
