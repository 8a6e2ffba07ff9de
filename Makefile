# One entry point, the same for a developer and for CI. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On how many labs at once the node tier runs its files: each takes a processor, and up to 7 GiB.
LABS ?= $(shell awk -v cpus=$$(nproc) '/^MemTotal/ { print (cpus > 1 && $$2 > 15e6) ? 2 : 1 }' /proc/meminfo)
SEVERAL := --numprocesses $(LABS) --dist loadscope --no-loadscope-reorder
NODE_TIER := --verbose --durations=60 --durations-min=10 $(if $(filter-out 1,$(LABS)),$(SEVERAL)) tests/node
SOAK ?= $(addprefix tests/node/test_,mission.py csi_faults.py csi_sanity.py kernel_server.py \
          provisioning.py storage_class.py snapshots.py installation.py crash.py races.py) \
        $(wildcard tests/node/test_passthrough_*.py)
LOCKS := requirements/dev.txt requirements/node.txt pyproject.toml
BOOTSTRAP := PYTHONPATH=src $(PYTHON) -m kangaroo_lab.bootstrap
# Before the node tests: its progress is seen, and no test's deadline runs.
BUILD := $(BIN)/kangaroo lab build

.PHONY: help venv bootstrap check format test test-unit test-protocol test-host test-node csi-sanity fuzz soak \
        lab demo bench bench-csi proto lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(STAMP) ## the development environment in .venv, from the hash-checked lock

$(STAMP): $(LOCKS)
	@$(BOOTSTRAP) python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing what requirements/dev.txt locks into $(VENV), which takes a minute or two"
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

bootstrap: venv ## install the Debian packages and the Go toolchain that the lab needs
	@$(BOOTSTRAP) lab

check: venv ## format, lint, types, import rules, shell
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck .ci/run $(shell git ls-files '*.sh')

format: venv ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

test: bootstrap ## all four tiers: unit, protocol, host, node
	$(BIN)/pytest --numprocesses auto tests/unit tests/protocol
	$(BUILD)
	$(BIN)/pytest tests/host
	$(BIN)/pytest $(NODE_TIER)

test-unit: venv ## the unit tier: needs nothing
	$(BIN)/pytest tests/unit

test-protocol: venv ## the protocol tier: both peers in memory
	$(BIN)/pytest tests/protocol

test-host: bootstrap ## the host tier: root, namespaces, mounts, QEMU
	$(BIN)/pytest tests/host

test-node: bootstrap ## the node tier: the lab, end to end; LABS=1 for one lab whatever the machine has
	$(BUILD)
	$(BIN)/pytest $(NODE_TIER)

csi-sanity: bootstrap ## the CSI project's conformance suite against the driver, in the lab
	$(BUILD)
	KANGAROO_SOAK=1 $(BIN)/pytest tests/node/test_csi_sanity.py

fuzz: venv ## coverage-guided fuzzing of what volumes may say; FUZZ_S=600
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/fuzz.txt
	@mkdir -p build
	$(BIN)/python tests/fuzz/csi_parsers.py -max_total_time=$(or $(FUZZ_S),60) -artifact_prefix=build/fuzz-

soak: bootstrap ## the fault tests in full counts, and what make test has no time for: hours; SOAK=FILES some of them
	$(BUILD) --all
	KANGAROO_SOAK=1 $(BIN)/pytest --capture=no $(SOAK)

lab: bootstrap ## bring the lab up and leave it up
	$(BIN)/kangaroo lab up

demo: bootstrap ## the main job on a real node, with the evidence; KEEP=1 leaves the lab up
	$(BIN)/kangaroo demo $(if $(KEEP),--keep) $(if $(JSON),--json $(JSON))

bench: bootstrap ## the figures: series as JSON and a report
	$(BIN)/kangaroo bench $(if $(KEEP),--keep)

bench-csi: bootstrap ## the CSI driver's figures; PEER=FILE is csi-driver-nfs's program to compare with
	$(BIN)/kangaroo bench-csi $(if $(PEER),--peer $(PEER)) $(if $(KEEP),--keep)

proto: venv ## regenerate the interop messages from proto/
	$(BIN)/python proto/generate.py

lock: ## resolve the requirements anew (needs uv)
	uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --annotation-style line \
	  --python-version 3.13 --python-platform x86_64-manylinux_2_28 --only-binary :all: \
	  requirements/node.in -o requirements/node.txt
	uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --annotation-style line \
	  --universal --python-version 3.11 requirements/dev.in -o requirements/dev.txt
	uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --annotation-style line \
	  --universal --python-version 3.11 requirements/fuzz.in -o requirements/fuzz.txt

clean: ## remove what was built in the checkout; the cache outside it stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} + ; rm -rf src/*.egg-info
