# `make demo` and `make test` each do everything on a fresh clone: environment, install, run.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test lint types wheel clean

demo: $(VENV)/installed
	$(BIN)/featurecache demo demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow and not gpu"

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo .mypy_cache .pytest_cache .ruff_cache
