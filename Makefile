# Everything a newcomer needs: `make demo` and `make test`. A fresh machine needs Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev

.PHONY: demo test lint types check train-tiny evaluate-tiny clean

demo: $(INSTALLED)
	$(BIN)/clipspect demo --out demo-results
	@echo "open $(CURDIR)/demo-results/report.html"
	@echo "to use the command clipspect in this shell: source $(BIN)/activate"

test: $(DEVELOPMENT) lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT)
	$(BIN)/mypy

train-tiny: $(DEVELOPMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target runs/packages robosuite==1.5.2
	$(BIN)/python -m clipspect.training.train --out runs/tiny
	$(BIN)/python -m clipspect.training.calibrate --model runs/tiny/model

evaluate-tiny: $(DEVELOPMENT)
	$(BIN)/python benchmarks/accuracy.py --out runs/accuracy

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-results .mypy_cache .ruff_cache .pytest_cache
