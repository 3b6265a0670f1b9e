# Every target works on a fresh clone: what it needs is installed into .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
PINS   ?=
# The oldest grpcio and protobuf that pyproject.toml allows.
OLDEST := $(shell sed -nE 's/^ *"((grpcio|protobuf)[a-z-]*)>=([0-9.]+)",$$/\1==\3/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest soak lint types proto proto-check bench bench-faults bench-overload bench-workers curves check clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "meshrpc needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]' $(PINS)
	@touch $@

install: $(STAMP) ## install meshrpc and its development tools into .venv

demo: $(STAMP) ## run the order/payment demo (ARGS='--duration 20 --chaos')
	$(BIN)/meshrpc demo $(ARGS)

# Two at a time what needs only a core of its own, then one by one what breaks processes under load.
# ARGS go to both steps; a -m among them chooses instead of these, in one step.
TOGETHER := -n 2 --dist loadfile -m 'not soak and not alone'
ALONE    := -m 'not soak and alone'
# Runs a step, and goes on whatever became of it; 5 says that it had no test to run.
step = echo "+ pytest $(1)"; $(BIN)/python -m pytest $(1) $(ARGS); code=$$?; \
	case $$code in 5) ;; 0) ran=yes ;; *) ran=yes; failed=$$code ;; esac

test: $(STAMP) ## run every test but the soaks; fetches a real Consul if there is none
	@$(BIN)/python -m tests.consul --fetch
	@trap 'exit 130' INT; ran=; failed=0; \
	$(if $(filter -m%,$(ARGS)),$(call step,),$(call step,$(TOGETHER)); $(call step,$(ALONE))); \
	test -n "$$ran" || failed=5; exit $$failed

test-oldest: ## run the tests of calls on the oldest supported grpcio and protobuf
	$(MAKE) $(VENV)-oldest/.installed VENV=$(VENV)-oldest PINS='$(OLDEST)'
	$(VENV)-oldest/bin/python -m pytest tests/unit tests/contract/test_drop_in.py tests/integration -m 'not soak and not consul' $(ARGS)

soak: $(STAMP) ## run the long fault and leak tests
	@$(BIN)/python -m tests.consul --fetch
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types, strictly
	$(BIN)/mypy

PROTOS := $(shell find protos -name '*.proto' | LC_ALL=C sort)

proto: $(STAMP) ## generate all code from protos/, in place
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

proto-check: proto ## fail if generated code is not what protos/ says
	@stale=$$(git status --porcelain -- '*_pb2.py' '*_pb2.pyi' '*_pb2_grpc.py'); test -z "$$stale" || { echo "generated code is stale: run 'make proto' and commit" >&2; echo "$$stale" >&2; exit 1; }

bench: $(STAMP) ## measure what the mesh adds to a call, beside bare grpc.aio
	$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-faults: $(STAMP) ## break instances, beside bare grpc.aio, and print what calls became (docs/faults.md)
	$(BIN)/python -m benchmarks.faults $(ARGS)

bench-overload: $(STAMP) ## overload a server, beside bare grpc.aio, and print what became of calls (ARGS=--quick)
	$(BIN)/python -m benchmarks.overload $(ARGS)

bench-workers: $(STAMP) ## measure what more workers answer
	$(BIN)/python -m benchmarks.workers $(ARGS)

curves: $(STAMP) ## draw the curves of docs/simulations.md (ARGS=flapping for one)
	$(BIN)/python -m tests.simulation.curves $(ARGS)

check: lint types proto-check test ## all that CI runs

clean: ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-oldest .cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
