#!/usr/bin/env bash
# Fuzzes each parser of the wrapper in turn. What it finds is kept in wrapper/testdata/fuzz and fails `go test` from then on.
#   FUZZTIME=12m        for each of the five; an hour in all
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-12m}
go=$(scripts/go.sh)
cd wrapper
# Each try of the unpacker makes some directories: in memory that is ten times as many tries.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
tags=()
GOTOOLCHAIN=local "$go" mod download 2>/dev/null || tags=(-tags nozstd)
for target in FuzzUnpack FuzzArchive FuzzOutputs FuzzOutputFile FuzzDocument; do
  echo "fuzz: $target for $time"
  GOTOOLCHAIN=local "$go" test "${tags[@]}" -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s .
done
