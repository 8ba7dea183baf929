package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// transfers is the real restorer and saver. It makes no connection, and costs nothing, for a job that moves no files.
type transfers struct {
	relay  *signalRelay
	client *client
}

func (t *transfers) connect(job *Job) {
	if t.client == nil {
		t.client = newClient(job.CAFile)
	}
}

// Restore brings the archives one after the other, so that later ones win. What is not required is a miss when it fails.
func (t *transfers) Restore(job *Job) (restored []Restored, warnings []string, err error) {
	if len(job.Restore) == 0 {
		return nil, nil, nil
	}
	t.connect(job)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-t.relay.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	for _, spec := range job.Restore {
		one, err := t.restoreOne(ctx, job, spec)
		if err != nil && !missed(spec, err) {
			one.Error = cut(err.Error(), 500)
		}
		restored = append(restored, one)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return restored, warnings, ctx.Err()
		}
		sentence := fmt.Sprintf("the %s %q could not be restored to %s: %v", spec.Kind, spec.Name, job.absolute(spec.Path), err)
		if spec.Required {
			return restored, warnings, errors.New(sentence)
		}
		if !missed(spec, err) {
			warnings = append(warnings, sentence+"; the job went on without it")
		}
	}
	return restored, warnings, nil
}

// missed: a cache that is not there yet is nothing to speak of.
func missed(spec RestoreSpec, err error) bool {
	var status *statusError
	return spec.Kind == "cache" && errors.As(err, &status) && status.status == http.StatusNotFound
}

func (t *transfers) restoreOne(ctx context.Context, job *Job, spec RestoreSpec) (done Restored, err error) {
	begin := time.Now()
	done = Restored{Kind: spec.Kind, Name: spec.Name}
	defer func() { done.Seconds = secondsSince(begin) }()
	from, err := openDownload(ctx, t.client, spec.URL)
	if err != nil {
		return done, err
	}
	defer from.Close()
	from.expect(spec.SHA256)
	stage, err := openStaging(job.absolute(spec.Path))
	if err != nil {
		return done, err
	}
	defer stage.discard()
	files, err := unpackInto(ctx, stage, from, job.ArchiveLimits)
	if err != nil {
		return done, err
	}
	if err := from.Verify(); err != nil {
		return done, err
	}
	if err := stage.commit(); err != nil {
		return done, err
	}
	done.Hit, done.Bytes, done.Files = true, from.at, files
	return done, nil
}

func unpackInto(ctx context.Context, stage *staging, from io.Reader, limits ArchiveLimits) (files int64, err error) {
	place, err := stage.place()
	if err != nil {
		return 0, err
	}
	defer place.Close()
	stream, err := openArchive(from)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	unpacking := newUnpacker(ctx, place, limits)
	err = unpacking.unpack(stream)
	return unpacking.files, err
}

// Save takes away what is wanted after a job that succeeded or failed. All are tried, the first failure that matters is told.
func (t *transfers) Save(job *Job, succeeded bool, restored []Restored) (saved []Saved, warnings []string, err error) {
	ctx, cancel := t.relay.context(job.grace())
	defer cancel()
	for _, spec := range job.Save {
		if !wanted(spec, succeeded, restored) {
			continue
		}
		t.connect(job)
		one, notes, problem := Saved{Kind: spec.Kind, Name: spec.Name}, []string(nil), ctx.Err()
		if problem == nil {
			one, notes, problem = t.saveOne(ctx, job, spec)
		}
		warnings = append(warnings, notes...)
		if problem != nil {
			one.Error = problem.Error()
			var sentence error = fmt.Errorf("the %s %q could not be saved: %w", spec.Kind, spec.Name, problem)
			if ctx.Err() != nil {
				sentence = &stoppedError{fmt.Sprintf("the job was told to stop while its %s %q was being saved, which is lost", spec.Kind, spec.Name)}
			}
			if spec.Kind == "cache" && !spec.Required {
				warnings = append(warnings, sentence.Error())
			} else if err == nil {
				err = sentence
			}
		}
		saved = append(saved, one)
	}
	return saved, warnings, err
}

func wanted(spec SaveSpec, succeeded bool, restored []Restored) bool {
	if spec.When == "success" && !succeeded || spec.When == "failure" && succeeded {
		return false
	}
	if spec.SkipIfRestored {
		for _, one := range restored {
			if one.Kind == spec.Kind && one.Name == spec.Name && one.Hit {
				return false
			}
		}
	}
	return true
}

func (t *transfers) saveOne(ctx context.Context, job *Job, spec SaveSpec) (done Saved, warnings []string, err error) {
	begin := time.Now()
	done = Saved{Kind: spec.Kind, Name: spec.Name}
	defer func() { done.Seconds = secondsSince(begin) }()
	base := job.absolute(spec.Base)
	selected, err := newSelection(base, spec.Paths)
	if err != nil {
		return done, nil, err
	}
	var index *indexWriter
	if spec.IndexUpload != nil {
		index = newIndexWriter()
	}
	to := newUpload(ctx, t.client, spec.Upload)
	to.hurried = func() bool { return t.relay.stop() != 0 }
	packing, archive, err := packInto(ctx, to, base, selected, index, job.ArchiveLimits)
	if packing != nil {
		warnings = prefixed(fmt.Sprintf("%s %q: ", spec.Kind, spec.Name), packing.warnings)
	}
	if err == nil {
		if missing := packing.missing(); len(missing) > 0 {
			sentence := fmt.Sprintf("nothing matches %s below %s%s. Check the paths, and that the job really makes these files", quoted(missing), base, packing.whyMissing())
			if _, statErr := os.Stat(base); errors.Is(statErr, os.ErrNotExist) {
				sentence = fmt.Sprintf("there is no directory %s, below which %s should be. Check the paths, and that the job really makes these files", base, quoted(missing))
			}
			if spec.Required || packing.files == 0 && len(missing) == len(spec.Paths) {
				err = &missingError{sentence}
			} else {
				warnings = append(warnings, fmt.Sprintf("%s %q: %s", spec.Kind, spec.Name, sentence))
			}
		}
	}
	if err != nil {
		to.Abandon(err)
		var missing *missingError
		if errors.As(err, &missing) && !spec.Required { // nothing to save is no failure then
			return done, append(warnings, fmt.Sprintf("%s %q was not saved: %v", spec.Kind, spec.Name, err)), nil
		}
		return done, warnings, err
	}
	if err := to.Finish(); err != nil {
		to.Abandon(err)
		return done, warnings, err
	}
	done.Bytes, done.SHA256, done.Files = archive.size, archive.sum(), packing.files
	return done, warnings, t.saveIndex(ctx, spec, index, archive)
}

// stoppedError: the grace was over before all was saved.
type stoppedError struct{ sentence string }

func (e *stoppedError) Error() string { return e.sentence }
func (e *stoppedError) Unwrap() error { return context.Canceled }

// missingError: what was to be saved is not there.
type missingError struct{ sentence string }

func (e *missingError) Error() string { return e.sentence }

func packInto(ctx context.Context, to io.Writer, base string, selected *selection, index *indexWriter, limits ArchiveLimits) (*packer, *compressor, error) {
	archive, err := newCompressor(to)
	if err != nil {
		return nil, nil, err
	}
	packing := newPacker(ctx, archive, selected, index, limits)
	err = packing.pack(base)
	if closeErr := archive.Close(); err == nil {
		err = closeErr
	}
	return packing, archive, err
}

func (t *transfers) saveIndex(ctx context.Context, spec SaveSpec, index *indexWriter, archive *compressor) error {
	if index == nil {
		return nil
	}
	end := indexEnd{Bytes: archive.size, SHA256: archive.sum(), Format: strings.Fields(writesFormat)[0], ChunkBytes: chunkBytes, Offsets: archive.offsets}
	if err := index.finish(end); err != nil {
		return err
	}
	_, err := t.client.putStream(ctx, spec.IndexUpload.PutURL, "application/json", index.size, index.open)
	if err != nil {
		return fmt.Errorf("its index could not be stored: %w", err)
	}
	return nil
}

func prefixed(prefix string, texts []string) []string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = prefix + text
	}
	return out
}

func quoted(texts []string) string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = fmt.Sprintf("%q", text)
	}
	return strings.Join(out, ", ")
}
