package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A control group of the job's own, where the kernel and our rights allow one: then even those who left the process group, the
// session and our sight (no /proc, a fork bomb that is quicker than a look at it) are killed in one step. In most containers
// this cannot be had, and a PID 1 needs none; nothing is said then, because the other ways remain (processes.go).

const cgroupRoot = "/sys/fs/cgroup"

// cgroup is the job's group; a nil one does nothing.
type cgroup struct {
	path    string
	unified bool // version 2; else the freezer of version 1
}

const cgroupPrefix = "hubflow-job-"

// newCgroup makes a group below our own, nil where that cannot be.
func newCgroup() *cgroup {
	if os.Getpid() == 1 {
		return nil
	}
	own, _ := os.ReadFile("/proc/self/cgroup")
	for _, place := range cgroupPlaces(cgroupRoot, string(own)) {
		endStaleCgroups(place)
		place.path = filepath.Join(place.path, cgroupPrefix+strconv.Itoa(os.Getpid()))
		if os.Mkdir(place.path, 0o755) == nil {
			return &place
		}
	}
	return nil
}

// cgroupPlaces lists the directories of our own groups below root, best first, from the text of /proc/self/cgroup.
func cgroupPlaces(root, own string) (places []cgroup) {
	for _, line := range strings.Split(own, "\n") {
		fields := strings.SplitN(line, ":", 3) // number, controllers, path
		if len(fields) != 3 || !filepath.IsAbs(fields[2]) {
			continue
		}
		switch fields[1] {
		case "": // version 2: mounted at the root, or beside those of version 1
			for _, mount := range []string{root, filepath.Join(root, "unified")} {
				if exists(filepath.Join(mount, "cgroup.procs")) {
					places = append([]cgroup{{filepath.Join(mount, fields[2]), true}}, places...)
				}
			}
		case "freezer":
			places = append(places, cgroup{filepath.Join(root, "freezer", fields[2]), false})
		}
	}
	return places
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// endStaleCgroups ends what wrappers that were killed have left: their jobs must not run beside the next try.
func endStaleCgroups(parent cgroup) {
	stale, _ := filepath.Glob(filepath.Join(parent.path, cgroupPrefix+"*"))
	for _, path := range stale {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), cgroupPrefix))
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			left := cgroup{path, parent.unified}
			left.kill()
			left.remove()
		}
	}
}

// start calls fork so that the new process is in the group from its first instruction. fork gets the attributes to use; it is
// called again without the group if the kernel does not take it.
func (g *cgroup) start(attributes *syscall.ProcAttr, fork func() (int, error)) (int, error) {
	if g == nil {
		return fork()
	}
	if !g.unified {
		// A thread goes there and comes back: what it forks meanwhile belongs there.
		if os.WriteFile(filepath.Join(g.path, "tasks"), []byte("0"), 0) != nil {
			return fork()
		}
		defer os.WriteFile(filepath.Join(filepath.Dir(g.path), "tasks"), []byte("0"), 0)
		return fork()
	}
	directory, err := os.Open(g.path)
	if err != nil {
		return fork()
	}
	defer directory.Close()
	attributes.Sys.UseCgroupFD, attributes.Sys.CgroupFD = true, int(directory.Fd())
	pid, err := fork()
	if err != nil {
		attributes.Sys.UseCgroupFD = false
		return fork()
	}
	return pid, nil
}

// kill ends all that is in the group, at once.
func (g *cgroup) kill() {
	if g == nil {
		return
	}
	if g.unified && os.WriteFile(filepath.Join(g.path, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	if g.unified { // before Linux 5.14
		_ = os.WriteFile(filepath.Join(g.path, "cgroup.freeze"), []byte("1"), 0)
		defer os.WriteFile(filepath.Join(g.path, "cgroup.freeze"), []byte("0"), 0)
	} else {
		state := filepath.Join(g.path, "freezer.state")
		_ = os.WriteFile(state, []byte("FROZEN"), 0)
		defer os.WriteFile(state, []byte("THAWED"), 0)
	}
	for _, pid := range g.members() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (g *cgroup) members() (pids []int) {
	text, _ := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	for _, line := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(line); err == nil && pid > 0 { // 0: one of another PID namespace
			pids = append(pids, pid)
		}
	}
	return pids
}

// remove gives the group back. The kernel takes a moment to forget the dead.
func (g *cgroup) remove() {
	if g == nil {
		return
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if err := os.Remove(g.path); !errors.Is(err, syscall.EBUSY) || time.Since(begin) > 100*time.Millisecond {
			return
		}
	}
}
