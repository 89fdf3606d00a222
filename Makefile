# The commands people repeat. Everything is installed into $(VENV), nothing outside it.
#   make demo        caption the sample pictures        make test    all tests, then the linters
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

.PHONY: help demo test lint format clean
.DELETE_ON_ERROR:

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(INSTALLED)    ## caption, match and filter sample pictures, with nothing to download by hand
	$(BIN)/blip-fast demo

# The scripts and not `python -m`: that would put ./kernels on the path as a package of its own.
test: $(TESTABLE)     ## pytest, then lint
	$(BIN)/pytest
	@$(MAKE) --no-print-directory lint

lint: $(TESTABLE)     ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p blip_fast

format: $(TESTABLE)   ## let ruff rewrite the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

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
