# The commands people repeat. Everything is installed into $(VENV), nothing outside it.
#   make demo        caption the sample pictures        make test    all tests, then the linters
#   make bench       race every room, quickly           make asan    the native rooms, sanitized
#   make gpu         all that needs a GPU, 9 minutes    make aot     Triton 3.6 compiles the rooms
PYTHON ?= python3
VENV   ?= .venv
# A pinned build, for the same numbers everywhere. For the newest CUDA build: make TORCH=torch demo
TORCH  ?= torch==2.13.0

BIN        := $(VENV)/bin
TOOLS      := $(VENV)/.stamp-tools-$(subst /,_,$(subst =,-,$(TORCH)))
NATIVE     := $(or $(BLIP_FAST_NATIVE),1)
INSTALLED  := $(VENV)/.stamp-installed-$(NATIVE)
TESTABLE   := $(VENV)/.stamp-testable-$(NATIVE)
STALE      := $(VENV)/.stamp-installed-* $(VENV)/.stamp-testable-*
SOURCES    := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
export BLIP_FAST_NATIVE := $(NATIVE)
# Without isolation the build sees the torch that is installed, and downloads no second one.
INSTALL    := $(BIN)/pip install --no-build-isolation

.PHONY: help demo test lint format bench asan gpu aot dali ray clean
.DELETE_ON_ERROR:

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(INSTALLED)    ## caption, match and filter sample pictures, with nothing to download by hand
	$(BIN)/blip-fast demo

# Tests run in so many processes at a time. Their threads wait asleep, not to take each other's cores.
WORKERS ?= 2
PYTEST  := OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n $(WORKERS) --dist worksteal

# The scripts and not `python -m`: that would put ./kernels on the path as a package of its own.
test: $(TESTABLE)     ## pytest, then lint
	$(PYTEST)
	@$(MAKE) --no-print-directory lint

lint: $(TESTABLE)     ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p blip_fast

format: $(TESTABLE)   ## let ruff rewrite the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# BENCH_SECONDS=2 make bench: longer turns. One room, one table, saved: blip-fast bench ROOM --save
bench: $(TESTABLE)    ## every room against plain PyTorch, in less than a minute
	$(BIN)/pytest bench --benchmark-columns=median,iqr,min,rounds --benchmark-sort=name

# A library of its own, in build/asan. Python lets go of memory at its end by design: no leaks are
# looked for. What runs no code of ours, or compiles, is left out for time. GCC's runtime alone.
ASAN_TESTS ?= tests/kernels -k 'not reference and not compiled and not operators and not triton and not cuda_compiles'
RUNTIMES    = $(shell for name in libasan.so libstdc++.so; do $(CXX) -print-file-name=$$name; done)
asan: $(TESTABLE)     ## the native rooms' tests under AddressSanitizer and UBSan
	@ls $(RUNTIMES) >/dev/null || { echo "$(CXX) has no libasan; set CXX to a g++"; exit 1; }
	$(BIN)/cmake -S . -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_CXX_COMPILER=$(CXX) -DPython_EXECUTABLE=$(abspath $(BIN))/python -DBLIP_FAST_ASAN=ON
	$(BIN)/cmake --build build/asan
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	BLIP_FAST_NATIVE_LIBRARY=$(CURDIR)/build/asan/libblip_fast_cpu.so \
	  $(PYTEST) --capture=sys $(ASAN_TESTS)

# The packages of some extras alone: installing `.[extra]` would compile the native library again.
define add_extras
$(BIN)/pip install $$($(BIN)/python -c 'import sys; from importlib.metadata import requires; \
  print(*(r.partition(";")[0] for r in requires("blip-fast") if {*r.split("\"")[1::2]} & {*sys.argv}))' $(1))
endef

# The imports come first: a library that cannot be loaded is an error here, not a skipped test.
dali: $(TESTABLE)     ## NVIDIA's JPEG decoders (0.6 GB more), tested on the CPU, and a GPU if any
	$(call add_extras,dali nvimgcodec)
	$(BIN)/python -c 'import nvidia.dali, nvidia.nvimgcodec'
	$(BIN)/pytest tests/images/test_device_decoders.py tests/capfilt/test_device_decoding.py

ray: $(TESTABLE)      ## Ray (0.4 GB more), and CapFilt on several workers of this machine
	$(call add_extras,ray)
	$(BIN)/python -c 'import ray.data'
	$(BIN)/pytest tests/capfilt/test_ray_run.py

# On a machine whose own Python has torch with CUDA: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu:             ## every room on a GPU: gate, sanitizer, model, races; results in bench/results
	$(GPU_PYTHON) -m bench.gpu

# Another release of Triton than the environment's, laid before it on the path.
TRITON     ?= 3.6.0
AOT_FOLDER := $(VENV)/triton-$(TRITON)
aot: $(TESTABLE) $(AOT_FOLDER)/.stamp   ## compile the rooms for GPUs with release $(TRITON) of Triton
	PYTHONPATH=$(AOT_FOLDER) $(BIN)/pytest tests/kernels/test_triton_compiles.py

$(AOT_FOLDER)/.stamp: $(TOOLS)
	$(BIN)/pip install --no-deps --target $(AOT_FOLDER) 'triton==$(TRITON)'
	touch $@

clean:           ## remove the environment and everything that was built
	rm -rf $(VENV) build dist blip_fast/lib *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(TOOLS):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.stamp-*
	$(BIN)/pip install '$(TORCH)'
	$(BIN)/pip install 'setuptools>=77' wheel 'cmake>=3.25' ninja
	touch $@

$(INSTALLED): $(TOOLS) $(SOURCES)
	@$(find_compiler)
	@rm -f $(STALE)
	$(INSTALL) -e .
	touch $@

$(TESTABLE): $(TOOLS) $(SOURCES)
	@$(find_compiler)
	@rm -f $(STALE)
	$(INSTALL) -e '.[test]'
	touch $(INSTALLED) $@

define find_compiler
[ $(NATIVE) = 0 ] || command -v "$${CXX:-c++}" >/dev/null || \
command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
echo "No C++ compiler was found (CXX=$${CXX:-c++}). Install one (Debian: apt install g++),"; \
echo "or set BLIP_FAST_NATIVE=0 to install pure Python, which is slower on a CPU."; exit 1; }
endef
