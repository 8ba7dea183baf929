package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is saved comes back, whatever it is called and whatever it is; what could not come back is not saved.

// thereAndBack saves the directory d of a job and restores it in another one, which it returns.
func thereAndBack(t *testing.T, from *bench) *bench {
	t.Helper()
	s := newStore(t)
	from.set("save", []any{with(save(s, "artifact", "a", "d"), "index_upload", map[string]any{"put_url": s.url("i")})}).run().expect(outcomeExited, 0)
	to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0).expectNoWarnings()
	return to
}

func TestNamesThereAndBack(t *testing.T) {
	names := []string{
		"plain", "with space", " leading", "trailing ", "new\nline", "\n", "tab\there", "carriage\rreturn", "quote's", `double"quote`, `back\slash`, "star*", "question?", "[bracket]",
		"-dash", "--", "...", "..x", ".hidden", "~tilde", "$HOME", "`date`", "$(id)", "semi;colon", "amp&ersand", "pipe|", "a:b", "a=b", "%41", "#hash", "con", "nul.txt", "\x01control", "\x7f",
		"\u00e9 composed", "e\u0301 decomposed", "\u6784\u5efa", "\U0001f680 rocket", "\u202eright to left", "\ufeffbom", "zero\u200bwidth", "\xff\xfe not unicode", "latin1-\xe9",
		strings.Repeat("n", 255), strings.Repeat("\u6784", 85), "PaxHeaders.0", "GNUSparseFile.0", "pax_global_header", "././@LongLink", "1 path=evil",
	}
	b := newBench(t, "true")
	os.Mkdir(b.path("d"), 0o755)
	for i, name := range names {
		name = strings.ReplaceAll(name, "/", "_")
		if err := os.WriteFile(b.path("d/"+name), []byte(fmt.Sprint("content ", i)), 0o644); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if i%3 == 0 && len(name) < 250 {
			if err := os.Mkdir(b.path("d/"+name+".dir"), 0o755); err != nil {
				t.Fatal(err)
			}
			os.Symlink("../"+name, b.path("d/"+name+".dir/link"))
			os.Link(b.path("d/"+name), b.path("d/"+name+".hard"))
		}
	}
	deep := b.path("d")
	for range 100 {
		deep = filepath.Join(deep, "deeper")
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(deep, strings.Repeat("x", 200)), []byte("far down"), 0o644)
	compareTrees(t, b.path("d"), thereAndBack(t, b).path("d"))
}

func TestAttributesThereAndBack(t *testing.T) {
	b := newBench(t, "true")
	os.Mkdir(b.path("d"), 0o755)
	for _, mode := range []os.FileMode{0, 0o1, 0o111, 0o222, 0o400, 0o444, 0o600, 0o644, 0o755, 0o777} {
		if os.Getuid() != 0 && mode&0o400 == 0 {
			continue // only root reads these
		}
		for _, kind := range []string{"file", "dir"} {
			path := b.path(fmt.Sprintf("d/%s-%04o", kind, mode))
			if kind == "dir" {
				os.Mkdir(path, 0o755)
				os.WriteFile(path+"/inner", []byte("x"), 0o600)
			} else {
				os.WriteFile(path, []byte("x"), 0o600)
			}
			os.Chmod(path, mode)
		}
	}
	for i, at := range []time.Time{time.Unix(0, 0), time.Unix(0, 1), time.Unix(1, 999999999), time.Unix(-1, 0), time.Unix(-1e9, 500), time.Unix(1<<31, 0), time.Unix(1<<33+5, 123456789), time.Unix(4e9, 0), time.Now()} {
		path := b.path(fmt.Sprintf("d/time-%d", i))
		os.WriteFile(path, nil, 0o644)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Logf("%v: %v", at, err) // some file systems cannot
		}
		os.Mkdir(path+"-dir", 0o755)
		os.WriteFile(path+"-dir/later", nil, 0o644)
		_ = os.Chtimes(path+"-dir", at, at)
	}
	if os.Getuid() == 0 {
		for i, owner := range []int{1, 1000, 65534, 2097151, 2097152, 1 << 30, 1<<31 - 5} {
			path := b.path(fmt.Sprintf("d/owner-%d", i))
			os.WriteFile(path, nil, 0o640)
			if err := os.Lchown(path, owner, owner+1); err != nil {
				t.Fatal(err)
			}
			os.Symlink("nowhere", path+"-link")
			os.Lchown(path+"-link", owner, owner)
		}
	}
	compareTrees(t, b.path("d"), thereAndBack(t, b).path("d"))
	makeRemovableForTests(b.path("d"))
}

func makeRemovableForTests(top string) {
	_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if entry != nil && entry.IsDir() {
			os.Chmod(path, 0o755)
		}
		return nil
	})
}

// Trees that nobody thought of: whatever chance makes can be saved, is restored as it was, or is told by name.
func TestRandomTreesThereAndBack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HUBFLOW_TEST_SEED"); text != "" {
		fmt.Sscan(text, &seed)
	}
	for round := range uint64(12) {
		t.Run(fmt.Sprint(seed+round), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, "true")
			makeRandomTree(t, b.path("d"), rand.New(rand.NewPCG(seed, round)))
			to := thereAndBack(t, b)
			for _, warning := range b.result.Warnings { // what was left out on purpose: take it out for the comparison
				if _, rest, found := strings.Cut(warning, `the link "`); found {
					name, _, _ := strings.Cut(rest, `"`)
					if err := os.Remove(b.path(name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			compareTreesButForDirectoryTimes(t, b.path("d"), to.path("d"))
			if t.Failed() {
				t.Logf("again with HUBFLOW_TEST_SEED=%d", seed)
			}
		})
	}
}

func makeRandomTree(t *testing.T, top string, random *rand.Rand) {
	t.Helper()
	directories, files := []string{top}, []string{}
	os.Mkdir(top, 0o755)
	name := func() string {
		parts := []string{"a", "B", "lib", "x y", "\u00fc", ".git", "node_modules", "1", "-"}
		return fmt.Sprintf("%s%d", parts[random.IntN(len(parts))], random.IntN(30))
	}
	for range 150 {
		path := filepath.Join(directories[random.IntN(len(directories))], name())
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		switch random.IntN(10) {
		case 0, 1, 2:
			if os.Mkdir(path, 0o700|os.FileMode(random.IntN(64))) == nil {
				directories = append(directories, path)
			}
		case 3, 4:
			target := []string{"nowhere", ".", "..", "../" + name(), name() + "/../" + name(), "/etc/passwd", "../../../..", filepath.Base(path)}[random.IntN(8)]
			_ = os.Symlink(target, path)
		case 5:
			if len(files) > 0 {
				_ = os.Link(files[random.IntN(len(files))], path)
			}
		default:
			size := []int{0, 1, 511, 512, 513, 5000, 300_000}[random.IntN(7)]
			if err := os.WriteFile(path, textOf(size), 0o600|os.FileMode(random.IntN(64))); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(random.Int64N(2e9), random.Int64N(2)*random.Int64N(1e9))
			_ = os.Chtimes(path, at, at)
			files = append(files, path)
		}
	}
}

// compareTreesButForDirectoryTimes is for trees out of which something was taken.
func compareTreesButForDirectoryTimes(t *testing.T, a, b string) {
	t.Helper()
	for _, top := range []string{a, b} {
		_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if entry != nil && entry.IsDir() {
				_ = os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0))
			}
			return nil
		})
	}
	compareTrees(t, a, b)
}

// What unpacking would refuse is refused when it is packed, where its owner can still do something about it.
func TestWhatCouldNotBeRestoredIsNotSaved(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		limits map[string]any
		says   string
	}{
		"too many":                       {"touch d/1 d/2 d/3", map[string]any{"entries": 3}, "more than 3 entries"},
		"too large":                      {"head -c 2000 /dev/zero >d/f", map[string]any{"bytes": 1999}, "more than 1999 bytes"},
		"too large with a hole":          {"truncate -s 1000000 d/f", map[string]any{"bytes": 1999}, "more than 1999 bytes"},
		"too deep":                       {"mkdir -p d/1/2/3; touch d/1/2/3/f", map[string]any{"depth": 4}, "5 directories deep"},
		"links that differ in case":      {"ln -s x d/L; ln -s y d/l", nil, "only in case"},
		"a link and a directory":         {"ln -s x d/Lib; mkdir d/lib", nil, "only in case"},
		"a file and a directory":         {"touch d/readme; mkdir d/README", nil, "only in case"},
		"composed and not, with a link":  {`ln -s x "d/$(printf '\303\251')"; touch "d/$(printf 'e\314\201')"`, nil, "Unicode form"},
		"links apart by an accent alone": {`ln -s x d/cafe; ln -s y "d/$(printf 'caf\303\251')"`, nil, "Unicode form"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := shell(t, "mkdir d; "+c.script).set("save", []any{save(s, "artifact", "a", "d")})
			if c.limits != nil {
				b.set("archive_limits", c.limits)
			}
			b.run().expect(outcomeSaveFailed, exitWrapper).expectMessage(c.says, "cannot be saved")
			if s.object("a") != nil {
				t.Error("it was stored all the same")
			}
		})
	}
}

// A directory above a saved name counts, though it is not saved itself.
func TestParentThatCollidesIsNotSaved(t *testing.T) {
	base := plant(t, "A/x")
	os.WriteFile(filepath.Join(base, "a"), nil, 0o644)
	selected, err := newSelection(base, []string{"A/x", "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := packInto(t.Context(), io.Discard, base, selected, nil, unlimited()); err == nil || !strings.Contains(err.Error(), "only in case") {
		t.Errorf("%v", err)
	}
}

// At a limit, not over it: saved, and restored with the same limits.
func TestExactlyAtTheLimits(t *testing.T) {
	limits := map[string]any{"entries": 4, "bytes": 1000, "depth": 3}
	s := newStore(t)
	shell(t, "mkdir -p d/e; head -c 600 /dev/zero >d/f; head -c 400 /dev/zero >d/e/g").set("archive_limits", limits).set("save", []any{save(s, "artifact", "a", "d")}).run().expect(outcomeExited, 0)
	newBench(t, "true").set("archive_limits", limits).set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
	for key, less := range map[string]int{"entries": 3, "bytes": 999, "depth": 2} {
		tight := map[string]any{key: less}
		newBench(t, "true").set("archive_limits", tight).set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeRestoreFailed, exitWrapper).expectMessage("refused")
	}
}

func TestLinksThatLeadOutAreLeftOut(t *testing.T) {
	s := newStore(t)
	b := shell(t, `mkdir -p d/deep; touch outside d/f
		ln -s ../outside d/direct_sibling; ln -s ../../x d/far; ln -s /etc/passwd d/absolute
		ln -s .. d/deep/up; ln -s deep/up/../../y d/chain; ln -s self d/self; ln -s b d/a; ln -s a d/b; ln -s f/x d/through_file; ln -s f d/good`).
		set("save", []any{with(save(s, "artifact", "a", "."), "base", "d")}).run().expect(outcomeExited, 0).
		expectWarning(`"direct_sibling" leads out`).expectWarning(`"far" leads out`).expectWarning(`"absolute" leads out`).expectWarning(`"chain" leads out`)
	if len(b.result.Warnings) != 4 {
		t.Errorf("%q", b.result.Warnings)
	}
	to := shell(t, "cd got; find . -type l -printf '%P '").set("restore", []any{restore(s, "artifact", "a", "got", true)}).run().expect(outcomeExited, 0)
	for _, name := range []string{"self", "a", "b", "through_file", "good", "deep/up"} {
		if !strings.Contains(" "+to.stdout.String(), " "+name+" ") {
			t.Errorf("%s is not there: %s", name, to.stdout.String())
		}
	}
}

// As a user who may not give files away, with directories that he may not write to himself.
func TestRestoreAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	s := newStore(t)
	shell(t, "mkdir -p d/locked/inner; echo x >d/locked/inner/f; echo y >d/g; chown -R 1234:1234 d; chmod 500 d/locked/inner d/locked; chmod 400 d/g").set("save", []any{save(s, "cache", "c", "d")}).run().expect(outcomeExited, 0)
	s.put("bad", packedTar(t, tarOf(t, modeOfHeader(dir("locked"), 0o500), file("locked/f"), link("l", "/etc"))))
	for object, outcome := range map[string]string{"c": outcomeExited, "bad": outcomeRestoreFailed} {
		b := shell(t, "stat -c '%u %a %n' d/g d/locked/inner").set("restore", []any{restore(s, "cache", object, ".", true)})
		b.runAs(54321)
		if b.result.Outcome != outcome || outcome == outcomeExited && b.stdout.String() != "54321 400 d/g\n54321 500 d/locked/inner\n" {
			t.Errorf("%s: %q %s", object, b.stdout.String(), b.raw)
		}
		if left, _ := filepath.Glob(b.path(".hubflow*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// runAs runs the job as another user, who owns its directory.
func (b *bench) runAs(user int) *bench {
	b.t.Helper()
	makeReachable(b.dir)
	_ = filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, _ error) error { return os.Lchown(path, user, user) })
	b.prepare()
	own, _ := os.ReadFile(b.cmd.Path)
	b.cmd.Path = filepath.Join(b.dir, "wrapper")
	os.WriteFile(b.cmd.Path, own, 0o755)
	os.Chown(b.path("job.json"), user, user)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	return b.wait()
}

// Go's module cache is read-only to the last directory. Only who may write to a directory can move it, so for anyone but root its mode
// has to wait.
func TestReadOnlyDirectoriesAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	s := newStore(t)
	shell(t, "mkdir -p mod/x@v1/sub mod/old ro; for f in mod/x@v1/a.go mod/x@v1/sub/b.go mod/old/c.go ro/f g; do echo new >$f; done; chmod -R a-w mod/x@v1 mod/old ro; chmod 000 ro").
		set("save", []any{save(s, "cache", "c", "mod", "ro", "g")}).run().expect(outcomeExited, 0)
	plant := func(b *bench) *bench { // mod/old is read-only already, ro is something else, mod is there
		os.MkdirAll(b.path("mod/old/kept"), 0o755)
		os.MkdirAll(b.path("g/was/a/directory"), 0o755)
		os.WriteFile(b.path("ro"), nil, 0o644)
		os.Chmod(b.path("mod/old"), 0o555)
		os.Chmod(b.path("g/was"), 0o555)
		os.Chmod(b.path("g"), 0o555)
		return b.set("restore", []any{restore(s, "cache", "c", ".", true)})
	}
	b := plant(shell(t, "stat -c '%a %n' mod/x@v1 mod/x@v1/sub mod/old mod/old/kept ro; cat mod/x@v1/sub/b.go mod/old/c.go g")).runAs(54321).expect(outcomeExited, 0).expectNoWarnings()
	if got := b.stdout.String(); got != "555 mod/x@v1\n555 mod/x@v1/sub\n555 mod/old\n755 mod/old/kept\n0 ro\nnew\nnew\nnew\n" {
		t.Errorf("%s", got)
	}
	if left, _ := filepath.Glob(b.path(stagingPrefix + "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	makeRemovableForTests(b.dir)
}

// makeReachable lets other users come to a directory of the tests.
func makeReachable(dir string) {
	os.Chmod(dir, 0o777)
	for at := filepath.Dir(dir); at != "/"; at = filepath.Dir(at) {
		if info, err := os.Stat(at); err == nil && info.Mode()&5 != 5 {
			os.Chmod(at, info.Mode()|5)
		}
	}
}

// What vanishes or changes its kind between the look at it and its turn is left out, with a warning.
func TestWhatVanishesWhileItIsSaved(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"a directory that goes":           {"mkdir x", "rmdir x"},
		"a directory that becomes a file": {"mkdir x", "rmdir x; touch x"},
		"a directory that becomes a loop": {"mkdir x", "rmdir x; ln -s x x"},
		"a file that goes":                {"touch x", "rm x"},
		"a file that becomes a directory": {"touch x", "rm x; mkdir x"},
		"a file that becomes a loop":      {"touch x", "rm x; ln -s x x"},
		"a file that becomes a pipe":      {"touch x", "rm x; mkfifo x"},
		"a link that goes":                {"ln -s y x", "rm x"},
		"a link that becomes a file":      {"ln -s y x", "rm x; touch x"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			do := func(script string) {
				command := exec.Command("sh", "-c", script)
				command.Dir = base
				if out, err := command.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			do(c.before)
			root, err := os.OpenRoot(base)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			info, err := root.Lstat("x")
			if err != nil {
				t.Fatal(err)
			}
			p := newPacker(t.Context(), io.Discard, &selection{}, nil, unlimited())
			p.top, p.judge = root, newLinkJudge(t.Context(), root, p.names, &p.entries, stepsOfPacking)
			do(c.after)
			if info.IsDir() {
				err = p.enter(root, "x", "x", info, nil, true)
			} else {
				err = p.leaf(root, "x", "x", info)
			}
			if err != nil || p.entries != 0 || len(p.warnings) != 1 || !strings.Contains(p.warnings[0], "vanished") {
				t.Errorf("%v, %d entries, %q", err, p.entries, p.warnings)
			}
		})
	}
	base := t.TempDir()
	root, err := os.OpenRoot(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	os.Remove(base) // a directory that goes after it was entered
	p := newPacker(t.Context(), io.Discard, &selection{}, nil, unlimited())
	if names, _, err := p.list(root, "x", "", 10); err != nil || len(names) != 0 || len(p.warnings) != 1 {
		t.Errorf("%v, %q, %q", err, names, p.warnings)
	}
}

// However few names are held at once, all come, once each and in order.
func TestNamesInPortions(t *testing.T) {
	base := t.TempDir()
	var want []string
	for i := range 1000 {
		name := fmt.Sprintf("%03d", i*7%1000)
		want = append(want, fmt.Sprintf("%03d", i))
		os.WriteFile(filepath.Join(base, name), nil, 0o644)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := newPacker(t.Context(), io.Discard, &selection{}, nil, unlimited())
	for _, most := range []int{1, 7, 333, 500, 999, 1000, 1001, 2000, 5000} {
		var got []string
		for after, more := "", true; more; {
			var names []string
			if names, more, err = p.list(root, "", after, most); err != nil || len(names) > most || more && len(names) < most {
				t.Fatalf("%d at once: %d, %v", most, len(names), err)
			}
			got = append(got, names...)
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d at once: %d names, %.20q", most, len(got), got)
		}
	}
}
