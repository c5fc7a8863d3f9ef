# `make demo` and `make test` each do everything on a fresh clone: environment, install, run.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
QUICK := $(addprefix tests/test_,$(addsuffix .py,spec project clips clips_csv store_reader store_writer live models bundle \
	thresholds batches pixels))
SCHEMA := $(VENV)/EAFv3.0.xsd

.PHONY: demo test coverage lint types lowest site wheel clean

demo: $(VENV)/installed
	$(BIN)/featurecache demo demo

# One process a core, four at most: each test computes on one thread, and what a test file shares is made once.
test: $(VENV)/installed $(SCHEMA)
	FEATURECACHE_EAF_SCHEMA=$(abspath $(SCHEMA)) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		-m "not slow and not gpu"

# Statements that the quick suite executes in its own process; those of child processes are not counted.
coverage: $(VENV)/installed
	$(BIN)/python -m coverage run -m pytest -m "not slow and not gpu" $(TESTS)
	$(BIN)/python -m coverage report --skip-covered --sort=cover

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

# The quick part of the suite on the lowest versions that pyproject.toml allows. Old versions warn of others: no errors.
lowest: $(VENV)/installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --group dev --editable .
	$(VENV)-lowest/bin/python -m pytest -m "not slow and not gpu" -W default $(QUICK)

# Every page of the documentation, with the reference from the docstrings; a link that leads nowhere is an error.
site: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -E -c docs . site
	@echo "open site/README.html"

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

# ELAN's own schema, which only the source distribution of pympi-ling carries. Without it one test skips.
$(SCHEMA): $(VENV)/installed
	-$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/schema pympi-ling==1.71
	-tar --extract --gzip --to-stdout --file $(VENV)/schema/pympi_ling-1.71.tar.gz pympi_ling-1.71/test/EAFv3.0.xsd >$@

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist site *.egg-info demo .mypy_cache .pytest_cache .ruff_cache
