package main

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
)

// records is a file of short records that can be read from both ends. What grows with the number of an archive's entries is kept
// in one, not in memory; and the journal of a commit is one, since after our death a file is all that is left.
type records struct {
	file    *os.File
	size    int64 // of all records, written or not
	pending []byte
}

const (
	recordFrame  = 4        // the length of a record stands before it and behind it
	recordWindow = 64 << 10 // what is written and read at once; no record is longer
)

var errRecords = errors.New("a file of notes is damaged")

// add appends one record. Its fields hold no NUL byte, as no name does.
func (r *records) add(fields ...string) error {
	text := strings.Join(fields, "\x00")
	if len(text)+2*recordFrame > recordWindow {
		return errRecords
	}
	length := uint32(len(text))
	r.pending = binary.LittleEndian.AppendUint32(r.pending, length)
	r.pending = append(r.pending, text...)
	r.pending = binary.LittleEndian.AppendUint32(r.pending, length)
	r.size += int64(len(text)) + 2*recordFrame
	if len(r.pending) >= recordWindow {
		return r.flush()
	}
	return nil
}

func (r *records) flush() error {
	if len(r.pending) == 0 {
		return nil
	}
	_, err := r.file.WriteAt(r.pending, r.size-int64(len(r.pending)))
	r.pending = r.pending[:0]
	return err
}

// cut takes away everything from a place on that backwards gave.
func (r *records) cut(at int64) error {
	r.size = at
	return r.file.Truncate(at)
}

// recover finds out how much of a file that someone else wrote is whole: the last record may have been cut by his death.
func (r *records) recover() error {
	r.size = 1 << 62
	whole := int64(0)
	err := r.forwards(func([]string) error { return nil }, &whole)
	r.size = whole
	if errors.Is(err, errRecords) {
		return nil
	}
	return err
}

// forwards visits all records in the order in which they were added. It leaves in end, if that is not nil, how far it came.
func (r *records) forwards(visit func(fields []string) error, end *int64) error {
	if err := r.flush(); err != nil {
		return err
	}
	window := make([]byte, recordWindow)
	for at := int64(0); at < r.size; {
		n, err := r.file.ReadAt(window[:min(recordWindow, r.size-at)], at)
		if err != nil && err != io.EOF {
			return err
		}
		used := 0
		for rest := window[:n]; len(rest) >= 2*recordFrame; rest = window[used:n] {
			length := uint64(binary.LittleEndian.Uint32(rest))
			if length+2*recordFrame > uint64(len(rest)) {
				break
			}
			if uint64(binary.LittleEndian.Uint32(rest[recordFrame+length:])) != length {
				return errRecords
			}
			if err := visit(strings.Split(string(rest[recordFrame:recordFrame+length]), "\x00")); err != nil {
				return err
			}
			used += int(length) + 2*recordFrame
			if end != nil {
				*end = at + int64(used)
			}
		}
		if used == 0 {
			return errRecords
		}
		at += int64(used)
	}
	return nil
}

// backwards visits all records from the last one, with the place where each begins.
func (r *records) backwards(visit func(fields []string, at int64) error) error {
	if err := r.flush(); err != nil {
		return err
	}
	window := make([]byte, recordWindow)
	for end := r.size; end > 0; {
		begin := max(0, end-recordWindow)
		if _, err := r.file.ReadAt(window[:end-begin], begin); err != nil {
			return err
		}
		before := end
		for rest := window[:end-begin]; len(rest) >= 2*recordFrame; rest = window[:end-begin] {
			tail := len(rest) - recordFrame
			length := uint64(binary.LittleEndian.Uint32(rest[tail:]))
			if length+2*recordFrame > uint64(len(rest)) {
				break
			}
			end -= int64(length) + 2*recordFrame
			if err := visit(strings.Split(string(rest[tail-int(length):tail]), "\x00"), end); err != nil {
				return err
			}
		}
		if end == before {
			return errRecords
		}
	}
	return nil
}
