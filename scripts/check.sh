#!/usr/bin/env bash
# Everything that can be said about the code without running it. All faults are shown, not only the first tool's.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=()

run() {
  local title=$1 start=$EPOCHREALTIME output
  shift
  if output=$("$@" 2>&1); then
    printf '  ok    %-32s %5.1f s\n' "$title" "$(bc_seconds "$start")"
  else
    printf '  FAIL  %-32s\n%s\n' "$title" "$output"
    failed+=("$title")
  fi
}
bc_seconds() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'; }
vet() { (cd wrapper && GOTOOLCHAIN=local "$go" vet "$@" .) }
fresh() {  # a module that writes a file can also say whether that file is up to date
  if [ -e "${1//.//}.py" ]; then run "$1 is fresh" $bin/python -m "$1" --check; fi
}

run "ruff check" $bin/ruff check --quiet .
run "ruff format" $bin/ruff format --check --quiet .
run "mypy" $bin/mypy
run "import contracts" $bin/lint-imports
fresh shared.workflow.schema
fresh shared.asyncapi
fresh cli.reference
fresh cli.settings_reference
fresh cli.reasons_reference
if [ -e wrapper/go.mod ]; then
  go=$(scripts/go.sh)
  if (cd wrapper && GOTOOLCHAIN=local "$go" mod download) 2>/dev/null; then run "go vet" vet; fi
  run "go vet (without zstd)" vet -tags nozstd
  run "gofmt" bash -c '[ -z "$(cd wrapper && "$0" -l . | tee /dev/stderr)" ]' "$(dirname "$go")/gofmt"
fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "check: failed: ${failed[*]}" >&2
  exit 1
fi
