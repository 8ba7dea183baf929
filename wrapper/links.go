package main

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"
)

// Where symbolic links lead. Packing and unpacking ask the same questions, so that whatever could be saved can be restored.

// mostLinks is how many links the kernel follows in one path; behind more of them, as in circles, there is nothing.
const mostLinks = 40

// linkStaysInside says whether a link's target, as it is written, is inside the tree that the link's name is relative to.
func linkStaysInside(name, target string) bool {
	if target == "" || path.IsAbs(target) {
		return false
	}
	joined := path.Join(path.Dir(name), target)
	return joined != ".." && !strings.HasPrefix(joined, "../")
}

// linkJudge follows the links of one archive.
type linkJudge struct {
	ctx   context.Context
	root  *os.Root
	names *nameTable // of the archive: what is a directory there needs no look

	entries *int64 // of the archive: they bound the steps that we go for it
	allowed int64  // steps for each of them
	steps   int64
	known   map[string]landing
}

// landing is where a link leads, by way of how many links, itself among them.
type landing struct {
	at    string
	links int
}

const (
	leastSteps       = 200_000
	mostLandings     = 20_000 // that are remembered
	stepsOfPacking   = 100    // an entry; links of real trees take about thirty
	stepsOfUnpacking = 200
	bytesOfAStep     = 256
)

var (
	errLeadsOut  = errors.New("leads out")
	errLeadsAway = errors.New("leads nowhere")
	errTangle    = errors.New("its links lead through one another by so many steps that following them is given up")
)

func newLinkJudge(ctx context.Context, root *os.Root, names *nameTable, entries *int64, allowed int64) *linkJudge {
	return &linkJudge{ctx: ctx, root: root, names: names, entries: entries, allowed: allowed, known: map[string]landing{}}
}

// leadsOut follows a path of the tree as the kernel would, through all links, and says whether it leaves the tree anywhere on
// the way. Dead ends and circles lead nowhere, and so not out; what is missing is taken for a directory.
func (j *linkJudge) leadsOut(name string) (bool, error) {
	links := 0
	_, err := j.walk("", name, &links)
	switch err {
	case errLeadsOut:
		return true, nil
	case errLeadsAway:
		return false, nil
	}
	return false, err
}

// walk goes from a place without links along a path, and returns the place where that ends.
func (j *linkJudge) walk(at, way string, links *int) (string, error) {
	for way != "" {
		var part string
		part, way, _ = strings.Cut(way, "/")
		if err := j.step(at); err != nil {
			return "", err
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if at == "" {
				return "", errLeadsOut
			}
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		var err error
		if at, err = j.enter(at, part, links); err != nil {
			return "", err
		}
	}
	return at, nil
}

// enter goes to a name in a place, and through it if it is a link.
func (j *linkJudge) enter(place, part string, links *int) (string, error) {
	at := path.Join(place, part)
	if j.names.isDirectory(at) {
		return at, nil
	}
	if known, judged := j.known[at]; judged {
		if *links += known.links; *links > mostLinks {
			return "", errLeadsAway
		}
		return known.at, nil
	}
	target, err := j.root.Readlink(at)
	if err != nil { // no link
		return at, nil
	}
	before := *links
	if *links++; *links > mostLinks {
		return "", errLeadsAway
	}
	if path.IsAbs(target) {
		return "", errLeadsOut
	}
	to, err := j.walk(place, target, links)
	if err != nil {
		return "", err
	}
	if len(j.known) == mostLandings {
		clear(j.known)
	}
	j.known[at] = landing{to, *links - before}
	return to, nil
}

// step counts, for a tiny archive can ask for a walk of hours.
func (j *linkJudge) step(at string) error {
	j.steps += 1 + int64(len(at)/bytesOfAStep)
	if j.steps > leastSteps+j.allowed**j.entries {
		return errTangle
	}
	return j.ctx.Err()
}
