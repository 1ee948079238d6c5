# One entry point for people and CI: `make` alone prints what there is. Targets that need the environment make it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.12 python3.11 python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
NO_PYTHON := make: Python 3.11 or 3.12 with its venv module is needed and was not found \
  (on Debian and Ubuntu: apt install python3-venv; elsewhere name it: make PYTHON=/path/to/python3.12)

# The first of the words in PYTHON that runs, has the version and can make an environment.
FIND_PYTHON = for python in $(PYTHON); do $$python -c 'import sys, ensurepip, venv; \
  sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null && break; python=; done; \
  test -n "$$python" || { echo '$(NO_PYTHON)' >&2; exit 1; }

# pip tells of what takes time only; its complaints are shown when it fails.
PIP = $(BIN)/pip --disable-pip-version-check
BRIEFLY = 2>$(VENV)/pip.log | sed -unE 's/^ *(Downloading|Using cached) ([^-]+)-([^-]+)-.*\(([0-9.]+ [MG]B)\).*/  \2 \3, \4/p; \
  s/^Installing collected.*/  installing/p' || { tail -n 25 $(VENV)/pip.log >&2; exit 1; }

LOCK = $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-options \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
# The newest torch and torchvision with code for P100 (sm_60) and V100 (sm_70): CUDA 12.6, sm_50 to sm_90. As their
# wheels say, 2.8 to 2.10 begin at sm_70, 2.14.1 at sm_75.
CUDA12 := 2.7.1 0.22.1
SCRIPTS = $(shell grep -srlIE '^\#!.*\b(ba)?sh$$' .ci docker infra tests)

##@ Use

.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make the environment in .venv from the lock files; does nothing when it is up to date

$(STAMP): requirements.txt requirements-dev.txt
	@$(FIND_PYTHON); echo "Setting up $(VENV) with $$($$python --version): about 3 GB to download the first time, some minutes"; \
	  $$python -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement requirements-dev.txt $(BRIEFLY)
	@$(PIP) install --no-deps --no-build-isolation --editable . $(BRIEFLY)
	@touch $@

.PHONY: demo
demo: setup ## Run the whole job on bundled handwriting: no download, no cloud, no GPU, under a minute
	@$(BIN)/python -m job run job/spec/samples/digits.yaml

.PHONY: submit
submit: setup ## Run SPEC=… on an OCI GPU instance; FLAGS="--image … --yes" as python -m job submit has them
	@$(BIN)/python -m job submit $(SPEC) $(FLAGS)

.PHONY: clean
clean: ## Remove the environment and the caches; runs and data stay
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

##@ Container

.PHONY: image
image: ## Build the image; VARIANT=cu12 for P100 and V100; only an engine is needed, docker or podman (ENGINE=)
	@docker/image.sh build

.PHONY: run
run: ## Run the job in the image, on a GPU if the engine has one; SPEC= DATA= OUT= ARGS=
	@docker/image.sh run

.PHONY: shell
shell: ## Open a shell in the image
	@docker/image.sh shell

.PHONY: push
push: ## Push the image; TO=REGION.ocir.io/NAMESPACE/gpu-job
	@docker/image.sh push

.PHONY: scan
scan: ## List what is in the image and its known vulnerabilities, by trivy, grype or syft
	@docker/image.sh scan

.PHONY: size
size: ## Show what in the image takes how much room
	@docker/image.sh size

##@ Check

.PHONY: check
check: setup ## Lint, format, types, layers, spelling, shell scripts
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet && echo "ruff: clean"
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell && $(BIN)/shellcheck $(SCRIPTS) && $(BIN)/hadolint docker/Dockerfile && \
	  echo "codespell, shellcheck, hadolint: clean"

.PHONY: test
test: check ## Everything in check, then all tests but those that go through every case
	@$(BIN)/python -m pytest -m "not engine and not exhaustive"

.PHONY: test-all
test-all: check ## The same with those, a quarter of an hour more
	@$(BIN)/python -m pytest -m "not engine"

.PHONY: test-image
test-image: setup ## Build the image and test it in containers; as root on Debian it brings its own engine
	@tests/image/with_engine.sh $(BIN)/python -m pytest -m engine -o faulthandler_timeout=1500 tests/image

OCI_CLI := $(abspath $(VENV))-oci-cli/bin/oci

.PHONY: test-cli
test-cli: setup ## Let OCI's own command line read a run from the test server; it gets an environment of its own
	@test -x $(OCI_CLI) || { $(BIN)/python -m venv $(VENV)-oci-cli && \
	  $(VENV)-oci-cli/bin/pip --disable-pip-version-check install --quiet oci-cli==3.95.1; }
	@OCI_CLI=$(OCI_CLI) $(BIN)/python -m pytest -q tests/storage/test_oci_cli.py

CHECKOV := $(abspath $(VENV))-checkov/bin/checkov

.PHONY: infra-lint
infra-lint: setup ## Terraform's form, and checkov, which gets an environment of its own; says what it skips
	@if command -v terraform >/dev/null; then terraform fmt -check -recursive infra && echo "terraform fmt: clean"; \
	  else echo "terraform fmt: skipped, there is no terraform"; fi
	@test -x $(CHECKOV) || { $(BIN)/python -m venv $(VENV)-checkov && \
	  $(VENV)-checkov/bin/pip --disable-pip-version-check install --quiet checkov==3.3.30; }
	@$(CHECKOV) --directory infra --framework terraform --compact --quiet --skip-download && echo "checkov: clean"

.PHONY: infra-check
infra-check: infra-lint ## The same, and the tests of infra/: Terraform's own, policies, the instance's scripts
	@$(BIN)/python -m pytest -q tests/infra

STACKS ?= build/stacks

.PHONY: stacks
stacks: ## Zip infra/ for OCI's Resource Manager, a stack each, into build/stacks
	@$(or $(firstword $(wildcard $(BIN)/python)),python3) infra/stacks.py $(STACKS)

.PHONY: format
format: setup ## Put the code into form: imports, layout, what ruff can mend
	@$(BIN)/ruff check --fix --quiet; $(BIN)/ruff format --quiet

.PHONY: lock
lock: setup ## Pin the dependencies of pyproject.toml anew; LOCK_FLAGS=--upgrade takes newer ones
	$(LOCK) $(LOCK_FLAGS) --output-file requirements.txt pyproject.toml
	$(LOCK) $(LOCK_FLAGS) --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	docker/lock.sh cu12 $(CUDA12) $(LOCK) $(LOCK_FLAGS)
	$(LOCK) $(LOCK_FLAGS) --extra bench --constraint requirements-dev.txt --output-file requirements-bench.txt pyproject.toml
	@sed -i 's|$(CURDIR)/||' requirements.txt requirements-dev.txt requirements-bench.txt

##@ Measure

.PHONY: bench
bench: $(VENV)/.bench ## Every benchmark, each against its yardstick; needs CIFAR-10 in JOB_DATA_ROOT; BENCH_FLAGS="tutorial --repeat 1"
	@$(BIN)/python -m tests.bench.run $(BENCH_FLAGS)

$(VENV)/.bench: requirements-bench.txt | setup
	@$(PIP) install --require-hashes --requirement requirements-bench.txt $(BRIEFLY)
	@touch $@
