# `make run` installs, opens the app and builds the demo index behind it; `make test` installs and runs the tests.

PYTHON ?= python3
PORT ?= 8501
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= demo
LOG ?= workspace/build.log

.PHONY: run test setup lint format wheel docs bench fuzz lock audit sbom prove-gpu clean help

help: ## list the make targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: setup ## install, open the app on 127.0.0.1, and build the demo index behind it
	$(BIN)/python -m index_builder prepare $(STUDY)
	@mkdir -p $(dir $(LOG))
	@echo "Open http://127.0.0.1:$(PORT)"
	@echo "The index is built in the background, then ablation features; Home shows the progress, details are in $(LOG)."
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
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format the code and apply ruff fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.installed-dev ## build the wheel, install it in a new environment, build and query a study
	sh scripts/check_wheel.sh $(BIN)/python

fuzz: $(VENV)/.installed-dev ## try FUZZ (10,000) hostile inputs of every kind; the suite tries 60 of each
	DTRAK_FUZZ=$(or $(FUZZ),10000) $(BIN)/python -m pytest --timeout 0 tests/fuzz

lock: $(VENV)/.installed-dev ## pin all dependencies with their hashes in requirements.lock
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile requirements.txt --generate-hashes --universal --python-version 3.11 --no-header -q \
		-o requirements.lock

audit: $(VENV)/.installed-dev ## look up known vulnerabilities of the pinned dependencies (needs the network)
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --disable-pip -r requirements.lock

sbom: $(VENV)/.installed-dev ## write a software bill of materials to build/sbom.json
	$(BIN)/pip install -q cyclonedx-bom
	mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock -o build/sbom.json

prove-gpu: $(VENV)/.installed-dev ## run what needs a GPU, within ten minutes, and write docs/gpu.md
	$(BIN)/python scripts/prove_gpu.py

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
