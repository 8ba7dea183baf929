#!/usr/bin/env bash
# Fuzzes each parser of the wrapper in turn. What it finds is kept in wrapper/testdata/fuzz and fails `go test` from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-15m}
go=$(scripts/go.sh)
cd wrapper
for target in FuzzUnpack FuzzArchive FuzzOutputs FuzzOutputFile; do
  echo "fuzz: $target for $time"
  GOTOOLCHAIN=local "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s .
done
