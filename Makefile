# make study   the whole study on this machine (runs/profiles/mini.yaml)
# make dev     the environment and nbdev's hooks, to change something
# make export  nbs/ into r3nb/, README.md and the picture of the architecture
# make quick   one part in under two minutes: make quick PART=corrupt
# make test    everything that must pass: pytest, notebooks, ruff, one tiny study
# make docs    the site, from the executed notebooks, into _docs
# make lab     JupyterLab on the explorer, with the notebooks beside it
# make explore   the explorer alone in the browser, without code
# make interchange   the same questions through lmms-eval and through r3nb_eval
# PROFILE=... and OUT=... choose another profile and folder for make study

PROFILE ?= runs/profiles/mini.yaml
OUT ?= runs
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LMMS := .lmms

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help study dev export quick test docs lab explore interchange

help:
	@sed -n '1,10s/^# //p' Makefile

# The environment is made anew only when what it is made from has changed.
$(STAMP): settings.ini setup.py pyproject.toml locks/cpu.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old; Python 3.11 or newer is needed"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: venv is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c locks/cpu.txt -e '.[dev]'
	@touch $@

# lmms-eval in a folder of its own: what it requires contradicts locks/cpu.txt, what it imports does not.
$(LMMS)/.installed: $(STAMP) locks/lmms.txt
	rm -rf $(LMMS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(LMMS) -r locks/lmms.txt
	@touch $@

study: $(STAMP)
	$(BIN)/r3nb_study $(PROFILE) --out $(OUT)

dev: $(STAMP)
	@$(BIN)/python scripts/hooks.py

# Everything that is made from notebooks and kept in git. test_notebooks, test_site and test_door compare it.
export: $(STAMP)
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python scripts/readme.py
	$(BIN)/python scripts/house.py

quick: $(STAMP)
	@$(BIN)/python scripts/quick.py $(PART)

# The site's build executes every notebook that is a page of it, as nbdev-test does; the explorer is none. The stage notebooks need the files of
# earlier stages: the tiny study at the end executes each of them.
test: $(STAMP) $(LMMS)/.installed
	$(BIN)/ruff check --quiet .
	$(BIN)/python scripts/docs.py --check
	$(BIN)/python -m pytest
	$(BIN)/nbdev-test nbs/explore.ipynb
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT INT TERM && for p in smoke staged-smoke; do echo "tiny study: $$p" && $(BIN)/r3nb_study runs/profiles/$$p.yaml --out "$$tmp" || exit; done

# Every notebook is executed once, with what has changed since the last time, and its outputs are saved in it; a warning of Sphinx is an error.
docs: $(STAMP)
	$(BIN)/python scripts/docs.py

# What JUPYTER_PATH adds runs the explorer once it is open. In a container one is often root, which Jupyter wants to be told.
lab: $(STAMP)
	JUPYTER_PATH=scripts/jupyter/lab $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/explore.ipynb

explore: $(STAMP)
	JUPYTER_PATH=scripts/jupyter $(BIN)/voila --template=r3nb nbs/explore.ipynb

interchange: $(STAMP) $(LMMS)/.installed
	$(BIN)/python scripts/check_lmms.py benchmarks/interchange.json
