# What people run. Each target sets itself up in .venv; the second call starts at once.
#
#   make demo    train and compress on two local processes (no GPU, no download of data)
#   make test    the tests
#   make check   formatting, lint, types, tests: what has to pass before a change is shared
#   make bench   every benchmark, then the tables in README.md and docs/techniques.md
#   make docs    the generated pages of docs/
#   make clean   .venv and everything that was built
#
# PYTHON  the interpreter that .venv is made from (3.11 or later)
# TORCH   what pip is asked for. On Linux the usual index answers with a CUDA build of several gigabytes; pass your
#         own choice on the first call, for example TORCH="torch==2.13.0 --index-url …" with PyTorch's CPU index.
#         To change it later: make clean.
PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIN := $(VENV)/constraints.txt
# Two processes, one of which has all tests on several ranks (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2
# Peers of the benchmarks that cannot be installed beside the others.
APART := 'mosaicml-streaming>=0.13' 'litdata>=0.2.70'
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(PIN)
# Files in benchmarks/ that are read by the others and answer no question themselves: table.py and _*.py.
BENCHMARKS = $(filter-out benchmarks/table.py benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))

# The repository root is the package: a process that has the root first on sys.path would find our `compression`
# where Python 3.14 has its own.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/forgepress train examples/demo.yaml --ranks 2

test: $(VENV)/dev.stamp
	$(PYTEST)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST)

bench: $(VENV)/apart.stamp
	set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done
	$(BIN)/python benchmarks/table.py
	$(BIN)/python docs/generate.py

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and is then pinned to the very build that was installed.
$(VENV)/torch.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Forgepress needs Python 3.11 or later; pass one: make PYTHON=python3.12 …"; exit 2; }
	@echo "Setting up $(VENV): torch"
	@$(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' constraints.txt > $(PIN)
	@$(INSTALL) $(TORCH)
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $(PIN)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp
	@echo "Setting up $(VENV): forgepress with what the examples need"
	@$(INSTALL) --editable '.[examples]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp
	@echo "Setting up $(VENV): forgepress with what the examples and tests need"
	@$(INSTALL) --editable '.[dev,examples]'
	@touch $(VENV)/demo.stamp $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	@echo "Setting up $(VENV): the peers of the benchmarks"
	@$(INSTALL) --editable '.[dev,examples,benchmarks]'
	@touch $@

# Peers that want other versions of our libraries than we do: an interpreter apart that sees ours where it has none.
$(VENV)/apart.stamp: $(VENV)/bench.stamp
	@echo "Setting up $(VENV)/apart: the peers that cannot be installed beside the others"
	@$(BIN)/python -m venv $(VENV)/apart
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(VENV)/apart/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	@$(VENV)/apart/bin/python -m pip install --quiet --disable-pip-version-check $(APART)
	@touch $@
