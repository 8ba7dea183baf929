package main

import (
	"archive/tar"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
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

// Whichever step fails, the target is as it was, to the last bit.
func TestEveryStepCanBeUndone(t *testing.T) {
	entries := []tar.Header{file("a"), file("b"), dir("c"), file("c/same"), file("c/new"), file("c/deep/x"), link("d", "c"), file("e/f"), file("z")}
	for steps := 0; steps < 12; steps++ {
		base := sandbox(t)
		target := filepath.Join(base, "target")
		os.MkdirAll(filepath.Join(target, "c/deep"), 0o750)
		os.WriteFile(filepath.Join(target, "a"), []byte("old a"), 0o640)
		os.WriteFile(filepath.Join(target, "c/same"), []byte("old same"), 0o400)
		os.Mkdir(filepath.Join(target, "d"), 0o711)
		os.Symlink("a", filepath.Join(target, "e"))
		before := snapshot(t, target)
		stage, err := openStaging(target)
		if err != nil {
			t.Fatal(err)
		}
		place, _ := stage.place()
		if err := newUnpacker(t.Context(), place, unlimited()).unpack(strings.NewReader(string(tarOf(t, entries...)))); err != nil {
			t.Fatal(err)
		}
		place.Close()
		// Some steps are done by hand, as merge does them; then it fails.
		names, _ := stage.names(stage.fresh())
		for i, name := range names[:min(steps, len(names))] {
			if there, err := stage.root.Lstat(name); err == nil && !(there.IsDir() && name == "c") {
				stage.backups++
				if err := stage.rename(name, stage.old()+"/"+itoaForNames(i)); err != nil {
					t.Fatal(err)
				}
			}
			if name != "c" {
				if err := stage.rename(stage.fresh()+"/"+name, name); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := stage.undo(); err != nil {
			t.Fatal(err)
		}
		stage.discard()
		if after := snapshot(t, target); after != before {
			t.Errorf("after %d steps and back:\n%s\nwas\n%s", steps, after, before)
		}
		expectUntouched(t, base)
	}
}

func itoaForNames(i int) string { return strings.Repeat("i", i+1) }

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
