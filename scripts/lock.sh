#!/usr/bin/env bash
# Writes requirements/*.txt: every package by version and hash, for Python 3.11 to 3.14, without any address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .venv/bin/uv)
[ -x "$uv" ] || { .venv/bin/python -m pip install --quiet uv && uv=.venv/bin/uv; }
compile() {
  local output=$1
  shift
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links ${UPGRADE:+--upgrade} -o "$output" "$@"
}
compile requirements/runtime.txt pyproject.toml --extra embedded
compile requirements/dev.txt pyproject.toml requirements/build.in --extra embedded --extra dev -c requirements/runtime.txt
compile requirements/services.txt pyproject.toml -c requirements/runtime.txt
compile requirements/build.txt requirements/build.in -c requirements/dev.txt
compile requirements/go.txt requirements/go.in
for peer in requirements/peers/*.in; do compile "${peer%.in}.txt" "$peer"; done
if grep -nE '://|--(index|extra|find)' requirements/*.txt requirements/peers/*.txt; then
  echo "lock: an address got into the lock files" >&2
  exit 1
fi
echo "lock: $(grep -c == requirements/dev.txt) packages by version and hash"
