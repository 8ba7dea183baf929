package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExitStatusIsTheChilds(t *testing.T) {
	for _, status := range []int{0, 1, 7, 42, 126, 255} {
		b := shell(t, fmt.Sprintf("exit %d", status)).run().expect(outcomeExited, status).expectNoWarnings()
		if *b.result.ExitCode != status || !b.result.Started || b.result.Phase != phaseChild {
			t.Errorf("%s", b.raw)
		}
	}
}

func TestExitStatusOfSignals(t *testing.T) {
	for name, number := range map[string]int{"KILL": 9, "SEGV": 11, "TERM": 15, "ABRT": 6} {
		b := shell(t, "kill -"+name+" $$").run().expect(outcomeSignaled, 128+number)
		if b.result.Signal != name || *b.result.ExitCode != 128+number {
			t.Errorf("%s: %s", name, b.raw)
		}
	}
}

func TestOutputByteForByte(t *testing.T) {
	everyByte := make([]byte, 256)
	for i := range everyByte {
		everyByte[i] = byte(i)
	}
	content := bytes.Repeat(append(everyByte, "\r\n\x1b[31mred\x1b[0m no newline at the end"...), 300)
	b := newBench(t, "cat", "data")
	if err := os.WriteFile(b.path("data"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	b.run().expect(outcomeExited, 0)
	if !bytes.Equal(b.stdout.Bytes(), content) {
		t.Errorf("%d bytes came out of %d, or others", b.stdout.Len(), len(content))
	}
}

func TestStdoutAndStderrKeepTheirOrder(t *testing.T) {
	b := shell(t, "for i in 1 2 3 4 5 6 7 8 9; do echo out$i; echo err$i >&2; done").run()
	var want strings.Builder
	for i := 1; i <= 9; i++ {
		fmt.Fprintf(&want, "out%d\nerr%d\n", i, i)
	}
	if b.stdout.String() != want.String() {
		t.Errorf("%q", b.stdout.String())
	}
}

// 10 MB in one go, then an exit at once: nothing of it may be lost.
func TestT53FloodIsPassedWhole(t *testing.T) {
	b := shell(t, "head -c 10000000 /dev/zero | tr '\\0' 'x'; echo; echo end").run().expect(outcomeExited, 0)
	if b.stdout.Len() != 10000000+1+4 || !strings.HasSuffix(b.stdout.String(), "x\nend\n") {
		t.Errorf("%d bytes", b.stdout.Len())
	}
}

func TestOutputComesAtOnce(t *testing.T) {
	b := shell(t, "printf 'no newline'; while ! [ -e go ]; do sleep 0.01; done")
	b.prepare()
	output, err := os.Create(b.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	b.cmd.Stdout = output
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the unfinished line", func() bool { text, _ := os.ReadFile(b.path("log")); return string(text) == "no newline" })
	os.WriteFile(b.path("go"), nil, 0o644)
	b.wait().expect(outcomeExited, 0)
}

func TestBrokenOutputDoesNotDisturbTheJob(t *testing.T) {
	b := shell(t, "i=0; while [ $i -lt 3000 ]; do echo 'a line of output that nobody reads, long enough to fill a pipe'; i=$((i+1)); done; echo done >finished")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	b.prepare()
	b.cmd.Stdout = writer
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	b.wait().expect(outcomeExited, 0).expectWarning("could not be passed on")
	waitForFile(t, b.path("finished"))
}

func TestFullDiskBehindOutputDoesNotDisturbTheJob(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	b := shell(t, "echo one; echo two; echo '[JOB_OUT] K = v'")
	b.prepare()
	b.cmd.Stdout = full
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0).expectWarning("no space left")
	if b.result.Outputs["K"] != "v" {
		t.Errorf("outputs %v", b.result.Outputs)
	}
}

func TestStdinIsEmpty(t *testing.T) {
	b := shell(t, "cat; readlink /proc/self/fd/0")
	b.prepare()
	b.cmd.Stdin = strings.NewReader("must not be seen")
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if b.stdout.String() != "/dev/null\n" {
		t.Errorf("%q", b.stdout.String())
	}
}

func TestStdinIsPassedWhereAsked(t *testing.T) {
	b := newBench(t, "cat").set("stdin", "pass")
	b.prepare()
	b.cmd.Stdin = strings.NewReader("typed")
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if b.stdout.String() != "typed" {
		t.Errorf("%q", b.stdout.String())
	}
}

func TestSignalsReachTheWholeGroup(t *testing.T) {
	for name, number := range map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
		"TERM": syscall.SIGTERM, "WINCH": syscall.SIGWINCH, "ALRM": syscall.SIGALRM, "SEGV": syscall.SIGSEGV, "RTMIN+3": 37,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			b := newBench(t, own).set("env", map[string]string{actAsCatcher: strconv.Itoa(int(number))}).start()
			b.signalWhen("ready", number).wait()
			outcome := outcomeExited
			if name == "TERM" || name == "INT" {
				outcome = outcomeStopped
			}
			b.expect(outcome, 9)
		})
	}
}

func TestSignalsOfTheCLibraryReachTheChild(t *testing.T) {
	for number := syscall.Signal(32); number <= 34; number++ {
		shell(t, "touch ready; exec sleep 60").start().signalWhen("ready", number).wait().expect(outcomeSignaled, 128+int(number))
	}
}

func TestFaultsOfOursStillPanic(t *testing.T) {
	caught, err := catchSignals([]syscall.Signal{syscall.SIGSEGV})
	if err != nil {
		t.Fatal(err)
	}
	defer caught.Close()
	defer func() {
		if fault := recover(); fault == nil {
			t.Error("no panic")
		}
	}()
	var nobody *child
	nobody.pid = 1
}

func TestStopIsForwardedAndMirrored(t *testing.T) {
	shell(t, "trap 'exit 0' TERM; touch ready; while :; do sleep 0.01; done").start().signalWhen("ready", syscall.SIGTERM).wait().
		expect(outcomeStopped, 0).expectMessage("stop from outside")
	shell(t, "touch ready; sleep 60").start().signalWhen("ready", syscall.SIGTERM).wait().expect(outcomeStopped, 143)
	shell(t, "touch ready; sleep 60").start().signalWhen("ready", syscall.SIGINT).wait().expect(outcomeStopped, 130)
}

func TestStopOfADeafChildEndsBeforeTheRuntimesGrace(t *testing.T) {
	b := shell(t, "trap '' TERM; touch ready; while :; do sleep 0.01; done").set("grace_s", 4).start().signalWhen("ready", syscall.SIGTERM)
	told := time.Now()
	b.wait().expect(outcomeStopped, 137)
	if took := time.Since(told); took > 3900*time.Millisecond {
		t.Errorf("took %v; the runtime would have killed us", took)
	}
}

func TestTimeLimitEndsByTerm(t *testing.T) {
	b := shell(t, "trap 'echo cleaned up; exit 3' TERM; while :; do sleep 0.01; done").set("timeout_s", 0.2).run().
		expect(outcomeTimedOut, exitTimedOut).expectMessage("200ms", "timeout")
	if !strings.HasSuffix(b.stdout.String(), "cleaned up\n") || *b.result.ExitCode != 3 {
		t.Errorf("%q %s", b.stdout.String(), b.raw)
	}
}

func TestTimeLimitKillsAfterGrace(t *testing.T) {
	b := shell(t, "trap '' TERM; sleep 60 & echo $! >pid; while :; do sleep 0.01; done").set("timeout_s", 0.2).set("grace_s", 0.2).run().
		expect(outcomeTimedOut, exitTimedOut)
	if b.result.Signal != "KILL" {
		t.Errorf("%s", b.raw)
	}
	expectDead(t, b.path("pid"))
}

func TestTimeLimitReachesSuspendedJobs(t *testing.T) {
	shell(t, "trap 'exit 4' TERM; kill -STOP $$; exit 5").set("timeout_s", 0.3).run().expect(outcomeTimedOut, exitTimedOut)
}

// A child that left the group and the session is still found: we are its reaper.
func TestTimeLimitReachesThoseWhoLeftTheGroup(t *testing.T) {
	b := shell(t, `setsid sh -c 'trap "" TERM HUP; echo $$ >pid; while :; do sleep 0.05; done' >/dev/null 2>&1 & sleep 60`).
		set("timeout_s", 0.5).set("grace_s", 0.2).run().expect(outcomeTimedOut, exitTimedOut)
	expectDead(t, b.path("pid"))
}

func expectDead(t *testing.T, pidFile string) {
	t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if pid == 0 || syscall.Kill(pid, 0) != syscall.ESRCH {
		t.Errorf("process %d is still there", pid)
	}
}

func TestLeftoversAreKilledAtTheEnd(t *testing.T) {
	begin := time.Now()
	b := shell(t, "sleep 60 & echo $! >pid; setsid sleep 60 & echo $! >pid2; exit 0").run().expect(outcomeExited, 0)
	expectDead(t, b.path("pid"))
	expectDead(t, b.path("pid2"))
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

// What a `tee` in the background still has to say is waited for.
func TestLateOutputOfHelpersIsKept(t *testing.T) {
	b := shell(t, "(sleep 0.02; echo '[JOB_OUT] LATE = yes') & echo early").run().expect(outcomeExited, 0)
	if b.stdout.String() != "early\n[JOB_OUT] LATE = yes\n" || b.result.Outputs["LATE"] != "yes" {
		t.Errorf("%q %v", b.stdout.String(), b.result.Outputs)
	}
}

func TestSilentHelpersDoNotHoldTheJobUp(t *testing.T) {
	begin := time.Now()
	shell(t, "sleep 60 & exit 0").run().expect(outcomeExited, 0)
	if took := time.Since(begin); took > 1500*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	// Orphans come to us as the subreaper; a zombie of theirs would still be listed by /proc.
	b := shell(t, "(sleep 0.05 & echo $! >pid); sleep 0.3; [ -e /proc/$(cat pid) ] && echo zombie; exit 0").run().expect(outcomeExited, 0)
	if b.stdout.Len() > 0 {
		t.Errorf("%q", b.stdout.String())
	}
}

func TestChildDiesWithTheWrapper(t *testing.T) {
	b := shell(t, "echo $$ >pid; touch ready; exec sleep 60").start()
	waitForFile(t, b.path("ready"))
	b.cmd.Process.Kill()
	b.cmd.Wait()
	waitFor(t, "the child's death", func() bool {
		text, _ := os.ReadFile(b.path("pid"))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return pid != 0 && (len(state) == 0 || bytes.Contains(state, []byte(") Z ")))
	})
	if _, err := os.Stat(b.path("result.json")); err == nil {
		t.Error("a wrapper that was killed left a result document")
	}
}

func TestRunningFileMarksTheStart(t *testing.T) {
	b := shell(t, "while ! [ -e running ]; do sleep 0.01; done; cat running")
	b.set("running_path", b.path("running")).run().expect(outcomeExited, 0).expectNoWarnings()
	if !strings.Contains(b.stdout.String(), `"attempt":"hf-test-1-0"`) || !strings.Contains(b.stdout.String(), `"child_pid"`) {
		t.Errorf("%q", b.stdout.String())
	}
	b = shell(t, "true")
	b.set("running_path", "/proc/no/such/directory/running").run().expect(outcomeExited, 0).expectWarning("running file")
}

func TestEnvironment(t *testing.T) {
	t.Setenv("FROM_IMAGE", "kept")
	t.Setenv("OVERRIDDEN", "old")
	t.Setenv("TAKEN_AWAY", "x")
	t.Setenv("PWD", "/somewhere/else")
	b := newBench(t, "env").set("env", map[string]string{"OVERRIDDEN": "new", "MULTI": "a\nb", "EMPTY": ""}).set("unset_env", []string{"TAKEN_AWAY"}).run()
	lines := "\n" + b.stdout.String()
	for _, want := range []string{"\nFROM_IMAGE=kept\n", "\nOVERRIDDEN=new\n", "\nMULTI=a\nb\n", "\nEMPTY=\n", "\nHUBFLOW_OUTPUT=" + b.path("outputs") + "\n"} {
		if !strings.Contains(lines, want) {
			t.Errorf("no %q in %s", want, lines)
		}
	}
	for _, not := range []string{"TAKEN_AWAY", "OVERRIDDEN=old", "PWD=", actAsWrapper} {
		if strings.Contains(lines, not) {
			t.Errorf("%q in %s", not, lines)
		}
	}
}

// The wrapper's memory and environment hold secrets: a child of the same user must not read them, nor a core file have them.
func TestWrapperIsNotDumpable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	b := shell(t, "echo pid $PPID; head -c 1 /proc/$PPID/mem || echo refused; cat /proc/$PPID/environ >/dev/null || echo refused")
	os.Chmod(b.dir, 0o777)
	for dir := filepath.Dir(b.dir); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode()&5 != 5 {
			os.Chmod(dir, info.Mode()|5)
		}
	}
	b.prepare()
	own, _ := os.ReadFile(b.cmd.Path)
	copied := b.path("wrapper")
	os.WriteFile(copied, own, 0o755)
	b.cmd.Path = copied
	os.Chown(b.path("job.json"), 54321, 54321)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0) // of a uid without a passwd entry, too
	if strings.Count(b.stdout.String(), "refused") != 2 {
		t.Errorf("%q", b.stdout.String())
	}
}

func TestJobDocumentIsRemoved(t *testing.T) {
	b := shell(t, "ls; tr '\\0' ' ' </proc/$PPID/cmdline").set("env", map[string]string{"TOKEN": "s3cret"}).run()
	if strings.Contains(b.stdout.String(), "job.json\n") || strings.Contains(b.stdout.String(), "s3cret") {
		t.Errorf("%q", b.stdout.String())
	}
	if _, err := os.Stat(b.path("job.json")); err == nil {
		t.Error("it is still there")
	}
}

func TestStartFailures(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own, _ := os.Executable()
	program, _ := os.ReadFile(own)
	foreign := bytes.Clone(program[:4096])
	foreign[18] = 183 // EM_AARCH64
	if program[18] == 183 {
		foreign[18] = 62
	}
	for name, c := range map[string]struct {
		argv   []string
		status int
		says   []string
	}{
		"unknown name":      {[]string{"no-such-command"}, exitNotFound, []string{"no-such-command", "PATH", "install it"}},
		"unknown path":      {[]string{"/no/such/file"}, exitNotFound, []string{"no such file"}},
		"below a file":      {[]string{"/etc/passwd/x"}, exitNotFound, []string{"no such file"}},
		"directory":         {[]string{dir}, exitNotExecutable, []string{"directory"}},
		"no x bit":          {[]string{write("plain", "#!/bin/sh\n", 0o644)}, exitNotExecutable, []string{"not executable", "chmod +x"}},
		"no shebang":        {[]string{write("bare", "echo hello\n", 0o755)}, exitNotExecutable, []string{"#!/bin/sh"}},
		"empty":             {[]string{write("empty", "", 0o755)}, exitNotExecutable, []string{"empty"}},
		"no interpreter":    {[]string{write("script", "#!/no/such/shell -e\n", 0o755)}, exitNotExecutable, []string{"/no/such/shell", "interpreter"}},
		"dos line ends":     {[]string{write("dos", "#!/bin/sh\r\necho\r\n", 0o755)}, exitNotExecutable, []string{"CR LF", "dos2unix"}},
		"other machine":     {[]string{write("foreign", string(foreign), 0o755)}, exitNotExecutable, []string{"built for", "platform"}},
		"argument too long": {[]string{"true", strings.Repeat("x", 200<<10)}, exitNotExecutable, []string{"too large", "artifact"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, c.argv...).run().expect(outcomeStartFailed, c.status).expectMessage(c.says...)
			if b.result.Started || b.result.ExitCode != nil || b.result.Timings.ChildStartedAt != nil {
				t.Errorf("%s", b.raw)
			}
			if !strings.Contains(b.stderr.String(), b.result.Message) {
				t.Errorf("the log does not say why: %q", b.stderr.String())
			}
		})
	}
}

func TestStartFailureOfNotExecutableOnPath(t *testing.T) {
	b := newBench(t, "tool")
	os.WriteFile(b.path("tool"), []byte("#!/bin/sh\n"), 0o644)
	b.set("env", map[string]string{"PATH": b.dir}).run().expect(outcomeStartFailed, exitNotExecutable)
	if os.Getuid() != 0 { // root may execute nothing without an x bit either, but access(2) says so differently
		b.expectMessage("chmod +x")
	}
}

func TestCommandIsFoundByTheChildsPath(t *testing.T) {
	b := newBench(t, "tool")
	os.Mkdir(b.path("bin"), 0o755)
	os.WriteFile(b.path("bin/tool"), []byte("#!/bin/sh\necho found\n"), 0o755)
	b.set("env", map[string]string{"PATH": "/nowhere:bin"}).run().expect(outcomeExited, 0)
	if b.stdout.String() != "found\n" {
		t.Errorf("%q", b.stdout.String())
	}
	b = newBench(t, "sh", "-c", "exit 6").set("unset_env", []string{"PATH"}).run().expect(outcomeExited, 6)
}

func TestVariablesThatNoProcessCanHave(t *testing.T) {
	for _, env := range []map[string]string{{"A=B": "x"}, {"": "x"}, {"A": "x\x00y"}} {
		newBench(t, "true").set("env", env).run().expect(outcomeStartFailed, exitNotExecutable).expectMessage("base64")
	}
}

func TestWorkdir(t *testing.T) {
	b := newBench(t, "pwd")
	b.set("workdir", b.path("missing")).run().expect(outcomeStartFailed, exitNotFound).expectMessage("missing", "WORKDIR")
	b = newBench(t, "pwd")
	b.set("workdir", b.path("a/b")).set("create_workdir", true).run().expect(outcomeExited, 0)
	if b.stdout.String() != b.path("a/b")+"\n" {
		t.Errorf("%q", b.stdout.String())
	}
	b = newBench(t, "pwd")
	os.WriteFile(b.path("file"), nil, 0o644)
	b.set("workdir", b.path("file")).run().expect(outcomeStartFailed, exitNotExecutable).expectMessage("not a directory")
	b = newBench(t, "pwd").set("workdir", "").run().expect(outcomeExited, 0)
}

func TestInteractiveShell(t *testing.T) {
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("needs script(1) to make a terminal")
	}
	b := newBench(t, "sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo on a terminal && ps -o tpgid= -o pgid= -p $$ | awk '{exit !($1 == $2)}' && echo in front; echo TTY=yes >>$HUBFLOW_OUTPUT").set("stdin", "pass")
	b.prepare()
	inner := b.cmd
	b.cmd = exec.Command(script, "-qec", fmt.Sprintf("%s run %s", inner.Path, inner.Args[2]), "/dev/null")
	b.cmd.Env, b.cmd.Stdout = inner.Env, &b.stdout
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if !strings.Contains(b.stdout.String(), "on a terminal") || !strings.Contains(b.stdout.String(), "in front") || b.result.Outputs["TTY"] != "yes" {
		t.Errorf("%q %v", b.stdout.String(), b.result.Outputs)
	}
}
