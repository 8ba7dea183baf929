package main

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"
	"unsafe"
)

// What the wrapper asks of the kernel about processes, itself included.

const (
	prSetDumpable       = 4
	prSetTimerSlack     = 29
	prSetChildSubreaper = 36
)

// prepareProcess makes the wrapper the parent of its orphaned descendants, and keeps its memory (presigned addresses, secret
// values) out of core files and of other processes of the same user.
func prepareProcess() {
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0)
}

// restoreTimers gives the calling thread, and what it starts, the precision of timers that the kernel gives by default: the
// process runtime starts us with less, so that Go's runtime looks around less often.
func restoreTimers() {
	const byDefault = 50_000 // nanoseconds
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerSlack, byDefault, 0)
}

// openNull is the child's stdin. An image without /dev gets the reading end of a pipe that nobody writes to.
func openNull() (*os.File, error) {
	if null, err := os.OpenFile("/dev/null", os.O_RDONLY, 0); err == nil {
		return null, nil
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return reader, writer.Close()
}

// killGroup kills the child's group, and every other descendant that can be found.
func killGroup(group int) {
	_ = syscall.Kill(-group, syscall.SIGKILL)
	for _, pid := range descendants(os.Getpid()) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// descendants lists the living descendants of a process, from /proc; nothing where there is no /proc.
func descendants(root int) []int {
	children := map[int][]int{}
	for _, one := range processes() {
		if one.state != 'Z' {
			children[one.parent] = append(children[one.parent], one.pid)
		}
	}
	var found []int
	for queue := children[root]; len(queue) > 0; queue = queue[1:] {
		found = append(found, queue[0])
		queue = append(queue, children[queue[0]]...)
	}
	return found
}

// anyStopped says whether a process of the group is suspended.
func anyStopped(group int) bool {
	return slices.ContainsFunc(processes(), func(one process) bool { return one.group == group && one.state == 'T' })
}

// process is what /proc/PID/stat says of one.
type process struct {
	pid, parent, group int
	state              byte
}

// processes lists all that /proc shows.
func processes() (all []process) {
	directory, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer directory.Close()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return nil
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if stat, err := os.ReadFile("/proc/" + name + "/stat"); err == nil {
			if one, ok := parseStat(stat); ok {
				one.pid = pid
				all = append(all, one)
			}
		}
	}
	return all
}

// parseStat reads `pid (name) state ppid pgrp ...`, where the name may hold anything.
func parseStat(stat []byte) (one process, ok bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 {
		return one, false
	}
	parent, parentErr := strconv.Atoi(string(fields[1]))
	group, groupErr := strconv.Atoi(string(fields[2]))
	return process{parent: parent, group: group, state: fields[0][0]}, parentErr == nil && groupErr == nil
}

// utimensat sets the times of name in the directory fd, or, with name "", of fd itself.
func utimensat(fd int, name string, times *[2]syscall.Timespec, flags int) error {
	var path *byte
	if name != "" {
		var err error
		if path, err = syscall.BytePtrFromString(name); err != nil {
			return err
		}
	} else {
		flags = 0
	}
	_, _, number := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(times)), uintptr(flags), 0, 0)
	if number != 0 {
		return number
	}
	return nil
}
