package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// One client and its patience, on a clock of its own.

// patient is a client whose waits take no time, and the time that they would have taken.
func patient(t testing.TB) (*client, *atomic.Int64) {
	t.Helper()
	c := newClient("")
	var waited atomic.Int64
	c.sleep = func(ctx context.Context, delay time.Duration) error {
		waited.Add(int64(delay))
		return ctx.Err()
	}
	return c, &waited
}

// However the dice fall, a store that is away for a minute is waited for; one that stays away is given up in some minutes.
func TestStoreAwayForAMinute(t *testing.T) {
	for range 200 {
		c, waited := patient(t)
		err := c.retry(context.Background(), func(context.Context) error {
			if time.Duration(waited.Load()) < time.Minute {
				return &statusError{status: http.StatusServiceUnavailable}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("given up after %v: %v", time.Duration(waited.Load()), err)
		}
	}
	c, waited := patient(t)
	tries := 0
	err := c.retry(context.Background(), func(context.Context) error { tries++; return errors.New("connection refused") })
	if err == nil || tries != maxTries || time.Duration(waited.Load()) > 5*time.Minute || !strings.Contains(err.Error(), "given up after 15 tries") {
		t.Errorf("%d tries in %v: %v", tries, time.Duration(waited.Load()), err)
	}
}

func TestWhatIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		again bool
	}{
		"no connection":             {errors.New("connection refused"), true},
		"a broken one":              {io.ErrUnexpectedEOF, true},
		"500":                       {&statusError{status: 500}, true},
		"502":                       {&statusError{status: 502}, true},
		"503 SlowDown":              {&statusError{status: 503, code: "SlowDown"}, true},
		"504":                       {&statusError{status: 504}, true},
		"429":                       {&statusError{status: 429}, true},
		"408":                       {&statusError{status: 408}, true},
		"400 RequestTimeout":        {&statusError{status: 400, code: "RequestTimeout"}, true},
		"200 with an InternalError": {&statusError{status: 200, code: "InternalError"}, true},
		"400":                       {&statusError{status: 400}, false},
		"400 MalformedXML":          {&statusError{status: 400, code: "MalformedXML"}, false},
		"401":                       {&statusError{status: 401}, false},
		"403":                       {&statusError{status: 403}, false},
		"404":                       {&statusError{status: 404}, false},
		"409":                       {&statusError{status: 409}, false},
		"412":                       {&statusError{status: 412}, false},
		"416":                       {&statusError{status: 416}, false},
		"wrapped 503":               {fmt.Errorf("part 3: %w", &statusError{status: 503}), true},
		"wrapped 403":               {fmt.Errorf("part 3: %w", &statusError{status: 403}), false},
		"permanent":                 {permanent("the object was replaced"), false},
		"wrapped permanent":         {fmt.Errorf("x: %w", permanent("y")), false},
		"not trusted":               {&tls.CertificateVerificationError{Err: errors.New("unknown authority")}, false},
		"cancelled":                 {context.Canceled, false},
	} {
		t.Run(name, func(t *testing.T) {
			client, _ := patient(t)
			tries := 0
			err := client.retry(context.Background(), func(context.Context) error {
				if tries++; tries == 2 {
					return nil
				}
				return c.err
			})
			if c.again != (err == nil) || c.again != (tries == 2) {
				t.Errorf("%d tries, %v", tries, err)
			}
		})
	}
}

func TestDelays(t *testing.T) {
	for try, around := range map[int]time.Duration{1: firstDelay, 2: 500 * time.Millisecond, 3: time.Second, 6: 8 * time.Second, 7: longestDelay, 8: longestDelay, 14: longestDelay, 60: longestDelay} {
		for range 50 {
			if delay := delayAfter(try, errors.New("x")); delay < around/2 || delay > around*3/2 {
				t.Errorf("try %d: %v, wanted about %v", try, delay, around)
			}
		}
	}
	for asked, least := range map[time.Duration]time.Duration{0: firstDelay / 2, 5 * time.Second: 5 * time.Second, time.Hour: 2 * longestDelay} {
		if delay := delayAfter(1, &statusError{status: 503, retryAfter: asked}); delay < least || delay > least+2*longestDelay {
			t.Errorf("asked for %v: %v", asked, delay)
		}
	}
}

func TestRetryAfterOfTheStoreIsHeeded(t *testing.T) {
	for header, least := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "100000": 2 * longestDelay, "-3": 0, "Wed, 21 Oct 2026 07:28:00 GMT": 0} {
		tries := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if tries++; tries == 1 {
				w.Header().Set("Retry-After", header)
				w.WriteHeader(http.StatusTooManyRequests)
			}
		}))
		c, waited := patient(t)
		if err := c.put(context.Background(), server.URL, "", []byte("x")); err != nil || tries != 2 || time.Duration(waited.Load()) < least {
			t.Errorf("%q: %v, %d tries, waited %v", header, err, tries, time.Duration(waited.Load()))
		}
		server.Close()
	}
}

func TestErrorCodes(t *testing.T) {
	for body, want := range map[string]string{
		"<Error><Code>NoSuchKey</Code></Error>":                    "NoSuchKey",
		"<?xml version=\"1.0\"?>\n<Error>\n <Code>SlowDown</Code>": "SlowDown",
		"<Code></Code>":           "",
		"<Code>unclosed":          "",
		"":                        "",
		"<html>busy</html>":       "",
		"<Code>with space</Code>": "",
		"<Code>https://x?X-Amz-Signature=1</Code>":     "",
		"<Code>" + strings.Repeat("x", 65) + "</Code>": "",
		"<Code>A</Code><Code>B</Code>":                 "A",
		"<Code>http:evil</Code>":                       "http:evil",
		"<Code>\x1b[31mred</Code>":                     "",
	} {
		if got := errorCode([]byte(body)); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
}

// No message of ours holds an address, whatever the network did.
func TestErrorsHoldNoAddress(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) }))
	defer loop.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
	defer cut.Close()
	for name, address := range map[string]string{
		"nobody there": closed.URL, "in circles": loop.URL, "cut off": cut.URL, "no such host": "http://no-such-host.invalid", "no scheme": "bucket/key",
		"odd scheme": "gopher://x", "bad port": "http://127.0.0.1:99999", "nonsense": "http://[::1", "control characters": "http://x/\x7f\x00",
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := patient(t)
			err := c.put(context.Background(), address+"/bucket/key?"+testSecret, "", []byte("x"))
			if err == nil || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "Signature") || strings.Contains(err.Error(), "/bucket/key") {
				t.Errorf("%v", err)
			}
		})
	}
}

// A body that does not move is broken off; the next try moves.
func TestStalledUpload(t *testing.T) {
	ctx, watch := watchProgress(context.Background())
	defer watch.stop()
	if watch.explain(io.EOF) != io.EOF {
		t.Error("no stall was told as one")
	}
	watch.last.Store(time.Now().Add(-stallLimit - time.Second).UnixNano())
	watch.check()
	if ctx.Err() == nil || !strings.Contains(watch.explain(context.Canceled).Error(), "no byte moved for 1m0s") {
		t.Errorf("%v, %v", ctx.Err(), watch.explain(context.Canceled))
	}
	moving, watch := watchProgress(context.Background())
	defer watch.stop()
	for _, ago := range []time.Duration{0, stallLimit / 2, stallLimit - time.Second} {
		watch.last.Store(time.Now().Add(-ago).UnixNano())
		watch.check()
		if moving.Err() != nil {
			t.Errorf("%v ago is no stall", ago)
		}
	}
	reader := watch.reader(strings.NewReader("x"))
	watch.last.Store(0)
	if _, err := reader.Read(make([]byte, 1)); err != nil || watch.last.Load() == 0 {
		t.Error("a byte that moved was not noticed")
	}
	if _, err := reader.Read(make([]byte, 1)); err != io.EOF || time.Until(time.Unix(0, watch.last.Load())) < answerLimit-time.Minute {
		t.Error("the answer gets no time of its own")
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := newClient("")
	begin := time.Now()
	tries := 0
	err := c.retry(ctx, func(context.Context) error {
		if tries++; tries == 3 {
			cancel()
		}
		return errors.New("connection refused")
	})
	if !errors.Is(err, context.Canceled) || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// The answer of the store counts, not the end of our sending.
func TestRequestsAsTheyAreSent(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 16, 3 << 20} {
		var got *http.Request
		var body []byte
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r
			body, _ = io.ReadAll(r.Body)
			w.Header().Set("ETag", `"e"`)
		}))
		c, _ := patient(t)
		etag, err := c.putPart(context.Background(), server.URL+"/b/k?partNumber=1", "", make([]byte, size))
		if err != nil || etag != `"e"` || len(body) != size || got.ContentLength != int64(size) || len(got.TransferEncoding) > 0 {
			t.Errorf("%d: %v, etag %s, %d bytes, %+v", size, err, etag, len(body), got)
		}
		// A presigned request is signed without them: any header of ours that S3 takes as signed would break it.
		for name := range got.Header {
			if name != "User-Agent" && name != "Content-Length" {
				t.Errorf("the header %s is sent", name)
			}
		}
		if !strings.HasPrefix(got.UserAgent(), "hubflow-wrapper/") {
			t.Errorf("%q", got.UserAgent())
		}
		server.Close()
	}
}
