package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Files with holes, in GNU's format 1.0 (archive/tar reads it, but does not write it): an extended header with the true name
// and size, then an ordinary entry whose content begins with the map of the segments that hold data.

type segment struct{ offset, length int64 }

const (
	seekData = 3
	seekHole = 4
	// worthSkipping: smaller holes are not worth an extended header.
	worthSkipping = 64 << 10
	mostSegments  = 10_000
	// mostPlainID is the largest owner that a plain header can hold.
	mostPlainID = 1<<21 - 1
)

// dataSegments lists where a file has data, or nil for a file without holes worth the trouble.
func dataSegments(file *os.File, info os.FileInfo) []segment {
	status, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Size()-status.Blocks*512 < worthSkipping {
		return nil
	}
	segments := []segment{}
	for at := int64(0); at < info.Size(); {
		begin, err := file.Seek(at, seekData)
		if isErrno(err, syscall.ENXIO) { // a hole up to the end
			break
		}
		if err != nil {
			return nil
		}
		end, err := file.Seek(begin, seekHole)
		if err != nil || len(segments) == mostSegments {
			return nil
		}
		end = min(end, info.Size())
		if end > begin {
			segments = append(segments, segment{begin, end - begin})
		}
		at = max(end, begin+1)
	}
	// A last segment of no length tells readers that find the end by the map (GNU tar) where it is.
	return append(segments, segment{info.Size(), 0})
}

func isErrno(err error, number syscall.Errno) bool {
	return pathCause(err) == number
}

// sparse writes one file with holes.
func (p *packer) sparse(file *os.File, header *tar.Header, segments []segment) error {
	if err := p.admit(header); err != nil {
		return err
	}
	if err := p.tar.Flush(); err != nil {
		return err
	}
	records := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") +
		paxRecord("GNU.sparse.name", header.Name) + paxRecord("GNU.sparse.realsize", strconv.FormatInt(header.Size, 10)) +
		paxRecord("mtime", paxTime(header.ModTime))
	for key, id := range map[string]int{"uid": header.Uid, "gid": header.Gid} {
		if id > mostPlainID {
			records += paxRecord(key, strconv.Itoa(id))
		}
	}
	list := sparseMap(segments)
	size := int64(len(list))
	for _, s := range segments {
		size += s.length
	}
	if size >= 8<<30 { // more than the plain field can say
		records += paxRecord("size", strconv.FormatInt(size, 10))
	}
	if err := p.extendedHeader(records); err != nil {
		return err
	}
	at := p.under.at + 512
	if err := p.writeBlock(plainHeader('0', "GNUSparseFile.0/file", header, size)); err != nil {
		return err
	}
	if _, err := p.under.Write(list); err != nil {
		return err
	}
	for _, s := range segments {
		if s.length == 0 {
			continue
		}
		if _, err := file.Seek(s.offset, io.SeekStart); err != nil {
			return p.unreadable(header.Name, err)
		}
		if err := p.segment(header.Name, file, s.length); err != nil {
			return err
		}
	}
	p.files++
	if _, err := p.under.Write(make([]byte, (512-size%512)%512)); err != nil {
		return err
	}
	header.Typeflag = tar.TypeGNUSparse
	return p.index.add(header, at)
}

// segment is content, past the tar.Writer, which knows nothing of this entry.
func (p *packer) segment(name string, from io.Reader, length int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{p.under}, io.LimitReader(from, length), p.buffer)
	if err == nil && n < length {
		p.warn("%q became shorter while it was being saved; it was filled up with zeros", name)
		_, err = io.CopyN(p.under, zeroReader{}, length-n)
	}
	return err
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// sparseMap is the number of segments, then offset and length of each, in decimal lines, padded to whole blocks.
func sparseMap(segments []segment) []byte {
	var list bytes.Buffer
	fmt.Fprintf(&list, "%d\n", len(segments))
	for _, s := range segments {
		fmt.Fprintf(&list, "%d\n%d\n", s.offset, s.length)
	}
	list.Write(make([]byte, (512-list.Len()%512)%512))
	return list.Bytes()
}

// paxRecord is "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	length := len(rest)
	for digits := 0; digits != len(strconv.Itoa(length)); {
		digits = len(strconv.Itoa(length))
		length = len(rest) + digits
	}
	return strconv.Itoa(length) + rest
}

// paxTime is seconds with a fraction; before 1970 both are negative, where time.Time counts the fraction forwards.
func paxTime(at time.Time) string {
	seconds, fraction, sign := at.Unix(), at.Nanosecond(), ""
	if seconds < 0 {
		sign, seconds = "-", -seconds
		if fraction > 0 {
			seconds, fraction = seconds-1, 1e9-fraction
		}
	}
	return fmt.Sprintf("%s%d.%09d", sign, seconds, fraction)
}

func (p *packer) extendedHeader(records string) error {
	header := &tar.Header{Mode: 0o644, ModTime: epoch}
	if err := p.writeBlock(plainHeader('x', "GNUSparseFile.0/header", header, int64(len(records)))); err != nil {
		return err
	}
	padded := make([]byte, (len(records)+511)/512*512)
	copy(padded, records)
	_, err := p.under.Write(padded)
	return err
}

func (p *packer) writeBlock(block [512]byte) error {
	_, err := p.under.Write(block[:])
	return err
}

// plainHeader is one block of the old format. What does not fit its fields stands in the extended header before it.
func plainHeader(kind byte, name string, header *tar.Header, size int64) (block [512]byte) {
	octal := func(at, width int, value int64) {
		if value < 0 || value >= 1<<(3*(width-1)) {
			value = 0
		}
		copy(block[at:at+width], fmt.Sprintf("%0*o", width-1, value))
	}
	copy(block[:100], name)
	octal(100, 8, header.Mode)
	octal(108, 8, int64(header.Uid))
	octal(116, 8, int64(header.Gid))
	octal(124, 12, size)
	octal(136, 12, header.ModTime.Unix())
	block[156] = kind
	copy(block[257:], "ustar\x0000")
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return block
}
