"""The notebooks are clean, exported, readable; the metadata agrees with itself."""
import ast
import configparser
import copy
import json
import re
from pathlib import Path

import pytest
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.export import nb_export

import r3nb
from r3nb.study import find_stages

ROOT = Path(__file__).parent.parent
BOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(part[0] in "_." for part in p.relative_to(ROOT).parts))
MODULES = [p for p in BOOKS if re.fullmatch(r"\d\d_\w+", p.stem) and p.parent.name == "nbs"]
name = lambda p: str(p.relative_to(ROOT))
LONG = {"05_model", "06_train", "11_study"} # notebooks with a few cells that are longer than 30 lines
load = lambda p: json.loads(p.read_text(encoding="utf-8"))
text = lambda cell: "".join(cell["source"])


def exported(nb):
    "Sources of the exported cells, without directives"
    cells = [text(c) for c in nb["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^#\|.*\n?", "", s, flags=re.M) for s in cells if re.search(r"^#\|\s*exports?\b", s, re.M)]


def code_lines(source): return [l for l in source.splitlines() if l.strip()]


def prose(nb): return sum(len(text(c).split()) for c in nb["cells"] if c["cell_type"] == "markdown")


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_clean(path):
    nb = load(path)
    clean = copy.deepcopy(nb)
    clean_nb(clean, allowed_cell_metadata_keys=get_config(path=ROOT).allowed_cell_metadata_keys)
    assert clean == nb, f"run: nbdev-clean --fname {name(path)}"


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_no_machine_paths(path):
    found = re.findall(r"(?:/home/|/root/|/Users/|/work/)\S*", json.dumps(load(path)))
    assert not found, f"{name(path)} shows the layout of one machine: {found[:3]}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_exported_in_step(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = re.search(r"^#\|\s*default_exp (\S+)", "\n".join(text(c) for c in load(path)["cells"]), re.M)[1]
    (tmp_path/"r3nb").mkdir()
    nb_export(str(path), lib_path=str(tmp_path/"r3nb"))
    body = lambda p: ast.dump(ast.parse(p.read_text(encoding="utf-8")))
    assert body(tmp_path/f"r3nb/{module}.py") == body(ROOT/f"r3nb/{module}.py"), f"run: nbdev-export ({name(path)} is ahead of {module}.py)"


def test_every_module_has_its_notebook():
    made = {re.search(r"default_exp (\S+)", "\n".join(text(c) for c in load(p)["cells"]))[1] for p in MODULES}
    assert {p.stem for p in (ROOT/"r3nb").glob("*.py")} - {"__init__", "_modidx"} == made


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_prose(path):
    nb = load(path)
    lines = sum(len(code_lines(s)) for s in exported(nb))
    assert prose(nb) >= 3*lines, f"{name(path)}: {prose(nb)} words of prose for {lines} exported lines; at least 3 a line"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_small_cells(path):
    for source in exported(load(path)):
        lines, body = code_lines(source), ast.parse(source).body
        most = 40 if path.stem in LONG else 30
        assert len(lines) <= most, f"{name(path)}: an exported cell of {len(lines)} lines, split it into ideas of at most {most}:\n{lines[0]}"
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body):
            assert all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body), f"{name(path)}: an exported cell mixes imports with code:\n{lines[0]}"


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_opening(path):
    first = load(path)["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n+> .+", text(first)), f"{name(path)} should open with '# Title' and '> one line'"


def test_versions_agree():
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    assert cfg["DEFAULT"]["version"] == r3nb.__version__
    assert cfg["DEFAULT"]["license"] == "Apache-2.0" and "Apache License" in (ROOT/"LICENSE").read_text()


def test_lock_satisfies_settings():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    pins = dict(l.split("==") for l in (ROOT/"locks/cpu.txt").read_text().splitlines() if l and l[0] != "#")
    pins = {canonicalize_name(k): v for k, v in pins.items()}
    wanted = [l.strip() for key in ("requirements", "cpu_requirements", "docs_requirements", "dev_requirements") for l in cfg["DEFAULT"][key].splitlines() if l.strip()]
    for r in map(Requirement, wanted):
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), f"locks/cpu.txt has {r.name} {pins[canonicalize_name(r.name)]}, settings.ini wants {r}"


def test_stage_notebooks_have_parameters():
    keys = [s.key for s in find_stages(ROOT/"nbs/stages")]
    assert keys == ["world", "prepare", "index", "train", "eval", "report"]
