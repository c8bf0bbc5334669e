"""Files, folders, locks, terminals and names: what every command does with the results of others, and on machines unlike ours."""
import configparser
import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from r3nb import core, frozen
from r3nb.core import ConfigError, DataError, atomic_dir, atomic_path, files_in, locked, read_json, read_jsonl, resolve_image, sha256_file, write_json, write_jsonl
from r3nb.eval import Answer, EvalConfig, evaluate

ROOT = Path(__file__).resolve().parents[1]
TOY = "toy_ocr:Toy"


def scripts():
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    lines = cfg["DEFAULT"]["console_scripts"].strip().splitlines()
    return {name: (module, f) for name, place in (l.split("=") for l in lines) for module, f in [place.split(":")]}


SCRIPTS = scripts()


def main_of(name): return getattr(import_module(SCRIPTS[name][0]), SCRIPTS[name][1])


def call(name, *words):
    "Run a command in this process; its exit code"
    try: main_of(name)([str(w) for w in words])
    except SystemExit as e: return e.code or 0
    return 0


def snapshot(path):
    path = Path(path)
    if path.is_file(): return sha256_file(path)
    return {f: sha256_file(path/f) for f in files_in(path) if Path(f).name not in ("manifest.json", ".r3nb.json")}


# ---- terminals, for every command

def through_terminal(encoding, do):
    "What a function returns, and the bytes that both streams got, by an encoding that lacks letters"
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]): back = do()
    for s in streams: s.flush()
    return back, *(s.buffer.getvalue() for s in streams)


TERMINALS = pytest.mark.parametrize("encoding", ["ascii", "latin-1"])


@TERMINALS
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_reaches_every_terminal(name, encoding):
    code, out, _ = through_terminal(encoding, lambda: call(name, "--help"))
    assert code == 0 and len(out) > 200


@pytest.mark.parametrize("name", SCRIPTS)
def test_names_in_other_bytes_are_refused_in_one_sentence(name):
    words = {"r3nb_corrupt": ["freeze"], "r3nb_mini": ["world"]}.get(name, [])
    code, _, said = through_terminal("ascii", lambda: call(name, *words, "--out_dir", os.fsdecode(b"caf\xe9")))
    assert code == 2 and rb"caf\xe9" in said and b"not UTF-8" in said and said.count(b"\n") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reader_that_leaves_ends_a_command_without_a_word(name, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert call(name, "--help") in (0, 141)
    assert capfd.readouterr().err == ""


@TERMINALS
def test_letters_come_close(encoding):
    @core.console
    def say(argv=None):
        for text in ("λ → 0.5 – café…", os.fsdecode(b"x\xff.png"), "𝔘 \ud800", "日本"): print(text)
    first = through_terminal(encoding, say)[1].decode(encoding).splitlines()
    assert first[0].startswith("lambda -> 0.5 - caf") and first[1:] == ["x\\xff.png", "U ?", "??"]


# ---- results of other options

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Raw data, readings, records and an index"
    d = tmp_path_factory.mktemp("world")
    call("r3nb_mini", "world", "--out_dir", d/"raw", "--n_train", 6, "--n_val", 3, "--redundancy", 0)
    sys.path.insert(0, str(Path(__file__).parent))
    call("r3nb_ocr", "--image_dir", d/"raw/chartqa/images", "--out", d/"ocr.jsonl", "--engine", TOY, "--workers", 1)
    call("r3nb_unify", "--dataset", "chartqa", "--raw_dir", d/"raw/chartqa", "--out_dir", d/"u", "--ocr_cache", d/"ocr.jsonl", "--image_prefix", "chartqa")
    call("r3nb_index", *index_words(d), "--out_dir", d/"index")
    frozen.freeze(frozen.FreezeConfig(str(d/"u/chartqa_unified_val.jsonl"), str(d/"frozen"), str(d/"raw"), [0, .4], workers=1))
    evaluate(eval_config(d, d/"eval"), Parrot())
    return d


class Parrot:
    def answer(self, mode, cases, evidence): return [Answer(c.record.answer, c.seen.question) for c in cases]


def eval_config(d, out, **kw):
    return EvalConfig(model_name="none", val_jsonl=str(d/"u/chartqa_unified_val.jsonl"), image_root=str(d/"raw"), out_dir=str(out), n_boot=20,
                      **{"eval_mode": ["base"], "corruption_levels": [0]} | kw)


def index_words(d): return "--jsonl", d/"u/chartqa_unified_train.jsonl", "--image_root", d/"raw", "--image_encoder", ROOT/"r3nb/assets/tiny-clip"


def evaluated(d, out, *more):
    "`r3nb_eval`, with a parrot for a model"
    try: evaluate(eval_config(d, out, corruption_levels=[0, .5] if "b" in more else [0], overwrite="--overwrite" in more,
                              **({"max_new_tokens": 3} if "b" in more else {})), Parrot())
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def plain(name, *words, b=()):
    "A command by its words; with other options when asked for `b`"
    return lambda d, out, *more: call(name, *(w(d, out) if callable(w) else w for w in words), *(b if "b" in more else ()), *(m for m in more if m != "b"))


TRAIN, VAL = (lambda s: lambda d, out: d/f"u/chartqa_unified_{s}.jsonl")("train"), (lambda s: lambda d, out: d/f"u/chartqa_unified_{s}.jsonl")("val")
OUT = lambda d, out: out
RAW = lambda d, out: d/"raw"
COMMANDS = { # name -> how to run it, and whether it writes a folder of its own
    "r3nb_merge": (lambda d, out, *m: call("r3nb_merge", *([d/"u/chartqa_unified_train.jsonl"] + [d/"u/chartqa_unified_val.jsonl"] * ("b" in m)), "--out", out, *(w for w in m if w != "b")), False),
    "r3nb_unify": (plain("r3nb_unify", "--dataset", "chartqa", "--raw_dir", lambda d, out: d/"raw/chartqa", "--out_dir", OUT, b=("--image_prefix", "x")), True),
    "r3nb_mini": (plain("r3nb_mini", "world", "--out_dir", OUT, "--n_train", 3, "--n_val", 1, "--redundancy", 0, b=("--seed", 5)), True),
    "r3nb_index": (lambda d, out, *m: call("r3nb_index", *index_words(d), "--out_dir", out, *(["--batch_size", 5] if "b" in m else []), *(w for w in m if w != "b")), True),
    "r3nb_audit": (plain("r3nb_audit", "--jsonl", VAL, "--index_dir", lambda d, out: d/"index", "--out_dir", OUT, "--recall_at", 1, b=("--top_k", 1)), True),
    "r3nb_corrupt": (plain("r3nb_corrupt", VAL, "--image_root", RAW, "--out", OUT, "--levels", "0.4", "--max_samples", 1, b=("--seed", 3)), True),
    "r3nb_corrupt freeze": (plain("r3nb_corrupt", "freeze", "--jsonl", VAL, "--image_root", RAW, "--out", OUT, "--levels", "0.4", "--workers", 1, b=("--seeds", 3)), True),
    "r3nb_tasks": (plain("r3nb_tasks", "--jsonl", VAL, "--image_root", RAW, "--out", OUT, b=("--text",)), True),
    "r3nb_compare": (plain("r3nb_compare", lambda d, out: d/"two/predictions.jsonl", "--n_boot", 20, "--out_json", OUT, b=("--common",  "--power", "5")), False),
    "r3nb_plan": (plain("r3nb_plan", "--model_name", "x", "--gpus", "1xA100-80GB", "--out_json", OUT, b=("--batch_size", 3)), False), # the planning itself is replaced
    "r3nb_eval": (evaluated, True),
    "r3nb_ocr": (lambda d, out, *m: call("r3nb_ocr", "--image_dir", d/"raw/chartqa/images", "--out", out, "--engine", "toy_ocr:Blind" if "b" in m else TOY, "--workers", 1, *(w for w in m if w != "b")), False)}


@pytest.mark.parametrize("name", COMMANDS)
def test_results_of_other_options_stay(name, world, tmp_path, capsys, monkeypatch):
    run, folder = COMMANDS[name]
    monkeypatch.setattr("r3nb.plan.make_plan", lambda cfg: {"batch_size": cfg.batch_size})
    monkeypatch.setattr("r3nb.plan.report", str)
    out = tmp_path/"out {x} #1%"/("dir" if folder else "file.json")
    if name == "r3nb_compare" and not (world/"two").exists(): evaluate(eval_config(world, world/"two", eval_mode=["base", "base+text"]), Parrot())
    assert run(world, out) == 0, capsys.readouterr().err
    if folder and name != "r3nb_index": (out/"notes.txt").write_text("somebody's")
    before = snapshot(out)
    assert before
    capsys.readouterr()
    assert run(world, out, "b") == 2
    said = capsys.readouterr().err
    assert "--overwrite" in said and "Traceback" not in said
    assert {k: v for k, v in snapshot(out).items() if k in before} == before if folder else snapshot(out) == before
    assert run(world, out) == 0, capsys.readouterr().err           # the same options: there, or made again
    assert {k: v for k, v in snapshot(out).items() if k in before} == before if folder else snapshot(out) == before
    code = run(world, out, "b", "--overwrite")
    assert not folder or name == "r3nb_index" or (out/"notes.txt").read_text() == "somebody's"
    if code:
        assert "notes.txt" in capsys.readouterr().err
        (out/"notes.txt").unlink()
        assert run(world, out, "b", "--overwrite") == 0
    assert snapshot(out) != before and not [f for f in files_in(out if folder else out.parent) if ".replaced" in f]


def test_an_evaluation_that_asks_for_less_keeps_what_is_there(world, tmp_path):
    both = eval_config(world, tmp_path/"e", eval_mode=["base", "base+text"], corruption_levels=[0, .5])
    evaluate(both, Parrot())
    before = snapshot(tmp_path/"e")
    with pytest.raises(ConfigError, match=r"finished answers that these options do not ask for \(mode base, base\+text; level 0.5"): evaluate(replace(both, corruption_levels=[0]), Parrot())
    assert snapshot(tmp_path/"e") == before
    evaluate(replace(both, corruption_levels=[0], overwrite=True), Parrot())
    assert {r["level"] for _, r in read_jsonl(tmp_path/"e/predictions.jsonl")} == {0.0}
    write_json(tmp_path/"s.json", {"thesis": 1})
    with pytest.raises(ConfigError, match="something else than a summary of this run"): evaluate(replace(both, corruption_levels=[0], out_json=str(tmp_path/"s.json")), Parrot())
    for levels in ([0], [0, .5]): evaluate(replace(both, corruption_levels=levels, out_json=str(tmp_path/"t.json")), Parrot())


def test_training_and_evidence_of_other_options_stay(tmp_path):
    from r3nb.evidence import Grid, claim
    from r3nb.train import of_run
    grid = Grid("i", "r", 0, 3, ["text"], "pseudo_text", [0])
    claim(tmp_path/"ev", grid)
    (tmp_path/"ev/block_000000.npy").touch(); (tmp_path/"ev/notes.txt").touch()
    with pytest.raises(ConfigError, match="top_k 3, not 5.*--overwrite"): claim(tmp_path/"ev", replace(grid, top_k=5))
    assert (tmp_path/"ev/block_000000.npy").exists()
    claim(tmp_path/"ev", replace(grid, top_k=5), True)
    assert files_in(tmp_path/"ev") == ["evidence.json", "notes.txt"]
    made = ["run.json", "history.jsonl", "checkpoints/step_4/modules.safetensors", "notes.txt", "checkpoints/mine.txt"]
    for f in made: core.write_json(tmp_path/"run"/f, {})
    core.set_aside(tmp_path/"run", of_run)
    assert [f for f in files_in(tmp_path/"run") if not f.startswith(core.ASIDE)] == ["checkpoints/mine.txt", "notes.txt"]
    core.settle(tmp_path/"run")
    assert files_in(tmp_path/"run") == ["checkpoints/mine.txt", "notes.txt"]


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    from r3nb.export import main
    source = tmp_path/"step_1"
    for f in ("adapter_config.json", "modules.safetensors", "r3_config.json"): write_json(source/f, {"of": f})
    words = ["--checkpoint_dir", str(source), "--out", str(tmp_path/"out")]
    (tmp_path/"out").mkdir(); (tmp_path/"out/thesis.tex").write_text("x")
    with pytest.raises(SystemExit): main(words)
    assert files_in(tmp_path/"out") == ["thesis.tex"]
    (tmp_path/"out/thesis.tex").unlink()
    main(words)
    before = snapshot(tmp_path/"out")
    write_json(source/"adapter_config.json", {"of": "another training"})
    with pytest.raises(SystemExit): main(words)
    assert snapshot(tmp_path/"out") == before
    main([*words, "--overwrite"])
    assert read_json(tmp_path/"out/adapter_config.json") == {"of": "another training"}


@pytest.mark.parametrize("words", [("r3nb_merge", "IN", "--out", "IN"), ("r3nb_compare", "IN", "--out_json", "IN"), ("r3nb_submission", "IN", "--out", "IN")])
def test_a_file_that_is_read_is_not_written(words, world, tmp_path, capsys):
    source = tmp_path/"in.jsonl"
    source.write_bytes((world/("eval/predictions.jsonl" if words[0] != "r3nb_merge" else "u/chartqa_unified_val.jsonl")).read_bytes())
    before = source.read_bytes()
    assert call(words[0], *(str(source) if w == "IN" else w for w in words[1:]), "--overwrite") == 2
    assert "read by the same command" in capsys.readouterr().err and source.read_bytes() == before


# ---- folders and files in the making

def test_another_runs_temporary_folder_is_never_touched(world, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = lambda pid, here, of: tmp_path/f".tmp-{here}-{pid:x}-00ff00-{of}"
    here = core._here()
    kept = [name(os.getppid(), here, "index"), name(gone.pid, here, "big-index"), name(gone.pid, "abcdef", "index"), tmp_path/".tmp-1a2b3c4d-index", tmp_path/".tmp-1a2b3c4d-big-index"]
    for p in [*kept, name(gone.pid, here, "index")]: (p/"work").mkdir(parents=True)
    assert call("r3nb_index", *index_words(world), "--out_dir", tmp_path/"index") == 0
    assert all(p.is_dir() for p in kept) and not name(gone.pid, here, "index").exists()


def test_a_folder_that_another_run_finished_meanwhile_stays(tmp_path):
    from r3nb.indices import replace_folder
    with pytest.raises(ConfigError, match="meanwhile"), replace_folder(tmp_path/"i") as new:
        (new/"index.json").write_text("{}")
        (tmp_path/"i").mkdir(); (tmp_path/"i/index.json").write_text('{"of": "another"}')
    assert read_json(tmp_path/"i/index.json") == {"of": "another"} and not list(tmp_path.glob(".tmp*"))
    asked = []
    with pytest.raises(ConfigError), atomic_dir(tmp_path/"j", lambda: asked.append(1) or (len(asked) == 2 and (_ for _ in ()).throw(ConfigError("no")))): pass
    assert not (tmp_path/"j").exists()


def test_writing_goes_through_links(world, tmp_path):
    disk = tmp_path/"disk"
    disk.mkdir()
    for i, there in enumerate((True, False)):
        if there: (disk/f"{i}.jsonl").touch()
        (tmp_path/f"{i}.jsonl").symlink_to(f"disk/{i}.jsonl")
        assert call("r3nb_merge", world/"u/chartqa_unified_val.jsonl", "--out", tmp_path/f"{i}.jsonl") == 0
        assert (tmp_path/f"{i}.jsonl").is_symlink() and (disk/f"{i}.jsonl").stat().st_size
    (tmp_path/"index").symlink_to("disk/index")
    assert call("r3nb_index", *index_words(world), "--out_dir", tmp_path/"index") == 0
    assert (tmp_path/"index").is_symlink() and (disk/"index/index.json").is_file()
    (tmp_path/"ocr.jsonl").symlink_to("disk/ocr.jsonl")
    call("r3nb_ocr", "--image_dir", world/"raw/chartqa/images", "--out", tmp_path/"ocr.jsonl", "--engine", TOY, "--workers", 1)
    assert (tmp_path/"ocr.jsonl").is_symlink() and (disk/"ocr.jsonl").is_file() and not list(tmp_path.glob("*.part*"))
    (tmp_path/"d").symlink_to("disk")
    with atomic_dir(tmp_path/"d") as new: (new/"x").touch()
    assert (tmp_path/"d").is_symlink() and files_in(disk) == ["x"]
    (tmp_path/"ring").symlink_to("ring")
    with pytest.raises(ConfigError, match="leads back to itself"), atomic_path(tmp_path/"ring"): pass


def test_odd_targets(tmp_path):
    long = tmp_path/("n" * 240 + ".jsonl")
    write_jsonl(long, [{"a": 1}])
    with pytest.raises(OSError) as e: write_jsonl(tmp_path/("n" * 300), [{"a": 1}])
    assert "too long" in core.machine_fault(e.value)
    (tmp_path/"folder").mkdir()
    with pytest.raises(ConfigError, match="a folder is in the way"): write_json(tmp_path/"folder", {})
    with pytest.raises(ConfigError, match="a file is in the way"), atomic_dir(long): pass
    write_json("/dev/null", {"a": 1})
    assert not Path("/dev/null").is_file()
    read, write = os.pipe()
    write_json(f"/dev/fd/{write}", {"a": 1})
    os.close(write)
    assert json.loads(os.fdopen(read).read()) == {"a": 1}


# ---- file systems without locks

FAULTS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@pytest.fixture(params=FAULTS, ids=lambda e: errno.errorcode[e])
def no_locks(request, monkeypatch):
    def flock(*_): raise OSError(request.param, os.strerror(request.param))
    monkeypatch.setattr(fcntl, "flock", flock)


def test_commands_work_where_files_cannot_be_locked(no_locks, world, tmp_path, capsys):
    from r3nb.download import holding
    assert call("r3nb_ocr", "--image_dir", world/"raw/chartqa/images", "--out", tmp_path/"o.jsonl", "--engine", TOY, "--workers", 1) == 0
    assert call("r3nb_index", *index_words(world), "--out_dir", tmp_path/"i", "--num_shards", 1) == 0
    with holding(tmp_path/"raw"), pytest.raises(ConfigError, match="another download is writing here"), holding(tmp_path/"raw"): pass
    assert not (tmp_path/"raw/.download").exists() and not [f for f in files_in(tmp_path) if "held" in f]
    from r3nb.study import hold, is_running
    with hold(tmp_path/"s"):
        assert is_running(tmp_path/"s")
        with pytest.raises(ConfigError, match="another study"), hold(tmp_path/"s", wait=0): pass
    assert not is_running(tmp_path/"s")


def test_locks_without_locks_exclude_and_recover(no_locks, tmp_path, monkeypatch):
    path, inside, most = tmp_path/"lock", [], []
    def work():
        with locked(path):
            inside.append(1); most.append(len(inside)); time.sleep(.05); inside.pop()
    threads = [threading.Thread(target=work) for _ in range(5)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert most == [1] * 5 and not list(tmp_path.glob(".*held"))
    note = tmp_path/".lock.held"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for said, age, free in ((f"{core._here()} {gone.pid:x} 1", 0, True), (f"{core._here()} {os.getpid():x} 1", 9999, False), ("ffffff 1 1", 0, False), ("ffffff 1 1", 9999, True), ("", 9999, True)):
        note.write_text(said)
        os.utime(note, (time.time() - age,) * 2)
        try:
            with locked(path, "busy", 0): got = True
        except ConfigError: got = False
        assert got == free, said
        note.unlink(missing_ok=True)
    monkeypatch.setattr(core, "_RENEW", .05)
    with locked(path):
        os.utime(note, (1, 1))
        time.sleep(.3)
        assert note.stat().st_mtime > 1e9


@pytest.mark.parametrize("number", FAULTS[:2])
def test_a_real_process_without_locks_in_an_ascii_terminal(number, world, tmp_path):
    (tmp_path/"sitecustomize.py").write_text(f"import fcntl, os\ndef flock(*_): raise OSError({number}, os.strerror({number}))\nfcntl.flock = flock\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent), str(ROOT)]), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    out = tmp_path/"out – {x}.jsonl"
    words = ["--image_dir", str(world/"raw/chartqa/images"), "--out", str(out), "--engine", TOY, "--workers", "1"]
    done = subprocess.run([sys.executable, "-m", "r3nb.ocr", *words], env=env, capture_output=True)
    assert done.returncode == 0 and b"out - {x}.jsonl" in done.stdout and out.is_file(), done.stderr


# ---- paths and names

def test_lists_of_paths_with_commas(tmp_path, capsys):
    for name in ("Smith, John", "b"):
        (tmp_path/name).mkdir()
        Image.new("RGB", (9, 9), (len(name), 0, 0)).save(tmp_path/name/"p.png")
    both = f"{tmp_path}/Smith, John,{tmp_path}/b"
    for i, words in enumerate(([both], [f"{tmp_path}/Smith, John", "--image_dir", f"{tmp_path}/b"], [json.dumps([f"{tmp_path}/Smith, John", f"{tmp_path}/b"])])):
        assert call("r3nb_ocr", "--image_dir", *words, "--out", tmp_path/f"{i}.jsonl", "--engine", TOY, "--workers", 1) == 0, capsys.readouterr().err
        assert [r["image"] for _, r in read_jsonl(tmp_path/f"{i}.jsonl")] == ["Smith, John/p.png", "b/p.png"]


def test_images_are_found_in_either_spelling(tmp_path):
    pairs = {"cafe\u0301/e\u0301.png": "caf\u00e9/\u00e9.png", "n\u00e3o/a.png": "na\u0303o/a.png", "mixed\u00e9/e\u0301.png": "mixede\u0301/\u00e9.png"}
    for here in pairs:
        (tmp_path/here).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path/here)
    for here, asked in pairs.items(): assert resolve_image(tmp_path, asked) == tmp_path/here and resolve_image(tmp_path, here) == tmp_path/here
    with pytest.raises(core.ImageError, match="no such image"): resolve_image(tmp_path, "caf\u00e9/other.png")


@pytest.mark.parametrize("words", [("r3nb_ocr", "--image_dir", "D", "--out", "O", "--engine", TOY), ("r3nb_corrupt", "D", "--out", "O")])
def test_files_with_names_in_other_bytes_are_named(words, tmp_path, capsys):
    (tmp_path/"d").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path/"d/good.png")
    with open(os.fsencode(tmp_path/"d") + b"/caf\xe9.png", "wb") as f: f.write((tmp_path/"d/good.png").read_bytes())
    assert call(words[0], *({"D": tmp_path/"d", "O": tmp_path/"o"}.get(w, w) for w in words[1:])) == 2
    said = capsys.readouterr().err
    assert r"caf\xe9.png" in said and "rename" in said and said.count("\n") == 1
    with pytest.raises(DataError, match=r"caf\\xe9"): write_json(tmp_path/"x.json", {os.fsdecode(b"caf\xe9"): 1})


def test_linked_folders_are_searched_and_circles_end(tmp_path):
    from r3nb.ocr import find_images, passed_over
    for name in ("a/plain", "far"): (tmp_path/name).mkdir(parents=True)
    for name in ("a/plain/1.png", "far/2.png", "far/text.txt"): (tmp_path/name).touch()
    for link, to in (("a/linked", "../far"), ("a/up", ".."), ("far/round", "../a"), ("a/self", "self"), ("a/again", "plain")): (tmp_path/link).symlink_to(to)
    assert list(find_images([tmp_path/"a"])) == ["linked/2.png", "plain/1.png"]
    assert passed_over([tmp_path/"a"]) == "1 .txt"
    (tmp_path/"only").mkdir(); (tmp_path/"only/l").symlink_to(tmp_path/"far")
    assert list(find_images([tmp_path/"only"])) == ["l/2.png", "l/round/plain/1.png"]


def test_braces_in_the_folder_of_a_study(tmp_path):
    from test_study import Lab
    lab = Lab(tmp_path/"{seed} {x}", {"0_make": ("n = 2", "metrics = {'n': n}")})
    lab.root.mkdir(exist_ok=True)
    import r3nb.study as study
    study.study(replace(lab.config(), out=str(tmp_path/"out {x} {}")))
    assert read_json(tmp_path/"out {x} {}/t/0_make/metrics.json")["n"] == 2


@pytest.mark.parametrize("name, variable, words", [("r3nb_download", "HF_TOKEN", ("chartqa", "--out_dir")), ("r3nb_models", "HF_TOKEN", ("--out_dir",))])
def test_a_token_that_is_not_ascii(name, variable, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(variable, "hf_tök")
    assert call(name, *words, tmp_path/"out") == 2
    said = capsys.readouterr().err
    assert variable in said and "not plain ASCII" in said and "tök" not in said


def test_an_endpoints_key_that_is_not_ascii(monkeypatch):
    from r3nb.endpoint import EndpointOptions, connect
    monkeypatch.setenv("OPENAI_API_KEY", "sk-é")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"): connect(EndpointOptions(endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize("factory, said", [("IDMap,Flat", "cannot hold"), ("IDMap2,Flat", "cannot hold"), ("IVF100,PQ7", "IVF100,PQ7"), ("IVF3000,Flat", "3000 lists"), ("IVF2,PQ8", "cannot hold"), ("nonsense", "no FAISS structure")])
def test_a_structure_is_tried_before_anything_is_encoded(factory, said, world, tmp_path, capsys, monkeypatch):
    from r3nb import indices
    def never(*a, **k): raise AssertionError("encoded")
    monkeypatch.setattr(indices, "encode_share", never)
    assert call("r3nb_index", *index_words(world), "--out_dir", tmp_path/"i", "--index_factory", factory) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_pages_of_a_build_need_no_locks(tmp_path, monkeypatch):
    import sqlite3

    from r3nb.documents import PageStore
    asked = []
    monkeypatch.setattr("sqlite3.connect", lambda path, *a, keep=sqlite3.connect, **k: asked.append(str(path)) or keep(path, *a, **k))
    store = PageStore(tmp_path/"p é #?%.sqlite")
    store.put({"image_id": "a", "image_path": "a.png", "dataset": "d", "pseudo_text": "t", "entities": []})
    assert len(store) == 1 and (tmp_path/"p é #?%.sqlite").is_file() and "unix-none" in asked[0]
