package main

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// child is the component's process, leader of its own process group, with stdin from /dev/null and its stdout and stderr in
// one pipe, so that their order is kept.
type child struct {
	pid     int
	exited  chan syscall.WaitStatus // the child's own status, once
	reaped  chan struct{}           // closed when no descendant is left
	drained chan struct{}           // closed when its output has been passed on to the end
	output  *os.File                // our end of the pipe
	copier  *copier
	group   *cgroup      // nil where there is none
	tty     *terminal    // nil unless the child has our terminal
	relay   *signalRelay // once it is supervised
}

// childEnd says how the child ended and what was done about it.
type childEnd struct {
	status   syscall.WaitStatus
	timedOut bool
	stopped  bool
	warnings []string
	logBytes int64 // of its output that were passed on
	logCRLF  int64 // line ends with a carriage return among them
}

// startChild starts the command and returns once it has been executed (or could not be).
func startChild(path string, args, env []string, passStdin bool, sink *copier) (*child, error) {
	if passStdin && isTerminal(os.Stdin) && isTerminal(os.Stdout) {
		return startOnTerminal(path, args, env)
	}
	input := os.Stdin
	if !passStdin {
		null, err := openNull()
		if err != nil {
			return nil, err
		}
		defer null.Close()
		input = null
	}
	reader, writer, err := outputPipe()
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	c := &child{
		exited: make(chan syscall.WaitStatus, 1), reaped: make(chan struct{}), drained: make(chan struct{}),
		output: reader, copier: sink, group: newCgroup(),
	}
	attributes := &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{input.Fd(), writer.Fd(), writer.Fd()},
		// Should the wrapper be killed outright, the child must not go on unseen.
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error, 1)
	go c.startAndReap(path, args, attributes, started)
	if err := <-started; err != nil {
		reader.Close()
		c.group.remove()
		return nil, err
	}
	go func() {
		defer close(c.drained)
		sink.copy(reader)
	}()
	return c, nil
}

// startAndReap lives on one thread, because the parent-death signal fires at the death of the thread that forked. It collects
// every dead process: orphans of the container come to us as PID 1, elsewhere as the subreaper.
func (c *child) startAndReap(path string, args []string, attributes *syscall.ProcAttr, started chan<- error) {
	runtime.LockOSThread()
	restoreTimers()
	pid, err := c.group.start(attributes, func() (int, error) { return syscall.ForkExec(path, args, attributes) })
	c.pid = pid
	started <- err
	if err != nil {
		runtime.UnlockOSThread()
		return
	}
	options := 0
	if c.tty != nil {
		options = syscall.WUNTRACED
	}
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, options, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil { // ECHILD: nobody is left
			close(c.reaped)
			return
		}
		switch {
		case dead != pid:
		case status.Stopped():
			c.tty.suspended(pid)
		case nobodyLeft():
			close(c.reaped) // before the end is told, so that nobody goes looking for what the child has left
			c.exited <- status
			return
		default:
			c.exited <- status
		}
	}
}

// nobodyLeft reaps what has ended and says whether that was all: a process without children has no descendants, since orphans
// come to us.
func nobodyLeft() bool {
	for {
		dead, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != syscall.EINTR && dead <= 0 {
			return err == syscall.ECHILD
		}
	}
}

// supervise waits for the child's end, and brings it about at the time limit or some time after we were told to stop.
func (c *child) supervise(relay *signalRelay, timeout, grace time.Duration) childEnd {
	var end childEnd
	c.relay = relay
	relay.attach(c.pid, c.tty != nil)
	stopped := relay.stopped
	limit := optionalTimer(timeout)
	var kill <-chan time.Time
	for {
		select {
		case end.status = <-c.exited:
			relay.detach()
			end.stopped = end.stopped || relay.stop() != 0 && !end.timedOut
			end.warnings = c.finish()
			return end
		case <-limit:
			end.timedOut, stopped = true, nil
			_ = syscall.Kill(-c.pid, syscall.SIGTERM)
			_ = syscall.Kill(-c.pid, syscall.SIGCONT) // a suspended group would sleep through it
			kill = time.After(grace)
		case <-stopped:
			end.stopped, stopped, limit = true, nil, nil
			if grace > 0 { // with none, whoever told us to stop also kills
				kill = time.After(stopGrace(grace))
			}
		case <-kill:
			c.kill()
			kill = time.After(time.Second) // new members may have joined while we killed
		}
	}
}

// stopGrace leaves the wrapper a moment to write its result before the runtime kills it at the end of the same grace.
func stopGrace(grace time.Duration) time.Duration {
	return max(grace-2*time.Second, grace/2)
}

func optionalTimer(after time.Duration) <-chan time.Time {
	if after <= 0 {
		return nil
	}
	return time.After(after)
}

const (
	// What the child left behind (a `tee`, a daemon) may still write. It gets until it has been silent for lingerSilence, but
	// no longer than lingerMost; then it is killed, as it would be at the end of any container.
	lingerSilence = 250 * time.Millisecond
	lingerMost    = 3 * time.Second
	// A process that cannot be killed (another user's, or asleep in the kernel) may hold the pipe for ever.
	abandonSilence = 2 * time.Second
	abandonMost    = 5 * time.Second
	// Whoever reads our output may have stopped reading without going away. The result is worth more than the rest of the log.
	stuckMost    = 60 * time.Second
	pollInterval = 10 * time.Millisecond
)

// finish ends what the child left running and passes on the last of the output.
func (c *child) finish() (warnings []string) {
	select {
	case <-c.drained: // nearly always at once
	case <-time.After(pollInterval):
		c.waitDrained(lingerSilence, lingerMost)
	}
	select {
	case <-c.reaped:
	default:
		c.killAll()
	}
	most := time.Duration(0)
	select {
	case <-c.reaped: // all that can come has been written
	default:
		most = abandonMost
	}
	if !c.waitDrained(abandonSilence, most) {
		problem := "a process that could not be killed still holds the job's output; what it writes from now on is lost"
		if c.copier.writing() {
			problem = fmt.Sprintf("the end of the job's output was lost: what reads it (the container's log?) has taken nothing for %v", c.stuckMost())
		}
		warnings = append(warnings, problem)
	}
	c.group.remove()
	c.tty.takeBack(c.pid)
	return warnings
}

// kill ends the child's group, the control group if there is one, and every other descendant that can be found.
func (c *child) kill() {
	c.group.kill()
	killGroup(c.pid)
}

// killAll kills until nobody is left: the group, then whoever left it (all of them are our descendants, since we are their
// reaper). Without /proc and a control group only a PID 1 can reach those.
func (c *child) killAll() {
	giveUp := time.After(2 * time.Second)
	for {
		if os.Getpid() == 1 {
			_ = syscall.Kill(-1, syscall.SIGKILL)
		}
		c.kill()
		select {
		case <-c.reaped:
			return
		case <-giveUp:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stuckMost is shorter when we were told to stop: soon the runtime will kill us.
func (c *child) stuckMost() time.Duration {
	if c.relay.stop() != 0 {
		return abandonSilence
	}
	return stuckMost
}

// waitDrained waits for the end of the output and says whether it came. It gives up once nothing is left to be read and
// nothing came for `silence`, or, if most is not 0, after `most`.
func (c *child) waitDrained(silence, most time.Duration) bool {
	begin := time.Now()
	for {
		select {
		case <-c.drained:
			return true
		case <-time.After(pollInterval):
		}
		quiet := time.Since(latest(begin, c.copier.lastActivity()))
		if quiet >= silence && pending(c.output) == 0 && !c.copier.writing() {
			return false
		}
		if c.copier.writing() && quiet >= c.stuckMost() {
			return false
		}
		if most > 0 && time.Since(begin) > most {
			return false
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// activity is shared between the copying goroutine and the one that waits for it.
type activity struct {
	last   atomic.Int64 // Unix nanoseconds of the last read
	inCall atomic.Bool  // inside a write
}
