// A job's program for places without a shell: what it does is its first argument. It imports little, since the tests build it
// for several loaders.
package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "hello": // says who it is, sets outputs, leaves somebody behind in another session
		print("hello from uid " + strconv.Itoa(os.Getuid()))
		print("[JOB_OUT] A = 1")
		say("B=2\n")
		_, err := syscall.ForkExec(os.Args[0], []string{os.Args[0], "sleep"}, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		check(err)
		os.Exit(5)
	case "files": // adds to a directory that may have been restored
		found, _ := os.ReadFile("files/count")
		check(os.MkdirAll("files", 0o755))
		check(os.WriteFile("files/count", append(found, 'x'), 0o644))
		say("COUNT=" + string(found) + "x\n")
	case "wait": // until it is told to end
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGTERM)
		say("") // it can be told now
		check(os.WriteFile("ready", nil, 0o644))
		<-told
		print("bye")
		os.Exit(4)
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
		check(os.WriteFile("ready", nil, 0o644))
		time.Sleep(time.Hour)
	case "sleep":
		check(os.WriteFile("ready", nil, 0o644))
		time.Sleep(time.Hour)
	case "eat": // memory, until somebody ends that
		for held := [][]byte{}; ; {
			piece := make([]byte, 8<<20)
			for i := range piece {
				piece[i] = 1
			}
			held = append(held, piece)
			print("ate " + strconv.Itoa(len(held)*8) + " MiB")
		}
	}
}

func print(line string) { _, _ = os.Stdout.WriteString(line + "\n") }

func say(output string) {
	file, err := os.OpenFile(os.Getenv("HUBFLOW_OUTPUT"), os.O_APPEND|os.O_WRONLY, 0)
	check(err)
	_, err = file.WriteString(output)
	check(err)
}

func check(err error) {
	if err != nil {
		print(err.Error())
		os.Exit(1)
	}
}
