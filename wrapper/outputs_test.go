package main

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"
)

var usualLimits = OutputLimits{ValueBytes: 65536, Keys: 256, TotalBytes: 262144}

// scan feeds text in pieces of the given size (0 = at once) and returns what was found.
func scan(text string, piece int, declared ...string) map[string]string {
	return scanWithin(usualLimits, text, piece, declared...).values
}

func scanWithin(limits OutputLimits, text string, piece int, declared ...string) *outputSet {
	scanner := newOutputScanner(declared, limits)
	data := []byte(text)
	for piece > 0 && len(data) > piece {
		_, _ = scanner.Write(data[:piece])
		data = data[piece:]
	}
	_, _ = scanner.Write(data)
	_ = scanner.Close()
	return scanner.collected(nil)
}

// The variations that components of TencentHub really print, numbered as in tencenthub-facts.md B1, then what terminals and
// streams add. Each must parse the same however the stream is cut (T48).
func TestT48Variations(t *testing.T) {
	long := strings.Repeat("v", 60000)
	for name, c := range map[string]struct {
		text     string
		declared []string
		want     map[string]string
	}{
		"B1.1 spaces on both sides":           {"[JOB_OUT] IMAGE = h/ns/app\n", nil, map[string]string{"IMAGE": "h/ns/app"}},
		"B1.2 no spaces":                      {"[JOB_OUT] NEW_DEPLOY_NAME=web-3\n[JOB_OUT] DELETION_LENGTH=0\n", nil, map[string]string{"NEW_DEPLOY_NAME": "web-3", "DELETION_LENGTH": "0"}},
		"B1.3 no newline of its own":          {"[JOB_OUT] IMAGE_ID = sha256:abc", nil, map[string]string{"IMAGE_ID": "sha256:abc"}},
		"B1.4 followed by an empty line":      {"[JOB_OUT] IMAGE_DIGEST = sha256:dddd\n\n", nil, map[string]string{"IMAGE_DIGEST": "sha256:dddd"}},
		"B1.5 several values in one":          {"[JOB_OUT] ARTIFACT = ./sub/b.war;./a.jar\n", nil, map[string]string{"ARTIFACT": "./sub/b.war;./a.jar"}},
		"B1.6 reserved name":                  {"[JOB_OUT] _WORKFLOW_TASK_PLAN_ID = 42\n", nil, map[string]string{"_WORKFLOW_TASK_PLAN_ID": "42"}},
		"B1.7 numbers":                        {"[JOB_OUT] N = 12.50\n", nil, map[string]string{"N": "12.50"}},
		"B1.8 the value's second line":        {"[JOB_OUT] IMAGE_ID = WARNING: x\nsha256:iiii\n", nil, map[string]string{"IMAGE_ID": "WARNING: x"}},
		"B1.9 a wrong but well-formed value":  {"[JOB_OUT] IMAGE_DIGEST = h/ns/app@sha256:dddd\n", nil, map[string]string{"IMAGE_DIGEST": "h/ns/app@sha256:dddd"}},
		"B1.10 glued, declared":               {"upload ok[JOB_OUT] ARTIFACT_URL = ns/repo/vendor.tar.bz\n", []string{"ARTIFACT_URL"}, map[string]string{"ARTIFACT_URL": "ns/repo/vendor.tar.bz"}},
		"B1.10 glued, not declared":           {"upload ok[JOB_OUT] ARTIFACT_URL = ns/repo/vendor.tar.bz\n", []string{"OTHER"}, map[string]string{}},
		"B1.11 = in the value":                {"[JOB_OUT] URL = http://h/p?a=1&b=2\n", nil, map[string]string{"URL": "http://h/p?a=1&b=2"}},
		"B1.11 empty value":                   {"[JOB_OUT] EMPTY =\n", nil, map[string]string{"EMPTY": ""}},
		"B1.11 no space after the tag":        {"[JOB_OUT]NOSPACE=x\n", nil, map[string]string{"NOSPACE": "x"}},
		"B1.12 the command is echoed first":   {"[2026-01-01 00:00:00] Run CMD: /bin/sh -c echo \"[JOB_OUT] A = 1\"\n[JOB_OUT] A = 1\n", nil, map[string]string{"A": "1"}},
		"B1.12 echoed and declared":           {"[2026-01-01] Run CMD: echo \"[JOB_OUT] A = 1\"\n[JOB_OUT] A = 1\n", []string{"A"}, map[string]string{"A": "1"}},
		"B1.12 declared, echoed after":        {"[JOB_OUT] A = 1\nran: echo \"[JOB_OUT] A = 2\"\n", []string{"A"}, map[string]string{"A": "1"}},
		"B1.12 only echoed":                   {"Run CMD: echo \"[JOB_OUT] A = 1\"\n", nil, map[string]string{}},
		"B1.13 unexpanded here-document":      {"cat <<E\n[JOB_OUT] V = $V\nE\n[JOB_OUT] V = real\n", nil, map[string]string{"V": "real"}},
		"last one wins":                       {"[JOB_OUT] V = 1\n[JOB_OUT] V = 2\n", nil, map[string]string{"V": "2"}},
		"glued, second tag is the declared":   {"x[JOB_OUT] A = 1[JOB_OUT] B = 2\n", []string{"B"}, map[string]string{"B": "2"}},
		"CRLF":                                {"[JOB_OUT] A = 1\r\n[JOB_OUT] B = 2\r\n", nil, map[string]string{"A": "1", "B": "2"}},
		"colours around":                      {"\x1b[32m[JOB_OUT] A = 1\x1b[0m\n", nil, map[string]string{"A": "1"}},
		"colours inside the tag":              {"[\x1b[01;31mJOB\x1b[K_OUT] A = \x1b[1m1\x1b(B\x1b[m\n", nil, map[string]string{"A": "1"}},
		"window title before":                 {"\x1b]0;building\x07[JOB_OUT] A = 1\n\x1b]0;x\x1b\\[JOB_OUT] B = 2\n", nil, map[string]string{"A": "1", "B": "2"}},
		"unterminated title":                  {"\x1b][JOB_OUT] A = 1\n", nil, map[string]string{"A": "1"}},
		"escape at the end":                   {"[JOB_OUT] A = 1\x1b\n[JOB_OUT] B = 2\x1b[\n", nil, map[string]string{"A": "1", "B": "2"}},
		"indented":                            {" \t [JOB_OUT] A = 1\n", nil, map[string]string{"A": "1"}},
		"tabs":                                {"[JOB_OUT]\tA\t=\t1\t\n", nil, map[string]string{"A": "1"}},
		"no final newline, CR":                {"[JOB_OUT] A = 1\r", nil, map[string]string{"A": "1"}},
		"inner spaces stay":                   {"[JOB_OUT] A = b  c\n", nil, map[string]string{"A": "b  c"}},
		"quotes stay":                         {"[JOB_OUT] A = \"b\"\n", nil, map[string]string{"A": "\"b\""}},
		"unicode":                             {"[JOB_OUT] A = 构建✓\n", nil, map[string]string{"A": "构建✓"}},
		"the tag in a value":                  {"[JOB_OUT] A = [JOB_OUT] B = 1\n", []string{"B"}, map[string]string{"A": "[JOB_OUT] B = 1"}},
		"nearly the tag":                      {"[JOB_OUT A = 1\n[job_out] A = 1\n[COUT] A = 1\n", nil, map[string]string{}},
		"no =":                                {"[JOB_OUT] A 1\n", nil, map[string]string{}},
		"key with a dash":                     {"[JOB_OUT] A-B = 1\n", nil, map[string]string{}},
		"key with a digit first":              {"[JOB_OUT] 1A = 1\n", nil, map[string]string{}},
		"no key":                              {"[JOB_OUT] = 1\n", nil, map[string]string{}},
		"progress bar, then a glued tag":      {"10%\r20%\r100%\r[JOB_OUT] A = 1\n", []string{"A"}, map[string]string{"A": "1"}},
		"a long value (B9: 40 kB and more)":   {"[JOB_OUT] A = " + long + "\n", nil, map[string]string{"A": long}},
		"after a line of 300 kB":              {strings.Repeat("x", 300000) + "\n[JOB_OUT] A = 1\n", nil, map[string]string{"A": "1"}},
		"glued to a line of 300 kB":           {strings.Repeat("x", 300000) + "[JOB_OUT] A = 1\n", []string{"A"}, map[string]string{"A": "1"}},
		"glued to 300 kB is not a line start": {strings.Repeat("x", 300000) + "[JOB_OUT] A = 1\n", nil, map[string]string{}},
		"empty":                               {"", nil, map[string]string{}},
		"only newlines":                       {"\n\n\r\n", nil, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{0, 1, 2, 3, 5, 7, 16, 4096} {
				if piece > 0 && piece < 16 && len(c.text) > 100000 {
					continue
				}
				if got := scan(c.text, piece, c.declared...); !maps.Equal(got, c.want) {
					t.Fatalf("in pieces of %d: got %.200q, want %.200q", piece, got, c.want)
				}
			}
		})
	}
}

func TestT47ValueAtTheLimitAndOneMore(t *testing.T) {
	limits := OutputLimits{ValueBytes: 100, Keys: 3, TotalBytes: 400}
	at := scanWithin(limits, "[JOB_OUT] K = "+strings.Repeat("v", 100)+"\n", 0)
	if at.violation() != "" || len(at.values["K"]) != 100 {
		t.Errorf("at the limit: %s", at.violation())
	}
	over := scanWithin(limits, "[JOB_OUT] K = "+strings.Repeat("v", 101)+"\n", 0)
	expectParts(t, over.violation(), "output K", "101 bytes", "limit", "100")
	if len(over.values) != 0 {
		t.Errorf("a value over the limit was kept: %v", over.values)
	}
}

func TestT47HugeValueIsCountedAndNotKept(t *testing.T) {
	scanner := newOutputScanner(nil, usualLimits)
	_, _ = scanner.Write([]byte("[JOB_OUT] BIG = "))
	block := bytes.Repeat([]byte("x"), 1<<20)
	for range 50 {
		_, _ = scanner.Write(block)
	}
	if cap(scanner.line) > 4<<20 {
		t.Errorf("%d bytes are held", cap(scanner.line))
	}
	_, _ = scanner.Write([]byte("\n[JOB_OUT] SMALL = 1\n"))
	found := scanner.collected(nil)
	expectParts(t, found.violation(), "output BIG", fmt.Sprint(50<<20), "65536")
	if found.values["SMALL"] != "1" {
		t.Errorf("%v", found.values)
	}
}

func TestT47NumberOfKeys(t *testing.T) {
	limits := OutputLimits{ValueBytes: 100, Keys: 3, TotalBytes: 4000}
	lines := func(count int) string {
		var text strings.Builder
		for i := range count {
			fmt.Fprintf(&text, "[JOB_OUT] K%d = v\n[JOB_OUT] K%d = w\n", i, i)
		}
		return text.String()
	}
	if found := scanWithin(limits, lines(3), 0); found.violation() != "" || len(found.values) != 3 {
		t.Errorf("three of three: %q %v", found.violation(), found.values)
	}
	expectParts(t, scanWithin(limits, lines(4), 0).violation(), "set 4 outputs", "limit is 3")
	many := scanWithin(limits, lines(100000), 4096)
	if many.violation() == "" || len(many.sizes) > 4*limits.Keys {
		t.Errorf("%q, %d keys are held", many.violation(), len(many.sizes))
	}
}

func TestT47TotalOfAllValues(t *testing.T) {
	limits := OutputLimits{ValueBytes: 100, Keys: 30, TotalBytes: 202}
	value := strings.Repeat("v", 100)
	two := "[JOB_OUT] A = " + value + "\n[JOB_OUT] B = " + value + "\n"
	if found := scanWithin(limits, two, 0); found.violation() != "" {
		t.Errorf("at the limit: %s", found.violation())
	}
	expectParts(t, scanWithin(limits, two+"[JOB_OUT] C =\n", 0).violation(), "together", "203 bytes", "202")
}

func TestLaterValueWithinTheLimitMendsAnEarlierOne(t *testing.T) {
	limits := OutputLimits{ValueBytes: 10, Keys: 3, TotalBytes: 100}
	found := scanWithin(limits, "[JOB_OUT] K = 12345678901\n[JOB_OUT] K = 1\n", 0)
	if found.violation() != "" || found.values["K"] != "1" {
		t.Errorf("%q %v", found.violation(), found.values)
	}
	found = scanWithin(limits, "[JOB_OUT] K = 1\n[JOB_OUT] K = 12345678901\n", 0)
	if found.violation() == "" || len(found.values) != 0 {
		t.Errorf("%q %v", found.violation(), found.values)
	}
}

func TestInvalidUTF8IsReplacedAndTold(t *testing.T) {
	b := shell(t, `printf '[JOB_OUT] GBK = \271\271\n'`).run().expect(outcomeExited, 0).expectWarning("GBK was not valid UTF-8")
	if b.result.Outputs["GBK"] != "\uFFFD" {
		t.Errorf("%q", b.result.Outputs["GBK"])
	}
}

func TestJobResult(t *testing.T) {
	for text, want := range map[string]string{"false": "false", "FALSE": "false", "True": "true", "true": "true", "maybe": "null", "": "null"} {
		b := shell(t, "echo '[JOB_OUT] JOB_RESULT = "+text+"'").run().expect(outcomeExited, 0)
		if !bytes.Contains(b.raw, []byte(`"job_result":`+want)) {
			t.Errorf("%q: %s", text, b.raw)
		}
	}
	if b := shell(t, "true").run(); b.result.JobResult != nil {
		t.Errorf("%s", b.raw)
	}
}

func TestOutputsAreKeptAlthoughTheJobFailed(t *testing.T) {
	b := shell(t, "echo '[JOB_OUT] A = 1'; exit 7").run().expect(outcomeExited, 7)
	if b.result.Outputs["A"] != "1" {
		t.Errorf("%v", b.result.Outputs)
	}
}

func TestT47TooLargeOutputFailsTheJobButNotAFailedOne(t *testing.T) {
	limits := map[string]int{"value_bytes": 10, "keys": 5, "total_bytes": 100}
	b := shell(t, "echo '[JOB_OUT] KEY = 12345678901'; echo '[JOB_OUT] OK = 1'").set("output_limits", limits).run()
	b.expect(outcomeOutputTooLarge, exitWrapper).expectMessage("KEY", "11 bytes", "10", "artifact")
	if b.result.Phase != phaseOutputs || *b.result.ExitCode != 0 || b.result.Outputs["OK"] != "1" {
		t.Errorf("%s", b.raw)
	}
	shell(t, "echo '[JOB_OUT] KEY = 12345678901'; exit 5").set("output_limits", limits).run().expect(outcomeExited, 5).expectWarning("KEY")
}

func expectParts(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

// Cutting must never matter, nothing may panic, and memory stays bounded.
func FuzzOutputs(f *testing.F) {
	for _, seed := range []string{
		"[JOB_OUT] A = 1\n", "x[JOB_OUT] D = 1\n", "[JOB_OUT]A=\x1b[0m1\r\n", "\x1b]0;t\x07[JOB_OUT] A = 1", "[JOB_OUT] A = " + strings.Repeat("y", 300) + "\n[JOB_OUT] B = 2",
		"[JO\x1b[1mB_OUT] A = 1\n", "\n\n[JOB_OUT]", strings.Repeat("[JOB_OUT] ", 40), "[JOB_OUT] A = \xff\xfe\n", strings.Repeat(" ", 500) + "[JOB_OUT] A = 1",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	limits := OutputLimits{ValueBytes: 64, Keys: 4, TotalBytes: 200}
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		whole := scanWithin(limits, string(data), 0, "D")
		if cut := scanWithin(limits, string(data), int(piece), "D"); !maps.Equal(whole.values, cut.values) || whole.violation() != cut.violation() {
			t.Fatalf("cut in pieces of %d: %q %q, at once: %q %q", piece, cut.values, cut.violation(), whole.values, whole.violation())
		}
		total := 0
		for key, value := range whole.values {
			total += len(key) + len(value)
			if !validKey(key) || len(value) > limits.ValueBytes*3 || strings.ContainsAny(value, "\n\r") {
				t.Fatalf("%q = %q", key, value)
			}
		}
		scanner := newOutputScanner([]string{"D"}, limits)
		_, _ = scanner.Write(data)
		if len(scanner.line) > scanner.lineLimit {
			t.Fatalf("%d bytes of a line are held", len(scanner.line))
		}
	})
}
