package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A JSON Schema validator for the words that our two schemas use; any other word fails, so that none is silently ignored.

func checkSchema(t testing.TB, name string, document []byte) {
	t.Helper()
	for _, fault := range schemaFaults(t, name, document) {
		t.Errorf("%s document: %s\n%s", name, fault, document)
	}
}

func schemaFaults(t testing.TB, name string, document []byte) (faults []string) {
	t.Helper()
	var value any
	if err := json.Unmarshal(document, &value); err != nil {
		return []string{err.Error()}
	}
	validate(loadSchema(t, name), value, "$", &faults)
	return faults
}

func loadSchema(t testing.TB, name string) map[string]any {
	t.Helper()
	text, err := os.ReadFile("schema/" + name + ".schema.json")
	if err != nil {
		t.Fatal(err)
	}
	schema := map[string]any{}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func validate(schema map[string]any, value any, at string, faults *[]string) {
	fault := func(format string, args ...any) { *faults = append(*faults, at+": "+fmt.Sprintf(format, args...)) }
	for word, rule := range schema {
		switch word {
		case "$schema", "$id", "title", "description", "default", "format":
		case "const":
			if !reflect.DeepEqual(rule, value) {
				fault("is not %v", rule)
			}
		case "enum":
			if !slices.ContainsFunc(rule.([]any), func(one any) bool { return reflect.DeepEqual(one, value) }) {
				fault("%v is not one of %v", value, rule)
			}
		case "type":
			if !isOfType(rule, value) {
				fault("%v is not of type %v", value, rule)
			}
		case "minimum", "maximum", "minLength", "minItems", "pattern":
			validateBound(word, rule, value, fault)
		case "items":
			for i, item := range asArray(value) {
				validate(rule.(map[string]any), item, fmt.Sprintf("%s[%d]", at, i), faults)
			}
		case "prefixItems":
			for i, sub := range rule.([]any) {
				if items := asArray(value); i < len(items) {
					validate(sub.(map[string]any), items[i], fmt.Sprintf("%s[%d]", at, i), faults)
				}
			}
		case "required":
			for _, key := range rule.([]any) {
				if object, ok := value.(map[string]any); ok && !has(object, key.(string)) {
					fault("lacks %s", key)
				}
			}
		case "properties":
			for key, sub := range rule.(map[string]any) {
				if object, ok := value.(map[string]any); ok && has(object, key) {
					validate(sub.(map[string]any), object[key], at+"."+key, faults)
				}
			}
		case "additionalProperties":
			validateAdditional(schema, rule, value, at, faults)
		default:
			fault("the test's validator does not know %q", word)
		}
	}
}

func has(object map[string]any, key string) bool { _, ok := object[key]; return ok }

func asArray(value any) []any {
	array, _ := value.([]any)
	return array
}

func isOfType(rule, value any) bool {
	if names, several := rule.([]any); several {
		return slices.ContainsFunc(names, func(name any) bool { return isOfType(name, value) })
	}
	number, isNumber := value.(float64)
	switch rule.(string) {
	case "integer":
		return isNumber && number == math.Trunc(number)
	case "number":
		return isNumber
	case "null":
		return value == nil
	}
	kinds := map[string]reflect.Kind{"object": reflect.Map, "array": reflect.Slice, "string": reflect.String, "boolean": reflect.Bool}
	return value != nil && reflect.TypeOf(value).Kind() == kinds[rule.(string)]
}

func validateBound(word string, rule, value any, fault func(string, ...any)) {
	switch v := value.(type) {
	case float64:
		if word == "minimum" && v < rule.(float64) || word == "maximum" && v > rule.(float64) {
			fault("%v breaks %s %v", v, word, rule)
		}
	case string:
		if word == "minLength" && float64(len(v)) < rule.(float64) || word == "pattern" && !regexp.MustCompile(rule.(string)).MatchString(v) {
			fault("%q breaks %s %v", v, word, rule)
		}
	case []any:
		if word == "minItems" && float64(len(v)) < rule.(float64) {
			fault("has %d items, fewer than %v", len(v), rule)
		}
	}
}

func validateAdditional(schema map[string]any, rule, value any, at string, faults *[]string) {
	object, _ := value.(map[string]any)
	known, _ := schema["properties"].(map[string]any)
	for key, item := range object {
		if has(known, key) {
			continue
		}
		if sub, ok := rule.(map[string]any); ok {
			validate(sub, item, at+"."+key, faults)
		} else if rule == false {
			*faults = append(*faults, at+": unexpected "+key)
		}
	}
}

// Every field of the Go types must be in the schema, and the other way round.
func TestSchemaNamesTheFields(t *testing.T) {
	compare := func(where string, kind reflect.Type, schema map[string]any) {}
	compare = func(where string, kind reflect.Type, schema map[string]any) {
		for kind.Kind() == reflect.Pointer || kind.Kind() == reflect.Slice {
			if items, ok := schema["items"].(map[string]any); ok {
				schema = items
			}
			kind = kind.Elem()
		}
		properties, ok := schema["properties"].(map[string]any)
		if kind.Kind() != reflect.Struct || !ok {
			return
		}
		fields := map[string]bool{}
		for field := range kind.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" {
				continue
			}
			fields[name] = true
			sub, known := properties[name].(map[string]any)
			if !known {
				t.Errorf("%s: the schema lacks %s", where, name)
				continue
			}
			compare(where+"."+name, field.Type, sub)
		}
		for name := range properties {
			if !fields[name] && name != "overflow" {
				t.Errorf("%s: the schema has %s, the code has not", where, name)
			}
		}
	}
	compare("job", reflect.TypeFor[Job](), loadSchema(t, "job"))
	compare("result", reflect.TypeFor[Result](), loadSchema(t, "result"))
}

func TestSchemaRefuses(t *testing.T) {
	for _, document := range []string{
		`{}`,
		`{"version":2,"command":["x"],"result_path":"/r"}`,
		`{"version":1,"command":[],"result_path":"/r"}`,
		`{"version":1,"command":"x","result_path":"/r"}`,
		`{"version":1,"command":["x"],"result_path":""}`,
		`{"version":1,"command":["x"],"result_path":"/r","timeout_s":-1}`,
		`{"version":1,"command":["x"],"result_path":"/r","restore":[{"kind":"tape","url":"x"}]}`,
		`{"version":1,"command":["x"],"result_path":"/r","save":[{"kind":"cache","paths":[],"upload":{"put_url":"x"}}]}`,
		`{"version":1,"command":["x"],"result_path":"/r","save":[{"kind":"cache","paths":["a"],"upload":{"put_url":"x","part_bytes":99999999999}}]}`,
	} {
		if len(schemaFaults(t, "job", []byte(document))) == 0 {
			t.Errorf("the schema takes %s", document)
		}
		// What the schema refuses the wrapper refuses too.
		if len(jobFaults([]byte(document))) == 0 {
			t.Errorf("the wrapper takes %s", document)
		}
	}
}

func TestSchemaTakesTheReadmesExamples(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```json (job|result)\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) < 2 {
		t.Fatalf("the README has %d examples", len(blocks))
	}
	for _, block := range blocks {
		checkSchema(t, string(block[1]), block[2])
	}
}

// jobFaults is what the wrapper says of a job document.
func jobFaults(document []byte) []string {
	job := &Job{}
	faults := decodeDocument(document, job)
	job.applyDefaults()
	return append(faults, job.faults()...)
}
