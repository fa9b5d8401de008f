# Everything a newcomer needs: `make demo` and `make test`. A fresh machine needs Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types check train-tiny evaluate-tiny clean

demo: $(INSTALLED)
	$(BIN)/clipspect demo --out demo-results
	@echo "open $(CURDIR)/demo-results/report.html"

test: $(INSTALLED) lint types
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

train-tiny: $(INSTALLED)
	$(BIN)/python -m clipspect.training.train --out runs/tiny

evaluate-tiny: $(INSTALLED)
	$(BIN)/python benchmarks/accuracy.py --out runs/accuracy

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-results .mypy_cache .ruff_cache .pytest_cache
