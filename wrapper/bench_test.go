package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkPack and BenchmarkUnpack are for profiles: HUBFLOW_BENCH_TREE names a folder.

// unlimited are the usual limits, which no test comes near to.
func unlimited() (limits ArchiveLimits) {
	limits.applyDefaults()
	return limits
}

func benchTree(b *testing.B) string {
	tree := os.Getenv("HUBFLOW_BENCH_TREE")
	if tree == "" {
		b.Skip("set HUBFLOW_BENCH_TREE to a folder")
	}
	return tree
}

func BenchmarkPack(b *testing.B) {
	tree := benchTree(b)
	for b.Loop() {
		selected, _ := newSelection(tree, []string{"."})
		packing, _, err := packInto(context.Background(), io.Discard, tree, selected, newIndexWriter(), unlimited())
		if err != nil || packing.files == 0 {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnpack(b *testing.B) {
	tree := benchTree(b)
	packed, err := os.Create(filepath.Join(b.TempDir(), "packed"))
	if err != nil {
		b.Fatal(err)
	}
	selected, _ := newSelection(tree, []string{"."})
	if _, _, err := packInto(context.Background(), packed, tree, selected, nil, unlimited()); err != nil {
		b.Fatal(err)
	}
	limits := unlimited()
	for b.Loop() {
		_, _ = packed.Seek(0, io.SeekStart)
		stage, err := openStaging(filepath.Join(b.TempDir(), "target"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := unpackInto(context.Background(), stage, packed, limits); err != nil {
			b.Fatal(err)
		}
		if err := stage.commit(); err != nil {
			b.Fatal(err)
		}
		stage.discard()
		b.StopTimer()
		_ = os.RemoveAll(stage.target)
		b.StartTimer()
	}
}
