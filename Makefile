# Every target starts from nothing: `setup` makes the environment and builds the native code when something changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPP_FILES := $(shell find csrc tests/cuda_emulation tests/simulated_device -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup demo test cuda-check gpu bench lint format test-sanitize clean

$(VENV)/installed: requirements.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/built: $(VENV)/installed $(CPP_FILES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

setup: $(VENV)/built

demo: setup
	$(BIN)/fastssl demo

# Two processes; each keeps the files it has begun, so that what a file builds is built once.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What can be known of a GPU without one: its kernels compile for sm_80 and sm_90a, and no tensor stays on the CPU.
# Compilations are kept in build/cuda-check, so that what did not change is not compiled again. Without nvcc in CUDA_HOME
# or PATH the CUDA half is skipped, as it says.
cuda-check: setup
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/cuda_check/check_*.py
	$(BIN)/python -m pytest tests/simulated_device/check_*.py

bench: setup
	$(BIN)/python -m benchmarks

# On a machine with a CUDA GPU: its tests, its ceilings, every operator and a training step beside their peers. By the
# Python that has a PyTorch for it already, where there is one, in place; otherwise by the environment of `setup`.
gpu:
	if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then \
		$(PYTHON) setup.py --quiet build_ext --inplace && $(PYTHON) -m benchmarks.gpu; \
	else \
		$(MAKE) setup && $(BIN)/python -m benchmarks.gpu; \
	fi

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The operators and the data code under the address and undefined-behaviour sanitizers, in a copy of the package.
SANITIZED := build/sanitized
test-sanitize: setup
	FASTSSL_BUILD=sanitize $(BIN)/python setup.py --quiet build --build-lib $(SANITIZED)
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED) OMP_NUM_THREADS=2 \
	$(BIN)/python -P -m pytest --import-mode=append -m "native or host" tests/ops tests/data

clean:
	rm -rf build dist *.egg-info fastssl/*.so $(VENV)/built
