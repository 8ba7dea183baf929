package main

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Outputs found in the child's output: lines `[JOB_OUT] KEY = VALUE`. The scanner sees the very bytes that are passed
// through, in whatever pieces they come, and never changes or delays them. What real components print, and why each rule is
// as it is, stands in the README under "Outputs".

var outputTag = []byte("[JOB_OUT]")

// lineSlack is what a line may hold beside the largest value: tag, key, spaces, colour codes.
const lineSlack = 16 << 10

// outputScanner finds outputs in a stream. Not safe for concurrent use.
type outputScanner struct {
	declared map[string]bool
	strict   *outputSet // tag at the start of a line
	lenient  *outputSet // tag in mid-line, of declared keys only

	lineLimit int
	odd       []string // what lines with a tag at their start were, that set nothing
	line      []byte   // the unfinished line, or what of it may still matter
	midLine   bool     // the beginning of `line` was thrown away, so no tag in it is at the line's start
	cut       bool     // a tagged line is longer than lineLimit; what is beyond is counted, not kept
	beyond    int      // bytes beyond
	overlong  int      // of these, without the spaces at their end
}

func newOutputScanner(declared []string, limits OutputLimits) *outputScanner {
	names := make(map[string]bool, len(declared))
	for _, name := range declared {
		names[name] = true
	}
	return &outputScanner{
		declared:  names,
		strict:    newOutputSet(limits),
		lenient:   newOutputSet(limits),
		lineLimit: limits.ValueBytes + lineSlack,
	}
}

// Write takes the next piece of the stream. It never fails.
func (s *outputScanner) Write(piece []byte) (int, error) {
	size := len(piece)
	if len(s.line) > 0 {
		end := bytes.IndexByte(piece, '\n')
		if end < 0 {
			s.keep(piece)
			return size, nil
		}
		s.keep(piece[:end])
		s.endLine()
		piece = piece[end+1:]
	}
	// Nearly all output has neither tag nor colour codes (which may stand inside a tag): only its last line can matter.
	if !bytes.Contains(piece, outputTag) && bytes.IndexByte(piece, 0x1b) < 0 {
		s.keep(piece[bytes.LastIndexByte(piece, '\n')+1:])
		return size, nil
	}
	for {
		end := bytes.IndexByte(piece, '\n')
		if end < 0 {
			s.keep(piece)
			return size, nil
		}
		s.finish(piece[:end])
		piece = piece[end+1:]
	}
}

// Close takes the last line, which may lack its newline.
func (s *outputScanner) Close() error {
	if len(s.line) > 0 {
		s.endLine()
	}
	return nil
}

func (s *outputScanner) endLine() {
	s.finish(s.line)
	s.line, s.midLine, s.cut, s.beyond, s.overlong = s.line[:0], false, false, 0, 0
}

// keep appends to the unfinished line, within bounds however long the line is.
func (s *outputScanner) keep(piece []byte) {
	if s.cut {
		s.count(piece)
		return
	}
	s.line = append(s.line, piece...)
	if len(s.line) <= s.lineLimit {
		return
	}
	at := bytes.Index(s.line, outputTag)
	if at < 0 { // keep only what may be the beginning of a tag
		rest := len(s.line) - len(outputTag) + 1
		s.line = append(s.line[:0], s.line[rest:]...)
		s.midLine = true
		return
	}
	if len(bytes.TrimSpace(stripCodes(s.line[:at]))) > 0 || s.midLine {
		s.midLine = true
		s.line = append(s.line[:0], s.line[at:]...)
	}
	if len(s.line) > s.lineLimit {
		s.cut = true
		s.count(s.line[s.lineLimit:])
		s.line = s.line[:s.lineLimit]
	}
}

// count takes what is not kept. Spaces behind a value are no part of it, however many.
func (s *outputScanner) count(piece []byte) {
	if text := bytes.TrimRightFunc(piece, unicode.IsSpace); len(text) > 0 {
		s.overlong = s.beyond + len(text)
	}
	s.beyond += len(piece)
}

// finish judges one whole line.
func (s *outputScanner) finish(line []byte) {
	if bytes.IndexByte(line, 0x1b) >= 0 || bytes.IndexByte(line, '\r') >= 0 {
		line = stripCodes(line)
	}
	at := bytes.Index(line, outputTag)
	if at < 0 {
		return
	}
	if !s.midLine && len(bytes.TrimSpace(line[:at])) == 0 {
		if key, value, ok := parseAssignment(line[at+len(outputTag):]); ok {
			s.strict.set(key, value, s.overlong)
		} else if len(s.odd) < mostOdd {
			s.odd = append(s.odd, oddLine(line[at+len(outputTag):]))
		}
		return
	}
	for at >= 0 {
		line = line[at+len(outputTag):]
		if key, value, ok := parseAssignment(line); ok && s.declared[key] {
			s.lenient.set(key, value, s.overlong)
			return
		}
		at = bytes.Index(line, outputTag)
	}
}

const mostOdd = 5

// oddLine says what is wrong with an assignment, without its value.
func oddLine(text []byte) string {
	key, _, found := bytes.Cut(text, []byte("="))
	if !found {
		return "a line with [JOB_OUT] has no `KEY = VALUE` behind it; it was ignored"
	}
	return fmt.Sprintf("a line with [JOB_OUT] has the key %.60q; it was ignored, since a key has letters, digits and underscores", bytes.TrimSpace(key))
}

// parseAssignment reads `KEY = VALUE`: the first `=` splits, spaces around key and value do not count.
func parseAssignment(text []byte) (key, value string, ok bool) {
	before, after, found := bytes.Cut(text, []byte("="))
	key = string(bytes.TrimSpace(before))
	if !found || !validKey(key) {
		return "", "", false
	}
	return key, string(bytes.TrimSpace(after)), true
}

// validKey says whether a key can become an environment variable.
func validKey(key string) bool {
	for i := 0; i < len(key); i++ {
		c := key[i]
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return len(key) > 0 && len(key) <= 256
}

// stripCodes returns line without carriage returns and terminal codes (ECMA-48: CSI, OSC and the short ones).
func stripCodes(line []byte) []byte {
	clean := make([]byte, 0, len(line))
	for i := 0; i < len(line); {
		switch line[i] {
		case '\r':
			i++
		case 0x1b:
			i = skipCode(line, i+1)
		default:
			clean = append(clean, line[i])
			i++
		}
	}
	return clean
}

// skipCode returns the index after the terminal code whose ESC stands before i.
func skipCode(line []byte, i int) int {
	if i >= len(line) {
		return i
	}
	switch line[i] {
	case '[': // parameters, then one final byte
		for i++; i < len(line); i++ {
			if line[i] >= 0x40 && line[i] <= 0x7e {
				return i + 1
			}
			if line[i] < 0x20 || line[i] > 0x7e { // not a code after all: take nothing more
				return i
			}
		}
	case ']', 'P', '_', '^', 'X': // a string up to BEL or ESC \
		for j := i + 1; j < len(line); j++ {
			if line[j] == 0x07 {
				return j + 1
			}
			if line[j] == 0x1b && j+1 < len(line) && line[j+1] == '\\' {
				return j + 2
			}
		}
		return i + 1 // unterminated: drop only the introducer, text after it is the user's
	default: // intermediates, then one final byte
		for i < len(line) && line[i] >= 0x20 && line[i] <= 0x2f {
			i++
		}
		return min(i+1, len(line))
	}
	return i
}

// outputSet keeps the last value of each key, within limits. What is over a limit is counted, not kept.
type outputSet struct {
	limits OutputLimits
	values map[string]string
	sizes  map[string]int // of every key, also of those whose value was not kept
	total  int            // bytes kept: keys and values
	extra  int            // assignments to new keys beyond four times the limit of keys
	beyond string         // the first key over the limit of keys
	odd    []string       // what lines that set nothing were
	fixed  []string       // keys whose value was not valid UTF-8
}

func newOutputSet(limits OutputLimits) *outputSet {
	return &outputSet{limits: limits, values: map[string]string{}, sizes: map[string]int{}}
}

// set stores value; uncounted is the number of further bytes of it that were already thrown away.
func (o *outputSet) set(key, value string, uncounted int) {
	if _, known := o.sizes[key]; !known && len(o.sizes) >= o.limits.Keys {
		if o.beyond == "" {
			o.beyond = strings.Clone(key)
		}
		if len(o.sizes) >= 4*o.limits.Keys {
			o.extra++
			return
		}
	}
	if old, kept := o.values[key]; kept {
		o.total -= len(key) + len(old)
		delete(o.values, key)
	}
	size := len(value) + uncounted
	o.sizes[key] = size
	if size > o.limits.ValueBytes || o.total+len(key)+size > o.limits.TotalBytes {
		return
	}
	if !utf8.ValidString(value) {
		value = strings.ToValidUTF8(value, "\uFFFD")
		o.fixed = append(o.fixed, key)
	}
	o.values[strings.Clone(key)] = strings.Clone(value)
	o.total += len(key) + len(value)
}

// merge puts the values of later over those of o.
func (o *outputSet) merge(later *outputSet) {
	for _, key := range sortedKeys(later.sizes) {
		if value, kept := later.values[key]; kept {
			o.set(key, value, 0)
		} else {
			o.set(key, "", later.sizes[key])
		}
	}
	o.extra += later.extra
	o.fixed = append(o.fixed, later.fixed...)
}

// violation names the first limit that is broken, with key, size and limit, or is "".
func (o *outputSet) violation() string {
	if count := len(o.sizes) + o.extra; count > o.limits.Keys {
		return fmt.Sprintf("the job set %d outputs, the limit is %d, and %s is one too many: write many values as one JSON value, or as an artifact", count, o.limits.Keys, o.beyond)
	}
	total := 0
	for _, key := range sortedKeys(o.sizes) {
		size := o.sizes[key]
		if size > o.limits.ValueBytes {
			return fmt.Sprintf("output %s has %d bytes, the limit for one value is %d: write large data to a file and declare it as an artifact", key, size, o.limits.ValueBytes)
		}
		total += len(key) + size
	}
	if total > o.limits.TotalBytes || len(o.values) < len(o.sizes) {
		largest := o.largest()
		return fmt.Sprintf("the outputs together have %d bytes (the largest is %s with %d), the limit is %d: write large data to a file and declare it as an artifact", total, largest, o.sizes[largest], o.limits.TotalBytes)
	}
	return ""
}

func (o *outputSet) largest() (largest string) {
	for _, key := range sortedKeys(o.sizes) {
		if largest == "" || o.sizes[key] > o.sizes[largest] {
			largest = key
		}
	}
	return largest
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// collected unites what was found, weakest first: mid-line, line start, file.
func (s *outputScanner) collected(file *outputSet) *outputSet {
	all := newOutputSet(s.strict.limits)
	all.odd = s.odd
	all.merge(s.lenient)
	all.merge(s.strict)
	if file != nil {
		all.merge(file)
	}
	return all
}
