# make quickstart   the main job: distils a Pong teacher into a student, in 8 to 14 minutes on 2 modern cores
# make quickstart-jax   the same with the JAX twin
# make test         the tests to run while you work, all except those marked slow: 5 to 10 minutes on 2 cores
# make test-all     every test, as in CI, including whole trainings and other long tests: 20 to 40 minutes
# make test-newest  some of the tests with the newest packages in the index, in a separate environment
# make test-lowest  the same with the lowest versions that pyproject.toml allows
# make mutants      breaks the wiring of the scripts in many places, one at a time, and checks that tests fail (hours)
# make system-deps  installs Slurm and Chromium from Debian's packages; the tests of clusters and of the site are skipped without them
# make twin-diff    shows how much the scripts of the two frameworks have in common
# make check        lint, lock file, docs: what CI runs after the tests

WORKERS ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP := .venv/bin/python -m pip install --quiet --constraint requirements/constraints.txt

.PHONY: quickstart quickstart-jax system-deps test test-all test-newest test-lowest mutants check twin-diff docs lock clean

# A processor without fast bfloat16 trains a smaller student; CONFIG=benchmark/configs/quickstart.yaml trains the large one there too.
FAST := $(shell grep --max-count=1 --only-matching --extended-regexp 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null)
CONFIG ?= benchmark/configs/quickstart$(if $(FAST),,_small).yaml

quickstart: .venv/run
	@echo 'Evaluation, teacher games, offline and online training, with $(CONFIG):'
	@echo '8 to 14 minutes on 2 modern cores. After its first updates it says how long it takes here. The fastest student is that of'
	@echo 'make quickstart CONFIG=benchmark/configs/quickstart_small.yaml'
	.venv/bin/python cleanrl/qdagger_dqn_atari_impalacnn.py --config $(CONFIG) $(FLAGS)
	.venv/bin/python -m cleanrl_utils.curves

quickstart-jax: .venv/run-jax
	.venv/bin/python cleanrl/qdagger_dqn_atari_jax_impalacnn.py --config benchmark/configs/quickstart.yaml $(FLAGS)
	.venv/bin/python -m cleanrl_utils.curves

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
system-deps:
	$(SUDO) apt-get update --quiet --quiet
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --no-install-recommends --yes \
		slurmctld slurmd slurm-client munge chromium

# Two processes with one thread each: on two cores this is faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test: .venv/dev
	$(PYTEST) -m 'not slow'

test-all: .venv/dev
	$(PYTEST)

SOME := maths replay twins dqn fqi formats
SOME_TESTS := python -m pytest --numprocesses $(WORKERS) -m 'not slow' $(SOME:%=tests/test_%.py)
ALL_EXTRAS := '.[atari,jax,fqi,flappy,plots,video,dev]'

test-newest: .venv/bin/python
	$(PYTHON) -m venv .venv/newest
	.venv/newest/bin/python -m pip install --quiet --upgrade --editable $(ALL_EXTRAS)
	OMP_NUM_THREADS=1 .venv/newest/bin/$(SOME_TESTS)

UV_FLAGS ?= --torch-backend cpu
test-lowest: .venv/lint
	.venv/poetry/bin/uv venv --quiet --clear --python $(PYTHON) .venv/lowest
	VIRTUAL_ENV=.venv/lowest .venv/poetry/bin/uv pip install --quiet --resolution lowest-direct $(UV_FLAGS) --editable $(ALL_EXTRAS)
	OMP_NUM_THREADS=1 .venv/lowest/bin/$(SOME_TESTS)

mutants: .venv/dev
	.venv/bin/python -m tests.support.mutants $(ARGS)

check: .venv/dev .venv/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/poetry/bin/poetry check --lock
	.venv/poetry/bin/uv lock --check --quiet
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# Shows how much the scripts of the two frameworks have in common; with ARGS=--lines, what differs.
twin-diff:
	$(PYTHON) -m tests.support.twin_diff $(ARGS)

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve

# Recreates an environment that an older command made with another Python. (Done while parsing: make looks for the file only once.)
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
ifneq ($(wildcard .venv/bin/python),)
  ifneq ($(shell .venv/bin/python -c '$(FITS)' 2>&1 || echo other),)
    $(info .venv has another Python than 3.11 to 3.14: making it anew)
    $(shell rm -rf .venv)
  endif
endif

# Installs once, and again when the requirements have changed. Each target is a stamp file in the environment.
.venv/bin/python:
	@$(PYTHON) -c '$(FITS)' || { echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is another: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml requirements/constraints.txt
	$(PIP) --editable '.[atari,plots]'
	touch $@

.venv/run-jax: .venv/run
	$(PIP) --editable '.[atari,jax,plots]'
	touch $@

.venv/dev: .venv/run
	$(PIP) --editable '.[atari,jax,fqi,flappy,plots,video,trackio,docs,dev]'
	$(PIP) rliable 'pandas<3'  # tests compare statistics with it; not in an extra, because Poetry takes very long to lock its dependencies
	touch $@

# Poetry has many dependencies and checks only one file, so it gets a separate environment. uv, which checks another file, shares it.
.venv/lint: .venv/bin/python
	$(PYTHON) -m venv .venv/poetry
	.venv/poetry/bin/python -m pip install --quiet 'poetry==2.5.1' 'uv==0.13.9'
	touch $@

lock: .venv/lint
	.venv/poetry/bin/poetry lock
	.venv/poetry/bin/uv lock

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis
