"""The site: notebooks executed by nbdev's processors, turned into MyST-NB pages, built by Sphinx with every warning an error.

    python scripts/docs.py                 build _docs (what has not changed is not executed again)
    python scripts/docs.py --pages core    only execute and turn the pages with this name; no site

A notebook is executed once: its outputs and the documentation of its functions come out of the same run. The executed pages are kept in _proc,
each with a fingerprint of its code and of the modules and files that it reads.
"""
import argparse
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, WORK, OUT = ROOT/"nbs", ROOT/"_proc", ROOT/"_docs"
FOLDERS = ("howto", "tutorials") # folders of nbs whose notebooks are pages, beside those of nbs itself
LEFT_OUT = {"explore"} # notebooks that only live in a running Jupyter
REPOSITORY = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
SHOW = re.compile(r"^show_doc\((\w+)\)$")
LINK = re.compile(r"\]\((?![a-z]+:|/|#|<)([^)\s#]+)(#[^)\s]*)?\)")
HIDDEN = {"default_exp", "hide"}


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
    return fingerprint([sha256_file(path), sha256_file(__file__), code_of(path), reads])


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
            if self.shell.exc: raise SystemExit(f"{self.nb.path_}, cell {cell.get('id', cell.source[:40])}:\n{self.shell.prettytb()}")

    def __call__(self, cell): pass


def execute(page, path):
    "Run one notebook through nbdev and write it as a page; returns the seconds it took"
    from fastcore.nbio import read_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import add_show_docs, clean_magics, hide_, hide_line, populate_language
    start = time.time()
    os.environ["IN_TEST"] = "1"
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    nb = read_nb(path)
    NBProcessor(nb=nb, procs=[populate_language, add_show_docs, RunAll, hide_line, clean_magics, hide_], rm_directives=False).process()
    seconds = time.time() - start
    cells = [c for cell in nb.cells for c in convert(cell, nb, page)]
    for i, c in enumerate(cells): c["id"] = f"c{i:04}"
    book = {"cells": cells, "metadata": {"kernelspec": nb.metadata.get("kernelspec", {}), "seconds": round(seconds, 1)}, "nbformat": 4, "nbformat_minor": 5}
    target = WORK/"pages"/f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(book, indent=1, ensure_ascii=False), encoding="utf-8")
    return seconds


# Pages -------------------------------------------------------------------------------------------------------------------------------

def markdown(source, tags=()): return {"cell_type": "markdown", "metadata": {"tags": list(tags)}, "source": source}


def convert(cell, nb, page):
    "The cells of the page that one cell of a notebook becomes"
    if cell.cell_type == "markdown": yield markdown(links(cell.source, page)); return
    if cell.cell_type != "code" or HIDDEN & cell.directives_.keys(): return
    if m := SHOW.match(cell.source.strip()): yield markdown(reference(m[1], nb)); return
    source = "\n".join(l for l in cell.source.splitlines() if not l.startswith("#|")).strip()
    exported = {"export", "exports", "exporti"} & cell.directives_.keys()
    tags = ["hide-input"] if exported else ["remove-input"] if cell.directives_.get("echo") == "false" else []
    outputs = [o for o in map(output, cell.get("outputs", [])) if o]
    if source: yield {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": outputs, "execution_count": None}


def output(o):
    "An output without what a page cannot show: progress bars, live widgets, the layout of this machine"
    text = lambda v: "".join(v) if isinstance(v, list) else v
    if o.output_type == "stream":
        if o.name == "stderr": return None
        return {"output_type": "stream", "name": o.name, "text": plain(text(o.text))}
    if o.output_type not in ("display_data", "execute_result"): return None
    data = {k: plain(text(v)) if k.startswith("text/") or k.endswith("xml") else text(v) for k, v in o.data.items() if "widget" not in k}
    if "widget" in " ".join(o.data) or not data: return None
    return {"output_type": "display_data", "data": data, "metadata": {}}


def plain(text):
    "Text without the folders of the machine that built the site"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return re.sub(r"/tmp/tmp\w+", "/tmp/demo", text)


def links(source, page):
    "Links between notebooks become links between pages; links to other files lead to the repository"
    def one(m):
        target = (NBS/Path(m[1])).resolve() if "/" not in page or page.startswith("modules/") else (NBS/page).parent.joinpath(m[1]).resolve()
        if target.suffix == ".ipynb" and target.is_relative_to(NBS): return f"](/{page_of(target)}.ipynb{m[2] or ''})"
        if target.suffix in (".png", ".svg") and target.is_relative_to(NBS): return f"](/{target.relative_to(NBS)})"
        return f"]({REPOSITORY}/blob/main/{target.relative_to(ROOT)})" if target.is_relative_to(ROOT) and target.exists() else m[0]
    return LINK.sub(one, source)


def reference(name, nb):
    "The entry of one function or class: signature, docstring, and its parameters from the comments beside them"
    import importlib

    from fastcore.docments import docments
    module = next(c.directives_["default_exp"] for c in nb.cells if "default_exp" in getattr(c, "directives_", {}))
    thing = getattr(importlib.import_module(f"r3nb.{module}"), name)
    kind = "class" if inspect.isclass(thing) else "function"
    error = kind == "class" and issubclass(thing, BaseException)
    if error: kind = "exception"
    try: notes = {} if error else docments(thing, full=True, returns=True)
    except (TypeError, ValueError): notes = {} # a class without a signature, such as a Protocol
    result = notes.pop("return", None)
    takes = {k: v for k, v in notes.items() if k not in ("self", "cls")}
    empty = inspect.Parameter.empty
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    short = lambda p, v: stars.get(v.get("kind"), "") + p + ("" if v["default"] is empty else f"={default(v['default'])}")
    anno = lambda a: "" if a in (empty, None) else inspect.formatannotation(a).replace("r3nb.", "").replace("pathlib.", "")
    own = (thing.__doc__ or "").strip()
    lines = [f"::::{{py:{kind}}} {name}" + ("" if error or (kind == "class" and not takes) else f"({', '.join(short(p, v) for p, v in takes.items())})"),
             f":module: r3nb.{module}", "", "" if own.startswith(f"{name}(") else own, ""]
    if takes:
        row = lambda p, v: f"| `{stars.get(v.get('kind'), '')}{p}` | {code(anno(v['anno']))} | {code('' if v['default'] is empty else default(v['default']))} | {bar(v['docment'])} |"
        lines += ["| parameter | type | default | |", "|---|---|---|---|", *(row(p, v) for p, v in takes.items()), ""]
    if result and kind == "function" and (result["docment"] or anno(result["anno"])): lines += [f"**Returns** {code(anno(result['anno']))} {bar(result['docment'])}".rstrip(), ""]
    return "\n".join([*lines, "::::"])


def default(v):
    "A default as it would be written, cut when it is long"
    text = {"<factory>": "…"}.get(str(v), getattr(v, "__name__", None) or repr(v))
    text = re.sub(r" at 0x\w+", "", plain(text))
    return text if len(text) <= 40 else text[:37] + "…"


def code(text): return f"`` {text} ``".replace("|", "\\|") if text else ""
def bar(text): return re.sub(r"(?<!\\)\|", r"\\|", (text or "").replace("<", "&lt;")).strip()


# Site --------------------------------------------------------------------------------------------------------------------------------

def run_pages(pages, workers=2):
    "Execute what has changed, the longest first"
    import r3nb.study  # noqa: F401 read once here, before the processes
    todo = {}
    for page, path in pages.items():
        mark, ours = WORK/"pages"/f"{page}.stamp", stamp(path)
        if not (mark.is_file() and mark.read_text() == ours and mark.with_suffix(".ipynb").is_file()): todo[page] = ours
    order = sorted(todo, key=lambda p: -last_time(p, pages[p]))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for page, job in [(p, pool.submit(execute, p, pages[p])) for p in order]:
            print(f"{page}: {job.result():.1f} s", flush=True)
            (WORK/"pages"/f"{page}.stamp").write_text(todo[page])
    return todo


def last_time(page, path):
    "Seconds of the last run, or a guess from the size of the notebook"
    done = WORK/"pages"/f"{page}.ipynb"
    return json.loads(done.read_text(encoding="utf-8"))["metadata"]["seconds"] if done.is_file() else path.stat().st_size/2000


def gather(pages):
    "Put the sources of the site into one folder: docs, executed notebooks, pictures"
    src = WORK/"src"
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(ROOT/"docs", src)
    for page in pages:
        (src/page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WORK/"pages"/f"{page}.ipynb", src/f"{page}.ipynb")
    for name in ("CHANGELOG.md", "DEVLOG.md", "CITATION.cff", "README.md"): shutil.copy(ROOT/name, src/name)
    for p in sorted((NBS/"results").rglob("*.png")):
        (src/p.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, src/p.relative_to(NBS))
    for marker, listed in (("MODULES", [p for p in pages if p.startswith("modules/")]), ("TUTORIALS", [p for p in pages if p.startswith("tutorials/")])):
        for f in src.rglob("*.md"):
            text = f.read_text(encoding="utf-8")
            if f"% {marker}" in text: f.write_text(text.replace(f"% {marker}", "\n".join(f"/{p}" for p in listed)), encoding="utf-8")
    return src


def main():
    ap = argparse.ArgumentParser(description="Build the site into _docs")
    ap.add_argument("--pages", nargs="*", help="execute and turn only the pages whose name ends so")
    args, start = ap.parse_args(), time.time()
    pages = notebooks()
    if args.pages is not None:
        wrong = [n for n in args.pages if not any(p.split("/")[-1] == n for p in pages)]
        if wrong: sys.exit(f"no page '{wrong[0]}'; there are {', '.join(sorted(p.split('/')[-1] for p in pages))}")
        return run_pages({p: f for p, f in pages.items() if p.split("/")[-1] in args.pages})
    run_pages(pages)
    src = gather(pages)
    env = os.environ | {"R3NB_ROOT": str(ROOT), "R3NB_REPOSITORY": REPOSITORY}
    part = WORK/"html"
    shutil.rmtree(part, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html", "-d", str(WORK/"doctrees"), str(src), str(part)], env=env)
    if done.returncode: sys.exit(done.returncode)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(part, OUT)
    print(f"{OUT}/index.html: {sum(1 for _ in OUT.rglob('*.html'))} pages in {time.time() - start:.0f} s")


if __name__ == "__main__": main()
