package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Moving what was unpacked into place: into whatever is there already, and back again when a step fails.

// snapshot lists a tree: kind, mode and content of everything.
func snapshot(t *testing.T, top string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		relative, _ := filepath.Rel(top, path)
		line := relative + " " + info.Mode().String()
		switch info.Mode().Type() {
		case 0:
			content, _ := os.ReadFile(path)
			line += " " + string(content)
		case os.ModeSymlink:
			target, _ := os.Readlink(path)
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func namesIn(t *testing.T, top string) string {
	t.Helper()
	names := []string{}
	walk(top, "", &names)
	return strings.Join(names, " ")
}

func TestMergingIntoWhatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		there   func(target string)
		entries []tar.Header
		want    string
	}{
		"nothing":                        {func(string) {}, []tar.Header{file("a"), file("d/b")}, "a d d/b"},
		"other names":                    {func(top string) { os.WriteFile(top+"/x", nil, 0o644) }, []tar.Header{file("a")}, "a x"},
		"the same file":                  {func(top string) { os.WriteFile(top+"/a", []byte("old"), 0o600) }, []tar.Header{file("a")}, "a"},
		"a read-only file":               {func(top string) { os.WriteFile(top+"/a", []byte("old"), 0o400) }, []tar.Header{file("a")}, "a"},
		"the same directory":             {func(top string) { os.MkdirAll(top+"/d/old", 0o755) }, []tar.Header{dir("d"), file("d/new")}, "d d/new d/old"},
		"directories all the way":        {func(top string) { os.MkdirAll(top+"/1/2/3/old", 0o755) }, []tar.Header{file("1/2/3/new"), file("1/2/new")}, "1 1/2 1/2/3 1/2/3/new 1/2/3/old 1/2/new"},
		"a file for a directory":         {func(top string) { os.MkdirAll(top+"/d/inner", 0o755) }, []tar.Header{file("d")}, "d"},
		"a directory for a file":         {func(top string) { os.WriteFile(top+"/d", nil, 0o644) }, []tar.Header{file("d/new")}, "d d/new"},
		"a link for a directory":         {func(top string) { os.MkdirAll(top+"/d/inner", 0o755) }, []tar.Header{link("d", "e"), file("e/f")}, "d e e/f"},
		"a directory for a link":         {func(top string) { os.Symlink("/etc", top+"/d") }, []tar.Header{file("d/new")}, "d d/new"},
		"a file for a link":              {func(top string) { os.Symlink("../../precious", top+"/l") }, []tar.Header{file("l")}, "l"},
		"a file for a pipe":              {func(top string) { _ = syscall.Mkfifo(top+"/p", 0o644) }, []tar.Header{file("p")}, "p"},
		"below a link to a directory":    {func(top string) { os.Mkdir(top+"/real", 0o755); os.Symlink("real", top+"/d") }, []tar.Header{file("d/new")}, "d d/new real"},
		"an empty directory for a full":  {func(top string) { os.MkdirAll(top+"/d/kept", 0o755) }, []tar.Header{dir("d")}, "d d/kept"},
		"hard links, of which one is":    {func(top string) { os.WriteFile(top+"/a", []byte("old"), 0o600) }, []tar.Header{file("a"), hard("b", "a")}, "a b"},
		"a directory without any rights": {func(top string) { os.Mkdir(top+"/d", 0o755) }, []tar.Header{modeOfHeader(dir("n"), 0), file("n/f"), file("d/f")}, "d d/f n n/f"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a directory without any rights" && os.Getuid() != 0 {
				t.Skip("only root can look into it afterwards")
			}
			base := sandbox(t)
			target := filepath.Join(base, "target")
			os.Mkdir(target, 0o755)
			c.there(target)
			if err := restoreHere(t, base, tarOf(t, c.entries...), ArchiveLimits{}); err != nil {
				t.Fatal(err)
			}
			expectUntouched(t, base)
			if got := namesIn(t, target); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			for _, entry := range c.entries {
				if content, err := os.ReadFile(filepath.Join(target, entry.Name)); entry.Typeflag == tar.TypeReg && (err != nil || string(content) != "evil") {
					t.Errorf("%s: %q %v", entry.Name, content, err)
				}
			}
		})
	}
}

// oldTree is what is there before the restores that are broken off below, and newTree is what they bring.
func oldTree(t *testing.T, target string) {
	t.Helper()
	os.MkdirAll(filepath.Join(target, "c/deep"), 0o750)
	os.WriteFile(filepath.Join(target, "a"), []byte("old a"), 0o640)
	os.WriteFile(filepath.Join(target, "c/same"), []byte("old same"), 0o400)
	os.Mkdir(filepath.Join(target, "d"), 0o711)
	os.WriteFile(filepath.Join(target, "d/inner"), []byte("old inner"), 0o600)
	os.Symlink("a", filepath.Join(target, "e"))
	os.MkdirAll(filepath.Join(target, "locked/way"), 0o755)
	os.WriteFile(filepath.Join(target, "locked/way/kept"), []byte("old kept"), 0o444)
	os.Chmod(filepath.Join(target, "locked/way"), 0o555)
	os.Chmod(filepath.Join(target, "locked"), 0o555)
}

func newTree() []tar.Header {
	return []tar.Header{
		file("a"), file("b"), dir("c"), file("c/same"), file("c/new"), file("c/deep/x"), link("d", "c"), file("e/f"), file("z"),
		modeOfHeader(dir("locked"), 0o500), file("locked/way/added"), modeOfHeader(dir("locked/new"), 0o500), file("locked/new/f"),
		modeOfHeader(dir("ro"), 0o555), file("ro/f"),
	}
}

func stagedTree(t *testing.T, target string) *staging {
	t.Helper()
	stage, err := openStaging(target)
	if err != nil {
		t.Fatal(err)
	}
	place, err := stage.place()
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	if err := newUnpacker(t.Context(), place, unlimited()).unpack(bytes.NewReader(tarOf(t, newTree()...))); err != nil {
		t.Fatal(err)
	}
	return stage
}

// After whichever step we are killed, the next restore finds the target as it was, to the last bit. The journal is cut after each
// of its notes: that is all that is left of a process that was killed there.
func TestEveryStepCanBeUndone(t *testing.T) {
	for name, prepare := range grounds {
		t.Run(name, func(t *testing.T) { undoEveryStep(t, prepare) })
	}
}

// grounds are file systems to restore into: each makes an old tree at the target.
var grounds = map[string]func(t *testing.T, target string) (release func()){
	"plain": func(t *testing.T, target string) func() {
		oldTree(t, target)
		return func() {}
	},
	"another file system inside": func(t *testing.T, target string) func() {
		inner := filepath.Join(target, "c")
		os.MkdirAll(inner, 0o755)
		if err := syscall.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		oldTree(t, target)
		return func() { syscall.Unmount(inner, 0) }
	},
	"an overlay": func(t *testing.T, target string) func() {
		layers := t.TempDir()
		if err := syscall.Mount("tmpfs", layers, "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		for _, name := range []string{"upper", "work"} {
			os.Mkdir(filepath.Join(layers, name), 0o755)
		}
		oldTree(t, filepath.Join(layers, "lower"))
		os.Mkdir(target, 0o755)
		options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", layers)
		if err := syscall.Mount("overlay", target, "overlay", 0, options); err != nil {
			syscall.Unmount(layers, 0)
			t.Skip(err)
		}
		return func() { syscall.Unmount(target, 0); syscall.Unmount(layers, 0) }
	},
}

func undoEveryStep(t *testing.T, prepare func(*testing.T, string) func()) {
	whole := 0
	for steps := 0; steps == 0 || steps <= whole; steps++ {
		base := sandbox(t)
		target := filepath.Join(base, "target")
		release := prepare(t, target)
		before := snapshot(t, target)
		stage := stagedTree(t, target)
		if err := stage.merge(stage.fresh(), "."); err != nil {
			t.Fatal(err)
		}
		var places []int64
		if err := stage.journal.backwards(func(_ []string, at int64) error {
			places = append(places, at)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		whole = len(places)
		// The last steps are taken back as undo does it, down to where the process is to be killed, or is killed while it undoes.
		taken := 0
		err := stage.journal.backwards(func(fields []string, at int64) error {
			if taken == whole-steps {
				return io.EOF
			}
			taken++
			if err := stage.invert(fields); err != nil {
				return err
			}
			if taken == whole-steps && steps%2 == 0 {
				return io.EOF // killed between the step and the cut
			}
			return stage.journal.cut(at)
		})
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		stage.journal.file.Close() // which unlocks it, as death does
		stage.root.Close()
		next, err := openStaging(target)
		if err != nil {
			t.Fatal(err)
		}
		next.discard()
		if after := snapshot(t, target); after != before {
			t.Errorf("after %d steps of %d and back:\n%s\nwas\n%s", steps, whole, after, before)
		}
		expectUntouched(t, base)
		makeRemovableForTests(target)
		release()
	}
	if whole < 20 {
		t.Errorf("only %d steps", whole)
	}
}

// A step that fails undoes those before it at once.
func TestFailedStepIsUndone(t *testing.T) {
	base := sandbox(t)
	target := filepath.Join(base, "target")
	oldTree(t, target)
	os.WriteFile(filepath.Join(target, "z"), []byte("old z"), 0o600)
	if err := syscall.Mount(filepath.Join(base, "precious"), filepath.Join(target, "z"), "", syscall.MS_BIND, ""); err != nil {
		t.Skip(err) // a file that is mounted cannot be moved away
	}
	defer syscall.Unmount(filepath.Join(target, "z"), 0)
	before := snapshot(t, target)
	stage := stagedTree(t, target)
	if err := stage.commit(); err == nil || !strings.Contains(err.Error(), "cannot move") {
		t.Errorf("%v", err)
	}
	stage.discard()
	if after := snapshot(t, target); after != before {
		t.Errorf("after:\n%s\nwas\n%s", after, before)
	}
	makeRemovableForTests(target)
}

// Killed after everything was in place, but before the old files were removed: they go, the new ones stay. What a living neighbour
// has stays.
func TestNextRestoreClearsUpAfterTheDead(t *testing.T) {
	base := sandbox(t)
	target := filepath.Join(base, "target")
	oldTree(t, target)
	alive, err := openStaging(target)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.discard()
	dead := stagedTree(t, target)
	if err := dead.commit(); err != nil {
		t.Fatal(err)
	}
	dead.journal.file.Close()
	dead.root.Close()
	os.Mkdir(filepath.Join(target, stagingPrefix+"EMPTY"), 0o700) // killed before it had a journal
	next, err := openStaging(target)
	if err != nil {
		t.Fatal(err)
	}
	next.discard()
	left, _ := filepath.Glob(filepath.Join(target, stagingPrefix+"*"))
	if len(left) != 1 || filepath.Base(left[0]) != alive.name {
		t.Errorf("left: %q, the living one is %s", left, alive.name)
	}
	if text, _ := os.ReadFile(filepath.Join(target, "a")); string(text) != "evil" || !exists(filepath.Join(target, "locked/way/kept")) {
		t.Errorf("a is %q", text)
	}
	makeRemovableForTests(target)
}

// What was made for a restore that failed goes away again; what was there before stays.
func TestDirectoriesMadeForNothing(t *testing.T) {
	hostile := tarOf(t, file("good"), file("../precious"))
	for name, c := range map[string]struct {
		there string // made before
		want  string // under the sandbox, beside its own
	}{
		"nothing was there":    {"", ""},
		"the target was there": {"target", "target"},
	} {
		t.Run(name, func(t *testing.T) {
			base := sandbox(t)
			if c.there != "" {
				os.Mkdir(filepath.Join(base, c.there), 0o700)
			}
			if err := restoreHere(t, base, hostile, ArchiveLimits{}); err == nil {
				t.Error("it was taken")
			}
			want := strings.TrimSpace("outside precious " + c.want)
			if got := namesIn(t, base); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	base := sandbox(t)
	stage, err := openStaging(filepath.Join(base, "target/a/b/c"))
	if err != nil {
		t.Fatal(err)
	}
	stage.discard()
	if exists(filepath.Join(base, "target")) {
		t.Error("the directories above the target were left")
	}
	stage.discard() // twice does no harm
}

func TestTargetsThatCannotBe(t *testing.T) {
	base := sandbox(t)
	os.WriteFile(filepath.Join(base, "file"), nil, 0o644)
	for _, target := range []string{filepath.Join(base, "file"), filepath.Join(base, "file/below"), "/proc/hubflow", "/dev/null/x"} {
		if stage, err := openStaging(target); err == nil {
			stage.discard()
			t.Errorf("%s was taken", target)
		} else if !strings.Contains(err.Error(), target) {
			t.Errorf("%s is not named: %v", target, err)
		}
	}
}

// A target that is a link to a directory is what the link leads to: the user said so.
func TestTargetThatIsALink(t *testing.T) {
	base := sandbox(t)
	os.Mkdir(filepath.Join(base, "real"), 0o755)
	os.Symlink("real", filepath.Join(base, "target"))
	if err := restoreHere(t, base, tarOf(t, file("f")), ArchiveLimits{}); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(base, "real/f")) {
		t.Error("not there")
	}
}

// The wrapper is killed at random moments of a restore over an older one. Whatever the next restore is, the files are all old or all
// new once it has begun, and nothing of ours is left.
func TestKilledRestoresAreAllOrNothing(t *testing.T) {
	const files = 300
	s := newStore(t)
	var entries []tar.Header
	for i := range files {
		entries = append(entries, file(fmt.Sprintf("d%d/f%04d", i%3, i)))
	}
	s.put("new", packedTar(t, tarOf(t, entries...)))
	hostile := tarOf(t, file("good"), file("../precious"))
	halves, olds, news := 0, 0, 0
	for round := range 8 {
		b := newBench(t, "true").set("restore", []any{restore(s, "artifact", "new", "box/target", true)})
		target := b.path("box/target")
		for i := range files {
			name := filepath.Join(target, fmt.Sprintf("d%d/f%04d", i%3, i))
			os.MkdirAll(filepath.Dir(name), 0o755)
			os.WriteFile(name, []byte("old"), 0o644)
		}
		count := func() (old, new int) {
			for i := range files {
				switch text, _ := os.ReadFile(filepath.Join(target, fmt.Sprintf("d%d/f%04d", i%3, i))); string(text) {
				case "old":
					old++
				case "evil":
					new++
				}
			}
			return old, new
		}
		b.start()
		for range 100_000 { // until it begins to move things, or is through; then a little longer
			if moved, _ := filepath.Glob(filepath.Join(target, stagingPrefix+"*/old/*")); len(moved) > round*35 || exists(b.path("result.json")) {
				break
			}
		}
		b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		if old, new := count(); old != files && new != files {
			halves++
		}
		if err := restoreHere(t, b.path("box"), hostile, ArchiveLimits{}); err == nil {
			t.Fatal("the hostile archive was taken")
		}
		old, new := count()
		if old == files {
			olds++
		} else if new == files {
			news++
		} else {
			t.Errorf("round %d: %d old and %d new files", round, old, new)
		}
		if left, _ := filepath.Glob(filepath.Join(target, stagingPrefix+"*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	t.Logf("killed half-way %d times; then all was old %d times, new %d times", halves, olds, news)
	if halves == 0 {
		t.Error("it was never killed half-way: the test shows nothing")
	}
}

// What cannot be renamed is copied: content, modes, times, links, holes and files of several names come through.
func TestRestoreAcrossFileSystems(t *testing.T) {
	store := newStore(t)
	from := shell(t, tree+"; mkdir -p dist/locked/in; echo f >dist/locked/in/f; ln dist/locked/in/f dist/locked/in/g; chmod 555 dist/locked/in; chmod 000 dist/locked; touch -d '2004-01-01' dist/locked; chmod 755 dist/one").
		set("save", []any{save(store, "artifact", "a", "dist")}).run().expect(outcomeExited, 0)
	for name := range grounds {
		t.Run(name, func(t *testing.T) {
			to := newBench(t, "true")
			target := to.path("dist")
			os.Mkdir(target, 0o755)
			if name == "another file system inside" {
				if err := syscall.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
					t.Skip(err)
				}
				defer syscall.Unmount(target, 0)
				for _, one := range []string{"one/was/a/directory", "sub/kept"} {
					os.MkdirAll(filepath.Join(target, one), 0o755)
				}
				os.WriteFile(filepath.Join(target, "locked"), []byte("was a file"), 0o644)
			}
			to.set("restore", []any{restore(store, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0).expectNoWarnings()
			os.Remove(filepath.Join(target, "sub/kept"))
			for _, top := range []string{from.path("dist"), target} {
				for _, existing := range []string{"", "sub"} { // their times are those of the moves into them
					os.Chtimes(filepath.Join(top, existing), time.Unix(1e9, 0), time.Unix(1e9, 0))
					os.Chmod(filepath.Join(top, existing), 0o755)
				}
			}
			compareTrees(t, from.path("dist"), target)
			var status syscall.Stat_t
			if syscall.Stat(filepath.Join(target, "sparse"), &status); status.Blocks*512 > 2<<20 {
				t.Errorf("the sparse file takes %d bytes", status.Blocks*512)
			}
			if syscall.Stat(filepath.Join(target, "locked/in/g"), &status); status.Nlink != 2 {
				t.Errorf("the file has %d names", status.Nlink)
			}
			makeRemovableForTests(target)
		})
	}
	makeRemovableForTests(from.dir)
}

// A folder of a lower layer that a file takes the place of.
func TestReplacingADirectoryOfALowerLayer(t *testing.T) {
	base := sandbox(t)
	target := filepath.Join(base, "target")
	defer grounds["an overlay"](t, target)()
	if err := restoreHere(t, base, tarOf(t, file("d"), file("c"), file("locked")), ArchiveLimits{}); err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, target); got != "a c d e locked" {
		t.Errorf("%s", got)
	}
}
