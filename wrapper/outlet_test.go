package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What nobody has read yet when the wrapper ends.

func pipeOutlet(t *testing.T, text string) (*outlet, *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	out := &outlet{file: writer}
	if _, err := io.WriteString(out, text); err != nil {
		t.Fatal(err)
	}
	return out, reader
}

func TestOutletIsDrainedOnceItsReaderHasTakenAll(t *testing.T) {
	out, reader := pipeOutlet(t, "the last words")
	over := make(chan struct{})
	go func() {
		defer close(over)
		out.drain()
	}()
	select {
	case <-over:
		t.Fatal("it did not wait for its reader")
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := io.ReadFull(reader, make([]byte, 14)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(drainPatience / 2):
		t.Fatal("it waited on though all was read")
	}
}

func TestOutletGivesUpOnAReaderThatTakesNothing(t *testing.T) {
	out, _ := pipeOutlet(t, "nobody reads this")
	began := time.Now()
	out.drain()
	if spent := time.Since(began); spent < drainPatience || spent > 3*drainPatience {
		t.Errorf("waited %v", spent)
	}
}

// What has left our pipe may be in another one: a reader gets time by how much it was.
func TestOutletWaitsByWhatWasWrittenLately(t *testing.T) {
	for name, c := range map[string]struct {
		text        string
		least, most time.Duration
	}{
		"nothing":    {"", 0, 100 * time.Millisecond},
		"a line":     {"hello\n", 0, 100 * time.Millisecond},
		"many lines": {strings.Repeat("12345\n", 10000), 300 * time.Millisecond, time.Second},
		"many bytes": {strings.Repeat("x", 60000) + "\n", 10 * time.Millisecond, 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			out, reader := pipeOutlet(t, c.text)
			if _, err := io.ReadFull(reader, make([]byte, len(c.text))); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			out.drain()
			if spent := time.Since(began); spent < c.least || spent > c.most {
				t.Errorf("waited %v", spent)
			}
		})
	}
}

func TestOutletDoesNotWaitForLongNorForFiles(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bytes.Repeat([]byte("\n"), 1<<20)
	out := &outlet{file: file}
	if _, err := out.Write(lines); err != nil {
		t.Fatal(err)
	}
	if wait := time.Until(out.due); wait > drainMost {
		t.Errorf("it would wait for %v", wait)
	}
	began := time.Now()
	out.drain()
	if spent := time.Since(began); spent > drainMost/2 {
		t.Errorf("waited %v for a file", spent)
	}
}

// Only where the job document asks for it.
func TestDrainLog(t *testing.T) {
	for _, asked := range []bool{true, false} {
		b := shell(t, "seq 1 20000").set("drain_log", asked)
		began := time.Now()
		b.run().expect(outcomeExited, 0)
		if spent := time.Since(began); asked != (spent > 500*time.Millisecond) {
			t.Errorf("asked for: %v, took %v", asked, spent)
		}
	}
}
