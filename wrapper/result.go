package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unicode/utf8"
)

// Outcomes of a job, as the result document names them.
const (
	outcomeExited         = "exited"
	outcomeSignaled       = "signaled"
	outcomeTimedOut       = "timed_out"
	outcomeStopped        = "stopped"
	outcomeStartFailed    = "start_failed"
	outcomeRestoreFailed  = "restore_failed"
	outcomeSaveFailed     = "save_failed"
	outcomeOutputTooLarge = "output_too_large"
	outcomeWrapperFailed  = "wrapper_failed"
)

// Phases, in their order.
const (
	phaseRestore = "restore"
	phaseChild   = "child"
	phaseOutputs = "outputs"
	phaseSave    = "save"
	phaseResult  = "result"
)

// Result is the result document, version 1. schema/result.schema.json says the same for machines.
type Result struct {
	Version   int               `json:"version"`
	Attempt   string            `json:"attempt"`
	Outcome   string            `json:"outcome"`
	ExitCode  *int              `json:"exit_code"`
	Signal    string            `json:"signal"`
	Started   bool              `json:"started"`
	Phase     string            `json:"phase"`
	Message   string            `json:"message"`
	Outputs   map[string]string `json:"outputs"`
	JobResult *bool             `json:"job_result"`
	Restored  []Restored        `json:"restored"`
	Saved     []Saved           `json:"saved"`
	Warnings  []string          `json:"warnings"`
	LogBytes  int64             `json:"log_bytes"`
	LogCRLF   int64             `json:"log_crlf"`
	Timings   Timings           `json:"timings"`

	status int // what the wrapper exits with
}

// Restored is one archive that was brought, or (hit false) was not there.
type Restored struct {
	Kind    string  `json:"kind"`
	Name    string  `json:"name"`
	Hit     bool    `json:"hit"`
	Bytes   int64   `json:"bytes"`
	Files   int64   `json:"files"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error"` // why it was not brought; "" for a miss
}

// Saved is one archive that was taken away, or (error not empty) could not be.
type Saved struct {
	Kind    string  `json:"kind"`
	Name    string  `json:"name"`
	Bytes   int64   `json:"bytes"`
	SHA256  string  `json:"sha256"`
	Files   int64   `json:"files"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error"`
}

// Timings are RFC 3339 with nanoseconds, UTC; null for what never happened.
type Timings struct {
	StartedAt       *string `json:"started_at"`
	ChildStartedAt  *string `json:"child_started_at"`
	ChildFinishedAt *string `json:"child_finished_at"`
	FinishedAt      *string `json:"finished_at"`
}

// overflowDocument stands in the result file when the whole document is in object storage.
type overflowDocument struct {
	Version   int           `json:"version"`
	Attempt   string        `json:"attempt"`
	Overflow  overflowPlace `json:"overflow"`
	Outcome   string        `json:"outcome"`
	ExitCode  *int          `json:"exit_code"`
	Signal    string        `json:"signal"`
	Started   bool          `json:"started"`
	Phase     string        `json:"phase"`
	Message   string        `json:"message"`
	JobResult *bool         `json:"job_result"`
	LogBytes  int64         `json:"log_bytes"`
	LogCRLF   int64         `json:"log_crlf"`
	Timings   Timings       `json:"timings"`
}

type overflowPlace struct {
	Key    string `json:"key"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

func newResult(attempt string) *Result {
	return &Result{
		Version: 1, Attempt: attempt,
		Outcome: outcomeWrapperFailed, Phase: phaseRestore, Message: "the wrapper ended before it came to a verdict",
		Outputs: map[string]string{}, Restored: []Restored{}, Saved: []Saved{}, Warnings: []string{},
		Timings: Timings{StartedAt: now()},
		status:  exitWrapper,
	}
}

func now() *string {
	text := timestamp(time.Now())
	return &text
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// fail gives the verdict of a phase that failed. The child's own failure stays the verdict: what comes after is a warning.
func (r *Result) fail(outcome, phase, message string) {
	if !r.succeeded() && r.Started && r.Outcome != outcomeWrapperFailed {
		r.warn("%s: %s", phase, message)
		return
	}
	r.Outcome, r.Phase, r.Message, r.status = outcome, phase, message, exitWrapper
}

func (r *Result) warn(format string, args ...any) {
	const most = 100
	if len(r.Warnings) == most {
		r.Warnings = append(r.Warnings, "further warnings were left out")
	}
	if len(r.Warnings) > most {
		return
	}
	r.Warnings = append(r.Warnings, cut(fmt.Sprintf(format, args...), 2000))
}

// succeeded says whether, as far as is known by now, the job is green.
func (r *Result) succeeded() bool {
	return r.Outcome == outcomeExited && r.ExitCode != nil && *r.ExitCode == 0 && (r.JobResult == nil || *r.JobResult)
}

// childEnded gives the verdict of the child.
func (r *Result) childEnded(end childEnd, job *Job) {
	r.Phase, r.Message = phaseChild, ""
	r.Warnings = append(r.Warnings, end.warnings...)
	code := end.status.ExitStatus()
	if end.status.Signaled() {
		r.Signal = signalName(end.status.Signal())
		code = 128 + int(end.status.Signal())
	}
	r.ExitCode, r.status = &code, code
	switch {
	case end.timedOut:
		r.Outcome, r.status = outcomeTimedOut, exitTimedOut
		r.Message = fmt.Sprintf("the job was still running after %v and was ended. Raise its timeout, or find out what it waits for", job.timeout())
	case end.stopped:
		r.Outcome = outcomeStopped
		r.Message = "the job was told to stop from outside and has ended"
	case end.status.Signaled():
		r.Outcome = outcomeSignaled
		r.Message = fmt.Sprintf("the job was ended by signal %s", r.Signal)
		if end.status.Signal() == syscall.SIGKILL {
			r.Message += ", which neither Hubflow nor the job's own program can have caught: look for the memory limit (out of memory), or who else kills processes here"
		}
	default:
		r.Outcome = outcomeExited
		if code != 0 {
			r.Message = fmt.Sprintf("the job's command ended with status %d; its log says why", code)
		}
	}
}

func (r *Result) notStarted(problem *startError) {
	r.Outcome, r.Phase, r.Message, r.status = outcomeStartFailed, phaseChild, problem.message, problem.status
}

// stoppedBefore is the verdict when we were told to end before the child had started.
func (r *Result) stoppedBefore(phase string, signal syscall.Signal) {
	r.Outcome, r.Phase, r.status = outcomeStopped, phase, 128+int(signal)
	r.Message = "the job was told to stop from outside before its command had started"
}

func signalName(signal syscall.Signal) string {
	names := map[syscall.Signal]string{
		syscall.SIGHUP: "HUP", syscall.SIGINT: "INT", syscall.SIGQUIT: "QUIT", syscall.SIGILL: "ILL", syscall.SIGTRAP: "TRAP",
		syscall.SIGABRT: "ABRT", syscall.SIGBUS: "BUS", syscall.SIGFPE: "FPE", syscall.SIGKILL: "KILL", syscall.SIGUSR1: "USR1",
		syscall.SIGSEGV: "SEGV", syscall.SIGUSR2: "USR2", syscall.SIGPIPE: "PIPE", syscall.SIGALRM: "ALRM", syscall.SIGTERM: "TERM",
		syscall.SIGXCPU: "XCPU", syscall.SIGXFSZ: "XFSZ", syscall.SIGVTALRM: "VTALRM", syscall.SIGPROF: "PROF", syscall.SIGIO: "IO",
		syscall.SIGPWR: "PWR", syscall.SIGSYS: "SYS",
	}
	if name, known := names[signal]; known {
		return name
	}
	return fmt.Sprint(int(signal))
}

// cut shortens text to at most limit bytes without breaking a character.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit - len("…")
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// encode returns what goes into the result file, and, if that is only an address, the whole document.
func (r *Result) encode(limit int, overflow *Overflow) (file, whole []byte, err error) {
	r.Message = cut(r.Message, 8000)
	whole, err = json.Marshal(r)
	if err != nil || len(whole) <= limit || overflow == nil {
		return whole, nil, err
	}
	digest := sha256.Sum256(whole)
	small := overflowDocument{
		Version: r.Version, Attempt: r.Attempt, Outcome: r.Outcome, ExitCode: r.ExitCode, Signal: r.Signal, Started: r.Started,
		Phase: r.Phase, Message: r.Message, JobResult: r.JobResult, LogBytes: r.LogBytes, LogCRLF: r.LogCRLF, Timings: r.Timings,
		Overflow: overflowPlace{Key: overflow.Key, Size: len(whole), SHA256: hex.EncodeToString(digest[:])},
	}
	for room := len(small.Message); ; room /= 2 {
		small.Message = cut(r.Message, max(room, 16))
		file, err = json.Marshal(small)
		if err != nil || len(file) <= limit || room < 16 {
			return file, whole, err
		}
	}
}

// shrink drops what can be spared until the document fits: details first, then all outputs, which is a failure of its own.
func (r *Result) shrink(limit int) []byte {
	fits := func() ([]byte, bool) {
		data, err := json.Marshal(r)
		return data, err == nil && len(data) <= limit
	}
	if len(r.Warnings) > 0 {
		r.Warnings = []string{"warnings were left out: the result document would have been too large"}
	}
	r.Message = cut(r.Message, 1000)
	data, ok := fits()
	if !ok {
		for i := range r.Saved {
			r.Saved[i].Error = cut(r.Saved[i].Error, 100)
		}
		data, ok = fits()
	}
	if !ok {
		r.Restored = []Restored{}
		data, ok = fits()
	}
	if !ok && len(r.Outputs) > 0 {
		count := len(r.Outputs)
		r.Outputs = map[string]string{}
		r.fail(outcomeOutputTooLarge, phaseResult, fmt.Sprintf("the result document with its %d outputs is larger than the %d bytes that the runtime takes, and no place for larger ones was given. Write large data to a file and declare it as an artifact", count, limit))
		data, ok = fits()
	}
	if !ok {
		r.Saved, r.Message = []Saved{}, cut(r.Message, 300)
		data, _ = fits()
	}
	return data
}

// resultFile is where the result document will be. Its space is taken at the start, so that a disk that the job fills does
// not silence us.
type resultFile struct {
	path     string
	kind     os.FileMode // what was there at the start: a link, a pipe, a device; 0 for a file or nothing
	reserved *os.File    // nil where the directory takes no file of ours
}

func reserveResult(path string, size int) *resultFile {
	place := &resultFile{path: path}
	if path == "" {
		return place
	}
	const special = os.ModeDevice | os.ModeNamedPipe | os.ModeSocket
	if there, err := os.Lstat(path); err == nil {
		place.kind = there.Mode().Type()
	}
	if place.kind&special != 0 {
		return place // written into, never replaced: root could replace a device of the whole machine
	}
	_ = os.MkdirAll(filepath.Dir(path), 0o755) // what it is good for shows when the file is made
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return place
	}
	if syscall.Fallocate(int(file.Fd()), 0, 0, int64(size)) != nil {
		_, _ = file.Write(make([]byte, size))
	}
	place.reserved = file
	return place
}

// usable says why nothing can be written there, as far as that can be known without leaving anything behind.
func (f *resultFile) usable() error {
	if f.reserved != nil || f.path == "" {
		return nil
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		return file.Close()
	}
	if errors.Is(err, syscall.ENXIO) { // a pipe that nobody reads yet
		return nil
	}
	return pathCause(err)
}

// write puts the document in place: whole or not at all where a rename can, else as directly as possible (a mounted file, as
// Kubernetes' termination log is, cannot be replaced).
func (f *resultFile) write(data []byte) error {
	if f.path == "" {
		return fmt.Errorf("no result_path is known")
	}
	if f.reserved != nil {
		if f.replace(data) == nil {
			return nil
		}
		_ = os.Remove(f.reserved.Name())
	}
	file, err := f.open()
	if err != nil {
		return err
	}
	if _, err = file.Write(data); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// open opens what is at the path, if it is still what was there at the start: the job may have put a pipe there, at which we
// would wait for ever, or a link that leads to somebody else's file.
func (f *resultFile) open() (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC | syscall.O_NONBLOCK
	if f.kind&os.ModeSymlink == 0 {
		flags |= syscall.O_NOFOLLOW
	}
	file, err := os.OpenFile(f.path, flags, 0o644)
	if err == nil {
		info, statErr := file.Stat()
		if statErr == nil && (info.Mode().IsRegular() || f.kind != 0) {
			return file, nil
		}
		file.Close()
	} else if f.kind != 0 || !errors.Is(err, syscall.ENXIO) && !errors.Is(err, syscall.ELOOP) && !errors.Is(err, syscall.EISDIR) {
		return nil, err
	}
	if err := os.Remove(f.path); err != nil {
		return nil, err
	}
	return os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

func (f *resultFile) replace(data []byte) error {
	defer f.reserved.Close()
	if _, err := f.reserved.WriteAt(data, 0); err != nil {
		return err
	}
	if err := f.reserved.Truncate(int64(len(data))); err != nil {
		return err
	}
	if err := f.reserved.Chmod(0o644); err != nil {
		return err
	}
	if !f.isReserved() {
		return errors.New("the place that was taken for the result is somebody else's now")
	}
	return os.Rename(f.reserved.Name(), f.path)
}

// isReserved: the job could have put its own result where ours was to be.
func (f *resultFile) isReserved() bool {
	ours, err := f.reserved.Stat()
	there, thereErr := os.Lstat(f.reserved.Name())
	return err == nil && thereErr == nil && os.SameFile(ours, there)
}

// writeAtomically makes a small file appear with all its content.
func writeAtomically(path string, data []byte) error {
	return reserveResult(path, len(data)).write(data)
}
