package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"
)

// Moves that are no renames: into what is mounted inside the target, and of directories that an overlay file system has from a lower
// layer. They are made of the same noted steps, so that they are undone like any other.

// replace moves away what is in the way: into the staging directory, else beside itself, else piece by piece.
func (s *staging) replace(name string, there os.FileInfo) error {
	s.count++
	err := s.rename(name, fmt.Sprintf("%s/%d", s.old(), s.count), there)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	beside := s.beside(name)
	err = s.rename(name, beside, there)
	if !errors.Is(err, syscall.EXDEV) || !there.IsDir() {
		return err
	}
	return s.moveTree(name, beside)
}

func (s *staging) moveTree(from, to string) error {
	if err := s.mkdir(to); err != nil {
		return err
	}
	if _, err := s.unlock(from); err != nil {
		return err
	}
	err := s.each(from, func(name string) error {
		source, target := path.Join(from, name), path.Join(to, name)
		info, err := s.root.Lstat(source)
		if err != nil {
			return fmt.Errorf("cannot look at %s: %w", source, pathCause(err))
		}
		err = s.rename(source, target, info)
		if errors.Is(err, syscall.EXDEV) && info.IsDir() {
			return s.moveTree(source, target)
		}
		return err
	})
	if err != nil {
		return err
	}
	return s.rmdir(from)
}

// put moves what was unpacked to where nothing is, or copies it there.
func (s *staging) put(source, target string, own os.FileInfo) error {
	err := s.rename(source, target, own)
	switch {
	case !errors.Is(err, syscall.EXDEV):
		return err
	case own.IsDir():
		return s.putDirectory(source, target, own)
	}
	temporary := s.beside(target)
	if err := s.note(noteTemp, temporary); err != nil {
		return err
	}
	if err := s.copy(source, temporary, own); err != nil {
		return fmt.Errorf("cannot copy %s into place: %w", target, linkCause(err))
	}
	if err := s.rename(temporary, target, own); err != nil {
		return err
	}
	if id, names := inodeOf(own); names > 1 {
		s.copied[id] = target
	}
	return s.root.Remove(source) // the journal knows the copy
}

func (s *staging) putDirectory(source, target string, own os.FileInfo) error {
	if err := s.mkdir(target); err != nil {
		return err
	}
	if err := s.merge(source, target); err != nil {
		return err
	}
	made, err := s.root.Lstat(target)
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", target, pathCause(err))
	}
	directory, err := s.root.Open(target)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", target, pathCause(err))
	}
	defer directory.Close()
	giveAway(directory, own)
	if err := s.chmod(target, made, own.Mode()); err != nil {
		return fmt.Errorf("cannot set the mode of %s: %w", target, pathCause(err))
	}
	if err := setTime(int(directory.Fd()), "", own.ModTime()); err != nil {
		return err
	}
	return s.rmdir(source)
}

// copy makes a file or link again, as another name of one that was copied before where it is one.
func (s *staging) copy(source, target string, own os.FileInfo) error {
	id, _ := inodeOf(own) // of its names this may be the last one left
	if first := s.copied[id]; first != "" && s.root.Link(first, target) == nil {
		return nil
	}
	if own.Mode()&os.ModeSymlink != 0 {
		return s.copyLink(source, target, own)
	}
	from, err := s.root.Open(source)
	if errors.Is(err, os.ErrPermission) { // restored as nobody may read it
		if err = s.root.Chmod(source, 0o600); err == nil {
			from, err = s.root.Open(source)
		}
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := s.root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := copyWithHoles(to, from, own); err != nil {
		return err
	}
	giveAway(to, own)
	if err := to.Chmod(own.Mode()); err != nil {
		return err
	}
	return setTime(int(to.Fd()), "", own.ModTime())
}

func copyWithHoles(to, from *os.File, own os.FileInfo) error {
	status, known := own.Sys().(*syscall.Stat_t)
	holes := known && status.Blocks*512 < own.Size()
	buffer := make([]byte, len(zeroBlock))
	for at := int64(0); ; {
		n, err := io.ReadFull(from, buffer)
		if n > 0 && !(holes && allZero(buffer[:n])) {
			if _, err := to.WriteAt(buffer[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return to.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}

func (s *staging) copyLink(source, target string, own os.FileInfo) error {
	to, err := s.root.Readlink(source)
	if err != nil {
		return err
	}
	if err := s.root.Symlink(to, target); err != nil {
		return err
	}
	if uid, gid := ownerOf(own); os.Geteuid() == 0 {
		_ = s.root.Lchown(target, uid, gid)
	}
	directory, err := s.root.Open(path.Dir(target))
	if err != nil {
		return err
	}
	defer directory.Close()
	return setTime(int(directory.Fd()), path.Base(target), own.ModTime())
}

// giveAway gives a copy the owner of what it is a copy of, where we may.
func giveAway(file *os.File, own os.FileInfo) {
	if uid, gid := ownerOf(own); os.Geteuid() == 0 {
		_ = file.Chown(uid, gid)
	}
}

func inodeOf(info os.FileInfo) (id inode, names uint64) {
	if status, ok := info.Sys().(*syscall.Stat_t); ok {
		return inode{uint64(status.Dev), status.Ino}, uint64(status.Nlink)
	}
	return inode{}, 0
}
