# make repro | make test | make ui | make serve     (README.md gives the plain commands behind each)
# make bench-scale | make pins         (docs/scale.md, docs/requirements.md)
PYTHON ?= python3
BIN := .venv/bin
# A stage is `python -m …`: the environment's python must come first. (make 3.81, which macOS has,
# does not look there for a recipe's own first word, so these are called by their paths.)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# DVC unpickles what it finds there; its own choice, /var/tmp/dvc, is open to all users.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site

.PHONY: repro test ui serve conformance bench bench-scale pins readme lint git venv

repro: git venv
	$(BIN)/dvc repro

# Two processes: most of the time is waiting for one command after another.
test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

# MLflow's pages on this machine alone; another port: make ui PORT=5001
PORT ?= 5000
ui: venv
	@$(BIN)/python -m storyflower ui --port $(PORT)

# The service and its page on this machine alone; another port: make serve PORT=8001
serve: PORT = 8000
serve: venv
	@$(BIN)/python -m storyflower serve --port $(PORT)

# Installs the retired originals (mxnet, gluonnlp) into .venv-original and compares with them.
conformance: venv
	STORYFLOWER_CONFORMANCE=1 $(BIN)/python -m pytest -s tests/original/test_conformance.py

# Ours beside the notebook's loop, the Hugging Face Trainer's, pandas and gluonnlp (where
# `make conformance` has installed it); writes reports/bench.json.
bench: venv
	$(BIN)/python -m benchmarks.speed steps
	$(BIN)/python -m benchmarks.input

# Memory and time of each stage with many rows; 20 million need about 10 GB of disk in $TMPDIR.
ROWS ?= 20000000
bench-scale: venv
	$(BIN)/python -m benchmarks.scale --rows $(ROWS)

# The newest version of everything that pyproject.toml names or needs, on every platform.
pins:
	$(PYTHON) -m venv .venv-pins && .venv-pins/bin/python -m pip install --quiet uv
	.venv-pins/bin/uv pip compile --quiet --universal --upgrade --fork-strategy fewest --python-version 3.11 \
		--annotation-style line --no-header --extra pipeline --extra serve --extra test --output-file .venv-pins/all.txt pyproject.toml
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

# What DVC needs of git, said before the install.
git:
	@test -e .git || git rev-parse --git-dir >/dev/null 2>&1 || { \
		echo "error: no git repository here (a downloaded ZIP?), and DVC needs one:"; \
		echo "  git init -b main && git add -A && git commit -m 'start'"; exit 1; }
	@git var GIT_COMMITTER_IDENT >/dev/null 2>&1 || { \
		echo "note: git does not know your name, which 'dvc exp run' needs:"; \
		echo "  git config user.name 'Your Name' && git config user.email you@example.com"; }

# DVC writes its settings as ASCII, and dies of a Korean folder or name in them; the .pth gives the
# library that writes them utf-8. The copy gets its name last, so an install that was cut off is done again.
venv:
	@cmp -s requirements.txt .venv/requirements.txt || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
		echo "installing into .venv (a few minutes, once)"; \
		$(PYTHON) -m venv .venv && cp requirements.txt .venv/wanted.txt && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check \
			-r .venv/wanted.txt -c requirements-cuda.txt && \
		cp .dvc/configobj-utf8.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
		mv .venv/wanted.txt .venv/requirements.txt; }
