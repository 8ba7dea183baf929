package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Caches and artifacts through the whole wrapper, against an object store in memory.

func save(s *store, kind, name string, paths ...string) map[string]any {
	return map[string]any{"kind": kind, "name": name, "base": ".", "paths": paths, "when": "success", "required": true, "upload": s.upload(name, 16<<20, 0), "index_upload": nil}
}

func restore(s *store, kind, name, path string, required bool) map[string]any {
	return map[string]any{"kind": kind, "name": name, "path": path, "url": s.url(name), "required": required}
}

func with(m map[string]any, key string, value any) map[string]any {
	m[key] = value
	return m
}

// tree makes files of all sorts.
const tree = `
	mkdir -p dist/sub/empty dist/"with space"
	echo one >dist/one; echo two >dist/sub/two; chmod 700 dist/sub/two; chmod 4755 dist/one; chmod 1777 dist/sub
	ln -s sub/two dist/link; ln dist/sub/two dist/hard; ln -s ../one dist/sub/up; ln -s nowhere dist/dangling
	echo x >"dist/with space/new
line"; echo y >dist/"$(printf 'unicode-\303\251-e\314\201')"
	touch -d '2001-02-03 04:05:06.789' dist/sub/two; touch -h -d '2002-02-03 04:05:06.25' dist/link; touch -d '2003-01-01' dist/sub/empty
	truncate -s 50M dist/sparse; printf data | dd of=dist/sparse bs=1 seek=20000000 conv=notrunc status=none
	head -c 3000000 /dev/urandom >dist/random; : >dist/zero`

func TestRoundTrip(t *testing.T) {
	s := newStore(t)
	from := shell(t, tree).set("save", []any{with(save(s, "artifact", "dist", "dist"), "index_upload", map[string]any{"put_url": s.url("dist.index")})}).run().expect(outcomeExited, 0)
	saved := from.result.Saved[0]
	sum := sha256.Sum256(s.object("dist"))
	if saved.Bytes != int64(len(s.object("dist"))) || saved.SHA256 != hex.EncodeToString(sum[:]) || saved.Files != 11 || saved.Error != "" {
		t.Errorf("%+v", saved)
	}
	from.expectWarning("setuid")
	to := newBench(t, "true").set("restore", []any{with(restore(s, "artifact", "dist", "out/of", true), "sha256", saved.SHA256)}).run().expect(outcomeExited, 0).expectNoWarnings()
	if got := to.result.Restored[0]; !got.Hit || got.Files != saved.Files || got.Bytes != saved.Bytes {
		t.Errorf("%+v", got)
	}
	os.Chmod(from.path("dist/one"), 0o755) // the one thing that is not carried over
	compareTrees(t, from.path("dist"), to.path("out/of/dist"))
	var before, after syscall.Stat_t
	syscall.Lstat(from.path("dist/hard"), &before)
	syscall.Lstat(to.path("out/of/dist/hard"), &after)
	if before.Nlink != 2 || after.Nlink != 2 {
		t.Errorf("hard links: %d, %d", before.Nlink, after.Nlink)
	}
	syscall.Stat(to.path("out/of/dist/sparse"), &after)
	if after.Blocks*512 > 1<<20 {
		t.Errorf("the sparse file takes %d bytes", after.Blocks*512)
	}
	checkIndex(t, s, saved)
}

// compareTrees uses find and sha256sum, which know nothing of our code.
func compareTrees(t *testing.T, a, b string) {
	t.Helper()
	list := func(dir string) string {
		cmd := exec.Command("sh", "-c", `find . -printf '%P|%y|%m|%U:%G|%l|%s|%T@\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum`)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lines := []string{}
		for _, line := range strings.Split(string(out), "\n") {
			if !strings.Contains(line, "|d|") {
				lines = append(lines, line)
				continue
			}
			fields := strings.Split(line, "|") // the size of a directory is the file system's business
			fields[5] = ""
			lines = append(lines, strings.Join(fields, "|"))
		}
		return strings.Join(lines, "\n")
	}
	if before, after := list(a), list(b); before != after {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// checkIndex reads single files by the index, without unpacking the rest.
func checkIndex(t *testing.T, s *store, saved Saved) {
	t.Helper()
	var index struct {
		Version int
		Entries []indexEntry
		Archive indexEnd
	}
	checkSchema(t, "index", s.object("dist.index"))
	if err := json.Unmarshal(s.object("dist.index"), &index); err != nil {
		t.Fatal(err)
	}
	if index.Archive.SHA256 != saved.SHA256 || index.Archive.Bytes != saved.Bytes {
		t.Errorf("%+v", index.Archive)
	}
	kinds := map[string]string{}
	for _, entry := range index.Entries {
		kinds[entry.Path] = entry.Type
		if entry.Path != "dist/with space/new\nline" || index.Archive.Format != "zstd" {
			continue
		}
		at := index.Archive.Offsets[entry.Offset/int64(index.Archive.ChunkBytes)]
		stream, err := openArchive(bytes.NewReader(s.object("dist")[at:]))
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, entry.Offset%int64(index.Archive.ChunkBytes)+entry.Size)
		if _, err := readFull(stream, content); err != nil || string(content[len(content)-int(entry.Size):]) != "x\n" {
			t.Errorf("%v, content %q", err, content[len(content)-int(entry.Size):])
		}
		stream.Close()
	}
	for path, kind := range map[string]string{"dist/": "directory", "dist/hard": "file", "dist/link": "symlink", "dist/sub/two": "hardlink", "dist/sparse": "sparse"} {
		if kinds[path] != kind && !(path == "dist/sub/two" || path == "dist/hard") {
			t.Errorf("%s is %q in the index", path, kinds[path])
		}
	}
}

func readFull(from interface{ Read([]byte) (int, error) }, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = from.Read(p[n:])
		n += more
	}
	return n, err
}

// Other programs read what we write, and we read what they write.
func TestArchivesOfAndForOtherPrograms(t *testing.T) {
	s := newStore(t)
	from := shell(t, tree+"; rm dist/one").set("save", []any{save(s, "cache", "c", "dist")}).run().expect(outcomeExited, 0)
	unpackProgram := map[string]string{"zstd": "zstd -dc", "gzip": "gzip -dc"}[strings.Fields(writesFormat)[0]]
	if _, err := exec.LookPath(strings.Fields(unpackProgram)[0]); err == nil {
		cmd := exec.Command("sh", "-c", "mkdir x && "+unpackProgram+" | tar -xpf - -C x")
		cmd.Dir, cmd.Stdin = from.dir, bytes.NewReader(s.object("c"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		compareTrees(t, from.path("dist"), from.path("x/dist"))
	}
	for _, packProgram := range []string{"gzip -1", "zstd -1 -T0", "zstd -19 --long=24"} {
		if _, err := exec.LookPath(strings.Fields(packProgram)[0]); err != nil || writesFormat != "zstd" && !strings.HasPrefix(packProgram, "gzip") {
			continue
		}
		cmd := exec.Command("sh", "-c", "tar --format=pax -Scf - dist | "+packProgram)
		cmd.Dir = from.dir
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		s.put("other", packed)
		to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "other", ".", true)}).run().expect(outcomeExited, 0)
		compareTrees(t, from.path("dist"), to.path("dist"))
	}
}

func TestMultipart(t *testing.T) {
	for _, size := range []int{0, 1, 99_999, 100_000, 100_001, 1_000_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newStore(t)
			from := newBench(t, "true")
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			os.WriteFile(from.path("data"), data, 0o644)
			from.set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 20))}).run().expect(outcomeExited, 0).expectNoWarnings()
			if parts := s.count("PUT a"); size > 110_000 && parts < 10 || size < 90_000 && (parts != 1 || !s.aborted["a"]) {
				t.Errorf("%d requests, aborted %v", parts, s.aborted["a"])
			}
			to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
			if got, _ := os.ReadFile(to.path("data")); !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back", len(got))
			}
		})
	}
}

func TestMultipartTooLargeForTheSignatures(t *testing.T) {
	s := newStore(t)
	b := shell(t, "head -c 1000000 /dev/urandom >data").set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 3))}).run()
	b.expect(outcomeSaveFailed, exitWrapper).expectMessage("300000 bytes", "prepared for")
	if !s.aborted["a"] || s.object("a") != nil {
		t.Error("a partial upload was left")
	}
}

func TestLargeWithoutMultipartGoesByDisk(t *testing.T) {
	s := newStore(t)
	b := shell(t, "head -c 1000000 /dev/urandom >data").set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 0))}).run().expect(outcomeExited, 0)
	if len(s.object("a")) < 1_000_000 || s.count("PUT a") != 1 {
		t.Errorf("%d bytes, %d requests", len(s.object("a")), s.count("PUT a"))
	}
	left, _ := filepath.Glob(b.path(".hubflow*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUploadSurvivesTrouble(t *testing.T) {
	for name, trouble := range map[string]http.HandlerFunc{
		"503": answer(503, "SlowDown"), "500": answer(500, ""), "429": answer(429, ""), "RequestTimeout": answer(400, "RequestTimeout"), "broken connection": breakConnection,
	} {
		for _, which := range []func(*http.Request) bool{isPart, isPost} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newStore(t)
				s.spoil(2, which, trouble)
				shell(t, "head -c 400000 /dev/urandom >data").set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 20))}).run().expect(outcomeExited, 0)
				if len(s.object("a")) < 400000 {
					t.Errorf("%d bytes", len(s.object("a")))
				}
			})
		}
	}
}

// The store carried the completion out, but its answer was lost: the next try hears that there is no such upload.
func TestCompletionWhoseAnswerWasLost(t *testing.T) {
	s := newStore(t)
	s.spoil(1, isPost, func(w http.ResponseWriter, r *http.Request) {
		s.complete(httptestDiscard{}, r, "a")
		breakConnection(w, r)
	})
	shell(t, "head -c 400000 /dev/urandom >data").set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 20))}).run().expect(outcomeExited, 0)
}

type httptestDiscard struct{}

func (httptestDiscard) Header() http.Header         { return http.Header{} }
func (httptestDiscard) Write(p []byte) (int, error) { return len(p), nil }
func (httptestDiscard) WriteHeader(int)             {}

// S3 may answer 200 and tell of the failure in the body.
func TestCompletionThatFailsInItsBody(t *testing.T) {
	s := newStore(t)
	s.spoil(1, isPost, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "<Error><Code>InternalError</Code></Error>")
	})
	shell(t, "head -c 400000 /dev/urandom >data").set("save", []any{with(save(s, "artifact", "a", "data"), "upload", s.upload("a", 100_000, 20))}).run().expect(outcomeExited, 0)
	if len(s.object("a")) < 400000 {
		t.Error("taken for whole")
	}
}

func TestUploadRefused(t *testing.T) {
	s := newStore(t)
	s.spoil(99, isPut, answer(403, "AccessDenied"))
	b := shell(t, "echo x >data").set("save", []any{save(s, "artifact", "a", "data"), save(s, "cache", "b", "data")}).run()
	b.expect(outcomeSaveFailed, exitWrapper).expectMessage(`artifact "a"`, "403 AccessDenied", "expired")
	if b.result.Phase != phaseSave || *b.result.ExitCode != 0 || len(b.result.Saved) != 2 || !strings.Contains(b.result.Saved[0].Error, "403") {
		t.Errorf("%s", b.raw)
	}
	if s.count("PUT a") != 1 {
		t.Errorf("%d tries of what cannot succeed", s.count("PUT a"))
	}
	noSecrets(t, b)
}

func noSecrets(t *testing.T, b *bench) {
	t.Helper()
	for _, text := range []string{string(b.raw), b.stdout.String(), b.stderr.String()} {
		if strings.Contains(text, "topsecret") || strings.Contains(text, "Signature=") || strings.Contains(text, "sig1") {
			t.Errorf("a presigned address got out: %s", text)
		}
	}
}

func TestStoreThatIsNotThere(t *testing.T) {
	s := newStore(t)
	s.Close()
	b := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).set("env", map[string]string{}).start()
	waitFor(t, "its start", func() bool { _, err := os.Stat(b.path("job.json")); return err != nil })
	b.cmd.Process.Signal(syscall.SIGTERM) // do not wait for a minute of tries
	b.wait().expect(outcomeStopped, 143)
	noSecrets(t, b)
}

func TestFailedSaveOfACacheIsAWarning(t *testing.T) {
	s := newStore(t)
	s.spoil(99, isPut, answer(403, "AccessDenied"))
	shell(t, "echo x >data").set("save", []any{with(save(s, "cache", "c", "data"), "required", false)}).run().expect(outcomeExited, 0).expectWarning("403")
}

func TestWhenToSave(t *testing.T) {
	for _, c := range []struct {
		script string
		want   string
	}{{"exit 0", "success,always"}, {"exit 1", "failure,always"}, {"kill -9 $$", "failure,always"}, {"echo '[JOB_OUT] JOB_RESULT = false'", "failure,always"}} {
		s := newStore(t)
		saves := []any{}
		for _, when := range []string{"success", "failure", "always"} {
			saves = append(saves, with(save(s, "artifact", when, "data"), "when", when))
		}
		b := shell(t, "echo x >data; "+c.script).set("save", saves).run()
		names := []string{}
		for _, saved := range b.result.Saved {
			names = append(names, saved.Name)
		}
		if got := strings.Join(names, ","); got != c.want {
			t.Errorf("%s: saved %s", c.script, got)
		}
	}
}

func TestChildsFailureWinsOverThatOfSaving(t *testing.T) {
	s := newStore(t)
	shell(t, "exit 3").set("save", []any{with(save(s, "artifact", "a", "missing"), "when", "always")}).run().expect(outcomeExited, 3).expectWarning("missing")
	shell(t, "exit 0").set("save", []any{save(s, "artifact", "a", "missing")}).run().expect(outcomeSaveFailed, exitWrapper).expectMessage(`"missing"`, "Check the paths")
}

func TestMissingPaths(t *testing.T) {
	s := newStore(t)
	spec := with(save(s, "artifact", "a", "there", "not-there*"), "required", false)
	shell(t, "echo x >there").set("save", []any{spec}).run().expect(outcomeExited, 0).expectWarning(`"not-there*"`)
	if s.object("a") == nil {
		t.Error("what was there was not saved")
	}
	s = newStore(t)
	spec = with(save(s, "artifact", "a", "not-there"), "required", false)
	b := shell(t, "true").set("save", []any{spec}).run().expect(outcomeExited, 0).expectWarning("was not saved")
	if s.object("a") != nil || b.result.Saved[0].Error != "" {
		t.Errorf("an archive of nothing: %s", b.raw)
	}
	shell(t, "true").set("save", []any{with(save(s, "artifact", "a", "x"), "base", "no/such/base")}).run().expect(outcomeSaveFailed, exitWrapper)
	shell(t, "true").set("save", []any{save(s, "artifact", "a", "../../etc")}).run().expect(outcomeSaveFailed, exitWrapper).expectMessage("leads out")
}

func TestCacheMissAndHit(t *testing.T) {
	s := newStore(t)
	run := func() *bench {
		cache := with(save(s, "cache", "deps", "deps"), "skip_if_restored", true)
		return shell(t, "[ -e deps/x ] && echo warm; mkdir -p deps; touch deps/x").set("restore", []any{restore(s, "cache", "deps", ".", false)}).set("save", []any{cache}).run().expect(outcomeExited, 0).expectNoWarnings()
	}
	first := run()
	if first.result.Restored[0].Hit || len(first.result.Saved) != 1 || first.stdout.Len() > 0 {
		t.Errorf("%s", first.raw)
	}
	second := run()
	if !second.result.Restored[0].Hit || len(second.result.Saved) != 0 || second.stdout.String() != "warm\n" {
		t.Errorf("%s", second.raw)
	}
}

func TestMissingArtifact(t *testing.T) {
	s := newStore(t)
	b := shell(t, "touch ran").set("restore", []any{restore(s, "artifact", "gone", "x/y", true)}).run()
	b.expect(outcomeRestoreFailed, exitWrapper).expectMessage(`"gone"`, "404", "no such object")
	for _, name := range []string{"ran", "x"} {
		if _, err := os.Lstat(b.path(name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if b.result.Started || b.result.ExitCode != nil {
		t.Errorf("%s", b.raw)
	}
	newBench(t, "true").set("restore", []any{restore(s, "artifact", "gone", ".", false)}).run().expect(outcomeExited, 0).expectWarning("went on without")
}

func TestRestoreBringsTheWorkdirAndTheCommand(t *testing.T) {
	s := newStore(t)
	shell(t, "mkdir app; printf '#!/bin/sh\\necho from the artifact in $PWD\\n' >app/start; chmod +x app/start").set("save", []any{save(s, "artifact", "app", "app")}).run().expect(outcomeExited, 0)
	b := newBench(t, "./start")
	b.set("workdir", b.path("app")).set("restore", []any{restore(s, "artifact", "app", b.dir, true)}).run().expect(outcomeExited, 0)
	if b.stdout.String() != "from the artifact in "+b.path("app")+"\n" {
		t.Errorf("%q", b.stdout.String())
	}
}

// A download that breaks in the middle goes on where it broke.
func TestDownloadIsTakenUpAgain(t *testing.T) {
	s := newStore(t)
	from := shell(t, "head -c 2000000 /dev/urandom >data").set("save", []any{save(s, "artifact", "a", "data")}).run().expect(outcomeExited, 0)
	ranges := 0
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		if r.Header.Get("Range") != "" {
			ranges++
		}
		data := s.object("a")
		var at int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		if len(data)-at <= 700_000 {
			return false
		}
		w.Header().Set("ETag", etagOf(data))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-at))
		if at > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(data[at : at+700_000])
		panic(http.ErrAbortHandler)
	}
	to := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
	a, _ := os.ReadFile(from.path("data"))
	b, _ := os.ReadFile(to.path("data"))
	if !bytes.Equal(a, b) || ranges < 2 {
		t.Errorf("%d bytes in %d continuations", len(b), ranges)
	}
}

func TestObjectReplacedWhileItIsRead(t *testing.T) {
	s := newStore(t)
	shell(t, "head -c 2000000 /dev/urandom >data").set("save", []any{save(s, "artifact", "a", "data")}).run().expect(outcomeExited, 0)
	s.spoil(1, isGet, func(w http.ResponseWriter, r *http.Request) {
		data := s.object("a")
		w.Header().Set("ETag", etagOf(data))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:1000])
		s.put("a", append(data, 1))
		panic(http.ErrAbortHandler)
	})
	b := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", "x", true)}).run().expect(outcomeRestoreFailed, exitWrapper)
	if _, err := os.Lstat(b.path("x")); err == nil {
		t.Error("something was left")
	}
}

// Every truncation and damage must be noticed, and leave nothing behind.
func TestDamagedArchivesLeaveNothing(t *testing.T) {
	s := newStore(t)
	shell(t, "mkdir d; for i in 1 2 3 4 5 6 7 8 9; do head -c 400000 /dev/urandom >d/$i; done").set("save", []any{save(s, "artifact", "a", "d")}).run().expect(outcomeExited, 0)
	whole := s.object("a")
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	trailer := bytes.Clone(whole)
	trailer[len(trailer)-1] ^= 1
	for name, data := range map[string][]byte{
		"cut in the middle": whole[:len(whole)/2], "cut before the trailer": whole[:len(whole)-48], "cut by one byte": whole[:len(whole)-1], "cut to 10 bytes": whole[:10], "empty": {},
		"damaged": damaged, "wrong checksum": trailer, "something behind": append(bytes.Clone(whole), whole...), "no archive": []byte("<html>not found</html>"),
	} {
		t.Run(name, func(t *testing.T) {
			if writesFormat != "zstd" && (name == "something behind" || name == "wrong checksum") {
				t.Skip("gzip has no trailer of ours")
			}
			s.put("bad", data)
			b := newBench(t, "true").set("restore", []any{restore(s, "artifact", "bad", "x", true)}).run().expect(outcomeRestoreFailed, exitWrapper)
			if _, err := os.Lstat(b.path("x")); err == nil {
				t.Error("something was left")
			}
			if strings.Contains(b.result.Message, "given up") {
				t.Error(b.result.Message)
			}
			cache := shell(t, "[ ! -e x ]").set("restore", []any{restore(s, "cache", "bad", "x", false)}).run().expect(outcomeExited, 0).expectWarning("went on without")
			if cache.result.Restored[0].Hit {
				t.Error("a hit")
			}
		})
	}
	s.put("a", whole)
	newBench(t, "true").set("restore", []any{with(restore(s, "artifact", "a", "x", true), "sha256", strings.Repeat("0", 64))}).run().expect(outcomeRestoreFailed, exitWrapper).expectMessage("SHA-256")
}

func TestRestoreMergesAndReplaces(t *testing.T) {
	s := newStore(t)
	shell(t, "mkdir -p d/sub; echo new >d/same; echo new >d/sub/inner; echo new >d/added; ln -s same d/link").set("save", []any{save(s, "artifact", "a", "d")}).run().expect(outcomeExited, 0)
	b := newBench(t, "true")
	os.MkdirAll(b.path("d/sub"), 0o755)
	for _, name := range []string{"d/same", "d/sub/kept", "d/sub/inner", "d/link"} {
		os.WriteFile(b.path(name), []byte("old\n"), 0o644)
	}
	b.set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
	for name, want := range map[string]string{"d/same": "new\n", "d/sub/kept": "old\n", "d/sub/inner": "new\n", "d/added": "new\n", "d/link": "new\n"} {
		if got, _ := os.ReadFile(b.path(name)); string(got) != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	left, _ := filepath.Glob(b.path(".hubflow*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestStopDuringRestore(t *testing.T) {
	s := newStore(t)
	arrived := make(chan struct{})
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		close(arrived)
		<-r.Context().Done()
		return true
	}
	b := shell(t, "touch ran").set("restore", []any{restore(s, "artifact", "a", "x", true)}).start()
	<-arrived
	b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 143).expectMessage("before its command had started")
	if _, err := os.Lstat(b.path("x")); err == nil || b.result.Started {
		t.Errorf("%s", b.raw)
	}
}

func TestStopDuringSaveEndsWithinTheGrace(t *testing.T) {
	s := newStore(t)
	arrived := make(chan struct{}, 10)
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that the client went away
		arrived <- struct{}{}
		<-r.Context().Done()
		return true
	}
	b := shell(t, "echo x >data").set("grace_s", 0.4).set("save", []any{save(s, "artifact", "a", "data")}).start()
	<-arrived
	begin := time.Now()
	b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 143).expectMessage("while its artifact")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestSaveAfterStopUsesWhatIsLeftOfTheGrace(t *testing.T) {
	s := newStore(t)
	b := shell(t, "echo x >data; trap 'exit 5' TERM; touch ready; while :; do sleep 0.01; done").set("save", []any{with(save(s, "artifact", "a", "data"), "when", "always")}).start()
	b.signalWhen("ready", syscall.SIGTERM).wait().expect(outcomeStopped, 5)
	if s.object("a") == nil {
		t.Error("nothing was saved")
	}
}
