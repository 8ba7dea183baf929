package main

import (
	"strings"
	"unicode"
)

// foldName maps names that a case-insensitive or Unicode-normalising file system takes for the same to one text. It folds
// more than any of them does: letters lose case and marks, whether composed or not.
func foldName(name string) string {
	plain := true
	for i := 0; i < len(name); i++ {
		if name[i] >= 0x80 {
			plain = false
			break
		}
	}
	if plain {
		return strings.ToLower(name)
	}
	var folded strings.Builder
	for _, r := range name {
		if unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Cf, r) {
			continue
		}
		if base, composed := composedBase[r]; composed {
			r = base
		}
		folded.WriteRune(smallestFold(r))
	}
	return folded.String()
}

// smallestFold is the same for all letters that are equal under simple case folding.
func smallestFold(r rune) rune {
	smallest := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		smallest = min(smallest, next)
	}
	return unicode.ToLower(smallest)
}
