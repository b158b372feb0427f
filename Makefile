# `make train` and `make test` do all that they need on a machine with Python 3.10 to 3.12, pip and
# make: the environment in .venv, its dependencies, detectron2, this project. `make help` lists all.

# Empty for the newest torch that was tried; oldest for the oldest, in an environment of its own.
TORCH   ?=
VENV    := .venv$(TORCH:%=-%)
PY      := $(VENV)/bin/python
CONFIG  ?= configs/quick/mask_rcnn_r18_fpn_ws_gn.py
# A project's config is trained by the script beside its configs/.
SCRIPT  := $(if $(filter projects/%,$(CONFIG)),$(firstword $(subst /configs/, ,$(CONFIG)))/)train_net.py
# configs/quick/name.py writes to output/quick/name, projects/x/configs/name.py to output/x/name
OUTPUT  ?= output/$(subst /configs/,/,$(patsubst configs/%,%,$(patsubst projects/%,%,$(basename $(CONFIG)))))
NUM_GPUS ?=
# Of test-gpu: cuda, or cpu to rehearse it.
DEVICE  ?= cuda
ARGS    ?=
PYTHON  ?=

# The first of these that runs and has the right version makes .venv. Running it is the test: the
# shims of pyenv are on PATH for versions that are not active, and fail only when called.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.12 python3.11 python3.10)
IS_SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))

REQUIREMENTS := requirements.txt requirements-test.txt requirements-dev.txt
ifeq ($(TORCH),oldest)
$(VENV)/.dependencies: requirements-oldest.txt
$(VENV)/.dependencies: export PIP_CONSTRAINT = requirements-oldest.txt
else ifneq ($(TORCH),)
$(error TORCH='$(TORCH)' is unknown; allowed: oldest, or nothing for the newest)
endif

# Read by tools/install_detectron2.py: empty, wheel or git.
DETECTRON2 ?=
export DETECTRON2

# A folder of wheels, for a machine without a network: pip then asks no index.
WHEELS ?=
SYSTEM_TORCH ?=
ifneq ($(WHEELS),)
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELS))
endif
# Of the machine that `make wheels` collects for.
PYTHON_VERSION ?= 3.12
PLATFORM ?= x86_64

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup wheels train test coverage test-slow test-no-avx test-gpu gpu-docs test-slurm recipe-book format lint clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  train:     CONFIG=$(CONFIG)"
	@echo "             OUTPUT=$(OUTPUT)"
	@echo "             NUM_GPUS=  default: the machine's, 2 at most; 2 CPU processes without a GPU"
	@echo "  all three: ARGS=      more arguments, e.g. ARGS='train.max_iter=20' or ARGS='-k norms'"
	@echo "  setup:     PYTHON=    the Python 3.10 to 3.12 behind .venv, used when .venv is made"
	@echo "             TORCH=oldest  the oldest torch that is supported, in .venv-oldest; so too with test"
	@echo "             DETECTRON2=git  build upstream's source in the place of the wheel"
	@echo "             WHEELS=folder SYSTEM_TORCH=1  without network: those wheels, PYTHON's torch"
	@echo "  wheels:    PYTHON_VERSION=$(PYTHON_VERSION) PLATFORM=$(PLATFORM)  of the machine they are for"

# --- set-up ----------------------------------------------------------------------------------
# One stamp a step, inside .venv, touched when the step is done: a step that failed or was stopped
# is done again, and without .venv all are.

setup: $(VENV)/.project ## make .venv with all dependencies, detectron2 and this project

$(VENV)/.created:
	@for python in $(PYTHONS); do \
	  if "$$python" -c '$(IS_SUPPORTED)' 2>/dev/null; then \
	    echo "[setup 1/4] making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
	    exec "$$python" tools/make_venv.py create $(VENV) \
	      $(if $(SYSTEM_TORCH),--system-torch); \
	  fi; \
	done; \
	echo "No Python 3.10, 3.11 or 3.12 that runs; tried: $(PYTHONS)." >&2; \
	echo "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	exit 1
	@touch $@

# A stopped pip may leave half a package that it takes for whole at the next run. Without .created
# that run starts from an empty environment; pip's cache saves the downloads.
$(VENV)/.dependencies: $(VENV)/.created $(REQUIREMENTS)
	@rm -f $(VENV)/.created
	@printf '[setup 2/4] '
	@$(PY) tools/make_venv.py install $(REQUIREMENTS) $(if $(WHEELS),--wheels $(WHEELS))
	@touch $(VENV)/.created
	@touch $@

$(VENV)/.detectron2: $(VENV)/.dependencies tools/install_detectron2.py
	@printf '[setup 3/4] getting detectron2 ...\n'
	@$(PY) tools/install_detectron2.py
	@touch $@

$(VENV)/.project: $(VENV)/.detectron2 setup.py pyproject.toml
	@echo "[setup 4/4] installing this project in development mode"
	@$(PY) -m pip install --quiet --no-input --no-deps --no-build-isolation --editable .
	@touch $@

wheels: setup ## collect what a machine without network needs beside its torch, in wheels/
	$(PY) tools/collect_wheels.py wheels requirements.txt requirements-test.txt \
	  --python-version $(PYTHON_VERSION) --platform $(PLATFORM)

# --- use -------------------------------------------------------------------------------------

train: setup ## train CONFIG (default: the quick recipe, on the data that the package embeds)
	@num_gpus="$(NUM_GPUS)"; \
	: "$${num_gpus:=$$($(PY) -c 'import torch; print(min(2, torch.cuda.device_count() or 2))')}"; \
	set -x; \
	$(PY) $(SCRIPT) --config-file $(CONFIG) --num-gpus "$$num_gpus" \
	  train.output_dir=$(OUTPUT) $(ARGS)

# More threads only slow down the small tensors of tests, and several processes at once even more.
test coverage test-slow test-no-avx test-slurm: export OMP_NUM_THREADS = 1

test: setup ## run the tests, but the slow ones
	$(PY) -m pytest $(ARGS)

coverage: setup ## run the same tests; fails if they run fewer lines than pyproject.toml says
	$(PY) -m pytest $(ARGS) --cov

test-slow: setup ## run the slow tests
	$(PY) -m pytest -m slow $(ARGS)

# Those whose results could depend on the order of additions, and so on the processor.
test-no-avx: export ATEN_CPU_CAPABILITY = default
test-no-avx: setup ## run the tests of several processes as on a processor without AVX
	$(PY) -m pytest tests/norms/test_distributed*.py tests/norms/test_sync.py \
	  tests/engine/test_processes.py tests/engine/test_exact_resume.py tests/engine/test_buffers.py \
	  tests/engine/test_sync_groups.py tests/engine/test_loss_normalization.py $(ARGS)

test-gpu: setup ## on a machine with a GPU: what no CPU can show, into output/gpu, in 8 minutes
	$(PY) tools/test_gpu.py --device $(DEVICE) $(ARGS)

gpu-docs: setup ## write the last test-gpu run into docs/performance.md
	$(PY) tools/test_gpu.py --write-docs

test-slurm: setup ## run the tests on a real SLURM of two nodes; as root, installs Debian's packages
	@sh tests/slurm/install.sh
	$(PY) -m pytest -m slurm $(ARGS)

recipe-book: setup ## write docs/recipes.md from the recipes
	$(PY) tools/list_recipes.py --write $(ARGS)

format: setup ## rewrite the files as lint wants them, where ruff can
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

lint: setup ## check style, format and types; fails on any finding
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy wsbcn_d2 slurm tools train_net.py setup.py

clean: ## delete outputs and caches, keep .venv
	rm -rf output build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage*
	find . -name '.venv*' -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## clean, and delete .venv
	rm -rf .venv .venv-oldest
