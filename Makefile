# Needs Python 3.11, git and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: help setup simulate dp-curve test test-slow coverage guards test-flower flower-demo test-nvflare nvflare-demo faults check format bench bench-gate bench-baseline dist readme paste figures constraints peers docs clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install secfl with its exact constraints

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 on the PATH; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is too old; set PYTHON to Python 3.11 or later" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(PIP) install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable . --group test --group lint
	@touch $@

simulate: setup ## Train a small U-Net on phantom CT slices of three clinics under CKKS, with ε = 8 per patient
	$(BIN)/secfl simulate --secure-agg ckks

dp-curve: setup ## Dice without noise and at ε = 8 and 2, four arms, 3 seeds; interrupted, it goes on (30 runs)
	$(BIN)/secfl study dp-curve --preset full --out docs/results/dp-curve

test: setup ## The fast tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: setup ## The slow tests; SECFL_TEST_DATA names a folder with real images
	$(BIN)/python -m pytest -n $(WORKERS) -m slow --timeout 3600

coverage: setup ## Branch coverage of crypto, dp and ledger by their fast tests; fails under 90 % in one of them
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov secfl.crypto --cov secfl.dp --cov secfl.ledger \
		--cov-report= tests/crypto tests/dp tests/ledger tests/conformance
	$(BIN)/python tests/mutation/branch_coverage.py secfl.crypto secfl.dp secfl.ledger --fail-under 90

PARTS ?= masking ckks journal ledger dp
guards: setup ## Switch off every guard in turn: does a test notice? PARTS="masking ckks journal ledger dp" (half an hour)
	$(BIN)/python tests/mutation/guards.py $(PARTS)

test-flower: setup ## The tests that need Flower, which this installs (extra flower)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[flower]"
	FLWR_TELEMETRY_ENABLED=0 $(BIN)/python -m pytest -n 0 --timeout 1800 tests/federation/test_flower.py \
		tests/federation/test_flower_dropin.py tests/federation/test_agreement.py \
		tests/federation/test_flower_deployment.py

flower-demo: setup ## Five sites under Flower's deployment engine, TLS and node authentication on, one killed and back
	$(PIP) install --quiet --constraint constraints.txt --editable ".[flower]"
	FLWR_TELEMETRY_ENABLED=0 $(BIN)/python examples/flower-app/demo.py

# NVFlare asks for libraries that constraints.txt does not name: its environment is its own.
NVFLARE := .venv-nvflare
$(NVFLARE)/.installed: pyproject.toml constraints.txt examples/nvflare-app/constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 on the PATH; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv $(NVFLARE)
	$(NVFLARE)/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(NVFLARE)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--constraint examples/nvflare-app/constraints.txt --build-constraint constraints.txt \
		--editable ".[nvflare]" pytest pytest-timeout hypothesis
	@touch $@

test-nvflare: $(NVFLARE)/.installed ## The tests that need NVFlare, in an environment of its own, which this makes
	$(NVFLARE)/bin/python -m pytest --timeout 1800 tests/federation/test_nvflare.py tests/federation/test_nvflare_job.py
	$(NVFLARE)/bin/python -m pytest --timeout 1800 tests/federation/test_agreement.py -k "nvflare or multiprocess"

nvflare-demo: $(NVFLARE)/.installed ## Five clients in NVFlare's proof-of-concept environment, mutual TLS, one client killed
	$(NVFLARE)/bin/python examples/nvflare-app/demo.py

faults: setup ## Play every fault on runs with real processes and write down what came of it (as root; some minutes)
	$(BIN)/python docs/draw_faults.py

check: setup ## Lint, format, types, import contracts, spelling; all of them, whatever fails
	@failed=0; for step in "ruff check ." "ruff format --check ." mypy "lint-imports --no-logo" codespell; do \
		echo "== $$step"; $(BIN)/$$step || failed=1; \
	done; exit $$failed

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## The benchmarks, one process; their JSON is kept under build/bench
	mkdir -p build/bench
	$(BIN)/python -m pytest -p no:xdist benchmarks --benchmark-only --benchmark-columns=min,median,rounds \
		--benchmark-json=build/bench/parts.json
	$(BIN)/secfl bench all --preset full --peers --json > build/bench/whole.json

bench-gate: setup ## Has anything become much slower, or any message larger, than benchmarks/baseline.json says?
	$(BIN)/secfl bench all --gate benchmarks/baseline.json

bench-baseline: setup ## Measure benchmarks/baseline.json again; on an idle machine, and commit it
	mkdir -p build
	$(BIN)/secfl bench all --json > build/baseline.json && mv build/baseline.json benchmarks/baseline.json

dist: setup ## Build the wheel and the source archive into dist, and try both in clean environments
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	SECFL_TEST_DIST=$(CURDIR)/dist $(BIN)/python -m pytest -n 0 --timeout 1800 -m slow tests/test_distribution.py

readme: setup ## Paste the real output of the commands into the README, and every --help into docs/cli.md
	$(BIN)/python docs/paste_output.py README.md
	$(BIN)/python docs/paste_help.py

paste: setup ## Put the figures of docs/figures, which commands wrote, into the pages
	$(BIN)/python docs/paste_figures.py

figures: setup ## Measure secure aggregation again (with make peers) and paste the figures into the pages
	$(BIN)/secfl bench secagg --params 10000000 --clients 10 --repeats 2 --peers --json > docs/figures/secagg-10m.json
	$(BIN)/secfl bench secagg --clients 10 --repeats 5 --schemes plain,masking,ckks --peers --json \
		> docs/figures/secagg-1m.json
	$(BIN)/secfl bench secagg --clients 64 --dropout 0.1 --threshold 33 --repeats 1 --json > docs/figures/secagg-64.json
	$(BIN)/python docs/paste_figures.py

constraints: ## Resolve everything afresh into constraints.txt
	rm -rf .venv-constraints
	"$(PYTHON)" -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --upgrade pip
	.venv-constraints/bin/python -m pip install --quiet hatchling torch==2.13.0 --editable ".[flower]" --group test --group lint
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-constraints/bin/python -m pip freeze --all --exclude-editable --exclude setuptools; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

peers: setup ## Install the frameworks that the benchmarks compare with, each in its own environment
	"$(PYTHON)" -m venv .peers/flower
	.peers/flower/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	.peers/flower/bin/python -m pip install --quiet --constraint constraints.txt flwr
	"$(PYTHON)" -m venv .peers/nvflare
	.peers/nvflare/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	.peers/nvflare/bin/python -m pip install --quiet nvflare==2.9.0 $$(grep ^tenseal== constraints.txt)

docs: ## Render the documentation into build/site
	"$(PYTHON)" -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	.venv-docs/bin/python -m pip install --quiet "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26" ruff
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

clean: ## Remove environments and caches; runs stay
	rm -rf .venv .venv-constraints .venv-docs .venv-nvflare .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
