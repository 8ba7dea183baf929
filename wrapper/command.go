package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Finding the command, and saying why it cannot be started in the words of whoever can mend it.

// startError is a command that could not be started: nothing of the user's code ran.
type startError struct {
	status  int // exit status as a shell would say it: 127 not found, 126 not executable
	message string
}

func (e *startError) Error() string { return e.message }

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// childEnvironment lays the document's variables over our own (the image's) and takes away the unset ones.
func childEnvironment(own []string, job *Job, outputPath string) ([]string, error) {
	merged := make(map[string]string, len(own)+len(job.Env)+1)
	for _, entry := range own {
		if key, value, ok := strings.Cut(entry, "="); ok && key != "" {
			merged[key] = value
		}
	}
	if job.Workdir != "" { // ours would lie about where the child is
		delete(merged, "PWD")
		delete(merged, "OLDPWD")
	}
	var impossible []string
	for _, key := range sortedKeys(job.Env) {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.IndexByte(job.Env[key], 0) >= 0 {
			impossible = append(impossible, fmt.Sprintf("%q", key))
		}
		merged[key] = job.Env[key]
	}
	if len(impossible) > 0 {
		return nil, &startError{exitNotExecutable, fmt.Sprintf("these variables cannot be given to a process: %s. A name is empty or has '=', or it holds a NUL byte. Encode binary values, for example as base64", strings.Join(impossible, ", "))}
	}
	for _, key := range job.UnsetEnv {
		delete(merged, key)
	}
	if outputPath != "" {
		merged["HUBFLOW_OUTPUT"] = outputPath
	}
	env := make([]string, 0, len(merged))
	for _, key := range sortedKeys(merged) {
		env = append(env, key+"="+merged[key])
	}
	return env, nil
}

// findCommand resolves a command as execvp would, by the child's own PATH.
func findCommand(name string, env []string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return name, nil // executed as it is; explainStart tells what is wrong with it
	}
	path := defaultPath
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			path = value
		}
	}
	notExecutable := ""
	for _, directory := range strings.Split(path, ":") {
		candidate := filepath.Join(directory, name)
		if directory == "" || directory == "." {
			candidate = "./" + name
		}
		info, err := os.Stat(candidate)
		if err != nil || info.IsDir() {
			continue
		}
		if syscall.Access(candidate, 1) == nil {
			return candidate, nil
		}
		notExecutable = candidate
	}
	if notExecutable != "" {
		return "", &startError{exitNotExecutable, fmt.Sprintf("the command %q was found as %s, but this user may not execute it: make it executable (chmod +x) in the image", name, notExecutable)}
	}
	if strings.ContainsRune(name, ' ') {
		return "", &startError{exitNotFound, fmt.Sprintf("the command %q was not found: it is one word with spaces in it. Give command and arguments as separate items, or run it by a shell: sh -c", name)}
	}
	return "", &startError{exitNotFound, fmt.Sprintf("the command %q was not found on the PATH (%s): install it in the image, give its full path, or name another image", name, path)}
}

// explainStart turns the kernel's answer into a reason and a way to mend it.
func explainStart(path string, err error) error {
	var number syscall.Errno
	if !errors.As(err, &number) {
		return &startError{exitNotExecutable, fmt.Sprintf("%s could not be started: %v", path, err)}
	}
	problem := func(status int, format string, args ...any) error {
		return &startError{status, fmt.Sprintf("%s could not be started: ", path) + fmt.Sprintf(format, args...)}
	}
	info, statErr := os.Stat(path)
	switch number {
	case syscall.ENOENT, syscall.ENOTDIR:
		if statErr != nil {
			return problem(exitNotFound, "there is no such file. Check the path in the workflow's command, and whether the image or an artifact brings it")
		}
		return problem(exitNotExecutable, "%s", missingInterpreter(path))
	case syscall.EACCES, syscall.EPERM:
		if statErr == nil && info.IsDir() {
			return problem(exitNotExecutable, "it is a directory. Name the program in it")
		}
		if statErr == nil && info.Mode()&0o111 == 0 {
			return problem(exitNotExecutable, "it is not executable (mode %v). Run chmod +x on it in the image, or start it by its interpreter, for example: sh %s", info.Mode().Perm(), path)
		}
		return problem(exitNotExecutable, "permission denied for user %d. Check the modes of the file, of its directories and of its interpreter, and that it is not on a noexec mount", os.Getuid())
	case syscall.ENOEXEC:
		return problem(exitNotExecutable, "%s", wrongFormat(path))
	case syscall.EINVAL:
		return problem(exitNotExecutable, "an argument holds a NUL byte, which no process can be given. Encode binary values, for example as base64")
	case syscall.E2BIG:
		return problem(exitNotExecutable, "arguments and environment are too large for the kernel (one string may have 128 KiB). Hand large inputs over as a file or an artifact")
	case syscall.EAGAIN, syscall.ENOMEM:
		return problem(exitNotExecutable, "no process or memory is left here (%v). Raise the limits of the job, or try again later", number)
	case syscall.ELOOP:
		return problem(exitNotExecutable, "its path has too many symbolic links. Check the links in the image")
	case syscall.ETXTBSY:
		return problem(exitNotExecutable, "it is still being written by another process. End what writes it before it is run")
	}
	return problem(exitNotExecutable, "%v", number)
}

// missingInterpreter explains a file that is there and yet "not found".
func missingInterpreter(path string) string {
	if line, ok := shebang(path); ok {
		if strings.HasSuffix(line, "\r") {
			return fmt.Sprintf("its first line ends in CR LF, so that it names %q with a carriage return. Save the script with Unix line ends (dos2unix; for git: *.sh text eol=lf in .gitattributes)", strings.TrimRight(line, "\r"))
		}
		return fmt.Sprintf("its interpreter %q is not in the image. Install it, or change the first line of the script", line)
	}
	if header, ok := readProgramHeader(path); ok && header.loader != "" {
		return fmt.Sprintf("its loader %s is not in the image: it was built for another C library (glibc or musl). Use an image of the same kind, or build it statically", header.loader)
	}
	return "a file that it needs to start is not in the image"
}

// wrongFormat explains a file that the kernel does not take for a program.
func wrongFormat(path string) string {
	if header, ok := readProgramHeader(path); ok {
		return fmt.Sprintf("it is built for %s, this machine is %s. Use an image for this platform, or one for several (docker buildx build --platform)", header.machine, runtime.GOARCH)
	}
	head := make([]byte, 8)
	n := 0
	if file, err := os.Open(path); err == nil {
		n, _ = file.Read(head)
		file.Close()
	}
	switch head = head[:n]; {
	case n == 0:
		return "the file is empty. Check the step that should have written it"
	case bytes.HasPrefix(head, []byte("MZ")):
		return "it is a program for Windows. Use one that is built for Linux"
	case bytes.HasPrefix(head, []byte{0xcf, 0xfa, 0xed, 0xfe}), bytes.HasPrefix(head, []byte{0xca, 0xfe, 0xba, 0xbe}):
		return "it is a program for macOS (or a Java class). Use one that is built for Linux"
	case bytes.HasPrefix(head, []byte("\xef\xbb\xbf")):
		return "it begins with a byte order mark, so that its first line does not count. Save the script as UTF-8 without one"
	}
	return fmt.Sprintf("it is neither a program nor a script with a first line like #!/bin/sh. Add that line, or start it as: sh %s", path)
}

// shebang returns the interpreter named on the first line.
func shebang(path string) (string, bool) {
	file, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer file.Close()
	head := make([]byte, 256)
	n, _ := file.Read(head)
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("#!"))
	return strings.TrimLeft(string(rest), " \t"), ok
}
