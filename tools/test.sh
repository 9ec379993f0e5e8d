#!/usr/bin/env bash
# Run every test, in two shares side by side: those that start real programs, and mostly wait for them, and all others.
# What the second share prints comes after the first has ended.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
.venv/bin/python -m pytest tests/unit tests/functional >"$log" 2>&1 &
others=$!
trap 'kill "$others" 2>/dev/null; rm -f "$log"' EXIT
.venv/bin/python -m pytest tests/system
first=$?
wait "$others"
second=$?
cat "$log"
exit $((first ? first : second))
