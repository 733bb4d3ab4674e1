# make demo        train a policy on the sample demonstrations of lift, evaluate it and record a video
# make test        all tests
# make test-fast   the tests without those marked slow (under 2 minutes)
# Each creates the virtual environment first and installs everything, system packages included.

FIND := for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND))
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
MINUTES := 6
SHELL := /bin/bash

NEEDED := libegl1 libgl1-mesa-dri libgl1 libglib2.0-0 gcc g++ linux-libc-dev
OPTIONAL := libosmesa6 chromium

.PHONY: demo test test-fast check setup clean

demo: setup
	@echo "== 1/4 convert the sample demonstrations of lift"
	@time $(BIN)/ddp convert sample_data/lift.hdf5 --out $(DEMO)/lift.zarr --overwrite
	@echo "== 2/4 train a policy from images for $(MINUTES) minutes"
	@rm -rf $(DEMO)/runs
	@time $(BIN)/ddp train --task lift --data $(DEMO)/lift.zarr --runs $(DEMO)/runs --name demo --minutes $(MINUTES)
	@echo "== 3/4 evaluate it on 20 initial states that were not used in training"
	@time $(BIN)/ddp eval --runs $(DEMO)/runs --episodes 20
	@echo "== 4/4 record an episode"
	@time $(BIN)/ddp rollout --runs $(DEMO)/runs --video $(DEMO)/lift.mp4 --attempts 20 --overwrite
	@echo "Watch $(DEMO)/lift.mp4"

# Each test process needs about 4 GB of memory; many tests wait for processes of their own, so three keep two cores busy.
TEST_PROCESSES := 3

test: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(VENV)/.system
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

# System packages: installed by apt as root or through sudo, otherwise one line says what to install.
$(VENV)/.system:
	@[ -n "$(PYTHON)" ] || { echo "error: ddp needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	@version=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
	header=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")'); \
	have() { for n in $$1 $$1t64; do dpkg-query -W -f='$${Status}' $$n 2>/dev/null | grep -q 'ok installed' && return 0; done; return 1; }; \
	if command -v apt-get >/dev/null; then \
	  missing=""; for p in $(NEEDED); do have $$p || missing="$$missing $$p"; done; \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing $$version-venv"; \
	  [ -e "$$header" ] || missing="$$missing $$version-dev"; \
	  extra=""; for p in $(OPTIONAL); do have $$p || extra="$$extra $$p"; done; \
	  if [ "$$(id -u)" = 0 ]; then root="env"; elif command -v sudo >/dev/null; then root="sudo env"; else root=""; fi; \
	  if [ -n "$$missing$$extra" ] && [ -n "$$root" ]; then \
	    echo "installing$$missing$$extra"; $$root apt-get update -qq || true; \
	    for p in $$extra; do $$root DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$p >/dev/null 2>&1 || echo "optional package $$p is not available here"; done; \
	    for p in $$missing; do $$root DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$p >/dev/null || { echo "error: cannot install $$p"; exit 1; }; done; \
	  elif [ -n "$$missing" ]; then echo "error: as root, install first: apt-get install$$missing"; exit 1; fi; \
	else echo "no apt here: make sure that OpenGL (EGL or OSMesa), a C compiler and the Python headers are installed"; fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .ruff_cache .mypy_cache
