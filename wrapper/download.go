package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"
)

// download reads one object as a stream. A connection that breaks is taken up where it broke, as long as the object is still
// the same one.
type download struct {
	ctx    context.Context
	client *client
	url    string
	header http.Header // sent with each request

	body  io.ReadCloser
	watch *progressWatch
	etag  string
	size  int64 // -1 = unknown
	at    int64
	hash  hash.Hash // nil: nobody asks
	tries int       // since the last byte that came

	expected string // SHA-256 in hex
}

// openDownload asks for the object. A *statusError of 404 means that there is none.
func openDownload(ctx context.Context, c *client, url string) (*download, error) {
	d := &download{ctx: ctx, client: c, url: url, size: -1}
	err := c.retry(ctx, func(context.Context) error { return d.connect() })
	if err != nil {
		return nil, err
	}
	return d, nil
}

// connect asks for what is still missing.
func (d *download) connect() error {
	header := http.Header{}
	for name, values := range d.header {
		header[name] = values
	}
	if d.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
		if d.etag != "" {
			header.Set("If-Match", d.etag)
		}
	}
	want := []int{http.StatusOK}
	if d.at > 0 {
		want = append(want, http.StatusPartialContent)
	}
	ctx, watch := watchProgress(d.ctx)
	answer, err := d.client.send(ctx, http.MethodGet, d.url, header, nil, 0, want...)
	if err != nil {
		watch.stop()
		return watch.explain(err)
	}
	d.body, d.watch = answer.Body, watch
	etag := answer.Header.Get("ETag")
	if d.at == 0 {
		d.etag, d.size = etag, answer.ContentLength
		if d.expected == "" {
			d.expect(contentDigest(answer.Header))
		}
		return nil
	}
	if etag != d.etag {
		d.Close()
		return permanent("the object was replaced while it was being read")
	}
	if answer.StatusCode == http.StatusOK { // this server knows no ranges: skip what we have
		if _, err := io.CopyN(io.Discard, movingReader{d.body, watch}, d.at); err != nil {
			d.Close()
			return watch.explain(err)
		}
		return nil
	}
	var first, last, size int64
	told := answer.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(told, "bytes %d-%d/%d", &first, &last, &size); n < 2 || first != d.at || n == 3 && d.size >= 0 && size != d.size {
		d.Close()
		return permanent("the rest from byte %d of %d was asked for, and the server sent another part (Content-Range: %.60q)", d.at, d.size, told)
	}
	return nil
}

// contentDigest is the SHA-256 in hex that a server tells of a whole answer (RFC 9530), "" if it tells none.
func contentDigest(header http.Header) string {
	for _, part := range strings.Split(header.Get("Content-Digest"), ",") {
		if text, found := strings.CutPrefix(strings.TrimSpace(part), "sha-256=:"); found {
			if sum, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":")); err == nil && len(sum) == sha256.Size {
				return hex.EncodeToString(sum)
			}
		}
	}
	return ""
}

// movingReader tells the watch of every byte.
type movingReader struct {
	from  io.Reader
	watch *progressWatch
}

func (r movingReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if n > 0 {
		r.watch.moved()
	}
	return n, err
}

func (d *download) Read(p []byte) (int, error) {
	for {
		n, err := d.body.Read(p)
		if n > 0 {
			d.watch.moved()
			d.tries = 0
			d.at += int64(n)
			if d.hash != nil {
				d.hash.Write(p[:n])
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if err == io.EOF && (d.size < 0 || d.at == d.size) {
			return 0, io.EOF
		}
		if err := d.resume(d.watch.explain(err)); err != nil {
			return 0, err
		}
	}
}

// resume connects again after a break.
func (d *download) resume(cause error) error {
	d.Close()
	for {
		if d.ctx.Err() != nil {
			return d.ctx.Err()
		}
		d.tries++
		if d.tries >= maxTries {
			return fmt.Errorf("the connection broke after %d of %d bytes: %w; given up after %d tries", d.at, d.size, cause, d.tries)
		}
		if err := d.client.sleep(d.ctx, delayAfter(d.tries, cause)); err != nil {
			return err
		}
		if cause = d.connect(); cause == nil {
			return nil
		}
		if !worthRetrying(cause) {
			return cause
		}
	}
}

func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	d.watch.stop()
	err := d.body.Close()
	return err
}

// expect makes Verify compare the whole object with a SHA-256, in hex; "" = nothing is known.
func (d *download) expect(sum string) {
	if sum != "" {
		d.expected, d.hash = sum, sha256.New()
	}
}

// Verify reads what is left of the object and compares.
func (d *download) Verify() error {
	if _, err := io.Copy(io.Discard, d); err != nil {
		return err
	}
	if d.hash == nil {
		return nil
	}
	if sum := hex.EncodeToString(d.hash.Sum(nil)); !strings.EqualFold(sum, d.expected) {
		return permanent("its SHA-256 is %s and not %s, as it was when it was saved: the object was damaged or replaced", sum, d.expected)
	}
	return nil
}

func secondsSince(begin time.Time) float64 {
	return float64(time.Since(begin).Milliseconds()) / 1000
}
