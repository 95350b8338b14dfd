# `make help` lists the targets. Everything is installed into $(VENV), and again when pyproject.toml changes.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# A Python on the PATH may be a broken shim or lack the venv module: an interpreter is usable if it runs this.
USABLE := -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	if $$python $(USABLE) 2>/dev/null; then echo $$python; break; fi; done)
endif
VENV ?= .venv
# Number of pytest processes, and further arguments for pytest, such as PYTEST_ARGS='-k plan -x'.
JOBS ?= 2
PYTEST_ARGS ?=
# Which tests `make test` runs, by their markers.
MARKERS ?= not slow
# Newer interpreters, on the PATH or among pyenv's, for `make test-pythons`; empty for none.
OTHER_PYTHONS ?= $(shell \
	own=$$($(VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	pyenv=$${PYENV_ROOT:-$$(pyenv root 2>/dev/null)}; \
	for version in 3.12 3.13; do \
		if [ $$version = "$$own" ]; then continue; fi; \
		for python in python$$version $${pyenv:+"$$pyenv"/versions/$$version*/bin/python}; do \
			if $$python $(USABLE) 2>/dev/null; then echo $$python; break; fi; \
		done; \
	done)

BIN := $(VENV)/bin
# A file's tests run in one process, since what they share is made once in each. In the order of their names the last
# files are quick ones; by their number of tests, long ones of few tests would be, with one process waiting.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20
# Compiling takes most of the time of the tests. Without LLVM's optimisations, and with XLA's earlier emitters, which
# JAX 0.10 still has, a training step compiles in a fifth of the time; there, not to split programs for threads saves a
# quarter of the rest. `test-all` compiles as users do.
QUICK_COMPILER = XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0 $$($(BIN)/python -c 'import jaxlib; \
	is_old = jaxlib.__version__.startswith("0.10."); \
	print("--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1" if is_old else "")')"
INSTALL := $(BIN)/python -m pip install --quiet --editable

.PHONY: help demo test test-pythons test-all lint docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 20

demo: $(VENV)/demo.stamp ## name photographs, learn digits, export (under 5 minutes on 2 cores)
	@$(BIN)/python docs/demo.py demo_run

test: $(VENV)/dev.stamp ## run the tests without the slow ones
	$(QUICK_COMPILER) $(PYTEST) -m "$(MARKERS)" $(PYTEST_ARGS)

# One after the other, each in a virtual environment of its own, without torch and so without the tests that need it.
# The newest runs all but `runs`, which other tests do in part. Those before it have its JAX and lie between two Pythons
# that are tested: they run the tests of what users do. Each runs every third instance of a test of many, which `test`
# has run all: a new Python or JAX that breaks what the test is about breaks more than one of them.
test-pythons: $(VENV)/dev.stamp ## run the tests on the other Pythons found
	@for python in $(OTHER_PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
		venv=$(VENV)-$$version && \
		$(MAKE) --no-print-directory $$venv/dev.stamp PYTHON=$$python VENV=$$venv && \
		which="not slow and not runs" && \
		if [ "$$python" != "$(lastword $(OTHER_PYTHONS))" ]; then which="$$which and users"; fi && \
		echo "== Python $$version: $$which" && \
		$(MAKE) --no-print-directory test PYTHON=$$python VENV=$$venv MARKERS="$$which" \
			PYTEST_ARGS="--every-third $(PYTEST_ARGS)" || exit 1; \
	done

test-all: $(VENV)/dev.stamp ## run all tests, the slow ones too
	$(PYTEST) $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory test-pythons

# Continuous integration must report unformatted files, not format them.
lint: $(VENV)/dev.stamp ## format, lint and type-check; with CI set, check the format only
	$(BIN)/ruff format $(if $(filter true 1,$(CI)),--check)
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python

# Nothing is fetched. With JEFFNET_DOCS_NOTEBOOKS=off the tutorials are not run, which saves most of the time.
docs: $(VENV)/docs.stamp ## build the documentation site in build/site; a warning is an error
	JEFFNET_OFFLINE=1 $(BIN)/python -m sphinx -b html -W --keep-going -q docs build/site

clean: ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-3.* build dist demo_run docs/generated .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11, 3.12 or 3.13 found: pass one as PYTHON=..." >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[docs,digits,objax,onnx]'
	@touch $@

# The reference implementation (timm) needs torch, whose CPU build exists for Python 3.11 only. TensorFlow is tested there
# too: once is enough.
$(VENV)/dev.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) ".[dev,digits,objax,onnx,tfds,datasets$$($(BIN)/python -c 'import sys; print(",torch,tf,keras,tflite" * (sys.version_info < (3, 12)))')]"
	@touch $(VENV)/demo.stamp $@
