package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// install copies this program into a directory under both its names. An init container runs it, in an image that may have no
// shell and no cp.
func install(directory string, stderr io.Writer) int {
	if err := installInto(directory); err != nil {
		fmt.Fprintf(stderr, "hubflow-wrapper: cannot install into %s: %v. Check that the volume is mounted there and that user %d may write to it.\n", directory, err, os.Getuid())
		return exitWrapper
	}
	return 0
}

func installInto(directory string) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"hubflow-wrapper", "thub"} {
		if err := copyProgram(filepath.Join(directory, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyProgram replaces the target whole, so that one which is being executed is not disturbed.
func copyProgram(target string) error {
	own, err := openOwnProgram()
	if err != nil {
		return err
	}
	defer own.Close()
	temporary, err := os.CreateTemp(filepath.Dir(target), ".hubflow-install-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	if _, err := io.Copy(temporary, own); err != nil {
		return err
	}
	if err := temporary.Chmod(0o755); err != nil {
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), target)
}

// openOwnProgram finds the running program without /proc too, then by its name.
func openOwnProgram() (*os.File, error) {
	if path, err := os.Executable(); err == nil {
		if file, err := os.Open(path); err == nil {
			return file, nil
		}
	}
	path, err := findCommand(os.Args[0], os.Environ())
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}
