package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Hostile archives. Each is unpacked into a target beside which lies something precious; the target must stay empty, and what
// lies outside must stay as it was.

func entryOf(kind byte, name, link string, content string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: link, Size: int64(len(content)), Mode: 0o755, ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
}

// tarOf writes entries; files have the content "evil".
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, header := range headers {
		if header.Typeflag == tar.TypeReg && header.Size == 0 {
			header.Size = 4
		}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			if _, err := io.CopyN(w, strings.NewReader(strings.Repeat("evil", int(header.Size)/4+1)), header.Size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(name string) tar.Header         { return entryOf(tar.TypeReg, name, "", "evil") }
func dir(name string) tar.Header          { return entryOf(tar.TypeDir, name, "", "") }
func link(name, target string) tar.Header { return entryOf(tar.TypeSymlink, name, target, "") }
func hard(name, target string) tar.Header { return entryOf(tar.TypeLink, name, target, "") }

func modeOfHeader(header tar.Header, mode int64) tar.Header {
	header.Mode = mode
	return header
}

// packedTar is a tar stream compressed as other programs do.
func packedTar(t testing.TB, stream []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(stream)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// restoreHere unpacks and commits a tar stream below dir/target, as a job's restore does.
func restoreHere(t testing.TB, dir string, stream []byte, limits ArchiveLimits) error {
	t.Helper()
	limits.applyDefaults()
	packed := bytes.NewReader(packedTar(t, stream))
	stage, err := openStaging(filepath.Join(dir, "target"))
	if err != nil {
		t.Fatal(err)
	}
	defer stage.discard()
	if _, err := unpackInto(context.Background(), stage, packed, limits); err != nil {
		return err
	}
	return stage.commit()
}

func sandbox(t testing.TB) string {
	t.Helper()
	base := t.TempDir()
	os.WriteFile(filepath.Join(base, "precious"), []byte("untouched"), 0o600)
	os.Mkdir(filepath.Join(base, "outside"), 0o700)
	return base
}

func expectUntouched(t testing.TB, base string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(base, "precious"))
	info, statErr := os.Stat(filepath.Join(base, "precious"))
	inside, _ := os.ReadDir(filepath.Join(base, "outside"))
	top, _ := os.ReadDir(base)
	if err != nil || statErr != nil || string(content) != "untouched" || info.Mode() != 0o600 || len(inside) != 0 || len(top) > 3 {
		t.Errorf("something outside was changed: %q %v, %d inside, %v", content, info, len(inside), top)
	}
	if status := info.Sys().(*syscall.Stat_t); status.Nlink != 1 {
		t.Errorf("the precious file has %d names", status.Nlink)
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	deep := strings.Repeat("d/", 200) + "f"
	for name, c := range map[string]struct {
		entries []tar.Header
		limits  ArchiveLimits
		says    string
	}{
		"dot dot":                       {[]tar.Header{file("../precious")}, ArchiveLimits{}, "leads out"},
		"dot dot inside":                {[]tar.Header{file("a/../../precious")}, ArchiveLimits{}, "leads out"},
		"dot dot that stays":            {[]tar.Header{file("a/../b")}, ArchiveLimits{}, "leads out"},
		"absolute":                      {[]tar.Header{file("/tmp/hubflow-evil")}, ArchiveLimits{}, "absolute"},
		"link out":                      {[]tar.Header{link("l", "../outside")}, ArchiveLimits{}, "leads out"},
		"absolute link":                 {[]tar.Header{link("l", "/etc/passwd")}, ArchiveLimits{}, "leads out"},
		"link out from below":           {[]tar.Header{link("a/b/l", "../../../outside")}, ArchiveLimits{}, "leads out"},
		"empty link":                    {[]tar.Header{link("a", "")}, ArchiveLimits{}, "leads out"},
		"through a link":                {[]tar.Header{dir("a"), link("l", "a"), file("l/f")}, ArchiveLimits{}, "something else"},
		"through a link, as directory":  {[]tar.Header{dir("a"), link("l", "a"), dir("l/sub")}, ArchiveLimits{}, "something else"},
		"link chain":                    {[]tar.Header{dir("d"), link("d/up", ".."), link("out", "d/up/../outside")}, ArchiveLimits{}, "leads out"},
		"link chain, long":              {[]tar.Header{dir("a/b/c"), link("a/b/c/up", "../../.."), link("out", "a/b/c/up/../outside")}, ArchiveLimits{}, "leads out"},
		"link chain by a dead end":      {[]tar.Header{link("up", "d/.."), link("out", "up/../outside"), dir("d")}, ArchiveLimits{}, "leads out"},
		"link chain through itself":     {[]tar.Header{dir("d"), link("d/a", "."), link("d/b", "a/a/a/../.."), link("o", "d/b/../outside")}, ArchiveLimits{}, "leads out"},
		"link replaced by a directory":  {[]tar.Header{dir("d"), link("l", "d"), dir("l"), file("l/f")}, ArchiveLimits{}, "twice"},
		"directory replaced by a link":  {[]tar.Header{dir("d"), link("d", "."), file("d/f")}, ArchiveLimits{}, "twice"},
		"hard link out":                 {[]tar.Header{hard("h", "../precious")}, ArchiveLimits{}, "leads out"},
		"hard link, absolute":           {[]tar.Header{hard("h", "/etc/passwd")}, ArchiveLimits{}, "leads out"},
		"hard link to a link":           {[]tar.Header{file("f"), link("l", "f"), hard("h", "l")}, ArchiveLimits{}, "no file"},
		"hard link to a directory":      {[]tar.Header{dir("d"), hard("h", "d")}, ArchiveLimits{}, "no file"},
		"hard link to nothing":          {[]tar.Header{hard("h", "f")}, ArchiveLimits{}, "no file"},
		"hard link through a link":      {[]tar.Header{dir("d"), link("d/up", ".."), hard("h", "d/up/../precious")}, ArchiveLimits{}, "no file"},
		"character device":              {[]tar.Header{entryOf(tar.TypeChar, "null", "", "")}, ArchiveLimits{}, "device"},
		"block device":                  {[]tar.Header{entryOf(tar.TypeBlock, "sda", "", "")}, ArchiveLimits{}, "device"},
		"pipe":                          {[]tar.Header{entryOf(tar.TypeFifo, "p", "", "")}, ArchiveLimits{}, "pipe"},
		"setuid":                        {[]tar.Header{modeOfHeader(file("su"), 0o4755)}, ArchiveLimits{}, "setuid"},
		"setgid":                        {[]tar.Header{modeOfHeader(file("sg"), 0o2755)}, ArchiveLimits{}, "setgid"},
		"twice the same":                {[]tar.Header{file("f"), file("f")}, ArchiveLimits{}, "twice"},
		"twice, spelled otherwise":      {[]tar.Header{file("a/f"), file("./a//f")}, ArchiveLimits{}, "twice"},
		"file used as a directory":      {[]tar.Header{file("f"), file("f/g")}, ArchiveLimits{}, "something else"},
		"case collision with a link":    {[]tar.Header{dir("d"), link("Lib", "d"), dir("lib"), file("lib/f")}, ArchiveLimits{}, "only in case"},
		"case collision of links":       {[]tar.Header{link("L", "x"), link("l", "y")}, ArchiveLimits{}, "only in case"},
		"case collision with a parent":  {[]tar.Header{dir("b"), link("a", "b"), file("A/x")}, ArchiveLimits{}, "only in case"},
		"parent that a link collides":   {[]tar.Header{file("A/x"), link("a", "A")}, ArchiveLimits{}, "only in case"},
		"unicode collision with a link": {[]tar.Header{dir("d"), link("caf\u00e9", "d"), dir("cafe\u0301")}, ArchiveLimits{}, "Unicode form"},
		"ligature-like folding":         {[]tar.Header{link("\u212aey", "x"), file("key")}, ArchiveLimits{}, "only in case"}, // KELVIN SIGN
		"ignorable character":           {[]tar.Header{link("a\u200db", "x"), file("ab")}, ArchiveLimits{}, "only in case"},
		"bomb by size":                  {[]tar.Header{modeOfHeader(tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: 2000, Format: tar.FormatPAX}, 0o644)}, ArchiveLimits{Bytes: 1999}, "more than 1999 bytes"},
		"bomb by total size":            {[]tar.Header{file("a"), file("b"), file("c")}, ArchiveLimits{Bytes: 11}, "more than 11 bytes"},
		"bomb by count":                 {[]tar.Header{file("a"), file("b"), file("c")}, ArchiveLimits{Entries: 2}, "more than 2 entries"},
		"bomb by depth":                 {[]tar.Header{file(deep)}, ArchiveLimits{}, "201 directories deep"},
		"long name":                     {[]tar.Header{file(strings.Repeat("n/", 2100) + "f")}, ArchiveLimits{}, "too long"},
		"our own staging directory":     {[]tar.Header{file(stagingPrefix + "x/new/f")}, ArchiveLimits{}, "belongs to the wrapper"},
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			// Something harmless first: it must not stay either.
			entries := append([]tar.Header{entryOf(tar.TypeReg, "harmless-first-entry", "", "")}, c.entries...)
			c.limits.applyDefaults()
			if name == "bomb by count" || name == "bomb by total size" {
				entries = c.entries
			}
			err := restoreHere(t, base, tarOf(t, entries...), c.limits)
			var refused *refusal
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a refusal that says %q", err, c.says)
			}
			expectUntouched(t, base)
			if _, err := os.Lstat(filepath.Join(base, "target")); err == nil {
				t.Error("the target was left behind")
			}
		})
	}
}

// chainOfLinks is longer than what os.Root follows (8), and than what the kernel does (40).
func chainOfLinks(length int) []tar.Header {
	entries := []tar.Header{file("end")}
	before := "end"
	for i := range length {
		name := fmt.Sprintf("l%02d", i)
		entries = append(entries, link(name, before))
		before = name
	}
	return entries
}

// What only looks odd is taken.
func TestOddButHarmlessArchives(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"names that begin with dots":   {file("..a"), file("...")},
		"./ in front":                  {dir("./"), dir("./a"), file("./a/f")},
		"directory after its contents": {file("a/f"), modeOfHeader(dir("a"), 0o700)},
		"directory twice":              {dir("a"), dir("a"), file("a/f")},
		"read-only directory":          {modeOfHeader(dir("a"), 0o500), file("a/f")},
		"dangling link":                {link("l", "not/there")},
		"link to itself by its parent": {dir("d"), link("d/self", "../d")},
		"link to the top":              {dir("d"), link("d/top", "..")},
		"links in circles":             {link("a", "b"), link("b", "a"), link("self", "self"), dir("d"), link("d/loop", "../d/loop/x")},
		"link through a file":          {file("f"), link("l", "f/x")},
		"a long chain of links":        chainOfLinks(60),
		"files that differ in case":    {file("Makefile"), file("makefile"), dir("Lib"), dir("lib")},
		"setgid directory":             {modeOfHeader(dir("d"), 0o2755), file("d/f")},
		"nothing":                      {},
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			if err := restoreHere(t, base, tarOf(t, entries...), ArchiveLimits{}); err != nil {
				t.Error(err)
			}
			expectUntouched(t, base)
		})
	}
}

// A tar stream may claim a sparse file of any size in a few bytes.
func TestSparseBombIsRefused(t *testing.T) {
	base := sandbox(t)
	var out bytes.Buffer
	p := newPacker(context.Background(), &out, &selection{}, nil, ArchiveLimits{Bytes: 1 << 60, Entries: 1000, Depth: 100})
	empty, _ := os.CreateTemp(t.TempDir(), "")
	header := entryOf(tar.TypeReg, "sparse", "", "")
	header.Size = 1 << 50
	if err := p.sparse(empty, &header, []segment{{1 << 50, 0}}); err != nil {
		t.Fatal(err)
	}
	_ = p.tar.Close()
	err := restoreHere(t, base, out.Bytes(), ArchiveLimits{})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%v", err)
	}
	expectUntouched(t, base)
}

// While an archive is unpacked, someone swaps its directories for links that lead out. Nothing may be written there, whatever
// else happens.
func TestLinkSwappedInWhileUnpacking(t *testing.T) {
	base := sandbox(t)
	stage, err := openStaging(filepath.Join(base, "target"))
	if err != nil {
		t.Fatal(err)
	}
	place, _ := stage.place()
	defer place.Close()
	var over atomic.Bool
	swapped := make(chan int)
	go func() {
		count := 0
		for !over.Load() {
			victim := filepath.Join(base, "target", stage.fresh(), "d")
			if os.Rename(victim, victim+"-moved") == nil {
				if os.Symlink("../../../outside", victim) == nil {
					count++
				}
				_ = os.Remove(victim)
				_ = os.Rename(victim+"-moved", victim)
			}
		}
		swapped <- count
	}()
	var entries []tar.Header
	for i := range 400 {
		entries = append(entries, file(fmt.Sprintf("d/f%d", i)), file(fmt.Sprintf("e/f%d", i)), dir(fmt.Sprintf("d/s%d", i)))
	}
	stream := tarOf(t, entries...)
	var limits ArchiveLimits
	limits.applyDefaults()
	for range 5 {
		_ = newUnpacker(context.Background(), place, limits).unpack(bytes.NewReader(stream)) // may fail: it was disturbed
	}
	over.Store(true)
	if <-swapped == 0 {
		t.Skip("the swapper never got its turn")
	}
	stage.discard()
	expectUntouched(t, base)
}

func TestUnpackingOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	base := sandbox(t)
	target := filepath.Join(base, "target")
	os.Mkdir(target, 0o755)
	if err := syscall.Mount("tmpfs", target, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(target, 0)
	big := file("big")
	big.Size = 200_000
	err := restoreHere(t, base, tarOf(t, file("small"), big), ArchiveLimits{})
	if err == nil || !strings.Contains(err.Error(), "no space is left") || !strings.Contains(err.Error(), "more disk") {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(target); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReplacingKinds(t *testing.T) {
	base := sandbox(t)
	target := filepath.Join(base, "target")
	os.MkdirAll(filepath.Join(target, "was-dir/inner"), 0o755)
	os.WriteFile(filepath.Join(target, "was-file"), nil, 0o644)
	os.Symlink("../outside", filepath.Join(target, "was-link"))
	if err := restoreHere(t, base, tarOf(t, file("was-dir"), dir("was-file"), file("was-file/f"), dir("was-link"), file("was-link/f")), ArchiveLimits{}); err != nil {
		t.Fatal(err)
	}
	for name, isDir := range map[string]bool{"was-dir": false, "was-file": true, "was-link": true} {
		if info, err := os.Lstat(filepath.Join(target, name)); err != nil || info.IsDir() != isDir {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	expectUntouched(t, base) // nothing was written through the old link
}

func TestNotATarStream(t *testing.T) {
	for _, stream := range [][]byte{[]byte("this is no tar stream, but long enough for a block of 512 bytes" + strings.Repeat(" ", 600)), bytes.Repeat([]byte{0xff}, 5000), tarOf(t, file("f"))[:700]} {
		base := sandbox(t)
		if err := restoreHere(t, base, stream, ArchiveLimits{}); err == nil {
			t.Errorf("%.20q was taken", stream)
		}
		expectUntouched(t, base)
	}
}

func TestEndlessTailIsRefused(t *testing.T) {
	base := sandbox(t)
	stream := append(tarOf(t, file("f")), make([]byte, 3<<20)...)
	if err := restoreHere(t, base, stream, ArchiveLimits{}); err == nil || !strings.Contains(err.Error(), "after its end") {
		t.Errorf("%v", err)
	}
}

func TestFoldName(t *testing.T) {
	for _, group := range [][]string{{"README", "readme", "ReadMe"}, {"caf\u00e9", "cafe\u0301", "CAF\u00c9", "cafe"}, {"\u1e9b\u0323", "\u017f\u0323\u0307", "s"}, {"\u03c3", "\u03c2", "\u03a3"}, {"\u2126", "\u03a9", "\u03c9"}} {
		for _, name := range group {
			if foldName(name) != foldName(group[0]) {
				t.Errorf("%q folds to %q, %q to %q", name, foldName(name), group[0], foldName(group[0]))
			}
		}
	}
	if foldName("a") == foldName("b") || foldName("\u6784\u5efa") == foldName("\u6784") {
		t.Error("it folds too much")
	}
}

// FuzzUnpack gives the unpacker any tar stream: it must never panic, write outside, or make what is refused.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, dir("d"), file("d/f"), link("l", "d/f"), hard("h", "d/f")))
	f.Add(tarOf(f, file("../precious")))
	f.Add(tarOf(f, link("l", "../outside"), file("l/f")))
	f.Add(tarOf(f, dir("d"), link("d/up", ".."), link("out", "d/up/../outside")))
	f.Add(tarOf(f, modeOfHeader(file("su"), 0o4755), entryOf(tar.TypeChar, "null", "", "")))
	f.Add(tarOf(f, link("caf\u00e9", "x"), dir("cafe\u0301"), file("cafe\u0301/f")))
	f.Add([]byte{})
	sparse := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") + paxRecord("GNU.sparse.realsize", "9999") + paxRecord("GNU.sparse.name", "../s")
	var out bytes.Buffer
	p := newPacker(context.Background(), &out, &selection{}, nil, ArchiveLimits{Bytes: 1 << 60, Entries: 1000, Depth: 100})
	_ = p.extendedHeader(sparse)
	_ = p.writeBlock(plainHeader('0', "x", &tar.Header{Mode: 0o644}, 512))
	_, _ = out.Write(sparseMap([]segment{{9999, 0}}))
	f.Add(out.Bytes())
	limits := ArchiveLimits{Bytes: 1 << 20, Entries: 200, Depth: 20}
	f.Fuzz(func(t *testing.T, stream []byte) {
		base := sandbox(t)
		stage, err := openStaging(filepath.Join(base, "target"))
		if err != nil {
			t.Fatal(err)
		}
		place, _ := stage.place()
		err = newUnpacker(context.Background(), place, limits).unpack(bytes.NewReader(stream))
		place.Close()
		if err == nil {
			err = stage.commit()
		}
		stage.discard()
		expectUntouched(t, base)
		checkTarget(t, filepath.Join(base, "target"), err)
	})
}

func checkTarget(t *testing.T, target string, failed error) {
	t.Helper()
	_ = filepath.WalkDir(target, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == target {
			return nil
		}
		if failed != nil {
			t.Fatalf("%s is there although the archive was refused: %v", path, failed)
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if info.Mode()&(os.ModeDevice|os.ModeNamedPipe|os.ModeSocket|os.ModeSetuid|os.ModeSetgid) != 0 {
			t.Fatalf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
}

// FuzzArchive gives any bytes to the decompressors, ours among them.
func FuzzArchive(f *testing.F) {
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("0123456789"), 110_000)} {
		var out bytes.Buffer
		c, err := newCompressor(&out)
		if err != nil {
			f.Fatal(err)
		}
		_, _ = c.Write(content)
		_ = c.Close()
		f.Add(out.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		stream, err := openArchive(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(stream, 8<<20))
		_ = stream.Close()
	})
}
