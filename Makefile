# `make` prints what there is. Everything runs in .venv, which `make install` creates when it is first needed.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CARGO := cargo --quiet
CRATE := --manifest-path tokenizer/Cargo.toml

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: speedrun-tiny
speedrun-tiny: $(INSTALLED) ## the whole pipeline at toy size: seven to thirteen minutes on two CPU cores
	$(PYTHON_IN_VENV) jobs/speedrun.py --preset tiny --cluster.workers 2

.PHONY: test
test: $(INSTALLED) ## the tests; those that need a GPU or the internet are skipped without (PYTEST_ARGS="-k name -x")
	$(PYTHON_IN_VENV) -m pytest -m "not long and not ray" --numprocesses 2 --dist loadfile $(PYTEST_ARGS) || [ $$? = 5 ] # none
	$(PYTHON_IN_VENV) -m pytest -m "not long and ray" --durations 20 $(PYTEST_ARGS) || [ $$? = 5 ]

.PHONY: test-long
test-long: $(INSTALLED) ## tests that are left out there: machines and replicas that come and go, stopped jobs, a bucket; twenty minutes
	$(PYTHON_IN_VENV) -m pytest -m long $(PYTEST_ARGS)

.PHONY: gpu-check
gpu-check: ## tests and speed on one CUDA GPU, in eight minutes at most; needs PyTorch, numpy and pytest in PYTHON, nothing else
	PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/gpu.py $(GPU_CHECK_ARGS)

.PHONY: install
install: $(INSTALLED) ## create .venv, build the crate, install; again only after a change (PYTHON=..., MIN_FREE_GB=...)

$(INSTALLED): pyproject.toml constraints.txt scripts/install.sh \
		tokenizer/pyproject.toml tokenizer/Cargo.toml $(wildcard tokenizer/src/*.rs)
	@scripts/install.sh
	@touch $@

.PHONY: check
check: lint typecheck lint-rust test-rust test ## everything that has to be green

.PHONY: lint
lint: $(INSTALLED) ## ruff: style and layout of the Python code
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .

.PHONY: typecheck
typecheck: $(INSTALLED) ## mypy on raychat and jobs
	$(PYTHON_IN_VENV) -m mypy

.PHONY: lint-rust
lint-rust: ## layout and clippy of the crate
	$(CARGO) fmt $(CRATE) --check
	$(CARGO) clippy $(CRATE) --all-targets --all-features -- -D warnings

.PHONY: test-rust
test-rust: ## tests of the crate
	$(CARGO) test $(CRATE)

.PHONY: fmt
fmt: $(INSTALLED) ## rewrite Python and Rust in the house's layout
	$(PYTHON_IN_VENV) -m ruff check --fix .
	$(PYTHON_IN_VENV) -m ruff format .
	$(CARGO) fmt $(CRATE)

.PHONY: constraints
constraints: $(INSTALLED) ## write the versions that are installed now to constraints.txt
	@$(PYTHON_IN_VENV) -m pip install -q -e '.[gpu]'
	@{ sed -n '/^#/p' constraints.txt; $(PYTHON_IN_VENV) -m pip freeze --exclude-editable --exclude raychat-bpe; } > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt
	@touch $(INSTALLED)

.PHONY: clean
clean: ## remove caches and build outputs
	rm -rf build dist *.egg-info tokenizer/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find raychat jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: clean-all
clean-all: clean ## remove the environment too
	rm -rf $(VENV)
