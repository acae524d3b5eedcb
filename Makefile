# Everything that is done to this project is one of these targets; CI calls only them.
#
#   make demo     install and run the main job: four workers replay a real trace over one cache
#   make test     install and run the test suite (with a test build that has fault points)
#   make build    the virtual environment with the package in it, editable
#   make check    lint and types
#   make upstream the frameworks' own test suites over our backends (downloads them)
#   make stress   the tests that load the cache with real processes, longer than `make test` does
#   make sanitize the C core alone under ThreadSanitizer, AddressSanitizer, UBSan and a fuzzer
#   make pythons  the suite under the other supported Pythons that are on PATH
#   make models   the Promela models, checked with spin
#   make nightly  all of it, at length
#   make example  the FastAPI service of examples/, run and asked a few things
#   make bench    shmcache beside dict, lru_cache, LMDB, Redis and others, into out/; a look in two
#                 minutes: BENCH_ARGS=--quick
#   make bench-record   the same into docs/bench, for a commit; on a quiet machine
#   make clean    remove what was built (not the virtual environment: `make distclean`)
#
# PYTHON says which interpreter makes the virtual environment, VENV where it is:
#   make test PYTHON=python3.13 VENV=.venv313
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
PYTHONS ?= python3.11 python3.12 python3.13
WORKERS ?= 4

BIN := $(VENV)/bin
FAULT_LIB := build/fault
# One build at a time, also when several `make`s run in the same tree.
LOCKED = flock $(VENV)/.build-lock

.DELETE_ON_ERROR:
.PHONY: build check test upstream example stress nightly sanitize bench bench-record demo models pythons fault-build clean distclean

build: $(VENV)/.installed
	@$(LOCKED) $(BIN)/python setup.py --quiet build_ext --inplace

# Reinstalled when the dependencies change; `build` alone recompiles what changed in the sources.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@tools/preflight $(BIN)/python
	$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check 'setuptools>=77' 'Cython>=3.0'
	$(LOCKED) env PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check \
		--no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/bin/python:
	@tools/preflight $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# The same package with -DSHM_FAULTS, beside the real one; tests put it first on PYTHONPATH.
fault-build: build
	@SHMCACHE_FAULTS=1 $(LOCKED) $(BIN)/python setup.py --quiet build \
		--build-lib $(FAULT_LIB) --build-temp build/fault-temp

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

test: fault-build
	$(BIN)/python -m pytest $(PYTEST_ARGS)

upstream: build
	$(BIN)/python tests/upstream/run.py

stress: fault-build
	SHMCACHE_STRESS_SECONDS=30 $(BIN)/python -m pytest -m stress $(PYTEST_ARGS)

# `command -v` finds pyenv's shims for versions that are not switched on: asking for -V tells.
pythons:
	@set -e; for python in $(PYTHONS); do \
		if $$python -V >/dev/null 2>&1; then \
			echo "==> $$python"; $(MAKE) test PYTHON=$$python VENV=.venv-$$python; \
		else \
			echo "==> $$python is not here"; \
		fi; \
	done

nightly: fault-build
	SHMCACHE_STRESS_SECONDS=60 $(BIN)/python -m pytest -m 'not stress and not nightly' $(PYTEST_ARGS)
	SHMCACHE_STRESS_SECONDS=60 $(BIN)/python -m pytest -m 'stress or nightly' $(PYTEST_ARGS)
	$(MAKE) sanitize NIGHTLY=1
	$(MAKE) models
	$(MAKE) pythons

sanitize:
	$(MAKE) -C tests/core sanitize

models: build
	$(BIN)/python models/run.py

bench: fault-build $(VENV)/.bench
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-record: fault-build $(VENV)/.bench
	$(BIN)/python -m bench --record docs/bench $(BENCH_ARGS)

# The peers; UltraDict apart, which not every machine can build: the bench says so and goes on.
$(VENV)/.bench: pyproject.toml | build
	$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[bench]'
	-$(LOCKED) $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[bench-ultradict]'
	@touch $@

demo: build
	$(BIN)/python tools/demo --workers $(WORKERS)

example: build
	$(BIN)/python examples/service/run.py --demo

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find shmcache -name '*.so' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
