# Everything runs by path out of .venv/: no environment is ever activated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
# One more than there are cores: half of the time a test waits for a server or a cluster.
TEST_WORKERS ?= $(shell echo $$(($$(nproc) + 1)))

.DEFAULT_GOAL := help
.PHONY: help demo test check local-llm profiles docs crash-test crash-test-short fault-test fault-test-short siflow-chaos siflow-chaos-short chaos chaos-short bench scale scale-million clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp for each set of packages; it is older than pyproject.toml when that has changed.
$(VENV)/.installed: pyproject.toml
	$(call install,.)
$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[dev])
	@touch $(VENV)/.installed
$(VENV)/.installed-local-llm: pyproject.toml
	$(call install,.[local-llm])

define install
	@if command -v uv >/dev/null 2>&1; then \
	  { [ -x $(BIN)/python ] || uv venv --quiet --python $(PYTHON) $(VENV); } && uv pip install --quiet --python $(BIN)/python -e '$(1)'; \
	else \
	  { [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); } && $(BIN)/pip install --quiet --disable-pip-version-check -e '$(1)'; \
	fi
	@touch $@
endef

demo: $(VENV)/.installed  ## set up, and run the demo end to end
	$(BIN)/snakemake --cores $(CORES)

test: $(VENV)/.installed-dev  ## set up, and run the tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev  ## style, types and Snakemake's linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

local-llm: $(VENV)/.installed $(VENV)/.installed-local-llm  ## add the small local model, for --profile profiles/local-llm

profiles: $(VENV)/.installed  ## link our profiles to where `snakemake --profile NAME` looks
	$(BIN)/python scripts/link_profiles.py

docs: $(VENV)/.installed  ## write the tables of config/README.md anew
	$(BIN)/python -m potstill.config.document
	$(BIN)/python -m snakemake_executor_plugin_siflow.document

# The short forms are what CI runs; the long ones give the numbers of RELIABILITY.md.
crash-test: $(VENV)/.installed-dev  ## 1000 SIGKILLs of a generate job, and journals broken on purpose (20 minutes)
	$(BIN)/python -m tests.crash --mutants

crash-test-short: $(VENV)/.installed-dev
	$(BIN)/python -m tests.crash --rows 2000 --kills 25 --seeds 1 --mutants

fault-test: $(VENV)/.installed-dev  ## 10,000 rows under mixed faults, rate limits and outages of ten minutes
	$(BIN)/python -m tests.faults --rows 10000

fault-test-short: $(VENV)/.installed-dev
	$(BIN)/python -m tests.faults --rows 2000

siflow-chaos: $(VENV)/.installed-dev  ## the SiFlow executor against faults of the platform (hours)
	$(BIN)/python -m tests.siflow.chaos --full --output build/siflow-scorecard.md

siflow-chaos-short: $(VENV)/.installed-dev
	$(BIN)/python -m tests.siflow.chaos --short --output build/siflow-scorecard.md

chaos: $(VENV)/.installed-dev  ## kill anything, a hundred times over 200 chunks; the dataset stays the same
	$(BIN)/python -m tests.chaos --kills 100 --chunks 200 --seed 1

chaos-short: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos --kills 12 --chunks 16 --seed 2

bench: $(VENV)/.installed-dev  ## measure the engine beside a bare loop
	$(BIN)/python bench/generate.py

# Some ten minutes, and half an hour, on two idle cores; each adds its tables to the file.
scale: $(VENV)/.installed-dev  ## what growth costs: the tables of docs/scale.md, in build/scale.md
	$(BIN)/python bench/scale.py rows 10000 100000 --output build/scale.md
	$(BIN)/python bench/scale.py jobs 100 --output build/scale.md
	$(BIN)/python bench/scale.py dag 1000 2 --output build/scale.md
	$(BIN)/python bench/scale.py duplicates 1000000 10000000 --output build/scale.md

scale-million: $(VENV)/.installed-dev  ## the same at a million rows, beside 100,000
	$(BIN)/python bench/scale.py rows 100000 1000000 --output build/scale.md

clean:  ## remove the results of the demo; the answer store stays
	rm -rf results
