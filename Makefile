# Each target sets itself up: `make train RECIPE=gemma-tools` works in a fresh clone.
#   SCALE=auto|full|tiny   DATA=conversations.jsonl   ARGS="--learning_rate 1e-4"   (any trl.SFTConfig field)
#   GPUS=8 ENGINE=ddp|fsdp2|zero2|zero3   (make train, make check: that many processes; without GPUs they are CPU processes)
#   BASE=trained|original|measured   (make merge)     RUN="gemma-tools google/gemma-3-4b-it"   (make eval: one or several)

PYTHON ?= python3
RECIPE ?= gemma-tools
RUN ?= runs/$(RECIPE)
SCALE ?= auto
ARGS ?=

BIN := .venv/bin
DATA_ARG := $(if $(DATA),--data $(DATA))
ENGINES := ddp fsdp2 zero2 zero3
ENGINE ?= ddp
LAUNCH = $(BIN)/accelerate launch --config_file launch/$(ENGINE).yaml --num_processes $(GPUS) --main_process_port 0 -m sft_recipes
ON_RECIPE = $(if $(and $(GPUS),$(filter train check,$@)),$(LAUNCH),$(BIN)/sft-recipes) $@ $(RECIPE) --scale $(SCALE) $(DATA_ARG) $(ARGS)

ifeq ($(filter $(ENGINE),$(ENGINES)),)
$(error ENGINE=$(ENGINE): it is one of $(ENGINES))
endif
ifneq ($(and $(filter train check,$(MAKECMDGOALS)),$(filter command line,$(origin ENGINE)),$(if $(GPUS),,none)),)
$(error ENGINE=$(ENGINE) takes a number of processes: GPUS=8)
endif

.PHONY: setup train check show plan list eval merge chat report test several fuzz lint format bench gpu kill tiny-base tiny-data code-base scratch-bases notebook

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train check show plan: setup
	@$(ON_RECIPE)

list: setup
	@$(BIN)/sft-recipes list

eval chat report: setup
	@$(BIN)/sft-recipes $@ $(RUN) $(ARGS)

merge: setup
	@$(BIN)/sft-recipes merge $(RUN) $(if $(BASE),--base $(BASE)) $(ARGS)

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(ARGS)

# Whole runs on two CPU processes under every engine; ZeRO where DeepSpeed is installed.
several: setup
	HF_HUB_OFFLINE=1 SEVERAL=1 $(BIN)/pytest tests/test_several.py $(ARGS)

# Mutated data files, recipes, run folders and command lines, by the thousand (some 20 minutes on one core); a part is in `make test`.
fuzz: setup
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --files 20000 --commands 2000 $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

# Every figure on a GPU, as one table: eight minutes; SCALE=tiny runs all of it but the kernels, on the CPU.
gpu: setup
	@HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu --scale $(SCALE) $(ARGS)

# Runs killed at 50 random moments, then told to end at 50, and continued: every weight has to be that of the run let be (a quarter of an hour).
kill: setup
	$(BIN)/python tests/kill.py --times 50
	$(BIN)/python tests/kill.py --times 50 --signal SIGTERM

# The embedded model and data of the tiny scale, made anew (23 minutes on 2 cores; the result is in the repository).
tiny-base: setup
	$(BIN)/python -m sft_recipes.tiny.base

tiny-data: setup
	$(BIN)/python -m sft_recipes.tiny.conversations

# The embedded model of llama-code's tiny scale, made anew (4 minutes on one core; the result is in the repository).
code-base: setup
	$(BIN)/python -m sft_recipes.tiny.code_base

# The bases of the recipes that train from scratch: a configuration and a tokenizer each.
scratch-bases: setup
	$(BIN)/python -m sft_recipes.tiny.scratch

# The notebook, executed anew with its outputs (4 minutes).
notebook: setup
	HF_HUB_OFFLINE=1 $(BIN)/python tests/e2e/test_notebook.py
	@rm -rf notebooks/runs
