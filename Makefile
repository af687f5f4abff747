# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo browser database faketime test test-benchmarks test-predictors test-faults test-arm64 test-large test-onnx test-providers test-programs test-research lint types docs protos references clean

demo: $(STAMP)  ## learn a latency predictor for this machine, on an agent it starts itself
	rm -rf runs/demo
	$(BIN)/esm-host profile --device local --space resnet --resolution 32 --width-mult 0.25 \
	  --bins 4 --max-models 400 --seed 0 --run runs/demo || test $$? -eq 3
	$(BIN)/esm-host predict runs/demo --sample 5

test: $(STAMP)  ## the tests, about 8 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not faults and not arm64 and not large and not onnx and not predictors and not benchmarks and not providers and not programs and not research"

test-benchmarks: $(STAMP)  ## the slow tests of benchmarks/
	$(BIN)/python -m pytest -m benchmarks

test-programs: $(STAMP)  ## with PostgreSQL, a browser, a meter, workers of a study, or a pytest of their own; 2 minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m programs

test-research: $(STAMP)  ## studies, and other people's methods; half a minute
	$(BIN)/python -m pytest -n 2 --dist loadfile -m research

test-predictors: $(STAMP)  ## what every predictor does, of those that are slow to train; some minutes
	$(BIN)/python -m pytest -n 2 -m predictors

browser:  ## chromium, for the tests of the report; without it they are skipped
	@command -v chromium >/dev/null || { test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null && \
	  apt-get install -y -q chromium; } || \
	  echo "no chromium, tests of the report are skipped: sudo apt-get install chromium" >&2

database:  ## PostgreSQL, for the tests of stores that a team shares; without it they are skipped
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || \
	  { test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null && apt-get install -y -q postgresql; } || \
	  echo "no PostgreSQL, tests of shared stores are skipped: sudo apt-get install postgresql" >&2

faketime:  ## for clocks that jump in the fault suite; without it they are left out
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || { test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null && \
	  apt-get install -y -q faketime; } || \
	  echo "no faketime, clocks do not jump: sudo apt-get install faketime" >&2

test-faults: $(STAMP) faketime  ## kills, cuts, full disks (as root: ext4), jumping clocks, malformed inputs; 20 minutes
	$(BIN)/python -m pytest -m faults -s

test-arm64: $(STAMP)  ## the guide for the Raspberry Pi, followed in a Debian for arm64; needs root
	$(BIN)/python -m pytest -m arm64 -s -rs

test-large: $(STAMP)  ## a model of 3 GB; needs 10 GB of disk
	$(BIN)/python -m pytest -m large -s

test-onnx: $(STAMP)  ## the ONNX project's test cases, with their own and with drawn inputs; some minutes
	$(BIN)/python -m pytest -m onnx -s

test-providers: $(STAMP)  ## execution providers of real wheels, each in an environment of its own under build/; needs a network
	$(BIN)/python -m pytest -m providers -rs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)  ## the documentation as a site, in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

protos: $(STAMP)  ## generate the stubs again
	$(BIN)/python -m esm_protos.compile

references: $(STAMP)  ## generate again the reference models of the agent, and the examples of esm-host time
	$(BIN)/python -m esm_models.reference_models
	$(BIN)/python -m esm_models.examples

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "esm-profiler needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build dist
