# Everything a fresh machine needs: `make demo`, `make test` and `make test-all` set up .venv themselves.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
SYSTEM ?= gino
# One worker more than cores: one of them waits for SLURM most of the time.
PYTEST_ARGS ?= -n $$(($(CORES) + 1)) --dist loadgroup --no-loadscope-reorder
TORCH ?= $(shell grep '^torch==' $(LOCK))
# Extra pip options for torch alone, for example another index with CPU-only builds.
TORCH_PIP_ARGS ?=

# What `make doctor` looks at, for example: make doctor PROFILE=gilbreth DOCTOR_ARGS="--layout n2_gpu2"
PROFILE ?= local
DOCTOR_ARGS ?=

# One demo per file of config/demo; those on SUMO need a simulator of 165 MB, see demo-sumo.
SYSTEMS := $(filter-out %_sumo,$(basename $(notdir $(wildcard config/demo/*.yaml))))

LOCK := envs/requirements.lock
SUMO_LOCK := envs/sumo.lock
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUMO_STAMP := $(VENV)/.sumo
PIP := $(BIN)/python -m pip install --quiet --progress-bar off
SNAKEMAKE := $(BIN)/snakemake --profile profiles/local

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sumo test test-all test-nightly test-times test-docs test-mutation coverage fuzz chaos reference docs docs-links lint doctor \
  bench bench-compare bench-data bench-gpu lock release-check clean unknown-system FORCE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: SYSTEM ($(SYSTEMS)), PROFILE, DOCTOR_ARGS, CORES, PYTHON, PYTEST_ARGS, TORCH_PIP_ARGS."

setup: $(STAMP) ## create .venv with the locked packages and this checkout

# The stamp holds the folder's path: a .venv that was moved or copied along with the checkout points
# at the old place, and one whose installation was interrupted has no stamp. Both are made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): $(LOCK) pyproject.toml
	@if command -v $(PYTHON) >/dev/null && ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "Millrace needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one with 'make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11'." >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "==> apt-get install python3-venv"; \
	    apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null; \
	  else echo "$(PYTHON) cannot create virtual environments: install python3-venv (Debian, Ubuntu: 'apt-get install python3-venv')." >&2; exit 1; fi; fi
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(CURDIR)" ]; then \
	  echo "==> creating $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear $(VENV); fi
	@echo "==> installing $(TORCH)"
	@$(PIP) $(TORCH_PIP_ARGS) "$(TORCH)"
	@echo "==> installing the other $$(grep -c '^[a-zA-Z]' $(LOCK)) packages of $(LOCK) (one to five minutes)"
	@$(PIP) -r $(LOCK)
	@echo "==> installing this checkout"
	@$(PIP) --no-deps --no-build-isolation -e .
	@echo "$(CURDIR)" > $(STAMP)

define run_demo
	@start=$$SECONDS; \
	echo "==> running the $(SYSTEM) demo on $(CORES) cores"; \
	$(SNAKEMAKE) --cores $(CORES) --configfile config/demo/$(SYSTEM).yaml; \
	echo "==> writing the report"; \
	$(SNAKEMAKE) --configfile config/demo/$(SYSTEM).yaml --report results/report.html; \
	echo "The $(SYSTEM) demo took $$((SECONDS - start)) s. Report: $(CURDIR)/results/report.html"
endef

demo: $(if $(filter $(SYSTEM),$(SYSTEMS)),$(STAMP),unknown-system) ## run the whole workflow on demo data: make demo SYSTEM=gino
	$(run_demo)

demo-sumo: SYSTEM := smart_sumo
demo-sumo: $(SUMO_STAMP) ## the demo of SMART on traffic that SUMO simulates; installs SUMO
	$(run_demo)

$(SUMO_STAMP): $(STAMP) $(SUMO_LOCK)
	@echo "==> installing $$(grep '^eclipse-sumo' $(SUMO_LOCK))"
	@$(PIP) --no-deps -r $(SUMO_LOCK)
	@touch $(SUMO_STAMP)

unknown-system:
	@echo "SYSTEM=$(SYSTEM) is not a demo; choose one of: $(SYSTEMS)." >&2; exit 1

# Tests run side by side, so each keeps to one thread.
test test-all test-nightly test-times test-docs test-mutation coverage fuzz chaos: export OMP_NUM_THREADS := 1
test test-all test-nightly test-times test-docs test-mutation coverage fuzz chaos: export OPENBLAS_NUM_THREADS := 1
PYTEST = $(BIN)/python -m pytest $(PYTEST_ARGS)

test: lint ## lint, then the quick tests: before every commit
	@echo "==> pytest -m 'not slow and not nightly' $(PYTEST_ARGS)"
	@$(PYTEST) -m 'not slow and not nightly'

test-all: lint ## lint, then all tests: every scheduler, every system's workflow, the examples, the browser
	@echo "==> pytest -m 'not nightly' $(PYTEST_ARGS)"
	@$(PYTEST) -m 'not nightly'

test-nightly: lint ## lint, then all tests in all combinations
	@$(PYTEST)

test-times: $(STAMP) ## all tests, then the slowest, the time of each package, and how often torch was loaded
	@starts=$$(mktemp); trap 'rm -f "$$starts"' EXIT; \
	MILLRACE_TEST_STARTS=$$starts PYTHONPATH=$(CURDIR)/tests/starts $(PYTEST) -m 'not nightly' --times

test-docs: $(STAMP) ## the tests of the documents and of the examples in them
	@$(PYTEST) tests/unit/test_documentation.py tests/unit/test_extending.py tests/unit/test_site.py tests/examples

test-mutation: $(STAMP) ## does the suite notice faults? One changed line at a time; hours
	@$(BIN)/python tests/mutation/run.py

fuzz: $(STAMP) ## 2,000 mutated raw files of each system: read rightly or refused, never silently wrong
	@MILLRACE_MUTATIONS=$${MILLRACE_MUTATIONS:-2000} $(PYTEST) $$(find tests/unit -name "test_mutated_*.py")

# Half an hour on two cores.
CHAOS_ARGS ?= --seed 1 --kills 280 --heads 20 --damages 1000 --full-disks 100 --clocks 50 --lies 50

chaos: $(STAMP) ## kill, damage, fill disks, set clocks, lie: nothing silent, no traceback, no orphan
	@$(BIN)/python tests/chaos/run.py $(CHAOS_ARGS)

reference: $(STAMP) ## write the reference of the configuration's keys and its schema for editors anew
	@$(BIN)/millrace config explain > docs/reference/config.md
	@$(BIN)/millrace config schema > config/schema.json

SPHINX = $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet

docs: $(STAMP) ## build the site, strictly, into docs/_build/html
	@$(SPHINX) -b html docs docs/_build/html && echo "Open $(CURDIR)/docs/_build/html/index.html in a browser."

docs-links: $(STAMP) ## ask whether the addresses in the documents answer; needs the network
	@$(SPHINX) -b linkcheck docs docs/_build/links && echo "All addresses answer."

coverage: $(STAMP) ## all tests, then the lines of each package that they ran
	@$(PYTEST) -m 'not nightly' --cov --cov-report= && $(BIN)/python tests/coverage_by_package.py

# mypy takes as long as all others together, on one core.
lint: $(STAMP) ## check format, style, types, import direction, spelling, dead code and the workflow
	@types=$$(mktemp); $(BIN)/mypy > "$$types" 2>&1 & mypy=$$!; \
	trap 'kill $$mypy 2>/dev/null || true; rm -f "$$types"' EXIT; \
	echo "==> ruff";       $(BIN)/ruff check; $(BIN)/ruff format --check; \
	echo "==> codespell";  $(BIN)/codespell; \
	echo "==> snakefmt";   $(BIN)/snakefmt --check Snakefile workflow/rules examples/darcy/Snakefile; \
	echo "==> lint-imports"; $(BIN)/lint-imports; \
	echo "==> vulture";    $(BIN)/python tests/dead_code.py; \
	echo "==> snakemake --lint"; $(BIN)/snakemake --lint; \
	echo "==> check-jsonschema"; $(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml; \
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml; \
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff; \
	echo "==> mypy"; wait $$mypy || { cat "$$types"; exit 1; }; cat "$$types"

# Exit code 1 if a check failed. What it does: .venv/bin/millrace doctor --help
doctor: $(STAMP) ## check a cluster before work goes there: make doctor PROFILE=gilbreth
	@$(BIN)/millrace doctor --profile profiles/$(PROFILE) $(DOCTOR_ARGS)

# BENCH names measurements, or what their names begin with: `make bench BENCH="gino-1500 windows"`.
bench: $(STAMP) ## measure on this machine's CPU: one table, written to docs/results; BENCH="gino windows" for some
	@$(BIN)/python tests/bench/rows.py --results docs/results $(BENCH)

bench-compare: ## what changed beyond noise between results: make bench-compare OLD=FILE.json NEW=FILE.json
	@$(BIN)/python tests/bench/rows.py --compare $(OLD) $(NEW)

bench-data: $(STAMP) ## measure what jobs on raw files take, beside what `millrace plan` says
	@for file in $(wildcard tests/bench/data_*.py); do echo "==> $$file"; PYTHONPATH=tests/bench $(BIN)/python $$file; done

bench-gpu: $(STAMP) ## measure on this machine's GPUs, and write to docs/results
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "torch sees no CUDA device here: run 'make bench-gpu' on a GPU node." >&2; exit 1; }
	@$(BIN)/python tests/bench/gpu_links.py
	@$(BIN)/python tests/bench/gpu_training.py --results docs/results

# torch comes first and alone, so that no other requirement chooses its build; the packages a CUDA
# build of torch brings along stay out, for they differ from machine to machine.
lock: ## write envs/requirements.lock anew from pyproject.toml (TORCH=torch==X.Y.Z to change torch)
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	echo "==> resolving in a temporary environment with $(TORCH)"; \
	$(PYTHON) -m venv "$$scratch/venv"; pip="$$scratch/venv/bin/python -m pip"; \
	$$pip install --quiet --progress-bar off $(TORCH_PIP_ARGS) "$(TORCH)" 'setuptools>=77'; \
	$$pip install --quiet --progress-bar off --no-build-isolation -e '.[test,lint,docs]'; \
	{ grep '^#' $(LOCK); $$pip freeze --all --exclude-editable --exclude pip \
	  | sed 's/+[A-Za-z0-9.]*$$//' | grep -Ev '^(nvidia-|cuda-|triton==)'; } > "$$scratch/lock"; \
	cp "$$scratch/lock" $(LOCK); \
	echo "==> wrote $(LOCK); bring the pins in envs/*.yaml in line (make test names those that differ)"

# The wheel is made of the sdist, so that both are whole. Tools for it alone stay out of the lock.
release-check: $(STAMP) ## build sdist and wheel into dist/, check them, and that all places name one version
	@MILLRACE_RELEASE=1 $(BIN)/python -m pytest -q tests/unit/test_release.py
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	echo "==> installing build and twine in a temporary environment"; \
	$(PYTHON) -m venv "$$scratch/venv"; "$$scratch/venv/bin/python" -m pip install --quiet --progress-bar off build twine; \
	rm -rf dist; "$$scratch/venv/bin/python" -m build --outdir dist . >"$$scratch/log" 2>&1 || { cat "$$scratch/log" >&2; exit 1; }; \
	"$$scratch/venv/bin/python" -m twine check --strict dist/*

clean: ## remove .venv and caches; results/ and runs/ stay
	@rm -rf $(VENV) build dist docs/_build docs/generated .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis workflow/*.egg-info
	@find workflow tests -name __pycache__ -type d -prune -exec rm -rf {} +
