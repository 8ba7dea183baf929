package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Unpacking treats every archive as hostile. It works below an os.Root, in a fresh directory that nobody else knows, and
// refuses what has no business in a cache or an artifact. Nothing it makes is visible to the job before commit.go moves it.

// Defaults of archive_limits.
const (
	defaultMostBytes   = 256 << 30
	defaultMostEntries = 1_000_000
	defaultMostDepth   = 128
	mostPathBytes      = 4096
)

func (l *ArchiveLimits) applyDefaults() {
	if l.Bytes == 0 {
		l.Bytes = defaultMostBytes
	}
	if l.Entries == 0 {
		l.Entries = defaultMostEntries
	}
	if l.Depth == 0 {
		l.Depth = defaultMostDepth
	}
}

// refusal is an archive that was not unpacked because of what is in it.
type refusal struct{ reason string }

func (e *refusal) Error() string {
	return "the archive was refused: " + e.reason + ". Nothing of it was unpacked"
}

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

type unpacker struct {
	ctx    context.Context
	root   *os.Root
	limits ArchiveLimits

	entries, files, bytes int64
	later                 *records // links, which are judged last, and directories, whose modes and times are set last
	names                 *nameTable

	parent     *os.Root // of the last entry, since entries of one directory follow one another
	parentName string
	parentFile *os.File // the same, as a descriptor
	owners     bool     // may we give files away?
	buffer     []byte
}

func newUnpacker(ctx context.Context, root *os.Root, limits ArchiveLimits) *unpacker {
	return &unpacker{
		ctx: ctx, root: root, limits: limits, names: newNameTable(),
		owners: os.Geteuid() == 0, buffer: make([]byte, 256<<10),
	}
}

// unpack reads a tar stream to its end.
func (u *unpacker) unpack(from io.Reader) error {
	defer u.leaveParent()
	if err := u.openLater(); err != nil {
		return err
	}
	defer u.later.file.Close()
	watched := &streamWatcher{ctx: u.ctx, from: from}
	archive := tar.NewReader(watched)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		watched.zeros, watched.left = 0, int64(mostHeaderBytes)
		header, err := archive.Next()
		watched.left = math.MaxInt64
		if err == io.EOF && watched.zeros < tarEnd {
			return errIncomplete
		}
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // insecure paths: we look ourselves
			return unreadableArchive(err)
		}
		if err := u.entry(archive, header); err != nil {
			return err
		}
	}
	if err := u.padding(from); err != nil {
		return err
	}
	u.leaveParent()
	return u.finish()
}

// padding reads what follows the end of the tar stream, for the checksum is behind it. A second archive there would not be unpacked,
// so it may not be.
func (u *unpacker) padding(from io.Reader) error {
	const most = 1 << 20
	for rest := 0; ; {
		n, err := from.Read(u.buffer)
		if rest += n; rest > most || !allZero(u.buffer[:n]) {
			return refuse("it goes on after its end: archives that were put behind one another must be made into one")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return unreadableArchive(err)
		}
	}
}

// openLater makes the file of what is done last. It has no name, and so is gone when we are.
func (u *unpacker) openLater() error {
	const name = stagingPrefix + "later" // no archive may have such a name
	file, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return u.cannot("make", name, err)
	}
	u.later = &records{file: file}
	return u.root.Remove(name)
}

// tarEnd is the length of the zeros that end a tar stream. archive/tar does without them, and so does not notice a stream that
// was cut between two entries.
const tarEnd = 1024

// mostHeaderBytes is how much may stand in front of one entry: a megabyte each of name, link and attributes, and the map of a sparse
// file. archive/tar itself reads headers of headers for as long as they come.
const mostHeaderBytes = 4 << 20

// streamWatcher counts the zeros that were read last, and bounds what may still be read.
type streamWatcher struct {
	ctx   context.Context
	from  io.Reader
	zeros int
	left  int64
}

func (w *streamWatcher) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.from.Read(p)
	if w.left -= int64(n); w.left < 0 {
		return 0, refuse("an entry has more than %d bytes of headers", mostHeaderBytes)
	}
	trailing := 0
	for trailing < n && trailing < tarEnd && p[n-1-trailing] == 0 {
		trailing++
	}
	if trailing < n {
		w.zeros = 0
	}
	w.zeros += trailing
	return n, err
}

func unreadableArchive(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errIncomplete
	}
	if errors.Is(err, tar.ErrHeader) {
		return errors.New("the archive is damaged: it is not a tar stream")
	}
	return err
}

func (u *unpacker) entry(content io.Reader, header *tar.Header) error {
	if err := u.count(header); err != nil {
		return err
	}
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.checkName(header)
	if err != nil {
		return err
	}
	if name == "." {
		if header.Typeflag != tar.TypeDir {
			return refuse("the top of it, %.200q, is no directory", header.Name)
		}
		return nil
	}
	if err := u.checkCollision(name, header.Typeflag); err != nil {
		return err
	}
	if err := u.enterParent(path.Dir(name)); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name, header)
	case tar.TypeReg, tar.TypeGNUSparse, '\x00':
		return u.file(content, name, header)
	case tar.TypeSymlink:
		return u.symlink(name, header)
	case tar.TypeLink:
		return u.hardlink(name, header)
	}
	return refuse("%q is a device, a pipe or of another kind that has no place in a cache or artifact (type %q)", name, header.Typeflag)
}

// checkName refuses names that do not stay inside; "." is the top itself.
func (u *unpacker) checkName(header *tar.Header) (string, error) {
	raw := header.Name
	if raw == "" || strings.IndexByte(raw, 0) >= 0 || len(raw) > mostPathBytes {
		return "", refuse("the name %.60q is empty, too long or holds a NUL byte", raw)
	}
	if path.IsAbs(raw) {
		return "", refuse("the name %.200q is absolute", raw)
	}
	for _, part := range strings.Split(raw, "/") {
		if part == ".." {
			return "", refuse("the name %.200q leads out of the target", raw)
		}
		if strings.HasPrefix(part, stagingPrefix) {
			return "", refuse("the name %.200q belongs to the wrapper", raw)
		}
	}
	name := path.Clean(raw)
	if depth := strings.Count(name, "/") + 1; depth > u.limits.Depth {
		return "", refuse("%.200q is %d directories deep, the limit is %d", name, depth, u.limits.Depth)
	}
	if header.Mode&0o6000 != 0 && header.Typeflag != tar.TypeDir {
		return "", refuse("%.200q is setuid or setgid", raw)
	}
	return name, nil
}

// count counts everything, also what we make nothing of.
func (u *unpacker) count(header *tar.Header) error {
	u.entries++
	if u.entries > u.limits.Entries {
		return refuse("it has more than %d entries", u.limits.Entries)
	}
	if header.Size < 0 || header.Size > u.limits.Bytes-u.bytes {
		return refuse("unpacked it has more than %d bytes (%.200q has %d)", u.limits.Bytes, header.Name, header.Size)
	}
	u.bytes += header.Size
	return nil
}

// checkCollision refuses names that differ only in case or Unicode form where that could make one entry act on the other: a
// link or a file where the other is a directory. Two plain files are refused only by file systems that cannot hold both.
func (u *unpacker) checkCollision(name string, kind byte) error {
	switch u.names.add(name, kind) {
	case nameIsTwice:
		return refuse("%.200q is in it twice", name)
	case nameCollides:
		return refuse("%.200q differs only in case or Unicode form from another entry of another kind", name)
	}
	return nil
}

// enterParent opens the directory of the next entry, making it where the archive left it out. Its path may hold no link.
func (u *unpacker) enterParent(name string) error {
	if u.parent != nil && u.parentName == name {
		return nil
	}
	u.leaveParent()
	if err := u.makeDirectories(name); err != nil {
		return err
	}
	parent, err := u.root.OpenRoot(name)
	if err != nil {
		return u.cannot("open", name, err)
	}
	u.parent, u.parentName = parent, name
	return nil
}

func (u *unpacker) leaveParent() {
	if u.parentFile != nil {
		u.parentFile.Close()
		u.parentFile = nil
	}
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

func (u *unpacker) makeDirectories(name string) error {
	if name == "." || u.names.isDirectory(name) {
		return nil
	}
	if err := u.makeDirectories(path.Dir(name)); err != nil {
		return err
	}
	switch u.names.add(name, tar.TypeDir) {
	case nameIsTwice:
		return refuse("%.200q is used as a directory but is something else", name)
	case nameCollides:
		return refuse("the directory %.200q differs only in case or Unicode form from another entry of another kind", name)
	}
	return u.makeDirectory(u.root, name, name)
}

// makeDirectory makes one, or finds it made: it may be in the archive after its content, or twice.
func (u *unpacker) makeDirectory(root *os.Root, at, name string) error {
	err := root.Mkdir(at, 0o755)
	if errors.Is(err, os.ErrExist) {
		if there, err := root.Lstat(at); err == nil && there.IsDir() {
			return nil
		}
		return refuse("%.200q is used as a directory but is something else", name)
	}
	if err != nil {
		return u.cannot("make", name, err)
	}
	return nil
}

func (u *unpacker) directory(name string, header *tar.Header) error {
	if err := u.makeDirectory(u.parent, path.Base(name), name); err != nil {
		return err
	}
	return u.later.add(laterDirectory, name, strconv.FormatInt(header.Mode, 8), strconv.Itoa(header.Uid), strconv.Itoa(header.Gid),
		strconv.FormatInt(header.ModTime.Unix(), 10), strconv.Itoa(header.ModTime.Nanosecond()))
}

// cannot tells failures of the file system from tricks: a path that suddenly leads elsewhere was tampered with.
func (u *unpacker) cannot(verb, name string, err error) error {
	cause := pathCause(err)
	if errors.Is(err, os.ErrExist) {
		return refuse("%.200q is in it twice, or this file system takes it for another entry", name)
	}
	if errors.Is(cause, syscall.ENOSPC) || errors.Is(cause, syscall.EDQUOT) {
		return fmt.Errorf("no space is left while unpacking %.200q (%d bytes so far). Give the job more disk, or save less", name, u.bytes)
	}
	return fmt.Errorf("cannot %s %.200q: %w", verb, name, cause)
}

func (u *unpacker) file(content io.Reader, name string, header *tar.Header) error {
	base := path.Base(name)
	file, err := u.parent.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return u.cannot("make", name, err)
	}
	err = u.fill(file, content, name, header)
	if err == nil {
		err = u.attributes(file, header)
	}
	if closeErr := file.Close(); err == nil && closeErr != nil {
		err = u.cannot("write", name, closeErr)
	}
	u.files++
	return err
}

// fill writes the content; of files that were saved with holes, blocks of zeros are left out again.
func (u *unpacker) fill(file *os.File, content io.Reader, name string, header *tar.Header) error {
	sparse := header.Typeflag == tar.TypeGNUSparse || header.PAXRecords["GNU.sparse.major"] != ""
	at := int64(0)
	for at < header.Size {
		n, err := io.ReadFull(content, u.buffer[:min(int64(len(u.buffer)), header.Size-at)])
		if n > 0 && !(sparse && allZero(u.buffer[:n])) {
			if _, err := file.WriteAt(u.buffer[:n], at); err != nil {
				return u.cannot("write", name, err)
			}
		}
		at += int64(n)
		if err != nil {
			return unreadableArchive(err)
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	if sparse {
		if err := file.Truncate(header.Size); err != nil {
			return u.cannot("write", name, err)
		}
	}
	return nil
}

var zeroBlock = make([]byte, 256<<10)

func allZero(block []byte) bool { return bytes.Equal(block, zeroBlock[:len(block)]) }

// attributes sets owner, mode and time; in this order, for each may undo the one before.
func (u *unpacker) attributes(file *os.File, header *tar.Header) error {
	if u.owners && (header.Uid != 0 || header.Gid != 0) {
		_ = file.Chown(header.Uid, header.Gid) // "where possible"
	}
	if err := file.Chmod(modeOf(header)); err != nil {
		return u.cannot("set the mode of", file.Name(), err)
	}
	return setTime(int(file.Fd()), "", header.ModTime)
}

func modeOf(header *tar.Header) os.FileMode {
	mode := os.FileMode(header.Mode & 0o777)
	if header.Mode&0o1000 != 0 {
		mode |= os.ModeSticky
	}
	return mode
}

func (u *unpacker) symlink(name string, header *tar.Header) error {
	if !linkStaysInside(name, header.Linkname) {
		return refuse("the link %.200q leads out of the target, to %.200q", name, header.Linkname)
	}
	if err := u.parent.Symlink(header.Linkname, path.Base(name)); err != nil {
		return u.cannot("make", name, err)
	}
	if err := u.later.add(laterLink, name); err != nil {
		return err
	}
	u.files++
	directory, err := u.parentDescriptor()
	if err != nil {
		return u.cannot("open", path.Dir(name), err)
	}
	if u.owners {
		_ = u.parent.Lchown(path.Base(name), header.Uid, header.Gid)
	}
	return setTime(directory, path.Base(name), header.ModTime)
}

// parentDescriptor is the parent for calls that os.Root does not have.
func (u *unpacker) parentDescriptor() (int, error) {
	if u.parentFile == nil {
		file, err := u.parent.Open(".")
		if err != nil {
			return 0, err
		}
		u.parentFile = file
	}
	return int(u.parentFile.Fd()), nil
}

func (u *unpacker) hardlink(name string, header *tar.Header) error {
	target := path.Clean(header.Linkname)
	if path.IsAbs(header.Linkname) || target == ".." || strings.HasPrefix(target, "../") {
		return refuse("the hard link %.200q leads out of the target, to %.200q", name, header.Linkname)
	}
	info, err := u.root.Lstat(target)
	if err != nil || !info.Mode().IsRegular() {
		return refuse("the hard link %.200q names %.200q, which is no file that came before it", name, header.Linkname)
	}
	if err := u.root.Link(target, name); err != nil {
		return u.cannot("link", name, err)
	}
	u.files++
	return nil
}

// Kinds of what is done later.
const (
	laterLink      = "l" // name
	laterDirectory = "d" // name, then what its tar header said
)

// finish judges the links by what they lead to in the finished tree, then sets what later entries would have disturbed.
func (u *unpacker) finish() error {
	judge := newLinkJudge(u.ctx, u.root, u.names, &u.entries, stepsOfUnpacking)
	err := u.later.forwards(func(fields []string) error {
		if fields[0] != laterLink {
			return u.ctx.Err()
		}
		out, err := judge.leadsOut(fields[1])
		if errors.Is(err, errTangle) {
			return refuse("%v (at the link %.200q)", err, fields[1])
		}
		if out {
			return refuse("the link %.200q leads out of the target, by way of other links", fields[1])
		}
		return err
	}, nil)
	if err != nil {
		return err
	}
	return u.later.backwards(func(fields []string, _ int64) error {
		if fields[0] != laterDirectory {
			return nil
		}
		directory, err := u.root.Open(fields[1])
		if err != nil {
			return u.cannot("open", fields[1], err)
		}
		defer directory.Close()
		if err := u.attributes(directory, directoryHeader(fields)); err != nil {
			return err
		}
		return u.ctx.Err()
	})
}

// directoryHeader reads back what directory wrote: our own numbers, in a file that nobody else can open.
func directoryHeader(fields []string) *tar.Header {
	number := func(at, base int) int64 {
		value, _ := strconv.ParseInt(fields[at], base, 64)
		return value
	}
	return &tar.Header{Mode: number(2, 8), Uid: int(number(3, 10)), Gid: int(number(4, 10)), ModTime: time.Unix(number(5, 10), number(6, 10))}
}

// setTime sets the modification time of an open file, or of a name in an open directory without following it.
func setTime(fd int, name string, modified time.Time) error {
	const atSymlinkNoFollow, omit = 0x100, 0x3ffffffe
	times := [2]syscall.Timespec{{Nsec: omit}, {Sec: modified.Unix(), Nsec: int64(modified.Nanosecond())}} // UnixNano ends in 2262
	if err := utimensat(fd, name, &times, atSymlinkNoFollow); err != nil && err != syscall.ENOSYS {
		return fmt.Errorf("cannot set the time of %.200q: %w", name, err)
	}
	return nil
}
