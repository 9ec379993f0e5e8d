# Everything a developer runs. `make` alone lists it.
python := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench load docs lock

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## get the programs, the parts in .cache and the Python packages in .venv; again costs a moment
	@tools/setup.sh

demo: setup  ## take a real plugin through its whole life with the docker CLI (root)
	$(python) demo/demo.py

test: setup  ## run every test; as root also those that start real plugins
	@tools/test.sh

lint: .venv/.made-from  ## check style and formatting
	$(python) -m ruff check
	$(python) -m ruff format --check

types: .venv/.made-from  ## check types in the package, the tests, the demo and the tools
	$(python) -m mypy pluginsvc tests $(wildcard demo/*.py) tools

bench: setup  ## measure beside a dockerd of its own, in memory and on disk (root); QUICK=1: under 90 s
	$(python) -m tests.bench

load: setup  ## 1000 event readers, 20 mutators, 5 minutes (root); LOAD=--find-highest: find how much it bears
	$(python) -m tests.load $(LOAD)

docs: .venv/.made-from  ## write the generated pages anew: docs/errors.md
	$(python) tools/errors_doc.py docs/errors.md

lock:  ## pin the newest Python packages that pyproject.toml allows, with hashes, in constraints.txt
	tools/lock.sh

.venv/.made-from:
	@echo "there is no .venv yet: run make setup" >&2; exit 1
