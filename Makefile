# `make demo` and `make test` do all their own set-up: a virtual environment in $(VENV), made by uv.
#
#   make test PYTHON=python3.12 VENV=.venv312   another Python, in an environment of its own
#   make test CONSTRAINTS=                      the newest versions instead of the pinned ones
#   make test ARGS="tests/pp -x"                arguments for pytest

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
JOBS ?= 2

# data beside the checkout, where nothing else is set
ifeq ($(HIBIOST_DATA_DIR)$(wildcard ../shared/data),../shared/data)
export HIBIOST_DATA_DIR := $(abspath ../shared/data)
endif

export UV_PYTHON_DOWNLOADS := never
OWN_UV := $(shell uv --version >/dev/null 2>&1 || echo .uv/bin/uv)
UV := $(or $(OWN_UV),uv)
INSTALL = $(UV) pip install --python $(VENV) $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS),--upgrade)
READY := $(VENV)/.installed-$(if $(CONSTRAINTS),pinned,newest)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs bench bench-kernels constraints clean

help: ## these lines
	@grep -E '^[a-z-]+:.* ## ' Makefile | sed -E 's/^([a-z-]+):.* ## /\1\t/' | expand -t 14

demo: $(READY) ## the whole method on a real tissue section, into hibiost-demo/
	$(VENV)/bin/hibiost demo --out hibiost-demo

test: $(READY) ## the tests, in JOBS processes
	$(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-slow: $(READY) ## the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow --timeout 1800 $(ARGS)

lint: $(READY)-dev ## ruff, mypy and the rule of the rooms
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(READY)-dev ## rewrite the code as ruff wants it
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(READY)-docs ## the documentation, into docs/_build/html
	$(VENV)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html

BENCHMARKS := $(patsubst benchmarks/%.py,%,$(shell grep -ls "^from _bench import" benchmarks/*.py))

bench: $(READY) ## each hot step beside its alternatives, into docs/speed/; ONLY=sentences for one of them
	@for name in $(or $(ONLY),$(BENCHMARKS)); do \
		echo "== $$name"; $(VENV)/bin/python benchmarks/$$name.py || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

SAVED := $(lastword $(sort $(patsubst %_,%,$(shell ls .benchmarks/*/ 2>/dev/null | grep -o '^[0-9]\{4\}_'))))

bench-kernels: $(READY)-bench ## small runs of the hot steps; fails where one is slower than when last saved; SAVE=1 saves
	$(VENV)/bin/python -m pytest benchmarks/kernels.py -p no:cacheprovider --benchmark-storage .benchmarks \
		--benchmark-columns min,median,iqr,rounds $(if $(SAVE)$(if $(SAVED),,1),--benchmark-autosave) \
		$(if $(SAVED),--benchmark-compare $(SAVED) --benchmark-compare-fail min:25%) $(ARGS)

constraints: | $(OWN_UV) ## resolve constraints.txt anew
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group bench --group dev \
		--no-annotate --no-emit-index-url --custom-compile-command "make constraints" --output-file constraints.txt pyproject.toml

clean: ## remove everything that make made
	rm -rf .uv .venv* .*_cache .hypothesis hibiost-demo dist docs/_build docs/api docs/tutorials
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg: | $(OWN_UV)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"hibiost needs Python 3.11 or newer, and \
	$(PYTHON) is {sys.version.split()[0]}: name another one, as in make test PYTHON=python3.12")'
	$(UV) venv --clear --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)

$(READY): pyproject.toml $(CONSTRAINTS) | $(VENV)/pyvenv.cfg
	rm -f $(VENV)/.installed-*
	$(INSTALL) --editable . --group test
	touch $@

$(READY)-dev: $(READY)
	$(INSTALL) --group dev
	touch $@

$(READY)-bench: $(READY)
	$(INSTALL) --group bench
	touch $@

$(READY)-docs: $(READY)
	$(INSTALL) --editable '.[docs]'
	touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv && .uv/bin/python -m pip install uv || $(PYTHON) -m pip install --target .uv uv
