# What a learner and a contributor type. Needs Python >= 3.11 and make (also the GNU make 3.81 of macOS), nothing else.
# `make` alone lists the targets.

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.complete

# Extra options, for example `make lab LABFLAGS=--no-browser` and `make test PYTESTFLAGS="-x -m slow"`; and which notebooks
# `make notebooks` is about, ONLY=04 or ONLY="04 05".
LABFLAGS ?=
PYTESTFLAGS ?=
ONLY ?=
LOCKFLAGS ?=

# The interpreter that makes the environment: PYTHON if it is given, else the first of these that runs, is new enough and can
# make environments. (A name on the PATH proves nothing: version managers put names there that only print an error, and
# Debian's python3 comes without ensurepip.)
CANDIDATES := python3.13 python3.12 python3.14 python3.11 python3 python
CAN_MAKE_VENV := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
find_python = $(if $(PYTHON),"$(PYTHON)",$$(for p in $(CANDIDATES); do \
	"$$p" -c '$(CAN_MAKE_VENV)' >/dev/null 2>&1 && echo "$$p" && break; done; true))

# The stamp says what the environment was made from: this folder (scripts in an environment know their place by name), the
# version of Python, the lock and pyproject.toml. It goes first and is written last, so an interrupted installation leaves none.
place = $(subst ",\",$(CURDIR)) $(if $(PYTHON),$$("$(PYTHON)" --version 2>/dev/null),$$($(PY) --version 2>/dev/null))

# nbval stops a cell after ten minutes (its own default is 33), and runs notebooks with this environment's Python whatever
# kernel they name.
NBVAL := --nbval-current-env --nbval-cell-timeout=600 --nbval-kernel-startup-timeout=120

# Tests share the cores, one thread each, file by file; more than four processes would need more memory than a laptop has.
# tests/conftest.py puts the longest files first, so that no core is idle for long; the files with the fewest tests are not
# the quickest, as pytest-xdist supposes when it puts them there.
SPREAD := -n auto --maxprocesses=4 --dist loadscope --no-loadscope-reorder

.PHONY: help env lab test notebooks format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-16s %s\n' "$$name" "$$text"; done

# Three ways to be stale, the most frequent the quickest: pyproject.toml differs (2 s), the lock differs, or anything else, an
# interrupted installation too, which could have left half a package: then all is made from nothing.
# There pip would compile the modules on one core; compileall takes all of them (it exits with 1 over files that some packages
# ship for other versions of Python).
env: ## make .venv, or bring it up to date
	@place="$(place)"; lock="lock $$(cksum < constraints.txt)"; project="project $$(cksum < pyproject.toml)"; \
	quiet=; [ -t 1 ] || quiet=--quiet; \
	pip="$(PY) -m pip install --disable-pip-version-check"; \
	case "$$(cat $(STAMP) 2>/dev/null)" in \
	"$$place; $$lock; $$project") \
		exit 0;; \
	"$$place; $$lock; "*) \
		echo "pyproject.toml has changed: installing the package anew."; \
		rm -f $(STAMP);; \
	"$$place; "*) \
		echo "constraints.txt has changed: bringing $(VENV) up to date."; \
		rm -f $(STAMP); \
		$$pip $$quiet --require-hashes -r constraints.txt || exit 1;; \
	*) \
		python=$(find_python); \
		if [ -z "$$python" ]; then \
			echo "Found no Python >= 3.11 that can make environments. Install one (on Debian and Ubuntu python3-venv too)," \
				"or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
		if ! "$$python" -c '$(CAN_MAKE_VENV)' 2>/dev/null; then \
			echo "PYTHON=$$python does not run, is older than 3.11, or cannot make environments (on Debian and Ubuntu" \
				"install python3-venv)." >&2; exit 1; fi; \
		echo "Making $(VENV) with $$("$$python" --version) from constraints.txt: some minutes, on Linux 6 GB (PyTorch with CUDA)."; \
		rm -f $(STAMP); \
		"$$python" -m venv --clear $(VENV) || exit 1; \
		$$pip $$quiet --no-compile --require-hashes -r constraints.txt || exit 1; \
		$(PY) -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true;; \
	esac; \
	$$pip --quiet --no-deps --no-build-isolation -e . || exit 1; \
	echo "$(place); $$lock; $$project" > $(STAMP); \
	echo "$(VENV) is ready."

# The whole project is served, so that links from the notebooks to its pages and code open.
lab: env ## open the first notebook in JupyterLab
	$(PY) -m jupyterlab --notebook-dir=. notebooks/00_start_here.ipynb $(LABFLAGS)

test: env ## format, lint, types, all tests and all notebooks
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	OMP_NUM_THREADS=1 $(PY) -m pytest $(SPREAD) --nbval $(NBVAL) --nbval-sanitize-with=notebooks/nbval_sanitize.cfg tests notebooks $(PYTESTFLAGS)

notebooks: env ## take over what the text twins say, execute where outputs may have changed
	$(PY) tests/execute_notebooks.py $(ONLY)

format: env ## format and mend what ruff can mend by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# uv resolves for all systems at once, which pip cannot. The present versions stay where they can;
# `make lock LOCKFLAGS=--upgrade` takes the newest.
lock: ## write constraints.txt anew from pyproject.toml
	@set -e; python=$(find_python); "$$python" -m venv .venv-lock; \
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'; \
	cp constraints.txt .venv-lock/locked.txt; \
	.venv-lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file .venv-lock/locked.txt $(LOCKFLAGS); \
	{ sed '/^$$/q' constraints.txt; cat .venv-lock/locked.txt; } > .venv-lock/constraints.txt; \
	mv .venv-lock/constraints.txt constraints.txt; \
	echo "constraints.txt has $$(grep -c == constraints.txt) packages."

clean: ## remove caches and build leftovers (not .venv, data or runs)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv-lock
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
