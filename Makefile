# Everything here needs nothing but Python 3.11 or newer and make. `make demo` and `make test` first make a virtual
# environment in $(VENV); choose the interpreter with `make demo PYTHON=python3.12`.

PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OUT ?= demo-output
# Thread pools fight over the cores in the small matrix products of the demo and the tests.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

SOURCES := elbotree derivation codegen runtime
CHECKED := $(SOURCES) tests examples docs $(wildcard benchmarks)

.PHONY: demo test extras oldest audit faults fuzz browser docs pages package figures check format bench mutate clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; choose another with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp a set of extras, made anew whenever the project's requirements change.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-sklearn  ## learn a layer of a small digits network and write the report
	$(BIN)/python examples/digits.py --out $(OUT)

# Files of tests go to so many processes, each whole, so that what its tests share is made once; WORKERS=0 is this process alone.
WORKERS ?= 2
test: $(VENV)/.installed-test $(VENV)/.installed-sklearn  ## run the tests (WORKERS=2 at a time)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The tests that a machine without the extras skips: here a skip for want of one of them is a failure. mpi-test brings an MPI of
# its own, as a wheel.
EXTRAS ?= torch,onnx,cluster,plots,mpi-test
EXTRA_TESTS ?= tests/runtime/test_networks.py tests/runtime/test_torch.py tests/elbotree/test_cluster.py \
  tests/elbotree/test_cli.py tests/elbotree/test_fitting.py tests/stress/test_input.py tests/docs/test_pages.py
extras: $(VENV)/.installed-test $(VENV)/.installed-sklearn $(VENV)/.installed-$(EXTRAS)  ## run the tests that need the extras EXTRAS, which may not skip
	ELBOTREE_EXTRAS=$(EXTRAS) $(BIN)/python -m pytest $(EXTRA_TESTS) -rs

faults: $(VENV)/.installed-test  ## kill runs 200 times each, flip every byte of checkpoints, fill disks (minutes; disks need root)
	ELBOTREE_KILLS=200 ELBOTREE_FLIPS=-1 $(BIN)/python -m pytest tests/stress/test_faults.py -rsP

# What depends on versions most: values, algebra, printed kernels, the command line, files.
OLDEST_TESTS := tests/golden tests/derivation tests/codegen tests/elbotree/test_cli.py tests/elbotree/test_front_door.py \
  tests/elbotree/test_values.py tests/runtime/test_storage.py tests/runtime/test_priors.py tests/runtime/test_models.py \
  tests/runtime/test_networks.py tests/runtime/test_tails.py tests/stress/test_input.py tests/stress/test_extremes.py

oldest:  ## the oldest versions that pyproject.toml allows: golden values and the tests that depend on versions most
	rm -rf $(VENV)-oldest
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip --disable-pip-version-check --quiet install $$($(PYTHON) -m tests.oldest sklearn test)
	$(VENV)-oldest/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -e .
	$(VENV)-oldest/bin/python -m pytest $(OLDEST_TESTS)

audit: $(VENV)/.installed-audit  ## bill of materials (CycloneDX) of an installation, and advisories about it (asks PyPI)
	rm -rf $(VENV)-audited
	$(PYTHON) -m venv $(VENV)-audited
	$(VENV)-audited/bin/python -m pip --disable-pip-version-check --quiet install '.[sklearn,onnx,plots]'
	rm -rf build/lib build/bdist.*
	@mkdir -p dist
	$(BIN)/python -m tests.audit $(VENV)-audited/bin/python dist/elbotree.cdx.json

# Half an hour as it stands; FUZZ_EXAMPLES=5 FUZZ_SECONDS=30 takes some minutes.
FUZZ_EXAMPLES ?= 50
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed-fuzz  ## bad input: thousands of examples of each property, fuzzers guided by coverage, extremes against the oracle
	ELBOTREE_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/stress/test_input.py tests/runtime/test_enclosures.py
	for way in psi problem arrays folder onnx; do $(BIN)/python -m tests.stress.fuzz $$way --seconds $(FUZZ_SECONDS) || exit 1; done
	$(BIN)/python -m tests.stress.extremes --seconds $(FUZZ_SECONDS)

browser: $(VENV)/.installed-browser-test  ## test the report in a real browser (needs chromium and its driver)
	$(BIN)/python -m pytest tests/browser -rs

docs: $(VENV)/.installed-docs  ## build the documentation into docs/_build, and run its notebooks
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs docs/_build
	$(BIN)/python -m pytest tests/docs/test_notebooks.py
	@echo "open docs/_build/index.html"

pages: $(VENV)/.installed-test $(VENV)/.installed-sklearn  ## run the code on the pages of the documentation
	$(BIN)/python -m pytest tests/docs/test_pages.py

package: $(VENV)/.installed-package  ## build wheel and sdist, and try both on every Python of PYTHONS (all must be here)
	$(BIN)/python -m tests.package --pythons $(PYTHONS)

figures: $(VENV)/.installed-docs  ## make the figures of the documentation anew
	$(BIN)/python docs/figures.py

check: $(VENV)/.installed-dev  ## formatter, linter, and types on a built tree
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	rm -rf build
	$(PIP) install --no-deps --target build/typecheck .
	rm -rf build/lib build/bdist.*
	MYPYPATH=build/typecheck $(BIN)/mypy -p elbotree

format: $(VENV)/.installed-dev  ## put the code into its format
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

bench: $(VENV)/.installed-test  ## time the whole tree at several sizes
	$(BIN)/python -m benchmarks.speed

mutate: $(VENV)/.installed-test  ## break each rule, family and lowering in turn: a test must notice (minutes)
	$(BIN)/python -m tests.mutations

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-audited build dist docs/_build $(OUT) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
