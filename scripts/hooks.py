"""nbdev's hooks for this clone, bound to its own environment, so that git and a merge need not find nbdev on PATH.

    make dev          the environment, then: python scripts/hooks.py

Jupyter then cleans a notebook when it is saved (a few lines in ~/.jupyter), `git diff` shows cells, and a merge joins notebooks cell by cell.
"""
import subprocess
import sys
from pathlib import Path

ROOT, BIN = Path(__file__).resolve().parents[1], Path(sys.executable).parent


def git(*words): subprocess.run(["git", *words], cwd=ROOT, check=True)


def main():
    if not (ROOT/".git").exists(): sys.exit(f"error: {ROOT} is not a git clone, so there is nothing to put hooks into; the environment is ready")
    if not (ROOT/".git").is_dir(): sys.exit(f"error: {ROOT} is a linked worktree, and hooks belong to the main clone: run make dev there; the environment is ready")
    subprocess.run([BIN/"nbdev-install-hooks"], cwd=ROOT, check=True)
    git("config", "--file", ".gitconfig", "merge.jupyternotebook.driver", f"'{BIN}/nbdev-merge' %O %A %B %P")
    git("config", "--file", ".gitconfig", "diff.jupyternotebook.command", f"'{BIN}/nbdev-diff-driver'")
    (ROOT/".git/hooks/post-merge").write_text(f"#!/bin/sh\n'{BIN}/nbdev-trust'\n", encoding="utf-8")


if __name__ == "__main__": main()
