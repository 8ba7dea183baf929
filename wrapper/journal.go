package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// The steps by which a restore is moved into place. Each is noted before it is done, and has an inverse that can be done again
// and does nothing where the step was not done. So a commit can be undone from its journal: by us when a step fails, and by the
// next restore into the folder when we were killed.

// Kinds of notes. What a note says of a mode is "" where it does not matter.
const (
	noteRename = "rename" // from, to, mode of a directory that has to be writable for it
	noteMkdir  = "mkdir"  // path
	noteRmdir  = "rmdir"  // path, mode, uid, gid
	noteTemp   = "temp"   // path: a file that is being copied
	noteChmod  = "chmod"  // path, mode before
	noteDone   = "done"   // there is nothing to undo any more
)

func (s *staging) note(fields ...string) error {
	err := s.journal.add(fields...)
	if err == nil {
		err = s.journal.flush()
	}
	if err != nil {
		return fmt.Errorf("cannot note what is moved: %w", pathCause(err))
	}
	return nil
}

// rename moves something within a file system.
func (s *staging) rename(from, to string, what os.FileInfo) error {
	mode := ""
	if what.IsDir() && what.Mode()&0o200 == 0 {
		mode = modeText(what) // it holds its parent in "..", which only who may write to it can change
	}
	if err := s.note(noteRename, from, to, mode); err != nil {
		return err
	}
	if err := s.shift(from, to, mode); err != nil {
		return fmt.Errorf("cannot move %s into place: %w", to, linkCause(err))
	}
	return nil
}

// shift renames without a note; a mode is that of a directory which must be made writable for it.
func (s *staging) shift(from, to, mode string) error {
	if mode != "" {
		_ = s.root.Chmod(from, modeOfText(mode)|0o700) // if it is not ours, the rename says so
	}
	err := s.root.Rename(from, to)
	if mode != "" {
		now := to
		if err != nil {
			now = from
		}
		_ = s.root.Chmod(now, modeOfText(mode))
	}
	return err
}

func (s *staging) mkdir(name string) error {
	if err := s.note(noteMkdir, name); err != nil {
		return err
	}
	if err := s.root.Mkdir(name, 0o755); err != nil {
		return fmt.Errorf("cannot make %s: %w", name, pathCause(err))
	}
	return nil
}

func (s *staging) rmdir(name string) error {
	info, err := s.root.Lstat(name)
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", name, pathCause(err))
	}
	uid, gid := ownerOf(info)
	if err := s.note(noteRmdir, name, modeText(info), strconv.Itoa(uid), strconv.Itoa(gid)); err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil {
		return fmt.Errorf("cannot remove %s: %w", name, pathCause(err))
	}
	return nil
}

func (s *staging) chmod(name string, info os.FileInfo, mode os.FileMode) error {
	if err := s.note(noteChmod, name, modeText(info)); err != nil {
		return err
	}
	return s.root.Chmod(name, mode)
}

const modeBits = os.ModePerm | os.ModeSetuid | os.ModeSetgid | os.ModeSticky

func modeText(info os.FileInfo) string {
	return strconv.FormatUint(uint64(info.Mode()&modeBits), 10)
}

func modeOfText(text string) os.FileMode {
	value, _ := strconv.ParseUint(text, 10, 32)
	return os.FileMode(value) & modeBits
}

func ownerOf(info os.FileInfo) (uid, gid int) {
	if status, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(status.Uid), int(status.Gid)
	}
	return -1, -1
}

// undo takes the steps back, the last first. What could not be taken back stays in the journal, and the staging with it.
func (s *staging) undo() error {
	if s.isDone() {
		return nil
	}
	err := s.journal.backwards(func(fields []string, at int64) error {
		if err := s.invert(fields); err != nil {
			return err
		}
		return s.journal.cut(at)
	})
	s.broken = err != nil
	return err
}

// isDone says whether the journal ends with the note that says so.
func (s *staging) isDone() (done bool) {
	_ = s.journal.backwards(func(fields []string, _ int64) error {
		done = fields[0] == noteDone
		return io.EOF // one is enough
	})
	return done
}

func (s *staging) invert(fields []string) error {
	fields = append(fields, make([]string, 5)...) // a journal that someone else wrote must not make us panic
	name := fields[1]
	var err error
	switch fields[0] {
	case noteRename:
		from, to := fields[1], fields[2]
		if s.exists(from) || !s.exists(to) {
			return nil
		}
		err = linkCause(s.shift(to, from, fields[3]))
	case noteMkdir, noteTemp:
		err = s.root.Remove(name)
	case noteRmdir:
		if err = s.root.Mkdir(name, 0o700); err == nil {
			uid, _ := strconv.Atoi(fields[3])
			gid, _ := strconv.Atoi(fields[4])
			_ = s.root.Chown(name, uid, gid) // as it was, where we may
			err = s.root.Chmod(name, modeOfText(fields[2]))
		}
		if errors.Is(err, os.ErrExist) {
			return nil
		}
	case noteChmod:
		if info, err := s.root.Lstat(name); err == nil && modeText(info) == fields[2] {
			return nil
		}
		err = s.root.Chmod(name, modeOfText(fields[2]))
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: %w", name, pathCause(err))
}

func (s *staging) exists(name string) bool {
	_, err := s.root.Lstat(name)
	return err == nil
}

// beside is a new name next to another one, for what cannot leave its directory. The packer leaves such names out.
func (s *staging) beside(name string) string {
	s.count++
	return path.Join(path.Dir(name), fmt.Sprintf("%s.%d", s.name, s.count))
}

// removeReplaced removes what the commit put beside the things that replaced it.
func (s *staging) removeReplaced() {
	_ = s.journal.forwards(func(fields []string) error {
		if len(fields) > 1 && (fields[0] == noteRename || fields[0] == noteMkdir) {
			name := fields[1]
			if fields[0] == noteRename {
				name = fields[2]
			}
			if strings.HasPrefix(path.Base(name), s.name+".") {
				s.remove(name)
			}
		}
		return nil
	}, nil)
}

// recoverAll clears up after restores into this folder whose wrappers were killed. A journal that is locked belongs to one that
// lives. The folder itself is locked meanwhile, so that nobody is between making a staging and locking it; where a file system
// has no locks, nothing is cleared up.
func (s *staging) recoverAll() error {
	folder, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer folder.Close()
	for {
		names, err := folder.Readdirnames(batchOfNames)
		for _, name := range names {
			rest, ours := strings.CutPrefix(name, stagingPrefix)
			if !ours || strings.Contains(rest, ".") {
				continue
			}
			if err := s.recoverOne(name); err != nil {
				return fmt.Errorf("an earlier restore into %s was killed, and what it had moved cannot be moved back (%w). Look into %s there, and remove it", s.target, err, name)
			}
		}
		if err == io.EOF || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *staging) recoverOne(name string) error {
	dead := &staging{target: s.target, root: s.root, name: name}
	file, err := s.root.OpenFile(dead.notes(), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) { // killed before it had one, or when all was done
		dead.remove(name)
		return nil
	}
	if err != nil {
		return pathCause(err)
	}
	defer file.Close()
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil
	}
	dead.journal = &records{file: file}
	if err := dead.journal.recover(); err != nil {
		return err
	}
	if err := dead.undo(); err != nil {
		return err
	}
	dead.removeReplaced()
	dead.remove(name)
	return nil
}
