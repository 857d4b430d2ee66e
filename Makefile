# What one types. `make` lists it. GNU make 3.81 or later; Python 3.11 or 3.12 with venv and pip, git; Linux and macOS.
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help install run test test-long test-cov simulate lint drift fmt lock export readme docs bench up down clean

# Another active environment must not leak into ours.
unexport VIRTUAL_ENV
unexport CONDA_PREFIX
unexport PYTHONHOME
unexport PYTHONPATH

BIN := .venv/bin
SOURCES := nbs tests pipelines docs/*.py ops/*.py
JOBS ?= 2
ARGS ?=
BENCH ?=
SEED ?= 1
DAYS ?= 5
RUNS ?= 1

# The environment is complete when the file named after the lock (and this folder: scripts hold its path) is there.
STAMP := .venv/.stamp-$(shell { pwd -P; cat requirements.lock; } | git hash-object --stdin | cut -c 1-16)
ENV := .venv/.project
# Machine code of the feature kernels, which the environment keeps; what only writes, formats or checks does not wait for it.
KERNELS := .venv/.kernels

help: ## List what there is to type (this)
	@echo "tradenb: the notebook you research in is the production code"
	@echo
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "First time: make run"

install: $(ENV) $(KERNELS) ## Build .venv from requirements.lock; nothing to do when it is up to date

$(STAMP):
	@for python in "$$PYTHON" python3.12 python3.11 python3 python; do \
	  test -n "$$python" || continue; \
	  "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	    && exec "$$python" .ci/install.py $@; \
	done; \
	echo "tradenb needs Python 3.11 or 3.12 with venv and pip, and found none on PATH." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12) or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(ENV): $(STAMP) pyproject.toml requirements.in
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# Says by itself why it could not; features are then computed by NumPy, and the next `make` tries again.
$(KERNELS): tradenb/features/kernels.py tradenb/features/windows.py $(ENV)
	@! $(BIN)/python -m tradenb.features.compiled || touch $@

run: $(ENV) $(KERNELS) ## The daily job for the next session, end to end (ARGS="--date 2024-01-05 --verbose")
	@$(BIN)/tradenb paper-run $(ARGS)

# One thread per process: several run at once. pytest comes last, its closing line is the verdict; both always run.
test test-cov: export OMP_NUM_THREADS := 1
test test-cov: export POLARS_MAX_THREADS := 1
test test-cov: export MPLBACKEND := agg

test: $(ENV) $(KERNELS) ## The notebooks' own tests, then pytest with one worker more, for tests wait too (JOBS=2)
	@failed=0; \
	echo "The notebooks:"; $(BIN)/nbdev-test --n-workers $(JOBS) --timing || failed=1; \
	echo "pytest:"; $(BIN)/pytest -n $$(($(JOBS) + 1)) --dist worksteal $(ARGS) || failed=1; \
	test $$failed = 0 || echo "make test: failed (the notebooks, pytest, or both: see above)" >&2; \
	exit $$failed

LONG := TRADENB_TEST_KILLS=200 TRADENB_TEST_EXCHANGE_KILLS=12 TRADENB_TEST_KILL_SEEDS=20 TRADENB_TEST_KILL_EVERYWHERE=1 TRADENB_TEST_SIMULATED_DAYS=2000 TRADENB_TEST_EACH_WRITE=1 \
  TRADENB_TEST_EXCHANGE_EXAMPLES=1500 TRADENB_TEST_FUZZ_EXAMPLES=60 FUZZ_EXAMPLES=60 FUZZ_WEBHOOKS=100000 TRADENB_TEST_MONTH_SESSIONS=21 TRADENB_TEST_OUTAGE_S=30 TRADENB_TEST_SEQUENCES=100 TWO_MACHINES_WHOLE_DAY=1

test-long: $(ENV) $(KERNELS) ## All tests at full length: 200 kills, 2,000 simulated days, a whole month, every variant
	@env $(LONG) OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 MPLBACKEND=agg $(BIN)/pytest -m "" -n $(JOBS) --dist worksteal --timeout 7200 $(ARGS)

test-cov: $(ENV) $(KERNELS) ## pytest with coverage; the pages are in htmlcov/
	@$(BIN)/pytest -n $(JOBS) --dist worksteal --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

simulate: export OMP_NUM_THREADS := 1
simulate: $(ENV) ## Trading days full of faults, every one repeatable (SEED=1 DAYS=5 RUNS=1 JOBS=2 ARGS=--verbose)
	@$(BIN)/python -m tests.simulation --seed $(SEED) --days $(DAYS) --runs $(RUNS) --jobs $(JOBS) $(ARGS)

lint: $(ENV) ## ruff, mypy, and whether package, notebooks and README are in step
	@failed=0; \
	$(BIN)/ruff check $(SOURCES) .ci || failed=1; \
	$(BIN)/ruff format --check $(SOURCES) .ci || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(MAKE) --no-print-directory drift || failed=1; \
	exit $$failed

# In a copy, so that modules of deleted notebooks are seen as well as missing ones, and nothing here changes.
drift: $(ENV) ## Is the package what the notebooks export, and are the notebooks clean?
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && failed=0 && here=$$(pwd -P) && \
	cp -R nbs pipelines pyproject.toml settings.ini README.md "$$copy" && mkdir "$$copy/tradenb" && \
	cp tradenb/__init__.py "$$copy/tradenb" && cd "$$copy" && \
	"$$here/$(BIN)/nbdev-export" && "$$here/$(BIN)/nbdev-clean" && \
	{ test ! -d pipelines/jobs || "$$here/$(BIN)/nbdev-clean" --fname pipelines/jobs; } && \
	cd "$$here" && for part in tradenb nbs pipelines; do \
	  diff -r -x __pycache__ -x .ipynb_checkpoints -x .last_checked $$part "$$copy/$$part" || failed=1; \
	done; \
	$(BIN)/python .ci/readme.py --check || failed=1; \
	test $$failed = 0 && echo "package, notebooks and README are in step" || { echo "out of step: \`make fmt\` mends it (delete modules whose notebook is gone)" >&2; exit 1; }

fmt: $(ENV) ## Format notebooks, tests and pipelines, then export and make the README
	@$(BIN)/ruff check --fix --exit-zero --quiet $(SOURCES) .ci
	@$(BIN)/ruff format $(SOURCES) .ci
	@$(BIN)/nbdev-clean
	@test ! -d pipelines/jobs || $(BIN)/nbdev-clean --fname pipelines/jobs
	@$(MAKE) --no-print-directory export readme

export: $(ENV) ## Write the package from the notebooks
	@$(BIN)/nbdev-export

readme: $(ENV) ## Write README.md from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

lock: $(ENV) ## Resolve requirements.in into requirements.lock (ARGS=--upgrade for the newest versions)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url $(ARGS) requirements.in -o requirements.lock

docs: $(ENV) $(KERNELS) ## The documentation as a site in docs/_build/html, to read offline (ARGS=--quick: notebooks without results)
	@$(BIN)/python docs/build.py --jobs $(JOBS) $(ARGS)

bench: $(ENV) $(KERNELS) ## Measure (BENCH=name for one of them)
	@$(BIN)/python -m pipelines.benchmarks $(BENCH)

up: $(ENV) $(KERNELS) ## Start everything long-running: services, exchange, scheduler and worker, MLflow, reports
	@$(BIN)/python -m pipelines.services up

down: $(ENV) ## Stop what `make up` started
	@$(BIN)/python -m pipelines.services down

clean: ## Remove caches and build leftovers; never data/ or .venv/
	@rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* htmlcov build dist docs/_build _proc *.egg-info
	@find nbs tradenb pipelines tests .ci \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
