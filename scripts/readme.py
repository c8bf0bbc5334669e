"""README.md from nbs/index.ipynb.

    python scripts/readme.py                                             write README.md
    python scripts/readme.py --check                                     exit 1 if README.md is not in step
"""
import argparse
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
LOCAL = re.compile(r"(\]\()(?![a-z]+:|/|#)([^)]+\))")  # links relative to nbs/


def readme(notebook):
    "The Markdown of a notebook as seen from the repository's root; code is shown, cells marked `#| hide` are not."
    out = []
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type == "markdown": out.append(LOCAL.sub(r"\1nbs/\2", cell.source))
        elif cell.cell_type == "code" and not cell.source.startswith("#| hide"): out.append(f"```python\n{cell.source}\n```")
    return "\n\n".join(["<!-- made from nbs/index.ipynb by scripts/readme.py: edit there -->", *out]) + "\n"


def main():
    ap = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb")
    ap.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    args, target = ap.parse_args(), ROOT/"README.md"
    text = readme(ROOT/"nbs/index.ipynb")
    if not args.check: target.write_text(text, encoding="utf-8")
    elif target.read_text(encoding="utf-8") != text: sys.exit("README.md is not in step with nbs/index.ipynb; run: python scripts/readme.py")


if __name__ == "__main__": main()
