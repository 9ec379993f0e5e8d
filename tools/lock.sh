#!/usr/bin/env bash
# Write constraints.txt: every Python package that running, testing and building needs, pinned, with the hashes of all
# its files, so that it serves each Python and processor we support. Needs a package index; takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
work=.cache/lock
[ -x $work/bin/pip-compile ] || { python3 -m venv $work && $work/bin/pip install -q pip-tools==7.6.2; }
# hatchling asks for editables when it builds an editable install; setuptools builds the one package without a wheel.
$work/bin/python - >$work/requirements.in <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
groups = [*project["dependency-groups"].values(), *project["project"]["optional-dependencies"].values()]
print(*project["build-system"]["requires"], "editables", "setuptools", sep="\n")
print(*project["project"]["dependencies"], *(need for group in groups for need in group), sep="\n")
PY
cp constraints.txt $work/constraints.txt 2>/dev/null || true
$work/bin/pip-compile -q --upgrade --generate-hashes --allow-unsafe --strip-extras --no-annotate --no-header \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
    -o $work/constraints.txt $work/requirements.in
mv $work/constraints.txt constraints.txt
