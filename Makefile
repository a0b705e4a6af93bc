# All the set-up there is: every target makes .venv and installs into it when needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo check test bench docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,tensorboard]'
	touch $@

demo: $(STAMP)          ## generate, prepare, train, evaluate, predict: under 5 minutes on 2 cores
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh demo

check: $(STAMP)         ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(STAMP)          ## unit, property and end-to-end tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench: $(STAMP)         ## the committed benchmarks, results under benchmarks/results
	$(BIN)/python benchmarks/bench_prepare.py
	$(BIN)/python benchmarks/bench_prepare_scale.py
	$(BIN)/python benchmarks/bench_prepare_scale.py --kill 5
	$(BIN)/python benchmarks/bench_loader.py

docs: $(STAMP)          ## render the tables of README and docs from benchmarks/results
	$(BIN)/python benchmarks/render_tables.py

clean:
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache
