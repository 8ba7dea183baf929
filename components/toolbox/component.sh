#!/bin/sh
# The toolbox as a component of its own: fetches code if told where it is, and runs the command in the input CMD.
# Inputs have the names that TencentHub's `*_cmd` components use; each has an engine's variable to fall back on.
set -eu

url=${GIT_CLONE_URL:-${_WORKFLOW_GIT_CLONE_URL:-}}
ref=${GIT_REF:-${_WORKFLOW_GIT_REF:-}}

if [ -z "${CMD:-}" ]; then
  echo "The input CMD is empty: say which shell command is to be run." >&2
  exit 2
fi
if [ -n "$url" ]; then
  git clone --quiet "$url" code
  cd code
  if [ -n "$ref" ]; then git checkout --quiet "$ref"; fi
  echo "[JOB_OUT] GIT_COMMIT = $(git rev-parse HEAD)"
fi
exec sh -e -c "$CMD"
