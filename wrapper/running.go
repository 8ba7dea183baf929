package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// heartbeat is how often the running file's time is renewed while the child lives. A file that is older than a few of these
// beside a missing result document means that the wrapper itself was killed.
const heartbeat = 10 * time.Second

// markRunning creates the running file and keeps it fresh; the function it returns ends that.
func markRunning(job *Job, childPid int) func(end *childEnd) {
	if job.RunningPath == "" {
		return func(*childEnd) {}
	}
	mark, _ := json.Marshal(map[string]any{
		"version": 1, "attempt": job.Attempt, "pid": os.Getpid(), "child_pid": childPid, "started_at": timestamp(time.Now()),
	})
	if err := writeAtomically(job.RunningPath, mark); err != nil {
		return func(end *childEnd) {
			end.warnings = append(end.warnings, fmt.Sprintf("the running file could not be written: %v", err))
		}
	}
	over := make(chan struct{})
	go func() {
		ticker := time.NewTicker(heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-over:
				return
			case now := <-ticker.C:
				_ = os.Chtimes(job.RunningPath, now, now)
			}
		}
	}()
	return func(*childEnd) { close(over) }
}
