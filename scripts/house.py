"""The picture of the architecture, drawn from the imports of the modules.

    python scripts/house.py                write docs/architecture.svg
    python scripts/house.py --check        exit 1 if it is not in step with r3nb/

A row is a number of the book, a box a module, an arrow an import. What every module could import (core and words) has no arrows, and an import
that follows from others (a imports b, b imports c, so a may import c) is left out.
"""
import argparse
import functools
import sys
from html import escape
from pathlib import Path

from r3nb.study import imports_of

ROOT = Path(__file__).resolve().parents[1]
TARGET, GROUND = ROOT/"docs/architecture.svg", {"core", "words"}
ROWS = {"00": "ground", "01": "data", "02": "OCR", "03": "damage", "04": "index", "05": "model", "06": "training", "07": "scores", "08": "evaluation",
        "09": "figures", "10": "worlds", "11": "study", "12": "plan", "13": "harness", "14": "explorer"} # number of the book: what it is about
WIDE, LEFT, EDGE, STEP = 760, 104, 44, 58 # in pixels: width, where boxes begin, room on the right, height of a row
BOX, SHIFT = (88, 24), (15, 40, 0) # size of a box; by how much rows are shifted, in turn


def modules():
    "Every module of the package: its name and the number of its chapter"
    return {p.stem[3:]: p.stem[:2] for p in sorted((ROOT/"nbs").glob("[0-9][0-9]_*.ipynb"))}


@functools.cache
def imports_in(module):
    "Everything of r3nb that one module imports"
    return imports_of((ROOT/f"r3nb/{module}.py").read_text(encoding="utf-8"))


def imports(names):
    "What each module imports of the others, apart from the ground"
    return {m: (imports_in(m) & set(names)) - GROUND - {m} for m in names}


def closure(graph, m):
    "Everything that a module needs, directly or through others"
    return graph[m].union(*(closure(graph, n) for n in graph[m])) if graph[m] else set()


def needed(graph):
    "The imports that do not follow from others"
    return {m: sorted(to - set().union(*(closure(graph, n) for n in to))) for m, to in graph.items()}


def places(numbers, arrows):
    "The middle of each box: a row for a number, in a row by where the imported modules are; rows are shifted, so that boxes hide fewer arrows"
    at = {}
    for i, number in enumerate(sorted(set(numbers.values()))):
        row = [m for m, n in numbers.items() if n == number]
        mean = lambda m: sum(at[n][0] for n in arrows[m] if n in at)/max(1, sum(n in at for n in arrows[m])) or WIDE/2
        for j, m in enumerate(sorted(row, key=lambda m: (mean(m), m))):
            at[m] = LEFT + round((WIDE - LEFT - EDGE)*(j + .5)/len(row)) + SHIFT[i % 3], STEP//2 + STEP*i
    return at


def arrow(a, b):
    "A curve from the box of a module to the box of one that it imports; against the order of the book it is dashed"
    (x, y), (u, v), high = a, b, BOX[1]//2
    if y == v: # in one row: an arc below the boxes
        return f'<path d="M{x} {y + high}C{x} {y + high + 22} {u} {v + high + 22} {u} {v + high + 5}"/>'
    up = 1 if y > v else -1
    bend = up*min(STEP, abs(y - v)//2)
    return f'<path d="M{x} {y - up*high}C{x} {y - up*high - bend} {u} {v + up*high + bend} {u} {v + up*(high + 5)}"' + ("/>" if up > 0 else ' class="back"/>')


def box(name, x, y):
    "A module"
    w, h = BOX
    return f'<rect x="{x - w//2}" y="{y - h//2}" width="{w}" height="{h}" rx="5"/><text x="{x}" y="{y + 4}">{escape(name)}</text>'


STYLE = """text{font:12px sans-serif;text-anchor:middle;fill:#222}.row{text-anchor:start;fill:#555}rect{fill:#e8f1fa;stroke:#0072b2}
path{fill:none;stroke:#8a8a8a;marker-end:url(#tip)}.back{stroke:#d55e00;stroke-dasharray:4 3}.line{stroke:#e4e4e4;marker-end:none}"""


def picture():
    "The picture as SVG"
    numbers = modules()
    arrows = needed(imports(numbers))
    at = places(numbers, arrows)
    rows = sorted(set(numbers.values()))
    high = STEP*len(rows) + 12
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" width="{WIDE}" height="{high}" role="img">',
           "<title>The modules of r3nb and what they import</title>", f"<style>{STYLE}</style>",
           '<defs><marker id="tip" viewBox="0 0 6 6" refX="3" refY="3" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" style="fill:#8a8a8a;stroke:none"/></marker></defs>',
           f'<rect width="{WIDE}" height="{high}" style="fill:#fff;stroke:none"/>']
    for i, n in enumerate(rows):
        out.append(f'<text class="row" x="8" y="{STEP//2 + STEP*i + 4}">{n} {escape(ROWS.get(n, ""))}</text>')
        if i: out.append(f'<path class="line" d="M0 {STEP*i}H{WIDE}"/>')
    out += [arrow(at[m], at[n]) for m in numbers for n in arrows[m]] + [box(m, *at[m]) for m in numbers]
    return "\n".join([*out, "</svg>\n"])


def main():
    ap = argparse.ArgumentParser(description="Draw docs/architecture.svg from the imports of r3nb")
    ap.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    args, svg = ap.parse_args(), picture()
    if not args.check: TARGET.write_text(svg, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != svg: sys.exit("docs/architecture.svg is not in step with the imports of r3nb; run: python scripts/house.py")


if __name__ == "__main__": main()
