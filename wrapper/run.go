package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
)

// The life of a job: restore, child, outputs, save, result. This file holds the sequence and nothing else; `parts` are
// the doers, which the tests replace.

type parts struct {
	restorer restorer
	runner   runner
	saver    saver
	reporter reporter
	stop     func() syscall.Signal // which signal told us to end, 0 for none
}

type restorer interface {
	// Restore brings all archives or fails; what it brought is in the slice either way.
	Restore(job *Job) ([]Restored, []string, error)
}

type runner interface {
	// Run starts the child and waits for its end. A *startError says that it never started. began is called in between.
	Run(job *Job, began func()) (childEnd, *outputSet, error)
}

type saver interface {
	// Save takes away what the job left, for a job that succeeded or not.
	Save(job *Job, succeeded bool, restored []Restored) ([]Saved, []string, error)
}

type reporter interface {
	// Report writes the result document.
	Report(job *Job, result *Result) error
}

// runJob runs the job that read finds described and returns the status to exit with.
func runJob(read func() (*Job, error)) int {
	relay := watchSignals() // to the very end: a signal that comes while we exit must not change our status
	prepareProcess()
	job, err := read()
	result := newResult(job.Attempt)
	real := &reporting{place: reserveResult(job.ResultPath, job.MessageLimit), relay: relay}
	if err != nil {
		result.fail(outcomeWrapperFailed, phaseRestore, err.Error())
		return conclude(job, result, real)
	}
	if err := real.place.usable(); err != nil && job.Overflow == nil {
		result.fail(outcomeWrapperFailed, phaseResult, fmt.Sprintf("nobody would learn how the job ends, so it was not started: %s cannot be written: %v. Check that this user may write there, and that there is room", job.ResultPath, err))
		return conclude(job, result, real)
	}
	out := &outlet{file: os.Stdout}
	if job.DrainLog {
		defer out.drain()
	}
	debug.SetGCPercent(50) // little of ours lives long; memory is the job's
	transfers := &transfers{relay: relay}
	return sequence(job, result, parts{
		restorer: transfers, runner: &running{relay: relay, out: out}, saver: transfers, reporter: real, stop: relay.stop,
	})
}

func sequence(job *Job, result *Result, do parts) int {
	defer func() { // a fault of ours is told like any other; the trace goes to the log
		if fault := recover(); fault != nil {
			result.Outcome, result.Message, result.status = outcomeWrapperFailed, fmt.Sprintf("a fault in the wrapper itself: %v. Please report it", fault), exitWrapper
			_ = conclude(job, result, do.reporter)
			panic(fault)
		}
	}()
	if restoreFiles(job, result, do) && runChild(job, result, do) {
		saveFiles(job, result, do)
	}
	return conclude(job, result, do.reporter)
}

func restoreFiles(job *Job, result *Result, do parts) bool {
	result.Phase = phaseRestore
	if err := enterWorkdir(job, true); err != nil {
		result.notStarted(err)
		return false
	}
	restored, warnings, err := do.restorer.Restore(job)
	result.Restored = append(result.Restored, restored...)
	result.Warnings = append(result.Warnings, warnings...)
	if signal := do.stop(); signal != 0 {
		result.stoppedBefore(phaseRestore, signal)
		return false
	}
	if err != nil {
		result.fail(outcomeRestoreFailed, phaseRestore, err.Error())
		return false
	}
	if err := enterWorkdir(job, false); err != nil {
		result.notStarted(err)
		return false
	}
	return true
}

func runChild(job *Job, result *Result, do parts) bool {
	result.Phase = phaseChild
	end, outputs, err := do.runner.Run(job, func() {
		result.Started = true
		result.Timings.ChildStartedAt = now()
	})
	var problem *startError
	if errors.As(err, &problem) {
		result.notStarted(problem)
		return false
	}
	if err != nil {
		result.fail(outcomeWrapperFailed, phaseChild, err.Error())
		return false
	}
	result.Timings.ChildFinishedAt = now()
	result.LogBytes, result.LogCRLF = end.logBytes, end.logCRLF
	result.childEnded(end, job)
	collectOutputs(result, outputs)
	return true
}

func collectOutputs(result *Result, outputs *outputSet) {
	result.Outputs = outputs.values
	if text, set := outputs.values["JOB_RESULT"]; set {
		switch strings.ToLower(text) {
		case "true", "false":
			verdict := strings.EqualFold(text, "true")
			result.JobResult = &verdict
		default:
			result.warn("the output JOB_RESULT is neither true nor false; it was ignored")
		}
	}
	for _, odd := range outputs.odd {
		result.warn("%s", odd)
	}
	for _, key := range outputs.fixed {
		result.warn("output %s was not valid UTF-8; the bytes that were not were replaced", key)
	}
	if violation := outputs.violation(); violation != "" {
		result.fail(outcomeOutputTooLarge, phaseOutputs, violation)
	}
}

func saveFiles(job *Job, result *Result, do parts) {
	saved, warnings, err := do.saver.Save(job, result.succeeded(), result.Restored)
	result.Saved = append(result.Saved, saved...)
	result.Warnings = append(result.Warnings, warnings...)
	if err != nil {
		if signal := do.stop(); signal != 0 && errors.Is(err, context.Canceled) && result.succeeded() {
			result.Outcome, result.Phase, result.Message, result.status = outcomeStopped, phaseSave, err.Error(), 128+int(signal)
			return
		}
		result.fail(outcomeSaveFailed, phaseSave, err.Error())
	}
}

// conclude writes the result document, says on the log what was our failure and not the job's, and gives the exit status.
func conclude(job *Job, result *Result, report reporter) int {
	result.Timings.FinishedAt = now()
	message := result.Message
	err := report.Report(job, result)
	switch result.Outcome {
	case outcomeStartFailed, outcomeRestoreFailed, outcomeSaveFailed, outcomeOutputTooLarge, outcomeWrapperFailed:
		say("%s", message)
	}
	if err != nil {
		if job.ResultPath != "" {
			say("the result document could not be written to %s: %v. Check that this user may write there, and that there is room", job.ResultPath, err)
		}
		if result.status == 0 { // never silently green
			return exitWrapper
		}
	}
	return result.status
}

// enterWorkdir goes to the child's directory. Before the restore it may be missing: an archive may bring it.
func enterWorkdir(job *Job, mayBeMissing bool) *startError {
	if job.Workdir == "" {
		return nil
	}
	err := os.Chdir(job.Workdir)
	if errors.Is(err, os.ErrNotExist) && job.CreateWorkdir {
		if err := os.MkdirAll(job.Workdir, 0o777); err != nil {
			return &startError{exitNotExecutable, fmt.Sprintf("the working directory %s cannot be made by user %d: %v. Make it in the image, or name one where this user may write", job.Workdir, os.Getuid(), pathCause(err))}
		}
		err = os.Chdir(job.Workdir)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist) && mayBeMissing:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return &startError{exitNotFound, fmt.Sprintf("the working directory %s does not exist in the image. Create it there (WORKDIR), or name another in the workflow", job.Workdir)}
	}
	return &startError{exitNotExecutable, fmt.Sprintf("the working directory %s cannot be entered by user %d: %v. Change its mode or owner in the image, or name another", job.Workdir, os.Getuid(), pathCause(err))}
}

// pathCause drops operation and path from an error of the file system, which the sentence around it names already.
func pathCause(err error) error {
	var detail *os.PathError
	if errors.As(err, &detail) {
		return detail.Err
	}
	return err
}

// running is the real runner.
type running struct {
	relay *signalRelay
	out   io.Writer // of the child's output
}

func (r *running) Run(job *Job, began func()) (childEnd, *outputSet, error) {
	if job.OutputPath != "" {
		if err := createOutputFile(job.OutputPath); err != nil {
			return childEnd{}, nil, fmt.Errorf("the file for HUBFLOW_OUTPUT cannot be made: %w. The runtime must name a place where this user may write", err)
		}
	}
	env, err := childEnvironment(os.Environ(), job, job.OutputPath)
	if err != nil {
		return childEnd{}, nil, err
	}
	path, err := findCommand(job.Command[0], env)
	if err != nil {
		return childEnd{}, nil, err
	}
	scanner := newOutputScanner(job.DeclaredOutputs, job.OutputLimits)
	output := &copier{out: r.out, scanner: scanner}
	started, err := startChild(path, job.Command, env, job.Stdin == "pass", output)
	if err != nil {
		return childEnd{}, nil, explainStart(path, err)
	}
	began()
	unmarked := markRunning(job, started.pid)
	end := started.supervise(r.relay, job.timeout(), job.grace())
	output.close()
	end.logBytes, end.logCRLF = output.count()
	for _, warning := range []string{unmarked, output.warning()} {
		if warning != "" {
			end.warnings = append(end.warnings, warning)
		}
	}
	outputs := scanner.collected(r.fileOutputs(job, &end))
	return end, outputs, nil
}

func (r *running) fileOutputs(job *Job, end *childEnd) *outputSet {
	if job.OutputPath == "" {
		return nil
	}
	set, warnings, err := readOutputFile(job.OutputPath, job.OutputLimits)
	if err != nil {
		warnings = append(warnings, fmt.Sprintf("HUBFLOW_OUTPUT cannot be read any more: %v", err))
	}
	end.warnings = append(end.warnings, warnings...)
	return set
}
