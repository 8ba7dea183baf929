package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// heartbeat is how often the running file's time is renewed until we end. A file that is older than a few of these
// beside a missing result document means that the wrapper itself was killed.
var heartbeat = 10 * time.Second

// markRunning creates the running file and keeps it fresh from now on: also while the job's files are being saved. It returns
// what went wrong, "" for nothing.
func markRunning(job *Job, childPid int) (warning string) {
	if job.RunningPath == "" {
		return ""
	}
	mark, _ := json.Marshal(map[string]any{
		"version": 1, "attempt": job.Attempt, "pid": os.Getpid(), "child_pid": childPid, "started_at": timestamp(time.Now()),
	})
	if err := writeAtomically(job.RunningPath, mark); err != nil {
		return fmt.Sprintf("the running file could not be written: %v", err)
	}
	go func() {
		for now := range time.Tick(heartbeat) {
			if !errors.Is(os.Chtimes(job.RunningPath, now, now), os.ErrNotExist) {
				continue
			}
			// The job has cleared the directory. A runtime that forgets us takes the directory away, too.
			if _, err := os.Stat(filepath.Dir(job.RunningPath)); err == nil {
				_ = writeAtomically(job.RunningPath, mark)
			}
		}
	}()
	return ""
}
