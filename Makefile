# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Data sets that only tests and benchmarks use; tests that want them skip with a reason where they are absent.
ifneq ($(wildcard ../shared/data),)
export LIMBECK_TEST_DATA ?= $(realpath ../shared/data)
endif

# Everything that tests write lies in the checkout, what a killed process leaves included.
PYTEST = mkdir -p .tmp && TMPDIR=$(CURDIR)/.tmp HF_HOME=$(CURDIR)/.tmp/huggingface MPLCONFIGDIR=$(CURDIR)/.tmp/matplotlib $(BIN)/pytest --basetemp=.tmp/$@
# Brings a Docker engine up where this workplace has a script for it; elsewhere the engine that answers is used.
ENGINE = if [ -x ../shared/docker/engine-up.sh ]; then eval "$$(../shared/docker/engine-up.sh)"; fi;

.PHONY: help install demo serve test test-all test-docker test-gpu bench-serving bench-overhead bench-gpu bench-overload bench-soak bench-steady lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install Limbeck with everything a developer needs

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (downloads about 500 MB the first time; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip -c constraints.txt
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --progress-bar on -c constraints.txt -e '.[cpu,compress,loadtest,examples,dev]'
	@touch $@

demo: $(INSTALLED) ## compress the movie reviews, serve the result, classify two sentences (11 minutes; 16 without AMX)
	examples/movie-reviews/demo.sh

serve: $(INSTALLED) ## serve the demo's bundle in the foreground on port 8000
	$(BIN)/limbeck serve runs/movie-reviews/bundle

lint: $(INSTALLED) ## ruff (lint and format) and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(INSTALLED) ## fast tests and one end-to-end run on real weights (≤ 8 minutes)
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not docker and not gpu"

test-all: $(INSTALLED) ## the slow tests and the Docker tests (skipped with a reason where no engine answers)
	$(PYTEST) -m "slow or docker" --timeout=1500 -rs

test-docker: $(INSTALLED) ## build the images and run them with a real Docker engine
	$(ENGINE) $(PYTEST) -m docker --timeout=1500 -rs

test-gpu: $(INSTALLED) ## the tests that need an NVIDIA GPU
	$(PYTEST) -m gpu -rs

# The demo's student, and for scale its teacher: MiniLM-L6, fine-tuned and packed as it is.
MODELS ?= --model student=runs/movie-reviews/bundle --model minilm-l6=runs/minilm-l6/bundle
OUT ?= benchmarks/serving/results/serving.md

bench-serving: $(INSTALLED) ## Limbeck beside six other servers (25 minutes on an idle machine; after make demo; needs wrk)
	@command -v wrk >/dev/null || { echo "wrk is not installed: apt-get install wrk" >&2; exit 1; }
	@if [[ "$(MODELS)" == *runs/minilm-l6/bundle* && ! -d runs/minilm-l6/bundle ]]; then benchmarks/serving/teacher.sh; fi
	$(BIN)/python -m benchmarks.serving.serving $(MODELS) --out $(OUT)

# What the benchmarks serve: BUNDLE=folder takes another.
BUNDLE ?= runs/movie-reviews/bundle

bench-gpu: $(INSTALLED) ## float16, float32 and INT8 on a GPU and beside it; says so where there is none
	$(BIN)/python -m benchmarks.serving.gpu $(BUNDLE)

bench-overload: $(INSTALLED) ## twice as many requests as the service can answer (needs wrk, two CPUs, an idle machine)
	$(BIN)/python -m benchmarks.serving.overload $(BUNDLE)

bench-soak: $(INSTALLED) ## a million requests of random length; memory must stay flat (REQUESTS=n for fewer)
	$(BIN)/python -m benchmarks.serving.soak $(BUNDLE) $(if $(REQUESTS),--requests $(REQUESTS))

bench-steady: $(INSTALLED) ## half an hour at 70 % of the highest rate; memory must stay flat
	$(BIN)/python -m benchmarks.serving.steady $(BUNDLE)

bench-overhead: $(INSTALLED) ## what the server costs beyond tokenizer and model, on BUNDLE (needs wrk and an idle machine)
	$(BIN)/python -m benchmarks.serving.overhead $(BUNDLE) --workers 1 2 --guarded

clean: ## remove what was built (.venv, runs, caches); the source stays
	rm -rf $(VENV) .tmp runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
