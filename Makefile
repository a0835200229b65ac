# test is for people, five minutes on two cores; test-slow is what takes longer, and CI runs both.
# Everything runs from .venv, which is made once and again only when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint types contracts unit coverage test-slow test-gpu test-arm64 clean
.NOTPARALLEL:

demo: $(INSTALLED)
	$(BIN)/gft-edge demo --out demo

test: lint types contracts unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

contracts: $(INSTALLED)
	$(BIN)/lint-imports

# Two workers of one thread each: PyTorch's own threads would wait for each other on two cores.
unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not arm64"

# Apart from unit: following every call doubles the time of an export.
coverage: $(INSTALLED)
	$(BIN)/pytest -m "not slow and not gpu and not arm64" --cov --cov-report=term

# ROOMS: only the slow tests of these folders.
test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow and not gpu and not arm64" $(ROOMS)

# A machine with a GPU but without this tree or internet: benchmarks/first_gpu.sh.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu

# Needs root on Debian, and an index of packages the first time. What it makes stays in .arm64; nothing is
# installed. -qq and no addopts, which say how long tests took: under emulation a time means nothing.
test-arm64: $(INSTALLED)
	GFT_EDGE_TOOLS=required OMP_NUM_THREADS=1 $(BIN)/pytest -qq -o addopts="--strict-markers -ra" -m arm64

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	touch $@

clean:
	rm -rf .venv .arm64 demo .mypy_cache .pytest_cache .ruff_cache .coverage
