package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestChildEnvironment(t *testing.T) {
	own := []string{"PATH=/bin", "HOME=/root", "PWD=/x", "OLDPWD=/y", "TWICE=1", "TWICE=2", "EQUALS=a=b", "EMPTY=", "=odd", "noequals", "HUBFLOW_OUTPUT=/old"}
	for name, c := range map[string]struct {
		job  Job
		out  string
		want []string
	}{
		"nothing asked":      {Job{}, "", []string{"EMPTY=", "EQUALS=a=b", "HOME=/root", "HUBFLOW_OUTPUT=/old", "OLDPWD=/y", "PATH=/bin", "PWD=/x", "TWICE=2"}},
		"another directory":  {Job{Workdir: "/w"}, "", []string{"EMPTY=", "EQUALS=a=b", "HOME=/root", "HUBFLOW_OUTPUT=/old", "PATH=/bin", "TWICE=2"}},
		"laid over":          {Job{Env: map[string]string{"HOME": "/h", "NEW": "1"}}, "", []string{"EMPTY=", "EQUALS=a=b", "HOME=/h", "HUBFLOW_OUTPUT=/old", "NEW=1", "OLDPWD=/y", "PATH=/bin", "PWD=/x", "TWICE=2"}},
		"taken away":         {Job{UnsetEnv: []string{"HOME", "TWICE", "NEVER", "EMPTY"}}, "", []string{"EQUALS=a=b", "HUBFLOW_OUTPUT=/old", "OLDPWD=/y", "PATH=/bin", "PWD=/x"}},
		"given and taken":    {Job{Env: map[string]string{"NEW": "1"}, UnsetEnv: []string{"NEW", "PWD", "OLDPWD", "EQUALS"}}, "", []string{"EMPTY=", "HOME=/root", "HUBFLOW_OUTPUT=/old", "PATH=/bin", "TWICE=2"}},
		"the output file":    {Job{UnsetEnv: []string{"HUBFLOW_OUTPUT", "EMPTY", "EQUALS", "HOME", "PWD", "OLDPWD", "TWICE"}}, "/o", []string{"HUBFLOW_OUTPUT=/o", "PATH=/bin"}},
		"a PWD of the job's": {Job{Workdir: "/w", Env: map[string]string{"PWD": "/mine"}, UnsetEnv: []string{"EMPTY", "EQUALS", "HOME", "TWICE", "HUBFLOW_OUTPUT"}}, "", []string{"PATH=/bin", "PWD=/mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := childEnvironment(own, &c.job, c.out)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v\n got %q\nwant %q", err, got, c.want)
			}
		})
	}
}

func TestFindCommand(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/tool": 0o755, "b/tool": 0o755, "b/other": 0o755, "a/plain": 0o644, "b/plain": 0o755, "a/only-plain": 0o644} {
		os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
		os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode)
	}
	os.MkdirAll(filepath.Join(dir, "a/directory"), 0o755)
	os.Symlink(filepath.Join(dir, "b/other"), filepath.Join(dir, "a/linked"))
	os.Symlink("nowhere", filepath.Join(dir, "a/dangling"))
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	t.Chdir(a)
	for name, c := range map[string]struct {
		command, path, want string
		status              int
	}{
		"the first wins":              {"tool", a + ":" + b, a + "/tool", 0},
		"the other order":             {"tool", b + ":" + a, b + "/tool", 0},
		"only in the second":          {"other", a + ":" + b, b + "/other", 0},
		"not executable in the first": {"plain", a + ":" + b, b + "/plain", 0},
		"nowhere executable":          {"only-plain", a + ":" + b, "", exitNotExecutable},
		"a directory of that name":    {"directory", a + ":" + b, "", exitNotFound},
		"through a link":              {"linked", a, a + "/linked", 0},
		"through a dead link":         {"dangling", a, "", exitNotFound},
		"unknown":                     {"none", a + ":" + b, "", exitNotFound},
		"empty PATH":                  {"tool", "", "./tool", 0},
		"an empty piece":              {"tool", "/nowhere::/nothing", "./tool", 0},
		"a dot":                       {"tool", ".", "./tool", 0},
		"with a slash":                {"./none", a, "./none", 0},
		"absolute":                    {"/no/such", a, "/no/such", 0},
		"relative piece":              {"tool", "../b", "../b/tool", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := findCommand(c.command, []string{"HOME=/", "PATH=" + c.path})
			var problem *startError
			if c.status == 0 && (err != nil || got != c.want) || c.status != 0 && (!errors.As(err, &problem) || problem.status != c.status) {
				t.Errorf("%q, %v", got, err)
			}
			if problem != nil && (!strings.Contains(problem.message, c.command) || len(problem.message) < 60) {
				t.Errorf("says too little: %s", problem.message)
			}
		})
	}
	if got, err := findCommand("sh", []string{"HOME=/"}); err != nil || !strings.HasSuffix(got, "/sh") {
		t.Errorf("without PATH: %q %v", got, err)
	}
}

// Each answer of the kernel gets a reason and a remedy.
func TestExplainStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		os.WriteFile(path, []byte(content), mode)
		return path
	}
	for name, c := range map[string]struct {
		path   string
		err    error
		status int
		says   string
	}{
		"no file":                {filepath.Join(dir, "none"), syscall.ENOENT, exitNotFound, "no such file"},
		"below a file":           {write("file", "x", 0o644) + "/x", syscall.ENOTDIR, exitNotFound, "no such file"},
		"no interpreter":         {write("script", "#!/no/such/python3 -u\n", 0o755), syscall.ENOENT, exitNotExecutable, `"/no/such/python3 -u"`},
		"env without program":    {write("env", "#!/usr/bin/env nodejs\n", 0o755), syscall.ENOENT, exitNotExecutable, "env nodejs"},
		"spaces after #!":        {write("spaces", "#!  /no/such\n", 0o755), syscall.ENOENT, exitNotExecutable, `"/no/such"`},
		"CR LF":                  {write("dos", "#!/bin/sh\r\n", 0o755), syscall.ENOENT, exitNotExecutable, "dos2unix"},
		"no loader":              {write("dynamic", string(elfOf(binary.LittleEndian, 2, 62, "/lib/ld-musl-x86_64.so.1")), 0o755), syscall.ENOENT, exitNotExecutable, "/lib/ld-musl-x86_64.so.1"},
		"something else missing": {write("static", string(elfOf(binary.LittleEndian, 2, 62, "")), 0o755), syscall.ENOENT, exitNotExecutable, "a file that it needs"},
		"a directory":            {dir, syscall.EACCES, exitNotExecutable, "it is a directory"},
		"no x":                   {write("no-x", "#!/bin/sh\n", 0o644), syscall.EACCES, exitNotExecutable, "chmod +x"},
		"noexec":                 {write("x", "#!/bin/sh\n", 0o755), syscall.EACCES, exitNotExecutable, "noexec"},
		"not permitted":          {write("y", "#!/bin/sh\n", 0o755), syscall.EPERM, exitNotExecutable, "permission denied"},
		"an arm program":         {write("arm", string(elfOf(binary.LittleEndian, 1, 40, "")), 0o755), syscall.ENOEXEC, exitNotExecutable, "built for arm"},
		"an s390x program":       {write("s390x", string(elfOf(binary.BigEndian, 2, 22, "")), 0o755), syscall.ENOEXEC, exitNotExecutable, "built for s390x"},
		"another program":        {write("odd", string(elfOf(binary.LittleEndian, 2, 9999, "")), 0o755), syscall.ENOEXEC, exitNotExecutable, "ELF number 9999"},
		"no program":             {write("text", "echo hello\n", 0o755), syscall.ENOEXEC, exitNotExecutable, "#!/bin/sh"},
		"empty":                  {write("empty", "", 0o755), syscall.ENOEXEC, exitNotExecutable, "empty"},
		"too long":               {"/bin/true", syscall.E2BIG, exitNotExecutable, "too large"},
		"no process left":        {"/bin/true", syscall.EAGAIN, exitNotExecutable, "no process or memory"},
		"no memory left":         {"/bin/true", syscall.ENOMEM, exitNotExecutable, "no process or memory"},
		"links":                  {"/bin/true", syscall.ELOOP, exitNotExecutable, "symbolic links"},
		"being written":          {"/bin/true", syscall.ETXTBSY, exitNotExecutable, "still being written"},
		"anything else":          {"/bin/true", syscall.EIO, exitNotExecutable, "input/output error"},
		"no number at all":       {"/bin/true", errors.New("why ever"), exitNotExecutable, "why ever"},
	} {
		t.Run(name, func(t *testing.T) {
			var problem *startError
			if !errors.As(explainStart(c.path, c.err), &problem) || problem.status != c.status || !strings.Contains(problem.message, c.says) || !strings.Contains(problem.message, "could not be started") {
				t.Errorf("%+v", problem)
			}
		})
	}
}

// elfOf makes the headers of a program: class 1 = 32 bit, 2 = 64 bit.
func elfOf(order binary.ByteOrder, class byte, machine uint16, loader string) []byte {
	data := make([]byte, 64+2*56)
	copy(data, "\x7fELF")
	data[4], data[5] = class, 1
	if order == binary.BigEndian {
		data[5] = 2
	}
	order.PutUint16(data[16:], 2)
	order.PutUint16(data[18:], machine)
	if class == 2 {
		order.PutUint64(data[32:], 64)
		order.PutUint16(data[54:], 56)
		order.PutUint16(data[56:], 2)
		order.PutUint32(data[64:], 1) // PT_LOAD
		if loader != "" {
			order.PutUint32(data[64+56:], 3) // PT_INTERP
			order.PutUint64(data[64+56+8:], uint64(len(data)))
			order.PutUint64(data[64+56+32:], uint64(len(loader)+1))
			data = append(append(data, loader...), 0)
		}
	}
	return data
}

func TestProgramHeaders(t *testing.T) {
	dir := t.TempDir()
	own, _ := os.Executable()
	for name, c := range map[string]struct {
		data []byte
		want programHeader
		ok   bool
	}{
		"64 bit, dynamic":            {elfOf(binary.LittleEndian, 2, 62, "/lib64/ld-linux-x86-64.so.2"), programHeader{"amd64", "/lib64/ld-linux-x86-64.so.2"}, true},
		"64 bit, static":             {elfOf(binary.LittleEndian, 2, 183, ""), programHeader{"arm64", ""}, true},
		"big endian":                 {elfOf(binary.BigEndian, 2, 21, "/lib64/ld64.so.1"), programHeader{"ppc64", "/lib64/ld64.so.1"}, true},
		"32 bit":                     {elfOf(binary.LittleEndian, 1, 3, ""), programHeader{"386", ""}, true},
		"riscv":                      {elfOf(binary.LittleEndian, 2, 243, ""), programHeader{"riscv64", ""}, true},
		"cut in the header":          {elfOf(binary.LittleEndian, 2, 62, "/x")[:40], programHeader{}, false},
		"cut in the program headers": {elfOf(binary.LittleEndian, 2, 62, "/x")[:100], programHeader{"amd64", ""}, true},
		"cut in the loader's name":   {elfOf(binary.LittleEndian, 2, 62, "/a/long/name")[:64+112+4], programHeader{"amd64", ""}, true},
		"a script":                   {[]byte("#!/bin/sh\n" + strings.Repeat(" ", 100)), programHeader{}, false},
		"nothing":                    {nil, programHeader{}, false},
		"a header that points nowhere": {func() []byte {
			d := elfOf(binary.LittleEndian, 2, 62, "")
			binary.LittleEndian.PutUint64(d[32:], 1<<62)
			return d
		}(), programHeader{"amd64", ""}, true},
		"many program headers": {func() []byte {
			d := elfOf(binary.LittleEndian, 2, 62, "")
			binary.LittleEndian.PutUint16(d[56:], 65535)
			return d
		}(), programHeader{"amd64", ""}, true},
		"a loader of 4 GiB": {func() []byte {
			d := elfOf(binary.LittleEndian, 2, 62, "/x")
			binary.LittleEndian.PutUint64(d[64+56+32:], 1<<32)
			return d
		}(), programHeader{"amd64", ""}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "program")
			os.WriteFile(path, c.data, 0o644)
			if got, ok := readProgramHeader(path); got != c.want || ok != c.ok {
				t.Errorf("%+v %v", got, ok)
			}
		})
	}
	if header, ok := readProgramHeader(own); !ok || header.machine == "" {
		t.Errorf("of this very program: %+v %v", header, ok)
	}
	if _, ok := readProgramHeader(filepath.Join(dir, "none")); ok {
		t.Error("of a file that is not there")
	}
}

func TestShebang(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script")
	for text, want := range map[string]string{
		"#!/bin/sh\necho": "/bin/sh", "#! /usr/bin/env -S node --x\n": "/usr/bin/env -S node --x", "#!/bin/sh\r\n": "/bin/sh\r", "#!/no/newline": "/no/newline", "#!\n": "", "#!" + strings.Repeat("x", 400): strings.Repeat("x", 254),
	} {
		os.WriteFile(path, []byte(text), 0o755)
		if got, ok := shebang(path); got != want || !ok {
			t.Errorf("%.40q: %q %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "#", "echo #!/bin/sh\n", " #!/bin/sh\n", "\ufeff#!/bin/sh\n"} {
		os.WriteFile(path, []byte(text), 0o755)
		if got, ok := shebang(path); ok {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Every signal that ends a process is told as a shell would tell it.
func TestExitStatusOfEverySignal(t *testing.T) {
	harmless := map[int]bool{17: true, 18: true, 19: true, 20: true, 21: true, 22: true, 23: true, 28: true} // CHLD CONT STOP TSTP TTIN TTOU URG WINCH
	for number := 1; number <= 31; number++ {
		if harmless[number] {
			continue
		}
		t.Run(signalName(syscall.Signal(number)), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, "sh", "-c", "ulimit -c 0; kill -$0 $$; sleep 5", strconv.Itoa(number)).run().expect(outcomeSignaled, 128+number)
			if b.result.Signal != signalName(syscall.Signal(number)) || *b.result.ExitCode != 128+number {
				t.Errorf("%s", b.raw)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	for text, want := range map[string]process{
		"1 (init) S 0 1 1 0 -1": {parent: 0, group: 1, state: 'S'}, "77 (a b) R 5 70 1": {parent: 5, group: 70, state: 'R'}, "77 (evil) Z 9 9) T 5 70 1": {parent: 5, group: 70, state: 'T'},
		"77 ()) S 5 70 1": {parent: 5, group: 70, state: 'S'}, "77 (\n) S 5 70 1": {parent: 5, group: 70, state: 'S'},
	} {
		if got, ok := parseStat([]byte(text)); !ok || got != want {
			t.Errorf("%q: %+v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "1", "1 (x)", "1 (x) S", "1 (x) S a b", "1 (x) S 1"} {
		if got, ok := parseStat([]byte(text)); ok {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
