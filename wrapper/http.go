package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Presigned requests to object storage: one client, bounded retries, and no address in any message, since a presigned
// address is a credential.

const (
	// These tries outlast a minute without an answer, even where chance makes every delay as short as it can be.
	maxTries = 15
	// longestPatience is for stores that take everything and answer nothing, where each try is long.
	longestPatience = 15 * time.Minute
	quietTries      = 4 // so many failures, some seconds of them, are not worth a line
	firstDelay      = 250 * time.Millisecond
	longestDelay    = 15 * time.Second
	// stallLimit ends a request that moves no byte.
	stallLimit = 60 * time.Second
	// answerLimit is for the answer after the last byte: completing a large upload takes the store a while.
	answerLimit = 5 * time.Minute
)

type client struct {
	http    *http.Client
	rootErr error                                                // why further roots could not be read: then nothing is asked of those who need them
	sleep   func(ctx context.Context, delay time.Duration) error // replaced by tests
}

// newClient trusts the image's certificates, and those in caFile if one is named.
func newClient(caFile string) *client {
	roots, rootErr := readRoots(caFile)
	settings := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: answerLimit,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true, // archives are bytes to us, whatever a server says about them
		TLSClientConfig:       settings,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: one connection a stream is quicker
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
	}
	// A redirect would turn a PUT into a GET whose answer says nothing of what was to be stored, and would tell the address,
	// which is a credential, to whoever it leads to.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{http: &http.Client{Transport: transport, CheckRedirect: stay}, rootErr: rootErr, sleep: sleepContext}
}

// readRoots gives nil, which means the image's own, where no file is named.
func readRoots(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, permanent("the roots in ca_file %s cannot be read: %w. Name a PEM file that this user may read", caFile, pathCause(err))
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, permanent("ca_file %s holds no certificate: it must be a PEM file with -----BEGIN CERTIFICATE-----", caFile)
	}
	return roots, nil
}

func sleepContext(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// statusError is an answer that was not what we asked for.
type statusError struct {
	status     int
	method     string
	code       string // S3's <Code>, such as NoSuchKey
	said       string // the beginning of what it said, where that is text for people. May repeat the address: for thub only
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("object storage answered %d", e.status)
	if e.code != "" {
		text += " " + e.code
	}
	switch {
	case e.status == http.StatusForbidden:
		text += " (the presigned address has expired or was not made for this; were the clocks right, and did the job wait long?)"
	case e.status == http.StatusNotFound && e.method == http.MethodGet:
		text += " (there is no such object)"
	case e.status == http.StatusNotFound:
		text += " (there is no such bucket, or the upload that this belonged to is over)"
	case e.status >= 300 && e.status < 400:
		text += " (it sends us elsewhere, where we do not go with a presigned address: is this the store itself, or a login page, or http in place of https?)"
	case e.status == http.StatusRequestEntityTooLarge:
		text += " (something on the way takes no request of this size: a proxy's limit, or the store's)"
	}
	return text
}

func (e *statusError) temporary() bool {
	switch e.code {
	case "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable":
		return true
	}
	return e.status == http.StatusRequestTimeout || e.status == http.StatusTooManyRequests || e.status >= 500
}

// permanentError is not worth another try.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func permanent(format string, args ...any) error { return permanentError{fmt.Errorf(format, args...)} }

func worthRetrying(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.temporary()
	}
	var final permanentError
	var certificate *tls.CertificateVerificationError
	return !errors.As(err, &final) && !errors.As(err, &certificate) && !errors.Is(err, context.Canceled)
}

// retry calls do until it succeeds, fails for good, or maxTries or longestPatience are used up.
func (c *client) retry(ctx context.Context, do func(ctx context.Context) error) error {
	begin := time.Now()
	for try := 1; ; try++ {
		err := do(ctx)
		if err == nil || ctx.Err() != nil || !worthRetrying(err) {
			if err != nil && ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		if try == maxTries || time.Since(begin) > longestPatience {
			return fmt.Errorf("%w; given up after %d tries in %v", err, try, time.Since(begin).Round(time.Second))
		}
		delay := delayAfter(try, err)
		if try >= quietTries { // who reads the log should not think that we hang
			say("%v; try %d of %d in %v", err, try+1, maxTries, delay.Round(time.Second/10))
		}
		if err := c.sleep(ctx, delay); err != nil {
			return err
		}
	}
}

// delayAfter grows exponentially, is spread by half to either side, and is never shorter than the server asked for.
func delayAfter(try int, err error) time.Duration {
	delay := longestDelay
	if try < 8 {
		delay = min(firstDelay<<(try-1), longestDelay)
	}
	delay = delay/2 + rand.N(delay)
	var status *statusError
	if errors.As(err, &status) {
		delay = max(delay, min(status.retryAfter, 2*longestDelay))
	}
	return delay
}

// send makes one request and returns the answer if it is one of the wanted statuses. The caller closes its body.
func (c *client) send(ctx context.Context, method, address string, header http.Header, body io.Reader, size int64, want ...int) (*http.Response, error) {
	if c.rootErr != nil && strings.HasPrefix(address, "https:") {
		return nil, c.rootErr
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, permanent("the presigned address is not a valid URL")
	}
	request.ContentLength = size
	if size == 0 {
		request.Body = http.NoBody
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("User-Agent", "hubflow-wrapper/"+version)
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, withoutAddress(err)
	}
	for _, status := range want {
		if answer.StatusCode == status {
			return answer, nil
		}
	}
	defer answer.Body.Close()
	head, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
	problem := &statusError{status: answer.StatusCode, method: method, code: errorCode(head), said: readable(head)}
	if after, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && after > 0 {
		problem.retryAfter = time.Duration(min(after, 3600)) * time.Second
	}
	return nil, problem
}

// withoutAddress drops the URL that net/http puts into its errors.
func withoutAddress(err error) error {
	var detail *url.Error
	if errors.As(err, &detail) {
		host := "object storage"
		if parsed, parseErr := url.Parse(detail.URL); parseErr == nil {
			host = parsed.Host
		}
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) {
			return fmt.Errorf("%s is not trusted: %w. Name a file with the root that signed it: ca_file in the job document, HUBFLOW_CA_FILE for thub", host, detail.Err)
		}
		return fmt.Errorf("no answer from %s: %w", host, detail.Err)
	}
	return err
}

// errorCode finds S3's <Code> in an XML answer, without caring for the rest.
func errorCode(body []byte) string {
	_, rest, found := bytes.Cut(body, []byte("<Code>"))
	code, _, closed := bytes.Cut(rest, []byte("</Code>"))
	if !found || !closed || len(code) > 64 {
		return ""
	}
	for _, c := range code {
		if c < '0' || c > 'z' {
			return ""
		}
	}
	return string(code)
}

// readable is the first line of an answer that is plain text or JSON, shortened; "" for anything else, as pages and XML.
func readable(body []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(body), []byte("\n"))
	if len(line) == 0 || line[0] == '<' || !utf8.Valid(line) {
		return ""
	}
	return cut(strings.Map(func(r rune) rune {
		if r < ' ' {
			return -1
		}
		return r
	}, string(line)), 200)
}

// put stores data, with retries.
func (c *client) put(ctx context.Context, address, contentType string, data []byte) error {
	_, err := c.putPart(ctx, address, contentType, data)
	return err
}

// putPart stores data and returns the ETag that the store gave it.
func (c *client) putPart(ctx context.Context, address, contentType string, data []byte) (etag string, err error) {
	return c.putStream(ctx, address, contentType, int64(len(data)), func() (io.Reader, error) { return bytes.NewReader(data), nil })
}

// putStream stores size bytes; open gives them from the start for each try.
func (c *client) putStream(ctx context.Context, address, contentType string, size int64, open func() (io.Reader, error)) (etag string, err error) {
	header := http.Header{}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	err = c.retry(ctx, func(ctx context.Context) error {
		body, err := open()
		if err != nil {
			return permanentError{err}
		}
		ctx, watch := watchProgress(ctx)
		defer watch.stop()
		answer, err := c.send(ctx, http.MethodPut, address, header, watch.reader(body), size, http.StatusOK, http.StatusCreated, http.StatusNoContent)
		if err != nil {
			return watch.explain(err)
		}
		defer answer.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
		etag = answer.Header.Get("ETag")
		return nil
	})
	return etag, err
}

// progressWatch ends a request whose body has not moved for stallLimit.
type progressWatch struct {
	last   atomic.Int64
	stall  atomic.Bool
	cancel context.CancelFunc
	timer  *time.Timer
}

func watchProgress(ctx context.Context) (context.Context, *progressWatch) {
	ctx, cancel := context.WithCancel(ctx)
	watch := &progressWatch{cancel: cancel}
	watch.moved()
	watch.timer = time.AfterFunc(stallLimit, watch.check)
	return ctx, watch
}

func (w *progressWatch) moved() { w.last.Store(time.Now().UnixNano()) }

func (w *progressWatch) check() {
	idle := time.Since(time.Unix(0, w.last.Load()))
	if idle >= stallLimit {
		w.stall.Store(true)
		w.cancel()
		return
	}
	w.timer.Reset(stallLimit - idle)
}

func (w *progressWatch) stop() {
	w.timer.Stop()
	w.cancel()
}

// explain tells a stall from a request that was cancelled from outside.
func (w *progressWatch) explain(err error) error {
	if err != nil && w.stall.Load() {
		return fmt.Errorf("no byte moved for %v", stallLimit)
	}
	return err
}

func (w *progressWatch) reader(from io.Reader) io.Reader { return &watchedReader{from, w} }

type watchedReader struct {
	from  io.Reader
	watch *progressWatch
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if n > 0 {
		r.watch.moved()
	} else if err == io.EOF {
		// All was handed over; the answer has a limit of its own.
		r.watch.last.Store(time.Now().Add(answerLimit).UnixNano())
	}
	return n, err
}
