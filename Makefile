# `make run` installs, builds the demo index and opens the app; `make test` installs and runs the tests.

PYTHON ?= python3
PORT ?= 8501
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= demo
LOG ?= workspace/build.log

.PHONY: run test setup lint format wheel docs bench clean help

help: ## list the make targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: setup ## install, build the demo index and open the app on 127.0.0.1
	$(BIN)/python -m index_builder build $(STUDY) --index-only
	@echo "Open http://127.0.0.1:$(PORT)"
	@echo "Ablation features and evaluation results are built in the background; progress is in $(LOG)."
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

test: $(VENV)/.installed-dev ## install and run all tests, including browser tests
	sh scripts/chromium.sh
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not browser and not ray"
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "browser or ray"

lint: $(VENV)/.installed-dev ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format the code and apply ruff fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.installed-dev ## build the wheel, install it in a new environment, build and query a study
	sh scripts/check_wheel.sh $(BIN)/python

docs: $(VENV)/.installed-dev ## build the documentation into build/site
	$(BIN)/pip install -q "mkdocs-material>=9.6" "mkdocstrings[python]>=0.29"
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev ## run all benchmarks (about an hour) and write docs/benchmarks.md
	$(BIN)/pip install -q traker==0.3.2 dattri==0.3.0
	for part in features projections __main__ app pages engines size; do \
		$(BIN)/python -m benchmarks.$$part || exit 1; \
	done

clean: ## remove the virtual environment (keeps the workspace)
	rm -rf $(VENV)
