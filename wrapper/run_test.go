package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// The sequence of a job with fakes: which parts are called, in which order, and what verdict comes out.

type fakes struct {
	calls      []string
	stopSignal syscall.Signal

	restoreErr error
	end        childEnd
	outputs    map[string]string
	runErr     error
	saveErr    error
	panics     string
	reportErr  error
	succeeded  bool
}

func (f *fakes) call(name string) {
	f.calls = append(f.calls, name)
	if f.panics == name {
		panic("fault in " + name)
	}
}

func (f *fakes) Restore(*Job) ([]Restored, []string, error) {
	f.call("restore")
	return []Restored{{Kind: "cache", Name: "deps", Hit: true}}, []string{"from restore"}, f.restoreErr
}

func (f *fakes) Run(job *Job, began func()) (childEnd, *outputSet, error) {
	f.call("run")
	if f.runErr == nil {
		began()
	}
	outputs := newOutputSet(job.OutputLimits)
	for key, value := range f.outputs {
		outputs.set(key, value, 0)
	}
	return f.end, outputs, f.runErr
}

func (f *fakes) Save(_ *Job, succeeded bool, restored []Restored) ([]Saved, []string, error) {
	f.call("save")
	f.succeeded = succeeded
	if len(restored) != 1 {
		panic("the saver is not told what was restored")
	}
	return []Saved{{Name: "dist"}}, []string{"from save"}, f.saveErr
}

func (f *fakes) Report(*Job, *Result) error {
	f.call("report")
	return f.reportErr
}

func exitWith(status int) childEnd { return childEnd{status: syscall.WaitStatus(status << 8)} }

func TestSequence(t *testing.T) {
	all := "restore run save report"
	for name, c := range map[string]struct {
		fakes   fakes
		calls   string
		outcome string
		phase   string
		status  int
		saveAs  bool // what the saver is told
		warns   string
	}{
		"success":                        {fakes{end: exitWith(0)}, all, outcomeExited, phaseChild, 0, true, "from save"},
		"child fails":                    {fakes{end: exitWith(3)}, all, outcomeExited, phaseChild, 3, false, ""},
		"child is killed":                {fakes{end: childEnd{status: 9}}, all, outcomeSignaled, phaseChild, 137, false, ""},
		"time limit":                     {fakes{end: childEnd{status: 15, timedOut: true}}, all, outcomeTimedOut, phaseChild, 124, false, ""},
		"time limit, exits with 0":       {fakes{end: childEnd{timedOut: true}}, all, outcomeTimedOut, phaseChild, 124, false, ""},
		"stopped":                        {fakes{end: childEnd{stopped: true}}, all, outcomeStopped, phaseChild, 0, false, ""},
		"JOB_RESULT false":               {fakes{end: exitWith(0), outputs: map[string]string{"JOB_RESULT": "False"}}, all, outcomeExited, phaseChild, 0, false, ""},
		"restore fails":                  {fakes{restoreErr: errors.New("x")}, "restore report", outcomeRestoreFailed, phaseRestore, 125, false, "from restore"},
		"stopped while restoring":        {fakes{restoreErr: context.Canceled, stopSignal: syscall.SIGTERM}, "restore report", outcomeStopped, phaseRestore, 143, false, ""},
		"start fails":                    {fakes{runErr: &startError{127, "not found"}}, "restore run report", outcomeStartFailed, phaseChild, 127, false, ""},
		"the wrapper fails to start it":  {fakes{runErr: errors.New("no pipe")}, "restore run report", outcomeWrapperFailed, phaseChild, 125, false, ""},
		"save fails":                     {fakes{end: exitWith(0), saveErr: errors.New("x")}, all, outcomeSaveFailed, phaseSave, 125, true, ""},
		"child and save fail":            {fakes{end: exitWith(4), saveErr: errors.New("why")}, all, outcomeExited, phaseChild, 4, false, "why"},
		"stopped while saving":           {fakes{end: exitWith(0), saveErr: context.Canceled, stopSignal: 0}, all, outcomeSaveFailed, phaseSave, 125, true, ""},
		"output too large":               {fakes{end: exitWith(0), outputs: map[string]string{"K": strings.Repeat("v", 70000)}}, all, outcomeOutputTooLarge, phaseOutputs, 125, false, ""},
		"output too large, child failed": {fakes{end: exitWith(2), outputs: map[string]string{"K": strings.Repeat("v", 70000)}}, all, outcomeExited, phaseChild, 2, false, "output K"},
		"report fails after success":     {fakes{end: exitWith(0), reportErr: errors.New("x")}, all, outcomeExited, phaseChild, 125, true, ""},
		"report fails after failure":     {fakes{end: exitWith(7), reportErr: errors.New("x")}, all, outcomeExited, phaseChild, 7, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			job := &Job{}
			job.applyDefaults()
			result := newResult("a")
			f := &c.fakes
			status := sequence(job, result, parts{f, f, f, f, func() syscall.Signal { return f.stopSignal }})
			if got := strings.Join(f.calls, " "); got != c.calls {
				t.Errorf("calls %s, want %s", got, c.calls)
			}
			if result.Outcome != c.outcome || result.Phase != c.phase || status != c.status || f.succeeded != c.saveAs {
				t.Errorf("outcome %s, phase %s, status %d, saver told %v; want %s, %s, %d, %v", result.Outcome, result.Phase, status, f.succeeded, c.outcome, c.phase, c.status, c.saveAs)
			}
			if !strings.Contains(strings.Join(result.Warnings, "|"), c.warns) {
				t.Errorf("warnings %q", result.Warnings)
			}
			if started := strings.Contains(c.calls, "save"); result.Started != started || (result.ExitCode != nil) != started {
				t.Errorf("started %v, exit code %v", result.Started, result.ExitCode)
			}
			if (result.Message == "") != (result.Outcome == outcomeExited && *result.ExitCode == 0) {
				t.Errorf("message %q", result.Message)
			}
		})
	}
}

func TestFaultOfTheWrapperIsTold(t *testing.T) {
	for _, where := range []string{"restore", "run", "save"} {
		f := &fakes{panics: where}
		job := &Job{}
		job.applyDefaults()
		result := newResult("a")
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: the trace is swallowed", where)
				}
			}()
			sequence(job, result, parts{f, f, f, f, func() syscall.Signal { return 0 }})
		}()
		if f.calls[len(f.calls)-1] != "report" || result.Outcome != outcomeWrapperFailed || !strings.Contains(result.Message, "fault in "+where) {
			t.Errorf("%s: %v %+v", where, f.calls, result)
		}
	}
}

func TestJobDocumentFaultsAreRefusedAllAtOnce(t *testing.T) {
	b := newBench(t).set("version", 2).set("timeout_s", -1).set("stdin", "tape").
		set("restore", []any{map[string]any{"kind": "tape", "url": ""}}).set("save", []any{map[string]any{"kind": "x", "when": "never", "upload": map[string]any{"part_bytes": -1, "multipart": map[string]any{}}}})
	b.set("command", []string{}).run().expect(outcomeWrapperFailed, exitWrapper)
	b.expectMessage("version is 2", "command is empty", "negative", "stdin", "restore[0].kind", "restore[0].url", "save[0].kind", "save[0].when", "save[0].paths", "put_url", "part_bytes", "multipart")
	if b.result.Started {
		t.Errorf("%s", b.raw)
	}
}

func TestJobDocumentOfWrongTypeRefused(t *testing.T) {
	b := newBench(t, "true").set("env", map[string]any{"SECRET": 12345}).run().expect(outcomeWrapperFailed, exitWrapper).expectMessage("env", "string")
	if strings.Contains(string(b.raw), "12345") {
		t.Errorf("a value got out: %s", b.raw)
	}
}

func TestJobDocumentThatIsNotThere(t *testing.T) {
	cmd := command(t, "hubflow-wrapper", "run", "/no/such/job.json")
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitWrapper || !strings.Contains(string(out), "/no/such/job.json") || strings.Contains(string(out), "result document") {
		t.Errorf("%d: %s", cmd.ProcessState.ExitCode(), out)
	}
}

func TestUnknownPropertiesAreIgnored(t *testing.T) {
	newBench(t, "true").set("from_the_future", map[string]any{"a": 1}).run().expect(outcomeExited, 0).expectNoWarnings()
}

func TestStopGraceLeavesTimeForTheResult(t *testing.T) {
	for grace, want := range map[float64]float64{0.5: 0.25, 2: 1, 4: 2, 10: 8, 30: 28} {
		if got := stopGrace(seconds(grace)); got != seconds(want) {
			t.Errorf("%v: %v, want %v", grace, got, want)
		}
	}
}

func TestSecondsDoNotOverflow(t *testing.T) {
	if seconds(1e300) <= 0 || seconds(0.25).Milliseconds() != 250 {
		t.Error(seconds(1e300), seconds(0.25))
	}
}

func TestSignalNames(t *testing.T) {
	for number := syscall.Signal(1); number < 65; number++ {
		if name := signalName(number); name == "" || strings.HasPrefix(name, "SIG") {
			t.Errorf("%d: %q", number, name)
		}
	}
	if signalName(40) != "40" || signalName(syscall.SIGKILL) != "KILL" {
		t.Error(signalName(40), signalName(9))
	}
}

func TestSelection(t *testing.T) {
	files := []string{"a.whl", "b.txt", "dist/x", "dist/sub/y", "src/main.go", "src/deep/er/main.go", "src/deep/er/test.py", "out/1/report.xml", "out/2/report.xml", "out/2/log", "we[ird/f"}
	script := ""
	for _, file := range files {
		script += fmt.Sprintf("mkdir -p \"$(dirname '%s')\"; echo x >'%s'; ", file, file)
	}
	for name, c := range map[string]struct {
		paths []string
		want  []string
	}{
		"a directory":             {[]string{"dist"}, []string{"dist/sub/y", "dist/x"}},
		"with a slash":            {[]string{"dist/"}, []string{"dist/sub/y", "dist/x"}},
		"with ./":                 {[]string{"./dist/x"}, []string{"dist/x"}},
		"a glob":                  {[]string{"*.whl"}, []string{"a.whl"}},
		"a glob for directories":  {[]string{"d*"}, []string{"dist/sub/y", "dist/x"}},
		"in between":              {[]string{"out/*/report.xml"}, []string{"out/1/report.xml", "out/2/report.xml"}},
		"any depth":               {[]string{"src/**/main.go"}, []string{"src/deep/er/main.go", "src/main.go"}},
		"any depth, from the top": {[]string{"**/*.py"}, []string{"src/deep/er/test.py"}},
		"everything below":        {[]string{"src/**"}, []string{"src/deep/er/main.go", "src/deep/er/test.py", "src/main.go"}},
		"classes":                 {[]string{"out/[2-9]/l?g"}, []string{"out/2/log"}},
		"escaped":                 {[]string{`we\[ird`}, []string{"we[ird/f"}},
		"overlapping":             {[]string{"dist", "dist/*", "dist/sub/y", "d*"}, []string{"dist/sub/y", "dist/x"}},
		"dots inside":             {[]string{"dist/../a.whl"}, []string{"a.whl"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			shell(t, script).set("save", []any{save(s, "artifact", "a", c.paths...)}).run().expect(outcomeExited, 0).expectNoWarnings()
			to := shell(t, "find got -type f -printf '%P\\n' | LC_ALL=C sort").set("restore", []any{restore(s, "artifact", "a", "got", true)}).run()
			if got := strings.Split(strings.TrimSpace(to.stdout.String()), "\n"); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWholeBaseIsSaved(t *testing.T) {
	s := newStore(t)
	shell(t, "mkdir w; echo x >w/f; mkdir w/d").set("save", []any{with(save(s, "cache", "c", "."), "base", "w")}).run().expect(outcomeExited, 0)
	b := shell(t, "find got | sort").set("restore", []any{restore(s, "cache", "c", "got", true)}).run().expect(outcomeExited, 0)
	if b.stdout.String() != "got\ngot/d\ngot/f\n" {
		t.Errorf("%q", b.stdout.String())
	}
}

func TestLinksAndSpecialFilesWhenSaving(t *testing.T) {
	s := newStore(t)
	b := shell(t, `mkdir -p d real; echo x >real/f; ln -s real named; ln -s /etc/passwd d/out; ln -s ../../x d/far; ln -s ../real/f d/in; mkfifo d/pipe; echo y >d/f`)
	b.set("save", []any{save(s, "artifact", "a", "named", "d")}).run().expect(outcomeExited, 0).expectWarning(`"d/out" leads out`).expectWarning(`"d/far" leads out`).expectWarning("named pipe")
	to := shell(t, "cd got; find . | LC_ALL=C sort; cat named/f").set("restore", []any{restore(s, "artifact", "a", "got", true)}).run().expect(outcomeExited, 0)
	if to.stdout.String() != ".\n./d\n./d/f\n./d/in\n./named\n./named/f\nx\n" {
		t.Errorf("%q", to.stdout.String())
	}
}

func TestUnreadableFileFailsTheSave(t *testing.T) {
	if syscall.Getuid() == 0 {
		t.Skip("root reads everything; the containers' test has this as another user")
	}
	s := newStore(t)
	shell(t, "echo x >f; chmod 0 f").set("save", []any{save(s, "artifact", "a", "f")}).run().expect(outcomeSaveFailed, exitWrapper).expectMessage(`"f" cannot be read`)
}
