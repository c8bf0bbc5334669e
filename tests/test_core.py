"""Core: files that are whole or absent, errors with their line, keyed randomness, one home for options."""
import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from r3nb.core import (
    REDRAW, CheckpointError, ConfigError, DataError, ImageError, IndexMismatchError, Lines, QARecord, R3Error, WorkerError, atomic_dir, atomic_path, check_image, console,
    ASIDE, convert, files_in, fingerprint, from_dict, open_image, parse_cli, progress, read_json, read_jsonl, read_records, resolve_image, rng, run_command, run_dir_fresh, settle,
    seed_everything, sha256_file, worker_pool, write_json, write_jsonl, write_manifest)

ROW = dict(sample_id="a_train_0", dataset="chartqa", split="train", image_id="chartqa/train_0", image_path="images/train_0.png",
           question="How many?", answer="4", answers=["4"], pseudo_text="4 6")


@pytest.fixture
def images(tmp_path):
    (tmp_path/"images").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path/"images/train_0.png")
    return tmp_path


@dataclass
class Options:
    "Options for the tests"
    folders: list[str] = field(metadata={"positional": True}) # folders to read
    out: str # where results go
    levels: list[float] = field(default_factory=lambda: [0.0, 0.5]) # 100% literal help
    schedule: Literal["linear", "cosine"] = "linear" # how levels rise
    limit: int|None = None # how many rows
    shuffle: bool = True # mix the rows
    quiet: bool = False # say less


def test_error_family():
    assert all(issubclass(e, R3Error) for e in (DataError, ConfigError, IndexMismatchError, CheckpointError, ImageError))


def test_import_is_light():
    code = "import sys, r3nb.core; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas', 'cv2', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- files

def test_atomic_keeps_the_old_file_on_error(tmp_path):
    (tmp_path/"f.npy").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path/"f.npy") as p:
        assert p.suffix == ".npy" and p.parent == tmp_path
        p.write_text("half")
        raise RuntimeError
    assert (tmp_path/"f.npy").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_atomic_path_killed_midway(tmp_path):
    code = ("import os, sys; from r3nb.core import atomic_path\n"
            "with atomic_path(sys.argv[1]) as p:\n    p.write_text('half'); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path/"f.json")]).returncode == -9
    assert not (tmp_path/"f.json").exists()


def test_atomic_dir(tmp_path):
    with atomic_dir(tmp_path/"d") as d: (d/"a").write_text("1")
    with pytest.raises(RuntimeError), atomic_dir(tmp_path/"d") as d:
        (d/"b").write_text("2")
        raise RuntimeError
    with atomic_dir(tmp_path/"d") as d: (d/"c").write_text("3")
    assert [p.name for p in (tmp_path/"d").iterdir()] == ["c"] and len(list(tmp_path.iterdir())) == 1


def test_json_refuses_nan_and_keeps_the_old(tmp_path):
    write_json(tmp_path/"m.json", {"x": np.int64(1), "v": np.arange(2), "p": Path("a")})
    assert read_json(tmp_path/"m.json") == {"x": 1, "v": [0, 1], "p": "a"}
    for bad in (float("nan"), np.float32("inf"), object()):
        with pytest.raises(DataError): write_json(tmp_path/"m.json", {"x": bad})
    assert read_json(tmp_path/"m.json")["x"] == 1


@pytest.mark.parametrize("content, says", [
    (b'{"a": 1}\n{"a":\n', ":2: malformed"), (b'{"a": 1}\n\xff\n', ":2: malformed"), (b'[1]\n', ":1: expected an object"),
    (b'{"a": NaN}\n', ":1: malformed"), (b'', "empty"), (b'\n\n', "empty")])
def test_jsonl_faults(tmp_path, content, says):
    (tmp_path/"f.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=says) as e: list(read_jsonl(tmp_path/"f.jsonl"))
    assert "f.jsonl" in str(e.value)


def test_jsonl_missing(tmp_path):
    with pytest.raises(DataError, match="no such file"): list(read_jsonl(tmp_path/"no.jsonl"))


def test_jsonl_round_trip_and_line_numbers(tmp_path):
    write_jsonl(tmp_path/"f.jsonl", [QARecord(**ROW), {"text": "line\u2028separator"}])
    with open(tmp_path/"f.jsonl", "a") as f: f.write("\n\n{}\n")
    assert [n for n, _ in read_jsonl(tmp_path/"f.jsonl")] == [1, 2, 5]


# ---- records

@pytest.mark.parametrize("change, says", [
    ({"answers": "4"}, "'answers'"), ({"answers": [4]}, "hold strings"), ({"question": None}, "'question'"), ({"ocr_conf": True}, "'ocr_conf'"),
    ({"meta": []}, "'meta'"), ({"anwser": "4"}, "did you mean 'answer'")])
def test_record_faults(change, says):
    with pytest.raises(DataError, match=f"f.jsonl:3: .*{says}"): QARecord.from_dict(ROW | change, "f.jsonl:3")


def test_record_missing_field():
    with pytest.raises(DataError, match="f.jsonl:3: missing field 'answers'"):
        QARecord.from_dict({k: v for k, v in ROW.items() if k != "answers"}, "f.jsonl:3")


@pytest.mark.parametrize("rows, says", [
    ([ROW, ROW], ":2: duplicate"), ([ROW | {"answers": []}], ":1: .*no answers"), ([ROW | {"answers": [" "]}], ":1: .*no answers"),
    ([ROW, ROW | {"sample_id": "b", "image_path": "../../etc/passwd"}], ":2: .*leaves the image root"),
    ([ROW | {"image_path": "images/no.png"}], ":1: .*no such image")])
def test_read_records_faults(images, rows, says):
    write_jsonl(images/"u.jsonl", rows)
    with pytest.raises(R3Error, match=f"u.jsonl{says}"): read_records(images/"u.jsonl", images)


def test_read_records_finds_truncated_image(images):
    write_jsonl(images/"u.jsonl", [ROW])
    assert read_records(images/"u.jsonl", images, check_images=True) == [QARecord(**ROW)]
    png = images/"images/train_0.png"
    png.write_bytes(png.read_bytes()[:-20])
    assert read_records(images/"u.jsonl", images)
    with pytest.raises(ImageError, match="u.jsonl:1: .*train_0.png.*truncated"): read_records(images/"u.jsonl", images, check_images=True)
    write_jsonl(images/"u.jsonl", [ROW | {"answers": []}])
    assert len(read_records(images/"u.jsonl", need_answers=False)) == 1


# ---- images

@pytest.mark.parametrize("bad", ["", " ", "/etc/passwd", "../x.png", "a/../../x.png", "..\\x.png", "C:\\x.png", "a\0b.png"])
def test_paths_that_climb(images, bad):
    with pytest.raises(DataError, match="leaves the image root"): resolve_image(images, bad)


def test_images(images):
    good = resolve_image(images, "images/train_0.png")
    check_image(good)
    assert open_image(good).mode == "RGB" and open_image(good).size == (48, 64)
    cut = images/"cut.png"
    cut.write_bytes(good.read_bytes()[:1000])
    (images/"text.png").write_text("hello")
    for p in (cut, images/"text.png", images/"no.png"):
        for f in (open_image, check_image):
            with pytest.raises(ImageError, match=p.name): f(p)


def test_modes_become_rgb_on_white(tmp_path):
    for mode, colour, want in (("L", 9, (9, 9, 9)), ("RGBA", (0, 0, 0, 0), (255, 255, 255)), ("P", 0, None), ("1", 1, (255, 255, 255)), ("LA", (0, 0), (255,)*3)):
        Image.new(mode, (4, 4), colour).save(tmp_path/f"{mode}.png")
        im = open_image(tmp_path/f"{mode}.png")
        assert im.mode == "RGB" and (want is None or im.getpixel((0, 0)) == want)


# ---- randomness and hashes

def test_rng_is_the_same_in_another_process():
    code = "from r3nb.core import rng; print(rng('corrupt', 's', 0.4, 2).integers(0, 2**31, 4).tolist())"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert json.loads(out) == rng("corrupt", "s", 0.4, 2).integers(0, 2**31, 4).tolist()


def test_rng_keys():
    a = lambda *k: rng(*k).integers(0, 2**62)
    assert a(1, "x") == a(1.0, "x") == a(np.int64(1), "x")
    assert len({a("ab", "c"), a("a", "bc"), a(1), a("1"), a(True), a(None), a((1, 2)), a(1, 2), a(0.2)}) == 9
    for bad in (object(), {1}, {"a": 1}):
        with pytest.raises(ConfigError): rng(bad)


def test_seed_everything():
    import torch
    draw = lambda: (seed_everything(3), torch.rand(2).tolist(), np.random.rand())
    assert draw() == draw()


def test_fingerprints(tmp_path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    (tmp_path/"d").mkdir()
    (tmp_path/"d/x").write_text("1")
    before = sha256_file(tmp_path/"d")
    (tmp_path/"d/x").rename(tmp_path/"d/y")
    assert sha256_file(tmp_path/"d") != before
    with pytest.raises(DataError): sha256_file(tmp_path/"no")


def test_manifest_has_no_machine_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"in.txt").write_text("x")
    (tmp_path/"run/3").mkdir(parents=True)
    write_json(tmp_path/"run/3/metrics.json", {})
    m = read_json(write_manifest("run/3", Options(["a"], "b"), {"seed": 1}, inputs=["in.txt", __file__], outputs=["run/3/metrics.json"]))
    assert set(m["inputs"]) == {"in.txt", "test_core.py"} and set(m["outputs"]) == {"metrics.json"}
    assert m["config"]["out"] == "b" and m["packages"]["numpy"] == np.__version__ and set(m["git"]) == {"commit", "dirty"}


# ---- options

@pytest.mark.parametrize("value, kind, want", [
    ("1e-3", float, 1e-3), ("7", int, 7), (7.0, int, 7), (1, float, 1.0), ("no", bool, False), ("a,b", list[str], ["a", "b"]),
    ("", list[float], []), ([1, 2], tuple[float, ...], (1.0, 2.0)), (None, int|None, None), ("none", str|None, None), ("x", str|None, "x"),
    ("2", Literal[1, 2], 2), ("a/b", Path, Path("a/b")), ({"a": 1}, dict, {"a": 1}), (12345678901234567890, int, 12345678901234567890)])
def test_convert(value, kind, want):
    got = convert(value, kind)
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize("value, kind", [(0.5, int), (True, int), (1, bool), (1, str), ("x", int), (None, int), ("c", Literal["a"]), ("x", list[int]), (3, list[int])])
def test_convert_refuses(value, kind):
    with pytest.raises(ValueError): convert(value, kind)


def test_from_dict_errors():
    with pytest.raises(ConfigError, match="mini.yaml: unknown option 'levles' of Options .*did you mean 'levels'"):
        from_dict(Options, {"folders": [], "out": "", "levles": 1}, "mini.yaml")
    with pytest.raises(ConfigError, match="'out' of Options is required"): from_dict(Options, {"folders": []})
    with pytest.raises(ConfigError, match="'limit'.*int.*'many'"): from_dict(Options, {"folders": [], "out": "", "limit": "many"})


def test_cli():
    got = parse_cli(Options, ["a", "b", "--out", "o", "--levels", "0.1,1", "--no_shuffle", "--quiet", "--limit", "3"])
    assert got == Options(["a", "b"], "o", [0.1, 1.0], "linear", 3, False, True)
    assert parse_cli(Options, ["a", "--out", "o"]) == Options(["a"], "o")
    assert parse_cli(Options, ["a", "--out", "o", "--no-quiet", "--shuffle"]) == Options(["a"], "o")
    for bad in (["--out", "o"], ["a"], ["a", "--out", "o", "--schedule", "x"], ["a", "--out", "o", "--lim", "3"]):
        with pytest.raises(SystemExit) as e: parse_cli(Options, bad)
        assert e.value.code == 2
    with pytest.raises(ConfigError, match="limit"): parse_cli(Options, ["a", "--out", "o", "--limit", "x"])


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as e: parse_cli(Options, ["--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0
    for words in ("folders to read", "where results go", "100% literal help", "0.0,0.5", "how levels rise", "how many rows", "mix the rows", "say less", "--no_shuffle"):
        assert words in text


def test_console(capsys):
    @console
    def main(argv=None):
        if argv: raise DataError("f.jsonl:3: no answers")
        return 5
    assert main([]) is None
    with pytest.raises(SystemExit) as e: main(["x"])
    assert e.value.code == 2 and capsys.readouterr().err == "error: f.jsonl:3: no answers\n"


@pytest.mark.parametrize("error,says", [(OSError(errno.ENOSPC, "No space left on device", "a.npy"), "the disk is full (a.npy)"), (OSError(errno.EFBIG, "File too large"), "the disk is full"),
                                        (sqlite3.OperationalError("database or disk is full"), "the disk is full"), (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
                                        (PermissionError(errno.EACCES, "Permission denied", "/r"), "check the path and its permissions"), (DataError("x"), "error: x\n")])
def test_console_puts_a_full_or_closed_disk_into_words(capsys, error, says):
    @console
    def main(argv=None): raise error
    with pytest.raises(SystemExit) as e: main([])
    assert e.value.code == 2 and says in (said := capsys.readouterr().err) and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "gone"), sqlite3.OperationalError("no such column: x")])
def test_console_lets_bugs_show_their_trace(error):
    @console
    def main(argv=None): raise error
    with pytest.raises(type(error)): main([])


def test_progress(capsys):
    assert list(progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    out = capsys.readouterr()
    assert out.out == "" and "letters" in out.err and out.err.isascii()


def test_lines_of_a_bar_that_is_drawn_again():
    now, out = [0.0], io.StringIO()
    with pytest.MonkeyPatch.context() as m:
        m.setattr("r3nb.core.time.monotonic", lambda: now[0])
        lines = Lines(out)
        lines.write("begin\n\n")
        for i in range(3600):                                         # an hour, one state a second
            now[0] += 1
            lines.write(f"\rstep {i}")
        lines.write("\rstep 3600\n")
        lines.write("\r")
        lines.write("\nend, without a newline")
        lines.close()
    got = out.getvalue().split("\n")
    assert got[:3] == ["begin", "", "step 9"] and got[-3:] == ["step 3600", "end, without a newline", ""] and 30 < len(got) < 60 and "\r" not in out.getvalue()


def test_lines_cut_anywhere():
    text = "one\r\ntwo  \n\r 1%\r 20%\r100%\r\n\nlast\n"
    for size in range(1, 8):
        out = io.StringIO()
        lines = Lines(out)
        for i in range(0, len(text), size): lines.write(text[i:i + size])
        assert out.getvalue() == "one\ntwo  \n100%\n\nlast\n"


def test_progress_where_it_is_seen(capsys, monkeypatch):
    list(progress(range(3), "file"))
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv(REDRAW, "1")
    list(progress(range(3), "followed"))
    assert "\r" in capsys.readouterr().err


def test_several_commands_in_one(capsys):
    commands = {"one": (Options, lambda cfg: cfg.out), "two": (Options, lambda cfg: cfg.limit)}
    assert run_command(commands, ["two", "a", "--out", "o", "--limit", "3"], "x") == 3
    assert run_command(commands, ["a", "--out", "o"], "x", "one") == "o"
    with pytest.raises(ConfigError, match="unknown command 'tow'.*did you mean 'two'"): run_command(commands, ["tow"], "x")
    assert run_command(commands, [], "x") is None and "two" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: run_command(commands, ["--help"], "x", "one")
    assert e.value.code == 0 and "usage: x one folders --out ... [options]" in capsys.readouterr().out


# ---- folders of a run

def test_run_dir(tmp_path):
    d = tmp_path/"run"
    assert not run_dir_fresh(d, "k")
    (d/"sub").mkdir()
    (d/"sub/f").write_text("x")
    assert run_dir_fresh(d, "k") and (d/"sub/f").exists()
    with pytest.raises(ConfigError, match="--overwrite"): run_dir_fresh(d, "other")
    assert run_dir_fresh(d, "k") and (d/"sub/f").exists()
    assert not run_dir_fresh(d, "other", overwrite=True) and not (d/"sub").exists() and (d/ASIDE/"sub/f").read_text() == "x"
    (d/".key").write_text("emptying")
    (d/"remains").write_text("x")
    assert not run_dir_fresh(d, "other") and not (d/"remains").exists()
    settle(d)
    assert files_in(d) == [".key"]


def test_a_second_attempt_to_replace_keeps_the_complete_run(tmp_path):
    d, ours = tmp_path/"run", "result".__eq__
    for key, text in (("a", "complete"), ("b", "torn"), ("c", "new")):
        run_dir_fresh(d, key, {"key": key}, True, ours)
        (d/"result").write_text(text)
    assert (d/ASIDE/"result").read_text() == "complete" and (d/"result").read_text() == "new"


def test_run_dir_never_empties_a_stranger(tmp_path):
    (tmp_path/"thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not made by r3nb"): run_dir_fresh(tmp_path, "k")
    assert (tmp_path/"thesis.tex").exists()


# processes -----------------------------------------------------------------------------------------------------------------------------

def lie_down(folder):
    (Path(folder)/str(os.getpid())).touch()
    time.sleep(60)


PARENT = "import sys; sys.path.insert(0, {tests!r})\nfrom test_core import lie_down\nfrom r3nb.core import worker_pool\n" \
         "if __name__ == '__main__':\n    with worker_pool(2) as pool: list(pool.map(lie_down, [{folder!r}] * 2))"


def test_workers_leave_with_their_parent(tmp_path):
    code = PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path/"pids"))
    (tmp_path/"pids").mkdir()
    (tmp_path/"parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path/"parent.py")])
    until = time.time() + 60
    while len(pids := [int(p.name) for p in (tmp_path/"pids").iterdir()]) < 2 and time.time() < until: time.sleep(.1)
    assert len(pids) == 2
    parent.kill(); parent.wait()
    def alive(pid):
        try: return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError: return False
    until = time.time() + 20
    while any(map(alive, pids)) and time.time() < until: time.sleep(.1)
    assert not any(map(alive, pids))


def test_a_worker_that_dies_is_an_error_with_a_remedy():
    with pytest.raises(WorkerError, match="fewer workers"), worker_pool(1) as pool: pool.submit(os.abort).result()


def test_an_error_in_a_worker_comes_through():
    with pytest.raises(ZeroDivisionError), worker_pool(1) as pool: pool.submit(divmod, 1, 0).result()


def test_records_of_a_test_split_without_answers_name_the_split_to_use(tmp_path):
    row = dict(sample_id="infovqa_test_0", dataset="infovqa", split="test", image_id="i", image_path="i.png", question="q", answer="", answers=[], pseudo_text="")
    write_jsonl(tmp_path/"val.jsonl", [row])
    with pytest.raises(DataError, match="val.jsonl:1: infovqa_test_0 has no answers; the public test split of infovqa .* evaluate on its val split"): read_records(tmp_path/"val.jsonl")
