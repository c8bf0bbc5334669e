"""OCR: the real engine, engines by import path, and runs that are killed, locked, torn or given bad images."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from r3nb import ocr as O
from r3nb.core import ConfigError, DataError, WorkerError
from r3nb.data import UnifyConfig, read_ocr_cache, unify

ENGINE = '''
import os, time
from r3nb.ocr import OCRResult

class Slow:
    "Writes one line per picture that it reads, and takes its time"
    name = "slow"
    def __init__(self, log="", delay="0", version="1"):
        self.log, self.delay, self.version = log, float(delay), version
    def __call__(self, image):
        time.sleep(self.delay)
        r, g, b = image.getpixel((0, 0))
        if (r, g, b) == (255, 0, 255): raise RuntimeError("magenta")
        if self.log:
            with open(self.log, "a") as f: f.write(f"{os.getpid()} {r} {g} {b}\\n")
        return OCRResult(f"pixel {r} {g} {b}", 0.5, [{"text": "pixel", "box": [0, 0, 1, 1], "conf": 0.5}])

class Dying(Slow):
    def __call__(self, image): os._exit(7)

class NoVersion:
    name = "x"
    def __call__(self, image): ...
'''


@pytest.fixture
def world(tmp_path, monkeypatch):
    "A folder of 12 images of one colour each, and an importable engine"
    (tmp_path/"images").mkdir()
    (tmp_path/"lib").mkdir()
    (tmp_path/"lib/fake_engine.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(str(tmp_path/"lib"))
    for i in range(12): Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(tmp_path/f"images/p_{i:02}.png")
    yield tmp_path
    sys.modules.pop("fake_engine", None)


def config(world, out="ocr.jsonl", engine="Slow", workers=1, **args):
    return O.OCRConfig([str(world/"images")], str(world/out), f"fake_engine:{engine}", [f"{k}={v}" for k, v in args.items()], workers)


def test_cache_rows_order_and_workers(world):
    one, two = O.run_ocr(config(world, "one.jsonl")), O.run_ocr(config(world, "two.jsonl", workers=2))
    assert one.read_bytes() == two.read_bytes() and not O.journal_path(one).exists()
    rows = [json.loads(s) for s in one.read_text().splitlines()]
    assert [r["image"] for r in rows] == [f"p_{i:02}.png" for i in range(12)]
    assert set(rows[0]) == {"image_sha256", "image", "text", "conf", "words", "engine"} and rows[3]["text"] == "pixel 3 6 0"


def alive(pid):
    try: state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError: return False
    return state != "Z"


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_then_again_gives_the_same_and_reads_nothing_twice(world, workers):
    whole = O.run_ocr(config(world, "whole.jsonl")).read_bytes()
    log, out = world/"log.txt", world/"ocr.jsonl"
    argv = ["--image_dir", str(world/"images"), "--out", str(out), "--engine", "fake_engine:Slow", "--workers", str(workers),
            "--engine_args", f"log={log},delay=0.25"]
    env = os.environ | {"PYTHONPATH": str(world/"lib"), "OMP_NUM_THREADS": "1"}
    p = subprocess.Popen([sys.executable, "-c", f"from r3nb.ocr import main; main({argv!r})"], env=env, stderr=subprocess.DEVNULL)
    journal, until = O.journal_path(out), time.time() + 60
    while time.time() < until and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3): time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not out.exists(), "a cache must not look whole before it is"
    kept = journal.read_bytes().count(b"\n")
    assert 3 <= kept < 12
    pids = {int(s.split()[0]) for s in log.read_text().splitlines()}
    until = time.time() + 20
    while time.time() < until and any(map(alive, pids)): time.sleep(.05)
    assert not any(map(alive, pids)), "workers outlive a killed run"
    with open(journal, "a") as f: f.write('{"image_sha256": "torn')
    log.unlink()
    O.run_ocr(config(world, log=log))
    assert out.read_bytes() == whole and not journal.exists()
    assert len(log.read_text().splitlines()) == 12 - kept


def test_second_run_reads_nothing_and_a_new_version_reads_all(world):
    log = world/"log.txt"
    first = O.run_ocr(config(world, log=log)).read_bytes()
    O.run_ocr(config(world, log=log))
    assert len(log.read_text().splitlines()) == 12 and (world/"ocr.jsonl").read_bytes() == first
    with pytest.raises(ConfigError, match="holds 12 readings by slow 1, and this run reads with slow 2.*--overwrite"): O.run_ocr(config(world, log=log, version=2))
    assert len(log.read_text().splitlines()) == 12 and (world/"ocr.jsonl").read_bytes() == first
    O.run_ocr(replace(config(world, log=log, version=2), overwrite=True))
    assert len(log.read_text().splitlines()) == 24
    assert {r["engine"] for r in read_ocr_cache(world/"ocr.jsonl").values()} == {"slow 2"}


def test_changed_image_is_read_again_and_copies_once(world):
    log = world/"log.txt"
    O.run_ocr(config(world, log=log))
    (world/"images/copy.png").write_bytes((world/"images/p_05.png").read_bytes())
    Image.new("RGB", (8, 8), (99, 99, 99)).save(world/"images/p_00.png")
    rows = read_ocr_cache(O.run_ocr(config(world, log=log)))
    assert len(log.read_text().splitlines()) == 13 and len(rows) == 13  # the reading of the image as it was stays; it is found by its hash only
    assert {"pixel 99 99 99", "pixel 0 0 0"} <= {r["text"] for r in rows.values()}


def test_readings_of_another_folder_with_the_same_names_stay(world):
    (world/"b").mkdir()
    for i in range(3): Image.new("RGB", (8, 8), (200, i, 0)).save(world/f"b/p_{i:02}.png")
    log = world/"log.txt"
    O.run_ocr(config(world, log=log))
    rows = read_ocr_cache(O.run_ocr(replace(config(world, log=log), image_dir=[str(world/"b")])))
    assert len(rows) == 15 and len(log.read_text().splitlines()) == 15
    O.run_ocr(replace(config(world, log=log, version=2), image_dir=[str(world/"b")], overwrite=True))
    engines = [r["engine"] for r in read_ocr_cache(world/"ocr.jsonl").values()]
    assert sorted(engines) == ["slow 1"] * 12 + ["slow 2"] * 3


def test_one_cache_filled_by_two_calls(world):
    (world/"more").mkdir()
    Image.new("RGB", (8, 8), (7, 7, 7)).save(world/"more/m.png")
    O.run_ocr(config(world))
    O.run_ocr(O.OCRConfig([str(world/"more")], str(world/"ocr.jsonl"), "fake_engine:Slow", workers=1))
    assert len(read_ocr_cache(world/"ocr.jsonl")) == 13
    assert list(O.find_images([world/"images", world/"more"]))[-1] == "more/m.png"


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_are_listed_and_do_not_stop_the_rest(world, workers):
    good = (world/"images/p_04.png").read_bytes()
    (world/"images/p_04.png").write_bytes(good[:40])
    (world/"images/p_06.png").write_bytes(b"")
    Image.new("RGB", (8, 8), (255, 0, 255)).save(world/"images/p_08.png")
    with pytest.raises(DataError, match="3 of 12 images") as e: O.run_ocr(config(world, workers=workers))
    for words in ("p_04.png", "p_06.png", "p_08.png", "RuntimeError: magenta"): assert words in str(e.value)
    assert len(read_ocr_cache(world/"ocr.jsonl")) == 9
    (world/"images/p_04.png").write_bytes(good)
    for i in (6, 8): (world/f"images/p_{i:02}.png").unlink()
    log = world/"log.txt"
    assert len(read_ocr_cache(O.run_ocr(config(world, log=log)))) == 10
    assert len(log.read_text().splitlines()) == 1


def test_a_dying_worker_is_an_error_with_advice(world):
    with pytest.raises(WorkerError, match="a worker process died; use fewer workers"): O.run_ocr(config(world, engine="Dying", workers=2))
    assert not (world/"ocr.jsonl").exists()


def test_broken_cache_lines_are_errors_with_their_place(world):
    out = O.run_ocr(config(world))
    lines = out.read_text().splitlines()
    out.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"ocr.jsonl:2: malformed"): O.run_ocr(config(world))
    out.write_text(lines[0] + "\n" + json.dumps(json.loads(lines[1]) | {"conf": "high"}) + "\n")
    with pytest.raises(DataError, match=r"ocr.jsonl:2: column 'conf'"): read_ocr_cache(out)
    out.write_text(json.dumps(json.loads(lines[1]) | {"conf": 3}) + "\n")
    with pytest.raises(DataError, match=r"ocr.jsonl:1: OCR confidence 3"): read_ocr_cache(out)


def test_two_runs_on_one_output_are_refused(world):
    with O.open_journal(world/"ocr.jsonl"), pytest.raises(ConfigError, match="another run is writing"): O.run_ocr(config(world))
    assert len(read_ocr_cache(O.run_ocr(config(world)))) == 12


@pytest.mark.parametrize("engine,args,words", [
    ("fake_engine", [], "package.module:Name"), ("fake_engine:Slo", [], "did you mean 'Slow'"), ("gone_engine:X", [], "cannot import"),
    ("fake_engine:NoVersion", [], "no text attribute 'version'"), ("fake_engine:Slow", ["speed=1"], "does not accept"),
    ("fake_engine:Slow", ["delay=soon"], "does not accept"), ("r3nb.ocr:RapidOCREngine", ["det_side=3"], "too small"),
])
def test_wrong_engines_fail_before_any_work(world, engine, args, words):
    with pytest.raises(ConfigError) as e: O.run_ocr(O.OCRConfig([str(world/"images")], str(world/"o.jsonl"), engine, args, 1))
    assert words in str(e.value) and not (world/"o.jsonl").exists() and not (world/"o.jsonl.part").exists()


def test_empty_and_missing_folders_and_the_command(world, capsys):
    (world/"none").mkdir()
    for folder, words in (("none", "no images"), ("gone", "no such folder")):
        with pytest.raises(SystemExit) as e: O.main(["--image_dir", str(world/folder), "--out", str(world/"o.jsonl")])
        assert e.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: O.main(["--help"])
    assert e.value.code == 0 and "--image_dir" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="key=value"): O.OCRConfig("d", "o", engine_args=["x"])


def shards(world, n, order=None, out="ocr.jsonl", overwrite=False, **kw):
    "Read all shards in some order; what went wrong in each"
    said = {}
    for i in order or range(n):
        c = config(world, out, **kw)
        try: O.run_ocr(O.OCRConfig(c.image_dir, c.out, c.engine, c.engine_args, c.workers, num_shards=n, shard=i, overwrite=overwrite))
        except DataError as e: said[i] = str(e)
    return said


def merge(world, n, out="ocr.jsonl"): return O.run_ocr(O.OCRConfig(out=str(world/out), merge_shards=n))


@pytest.mark.parametrize("n,order", [(1, None), (2, (1, 0)), (3, (2, 0, 1)), (5, (3, 1, 4, 0, 2)), (20, None)])
def test_shards_merge_to_the_bytes_of_one_process(world, n, order):
    (world/"images/sub").mkdir()
    for name in ("a_copy.png", "sub/z.png", "p_99.png"): (world/"images"/name).write_bytes((world/"images/p_05.png").read_bytes()) # one content, four names
    log = world/"log.txt"
    whole = O.run_ocr(config(world, "whole.jsonl")).read_bytes()
    assert shards(world, n, order, log=log) == {}
    if n > 1:
        assert not (world/"ocr.jsonl").exists() and O.shard_path(world/"ocr.jsonl", n - 1, n).is_file()
        assert 12 <= len(log.read_text().splitlines()) <= 15 # copies in different shards are read more than once
        assert merge(world, n).read_bytes() == whole
        assert merge(world, n).read_bytes() == whole # again
    assert (world/"ocr.jsonl").read_bytes() == whole and not list(world.glob("*.part"))


def test_shards_with_bad_images_and_an_older_cache(world):
    "What an earlier run knew is used; bad images are listed by their shard and by the merge; the repair reads only them"
    log, bad = world/"log.txt", ("p_04.png", "p_06.png")
    whole = [O.run_ocr(config(world, out)) and (world/out).read_bytes() for out in ("ocr.jsonl", "whole.jsonl")]
    assert whole[0] == whole[1]
    Image.new("RGB", (8, 8), (77, 0, 0)).save(world/"images/new.png")
    good = {name: (world/"images"/name).read_bytes() for name in bad}
    (world/"images"/bad[0]).write_bytes(good[bad[0]][:50])
    (world/"images"/bad[1]).write_bytes(b"")
    with pytest.raises(DataError, match="2 of 13 images") as one: O.run_ocr(config(world, "whole.jsonl"))
    said = shards(world, 3, log=log)
    assert len(log.read_text().splitlines()) == 1 # new.png
    assert set(said) == {O.shard_of(name, 3) for name in bad} and all(any(name in s for s in said.values()) for name in bad)
    with pytest.raises(DataError) as many: merge(world, 3)
    assert str(many.value).replace("ocr.jsonl", "whole.jsonl") == str(one.value)
    assert (world/"ocr.jsonl").read_bytes() == (world/"whole.jsonl").read_bytes() and len(read_ocr_cache(world/"ocr.jsonl")) == 13
    for name in bad: (world/"images"/name).write_bytes(good[name])
    log.unlink()
    assert shards(world, 3, log=log) == {} and not log.exists()          # the older cache still has their readings
    assert merge(world, 3).read_bytes() == O.run_ocr(config(world, "whole.jsonl")).read_bytes()


def test_a_removed_image_leaves_other_shards_in_place(world):
    log = world/"log.txt"
    shards(world, 3)
    (world/"images/p_00.png").unlink()
    shards(world, 3, log=log)
    assert not log.exists() and len(read_ocr_cache(merge(world, 3))) == 12 # one is kept, though nothing asks for it


def test_missing_unfinished_foreign_and_renamed_shards_are_named(world):
    path = lambda i, n=3: O.shard_path(world/"ocr.jsonl", i, n)
    shards(world, 3)
    kept = path(1).read_bytes()
    path(1).unlink()
    with pytest.raises(DataError, match=r"shard 1 of 3 is missing; .*--num_shards 3 --shard 1"): merge(world, 3)
    O.journal_path(path(1)).write_text("")
    with pytest.raises(DataError, match=r"shard 1 of 3 is not finished"): merge(world, 3)
    with pytest.raises(DataError, match=r"shard 0 of 2 is missing.*there are shards of 3"): merge(world, 2)
    path(1).write_bytes(path(2).read_bytes())
    with pytest.raises(DataError, match=r"shard-1-of-3: this is not shard 1 of 3, but 2 of 3"): merge(world, 3)
    with pytest.raises(ConfigError, match="readings by slow 1"): shards(world, 3, [1], version=2)
    path(1).unlink()
    shards(world, 3, [1], version=2)
    with pytest.raises(DataError, match=r"shard-1-of-3: shard 1 of 3 was made with another engine \(slow 2\) than the others \(slow 1\)"): merge(world, 3)
    (world/"images/extra.png").write_bytes((world/"images/p_00.png").read_bytes())
    shards(world, 3, [1], overwrite=True)
    with pytest.raises(DataError, match=r"shard-1-of-3: shard 1 of 3 was made with another list of images"): merge(world, 3)
    (world/"images/extra.png").unlink()
    path(1).write_bytes(kept[:-1] + b"{torn\n")
    with pytest.raises(DataError, match=r"shard-1-of-3:\d+: malformed"): merge(world, 3)
    path(1).write_bytes(kept)
    O.run_ocr(O.OCRConfig([str(world/"images")], str(world/"ocr.jsonl"), merge_shards=3)) # with the folder, the list is compared
    (world/"images/p_00.png").unlink()
    with pytest.raises(DataError, match="another list of images than"): O.run_ocr(O.OCRConfig([str(world/"images")], str(world/"ocr.jsonl"), merge_shards=3))


def test_the_rank_of_torchrun_is_the_shard(world, monkeypatch):
    whole = O.run_ocr(config(world, "whole.jsonl")).read_bytes()
    c = config(world)
    run = lambda n, **kw: O.run_ocr(O.OCRConfig(c.image_dir, c.out, c.engine, workers=1, num_shards=n, **kw))
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "201":
        monkeypatch.setenv("RANK", rank)
        assert run(3) == O.shard_path(c.out, int(rank), 3)
    for n, words in ((1, "add --num_shards 3"), (4, "add --num_shards 3")):
        with pytest.raises(ConfigError, match=words): run(n)
    monkeypatch.delenv("WORLD_SIZE")
    assert merge(world, 3).read_bytes() == whole
    with pytest.raises(ConfigError, match="give --shard 0 to 3, or start it by torchrun --nproc_per_node=4"): run(4)
    with pytest.raises(ConfigError, match="use 0 to 3"): run(4, shard=4)
    with pytest.raises(ConfigError, match="two commands"): O.OCRConfig(out="o", num_shards=2, merge_shards=2)


@pytest.mark.slow
def test_torchrun_goes_on_after_a_bad_image_and_fails_in_the_end(world):
    "The shard with the bad image is done first; torchrun would end the others if it failed at once"
    names = sorted(p.name for p in (world/"images").iterdir())
    bad = min(names, key=lambda name: sum(O.shard_of(other, 2) == O.shard_of(name, 2) for other in names))
    (world/"images"/bad).write_bytes(b"no image")
    log, env = world/"log.txt", os.environ | {"PYTHONPATH": f"{world/'lib'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    argv = ["--image_dir", str(world/"images"), "--out", str(world/"ocr.jsonl"), "--engine", "fake_engine:Slow", "--workers", "1", "--num_shards", "2"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "r3nb.ocr", *argv,
                           "--engine_args", f"log={log},delay=0.3"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "1 of 12 images could not be read" in done.stderr and bad in done.stderr, done.stderr[-3000:]
    assert len(log.read_text().splitlines()) == 11 and O.shard_path(world/"ocr.jsonl", 1, 2).exists()
    merged = subprocess.run([sys.executable, "-m", "r3nb.ocr", "--out", str(world/"ocr.jsonl"), "--merge_shards", "2"], env=env, capture_output=True, text=True)
    assert merged.returncode == 2 and bad in merged.stderr
    with pytest.raises(DataError): O.run_ocr(config(world, "whole.jsonl"))
    assert (world/"ocr.jsonl").read_bytes() == (world/"whole.jsonl").read_bytes()


def test_a_killed_shard_goes_on(world):
    whole = O.run_ocr(config(world, "whole.jsonl")).read_bytes()
    path = O.shard_path(world/"ocr.jsonl", 1, 2)
    shards(world, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    O.journal_path(path).write_bytes(b"".join(lines[1:3]) + lines[3][:70]) # two readings and a piece of a third
    log = world/"log.txt"
    shards(world, 2, [1], log=log)
    assert len(log.read_text().splitlines()) == len(lines) - 3 and not O.journal_path(path).exists()
    assert merge(world, 2).read_bytes() == whole


@pytest.mark.parametrize("content,kept", [
    (b"", b""), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a"', b""), (b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n'), (b'{"a": 1}\n\0\0\0\n', b'{"a": 1}\n'),
    (b'{"a": 1}\n{"b\n{"c', b'{"a": 1}\n'), (b'{"a\n{"b": 2}\n', b'{"a\n{"b": 2}\n')])
def test_only_a_torn_end_is_cut_off(tmp_path, content, kept):
    (tmp_path/"j").write_bytes(content)
    O.mend_journal(tmp_path/"j")
    assert (tmp_path/"j").read_bytes() == kept


def test_the_rate_and_what_was_done_are_shown(world, capsys):
    (world/"images/p_03.png").write_bytes(b"")
    with pytest.raises(DataError): O.run_ocr(config(world))
    shown = capsys.readouterr()
    assert "images/s" in shown.err and "11 images read in" in shown.out and "0 known before, 1 bad" in shown.out
    with pytest.raises(DataError): O.run_ocr(config(world))
    assert "0 images read in" in (shown := capsys.readouterr()).out and "11 known before" in shown.out


def test_a_file_that_cannot_be_opened_is_one_bad_image(world, monkeypatch):
    read = O.sha256_file
    def guarded(path):
        if path.name == "p_02.png": raise PermissionError(13, "Permission denied")
        return read(path)
    monkeypatch.setattr(O, "sha256_file", guarded)
    with pytest.raises(DataError, match=r"1 of 12 images(.|\n)*p_02.png: cannot be opened .*Permission denied"): O.run_ocr(config(world))
    assert len(read_ocr_cache(world/"ocr.jsonl")) == 11


def test_a_cache_that_changes_during_the_run_is_noticed(world):
    out = O.run_ocr(config(world))
    known = O.known_readings([out], "slow 1")
    out.write_text("\n".join(reversed(out.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match="changed during the run"): list(O.cache_rows(known, {}))


def test_the_gpu_of_a_rank(monkeypatch):
    import onnxruntime
    with pytest.raises(ConfigError, match="onnxruntime-gpu"): O.cuda_params("cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    number = lambda device: O.cuda_params(device).get("EngineConfig.onnxruntime.cuda_ep_cfg.device_id")
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert [number(d) for d in ("auto", "cuda", "cuda:2", "cpu")] == [5, 5, 2, None]
    for wrong in ("gpu", "cuda:", "cuda:a", "cpu:1", ""):
        with pytest.raises(ConfigError, match="device"): O.cuda_params(wrong)
    with pytest.raises(ConfigError, match="the networks run on CPU"): O.RapidOCREngine(device="cuda")


def test_reading_order_of_slanted_and_stacked_rows():
    grid = [[x, y + dx, x + 40, y + 20 + dx] for y in (0, 30, 60) for x, dx in ((0, 0), (100, 4), (200, 8))]
    for shift in range(9): # the same order, whatever the order of the input
        boxes = grid[shift:] + grid[:shift]
        assert [boxes[i] for i in O.reading_order(boxes)] == grid
    tall, small = [0, 0, 60, 90], [[70, 0, 90, 20], [70, 40, 90, 60]]
    assert sorted(O.reading_order([tall, *small])) == [0, 1, 2]


def text_image(size, items, mode="RGB"):
    im = Image.new("RGB", size, "white")
    for x, y, s in items: ImageDraw.Draw(im).text((x, y), s, font=ImageFont.load_default(size=22), fill="black")
    return im.convert(mode)


def test_rapidocr_reads_is_deterministic_and_survives_odd_pictures():
    engine = O.RapidOCREngine()
    im = text_image((400, 120), [(20, 20, "Battery"), (280, 20, "87"), (20, 70, "Salt"), (280, 70, "424")])
    r = engine(im)
    assert r.text.replace(" ", "") == "Battery87\nSalt424" and r.text.split() == [w["text"] for w in r.words] and r.text.count("\n") == 1 and .8 < r.conf <= 1
    assert r == engine(im) == O.RapidOCREngine()(im)
    salt = next(w for w in r.words if "Salt" in w["text"])["box"]
    assert salt[0] < 40 and 55 < salt[1] < salt[3] < 118
    for mode in ("L", "CMYK", "RGBA", "P"): assert "87" in engine(im.convert(mode)).text
    for size in ((1, 1), (3, 200), (3000, 4), (20000, 60), (200, 200)): assert engine(Image.new("RGB", size, "white")).text == ""
    wide = engine(text_image((6000, 60), [(20, 15, "far left"), (5800, 15, "far right")]))
    assert all(w["box"][2] <= 6000 for w in wide.words)


def test_from_pictures_to_unified_records(tmp_path):
    raw = tmp_path/"chartqa"
    (raw/"images").mkdir(parents=True)
    text_image((300, 60), [(20, 15, "Oslo"), (200, 15, "42")]).save(raw/"images/train_0.png")
    (raw/"chartqa_raw_train.jsonl").write_text(json.dumps({"image": "images/train_0.png", "query": "Oslo?", "label": ["42"]}) + "\n")
    cache = O.run_ocr(O.OCRConfig(str(raw), str(tmp_path/"ocr.jsonl"), workers=1))
    out = unify(UnifyConfig("chartqa", str(raw), str(tmp_path/"u"), ocr_cache=str(cache)))["train"]
    assert json.loads(out.read_text())["pseudo_text"].split() == ["Oslo", "42"]


# ---- long pictures, and what is no image

def words_of(text): return re.findall(r"[a-z]+\d+", text.lower().replace(" ", ""))


@pytest.mark.parametrize("tall", [True, False])
def test_a_long_picture_is_read_to_its_end_and_nothing_twice(tall):
    size, font = ((500, 4000) if tall else (6000, 260)), ImageFont.load_default(20)
    image = Image.new("RGB", size, "white")
    at = [(40 + 230 * (i % 2), 20 + 98 * (i // 2)) for i in range(80)] if tall else [(20 + 148 * (i // 2), 40 + 120 * (i % 2)) for i in range(80)]
    for i, place in enumerate(at): ImageDraw.Draw(image).text(place, f"word{10 + i}", fill="black", font=font)
    got = O.RapidOCREngine()(image)
    assert sorted(words_of(got.text)) == [f"word{10 + i}" for i in range(80)]
    assert all(0 <= w["box"][0] < w["box"][2] <= size[0] and 0 <= w["box"][1] < w["box"][3] <= size[1] for w in got.words)
    if tall: assert words_of(got.text) == [f"word{10 + i}" for i in range(80)]


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 1750, 1751, 20000])
def test_windows_cover_a_length_and_own_each_point_once(length):
    found = O.windows(length, 1000)
    assert found[0][0] == 0 and found[-1][1] == length and all(b - a == min(length, 1000) for a, b, *_ in found)
    assert [w[2] for w in found[1:]] == [w[3] for w in found[:-1]] and (found[0][2], found[-1][3]) == (-np.inf, np.inf)
    for (_, stop, _, edge), (start, *_) in zip(found, found[1:], strict=False): assert stop - start >= 250 and start + 125 <= edge <= stop - 125


def test_other_files_are_counted_and_dead_links_are_bad_images(world, capsys):
    (world/"images"/"notes.TXT").write_text("x")
    (world/"images"/"plain").write_text("x")
    (world/"images"/"photo.avif").write_bytes(b"no picture")
    os.symlink("nowhere.png", world/"images"/"dead.png")
    with pytest.raises(DataError, match="2 of .* images") as e: O.run_ocr(config(world))
    assert "dead.png: cannot be opened" in str(e.value) and "photo.avif: not a readable image" in str(e.value)
    assert "passed over: 1 .txt, 1 without ending" in capsys.readouterr().out


# ---- pages of any size, whichever way they lie

FACE = lambda size: ImageFont.load_default(size)


def written(size, rows, print_=18, step=40, left=20, seed=0):
    "A page of numbered words, so many in each row, and its text"
    page, said = Image.new("RGB", size, "white"), []
    for i, n in enumerate(rows):
        said.append(" ".join(f"word{100 + 10*i + k}" for k in range(n)))
        ImageDraw.Draw(page).text((left, 16 + step*i), said[-1], fill="black", font=FACE(print_))
    return page, "\n".join(said)


@pytest.fixture(scope="module")
def engine(): return O.RapidOCREngine()


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_page_is_read_as_upright_and_boxes_are_on_the_picture_as_given(engine, turn):
    page, said = written((420, 300), [3, 2, 3, 1, 2])
    turned = page.rotate(90*turn, expand=True)
    one, two = engine(page), engine(turned)
    assert words_of(one.text) == words_of(said) and one.text.count("\n") == 4
    assert (two.text, two.conf) == (one.text, one.conf)
    for a, b in zip(one.words, two.words, strict=True):
        x0, y0, x1, y1 = b["box"]
        assert 0 <= x0 < x1 <= turned.width and 0 <= y0 < y1 <= turned.height
        ink = np.asarray(turned.convert("L").crop((x0, y0, x1, y1)))
        assert ink.min() < 100 and ink.mean() < 245                            # the word is there
        assert sorted(np.round([x1 - x0, y1 - y0])) == sorted(np.round([a["box"][2] - a["box"][0], a["box"][3] - a["box"][1]]))
    assert O.RapidOCREngine(turn=0)(turned).text != one.text # so it was the turning that did it


@pytest.mark.parametrize("turn", [1, 3])
def test_turned_print_that_the_detector_does_not_see_is_found_by_its_letters(engine, turn):
    page, said = written((600, 400), [4] * 10, print_=16, step=36)
    turned = page.rotate(90*turn, expand=True)
    assert engine(turned).text == engine(page).text
    blind = O.RapidOCREngine()
    blind.detect = lambda p, scale: engine.detect(p, scale) if p.shape[0] == 400 else np.zeros((0, 4, 2), np.float32)
    assert words_of(blind(turned).text) == words_of(said)


@pytest.mark.parametrize("items", [[(20, 20, "87")], [(20, 20, "Battery"), (280, 20, "87")], [(10, 10, "1"), (10, 50, "11"), (10, 90, "7")], [(20, 20, "WOW NOON SOS")], []])
def test_little_text_is_not_turned(engine, items):
    got = engine(text_image((400, 140), items))
    if items: assert "".join(got.text.split()).lower() == "".join(s for *_, s in items).replace(" ", "").lower()
    else: assert got == O.OCRResult("", 0.0, [])
    for w, item in zip(got.words, items, strict=False): assert abs(w["box"][1] - item[1]) < 30


def test_a_label_that_runs_upwards_is_read_and_does_not_turn_the_page(engine):
    page, said = written((420, 300), [3, 2, 3, 1, 2], left=60)
    label = Image.new("RGB", (220, 30), "white")
    ImageDraw.Draw(label).text((10, 4), "Percent of all", fill="black", font=FACE(18))
    page.paste(label.rotate(90, expand=True), (8, 40))
    got = "".join(engine(page).text.split()).lower()
    assert "percentofall" in got and words_of(said)[0] in got


def test_a_tall_page_is_read_once_in_bands_that_overlap(engine, monkeypatch):
    monkeypatch.setattr(O, "BAND", 2**18) # bands of 524 rows in place of thousands
    page, said = written((500, 1600), [3] * 39)
    assert words_of(engine(page).text) == words_of(said)


def test_confidence_counts_what_was_missed():
    page, said = written((700, 500), [5] * 12, print_=12)
    whole, blind = O.RapidOCREngine()(page), O.RapidOCREngine(det_side=128)(page)
    share = len(set(words_of(blind.text)) & set(words_of(said))) / len(words_of(said))
    assert words_of(whole.text) == words_of(said) and whole.conf > .9
    assert blind.conf < share + .25 < .9, (blind.conf, share)
    mean = np.mean([w["conf"] for w in whole.words])
    assert whole.conf > mean - .05


def test_a_limit_on_regions_is_said_and_counts_as_missed(world, capsys):
    page, said = written((420, 300), [3, 2, 3, 1, 2])
    got = O.RapidOCREngine(max_words=6)(page)
    n = len(words_of(got.text))
    assert 2 <= n <= 8 and words_of(got.text) == words_of(said)[:n] and got.conf < .8
    assert re.fullmatch(r"\d+ regions of text were found, and the \d topmost were read, about 6 words; raise max_words to read more", got.note)
    (world/"pages").mkdir()
    page.save(world/"pages/long.png")
    O.run_ocr(O.OCRConfig(str(world/"pages"), str(world/"o.jsonl"), engine_args=["max_words=6"], workers=1))
    assert "long.png: " + got.note in capsys.readouterr().out


def test_columns_are_read_one_after_the_other(engine):
    page = Image.new("RGB", (1000, 330), "white")
    ImageDraw.Draw(page).text((200, 10), "A title that stands over both of the columns", fill="black", font=FACE(24))
    left, right = [[f"{side} line {i} has some words in it" for i in "abcdef"] for side in ("left", "right")]
    for i in range(6):
        for x, y, lines in ((20, 60, left), (540, 75, right)): ImageDraw.Draw(page).text((x, y + 40*i), lines[i], fill="black", font=FACE(22))
    lines = ["".join(s.split()).lower() for s in engine(page).text.split("\n")]
    assert lines[0].startswith("atitle") and [s[:4] for s in lines[1:7]] == ["left"] * 6 and [s[:5] for s in lines[7:]] == ["right"] * 6


def test_the_plain_manner_is_that_of_the_published_runs():
    "What the embedded world's texts and confidences were made with must stay as it was, with its name in caches"
    im = text_image((400, 120), [(20, 20, "Battery"), (280, 20, "87"), (20, 70, "Salt"), (280, 70, "424")])
    engine = O.load_engine("r3nb.ocr:RapidOCREngine", O.QUICK)
    assert re.fullmatch(r"[\d.]+ det_side=480 windows", engine.version) and engine.version == O.RapidOCREngine(plain="1").version
    found = engine.ocr(im)
    got = engine(im)
    assert "\n" not in got.text and got.conf == round(float(np.mean(found.scores)), 4) and got.note == ""
    assert engine.ocr.text_det.postprocess_op.max_candidates == 1000
    assert O.RapidOCREngine().version != O.RapidOCREngine(turn=0).version != O.RapidOCREngine(det_side=480).version


@pytest.mark.parametrize("args,words", [({"plain": "yes"}, "plain: 'yes' is neither 0 nor 1"), ({"turn": 2}, "turn: '2'"), ({"max_words": 0}, "max_words: 0"), ({"det_side": 5}, "det_side: 5")])
def test_wrong_settings_of_the_engine_are_named(args, words):
    with pytest.raises(ConfigError, match=words): O.RapidOCREngine(**args)


def test_the_profiles_of_the_embedded_world_say_the_plain_manner():
    import yaml
    profiles = sorted((Path(__file__).parent.parent/"runs/profiles").glob("*.yaml"))
    for profile in (yaml.safe_load(p.read_text()) for p in profiles):
        assert profile["prepare"]["ocr_engine_args"] == O.QUICK, profile["name"]
        for v in profile.get("variants", {}).values():
            if v.get("eval", {}).get("text_damage") == "reocr": assert v["eval"]["ocr_engine_args"] == O.QUICK
    assert len(profiles) >= 6
