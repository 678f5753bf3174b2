# One command each: `make demo` runs the main job, `make test` passes the tests. Both do the set-up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --root-user-action ignore --constraint constraints.txt
# Tests of a file stay in one process, and so do all that use the one Ray cluster (tests/conftest.py), which come first.
TOGETHER := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 3

.PHONY: install demo test test-long lint docs tests browser clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Python 3.11 is needed, this is " + sys.version.split()[0] + "; name one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-compile torch==2.13.0 uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[test,docs]'
	touch $@

demo: install
	$(BIN)/python jobs/toy.py runs/demo/videos
	$(BIN)/python jobs/train.py toy --data runs/demo/videos --storage runs/demo --loop.epochs 8

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documents, into site/; whatever is not quite right in them is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documents come first: tests read what building them writes.
test: install docs browser
	$(MAKE) --no-print-directory --jobs 2 lint tests

tests: install
	$(BIN)/python -m pytest $(TOGETHER)

# What takes too long for every day: one of several hosts is cut off from a run (skipped without root and Linux), and
# a run whose object store goes away.
test-long: install
	$(BIN)/python -m pytest -m long --timeout 3000

# Reports are opened in a real browser by the tests.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  command -v apt-get >/dev/null || { echo "the tests need chromium or google-chrome: install one" >&2; exit 1; }; \
	  if [ "$$(id -u)" = 0 ]; then as=; else as=sudo; fi; \
	  $$as apt-get update -qq && $$as apt-get install -y -qq chromium >/dev/null; }

clean:
	rm -rf .venv runs site
