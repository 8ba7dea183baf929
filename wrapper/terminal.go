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
		Sys:   &syscall.SysProcAttr{Foreground: true, Ctty: 0, Pdeathsig: syscall.SIGKILL},
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

// suspended is called when the child was stopped by Ctrl-Z. We stop as well, so that the shell in front of which we stand takes
// over; when that puts us into the foreground again, so is the child. Where nobody is behind us the child just goes on.
func (t *terminal) suspended(child int) {
	if t == nil {
		return
	}
	if os.Getpid() != 1 && session() != os.Getpid() {
		select {
		case <-t.continued: // an old one
		default:
		}
		t.foreground(syscall.Getpgrp())
		// Another thread may take the signal, so that we would run on a little, and give the child what is the shell's.
		_ = syscall.Kill(0, syscall.SIGSTOP)
		<-t.continued
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

// takeBack makes our own group the foreground one again, after the child's end.
func (t *terminal) takeBack() {
	if t != nil {
		t.foreground(syscall.Getpgrp())
	}
}

func (t *terminal) foreground(group int) {
	number := int32(group)
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, t.file.Fd(), syscall.TIOCSPGRP, uintptr(unsafe.Pointer(&number)))
}

// session is the leader of the session that we are in.
func session() int {
	leader, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	return int(leader)
}

// isTerminal asks for terminal settings, which only terminals have.
func isTerminal(file *os.File) bool {
	var settings syscall.Termios
	_, _, number := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&settings)))
	return number == 0
}
