package main

import (
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

// leadsOut follows a path of the tree as the kernel would, through all links, and says whether it leaves the tree anywhere on
// the way. Dead ends and circles lead nowhere, and so not out; what is missing is taken for a directory.
func leadsOut(root *os.Root, name string) bool {
	var at []string // where we are: no link among these
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return true
			}
			at = at[:len(at)-1]
			continue
		}
		at = append(at, part)
		target, err := root.Readlink(strings.Join(at, "/"))
		if err != nil { // no link
			continue
		}
		if links++; links > mostLinks {
			return false
		}
		if path.IsAbs(target) {
			return true
		}
		at = at[:len(at)-1]
		todo = append(strings.Split(target, "/"), todo...)
	}
	return false
}
