# Everything a newcomer needs: `make demo` and `make test`. A fresh machine needs Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
# uv resolves and installs in a fraction of pip's time; it is used where it is installed.
ifneq ($(shell command -v uv),)
INSTALL := uv pip install --quiet --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: demo test test-oldest viewer lint types check train-tiny evaluate-tiny clean

demo: $(INSTALLED)
	$(BIN)/clipspect demo --out demo-results
	@echo "open $(CURDIR)/demo-results/report.html"
	@echo "to use the command clipspect in this shell: source $(BIN)/activate"

test: $(DEVELOPMENT) lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Build the viewer of report and page into the package, and run its unit tests. Needs Node 20 or later.
viewer:
	cd viewer && npm ci --ignore-scripts && npm test && npm run build

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT)
	$(BIN)/mypy

train-tiny: $(DEVELOPMENT)
	$(INSTALL) --editable ".[train]"
	$(INSTALL) --no-deps --target runs/packages robosuite==1.5.2
	$(BIN)/python -m clipspect.training.train --out runs/tiny
	$(BIN)/python -m clipspect.training.calibrate --model runs/tiny/model

# The core tests on the oldest declared versions of all dependencies, in a separate environment.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r tests/oldest.txt --editable .
	.venv-oldest/bin/python -m pytest -q tests/methods tests/parity tests/postprocess tests/prompts tests/data tests/results tests/test_detector.py tests/test_config.py

evaluate-tiny: $(DEVELOPMENT)
	$(BIN)/python benchmarks/accuracy.py --out runs/accuracy

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(INSTALL) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-results .mypy_cache .ruff_cache .pytest_cache
