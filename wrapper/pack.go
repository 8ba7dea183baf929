package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

// packer writes the selected part of a tree as a tar stream. It works through os.Root, so that what the tree's links say never
// leads out of it, and holds no more than one file's buffer.
type packer struct {
	ctx       context.Context
	limits    ArchiveLimits
	top       *os.Root
	selection *selection
	matched   []bool   // by pattern
	unmet     []string // by pattern: why something that it names was left out
	tar       *tar.Writer
	under     *countingWriter
	index     *indexWriter // nil: none is wanted
	links     map[inode]splitName

	lastLinked string // the directory of the last of these
	names      *nameTable
	judge      *linkJudge
	buffer     []byte

	entries, files, bytes int64

	warnings []string
}

// inode identifies a file, to find its other names.
type inode struct{ device, number uint64 }

// splitName is a name that shares its directory's with others: package stores have many files of several names.
type splitName struct{ directory, name string }

// countingWriter knows the place in the tar stream.
type countingWriter struct {
	to io.Writer
	at int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.at += int64(n)
	return n, err
}

const packBuffer = 256 << 10

func newPacker(ctx context.Context, to io.Writer, selected *selection, index *indexWriter, limits ArchiveLimits) *packer {
	under := &countingWriter{to: to}
	return &packer{
		ctx: ctx, limits: limits, selection: selected, matched: make([]bool, len(selected.patterns)),
		unmet: make([]string, len(selected.patterns)), tar: tar.NewWriter(under), under: under,
		index: index, links: map[inode]splitName{}, names: newNameTable(), buffer: make([]byte, packBuffer),
	}
}

// pack writes everything selected below base, and the end of the archive.
func (p *packer) pack(base string) error {
	root, err := os.OpenRoot(base)
	if errors.Is(err, os.ErrNotExist) {
		return p.tar.Close()
	}
	if err != nil {
		return err
	}
	defer root.Close()
	p.top, p.judge = root, newLinkJudge(p.ctx, root, p.names, &p.entries, stepsOfPacking)
	positions, whole := p.selection.start()
	for _, i := range whole {
		p.matched[i] = true
	}
	if err := p.directory(root, "", positions, len(whole) > 0); err != nil {
		return err
	}
	return p.tar.Close()
}

// missing lists the patterns that matched nothing.
func (p *packer) missing() (texts []string) {
	for i, found := range p.matched {
		if !found {
			texts = append(texts, p.selection.patterns[i].text)
		}
	}
	return texts
}

// whyMissing says of patterns that matched nothing what stood in their way, where something did.
func (p *packer) whyMissing() string {
	var reasons []string
	for i, found := range p.matched {
		if !found && p.unmet[i] != "" && !slices.Contains(reasons, p.unmet[i]) {
			reasons = append(reasons, p.unmet[i])
		}
	}
	if len(reasons) == 0 {
		return ""
	}
	return ": " + strings.Join(reasons, "; ")
}

func (p *packer) warn(format string, args ...any) {
	const most = 20
	if len(p.warnings) < most {
		p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
	} else if len(p.warnings) == most {
		p.warnings = append(p.warnings, "more of this kind")
	}
}

// namesAtOnce is how many names of one directory are held in memory.
const namesAtOnce = 32_000

// directory goes through one directory: all of it, or what the positions select. The order is that of the names, so that the same
// tree makes the same archive.
func (p *packer) directory(root *os.Root, prefix string, positions []position, all bool) error {
	names, any := p.selection.names(positions)
	if !all && !any {
		sort.Strings(names)
		return p.listed(root, prefix, slices.Compact(names), positions, all)
	}
	for after, more := "", true; more; {
		var err error
		if names, more, err = p.list(root, prefix, after, namesAtOnce); err != nil {
			return err
		}
		if err := p.listed(root, prefix, names, positions, all); err != nil {
			return err
		}
		if more {
			after = names[len(names)-1]
		}
	}
	return nil
}

func (p *packer) listed(root *os.Root, prefix string, names []string, positions []position, all bool) error {
	for _, name := range names {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if strings.HasPrefix(name, stagingPrefix) {
			continue
		}
		if err := p.entry(root, prefix, name, positions, all); err != nil {
			return err
		}
	}
	return nil
}

// list gives the names of a directory that come after one, in order: at most so many, and whether there are more.
func (p *packer) list(root *os.Root, prefix, after string, most int) (names []string, more bool, err error) {
	directory, err := root.Open(".")
	if err == nil {
		defer directory.Close()
		names, more, err = smallestNames(directory, after, most)
	}
	if err == nil {
		return names, more, nil
	}
	if p.vanished(prefix, err) {
		return nil, false, nil
	}
	return nil, false, p.unreadable(prefix, err)
}

// smallestNames reads all names, and keeps few: of twice as many as are wanted the larger half is forgotten.
func smallestNames(directory *os.File, after string, most int) (names []string, more bool, err error) {
	bound := ""
	halve := func() {
		sort.Strings(names)
		if len(names) > most {
			clear(names[most:])
			names, more = names[:most], true
			bound = names[most-1]
		}
	}
	for {
		batch, err := directory.Readdirnames(batchOfNames)
		for _, name := range batch {
			if name <= after || more && name > bound {
				continue
			}
			if names = append(names, name); len(names) == 2*most {
				halve()
			}
		}
		if err == io.EOF || err == nil && len(batch) == 0 {
			halve()
			return names, more, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// vanished says whether something that was there a moment ago is gone, or became something else; what others take away while we save
// is not ours to save.
func (p *packer) vanished(name string, err error) bool {
	cause := pathCause(err)
	gone := errors.Is(err, os.ErrNotExist) || cause == syscall.ENOTDIR || cause == syscall.ELOOP || cause == syscall.EINVAL
	if gone {
		p.warn("%q vanished, or became something else, while it was being saved", name)
	}
	return gone
}

func (p *packer) unreadable(name string, err error) error {
	return fmt.Errorf("%q cannot be read: %w. Save it as the user who owns it, or leave it out of the paths", name, pathCause(err))
}

func (p *packer) entry(root *os.Root, prefix, name string, positions []position, all bool) error {
	full := path.Join(prefix, name)
	info, err := root.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // never there, or gone since
	}
	if err != nil {
		return p.unreadable(full, err)
	}
	isLink := info.Mode()&os.ModeSymlink != 0
	step := p.selection.step(positions, name, isLink)
	taken, before := all || len(step.complete) > 0, p.entries
	switch {
	case isLink && !all && (step.named || len(step.below) > 0):
		err = p.follow(full, step, taken)
	case info.IsDir():
		err = p.enter(root, name, full, info, step.below, taken)
	case taken:
		err = p.leaf(root, name, full, info)
	}
	for _, i := range step.complete {
		p.matched[i] = p.matched[i] || p.entries > before
	}
	return err
}

// follow takes a link that is named, or lies on the way to what is named, for what it leads to, if that is inside. Only the top
// can tell: the link may climb out of its own directory.
func (p *packer) follow(full string, step step, taken bool) error {
	info, err := p.top.Stat(full)
	if err != nil {
		reason := fmt.Sprintf("%q is a link that leads nowhere or out of the saved tree", full)
		for _, i := range step.patterns() {
			p.unmet[i] = reason
		}
		if taken {
			p.warn("%s; it was left out. Name the files themselves", reason)
		}
		return nil
	}
	if info.IsDir() {
		if p.names.addParents(full+"/.") != nameIsNew { // in the archive it is a directory, also for links that lead through it
			return fmt.Errorf("%.200q cannot be saved: %s", full, nameCollision)
		}
		return p.enter(p.top, full, full, info, step.below, taken)
	}
	if !taken {
		return nil
	}
	return p.leaf(p.top, full, full, info)
}

// enter goes into a directory, which root knows by the given name.
func (p *packer) enter(root *os.Root, name, full string, info os.FileInfo, below []position, taken bool) error {
	if !taken && len(below) == 0 {
		return nil
	}
	sub, err := root.OpenRoot(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !isDirectory(root, name) {
		err = syscall.ENOTDIR // OpenRoot has words of its own for it
	}
	if err != nil && p.vanished(full, err) {
		return nil
	}
	if err != nil {
		return p.unreadable(full, err)
	}
	defer sub.Close()
	if taken {
		header := p.header(full+"/", info)
		header.Typeflag = tar.TypeDir
		if err := p.write(header); err != nil {
			return err
		}
	}
	return p.directory(sub, full, below, taken)
}

func isDirectory(root *os.Root, name string) bool {
	info, err := root.Stat(name)
	return err == nil && info.IsDir()
}

// leaf writes what is not a directory.
func (p *packer) leaf(root *os.Root, name, full string, info os.FileInfo) error {
	switch info.Mode().Type() {
	case 0:
		return p.file(root, name, full)
	case os.ModeSymlink:
		target, err := root.Readlink(name)
		if err != nil && p.vanished(full, err) {
			return nil
		}
		if err != nil {
			return p.unreadable(full, err)
		}
		out := !linkStaysInside(full, target)
		if !out {
			if out, err = p.judge.leadsOut(full); err != nil {
				return fmt.Errorf("the link %q cannot be saved: %w", full, err)
			}
		}
		if out {
			p.warn("the link %q leads out of the saved tree (to %q) and was left out: it could not be unpacked safely elsewhere", full, target)
			return nil
		}
		header := p.header(full, info)
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
		return p.write(header)
	}
	p.warn("%q is a %s and was left out: only files, directories and links can be saved", full, kindName(info.Mode()))
	return nil
}

func kindName(mode os.FileMode) string {
	switch {
	case mode&os.ModeNamedPipe != 0:
		return "named pipe"
	case mode&os.ModeSocket != 0:
		return "socket"
	case mode&os.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// header has what all kinds of entries share. Setuid and setgid are not carried over: an archive that has them is refused.
func (p *packer) header(name string, info os.FileInfo) *tar.Header {
	header := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX}
	if info.Mode()&os.ModeSticky != 0 {
		header.Mode |= 0o1000
	}
	if info.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 && !info.IsDir() {
		p.warn("%q lost its setuid or setgid bit: archives do not carry rights", name)
	}
	if status, ok := info.Sys().(*syscall.Stat_t); ok {
		header.Uid, header.Gid = int(status.Uid), int(status.Gid)
	}
	return header
}

func (p *packer) write(header *tar.Header) error {
	if err := p.admit(header); err != nil {
		return err
	}
	// A whole second needs no further header block.
	if header.ModTime.Nanosecond() == 0 && header.ModTime.Unix() >= 0 && header.Size < 8<<30 {
		header.Format = tar.FormatUnknown
	}
	if err := p.tar.WriteHeader(header); err != nil {
		if errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("%q cannot be put into an archive: %w", header.Name, err)
		}
		return err
	}
	if header.Typeflag != tar.TypeDir {
		p.files++
	}
	return p.index.add(header, p.under.at)
}

const nameCollision = "its name, or that of a directory above it, differs only in case or Unicode form from another one's, and one of the two is a link or they are of different kinds: such an archive is refused when it is unpacked. Rename one of them, or leave it out"

// admit refuses to make what unpacking would refuse to take: the mistake belongs to whoever saves, not to the job that restores.
func (p *packer) admit(header *tar.Header) error {
	cannot := func(format string, args ...any) error {
		return fmt.Errorf("%.200q cannot be saved: "+format, append([]any{header.Name}, args...)...)
	}
	name := strings.TrimSuffix(header.Name, "/")
	p.entries++
	p.bytes += header.Size
	switch depth := strings.Count(name, "/") + 1; {
	case p.entries > p.limits.Entries:
		return cannot("the archive would have more than %d entries, which is the limit. Save fewer files, or pack them first", p.limits.Entries)
	case p.bytes > p.limits.Bytes:
		return cannot("the archive would have more than %d bytes unpacked, which is the limit. Save less", p.limits.Bytes)
	case depth > p.limits.Depth || len(name) > mostPathBytes:
		return cannot("it is %d directories deep and its name has %d bytes, the limits are %d and %d. Leave it out, or pack it first", depth, len(name), p.limits.Depth, mostPathBytes)
	case p.names.addParents(name) != nameIsNew || p.names.add(name, header.Typeflag) != nameIsNew:
		return cannot(nameCollision)
	}
	return nil
}

// file writes a regular file, as it is at the moment of opening.
func (p *packer) file(root *os.Root, name, full string) error {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil && p.vanished(full, err) {
		return nil
	}
	if err != nil {
		return p.unreadable(full, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return p.unreadable(full, err)
	}
	if !info.Mode().IsRegular() {
		p.vanished(full, syscall.EINVAL)
		return nil
	}
	header := p.header(full, info)
	header.Typeflag = tar.TypeReg
	if first := p.otherName(full, info); first != "" {
		header.Typeflag, header.Linkname = tar.TypeLink, first
		return p.write(header)
	}
	header.Size = info.Size()
	if segments := dataSegments(file, info); segments != nil {
		return p.sparse(file, header, segments)
	}
	if err := p.write(header); err != nil {
		return err
	}
	return p.content(full, file, header.Size)
}

// otherName returns the name under which this very file is in the archive already.
func (p *packer) otherName(full string, info os.FileInfo) string {
	status, ok := info.Sys().(*syscall.Stat_t)
	if !ok || status.Nlink < 2 {
		return ""
	}
	id := inode{uint64(status.Dev), status.Ino}
	if first, seen := p.links[id]; seen {
		return path.Join(first.directory, first.name)
	}
	directory, name := path.Split(full)
	if directory != p.lastLinked {
		p.lastLinked = strings.Clone(directory)
	}
	p.links[id] = splitName{p.lastLinked, strings.Clone(name)}
	return ""
}

// content writes size bytes. A file that shrinks meanwhile is filled up with zeros, as tar does, and told.
func (p *packer) content(name string, from io.Reader, size int64) error {
	for left := size; left > 0; {
		n, err := from.Read(p.buffer[:min(left, int64(len(p.buffer)))])
		if n > 0 {
			if _, err := p.tar.Write(p.buffer[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		if err == io.EOF && left > 0 {
			p.warn("%q became shorter while it was being saved; it was filled up with zeros", name)
			return p.zeros(left)
		}
		if err != nil && err != io.EOF {
			return p.unreadable(name, err)
		}
		if err := p.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) zeros(left int64) error {
	clear(p.buffer)
	for left > 0 {
		n, err := p.tar.Write(p.buffer[:min(left, int64(len(p.buffer)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

var epoch = time.Unix(0, 0)
