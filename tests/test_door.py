"The door: what README, CONTRIBUTING, the logs, the architecture, the glossary and the templates say is there, and the quick check of a part."
import configparser
import graphlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"scripts"))
GUIDE = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")
house, quick = importlib.import_module("house"), importlib.import_module("quick")
sys.path.remove(str(ROOT/"scripts"))


def script(*words):
    "Run a script of the project with this Python"
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def make(*words):
    "What make would do, without doing it; the environment counts as there"
    return subprocess.run(["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "-o", ".lmms/.installed", *words], cwd=ROOT, capture_output=True, text=True)


# CONTRIBUTING ------------------------------------------------------------------------------------------------------------------------

def test_make_knows_every_target():
    named = set(re.findall(r"\bmake ([a-z]+)", GUIDE))
    assert {"dev", "export", "quick", "test", "lab"} <= named
    text = (ROOT/"Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split())
    assert named <= phony and phony - {"help"} == set(re.findall(r"^make (\w+)", make_help(), re.M)), "a target without a line in make help"
    for target in named: assert make(target).returncode == 0, make(target).stderr


def make_help(): return subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True).stdout


def test_the_commands_do_what_the_guide_says():
    assert "scripts/quick.py corrupt" in make("quick", "PART=corrupt").stdout and "hooks.py" in make("dev").stdout
    assert all(w in make("export").stdout for w in ("nbdev-clean", "nbdev-export", "readme.py", "house.py"))
    assert all(w in make("test").stdout for w in ("ruff check", "scripts/docs.py", "-m pytest", "nbs/explore.ipynb", "r3nb_study"))
    assert "make test" in (ROOT/".ci/run").read_text()
    assert "-n 2" in tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]


def test_every_file_that_the_guide_names_is_there():
    linked = re.findall(r"\]\(([^)#\s]+)", GUIDE)
    named = [w for w in re.findall(r"`([\w./-]+)`", GUIDE) if re.search(r"/|\.(md|py|ipynb)$", w) or (ROOT/w).is_file()]
    assert len(linked) > 8 and len(named) > 10
    missing = [w for w in {*linked, *named} if not (ROOT/w).exists()]
    assert not missing, missing


def test_every_name_that_the_guide_names_is_there():
    "Tables and tests, in the notebook or file that the guide says"
    pairs = re.findall(r"`(\w+)`(?: and `\w+`)?[^`.]*? in `((?:nbs|tests)/[\w.]+)`", GUIDE)
    assert {"DATASETS", "MODES", "LOOK"} <= {n for n, _ in pairs}
    for name, file in pairs: assert re.search(rf"\b{name}\b", (ROOT/file).read_text(encoding="utf-8")), f"{file} has no {name}"
    for name in ("IMAGE_FAMILIES", "TEXT_FAMILIES"): assert hasattr(importlib.import_module("r3nb.corrupt"), name)
    assert len(GUIDE.splitlines()) <= 60


def test_a_family_in_the_package_needs_no_table(monkeypatch):
    "The recipe of the guide: a function of r3nb.corrupt is a family, and the draw stays what it was"
    import numpy as np
    from PIL import Image

    from r3nb import corrupt as C
    from r3nb.core import QARecord
    record = QARecord("s", "d", "val", "i", "i.png", "q?", "a", ["a"], "a text")
    page = Image.fromarray(np.linspace(0, 200, 40*60*3).reshape(40, 60, 3).astype(np.uint8))
    before = C.draw_families("s")
    monkeypatch.setattr(C, "darker", lambda img, s, r: (img*(1 - s)).astype(np.uint8), raising=False)
    damaged = C.corrupt(record, page, .5, families="r3nb.corrupt:darker")
    assert np.asarray(damaged.image).max() == 100 and damaged.families == ("r3nb.corrupt:darker",) and C.draw_families("s") == before


def test_a_metric_in_the_package_needs_no_table(monkeypatch):
    "A function of r3nb.metrics is a metric, in dataset.json and in the registry"
    from r3nb import metrics as M
    from r3nb.data import DATASETS, DatasetSpec
    monkeypatch.setattr(M, "halves", lambda prediction, references: .5, raising=False)
    assert M.score("menus", "x", ["y"], "r3nb.metrics:halves")["score"] == .5
    monkeypatch.setitem(DATASETS, "bills", DatasetSpec("bills", (), "question", "answers", "r3nb.metrics:halves"))
    assert M.score("bills", "x", ["y"]) | {"em": 0} == M.score("menus", "x", ["y"], "r3nb.metrics:halves") | {"em": 0}


def test_a_dataset_in_the_registry_needs_no_other_table(monkeypatch, tmp_path):
    from r3nb.core import write_jsonl
    from r3nb.data import DATASETS, DatasetSpec, UnifyConfig, unify
    from r3nb.metrics import score
    monkeypatch.setitem(DATASETS, "bills", DatasetSpec("bills", (), "ask", "reply", "anls", ocr_field="seen"))
    write_jsonl(tmp_path/"bills/bills_raw_val.jsonl", [{"ask": "What?", "reply": ["12"], "image": "a.png", "seen": "Total 12"}])
    from PIL import Image
    Image.new("RGB", (8, 8)).save(tmp_path/"bills/a.png")
    unify(UnifyConfig("bills", str(tmp_path/"bills"), str(tmp_path/"u")))
    row, = map(json.loads, (tmp_path/"u/bills_unified_val.jsonl").read_text().splitlines())
    assert row["pseudo_text"] == "Total 12" and score("bills", "12", row["answers"])["score"] == 1


def test_a_mode_in_its_table_is_answered_listed_and_drawn(monkeypatch):
    import pandas as pd

    from r3nb import eval as E
    from r3nb.compare import modes_in
    from r3nb.figures import drawn_modes
    monkeypatch.setitem(E.MODES, "quotes", ("base", False, "retrieved"))
    mode = E.parse_mode("quotes+shuffled")
    assert (mode.model, mode.text, mode.evidence) == ("base", False, "shuffled") and E.parse_mode("quotes").evidence == "retrieved"
    assert modes_in(pd.DataFrame({"mode": ["quotes", "r3", "rag"]})) == (["rag", "r3", "quotes"], "r3")
    assert drawn_modes({"quotes", "r3", "r3-gate", "rag+shuffled"}) == ["r3", "quotes"]


# README ------------------------------------------------------------------------------------------------------------------------------

README = (ROOT/"README.md").read_text(encoding="utf-8")
PLAIN = " ".join(README.split()) # without the ends of lines
FULL, ONE, READ = (json.loads((ROOT/f"nbs/results/{n}.json").read_text()) for n in ("mini-full/results", "mini", "mini-reocr"))
POOLED = FULL["pooled"]
signed = lambda x: f"{100*x:+.1f}".replace("-", "−")
point = lambda r: f"{signed(r['estimate'])} [{signed(r['low'])}, {signed(r['high'])}]"


def rows(table, a, b, **where):
    found = [r for r in table if (r["a"], r["b"]) == (a, b) and all(r.get(k) == v for k, v in where.items())]
    return sorted(found, key=lambda r: r["level"])


def fenced(kind): return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.slow
def test_the_five_lines_run_and_print_what_readme_shows():
    "In a process that may not ask any hub, with nothing but what is in a clone"
    code, shown = fenced("python")[0], fenced("text")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def test_readme_installs_what_is_there():
    shell = "\n".join(fenced("sh"))
    assert "pip install -c locks/cpu.txt -e ." in shell and (ROOT/"locks/cpu.txt").is_file() and "on no package index" in PLAIN
    meta = configparser.ConfigParser(interpolation=None)
    meta.read(ROOT/"settings.ini", encoding="utf-8")
    assert f"Python {meta['DEFAULT']['min_python']} or newer" in README
    for target in re.findall(r"make ([a-z]+)", shell): assert make(target).returncode == 0
    long = [line for line in README.splitlines() if len(line) > 135 and not line.startswith(("|", "!["))]
    assert not long, f"wrap {long[0]}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "DEVLOG.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_files(name):
    missing = [w for w in re.findall(r"\]\(([^)#\s]+)", (ROOT/name).read_text(encoding="utf-8")) if not re.match("[a-z]+:", w) and not (ROOT/w).exists()]
    assert not missing, missing


def test_every_number_of_the_results_is_saved():
    "Each figure with a decimal between the two headings is a value of the saved files, rounded"
    part = README[README.index("## What came out"):README.index("## Beside other pipelines")]
    saved = set()
    def collect(x):
        if isinstance(x, dict): [collect(v) for v in x.values()]
        elif isinstance(x, list): [collect(v) for v in x]
        elif isinstance(x, float): saved.add(f"{abs(100*x):.1f}")
    for results in (FULL, ONE, READ): collect(results)
    said = re.findall(r"(?<![\d=.])\d+\.\d(?!\d)", re.sub(r"λ ?= ?[\d., ]+\d", "", part))
    assert len(said) > 150 and not set(said) - saved, set(said) - saved


def test_every_row_of_the_table_of_differences_is_that_of_the_file():
    invented = {r["what"]: r for r in ONE["invented"]}
    for name, found in {"R3 − `rag`": rows(POOLED["differences"], "r3", "rag", dataset="all"), "the same, text read again by OCR ¹": rows(READ["differences"], "r3", "rag"),
                        "R3 − `lora`, another page states the fact": rows(POOLED["by_sibling"], "r3", "lora", has_sibling=True),
                        "R3 − `lora`, no other page does": rows(POOLED["by_sibling"], "r3", "lora", has_sibling=False),
                        "R3 − `base+text`, all questions": rows(POOLED["differences"], "r3", "base+text", dataset="all"),
                        "R3 − `base+text`, questions about the picture": rows(POOLED["gain_by_kind"], "r3", "base+text", kind="visual"),
                        "invented answers, R3 − `rag` ²": [invented[f"λ={v:g}"] for v in ONE["levels"]]}.items():
        assert len(found) == 5 and f"| {name} | {' | '.join(map(point, found))} |" in README, name


def test_every_sentence_of_the_results_holds():
    "What words say about the numbers, not the numbers again"
    assert READ["made_from"]["text_damage"] == "reocr" and ONE["made_from"]["text_damage"] == "simulated"
    ahead = "ahead at λ = 0, 0.2, 0.4, 0.6, 0.8"
    for table in (POOLED, READ): assert all(r["low"] > 0 for r in rows(table["differences"], "r3", "rag", dataset="all"))
    assert f"**R3 against `rag`**: {ahead}. This mixes three things" in PLAIN and f"With text read again: {ahead}." in PLAIN
    assert all(r["low"] > 0 for r in rows(POOLED["by_sibling"], "r3", "lora", has_sibling=True) if r["level"]) and "From λ = 0.2 on" in PLAIN
    assert all(r["low"] <= 0 <= r["high"] for r in rows(POOLED["by_sibling"], "r3", "lora", has_sibling=False) if r["level"])
    false = [r["estimate"] for r in rows(POOLED["differences"], "r3+shuffled", "lora", dataset="all")]
    assert f"between {signed(min(false))} and {signed(max(false))} points from `lora`" in PLAIN
    lost, idle = PLAIN.split("Points lost at")[1].split("**No effect of the modules")
    for r in (r for r in POOLED["ablations"] if "-" in r["mode"]):
        assert f"{r['mode'][3:].replace('_', ' ')} {point(r)}" in (lost if r["p_holm"] < .05 and r["estimate"] > 0 else idle), r["mode"]
    assert "switched off at test time (none was trained without it)" in lost and "0.2, 0.6" in lost[:20]
    whole, visual = rows(POOLED["differences"], "r3", "base+text", dataset="all")[0], rows(POOLED["gain_by_kind"], "r3", "base+text", kind="visual")[0]
    assert whole["low"] <= 0 <= whole["high"] and visual["high"] < 0 and "undecided at λ = 0 over all questions, and behind at λ = 0" in PLAIN
    more = {r["what"]: r["low"] > 0 for r in ONE["invented"] if r["what"].startswith("λ")}
    assert [k for k, v in more.items() if v] == ["λ=0.6", "λ=0.8"] and "invents more answers than `rag`** at λ = 0.6, 0.8;" in PLAIN
    seconds = sum(sum(v["seconds"].values()) for v in FULL["made_from"]["variants"].values())
    assert f"{seconds/60:.0f} minutes on 2 cores" in PLAIN and "PROFILE=runs/profiles/mini-full.yaml" in PLAIN and (ROOT/"runs/profiles/mini-full.yaml").is_file()
    assert round(sum(FULL["made_from"]["variants"]["training0"]["seconds"].values())/60) == 10 and "10 minutes on 2 cores" in PLAIN
    tasks = json.loads((ROOT/"benchmarks/interchange.json").read_text())["tasks"]
    assert len(tasks) == 12 and "in all 12 of them prompts, answers and scores were" in PLAIN
    assert all(t["questions"] == t["same_prompts"] == t["same_answers"] == t["same_scores"] for t in tasks)


def test_sentences_that_no_saved_result_carries_are_gone():
    pages = [README, *((ROOT/p).read_text(encoding="utf-8") for p in ("nbs/method.ipynb", "nbs/results.ipynb", "nbs/tutorials/ten_minutes.ipynb", "docs/faq.md", "docs/quickstart.md"))]
    for phrase in ("decides whom to trust", "What evidence is worth", "parts earn their place", "points lost without them", "above `rag` at every level", "False evidence is of no use"):
        assert not [1 for text in pages if phrase in text], phrase


# Logs ---------------------------------------------------------------------------------------------------------------------------------

def test_entries_of_the_log_have_a_date_and_a_result():
    text = (ROOT/"DEVLOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^#{2,} .*", text, re.M)
    wrong = [h for h in heads if not re.fullmatch(r"## \d{4}-\d\d-\d\d · [^:]{3,60}[:,] .{8,}|## \d{4}-\d\d-\d\d · (Dependencies|Study commands|Not run|World|OCR|Endpoint) ?.*", h) or len(h) > 160]
    dates = [h[3:13] for h in heads]
    assert len(heads) > 80 and not wrong and dates == sorted(dates, reverse=True), wrong
    assert "To add an entry" in text and "Negative results stay" in text


def test_versions_agree_and_the_changelog_has_their_form():
    meta = configparser.ConfigParser(interpolation=None)
    meta.read(ROOT/"settings.ini", encoding="utf-8")
    version, text = meta["DEFAULT"]["version"], (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")
    import r3nb
    assert r3nb.__version__ == version == yaml.safe_load((ROOT/"CITATION.cff").read_text())["version"]
    heads = re.findall(r"^## (.+)", text, re.M)
    assert heads[0] == f"{r3nb.__version__} (unreleased)" and all(re.fullmatch(r"\d+\.\d+\.\d+ – \d{4}-\d\d-\d\d", h) for h in heads[1:])
    assert set(re.findall(r"^### (.+)", text, re.M)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# The quick check ---------------------------------------------------------------------------------------------------------------------

def test_an_unknown_part_is_refused():
    done = script("scripts/quick.py", "corupt")
    assert done.returncode == 1 and "did you mean 'corrupt'" in done.stderr and "own_dataset" in done.stderr and "Traceback" not in done.stderr
    done = script("scripts/quick.py")
    assert done.returncode == 1 and "PART=corrupt" in done.stderr and "train" in done.stderr


@pytest.mark.parametrize("part", sorted(quick.parts()))
def test_every_part_has_tests(part):
    missing = [p.name for p in quick.tests_of(part) if not p.is_file()]
    assert not missing, f"part {part}: no tests/{missing[0]}; write it, or say in TESTS of scripts/quick.py which tests the part has"


def test_no_part_of_the_table_is_gone():
    assert set(quick.TESTS) <= set(quick.parts())
    idle = [p for p, names in quick.TESTS.items() if p not in names and (ROOT/f"tests/test_{p}.py").is_file()]
    assert not idle, f"tests/test_{idle[0]}.py is there, and scripts/quick.py does not run it"


def test_a_failing_part_fails_and_says_why(capsys):
    assert quick.run({"lint": ["ruff", "check", "--quiet", "scripts/quick.py"]}) is None
    said = quick.run({"form": ["ruff", "check", "no_such_file.py"], "later": ["no-such-tool"]})
    assert "no_such_file.py" in said and "failed in" in capsys.readouterr().out


def test_the_quick_check_covers_lint_notebook_form_and_tests():
    first, second = quick.checks("corrupt", ROOT/"nbs/03_corrupt.ipynb")
    (lint, notebook), (tests,) = first.values(), second.values()
    assert lint[:2] == ["ruff", "check"] and "r3nb/corrupt.py" in lint and notebook == ["nbdev-test", "nbs/03_corrupt.ipynb"]
    assert {"tests/test_corrupt.py", "tests/test_notebooks.py::test_exported_in_step[nbs/03_corrupt.ipynb]"} <= set(tests) and "not slow" in tests
    forms = (ROOT/"tests/test_notebooks.py").read_text(encoding="utf-8")
    assert all(f"def test_{name}(path" in forms for name in quick.CELLS)
    assert not any("small_cells" in w for w in quick.checks("own_ocr", ROOT/"nbs/howto/own_ocr.ipynb")[1].popitem()[1])


# The picture of the house ------------------------------------------------------------------------------------------------------------

def test_the_picture_is_in_step():
    assert (ROOT/"docs/architecture.svg").read_text(encoding="utf-8") == house.picture(), "run: make export"


def test_the_modules_import_in_no_circle():
    graph = house.imports(house.modules())
    assert list(graphlib.TopologicalSorter(graph).static_order()) and set(house.modules().values()) <= set(house.ROWS)


def test_an_import_that_follows_from_others_is_not_drawn():
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert house.needed(graph) == {"a": [], "b": ["a"], "c": ["b"]}
    at = house.places({"a": "01", "b": "02", "c": "02"}, house.needed(graph))
    assert at["a"][1] < at["b"][1] == at["c"][1] and at["b"][0] != at["c"][0]


def test_every_module_and_every_arrow_is_in_the_picture():
    svg, arrows = house.picture(), house.needed(house.imports(house.modules()))
    assert all(f">{m}</text>" in svg for m in house.modules())
    assert len(re.findall(r'<path d="M\d+ \d+C', svg)) == sum(map(len, arrows.values())) > 30


# Glossary, templates, package --------------------------------------------------------------------------------------------------------

def test_the_glossary_says_each_word_once_in_one_sentence():
    entries = re.findall(r"^\* \*\*([^*]+)\*\*[^:]*: (.+)$", (ROOT/"docs/glossary.md").read_text(encoding="utf-8"), re.M)
    words = [w for w, _ in entries]
    assert {"page", "record", "case", "damage", "family", "level", "evidence", "passage", "channel", "shard"} <= set(words) and len(words) == len(set(words))
    assert all(s.endswith(".") and ". " not in s for _, s in entries), [w for w, s in entries if ". " in s or not s.endswith(".")]


def test_templates_and_hooks_can_be_read():
    for p in (ROOT/".github/ISSUE_TEMPLATE").glob("*.md"):
        head = yaml.safe_load(p.read_text(encoding="utf-8").split("---")[1])
        assert {"name", "about"} <= set(head), p.name
    assert yaml.safe_load((ROOT/".github/ISSUE_TEMPLATE/config.yml").read_text())["contact_links"][0]["url"].endswith("SECURITY.md")
    assert "make quick PART=" in (ROOT/".github/PULL_REQUEST_TEMPLATE.md").read_text()
    meta = configparser.ConfigParser(interpolation=None)
    meta.read(ROOT/"settings.ini", encoding="utf-8")
    assert meta["DEFAULT"]["author_email"] in (ROOT/"SECURITY.md").read_text()


def test_hooks_of_a_commit_call_tools_that_are_there():
    hooks = yaml.safe_load((ROOT/".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {h["id"] for h in hooks} == {"clean", "export", "architecture", "ruff"}
    for h in hooks:
        tool, *rest = h["entry"].split()
        assert (Path(sys.executable).parent/Path(tool).name).exists() and h["language"] == "system"
        assert all((ROOT/w).exists() for w in rest if w.endswith(".py"))
        if "files" in h: assert re.search(h["files"], "nbs/03_corrupt.ipynb")


def test_the_package_says_that_it_is_typed():
    assert (ROOT/"r3nb/py.typed").is_file() and '"py.typed"' in (ROOT/"setup.py").read_text()


def test_hooks_of_a_linked_worktree_are_refused(tmp_path):
    (tmp_path/"scripts").mkdir()
    (tmp_path/"scripts/hooks.py").write_text((ROOT/"scripts/hooks.py").read_text())
    for told in ("not a git clone", "linked worktree"):
        done = script(str(tmp_path/"scripts/hooks.py"))
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr
        (tmp_path/".git").write_text("gitdir: elsewhere\n")
