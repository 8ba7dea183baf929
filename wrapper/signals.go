package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// signalRelay hands every signal that reaches the wrapper on to the child's process group, and remembers when it was told
// to end. It is set up before anything else: the kernel drops signals that a PID 1 has no handler for.
type signalRelay struct {
	incoming chan os.Signal
	stopped  chan struct{} // closed at the first TERM or INT

	mu         sync.Mutex
	group      int            // 0 = no child
	suspends   bool           // the child has a terminal: it goes on when that is its own again
	stopSignal syscall.Signal // 0 = not told to end
	stoppedAt  time.Time
}

func watchSignals() *signalRelay {
	relay := &signalRelay{incoming: make(chan os.Signal, 64), stopped: make(chan struct{})}
	signal.Notify(relay.incoming) // all of them
	go func() {
		for received := range relay.incoming {
			if number, ok := received.(syscall.Signal); ok {
				relay.handle(number)
			}
		}
	}()
	return relay
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
