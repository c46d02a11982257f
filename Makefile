# make test and make demo do all set-up themselves; EXTRA=cuda for GPUs, TORCH_INDEX=URL for one more package index.
EXTRA ?= cpu
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.setup-$(EXTRA)
ALONE := cluster faults jobs workflows
QUICK := "not soak and not slow"
# Ray's ports listen on every interface; a token is the only guard.
export RAY_AUTH_MODE ?= token
export TORCH_INDEX

.PHONY: help setup format check test slow soak demo docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: $(STAMP)  ## make .venv with everything in it

$(STAMP): pyproject.toml deploy/constraints/$(EXTRA)-py311.txt deploy/packaging/setup.sh deploy/packaging/fbgemm-gpu-cpu-shim/pyproject.toml
	deploy/packaging/setup.sh $(EXTRA)
	@rm -f $(VENV)/.setup-* && touch $@

format: $(STAMP)  ## bring the code into the form that check wants
	$(VENV)/bin/ruff check --quiet --fix .
	$(VENV)/bin/ruff format --quiet .

check: $(STAMP)  ## format, lint, types, layers
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

test: $(STAMP)  ## the tests that are not slow: two at a time, then those that start Ray or many processes one by one
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m $(QUICK) -n 2 --dist loadfile --durations=5 $(ALONE:%=--ignore=tests/%)
	$(RUN) -m pytest -q -m $(QUICK) --durations=25 $(ALONE:%=tests/%)

slow: $(STAMP)  ## the slow tests: whole jobs on clusters, killed, stopped, submitted, on S3
	$(RUN) -m pytest -q -m "slow and not soak" --durations=12 tests

soak: $(STAMP)  ## the tests that take long (every kill point, lost nodes and drivers, …), then an hour's look for leaks
	$(RUN) -m pytest -q -m soak --durations=12 -s tests
	$(RUN) tests/benchmarks/soak.py --minutes 60

demo: $(STAMP)  ## ml-100k from the ratings to a better policy, under runs/demo/
	$(RUN) jobs/prepare.py --config jobs/configs/demo/prepare.yaml
	$(RUN) jobs/pretrain.py --config jobs/configs/demo/pretrain.yaml
	$(RUN) jobs/posttrain.py --config jobs/configs/demo/bc_continued.yaml
	$(RUN) jobs/posttrain.py --config jobs/configs/demo/exp_rsft.yaml
	$(RUN) jobs/evaluate.py --config jobs/configs/demo/evaluate.yaml
	@echo 'next: your own data (README), or all methods beside each other:' \
	    '. $(VENV)/bin/activate && python jobs/reproduce.py preset=ml-100k output=runs/reproduce/ml-100k'

docs: $(STAMP)  ## regenerate docs/configuration.md
	$(RUN) -m retilt.reference > docs/configuration.md

clean:  ## remove the environment, the demo's results and all caches
	rm -rf $(VENV) runs/demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
