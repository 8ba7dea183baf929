package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tangle is a chain of links whose targets take many steps each, and many links to its end: a few kB, compressed.
func tangle(length int) []tar.Header {
	long := strings.Repeat("d/../", 800)
	entries, before := []tar.Header{dir("d")}, "d"
	for i := range length {
		name := fmt.Sprintf("l%02d", i)
		entries = append(entries, link(name, long+before))
		before = name
	}
	for i := range 3000 {
		entries = append(entries, link(fmt.Sprintf("m%04d", i), before))
	}
	return entries
}

// Links that were judged are not followed again; where that does not help, as nothing is behind more than forty links, we give up.
func TestTangledLinksDoNotTakeHours(t *testing.T) {
	for length, refused := range map[int]bool{39: false, 45: true} {
		base := sandbox(t)
		begin := time.Now()
		err := restoreHere(t, base, tarOf(t, tangle(length)...), ArchiveLimits{})
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%d links: it took %v", length, took)
		}
		if refused != (err != nil && strings.Contains(err.Error(), "lead through one another")) {
			t.Errorf("%d links: %v", length, err)
		}
		expectUntouched(t, base)
	}
}

// Whoever stops us stops us also while links are judged.
func TestJudgingLinksEndsWhenToldTo(t *testing.T) {
	place, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	entries := int64(1000)
	os.Symlink("x", filepath.Join(place.Name(), "l"))
	if _, err := newLinkJudge(ctx, place, newNameTable(), &entries, stepsOfUnpacking).leadsOut("l"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A named link to a directory is a directory in the archive, elsewhere in the tree than where its content was: links are judged by
// where they will be.
func TestLinksBelowANamedLink(t *testing.T) {
	base := plant(t, "a/b/c/f", "y")
	os.Symlink("a/b/c", filepath.Join(base, "latest"))
	os.Symlink("..", filepath.Join(base, "a/b/c/up"))
	os.Symlink("up/../y", filepath.Join(base, "a/b/c/x")) // a/y where it lies; out of the tree from latest/
	names, packing := packedNames(t, base, "latest")
	if got := strings.Join(names, " "); got != "latest/ latest/f latest/up" || len(packing.warnings) != 1 || !strings.Contains(packing.warnings[0], `"latest/x" leads out`) {
		t.Errorf("%s, %q", got, packing.warnings)
	}
}
