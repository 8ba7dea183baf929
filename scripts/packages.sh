#!/usr/bin/env bash
# Installs the named Debian packages, where that is possible: as root, on Debian. Elsewhere it says what is missing.
#   scripts/packages.sh servers        what the tests start: RabbitMQ, dockerd, a registry, busybox, Kubernetes' node; and, for the
#                                      wrapper's tests, zstd, another processor (qemu) and another C library (musl)
#   scripts/packages.sh NAME...        just these
set -euo pipefail
if [ "$*" = servers ]; then
  set -- rabbitmq-server docker.io docker-compose docker-registry busybox-static iproute2 git python3-venv zstd \
    qemu-user-static musl containerd runc containernetworking-plugins iptables conntrack faketime
fi
missing=()
for package in "$@"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! grep -qs '^ID=debian' /etc/os-release || ! command -v apt-get >/dev/null; then
  echo "packages: not installed here (only as root on Debian): ${missing[*]}" >&2
  echo "packages: what needs them is skipped, and the tests say so" >&2
  exit 0
fi
echo "packages: installing ${missing[*]}"
# The packages would start servers of the whole machine on the usual ports; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  tail -n 20 "$log" >&2
  echo "packages: could not install ${missing[*]}; the whole log is in $log" >&2
  exit 1
fi
rm -f "$log"
