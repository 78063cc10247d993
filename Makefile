# Every target sets up its own virtual environment first; nothing needs to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Test processes at a time.
JOBS ?= logical
export PYTHON

BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(wildcard cmake/*) $(wildcard csrc/*/*)
CXX_FILES := $(wildcard csrc/*/*.h csrc/*/*.cpp bench/*.cpp bench/*/*.cpp tests/sim/native/*.h \
	tests/sim/native/*.cpp)
PYTHON_DIRS := python kernels tests bench examples docs

.PHONY: help demo test bench lint format docs wheel clean
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/.ready: $(NATIVE) tools/setup_venv.sh
	tools/setup_venv.sh $(VENV) dev
	@touch $@

$(VENV)/.docs: $(VENV)/.ready
	tools/setup_venv.sh $(VENV) dev,docs
	@touch $@

demo: $(VENV)/.ready ## train two drafters on real text, decode with them, show what drifts
	$(BIN)/leeboard demo $(ARGS)

test: $(VENV)/.ready ## run the tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadgroup $(ARGS)

bench: $(VENV)/.ready ## measure every op and rewrite bench/RESULTS.md
	$(BIN)/python bench/run.py $(ARGS)

lint: $(VENV)/.ready ## ruff, clang-format, mypy
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.ready ## rewrite the sources in house style
	$(BIN)/ruff check --fix $(PYTHON_DIRS)
	$(BIN)/ruff format $(PYTHON_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

wheel: $(VENV)/.ready ## build the source distribution and the wheel into dist/, and check both
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/auditwheel show dist/*.whl
	test "$$($(BIN)/python -m zipfile -l dist/*.whl | grep -c '[.]so ')" = 1

clean: ## remove what was built, but not the virtual environment
	rm -rf build dist site runs bench/build bench/results .pytest_cache .mypy_cache .ruff_cache
