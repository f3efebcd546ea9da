# make demo          train on real data, register, serve, ask, show; nothing is left running (KEEP=1 leaves it up)
# make demo-sharing  a run lends its devices to an endpoint under load and takes them back; draws them over time
# make test          lint, types and all tests: what CI runs
# make test-elastic  runs that are resized, paused and hurt while they train: what becomes of rows, steps and weights
# make bench         side by side with peers, on a machine that does nothing else (hours): serving, training against
#                    torchrun, reductions, checkpoints, resizes, memory, sharing; goes through all and then names what was missed
# make results       trains the shipped specs over seeds and folds and writes docs/results.md (hours)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := serving training reduction checkpoints resize memory deciding sharing
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo demo-sharing test lint types unit cluster e2e test-elastic bench results clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) --version); Tidegate needs Python 3.11 to 3.13: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python jobs/demo.py $(if $(KEEP),--keep)

demo-sharing: $(STAMP)
	@$(BIN)/python jobs/demo_sharing.py

test: lint types unit cluster e2e

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit

cluster: $(STAMP)
	$(BIN)/python -m pytest tests/cluster

e2e: $(STAMP)
	$(BIN)/python -m pytest tests/e2e

test-elastic: $(STAMP)
	$(BIN)/python -m pytest tests/elastic

bench: $(STAMP)
	@missed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py || missed="$$missed $$name"; \
	done; [ -z "$$missed" ] || { echo "missed or failed:$$missed"; exit 1; }

results: $(STAMP)
	$(BIN)/python tests/benchmarks/results.py

clean:
	rm -rf $(VENV) build *.egg-info platform/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
