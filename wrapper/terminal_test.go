package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"
)

// screen is a pseudo terminal: what is typed into it, and what is to be seen on it.
type screen struct {
	t      *testing.T
	master *os.File
	slave  *os.File
	mu     sync.Mutex
	seen   strings.Builder
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	var unlock, number int32
	ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	s := &screen{t: t, master: master, slave: slave}
	t.Cleanup(func() { master.Close(); slave.Close() })
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			s.mu.Lock()
			s.seen.Write(buffer[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) {
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), request, uintptr(argument))
}

func (s *screen) typed(text string) {
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Error(err)
	}
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.String()
}

func (s *screen) shows(text string) {
	s.t.Helper()
	waitFor(s.t, fmt.Sprintf("%q on the screen", text), func() bool { return strings.Contains(s.text(), text) })
}

func (s *screen) resize(rows, columns uint16) {
	size := [4]uint16{rows, columns}
	ioctl(s.slave, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
}

// leads makes cmd the leader of a session with this terminal, as `docker run -it` does.
func (s *screen) leads(cmd *exec.Cmd) *exec.Cmd {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.slave, s.slave, s.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	return cmd
}

func onTerminal(t *testing.T, script string) (*bench, *screen) {
	s := newScreen(t)
	b := shell(t, script).set("stdin", "pass")
	b.prepare()
	s.leads(b.cmd)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return b, s
}

func TestTerminalIsTheChilds(t *testing.T) {
	b, s := onTerminal(t, `[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; [ "$(ps -o tpgid= -p $$)" -eq "$(ps -o pgid= -p $$)" ] && echo in front; read line; echo "got $line"; echo TTY=yes >>$HUBFLOW_OUTPUT; exit 4`)
	s.shows("in front")
	s.typed("hello\n")
	b.wait().expect(outcomeExited, 4).expectNoWarnings()
	s.shows("three")
	s.shows("got hello")
	if b.result.Outputs["TTY"] != "yes" {
		t.Error(b.result.Outputs)
	}
}

func TestInteractiveShellWithJobControl(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	s := newScreen(t)
	b := newBench(t, bash, "--norc", "-i").set("stdin", "pass").set("env", map[string]string{"PS1": "inner> "})
	b.prepare()
	s.leads(b.cmd)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.shows("inner> ")
	if strings.Contains(s.text(), "no job control") {
		t.Error(s.text())
	}
	s.typed("sleep 100\n")
	waitFor(t, "the shell's child in front", func() bool { return s.foregroundIs("sleep") })
	s.typed("\x1a") // Ctrl-Z is for the shell's child
	s.shows("Stopped")
	s.typed("kill %1; wait; echo inner $((40+2))\n")
	s.shows("inner 42")
	s.typed("exit 7\n")
	b.wait().expect(outcomeExited, 7)
}

// foregroundIs says whether the leader of the terminal's foreground group runs the program.
func (s *screen) foregroundIs(program string) bool {
	var group int32
	ioctl(s.master, syscall.TIOCGPGRP, unsafe.Pointer(&group))
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", group))
	return strings.TrimSpace(string(name)) == program
}

func TestKeysAndWindowReachTheChild(t *testing.T) {
	for name, c := range map[string]struct {
		script  string
		act     func(*screen)
		outcome string
		status  int
	}{
		"Ctrl-C":          {"echo ready; exec sleep 60", func(s *screen) { s.typed("\x03") }, outcomeSignaled, 130},
		"Ctrl-C, caught":  {"trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done", func(s *screen) { s.typed("\x03") }, outcomeExited, 9},
		`Ctrl-\`:          {"ulimit -c 0; echo ready; exec sleep 60", func(s *screen) { s.typed("\x1c") }, outcomeSignaled, 131},
		"Ctrl-D":          {"echo ready; cat >/dev/null; exit 5", func(s *screen) { s.typed("\x04") }, outcomeExited, 5},
		"a larger window": {"trap 'stty size; exit 6' WINCH; stty size; echo ready; while :; do sleep 0.01; done", func(s *screen) { s.resize(33, 132) }, outcomeExited, 6},
		// (No children here: a shell that is just forking misses the key, with or without us.)
		"Ctrl-Z, nobody behind us": {"trap 'on=1' CONT; echo ready; while [ -z \"$on\" ]; do :; done; echo went on; exit 8", func(s *screen) { s.typed("\x1a") }, outcomeExited, 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := onTerminal(t, c.script)
			s.shows("ready")
			c.act(s)
			b.wait().expect(c.outcome, c.status)
			if name == "a larger window" {
				s.shows("33 132")
			}
		})
	}
}

// behindBash types the job's command line, with `suffix`, into an interactive shell. `over` waits for the shell's end.
func behindBash(b *bench, suffix string) (s *screen, over func()) {
	b.t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		b.t.Skip("needs bash")
	}
	s = newScreen(b.t.(*testing.T))
	b.prepare()
	outer := s.leads(exec.Command(bash, "--norc", "-i"))
	outer.Env = append(b.cmd.Env, "PS1=outer> ")
	outer.Dir = b.dir
	if err := outer.Start(); err != nil {
		b.t.Fatal(err)
	}
	s.shows("outer> ")
	s.typed(fmt.Sprintf("%s run %s%s\n", b.cmd.Path, b.cmd.Args[2], suffix))
	return s, func() { _ = outer.Wait() }
}

// In front of an ordinary shell the wrapper stops and goes on with its child.
func TestSuspendedInFrontOfAShell(t *testing.T) {
	b := shell(t, "echo child is ready; read line; echo child got $line; exit 3").set("stdin", "pass")
	s, over := behindBash(b, "")
	s.shows("child is ready")
	s.typed("\x1a")
	s.shows("Stopped")
	s.typed("echo outer $((40+2))\n")
	s.shows("outer 42")
	s.typed("fg\n")
	s.typed("a word\n")
	s.shows("child got a word")
	s.typed("echo status $?; exit\n")
	s.shows("status 3")
	over()
	if raw, _ := os.ReadFile(b.path("result.json")); !strings.Contains(string(raw), `"outcome":"exited","exit_code":3`) {
		t.Errorf("%s", raw)
	}
}

func TestStopOfAJobOnATerminal(t *testing.T) {
	b, s := onTerminal(t, "trap 'echo bye; exit 2' TERM; echo ready; while :; do sleep 0.01; done")
	s.shows("ready")
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 2)
	s.shows("bye")
}

func TestTimeLimitOfAJobOnATerminal(t *testing.T) {
	b, _ := onTerminal(t, "true")
	b.wait().expect(outcomeExited, 0)
	s := newScreen(t)
	b = shell(t, "trap '' TERM; while :; do sleep 0.01; done").set("stdin", "pass").set("timeout_s", 0.3).set("grace_s", 0.1)
	b.prepare()
	s.leads(b.cmd)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeTimedOut, exitTimedOut)
}

func TestCommandThatCannotStartOnATerminal(t *testing.T) {
	s := newScreen(t)
	b := newBench(t, "/no/such/command").set("stdin", "pass")
	b.prepare()
	s.leads(b.cmd)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeStartFailed, exitNotFound)
	s.shows("no such file")
}

// With a pipe on one side it is not interactive, whatever the other side is.
func TestHalfATerminalIsNone(t *testing.T) {
	s := newScreen(t)
	b := shell(t, "[ -t 0 ] && ! [ -t 1 ] && echo '[JOB_OUT] HALF = yes'").set("stdin", "pass")
	b.prepare()
	b.cmd.Stdin = s.slave
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if b.result.Outputs["HALF"] != "yes" {
		t.Errorf("%s", b.raw)
	}
}
