# Two commands do everything on a machine that has Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PHOTOS ?= voc:../shared/data/voc-animals
DEMO_OUT ?= demo-out
DEMO_CFS_OUT ?= demo-cfs-out
DEMO_LPG_OUT ?= demo-lpg-out

.PHONY: help setup demo demo-cfs demo-lpg test lint format bench soak-kill claims-cfs claims-photo claims-lpg clean

help:
	@echo "make demo       set up, then boxes -> GrabCut -> masks -> DeepLab -> scores on the embedded demo data"
	@echo "make demo-cfs   the same with the paper's whole figure: GrabCut, CFS, refinement, DeepLab with LGSA"
	@echo "make demo-lpg   mask generators learnt on drawn pictures of other classes, then boxes -> masks -> DeepLab"
	@echo "make test       set up, then the test suite"
	@echo "make lint       ruff, mypy --strict, import-linter"
	@echo "make bench      benchmarks, as ratios against a peer in the same run"
	@echo "make claims-cfs the paper's orderings against ours, with a table; BUDGET=30m stops in time, again goes on"
	@echo "make claims-photo the same on photographs; PHOTOS=voc:PATH (default $(PHOTOS)), BUDGET=30m"
	@echo "make claims-lpg LPG's orderings on drawn pictures; BUDGET=30m. Photographs: docs/lpg.md"
	@echo "make soak-kill  kill the demo at every named point and 20 times at random; compare byte for byte"

setup: $(READY)

LATTICE := $(wildcard models/crf/lattice_cpp/*)

$(READY): requirements.lock pyproject.toml setup.py $(LATTICE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Maskmill needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@command -v g++ >/dev/null || { echo "A C++ compiler is missing (pydensecrf2 and models/crf/_lattice are compiled). On Debian or Ubuntu: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { echo "Python.h is missing (pydensecrf2 and models/crf/_lattice are compiled). On Debian or Ubuntu: apt-get install python3-dev"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@# Where PYTHONDONTWRITEBYTECODE is set, every process that imports torch would compile it anew, for seconds.
	$(BIN)/uv pip sync --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/maskmill cfs --config demo --out $(DEMO_OUT)

demo-cfs: $(READY)
	$(BIN)/maskmill cfs --config demo-cfs --out $(DEMO_CFS_OUT)

demo-lpg: $(READY)
	$(BIN)/maskmill lpg-learn --config demo-lpg-learn --out $(DEMO_LPG_OUT)/learn
	$(BIN)/maskmill lpg --config demo-lpg --out $(DEMO_LPG_OUT)/deploy --set params.generator=$(DEMO_LPG_OUT)/learn/generators

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

claims-cfs: $(READY)
	$(BIN)/python -m benchmarks.claims cfs --name claims_cfs $(if $(BUDGET),--budget $(BUDGET))

claims-photo: $(READY)
	$(BIN)/python -m benchmarks.claims cfs --table photo --data $(PHOTOS) --name claims_cfs_photo $(if $(BUDGET),--budget $(BUDGET))

claims-lpg: $(READY)
	$(BIN)/python -m benchmarks.claims lpg --name claims_lpg $(if $(BUDGET),--budget $(BUDGET))

soak-kill: $(READY)
	$(BIN)/python -m benchmarks.soak_kill

clean:
	rm -rf $(VENV) $(DEMO_OUT) $(DEMO_CFS_OUT) $(DEMO_LPG_OUT) *.egg-info build models/crf/_lattice*.so
