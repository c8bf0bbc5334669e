"""The quick check of one part of the package, in under two minutes on two idle cores: lint, its notebook, its tests without the slow ones.

    make quick PART=corrupt          the same as: python scripts/quick.py corrupt

A part is a module of r3nb or another page of the site, such as own_corruption. The whole check is `make test`.
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs import NBS, ROOT, notebooks

CELLS = ("clean", "no_machine_paths", "opening", "exported_in_step", "prose", "small_cells") # tests of a notebook's form
TESTS = { # test files of a part, where they are not just the one of its name
    "ann": ["scale"], "backends": ["dist"], "corrupt": ["corrupt", "own_families"], "documents": ["scale"], "encoders": ["scale"],
    "explorer": ["explore"], "export": ["commands"], "hardware": ["commands"], "lmms_task": ["interchange"], "pool": [],
    "room": ["commands"], "show": ["explore"], "words": ["commands"], "index": [], "method": [], "results": [], "ten_minutes": [],
    "own_documents": ["own"], "robustness_curve": ["figures"], "own_corruption": ["own_families"], "own_dataset": ["data", "own_metrics"],
    "own_model": ["families"], "own_ocr": ["ocr"], "training": ["launch"], "metrics": ["metrics", "own_metrics"]}


def parts():
    "Every part: its name and its notebook"
    return {page.split("/")[-1]: path for page, path in notebooks().items()}


def tests_of(part):
    "The test files of a part"
    return [ROOT/f"tests/test_{name}.py" for name in TESTS.get(part, [part])]


def checks(part, notebook):
    "The commands that check a part, by what they are called; those of one dict run one after the other, the dicts side by side"
    path, tests = str(notebook.relative_to(ROOT)), [str(p.relative_to(ROOT)) for p in tests_of(part)]
    chapter = notebook.parent == NBS and notebook.stem[0].isdigit()
    form = [f"tests/test_notebooks.py::test_{name}[{path}]" for name in (CELLS if chapter else CELLS[:3])]
    lint = ["ruff", "check", "--quiet", path, *([f"r3nb/{part}.py"] if chapter else []), *tests]
    return ({"lint": lint, path: ["nbdev-test", path]},
            {" ".join(["form of the notebook", *tests]): ["pytest", "-n", "0", "-m", "not slow", *form, *tests]})


def run(commands):
    "Run commands until one fails; returns what that one said, or nothing"
    for name, (tool, *rest) in commands.items():
        start, command = time.time(), [str(Path(sys.executable).parent/tool), *rest]
        done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ, capture_output=True, text=True)
        print(f"{'failed' if done.returncode else 'passed'} in {time.time() - start:.0f} s: {name}", flush=True)
        if done.returncode: return (done.stdout + done.stderr).strip()[-6000:]


def main():
    known, start = parts(), time.time()
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    if part not in known:
        from r3nb.core import nearest
        sys.exit(f"error: PART={part}: no such part{nearest(part, known)}" if part else f"error: which part? Say make quick PART=corrupt, or {', '.join(sorted(known))}")
    with ThreadPoolExecutor() as pool: said = [s for s in pool.map(run, checks(part, known[part])) if s]
    if said: sys.exit("\n\n".join([*said, f"error: {part} does not pass"]))
    print(f"{part}: passed in {time.time() - start:.0f} s; before you push: make test")


if __name__ == "__main__": main()
