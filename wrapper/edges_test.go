package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Ends that are hard to come to: a stop in the middle of something, places that are not what they were, servers in between.

// A store that sends us elsewhere has stored nothing, and may not learn addresses that are credentials.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var told []string
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told = append(told, r.Referer()+r.Header.Get("Authorization"))
		fmt.Fprint(w, "<html>Please log in</html>")
	}))
	defer page.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := newStore(t)
			s.spoil(99, always, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, page.URL+"/login", status) })
			b := shell(t, "echo x >f").set("save", []any{save(s, "artifact", "a", "f")}).run()
			b.expect(outcomeSaveFailed, exitWrapper).expectMessage(fmt.Sprint(status), "sends us elsewhere")
			newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", "x", true)}).run().expect(outcomeRestoreFailed, exitWrapper)
			var stdout, stderr strings.Builder
			t.Setenv("HUBFLOW_URL", s.url(""))
			file := filepath.Join(t.TempDir(), "f")
			os.WriteFile(file, []byte("x"), 0o644)
			if got := thub([]string{"push", "--token=T", "--repo=a/b", "--localpath=" + file}, &stdout, &stderr); got != 1 {
				t.Errorf("thub: %d %s", got, stdout.String())
			}
		})
	}
	if len(told) > 0 {
		t.Errorf("the other place was told %q", told)
	}
}

func TestAnswersThatCompleteNoUpload(t *testing.T) {
	for name, c := range map[string]struct {
		answers []http.HandlerFunc
		says    string // "" = stored
	}{
		"as S3 says it":       {[]http.HandlerFunc{body(200, `<?xml version="1.0"?><CompleteMultipartUploadResult xmlns="x"><ETag>e</ETag></CompleteMultipartUploadResult>`)}, ""},
		"a page":              {[]http.HandlerFunc{body(200, "<html>Please log in</html>")}, "not object storage's"},
		"text":                {[]http.HandlerFunc{body(200, "ok")}, "not object storage's"},
		"an error in the 200": {[]http.HandlerFunc{body(200, `<Error xmlns="x"><Code>InvalidPart</Code></Error>`)}, "InvalidPart"},
		"nothing, then done":  {[]http.HandlerFunc{body(200, ""), answer(404, "NoSuchUpload")}, ""},
		"broken, then done":   {[]http.HandlerFunc{func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, answer(404, "NoSuchUpload")}, ""},
		"busy, then unknown":  {[]http.HandlerFunc{answer(503, "SlowDown"), answer(404, "NoSuchUpload")}, "NoSuchUpload"},
		"unknown":             {[]http.HandlerFunc{answer(404, "NoSuchUpload")}, "NoSuchUpload"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if r.Method == http.MethodPost {
					asked++
					c.answers[min(asked, len(c.answers))-1](w, r)
					return
				}
				w.Header().Set("ETag", `"e"`)
			}))
			defer server.Close()
			client, _ := patient(t)
			to := newUpload(t.Context(), client, UploadSpec{PutURL: server.URL, PartBytes: 4, Multipart: &Multipart{server.URL + "/{n}{signature}", []string{"a", "b"}, server.URL + "/c", server.URL + "/a"}})
			_, err := to.Write([]byte("123456"))
			if err == nil {
				err = to.Finish()
			}
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func body(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, text)
	}
}

func TestStopWhileSavingIsNotGreen(t *testing.T) {
	s := newStore(t)
	s.spoil(999, always, answer(503, "SlowDown"))
	b := shell(t, "echo x >f").set("grace_s", 3).set("save", []any{save(s, "artifact", "a", "f")}).start()
	waitFor(t, "a try", func() bool { return s.count("PUT") > 0 })
	begin := time.Now()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 143).expectMessage("told to stop", `"a"`, "lost")
	if b.result.Phase != phaseSave || *b.result.ExitCode != 0 || time.Since(begin) > 3*time.Second {
		t.Errorf("%v %s", time.Since(begin), b.raw)
	}
}

// Whatever hangs, the result is there before the grace is over (T59).
func TestResultWithinTheGrace(t *testing.T) {
	silent := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() }
	for name, c := range map[string]struct {
		script string
		change func(*store, *bench)
	}{
		"overflow, busy": {`echo "[JOB_OUT] A = $(head -c 7000 /dev/zero | tr '\0' y)"; touch ready; sleep 60`, func(s *store, b *bench) {
			s.spoil(999, always, answer(503, "SlowDown"))
			b.set("overflow", map[string]any{"key": "k", "put_url": s.url("over")})
		}},
		"overflow, silent": {`echo "[JOB_OUT] A = $(head -c 7000 /dev/zero | tr '\0' y)"; touch ready; sleep 60`, func(s *store, b *bench) {
			s.spoil(999, always, silent)
			b.set("overflow", map[string]any{"key": "k", "put_url": s.url("over")})
		}},
		"three saves, silent": {"echo x >f; touch ready; sleep 60", func(s *store, b *bench) {
			s.spoil(999, always, silent)
			one := save(s, "cache", "a", "f")
			one["when"] = "always"
			one["upload"].(map[string]any)["multipart"] = map[string]any{"part_url_template": s.url("{n}{signature}"), "signatures": []string{"s"}, "complete_url": s.url("c"), "abort_url": s.url("d")}
			b.set("save", []any{one, one, one})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			b := shell(t, c.script).set("grace_s", 4)
			c.change(s, b)
			b.start()
			waitForFile(t, b.path("ready"))
			begin := time.Now()
			_ = b.cmd.Process.Signal(syscall.SIGTERM)
			b.wait()
			if took := time.Since(begin); took > 4*time.Second {
				t.Errorf("the result came after %v: %s", took, b.raw)
			}
		})
	}
}

func TestStopIsHeardInAStormOfSignals(t *testing.T) {
	b := shell(t, "trap : HUP USR1 USR2 WINCH; touch ready; while :; do sleep 1; done").start()
	waitForFile(t, b.path("ready"))
	stop := make(chan struct{})
	for _, number := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, 40, 41} {
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					if number < 40 { // the others would end the child
						_ = b.cmd.Process.Signal(number)
					}
				}
			}
		}()
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 143)
	close(stop)
}

func TestSuspendedJobIsStopped(t *testing.T) {
	b := shell(t, "trap 'exit 5' TERM; touch ready; kill -STOP $$; exit 6").set("grace_s", 30).start()
	waitForFile(t, b.path("ready"))
	begin := time.Now()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait().expect(outcomeStopped, 5)
	if time.Since(begin) > 5*time.Second {
		t.Errorf("it took %v", time.Since(begin))
	}
}

func TestNohupIsRespected(t *testing.T) {
	nohup, err := exec.LookPath("nohup")
	if err != nil {
		t.Skip("needs nohup")
	}
	b := shell(t, "touch ready; while ! [ -e go ]; do sleep 0.01; done; exit 3")
	b.prepare()
	b.cmd.Args = append([]string{nohup, b.cmd.Path}, b.cmd.Args[1:]...)
	b.cmd.Path = nohup
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitForFile(t, b.path("ready"))
	_ = b.cmd.Process.Signal(syscall.SIGHUP)
	os.WriteFile(b.path("go"), nil, 0o644)
	b.wait().expect(outcomeExited, 3)
}

func TestAJobCannotPutItsOwnResultInPlaceOfOurs(t *testing.T) {
	const forged = `{"version":1,"outcome":"start_failed","started":false}`
	for name, script := range map[string]string{
		"a file":            `rm .result.json.new; echo '` + forged + `' >.result.json.new; exit 3`,
		"a link":            `echo kept >other; rm .result.json.new; ln -s other .result.json.new; exit 3`,
		"a link there":      `echo kept >other; rm .result.json.new; ln -s other result.json; exit 3`,
		"a pipe there":      `rm .result.json.new; mkfifo result.json; exit 3`,
		"a directory there": `rm .result.json.new; mkdir result.json; exit 3`,
		"a pipe, a link":    `rm .result.json.new; mkfifo .result.json.new; ln -s none result.json; exit 3`,
	} {
		t.Run(name, func(t *testing.T) {
			b := shell(t, script).run().expect(outcomeExited, 3)
			if info, _ := os.Lstat(b.path("result.json")); !info.Mode().IsRegular() {
				t.Errorf("%v", info.Mode())
			}
			if kept, err := os.ReadFile(b.path("other")); err == nil && string(kept) != "kept\n" {
				t.Errorf("the file behind the link holds %q", kept)
			}
		})
	}
}

// A log that nobody reads must not keep the result back, nor the line about a failure of ours.
func TestStuckLogDoesNotKeepTheResultBack(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	b := shell(t, `touch ready; head -c 3000000 /dev/zero | tr '\0' x; echo "[JOB_OUT] A = $(head -c 70000 /dev/zero | tr '\0' y)"; touch done; trap 'exit 0' TERM; sleep 60 & wait`)
	b.set("grace_s", 8)
	b.prepare()
	b.cmd.Stdout, b.cmd.Stderr = writer, writer
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	waitForFile(t, b.path("ready"))
	begin := time.Now()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	b.wait()
	if took := time.Since(begin); took > 12*time.Second {
		t.Errorf("the result came after %v", took)
	}
}

func TestRunningFileComesBack(t *testing.T) {
	old := heartbeat
	heartbeat = 20 * time.Millisecond
	defer func() { heartbeat = old }()
	path := filepath.Join(t.TempDir(), "running")
	if warning := markRunning(&Job{RunningPath: path}, 1); warning != "" {
		t.Fatal(warning)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	waitForFile(t, path)
}

// In the background a job has no terminal to take; in front again it gets it.
func TestTerminalIsNotTakenFromTheBackground(t *testing.T) {
	b := shell(t, "touch started; read line; echo child got $line; exit 3").set("stdin", "pass")
	s, over := behindBash(b, " &")
	waitForFile(t, b.path("started"))
	s.typed("echo outer $((40+2))\n")
	s.shows("outer 42")
	s.typed("fg\n")
	s.typed("a word\n")
	s.shows("child got a word")
	s.typed("echo status $?; exit\n")
	s.shows("status 3")
	over()
}

func TestCtrlZOfAJobWithoutTheTerminal(t *testing.T) {
	b := shell(t, "touch started; while ! [ -e go ]; do sleep 0.01; done; exit 3")
	s, over := behindBash(b, "")
	waitForFile(t, b.path("started"))
	s.typed("\x1a")
	s.shows("Stopped")
	s.typed("echo outer $((40+2))\n")
	s.shows("outer 42")
	s.typed("touch go; fg; echo status $?; exit\n")
	s.shows("status 3")
	over()
}

func TestVeryShortTimeLimitIsOne(t *testing.T) {
	if seconds(1e-12) <= 0 || seconds(0) != 0 || seconds(1e300) <= 0 {
		t.Error(seconds(1e-12), seconds(0), seconds(1e300))
	}
}

// What a killed wrapper leaves must not run beside the next try.
func TestTheNextWrapperEndsWhatAKilledOneHasLeft(t *testing.T) {
	group := newCgroup()
	if group == nil {
		t.Skip("no control group can be had here")
	}
	group.remove()
	b := shell(t, `sh -c 'echo $$ >pid; touch ready; exec sleep 600' & wait`).start()
	waitForFile(t, b.path("ready"))
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	newBench(t, "true").run().expect(outcomeExited, 0)
	pid, err := os.ReadFile(b.path("pid"))
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end", func() bool { // whoever inherited it may take a moment to reap it
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(status), ") Z ")
	})
}

// Spaces behind a value are no part of it, however many they are and however the stream was cut.
func TestSpacesBehindALargeValue(t *testing.T) {
	limits := OutputLimits{ValueBytes: 65536, Keys: 10, TotalBytes: 1 << 20}
	for _, spaces := range []int{0, 100, lineSlack - 20, lineSlack + 1, 3 * lineSlack} {
		for _, end := range []string{"\n", "\r\n", ""} {
			for value, fits := range map[string]bool{strings.Repeat("v", 65536): true, strings.Repeat("v", 65537): false} {
				line := "[JOB_OUT] K = " + value + strings.Repeat(" ", spaces) + end
				for _, piece := range []int{len(line), 1000, 65536} {
					scanner := newOutputScanner(nil, limits)
					for at := 0; at < len(line); at += piece {
						_, _ = scanner.Write([]byte(line[at:min(at+piece, len(line))]))
					}
					_ = scanner.Close()
					if violation := scanner.collected(nil).violation(); (violation == "") != fits {
						t.Errorf("%d bytes, %d spaces, %q, in pieces of %d: %q", len(value), spaces, end, piece, violation)
					}
				}
			}
		}
	}
}
