# Each target sets up everything that it needs. `make demo` and `make test` are all a newcomer has to know.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Bytecode is made at a module's first import, not of every installed module at once: that would be half of the installation.
INSTALL := $(PIP) install --quiet --no-compile --editable
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint tables clean

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[dev]'
	@touch $(VENV)/.core $@

demo: $(VENV)/.core  ## the defence table on the embedded digits, with the shipped checkpoint -> runs/demo/
	$(BIN)/purify tables --data digits --out runs/demo

# For the report's tests: a browser that is there, else Debian's (as root), else playwright's own. Without any they are skipped.
$(VENV)/.browser: $(VENV)/.dev
	@command -v chromium chromium-browser google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -qy --no-install-recommends chromium; } \
	|| $(BIN)/playwright install --only-shell chromium \
	|| echo "no browser could be installed: the report's browser tests will be skipped"
	@touch $@

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.dev  ## lint, types and the whole test suite
	@$(MAKE) --no-print-directory --jobs 2 lint $(VENV)/.browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 20

tables: $(VENV)/.core  ## recompute every defence table and hold it against the committed reference
	$(BIN)/purify tables --check --out runs/tables

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
