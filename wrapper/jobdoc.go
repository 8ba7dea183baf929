package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

// readJob reads the job document and removes it, because it holds secrets. A document with faults is returned as far as it
// could be understood, so that the failure can still be told where the document says.
func readJob(path string) (*Job, error) {
	job := &Job{}
	file, err := os.Open(path)
	if err != nil {
		return job, fmt.Errorf("the job document cannot be read: %w. Give the path of the JSON file that the runtime wrote, readable for this user", err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxJobDocument+1))
	file.Close()
	if err != nil {
		return job, fmt.Errorf("the job document cannot be read: %w", err)
	}
	_ = os.Remove(path) // "where it can": a mounted file or a read-only directory keeps it
	if len(data) > maxJobDocument {
		return job, fmt.Errorf("the job document is larger than %d bytes; put large inputs into an artifact", maxJobDocument)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decodeErr := decoder.Decode(job)
	job.applyDefaults()
	if decodeErr != nil {
		return job, fmt.Errorf("the job document is not what wrapper/README.md describes: %s", describeJSONError(decodeErr))
	}
	return job, job.validate()
}

// describeJSONError keeps values out of the message: they may be secret.
func describeJSONError(err error) string {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Sprintf("field %q must be of type %s", kind.Field, kind.Type)
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("it is not JSON (near byte %d)", syntax.Offset)
	}
	return "it is not complete JSON"
}

func (job *Job) applyDefaults() {
	if job.MessageLimit <= 0 {
		job.MessageLimit = defaultMessageLimit
	}
	limits := &job.OutputLimits
	if limits.ValueBytes <= 0 {
		limits.ValueBytes = 64 << 10
	}
	if limits.Keys <= 0 {
		limits.Keys = 256
	}
	if limits.TotalBytes <= 0 {
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

// validate reports every fault at once.
func (job *Job) validate() error {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if job.Version != 1 {
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
	if job.TimeoutSeconds < 0 || job.GraceSeconds < 0 {
		fault("timeout_s and grace_s must not be negative (0 = none)")
	}
	for i, spec := range job.Restore {
		faults = append(faults, spec.faults(fmt.Sprintf("restore[%d]", i))...)
	}
	for i, spec := range job.Save {
		faults = append(faults, spec.faults(fmt.Sprintf("save[%d]", i))...)
	}
	if len(faults) > 0 {
		return errors.New("the job document has faults: " + strings.Join(faults, "; "))
	}
	return nil
}

func (spec RestoreSpec) faults(where string) (faults []string) {
	if spec.Kind != "cache" && spec.Kind != "artifact" {
		faults = append(faults, where+`.kind must be "cache" or "artifact"`)
	}
	if spec.URL == "" {
		faults = append(faults, where+".url is empty")
	}
	return faults
}

func (spec SaveSpec) faults(where string) (faults []string) {
	if spec.Kind != "cache" && spec.Kind != "artifact" {
		faults = append(faults, where+`.kind must be "cache" or "artifact"`)
	}
	if spec.When != "success" && spec.When != "failure" && spec.When != "always" {
		faults = append(faults, where+`.when must be "success", "failure" or "always"`)
	}
	if len(spec.Paths) == 0 {
		faults = append(faults, where+".paths is empty")
	}
	if spec.Upload.PutURL == "" {
		faults = append(faults, where+".upload.put_url is empty")
	}
	if spec.Upload.PartBytes < 1 || spec.Upload.PartBytes > maxPartBytes {
		faults = append(faults, fmt.Sprintf("%s.upload.part_bytes must be from 1 to %d", where, maxPartBytes))
	}
	if m := spec.Upload.Multipart; m != nil {
		if !strings.Contains(m.PartURLTemplate, "{n}") || !strings.Contains(m.PartURLTemplate, "{signature}") || m.CompleteURL == "" || len(m.Signatures) == 0 {
			faults = append(faults, where+".upload.multipart needs part_url_template with {n} and {signature}, signatures and complete_url")
		}
	}
	return faults
}

func (job *Job) grace() time.Duration   { return seconds(job.GraceSeconds) }
func (job *Job) timeout() time.Duration { return seconds(job.TimeoutSeconds) }

func seconds(s float64) time.Duration {
	if s > 1e9 { // some thirty years: no limit, and no overflow
		s = 1e9
	}
	return time.Duration(s * float64(time.Second))
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
