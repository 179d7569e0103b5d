# `make run` sets everything up, builds the demo index and opens the app; `make test` sets up and tests.

PYTHON ?= python3
PORT ?= 8501
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= demo
LOG ?= workspace/build.log

.PHONY: run test setup lint format bench clean help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: setup ## set up, build the demo index, open the app on 127.0.0.1
	$(BIN)/python -m index_builder build $(STUDY) --index-only
	@echo "Open http://127.0.0.1:$(PORT)"
	@echo "What the ablations and the measured scores need is built meanwhile; its progress is in $(LOG)."
	@nice -n 15 sh scripts/later.sh $(BIN)/python $(STUDY) > $(LOG) 2>&1 & \
	trap "kill $$! 2>/dev/null" EXIT INT TERM; \
	$(BIN)/python -m streamlit run app.py --server.port $(PORT)

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-base.txt scripts/install.sh
	PYTHON=$(PYTHON) sh scripts/install.sh $(VENV) requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-ray.txt
	PYTHON=$(PYTHON) sh scripts/install.sh $(VENV) requirements-dev.txt
	touch $@

test: $(VENV)/.installed-dev ## set up and run all tests, browser tests included
	sh scripts/chromium.sh
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev ## measure everything, for about an hour; writes docs/benchmarks.md
	$(BIN)/pip install -q traker==0.3.2 dattri==0.3.0
	for part in features projections __main__ app pages engines size; do \
		$(BIN)/python -m benchmarks.$$part || exit 1; \
	done

clean: ## remove the virtual environment (the workspace stays)
	rm -rf $(VENV)
