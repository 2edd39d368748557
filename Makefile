# Everything runs in .venv, made from requirements.lock. Needed before: Python 3.11, 3.12 or 3.13 with its venv module, git, make.
# PYTHON=... names another interpreter than the first of these that is here; PIP='uv pip' installs with uv.
#
#   make demo      the whole run on params.yaml, with the page results/report/index.html at the end; stopped, it goes on with
#                  the same command (after kill -9 or a power cut: .venv/bin/snakemake --unlock, then make demo)
#   make test      the tests                      make lint     ruff, snakefmt, snakemake --lint, mypy
#   make format    write the house format         make smoke    the whole run with tiny settings, in a copy of this folder
#   make world     pre-train the embedded world   make lock     pin the newest versions that fit together
#   make rehearse  the whole run of each real preset with stand-ins for its models and prompts: docs/verification.md
#   make reproduce run the commit again from scratch in a fresh clone, and compare every output's hash with dvc.lock
#   make trackers  wandb and trackio, for RTDMD_TRACKERS: docs/configuration.md
#   make pull      the published results and the run cache from the DVC remote; then neither engine has anything to do
#   make dag       docs/dag.svg, the stages and their dependencies (needs graphviz)
#   make docs      write into the pages what the commands that they show print
#   make generated write params.yaml (preset world), its JSON schema and docs/keys.md from rtdmd/config
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test slurm slurm-test trackers trackers-test lint format types world smoke rehearse reproduce pull dag docs lock generated

# The first of these that runs and has venv makes .venv; pyproject.toml says the same versions.
PYTHON ?= python3.11 python3.12 python3.13
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FOUND = $(or $(shell for name in $(PYTHON); do "$$name" -c '$(CHECK)' 2> /dev/null && { echo "$$name"; break; }; done),\
  $(error none of "$(PYTHON)" is a Python 3.11, 3.12 or 3.13 with its venv module: install python3 and python3-venv, or name one with PYTHON=/its/path))
BIN := $(CURDIR)/.venv/bin
PIP ?= "$(BIN)/python" -m pip
STAMP := .venv/installed-from-lock
CORES ?= all
SMK := Snakefile workflow/rules/*.smk
# Two threads wait for each other by spinning for a moment, then asleep: never spinning costs 2.4 times as much on idle cores, always
# spinning ten times as much on busy ones. The bytes are the same.
export GOMP_SPINCOUNT ?= 30000
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv

help:
	@sed -n 's/^#  //p' Makefile

# What pip installs is compiled, on all cores (pip itself takes one, a minute): without that, where Python may not keep its byte code
# (PYTHONDONTWRITEBYTECODE, a folder that is not ours), every start of Snakemake compiles for two seconds, of DVC for half a second.
# Some packages carry files for other versions of Python, which do not compile.
$(STAMP): requirements.lock pyproject.toml
	$(FOUND) -m venv .venv
	$(PIP) install --quiet --disable-pip-version-check --no-compile --requirement requirements.lock
	"$(BIN)/python" -W ignore -m compileall -qq --workers 0 .venv/lib || true
	$(PIP) install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	@rtdmd params check
	snakemake --cores $(CORES)
	@echo "The report: $(CURDIR)/results/report/index.html"

# A real Slurm of two nodes, in a temporary folder: docs/slurm.md. Debian and Ubuntu; installing needs root.
slurm-test: export RTDMD_SLURM_TEST = long
slurm-test: $(STAMP) slurm
	pytest tests/workflow/test_slurm.py tests/workflow/test_slurm_nodes.py

slurm:
	PATH=$$PATH:/usr/sbin which slurmctld slurmd munged sbatch > /dev/null || \
	  { apt-get update && apt-get install --yes --no-install-recommends slurmctld slurmd slurm-client munge; }

# They are in no lock: wandb is large, and trackio asks for pillow below 13. That wish is not granted, because pip would replace the pillow
# that results are made with; trackio 0.43 works with 13.
trackers: $(STAMP)
	$(PIP) install --quiet --disable-pip-version-check --constraint requirements.lock wandb \
	  brotli gradio-client httpx python-multipart starlette 'uvicorn[standard]'
	$(PIP) install --quiet --disable-pip-version-check --no-deps trackio

trackers-test: trackers
	pytest tests/train/engine/trackers_themselves.py

# The tests' tensors are tiny: a second thread only waits. A file's tests stay together: what they share is made once. The files keep
# their order, in which those that take long come first (tests/conftest.py).
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)
	pytest --numprocesses auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

lint: $(STAMP) types
	ruff check .
	ruff format --check .
	snakefmt --check $(SMK)
	snakemake --lint
	python -m tools.docs
	lint-imports --no-cache
	@rtdmd params world | cmp --silent - params.yaml || \
	  { echo 'params.yaml is not what `rtdmd params world` prints: `make generated`, or keep your settings out of the commit'; false; }

format: $(STAMP)
	ruff check --fix-only .
	ruff format .
	snakefmt $(SMK)

types: $(STAMP)
	mypy

world: $(STAMP)
	snakemake world --cores $(CORES)

smoke: $(STAMP)
	workflow/smoke.sh

rehearse: $(STAMP)
	for name in sd3m sd35m flux1-dev flux2-klein-4b flux2-klein-9b; do rtdmd rehearse --preset $$name; done

reproduce: $(STAMP)
	rtdmd reproduce

pull: $(STAMP)
	dvc pull --run-cache
	dvc status
	snakemake --dry-run

# Without the target `all`, which reads everything.
dag: $(STAMP)
	mkdir -p .rtdmd
	snakemake --rulegraph 2> .rtdmd/dag.log | sed '/^\t0\[/d; / -> 0$$/d' | dot -Tsvg -Grankdir=LR > .rtdmd/dag.svg
	mv .rtdmd/dag.svg docs/dag.svg

# What commands print, into the pages that show it.
docs: $(STAMP)
	python -m tools.docs --write

generated: $(STAMP)
	rtdmd params world > .rtdmd-params && mv .rtdmd-params params.yaml
	rtdmd schema > workflow/schemas/params.schema.json
	python -m tools.keys

# The pins are those of the first Python found; then each must have a wheel for every version of Python that pyproject.toml
# allows. Two packages have none for any version: they are pure Python, and pip builds them.
lock:
	$(FOUND) -m venv --clear .rtdmd/lock
	.rtdmd/lock/bin/pip install --quiet --editable '.[dev]'
	{ sed -n '/^#/p' requirements.lock; .rtdmd/lock/bin/pip freeze --all --exclude pip --exclude-editable \
	  | sed 's/+.*//' | tr 'A-Z_' 'a-z-' | LC_ALL=C sort; } > .rtdmd/requirements.lock
	.rtdmd/lock/bin/pip install --quiet uv
	for version in 3.11 3.12 3.13; do \
	  .rtdmd/lock/bin/uv pip compile --quiet --python-version $$version --only-binary :all: --no-binary antlr4-python3-runtime \
	    --no-binary connection-pool .rtdmd/requirements.lock > .rtdmd/lock/$$version.txt; \
	done
	mv .rtdmd/requirements.lock requirements.lock
	.rtdmd/lock/bin/python workflow/envs/from_lock.py
