"""The study: nothing done twice, nothing half-done looks whole, mistakes found before any work."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

import r3nb.study as study
from r3nb.core import ConfigError, read_json, sha256_file, sha256_text, write_json
from r3nb.study import CleanConfig, StageError, StudyConfig, code_of, find_stages, imports_of, load_profile, hold, open_study, parameters_of, pick_stages, read_book, survey

KERNEL = {"name": "python3", "display_name": "python3", "language": "python"}
BODIES = {
    "0_make": ("n = 3 # how many\nrate = 0.5", "rows = list(range(n))\nprint('made', n, 'rows')\nmetrics = {'rows': rows, 'seed': seed}"),
    "1_sum": ("scale = 1.0\nnames = ['a']", "metrics = {'sum': scale*sum(read_json(f'{study_dir}/0_make/metrics.json')['rows'])}"),
    "2_say": ("word = 'total'", "total = read_json(f'{study_dir}/1_sum/metrics.json')['sum']\nmetrics = {'total': total}\n"
              "from pathlib import Path\nPath(f'{out_dir}/summary.md').write_text(f'# Report\\n\\n| word | total |\\n|---|---|\\n| {word} | {total} |\\n')"),
}


def cell(source, kind="code", tags=()):
    extra = {} if kind == "markdown" else {"outputs": [], "execution_count": None}
    return dict(cell_type=kind, id=f"c{abs(hash(source)) % 10**6}", metadata={"tags": list(tags)}, source=source, **extra)


def write_stage(folder, name, params, body, end=True, note="Some prose."):
    "Write a fake stage notebook"
    head = f"out_dir = 'runs/t/{name}'\nstudy_dir = 'runs/t'\nseed = 0\n{params}"
    tail = "write_json(f'{out_dir}/metrics.json', metrics)\nwrite_manifest(out_dir, {}, {'seed': seed}, outputs=[f'{out_dir}/metrics.json'])"
    cells = [cell(note, "markdown"), cell(head, tags=["parameters"]), cell("from r3nb.core import read_json, write_json, write_manifest"), cell(body)]
    nb = dict(cells=cells + ([cell(tail)] if end else []), metadata={"kernelspec": KERNEL}, nbformat=4, nbformat_minor=5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f"{name}.ipynb").write_text(json.dumps(nb))


class Lab:
    "A study of fake stages in a temporary folder"
    def __init__(self, root, bodies=BODIES):
        self.root, self.stages, self.dir = root, root/"stages", root/"runs/t"
        for name, (params, body) in bodies.items(): write_stage(self.stages, name, params, body)
        self.profile("")

    def profile(self, text): (self.root/"t.yaml").write_text(f"name: t\nseed: 5\n{text}")
    def argv(self, *more): return [str(self.root/"t.yaml"), "--out", str(self.root/"runs"), "--stages", str(self.stages), *more]
    def config(self, **kw): return StudyConfig(str(self.root/"t.yaml"), str(self.root/"runs"), str(self.stages), **kw)
    def metrics(self, stage): return read_json(self.dir/stage/"metrics.json")

    def ran(self, capsys, **kw):
        "Run the study; the stages that were executed"
        capsys.readouterr()
        study.study(self.config(**kw))
        return [l.split()[1].rstrip(":") for l in capsys.readouterr().out.splitlines() if ": running" in l]


@pytest.fixture
def lab(tmp_path): return Lab(tmp_path)


def test_kernels_do_not_show_messages_that_nobody_can_act_on(tmp_path, capsys):
    body = "import os, warnings\nwarnings.warn('`is_gradient_checkpointing` is deprecated and', FutureWarning)\nwarnings.warn('mine', FutureWarning)\n" \
           "metrics = {'bars': os.environ['HF_HUB_DISABLE_PROGRESS_BARS'], 'path': os.environ['PATH']}"
    lab = Lab(tmp_path, {"0_make": ("n = 1", body)})
    lab.ran(capsys)
    assert lab.metrics("0_make") == {"bars": "1", "path": os.environ["PATH"]}
    log = (lab.dir/"0_make/log.txt").read_text()
    assert "mine" in log and "is deprecated and" not in log


@pytest.mark.slow
def test_whole_study(lab, capsys, monkeypatch, tmp_path):
    stranger = tmp_path/"share/kernels/python3"
    stranger.mkdir(parents=True)
    (stranger/"kernel.json").write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path/"share"))
    study.main(lab.argv())
    out = capsys.readouterr().out
    assert lab.metrics("0_make") == {"rows": [0, 1, 2], "seed": 5} and lab.metrics("2_say") == {"total": 3.0}
    assert "[1/3] 0_make: running" in out and "made 3 rows" in out and "| total | 3.0 |" in out and "summary.md" in out
    for s in BODIES:
        assert {p.name for p in (lab.dir/s).iterdir()} - {"summary.md", ".key"} == {"notebook.ipynb", "metrics.json", "manifest.json", "log.txt"}
    assert "made 3 rows" in (lab.dir/"0_make/log.txt").read_text()
    nb = read_json(lab.dir/"0_make/notebook.ipynb")
    assert any("made 3 rows" in "".join(o.get("text", "")) for c in nb["cells"] for o in c.get("outputs", []))
    assert str(tmp_path) not in json.dumps(nb["metadata"]["papermill"]["output_path"])

    assert lab.ran(capsys) == []                                      # unchanged: nothing is redone
    lab.profile("sum: {scale: 2.0}\n")
    assert lab.ran(capsys) == ["1_sum", "2_say"]                      # a parameter: this stage and what follows
    assert lab.metrics("2_say") == {"total": 6.0}
    lab.profile("sum: {scale: 2.0}\nsay: {word: all}\n")
    assert lab.ran(capsys) == ["2_say"]
    write_stage(lab.stages, "2_say", *BODIES["2_say"], note="Better prose.")
    assert lab.ran(capsys) == []                                      # prose is not code
    write_stage(lab.stages, "2_say", BODIES["2_say"][0], BODIES["2_say"][1] + "\nmetrics['new'] = 1")
    assert lab.ran(capsys) == ["2_say"] and lab.metrics("2_say")["new"] == 1
    (lab.dir/"1_sum/metrics.json").unlink()
    assert lab.ran(capsys) == ["1_sum", "2_say"]                      # a lost output is made again


def test_unchanged_run_is_quick_and_imports_no_torch(lab):
    study.study(lab.config(only=["make"]))
    code = ("import sys; from r3nb.study import main; main(sys.argv[1:])\n"
            "assert not {'torch', 'papermill', 'transformers'} & set(sys.modules), 'heavy imports'")
    t = time.time()
    done = subprocess.run([sys.executable, "-c", code, *lab.argv("--only", "make")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[1/3] 0_make: up to date" in done.stdout and time.time() - t < 5


def test_killed_in_a_stage_and_run_again(tmp_path, capsys):
    slow = ("from pathlib import Path\nimport time\nhalf = Path(out_dir)/'half.txt'\nfirst = not half.exists()\nhalf.write_text('done so far')\n"
            "Path(study_dir, 'pid').write_text(str(__import__('os').getpid()))\n"
            "if first:\n    Path(out_dir, '.tmp-123-x').write_text('torn')\n    time.sleep(120)\nmetrics = {'resumed': not first}")
    lab = Lab(tmp_path, {"0_make": BODIES["0_make"], "1_slow": ("k = 1", slow)})
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *lab.argv()], stdout=subprocess.DEVNULL)
    for _ in range(300):
        if (lab.dir/"pid").exists() and (lab.dir/"pid").read_text(): break
        time.sleep(0.1)
    assert (lab.dir/"0_make/manifest.json").exists() and not (lab.dir/"1_slow/manifest.json").exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert lab.ran(capsys) == ["1_slow"]                              # finished stages are kept, the killed one goes on
    assert lab.metrics("1_slow") == {"resumed": True} and not list(lab.dir.rglob(".tmp-*"))
    lab.profile("slow: {k: 2}\n")
    (lab.dir/"1_slow/half.txt").write_text("of other parameters")
    (lab.dir/"1_slow/notes.txt").write_text("somebody's")
    book = read_book(lab.dir)
    write_json(lab.dir/study.BOOK, book | {"1_slow": book["1_slow"] | {"files": [*book["1_slow"]["files"], "half.txt"]}})
    stages = find_stages(lab.stages)
    run = study.Run(load_profile(tmp_path/"t.yaml", stages), stages, lab.dir)
    study.execute, kept = lambda *a: None, study.execute
    try: run.start(stages[1])
    finally: study.execute = kept
    assert not (lab.dir/"1_slow/half.txt").exists()                   # other parameters start clean
    assert (lab.dir/"1_slow/notes.txt").exists() and "notes.txt" not in read_book(lab.dir)["1_slow"]["files"]


def test_kernel_ends_with_its_study(tmp_path):
    lab = Lab(tmp_path, {"0_wait": ("k = 1", "from pathlib import Path\nimport os, time\nPath(study_dir, 'pid').write_text(str(os.getpid()))\ntime.sleep(120)")})
    child = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *lab.argv()], stdout=subprocess.DEVNULL)
    for _ in range(300):
        if (lab.dir/"pid").exists() and (lab.dir/"pid").read_text(): break
        time.sleep(0.1)
    kernel = int((lab.dir/"pid").read_text())
    with pytest.raises(ConfigError, match="another study"), hold(lab.dir, wait=0): pass
    child.kill()
    child.wait()
    with hold(lab.dir, wait=20): pass                               # free as soon as the kernel is gone, not before
    for _ in range(50):
        if not Path(f"/proc/{kernel}").exists() or "Z" in Path(f"/proc/{kernel}/stat").read_text().split(")")[-1]: break
        time.sleep(0.1)
    else: pytest.fail("the kernel outlived its study")


def test_failing_stage(lab, capsys):
    write_stage(lab.stages, "1_sum", BODIES["1_sum"][0], "print('before')\nmetrics = {}\nraise ZeroDivisionError('made up')")
    with pytest.raises(SystemExit) as e: study.main(lab.argv())
    err = capsys.readouterr().err
    assert e.value.code == 2 and "stage 1_sum failed" in err and "ZeroDivisionError: made up" in err and "1_sum/log.txt" in err and "\x1b" not in err
    assert {p.name for p in (lab.dir/"1_sum").iterdir()} == {".key", "log.txt", "notebook.failed.ipynb"}
    assert "ZeroDivisionError" in (lab.dir/"1_sum/log.txt").read_text() and not (lab.dir/"2_say").exists()
    write_stage(lab.stages, "1_sum", *BODIES["1_sum"])
    assert lab.ran(capsys) == ["1_sum", "2_say"] and not (lab.dir/"1_sum/notebook.failed.ipynb").exists()


def test_errors_of_the_user_come_without_a_trace(lab, capsys):
    write_stage(lab.stages, "0_make", BODIES["0_make"][0], "from r3nb.core import DataError\nraise DataError('f.jsonl:3: no answers; drop the row')")
    with pytest.raises(StageError, match="DataError: f.jsonl:3: no answers; drop the row") as e: study.study(lab.config())
    assert "Traceback" not in str(e.value)


def test_stage_without_manifest(lab):
    write_stage(lab.stages, "0_make", *BODIES["0_make"], end=False)
    with pytest.raises(StageError, match="without writing metrics.json and manifest.json"): study.study(lab.config())
    assert not (lab.dir/"0_make/notebook.ipynb").exists()


def test_dead_kernel(lab):
    write_stage(lab.stages, "0_make", BODIES["0_make"][0], "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(StageError, match="out of memory"): study.study(lab.config())
    assert not (lab.dir/"0_make/notebook.ipynb").exists()


@pytest.mark.parametrize("text, says", [
    ("mak:\n  n: 1\n", r"t.yaml:3: unknown stage 'mak'.*did you mean 'make'"), ("make:\n  n: 1\n  rte: 2\n", r"t.yaml:5: unknown parameter 'rte'.*'rate'"),
    ("make:\n  n: many\n", r"t.yaml:4: 'n' should be int"), ("make:\n  n: 1\n  n: 2\n", r"t.yaml:5: 'n' is given twice"),
    ("make: 3\n", r"t.yaml:3: 'make' should hold"), ("make: {n: 1\n", "not YAML"), ("make:\n  out_dir: x\n", "unknown parameter 'out_dir'"),
    ("sum:\n  names: 3\n", "'names' should be list")])
def test_profile_faults_come_before_any_work(lab, text, says):
    lab.profile(text)
    with pytest.raises(ConfigError, match=says): study.study(lab.config())
    assert not lab.dir.exists()


@pytest.mark.parametrize("text", ["", "3", "- a", "name: ../x\n", "seed: -1\n", "seed: x\n", "name: [1]\n"])
def test_odd_profiles(tmp_path, lab, text):
    (tmp_path/"odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match="odd.yaml"): load_profile(tmp_path/"odd.yaml", find_stages(lab.stages))


def test_missing_profile(lab):
    with pytest.raises(ConfigError, match="no such profile"): load_profile("no.yaml", find_stages(lab.stages))


def test_profile_types(lab):
    lab.profile("make:\n  rate: 1e-3\n  seed: 9\nsum:\n  scale: 2\nsay:\n")
    p = load_profile(lab.root/"t.yaml", find_stages(lab.stages))
    assert p.params == {"0_make": {"rate": 1e-3, "seed": 9}, "1_sum": {"scale": 2.0}, "2_say": {}} and p.seed == 5


def test_stage_notebook_faults(tmp_path):
    with pytest.raises(ConfigError, match="no stage notebooks"): find_stages(tmp_path)
    write_stage(tmp_path, "0_a", "x = = 1", "pass")
    with pytest.raises(ConfigError, match="0_a.ipynb: cell 1.*not Python"): parameters_of(tmp_path/"0_a.ipynb")
    nb = dict(cells=[cell("seed = 0", tags=["parameters"])], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path/"0_a.ipynb").write_text(json.dumps(nb))
    with pytest.raises(ConfigError, match="lacks 'out_dir'"): parameters_of(tmp_path/"0_a.ipynb")
    nb["cells"][0]["metadata"] = {}
    (tmp_path/"0_a.ipynb").write_text(json.dumps(nb))
    with pytest.raises(ConfigError, match="0 cells tagged"): parameters_of(tmp_path/"0_a.ipynb")


def test_parameters_and_magics(tmp_path):
    write_stage(tmp_path, "0_a", "x: float = 1.0\ny = [1, 'a']\nz = 2*3", "%matplotlib inline\nif x:\n    !ls\nfrom r3nb.core import rng")
    p = parameters_of(tmp_path/"0_a.ipynb")
    assert p["x"] == 1.0 and p["y"] == [1, "a"] and p["z"] is ... and "core" in code_of(tmp_path/"0_a.ipynb")


def test_imports():
    assert imports_of("import r3nb.data\nfrom r3nb import ocr, eval as e\nfrom .core import x\nfrom . import mini\nimport numpy.r3nb") == {
        "data", "ocr", "eval", "core", "mini"}
    assert imports_of("engine = 'r3nb.ocr:RapidOCREngine'\ns = 'see r3nb.core for more'") == {"ocr"}


def test_import_closure_is_transitive(tmp_path, lab):
    write_stage(tmp_path/"s", "0_a", "", "import r3nb.study")
    assert set(code_of(tmp_path/"s/0_a.ipynb")) - {"assets"} == {"0_a.ipynb", "study", "core", "words"}


def test_comments_are_not_code(tmp_path, monkeypatch):
    package = tmp_path/"r3nb"
    package.mkdir()
    monkeypatch.setattr(study, "code_dir", lambda: package)
    write_stage(tmp_path, "0_a", "", "import r3nb.core")
    seen = []
    for text in ("x = 1\n", "x = 1 # why\n", "x = 2\n"):
        (package/"core.py").write_text(text)
        study._module.cache_clear()
        seen.append(code_of(tmp_path/"0_a.ipynb")["core"])
    study._module.cache_clear()
    assert seen[0] == seen[1] != seen[2]


def test_damaged_ledger(lab):
    lab.dir.mkdir(parents=True)
    (lab.dir/".doit.json").write_text('{"0_make": ')
    with pytest.raises(ConfigError, match="delete this file"): study.study(lab.config())


def test_only_and_dry_run(lab, capsys):
    assert lab.ran(capsys, only=["1"]) == ["0_make", "1_sum"]
    study.main(lab.argv("--list"))
    out = capsys.readouterr().out
    assert "0_make: up to date" in out and "2_say: would run" in out and "word = 'total'  # default" in out and not (lab.dir/"2_say").exists()
    with pytest.raises(ConfigError, match="did you mean 'make'"): pick_stages(["mke"], find_stages(lab.stages))


def tree(folder):
    "Every file below a folder, with its content"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} if folder.exists() else None


def states(lab):
    "State and reasons of each stage"
    return {r.run.label + r.stage.folder: (r.state, r.why) for r in survey(open_study(lab.config())[1])}


def test_status_says_why(lab, capsys, monkeypatch):
    assert states(lab) == {"0_make": ("never run", ["it has never run"]), "1_sum": ("never run", ["upstream: 0_make is not up to date"]),
                           "2_say": ("never run", ["upstream: 0_make is not up to date"])} and not lab.dir.exists()
    lab.profile("make: {n: 4}\n")
    lab.ran(capsys)
    assert list(states(lab).values()) == [("up to date", [])]*3
    behind = {"1_sum": ("stale", ["upstream: 0_make is not up to date"]), "2_say": ("stale", ["upstream: 0_make is not up to date"])}
    lab.profile("make: {rate: 0.25}\n")
    assert states(lab) == {"0_make": ("stale", ["parameter n: 4 -> 3 (default)", "parameter rate: 0.5 (default) -> 0.25"])} | behind
    lab.profile("make: {n: 4}\n")
    write_stage(lab.stages, "1_sum", BODIES["1_sum"][0], BODIES["1_sum"][1] + "\nmetrics['more'] = 1")
    assert states(lab)["1_sum"] == ("stale", ["code: 1_sum.ipynb changed"]) and states(lab)["0_make"][0] == "up to date"
    write_stage(lab.stages, "1_sum", *BODIES["1_sum"])
    monkeypatch.setattr(study, "_module", lambda path: ("other" if path.stem == "core" else "same", frozenset()))
    assert states(lab)["0_make"] == ("stale", ["code: r3nb/assets is no longer needed", "code: r3nb.core changed", "code: r3nb.words is no longer needed"])
    monkeypatch.undo()
    (lab.dir/"2_say/metrics.json").unlink()
    assert states(lab)["2_say"] == ("stale", ["missing: 2_say/metrics.json"])
    before = tree(lab.dir)
    study.main(["status", *lab.argv()])
    study.main(["run", *lab.argv("--dry_run")])
    out = capsys.readouterr().out
    assert tree(lab.dir) == before and "missing: 2_say/metrics.json" in out and "1 of 3 stages would run" in out and "because: missing" in out
    assert lab.ran(capsys) == ["2_say"]
    run = study.Run(load_profile(lab.root/"t.yaml", find_stages(lab.stages)), find_stages(lab.stages), lab.dir)
    manifest = read_json(lab.dir/"0_make/manifest.json")
    (lab.dir/"0_make/manifest.json").write_text(json.dumps(manifest | {"note": "made by hand"}))
    assert states(lab)["1_sum"] == ("stale", ["upstream: 0_make was made again"]) and len(run.stages) == 3
    shutil.rmtree(lab.dir/"0_make")
    assert states(lab)["0_make"] == ("stale", ["its folder is gone"])
    (lab.dir/study.BOOK).write_text("{")
    with pytest.raises(ConfigError, match="stages.json: damaged; delete this file"): states(lab)


@pytest.mark.slow
def test_status_of_failed_interrupted_and_killed_stages(tmp_path, capsys):
    body = ("import time\nfrom pathlib import Path\nPath(out_dir, 'half.txt').write_text('x')\nif how == 'fails': raise ValueError('a bad number')\n"
            "if how == 'waits': time.sleep(100)\nmetrics = {}")
    lab = Lab(tmp_path, {"0_make": BODIES["0_make"], "1_odd": ("how = 'fails'", body)})
    with pytest.raises(StageError): study.study(lab.config())
    state, why = states(lab)["1_odd"]
    assert state == "failed" and any("log.txt" in w for w in why) and read_book(lab.dir)["1_odd"]["files"] == sorted(tree(lab.dir/"1_odd"))
    (lab.dir/"1_odd/mine.txt").write_text("a note of my own")
    study.main(["clean", *lab.argv("--only", "odd", "--yes")])
    assert list(tree(lab.dir/"1_odd")) == ["mine.txt"] and "kept, not made by the study: mine.txt" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was not made by r3nb"): study.study(lab.config())
    (lab.dir/"1_odd/mine.txt").unlink()
    lab.profile("odd: {how: waits}\n")
    for sign, state in ((signal.SIGINT, "interrupted"), (signal.SIGKILL, "interrupted")):
        child = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *lab.argv()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        (lab.dir/"1_odd/half.txt").unlink(missing_ok=True)
        for _ in range(600):
            if (lab.dir/"1_odd/half.txt").exists(): break
            time.sleep(.1)
        capsys.readouterr()
        study.main(["status", *lab.argv()])
        said = capsys.readouterr().out
        assert "running now" in said and "1_odd   running" in said
        with pytest.raises(SystemExit): study.main(["clean", *lab.argv("--yes")])
        assert "a study is running here" in capsys.readouterr().err and (lab.dir/"0_make/manifest.json").exists()
        child.send_signal(sign)
        said = child.communicate()[1]
        assert states(lab)["1_odd"][0] == state and ("files" in read_book(lab.dir)["1_odd"]) == (sign == signal.SIGINT)
        assert (sign == signal.SIGKILL) or "interrupted; give the same command again" in said and child.returncode == 130
    with hold(lab.dir): assert not (lab.dir/"1_odd/manifest.json").exists()   # waits for the kernel of the killed study
    study.main(["clean", *lab.argv("--yes")])
    assert not lab.dir.exists()                                       # what a killed stage wrote is known by its .key


def test_clean_removes_what_the_study_made_and_nothing_else(lab, capsys, monkeypatch):
    lab.profile("variants:\n  main: {}\n  double: {sum: {scale: 2}}\n")
    study.main(["clean", *lab.argv("--yes")])
    assert "nothing to remove" in capsys.readouterr().out and not lab.dir.exists()
    lab.ran(capsys)
    mine = {"notes.txt": b"1", "main/1_sum/notes.txt": b"2", "double/own/data.txt": b"3", "stranger/x.txt": b"4"}
    for name, text in mine.items():
        (lab.dir/name).parent.mkdir(parents=True, exist_ok=True)
        (lab.dir/name).write_bytes(text)
    (lab.dir/"main/2_say/away").symlink_to(lab.root/"t.yaml")         # made after the stage had ended: not the study's
    before = tree(lab.dir)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    study.main(["clean", *lab.argv()])
    assert tree(lab.dir) == before and "nothing was removed; --yes" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", type("Person", (), {"isatty": lambda self: True, "readline": lambda self: "n\n"})())
    study.main(["clean", *lab.argv()])
    assert tree(lab.dir) == before
    study.main(["clean", *lab.argv("--only", "2", "--yes")])
    assert not (lab.dir/"double/2_say").exists() and sorted(p.name for p in (lab.dir/"main/2_say").iterdir()) == ["away"] and (lab.dir/"double/1_sum/manifest.json").exists()
    (lab.dir/"main/2_say/away").unlink()
    assert lab.ran(capsys) == ["main", "double"]
    (lab.dir/"main/.doit.json").rename(lab.dir/"main/kept")
    (lab.dir/"main/.doit.json").write_text("{")
    with pytest.raises(SystemExit): study.main(["clean", *lab.argv("--yes")])
    assert "damaged; delete this file" in capsys.readouterr().err
    (lab.dir/"main/kept").rename(lab.dir/"main/.doit.json")
    monkeypatch.setattr("builtins.input", lambda text: "y")
    study.clean(CleanConfig(str(lab.root/"t.yaml"), str(lab.root/"runs"), str(lab.stages)))
    assert tree(lab.dir) == mine and not (lab.dir/"double/0_make").is_symlink()
    assert "left in" in capsys.readouterr().out and (lab.root/"t.yaml").exists()


def test_a_killed_cleaning_is_not_resumed_from(lab, capsys, monkeypatch):
    lab.ran(capsys, only=["make"])
    waste = study.waste_of(lab.dir, ["0_make"])[0]
    (lab.dir/"0_make/half.txt").write_text("x")
    kept = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt) if self.name == "log.txt" else kept(self, missing_ok))
    with pytest.raises(KeyboardInterrupt): study.remove_waste(waste)
    monkeypatch.undo()
    assert (lab.dir/"0_make/.key").read_text() == "emptying" and not (lab.dir/"0_make/manifest.json").exists()
    assert lab.ran(capsys, only=["make"]) == ["0_make"] and (lab.dir/"0_make/half.txt").exists() # it was never the study's


@pytest.mark.slow
def test_stale_stages_of_one_variant_make_others_stale(lab, capsys):
    lab.profile("variants:\n  main: {}\n  double: {sum: {scale: 2}}\n")
    write_stage(lab.stages/"across", "0_all", "variants = ['none']", "metrics = {}")
    lab.ran(capsys)
    (lab.dir/"main/0_make/metrics.json").unlink()
    got = states(lab)
    assert got["main: 0_make"] == ("stale", ["missing: 0_make/metrics.json"]) and got["double: 0_make"] == ("as in main", [])
    assert got["double: 1_sum"] == ("stale", ["upstream: main: 0_make is not up to date"]) and got["all variants: 0_all"][0] == "stale"
    assert lab.ran(capsys) == ["main", "main", "main", "double", "double", "all"]


def test_the_end_says_what_was_written(lab, capsys):
    study.main(lab.argv())
    out = capsys.readouterr().out.split("| total |")[-1]
    assert "written:" in out and str(lab.dir/"1_sum") in out and f"report: {lab.dir/'2_say/summary.md'}" in out and "r3nb_study status" in out and "notebook.ipynb (3)" in out
    command = next(l for l in out.splitlines() if "r3nb_study status" in l).split(": ", 1)[1].split()
    study.main(command[1:])                                           # the line can be pasted
    assert "2_say" in capsys.readouterr().out
    study.main(lab.argv())
    assert "nothing had to be done" in capsys.readouterr().out


def test_lists(lab, capsys):
    lab.profile("variants:\n  main: {}\n  double: {sum: {scale: 2}}\n")
    study.main(["list", str(lab.root/"t.yaml"), "--stages", str(lab.stages)])
    assert "0_make" in (out := capsys.readouterr().out) and "variants: main, double" in out and "Some prose." in out
    study.main(["list", "--profiles", str(lab.root)])
    assert capsys.readouterr().out == f"{lab.root/'t.yaml'}\n    t\n"
    with pytest.raises(SystemExit): study.main(["list", "--profiles", str(lab.stages)])
    assert "no profiles here" in capsys.readouterr().err


BARS = "from r3nb.core import progress\nimport time\nfor i in progress(range(80), 'count'): time.sleep(.08)\nmetrics = {}"


@pytest.mark.slow
def test_bars_in_a_notebook_its_log_and_a_redirected_study(tmp_path):
    lab = Lab(tmp_path, {"0_make": ("n = 1", BARS)})
    done = subprocess.run([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *lab.argv()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode()
    for said in (text, (lab.dir/"0_make/log.txt").read_text()): assert said.count("count:") == 1 and "80/80" in said and "\r" not in said
    seen = "".join("".join(o.get("text", "")) for c in read_json(lab.dir/"0_make/notebook.ipynb")["cells"] for o in c.get("outputs", []))
    assert seen.count("count:") == 1 and "80/80" in seen


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 70])
def test_a_bar_in_a_terminal_is_one_line(tmp_path, columns):
    import fcntl
    import pty
    import struct
    import termios
    lab = Lab(tmp_path, {"0_make": ("n = 1", BARS)})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24*bool(columns), columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *lab.argv()], stdin=theirs, stdout=theirs, stderr=theirs, env={k: v for k, v in os.environ.items() if k != "COLUMNS"})
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536): text += piece
    except OSError: pass                                              # Linux says EIO when the other end is closed
    os.close(ours)
    assert child.wait() == 0
    lines = [l for l in text.decode().replace("\r\n", "\n").split("\n") if "count:" in l]
    assert len(lines) == 1 and len(lines[0].split("\r")) > 3 and lines[0].split("\r")[-1].startswith("count: 100%")
    assert max(map(len, lines[0].split("\r"))) < (columns or 100)


def test_lost_ledger_finds_results_in_place(lab, capsys):
    assert lab.ran(capsys, only=["make"]) == ["0_make"]
    (lab.dir/".doit.json").unlink()
    (lab.dir/"0_make/kept.txt").write_text("x")
    assert lab.ran(capsys, only=["make"]) == ["0_make"] and (lab.dir/"0_make/kept.txt").exists()


def test_console_script_help():
    exe = shutil.which("r3nb_study", path=str(Path(sys.executable).parent))
    assert exe, "the console script is not installed; run make test"
    done = subprocess.run([exe, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0
    for words in ("--out", "--stages", "--only", "--dry_run", "--list", "the YAML profile", "run nothing", "status", "clean"): assert words in done.stdout


@pytest.mark.slow
def test_variants_share_their_first_stages(lab, capsys):
    lab.profile("make: {n: 4}\nvariants:\n  main: {}\n  double: {sum: {scale: 2}}\n  small: {make: {n: 2}, sum: {scale: 2}}\n")
    write_stage(lab.stages/"across", "0_all", "variants = ['none']\nfactor = 1.0", "metrics = {v: factor*read_json(f'{study_dir}/{v}/2_say/metrics.json')['total'] for v in variants}")
    assert lab.ran(capsys) == ["main", "main", "main", "double", "double", "small", "small", "small", "all"]
    assert lab.metrics("0_all") == {"main": 6.0, "double": 12.0, "small": 2.0}
    assert os.readlink(lab.dir/"double/0_make") == "../main/0_make"

    assert lab.ran(capsys) == []
    lab.profile("make: {n: 4}\nvariants:\n  main: {}\n  double: {sum: {scale: 3}}\n  small: {make: {n: 2}, sum: {scale: 2}}\n")
    assert lab.ran(capsys) == ["double", "double", "all"] and lab.metrics("0_all")["double"] == 18.0
    lab.profile("make: {n: 4}\nall: {factor: 2}\nvariants:\n  main: {}\n  double: {sum: {scale: 3}}\n  small: {make: {n: 2}, sum: {scale: 2}}\n")
    assert lab.ran(capsys) == ["all"] and lab.metrics("0_all")["double"] == 36.0
    study.study(lab.config(dry_run=True))
    assert "double: 0_make: as in main" in capsys.readouterr().out
    lab.profile("make: {n: 4}\nvariants:\n  main: {}\n  double: {make: {n: 3}, sum: {scale: 3}}\n")
    assert lab.ran(capsys, only=["make"]) == ["double"] and not (lab.dir/"double/0_make").is_symlink()   # a stage that differs is made anew
    assert lab.ran(capsys) == ["double", "double", "all"] and lab.metrics("0_all") == {"main": 6.0, "double": 9.0}


@pytest.mark.parametrize("text, says", [
    ("variants: [a]\n", "t.yaml:3: variants should hold what differs"), ("variants:\n  a: 3\n", "t.yaml:4: variant 'a' should hold stages"),
    ("variants:\n  a: {sum: {scal: 2}}\n", "unknown parameter 'scal' of stage 'sum' \\(did you mean 'scale'"),
    ("variants:\n  a: {summ: {}}\n", "t.yaml:4: unknown stage 'summ'"), ("variants:\n  ../a: {}\n", "should be a plain word")])
def test_variants_are_checked(lab, text, says):
    lab.profile(text)
    with pytest.raises(ConfigError, match=says): study.study(lab.config())


# sections ------------------------------------------------------------------------------------------------------------------------------

WALK = ("start = ''\npace = 1.0\nslow = False", "import os, time\nfrom pathlib import Path\nbefore = read_json(f'{study_dir}/{start}/metrics.json')['path'] if start else []\n"
        "Path(study_dir, 'pid').write_text(str(os.getpid()))\nhalf = Path(out_dir)/'half.txt'\n"
        "if slow and not half.exists():\n    half.write_text('x')\n    time.sleep(120)\nmetrics = {'path': before + [[pace, seed]]}")
SECTIONS = "walk:\n  pace: 2\n  sections:\n    zeta: {pace: 9}\n    alpha: {}\n    mid: {seed: 3}\n"


@pytest.fixture
def road(tmp_path):
    lab = Lab(tmp_path, {"0_make": BODIES["0_make"], "3_walk": WALK, "4_end": ("k = 1", "metrics = read_json(f'{study_dir}/3_walk/metrics.json')")})
    lab.profile(SECTIONS)
    return lab


@pytest.mark.slow
def test_sections_run_in_the_order_of_the_profile(road, capsys):
    folders = ["0_make", "3_walk.1_zeta", "3_walk.2_alpha", "3_walk", "4_end"]
    assert road.ran(capsys) == folders
    assert road.metrics("4_end") == {"path": [[9.0, 5], [2.0, 5], [2.0, 3]]}
    assert road.ran(capsys) == []
    road.profile(SECTIONS.replace("alpha: {}", "alpha: {pace: 4}"))
    assert road.ran(capsys) == folders[2:]                            # what came before a changed section is kept
    assert road.metrics("4_end") == {"path": [[9.0, 5], [4.0, 5], [2.0, 3]]}
    road.profile(SECTIONS.replace("alpha: {}", "alpha: {pace: 4}").replace("    mid: {seed: 3}\n", "    mid: {}\n"))
    study.study(road.config(dry_run=True))
    assert "start = '3_walk.2_alpha'" in capsys.readouterr().out
    assert road.ran(capsys) == folders[3:]
    road.profile(SECTIONS.replace("    zeta: {pace: 9}\n", ""))
    assert road.ran(capsys, only=["walk.alpha"]) == ["3_walk.1_alpha"]
    assert road.ran(capsys, only=["walk"]) == ["3_walk"] and road.metrics("3_walk") == {"path": [[2.0, 5], [2.0, 3]]}


def test_a_killed_study_goes_on_within_its_section(road, capsys):
    road.profile(SECTIONS.replace("alpha: {}", "alpha: {slow: true}"))
    child = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *road.argv()], stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if (road.dir/"3_walk.2_alpha/half.txt").exists(): break
        time.sleep(0.1)
    assert (road.dir/"3_walk.1_zeta/manifest.json").exists() and not (road.dir/"3_walk.2_alpha/manifest.json").exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert road.ran(capsys) == ["3_walk.2_alpha", "3_walk", "4_end"]
    assert road.metrics("4_end") == {"path": [[9.0, 5], [2.0, 5], [2.0, 3]]} and (road.dir/"3_walk.2_alpha/half.txt").exists()


@pytest.mark.slow
def test_variants_of_a_stage_in_sections(road, capsys):
    road.profile(SECTIONS + "variants:\n  one: {}\n  two: {walk: {sections: {mid: {pace: 7}}}}\n  three: {walk: {seed: 8}}\n")
    assert road.ran(capsys) == ["one"] * 5 + ["two"] * 2 + ["three"] * 4
    assert [read_json(road.dir/v/"4_end/metrics.json")["path"] for v in ("two", "three")] == [[[9.0, 5], [2.0, 5], [7.0, 3]], [[9.0, 8], [2.0, 8], [2.0, 8]]]


@pytest.mark.parametrize("text, says", [
    ("make: {sections: {a: {}}}\n", "t.yaml:3: stage 'make' cannot be divided, its notebook has no parameter 'start'"),
    ("walk: {sections: {}}\n", "sections should hold parameters by name"), ("walk: {sections: [a]}\n", "sections should hold parameters by name"),
    ("walk:\n  sections:\n    a: {pac: 1}\n", "t.yaml:5: unknown parameter 'pac' of stage 'walk'.*'pace'"), ("walk:\n  sections:\n    a: 3\n", "t.yaml:5: 'a' should hold parameters"),
    ("walk:\n  sections:\n    ../a: {}\n    b: {}\n", "should be a plain word"), ("walk: {start: x}\n", "unknown parameter 'start'"),
    ("walk:\n  sections:\n    a: {start: x}\n", "unknown parameter 'start'"),
    ("walk: {sections: {a: {}}}\nvariants: {v: {walk: {sections: {b: {}}}}}\n", "unknown section 'b' of stage 'walk'.*known: a"),
    ("variants: {v: {walk: {sections: {b: {}}}}}\n", "unknown section 'b' of stage 'walk'.*known: none")])
def test_sections_are_checked_before_any_work(road, text, says):
    road.profile(text)
    with pytest.raises(ConfigError, match=says): study.study(road.config())
    assert not road.dir.exists()


def test_staged_profiles_are_the_five_stages_of_the_method():
    root = Path(__file__).parent.parent
    stages = find_stages(root/"nbs/stages")
    for name in ("staged-smoke", "staged-full"):
        p = load_profile(root/f"runs/profiles/{name}.yaml", stages, find_stages(root/"nbs/stages/across"))
        train = [s for s in p.stages if s.key == "train"]
        assert [s.section for s in train] == ["lora", "text", "image", "joint", "corruption"] and train[-1].folder == "3_train"
        given = [p.params[s.folder] for s in train]
        assert [g.get("start", "") for g in given] == ["", *(s.folder for s in train[:-1])]
        assert [(g.get("evidence", True), not g.get("disable_text_retrieval"), not g.get("disable_image_retrieval"), not g.get("disable_corruption"), not g.get("disable_teacher"))
                for g in given] == [(False, True, True, False, False), (True, True, False, False, False), (True, False, True, False, False), (True, True, True, False, False), (True,) * 5]


@pytest.mark.slow
def test_real_sections_start_from_the_weights_of_the_last(tmp_path, monkeypatch, capsys):
    "Three real trainings, killed in the middle: the second has learning rate 0, so it must end with the weights of the first; the third moves on"
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    (tmp_path/"stages").mkdir()
    shutil.copy(root/"nbs/stages/3_train.ipynb", tmp_path/"stages")
    tiny.prepared(tmp_path/"runs/t")
    (tmp_path/"t.yaml").write_text("name: t\ntrain:\n  max_steps: 2\n  batch_size: 1\n  save_every: 1\n  baseline: false\n  disable_teacher: true\n  sections:\n"
                                   "    lora: {evidence: false, lr: 0.01}\n    still: {lr: 0, module_lr: 0}\n    text: {disable_image_retrieval: true}\n")
    argv = [str(tmp_path/"t.yaml"), "--out", str(tmp_path/"runs"), "--stages", str(tmp_path/"stages")]
    child = subprocess.Popen([sys.executable, "-c", "import sys; from r3nb.study import main; main(sys.argv[1:])", *argv], stdout=subprocess.DEVNULL)
    home, begun = tmp_path/"runs/t", time.time()
    while not (home/"3_train.2_still/r3/checkpoints/step_1").exists() and time.time() - begun < 300: time.sleep(.05)
    child.kill()
    child.wait()
    first = (home/"3_train.1_lora/manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    study.main(argv)
    assert [l.split()[1] for l in capsys.readouterr().out.splitlines() if ": running" in l] == ["3_train.2_still:", "3_train:"]
    assert (home/"3_train.1_lora/manifest.json").stat().st_mtime_ns == first
    ends = {f: home/f/read_json(home/f/"metrics.json")["checkpoints"]["r3"] for f in ("3_train.1_lora", "3_train.2_still", "3_train")}
    one, two, three = ({n: load_file(e/n) for n in ("adapter_model.safetensors", "modules.safetensors")} for e in ends.values())
    same = lambda a, b, n: all((a[n][k] == b[n][k]).all() for k in a[n])
    assert max(v.abs().max() for k, v in one["adapter_model.safetensors"].items() if "lora_B" in k) > 0
    assert all(same(one, two, n) and not same(two, three, n) for n in one)
    assert (home/"3_train.2_still"/read_json(home/"3_train.2_still/metrics.json")["checkpoints"]["lora"]).resolve() == ends["3_train.1_lora"].resolve()
    assert read_json(home/"3_train/r3/run.json")["resume_from"] == sha256_text("".join(map(sha256_file, sorted(ends["3_train.2_still"].glob("[am]*.safetensors")))))
