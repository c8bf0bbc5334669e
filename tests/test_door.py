"The door: what CONTRIBUTING, the architecture, the glossary and the templates say is there, and the quick check of a part."
import configparser
import graphlib
import importlib
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
    assert {"METRICS", "SCORES", "DATASETS", "MODES", "LOOK"} <= {n for n, _ in pairs}
    for name, file in pairs: assert re.search(rf"\b{name}\b", (ROOT/file).read_text(encoding="utf-8")), f"{file} has no {name}"
    for name in ("IMAGE_FAMILIES", "TEXT_FAMILIES"): assert hasattr(importlib.import_module("r3nb.corrupt"), name)
    for name in ("METRIC_KEYS", "score"): assert hasattr(importlib.import_module("r3nb.metrics"), name)


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
