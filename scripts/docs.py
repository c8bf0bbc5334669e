"""The site: notebooks executed by nbdev's processors, turned into MyST-NB pages, built by Sphinx with every warning an error.

    python scripts/docs.py                 build _docs (what has not changed is not executed again)
    python scripts/docs.py --check         the same, but an output that is not the saved one is an error
    python scripts/docs.py --pages core    only execute the pages with this name, and save their outputs; no site

A notebook is executed once: its outputs, which are saved in it, and the documentation of its functions come out of the same run. The executed
pages are kept in _proc, each with a fingerprint of its code and of the modules and files that it reads.
"""
import argparse
import functools
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from outputs import ROOT, check, outputs, plain, save, without_outputs

NBS, WORK, OUT = ROOT/"nbs", ROOT/"_proc", ROOT/"_docs"
FOLDERS = ("howto", "tutorials") # folders of nbs whose notebooks are pages, beside those of nbs itself
LEFT_OUT = {"explore"} # notebooks that only live in a running Jupyter
PROSE = {"index", "method", "results"} # pages for readers: their code is folded
REPOSITORY = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
SHOW = re.compile(r"^show_doc\(([\w.]+)\)$")
LINK = re.compile(r"\]\((?![a-z]+:|/|#|<)([^)\s#]+)(#[^)\s]*)?\)")
OWN = {"DEVLOG.md": "/devlog.md", "CHANGELOG.md": "/changelog.md", "CONTRIBUTING.md": "/contributing.md"} # files of the root that are pages
HIDDEN = {"default_exp", "hide"}
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
HEADS = ("parameter", "type", "default", "")


def notebooks():
    "Every notebook that becomes a page, with the name of its page"
    found = [p for p in NBS.glob("*.ipynb") if p.stem not in LEFT_OUT] + [p for f in FOLDERS for p in (NBS/f).glob("*.ipynb")]
    return {page_of(p): p for p in sorted(found)}


def page_of(path):
    "nbs/00_core.ipynb -> modules/core, nbs/howto/own_model.ipynb -> howto/own_model, nbs/results.ipynb -> results"
    path = path.relative_to(NBS)
    stem = re.sub(r"^\d+[a-z]?_", "", path.stem)
    return f"modules/{stem}" if path.parent == Path(".") and stem != path.stem else str(path.parent/stem)


def stamp(path):
    "A fingerprint of everything that a page is made from"
    from r3nb.core import fingerprint, sha256_file
    from r3nb.study import code_of
    reads = {str(p.relative_to(ROOT)): sha256_file(p) for p in sorted((NBS/"results").rglob("*.json"))} if path.stem in ("index", "results") else {}
    text = path.read_text(encoding="utf-8")
    helpers = [p for p in (ROOT/"tests").glob("*.py") if not p.stem.startswith("test_") and re.search(rf"\b{p.stem}\b", text) and "tests" in text]
    reads |= {str(p.relative_to(ROOT)): sha256_file(p) for p in [ROOT/"locks/cpu.txt", *helpers, *(ROOT/"runs/profiles").glob("*.yaml")]}
    makers = [inspect.getsource(f) for f in (RunAll, execute)] + [(ROOT/"scripts/outputs.py").read_text(encoding="utf-8")]
    return fingerprint([without_outputs(text), makers, code_of(path), reads])


# Execution ---------------------------------------------------------------------------------------------------------------------------

class RunAll:
    "A processor of nbdev that runs every cell as nbdev-test does, show_doc among them"
    def __init__(self, nb): self.nb = nb

    def begin(self):
        from execnb.shell import CaptureShell
        self.shell = CaptureShell(mpl_format="png")
        self.shell.run("from nbdev.showdoc import show_doc")
        self.shell.run("%config InlineBackend.print_figure_kwargs = {'dpi': 110, 'bbox_inches': 'tight'}")
        for cell in self.nb.cells:
            if cell.cell_type != "code" or cell.directives_.get("eval", "").lower() == "false": continue
            self.shell.cell(cell)
            if self.shell.exc: sys.exit(f"cell {cell.get('id')}:\n{self.shell.prettytb()}")

    def __call__(self, cell): pass


def execute(page, path):
    "Run one notebook through nbdev and keep it with its outputs; returns the seconds it took"
    from fastcore.nbio import read_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import add_show_docs, clean_magics, hide_line, populate_language
    start = time.time()
    os.environ["IN_TEST"] = "1"
    os.chdir(path.parent)
    nb = read_nb(path)
    NBProcessor(nb=nb, procs=[populate_language, add_show_docs, RunAll, hide_line, clean_magics], rm_directives=False).process()
    module = next((c.directives_["default_exp"] for c in nb.cells if c.cell_type == "code" and "default_exp" in c.directives_), None)
    kept = [{"kind": c.cell_type, "id": c.get("id"), "source": c.source, "directives": dict(getattr(c, "directives_", None) or {}), "outputs": c.get("outputs", [])} for c in nb.cells]
    for c in kept: c["outputs"] = [] if HIDDEN & c["directives"].keys() else outputs(c["outputs"])
    for c in kept:
        if c["kind"] == "code" and (m := SHOW.match(c["source"].strip())): c |= {"kind": "reference", "source": f"{module}:{m[1]}", "outputs": []}
    seconds = round(time.time() - start, 1)
    target = WORK/"run"/f"{page}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"seconds": seconds, "cells": kept}), encoding="utf-8")
    return seconds


# Pages -------------------------------------------------------------------------------------------------------------------------------

def markdown(source, id=None): return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def page_cells(page):
    "The cells of a page, from the executed notebook"
    cells = json.loads((WORK/"run"/f"{page}.json").read_text(encoding="utf-8"))["cells"]
    out = [c for cell in ordered(cells) for c in convert(cell, page)]
    return [c | {"id": f"c{i:04}"} for i, c in enumerate(out)]


def ordered(cells):
    "What a piece of code defines comes before the code itself, in the order of the code"
    group = []
    for cell in [*cells, {"kind": "end"}]:
        if cell["kind"] != "reference":
            yield from [*group[:0:-1], *group[:1]]
            group = []
        group.append(cell)


def convert(cell, page):
    "The cells of the page that one cell of a notebook becomes"
    if cell["kind"] == "markdown": yield markdown(links(cell["source"], page)); return
    if cell["kind"] == "reference": yield markdown(reference(*cell["source"].split(":"))); return
    says = cell.get("directives", {})
    if cell["kind"] != "code" or HIDDEN & says.keys(): return
    source = "\n".join(l for l in cell["source"].splitlines() if not l.startswith("#|")).strip()
    tags = ["remove-input"] if says.get("echo") == "false" else ["hide-input"] if page in PROSE or {"export", "exports", "exporti"} & says.keys() else []
    if columns(cell["outputs"]): tags.append("columns")
    if source: yield {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": cell["outputs"], "execution_count": None}


def columns(outputs):
    "Does a text that a cell shows stand in columns, which would not survive if its lines were wrapped?"
    texts = [o["text"] if "text" in o else o["data"].get("text/plain", "") for o in outputs]
    return any(re.search(r"\S {2,}\S", line) for text in texts for line in text.splitlines())


def links(source, page="", home=NBS):
    "Links between notebooks become links between pages; links to other files lead to the repository. A text may stand in another home than nbs"
    def one(m):
        target = (home/Path(m[1])).resolve() if "/" not in page or page.startswith("modules/") else (NBS/page).parent.joinpath(m[1]).resolve()
        if target in set(notebooks().values()): return f"](/{page_of(target)}.ipynb{m[2] or ''})"
        if target.name in OWN: return f"]({OWN[target.name]})"
        if target.suffix == ".md" and target.is_relative_to(ROOT/"docs"): return f"](/{target.relative_to(ROOT/'docs')}{m[2] or ''})"
        if target.suffix in (".png", ".svg") and target.is_relative_to(NBS): return f"](/{target.relative_to(NBS)})"
        return f"]({REPOSITORY}/blob/main/{target.relative_to(ROOT)})" if target.is_relative_to(ROOT) and target.exists() else m[0]
    return LINK.sub(one, source)


@functools.cache
def reference(module, name):
    "The entry of one function or class: signature, docstring, and its parameters from the comments beside them"
    from fastcore.docments import docments
    thing, empty = functools.reduce(getattr, name.split("."), importlib.import_module(f"r3nb.{module}")), inspect.Parameter.empty
    if isinstance(thing, property): thing = thing.fget
    kind = "exception" if isinstance(thing, type) and issubclass(thing, BaseException) else "class" if isinstance(thing, type) else "method" if "." in name else "function"
    try: notes = {} if kind == "exception" else docments(thing, full=True, returns=True)
    except (TypeError, ValueError): notes = {} # a class without a signature, such as a Protocol
    result = notes.pop("return", None)
    notes = {k: v for k, v in notes.items() if k not in ("self", "cls")}
    rows = [(f"`{STARS.get(v.get('kind'), '')}{p}`", code(kind_of(v["anno"])), code("" if v["default"] is empty else default(v["default"])), bar(v["docment"])) for p, v in notes.items()]
    takes = ", ".join(STARS.get(v.get("kind"), "") + p + ("" if v["default"] is empty else f"={default(v['default'])}") for p, v in notes.items())
    says = (thing.__doc__ or "").strip()
    lines = [f"::::{{py:{kind}}} {name}" + (f"({takes})" if takes or kind in ("function", "method") else ""), f":module: r3nb.{module}", "", "" if says.startswith(f"{name}(") else says, ""]
    if any(row[-1] for row in rows): # the rest is in the signature
        shown = [i for i, head in enumerate(HEADS) if any(row[i] for row in rows)]
        lines += ["| " + " | ".join(row[i] for i in shown) + " |" for row in (HEADS, ["---"]*4, *rows)] + [""]
    if kind in ("function", "method") and result and (result["docment"] or kind_of(result["anno"])): lines += [f"**Returns** {code(kind_of(result['anno']))} {bar(result['docment'])}".replace("\\|", "|").rstrip(), ""]
    return "\n".join([*lines, "::::"])


def kind_of(annotation):
    "An annotation as one reads it in the source"
    if annotation in (inspect.Parameter.empty, None): return ""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", inspect.formatannotation(annotation))


def default(v):
    "A default as it would be written, cut when it is long"
    text = {"<factory>": "…"}.get(str(v), getattr(v, "__name__", None) or repr(v))
    text = re.sub(r" at 0x\w+", "", plain(text))
    return text if len(text) <= 40 else text[:37] + "…"


def code(text): return f"`` {text} ``".replace("|", "\\|") if text else ""
def bar(text): return re.sub(r"(?<!\\)\|", r"\\|", re.sub(r"`[^`]*`|<", lambda m: "&lt;" if m[0] == "<" else m[0], text or "")).strip()


# Site --------------------------------------------------------------------------------------------------------------------------------

def run_pages(pages, workers=2):
    "Execute what has changed, the longest first, each in a process of its own, on one thread: sums do not depend on the machine's cores"
    marks = {page: WORK/"run"/f"{page}.stamp" for page in pages}
    now = {page: stamp(path) for page, path in pages.items()}
    stale = [p for p, mark in marks.items() if not (mark.is_file() and mark.read_text() == now[p] and mark.with_suffix(".json").is_file())]

    def run(page):
        done = subprocess.run([sys.executable, __file__, "--execute", page], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode == 0: marks[page].write_text(now[page])
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else "failed"
        print(f"{page}: {done.stdout.strip()}" if done.returncode == 0 else f"{page} {how}:\n{(done.stdout + done.stderr).strip()[-4000:]}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(workers) as pool: fine = list(pool.map(run, order := sorted(stale, key=lambda p: -last_time(p, pages[p]))))
    if not all(fine): sys.exit(f"error: {', '.join(p for p, ok in zip(order, fine, strict=True) if not ok)}: the notebook does not run")


def last_time(page, path):
    "Seconds of the last run, or a guess from the size of the notebook"
    done = WORK/"run"/f"{page}.json"
    return json.loads(done.read_text(encoding="utf-8"))["seconds"] if done.is_file() else path.stat().st_size/2000


def shown_by(page):
    "What the cells of a page have shown, by their ids"
    cells = json.loads((WORK/"run"/f"{page}.json").read_text(encoding="utf-8"))["cells"]
    return {c["id"]: c["outputs"] for c in cells if c["kind"] == "code" and c["id"]}


def tally(pages):
    "How many of the code cells that a reader sees show something."
    cells = [c for p in pages for c in json.loads((WORK/"run"/f"{p}.json").read_text(encoding="utf-8"))["cells"] if c["kind"] == "code"]
    seen = [c for c in cells if not (HIDDEN | {"export", "exports", "exporti"}) & c["directives"].keys()]
    return f"{sum(bool(c['outputs']) for c in seen)} of {len(seen)} code cells show something"


def keep_outputs(pages):
    "Save the outputs of all pages in their notebooks"
    new = [path.name for page, path in pages.items() if save(path, shown_by(page))]
    size = sum(path.stat().st_size for path in pages.values())/1e6
    print(f"{len(pages)} notebooks of {size:.1f} MB, {tally(pages)}; " + (f"saved anew: {', '.join(new)}" if new else "all as saved"))


def check_outputs(pages):
    "Are the saved outputs what the code gives today?"
    wrong = [line for page, path in pages.items() for line in check(path, shown_by(page))]
    if wrong: sys.exit("\n".join([*wrong, f"error: {len(wrong)} outputs are not those that are saved; run make docs and look at what has changed"]))


def parts():
    "The parts of the book: name -> what it is about and its chapters"
    return yaml.safe_load((ROOT/"docs/parts.yaml").read_text(encoding="utf-8"))


def misplaced(pages, book):
    "What is wrong with the parts of the book, in which each chapter stands once."
    chapters = {p.split("/")[-1] for p in pages if p.startswith("modules/")}
    listed = [c for said in book.values() for c in said["chapters"]]
    yield from (f"chapter '{c}' stands in no part; add it to one" for c in sorted(chapters - set(listed)))
    yield from (f"there is no chapter '{c}'" for c in sorted(set(listed) - chapters))
    yield from (f"chapter '{c}' stands in more than one place" for c in sorted({c for c in listed if listed.count(c) > 1}))


def part_page(part):
    "Address of the page of a part"
    return f"book/{part.lower()}"


def write_parts(src, title):
    "A page for each part of the book, with its chapters below it in the side bar; returns the same as one list, for the overview"
    every = []
    for part, said in parts().items():
        chapters = [f"modules/{c}" for c in said["chapters"]]
        entries = "\n".join("* [{1}](/{0}.ipynb): {2}".format(c, *title(c)) for c in chapters)
        tree = "\n".join(["```{toctree}", ":hidden:", "", *(f"/{c}" for c in chapters), "```"])
        (src/f"{part_page(part)}.md").write_text(f"# {part}\n\n> {said['about']}\n\n{entries}\n\n{tree}\n", encoding="utf-8")
        every.append(f"## [{part}](/{part_page(part)}.md)\n\n{said['about']}\n\n{entries}")
    return "\n\n".join(every)


def gather(pages):
    "Put the sources of the site into one folder: docs, executed notebooks, pictures"
    src = WORK/"src"
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(ROOT/"docs", src)
    for page in pages:
        (src/page).parent.mkdir(parents=True, exist_ok=True)
        book = {"cells": page_cells(page), "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}, "nbformat": 4, "nbformat_minor": 5}
        if page == "index": book["cells"].append(markdown((src/"toc.md").read_text(encoding="utf-8"), "toc"))
        (src/f"{page}.ipynb").write_text(json.dumps(book, ensure_ascii=False), encoding="utf-8")
    for name in (*OWN, "README.md"): (src/name).write_text(links((ROOT/name).read_text(encoding="utf-8"), home=ROOT), encoding="utf-8")
    shutil.copy(ROOT/"CITATION.cff", src)
    for p in (p for kind in ("png", "svg") for p in NBS.rglob(f"*.{kind}") if not any(part[0] in "._" for part in p.relative_to(NBS).parts)):
        (src/p.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, src/p.relative_to(NBS))
    (src/"toc.md").unlink()
    (src/"parts.yaml").unlink()
    (src/"book").mkdir()
    title = lambda p: re.match(r"# (.+)\s+> (.+)", page_cells(p)[0]["source"]).groups()
    under = lambda folder: [p for p in pages if p.startswith(f"{folder}/")]
    listed = (ROOT/"docs/toc.md").read_text(encoding="utf-8")
    lists = {"HOWTO": "\n".join(f"/{p}" for p in under("howto") if f"/{p}\n" not in listed), "PARTS": "\n".join(f"/{part_page(p)}" for p in parts()), "TUTORIALS": "\n".join(f"/{p}" for p in under("tutorials")), "BOOK": write_parts(src, title)}
    fill = lambda text, put: re.sub(r"% (HOWTO|PARTS|TUTORIALS|BOOK)\b", lambda m: put(lists[m[1]]), text)
    for f, put in ((src/"index.ipynb", lambda t: json.dumps(t, ensure_ascii=False)[1:-1]), (src/"modules/index.md", str)): f.write_text(fill(f.read_text(encoding="utf-8"), put), encoding="utf-8")
    return src


def sources_of(src):
    "A fingerprint of all that Sphinx reads"
    from r3nb.core import fingerprint, sha256_file
    return fingerprint({str(p.relative_to(src)): sha256_file(p) for p in sorted(src.rglob("*")) if p.is_file()} | {"lock": sha256_file(ROOT/"locks/cpu.txt")})


def main():
    ap = argparse.ArgumentParser(description="Build the site into _docs")
    ap.add_argument("--pages", nargs="*", help="execute only the pages whose name ends so, and build no site")
    ap.add_argument("--check", action="store_true", help="save no outputs; one that is not the saved one is an error")
    ap.add_argument("--execute", help="run the notebook of one page in this process")
    args, start = ap.parse_args(), time.time()
    pages = notebooks()
    if args.execute:
        print(f"{execute(args.execute, pages[args.execute]):.1f} s, {tally([args.execute])}")
        return
    if args.pages is None and (wrong := list(misplaced(pages, parts()))): sys.exit(f"docs/parts.yaml: {'; '.join(wrong)}")
    if args.pages is not None:
        wrong = [n for n in args.pages if not any(p.split("/")[-1] == n for p in pages)]
        if wrong: sys.exit(f"no page '{wrong[0]}'; there are {', '.join(sorted(p.split('/')[-1] for p in pages))}")
        pages = {p: f for p, f in pages.items() if p.split("/")[-1] in args.pages}
    run_pages(pages)
    (check_outputs if args.check else keep_outputs)(pages)
    if args.pages is not None: return
    src = gather(pages)
    mark, now = WORK/"site.stamp", sources_of(src)
    if OUT.is_dir() and mark.is_file() and mark.read_text() == now:
        print(f"{OUT}/index.html: nothing has changed")
        return
    env = os.environ | {"R3NB_ROOT": str(ROOT), "R3NB_REPOSITORY": REPOSITORY}
    part = WORK/"html"
    shutil.rmtree(part, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", "-d", str(WORK/"doctrees"), str(src), str(part)], env=env)
    if done.returncode: sys.exit(done.returncode)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(part, OUT)
    mark.write_text(now)
    print(f"{OUT}/index.html: {sum(1 for _ in OUT.rglob('*.html'))} pages in {time.time() - start:.0f} s")


if __name__ == "__main__": main()
