# Two commands do everything on a fresh machine (Python 3.10-3.12, gcc, make): `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

STACK ?= onedl
PYTHON ?= python3
VENV ?= $(if $(filter stock,$(STACK)),.venv-stock,.venv)
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
QUICK ?= 0
TEST_ARGS ?=
GPU_ARGS ?=

ifeq ($(filter onedl stock,$(STACK)),)
$(error STACK = $(STACK): must be onedl or stock)
endif

REQ := requirements
STACK_DIR := $(REQ)/stack-$(STACK)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
PINS := -c $(STACK_DIR)/torch.txt -c $(STACK_DIR)/mmcv.txt -c $(STACK_DIR)/openmmlab.txt
MMCV_FLAGS ?= -g0 -O1
READY := $(VENV)/.ready

.PHONY: help setup demo test gpu lint docs clean clean-results package
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15
	@echo 'Settings (name=value): STACK=onedl|stock  VENV=folder  PYTHON=python3.11  THREADS=2  QUICK=1 (demo)  TEST_ARGS="-k neck"  GPU_ARGS=--small'

setup: $(READY) package  ## Make the virtual environment: torch, mmcv with its operators, OpenMMLab, this package

demo: setup  ## Run the main job on the embedded digits; the report is written to work_dirs/demo/report.html
	OMP_NUM_THREADS=$(THREADS) $(PY) tools/demo.py --work-dir work_dirs/demo $(if $(filter 1,$(QUICK)),--quick)

test: setup  ## Run the tests
	OMP_NUM_THREADS=$(THREADS) $(PY) -m pytest $(TEST_ARGS)

gpu: setup  ## Report what runs on the GPU, how fast, and which goals are met: work_dirs/gpu/report.md, at most 8 minutes
	OMP_NUM_THREADS=$(THREADS) $(PY) tools/gpu_report.py --work-dir work_dirs/gpu $(GPU_ARGS)

lint: setup  ## Check the style, as pre-commit does
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: setup  ## Build the pages as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

clean:  ## Remove virtual environments and the built site (data/ and work_dirs/ stay)
	rm -rf .venv .venv-stock build *.egg-info

clean-results:  ## Remove work_dirs/: every training, pruned network and report
	rm -rf work_dirs

package: $(READY)
	@# an editable install points to one clone: repeat it when a shared environment is used from another folder
	@if [ "$$(cat $(VENV)/.package 2>/dev/null)" != "$(CURDIR)" ] || [ pyproject.toml -nt $(VENV)/.package ]; then \
	  $(PIP) install --quiet --no-build-isolation --no-deps --editable . && echo '$(CURDIR)' > $(VENV)/.package; fi

$(READY): $(VENV)/.openmmlab $(REQ)/runtime.txt $(REQ)/demo.txt $(REQ)/tests.txt $(REQ)/export.txt $(REQ)/docs.txt
	@echo '== 4/4 this package, tests and demo'
	@$(PIP) install $(PINS) -r $(REQ)/runtime.txt -r $(REQ)/demo.txt -r $(REQ)/tests.txt -r $(REQ)/export.txt -r $(REQ)/docs.txt
	@PYTHONPATH=. $(PY) -m upvit_mm.doctor
	@touch $@

$(VENV)/.openmmlab: $(VENV)/.mmcv $(STACK_DIR)/openmmlab.txt
	@echo '== 3/4 OpenMMLab ($(STACK) line)'
	@$(PIP) install --no-build-isolation $(PINS) -r $(STACK_DIR)/openmmlab.txt
	@touch $@

$(VENV)/.mmcv: $(VENV)/.torch $(STACK_DIR)/mmcv.txt
	@echo '== 2/4 mmcv: seconds from a wheel, else about 10 minutes of compiling on two cores'
	@CFLAGS='$(MMCV_FLAGS)' MMCV_WITH_OPS=1 PATH="$(abspath $(VENV))/bin:$$PATH" \
	  $(PIP) install -v --no-build-isolation -c $(STACK_DIR)/torch.txt -r $(STACK_DIR)/mmcv.txt 2>&1 \
	  | tee $(VENV)/mmcv.log \
	  | awk 'match($$0, /^ *(\[[0-9]+\/[0-9]+\]|Requirement already.*|Collecting.*|Processing.*|Building wheel.*|Successfully.*)/) \
	      { print substr($$0, 1, RLENGTH); fflush() }' \
	  || { echo 'error: mmcv was not installed; the reason stands in $(VENV)/mmcv.log (are gcc, the Python headers and, for a CUDA torch on a GPU machine, nvcc there?)' >&2; exit 1; }
	@touch $@

$(VENV)/.torch: $(STACK_DIR)/torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	  echo "error: PYTHON = $(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.10, 3.11 or 3.12 is needed; say make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo '== 1/4 virtual environment $(VENV) and torch'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo 'error: no virtual environment could be made; on Debian and Ubuntu install python3-venv' >&2; exit 1; }
	@$(PIP) install -r $(STACK_DIR)/torch.txt
	@touch $@
