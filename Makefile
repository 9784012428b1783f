# make install | quickstart | test | lint | bench        everything happens in .venv; a second call does only what is left
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -c constraints.txt

# First on PATH for everything below: DeepSpeed's compiled operators are built anew whenever another ninja is found before this one.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install quickstart test test-bare lint bench

install: $(INSTALLED)

# torch goes first, so that a CPU or GPU build offered by your pip configuration is settled before anything depends on it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make $(VENV); on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "== installing into $(VENV): 3 minutes on a fast line, 1.7 GB; several GB more where torch comes with CUDA"
	@echo "== 1 of 2: torch"
	$(PIP) torch
	@echo "== 2 of 2: DeepSpeed, transformers and the rest; unpacking them at the end takes a minute"
	$(PIP) -e '.[dev]'
	@echo "== installed: $$(du -sh $(VENV) | cut -f1) in $(VENV)"
	@touch $@

# A second call resumes an unfinished run and leaves a finished one alone. -q keeps the launcher from logging around our lines.
quickstart: install
	$(BIN)/toolkit fetch smollm2-135m-instruct python-docstrings
	$(BIN)/deepspeed -q --num_gpus 2 recipes/sft_smollm2_zero2.py --resume auto
	@cat docs/next_steps.txt

# No test may depend on a model hub. The slow files come first in the alphabet, and stay first.
test: export HF_HUB_OFFLINE := 1
test: install
	$(BIN)/toolkit fetch smollm2-135m-instruct minilm-l6 python-docstrings python-packages
	$(MAKE) --no-print-directory lint
	$(BIN)/toolkit doctor --build
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The tests, or TESTS="files", as if no optional system package were installed here. Needs root and Linux.
test-bare: export HF_HUB_OFFLINE := 1
test-bare: install
	tests/bare.sh $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/toolkit config --verify

# gpu.py has a device and a budget of its own: python benchmarks/gpu.py
bench: install
	$(BIN)/toolkit fetch smollm2-135m-instruct minilm-l6 minilm-bert2bert python-docstrings python-packages spamassassin \
		brown-names brown-corpus docstring-questions docstring-preferences debian-en-de debian-summaries debian-pairs \
		efficientnet-lite0 fashion-mnist whisper-tiny-en voice-prompts
	set -e; for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done
	$(BIN)/python benchmarks/tasks.py --group media
