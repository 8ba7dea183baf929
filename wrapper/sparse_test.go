package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPaxRecordCountsItself(t *testing.T) {
	for _, length := range []int{0, 1, 2, 3, 4, 5, 85, 86, 87, 88, 89, 90, 91, 980, 985, 986, 987, 990, 995, 9980, 9985, 9990} {
		record := paxRecord("key", strings.Repeat("v", length))
		told, _, _ := strings.Cut(record, " ")
		if n, _ := strconv.Atoi(told); n != len(record) || !strings.HasSuffix(record, "\n") {
			t.Errorf("value of %d bytes: told %s, is %d", length, told, len(record))
		}
	}
}

func TestSparseMap(t *testing.T) {
	for _, segments := range [][]segment{{{0, 0}}, {{100, 5}, {1 << 40, 0}}, make([]segment, 1000)} {
		text := sparseMap(segments)
		if len(text)%512 != 0 {
			t.Errorf("%d bytes are no whole blocks", len(text))
		}
		lines := strings.Split(strings.TrimRight(string(text), "\x00"), "\n")
		if lines[0] != fmt.Sprint(len(segments)) || len(lines) != 2+2*len(segments) {
			t.Errorf("%q", lines[:min(len(lines), 5)])
		}
	}
}

// A plain header is one that archive/tar reads, whatever does not fit into it.
func TestPlainHeader(t *testing.T) {
	for name, c := range map[string]struct {
		header tar.Header
		size   int64
	}{
		"ordinary":          {tar.Header{Mode: 0o644, Uid: 1000, Gid: 1000, ModTime: time.Unix(1e9, 0)}, 5},
		"large ids":         {tar.Header{Mode: 0o755, Uid: 1 << 30, Gid: 1 << 30, ModTime: time.Unix(1e9, 0)}, 0},
		"before the epoch":  {tar.Header{ModTime: time.Unix(-1e9, 0)}, 0},
		"far in the future": {tar.Header{ModTime: time.Unix(1<<40, 0)}, 0},
		"sticky":            {tar.Header{Mode: 0o1777, ModTime: epoch}, 0},
	} {
		block := plainHeader('0', "name", &c.header, c.size)
		stream := append(block[:], make([]byte, 512*((c.size+511)/512)+1024)...)
		got, err := tar.NewReader(bytes.NewReader(stream)).Next()
		if err != nil || got.Name != "name" || got.Size != c.size || got.Mode != c.header.Mode {
			t.Errorf("%s: %v %+v", name, err, got)
		}
	}
}

// Files with holes in all sorts of places come back with the same content, and with holes.
func TestHolesThereAndBack(t *testing.T) {
	const unit = 256 << 10
	for name, c := range map[string]struct {
		size int64
		data []int64 // where a few bytes of data are
	}{
		"all hole":                {4 * unit, nil},
		"data at the start":       {4 * unit, []int64{0}},
		"data at the end":         {4 * unit, []int64{4*unit - 5}},
		"data in the middle":      {8 * unit, []int64{3 * unit}},
		"data on both ends":       {8 * unit, []int64{0, 8*unit - 5}},
		"data across a boundary":  {8 * unit, []int64{2*unit - 2, 5*unit + 4094}},
		"many islands":            {64 * unit, []int64{unit, 5 * unit, 9 * unit, 20 * unit, 33 * unit, 50 * unit, 63 * unit}},
		"an odd size":             {3*unit + 12345, []int64{unit + 1}},
		"larger than eight GiB":   {9 << 30, []int64{5, 8<<30 + 7}},
		"one byte more than hole": {unit + 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := newBench(t, "true")
			os.Mkdir(b.path("d"), 0o755)
			file, err := os.Create(b.path("d/sparse"))
			if err != nil {
				t.Fatal(err)
			}
			if err := file.Truncate(c.size); err != nil {
				t.Skip(err)
			}
			for _, at := range c.data {
				if _, err := file.WriteAt([]byte("data!"), at); err != nil {
					t.Fatal(err)
				}
			}
			file.Close()
			b.set("save", []any{save(s, "artifact", "a", "d")}).run().expect(outcomeExited, 0).expectNoWarnings()
			to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
			var status syscall.Stat_t
			if err := syscall.Stat(to.path("d/sparse"), &status); err != nil || status.Size != c.size {
				t.Fatalf("%v, %d bytes", err, status.Size)
			}
			if allowed := int64(len(c.data)+1) * 2 * unit; status.Blocks*512 > allowed {
				t.Errorf("it takes %d bytes on disk", status.Blocks*512)
			}
			back, _ := os.Open(to.path("d/sparse"))
			defer back.Close()
			for _, at := range c.data {
				around := make([]byte, 7)
				if _, err := back.ReadAt(around[:6], max(at-1, 0)); err != nil && at+5 < c.size {
					t.Fatal(err)
				}
				if !bytes.Contains(around, []byte("data!")) {
					t.Errorf("at %d there is %q", at, around)
				}
			}
			if c.size < 1<<30 {
				compareTrees(t, b.path("d"), to.path("d"))
			}
		})
	}
}

func TestFileThatShrinksWhileItIsSaved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	os.WriteFile(path, bytes.Repeat([]byte("x"), 1000), 0o644)
	var out bytes.Buffer
	p := newPacker(t.Context(), &out, &selection{}, nil, unlimited())
	file, _ := os.Open(path)
	defer file.Close()
	header := entryOf(tar.TypeReg, "log", "", "")
	header.Size = 1000
	if err := p.write(&header); err != nil {
		t.Fatal(err)
	}
	os.Truncate(path, 300)
	if err := p.content("log", file, 1000); err != nil {
		t.Fatal(err)
	}
	_ = p.tar.Close()
	reader := tar.NewReader(&out)
	if got, err := reader.Next(); err != nil || got.Size != 1000 {
		t.Fatal(err)
	}
	var content bytes.Buffer
	if n, err := content.ReadFrom(reader); err != nil || n != 1000 || !bytes.Equal(content.Bytes()[300:], make([]byte, 700)) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if len(p.warnings) != 1 || !strings.Contains(p.warnings[0], "became shorter") {
		t.Errorf("%q", p.warnings)
	}
}

func TestFileThatGrowsWhileItIsSaved(t *testing.T) {
	s := newStore(t)
	b := shell(t, "(while :; do echo a line more; done >log) & sleep 0.2; exit 0").set("save", []any{save(s, "artifact", "a", "log")}).run().expect(outcomeExited, 0)
	to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
	text, _ := os.ReadFile(to.path("log"))
	whole, _ := os.ReadFile(b.path("log"))
	if len(text) == 0 || !bytes.HasPrefix(whole, text) {
		t.Errorf("%d bytes of %d", len(text), len(whole))
	}
}

// Owners and times that a plain header cannot hold come back, with holes as without.
func TestAttributesOfFilesWithHoles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	b := newBench(t, "true")
	os.Mkdir(b.path("d"), 0o755)
	for i, at := range []time.Time{time.Unix(0, 0), time.Unix(0, 5), time.Unix(-1, 500_000_000), time.Unix(-2, 500_000_000), time.Unix(-7, 0), time.Unix(1e9, 1), time.Unix(1<<33, 7), time.Unix(32503680000, 0)} {
		for kind, size := range map[string]int64{"plain": 0, "sparse": 1 << 20} {
			name := b.path(fmt.Sprintf("d/%s-%d", kind, i))
			os.WriteFile(name, nil, 0o644)
			if err := os.Truncate(name, size); err != nil {
				t.Fatal(err)
			}
			id := []int{0, 1000, mostPlainID, mostPlainID + 1, 1000650000, 1<<31 - 5, 7, 8}[i]
			if err := os.Chown(name, id, id+1); err != nil {
				t.Fatal(err)
			}
			if err := setFileTime(name, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	compareTrees(t, b.path("d"), thereAndBack(t, b).path("d"))
}

// setFileTime sets a time that os.Chtimes, which counts nanoseconds, cannot.
func setFileTime(name string, at time.Time) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return setTime(int(file.Fd()), "", at)
}

func TestPaxTime(t *testing.T) {
	for want, at := range map[string]time.Time{"0.000000000": time.Unix(0, 0), "-1.500000000": time.Unix(-2, 500_000_000), "-0.500000000": time.Unix(-1, 500_000_000), "-7.000000000": time.Unix(-7, 0), "5.000000001": time.Unix(5, 1)} {
		if got := paxTime(at); got != want {
			t.Errorf("%v: %s, want %s", at, got, want)
		}
	}
}
