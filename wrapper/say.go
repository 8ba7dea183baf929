package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// sayPatience is how long a line of ours may wait for whoever reads the log. The result is worth more.
const sayPatience = 2 * time.Second

var (
	speaker = "hubflow-wrapper"
	mute    atomic.Bool // nobody takes our lines any more
)

// say writes one line to stderr, which is the job's log.
func say(format string, args ...any) {
	if mute.Load() {
		return
	}
	line := fmt.Sprintf("%s: %s\n", speaker, fmt.Sprintf(format, args...))
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = os.Stderr.WriteString(line)
	}()
	select {
	case <-said:
	case <-time.After(sayPatience):
		mute.Store(true)
	}
}
