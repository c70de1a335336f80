# Everything a fresh machine with Python 3.11+ and make needs. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
OUT ?= .
DATA ?= ../shared/data
PEERS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install run test check proofs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Narrows needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

install: $(INSTALLED) ## a virtual environment in .venv with Narrows and its tools

run: $(INSTALLED) ## train on small real images, compare with PCA, write digits.narrows and report.html
	$(BIN)/narrows fit digits --latent 8 --out $(OUT)/digits.narrows
	$(BIN)/narrows evaluate $(OUT)/digits.narrows digits
	$(BIN)/narrows report $(OUT)/digits.narrows digits --out $(OUT)/report.html
	@echo "Look at $(OUT)/report.html in a browser: curves, digits beside their reconstructions, a map of the codes."
	@echo "Ask about the model: $(BIN)/narrows info $(OUT)/digits.narrows"

check: $(INSTALLED) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## check, then the tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

proofs: $(INSTALLED) ## the long proofs: 10,000 damaged model files, 10,000 damaged input files
	$(BIN)/pytest -m slow --override-ini addopts="-q --strict-markers --strict-config"

bench: $(INSTALLED) ## the benchmarks (see benchmarks/README.md) on the sets in DATA, with peers of the Python PEERS; 3 GB of disk
	$(BIN)/python benchmarks/speed.py --data $(DATA) $(if $(PEERS),--keras $(PEERS) --peer $(PEERS))
	$(BIN)/python benchmarks/seeds.py --data $(DATA)
	$(BIN)/python benchmarks/kinds.py --data $(DATA)
	$(BIN)/python benchmarks/streaming.py --data $(OUT)/streaming
	$(BIN)/python benchmarks/likelihood.py vae iwae --data $(DATA)
	$(BIN)/python benchmarks/denoising.py --data $(DATA) --no-peers
	$(BIN)/python benchmarks/probes.py --data $(DATA)
	$(BIN)/python benchmarks/anomalies.py Narrows --data $(DATA)
	$(BIN)/python benchmarks/anomalies.py Narrows --variant clean --data $(DATA)
	$(BIN)/python benchmarks/series_anomalies.py Narrows --data $(DATA)
	$(BIN)/python benchmarks/blame.py --data $(DATA)
	$(BIN)/python benchmarks/drift.py --data $(DATA)
	$(BIN)/python benchmarks/gpu.py --data $(DATA)
	$(BIN)/python benchmarks/page.py

clean: ## remove what the targets above made
	rm -rf $(VENV) digits.narrows digits.run report.html
