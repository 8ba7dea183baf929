package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// Downloads and uploads on their own, with a store that misbehaves in every way, on a clock of their own.

func downloadAll(c *client, url string, sum string) ([]byte, error) {
	from, err := openDownload(context.Background(), c, url)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	from.expect(sum)
	data, err := io.ReadAll(from)
	if err != nil {
		return data, err
	}
	return data, from.Verify()
}

// serveFrom is an object that is served from `at` with the given status and no more than `most` bytes, then cut off.
func serveFrom(w http.ResponseWriter, data []byte, at, most, status int) {
	w.Header().Set("ETag", etagOf(data))
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-at))
	if status == http.StatusPartialContent {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(data)-1, len(data)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(data[at:min(len(data), at+most)])
	if at+most < len(data) {
		panic(http.ErrAbortHandler)
	}
}

func TestDownloadsThatBreak(t *testing.T) {
	data := textOf(1_000_000)
	sum := sha256.Sum256(data)
	rangeOf := func(r *http.Request) (at int) {
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		return at
	}
	for name, c := range map[string]struct {
		serve func(try int, w http.ResponseWriter, r *http.Request)
		sum   string
		says  string // "" = all is well
	}{
		"whole":                           {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, 0, len(data), 200) }, "", ""},
		"whole, with its sum":             {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, 0, len(data), 200) }, hex.EncodeToString(sum[:]), ""},
		"whole, with its sum in capitals": {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, 0, len(data), 200) }, strings.ToUpper(hex.EncodeToString(sum[:])), ""},
		"whole, with another sum":         {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, 0, len(data), 200) }, strings.Repeat("0", 64), "damaged or replaced"},
		"cut every 100 kB, ranges": {func(_ int, w http.ResponseWriter, r *http.Request) {
			at := rangeOf(r)
			serveFrom(w, data, at, 100_000, map[bool]int{true: 206, false: 200}[at > 0])
		}, hex.EncodeToString(sum[:]), ""},
		"cut once, no ranges": {func(try int, w http.ResponseWriter, r *http.Request) {
			serveFrom(w, data, 0, map[bool]int{true: 300_000, false: len(data)}[try == 1], 200)
		}, hex.EncodeToString(sum[:]), ""},
		"cut at once, again and again": {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, rangeOf(r), 0, 200) }, "", "given up"},
		"busy in between": {func(try int, w http.ResponseWriter, r *http.Request) {
			if try%2 == 0 {
				fail(w, 503, "SlowDown")
				return
			}
			serveFrom(w, data, rangeOf(r), 250_000, map[bool]int{true: 206, false: 200}[rangeOf(r) > 0])
		}, hex.EncodeToString(sum[:]), ""},
		"refused after a break": {func(try int, w http.ResponseWriter, r *http.Request) {
			if try > 1 {
				fail(w, 403, "AccessDenied")
				return
			}
			serveFrom(w, data, 0, 1000, 200)
		}, "", "403 AccessDenied"},
		"gone after a break": {func(try int, w http.ResponseWriter, r *http.Request) {
			if try > 1 {
				fail(w, 404, "NoSuchKey")
				return
			}
			serveFrom(w, data, 0, 1000, 200)
		}, "", "404"},
		"replaced after a break, told": {func(try int, w http.ResponseWriter, r *http.Request) {
			if try > 1 {
				fail(w, 412, "PreconditionFailed")
				return
			}
			serveFrom(w, data, 0, 1000, 200)
		}, "", "412"},
		"replaced after a break, not told": {func(try int, w http.ResponseWriter, r *http.Request) {
			other := data
			if try > 1 {
				other = append([]byte("x"), data[1:]...)
			}
			serveFrom(w, other, rangeOf(r), map[bool]int{true: 100_000, false: len(data)}[try == 1], map[bool]int{true: 206, false: 200}[rangeOf(r) > 0])
		}, "", "replaced while it was being read"},
		"a part that nobody asked for": {func(_ int, w http.ResponseWriter, r *http.Request) { serveFrom(w, data, 0, len(data), 206) }, "", "206"},
		"another part than asked for": {func(try int, w http.ResponseWriter, r *http.Request) {
			if try == 1 {
				serveFrom(w, data, 0, 300_000, 200)
				return
			}
			w.Header().Set("ETag", etagOf(data))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
			w.WriteHeader(206)
			_, _ = w.Write(data)
		}, "", "sent another part"},
		"with a digest that is wrong": {func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(make([]byte, 32))+":")
			serveFrom(w, data, 0, len(data), 200)
		}, "", "damaged or replaced"},
		"not found":      {func(_ int, w http.ResponseWriter, r *http.Request) { fail(w, 404, "NoSuchKey") }, "", "no such object"},
		"expired":        {func(_ int, w http.ResponseWriter, r *http.Request) { fail(w, 403, "AccessDenied") }, "", "expired"},
		"a page instead": {func(_ int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(302) }, "", "302"},
		"empty":          {func(_ int, w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "0") }, "", "empty"},
		"chunked, no length": {func(_ int, w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(data)
		}, hex.EncodeToString(sum[:]), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			try := 0
			s.before = func(w http.ResponseWriter, r *http.Request) bool {
				try++
				c.serve(try, w, r)
				return true
			}
			client, _ := patient(t)
			got, err := downloadAll(client, s.url("a"), c.sum)
			switch {
			case c.says == "empty":
				if err != nil || len(got) != 0 {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			case c.says == "" && (err != nil || !bytes.Equal(got, data)):
				t.Errorf("%d bytes in %d tries, %v", len(got), try, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%d bytes, %v; want %q", len(got), err, c.says)
			}
			if err != nil && (strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "/bucket/")) {
				t.Errorf("an address is in %v", err)
			}
		})
	}
}

func uploadSpec(s *store, key string, partBytes, parts int) UploadSpec {
	spec := UploadSpec{PutURL: s.url(key), PartBytes: partBytes}
	if parts > 0 {
		spec.Multipart = &Multipart{
			PartURLTemplate: s.URL + "/bucket/" + key + "?partNumber={n}&uploadId=u&X-Amz-Signature={signature}",
			CompleteURL:     s.url(key) + "&uploadId=u", AbortURL: s.url(key) + "&uploadId=u",
		}
		for i := range parts {
			spec.Multipart.Signatures = append(spec.Multipart.Signatures, fmt.Sprintf("sig%d", i+1))
		}
	}
	return spec
}

func TestUploadsOfEveryLength(t *testing.T) {
	const part = 1000
	for _, size := range []int{0, 1, part - 1, part, part + 1, 2*part - 1, 2 * part, 2*part + 1, 10 * part} {
		for _, piece := range []int{1, 7, part, 100_000} {
			if piece == 1 && size > 2*part {
				continue
			}
			s := newStore(t)
			client, _ := patient(t)
			u := newUpload(context.Background(), client, uploadSpec(s, "a", part, 10))
			data := textOf(size)
			for rest := data; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
				if _, err := u.Write(rest[:min(piece, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
			if s.object("a") != nil {
				t.Errorf("%d in %d: it can be seen before it is whole", size, piece)
			}
			if err := u.Finish(); err != nil || !bytes.Equal(s.object("a"), data) {
				t.Errorf("%d in %d: %v, %d bytes", size, piece, err, len(s.object("a")))
			}
			if multipart := s.count("POST a") == 1; multipart != (size > part) || s.aborted["a"] == multipart {
				t.Errorf("%d: completed in parts %v, aborted %v", size, multipart, s.aborted["a"])
			}
		}
	}
}

func TestUploadsThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		match  func(*http.Request) bool
		answer http.HandlerFunc
		size   int
		says   string
	}{
		"the single request": {isPut, answer(403, "AccessDenied"), 10, "403"},
		"the first part":     {isPart, answer(403, "AccessDenied"), 5000, "could not be stored"},
		"the third part":     {func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "3" }, answer(403, ""), 5000, "part 3"},
		"the completion":     {isPost, answer(400, "InvalidPart"), 5000, "InvalidPart"},
		"no such upload":     {isPost, answer(404, "NoSuchUpload"), 5000, "404"},
		"no ETag":            {isPart, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, 5000, "no ETag for part 1"},
		"busy for ever":      {isPart, answer(503, "SlowDown"), 5000, "given up after"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			s.spoil(1000, c.match, c.answer)
			client, _ := patient(t)
			u := newUpload(context.Background(), client, uploadSpec(s, "a", 1000, 20))
			_, err := u.Write(textOf(c.size))
			if err == nil {
				err = u.Finish()
			}
			u.Abandon(err)
			if err == nil || !strings.Contains(err.Error(), c.says) || s.object("a") != nil {
				t.Errorf("%v, %d bytes are there", err, len(s.object("a")))
			}
			if !s.aborted["a"] {
				t.Error("the parts were left to lie about")
			}
		})
	}
}

// The spool has no name: whatever happens to us, nothing is left on the disk.
func TestSpoolHasNoName(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	s := newStore(t)
	client, _ := patient(t)
	u := newUpload(context.Background(), client, uploadSpec(s, "a", 1000, 0))
	data := textOf(50_000)
	if _, err := u.Write(data); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 || u.spool == nil {
		t.Errorf("%v", entries)
	}
	s.spoil(2, isPut, breakConnection) // sent again from its start
	if err := u.Finish(); err != nil || !bytes.Equal(s.object("a"), data) {
		t.Errorf("%v, %d bytes", err, len(s.object("a")))
	}
}

func TestUploadThatIsCancelled(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	client, _ := patient(t)
	u := newUpload(ctx, client, uploadSpec(s, "a", 1000, 20))
	_, _ = u.Write(textOf(2500))
	cancel()
	_, err := u.Write(textOf(5000))
	if err == nil {
		err = u.Finish()
	}
	u.Abandon(err)
	if !errors.Is(err, context.Canceled) || s.object("a") != nil || !s.aborted["a"] {
		t.Errorf("%v, aborted %v", err, s.aborted["a"])
	}
}

// Memory for parts is bounded, whatever the size of a part.
func TestPartsHeldAtOnce(t *testing.T) {
	for partBytes, most := range map[int]int{1000: 3, 8 << 20: 3, 16 << 20: 2, 32 << 20: 1, 64 << 20: 1} {
		client, _ := patient(t)
		u := newUpload(context.Background(), client, UploadSpec{PutURL: "http://x", PartBytes: partBytes})
		if held := len(u.free) + 1; held != most {
			t.Errorf("parts of %d: %d at once, want %d", partBytes, held, most)
		}
	}
}

func TestRestoreOfSeveral(t *testing.T) {
	s := newStore(t)
	s.put("one", packedTar(t, tarOf(t, file("same"), file("d/one"))))
	two := entryOf(0x30, "same", "", "two!")
	s.put("two", packedTar(t, tarOf(t, two, file("d/two"), dir("e"))))
	s.put("bad", packedTar(t, tarOf(t, file("d/bad"), file("../x"))))
	for name, c := range map[string]struct {
		restore []any
		outcome string
		there   string
	}{
		"one, then two":          {[]any{restore(s, "cache", "one", ".", true), restore(s, "artifact", "two", ".", true)}, outcomeExited, "d d/one d/two e same"},
		"into different places":  {[]any{restore(s, "cache", "one", "p", true), restore(s, "artifact", "two", "q/r", true)}, outcomeExited, "p p/d p/d/one p/same q q/r q/r/d q/r/d/two q/r/e q/r/same"},
		"one inside the other":   {[]any{restore(s, "cache", "one", ".", true), restore(s, "artifact", "two", "d", true)}, outcomeExited, "d d/d d/d/two d/e d/one d/same same"},
		"the second is missing":  {[]any{restore(s, "cache", "one", ".", true), restore(s, "cache", "none", ".", false)}, outcomeExited, "d d/one same"},
		"the second is hostile":  {[]any{restore(s, "cache", "one", ".", true), restore(s, "cache", "bad", ".", false)}, outcomeExited, "d d/one same"},
		"the second is required": {[]any{restore(s, "cache", "one", ".", true), restore(s, "artifact", "bad", ".", true)}, outcomeRestoreFailed, "d d/one same"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "true").set("restore", c.restore).set("output_path", "").run()
			if b.result.Outcome != c.outcome {
				t.Fatalf("%s", b.raw)
			}
			var there []string
			walk(b.dir, "", &there)
			there = slices.DeleteFunc(there, func(name string) bool { return name == "result.json" })
			if got := strings.Join(there, " "); got != c.there {
				t.Errorf("got %s, want %s", got, c.there)
			}
		})
	}
}

func walk(top, prefix string, names *[]string) {
	entries, _ := os.ReadDir(top + "/" + prefix)
	for _, entry := range entries {
		name := strings.TrimPrefix(prefix+"/"+entry.Name(), "/")
		*names = append(*names, name)
		if entry.IsDir() {
			walk(top, name, names)
		}
	}
}
