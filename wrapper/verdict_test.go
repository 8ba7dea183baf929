package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Verdicts and the documents that carry them, without processes.

func usualJob() *Job {
	job := &Job{Version: 1, Command: []string{"true"}, ResultPath: "/r"}
	job.applyDefaults()
	return job
}

func TestVerdictOfTheChild(t *testing.T) {
	signaled := func(number syscall.Signal) syscall.WaitStatus { return syscall.WaitStatus(number) }
	for name, c := range map[string]struct {
		end     childEnd
		outcome string
		code    int
		status  int
		signal  string
		says    string
	}{
		"0":                            {exitWith(0), outcomeExited, 0, 0, "", ""},
		"1":                            {exitWith(1), outcomeExited, 1, 1, "", "status 1"},
		"255":                          {exitWith(255), outcomeExited, 255, 255, "", "status 255"},
		"124, by itself":               {exitWith(124), outcomeExited, 124, 124, "", "status 124"},
		"125, by itself":               {exitWith(125), outcomeExited, 125, 125, "", "status 125"},
		"TERM":                         {childEnd{status: signaled(syscall.SIGTERM)}, outcomeSignaled, 143, 143, "TERM", "signal TERM"},
		"KILL":                         {childEnd{status: signaled(syscall.SIGKILL)}, outcomeSignaled, 137, 137, "KILL", "out of memory"},
		"SEGV with a core":             {childEnd{status: signaled(syscall.SIGSEGV) | 0x80}, outcomeSignaled, 139, 139, "SEGV", "signal SEGV"},
		"a real-time signal":           {childEnd{status: signaled(40)}, outcomeSignaled, 168, 168, "40", "signal 40"},
		"time limit, TERM":             {childEnd{status: signaled(syscall.SIGTERM), timedOut: true}, outcomeTimedOut, 143, exitTimedOut, "TERM", "timeout"},
		"time limit, KILL":             {childEnd{status: signaled(syscall.SIGKILL), timedOut: true}, outcomeTimedOut, 137, exitTimedOut, "KILL", "timeout"},
		"time limit, clean exit":       {childEnd{status: 0, timedOut: true}, outcomeTimedOut, 0, exitTimedOut, "", "timeout"},
		"stopped, clean exit":          {childEnd{status: 0, stopped: true}, outcomeStopped, 0, 0, "", "outside"},
		"stopped, TERM":                {childEnd{status: signaled(syscall.SIGTERM), stopped: true}, outcomeStopped, 143, 143, "TERM", "outside"},
		"stopped, KILL":                {childEnd{status: signaled(syscall.SIGKILL), stopped: true}, outcomeStopped, 137, 137, "KILL", "outside"},
		"stopped, its own status":      {childEnd{status: 3 << 8, stopped: true}, outcomeStopped, 3, 3, "", "outside"},
		"time limit and stop together": {childEnd{status: signaled(syscall.SIGKILL), timedOut: true, stopped: true}, outcomeTimedOut, 137, exitTimedOut, "KILL", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newResult("a")
			r.Started = true
			r.childEnded(c.end, usualJob())
			if r.Outcome != c.outcome || *r.ExitCode != c.code || r.status != c.status || r.Signal != c.signal || !strings.Contains(r.Message, c.says) || r.Phase != phaseChild {
				t.Errorf("%+v", r)
			}
			if r.succeeded() != (name == "0") {
				t.Error("taken for a success, or not")
			}
			text, _ := json.Marshal(r)
			checkSchema(t, "result", text)
		})
	}
}

// A later failure never hides an earlier one, and is never lost.
func TestWhichFailureIsTold(t *testing.T) {
	type step func(r *Result)
	child := func(status int) step {
		return func(r *Result) { r.Started = true; r.childEnded(exitWith(status), usualJob()) }
	}
	fail := func(outcome string) step {
		return func(r *Result) { r.fail(outcome, phaseSave, "because of "+outcome) }
	}
	for name, c := range map[string]struct {
		steps    []step
		outcome  string
		status   int
		warnings int
	}{
		"nothing happened":           {nil, outcomeWrapperFailed, exitWrapper, 0},
		"green":                      {[]step{child(0)}, outcomeExited, 0, 0},
		"green, save fails":          {[]step{child(0), fail(outcomeSaveFailed)}, outcomeSaveFailed, exitWrapper, 0},
		"red, save fails":            {[]step{child(2), fail(outcomeSaveFailed)}, outcomeExited, 2, 1},
		"red, two failures":          {[]step{child(2), fail(outcomeOutputTooLarge), fail(outcomeSaveFailed)}, outcomeExited, 2, 2},
		"green, two failures":        {[]step{child(0), fail(outcomeOutputTooLarge), fail(outcomeSaveFailed)}, outcomeOutputTooLarge, exitWrapper, 1},
		"restore fails":              {[]step{fail(outcomeRestoreFailed)}, outcomeRestoreFailed, exitWrapper, 0},
		"not started":                {[]step{func(r *Result) { r.notStarted(&startError{127, "x"}) }}, outcomeStartFailed, 127, 0},
		"stopped before":             {[]step{func(r *Result) { r.stoppedBefore(phaseRestore, syscall.SIGINT) }}, outcomeStopped, 130, 0},
		"the wrapper, after a green": {[]step{child(0), fail(outcomeWrapperFailed)}, outcomeWrapperFailed, exitWrapper, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newResult("a")
			for _, do := range c.steps {
				do(r)
			}
			if r.Outcome != c.outcome || r.status != c.status || len(r.Warnings) != c.warnings {
				t.Errorf("%s, %d, %q", r.Outcome, r.status, r.Warnings)
			}
		})
	}
}

func TestWarningsAreBounded(t *testing.T) {
	r := newResult("a")
	for i := range 500 {
		r.warn("warning %d %s", i, strings.Repeat("w", 5000))
	}
	if len(r.Warnings) != 101 || len(r.Warnings[0]) > 2000 || !strings.Contains(r.Warnings[100], "left out") {
		t.Errorf("%d warnings, the first has %d bytes", len(r.Warnings), len(r.Warnings[0]))
	}
}

// Around its limit, the document goes into the file or its address does, and either is valid and small enough.
func TestEncodingAroundTheLimit(t *testing.T) {
	for size := 3000; size < 5000; size += 13 {
		r := newResult("attempt")
		r.Outputs["K"] = strings.Repeat("v", size)
		file, whole, err := r.encode(4096, &Overflow{Key: "results/x", PutURL: "http://s/u"})
		if err != nil || len(file) > 4096 {
			t.Fatalf("%d: %d bytes, %v", size, len(file), err)
		}
		checkSchema(t, "result", file)
		var decoded struct{ Overflow *overflowPlace }
		_ = json.Unmarshal(file, &decoded)
		if (decoded.Overflow == nil) != (whole == nil) {
			t.Errorf("%d: overflow %v, whole %d bytes", size, decoded.Overflow, len(whole))
		}
		if whole != nil && (decoded.Overflow.Size != len(whole) || len(whole) <= 4096) {
			t.Errorf("%d: told %d, is %d", size, decoded.Overflow.Size, len(whole))
		}
	}
}

func TestShrinkingKeepsTheVerdict(t *testing.T) {
	for _, limit := range []int{600, 1000, 4096} {
		for name, fill := range map[string]func(r *Result){
			"a long message":    func(r *Result) { r.Message = strings.Repeat("m", 100_000) },
			"many warnings":     func(r *Result) { r.Warnings = strings.Split(strings.Repeat("w,", 5000), ",") },
			"many outputs":      func(r *Result) { fillOutputs(r, 200, 100) },
			"one large output":  func(r *Result) { fillOutputs(r, 1, 60_000) },
			"many restored":     func(r *Result) { r.Restored = make([]Restored, 300) },
			"many saved":        func(r *Result) { r.Saved = make([]Saved, 300) },
			"quotes everywhere": func(r *Result) { r.Message = strings.Repeat("\"\\\n\u6784", 2000) },
		} {
			r := newResult("attempt")
			r.Started = true
			r.childEnded(exitWith(3), usualJob())
			fill(r)
			text := r.shrink(limit)
			var back Result
			if err := json.Unmarshal(text, &back); err != nil || len(text) > limit && limit > 600 || back.Outcome != outcomeExited || *back.ExitCode != 3 {
				t.Errorf("%s in %d: %d bytes, %v, %s", name, limit, len(text), err, back.Outcome)
			}
			checkSchemaButForKinds(t, text, back)
		}
	}
}

func fillOutputs(r *Result, count, size int) {
	for i := range count {
		r.Outputs[fmt.Sprint("K", i)] = strings.Repeat("v", size)
	}
}

// checkSchemaButForKinds: entries that these tests left empty have no kind.
func checkSchemaButForKinds(t *testing.T, text []byte, back Result) {
	t.Helper()
	if len(back.Restored)+len(back.Saved) == 0 {
		checkSchema(t, "result", text)
	}
}

func TestResultPlaces(t *testing.T) {
	for name, make := range map[string]func(dir string) string{
		"a new file": func(dir string) string { return filepath.Join(dir, "result.json") },
		"an old file": func(dir string) string {
			p := filepath.Join(dir, "r")
			os.WriteFile(p, []byte("old, and longer than the new one"), 0o600)
			return p
		},
		"a directory is missing": func(dir string) string { return filepath.Join(dir, "a/b/c/result.json") },
		"a link to a file": func(dir string) string {
			p := filepath.Join(dir, "l")
			os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)
			os.Symlink("f", p)
			return p
		},
		"a dead link": func(dir string) string { p := filepath.Join(dir, "l"); os.Symlink("nowhere", p); return p },
		"a stale reservation": func(dir string) string {
			os.WriteFile(filepath.Join(dir, ".r.new"), []byte(strings.Repeat("x", 9000)), 0o644)
			return filepath.Join(dir, "r")
		},
		"a reservation that is a link": func(dir string) string {
			os.WriteFile(filepath.Join(dir, "precious"), []byte("precious"), 0o644)
			os.Symlink("precious", filepath.Join(dir, ".r.new"))
			return filepath.Join(dir, "r")
		},
		"a reservation that is a directory": func(dir string) string { os.Mkdir(filepath.Join(dir, ".r.new"), 0o755); return filepath.Join(dir, "r") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := make(dir)
			if err := reserveResult(path, 4096).write([]byte("{}")); err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(path); string(text) != "{}" {
				t.Errorf("%q %v", text, err)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "precious")); err == nil && string(text) != "precious" {
				t.Errorf("a link was followed: %q", text)
			}
		})
	}
	for _, path := range []string{"", "/proc/x/y", "/dev/full"} {
		if err := reserveResult(path, 100).write([]byte("{}")); err == nil {
			t.Errorf("%q took it", path)
		}
	}
	if device, err := os.Lstat("/dev/full"); err != nil || device.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("the device was replaced: %v", device)
	}
}

// Where the file cannot be written, object storage gets the document, so that not all is lost.
func TestResultWithoutAPlaceGoesToTheStore(t *testing.T) {
	s := newStore(t)
	b := shell(t, "echo '[JOB_OUT] K = v'; exit 3").set("result_path", "/proc/no/such/place").set("overflow", map[string]any{"key": "results/x", "put_url": s.url("x")})
	b.prepare()
	_ = b.cmd.Run()
	if b.cmd.ProcessState.ExitCode() != 3 || !strings.Contains(b.stderr.String(), "results/x") {
		t.Errorf("%d %s", b.cmd.ProcessState.ExitCode(), b.stderr.String())
	}
	var result Result
	if err := json.Unmarshal(s.object("x"), &result); err != nil || result.Outputs["K"] != "v" || *result.ExitCode != 3 {
		t.Errorf("%v %s", err, s.object("x"))
	}
	noSecrets(t, b)
}

// The marker is renewed as long as the wrapper lives, also while files are saved.
func TestRunningFileIsKeptFresh(t *testing.T) {
	old := heartbeat
	heartbeat = 5 * time.Millisecond
	defer func() { heartbeat = old }()
	path := filepath.Join(t.TempDir(), "a/running")
	if warning := markRunning(&Job{RunningPath: path, Attempt: "hf"}, 7); warning != "" {
		t.Fatal(warning)
	}
	past := time.Unix(1e9, 0)
	for range 3 {
		os.Chtimes(path, past, past)
		waitFor(t, "a fresh time", func() bool { info, err := os.Stat(path); return err == nil && time.Since(info.ModTime()) < time.Minute })
	}
	// A runtime that takes all of it away is not answered with a new one; a time that is being renewed may come in between once.
	waitFor(t, "the folder to be gone", func() bool { return os.RemoveAll(filepath.Dir(path)) == nil })
	time.Sleep(4 * heartbeat)
	if exists(path) {
		t.Error("it came back")
	}
}

func TestTimingsAreInOrder(t *testing.T) {
	s := newStore(t)
	shell(t, "echo x >f").set("save", []any{save(s, "cache", "c", "f")}).run().expect(outcomeExited, 0)
	b := shell(t, "sleep 0.05; echo y >f").set("restore", []any{restore(s, "cache", "c", ".", true)}).set("save", []any{save(s, "artifact", "a", "f")}).run().expect(outcomeExited, 0)
	var before time.Time
	for i, text := range []*string{b.result.Timings.StartedAt, b.result.Timings.ChildStartedAt, b.result.Timings.ChildFinishedAt, b.result.Timings.FinishedAt} {
		at, err := time.Parse(time.RFC3339Nano, *text)
		if err != nil || at.Before(before) || at.Location() != time.UTC {
			t.Errorf("%d: %v, %v before %v", i, err, at, before)
		}
		before = at
	}
	started, _ := time.Parse(time.RFC3339Nano, *b.result.Timings.ChildStartedAt)
	ended, _ := time.Parse(time.RFC3339Nano, *b.result.Timings.ChildFinishedAt)
	if took := ended.Sub(started); took < 25*time.Millisecond || took > 10*time.Second {
		t.Errorf("the child took %v", took)
	}
}

func TestDefaultsOfTheDocument(t *testing.T) {
	job := &Job{Save: []SaveSpec{{}, {When: "always", Upload: UploadSpec{PartBytes: 5 << 20}}}}
	job.applyDefaults()
	if job.MessageLimit != 4096 || job.OutputLimits != (OutputLimits{65536, 256, 262144}) || job.ArchiveLimits != (ArchiveLimits{256 << 30, 1_000_000, 128}) {
		t.Errorf("%+v", job)
	}
	if job.Save[0].When != "success" || job.Save[0].Upload.PartBytes != 16<<20 || job.Save[1].When != "always" || job.Save[1].Upload.PartBytes != 5<<20 {
		t.Errorf("%+v", job.Save)
	}
	given := &Job{MessageLimit: 10, OutputLimits: OutputLimits{1, 2, 3}, ArchiveLimits: ArchiveLimits{4, 5, 6}}
	given.applyDefaults()
	if given.MessageLimit != 10 || given.OutputLimits != (OutputLimits{1, 2, 3}) || given.ArchiveLimits != (ArchiveLimits{4, 5, 6}) {
		t.Errorf("%+v", given)
	}
}

// Each single fault is named, by the property's name, and nothing else is.
func TestFaultsOfTheDocument(t *testing.T) {
	saved := func(change func(*SaveSpec)) func(*Job) {
		return func(job *Job) {
			spec := SaveSpec{Kind: "cache", Paths: []string{"x"}, When: "always", Upload: UploadSpec{PutURL: "http://s/u", PartBytes: 5}}
			change(&spec)
			job.Save = []SaveSpec{spec}
		}
	}
	for name, c := range map[string]struct {
		change func(*Job)
		says   string
	}{
		"none":             {func(*Job) {}, ""},
		"version 0":        {func(job *Job) { job.Version = 0 }, "version is missing"},
		"version 2":        {func(job *Job) { job.Version = 2 }, "version is 2"},
		"no command":       {func(job *Job) { job.Command = nil }, "command is empty"},
		"an empty command": {func(job *Job) { job.Command = []string{"", "x"} }, "command is empty"},
		"no result":        {func(job *Job) { job.ResultPath = "" }, "result_path is empty"},
		"a tape":           {func(job *Job) { job.Stdin = "tape" }, "stdin"},
		"stdin null":       {func(job *Job) { job.Stdin = "null" }, ""},
		"stdin pass":       {func(job *Job) { job.Stdin = "pass" }, ""},
		"negative timeout": {func(job *Job) { job.TimeoutSeconds = -0.1 }, "timeout_s"},
		"negative grace":   {func(job *Job) { job.GraceSeconds = -1 }, "grace_s"},
		"restore kind":     {func(job *Job) { job.Restore = []RestoreSpec{{Kind: "x", URL: "http://s/u"}} }, "restore[0].kind"},
		"restore url":      {func(job *Job) { job.Restore = []RestoreSpec{{Kind: "cache", URL: "http://s/u"}, {Kind: "artifact"}} }, "restore[1].url"},
		"a good save":      {saved(func(*SaveSpec) {}), ""},
		"save kind":        {saved(func(s *SaveSpec) { s.Kind = "" }), "save[0].kind"},
		"save when":        {saved(func(s *SaveSpec) { s.When = "sometimes" }), "save[0].when"},
		"save paths":       {saved(func(s *SaveSpec) { s.Paths = nil }), "save[0].paths"},
		"save put_url":     {saved(func(s *SaveSpec) { s.Upload.PutURL = "" }), "put_url"},
		"save part_bytes":  {saved(func(s *SaveSpec) { s.Upload.PartBytes = maxPartBytes + 1 }), "part_bytes"},
		"multipart without {n}": {saved(func(s *SaveSpec) {
			s.Upload.Multipart = &Multipart{"http://s/x{signature}", []string{"s"}, "http://s/c", "http://s/a"}
		}), "multipart"},
		"without {signature}": {saved(func(s *SaveSpec) {
			s.Upload.Multipart = &Multipart{"http://s/x{n}", []string{"s"}, "http://s/c", "http://s/a"}
		}), "multipart"},
		"without signatures": {saved(func(s *SaveSpec) {
			s.Upload.Multipart = &Multipart{"http://s/{n}{signature}", nil, "http://s/c", "http://s/a"}
		}), "multipart"},
		"without complete_url": {saved(func(s *SaveSpec) {
			s.Upload.Multipart = &Multipart{"http://s/{n}{signature}", []string{"s"}, "", "http://s/a"}
		}), "multipart"},
		"without abort_url": {saved(func(s *SaveSpec) {
			s.Upload.Multipart = &Multipart{"http://s/{n}{signature}", []string{"s"}, "http://s/c", ""}
		}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			job := usualJob()
			c.change(job)
			faults := job.faults()
			if c.says == "" && len(faults) == 0 {
				return
			}
			if len(faults) != 1 || c.says == "" || !strings.Contains(faults[0], c.says) {
				t.Errorf("%v, want %q", faults, c.says)
			}
		})
	}
}

func TestPathsOfTheDocument(t *testing.T) {
	here, _ := os.Getwd()
	for _, c := range []struct{ workdir, path, want string }{
		{"/w", "x", "/w/x"}, {"/w", ".", "/w"}, {"/w", "", "/w"}, {"/w", "../x", "/x"}, {"/w", "/abs/./x/", "/abs/x"}, {"/w/", "a//b", "/w/a/b"},
		{"", "x", here + "/x"}, {"rel", "x", here + "/rel/x"}, {"rel", "/abs", "/abs"},
	} {
		job := &Job{Workdir: c.workdir}
		if got := job.absolute(c.path); got != c.want {
			t.Errorf("%q in %q: %q, want %q", c.path, c.workdir, got, c.want)
		}
	}
}

func TestOddDocuments(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		says string
	}{
		"empty":            {"", "not complete JSON"},
		"cut":              {`{"version": 1, "command": ["tr`, "not complete JSON"},
		"no object":        {`[1]`, "must be an object, not a list"},
		"a string":         {`"x"`, "must be an object, not a string"},
		"wrong type":       {`{"version": "1"}`, "version must be a whole number"},
		"wrong inner type": {`{"version": 1, "output_limits": {"keys": "many"}}`, "keys"},
		"not JSON":         {`version: 1`, "not JSON"},
		"a BOM":            {"\ufeff{}", "not JSON"},
		"too deep":         {strings.Repeat("[", 20000), "JSON"},
		"NaN":              {`{"timeout_s": NaN}`, "not JSON"},
		"too large":        {`{"version": 1, "attempt": "` + strings.Repeat("x", maxJobDocument) + `"}`, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "job.json")
			os.WriteFile(path, []byte(c.text), 0o600)
			job, err := readJob(path)
			if err == nil || !strings.Contains(err.Error(), c.says) || job == nil {
				t.Errorf("%v", err)
			}
			if exists(path) {
				t.Error("a document with faults is left lying about")
			}
		})
	}
	dir := t.TempDir()
	if _, err := readJob(dir); err == nil {
		t.Error("a directory was taken")
	}
}
