package main

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// store is an object store in memory with the few requests that we make: PUT and GET of objects, parts, completion, abort.
// before can spoil a request: it returns true if it has answered.
type store struct {
	*httptest.Server
	mu       sync.Mutex
	objects  map[string][]byte
	parts    map[string]map[int][]byte // by key
	aborted  map[string]bool
	requests []string
	before   func(w http.ResponseWriter, r *http.Request) bool
}

func newStore(t testing.TB) *store {
	s := &store{objects: map[string][]byte{}, parts: map[string]map[int][]byte{}, aborted: map[string]bool{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// newTLSStore speaks HTTPS with a certificate that nobody trusts by himself.
func newTLSStore(t testing.TB) *store {
	s := &store{objects: map[string][]byte{}, parts: map[string]map[int][]byte{}, aborted: map[string]bool{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// certificate is that of a TLS store, as a PEM file.
func (s *store) certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

const testSecret = "X-Amz-Signature=topsecret"

func (s *store) url(key string) string { return s.URL + "/bucket/" + key + "?" + testSecret }

func (s *store) upload(key string, partBytes, parts int) map[string]any {
	upload := map[string]any{"put_url": s.url(key), "part_bytes": partBytes, "multipart": nil}
	if parts > 0 {
		signatures := make([]string, parts)
		for i := range signatures {
			signatures[i] = fmt.Sprintf("sig%d", i+1)
		}
		upload["multipart"] = map[string]any{
			"part_url_template": s.URL + "/bucket/" + key + "?partNumber={n}&uploadId=u&X-Amz-Signature={signature}", "signatures": signatures,
			"complete_url": s.url(key) + "&uploadId=u", "abort_url": s.url(key) + "&uploadId=u",
		}
	}
	return upload
}

func (s *store) object(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[key]
}

func (s *store) put(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[key] = data
}

// spoil answers the first `times` requests that match with spoiling.
func (s *store) spoil(times int, match func(*http.Request) bool, spoiling http.HandlerFunc) {
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		s.mu.Lock()
		hit := times > 0 && match(r)
		if hit {
			times--
		}
		s.mu.Unlock()
		if hit {
			spoiling(w, r)
		}
		return hit
	}
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, _ := strings.CutPrefix(r.URL.Path, "/bucket/")
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+key)
	s.mu.Unlock()
	if s.before != nil && s.before(w, r) {
		return
	}
	part, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
	multipart := r.URL.Query().Has("uploadId")
	switch {
	case r.Method == http.MethodPut:
		s.take(w, r, key, part)
	case r.Method == http.MethodPost && multipart:
		s.complete(w, r, key)
	case r.Method == http.MethodDelete && multipart:
		s.mu.Lock()
		s.aborted[key] = true
		delete(s.parts, key)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodGet:
		data := s.object(key)
		if data == nil {
			fail(w, http.StatusNotFound, "NoSuchKey")
			return
		}
		w.Header().Set("ETag", etagOf(data))
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func (s *store) take(w http.ResponseWriter, r *http.Request, key string, part int) {
	data, err := io.ReadAll(r.Body)
	if err != nil || int64(len(data)) != r.ContentLength {
		fail(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	if part > 0 && r.URL.Query().Get("X-Amz-Signature") != fmt.Sprintf("sig%d", part) {
		fail(w, http.StatusForbidden, "SignatureDoesNotMatch")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if part == 0 {
		s.objects[key] = data
	} else {
		if s.parts[key] == nil {
			s.parts[key] = map[int][]byte{}
		}
		s.parts[key][part] = data
	}
	w.Header().Set("ETag", etagOf(data))
}

func (s *store) complete(w http.ResponseWriter, r *http.Request, key string) {
	var request completeRequest
	if err := xml.NewDecoder(r.Body).Decode(&request); err != nil {
		fail(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts[key] == nil {
		fail(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	var whole []byte
	for i, part := range request.Parts {
		data, known := s.parts[key][part.PartNumber]
		if !known || part.PartNumber != i+1 || part.ETag != etagOf(data) {
			fail(w, http.StatusBadRequest, "InvalidPart")
			return
		}
		whole = append(whole, data...)
	}
	s.objects[key] = whole
	delete(s.parts, key)
	fmt.Fprint(w, "<CompleteMultipartUploadResult/>")
}

func etagOf(data []byte) string {
	sum := md5.Sum(data)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func fail(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", code)
}

func isPart(r *http.Request) bool { return r.URL.Query().Has("partNumber") }
func isPut(r *http.Request) bool  { return r.Method == http.MethodPut }
func isGet(r *http.Request) bool  { return r.Method == http.MethodGet }
func isPost(r *http.Request) bool { return r.Method == http.MethodPost }
func always(*http.Request) bool   { return true }

func answer(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fail(w, status, code)
	}
}

// breakConnection drops the connection without an answer.
func breakConnection(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }

func (s *store) count(prefix string) (count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, request := range s.requests {
		if strings.HasPrefix(request, prefix) {
			count++
		}
	}
	return count
}
