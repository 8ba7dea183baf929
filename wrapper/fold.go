package main

import (
	"archive/tar"
	"hash/maphash"
	"path"
	"slices"
	"strings"
	"unicode"
)

// Names that some file systems take for the same. An archive must not have two of them where that could make one entry act on
// the other.

// nameTable remembers the names of an archive, folded. It keeps hashes only: 16 bytes a name.
type nameTable struct {
	seed maphash.Seed
	seen map[uint64]uint64 // hash of the folded name -> hash of the very name, its last bits replaced by the kind

	parent string // whose parents were added last
}

// nameFinding says what is known of a name.
type nameFinding int

const (
	nameIsNew    nameFinding = iota // or harmlessly alike: two plain files, or two directories
	nameIsTwice                     // the very same name, and not both are directories
	nameCollides                    // a name that differs only in case or Unicode form, and a link or of another kind
)

func newNameTable() *nameTable {
	return &nameTable{seed: maphash.MakeSeed(), seen: map[uint64]uint64{}}
}

// add judges a name of the given kind (a tar type flag) against all before it.
func (t *nameTable) add(name string, kind byte) nameFinding {
	const kindBits = 0xff
	if kind == '\x00' || kind == tar.TypeLink || kind == tar.TypeGNUSparse {
		kind = tar.TypeReg
	}
	this := maphash.String(t.seed, name)&^kindBits | uint64(kind)
	key := maphash.String(t.seed, foldName(name))
	before, seen := t.seen[key]
	switch {
	case !seen:
		t.seen[key] = this
		return nameIsNew
	case before|kindBits == this|kindBits && (before != this || kind != tar.TypeDir):
		return nameIsTwice
	case byte(before) != kind || kind == tar.TypeSymlink:
		return nameCollides
	}
	return nameIsNew
}

// isDirectory says whether this very name was added as a directory. It does not know one of several that differ only in case.
func (t *nameTable) isDirectory(name string) bool {
	const kindBits = 0xff
	this := maphash.String(t.seed, name)&^kindBits | uint64(tar.TypeDir)
	return t.seen[maphash.String(t.seed, foldName(name))] == this
}

// addParents adds the directories above a name, which an archive need not name itself.
func (t *nameTable) addParents(name string) nameFinding {
	for at := path.Dir(name); at != "." && at != t.parent && !t.isDirectory(at); at = path.Dir(at) {
		if found := t.add(at, tar.TypeDir); found != nameIsNew {
			return found
		}
	}
	t.parent = path.Dir(name)
	return nameIsNew
}

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
		folded.WriteRune(smallestFold(withoutMarks(r)))
	}
	return folded.String()
}

// withoutMarks is the letter itself of one that is composed with marks.
func withoutMarks(r rune) rune {
	at, found := slices.BinarySearchFunc(composedBase[:], r, func(pair [2]rune, r rune) int { return int(pair[0] - r) })
	if !found {
		return r
	}
	return composedBase[at][1]
}

// smallestFold is the same for all letters that are equal under simple case folding.
func smallestFold(r rune) rune {
	smallest := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		smallest = min(smallest, next)
	}
	return unicode.ToLower(smallest)
}
