package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
)

// indexWriter collects the index of an artifact: what is in it, and where, so that it can be browsed and single files be read
// without unpacking it. It is held compressed, and stored as plain JSON. A nil *indexWriter collects nothing.
type indexWriter struct {
	packed *bytes.Buffer
	to     *gzip.Writer
	size   int64
	count  int
}

// indexEntry is one line of the index.
type indexEntry struct {
	Path     string `json:"path"`
	Type     string `json:"type"` // file, directory, symlink, hardlink, sparse
	Size     int64  `json:"size"`
	Mode     string `json:"mode"` // octal
	Modified string `json:"modified"`
	Link     string `json:"link,omitempty"`
	Offset   int64  `json:"offset"` // of the content in the tar stream
}

func newIndexWriter() *indexWriter {
	packed := &bytes.Buffer{}
	to, _ := gzip.NewWriterLevel(packed, gzip.BestSpeed) // the level is valid
	index := &indexWriter{packed: packed, to: to}
	index.text([]byte(`{"version":1,"entries":[`))
	return index
}

func (x *indexWriter) text(data []byte) {
	n, _ := x.to.Write(data) // into memory
	x.size += int64(n)
}

func (x *indexWriter) add(header *tar.Header, offset int64) error {
	if x == nil {
		return nil
	}
	kind := map[byte]string{tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink", tar.TypeGNUSparse: "sparse"}[header.Typeflag]
	line, err := json.Marshal(indexEntry{
		Path: header.Name, Type: kind, Size: header.Size, Mode: fmt.Sprintf("%04o", header.Mode), Modified: timestamp(header.ModTime),
		Link: header.Linkname, Offset: offset,
	})
	if err != nil {
		return err
	}
	separator := ",\n"
	if x.count == 0 {
		separator = "\n"
	}
	x.count++
	x.text(append([]byte(separator), line...))
	return nil
}

// indexEnd says how the compressed object is laid out: chunk i holds the bytes from i*ChunkBytes of the tar stream and begins
// at Offsets[i] of the object.
type indexEnd struct {
	Bytes      int64   `json:"bytes"`
	SHA256     string  `json:"sha256"`
	Format     string  `json:"format"`
	ChunkBytes int     `json:"chunk_bytes"`
	Offsets    []int64 `json:"chunk_offsets"`
}

func (x *indexWriter) finish(end indexEnd) error {
	text, err := json.Marshal(end)
	if err != nil {
		return err
	}
	x.text([]byte("\n],\"archive\":"))
	x.text(text)
	x.text([]byte("}\n"))
	return x.to.Close()
}

// open reads the finished index from the start.
func (x *indexWriter) open() (io.Reader, error) {
	return gzip.NewReader(bytes.NewReader(x.packed.Bytes()))
}
