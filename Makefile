# Everything is made inside this folder: the tool in .venv, an environment for each backend in .shim/env.
#   make bench ARGS="--modes all"    hands options to `shim bench`
#   make test TARGETS="numpy torch"  leaves the other backends out, Keras too
#   make test JOBS=2                 tests two backends at a time, and shows what a test printed when it is over
#   make PYTHON=python3.12 bench     takes another Python, 3.11 or newer

PYTHON ?= python3
ifdef TARGETS
ONLY = --backends $(call commas,$(TARGETS))
else
KERAS ?= keras-tensorflow keras-jax keras-torch keras-numpy keras-openvino keras-cntk
endif
TARGETS ?= numpy tensorflow jax torch cntk
GPU ?= cupy torch jax
ARGS ?=
JOBS ?= 1

BIN := .venv/bin
SHIM := $(BIN)/shim
ASV := $(BIN)/asv
TOOL := .venv/.installed
CUDA := .shim/cuda/.installed
JAX := $${SHIM_HOME:-.shim}/env/jax/bin/python
NAMES := $(basename $(notdir $(wildcard shim/backends/[a-z]*.py)))
comma := ,
space := $() $()
commas = $(subst $(space),$(comma),$(strip $(1)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help tool env some-env bench bench-layers bench-gpu maps site test test-suites test-tool test-measuring \
  test-backends test-smoke test-asv lint types format asv clean test-cuda test-cntk test-cntk-sample test-cntk-upstream test-cntk-pythons

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

bench: WANTED = $(TARGETS) $(KERAS)
bench: some-env  ## Compare the backends on layers and on training steps of all models; print a table and the report's path
	$(SHIM) bench --set scaled --rounds 3 --sweeps 2 --minutes 9 $(ONLY) $(ARGS)

bench-layers: some-env  ## The same on the layers of two models alone, with narrower intervals
	$(SHIM) bench --set article --model mnist_mlp --model imdb_bidirectional_lstm $(ONLY) $(ARGS)

# It begins with the GPU: without one it ends there, before torch and JAX are downloaded. What fails a check is not
# measured, but all else is. Models come first, with as many rounds as a verdict takes; of layers, times on the device are
# what counts, and those one round has.
bench-gpu: $(TOOL)  ## Check and compare the backends on the GPU, on all layers and models; run files go to results/
	$(SHIM) env cupy
	$(SHIM) check cupy --device cuda --op flatten
	$(SHIM) env $(GPU)
	$(if $(filter jax,$(GPU)),$(JAX) -c 'import jax; jax.devices("cuda")' 2> /dev/null || $(BIN)/uv pip install -q --python $(JAX) 'jax[cuda13]')
	@for name in $(GPU); do python=$${SHIM_HOME:-.shim}/env/$$name/bin/python; $$python -c 'import cupti' 2> /dev/null || \
	  $(BIN)/uv pip install -q --python $$python 'cupti-python==13.0.1' || \
	  echo "Going on without the device times of $$name: cupti-python could not be installed."; done
	@mkdir -p results
	name=results/$$(date +%Y%m%d-%H%M%S)-gpu && failed=0; $(SHIM) check $(GPU) --device cuda || failed=1; \
	for set in 'models --rounds 3' 'article --quick'; do \
	  $(SHIM) bench --device cuda --backends $(call commas,$(GPU)) --set $$set \
	    --output $$name-$${set%% *}.jsonl $(ARGS) || failed=1; done; exit $$failed

maps: some-env  ## Map which backend wins at which shape of four ops, in 15 minutes
	set -e; for op in dense conv2d lstm embedding_average; do \
	  $(SHIM) map $$op --backends $(call commas,$(TARGETS)) $(ARGS); done

site: $(TOOL)  ## Write the newest runs as one site, joined with asv's pages where `make asv` has written them
	$(SHIM) site $(ARGS)

test: lint types test-measuring test-suites test-smoke test-asv  ## Run lint, types, tests, a smoke comparison and asv

# Those that time nothing, so that some may run at once, the longest first. Threads that spin while they wait would take the
# CPU from the others, and threads that sleep meanwhile make CNTK four times as slow: one each.
SUITES := test-cuda test-tool test-backends $(if $(filter cntk,$(TARGETS)),test-cntk)
test-suites: env
ifeq ($(JOBS),1)
	@$(MAKE) --no-print-directory $(SUITES)
else
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target $(SUITES)
endif

WANTED = $(TARGETS)
some-env: $(TOOL)
	@$(SHIM) env $(WANTED) || echo 'Going on without the backends that could not be installed.'

env: $(TOOL)  ## Make what is missing: .venv for the tool, an environment for each backend
	$(SHIM) env $(TARGETS)

lint: $(TOOL)  ## Check the style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(TOOL)  ## Check the types
	$(BIN)/mypy

format: $(TOOL)  ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

asv: env  ## Measure this commit with asv, publish its site in .asv/html, and the newest runs with it
	test -e ~/.asv-machine.json || $(ASV) machine --yes
	$(ASV) run --record-samples $(ARGS)
	$(ASV) publish

clean:  ## Delete all that was made here: .venv, .shim with its runs, .asv with its results, caches
	rm -rf .venv .shim .asv .hypothesis .mypy_cache .pytest_cache .ruff_cache

tool: $(TOOL)

# An interrupted creation leaves no stamp, and a broken .venv is made anew.
$(TOOL): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "shim needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo 'installing the tool into .venv'
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --editable . --group dev
	@touch $@

# The tests of the tool run in .venv. Those in tests/backends run in the environment of each backend, a file
# test_NAME.py there only in the environment of NAME. As a prerequisite `env` would make test-tool the last of the suites.
test-tool: $(TOOL)
	@$(SHIM) env $(TARGETS) > /dev/null
	$(BIN)/python -m pytest $(addprefix --ignore=,tests/backends tests/cntk tests/cuda tests/test_asv_site.py $(MEASURING))

# Those of the tool that measure have the machine to themselves.
MEASURING := $(patsubst %,tests/test_%.py,article causes ceilings cli device_clock explain_commands measure pinning readme winmap)
test-measuring: env
	$(BIN)/python -m pytest $(MEASURING)

test-backends: $(TARGETS:%=test-backend-%) $(KERAS:%=test-backend-%)

# Keras compiles a model anew for each trainer. So on Keras all models take ten steps, and what else there is to training is
# tested on three of them: see _skip_unless_quick in tests/backends/test_training.py.
# The module of a backend: of its own name, or of what stands before the dash.
module = $(or $(filter $(subst -,_,$(1)),$(NAMES)),$(firstword $(subst -, ,$(1))))

test-backend-%: $(TOOL)
	@$(SHIM) env $* > /dev/null
	.shim/env/$*/bin/python -m pytest tests/backends --backend $* \
	  $(foreach name,$(filter-out $(call module,$*),$(NAMES)),--ignore=tests/backends/test_$(name).py)

# The CUDA kernels on the CPU, and compiled for GPUs that need not be there; the backend that uses them with NumPy in the
# place of CuPy, under the tests of all backends. CHOSEN leaves out what is slow on a CPU; see docs/gpu.md.
CHOSEN ?= conformance or mnist_mlp or test_the_optimizer or (float32 and (fasttext or lstm_text_generation) and not inputs)
test-cuda: $(CUDA)
	.shim/cuda/bin/python -m pytest tests/cuda
ifeq ($(shell uname),Linux)
	PYTHONPATH=tests/cuda .shim/cuda/bin/python -m pytest -p emulated_cupy --backend cupy -k '$(CHOSEN)' \
	  tests/backends/test_conformance.py tests/backends/test_training.py
endif

$(CUDA): requirements/_cuda.txt requirements/_tools.txt $(TOOL)
	@echo 'installing the compiler of the CUDA kernels into .shim/cuda'
	@rm -rf $(@D)
	@$(BIN)/python -c 'import pathlib; from shim import environments, installer; installer.install( \
	  pathlib.Path("$(@D)"), installer.requirements("_cuda"), environments.source(), log=lambda line: None)'
	@touch $@

# CNTK in a Python it was not built for; see docs/cntk.md. CNTK's own tests take about 12 minutes, the sample 2.
test-cntk: env
	.shim/env/cntk/bin/python -m pytest tests/cntk

test-cntk-sample: env
	.shim/env/cntk/bin/python tests/cntk/upstream.py --sample

test-cntk-upstream: env
	.shim/env/cntk/bin/python tests/cntk/upstream.py

# Each of CPython 3.8 to 3.13 that is on PATH or comes from pyenv, in an environment of its own.
test-cntk-pythons: $(TOOL)
	$(BIN)/python -m pytest tests/cntk/pythons.py

test-smoke: env
	$(SHIM) bench --set smoke --quick --backends $(subst $(space),$(comma),$(strip $(TARGETS)))

# check, run, publish and a browser, in a scratch clone with a home of its own
test-asv: env
	$(BIN)/python -m pytest tests/test_asv_site.py
