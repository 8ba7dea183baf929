package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hub is Hubflow's file API.
type hub struct {
	*httptest.Server
	files   map[string][]byte // by path and query
	headers http.Header
	status  []int // answers before the real ones
}

func newHub(t *testing.T) *hub {
	h := &hub{files: map[string][]byte{}}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.headers = r.Header.Clone()
		if len(h.status) > 0 {
			w.WriteHeader(h.status[0])
			h.status = h.status[1:]
			return
		}
		key := r.URL.EscapedPath() + "?" + r.URL.RawQuery
		switch content, known := h.files[key]; {
		case r.Method == http.MethodPut && int64(len(body)) == r.ContentLength:
			h.files[key] = body
			w.WriteHeader(http.StatusCreated)
		case r.Method == http.MethodGet && known:
			_, _ = w.Write(content)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(h.Close)
	t.Setenv("HUBFLOW_URL", h.URL+"/")
	return h
}

func runThub(args ...string) (status int, stdout, stderr string) {
	var out, problems bytes.Buffer
	status = dispatch(append([]string{"/.workflow/bin/thub"}, args...), &out, &problems)
	return status, out.String(), problems.String()
}

// The very command line of TencentHub's components.
func TestThubPushAndPull(t *testing.T) {
	h := newHub(t)
	dir := t.TempDir()
	local := filepath.Join(dir, "vendor.tar.bz")
	os.WriteFile(local, []byte("content"), 0o644)
	status, stdout, stderr := runThub("push", "--username=100", "--password=s3cret", "--repo=ns/repo", "--localpath="+local, "--path=some dir/vendor.tar.bz", "--tag=1.0")
	if status != 0 || stderr != "" || !strings.HasSuffix(stdout, "\n") || strings.Contains(stdout, "s3cret") {
		t.Fatalf("%d %q %q", status, stdout, stderr)
	}
	if string(h.files["/api/v1/files/ns/repo/some%20dir/vendor.tar.bz?tag=1.0"]) != "content" {
		t.Errorf("%v", h.files)
	}
	user, password, _ := (&http.Request{Header: h.headers}).BasicAuth()
	sum := sha256.Sum256([]byte("content"))
	if user != "100" || password != "s3cret" || h.headers.Get("Content-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
		t.Errorf("%v", h.headers)
	}
	back := filepath.Join(dir, "back")
	status, _, stderr = runThub("pull", "--token", "t0ken", "--repo", "hub.tencentyun.com/ns/repo", "--localpath", back, "--path", "some dir/vendor.tar.bz", "--tag", "1.0")
	if got, _ := os.ReadFile(back); status != 0 || string(got) != "content" || h.headers.Get("Authorization") != "Bearer t0ken" {
		t.Errorf("%d %q %v %q", status, got, h.headers, stderr)
	}
}

func TestThubDefaults(t *testing.T) {
	h := newHub(t)
	local := filepath.Join(t.TempDir(), "a.jar")
	os.WriteFile(local, nil, 0o644)
	if status, stdout, stderr := runThub("push", "--token=t", "--repo=ns/repo", "--localpath="+local, "--path=a.jar", "--tag=", "--loglevel=1"); status != 0 || stdout != "" {
		t.Errorf("%d %q %q", status, stdout, stderr)
	}
	if _, known := h.files["/api/v1/files/ns/repo/a.jar?tag=latest"]; !known {
		t.Errorf("%v", h.files)
	}
}

func TestThubRetries(t *testing.T) {
	h := newHub(t)
	h.status = []int{503, 500}
	local := filepath.Join(t.TempDir(), "f")
	os.WriteFile(local, []byte("x"), 0o644)
	if status, _, stderr := runThub("push", "--token=t", "--repo=ns/repo", "--localpath="+local, "--path=f"); status != 0 || len(h.files) != 1 {
		t.Errorf("%d %q", status, stderr)
	}
}

func TestThubFailures(t *testing.T) {
	h := newHub(t)
	dir := t.TempDir()
	local := filepath.Join(dir, "f")
	os.WriteFile(local, []byte("x"), 0o644)
	good := []string{"--username=u", "--password=s3cret", "--repo=ns/repo", "--localpath=" + local, "--path=f", "--tag=t"}
	for name, c := range map[string]struct {
		args   []string
		answer []int
		status int
		says   []string
	}{
		"everything missing": {[]string{"push"}, nil, exitUsage, []string{"--repo", "--localpath", "--path", "--username", "--token"}},
		"unknown option":     {[]string{"push", "--colour=red"}, nil, exitUsage, []string{"colour", "thub help"}},
		"stray argument":     {append(append([]string{"push"}, good...), "x"), nil, exitUsage, []string{`"x"`}},
		"unknown command":    {[]string{"fetch"}, nil, exitUsage, []string{"fetch", "push, pull"}},
		"wrong password":     {append([]string{"push"}, good...), []int{401}, 1, []string{"password or token are wrong"}},
		"no such repository": {append([]string{"push"}, good...), []int{404}, 1, []string{"no such repository"}},
		"no such file":       {append([]string{"pull"}, good[:3]...), nil, exitUsage, []string{"--localpath"}},
		"nothing to pull":    {append([]string{"pull", "--localpath=" + dir}, append(good[:3:3], "--path=none")...), nil, 1, []string{"404"}},
		"local missing":      {append([]string{"push", "--localpath=/no/such"}, append(good[:3:3], "--path=f")...), nil, 1, []string{"/no/such"}},
		"a directory":        {append([]string{"push", "--localpath=" + dir}, append(good[:3:3], "--path=f")...), nil, 1, []string{"not a file"}},
	} {
		t.Run(name, func(t *testing.T) {
			h.status = c.answer
			status, stdout, stderr := runThub(c.args...)
			if status != c.status || !strings.HasSuffix(stderr, "\n") || strings.Contains(stdout+stderr, "s3cret") {
				t.Errorf("%d %q %q", status, stdout, stderr)
			}
			expectParts(t, stderr, c.says...)
		})
	}
	t.Setenv("HUBFLOW_URL", "")
	_, _, stderr := runThub(append([]string{"push"}, good...)...)
	expectParts(t, stderr, "HUBFLOW_URL", "https://hubflow.example")
	if left, _ := filepath.Glob(filepath.Join(dir, ".thub*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
