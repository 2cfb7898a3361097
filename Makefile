# make book    build the book; prints the page to open
# make test    unit tests, notebooks, style
# make browser checks the pages of the built book in a browser
# All set up .venv by themselves, once. They need Python 3.11 or newer and make, no more.
#
#   make book PYTHON=python3.12                                     another Python
#   make book TORCH_INDEX=https://download.pytorch.org/whl/cpu      PyTorch's small CPU build (on Linux the usual one
#                                                                   brings several GB of CUDA)

PYTHON ?= python3
TORCH_INDEX ?=
# Exact versions; the weekly run gives other files.
CONSTRAINTS ?= constraints.txt

BIN := .venv/bin
INSTALLED := .venv/.installed
# "torch==2.13.0", as locked, or plain "torch" where the constraints do not name it
TORCH ?= torch$(shell sed -n 's/^torch\(==.*\)/\1/p' $(CONSTRAINTS))

# The kernel "python3" is the one of .venv, whatever other kernels the user has; inline figures need MPLBACKEND unset.
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
export PYTHONHASHSEED := 0
unexport MPLBACKEND

# Install lsbook in the environment $(1), with pip's further options $(2).
define install
$(if $(TORCH_INDEX),$(1)/bin/pip install --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)",)
$(1)/bin/pip install $(2) "$(TORCH)" -e ".[book,test]"
endef

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "$(PYTHON) is missing or older than Python 3.11; name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	exit 1; }
endef

.PHONY: help book test browser bench deep lint format lock clean distclean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

# Locked versions are checked by their hashes; PyTorch is not among them: its CPU and CUDA builds share a version.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) hashes.txt
	$(check_python)
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(if $(filter constraints.txt,$(CONSTRAINTS)),$(BIN)/pip install --no-deps --require-hashes -r hashes.txt,)
	$(call install,.venv,-c $(CONSTRAINTS))
	touch $@

book: $(INSTALLED) ## build the book into _build/html
	$(BIN)/python -m lsbook sample totalseg || echo "No sample CT: going on without it, the chapters show the phantom."
	$(BIN)/python -m lsbook warm
	rm -rf _build
	$(BIN)/jupyter-book build . -W -n --keep-going
	$(BIN)/python tools/check_book.py
	@echo "Open $(CURDIR)/_build/html/index.html"

test: lint ## style, unit tests and notebooks, with durations
	$(BIN)/python -m lsbook warm
	MPLBACKEND=agg $(BIN)/pytest tests --durations=15
	$(BIN)/pytest book --nbval-lax --nbval-current-env --nbval-cell-timeout=600 --durations=0

browser: $(INSTALLED) ## every page of the built book in headless Chromium; tests/browser/install gets what it needs
	LSBOOK_BROWSER=required $(BIN)/pytest tests/browser

bench: $(INSTALLED) ## benchmarks, into results/; on a machine that does nothing else; DATA=FOLDER of CT scans
	$(BIN)/python -m lsbook warm
	$(BIN)/python -m benchmarks $(if $(DATA),--data "$(DATA)",)
	$(BIN)/python tools/measure_chapters.py

deep: $(INSTALLED) ## long checks: kills, mutants, fuzz, twice, coverage, versions, into results/; about two hours
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.kills
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.mutation
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.twice
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m deep.versions build/versions

lint: $(INSTALLED) ## style of code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify book/*.ipynb

format: $(INSTALLED) ## put code and notebooks in style, write the API page anew
	$(BIN)/python tools/write_api.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id book/*.ipynb

lock: ## make constraints.txt anew; TORCH=torch==X.Y.Z moves PyTorch
	$(check_python)
	$(PYTHON) -m venv --clear build/lock
	$(call install,build/lock,)
	echo "# Made by 'make lock': pip freeze of a new environment, Python $$(build/lock/bin/python -c \
	'import platform; print(platform.python_version())'), with .[book,test] in it." > build/constraints.txt
	build/lock/bin/pip freeze --exclude lsbook | sed 's/+cpu$$//' >> build/constraints.txt
	build/lock/bin/pip install uv
	grep -v -e '^#' -e '^torch==' build/constraints.txt > build/pins.txt
	(sed -n '/^#/p' hashes.txt; build/lock/bin/uv pip compile build/pins.txt --no-deps --generate-hashes --no-header \
	--no-annotate) > build/hashes.txt
	mv build/constraints.txt constraints.txt
	mv build/hashes.txt hashes.txt

clean: ## remove what was built
	rm -rf _build build .pytest_cache .ruff_cache .hypothesis

distclean: clean ## remove the environment too
	rm -rf .venv lsbook.egg-info
