# The one door to every habit. `make bench` and `make test` work on a bare machine with Python and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: bench bench-pytest test test-all style rules info clean

bench: $(VENV)/built ## ours and the peers on this machine: a table, and a plot in bench/out
	$(BIN)/python -m bench

bench-pytest: $(VENV)/built ## a small fixed subset under pytest-benchmark
	$(BIN)/python -m pytest bench --benchmark-only

test: $(VENV)/built ## everything but the slow sweeps
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/built ## slow sweeps too: up to 12 GiB of memory
	$(BIN)/python -m pytest

style: $(VENV)/built ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp')

rules: $(VENV)/built ## prints csrc/rules.h again after a rule changed
	$(BIN)/python -m fusedstep.emit csrc/rules.h

info: $(VENV)/built ## the backends, and why one is absent
	$(BIN)/python -m fusedstep info

$(VENV)/tools: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "setuptools>=77" "cmake>=3.18" ninja "pybind11>=2.12" torch==2.13.0
	touch $@

$(VENV)/built: $(VENV)/tools $(NATIVE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf build $(VENV)/built python/fusedstep/_native*.so python/*.egg-info bench/out
