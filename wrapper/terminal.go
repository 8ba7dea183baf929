package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

// terminal is ours, lent to the child: its group becomes the foreground one, so that shells with job control, editors, Ctrl-C
// and Ctrl-Z work. Nothing passes through us then: outputs come by HUBFLOW_OUTPUT only. A nil one does nothing.
type terminal struct {
	file      *os.File
	continued chan os.Signal // SIGCONT, which the relay leaves to us
}

func openTerminal() *terminal {
	t := &terminal{os.Stdin, make(chan os.Signal, 1)}
	signal.Notify(t.continued, syscall.SIGCONT)
	return t
}

// startOnTerminal starts the child with the terminal itself as stdin, stdout and stderr.
func startOnTerminal(path string, args, env []string) (*child, error) {
	c := &child{
		exited: make(chan syscall.WaitStatus, 1), reaped: make(chan struct{}), drained: make(chan struct{}),
		group: newCgroup(), tty: openTerminal(),
	}
	close(c.drained)
	attributes := &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2},
		// In the background (`run job.json &`) the terminal is another's; the child stops when it reads from it, as any would.
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: c.tty.inFront() == syscall.Getpgrp(), Ctty: 0, Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error, 1)
	go c.startAndReap(path, args, attributes, started)
	if err := <-started; err != nil {
		c.group.remove()
		return nil, err
	}
	// From now on we are in the background, where taking the terminal back would stop us. Not before: the child would inherit it.
	signal.Ignore(syscall.SIGTTOU)
	return c, nil
}

// suspended is called when the child was stopped by Ctrl-Z, or because it read from a terminal that is not its own. We stop as
// well, so that the shell in front of which we stand takes over; when that puts us into the foreground again, so is the child.
// Where nobody is behind us the child just goes on.
func (t *terminal) suspended(child int) {
	if t == nil {
		return
	}
	// `fg` of a job that was never stopped has put us, not the child, in front.
	if behindSomebody() && t.inFront() != syscall.Getpgrp() {
		select {
		case <-t.continued: // an old one
		default:
		}
		t.takeBack(child)
		// Another thread may take the signal, so that we would run on a little, and give the child what is the shell's.
		_ = syscall.Kill(0, syscall.SIGSTOP)
		<-t.continued
	}
	if t.inFront() == syscall.Getpgrp() { // not after `bg`
		t.foreground(child)
	}
	_ = syscall.Kill(-child, syscall.SIGCONT)
	// The key's signal may still be on its way to other members of the group, who would stop after they were told to go on.
	go func() {
		for delay := pollInterval; delay < 2*time.Second; delay *= 2 {
			time.Sleep(delay)
			if anyStopped(child) {
				_ = syscall.Kill(-child, syscall.SIGCONT)
			}
		}
	}()
}

// takeBack makes our own group the foreground one again if the child's is.
func (t *terminal) takeBack(child int) {
	if t != nil && t.inFront() == child {
		t.foreground(syscall.Getpgrp())
	}
}

// inFront is the terminal's foreground group.
func (t *terminal) inFront() int {
	var number int32
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, t.file.Fd(), syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&number)))
	return int(number)
}

func (t *terminal) foreground(group int) {
	number := int32(group)
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, t.file.Fd(), syscall.TIOCSPGRP, uintptr(unsafe.Pointer(&number)))
}

// behindSomebody says whether somebody, such as a shell, can continue us once we are stopped: not where we are the first process
// or lead the session.
func behindSomebody() bool {
	leader, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	return os.Getpid() != 1 && int(leader) != os.Getpid()
}

// isTerminal asks for terminal settings, which only terminals have.
func isTerminal(file *os.File) bool {
	var settings syscall.Termios
	_, _, number := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&settings)))
	return number == 0
}
