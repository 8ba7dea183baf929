package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// What the schema and the wrapper say of a document must be the same, in both directions.

const usualDocument = `{"version":1,"command":["x"],"result_path":"/r","save":[{"kind":"cache","paths":["a"],"upload":{"put_url":"http://s/x"}}],"restore":[{"kind":"cache","url":"https://s/y"}]}`

// changed returns the usual document with one place, such as save.0.upload.part_bytes, set to a JSON text ("" removes it).
func changed(t *testing.T, place, text string) []byte {
	t.Helper()
	var document any
	if err := json.Unmarshal([]byte(usualDocument), &document); err != nil {
		t.Fatal(err)
	}
	steps := strings.Split(place, ".")
	at := document
	for _, step := range steps[:len(steps)-1] {
		switch inside := at.(type) {
		case map[string]any:
			if _, there := inside[step]; !there {
				inside[step] = map[string]any{}
			}
			at = inside[step]
		case []any:
			at = inside[0]
		}
	}
	last := steps[len(steps)-1]
	if text == "" {
		delete(at.(map[string]any), last)
	} else {
		at.(map[string]any)[last] = json.RawMessage(text)
	}
	made, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestSchemaAndWrapperAgree(t *testing.T) {
	multipart := func(template, signatures, complete string) string {
		return fmt.Sprintf(`{"part_url_template":%q,"signatures":%s,"complete_url":%q}`, template, signatures, complete)
	}
	for _, c := range []struct {
		place, value string
		fine         bool
	}{
		{"from_the_future", `{"a":[1]}`, true}, {"Command", `["other"]`, true},
		{"version", `1.0`, true}, {"version", `2`, false}, {"version", `"1"`, false}, {"version", ``, false}, {"version", `1.5`, false},
		{"command", `[]`, false}, {"command", `[""]`, false}, {"command", `["x",""]`, true}, {"command", `null`, false}, {"command", `["x",1]`, false},
		{"result_path", `""`, false}, {"result_path", ``, false}, {"result_path", `null`, false},
		{"workdir", `""`, true}, {"workdir", `"w"`, true}, {"workdir", `1`, false}, {"create_workdir", `"yes"`, false}, {"create_workdir", `true`, true},
		{"env", `{"A":"b"}`, true}, {"env", `{"A":1}`, false}, {"env", `{"A":null}`, false}, {"env", `[]`, false}, {"env", `null`, false},
		{"unset_env", `["A"]`, true}, {"unset_env", `"A"`, false},
		{"stdin", `"pass"`, true}, {"stdin", `""`, true}, {"stdin", `"tty"`, false},
		{"timeout_s", `0.5`, true}, {"timeout_s", `1e300`, true}, {"timeout_s", `-1`, false}, {"timeout_s", `"1"`, false}, {"grace_s", `-0.1`, false},
		{"message_limit", `0`, true}, {"message_limit", `4096.0`, true}, {"message_limit", `-1`, false}, {"message_limit", `1e15`, false}, {"message_limit", `1.5`, false},
		{"output_limits.keys", `-1`, false}, {"output_limits.keys", `1`, true}, {"output_limits.value_bytes", `9223372036854775807`, false},
		{"archive_limits.bytes", `-1`, false}, {"archive_limits.depth", `5`, true}, {"archive_limits", `null`, false},
		{"overflow", `null`, true}, {"overflow", `{}`, false}, {"overflow", `{"key":"k"}`, false}, {"overflow", `{"key":"k","put_url":"http://s/k"}`, true},
		{"overflow", `{"key":"k","put_url":"ftp://s/k"}`, false},
		{"restore.0.kind", `"tape"`, false}, {"restore.0.url", `"x"`, false}, {"restore.0.url", `""`, false}, {"restore.0.url", `"HTTP://s"`, true},
		{"restore.0.url", `"http:///path"`, false}, {"restore.0.sha256", `"zz"`, false}, {"restore.0.sha256", `""`, true},
		{"restore.0.sha256", `"` + strings.Repeat("aB", 32) + `"`, true}, {"restore.0.required", `1`, false}, {"restore", `{}`, false},
		{"save.0.kind", ``, false}, {"save.0.paths", `[]`, false}, {"save.0.paths", `"a"`, false}, {"save.0.when", `"failure"`, true}, {"save.0.when", `""`, true},
		{"save.0.when", `"later"`, false}, {"save.0.upload", ``, false}, {"save.0.upload.put_url", ``, false}, {"save.0.upload.put_url", `"file:///x"`, false},
		{"save.0.upload.part_bytes", `0`, true}, {"save.0.upload.part_bytes", `-1`, false}, {"save.0.upload.part_bytes", `67108865`, false},
		{"save.0.upload.multipart", `null`, true}, {"save.0.upload.multipart", `{}`, false},
		{"save.0.upload.multipart", multipart("http://s/{n}?{signature}", `["a"]`, "http://s/c"), true},
		{"save.0.upload.multipart", multipart("http://s/{signature}/{n}", `["a"]`, "http://s/c"), true},
		{"save.0.upload.multipart", multipart("http://s/{n}", `["a"]`, "http://s/c"), false},
		{"save.0.upload.multipart", multipart("http://s/{signature}", `["a"]`, "http://s/c"), false},
		{"save.0.upload.multipart", multipart("http://s/{n}?{signature}", `[]`, "http://s/c"), false},
		{"save.0.upload.multipart", multipart("http://s/{n}?{signature}", `["a"]`, ""), false},
		{"save.0.index_upload", `null`, true}, {"save.0.index_upload", `{}`, false}, {"save.0.index_upload", `{"put_url":"http://s/i"}`, true},
	} {
		document := changed(t, c.place, c.value)
		bySchema, byWrapper := schemaFaults(t, "job", document), jobFaults(document)
		if (len(bySchema) == 0) != c.fine {
			t.Errorf("%s = %s: the schema says %q", c.place, c.value, bySchema)
		}
		if (len(byWrapper) == 0) != c.fine {
			t.Errorf("%s = %s: the wrapper says %q", c.place, c.value, byWrapper)
		}
	}
}

func TestFaultsOfADocumentAreToldAtOnceWithTheirPlace(t *testing.T) {
	b := newBench(t, "true").set("timeout_s", "soon").set("env", map[string]any{"A": 1, "B": nil}).set("restore", []any{map[string]any{"required": "yes"}})
	t.Run("Refused", func(t *testing.T) {
		b.t = t
		b.run().expect(outcomeWrapperFailed, exitWrapper).expectMessage(
			"timeout_s must be a number, not a string", `env["A"] must be a string, not this number`, `env["B"] must be a string, not null`,
			"restore[0].required must be true or false, not a string")
	})
	for document, want := range map[string]string{
		"{\n  \"version\": 1,\n  oops\n}":      "line 3, column 3",
		`{"version": 1`:                        "was it cut",
		`[]`:                                   "the document must be an object, not a list",
		usualDocument + " x":                   "something behind",
		`{"command":["x"],"result_path":"/r"}`: "version is missing",
	} {
		if got := strings.Join(jobFaults([]byte(document)), "; "); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", document, got, want)
		}
	}
}

// Whatever is understood must be what encoding/json would have understood.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(usualDocument))
	f.Add([]byte(`{"version":1.0,"output_limits":{"keys":1e2},"save":[{"upload":{"multipart":{"signatures":["a"]}}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := &Job{}, &Job{}
		if len(decodeDocument(data, ours)) > 0 || json.Unmarshal(data, theirs) != nil {
			return
		}
		again, _ := json.Marshal(ours)
		var twice Job
		if faults := decodeDocument(again, &twice); len(faults) > 0 && !strings.Contains(string(again), "null") {
			t.Fatalf("%s: %q", again, faults)
		}
		if ours.Version != theirs.Version || ours.TimeoutSeconds != theirs.TimeoutSeconds || !reflect.DeepEqual(ours.ArchiveLimits, theirs.ArchiveLimits) {
			if !strings.ContainsAny(string(data), "ABCDEFGHIJKLMNOPQRSTUVWXYZſK") { // encoding/json takes names in any case
				t.Fatalf("%+v\n%+v", ours, theirs)
			}
		}
	})
}

func TestRelativePathsBeginWhereTheWrapperWasStarted(t *testing.T) {
	b := shell(t, "pwd; echo A=1 >>$HUBFLOW_OUTPUT; echo x >f")
	if err := os.MkdirAll(b.path("w"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	b.set("workdir", "w").set("result_path", "result.json").set("output_path", "out").set("running_path", "running").set("save", []any{save(s, "artifact", "a", "f")})
	b.prepare()
	b.cmd.Dir = b.dir
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if b.stdout.String() != b.path("w")+"\n" || b.result.Outputs["A"] != "1" || b.result.Saved[0].Files != 1 {
		t.Errorf("%q %s", b.stdout.String(), b.raw)
	}
	for _, name := range []string{"out", "running", "w/f"} {
		if _, err := os.Stat(b.path(name)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(b.path("*/result.json")); len(left) > 0 {
		t.Errorf("%v", left)
	}
}

func TestTheDocumentIsRemovedIfItIsAFile(t *testing.T) {
	b := newBench(t, "true").run()
	if _, err := os.Lstat(b.path("job.json")); err == nil {
		t.Error("it is still there")
	}
	b = newBench(t, "true")
	b.prepare()
	link := b.path("link.json")
	if err := os.Symlink(b.path("job.json"), link); err != nil {
		t.Fatal(err)
	}
	b.cmd.Args[2] = link
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if _, err := os.Lstat(link); err != nil {
		t.Error("a link, as Kubernetes makes them, was removed: root could remove /dev/stdin")
	}
}
