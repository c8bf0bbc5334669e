"""Frozen inputs: the same bytes whoever writes them, the same inputs from disk and on the fly, and no silent change."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from bench import peak_of
from datasets import load_from_disk
from PIL import Image

from r3nb import core, frozen
from r3nb.core import ConfigError, DataError, ImageError, R3Error, read_json, read_jsonl, write_jsonl
from r3nb.corrupt import IMAGE_FAMILIES, TEXT_FAMILIES, corrupt
from r3nb.data import tidy_lines
from r3nb.eval import Answer, EvalConfig, evaluate, sweep
from r3nb.frozen import (FreezeConfig, Rereader, conditions_of, damage_key, fidelity, freeze, main,
                         verify, word_errors)

TOY = "toy_ocr:Toy"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Eight pages on disk, two of them with a second question"
    d = tmp_path_factory.mktemp("world")
    (d/"raw/demo").mkdir(parents=True)
    rows = tiny.records(8)
    for i in range(8): tiny.page(i).save(d/"raw"/rows[i].image_path)
    rows += [replace(rows[i], sample_id=f"demo_train_{i}b", question=f"And of {i}?") for i in (0, 5)]
    write_jsonl(d/"val.jsonl", rows)
    return d


def options(world, out, **kw):
    return FreezeConfig(str(world/"val.jsonl"), str(out), str(world/"raw"), **{"levels": [0, .5], "seeds": [0, 1], "workers": 1} | kw)


def content(folder):
    "Every file but the manifest, which tells the time"
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*"))
            if p.is_file() and p.name not in ("manifest.json", ".key")}


def records(world): return [frozen.QARecord.from_dict(r) for _, r in read_jsonl(world/"val.jsonl")]


RUN = """
import sys
import cv2
cv2.setNumThreads(int(sys.argv[1]))
from r3nb.frozen import main
main(sys.argv[2:])
"""


def words(cfg): return ["freeze", *(w for k in ("jsonl", "out", "image_root", "workers", "text_damage", "ocr_engine") for w in (f"--{k}", str(getattr(cfg, k)))),
                        *(w for k in ("levels", "seeds", "damage") for w in (f"--{k}", ",".join(map(str, getattr(cfg, k)))))]


def launch(cfg, hash_seed="0", threads="1", wait=True):
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    call = dict(args=[sys.executable, "-c", RUN, threads, *words(cfg)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait: return subprocess.Popen(**call, start_new_session=True)
    done = subprocess.run(**call)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    "A set made in this process"
    return freeze(options(world, tmp_path_factory.mktemp("sets")/"whole", damage=["drawn", "image"]))


def test_same_bytes_from_other_processes(world, whole, tmp_path):
    "Another number of processes, another hash seed, another number of threads, records in another order: the same files"
    for name, workers, seed, threads in (("one", 1, "1", "4"), ("two", 2, "77", "1")):
        launch(options(world, tmp_path/name, damage=["image", "drawn"], levels=[.5, 0], workers=workers), seed, threads)
        assert content(tmp_path/name) == content(whole), name
    write_jsonl(tmp_path/"turned.jsonl", records(world)[::-1])
    turned = freeze(replace(options(world, tmp_path/"turned", damage=["drawn", "image"]), jsonl=str(tmp_path/"turned.jsonl")))
    assert content(turned) == content(whole)
    assert len({read_json(f/"manifest.json")["fingerprint"] for f in (whole, tmp_path/"one", tmp_path/"two", turned)}) == 1


GOLD = "d169187689b7b95e0f6a08bf1d68852edd7e6e331aff2d68f45d7f011bd44bde"


def test_damage_is_that_of_earlier_versions():
    "Pixels and texts of a sample of all families; a change here makes every frozen set of the past another one"
    h = hashlib.sha256()
    for i, f in enumerate((*IMAGE_FAMILIES, *TEXT_FAMILIES, None)):
        for level in (.2, .8):
            c = corrupt(tiny.records(8)[i % 8], tiny.page(i % 8), level, i, f)
            h.update(c.image.tobytes() + c.pseudo_text.encode() + " ".join(c.families).encode())
    assert h.hexdigest() == GOLD


def test_the_set_is_a_dataset_that_can_be_moved(world, whole, tmp_path):
    shutil.copytree(whole, tmp_path/"moved")
    data, rows = load_from_disk(tmp_path/"moved"), [r for _, r in read_jsonl(whole/"corruption.jsonl")]
    assert data.column_names == list(frozen.COLUMNS) and len(data) == len(rows) == 10 * (1 + 2 * 2)
    assert rows == sorted(rows, key=damage_key) and [damage_key(r) for r in data.remove_columns("image")] == [damage_key(r) for r in rows]
    by_id = {r.sample_id: r for r in records(world)}
    for d in data:
        r = by_id[d["sample_id"]]
        c = corrupt(r, Image.open(world/"raw"/r.image_path), d["level"], d["seed"], None if d["damage"] == "drawn" else d["damage"])
        assert np.array_equal(np.asarray(d["image"]), np.asarray(c.image)) and d["image"].format == "PNG"
        assert (d["pseudo_text"], d["question"], d["c_vis"], d["c_text"], tuple(d["families"])) == (c.pseudo_text, c.question, c.c_vis, c.c_text, c.families)
        assert np.array_equal(np.float32(d["c_vis_map"]), c.c_vis_map) and d["answers"] == r.answers and json.loads(d["meta"]) == r.meta
        assert d["clean_pseudo_text"] == r.pseudo_text and d["clean_question"] == r.question and d["ocr_conf"] == .9
        assert d["image_sha256"] == hashlib.sha256(repr(c.image.size).encode() + c.image.tobytes()).hexdigest()


def test_shards_are_cut_the_same_way_and_hold_all(world, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "SHARD", 3)
    small = freeze(options(world, tmp_path/"small", damage=["drawn", "image"]))
    assert len(list(small.glob("*.arrow"))) == 4 * 5 and (small/"corruption.jsonl").read_bytes() == (whole/"corruption.jsonl").read_bytes()
    assert [r["image_sha256"] for r in load_from_disk(small).remove_columns("image")] == [r["image_sha256"] for r in load_from_disk(whole).remove_columns("image")]


def test_killed_and_resumed(world, tmp_path):
    "Killed in the middle, workers and all; goes on, makes no finished file again, and ends in the same bytes"
    cfg = options(world, tmp_path/"set", levels=[0, .1, .2, .3, .4, .5, .6, .7], workers=2)
    run = launch(cfg, wait=False)
    part = tmp_path/"set.part"
    while len(list(part.glob(".notes/[0-9]*.json"))) < 3 and run.poll() is None: time.sleep(.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    kept = {p.name: p.stat().st_mtime_ns for p in part.glob("data-*.arrow") if (part/".notes"/f"{int(p.name[5:10]):05d}.json").exists()}
    assert len(kept) >= 3 and not (tmp_path/"set").exists()
    for p in (*part.glob("data-*.arrow"), part/".tmp-1234abcd-data-00014-of-00015.arrow"):
        if p.name not in kept: p.write_bytes(b"torn")
    freeze(replace(cfg, workers=1))
    assert {n: (tmp_path/"set"/n).stat().st_mtime_ns for n in kept} == kept and not part.exists()
    assert content(tmp_path/"set") == content(freeze(replace(cfg, out=str(tmp_path/"fresh"), workers=1)))


def test_what_a_dying_process_left_is_removed_in_the_end(world, tmp_path, monkeypatch):
    "A killed worker may take a moment to end: what it was writing is not yet a leftover when the next run begins"
    cfg, worker, last = options(world, tmp_path/"set"), subprocess.Popen(["sleep", "600"]), frozen.finish_set
    part = tmp_path/"set.part"
    part.mkdir()
    torn = part/core._tmp_name(part/"data-00000-of-00003.arrow").name.replace(f"-{os.getpid():x}-", f"-{worker.pid:x}-")
    def finish(*args):
        torn.write_text("torn")
        assert not core.leftovers(part, held=True)
        worker.kill(); worker.wait()
        return last(*args)
    monkeypatch.setattr(frozen, "finish_set", finish)
    made = freeze(cfg)
    assert not list(made.glob(".tmp-*")) and verify(made)["rows"]


def test_a_part_of_other_options_is_not_continued(world, tmp_path):
    part = tmp_path/"set.part"
    frozen.run_dir_fresh(part, "another key")
    (part/".notes").mkdir()
    for name in ("data-00000-of-00003.arrow", ".notes/00000.json"): (part/name).write_text("of another run")
    with pytest.raises(ConfigError, match="set.part holds a result .*--overwrite"): freeze(options(world, tmp_path/"set"))
    assert (part/".notes/00000.json").read_text() == "of another run"
    assert verify(freeze(options(world, tmp_path/"set", overwrite=True)))["rows"] == 10 * 3


def test_what_is_in_the_way_stays(world, whole, tmp_path):
    assert freeze(options(world, whole, damage=["drawn", "image"])) == whole
    before = content(whole)
    with pytest.raises(ConfigError, match="does not hold this very set"): freeze(options(world, whole, damage=["drawn"]))
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis/a.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="name another folder"): freeze(options(world, tmp_path/"thesis"))
    with pytest.raises(ConfigError, match="a file is in the way"): freeze(options(world, tmp_path/"thesis/a.tex"))
    assert content(whole) == before and (tmp_path/"thesis/a.tex").read_text() == "years of work"


def test_no_room_is_known_before_work(world, tmp_path, monkeypatch, capsys):
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda p: real._replace(free=10_000))
    with pytest.raises(ConfigError, match="larger disk"): freeze(options(world, tmp_path/"set"))
    assert not list(tmp_path.glob("set.part/*.arrow")) and "30 inputs in 3 files" in capsys.readouterr().out


def test_the_estimate_is_about_right(world, whole):
    cfg = options(world, "x", damage=["drawn", "image"])
    guess = frozen.estimate(cfg, frozen.plan_shards(records(world), conditions_of(cfg.damage, cfg.levels, cfg.seeds)))
    assert .6 < guess / sum(p.stat().st_size for p in whole.glob("*.arrow")) < 1.6


def test_a_bad_picture_is_named_and_the_rest_is_kept(world, tmp_path):
    shutil.copytree(world/"raw", tmp_path/"raw")
    (tmp_path/"raw/demo/3.png").write_bytes((world/"raw/demo/3.png").read_bytes()[:300] + frozen.png(tiny.page(3))[-12:])
    with pytest.raises(ImageError, match=r"demo/3\.png"): freeze(replace(options(world, tmp_path/"set"), image_root=str(tmp_path/"raw")))
    assert not (tmp_path/"set").exists()


@pytest.mark.parametrize("change, say", [
    ({"levels": []}, "levels is empty"), ({"levels": [2]}, "outside 0 to 1"), ({"seeds": []}, "seeds is empty"), ({"damage": ["blur"]}, "unknown 'blur'"),
    ({"damage": ["truncation"], "target": "none"}, "changes nothing"), ({"damage": ["truncation"], "text_damage": "reocr"}, "image family"),
    ({"target": "question", "text_damage": "reocr"}, "use pseudo_text"), ({"workers": 0}, "workers is 0"), ({"max_samples": -1}, "max_samples -1"),
    ({"text_damage": "reocr", "ocr_engine": "toy_ocr:Tyo"}, "did you mean 'Toy'"), ({"jsonl": "gone.jsonl"}, "gone.jsonl")])
def test_refused_before_any_work(world, tmp_path, change, say):
    with pytest.raises(R3Error, match=say): freeze(replace(options(world, tmp_path/"set"), **change))
    assert not (tmp_path/"set").exists()


MEMORY = """
import sys
import numpy as np
from PIL import Image
from r3nb.core import QARecord, write_jsonl
from r3nb.frozen import FreezeConfig, freeze
d, n = sys.argv[1], int(sys.argv[2])
g = np.random.default_rng(0)
Image.fromarray(g.integers(0, 256, (512, 512, 3), np.uint8)).save(f"{d}/noise.png", compress_level=0)
write_jsonl(f"{d}/val.jsonl", [QARecord(f"s{i:03}", "chartqa", "val", "p", "noise.png", "q?", "1", ["1"], "words") for i in range(n)])
freeze(FreezeConfig(f"{d}/val.jsonl", f"{d}/set", d, levels=[.3], damage=["crop"], workers=1))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path):
    "Four times the rows, 75 MB more on disk, in one file: no more memory"
    peak = {}
    for n in (32, 128):
        (tmp_path/str(n)).mkdir()
        _, peak[n] = peak_of(MEMORY, tmp_path/str(n), n)
    size = lambda n: sum(p.stat().st_size for p in (tmp_path/f"{n}/set").glob("*.arrow")) / 2**20
    assert size(128) - size(32) > 50 and peak[128] - peak[32] < 25, peak


# ------------------------------------------------------------------ evaluation

class Parrot:
    "Answers with words of what it sees, and keeps what it was shown"
    def __init__(self): self.seen = []

    def answer(self, mode, cases, evidence):
        for c in cases: self.seen.append((mode.name, c.damage, c.level, c.seed, c.record.sample_id, c.record.ocr_conf, c.seen.image.tobytes(), c.seen.pseudo_text, c.seen.question))
        return [Answer((c.seen.pseudo_text.split() or [""])[-1] if mode.text else "", c.seen.question) for c in cases]


def asked(world, out, **kw):
    return EvalConfig(model_name="none", val_jsonl=str(world/"val.jsonl"), image_root=str(world/"raw"), out_dir=str(out), n_boot=50,
                      **{"eval_mode": ["base", "base+text"], "corruption_levels": [0, .5], "seeds": [0, 1], "batch_size": 3} | kw)


def test_frozen_and_on_the_fly_are_the_same_evaluation(world, whole, tmp_path):
    birds, sums = (Parrot(), Parrot()), []
    for bird, kw in zip(birds, ({}, {"frozen": str(whole)}), strict=True):
        sums.append(evaluate(asked(world, tmp_path/str(len(sums)), damage=["drawn", "image"], **kw), bird))
    assert sorted(birds[0].seen) == sorted(birds[1].seen) and len(birds[0].seen) == 10 * 5 * 2
    for name in ("predictions.jsonl", "corruption.jsonl", "examples/examples.json"): assert (tmp_path/"0"/name).read_bytes() == (tmp_path/"1"/name).read_bytes(), name
    assert (tmp_path/"1/corruption.jsonl").read_bytes() == (whole/"corruption.jsonl").read_bytes()
    mark = read_json(whole/"manifest.json")["fingerprint"]
    assert sums[0]["inputs_fingerprint"] == sums[1]["inputs_fingerprint"] == mark and sums[1]["frozen"] == {"fingerprint": mark, "whole": True}
    assert {k: v for k, v in sums[0].items() if k != "frozen"} == {k: v for k, v in sums[1].items() if k != "frozen"}


@pytest.mark.parametrize("kw", [{"seeds": [1]}, {"damage": ["image"], "seeds": [1, 0]}, {"clean_only": True}, {"max_eval_samples": 4}, {"no_pseudo_text": True}])
def test_a_part_of_a_frozen_set(world, whole, tmp_path, kw):
    "Another first seed, fewer damages, levels or samples: the same as on the fly"
    fly, disk = (evaluate(asked(world, tmp_path/n, **kw, **more), Parrot()) for n, more in (("fly", {}), ("disk", {"frozen": str(whole)})))
    assert (tmp_path/"fly/predictions.jsonl").read_bytes() == (tmp_path/"disk/predictions.jsonl").read_bytes()
    assert fly["inputs_fingerprint"] == disk["inputs_fingerprint"] and disk["frozen"]["whole"] is ("no_pseudo_text" in kw and False)


def test_the_same_sample_is_drawn_for_freezing_and_for_asking(world, tmp_path):
    few = freeze(options(world, tmp_path/"few", max_samples=5, sample_seed=3))
    done = evaluate(asked(world, tmp_path/"out", max_eval_samples=5, sample_seed=3, frozen=str(few)), Parrot())
    assert done["frozen"]["whole"] and done["n_questions"] == 5


def edit(folder, at=0, **change):
    "Rewrite the dataset with one row changed, as somebody might who edits it with `datasets`"
    data = load_from_disk(folder)
    features = data.features
    rows = data.map(lambda r, i: {k: v if i == at else r[k] for k, v in change.items()}, with_indices=True, features=features, load_from_cache_file=False, keep_in_memory=True)
    rows.save_to_disk(f"{folder}.new")
    for name in ("corruption.jsonl", "manifest.json"): shutil.copy(folder/name, f"{folder}.new/{name}")
    shutil.rmtree(folder)
    Path(f"{folder}.new").rename(folder)
    return folder


@pytest.mark.parametrize("change, say", [
    ({"pseudo_text": "Oslo report Total 999"}, "text_sha256 differ"), ({"question": "Why?"}, "question_sha256 differ"), ({"ocr_conf": .1}, "ocr_conf differ"),
    ({"image": tiny.page(7)}, "image_sha256 differ"), ({"c_vis": .123}, "map of confidence"), ({"c_text": .5}, "c_text differ"), ({"level": .4}, "level differ"),
    ({"c_vis_map": [[1.0] * 8] * 8}, "map of confidence"), ({"families": ["jpeg"]}, "families differ"), ({"sample_id": "demo_train_7"}, "sample_id differ")])
def test_an_edited_row_is_named(world, whole, tmp_path, change, say):
    shutil.copytree(whole, tmp_path/"set")
    at = 10 # the first damaged row, of demo_train_0
    edit(tmp_path/"set", at, **change)
    with pytest.raises(DataError, match=rf"row of demo_train_0, damage drawn, level 0.5, seed 0.*{say}"): sweep(asked(world, tmp_path/"out", frozen=str(tmp_path/"set")), Parrot())
    assert not (tmp_path/"out/predictions.jsonl").exists()


def test_a_flipped_bit_is_found(world, whole, tmp_path):
    shutil.copytree(whole, tmp_path/"set")
    path = sorted((tmp_path/"set").glob("*.arrow"))[1]
    raw = path.read_bytes()
    start = raw.index(b"IDAT") + 40
    path.write_bytes(raw[:start] + bytes([raw[start] ^ 1]) + raw[start + 1:])
    with pytest.raises(DataError, match="row of demo_train_0, damage drawn, level 0.5, seed 0.*altered"): sweep(asked(world, tmp_path/"out", frozen=str(tmp_path/"set")), Parrot())
    with pytest.raises(DataError, match=r"1 of 5 files differ.*data-00001"): verify(tmp_path/"set")


def without(name): return lambda d: (d/name).unlink()


@pytest.mark.parametrize("harm, say", [
    (without("manifest.json"), "manifest.json: no such file"), (without("corruption.jsonl"), "no such file"), (without("state.json"), "cannot be opened"),
    (without("data-00002-of-00005.arrow"), "cannot be opened"), (lambda d: (d/"data-00002-of-00005.arrow").write_bytes(b"x" * 100), "cannot be opened"),
    (lambda d: (d/"manifest.json").write_text("{}"), "not a frozen set"),
    (lambda d: (d/"corruption.jsonl").write_bytes((d/"corruption.jsonl").read_bytes()[:-40]), "not the one that the manifest names")])
def test_a_broken_folder_is_refused(world, whole, tmp_path, harm, say):
    shutil.copytree(whole, tmp_path/"set")
    harm(tmp_path/"set")
    with pytest.raises(DataError, match=say): sweep(asked(world, tmp_path/"out", frozen=str(tmp_path/"set")), Parrot())


@pytest.mark.parametrize("kw, error, say", [
    ({"corruption_levels": [0, .7]}, DataError, "nothing is frozen for damage drawn, level 0.7"), ({"seeds": [0, 5]}, DataError, "seed 5; the set has damage drawn, image"),
    ({"damage": ["drawn", "jpeg"]}, DataError, "damage jpeg"), ({"corrupt_text_target": "question"}, ConfigError, "add --corrupt_text_target pseudo_text"),
    ({"text_damage": "reocr", "ocr_engine": TOY}, ConfigError, "add --text_damage simulated")])
def test_a_set_that_does_not_fit_is_refused_before_any_answer(world, whole, tmp_path, kw, error, say):
    bird = Parrot()
    with pytest.raises(error, match=say): sweep(asked(world, tmp_path/"out", frozen=str(whole), **kw), bird)
    assert not bird.seen


def test_other_records_are_refused(world, whole, tmp_path):
    rows = records(world)
    for name, changed, say in (("more", [*rows, replace(rows[0], sample_id="demo_new")], "1 of 11 samples are not frozen, first demo_new"),
                               ("text", [rows[0], replace(rows[1], pseudo_text="Rome report Total 1"), *rows[2:]], "row of demo_train_1, .* another clean question or text"),
                               ("question", [*rows[:-1], replace(rows[-1], question="Who?")], "row of demo_train_5b, .* another clean question or text")):
        write_jsonl(tmp_path/f"{name}.jsonl", changed)
        with pytest.raises(DataError, match=say): sweep(replace(asked(world, tmp_path/name, frozen=str(whole)), val_jsonl=str(tmp_path/f"{name}.jsonl")), Parrot())
    shutil.copytree(world/"raw", tmp_path/"raw")
    tiny.page(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path/"raw/demo/2.png")
    with pytest.raises(DataError, match="row of demo_train_2, .* another clean picture"): sweep(replace(asked(world, tmp_path/"im", frozen=str(whole)), image_root=str(tmp_path/"raw")), Parrot())


def test_another_file_format_of_the_same_pixels_is_the_same_record(world, whole, tmp_path):
    shutil.copytree(world/"raw", tmp_path/"raw")
    for p in (tmp_path/"raw").rglob("*.png"): Image.open(p).save(p, compress_level=0)
    sweep(replace(asked(world, tmp_path/"out", frozen=str(whole)), image_root=str(tmp_path/"raw")), Parrot())


def test_a_run_from_another_set_starts_afresh(world, whole, tmp_path):
    "Rows of a run on the fly are not taken for those of a frozen set"
    sweep(asked(world, tmp_path/"out"), Parrot())
    bird = Parrot()
    with pytest.raises(ConfigError, match="frozen was None"): sweep(asked(world, tmp_path/"out", frozen=str(whole)), bird)
    sweep(asked(world, tmp_path/"out", frozen=str(whole), overwrite=True), bird)
    assert len(bird.seen) == 10 * 3 * 2


# ------------------------------------------------------------------ text that is read again

@pytest.fixture(scope="module")
def read(world, tmp_path_factory):
    return freeze(options(world, tmp_path_factory.mktemp("read")/"set", damage=["drawn", "image", "text", "jpeg"], text_damage="reocr", ocr_engine=TOY))


def test_reocr_reads_what_is_left(world, read):
    from toy_ocr import Toy
    data, by_id = load_from_disk(read), {r.sample_id: r for r in records(world)}
    for d in data:
        r, what = by_id[d["sample_id"]], d["damage"]
        clean = Image.open(world/"raw"/r.image_path)
        bad = corrupt(r, clean, d["level"], d["seed"], "image" if what in ("drawn", "text") else what, "none")
        shown = clean.convert("RGB") if what == "text" else bad.image
        assert np.array_equal(np.asarray(d["image"]), np.asarray(shown)) and (d["c_vis"] == 1) == (what == "text" or d["level"] == 0)
        told = Toy()(bad.image)
        want = (r.pseudo_text, r.ocr_conf) if d["level"] == 0 or what == "image" else (tidy_lines(told.text), told.conf)
        assert (d["pseudo_text"], d["ocr_conf"]) == want and (d["c_text"] == 1) == (d["pseudo_text"] == r.pseudo_text)
        assert d["text_damage"] == "reocr" and d["target"] == "pseudo_text" and set(d["families"]) <= set(IMAGE_FAMILIES)
    m = read_json(read/"manifest.json")
    assert m["damaged_text"] == "read in each damaged page by toy 1; families of text do not apply" and m["text_damage"] == "reocr"


def test_reocr_is_the_same_from_many_processes(world, read, tmp_path):
    launch(options(world, tmp_path/"set", damage=["drawn", "image", "text", "jpeg"], text_damage="reocr", ocr_engine=TOY, workers=2), "5")
    assert content(tmp_path/"set") == content(read)


def test_reocr_on_the_fly_and_frozen(world, read, tmp_path):
    "Both give the model the same text and the engine's confidence"
    kw = dict(text_damage="reocr", ocr_engine=TOY, damage=["drawn", "image", "text", "jpeg"])
    birds = Parrot(), Parrot()
    fly, disk = (evaluate(asked(world, tmp_path/n, **kw, **more), b) for (n, more), b in zip((("fly", {}), ("disk", {"frozen": str(read)})), birds, strict=True))
    assert sorted(birds[0].seen) == sorted(birds[1].seen)
    assert fly["inputs_fingerprint"] == disk["inputs_fingerprint"] == read_json(read/"manifest.json")["fingerprint"] and fly["settings"]["text_damage"] == "reocr"
    confs = {(s[1], s[2] > 0): {t[5] for t in birds[0].seen if t[1:3] == s[1:3]} for s in birds[0].seen}
    assert confs["drawn", False] == confs["image", True] == {.9} and len(confs["drawn", True]) > 5


def test_each_picture_is_read_once(world, tmp_path):
    import sqlite3
    cfg = options(world, tmp_path/"a", text_damage="reocr", ocr_engine=TOY, levels=[.5], seeds=[0])
    freeze(cfg)
    count = lambda: sqlite3.connect(tmp_path/"reocr.sqlite").execute("select engine, count(*) from readings group by engine").fetchall()
    assert count() == [("toy 1", 10)]
    changed = tmp_path/"reocr.sqlite"
    with sqlite3.connect(changed) as db: db.execute("update readings set text = 'from the cache', conf = 0.25")
    again = load_from_disk(freeze(replace(cfg, out=str(tmp_path/"b"))))
    assert set(again["pseudo_text"]) == {"from the cache"} and set(again["ocr_conf"]) == {.25}
    blind = load_from_disk(freeze(replace(cfg, out=str(tmp_path/"c"), ocr_engine="toy_ocr:Blind")))
    assert set(blind["pseudo_text"]) == {""} and set(blind["c_text"]) == {0} and count() == [("blind 1", 10), ("toy 1", 10)]


def test_faults_of_engine_and_cache_are_named(world, tmp_path):
    cfg = options(world, tmp_path/"a", text_damage="reocr", ocr_engine=TOY, ocr_engine_args=["fear=96"], levels=[.5])
    with pytest.raises(DataError, match="demo_train_0: toy 1 failed on the damaged page .*too wide"): freeze(cfg)
    (tmp_path/"bad.sqlite").write_text("no database at all, but long enough to look at" * 50)
    with pytest.raises(DataError, match=r"bad\.sqlite: the file of OCR readings"): Rereader(TOY, [], tmp_path/"bad.sqlite")


def test_word_errors():
    assert word_errors("", "a b") == {"lost": 0, "broken": 0, "invented": 2, "cer": 3}
    assert word_errors("a b c d", "") | {"cer": 0} == {"lost": 1, "broken": 0, "invented": 0, "cer": 0}
    assert word_errors("a b c d", "a x c") == {"lost": .25, "broken": .25, "invented": 0, "cer": 3/7}
    assert word_errors("a b", "z a b") | {"cer": 0} == {"lost": 0, "broken": 0, "invented": .5, "cer": 0}


def test_fidelity_compares_row_by_row(world, whole, read, tmp_path, capsys):
    rows = fidelity(whole, read)
    assert [(r["damage"], r["level"], r["text"], r["n"]) for r in rows] == [(d, .5, t, 20) for d in ("drawn", "image") for t in ("simulated", "reocr")]
    at = {(r["damage"], r["text"]): r for r in rows}
    texts = [(d["clean_pseudo_text"], d["pseudo_text"], d["c_text"]) for d in load_from_disk(read).remove_columns("image") if d["damage"] == "drawn" and d["level"]]
    assert at["drawn", "reocr"]["c_text"] == pytest.approx(np.mean([t[2] for t in texts])) and at["drawn", "reocr"]["median"] == pytest.approx(np.median([t[2] for t in texts]))
    for k in ("lost", "broken", "invented", "cer"): assert at["drawn", "reocr"][k] == pytest.approx(np.mean([word_errors(*t[:2])[k] for t in texts]))
    assert at["image", "reocr"]["c_text"] == 1 and at["image", "reocr"]["rank"] is None and -1 <= at["drawn", "reocr"]["rank"] <= 1
    main(["fidelity", str(whole), str(read), "--out", str(tmp_path/"f.json")])
    assert read_json(tmp_path/"f.json") == rows and Image.open(tmp_path/"f.png").width > 500 and "reocr" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="both have text_damage simulated"): fidelity(whole, whole)
    other = freeze(options(world, tmp_path/"other", levels=[.9], text_damage="reocr", ocr_engine="toy_ocr:Blind"))
    with pytest.raises(DataError, match="no damaged row in common"): fidelity(whole, other)


# ------------------------------------------------------------------ the command

def test_the_word_of_the_gallery_may_be_left_out(world, tmp_path, capsys):
    for i, words in enumerate(([], ["gallery"])): main([*words, str(world/"raw"), "--out", str(tmp_path/str(i)), "--levels", "0,0.5", "--max_samples", "1"])
    assert (tmp_path/"0/corruption.jsonl").read_bytes() == (tmp_path/"1/corruption.jsonl").read_bytes()
    with pytest.raises(SystemExit) as e: main(["--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and all(w in text for w in ("freeze", "verify", "fidelity", "--max_samples"))


def test_command_line(world, tmp_path):
    run = lambda module, *a: subprocess.run([sys.executable, "-m", module, *a], capture_output=True, text=True, cwd=tmp_path)
    made = run("r3nb.frozen", "freeze", "--jsonl", str(world/"val.jsonl"), "--image_root", str(world/"raw"), "--levels", "0,0.4", "--seeds", "0,1,2", "--max_samples", "4", "--workers", "2", "--out", "set")
    mark = read_json(tmp_path/"set/manifest.json")["fingerprint"]
    assert made.returncode == 0 and f"4 samples, 4 conditions), inputs {mark}" in made.stdout and "16 inputs in 4 files, about" in made.stdout
    assert mark in run("r3nb.frozen", "verify", "set").stdout
    wrong = run("r3nb.frozen", "freeze", "--jsonl", str(world/"val.jsonl"), "--out", "set2", "--damage", "blurr")
    assert wrong.returncode == 2 and "error: damage: unknown 'blurr'" in wrong.stderr and "Traceback" not in wrong.stderr
    (tmp_path/"set/corruption.jsonl").write_text("{}\n")
    assert run("r3nb.frozen", "verify", "set").returncode == 2


def test_a_real_model_answers_the_same_from_disk(tmp_path):
    "Retrieval, gates and confidence too: text that was read again, with the engine's confidence among the signals"
    from r3nb.model import R3Config, R3Model
    w = tiny.world(tmp_path, 6)
    R3Model.from_pretrained(tiny.backbone(tmp_path/"backbone"), R3Config(image_dim=24, n_prefix=2, n_memory=2, n_latent=1, bottleneck=16)).save_pretrained(tmp_path/"ckpt")
    folder = freeze(FreezeConfig(str(w.jsonl), str(tmp_path/"set"), str(w.root), levels=[0, .6], seeds=[3], text_damage="reocr", ocr_engine=TOY, workers=1))
    cfg = EvalConfig(model_name=str(tmp_path/"backbone"), val_jsonl=str(w.jsonl), image_root=str(w.root), index_dir=str(w.index), checkpoint_dir=str(tmp_path/"ckpt"), seeds=[3], n_boot=20,
                     max_new_tokens=3, corruption_levels=[0, .6], eval_mode=["base+text", "rag", "r3"], text_damage="reocr", ocr_engine=TOY)
    fly, disk = (evaluate(replace(cfg, out_dir=str(tmp_path/n), frozen=f)) for n, f in (("fly", ""), ("disk", str(folder))))
    assert (tmp_path/"fly/predictions.jsonl").read_bytes() == (tmp_path/"disk/predictions.jsonl").read_bytes()
    assert fly["inputs_fingerprint"] == disk["inputs_fingerprint"] == read_json(folder/"manifest.json")["fingerprint"]
    plain = evaluate(replace(cfg, out_dir=str(tmp_path/"plain"), text_damage="simulated"))
    assert plain["inputs_fingerprint"] != fly["inputs_fingerprint"] and (tmp_path/"plain/predictions.jsonl").read_bytes() != (tmp_path/"fly/predictions.jsonl").read_bytes()
