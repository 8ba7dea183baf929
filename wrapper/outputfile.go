package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// The file that the child finds under HUBFLOW_OUTPUT: the safe way to set outputs, since no program's chatter gets into it.

// createOutputFile makes the empty file that a child of any user may write.
func createOutputFile(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o666)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Chmod(0o666) // whatever the umask says
}

// readOutputFile parses the file. Faults in it become warnings with their line; the error is for a file that cannot be read.
func readOutputFile(path string, limits OutputLimits) (*outputSet, []string, error) {
	set := newOutputSet(limits)
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return set, nil, nil // the child removed it: nothing was said
	}
	if err != nil {
		return set, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return set, nil, err
	}
	if !info.Mode().IsRegular() {
		return set, []string{"HUBFLOW_OUTPUT was replaced by something that is not a file; its outputs are ignored"}, nil
	}
	// Room for markers, escapes and overwritten values; what is larger breaks the limit anyway.
	most := int64(8*limits.TotalBytes + 64<<10)
	if info.Size() > most {
		set.set("HUBFLOW_OUTPUT", "", int(min(info.Size(), 1<<31-1)))
		return set, nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(file, most))
	if err != nil {
		return set, nil, err
	}
	return set, parseOutputFile(data, set), nil
}

// parseOutputFile reads lines KEY=VALUE, here-documents KEY<<MARKER, or one JSON object, into set.
func parseOutputFile(data []byte, set *outputSet) (warnings []string) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		return parseOutputJSON(trimmed, set)
	}
	warn := func(line int, format string, args ...any) {
		if len(warnings) < 10 {
			warnings = append(warnings, fmt.Sprintf("HUBFLOW_OUTPUT line %d: ", line)+fmt.Sprintf(format, args...))
		}
	}
	lines := strings.Split(string(data), "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSuffix(lines[i], "\r")
		number := i + 1
		if strings.TrimSpace(line) == "" {
			continue
		}
		line = strings.TrimLeft(strings.TrimPrefix(strings.TrimLeft(line, " \t"), string(outputTag)), " \t")
		if key, marker, ok := cutHereDocument(line); ok {
			end := findMarker(lines, i+1, marker)
			if end < 0 {
				warn(number, "the text of %s is not ended by a line %q; it was ignored, and all after it", key, marker)
				return warnings
			}
			set.set(key, strings.Join(withoutReturns(lines[i+1:end], lines[i]), "\n"), 0)
			i = end
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if bare := strings.TrimSpace(key); found && validKey(bare) {
			if bare != key { // spaces before `=`: written as one writes [JOB_OUT]
				value = strings.TrimSpace(value)
			}
			set.set(bare, value, 0)
			continue
		}
		warn(number, "expected KEY=VALUE or KEY<<MARKER (a key has letters, digits and underscores); the line was ignored")
	}
	return warnings
}

// withoutReturns drops the carriage returns of a here-document whose first line shows that the file has DOS line ends.
func withoutReturns(lines []string, first string) []string {
	if !strings.HasSuffix(first, "\r") {
		return lines
	}
	bare := make([]string, len(lines))
	for i, line := range lines {
		bare[i] = strings.TrimSuffix(line, "\r")
	}
	return bare
}

// cutHereDocument recognises KEY<<MARKER, where the << comes before any =.
func cutHereDocument(line string) (key, marker string, ok bool) {
	key, marker, found := strings.Cut(line, "<<")
	key, marker = strings.TrimSpace(key), strings.TrimSpace(marker)
	return key, marker, found && validKey(key) && marker != ""
}

func findMarker(lines []string, from int, marker string) int {
	for i := from; i < len(lines); i++ {
		if strings.TrimSuffix(lines[i], "\r") == marker {
			return i
		}
	}
	return -1
}

// parseOutputJSON takes strings as they are and anything else as its JSON text.
func parseOutputJSON(data []byte, set *outputSet) (warnings []string) {
	object := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &object); err != nil {
		return []string{"HUBFLOW_OUTPUT begins with { but is not a JSON object (" + describeSyntax(data, err) + "); its outputs are ignored"}
	}
	for _, key := range sortedKeys(object) {
		if !validKey(key) {
			warnings = append(warnings, fmt.Sprintf("HUBFLOW_OUTPUT: the key %.60q was ignored: a key has letters, digits and underscores", key))
			continue
		}
		var text string
		if json.Unmarshal(object[key], &text) == nil && object[key][0] == '"' {
			set.set(key, text, 0)
			continue
		}
		var compact bytes.Buffer
		if json.Compact(&compact, object[key]) == nil {
			set.set(key, compact.String(), 0)
		}
	}
	return warnings
}
