//go:build !nozstd

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	writesFormat = "zstd"
	readsFormats = "zstd, gzip"
)

// maxWindow bounds the memory for reading archives of others; ours need chunkBytes.
const maxWindow = 32 << 20

// newChunkEncoder returns a function that compresses one chunk into one independent frame, appended to dst. The function is
// for one goroutine.
func newChunkEncoder() (func(dst, src []byte) []byte, error) {
	encoder, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true), zstd.WithSingleSegment(false))
	if err != nil {
		return nil, err
	}
	return func(dst, src []byte) []byte { return encoder.EncodeAll(src, dst) }, nil
}

// newChunkDecoder returns a function that expands one frame of ours, of at most chunkBytes. It is for one goroutine.
func newChunkDecoder() (decode func(dst, src []byte) ([]byte, error), release func(), err error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(chunkBytes), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, nil, err
	}
	return func(dst, src []byte) ([]byte, error) { return decoder.DecodeAll(src, dst) }, decoder.Close, nil
}

// openZstd reads any zstd stream.
func openZstd(from io.Reader) (io.ReadCloser, error) {
	decoder, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return windowTeller{decoder.IOReadCloser()}, nil
}

// windowTeller says what to do about an archive whose window is too large.
type windowTeller struct{ io.ReadCloser }

func (t windowTeller) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = fmt.Errorf("the archive needs a window of more than %d MiB of memory to be read, which is the limit. Compress it without --long and with a level of at most 19", maxWindow>>20)
	}
	return n, err
}
