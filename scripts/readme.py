"""README.md from nbs/index.ipynb. Its numbers are computed by the notebook's cells, from nbs/results.

    python scripts/readme.py                                             write README.md
    python scripts/readme.py --check                                     exit 1 if README.md is not in step
"""
import argparse
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LOCAL = re.compile(r"(\]\()(?![a-z]+:|/|#)([^)]+\))")  # links relative to nbs/


def home(m):
    "A link of the notebook as seen from the repository's root"
    target = m[2].removesuffix(")")
    return f"{m[1]}{target.removeprefix('../') if target.startswith('../') else f'nbs/{target}'})"


def run(cells, folder):
    "Execute code cells in a folder and return the Markdown that each of them shows"
    from execnb.shell import CaptureShell
    shell, before = CaptureShell(mpl_format=None), os.getcwd()
    os.chdir(folder)
    try:
        for cell in cells:
            outputs = shell.run(cell.source)
            if shell.exc: raise SystemExit(f"{folder}: a cell failed\n{shell.prettytb()}")
            yield "".join("".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {}))
    finally: os.chdir(before)


def readme(notebook):
    "The Markdown of a notebook, and of what its code cells show, as seen from the repository's root"
    cells, out = nbformat.read(notebook, 4).cells, ["<!-- made from nbs/index.ipynb by scripts/readme.py: edit there -->"]
    shown = run([c for c in cells if c.cell_type == "code"], Path(notebook).parent)
    for cell in cells:
        text = LOCAL.sub(home, cell.source if cell.cell_type == "markdown" else next(shown))
        if text and not cell.source.startswith("#| hide"): out.append(text.strip())
    return "\n\n".join(out) + "\n"


def main():
    ap = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb")
    ap.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    args, target = ap.parse_args(), ROOT/"README.md"
    text = readme(ROOT/"nbs/index.ipynb")
    if not args.check: target.write_text(text, encoding="utf-8")
    elif target.read_text(encoding="utf-8") != text: sys.exit("README.md is not in step with nbs/index.ipynb and nbs/results; run: python scripts/readme.py")


if __name__ == "__main__": main()
