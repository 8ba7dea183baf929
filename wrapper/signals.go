package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// signalRelay hands every signal that reaches the wrapper on to the child's process group, and remembers when it was told
// to end. It is set up before anything else: the kernel drops signals that a PID 1 has no handler for.
type signalRelay struct {
	stops   chan os.Signal // TERM and INT on their own, since a pipe that is full loses what comes
	stopped chan struct{}  // closed at the first TERM or INT

	mu         sync.Mutex
	group      int            // 0 = no child
	suspends   bool           // the child has a terminal: it goes on when that is its own again
	stopSignal syscall.Signal // 0 = not told to end
	stoppedAt  time.Time
}

func watchSignals() *signalRelay {
	relay := &signalRelay{stops: make(chan os.Signal, 8), stopped: make(chan struct{})}
	// SIGPIPE as well: without it a write to a log that nobody reads any more would end us.
	signal.Notify(relay.stops, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPIPE)
	go func() {
		for received := range relay.stops {
			relay.handle(received.(syscall.Signal))
		}
	}()
	if caught, err := catchSignals(relayed()); err == nil {
		go func() {
			numbers := make([]byte, 512)
			for {
				n, err := caught.Read(numbers)
				for _, number := range numbers[:n] {
					relay.handle(syscall.Signal(number))
				}
				if err != nil {
					return
				}
			}
		}()
	}
	return relay
}

// relayed lists the signals that are handed on and mean nothing to us.
func relayed() (numbers []syscall.Signal) {
	for number := syscall.Signal(1); number <= numberOfSignals; number++ {
		switch {
		case number == syscall.SIGKILL || number == syscall.SIGSTOP || ours(number):
		case number == syscall.SIGTERM || number == syscall.SIGINT:
		case number == syscall.SIGHUP && signal.Ignored(number): // whoever started us wants the job to outlive the terminal
		default:
			numbers = append(numbers, number)
		}
	}
	return numbers
}

// context ends when the grace after a stop from outside is nearly over, so that the result can still be written.
func (r *signalRelay) context(grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-r.stopped:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		left := time.Until(r.stoppedAt.Add(max(grace-time.Second, grace*3/4)))
		r.mu.Unlock()
		select {
		case <-time.After(left):
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// ours are signals that concern the wrapper alone: a child of ours ended; Go's scheduler interrupts itself; the reader of
// our output went away (the child has its own pipe and is told nothing).
func ours(number syscall.Signal) bool {
	return number == syscall.SIGCHLD || number == syscall.SIGURG || number == syscall.SIGPIPE
}

func (r *signalRelay) handle(number syscall.Signal) {
	if ours(number) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopSignal == 0 && (number == syscall.SIGTERM || number == syscall.SIGINT) {
		r.stopSignal, r.stoppedAt = number, time.Now()
		close(r.stopped)
	}
	if r.group != 0 && !(r.suspends && number == syscall.SIGCONT) {
		_ = syscall.Kill(-r.group, number) // a group that is already gone needs nothing
		switch {
		case number == syscall.SIGTERM || number == syscall.SIGINT:
			_ = syscall.Kill(-r.group, syscall.SIGCONT) // one that is suspended would sleep through it
		case number == syscall.SIGTSTP && !r.suspends && behindSomebody():
			_ = syscall.Kill(0, syscall.SIGSTOP) // whoever pressed Ctrl-Z gets the terminal back; SIGCONT is handed on
		}
	}
}

// attach names the group that gets signals from now on. A stop that came while the child was being started is made up for.
func (r *signalRelay) attach(group int, suspends bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.group, r.suspends = group, suspends
	if r.stopSignal != 0 {
		_ = syscall.Kill(-group, r.stopSignal)
	}
}

func (r *signalRelay) detach() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.group = 0
}

// stop tells which signal asked the wrapper to end, 0 for none.
func (r *signalRelay) stop() syscall.Signal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopSignal
}
