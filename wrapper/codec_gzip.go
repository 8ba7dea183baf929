//go:build nozstd

package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
)

// Built without any module beside the standard library: archives are gzip, and those in zstd cannot be read.

const (
	writesFormat = "gzip (built without zstd)"
	readsFormats = "gzip"
)

var errNoZstd = errors.New("the archive is compressed with zstd, and this wrapper was built without it (see `hubflow-wrapper version`). Use the released wrapper")

// newChunkEncoder returns a function that compresses one chunk into one gzip member, appended to dst.
func newChunkEncoder() (func(dst, src []byte) []byte, error) {
	encoder, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	return func(dst, src []byte) []byte {
		buffer := bytes.NewBuffer(dst)
		encoder.Reset(buffer)
		_, _ = encoder.Write(src) // into memory: cannot fail
		_ = encoder.Close()
		return buffer.Bytes()
	}, nil
}

func newChunkDecoder() (decode func(dst, src []byte) ([]byte, error), release func(), err error) {
	return nil, nil, errNoZstd
}

func openZstd(io.Reader) (io.ReadCloser, error) { return nil, errNoZstd }
