# Elmgrove: `make help` lists the targets. Everything runs in .venv, which is made when it is first needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-run
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install dev demo test conformance lint fix bench bench-gpu experiment proto check-proto docs clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Elmgrove needs Python 3.11 or newer; say which with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }

# torch is named first and by its tested version, so that an index that offers a CPU build of it is free to.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Elmgrove and what the demo needs into $(VENV) (once, a few minutes) ..."
	@$(PIP_INSTALL) torch==2.13.0
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the test and lint tools into $(VENV) ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

install: $(VENV)/.demo ## Install everything a coordinator or owner needs into .venv

dev: $(VENV)/.dev ## Install the test and lint tools too

demo: $(VENV)/.demo ## Run a whole consortium on this machine (DATA=DIR for your own corpora, OUT in demo-run/)
	@$(BIN)/python deploy/demo/run.py --out $(DEMO_OUT) $(if $(DATA),--data $(DATA)) $(DEMO_ARGS)

test: $(VENV)/.dev ## Run every test (ARGS="-k name" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

conformance: $(VENV)/.dev ## Run the attacks of tests/conformance against the command lines
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/conformance $(ARGS)

lint: $(VENV)/.dev check-proto ## ruff, mypy, import contracts, generated code up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs: run make fix"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: $(VENV)/.dev ## Format and repair what ruff can repair
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench: $(VENV)/.dev ## Run the benchmarks into bench.json (BENCH=NAME for one)
	@$(BIN)/python tests/bench/run.py --out bench.json $(if $(BENCH),--only $(BENCH))

bench-gpu: $(VENV)/.dev ## Measure expert training at 7B layer shapes on this machine's GPU (ARGS="--layers 8")
	@$(BIN)/python tests/bench/gpu.py --out bench-gpu.json $(ARGS)

experiment: $(VENV)/.dev ## The paper's comparison at small scale (DATA=DIR, PRESET=smoke|small|full, OUT=DIR)
	@$(BIN)/python tests/bench/experiment/run.py --data $(or $(DATA),$(error DATA=DIR names the folder of corpora)) --preset $(or $(PRESET),small) \
	  --out $(or $(OUT),experiment-run) $(EXPERIMENT_ARGS)

PROTO := common/rpc/v1/elmgrove.proto
PROTOC = $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTO)

proto: $(VENV)/.dev ## Generate common/rpc/v1 from proto/
	@$(call PROTOC,.)

check-proto: $(VENV)/.dev ## Fail if the generated code is not what proto/ gives
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; $(call PROTOC,$$scratch) \
	  && for file in $$scratch/common/rpc/v1/*; do diff -q "$$file" "common/rpc/v1/$$(basename $$file)" || { echo "run make proto"; exit 1; }; done

docs: $(VENV)/.dev ## Write the generated pages (docs/errors.md)
	@$(BIN)/python -m tests.support.errors_page docs/errors.md

clean: ## Remove .venv, caches and the demo's output
	@rm -rf $(VENV) $(DEMO_OUT) experiment-run bench.json bench-gpu.json build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
