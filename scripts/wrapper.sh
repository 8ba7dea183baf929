#!/usr/bin/env bash
# Builds CommandWrapper for both processors (PROCESSORS=amd64: only that): static, stripped, the same bytes from the same sources.
set -euo pipefail
cd "$(dirname "$0")/.."
go=$(scripts/go.sh)
version=$(sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml)
cd wrapper
tags=()
if ! GOTOOLCHAIN=local "$go" mod download 2>bin.log; then
  tail -n 3 bin.log >&2
  echo "wrapper: !!! Go modules cannot be fetched here: building WITHOUT zstd (gzip only: larger and slower transfers) !!!" >&2
  tags=(-tags nozstd)
fi
rm -f bin.log
mkdir -p bin
for processor in ${PROCESSORS:-amd64 arm64}; do
  output=bin/hubflow-wrapper-linux-$processor
  CGO_ENABLED=0 GOOS=linux GOARCH=$processor GOTOOLCHAIN=local "$go" build -trimpath -buildvcs=false "${tags[@]}" \
    -ldflags "-s -w -X main.version=$version" -o "$output.new" .
  mv "$output.new" "$output"  # in one step: a job may be copying the old one
  echo "wrapper: $output ($(du -k "$output" | cut -f1) KiB)"
done
