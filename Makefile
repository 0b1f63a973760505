# Everything runs in a virtual environment of its own, from the versions that requirements.lock pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2
PIP := $(BIN)/python -m pip install --quiet --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help install install-dev run test test-gpu test-browser test-slurm test-system test-compose chaos check bench bench-full \
	bench-quickstart gpu-proof bench-scale bench-search search-table dist reference notebook secrets lock clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 - /'

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anitune needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and pinned, so that no other package pulls another build of it.
$(VENV)/.installed: $(VENV)/.created pyproject.toml requirements.lock
	@echo "Installing anitune into $(VENV) (some minutes on the first time)"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need"
	$(PIP) --editable '.[dev,dft,postgres,export,launch,kubernetes]'
	@touch $@

# Beside the versions of requirements.lock, which does not hold them: one benchmark alone needs them.
$(VENV)/.installed-peers: $(VENV)/.installed-dev
	@echo "Installing what searches are compared with"
	$(PIP) --editable '.[peers]'
	@touch $@

install: $(VENV)/.installed ## install into .venv
install-dev: $(VENV)/.installed-dev ## install with what the tests need

run: install ## the quickstart study: search on the shipped sample, with leaderboard
	$(BIN)/anitune study run examples/quickstart.yaml

check: install-dev ## lint, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## all tests that need nothing but Python, and those of the GPU on a pretended device
	$(BIN)/python -m pytest -m "not browser and not slurm and not compose and not gpu" $(PYTEST_ARGS)
	if $(BIN)/python -m tools.pretended_cuda.build; then $(BIN)/python -m pytest -p tools.pretended_cuda.plugin tests/gpu $(PYTEST_ARGS); fi

test-gpu: install-dev ## the same tests on an NVIDIA GPU
	$(BIN)/python -m pytest -m "gpu"

test-browser: install-dev ## the pages in a real browser (apt-get install chromium)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "browser"

test-slurm: install-dev ## studies on a real Slurm (apt-get install slurm-wlm munge)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "slurm"

test-system: test-browser test-slurm ## all tests that need programs of the system but Docker

test-compose: install-dev ## a team's server in containers (needs docker.io docker-compose debootstrap)
	ANITUNE_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -m "compose"

chaos: install-dev ## kill workers and servers of a real study for ten minutes, and report what was lost
	$(BIN)/anitune chaos $(CHAOS_ARGS)

# Not in the virtual environment: the machine may have a torch of its own for its GPU.
gpu-proof: ## what an NVIDIA GPU does with anitune, measured in 9 minutes (GPU_PROOF_ARGS=--help)
	@sh tools/gpu_proof.sh $(GPU_PROOF_ARGS)

bench: install-dev ## measure speed beside what people use otherwise (BENCH_ARGS=--help)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-full: install-dev ## build and train all 864,898 small structures: 2 minutes or more, 7 GiB of disk
	$(BIN)/python -m benchmarks --topics full --json build/benchmarks-full.json $(BENCH_ARGS)

bench-quickstart: install-dev ## the whole quickstart study beside the naive program: half an hour or more
	$(BIN)/python -m benchmarks --topics quickstart --json build/benchmarks-quickstart.json $(BENCH_ARGS)

bench-scale: install-dev ## 10,000 trials by 16 processes on PostgreSQL, beside plain Optuna: an hour
	for topic in scale-random scale-tpe ask-latency; do \
		$(BIN)/python -m benchmarks --topics $$topic --json build/benchmarks-$$topic.json $(BENCH_ARGS) || exit 1; \
	done

bench-search: $(VENV)/.installed-peers ## replay searches, ours and others, on the search table (long the first time)
	$(BIN)/python -m benchmarks.search_quality $(BENCH_ARGS)

search-table: install-dev ## train the table that searches are judged by: hours, and goes on where it stopped
	nice -n 19 $(BIN)/python -m benchmarks.search_table $(SEARCH_TABLE_ARGS)

dist: install-dev ## the wheel, tried in a fresh environment from an empty folder
	$(BIN)/python -m tools.dist

reference: install-dev ## make docs/commands.md and docs/study-file.md anew
	$(BIN)/python -m tools.reference

notebook: install-dev ## execute docs/notebook.ipynb
	$(BIN)/python -m tools.execute_notebook docs/notebook.ipynb

secrets: ## random passwords for docker-compose.yml, a file each
	@sh deploy/make-secrets

lock: ## pin the versions of all dependencies anew
	$(PYTHON) tools/lock.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
