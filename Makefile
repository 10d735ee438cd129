# make demo, make test and make lint set everything up themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test quick fault-test deploy-test lint bench fuzz clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Use make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Federated training on digits, generated and dense: a table and a picture at the end.
demo: $(READY)
	rm -rf runs/make-demo
	$(BIN)/csg estimate demo
	$(BIN)/csg run demo --set run.dir=runs/make-demo/csg
	$(BIN)/csg run demo-dense --set run.dir=runs/make-demo/dense
	$(BIN)/csg compare runs/make-demo/csg runs/make-demo/dense --to 0.8 0.9 0.95 \
	  --picture runs/make-demo/compare.svg

SIDE_BY_SIDE = --numprocesses auto --maxprocesses 4 --dist loadfile
test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --durations 20

# pytest's last -m counts, so that it says all that is left out.
quick: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not containers and not deployment"

# Parts of a deployed run are killed, cut off and restarted: root, iproute2, ethtool and nginx are needed.
# These tests wait more than they work, so that two run at once; 25 minutes on two cores.
# Some of them: make fault-test FAULTS="quorum or superlink".
FAULTS ?=
fault-test: $(READY)
	$(BIN)/python -m pytest -m deployment -k "$(FAULTS)" --numprocesses 2 --maxprocesses 2 --dist worksteal

# Images, compose project, TLS and keys for real; brings a Docker engine where there is none (root).
deploy-test: $(READY)
	tests/docker/with-engine.sh $(BIN)/python -m pytest -m containers --durations 10 tests/docker

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What a simulated round costs, as ratios in one run of half an hour: make bench DATA=cifar10/
# PARTS="steps engines". Other simulators get environments of 7 GB in the cache folder, and BlazeFL's
# needs Python 3.12. Other frameworks' tasks, for a GPU: python -m simulations.bench.tasks --help.
DATA ?= $(CSG_DATA_DIR)
COPY ?= CIFAR-10
PARTS ?=
bench: $(READY)
	$(BIN)/python -m simulations.bench $(if $(DATA),--data "$(DATA)" --copy "$(COPY)") \
	  $(if $(PARTS),--parts $(PARTS))

# Strangers' bytes through every door, guided by coverage; ten minutes: make fuzz SECONDS=600.
# atheris has wheels for Linux on x86-64, Python 3.11 to 3.13.
SECONDS ?= 60
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --only-binary atheris atheris
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

clean:
	rm -rf .venv dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache
