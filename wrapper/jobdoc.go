package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Job is the job document, version 1: all that the wrapper is told. schema/job.schema.json says the same for machines.
type Job struct {
	Version         int               `json:"version"`
	Attempt         string            `json:"attempt"`
	Command         []string          `json:"command"`
	Workdir         string            `json:"workdir"`
	CreateWorkdir   bool              `json:"create_workdir"`
	Env             map[string]string `json:"env"`
	UnsetEnv        []string          `json:"unset_env"`
	TimeoutSeconds  float64           `json:"timeout_s"`
	GraceSeconds    float64           `json:"grace_s"`
	ResultPath      string            `json:"result_path"`
	RunningPath     string            `json:"running_path"`
	OutputPath      string            `json:"output_path"`
	MessageLimit    int               `json:"message_limit"`
	Overflow        *Overflow         `json:"overflow"`
	DeclaredOutputs []string          `json:"declared_outputs"`
	OutputLimits    OutputLimits      `json:"output_limits"`
	Restore         []RestoreSpec     `json:"restore"`
	Save            []SaveSpec        `json:"save"`
	Traceparent     string            `json:"traceparent"`

	// Stdin is "null" (or "": an empty stdin) or "pass" (the wrapper's own; with a terminal, for interactive use).
	Stdin string `json:"stdin"`
	// ArchiveLimits bounds what an archive may become when unpacked; zeros mean the defaults in unpack.go.
	ArchiveLimits ArchiveLimits `json:"archive_limits"`
	// DrainLog: at the end, wait until what reads the output has had time to take it (see outlet.go).
	DrainLog bool `json:"drain_log"`
	// CAFile names a PEM file of further roots to trust, for images without any (scratch). "" = the image's own.
	CAFile string `json:"ca_file"`
}

// Overflow says where a result document goes that is larger than the termination message may be.
type Overflow struct {
	Key    string `json:"key"`
	PutURL string `json:"put_url"`
}

// OutputLimits bounds the outputs of one job.
type OutputLimits struct {
	ValueBytes int `json:"value_bytes"`
	Keys       int `json:"keys"`
	TotalBytes int `json:"total_bytes"`
}

// ArchiveLimits bounds one archive while it is unpacked.
type ArchiveLimits struct {
	Bytes   int64 `json:"bytes"`
	Entries int64 `json:"entries"`
	Depth   int   `json:"depth"`
}

// RestoreSpec is one archive to be unpacked below Path before the child starts.
type RestoreSpec struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Path     string `json:"path"`
	URL      string `json:"url"`
	Required bool   `json:"required"`
	SHA256   string `json:"sha256"` // of the object, where the caller knows it
}

// SaveSpec is one archive to be made from Paths below Base after the child has ended.
type SaveSpec struct {
	Kind           string      `json:"kind"`
	Name           string      `json:"name"`
	Base           string      `json:"base"`
	Paths          []string    `json:"paths"`
	When           string      `json:"when"`
	Required       bool        `json:"required"`
	SkipIfRestored bool        `json:"skip_if_restored"`
	Upload         UploadSpec  `json:"upload"`
	IndexUpload    *IndexPlace `json:"index_upload"`
}

// UploadSpec holds the presigned requests by which an archive reaches object storage.
type UploadSpec struct {
	PutURL    string     `json:"put_url"`
	PartBytes int        `json:"part_bytes"`
	Multipart *Multipart `json:"multipart"`
}

// Multipart holds the presigned requests of one prepared multipart upload.
type Multipart struct {
	PartURLTemplate string   `json:"part_url_template"`
	Signatures      []string `json:"signatures"`
	CompleteURL     string   `json:"complete_url"`
	AbortURL        string   `json:"abort_url"`
}

// IndexPlace says where the JSON index of an artifact goes.
type IndexPlace struct {
	PutURL string `json:"put_url"`
}

const (
	maxJobDocument      = 16 << 20
	defaultMessageLimit = 4096
	defaultPartBytes    = 16 << 20
	maxPartBytes        = 64 << 20
	mostHeld            = 64 << 20
)

// readJob reads the job document and removes it, because it holds secrets.
func readJob(path string) (*Job, error) {
	data, err := takeFile(path)
	if err != nil {
		return &Job{}, fmt.Errorf("the job document cannot be read: %w. Give the path of the JSON file that the runtime wrote, readable for this user", err)
	}
	return parseJob(data)
}

// readSealedJob reads the job document in the environment, with the key in the file keyPath.
func readSealedJob(keyPath string) (*Job, error) {
	data, err := openSealed(keyPath)
	if err != nil {
		return &Job{}, fmt.Errorf("the sealed job document cannot be read: %w", err)
	}
	return parseJob(data)
}

// parseJob understands a document. One with faults is returned as far as it could be understood, so that the failure can still be
// told where the document says.
func parseJob(data []byte) (*Job, error) {
	job := &Job{}
	if len(data) > maxJobDocument {
		return job, fmt.Errorf("the job document is larger than %d bytes; put large inputs into an artifact", maxJobDocument)
	}
	faults := decodeDocument(data, job)
	job.applyDefaults()
	job.makeAbsolute()
	if len(faults) == 0 {
		faults = job.faults()
	}
	if len(faults) > 0 {
		return job, errors.New("the job document is not what wrapper/README.md describes: " + strings.Join(faults, "; "))
	}
	return job, nil
}

// takeFile reads a file, and removes it where it can: not from a mounted or a read-only directory. What is no ordinary file (a
// pipe, a device, a link, as Kubernetes makes them) is not removed.
func takeFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxJobDocument+1))
	if err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		_ = os.Remove(path)
	}
	return data, nil
}

// makeAbsolute binds the paths to the directory in which we were started, before we go to another one.
func (job *Job) makeAbsolute() {
	for _, path := range []*string{&job.Workdir, &job.ResultPath, &job.RunningPath, &job.OutputPath, &job.CAFile} {
		if *path == "" {
			continue
		}
		if full, err := filepath.Abs(*path); err == nil {
			*path = full
		}
	}
}

func (job *Job) applyDefaults() {
	if job.MessageLimit == 0 {
		job.MessageLimit = defaultMessageLimit
	}
	limits := &job.OutputLimits
	if limits.ValueBytes == 0 {
		limits.ValueBytes = 64 << 10
	}
	if limits.Keys == 0 {
		limits.Keys = 256
	}
	if limits.TotalBytes == 0 {
		limits.TotalBytes = 256 << 10
	}
	for i := range job.Save {
		if job.Save[i].Upload.PartBytes == 0 {
			job.Save[i].Upload.PartBytes = defaultPartBytes
		}
		if job.Save[i].When == "" {
			job.Save[i].When = "success"
		}
	}
	job.ArchiveLimits.applyDefaults()
}

// faults lists everything in the document that cannot be, as its schema does, each with its place and never with a value.
func (job *Job) faults() (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	switch {
	case job.Version == 0:
		fault("version is missing: it is 1")
	case job.Version != 1:
		fault("version is %d, this wrapper understands 1: use a wrapper of the same release as the executor", job.Version)
	}
	if len(job.Command) == 0 || job.Command[0] == "" {
		fault("command is empty: give the workflow's command, or the image's ENTRYPOINT and CMD")
	}
	if job.ResultPath == "" {
		fault("result_path is empty: the runtime must name a file")
	}
	if job.Stdin != "" && job.Stdin != "null" && job.Stdin != "pass" {
		fault(`stdin must be "null" or "pass"`)
	}
	job.numberFaults(fault)
	if job.Overflow != nil {
		addressFault(fault, "overflow.put_url", job.Overflow.PutURL)
	}
	for i, spec := range job.Restore {
		spec.faults(fault, fmt.Sprintf("restore[%d]", i))
	}
	for i, spec := range job.Save {
		spec.faults(fault, fmt.Sprintf("save[%d]", i))
	}
	return faults
}

// faultFunc takes one more fault.
type faultFunc func(format string, args ...any)

func (job *Job) numberFaults(fault faultFunc) {
	for _, limit := range []struct {
		name  string
		value float64
	}{
		{"timeout_s", job.TimeoutSeconds}, {"grace_s", job.GraceSeconds}, {"message_limit", float64(job.MessageLimit)},
		{"output_limits.value_bytes", float64(job.OutputLimits.ValueBytes)}, {"output_limits.keys", float64(job.OutputLimits.Keys)},
		{"output_limits.total_bytes", float64(job.OutputLimits.TotalBytes)}, {"archive_limits.bytes", float64(job.ArchiveLimits.Bytes)},
		{"archive_limits.entries", float64(job.ArchiveLimits.Entries)}, {"archive_limits.depth", float64(job.ArchiveLimits.Depth)},
	} {
		if limit.value < 0 {
			fault("%s must not be negative", limit.name)
		}
	}
	// What we hold in memory.
	for _, limit := range []struct {
		name  string
		value int
	}{
		{"message_limit", job.MessageLimit}, {"output_limits.value_bytes", job.OutputLimits.ValueBytes},
		{"output_limits.keys", job.OutputLimits.Keys}, {"output_limits.total_bytes", job.OutputLimits.TotalBytes},
	} {
		if limit.value > mostHeld {
			fault("%s must be at most %d", limit.name, mostHeld)
		}
	}
}

// addressFault refuses what no request can be sent to. The address itself may be a credential, so it is not told.
func addressFault(fault faultFunc, where, address string) {
	if address == "" {
		fault("%s is empty", where)
		return
	}
	parsed, err := url.Parse(address)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
		fault("%s is not an http:// or https:// address", where)
	}
}

func kindFault(fault faultFunc, where, kind string) {
	if kind != "cache" && kind != "artifact" {
		fault(`%s.kind must be "cache" or "artifact"`, where)
	}
}

func (spec RestoreSpec) faults(fault faultFunc, where string) {
	kindFault(fault, where, spec.Kind)
	addressFault(fault, where+".url", spec.URL)
	if digest, err := hex.DecodeString(spec.SHA256); err != nil || len(digest) != 0 && len(digest) != sha256.Size {
		fault("%s.sha256 must have 64 hexadecimal digits", where)
	}
}

func (spec SaveSpec) faults(fault faultFunc, where string) {
	kindFault(fault, where, spec.Kind)
	if spec.When != "success" && spec.When != "failure" && spec.When != "always" {
		fault(`%s.when must be "success", "failure" or "always"`, where)
	}
	if len(spec.Paths) == 0 {
		fault("%s.paths is empty", where)
	}
	addressFault(fault, where+".upload.put_url", spec.Upload.PutURL)
	if spec.Upload.PartBytes < 1 || spec.Upload.PartBytes > maxPartBytes {
		fault("%s.upload.part_bytes must be from 1 to %d", where, maxPartBytes)
	}
	if m := spec.Upload.Multipart; m != nil {
		if !strings.Contains(m.PartURLTemplate, "{n}") || !strings.Contains(m.PartURLTemplate, "{signature}") || len(m.Signatures) == 0 {
			fault("%s.upload.multipart needs part_url_template with {n} and {signature}, and signatures", where)
		}
		addressFault(fault, where+".upload.multipart.part_url_template", strings.NewReplacer("{n}", "1", "{signature}", "s").Replace(m.PartURLTemplate))
		addressFault(fault, where+".upload.multipart.complete_url", m.CompleteURL)
		if m.AbortURL != "" {
			addressFault(fault, where+".upload.multipart.abort_url", m.AbortURL)
		}
	}
	if spec.IndexUpload != nil {
		addressFault(fault, where+".index_upload.put_url", spec.IndexUpload.PutURL)
	}
}

func (job *Job) grace() time.Duration   { return seconds(job.GraceSeconds) }
func (job *Job) timeout() time.Duration { return seconds(job.TimeoutSeconds) }

func seconds(s float64) time.Duration {
	if s > 1e9 { // some thirty years: no limit, and no overflow
		s = 1e9
	}
	if s <= 0 {
		return 0
	}
	return max(time.Duration(s*float64(time.Second)), 1) // however short, it is a limit
}

// absolute resolves a path of the document: relative ones belong to the working directory.
func (job *Job) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	base := job.Workdir
	if !filepath.IsAbs(base) {
		here, err := os.Getwd()
		if err != nil {
			here = "/"
		}
		base = filepath.Join(here, base)
	}
	return filepath.Join(base, path)
}
