# Two commands do everything on a machine that has Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PHOTOS ?= voc:../shared/data/voc-animals
# Auxiliary sets of claims-lpg-photo: masks of other classes.
AUX ?= voc:../shared/data/aux-furniture
AUX_MORE ?= "voc:../shared/data/aux-people", "coco:../shared/data/coco-mini/images,../shared/data/coco-mini/instances.json", demo-auxiliary-600
DEMO_OUT ?= demo-out
# Each flow has make demo-FLOW (into demo-FLOW-out/) and its paper's orderings: make claims-FLOW, make claims-FLOW-photo.
METHODS := cfs rrm bpg
DEMOS   := $(METHODS:%=demo-%)
DRAWN   := $(METHODS:%=claims-%) claims-lpg
REAL    := $(METHODS:%=claims-%-photo)

.PHONY: help setup demo $(DEMOS) demo-lpg test lint format bench soak-kill soak-nights nights $(DRAWN) $(REAL) claims-lpg-photo claims-photo clean

help:
	@echo "make demo       set up, then boxes -> GrabCut -> masks -> DeepLab -> scores on the embedded demo data"
	@echo "make demo-cfs   the same with the paper's whole figure: GrabCut, CFS, refinement, DeepLab with LGSA"
	@echo "make demo-rrm   from image tags alone: maps, reliable regions, a network of two branches, DeepLab on its masks"
	@echo "make demo-bpg   scribbles and edges -> DeepLab with PRN and BRN -> masks -> DeepLab, on the embedded demo data"
	@echo "make demo-lpg   mask generators learnt on drawn pictures of other classes, then boxes -> masks -> DeepLab"
	@echo "make test       set up, then the test suite"
	@echo "make lint       ruff, mypy --strict, import-linter"
	@echo "make bench      benchmarks, as ratios against a peer in the same run"
	@echo "make claims-cfs the paper's orderings against ours, with a table; BUDGET=30m stops in time, again goes on"
	@echo "make claims-cfs-photo  the same on photographs; PHOTOS=voc:PATH (default $(PHOTOS)), BUDGET=30m"
	@echo "                of the other flows alike: $(filter-out claims-cfs%,$(DRAWN) $(REAL)) claims-lpg-photo (AUX=)"
	@echo "make soak-kill  kill the demo at every named point and 20 times at random; compare byte for byte"
	@echo "make soak-nights  100 scheduled runs on one server: does anything grow? RUNS=10 for fewer"
	@echo "make nights     ten nights of each flow on a folder that changes: computed against what had to be"

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

$(DEMOS): demo-%: $(READY)
	$(BIN)/maskmill $* --config demo-$* --out demo-$*-out

demo-lpg: $(READY)
	$(BIN)/maskmill lpg-learn --config demo-lpg-learn --out demo-lpg-out/learn
	$(BIN)/maskmill lpg --config demo-lpg --out demo-lpg-out/deploy --set params.generator=demo-lpg-out/learn/generators

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

$(DRAWN): claims-%: $(READY)
	$(BIN)/python -m benchmarks.claims $* --name claims_$* $(if $(BUDGET),--budget $(BUDGET))

$(REAL): claims-%-photo: $(READY)
	$(BIN)/python -m benchmarks.claims $* --table photo --data $(PHOTOS) --name claims_$*_photo $(if $(BUDGET),--budget $(BUDGET))

claims-lpg-photo: $(READY)
	$(BIN)/python -m benchmarks.claims lpg --table photo --data $(PHOTOS) --set data.aux.source=$(AUX) --set 'data.aux.more=[$(AUX_MORE)]' --name claims_lpg_photo $(if $(BUDGET),--budget $(BUDGET))

claims-photo: claims-cfs-photo

soak-kill: $(READY)
	$(BIN)/python -m benchmarks.soak_kill

soak-nights: $(READY)
	$(BIN)/python -m benchmarks.soak_nights $(if $(RUNS),--runs $(RUNS))

nights: $(READY)
	$(BIN)/python -m benchmarks.nights

clean:
	rm -rf $(VENV) $(DEMO_OUT) $(DEMOS:%=%-out) demo-lpg-out *.egg-info build models/crf/_lattice*.so
