package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// thub is the upload tool that components written for TencentHub call as /.workflow/bin/thub. Its options and exit statuses are
// those of the original; behind it stands Hubflow's own HTTP API. Its output always ends with a newline: components print
// their [JOB_OUT] line right behind it.

const thubUsage = `thub stores files in the hub, and fetches them.

  thub push --username=U --password=P --repo=NAMESPACE/REPO --localpath=FILE --path=[DIR/]FILE --tag=TAG
  thub pull --username=U --password=P --repo=NAMESPACE/REPO --localpath=FILE --path=[DIR/]FILE --tag=TAG
  thub version
  thub help

  --token=T      instead of --username and --password
  --tag=TAG      version of the file, "latest" if not given
  --loglevel=N   1 (errors only) to 5 (everything), 4 if not given

The hub's address comes from the environment variable HUBFLOW_URL, for example https://hubflow.example.
`

type thubOptions struct {
	url, username, password, token string
	repo, localpath, path, tag     string
	loglevel                       int
}

func thub(args []string, stdout, stderr io.Writer) int {
	speaker = "thub"
	verb := "help"
	if len(args) > 0 {
		verb = args[0]
	}
	transfer := map[string]func(context.Context, *client, thubOptions) error{"push": thubPush, "pull": thubPull}[verb]
	switch {
	case verb == "version" || verb == "--version":
		fmt.Fprintf(stdout, "thub %s\n", version)
		return 0
	case verb == "help" || verb == "-h" || verb == "--help":
		fmt.Fprint(stdout, thubUsage)
		return 0
	case transfer == nil:
		fmt.Fprintf(stderr, "thub: there is no command %q; there are push, pull, version and help\n", verb)
		return exitUsage
	}
	options, err := thubParse(verb, args[1:])
	if err != nil {
		fmt.Fprintf(stderr, "thub: %v\n", err)
		return exitUsage
	}
	if err := transfer(context.Background(), newClient(os.Getenv("HUBFLOW_CA_FILE")), options); err != nil {
		fmt.Fprintf(stderr, "thub: %s of %s failed: %v\n", verb, options.path, explainHub(err))
		return 1
	}
	if options.loglevel >= 3 {
		fmt.Fprintf(stdout, "%s %s/%s:%s ok\n", verb, options.repo, options.path, options.tag)
	}
	return 0
}

func thubParse(verb string, args []string) (options thubOptions, err error) {
	flags := flag.NewFlagSet("thub "+verb, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&options.username, "username", "", "")
	flags.StringVar(&options.password, "password", "", "")
	flags.StringVar(&options.token, "token", "", "")
	flags.StringVar(&options.repo, "repo", "", "")
	flags.StringVar(&options.localpath, "localpath", "", "")
	flags.StringVar(&options.path, "path", "", "")
	flags.StringVar(&options.tag, "tag", "latest", "")
	flags.IntVar(&options.loglevel, "loglevel", 4, "")
	if err := flags.Parse(args); err != nil {
		return options, fmt.Errorf("%w (see `thub help`)", err)
	}
	options.url = strings.TrimRight(os.Getenv("HUBFLOW_URL"), "/")
	if options.tag == "" {
		options.tag = "latest"
	}
	if options.path == "" && options.localpath != "" {
		options.path = filepath.Base(options.localpath)
	}
	return options, options.faults(flags.Args())
}

// faults reports all that is wrong with the options at once.
func (o *thubOptions) faults(rest []string) error {
	var faults []string
	if len(rest) > 0 {
		faults = append(faults, fmt.Sprintf("unexpected argument %q", rest[0]))
	}
	// Some components hand the repository over as it stands in an address.
	if first, after, ok := strings.Cut(o.repo, "/"); ok && strings.ContainsAny(first, ".:") {
		o.repo = after
	}
	if parts := strings.Split(o.repo, "/"); len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		faults = append(faults, "--repo must be NAMESPACE/REPO")
	}
	if o.localpath == "" {
		faults = append(faults, "--localpath is missing")
	}
	if strings.HasSuffix(o.path, "/") { // a directory
		o.path += filepath.Base(o.localpath)
	}
	o.path = strings.TrimPrefix(path.Clean("/"+o.path), "/")
	if o.path == "" {
		faults = append(faults, "--path is missing")
	}
	if o.token == "" && (o.username == "" || o.password == "") {
		faults = append(faults, "--username and --password, or --token, are missing")
	}
	if parsed, err := url.Parse(o.url); err != nil || parsed.Host == "" {
		faults = append(faults, "the environment variable HUBFLOW_URL does not hold the hub's address, such as https://hubflow.example")
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

// address is {HUBFLOW_URL}/api/v1/files/{namespace}/{repo}/{path}?tag=TAG.
func (o *thubOptions) address() string {
	parts := strings.Split(o.repo+"/"+o.path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return o.url + "/api/v1/files/" + strings.Join(parts, "/") + "?tag=" + url.QueryEscape(o.tag)
}

func (o *thubOptions) header() http.Header {
	if o.token != "" {
		return http.Header{"Authorization": {"Bearer " + o.token}}
	}
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(o.username+":"+o.password))}}
}

func thubPush(ctx context.Context, c *client, o thubOptions) error {
	file, err := os.Open(o.localpath)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file; pack a directory first, for example with tar", o.localpath)
	}
	sum := sha256.New()
	size, err := io.Copy(sum, file)
	if err != nil {
		return err
	}
	header := o.header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum.Sum(nil))+":")
	return c.retry(ctx, func(ctx context.Context) error {
		ctx, watch := watchProgress(ctx)
		defer watch.stop()
		body := watch.reader(io.NewSectionReader(file, 0, size))
		answer, err := c.send(ctx, http.MethodPut, o.address(), header, body, size, http.StatusOK, http.StatusCreated, http.StatusNoContent)
		if err != nil {
			return watch.explain(err)
		}
		return answer.Body.Close()
	})
}

// thubPull writes beside the target and renames, so that a broken connection leaves no half file.
func thubPull(ctx context.Context, c *client, o thubOptions) error {
	from := &download{ctx: ctx, client: c, url: o.address(), size: -1, header: o.header()}
	if err := c.retry(ctx, func(context.Context) error { return from.connect() }); err != nil {
		return err
	}
	defer from.Close()
	target := o.localpath
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		target = filepath.Join(target, path.Base(o.path))
	}
	temporary, err := os.CreateTemp(filepath.Dir(target), ".thub-*")
	if err != nil {
		return fmt.Errorf("no file can be made in %s: %w. Make the directory first, writable for this user", filepath.Dir(target), pathCause(err))
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	if _, err := io.Copy(temporary, from); err != nil {
		return err
	}
	if err := from.Verify(); err != nil {
		return err
	}
	if err := temporary.Chmod(0o644); err != nil {
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), target)
}

// explainHub says of the hub's answers what the client says of object storage's.
func explainHub(err error) string {
	var status *statusError
	if errors.As(err, &status) {
		switch status.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Sprintf("the hub answered %d: user, password or token are wrong, or may not write to this repository", status.status)
		case http.StatusNotFound:
			return "the hub answered 404: there is no such repository or file"
		case http.StatusConflict:
			return strings.TrimSuffix("the hub answered 409: this file has this tag already, or is being written: "+status.said, ": ")
		}
		if status.said != "" && !status.temporary() { // no address of ours is a secret here
			return fmt.Sprintf("the hub answered %d: %s", status.status, status.said)
		}
	}
	return strings.ReplaceAll(err.Error(), "object storage", "the hub")
}
