package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// copyBuffer is what one read takes at most; pipeSize is what we ask the kernel to hold, so that a child in full flow is
// seldom put to sleep (an unprivileged process may ask for 1 MiB).
const (
	copyBuffer = 256 << 10
	pipeSize   = 1 << 20
)

// copier passes the child's output on as it comes and lets the scanner see it.
type copier struct {
	out io.Writer
	activity

	mu      sync.Mutex // copy may still be stuck in a write when all others have given up on it
	over    bool
	scanner io.WriteCloser
	passed  int64
	crlf    int64 // line ends with a carriage return that were passed on
	half    bool  // the last byte passed on was a carriage return
	lost    int64
	err     error // why output could not be passed on
}

func outputPipe() (reader, writer *os.File, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	const setPipeSize = 1031 // F_SETPIPE_SZ
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(ends[0]), setPipeSize, pipeSize)
	return os.NewFile(uintptr(ends[0]), "output"), os.NewFile(uintptr(ends[1]), "output"), nil
}

// pending is the number of bytes that wait in the pipe.
func pending(pipe *os.File) int {
	connection, err := pipe.SyscallConn()
	if err != nil {
		return 0
	}
	var count int32
	_ = connection.Control(func(fd uintptr) {
		_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&count)))
	})
	return int(count)
}

// copy reads until no process holds the other end any more. If the output cannot be passed on (its reader is gone, the disk is
// full) it goes on reading, so that the child neither blocks nor dies of it; what is lost is counted.
func (c *copier) copy(pipe io.ReadCloser) {
	defer pipe.Close()
	buffer := make([]byte, copyBuffer)
	for {
		n, err := pipe.Read(buffer)
		c.last.Store(time.Now().UnixNano())
		if n > 0 {
			c.pass(buffer[:n])
		}
		if err != nil {
			return
		}
	}
}

// pass shows a piece to the scanner before it is written, so that outputs are known even if nobody takes the log.
func (c *copier) pass(piece []byte) {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return
	}
	_, _ = c.scanner.Write(piece)
	broken := c.err != nil
	if broken {
		c.lost += int64(len(piece))
	}
	c.mu.Unlock()
	if broken {
		return
	}
	c.inCall.Store(true)
	written, err := c.out.Write(piece)
	c.inCall.Store(false)
	c.last.Store(time.Now().UnixNano())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed += int64(written)
	c.countLineEnds(piece[:written])
	c.lost += int64(len(piece) - written)
	c.err = err
}

// close ends the scanning; what copy may still bring is ignored.
func (c *copier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	_ = c.scanner.Close()
}

func (c *copier) lastActivity() time.Time { return time.Unix(0, c.last.Load()) }
func (c *copier) writing() bool           { return c.inCall.Load() }

// countLineEnds counts CR LF, also where one stands across two pieces.
func (c *copier) countLineEnds(piece []byte) {
	if len(piece) == 0 {
		return
	}
	if c.half && piece[0] == '\n' {
		c.crlf++
	}
	if bytes.IndexByte(piece, '\r') >= 0 {
		c.crlf += int64(bytes.Count(piece, []byte("\r\n")))
	}
	c.half = piece[len(piece)-1] == '\r'
}

// count is how many bytes were passed on, and how many CR LF are among them.
func (c *copier) count() (passed, crlf int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed, c.crlf
}

// warning says what was lost, "" for nothing.
func (c *copier) warning() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return ""
	}
	return fmt.Sprintf("after %d bytes the job's output could not be passed on (%v); %d bytes were lost. The job itself was not disturbed; look at what reads the container's log, or at its disk", c.passed, c.err, c.lost)
}
