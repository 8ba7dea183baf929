package main

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestOutputFileGrammar(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		want  map[string]string
		warns string
	}{
		"plain":                     {"A=1\nB=two words\n", map[string]string{"A": "1", "B": "two words"}, ""},
		"no final newline":          {"A=1", map[string]string{"A": "1"}, ""},
		"value as it is":            {"A= 1 \nB=a=b\nC=\n", map[string]string{"A": " 1 ", "B": "a=b", "C": ""}, ""},
		"spaces at =":               {"A = 1 \n", map[string]string{"A": "1"}, ""},
		"with the tag":              {"[JOB_OUT] A = 1\n", map[string]string{"A": "1"}, ""},
		"CRLF":                      {"A=1\r\nB<<E\r\nx\r\ny\r\nE\r\n", map[string]string{"A": "1", "B": "x\ny"}, ""},
		"byte order mark":           {"\xef\xbb\xbfA=1\n", map[string]string{"A": "1"}, ""},
		"blank lines":               {"\n\nA=1\n\n", map[string]string{"A": "1"}, ""},
		"here-document":             {"A<<EOF\nline 1\n\n  line 3\nEOF\nB=2\n", map[string]string{"A": "line 1\n\n  line 3", "B": "2"}, ""},
		"here-document, empty":      {"A<<EOF\nEOF\n", map[string]string{"A": ""}, ""},
		"marker inside a line":      {"A<<EOF\nnot EOF\nEOF not\n EOF\nEOF\n", map[string]string{"A": "not EOF\nEOF not\n EOF"}, ""},
		"random marker":             {"A<<ghadelimiter_7f3a\nx\nghadelimiter_7f3a\n", map[string]string{"A": "x"}, ""},
		"marker at the very end":    {"A<<E\nx\nE", map[string]string{"A": "x"}, ""},
		"<< in a value":             {"A=1<<2\n", map[string]string{"A": "1<<2"}, ""},
		"assignments inside":        {"A<<E\nB=1\nC<<F\nE\n", map[string]string{"A": "B=1\nC<<F"}, ""},
		"unended here-document":     {"B=1\nA<<EOF\nx\n", map[string]string{"B": "1"}, `line 2: the text of A is not ended by a line "EOF"`},
		"last one wins":             {"A=1\nA=2\n", map[string]string{"A": "2"}, ""},
		"no =":                      {"A=1\nnonsense\n", map[string]string{"A": "1"}, "line 2: expected KEY=VALUE"},
		"bad key":                   {"A-B=1\n", map[string]string{}, "line 1"},
		"JSON":                      {`{"A":"1","N":12.50,"B":true,"L":[1, 2],"O":{"x": "y"},"Z":null,"M":"a\nb"}`, map[string]string{"A": "1", "N": "12.50", "B": "true", "L": "[1,2]", "O": `{"x":"y"}`, "Z": "null", "M": "a\nb"}, ""},
		"JSON after blanks":         {"\n  {\"A\":\"1\"}\n", map[string]string{"A": "1"}, ""},
		"JSON, large number":        {`{"A":12345678901234567890}`, map[string]string{"A": "12345678901234567890"}, ""},
		"JSON, bad key":             {`{"a b":"1","A":"1"}`, map[string]string{"A": "1"}, `"a b"`},
		"JSON, broken":              {`{"A":"1"`, map[string]string{}, "not a JSON object"},
		"JSON, something after it":  {`{"A":"1"} x`, map[string]string{}, "not a JSON object"},
		"a JSON value is no object": {"A={\"x\":1}\n", map[string]string{"A": `{"x":1}`}, ""},
		"empty":                     {"", map[string]string{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			set := newOutputSet(usualLimits)
			warnings := parseOutputFile([]byte(c.text), set)
			if !maps.Equal(set.values, c.want) {
				t.Errorf("got %q, want %q", set.values, c.want)
			}
			if joined := strings.Join(warnings, "|"); c.warns == "" && joined != "" || !strings.Contains(joined, c.warns) {
				t.Errorf("warnings %q, want %q", joined, c.warns)
			}
		})
	}
}

func TestOutputFileWinsOverOutput(t *testing.T) {
	b := shell(t, `echo "A=file" >>$HUBFLOW_OUTPUT; echo '[JOB_OUT] A = stdout'; echo '[JOB_OUT] B = stdout'`).run().expect(outcomeExited, 0)
	if want := map[string]string{"A": "file", "B": "stdout"}; !maps.Equal(b.result.Outputs, want) {
		t.Errorf("%v", b.result.Outputs)
	}
}

func TestOutputFileMultiLine(t *testing.T) {
	b := shell(t, `{ echo 'NOTES<<E'; echo one; echo two; echo E; } >>$HUBFLOW_OUTPUT`).run().expect(outcomeExited, 0)
	if b.result.Outputs["NOTES"] != "one\ntwo" {
		t.Errorf("%q", b.result.Outputs)
	}
}

func TestT47OutputFileLimits(t *testing.T) {
	limits := map[string]int{"value_bytes": 10, "keys": 2, "total_bytes": 100}
	for script, says := range map[string]string{
		"echo A=12345678901":          "output A has 11 bytes",
		"echo A=1; echo B=1; echo C":  "",
		"printf 'A=1\\nB=1\\nC=1\\n'": "set 3 outputs, the limit is 2",
		"head -c 100000 /dev/zero":    "HUBFLOW_OUTPUT has 100000 bytes",
	} {
		b := shell(t, "{ "+script+"; } >$HUBFLOW_OUTPUT").set("output_limits", limits).run()
		if says == "" {
			b.expect(outcomeExited, 0)
		} else {
			b.expect(outcomeOutputTooLarge, exitWrapper).expectMessage(says)
		}
	}
}

func TestOutputFileReplaced(t *testing.T) {
	for script, warns := range map[string]string{
		"rm $HUBFLOW_OUTPUT":                                     "",
		"rm $HUBFLOW_OUTPUT; mkfifo $HUBFLOW_OUTPUT":             "not a file",
		"rm $HUBFLOW_OUTPUT; mkdir $HUBFLOW_OUTPUT":              "not a file",
		"rm $HUBFLOW_OUTPUT; ln -s /etc/passwd $HUBFLOW_OUTPUT":  "cannot be read",
		"echo A=1 >new; mv new $HUBFLOW_OUTPUT":                  "",
		"echo '[JOB_OUT] A = 1'; exec 3>$HUBFLOW_OUTPUT; exit 0": "",
	} {
		b := shell(t, script).run().expect(outcomeExited, 0)
		if warns == "" {
			b.expectNoWarnings()
		} else {
			b.expectWarning(warns)
		}
	}
}

func TestOutputFileForAnyUser(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	b := shell(t, "stat -c %a $HUBFLOW_OUTPUT").run().expect(outcomeExited, 0)
	if b.stdout.String() != "666\n" {
		t.Errorf("mode %q", b.stdout.String())
	}
}

func TestOutputFileThatCannotBeMade(t *testing.T) {
	b := shell(t, "touch ran")
	b.set("output_path", b.path("no/such/place")).run().expect(outcomeWrapperFailed, exitWrapper).expectMessage("HUBFLOW_OUTPUT")
	if _, err := os.Stat(b.path("ran")); err == nil || b.result.Started {
		t.Error("the job ran all the same")
	}
}

func TestWithoutOutputFile(t *testing.T) {
	b := shell(t, `echo "is ${HUBFLOW_OUTPUT-unset}"`).set("output_path", "").run().expect(outcomeExited, 0)
	if b.stdout.String() != "is unset\n" {
		t.Errorf("%q", b.stdout.String())
	}
}

func FuzzOutputFile(f *testing.F) {
	for _, seed := range []string{"A=1\n", "A<<E\nx\nE\n", "A<<E\nx", `{"A":"1","B":[1]}`, "{", "\xef\xbb\xbfA=1\r\n", "A = 1\n[JOB_OUT] B=2", "=\n<<\n<<E\nA<<\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		set := newOutputSet(OutputLimits{ValueBytes: 64, Keys: 4, TotalBytes: 200})
		warnings := parseOutputFile(data, set)
		if len(warnings) > 100 && len(data) < 10000 {
			t.Fatalf("%d warnings", len(warnings))
		}
		for key, value := range set.values {
			if !validKey(key) || !strings.Contains(string(data), key) && data[0] != '{' && !strings.Contains(string(data), "{") {
				t.Fatalf("%q = %q out of nothing", key, value)
			}
		}
		_ = fmt.Sprint(set.violation())
	})
}
