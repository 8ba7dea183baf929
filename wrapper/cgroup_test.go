package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCgroupPlaces(t *testing.T) {
	for name, c := range map[string]struct {
		mounted []string // files that show what is mounted
		own     string
		want    []string
	}{
		"version 2":                       {[]string{"cgroup.procs"}, "0::/user.slice/a.scope\n", []string{"user.slice/a.scope v2"}},
		"version 2, namespaced":           {[]string{"cgroup.procs"}, "0::/\n", []string{". v2"}},
		"version 1":                       {nil, "9:name=systemd:/x\n6:freezer:/docker/abc\n0::/\n", []string{"freezer/docker/abc v1"}},
		"both":                            {[]string{"unified/cgroup.procs"}, "6:freezer:/f\n4:memory:/m\n0::/u\n", []string{"unified/u v2", "freezer/f v1"}},
		"both, the other order":           {[]string{"unified/cgroup.procs"}, "0::/u\n6:freezer:/f\n", []string{"unified/u v2", "freezer/f v1"}},
		"version 2 that is not mounted":   {nil, "0::/\n", nil},
		"a path with colons":              {[]string{"cgroup.procs"}, "0::/a:b:c\n", []string{"a:b:c v2"}},
		"outside of our namespace":        {[]string{"cgroup.procs"}, "0::/../../x\n", []string{"../../x v2"}},
		"no /proc":                        {[]string{"cgroup.procs"}, "", nil},
		"nonsense":                        {[]string{"cgroup.procs"}, "x\n1:2\n0::relative\n:::\n", nil},
		"version 1 without freezer":       {nil, "4:memory:/m\n5:devices:/d\n", nil},
		"freezer with others in one line": {nil, "4:cpu,freezer:/m\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, file := range c.mounted {
				os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755)
				os.WriteFile(filepath.Join(root, file), nil, 0o644)
			}
			var got []string
			for _, place := range cgroupPlaces(root, c.own) {
				relative, _ := filepath.Rel(root, place.path)
				version := map[bool]string{true: "v2", false: "v1"}[place.unified]
				got = append(got, relative+" "+version)
			}
			want := c.want
			if name == "outside of our namespace" { // joined, it stays a path; making a directory there then fails
				relative, _ := filepath.Rel(root, filepath.Join(root, "../../x"))
				want = []string{relative + " v2"}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// usableCgroups makes a group of each kind that this machine lets us have.
func usableCgroups(t *testing.T) (groups []*cgroup) {
	t.Helper()
	own, _ := os.ReadFile("/proc/self/cgroup")
	for i, place := range cgroupPlaces(cgroupRoot, string(own)) {
		group := place
		group.path = filepath.Join(place.path, fmt.Sprintf("hubflow-test-%d-%d", os.Getpid(), i))
		if os.Mkdir(group.path, 0o755) == nil {
			t.Cleanup(func() { os.Remove(group.path) })
			groups = append(groups, &group)
		}
	}
	if len(groups) == 0 {
		t.Skip("no control group can be made here")
	}
	return groups
}

// A process is in the group from its first instruction, and one that goes on forking and leaving group and session, so that no
// look at /proc ever finds it, is ended all the same.
func TestControlGroupEndsWhoCannotBeFound(t *testing.T) {
	for _, group := range usableCgroups(t) {
		t.Run(fmt.Sprintf("unified %v", group.unified), func(t *testing.T) {
			runtime.LockOSThread() // else threads that the runtime starts meanwhile are in the group, too, and freeze with it
			defer runtime.UnlockOSThread()
			dir := t.TempDir()
			os.WriteFile(filepath.Join(dir, "hop"), []byte("echo >>hops; [ $(wc -c <hops) -gt 20000 ] || setsid sh ./hop & exit"), 0o644)
			attributes := &syscall.ProcAttr{Dir: dir, Env: os.Environ(), Sys: &syscall.SysProcAttr{Setpgid: true}}
			pid, err := group.start(attributes, func() (int, error) {
				return syscall.ForkExec("/bin/sh", []string{"sh", "./hop"}, attributes)
			})
			if err != nil {
				t.Fatal(err)
			}
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(pid, &status, 0, nil)
			hops := func() int { text, _ := os.ReadFile(filepath.Join(dir, "hops")); return len(text) }
			waitFor(t, "some hops", func() bool { return hops() > 5 })
			if len(group.members()) == 0 && hops() < 20000 {
				t.Error("the group is empty while its process still hops")
			}
			group.kill()
			waitFor(t, "an empty group", func() bool { group.kill(); return len(group.members()) == 0 })
			before := hops()
			waitFor(t, "the group's removal", func() bool { group.remove(); return !exists(group.path) })
			if after := hops(); after != before {
				t.Errorf("it hopped on, from %d to %d", before, after)
			}
		})
	}
}

func TestJobRunsInAControlGroupOfItsOwn(t *testing.T) {
	usableCgroups(t)
	b := shell(t, "echo $PPID; cat /proc/self/cgroup; sleep 60 & setsid sleep 60 & exit 3").run().expect(outcomeExited, 3).expectNoWarnings()
	pid, text, _ := strings.Cut(b.stdout.String(), "\n")
	if !strings.Contains(text, "/"+cgroupPrefix+pid+"\n") {
		t.Errorf("the wrapper is %s, the job in\n%s", pid, text)
	}
	expectNoCgroups(t, pid)
}

func TestControlGroupOfACommandThatCannotStart(t *testing.T) {
	usableCgroups(t)
	b := newBench(t, "/no/such/command").start()
	pid := fmt.Sprint(b.cmd.Process.Pid)
	b.wait().expect(outcomeStartFailed, exitNotFound)
	expectNoCgroups(t, pid)
}

func expectNoCgroups(t *testing.T, pid string) {
	t.Helper()
	own, _ := os.ReadFile("/proc/self/cgroup")
	for _, place := range cgroupPlaces(cgroupRoot, string(own)) {
		if exists(filepath.Join(place.path, cgroupPrefix+pid)) {
			t.Errorf("%s was left behind", filepath.Join(place.path, cgroupPrefix+pid))
		}
	}
}

func TestGroupOfAKilledWrapperIsRemovedByTheNext(t *testing.T) {
	usableCgroups(t)
	b := shell(t, "touch ready; exec sleep 60").start()
	waitForFile(t, b.path("ready"))
	pid := fmt.Sprint(b.cmd.Process.Pid)
	b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	gone := func() bool {
		shell(t, "true").run().expect(outcomeExited, 0)
		own, _ := os.ReadFile("/proc/self/cgroup")
		for _, place := range cgroupPlaces(cgroupRoot, string(own)) {
			if exists(filepath.Join(place.path, cgroupPrefix+pid)) {
				return false
			}
		}
		return true
	}
	waitFor(t, "the removal of the stale group", gone)
}

func TestWithoutControlGroup(t *testing.T) {
	var none *cgroup
	none.kill()
	none.remove()
	if pid, err := none.start(nil, func() (int, error) { return 7, nil }); pid != 7 || err != nil {
		t.Error(pid, err)
	}
	gone := &cgroup{filepath.Join(t.TempDir(), "gone"), true}
	begin := time.Now()
	gone.kill()
	gone.remove()
	if pid, err := gone.start(&syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}, func() (int, error) { return 8, nil }); pid != 8 || err != nil || time.Since(begin) > time.Second {
		t.Error(pid, err)
	}
}

// A kernel that knows no control groups at fork is asked again without.
func TestForkThatRefusesTheGroup(t *testing.T) {
	dir := t.TempDir()
	attributes := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}
	var asked []bool
	pid, err := (&cgroup{dir, true}).start(attributes, func() (int, error) {
		asked = append(asked, attributes.Sys.UseCgroupFD)
		if attributes.Sys.UseCgroupFD {
			return 0, syscall.EINVAL
		}
		return 9, nil
	})
	if pid != 9 || err != nil || !reflect.DeepEqual(asked, []bool{true, false}) {
		t.Error(pid, err, asked)
	}
}
