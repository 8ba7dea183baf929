// Command hubflow-wrapper stands in front of every job: it brings files, runs the component as a child, collects what it
// said, takes files away and leaves a result document. See README.md for the protocol.
//
// This file only chooses what to do; the phases of a job are in run.go, one duty per file elsewhere.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const usage = `hubflow-wrapper stands in front of a job's command.

  hubflow-wrapper run JOBFILE   run the job that the document JOBFILE describes, exit with its status
  hubflow-wrapper run-sealed KEYFILE
                                the same for the document in HUBFLOW_SEALED_JOB, encrypted with the key in KEYFILE
  hubflow-wrapper install DIR   copy this program to DIR as hubflow-wrapper and thub (for init containers)
  hubflow-wrapper hold          wait for TERM: keeps a network that containers share
  hubflow-wrapper dial PORT     does something take connections at this port? (status 0 or 1)
  hubflow-wrapper version       version, platform and the compressions that were built in
  hubflow-wrapper thub ...      the upload tool; also reached by calling this program thub

The job document and the result document are described in wrapper/README.md.
`

// Exit statuses of our own; anything else is the child's.
const (
	exitUsage         = 2
	exitTimedOut      = 124
	exitWrapper       = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

func main() {
	os.Exit(dispatch(os.Args, os.Stdout, os.Stderr))
}

func dispatch(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && filepath.Base(args[0]) == "thub" {
		return thub(args[1:], stdout, stderr)
	}
	verb, rest := "help", []string{}
	if len(args) > 1 {
		verb, rest = args[1], args[2:]
	}
	switch {
	case verb == "run" && len(rest) == 1:
		return runJob(func() (*Job, error) { return readJob(rest[0]) })
	case verb == "run-sealed" && len(rest) == 1:
		return runJob(func() (*Job, error) { return readSealedJob(rest[0]) })
	case verb == "install" && len(rest) == 1:
		return install(rest[0], stderr)
	case verb == "hold" && len(rest) == 0:
		return hold()
	case verb == "dial" && len(rest) == 1:
		return dial(rest[0], stderr)
	case verb == "version" || verb == "--version":
		fmt.Fprintln(stdout, versionText())
		return 0
	case verb == "thub":
		return thub(rest, stdout, stderr)
	case verb == "help" || verb == "-h" || verb == "--help":
		fmt.Fprint(stdout, usage)
		return 0
	}
	fmt.Fprintf(stderr, "hubflow-wrapper: cannot make sense of %q with %d further arguments.\n\n%s", verb, len(rest), usage)
	return exitUsage
}
