# Two commands: `make sweep` (from nothing to a report, an ensemble, a checked zip and a checked ONNX file) and `make test`
# (all that CI runs).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO := demo
N := 30
SEED := 0
OUT := build/gpu

PARTS := static unit integration chaos-ci cluster
PYTEST := $(BIN)/pytest $(if $(LONG),,-m 'not long')
LOWEST := .venv-lowest
SITE := .venv-site

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: docs sweep check test test-all zoo static lint types imports unit integration chaos-ci cluster chaos lowest bench gpu wheel clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

sweep: $(STAMP)
	$(BIN)/raypipe simulate $(DEMO)/bids --subjects 32
	$(BIN)/raypipe prepare $(DEMO)/bids --target challenge1 --out $(DEMO)/store
	$(BIN)/raypipe sweep all_families --data $(DEMO)/store --run $(DEMO)/run --trials 8 --folds 4
	$(BIN)/raypipe ensemble $(DEMO)/run
	$(BIN)/raypipe export $(DEMO)/run $(DEMO)/bundle
	$(BIN)/raypipe export $(DEMO)/run $(DEMO)/submission.zip
	$(BIN)/raypipe check $(DEMO)/submission.zip --bundle $(DEMO)/bundle
	$(BIN)/raypipe export $(DEMO)/run $(DEMO)/model.onnx
	$(BIN)/raypipe check $(DEMO)/model.onnx --bundle $(DEMO)/bundle
	@echo
	@echo "report      $(DEMO)/run/report.html"
	@echo "ensemble    $(DEMO)/bundle"
	@echo "submission  $(DEMO)/submission.zip"
	@echo "ONNX        $(DEMO)/model.onnx"
	@echo "raypipe     in $(BIN): . $(BIN)/activate"

# Before a commit, in under a minute: all that `make test` checks without running code, and the tests of what has changed
check: lint types imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $$($(BIN)/python -m tests.changed)

# What CI runs; it ends with the time of each part and with what was skipped.
test: $(STAMP)
	$(BIN)/python -m tests.parts $(PARTS)

# The same, and the long forms: a dozen seeds of chaos, three hosts in full, real recordings, the challenge at full size,
# the lowest versions of dependencies.
test-all: $(STAMP) zoo
	LONG=1 $(BIN)/python -m tests.parts $(PARTS) lowest

# braindecode, for the tests that compare with its networks or train them
zoo: $(VENV)/zoo

$(VENV)/zoo: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[zoo]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps braindecode
	touch $@

static: lint types imports

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# A file of tests at a time on each of two cores, each with one thread; those of a GPU are skipped without one
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) tests/unit tests/gpu -n 2 --dist loadfile

# Each of two processes starts a Ray, which its tests share
integration: $(STAMP)
	$(PYTEST) tests/integration -n 2 --dist loadfile

chaos-ci: $(STAMP)
	$(PYTEST) tests/chaos -n 2 --dist worksteal

# Three hosts of namespaces, ssh and `ray up`; skipped, with the reason, where this machine cannot be that (not root, ...)
cluster: $(STAMP)
	$(PYTEST) tests/cluster

# Kills, pauses, closed consoles and slow disks at random moments in N runs, from seed SEED on.
# One seed again: make chaos N=1 SEED=7
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --runs $(N) --seed $(SEED)

# The unit tests with the lowest versions that pyproject.toml allows, and the torch that is tested otherwise
lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest tests/unit -m 'not long' -n 2 --dist loadfile

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt torch==2.13.0
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[dev]'
	touch $@

# All benchmarks but the long ones, with braindecode as a peer, compared with the last results by ratios:
# make bench BENCH="--quick --only step"
bench: $(VENV)/zoo
	$(BIN)/python -m benchmarks $(BENCH)

# On a machine with a CUDA device, torch and pytest, but no Ray and no virtual environment, in under ten minutes: the
# tests in tests/gpu, and benchmarks of steps, folds and pretraining. OUT is the folder of gpu.json and gpu.md.
gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT)

# The site, strict: a link or an anchor that leads nowhere fails, and so does a notebook. And the docstrings of all modules,
# for contributors.
docs: $(STAMP) $(SITE)/installed
	$(BIN)/python docs/notebooks.py build/notebooks
	$(SITE)/bin/python docs/site.py build/pages build/notebooks
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet
	$(BIN)/python docs/api.py build/api
	@echo "build/site/index.html, build/api/index.html"

$(SITE)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/python -m pip install --quiet --upgrade pip
	$(SITE)/bin/python -m pip install --quiet -c constraints.txt --group docs
	touch $@

# dist/: what pip installs elsewhere, and deploy/Dockerfile
wheel: $(STAMP)
	$(BIN)/python -m hatchling build --target wheel --directory dist

clean:
	rm -rf $(DEMO)
