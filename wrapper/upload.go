package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// upload takes an archive as a stream of unknown length and stores it as one object: by a single request if it fits one part,
// else by the prepared multipart upload. Nothing can be seen under the object's key before Finish has returned.
//
// A part is held in memory until it is stored, so that it can be sent again. uploadMemory bounds the parts held at once.
type upload struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	client *client
	spec   UploadSpec
	// hurried says that we were told to stop: then the store is left to drop unfinished uploads itself. nil: never
	hurried func() bool

	part    []byte      // being filled
	free    chan []byte // buffers that may be filled
	size    int64
	spool   *os.File // where no multipart upload was prepared and one part is not enough
	pending sync.WaitGroup

	mu    sync.Mutex
	etags []string
	sent  int // parts handed to a sender
}

const (
	uploadMemory  = 40 << 20
	abortPatience = 5 * time.Second
)

func newUpload(ctx context.Context, c *client, spec UploadSpec) *upload {
	u := &upload{client: c, spec: spec}
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	buffers := max(1, min(3, uploadMemory/spec.PartBytes))
	u.free = make(chan []byte, buffers)
	for range buffers {
		u.free <- nil // made when first needed
	}
	u.part = u.takeBuffer()
	return u
}

// takeBuffer waits for a part to be stored if all buffers are in use.
func (u *upload) takeBuffer() []byte {
	select {
	case buffer := <-u.free:
		if buffer == nil {
			buffer = partBuffer(u.spec.PartBytes)
		}
		return buffer[:0]
	case <-u.ctx.Done():
		return nil
	}
}

// partBuffers keeps the buffers of finished uploads for those that follow.
var partBuffers struct {
	sync.Mutex
	unused [][]byte
}

// partBuffer takes memory for a part from the kernel and not from the heap: it becomes resident only as it is filled, and the
// garbage collector, which lets a heap double before it acts, knows nothing of it.
func partBuffer(size int) []byte {
	partBuffers.Lock()
	defer partBuffers.Unlock()
	for i, buffer := range partBuffers.unused {
		if cap(buffer) == size {
			partBuffers.unused = slices.Delete(partBuffers.unused, i, i+1)
			return buffer
		}
	}
	buffer, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return make([]byte, 0, size)
	}
	return buffer[:0:size]
}

// release gives the buffers back after a success. Those of a failed upload may still be read by a broken request: they are
// never used again.
func (u *upload) release() {
	partBuffers.Lock()
	defer partBuffers.Unlock()
	if u.part != nil {
		partBuffers.unused = append(partBuffers.unused, u.part)
	}
	for {
		select {
		case buffer := <-u.free:
			if buffer != nil {
				partBuffers.unused = append(partBuffers.unused, buffer)
			}
		default:
			return
		}
	}
}

func (u *upload) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if err := context.Cause(u.ctx); err != nil {
			return written, err
		}
		if u.spool != nil {
			n, err := u.spool.Write(p)
			u.size += int64(n)
			return written + n, err
		}
		if len(u.part) == u.spec.PartBytes { // full, and there is more
			if err := u.flushPart(); err != nil {
				u.cancel(err)
				return written, err
			}
			continue
		}
		n := min(len(p), u.spec.PartBytes-len(u.part))
		u.part = append(u.part, p[:n]...)
		u.size += int64(n)
		p, written = p[n:], written+n
	}
	return written, nil
}

func (u *upload) flushPart() error {
	if u.spec.Multipart == nil {
		return u.startSpool()
	}
	if err := u.sendPart(); err != nil {
		return err
	}
	u.part = u.takeBuffer()
	return context.Cause(u.ctx)
}

// startSpool writes the archive to disk, because a single request needs its length beforehand.
func (u *upload) startSpool() error {
	var problems []string
	for _, directory := range []string{os.Getenv("TMPDIR"), "/tmp", "/var/tmp", ".", filepath.Dir("/dev/shm/x")} {
		if directory == "" {
			continue
		}
		file, err := os.CreateTemp(directory, ".hubflow-upload-*")
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		_ = os.Remove(file.Name()) // lives on as long as it is open
		u.spool = file
		_, err = file.Write(u.part)
		u.part = nil
		return err
	}
	return fmt.Errorf("the archive is larger than part_bytes (%d), no multipart upload was prepared, and there is no place for a temporary file (%s). Prepare a multipart upload, or give the job a writable /tmp", u.spec.PartBytes, strings.Join(problems, "; "))
}

// sendPart hands the filled part to a sender of its own.
func (u *upload) sendPart() error {
	multipart := u.spec.Multipart
	number := u.sent + 1
	if number > len(multipart.Signatures) {
		most := int64(len(multipart.Signatures)) * int64(u.spec.PartBytes)
		return fmt.Errorf("the archive is larger than the %d bytes that this upload was prepared for. Save less, or raise the limit of one archive", most)
	}
	u.sent = number
	u.etags = append(u.etags, "")
	address := strings.NewReplacer("{n}", fmt.Sprint(number), "{signature}", multipart.Signatures[number-1]).Replace(multipart.PartURLTemplate)
	part := u.part
	u.pending.Go(func() {
		etag, err := u.client.putPart(u.ctx, address, "", part)
		if err != nil {
			u.cancel(fmt.Errorf("part %d could not be stored: %w", number, err))
			return
		}
		u.mu.Lock()
		u.etags[number-1] = etag
		u.mu.Unlock()
		u.free <- part
	})
	return nil
}

// Finish stores what is left and makes the object visible.
func (u *upload) Finish() error {
	if err := context.Cause(u.ctx); err != nil {
		return err
	}
	const kind = "application/octet-stream"
	if u.sent == 0 {
		var err error
		if u.spool != nil {
			_, err = u.client.putStream(u.ctx, u.spec.PutURL, kind, u.size, func() (io.Reader, error) {
				return io.NewSectionReader(u.spool, 0, u.size), nil
			})
			u.spool.Close()
		} else {
			err = u.client.put(u.ctx, u.spec.PutURL, kind, u.part)
		}
		if err == nil {
			u.abort() // the prepared multipart upload was not needed
			u.release()
		}
		return err
	}
	if err := u.sendPart(); err != nil {
		return err
	}
	u.part = nil
	u.pending.Wait()
	if err := context.Cause(u.ctx); err != nil {
		return err
	}
	u.release()
	return u.complete()
}

// Abandon gives up: parts that were stored are thrown away.
func (u *upload) Abandon(cause error) {
	u.cancel(cause)
	u.pending.Wait()
	if u.spool != nil {
		u.spool.Close()
	}
	u.abort()
}

// abort is a courtesy to the store, which drops unfinished uploads sooner or later itself; it never fails a job.
func (u *upload) abort() {
	if u.spec.Multipart == nil || u.spec.Multipart.AbortURL == "" {
		return
	}
	if u.hurried != nil && u.hurried() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), abortPatience)
	defer cancel()
	answer, err := u.client.send(ctx, http.MethodDelete, u.spec.Multipart.AbortURL, nil, nil, 0, http.StatusNoContent, http.StatusOK, http.StatusNotFound)
	if err == nil {
		answer.Body.Close()
	}
}

type completedPart struct {
	PartNumber int    `xml:"PartNumber"`
	ETag       string `xml:"ETag"`
}

type completeRequest struct {
	XMLName xml.Name        `xml:"CompleteMultipartUpload"`
	Parts   []completedPart `xml:"Part"`
}

func (u *upload) complete() error {
	request := completeRequest{}
	for i, etag := range u.etags {
		if etag == "" {
			return fmt.Errorf("object storage gave no ETag for part %d, so that the upload cannot be completed", i+1)
		}
		request.Parts = append(request.Parts, completedPart{i + 1, etag})
	}
	body, err := xml.Marshal(request)
	if err != nil {
		return err
	}
	header := http.Header{"Content-Type": {"application/xml"}}
	unsure := false // an earlier try may have been carried out without our hearing of it
	return u.client.retry(u.ctx, func(ctx context.Context) error {
		answer, err := u.client.send(ctx, http.MethodPost, u.spec.Multipart.CompleteURL, header, bytes.NewReader(body), int64(len(body)), http.StatusOK)
		var status *statusError
		if errors.As(err, &status) && status.code == "NoSuchUpload" && unsure {
			return nil
		}
		if err != nil {
			// What was refused was not done; a fault inside the store, or a proxy's, says nothing.
			unsure = unsure || status == nil || status.status == 500 || status.status == 502 || status.status == 504
			return err
		}
		defer answer.Body.Close()
		// S3 may say 200 first and tell of a failure in the body.
		text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
		if err != nil {
			unsure = true
			return err
		}
		switch root := rootElement(text); root {
		case "CompleteMultipartUploadResult":
			return nil
		case "Error":
			return &statusError{status: http.StatusOK, method: http.MethodPost, code: errorCode(text)}
		case "":
			unsure = true
			return errors.New("object storage said nothing when the upload was completed")
		default:
			return permanent("the answer to the completed upload is a document %.40q and not object storage's: what stands between us and it?", root)
		}
	})
}

// rootElement is the local name of an XML document's root, "" for nothing, "text" for what is none.
func rootElement(text []byte) string {
	if len(bytes.TrimSpace(text)) == 0 {
		return ""
	}
	decoder := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := decoder.Token()
		if err != nil {
			return "text"
		}
		if start, ok := token.(xml.StartElement); ok {
			return start.Name.Local
		}
	}
}
