# make repro | make test | make ui     (README.md gives the plain commands behind each)
# make bench-scale | make pins         (docs/scale.md, docs/requirements.md)
PYTHON ?= python3
BIN := .venv/bin
# A stage is `python -m …`: the environment's python must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# DVC unpickles what it finds there; its own choice, /var/tmp/dvc, is open to all users.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site

.PHONY: repro test ui conformance bench bench-scale pins readme lint venv

repro: venv
	dvc repro

# Two processes: most of the time is waiting for one command after another.
test: venv
	python -m pytest -n 2 --dist loadfile

ui: venv
	@echo "In the page: choose 'Model training' (top left), then your corpus, then Runs."
	mlflow ui --backend-store-uri "sqlite:///$(CURDIR)/mlflow.db" --host 127.0.0.1 --port 5000

# Installs the retired originals (mxnet, gluonnlp) into .venv-original and compares with them.
conformance: venv
	STORYFLOWER_CONFORMANCE=1 python -m pytest -s tests/original/test_conformance.py

# Ours beside the notebook's loop, the Hugging Face Trainer's, pandas and gluonnlp (where
# `make conformance` has installed it); writes reports/bench.json.
bench: venv
	python -m benchmarks.speed steps
	python -m benchmarks.input

# Memory and time of each stage with many rows; 20 million need about 10 GB of disk in $TMPDIR.
ROWS ?= 20000000
bench-scale: venv
	python -m benchmarks.scale --rows $(ROWS)

# The newest version of everything that pyproject.toml names or needs, on every platform.
pins:
	$(PYTHON) -m venv .venv-pins && .venv-pins/bin/python -m pip install --quiet uv
	.venv-pins/bin/uv pip compile --quiet --universal --upgrade --fork-strategy fewest --python-version 3.11 \
		--annotation-style line --no-header --extra pipeline --extra test --output-file .venv-pins/all.txt pyproject.toml
	{ sed -n '/^#/!q;p' requirements.txt; grep -Ev '$(CUDA)' .venv-pins/all.txt; } > .venv-pins/new.txt
	{ sed -n '/^#/!q;p' requirements-cuda.txt; grep -E '$(CUDA)' .venv-pins/all.txt; } > .venv-pins/cuda.txt
	mv .venv-pins/cuda.txt requirements-cuda.txt
	mv .venv-pins/new.txt requirements.txt && rm -r .venv-pins

# What only torch's CUDA wheels need; its CPU wheels would not use it.
CUDA := ^(nvidia-|cuda-|triton=)

# README.md's table and the comments of params.yaml, from storyflower/common/params.py.
readme: venv
	$(BIN)/python -m docs.params_table

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# The copy gets its name last, so an install that was cut off is done again.
venv:
	@cmp -s requirements.txt .venv/requirements.txt || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
		echo "installing into .venv (a few minutes, once)"; \
		$(PYTHON) -m venv .venv && cp requirements.txt .venv/wanted.txt && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check \
			-r .venv/wanted.txt -c requirements-cuda.txt && \
		mv .venv/wanted.txt .venv/requirements.txt; }
