# Two commands do everything: `make demo` runs the whole graph for the sample task, `make test` checks the project.
# Both make the environment on first use, from the exact versions in requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where torch comes from besides the usual index. On Linux without a GPU this spares 3 GB of CUDA libraries:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DAGSTER_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

# Some images set it. Every job is a process of its own, and each would compile torch, transformers and dagster anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up test test-gpu lint docs lock clean

demo: $(READY)
	@$(BIN)/finetune run support_tickets

up: $(READY)
	@exec $(BIN)/finetune up

test: $(READY) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# the tests that need a GPU; `make test` skips them where there is none
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/finetune docs --write

# torch and uv by pip (which knows local wheels and TORCH_INDEX; with the CUDA libraries that this wheel of torch needs),
# the rest by uv (which is ten times as fast)
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "making the environment in $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c requirements.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep -E '^(torch|uv)==' requirements.lock)
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@test -e .env || echo "DAGSTER_HOME=$(CURDIR)/.finetune/dagster" > .env
	@mkdir -p .finetune/dagster
	@test -e .finetune/dagster/dagster.yaml || cp dagster.yaml .finetune/dagster/
	@touch $@

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --group lock --universal --python-version 3.11 --no-annotate --no-header -o requirements.lock

# data/*/frozen_test.jsonl stays: it says which rows are test rows for good
clean:
	rm -rf $(VENV) .finetune data/*/[0-9][0-9]_* data/*/.work .env
