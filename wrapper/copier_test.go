package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The child's output on its way through.

// pickyWriter takes only so many bytes.
type pickyWriter struct {
	bytes.Buffer
	room int
}

func (w *pickyWriter) Write(p []byte) (int, error) {
	if len(p) > w.room {
		n, _ := w.Buffer.Write(p[:w.room])
		w.room = 0
		return n, errors.New("no room")
	}
	w.room -= len(p)
	return w.Buffer.Write(p)
}

func TestCopierCountsWhatIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		room         int
		pieces       []string
		passed, lost int64
	}{
		"all":             {100, []string{"one\n", "two\n"}, 8, 0},
		"nothing":         {0, []string{"one\n", "two\n"}, 0, 8},
		"half of one":     {6, []string{"one\n", "two\n", "three\n"}, 6, 8},
		"exactly":         {8, []string{"one\n", "two\n"}, 8, 0},
		"an empty stream": {0, nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			out := &pickyWriter{room: c.room}
			scanner := newOutputScanner(nil, usualLimits)
			copying := &copier{out: out, scanner: scanner}
			for _, piece := range c.pieces {
				copying.pass([]byte(piece))
			}
			copying.pass([]byte("[JOB_OUT] K = v"))
			copying.close()
			if whole := strings.Join(c.pieces, ""); !strings.HasPrefix(whole+"[JOB_OUT] K = v", out.String()) || int64(out.Len()) != copying.passed {
				t.Errorf("%q", out.String())
			}
			if scanner.strict.values["K"] != "v" {
				t.Error("what could not be passed on was not looked at either")
			}
			if want := c.lost > 0 || c.room < 100 && c.room < 8+15; want != (copying.warning() != "") {
				t.Errorf("warning %q", copying.warning())
			}
			copying.pass([]byte("\n[JOB_OUT] LATE = x\n")) // after all have given up on it
			if scanner.collected(nil).values["LATE"] != "" {
				t.Error("something came in after the end")
			}
		})
	}
}

func TestCopierCountsLineEndsWithACarriageReturn(t *testing.T) {
	for name, c := range map[string]struct {
		pieces []string
		room   int
		crlf   int64
	}{
		"none":                       {[]string{"one\n", "\rtwo\n", "three\r"}, 100, 0},
		"some":                       {[]string{"one\r\ntwo\n\r\n"}, 100, 2},
		"across pieces":              {[]string{"one\r", "\ntwo\r", "\r\n", "\n"}, 100, 2},
		"an empty piece between":     {[]string{"one\r", "", "\n"}, 100, 1},
		"what was not passed on":     {[]string{"one\r\ntwo\r\n"}, 7, 1},
		"its half was not passed on": {[]string{"one\r\n"}, 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			copying := &copier{out: &pickyWriter{room: c.room}, scanner: newOutputScanner(nil, usualLimits)}
			for _, piece := range c.pieces {
				copying.pass([]byte(piece))
			}
			if passed, crlf := copying.count(); crlf != c.crlf || passed > int64(c.room) {
				t.Errorf("%d line ends in %d bytes", crlf, passed)
			}
		})
	}
}

// With the wrapper's own standard streams closed, broken, or of other kinds, the job runs all the same.
func TestOddStandardStreams(t *testing.T) {
	for name, c := range map[string]struct {
		redirect string // of the wrapper, by a shell
		stdin    string
		script   string
		status   int
		shown    string
	}{
		"stdin closed":            {"<&-", "null", "cat; echo \"read $?\"; exit 3", 3, "read 0\n"},
		"stdin closed, passed":    {"<&-", "pass", "cat; echo \"read $?\"; exit 3", 3, "read 0\n"},
		"stdin from a file":       {"<words", "pass", "cat", 0, "some words\n"},
		"stdin from a file, null": {"<words", "null", "cat; echo end", 0, "end\n"},
		"stdin from a pipe":       {"< <(printf 'from a pipe')", "pass", "cat", 0, "from a pipe"},
		"stdin a directory":       {"<.", "pass", "cat 2>/dev/null; exit 4", 4, ""},
		"stdout closed":           {">&-", "null", "echo lost; exit 5", 5, ""},
		"stderr closed":           {"2>&-", "null", "echo to stderr >&2; exit 6", 6, "to stderr\n"},
		"all closed":              {"<&- >&- 2>&-", "null", "echo lost; exit 7", 7, ""},
		"stdout read-only":        {">&0 <words", "null", "echo lost; exit 8", 8, ""},
		"stdout full":             {">/dev/full", "null", "echo lost; exit 9", 9, ""},
		"a reader that goes away": {"> >(head -c 4 >/dev/null)", "null", "seq 1 100000; exit 10", 10, ""},
		"a further descriptor":    {"3<words", "null", "cat <&3; exit 11", 11, "some words\n"}, // whoever gives one means the job
	} {
		t.Run(name, func(t *testing.T) {
			bash, err := exec.LookPath("bash")
			if err != nil {
				t.Skip("needs bash")
			}
			b := shell(t, c.script).set("stdin", c.stdin)
			os.WriteFile(b.path("words"), []byte("some words\n"), 0o644)
			b.prepare()
			inner := b.cmd
			b.cmd = exec.Command(bash, "-c", `"$0" run "$1" `+c.redirect, inner.Path, inner.Args[2])
			b.cmd.Env, b.cmd.Dir, b.cmd.Stdout = inner.Env, b.dir, &b.stdout
			if err := b.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b.wait().expect(outcomeExited, c.status)
			if b.stdout.String() != c.shown {
				t.Errorf("%q, want %q", b.stdout.String(), c.shown)
			}
		})
	}
}

// Whoever reads the log may stop reading without going away. Told to stop, we still end in time, and say what was lost.
func TestReaderThatIsStuck(t *testing.T) {
	b := shell(t, "echo '[JOB_OUT] K = v'; head -c 3000000 /dev/zero; touch done")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	b.prepare()
	b.cmd.Stdout = writer
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	waitFor(t, "a full pipe", func() bool { return pending(reader) > 60000 })
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	begin := time.Now()
	b.wait().expectWarning("has taken nothing")
	if b.result.Outcome != outcomeStopped || b.result.Outputs["K"] != "v" || time.Since(begin) > 8*time.Second {
		t.Errorf("after %v: %s", time.Since(begin), b.raw)
	}
}

// A reader that is only slow loses nothing.
func TestSlowReaderLosesNothing(t *testing.T) {
	b := shell(t, "head -c 2000000 /dev/zero; echo; echo end")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b.prepare()
	b.cmd.Stdout = writer
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	total, buffer := 0, make([]byte, 64<<10)
	for {
		n, err := reader.Read(buffer)
		total += n
		if err == io.EOF {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.wait().expect(outcomeExited, 0).expectNoWarnings()
	if total != 2000000+1+4 {
		t.Errorf("%d bytes", total)
	}
}

// Many processes of one job write at once: no line is torn.
func TestManyWritersAtOnce(t *testing.T) {
	b := shell(t, "for i in 1 2 3 4 5 6 7 8; do (j=0; while [ $j -lt 200 ]; do echo \"writer $i line $j of an ordinary length\"; j=$((j+1)); done) & done; wait").run().expect(outcomeExited, 0)
	lines := strings.Split(strings.TrimSuffix(b.stdout.String(), "\n"), "\n")
	if len(lines) != 8*200 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "writer ") || !strings.HasSuffix(line, " of an ordinary length") {
			t.Fatalf("torn: %q", line)
		}
	}
}
