#!/usr/bin/env bash
# Runs the tests.  scripts/test.sh all|quick   T=path K=expression choose some; X=options for pytest
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1
chosen=${T:-tests}
# The others start whole systems or take their time even where embedded servers suffice; so do the wrapper's own tests.
[ "$which" = all ] || chosen=${T:-tests/unit tests/contract --ignore tests/contract/test_runtime.py}
options=()
status=0
[ -z "${K:-}" ] || options+=(-k "$K")
# Tests of the same slow server stay together on one worker.
[ -n "${T:-}${K:-}" ] || options+=(-n 2 --dist loadgroup)
if [ "$which" = quick ]; then options+=(-m "not servers" -q); else options+=(--durations 10); fi
if [ "$which" = all ] && [ -z "${T:-}${K:-}" ]; then
  echo "test: go test in wrapper/"
  go=$(scripts/go.sh)
  tags=()
  (cd wrapper && GOTOOLCHAIN=local "$go" mod download) 2>/dev/null || tags=(-tags nozstd)
  (cd wrapper && GOTOOLCHAIN=local "$go" test "${tags[@]}" ./...) || {
    echo "test: !!! go test failed once, see above; once more"
    (cd wrapper && GOTOOLCHAIN=local "$go" test -count=1 "${tags[@]}" ./...) || status=$?
  }
  echo "test: a minute of fuzzing"
  FUZZTIME=12s scripts/fuzz.sh || status=$?
fi
# The cluster that tests run against, once for each version; where that cannot be, the tests say so.
if [ "$which" = all ] && [[ "${T:-}" != tests/unit* ]] && [ -z "${HUBFLOW_TEST_KUBECONFIG:-}" ]; then
  .venv/bin/python -m tests.cluster build >/dev/null || echo "test: !!! no Kubernetes could be built, see above; its tests are skipped !!!"
fi
echo "test: pytest ${options[*]} $chosen"
# shellcheck disable=SC2086
.venv/bin/python -m pytest "${options[@]}" ${X:-} $chosen || failed=$?
# Real servers, signals and time limits on whatever machine this is: what fails once is said loudly, and counts if it fails again.
if [ "${failed:-0}" = 1 ] && [ "$which" = all ] && [ -z "${T:-}${K:-}" ]; then
  echo "test: !!! tests failed, see above; these once more, one after another"
  # Side by side they were recorded with their group behind the name, by which nobody would find them now.
  sed -i -E 's/@[a-z]+"/"/' .pytest_cache/v/cache/lastfailed
  failed=0
  .venv/bin/python -m pytest --last-failed --last-failed-no-failures none ${X:-} $chosen || failed=$?
fi
[ "${failed:-0}" = 0 ] || status=$failed
exit $status
