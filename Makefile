# `make demo` and `make test` need Python 3.11-3.13 with venv, git and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-delf test lint unit torture figures clean

demo: $(VENV)/.installed
	$(BIN)/python AG/demo.py

# The DELF system: fine-tuning, attention, features, vocabulary tree.
# It starts from the weights of `make demo` where these are.
demo-delf: $(VENV)/.installed
	$(BIN)/python AG/demo_delf.py $(addprefix --pretrained ,$(lastword $(sort $(wildcard logs/demo/train/*/best_model.pth))))

test: lint unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# Kills, damaged files, full disks, two at once; `unit` has a short version of it.
torture: $(VENV)/.installed-test
	$(BIN)/python -m tests.torture

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11-3.13 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Exact versions come from requirements.lock; an unchanged lock installs nothing twice.
$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): some minutes, about 5 GB with PyTorch's CUDA libraries"
	$(BIN)/python -m pip install --quiet -c requirements.lock -e .
	touch $@

$(VENV)/.installed-test: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing what the tests need into $(VENV)"
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[test]'
	touch $@ $(VENV)/.installed

# The pictures of the README, out of the last `make demo`; its query 134 is one that geometry saves.
SHOW = $(BIN)/python AG/show.py
EVAL = $(lastword $(sort $(wildcard logs/demo/eval/*)))
TRAIN = $(lastword $(sort $(wildcard logs/demo/train/*)))

figures: $(VENV)/.installed
	$(if $(EVAL),,$(error no run in logs/demo/eval: make demo first))
	$(SHOW) rerank --run $(EVAL) --query 134 --output images/rerank.jpg
	$(SHOW) attention --run $(EVAL) --query 134 --output images/attention.jpg
	$(SHOW) matches --run $(EVAL) --query 134 --output images/features_match.jpg
	$(SHOW) positives --run $(EVAL) --output images/toy_city.jpg
	$(SHOW) recalls --run $(EVAL) --output images/recalls.png
	$(SHOW) losses --run $(TRAIN) --output images/losses.png

clean:
	rm -rf $(VENV) logs
