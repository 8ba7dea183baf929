package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
)

// Restoring is all or nothing in what the job can see: archives are unpacked into a staging directory inside the target (the
// same file system, hence renames), and only a whole one is moved into place; if a move fails, those before it are undone.

const stagingPrefix = ".hubflow-restore-"

// staging is one restore under way.
type staging struct {
	target  string
	created string   // the topmost directory that did not exist before, "" = none
	root    *os.Root // of the target
	name    string   // of the staging directory in it
	moves   []move   // done so far
	backups int
}

type move struct{ from, to string }

func openStaging(target string) (*staging, error) {
	s := &staging{target: target, name: stagingPrefix + rand.Text()}
	s.created = topmostMissing(target)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return nil, fmt.Errorf("the directory %s cannot be made: %w. Choose a path where user %d may write", target, pathCause(err), os.Getuid())
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return nil, fmt.Errorf("the directory %s cannot be opened: %w", target, pathCause(err))
	}
	s.root = root
	for _, name := range []string{s.name, s.fresh(), s.old()} {
		if err := root.Mkdir(name, 0o700); err != nil {
			s.discard()
			return nil, fmt.Errorf("user %d cannot write to %s: %w. Choose another path, or change its owner in the image", os.Getuid(), target, pathCause(err))
		}
	}
	return s, nil
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

// place is where the archive is unpacked.
func (s *staging) place() (*os.Root, error) { return s.root.OpenRoot(s.fresh()) }

// commit moves everything into place.
func (s *staging) commit() error {
	if err := s.merge(s.fresh(), "."); err != nil {
		if undoErr := s.undo(); undoErr != nil {
			return fmt.Errorf("%w; and what was moved before could not be moved back: %v", err, undoErr)
		}
		return err
	}
	return nil
}

// merge moves the entries of one directory. Where both sides have a directory it goes into them; anything else that is in the
// way is replaced.
func (s *staging) merge(from, to string) error {
	names, err := s.names(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		source, target := path.Join(from, name), path.Join(to, name)
		there, err := s.root.Lstat(target)
		if err == nil && there.IsDir() {
			if own, err := s.root.Lstat(source); err == nil && own.IsDir() {
				if err := s.merge(source, target); err != nil {
					return err
				}
				continue
			}
		}
		if err == nil {
			s.backups++
			if err := s.rename(target, fmt.Sprintf("%s/%d", s.old(), s.backups)); err != nil {
				return err
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot look at %s: %w", target, pathCause(err))
		}
		if err := s.rename(source, target); err != nil {
			return err
		}
	}
	return nil
}

func (s *staging) names(directory string) ([]string, error) {
	file, err := s.root.Open(directory)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", directory, pathCause(err))
	}
	defer file.Close()
	names, err := file.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

func (s *staging) rename(from, to string) error {
	if err := s.root.Rename(from, to); err != nil {
		return fmt.Errorf("cannot move %s into place: %w", to, linkCause(err))
	}
	s.moves = append(s.moves, move{from, to})
	return nil
}

func linkCause(err error) error {
	var detail *os.LinkError
	if errors.As(err, &detail) {
		return detail.Err
	}
	return pathCause(err)
}

func (s *staging) undo() error {
	var failed error
	for i := len(s.moves) - 1; i >= 0; i-- {
		if err := s.root.Rename(s.moves[i].to, s.moves[i].from); err != nil && failed == nil {
			failed = linkCause(err)
		}
	}
	s.moves = nil
	return failed
}

// discard removes what is left of the staging directory; and, if nothing was committed, directories that were made for it.
func (s *staging) discard() {
	if s.root == nil {
		return
	}
	s.makeRemovable(s.name)
	_ = s.root.RemoveAll(s.name)
	s.root.Close()
	if s.created != "" && len(s.moves) == 0 {
		for at := s.target; len(at) >= len(s.created) && os.Remove(at) == nil; at = path.Dir(at) {
		}
	}
}

// makeRemovable gives us back the right to remove directories whose restored modes took it.
func (s *staging) makeRemovable(name string) {
	if os.Geteuid() == 0 {
		return
	}
	_ = s.root.Chmod(name, 0o700)
	names, err := s.names(name)
	if err != nil {
		return
	}
	for _, entry := range names {
		full := path.Join(name, entry)
		if info, err := s.root.Lstat(full); err == nil && info.IsDir() {
			s.makeRemovable(full)
		}
	}
}
