# The two to know: `make demo` and `make test`. Everything runs in .venv; nothing else on the machine is touched,
# except that `make setup` installs Mosquitto where it is missing.

VENV ?= .venv
PYTHON ?=
ARGS ?=
WORKERS ?= 3
export VENV PYTHON

BIN := $(VENV)/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --upgrade

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-containers promises check coverage mutants bench soak audit lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## .venv with the locked dependencies, and Mosquitto where it is missing
	@scripts/setup.sh

demo: setup ## the whole way once: outage, SIGKILL, count; under a minute
	@$(BIN)/edge-bridge demo $(ARGS)

# Three workers for two cores: the tests mostly wait, and a few of them look at the clock. Each file stays with one
# worker, so nothing within it runs side by side; they are begun in the order of tests/conftest.py, the longest first.
test: setup ## the test suite against a real Mosquitto (ARGS="-k words")
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# docker-compose.yml for real: built, broken, counted, on the Docker engine that answers, or on one of its own.
test-containers: setup
	@scripts/with-engine.sh $(BIN)/python -m pytest tests/acceptance/test_compose.py $(ARGS)

# The tests of the promises, and their results into docs/GUARANTEES.md (ARGS="7 38", ARGS="--long 38").
promises: setup
	@$(BIN)/python scripts/promises.py $(ARGS)

check: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Measuring makes pure Python several times slower, the power-cut simulator above all: a longer limit for each test.
coverage: setup ## branches of bridge/ that unit and integration tests take; at least 95 %
	@$(BIN)/python -m pytest tests/unit tests/integration -n $(WORKERS) --dist loadfile --no-loadscope-reorder --timeout 400 \
		--cov=bridge --cov-branch --cov-report=term:skip-covered --cov-report=json:.coverage.json --cov-fail-under=95 $(ARGS)
	@$(BIN)/python scripts/branch_coverage.py .coverage.json

mutants: setup ## mistakes made on purpose, and the tests that must see them: docs/MUTATIONS.md (ARGS="verdict")
	@$(BIN)/python scripts/mutate.py $(ARGS)

bench: setup ## throughput on this machine
	@$(BIN)/edge-bridge bench $(ARGS)

soak: setup ## the long tests: hours of faults (ARGS as for test)
	@$(BIN)/python -m pytest -m soak --timeout=0 $(ARGS)

audit: setup ## known vulnerabilities of the locked packages; needs the network
	@$(BIN)/python scripts/audit.py

lock: setup ## newest allowed versions, with hashes, into requirements/
	@$(LOCK) --extra build --extra dev --extra demo --output-file requirements/development.lock pyproject.toml
	@$(LOCK) --extra build --constraints requirements/development.lock --output-file requirements/runtime.lock pyproject.toml
	@$(LOCK) --group tools --constraints requirements/development.lock --output-file requirements/tools.lock

clean: ## what the other targets made
	@rm -rf .venv* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
