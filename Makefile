# Everything runs in the virtual environment .venv, with the versions that requirements.lock pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files in the order of their names: the long ones come early. With three processes on two cores, tests that wait for
# other processes run out of time.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
# SQLite waits for the disk at each commit, and tests commit often: they write into memory where it has room.
MEMORY := $(shell [ "$$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 8000000 ] 2>/dev/null && echo /dev/shm)
PIP := $(BIN)/python -m pip install --quiet --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help install install-dev run test test-proofs test-gpu test-browser test-slurm test-system test-compose chaos check bench bench-full \
	bench-quickstart gpu-proof bench-scale bench-search bench-fronts search-table dist reference notebook secrets lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 - /'

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anitune needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Install torch first and pinned, so that no other package installs another build of it.
$(VENV)/.installed: $(VENV)/.created pyproject.toml requirements.lock
	@echo "Installing anitune into $(VENV) (some minutes the first time)"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the packages that the tests need"
	$(PIP) --editable '.[dev,dft,postgres,export,launch,kubernetes]'
	@touch $@

# requirements.lock does not pin these packages, because only one benchmark needs them.
$(VENV)/.installed-peers: $(VENV)/.installed-dev
	@echo "Installing the programs that searches are compared with"
	$(PIP) --editable '.[peers]'
	@touch $@

install: $(VENV)/.installed ## install into .venv
install-dev: $(VENV)/.installed-dev ## install with the packages that the tests need

run: install ## run the quickstart study: search on the shipped sample, then print a leaderboard
	$(BIN)/anitune study run examples/quickstart.yaml

check: install-dev ## check lint, names, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.check_names
	$(BIN)/mypy
	$(BIN)/lint-imports

test test-proofs test-browser: export TMPDIR := $(or $(TMPDIR),$(MEMORY),/tmp)

# The tests that need only Python.
PLAIN := not browser and not slurm and not compose and not gpu

test: check ## run the tests that need only Python, and the GPU tests on an emulated device
	$(BIN)/python -m pytest -m "$(PLAIN) and not proof" $(PYTEST_ARGS)
	if $(BIN)/python -m tools.emulated_cuda.build; then $(BIN)/python -m pytest -p tools.emulated_cuda.plugin tests/gpu $(PYTEST_ARGS); fi

test-proofs: install-dev ## run the tests that take a minute or more each: chaos, a full disk, the GPU proof on an emulated device ...
	$(BIN)/python -m pytest -m "$(PLAIN) and proof" $(PYTEST_ARGS)

test-gpu: install-dev ## run the GPU tests on an NVIDIA GPU
	$(BIN)/python -m pytest -m "gpu"

test-browser: install-dev ## test the pages in a real browser (apt-get install chromium)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "browser"

test-slurm: install-dev ## run studies on a real Slurm (apt-get install slurm-wlm munge)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "slurm"

test-system: test-browser test-slurm ## run all tests that need system programs other than Docker

test-compose: install-dev ## test the team server in containers (apt-get install docker.io docker-compose debootstrap)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "compose"

chaos: install-dev ## kill the workers and servers of two real studies, five minutes each, and report what was lost (CHAOS_ARGS=--help)
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

# This runs outside the virtual environment, because the machine may have its own torch for its GPU.
gpu-proof: ## test and measure anitune on an NVIDIA GPU in 9 minutes (GPU_PROOF_ARGS=--help)
	@sh tools/gpu_proof.sh $(GPU_PROOF_ARGS)

bench: install-dev ## measure the speed against what people use otherwise (BENCH_ARGS=--help)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-full: install-dev ## build features of 864,898 structures and train on them: 2 minutes or more, 7 GiB of disk
	$(BIN)/python -m benchmarks --topics full --json build/benchmarks-full.json $(BENCH_ARGS)

bench-quickstart: install-dev ## measure the whole quickstart study against the naive program: half an hour or more
	$(BIN)/python -m benchmarks --topics quickstart --json build/benchmarks-quickstart.json $(BENCH_ARGS)

bench-scale: install-dev ## run 10,000 trials in 16 processes on PostgreSQL, against plain Optuna: an hour
	for topic in scale-random scale-tpe ask-latency; do \
		$(BIN)/python -m benchmarks --topics $$topic --json build/benchmarks-$$topic.json $(BENCH_ARGS) || exit 1; \
	done

bench-search: $(VENV)/.installed-peers ## replay searches of anitune and of others on the search table (long the first time)
	$(BIN)/python -m benchmarks.search_quality $(BENCH_ARGS)

bench-fronts: install-dev ## replay searches of two objectives on the search table: the fronts of anitune, NSGA-II and random search
	$(BIN)/python -m benchmarks.search_fronts $(BENCH_ARGS)

search-table: install-dev ## train the table by which searches are judged: hours; continues where it stopped
	nice -n 19 $(BIN)/python -m benchmarks.search_table $(SEARCH_TABLE_ARGS)

dist: install-dev ## build the wheel, and try it in a fresh environment from an empty folder
	$(BIN)/python -m tools.dist

reference: install-dev ## generate docs/commands.md and docs/study-file.md
	$(BIN)/python -m tools.reference

notebook: install-dev ## execute docs/notebook.ipynb
	$(BIN)/python -m tools.execute_notebook docs/notebook.ipynb

secrets: ## create random passwords for docker-compose.yml, one in each file
	@sh deploy/make-secrets

lock: ## update the pinned versions of all dependencies
	$(PYTHON) tools/lock.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
