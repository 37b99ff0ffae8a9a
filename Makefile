# The commands people and CI use. Everything happens in .venv and .run, both untracked.
PYTHON ?= python3.11
BIN := .venv/bin
RUN_DIR ?= .run

.PHONY: help install demo up down test test-unit lint audit clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/installed ## make the virtual environment

.venv/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into .venv (about 2 GB, some minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,serve,embedded,bench,dev]'
	@touch $@

demo: install ## the whole loop on real parts: logs, fit, frontier, Triton, Ray Serve, Locust
	$(BIN)/python -m benchmarks demo --out $(RUN_DIR)/demo

up: install ## leave the stack of the demo running and print its address
	$(BIN)/python -m benchmarks up --out $(RUN_DIR)/demo

down: ## end what `make up` started, and only that
	@test -x $(BIN)/python || { echo "nothing is running"; exit 0; }
	@test ! -x $(BIN)/python || $(BIN)/python -m benchmarks down --out $(RUN_DIR)/demo

lint: install ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

audit: install ## known vulnerabilities in the pinned dependencies; says NOT AUDITED where no database answers
	$(BIN)/python .ci/audit.py

test: lint audit ## everything CI runs: the real Ray, tritonserver and Chromium in it
	$(BIN)/python -m pytest tests/system tests/integration tests/unit --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15

test-unit: install ## the part without Ray and Triton, under a minute
	$(BIN)/python -m pytest tests/unit

clean: down ## remove what was made, the virtual environment included
	rm -rf .venv $(RUN_DIR) triton_models/repository
