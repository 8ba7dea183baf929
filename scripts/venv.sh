#!/usr/bin/env bash
# Makes .venv with everything to run, test and check Hubflow. pip is used and not something faster, because it honours the
# proxies, certificates and mirrors that people have set up for it.
set -euo pipefail
cd "$(dirname "$0")/.."

usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

# Microseconds that a few loops take. Interpreters of one version differ by more than half: one that was built without
# --enable-optimizations (what pyenv does) is slow, and nothing that it says of itself tells.
pace() {
  "$1" -I - <<'PYTHON'
import time

class Thing:
    def __init__(self, value):
        self.value = value

def work():
    for number in range(60_000):
        {"a": Thing(number).value, "b": [number] * 3}

def clock():
    began = time.process_time()
    work()
    return time.process_time() - began

print(int(1_000_000 * min(clock() for _ in range(5))))
PYTHON
}

find_python() {
  local name path time best="" least=0
  for name in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}; do
    for path in $(type -ap "$name"); do
      usable "$path" || continue
      time=$(pace "$path")
      # The first, which is the newest, unless another one is much faster.
      if [ -z "$best" ] || [ $((time * 5)) -lt $((least * 4)) ]; then
        best=$path least=$time
      fi
    done
  done
  if [ -z "$best" ]; then
    echo "venv: no Python 3.11 to 3.14 found: install one, or name it: make demo PYTHON=/path/to/python" >&2
    return 1
  fi
  echo "$best"
}

if ! usable .venv/bin/python; then
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    scripts/packages.sh "python$version-venv"
    "$python" -c 'import ensurepip, venv' || { echo "venv: install the package python$version-venv" >&2; exit 1; }
  fi
  echo "venv: making .venv with $("$python" --version), $python"
  "$python" -m venv --clear .venv
fi
usable_pip() { .venv/bin/python -m pip --version >/dev/null 2>&1; }
usable_pip || .venv/bin/python -m ensurepip >/dev/null
echo "venv: installing the packages of requirements/dev.txt (the first time takes a minute)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
# Where Python is told to write no bytecode, each process would compile all of it anew, which takes as long as starting does.
.venv/bin/python -m compileall -q cli services shared
touch .venv/installed
