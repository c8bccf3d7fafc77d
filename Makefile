# Everything one does here. `make demo` and `make test` need nothing but Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo serve test faults check format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, serve, train FC, CNN and permuted CNN, print the link to their comparison (ARGS=--exit, ARGS=--again)"
	@echo "make serve  serve on http://127.0.0.1:8000, restarting when the code changes"
	@echo "make test   set up and run all tests but faults (ARGS=\"-m 'not slow'\" leaves out the slow ones)"
	@echo "make faults flip bits, kill processes, cut the power and fail system calls, as docs/reliability.md says (ARGS=--quick: a few of each, in two minutes)"
	@echo "make check  format and lint of Python, templates, CSS and JavaScript, types, import contracts, spelling"
	@echo "make format writes Python, templates, CSS and JavaScript in the project's format"
	@echo "make bench  the benchmarks, about two and a half hours; writes docs/lab/benchmarks.md (ARGS=--quick goes through them in a few steps)"

demo: $(VENV)/ready
	@$(BIN)/runoff demo $(ARGS)

serve: $(VENV)/ready
	@$(BIN)/runoff serve --reload $(ARGS)

test: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -n auto --dist loadfile --ignore=tests/faults $(ARGS)

faults: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -n auto --dist loadfile --full tests/faults $(if $(findstring --quick,$(ARGS)),,tests/app/test_state_machine.py tests/trainer/test_exact_resume.py) $(ARGS)

check: $(VENV)/ready-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/djlint --check templates
	@$(BIN)/djlint --lint templates
	@$(BIN)/oxfmt --check static
	@$(BIN)/oxlint --deny-warnings --ignore-pattern static/vendor static
	@$(BIN)/codespell

format: $(VENV)/ready-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/djlint --reformat --quiet templates
	@$(BIN)/oxfmt static

bench: $(VENV)/ready-dev
	@$(BIN)/python -m benchmarks.speed $(or $(ARGS),--write)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Runoff needs Python 3.11 or newer; try make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is not complete here. Run: apt-get install -y python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) (once, a few minutes; most of it is PyTorch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/python -c "import trainer.fast.conv_pool_kernels, trainer.fast.norm_pool_kernels"
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV)
