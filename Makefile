# make help lists what can be made. Nothing needs another target first: each sees to what it needs.
PYTHON ?= python3
PORT ?= 5000
VENV := .venv
PY := $(VENV)/bin/python
PEERS := benchmarks/.venv
TEST_PEERS := tests/peers/.venv
TWO := -n 2 --dist loadfile --no-loadscope-reorder # two files of tests at a time; ARGS="-n 0" runs them one by one
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test test-slow ui sweep lint test-gpu test-peers bench bench-peers bench-gpu tune soak docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.requirements ## train on the handwritten digits: data, training, MLflow record; ARGS="model=mlp" to override
	$(PY) src/train.py $(ARGS)

test: $(VENV)/.requirements-dev ## run the tests; ARGS="-k catalog" to choose
	$(PY) -m pytest $(TWO) $(ARGS)

ui: $(VENV)/.requirements ## show the runs in a browser, http://127.0.0.1:5000; PORT=5001 for another port
	@$(PY) src/ui.py $(PORT)

sweep: $(VENV)/.requirements ## workers x batch size on the digits
	$(PY) src/train.py -m loader.num_workers=0,1,2 loader.batch_size=32,128 $(ARGS)

tune: $(VENV)/.requirements ## find the cheapest loader setting that keeps a model fed; ARGS="dataset=... model=..."
	$(PY) src/tune.py $(ARGS)

lint: $(VENV)/.requirements-dev ## ruff, mypy, and the order of imports between packages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports

docs: ## write the table of keys in docs/configuration.md from the comments in conf/
	$(PYTHON) docs/keys.py

test-slow: $(VENV)/.requirements-dev ## the tests that kill processes, wait for servers or need a (simulated) accelerator, some minutes more
	$(PY) -m pytest -m slow $(TWO) $(ARGS)

soak: $(VENV)/.requirements-dev ## kill runs at random instants, and start many at once, for some ten minutes; ARGS="--kills 200"
	$(PY) tests/soak.py $(ARGS)

test-gpu: $(VENV)/.requirements-dev ## the tests that need an accelerator
	$(PY) -m pytest -m gpu $(ARGS)

test-peers: $(TEST_PEERS)/.requirements ## the Loader in Lightning, Fabric, accelerate and ignite, with an environment of their own
	$(TEST_PEERS)/bin/python -m pytest tests/peers $(ARGS)

bench: $(VENV)/.requirements-dev ## regenerate the tables of benchmarks/README.md; ARGS=verdict for one
	$(PY) benchmarks/run.py $(ARGS)

bench-gpu: test-gpu ## on a machine with an accelerator: its tests, then waits, copies and rates; table in benchmarks/README.md
	$(PY) benchmarks/run.py gpu

bench-peers: $(VENV)/.requirements-dev $(PEERS)/.requirements ## one file per sample against the other loaders, about 20 minutes
	$(PY) benchmarks/run.py peers

clean: ## remove the environment and caches; data and outputs are yours and stay
	rm -rf $(VENV) $(PEERS) $(TEST_PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after everything is installed, so an interrupted installation goes on where it was.
$(VENV)/.%: %.txt | $(VENV)/bin/pip
	@echo "installing $< (the first time: about 3 minutes and 1.8 GB)"
	$(PY) -m pip install --disable-pip-version-check -r $<
	@touch $@

$(VENV)/.requirements-dev: requirements.txt

# The peers' own, so that what they need never meets what the product needs.
$(PEERS)/.requirements: benchmarks/requirements.txt
$(TEST_PEERS)/.requirements: tests/peers/requirements.txt
$(PEERS)/.requirements $(TEST_PEERS)/.requirements:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check -r $<
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else "Python %d.%d: Feedrate needs 3.10 to 3.13; name one with make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv --clear $(VENV)
