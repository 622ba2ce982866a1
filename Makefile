# Everything a developer or CI runs. Needs make and a Python of 3.11 or later; the rest lands in .venv.

BIN := .venv/bin
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
READY := .venv/ready
OUT ?= $(CURDIR)/protos
# Some tests wait for a time to pass: one worker more than there are cores keeps these busy.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PARALLEL = --numprocesses=$(WORKERS) --dist=worksteal
# Workers, services and commands import the same modules hundreds of times: compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-fast fuzz check bench protos protos-image docs lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## build .venv from requirements.lock; runs by itself where needed

run: $(READY) ## start PostgreSQL and the whole suite with a sample app; Ctrl-C stops it
	@$(BIN)/python -m deploy.local up $(ARGS)

demo: $(READY) ## play the sample traffic through the suite, show and check the outcome, stop
	@$(BIN)/python -m deploy.local demo $(ARGS)

test: $(READY) ## run the tests; ARGS="tests/libs -k pool" for some
	@$(BIN)/pytest $(or $(ARGS),$(PARALLEL))

test-fast: $(READY) ## run the tests that take no process of a service, no kill and no seconds
	@$(BIN)/pytest $(PARALLEL) -m "not e2e and not crash and not process and not slow" $(ARGS)

fuzz: $(READY) ## send 200,000 records, many of them hostile, through a suite of its own; ARGS="5000 --seed 7"
	@$(BIN)/python -m tests.hostile.fuzz $(ARGS)

check: $(READY) ## formatting, lint, types, import contracts, protos, migrations, manifests
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/local/checks.sh

bench: $(READY) ## the performance table; ARGS="--json FILE" for programs
	@$(BIN)/python -m deploy.local bench $(ARGS)

protos: $(READY) ## regenerate the code beside the .proto files
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/local/protoc.sh --python_out=$(OUT) --mypy_out=quiet:$(OUT)
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/local/protoc.sh --services \
		--grpc_python_out=$(OUT) --mypy_grpc_out=quiet,only_async:$(OUT)

protos-image: $(READY) ## keep the protos as they are: until a release is tagged, make check holds later ones to them
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/local/protoc.sh --include_imports \
		--descriptor_set_out=$(CURDIR)/protos/released.binpb

docs: $(READY) ## rewrite docs/configuration.md from the configuration of every service
	@$(BIN)/python -m deploy.local.configuration

lock: $(READY) ## rewrite requirements.lock, and the image's, from pyproject.toml; ARGS=--upgrade for newer releases
	@$(BIN)/uv pip compile pyproject.toml --group local --group test --group check --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --quiet $(ARGS) -o requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --quiet -o deploy/requirements.lock

clean: ## remove .venv, caches and the local database
	@rm -rf .venv .data .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed, and no python3 here is that; set PYTHON=/path/to/it."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up .venv (once, about a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
