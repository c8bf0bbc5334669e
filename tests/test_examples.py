"""Every command's help ends with an example; each is understood by its command, and what is quick is run, in the order in which it stands."""
import configparser
import glob
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from r3nb.core import example_of, parse_cli

ROOT = Path(__file__).parent.parent
BLOCKS = [b.splitlines() for b in (ROOT/"r3nb/examples.sh").read_text(encoding="utf-8").strip().split("\n\n")]
NAMES = [b[0].removeprefix("# ") for b in BLOCKS]
SLOW = {"r3nb_study run": "tests/test_study.py and make test run studies", "r3nb_mini pretrain": "minutes", "r3nb_models": "needs the hub", "r3nb_download": "needs the hub"}
PARTS = {"r3nb_mini": ("world", "pretrain"), "r3nb_study": ("list", "run", "status", "clean"), "r3nb_corrupt": ("freeze", "verify", "fidelity")}


def scripts():
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    return dict(l.strip().split("=") for l in cfg["DEFAULT"]["console_scripts"].splitlines() if l.strip())


def entry(line):
    "The function that a line of an example calls, and its words"
    if line.startswith("sed "): return lambda words: subprocess.run(["sh", "-c", line], check=True), []
    words = [w for word in shlex.split(line) for w in (sorted(glob.glob(word)) if "*" in word else [word])]
    if words[:2] == ["python", "-m"]: place, words = f"{words[2]}:main", words[3:]
    else: place, words = scripts()[words[0]], words[1:]
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name), words


class Parsed(BaseException):
    "Raised with the options, once a command line has been understood"


def test_each_command_has_one_example():
    wanted = {f"{s} {p}" for s, parts in PARTS.items() for p in parts} | (set(scripts()) - set(PARTS)) | {"r3nb_corrupt", "r3nb.explorer", "r3nb.paper"}
    assert set(NAMES) == wanted and len(NAMES) == len(wanted)
    for head, *lines in BLOCKS: assert lines and example_of(head.removeprefix("# ")) == lines
    for name in wanted:                                               # the last line is an example of the command itself
        last = example_of(name)[-1]
        assert last.startswith((f"{name} ", f"python -m {name} ")) or last == name


@pytest.mark.parametrize("line", sorted({line for _, *lines in BLOCKS for line in lines if not line.startswith("sed ")}))
def test_example_is_understood(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def parse(*args, **kw): raise Parsed(parse_cli(*args, **kw))
    main, words = entry(line.replace("*", "x"))
    for m in [m for n, m in sys.modules.items() if n.startswith("r3nb.") and hasattr(m, "parse_cli")]: monkeypatch.setattr(m, "parse_cli", parse)
    with pytest.raises(Parsed): getattr(main, "__wrapped__", main)(words)


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_the_example(name, monkeypatch, capsys):
    main, words = entry(example_of(name)[-1])
    with pytest.raises(SystemExit) as e: main([*name.split()[1:], "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and text.rstrip().endswith("\n".join(f"  {l}" for l in example_of(name)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "What a clean clone has, without its runs"
    root = tmp_path_factory.mktemp("clone")
    (root/"runs").mkdir()
    for name in ("r3nb", "nbs", "runs/profiles"): (root/name).symlink_to(ROOT/name)
    return root


@pytest.mark.slow
def test_quick_examples_run(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    made = set()
    for name in [n for n in NAMES if n not in SLOW]:
        for line in example_of(name):
            if line in made: continue
            main, words = entry(line)
            try: main(words)
            except SystemExit as e: raise AssertionError(f"{line}\n{capsys.readouterr().err[-2000:]}") from e
            made.add(line)
    assert {"eval/summary.json", "submission.json", "tasks", "gallery/gallery.png", "full/model.safetensors", "training/checkpoints/step_4"} <= {
        os.path.relpath(p, clone/"runs/demo") for p in (clone/"runs/demo").rglob("*")}
