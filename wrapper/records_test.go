package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// What is added is read in both orders, whatever its length; what was cut in the middle of a record ends before that one.
func TestRecords(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	written := &records{file: file}
	const count = 500
	name := func(i int) string { return fmt.Sprint(i, strings.Repeat("\n", i*37%8000)) }
	for i := range count {
		if err := written.add("kind", name(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	next := 0
	if err := written.forwards(func(fields []string) error {
		if len(fields) != 3 || fields[1] != name(next) {
			t.Fatalf("record %d is %.40q", next, fields)
		}
		next++
		return nil
	}, nil); err != nil || next != count {
		t.Fatalf("%v after %d", err, next)
	}
	size := written.size
	if err := file.Truncate(size - 3); err != nil {
		t.Fatal(err)
	}
	found := &records{file: file}
	if err := found.recover(); err != nil || found.size >= size-3 {
		t.Fatalf("%v, %d of %d bytes", err, found.size, size)
	}
	next--
	if err := found.backwards(func(fields []string, at int64) error {
		next--
		if fields[1] != name(next) {
			t.Fatalf("record %d is %.40q", next, fields)
		}
		return found.cut(at)
	}); err != nil || next != 0 || found.size != 0 {
		t.Fatalf("%v, %d left, %d bytes", err, next, found.size)
	}
	if err := written.add(strings.Repeat("x", recordWindow)); err == nil {
		t.Error("a record longer than the window was taken")
	}
}
