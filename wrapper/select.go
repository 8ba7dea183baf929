package main

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Which paths of a tree are to be saved. Patterns are relative to the base, with * ? [a-z] inside a name and ** for any number
// of directories. A directory that matches is taken with all that is in it.

// selection is a set of patterns, each cut at its slashes.
type selection struct {
	patterns []pattern
}

type pattern struct {
	text     string
	segments []string
}

// position is how far a pattern has matched on the way down to some directory.
type position struct {
	pattern, next int
}

// newSelection refuses patterns that lead out of base.
func newSelection(base string, paths []string) (*selection, error) {
	s := &selection{}
	for _, text := range paths {
		relative := text
		if filepath.IsAbs(text) {
			inside, err := filepath.Rel(base, text)
			if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
				return nil, fmt.Errorf("the path %s is not below %s. Name paths relative to it, or choose another base", text, base)
			}
			relative = inside
		}
		clean := path.Clean(relative)
		if clean == ".." || strings.HasPrefix(clean, "../") {
			return nil, fmt.Errorf("the path %s leads out of %s. Name paths inside it, or choose another base", text, base)
		}
		p := pattern{text: text}
		if clean != "." {
			p.segments = strings.Split(clean, "/")
		}
		for _, segment := range p.segments {
			if _, err := path.Match(segment, ""); err != nil {
				return nil, fmt.Errorf("the path %s is not a valid pattern: a [ without its ]", text)
			}
		}
		s.patterns = append(s.patterns, p)
	}
	return s, nil
}

// start gives the positions at the base, and which patterns mean the base itself.
func (s *selection) start() (positions []position, whole []int) {
	for i, p := range s.patterns {
		if len(p.segments) == 0 {
			whole = append(whole, i)
			continue
		}
		positions = s.add(positions, position{i, 0})
	}
	return positions, whole
}

// add adds a position, and the one behind a ** that matches no directory at all.
func (s *selection) add(positions []position, at position) []position {
	for _, known := range positions {
		if known == at {
			return positions
		}
	}
	positions = append(positions, at)
	segments := s.patterns[at.pattern].segments
	if segments[at.next] == "**" && at.next+1 < len(segments) {
		positions = s.add(positions, position{at.pattern, at.next + 1})
	}
	return positions
}

// names lists the only names that can match at these positions, or says that any may.
func (s *selection) names(positions []position) (names []string, any bool) {
	for _, at := range positions {
		segment := s.patterns[at.pattern].segments[at.next]
		if isGlob(segment) {
			return nil, true
		}
		names = append(names, segment)
	}
	return names, false
}

func isGlob(segment string) bool { return strings.ContainsAny(segment, `*?[\`) }

// step is what entering a name brings.
type step struct {
	below    []position // for what is in it
	complete []int      // the patterns that mean it
	named    bool       // one of these by more than a **
}

// patterns lists all patterns that the name is part of.
func (s step) patterns() []int {
	all := slices.Clone(s.complete)
	for _, at := range s.below {
		all = append(all, at.pattern)
	}
	return all
}

// step enters a name. A ** goes through directories only: through links it would go in circles.
func (s *selection) step(positions []position, name string, isLink bool) (to step) {
	for _, at := range positions {
		segments := s.patterns[at.pattern].segments
		segment := segments[at.next]
		last := at.next+1 == len(segments)
		if segment == "**" {
			if last {
				to.complete = append(to.complete, at.pattern)
			} else if !isLink {
				to.below = s.add(to.below, at)
			}
			continue
		}
		if matched, _ := path.Match(segment, name); !matched {
			continue
		}
		if last {
			to.complete, to.named = append(to.complete, at.pattern), true
		} else {
			to.below = s.add(to.below, position{at.pattern, at.next + 1})
		}
	}
	return to
}
