# Every target is one word; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help install demo test lint types format unit bench lock wheel image image-test test-systemd clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# The interpreter to build the environment with; empty: the first python3 that is 3.11 or later.
OUTSTATION_PYTHON ?=
export OUTSTATION_PYTHON

# What the tests need from the system, as command:package. The second list is for tests that only root can run: they boot a machine.
TEST_TOOLS := mosquitto:mosquitto chromium:chromium
ROOT_TEST_TOOLS := systemd-analyze:systemd systemd-nspawn:systemd-container mmdebstrap:mmdebstrap

help: ## list what make can do
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# --- environment -------------------------------------------------------------------------------------------------

# The stamps make a second run instant. The development environment holds all that the demo needs, so the demo takes it when it is there.
install: $(VENV)/.installed-dev ## make .venv with everything for development and tests
	@:

$(VENV)/.installed-dev: requirements/dev.txt requirements/bootstrap.txt pyproject.toml
	@requirements/install $(VENV) dev
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-demo: requirements/demo.txt requirements/bootstrap.txt pyproject.toml
	@requirements/install $(VENV) demo
	@rm -f $(VENV)/.installed-dev
	@touch $@

# --- run ---------------------------------------------------------------------------------------------------------

# exec: a signal for make's child is one for the demo. After Ctrl-C it ends its processes and then itself with status 0.
demo: $(VENV)/.installed-demo ## portal, local IoT Hub and a node on this machine; ONCE=10 ends after ten readings
	@exec $(BIN)/outstation demo $(if $(ONCE),--once $(ONCE))

# --- check -------------------------------------------------------------------------------------------------------

test: install .test-tools lint types ## all checks: lint, types and every test (root: installs the apt packages they need)
	@$(BIN)/pytest

.PHONY: .test-tools
.test-tools:
	@tools="$(TEST_TOOLS)"; missing=; export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
	if [ "$$(id -u)" -eq 0 ]; then tools="$$tools $(ROOT_TEST_TOOLS)"; fi; \
	for tool in $$tools; do command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool#*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing$$missing ..."; \
	    apt-get update -q -o DPkg::Lock::Timeout=300 >/dev/null && \
	    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 $$missing >/dev/null; \
	else \
	    echo "The tests need$$missing: run 'sudo apt-get install$$missing', or 'make unit', which needs none of it." >&2; exit 1; \
	fi

lint: install ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: install ## mypy, strict
	@$(BIN)/mypy

format: install ## let ruff rewrite the files
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

unit: install ## the fast tests: unit and contract
	@$(BIN)/pytest -q tests/unit tests/contract

bench: install ## every benchmark, one after the other, with the table for docs/performance.md
	@$(BIN)/python -m bench --write

# --- package -----------------------------------------------------------------------------------------------------

UV_COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	--python-version 3.11 $(if $(UPGRADE),--upgrade)

lock: install ## write requirements/*.txt from pyproject.toml; UPGRADE=1 moves every pin to its newest release
	@$(UV_COMPILE) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	@$(UV_COMPILE) pyproject.toml --extra node -c requirements/dev.txt -o requirements/node.txt
	@$(UV_COMPILE) pyproject.toml --extra portal --extra postgresql -c requirements/dev.txt -o requirements/portal.txt
	@$(UV_COMPILE) pyproject.toml --extra demo -c requirements/dev.txt -o requirements/demo.txt
	@printf 'microservicebus-py==1.0.18\nsignalrcore\nrequests\npsutil\npackaging\nurllib3\n' | $(UV_COMPILE) - -c requirements/dev.txt -o requirements/compat.txt
	@printf 'uv\nhatchling\neditables\n' | $(UV_COMPILE) - -c requirements/dev.txt -o requirements/bootstrap.txt

wheel: install ## build dist/outstation-*.whl, without a network
	@$(BIN)/hatchling build -t wheel

image: ## build the container images outstation-agent and outstation-portal with docker, podman or buildah
	@engine=$$(command -v docker || command -v podman || command -v buildah) || { \
	    echo "make image needs docker, podman or buildah: run 'sudo apt-get install podman'." >&2; exit 1; }; \
	for target in agent portal; do \
	    $$engine build --target $$target --tag outstation-$$target -f Dockerfile . || exit 1; \
	done

image-test: ## build both images without an engine's daemon or a registry, and run them (root, Debian, some minutes)
	@tests/packaging/build_image.sh

test-systemd: install .test-tools ## the part of make test that boots systemd and sees the units started, watched, restarted (root)
	@$(BIN)/pytest -q tests/packaging/test_systemd_boot.py

clean: ## remove what make built, the environment too
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find agent services portal emulator tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
