# Each target does its own set-up: a virtual environment in $(VENV), made only if there is none, and an editable install
# that is repeated only when pyproject.toml or constraints.txt change. Needs Python >= 3.11 and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: help demo test fuzz lint format docs matrix audit clean

help:
	@echo "make demo    draw one prompt with the bundled model (into demo-out/)"
	@echo "make test    lint, format check, types, import rules, tests"
	@echo "make fuzz    changed and random bytes into every reader, for minutes (FUZZ_INPUTS for each, default 4000)"
	@echo "make lint    all of that but the tests"
	@echo "make format  let ruff rewrite the sources"
	@echo "make docs    build the documentation site into site/"
	@echo "make matrix  the package from wheel and sdist and with the oldest core dependencies, in empty environments"
	@echo "make audit   known vulnerabilities of what is installed in $(VENV); asks the vulnerability service of PyPI"
	@echo "make clean   remove caches and the demo's output ($(VENV) stays)"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/irg generate "a photo of a horse, a bus and a red apple left of a cat" --seed 1713 \
	  --out demo-out --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The tests start many processes, each of which would compile the sources again without bytecode files.
test: lint
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

fuzz: $(STAMP)
	IRG_FUZZ_INPUTS=$(or $(FUZZ_INPUTS),4000) $(BIN)/python -m pytest -n auto tests/fuzz $(PYTEST_ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	$(BIN)/zensical build --clean --strict

matrix:
	$(PYTHON) .ci/matrix $(MATRIX_ARGS)

# Strict: what the service does not know, or can't be asked about, is an error. It knows no local versions (torch 2.13.0+cpu).
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip list --exclude-editable --format freeze | sed 's/+.*//' > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/audited.txt

clean:
	rm -rf build dist site demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
