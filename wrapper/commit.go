package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"syscall"
	"time"
)

// Restoring is all or nothing in what the job can see: archives are unpacked into a staging directory inside the target (the
// same file system, hence renames), and only a whole one is moved into place; if a move fails, those before it are undone.

const stagingPrefix = ".hubflow-restore-"

// batchOfNames is how many names of a folder are held at once.
const batchOfNames = 4096

// staging is one restore under way.
type staging struct {
	target    string
	created   string   // the topmost directory that did not exist before, "" = none
	root      *os.Root // of the target
	name      string   // of the staging directory in it
	journal   *records // of the moves; locked while we live
	count     int      // of the names given so far
	committed bool
	broken    bool             // what was moved could not be moved back: nothing may be removed
	copied    map[inode]string // files with several names that went to another file system, and one name of each
}

func openStaging(target string) (*staging, error) {
	s := &staging{target: target, name: stagingPrefix + rand.Text(), copied: map[inode]string{}}
	s.created = topmostMissing(target)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return nil, fmt.Errorf("the directory %s cannot be made: %w. Choose a path where user %d may write", target, pathCause(err), os.Getuid())
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return nil, fmt.Errorf("the directory %s cannot be opened: %w", target, pathCause(err))
	}
	s.root = root
	unlock := s.lockFolder()
	if unlock != nil {
		defer unlock()
		if err := s.recoverAll(); err != nil {
			s.discard()
			return nil, err
		}
	}
	if err := s.makeFolders(); err != nil {
		s.discard()
		return nil, fmt.Errorf("user %d cannot write to %s: %w. Choose another path, or change its owner in the image", os.Getuid(), target, pathCause(err))
	}
	return s, nil
}

// lockFolder locks the target against others that clear up or begin there. It gives up where there are no locks, or nobody gives
// it back.
func (s *staging) lockFolder() (unlock func()) {
	folder, err := s.root.Open(".")
	if err != nil {
		return nil
	}
	const patience = 5 * time.Second
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { folder.Close() }
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR || time.Since(begin) > patience {
			folder.Close()
			return nil
		}
	}
}

func (s *staging) makeFolders() error {
	if err := s.root.Mkdir(s.name, 0o700); err != nil {
		return err
	}
	file, err := s.root.OpenFile(s.notes(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_ = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) // where there are locks
	s.journal = &records{file: file}
	for _, name := range []string{s.fresh(), s.old()} {
		if err := s.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	return nil
}

func topmostMissing(target string) string {
	missing := ""
	for at := target; ; at = path.Dir(at) {
		if _, err := os.Lstat(at); !errors.Is(err, os.ErrNotExist) {
			return missing
		}
		missing = at
	}
}

func (s *staging) fresh() string { return s.name + "/new" }
func (s *staging) old() string   { return s.name + "/old" }
func (s *staging) notes() string { return s.name + "/journal" }

// place is where the archive is unpacked.
func (s *staging) place() (*os.Root, error) { return s.root.OpenRoot(s.fresh()) }

// commit moves everything into place.
func (s *staging) commit() error {
	err := s.merge(s.fresh(), ".")
	if err == nil {
		err = s.note(noteDone)
	}
	if err != nil {
		if undoErr := s.undo(); undoErr != nil {
			return fmt.Errorf("%w; and what was moved before could not be moved back (%v): it is in %s/%s", err, undoErr, s.target, s.name)
		}
		return err
	}
	s.committed = true
	return nil
}

// merge moves the entries of one directory into another one, until none is left.
func (s *staging) merge(from, to string) error {
	if info, err := s.root.Lstat(from); err == nil && info.Mode()&0o700 != 0o700 {
		_ = s.root.Chmod(from, info.Mode()|0o700) // of its own mode no use is made any more
	}
	lock, err := s.unlock(to)
	if err != nil {
		return err
	}
	err = s.each(from, func(name string) error {
		return s.mergeEntry(path.Join(from, name), path.Join(to, name))
	})
	if err != nil {
		return err
	}
	return lock()
}

// unlock makes a directory writable for us, where it is not; lock gives it its mode back.
func (s *staging) unlock(name string) (lock func() error, err error) {
	const needed = 0o300
	info, err := s.root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", name, pathCause(err))
	}
	none := func() error { return nil }
	if info.Mode()&needed == needed || s.chmod(name, info, info.Mode()|0o700) != nil { // if it is not ours, the moves say so
		return none, nil
	}
	now, err := s.root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", name, pathCause(err))
	}
	return func() error { return s.chmod(name, now, info.Mode()) }, nil
}

// each calls move with all names of a directory, which moves them away. Names are read in batches: a folder may have millions.
func (s *staging) each(directory string, move func(name string) error) error {
	for {
		names, err := s.names(directory)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := move(name); err != nil {
				return err
			}
		}
	}
}

// names gives the first names of a directory.
func (s *staging) names(directory string) ([]string, error) {
	file, err := s.root.Open(directory)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", directory, pathCause(err))
	}
	defer file.Close()
	names, err := file.Readdirnames(batchOfNames)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("cannot read %s: %w", directory, pathCause(err))
	}
	sort.Strings(names)
	return names, nil
}

// mergeEntry moves one entry. Where both sides have a directory it goes into them; anything else that is in the way is replaced.
func (s *staging) mergeEntry(source, target string) error {
	own, err := s.root.Lstat(source)
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", source, pathCause(err))
	}
	there, err := s.root.Lstat(target)
	switch {
	case err == nil && there.IsDir() && own.IsDir():
		if err := s.merge(source, target); err != nil {
			return err
		}
		return s.rmdir(source)
	case err == nil:
		if err := s.replace(target, there); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("cannot look at %s: %w", target, pathCause(err))
	}
	return s.put(source, target, own)
}

func linkCause(err error) error {
	var detail *os.LinkError
	if errors.As(err, &detail) {
		return detail.Err
	}
	return pathCause(err)
}

// discard removes what is left of the staging directory; and, if nothing was committed, directories that were made for it.
func (s *staging) discard() {
	if s.root == nil {
		return
	}
	if s.journal != nil {
		defer s.journal.file.Close() // which unlocks it
		if s.committed {
			s.removeReplaced()
		}
	}
	if !s.broken {
		s.remove(s.name)
	}
	s.root.Close()
	s.root = nil
	if s.created != "" && !s.committed {
		for at := s.target; len(at) >= len(s.created) && os.Remove(at) == nil; at = path.Dir(at) {
		}
	}
}

// remove removes a tree, also where restored modes took us the right to.
func (s *staging) remove(name string) {
	if s.root.RemoveAll(name) == nil {
		return
	}
	s.makeRemovable(name)
	_ = s.root.RemoveAll(name)
}

// makeRemovable gives us back the right to remove directories.
func (s *staging) makeRemovable(name string) {
	_ = s.root.Chmod(name, 0o700)
	directory, err := s.root.Open(name)
	if err != nil {
		return
	}
	defer directory.Close()
	for {
		names, err := directory.Readdirnames(batchOfNames)
		for _, entry := range names {
			full := path.Join(name, entry)
			if info, err := s.root.Lstat(full); err == nil && info.IsDir() {
				s.makeRemovable(full)
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}
