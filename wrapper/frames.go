package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
)

// The compressed form of an archive. The tar stream is cut into chunks of chunkBytes; each becomes an independent zstd frame
// behind a skippable frame with its size (the layout of pzstd), so that all cores can compress and expand, and a reader can
// fetch one chunk out of the middle. A last skippable frame holds the SHA-256 of all before it: an archive without it is not
// whole. Any zstd program can read this; we also read any zstd or gzip stream.

const (
	chunkBytes = 1 << 20
	// mostWorkers bounds memory: each has a chunk going in and one coming out.
	mostWorkers = 4

	sizeFrame    = 0x184D2A50 // skippable; 4 bytes: size of the frame that follows
	trailerFrame = 0x184D2A51 // skippable; trailerMark, then SHA-256
	trailerMark  = "HUBFLOW1"
	zstdFrame    = 0xFD2FB528
)

var errIncomplete = errors.New("the archive is not whole: its end is missing")

func workerCount() int { return max(1, min(runtime.GOMAXPROCS(0), mostWorkers)) }

// chunk is a unit of work on its way through the workers; its buffers are used again.
type chunk struct {
	in, out []byte
	err     error
	done    chan struct{}
}

// pipeline hands chunks to workers and gives them back in order.
type pipeline struct {
	free    chan *chunk
	work    chan *chunk
	ordered chan *chunk
}

func newPipeline() *pipeline {
	count := workerCount() + 1
	p := &pipeline{free: make(chan *chunk, count), work: make(chan *chunk, count), ordered: make(chan *chunk, count)}
	for range count {
		p.free <- &chunk{done: make(chan struct{}, 1)}
	}
	return p
}

func (p *pipeline) submit(c *chunk) {
	p.ordered <- c
	p.work <- c
}

func (p *pipeline) noMore() {
	close(p.work)
	close(p.ordered)
}

// compressor is the writing side.
type compressor struct {
	to       io.Writer
	pipeline *pipeline
	current  *chunk
	finished chan struct{}

	hash    hash.Hash
	offsets []int64 // of each chunk in the compressed stream
	size    int64   // compressed
	err     error   // of the writer; read after finished, or by Write when failed is closed
	failed  chan struct{}
}

func newCompressor(to io.Writer) (*compressor, error) {
	c := &compressor{to: to, pipeline: newPipeline(), finished: make(chan struct{}), failed: make(chan struct{}), hash: sha256.New()}
	for range workerCount() {
		encode, err := newChunkEncoder()
		if err != nil {
			return nil, err
		}
		go func() {
			for chunk := range c.pipeline.work {
				chunk.out = encode(chunk.out[:0], chunk.in)
				chunk.done <- struct{}{}
			}
		}()
	}
	go c.writeInOrder()
	return c, nil
}

func (c *compressor) writeInOrder() {
	defer close(c.finished)
	for chunk := range c.pipeline.ordered {
		<-chunk.done
		if c.err == nil {
			c.offsets = append(c.offsets, c.size)
			if writesFormat == "zstd" {
				c.emit(binary.LittleEndian.AppendUint32(skippable(sizeFrame, 4), uint32(len(chunk.out))))
			}
			c.emit(chunk.out)
			if c.err != nil {
				close(c.failed)
			}
		}
		c.pipeline.free <- chunk
	}
}

func skippable(magic uint32, size int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, magic), uint32(size))
}

func (c *compressor) emit(data []byte) {
	if c.err != nil {
		return
	}
	c.hash.Write(data)
	c.size += int64(len(data))
	_, c.err = c.to.Write(data)
}

func (c *compressor) Write(p []byte) (int, error) {
	size := len(p)
	for len(p) > 0 {
		select {
		case <-c.failed:
			return size - len(p), c.err
		default:
		}
		if c.current == nil {
			c.current = <-c.pipeline.free
			if c.current.in == nil {
				c.current.in = make([]byte, 0, chunkBytes)
			}
			c.current.in = c.current.in[:0]
		}
		n := min(len(p), chunkBytes-len(c.current.in))
		c.current.in = append(c.current.in, p[:n]...)
		p = p[n:]
		if len(c.current.in) == chunkBytes {
			c.pipeline.submit(c.current)
			c.current = nil
		}
	}
	return size, nil
}

// Close flushes and, unless something failed, writes the trailer that makes the archive whole.
func (c *compressor) Close() error {
	if c.current != nil && len(c.current.in) > 0 {
		c.pipeline.submit(c.current)
		c.current = nil
	}
	c.pipeline.noMore()
	<-c.finished
	if writesFormat == "zstd" {
		trailer := append(skippable(trailerFrame, len(trailerMark)+sha256.Size), trailerMark...)
		c.emit(c.hash.Sum(trailer))
	}
	return c.err
}

// sum is the SHA-256 of the whole compressed stream, in hex.
func (c *compressor) sum() string { return hex.EncodeToString(c.hash.Sum(nil)) }

// openArchive returns the tar stream in a compressed one, whatever wrote it.
func openArchive(from io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(from, 256<<10)
	head, err := buffered.Peek(8)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(head) == 8 && binary.LittleEndian.Uint32(head) == sizeFrame && binary.LittleEndian.Uint32(head[4:]) == 4 && writesFormat == "zstd":
		return openFrames(buffered)
	case len(head) >= 4 && (binary.LittleEndian.Uint32(head) == zstdFrame || binary.LittleEndian.Uint32(head)&^0xF == sizeFrame):
		return openZstd(buffered)
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(buffered)
	}
	return nil, errors.New("the archive is neither zstd nor gzip (its first bytes are those of something else)")
}

// expander is the reading side for archives of ours.
type expander struct {
	pipeline *pipeline
	closing  chan struct{}
	current  *chunk
	rest     []byte
	end      error // of the stream, valid once ordered is closed
}

func openFrames(from io.Reader) (io.ReadCloser, error) {
	e := &expander{pipeline: newPipeline(), closing: make(chan struct{})}
	for range workerCount() {
		decode, release, err := newChunkDecoder()
		if err != nil {
			return nil, err
		}
		go func() {
			defer release()
			for chunk := range e.pipeline.work {
				chunk.out, chunk.err = decode(chunk.out[:0], chunk.in)
				chunk.done <- struct{}{}
			}
		}()
	}
	go func() {
		e.end = e.readFrames(from)
		e.pipeline.noMore()
	}()
	return e, nil
}

// readFrames cuts the compressed stream into frames until its trailer.
func (e *expander) readFrames(from io.Reader) error {
	sum := sha256.New()
	header := make([]byte, 8)
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			return incomplete(err)
		}
		magic, size := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint32(header[4:])
		switch {
		case magic == trailerFrame && size == uint32(len(trailerMark)+sha256.Size):
			return checkTrailer(from, sum.Sum(nil))
		case magic != sizeFrame || size != 4:
			return errors.New("the archive is damaged: a frame has no size")
		}
		sum.Write(header)
		if _, err := io.ReadFull(from, header[:4]); err != nil {
			return incomplete(err)
		}
		sum.Write(header[:4])
		length := int(binary.LittleEndian.Uint32(header))
		if length > chunkBytes+chunkBytes/8 {
			return fmt.Errorf("the archive is damaged or hostile: a frame claims %d bytes", length)
		}
		var next *chunk
		select {
		case next = <-e.pipeline.free:
		case <-e.closing:
			return io.ErrClosedPipe
		}
		if cap(next.in) < length {
			next.in = make([]byte, length, max(length, chunkBytes/2))
		}
		next.in = next.in[:length]
		if _, err := io.ReadFull(from, next.in); err != nil {
			return incomplete(err)
		}
		sum.Write(next.in)
		e.pipeline.submit(next)
	}
}

func checkTrailer(from io.Reader, sum []byte) error {
	trailer, err := io.ReadAll(io.LimitReader(from, int64(len(trailerMark)+sha256.Size)+1))
	if err != nil {
		return err
	}
	want := append([]byte(trailerMark), sum...)
	if len(trailer) < len(want) {
		return errIncomplete
	}
	if !bytes.Equal(trailer, want) {
		return errors.New("the archive is damaged: its checksum is wrong")
	}
	return io.EOF
}

func incomplete(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errIncomplete
	}
	return err
}

func (e *expander) Read(p []byte) (int, error) {
	for len(e.rest) == 0 {
		if e.current != nil {
			e.pipeline.free <- e.current
			e.current = nil
		}
		next, more := <-e.pipeline.ordered
		if !more {
			return 0, e.end
		}
		<-next.done
		e.current = next
		if next.err != nil {
			return 0, fmt.Errorf("the archive is damaged: %w", next.err)
		}
		e.rest = next.out
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// Close ends the workers; what was not read is thrown away.
func (e *expander) Close() error {
	close(e.closing)
	if e.current != nil {
		e.pipeline.free <- e.current
		e.current, e.rest = nil, nil
	}
	go func() {
		for range e.pipeline.ordered { // until readFrames has noticed
		}
	}()
	return nil
}
