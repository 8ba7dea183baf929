package main

import (
	"os"
	"syscall"
	"unsafe"
)

// Signals that are only handed on are caught by a handler of our own (catch_*.s), which writes their numbers to a pipe.
// signal.Notify wakes a thread twice for each of the sixty: 3.8 ms of processor time, as much as all else that starting
// costs (2 cores, 2026-11-26). It also does not know 32 to 34.

const numberOfSignals = 64

// Read by the handlers.
var (
	caughtPipe int32                        // where numbers are written
	goHandlers [numberOfSignals + 1]uintptr // those of Go's runtime, for faults of ours
)

// The handlers' addresses; for the second, what the kernel itself sends goes to Go's runtime.
var caughtAddress, caughtFaultAddress uintptr

// signalAction is the kernel's struct sigaction (arch/x86 and arm64: asm/signal.h).
type signalAction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// catchSignals makes each of these signals readable, a byte for each that came, from the pipe that it returns.
func catchSignals(numbers []syscall.Signal) (*os.File, error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil, err
	}
	caughtPipe = int32(ends[1])
	var model signalAction // how Go's own handlers are called: on a stack that is kept for them
	if err := signalActionOf(syscall.SIGTERM, nil, &model); err != nil {
		return nil, err
	}
	for _, number := range numbers {
		action := model
		action.handler = caughtAddress
		if isFault(number) {
			action.handler = caughtFaultAddress
		}
		var old signalAction
		if err := signalActionOf(number, nil, &old); err != nil {
			continue // an emulated kernel may keep some to itself
		}
		goHandlers[number] = old.handler
		_ = signalActionOf(number, &action, nil)
	}
	return os.NewFile(uintptr(ends[0]), "signals"), nil
}

// isFault tells which signals the kernel sends for a fault of the program itself.
func isFault(number syscall.Signal) bool {
	switch number {
	case syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGSYS:
		return true
	}
	return false
}

func signalActionOf(number syscall.Signal, new, old *signalAction) error {
	const sizeOfMask = 8
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(number),
		uintptr(unsafe.Pointer(new)), uintptr(unsafe.Pointer(old)), sizeOfMask, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
