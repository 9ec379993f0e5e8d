#!/usr/bin/env bash
# Run every test, in two shares side by side that take about as long as each other: real programs are mostly waited for.
# What the second share prints comes after the first has ended.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
.venv/bin/python -m pytest tests/unit tests/functional tests/system/test_[s-z]*.py >"$log" 2>&1 &
second=$!
trap 'kill "$second" 2>/dev/null; rm -f "$log"' EXIT
.venv/bin/python -m pytest tests/system/test_[a-r]*.py
one=$?
wait "$second"
two=$?
cat "$log"
exit $((one ? one : two))
