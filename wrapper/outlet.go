package main

import (
	"bytes"
	"os"
	"sync"
	"time"
)

// containerd before 1.7 closes its end of a container's output as soon as it hears of the container's end, and so throws away
// what is still on its way: up to 64 KiB each in our pipe and in its own, and what its shim has in hand. What is in our pipe
// can be seen. For the rest it gets as long as it needs at a slow pace; a line costs it more than a byte.
const (
	drainLine     = 40 * time.Microsecond
	drainByte     = 250 * time.Nanosecond
	drainMost     = 2 * time.Second // what is on its way is no more than that, since a pipe that is full holds us up
	drainPatience = 2 * time.Second // without anything being taken from our pipe
	lookFirst     = 200 * time.Microsecond
	lookLast      = 20 * time.Millisecond
)

// outlet is where the job's output goes, and knows when whoever reads it has probably taken all.
type outlet struct {
	file *os.File

	mu  sync.Mutex // a write may still be stuck when all others have given up on it
	due time.Time
}

// Write passes a piece on.
func (o *outlet) Write(piece []byte) (int, error) {
	written, err := o.file.Write(piece)
	need := time.Duration(written)*drainByte + time.Duration(bytes.Count(piece[:written], []byte{'\n'}))*drainLine
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.due.Before(now) {
		o.due = now
	}
	o.due = o.due.Add(need)
	if latest := now.Add(drainMost); o.due.After(latest) {
		o.due = latest
	}
	return written, err
}

// drain waits until what was written has probably been taken. It gives up on a reader that takes nothing.
func (o *outlet) drain() {
	if !isPipe(o.file) {
		return
	}
	progress, last, pause := time.Now(), 0, lookFirst
	for left := pending(o.file); left > 0; left = pending(o.file) {
		if left != last {
			progress, last = time.Now(), left
		} else if time.Since(progress) > drainPatience {
			return
		}
		time.Sleep(pause)
		pause = min(2*pause, lookLast)
	}
	o.mu.Lock()
	due := o.due
	o.mu.Unlock()
	time.Sleep(time.Until(due))
}

// isPipe: of other kinds of file the kernel tells something else than what is unread.
func isPipe(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}
