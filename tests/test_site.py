"""The site: its pages in a real browser, its commands, its links, what guards each pitfall.

The site is built by `make docs` before these tests; where it is missing, building it is the first test's work.
"""
import configparser
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest
import yaml
from browser import DESK, PHONE, ROOT, browser, poor_contrast, served, too_wide, visit

SITE, DOCS = ROOT/"_docs", ROOT/"docs"
TEXTS = sorted([*DOCS.rglob("*.md"), *(ROOT/"nbs/howto").glob("*.ipynb"), ROOT/"README.md"])
name = lambda p: str(p.relative_to(ROOT))


def text_of(path):
    "The Markdown of a page of the site's sources"
    if path.suffix == ".md": return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


# Commands ----------------------------------------------------------------------------------------------------------------------------

def commands(path):
    "Every command of r3nb in the fenced shell blocks of a page"
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", text_of(path), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removesuffix("&"), comments=True)
            while words and re.fullmatch(r"(srun|exec|[A-Z_]+=.*)", words[0]): words.pop(0)
            if words and (words[0].startswith("r3nb_") or words[0] in ("torchrun", "deepspeed")): yield words


def scripts():
    "Console scripts of the package: name -> module:function"
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    return dict(l.strip().split("=") for l in cfg["DEFAULT"]["console_scripts"].splitlines() if l.strip())


class Parsed(BaseException):
    "Raised once a command line has been understood"


def understand(words, monkeypatch):
    "Hand a command to its own parser, launchers included, and stop before it does anything"
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser
        args = get_args_parser().parse_args(words[1:])
        assert args.module, f"torchrun without -m: {words}"
        place, rest = f"{args.training_script}:main", args.training_script_args
    elif words[0] == "deepspeed":
        i = words.index("--module")
        assert all(re.fullmatch(r"--num_gpus=\d+|--no_local_rank", w) for w in words[1:i])
        place, rest = f"{words[i + 1]}:main", words[i + 2:]
    else:
        assert words[0] in scripts(), f"no command '{words[0]}'"
        place, rest = scripts()[words[0]], words[1:]
    module = importlib.import_module(place.split(":")[0])
    real = importlib.import_module("r3nb.core").parse_cli

    def parse(*args, **kw):
        real(*args, **kw)
        raise Parsed
    for m in [m for n, m in sys.modules.items() if n.startswith("r3nb.") and hasattr(m, "parse_cli")]: monkeypatch.setattr(m, "parse_cli", parse)
    main = getattr(module, place.split(":")[1])
    with pytest.raises(Parsed): getattr(main, "__wrapped__", main)([re.sub(r"^\$.*", "1", w) for w in rest])


CASES = [pytest.param(words, id=f"{name(p)}-{words[0]}-{i}") for p in TEXTS for i, words in enumerate(commands(p))]


def test_there_are_commands():
    assert len(CASES) > 30


@pytest.mark.parametrize("words", CASES)
def test_command(words, monkeypatch):
    understand(words, monkeypatch)


def test_wrong_commands_are_noticed(monkeypatch, capsys):
    with pytest.raises(SystemExit): understand(shlex.split("r3nb_eval --batch_sise 3"), monkeypatch)
    assert "--batch_sise" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="no command"): understand(["r3nb_evaluate"], monkeypatch)


# Sources -----------------------------------------------------------------------------------------------------------------------------

def test_each_pitfall_has_a_test_that_exists():
    text = (DOCS/"pitfalls.md").read_text(encoding="utf-8")
    guards = re.findall(r"\{repo\}`(\w+) <(tests/\w+\.py)>`", text)
    assert len(guards) > 40 and len(re.findall(r"^: ", text, flags=re.M)) == text.count("Guard: ")
    for test, file in guards: assert re.search(rf"^def {test}\b", (ROOT/file).read_text(encoding="utf-8"), flags=re.M), f"{file} has no {test}"


def test_the_readme_links_to_files_that_exist():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    local = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    assert len(local) > 8 and not [t for t in local if not (ROOT/t.split("#")[0]).exists()]


def test_the_readme_is_short_and_leads_to_the_runbook():
    readme, runbook = (ROOT/"README.md").read_text(encoding="utf-8"), (DOCS/"runbook.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150 and len(readme.split()) < 1600 and "](docs/runbook.md)" in readme and "<details>" not in readme
    for command in scripts(): assert f"`{command}" in runbook, f"docs/runbook.md does not name {command}"


def test_numbers_of_the_home_page_come_from_the_results():
    nb = nbformat.read(ROOT/"nbs/index.ipynb", 4)
    typed = [c.source for c in nb.cells if c.cell_type == "markdown" and re.search(r"[+-]?\d+\.\d \[", c.source)]
    assert not typed, "a score with an interval is typed in nbs/index.ipynb"
    score = next(r for r in json.loads((ROOT/"nbs/results/mini-full/results.json").read_text())["pooled"]["scores"] if (r["mode"], r["level"], r["dataset"]) == ("r3", 0.6, "all"))
    assert f"{100*score['estimate']:.1f} [{100*score['low']:.1f}, {100*score['high']:.1f}]" in (ROOT/"README.md").read_text(encoding="utf-8")


def test_each_chapter_stands_in_one_part():
    parts = yaml.safe_load((DOCS/"parts.yaml").read_text(encoding="utf-8"))
    listed = [c for part in parts.values() for c in part["chapters"]]
    assert sorted(listed) == sorted(re.sub(r"^[0-9]+[a-z]?_", "", p.stem) for p in (ROOT/"nbs").glob("[0-9]*.ipynb"))
    assert all(part["about"].endswith(".") for part in parts.values()) and 8 <= len(parts) <= 12


def test_citation_agrees_with_the_package():
    cff = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))
    import r3nb
    urls = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["urls"]
    assert (cff["version"], cff["license"], cff["repository-code"]) == (r3nb.__version__, "Apache-2.0", urls["Repository"])
    assert {"cff-version", "message", "title", "authors"} <= set(cff) and f"## {r3nb.__version__}" in (ROOT/"CHANGELOG.md").read_text()


def test_workflow_runs_what_ci_runs():
    flow = yaml.safe_load((ROOT/".github/workflows/ci.yml").read_text())
    steps = flow["jobs"]["test"]["steps"]
    assert any(s.get("run") == ".ci/run" for s in steps) and flow["jobs"]["publish"]["needs"] == "test"
    assert any(s.get("with", {}).get("path") == "_docs" for s in steps)
    for script in (".ci/run", ".ci/browser"): assert os.access(ROOT/script, os.X_OK)


def test_without_a_browser_ci_says_what_is_missing(tmp_path):
    "No chromium on PATH and no way to install one: one sentence, exit code 2"
    for tool in ("sh", "id"): (tmp_path/tool).symlink_to(shutil.which(tool))
    done = subprocess.run([shutil.which("sh"), ROOT/".ci/browser"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.startswith("error: no chromium found")


# The built site ----------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def site():
    "The built site; `make docs` makes it, and keeps what has not changed"
    done = subprocess.run([sys.executable, ROOT/"scripts/docs.py", "--check"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"the site does not build:\n{(done.stdout + done.stderr)[-4000:]}"
    return SITE


@pytest.fixture(scope="module")
def pages(site): return sorted(str(p.relative_to(site)) for p in site.rglob("*.html"))


@pytest.fixture(scope="module")
def chrome(site):
    with served(site) as url, browser() as b: yield b, url


MUST = ("index", "quickstart", "method", "results", "runbook", "pitfalls", "faq", "changelog", "citation", "search", "genindex", "howto/own_dataset", "howto/own_model",
        "howto/own_ocr", "howto/own_corruption", "howto/eight_gpus", "howto/nodes", "howto/resume", "howto/export", "howto/submit", "contributing", "architecture", "glossary")


def test_every_page_is_there(site, pages):
    wanted = {f"{p}.html" for p in MUST} | {f"modules/{re.sub(r'^[0-9]+[a-z]?_', '', p.stem)}.html" for p in (ROOT/"nbs").glob("[0-9]*.ipynb")}
    assert wanted <= set(pages) and len(wanted) > 45, wanted - set(pages)


def test_the_side_bar_shows_the_parts_of_the_book(site):
    html = (site/"modules/train.html").read_text(encoding="utf-8")
    bar = html[html.index("sidebar-tree"):html.index("</aside>")]
    parts = re.findall(r'toctree-l1[^>]*has-children[^>]*><a[^>]*>([^<]+)</a>', bar)
    assert parts == list(yaml.safe_load((DOCS/"parts.yaml").read_text(encoding="utf-8")))


def test_functions_have_signatures_and_parameter_tables(site):
    html = (site/"modules/core.html").read_text(encoding="utf-8")
    entry = html[html.index('id="r3nb.core.nearest"'):][:3000]
    assert "the name that was not found" in entry and "a hint to append to an error message" in entry and "<table" in entry
    index = (site/"genindex.html").read_text(encoding="utf-8")
    assert "modules/corrupt.html#r3nb.corrupt.corrupt" in index and "modules/eval.html#r3nb.eval.EvalConfig" in index


def test_nothing_of_this_machine_is_on_the_site(site, pages):
    for p in pages:
        found = re.findall(r"(?:/home/|/root/|/Users/|/work/)[\w./-]*", (site/p).read_text(encoding="utf-8"))
        assert not found, f"{p}: {found[:3]}"


def test_no_page_asks_for_anything_outside(site):
    "Scripts, styles, fonts and pictures are the site's own, in the files themselves"
    for p in [*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.js")]:
        text = p.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"""(?:src=|@import\s+|url\(|<link[^>]+href=)["']?((?:https?:)?//[^"')\s>]+)""", text) if p.suffix != ".js" else re.findall(r"import\s*\(?[\"'](https?://[^\"']+)", text)
        assert not found, f"{p.relative_to(site)}: {found[:3]}"


def test_links_within_the_site_lead_somewhere(site, pages):
    ids = {p: set(re.findall(r"""\bid=["']([^"']+)""", (site/p).read_text(encoding="utf-8"))) for p in pages}
    wrong = []
    for p in pages:
        for href in re.findall(r"""<a\b[^>]*?\bhref=["']([^"']+)""", (site/p).read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", href): continue
            target, mark = urldefrag(urljoin(f"/{p}", href))
            target = unquote(target).lstrip("/") or "index.html"
            if not (site/target).is_file(): wrong.append(f"{p}: {href} (no file)")
            elif mark and target in ids and unquote(mark) not in ids[target] and mark != "top": wrong.append(f"{p}: {href} (no such place)")
    assert not wrong, wrong[:10]


LONG_LINES = "() => [...document.querySelectorAll('.cell_input pre')].filter(p => p.scrollWidth > p.clientWidth + 1).map(p => p.innerText.slice(0, 80))"


def test_every_page_is_quiet_readable_in_both_themes_and_fits_a_phone(chrome, pages):
    "One load for each page: its faults, the contrast of its text by day and by night, its width on a phone"
    b, url = chrome
    wrong = []
    with visit(b, url, DESK, color_scheme="light") as (page, seen):
        for p in pages:
            page.goto(f"{url}/{p}", wait_until="load")
            assert page.title() and page.locator("h1, #search-results, article").count(), p
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                ink = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", ink)[:3])) < 200) == (scheme == "dark"), f"{p} is {ink} in the {scheme} theme"
                wrong += [f"{p} in the {scheme} theme: {c}" for c in poor_contrast(page, "article *", 4)]
            wrong += [f"{p}: a line of code runs out of its column: {line}" for line in page.evaluate(LONG_LINES)]
            page.set_viewport_size(PHONE)
            wide = too_wide(page)
            wrong += [f"{p}: {f}" for f in seen.faults] + ([f"{p} on a phone: {wide}"] if wide else [])
            page.set_viewport_size(DESK)
            seen.errors.clear(); seen.outside.clear()
    assert not wrong, "\n".join(wrong[:10])


def test_the_theme_can_be_switched_by_hand(chrome):
    b, url = chrome
    with visit(b, f"{url}/index.html", color_scheme="light") as (page, seen):
        themes = []
        for _ in range(3):
            page.locator(".theme-toggle-content button.theme-toggle, .theme-toggle").locator("visible=true").first.click()
            themes.append(page.evaluate("document.body.dataset.theme"))
        assert set(themes) == {"auto", "light", "dark"} and not seen.faults


@pytest.mark.parametrize("word,page_name", [("paired_bootstrap", "modules/metrics"), ("occlusion", "modules/corrupt"), ("SLURM", "howto/nodes")])
def test_search_finds_a_word(chrome, word, page_name):
    b, url = chrome
    with visit(b, f"{url}/index.html") as (page, seen):
        page.locator("input.sidebar-search").fill(word)
        page.locator("input.sidebar-search").press("Enter")
        page.wait_for_selector("#search-results li a")
        page.wait_for_function("!document.querySelector('#search-progress') || /found/i.test(document.querySelector('#search-results').innerText)")
        hrefs = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.getAttribute('href'))")
        assert any(page_name in h for h in hrefs), hrefs[:10]
        page.locator(f"#search-results li a[href*='{page_name}']").first.click()
        page.wait_for_load_state("load")
        assert page_name in page.url and not seen.faults


def test_links_work_by_clicking(chrome):
    "From the home page to the method and on, and to the source that unfolds under a function"
    b, url = chrome
    with visit(b, f"{url}/index.html") as (page, seen):
        page.locator(".sidebar-tree a", has_text="The method").click()
        page.wait_for_url("**/method.html")
        assert page.locator("article img[src$='.svg'], article svg").count() == 1 and page.locator("article math").count() > 5
        page.locator("article a", has_text="Corruption").first.click()
        page.wait_for_url("**/modules/corrupt.html")
        fold = page.locator("details.hide").nth(1)
        assert not fold.locator("pre").is_visible()
        fold.locator("summary").click()
        assert fold.locator("pre").is_visible() and not seen.faults


def test_the_menu_opens_on_a_phone(chrome):
    b, url = chrome
    with visit(b, f"{url}/index.html", PHONE, has_touch=True, is_mobile=True) as (page, seen):
        entry = page.locator(".sidebar-tree a", has_text="Quick start")
        assert not entry.is_visible() or entry.bounding_box()["x"] < 0
        page.locator("label[for='__navigation'].nav-overlay-icon, label.nav-overlay-icon").first.click()
        page.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().left >= 0")
        entry.click()
        page.wait_for_url("**/quickstart.html")
        assert not seen.faults


def test_the_browser_watch_sees_faults(chrome, tmp_path):
    "A page with a broken picture, an exception, a request to another host and a wide box is noticed"
    (tmp_path/"bad.html").write_text("<!doctype html><title>bad</title><article><img src='none.png'><div style='width:3000px'>wide</div><p style='color:#eee'>pale</p>"
                                     "<script src='http://127.0.0.2:9/x.js'></script><script>throw Error('boom')</script></article>")
    with served(tmp_path) as url, visit(chrome[0], f"{url}/bad.html", PHONE) as (page, seen):
        assert any("boom" in e for e in seen.errors) and any("none.png" in e for e in seen.errors) and seen.outside == ["http://127.0.0.2:9/x.js"]
        assert "3000px" in too_wide(page) and any("pale" in c for c in poor_contrast(page))
