package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// Reading a document as its schema says it: names in their own case, no nulls but where the schema has them, and all faults at
// once, each with its place. (encoding/json takes `Command` for `command`, null for anything, and tells one fault.)

// decodeDocument fills `into`, a pointer to a struct, from JSON, as far as the document can be understood. A fault never holds a
// value, which may be secret.
func decodeDocument(data []byte, into any) (faults []string) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return []string{describeSyntax(data, err)}
	}
	if _, err := decoder.Token(); err != io.EOF {
		faults = append(faults, "there is something behind the end of the JSON object: remove it")
	}
	fill(reflect.ValueOf(into).Elem(), value, "", &faults)
	return faults
}

func describeSyntax(data []byte, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return "it is not complete JSON: was it cut?"
	}
	before := data[:min(int(syntax.Offset), len(data))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n') - 1
	return fmt.Sprintf("it is not JSON (line %d, column %d)", line, column)
}

// fill puts a decoded value into its place, if it is of the right kind.
func fill(place reflect.Value, value any, at string, faults *[]string) {
	if place.Kind() == reflect.Pointer {
		if value == nil {
			return
		}
		place.Set(reflect.New(place.Type().Elem()))
		place = place.Elem()
	}
	ok := true
	switch place.Kind() {
	case reflect.Struct:
		object, isObject := value.(map[string]any)
		if ok = isObject; ok {
			fillStruct(place, object, at, faults)
		}
	case reflect.Map:
		object, isObject := value.(map[string]any)
		if ok = isObject; ok {
			place.Set(reflect.MakeMapWithSize(place.Type(), len(object)))
			for key, one := range object {
				element := reflect.New(place.Type().Elem()).Elem()
				fill(element, one, fmt.Sprintf("%s[%q]", at, key), faults)
				place.SetMapIndex(reflect.ValueOf(key), element)
			}
		}
	case reflect.Slice:
		array, isArray := value.([]any)
		if ok = isArray; ok {
			place.Set(reflect.MakeSlice(place.Type(), len(array), len(array)))
			for i, one := range array {
				fill(place.Index(i), one, fmt.Sprintf("%s[%d]", at, i), faults)
			}
		}
	default:
		ok = fillPlain(place, value)
	}
	if !ok {
		*faults = append(*faults, fmt.Sprintf("%s must be %s, not %s", orDocument(at), kindWord(place.Type()), jsonWord(value)))
	}
}

func fillStruct(place reflect.Value, object map[string]any, at string, faults *[]string) {
	for i := range place.NumField() {
		name, _, _ := strings.Cut(place.Type().Field(i).Tag.Get("json"), ",")
		if value, given := object[name]; given {
			fill(place.Field(i), value, strings.TrimPrefix(at+"."+name, "."), faults)
		}
	}
}

func fillPlain(place reflect.Value, value any) bool {
	switch place.Kind() {
	case reflect.String:
		text, ok := value.(string)
		place.SetString(text)
		return ok
	case reflect.Bool:
		truth, ok := value.(bool)
		place.SetBool(truth)
		return ok
	}
	text, ok := value.(json.Number)
	if !ok {
		return false
	}
	number, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return false
	}
	if place.Kind() == reflect.Float64 {
		place.SetFloat(number)
		return true
	}
	// 1.0 is an integer to JSON Schema, too.
	whole, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		if number != math.Trunc(number) || math.Abs(number) >= 1<<53 {
			return false
		}
		whole = int64(number)
	}
	place.SetInt(whole)
	return true
}

func orDocument(at string) string {
	if at == "" {
		return "the document"
	}
	return at
}

func kindWord(kind reflect.Type) string {
	switch kind.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a whole number"
}

func jsonWord(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "true or false"
	case json.Number:
		return "this number"
	case []any:
		return "a list"
	}
	return "an object"
}
