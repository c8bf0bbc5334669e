"""Downloads: the real `datasets` and `huggingface_hub` clients against a hub on the loopback address, and every way in which that goes wrong."""
import errno
import io
import shutil
import json
import os
import re
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from hub import IMAGE, SCHEMAS, Hub, card, picture, shard, sharded
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image

from r3nb import download as L
from r3nb.core import ConfigError, DataError, ImageError, open_image, read_jsonl, sha256_file
from r3nb.data import DATASETS, DatasetSpec, HubSource, UnifyConfig, unify

ROOT = Path(__file__).parent.parent

# The libraries read HF_ENDPOINT when they are imported. So one process imports them, and forks a child for each run of a command.
# `kill` ends the child with SIGKILL just before its n-th change of the file system, `full` makes the disk full after that many;
# `chunk` is the size of the pieces in which the client writes what it receives, and so the precision with which it can resume.
DRIVER = '''
import json, os, resource, signal, sys
import datasets, huggingface_hub.constants as constants, yaml
from huggingface_hub.utils import _cache_assets
import r3nb.download, r3nb.data
real = {name: getattr(os, name) for name in ("replace", "link", "unlink", "rmdir", "fsync")}
count, steps = [0], [0]

def child(job):
    out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1); os.dup2(out, 2)
    constants.HF_HUB_CACHE, _cache_assets.HF_ASSETS_CACHE = job["home"], job["home"] + "/assets"
    if job["chunk"]: constants.DOWNLOAD_CHUNK_SIZE = job["chunk"]
    os.environ.update(job["env"])
    if job["size"]: resource.setrlimit(resource.RLIMIT_FSIZE, (job["size"], job["size"]))
    def stepping(name):
        def step(*args, **kwargs):
            count[0] += 1
            steps[0] += name != "fsync"
            if job["kill"] and steps[0] == job["kill"]: os.kill(os.getpid(), signal.SIGKILL)
            if job["full"] and count[0] >= job["full"] and name in ("fsync", "link"):
                raise OSError(28, "No space left on device", str(args[-1]))
            return real[name](*args, **kwargs)
        return step
    for name in real: setattr(os, name, stepping(name))
    try: getattr(r3nb.download, job["main"])(job["argv"])
    except SystemExit as e: return e.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        return 70
    return 0

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        _, status, usage = os.wait4(job["wait"], 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        code = child(job)
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
'''


@pytest.fixture(scope="module")
def server():
    with Hub() as hub: yield hub


@pytest.fixture(scope="module")
def driver(server, tmp_path_factory):
    "The process that runs commands"
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_UPDATE_DOWNLOAD_COUNTS": "0",
                        "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"): env.pop(name, None)
    p = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    yield p
    p.stdin.close()
    p.wait()


@pytest.fixture
def hub(server):
    "The hub, empty"
    server.repos.clear(); server.faults.clear(); server.log.clear()
    server.token, server.cdn = None, False
    return server


@pytest.fixture
def run(driver, tmp_path):
    "Run a command to its end: exit code, all that it printed, its peak memory in kB"
    def _run(*argv, main="main", home="home", wait=True, kill=0, full=0, size=0, chunk=0, proc=1, **env):
        words = [str(a) for a in argv] + ([] if "--num_proc" in argv or not proc else ["--num_proc", str(proc)])
        log = tmp_path/f"log{len(list(tmp_path.glob('log*')))}"
        job = {"argv": words, "main": main, "home": str(tmp_path/home), "log": str(log), "env": env, "kill": kill, "full": full, "size": size, "chunk": chunk}
        ask = lambda j: (driver.stdin.write(json.dumps(j) + "\n"), driver.stdin.flush(), driver.stdout.readline())[-1]
        pid = int(ask(job))
        def end():
            code, memory = json.loads(ask({"wait": pid}))
            return SimpleNamespace(code=code, text=log.read_text(), memory=memory)
        return end() if wait else SimpleNamespace(pid=pid, end=end)
    return _run


CHART, SCREEN, INFO, INFO_TRAIN = "HuggingFaceM4/ChartQA", "rootsautomation/RICO-ScreenQA-Short", "lmms-lab/DocVQA", "MLP-VLM2/origin_infovqa"


def chart(i, q="q?", label=("a",), **kw): return {"image": picture(i), "query": q, "label": list(label), "human_or_machine": 0} | kw


def chartqa(hub, rows=None, n=2, val=None, readme=None, **kw):
    "Put a ChartQA on the hub; returns its commit"
    rows = [chart(i // 2, f"q{i}?", [f"a{i}", f"b{i}"]) for i in range(10)] if rows is None else rows
    val = [chart(100 + i) for i in range(2)] if val is None else val
    files = sharded("chartqa", "train", rows, n) | (sharded("chartqa", "val", val, 1) if val else {})
    return hub.add(CHART, files | {"README.md": card(licence="gpl-3.0") if readme is None else readme}, **kw)


def info(i, split="validation", answers=("a",), **kw):
    return {"questionId": f"id{i}", "question": f"q{i}?", "answers": list(answers), "answer_type": ["single span"], "image": picture(i),
            "image_url": "http://x/y.png", "operation/reasoning": [], "ocr": f"words of {i}", "data_split": split} | kw


def infovqa(hub):
    "Both repositories of InfographicVQA; the second has another configuration first"
    hub.add(INFO_TRAIN, sharded("infovqa_train", "train", [info(i) for i in range(4)], 2) | {"README.md": card()})
    files = sharded("infovqa", "validation", [info(50 + i) for i in range(3)], 1, "InfographicVQA")
    files |= sharded("infovqa", "test", [info(60 + i, "test", []) for i in range(2)], 2, "InfographicVQA")
    files |= sharded("infovqa", "validation", [info(90)], 1, "DocVQA") | sharded("infovqa", "test", [info(91)], 1, "DocVQA")
    configs = {c: {s: f"{c}/{s}-*" for s in ("validation", "test")} for c in ("DocVQA", "InfographicVQA")}
    hub.add(INFO, files | {"README.md": card(configs, "apache-2.0")})


def rows_of(folder, name): return [r for _, r in read_jsonl(folder/name)]


def manifest(folder): return json.loads((folder/"manifest.json").read_text())


def tree(folder, skip=("manifest.json",)):
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in skip}


def check_whole(folder):
    "The manifest lists exactly the files that are there, with their hashes"
    listed = {k: v for e in manifest(folder)["splits"].values() for k, v in e["files"].items()}
    assert listed == tree(folder)


# --- what is written

def test_chartqa(hub, run, tmp_path):
    out, rows = tmp_path/"raw", [chart(0, "How many?", ["3", "three"]), chart(0, "Which?", ["2011"]), chart(1, "How many?", ["8"]),
                                 chart(1, "How many?", ["8"]), chart(1, "How many?", ["8"], human_or_machine=1), chart(2, "Why?", []),
                                 chart(3, "When?", ["  "]), chart(0, "Last?", ["7"])]
    commit = chartqa(hub, rows, 3, [chart(9)])
    r = run("chartqa", "--out_dir", out, "--splits", "train,val")
    assert r.code == 0, r.text
    image = lambda n: f"images/train_{n}.png"
    assert [(x["image"], x["query"], x["label"], x["human_or_machine"]) for x in rows_of(out, "chartqa_raw_train.jsonl")] == [
        (image(0), "How many?", ["3", "three"], 0), (image(0), "Which?", ["2011"], 0), (image(2), "How many?", ["8"], 0),
        (image(2), "How many?", ["8"], 1), (image(0), "Last?", ["7"], 0)]
    assert [x["query"] for x in rows_of(out, "chartqa_unanswered_train.jsonl")] == ["Why?", "When?"]
    assert {p.name for p in (out/"images").iterdir()} == {"train_0.png", "train_2.png", "train_5.png", "train_6.png", "val_0.png"}
    e = manifest(out)["splits"]["train"]
    assert (e["repository"], e["revision"], e["licence"], e["images"]) == (CHART, commit, "gpl-3.0", 4)
    assert e["rows"] == {"hub": 8, "written": 5, "repeated": 1, "unanswered": 2, "left_out": 0} and len(e["shards"]) == 3
    check_whole(out)
    assert r.text.count("gpl-3.0") == 1 and "2 rows without an answer" in r.text and r.text.index("gpl-3.0") < r.text.index("train rows")
    assert not (out/".download").exists()
    files = unify(UnifyConfig("chartqa", str(out), str(tmp_path/"unified"), image_prefix="chartqa"))
    assert {k: len(p.read_text().splitlines()) for k, p in files.items()} == {"train": 5, "val": 1}


def test_screenqa_merges_repeated_rows(hub, run, tmp_path):
    out = tmp_path/"raw"
    row = lambda i, q, a: {"screen_id": f"s{i}", "question": q, "ground_truth": a, "file_name": f"{i}.jpg", "image": picture(i, "JPEG")}
    train = [row(1, "q", ["a", "b"]), row(1, "r", ["x"]), row(2, "q", ["c"]), row(1, "q", ["b", "d"]), row(2, "z", []), row(2, "z", ["late"])]
    hub.add(SCREEN, sharded("screenqa", "train", train, 3) | sharded("screenqa", "validation", [row(3, "q", ["a"])], 1)
            | sharded("screenqa", "test", [row(4, "q", ["a"])], 1) | {"README.md": card(licence="cc-by-4.0")})
    r = run("screenqa", "--out_dir", out)
    assert r.code == 0, r.text
    assert [(x["screen_id"], x["question"], x["ground_truth"]) for x in rows_of(out, "screenqa_raw_train.jsonl")] == [
        ("s1", "q", ["a", "b", "d"]), ("s1", "r", ["x"]), ("s2", "q", ["c"]), ("s2", "z", ["late"])]
    assert list(rows_of(out, "screenqa_raw_validation.jsonl")[0]) == list(SCHEMAS["screenqa"])
    assert manifest(out)["splits"]["train"]["rows"]["repeated"] == 2 and not (out/"screenqa_unanswered_train.jsonl").exists()
    files = unify(UnifyConfig("screenqa", str(out), str(tmp_path/"unified")))
    assert {k: len(p.read_text().splitlines()) for k, p in files.items()} == {"train": 4, "val": 1, "test": 1}


def test_infovqa_from_two_repositories(hub, run, tmp_path):
    infovqa(hub)
    out = tmp_path/"raw"
    r = run("infovqa", "--out_dir", out)
    assert r.code == 0, r.text
    assert sorted(p.name for p in out.glob("*.jsonl")) == ["infovqa_raw_train.jsonl", "infovqa_raw_validation.jsonl"]
    assert r.text.count("none given") == 1 and r.text.count("apache-2.0 (the tag is about the packaging") == 1
    assert not hub.gets("test-00000|DocVQA/validation-0.*/DocVQA|/DocVQA/valid")
    val = rows_of(out, "infovqa_raw_validation.jsonl")[1]
    assert val["ocr"] == "words of 51" and val["operation/reasoning"] == [] and val["image"] == "images/validation_1.png"
    files = unify(UnifyConfig("infovqa", str(out), str(tmp_path/"unified")))
    assert rows_of(tmp_path/"unified", files["val"].name)[1]["pseudo_text"] == "words of 51"

    hub.log.clear()
    r = run("infovqa", "--out_dir", out, "--splits", "test")
    assert r.code == 0, r.text
    assert [x["answers"] for x in rows_of(out, "infovqa_raw_test.jsonl")] == [[], []] and (out/"images/test_1.png").is_file()
    assert not hub.gets("origin_infovqa") and set(manifest(out)["splits"]) == {"train", "validation", "test"}
    check_whole(out)


def test_other_packaging_by_column_map(hub, tmp_path, monkeypatch):
    "Run in this process on a shard at hand: names and a single string are translated, the other columns stay"
    source = HubSource("lmms-lab/ChartQA", {"test": "test"}, columns={"question": "query", "answer": "label"})
    job = L.Job(DATASETS["chartqa"], source, "test", L.Place("lmms-lab/ChartQA", revision="0" * 40), tmp_path)
    path = tmp_path/"x.parquet"
    path.write_bytes(shard("chartqa_lmms", [{"type": "human", "question": "q?", "answer": "14", "image": picture(1)}]))
    monkeypatch.setattr(L, "try_to_load_from_cache", lambda *a, **k: str(path))
    s = L.fetch_shard(job, 0, 0, "x.parquet")
    L.check_columns(s.kinds, job.spec, None, "x")
    units = list(L.units_of(s, None))
    L.decode_unit(job, units[0])
    L.assemble(job, units)
    assert rows_of(tmp_path, "chartqa_raw_test.jsonl") == [{"type": "human", "query": "q?", "label": ["14"], "image": "images/test_0.png"}]


@pytest.mark.parametrize("layout", ["folders in yaml", "plain names", "nested", "one file with all configs default"])
def test_layouts(hub, run, tmp_path, layout):
    train, val = [chart(i) for i in range(3)], [chart(9)]
    files = {
        "folders in yaml": {"a/part1.parquet": shard("chartqa", train[:1]), "b/part2.parquet": shard("chartqa", train[1:]),
                            "odd/name.parquet": shard("chartqa", val), "old/x.parquet": b"no parquet",
                            "README.md": card({"human": {"train": "[ab]/*.parquet", "val": "odd/*.parquet"}})},
        "plain names": {"train.parquet": shard("chartqa", train), "val.parquet": shard("chartqa", val)},
        "nested": {"x/train/0.parquet": shard("chartqa", train), "x/validation/0.parquet": shard("chartqa", val), "README.md": card()},
        "one file with all configs default": {"q/t.parquet": shard("chartqa", train), "q/v.parquet": shard("chartqa", val),
                                              "README.md": card({"default": {"train": "q/t.parquet", "val": "q/v.parquet"}})}}[layout]
    hub.add(CHART, files)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train,val")
    assert r.code == 0, r.text
    assert len(rows_of(tmp_path/"raw", "chartqa_raw_train.jsonl")) == 3 and len(rows_of(tmp_path/"raw", "chartqa_raw_val.jsonl")) == 1
    assert "none given" in r.text


def test_same_files_whatever_the_shards_and_processes(hub, run, tmp_path):
    rows = [chart(i % 5, f"q{i % 11}?", [f"a{i % 11}"]) for i in range(24)]
    made = []
    for n, group, proc in ((1, 100, 1), (4, 2, 3), (3, 3, 1)):
        hub.add(CHART, sharded("chartqa", "train", rows, n, group=group) | {"README.md": card(licence="x")})
        out = tmp_path/f"raw{n}"
        r = run("chartqa", "--out_dir", out, "--splits", "train", proc=proc)
        assert r.code == 0, r.text
        made.append(tree(out))
    assert made[0] == made[1] == made[2] and len([k for k in made[0] if k.endswith(".png")]) == 5


def test_odd_cells_become_json(hub, run, tmp_path):
    import datetime

    import pyarrow as pa
    schema = SCHEMAS["chartqa"] | {"when": pa.timestamp("s"), "score": pa.float64(), "thumb": IMAGE, "code": pa.binary(), "boxes": pa.list_(pa.struct([("x", pa.float32())]))}
    row = chart(1, label=["a", None, "b"]) | {"when": datetime.datetime(2020, 1, 2), "score": float("nan"), "thumb": picture(3), "code": b"x", "boxes": [{"x": .5}]}
    hub.add(CHART, {"data/train-00000-of-00001.parquet": shard(schema, [row])})
    r = run("chartqa", "--out_dir", tmp_path, "--splits", "train")
    assert r.code == 0, r.text
    found = rows_of(tmp_path, "chartqa_raw_train.jsonl")[0]
    assert (found["label"], found["score"], found["when"], found["boxes"]) == (["a", "b"], None, "2020-01-02 00:00:00", [{"x": .5}])
    assert "thumb" not in found and "binary columns left out: thumb, code" in r.text and manifest(tmp_path)["splits"]["train"]["columns_left_out"] == ["thumb", "code"]


def odd_images():
    "Encoded pictures of odd modes, and the same picture as PNG and TIFF"
    g = np.random.default_rng(0)
    rgb = Image.fromarray(g.integers(0, 255, (24, 16, 3), dtype=np.uint8))
    deep = Image.fromarray(g.integers(0, 65535, (24, 16), dtype=np.uint16))
    def save(im, kind, **kw):
        im.save(out := io.BytesIO(), kind, **kw)
        return out.getvalue()
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(g.integers(0, 255, (24, 16), dtype=np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (16, 24), c) for c in ("red", "green", "blue")]
    return {"cmyk.jpg": save(rgb.convert("CMYK"), "JPEG"), "16-bit.png": save(deep, "PNG"), "16-bit.tif": save(deep, "TIFF"),
            "palette.png": save(rgb.quantize(9), "PNG", transparency=0), "palette.gif": save(rgb.quantize(9), "GIF", transparency=1),
            "alpha.png": save(alpha, "PNG"), "alpha.webp": save(alpha, "WEBP", lossless=True), "grey alpha.png": save(alpha.convert("LA"), "PNG"),
            "turned.jpg": save(rgb, "JPEG", exif=turned), "turned.png": save(rgb, "PNG", exif=turned),
            "animated.gif": save(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "animated.webp": save(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            "animated.png": save(frames[0], "PNG", save_all=True, append_images=frames[1:]), "bits.png": save(rgb.convert("1"), "PNG"),
            "pixel.png": save(Image.new("L", (1, 1), 7), "PNG"), "wide.png": save(Image.new("RGB", (20000, 3), "red"), "PNG"),
            "tail.png": save(rgb, "PNG") + b"\0" * 500, "grey.jpg": save(rgb.convert("L"), "JPEG"), "float.tif": save(rgb.convert("F"), "TIFF"),
            "progressive.jpg": save(rgb, "JPEG", progressive=True), "interlaced.bmp": save(rgb, "BMP")}


def test_odd_images_read_as_the_original(hub, run, tmp_path):
    images = odd_images()
    hub.add(CHART, {"data/train-00000-of-00001.parquet": shard("chartqa", [chart(0, name) | {"image": data} for name, data in images.items()])})
    r = run("chartqa", "--out_dir", tmp_path, "--splits", "train")
    assert r.code == 0, r.text
    rows = rows_of(tmp_path, "chartqa_raw_train.jsonl")
    assert len(rows) == len(images)
    for row in rows:
        with Image.open(tmp_path/row["image"]) as im: assert im.format == "PNG", row
        a, b = open_image(tmp_path/row["image"]), open_image(io.BytesIO(images[row["query"]]))
        assert a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b)), row["query"]
    unify(UnifyConfig("chartqa", str(tmp_path), str(tmp_path/"unified")))


def test_damaged_images():
    "A PNG cut anywhere, or with one byte changed, is refused or reads as before"
    g = np.random.default_rng(1)
    Image.fromarray(g.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(out := io.BytesIO(), "PNG")
    good, pixels = out.getvalue(), L.pixel_hash(L.decode(out.getvalue()))
    for n in (0, 1, 8, 20, 40, len(good) // 2, len(good) - 20, len(good) - 13):
        with pytest.raises(ImageError): L.decode(good[:n])
    refused = 0
    for at in range(8, len(good) - 12, 29):
        bad = bytearray(good)
        bad[at] ^= 0x55
        try: assert L.pixel_hash(L.decode(bytes(bad))) == pixels
        except ImageError as e: refused += 1; assert "BytesIO" not in str(e)
    assert refused > 30


# --- options

def test_limit(hub, run, tmp_path):
    chartqa(hub, [chart(i, f"q{i}?") for i in range(12)], 4)
    out = tmp_path/"raw"
    r = run("chartqa", "--out_dir", out, "--splits", "train,val", "--limit", 4)
    assert r.code == 0, r.text
    assert [x["query"] for x in rows_of(out, "chartqa_raw_train.jsonl")] == ["q0?", "q1?", "q2?", "q3?"]
    assert [re.search(r"train-0000\d", x.path)[0][-1] for x in hub.gets("train-")] == ["0", "1"]
    r = run("chartqa", "--out_dir", out, "--splits", "train")
    assert r.code == 0 and len(rows_of(out, "chartqa_raw_train.jsonl")) == 12 and len(hub.gets("train-")) == 4
    before = tree(out)
    r = run("chartqa", "--out_dir", out, "--splits", "train", "--limit", 2)
    assert r.code == 2 and "all rows, and these options ask for" in r.text and "--overwrite" in r.text and tree(out) == before
    (out/"images/train_99.png").write_bytes(b"mine")
    r = run("chartqa", "--out_dir", out, "--splits", "train", "--limit", 2, "--overwrite")
    assert (out/"images/train_99.png").read_bytes() == b"mine"
    (out/"images/train_99.png").unlink()
    assert r.code == 0 and len(list(out.glob("images/train_*"))) == 2 and len(hub.gets("train-")) == 4
    check_whole(out)


def test_revision(hub, run, tmp_path):
    old = chartqa(hub, [chart(i, "old?") for i in range(6)])
    new = chartqa(hub, [chart(40 + i, "new?") for i in range(3)])
    out = tmp_path/"raw"
    get = lambda *a: run("chartqa", "--out_dir", out, "--splits", "train", *a)
    assert get("--revision", old).code == 0 and manifest(out)["splits"]["train"]["revision"] == old
    hub.log.clear()
    r = get("--revision", old)
    assert r.code == 0 and "nothing to do" in r.text and hub.log == []
    r, before = get(), tree(out)
    assert r.code == 2 and old[:12] in r.text and "--overwrite" in r.text and tree(out) == before and manifest(out)["splits"]["train"]["revision"] == old
    assert get("--overwrite").code == 0 and manifest(out)["splits"]["train"]["revision"] == new
    assert {x["query"] for x in rows_of(out, "chartqa_raw_train.jsonl")} == {"new?"} and len(list(out.glob("images/*"))) == 3
    check_whole(out)
    assert get("--revision", f"{CHART}={old}", "--overwrite").code == 0 and manifest(out)["splits"]["train"]["revision"] == old
    r = get("--revision", "v9")
    assert r.code == 2 and f"no such revision of {CHART}" in r.text and "--revision" in r.text
    r = get("--revision", "ChartQA=v9")
    assert r.code == 2 and "unknown repository 'ChartQA'" in r.text


def test_second_run_asks_only_for_the_commit(hub, run, tmp_path):
    infovqa(hub)
    assert run("infovqa", "--out_dir", tmp_path).code == 0
    before, times = tree(tmp_path, ()), {p: p.stat().st_mtime_ns for p in tmp_path.glob("images/*")}
    hub.log.clear()
    r = run("infovqa", "--out_dir", tmp_path)
    paths = sorted(x.path for x in hub.log if "agent" not in x.path)
    assert r.code == 0 and r.text.count("nothing to do") == 2 and "licence" not in r.text
    assert paths == [f"/api/datasets/{r}" for r in sorted((INFO, INFO_TRAIN))]
    now = tree(tmp_path, ())
    assert {k: v for k, v in now.items() if "log" not in k} == {k: v for k, v in before.items() if "log" not in k}
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("images/*")}


def test_missing_image_is_made_again_without_download(hub, run, tmp_path):
    chartqa(hub)
    assert run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train").code == 0
    before = tree(tmp_path/"raw")
    (tmp_path/"raw/images/train_2.png").unlink()
    hub.log.clear()
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 0 and tree(tmp_path/"raw") == before and not hub.gets("parquet")


def test_options_are_checked(hub, run, tmp_path):
    for words, text in ((("chart",), "unknown dataset 'chart'"), (("chartqa", "--splits", "dev"), "no split 'dev'"),
                        (("chartqa", "--limit", "0"), "limit: 0 is too small"), (("chartqa", "--num_proc", "0"), "num_proc: 0"),
                        (("chartqa", "--revision", "a,b"), "too many")):
        r = run(*words, "--out_dir", tmp_path/"x")
        assert r.code == 2 and text in r.text and "Traceback" not in r.text, r.text
    assert L.DownloadConfig("infovqa", out_dir="x").splits == ["train", "val"]
    assert L.DownloadConfig("chartqa", out_dir="x", splits=["validation"]).splits == ["val"]


def test_own_dataset_without_repository(monkeypatch):
    monkeypatch.setitem(DATASETS, "menus", DatasetSpec("menus", (), "q", "a", "anls"))
    with pytest.raises(ConfigError, match="names no repository"): L.DownloadConfig("menus", out_dir="x")


# --- faults of the hub

def test_unknown_repository(hub, run, tmp_path):
    r = run("chartqa", "--out_dir", tmp_path/"raw")
    assert r.code == 2 and CHART in r.text and "404" in r.text and "check the id" in r.text and "Traceback" not in r.text


def test_gated(hub, run, tmp_path):
    chartqa(hub, gated=True)
    hub.token = "secret"
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "accept its terms" in r.text and "hf auth login" in r.text and "HF_TOKEN" in r.text and f"{hub.url}/datasets/{CHART}" in r.text
    assert "Traceback" not in r.text and "attempt" not in r.text
    assert run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", HF_TOKEN="secret").code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_refused_without_error_code(hub, run, tmp_path, status):
    chartqa(hub)
    hub.fault("/api/datasets", status, times=99)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and f"({status})" in r.text and "hf auth login" in r.text


@pytest.mark.parametrize("status,pattern,times", [(429, "GET /api/datasets/[^/]+/[^/]+$", 3), (503, "GET .*/tree/", 1), (429, "HEAD .*README", 1),
                                                  (503, "HEAD .*parquet", 1), (503, "GET .*train-00001", 3), (429, "GET .*train-00001", 1)])
def test_busy_hub(hub, run, tmp_path, status, pattern, times):
    chartqa(hub)
    hub.fault(pattern, status, {"Retry-After": "0"}, times=times)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 0, r.text
    assert len(rows_of(tmp_path/"raw", "chartqa_raw_train.jsonl")) == 10


def test_the_last_message_has_the_status_of_the_hub():
    "The client wraps a refused HEAD in an error about its cache and the connection, which would send people to look at the wrong thing"
    def call():
        request = httpx2.Request("HEAD", "http://hub/x.parquet")
        try: raise HfHubHTTPError("503 Service Unavailable for url", response=httpx2.Response(503, request=request))
        except HfHubHTTPError as e: raise LocalEntryNotFoundError("cannot find the file in the cache; check your connection") from e
    with pytest.raises(DataError, match="no success in 1 attempts, last HfHubHTTPError: .*503 Service Unavailable"): L.ask(call, L.Place("a/b"), retries=0)


def test_hub_that_stays_busy(hub, run, tmp_path):
    chartqa(hub)
    hub.fault("GET .*train-00001", 503, {"Retry-After": "0"}, times=99)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", "--retries", 1)
    assert r.code == 2 and "train-00001" in r.text and "no success in 2 attempts" in r.text and not (tmp_path/"raw/chartqa_raw_train.jsonl").exists()
    hub.faults.clear(); hub.log.clear()
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 0 and "going on" in r.text and not hub.gets("train-00000")


def test_retry_after_is_honoured(monkeypatch):
    slept, answers = [], [{"Retry-After": "7"}, {"Retry-After": formatdate(usegmt=True)}, {}, {"Retry-After": "99999"}]
    class Busy(L.HfHubHTTPError):
        def __init__(self, headers): OSError.__init__(self, "busy"); self.response = SimpleNamespace(status_code=429, headers=headers)
    def call():
        if answers: raise Busy(answers.pop(0))
        return "ok"
    monkeypatch.setattr(L.time, "sleep", slept.append)
    assert L.ask(call, L.Place("a/b")) == "ok" and slept == [7., 0., 4., 900.]


def test_broken_connection_goes_on_where_it_broke(hub, run, tmp_path):
    chartqa(hub, [chart(i) | {"image": (Image.fromarray(noise(i)).save(o := io.BytesIO(), "PNG"), o.getvalue())[1]} for i in range(6)], 1)
    size = len(hub.repos["datasets", CHART].commits[hub.repos["datasets", CHART].refs["main"]]["data/train-00000-of-00001.parquet"])
    hub.fault("GET .*train-00000", cut=size // 2, times=1)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", chunk=1000)
    gets = hub.gets("train-00000")
    assert r.code == 0 and gets[0].range is None and len(gets) == 2
    assert size // 2 - 1000 < int(gets[1].range[6:-1]) <= size // 2 and sum(x.sent for x in gets) < size + 1000
    check_whole(tmp_path/"raw")


def test_files_on_another_host(hub, run, tmp_path):
    chartqa(hub, gated=True)
    hub.cdn, hub.token = True, "secret"
    hub.fault("GET /cdn/", cut=2000, times=1)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", chunk=1000, HF_TOKEN="secret")
    assert r.code == 0 and [x.range for x in hub.gets("/cdn/")] == [None, "bytes=2000-", None], r.text
    check_whole(tmp_path/"raw")
    add_models(hub)
    r = run("--out_dir", tmp_path/"m", main="models_main")
    assert r.code == 0 and set(tree(tmp_path/"m/all-MiniLM-L6-v2")) == WANTED, r.text


def test_connection_reset(hub, run, tmp_path):
    chartqa(hub)
    hub.fault("GET .*train-00000", cut=-100, times=2)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 0 and "attempt 2 of 6" in r.text and len(rows_of(tmp_path/"raw", "chartqa_raw_train.jsonl")) == 10, r.text


def test_truncated_for_ever(hub, run, tmp_path):
    chartqa(hub)
    hub.fault("GET .*train-00001", cut=0, times=99)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", "--retries", 0)
    assert r.code == 2 and "train-00001" in r.text and "Traceback" not in r.text and not list(tmp_path.glob("raw/*.jsonl"))


def test_offline():
    e = OSError("no")
    e.__cause__ = L.OfflineModeIsEnabled("offline")
    assert "HF_HUB_OFFLINE is set" in str(L.lasting_fault(e, L.Place("a/b"), "x"))


# --- faults of the data

def drifted(change):
    "The second shard of a ChartQA with its schema changed"
    import pyarrow as pa
    types, row = dict(SCHEMAS["chartqa"]), chart(5)
    if change == "renamed": types = {("question" if k == "query" else k): v for k, v in types.items()}; row["question"] = row.pop("query")
    if change == "missing": del types["label"]
    if change == "type": types["label"], row["label"] = pa.int64(), 7
    if change == "numbers": types["label"], row["label"] = pa.list_(pa.int64()), [7]
    if change == "image": types["image"], row["image"] = pa.string(), "x.png"
    if change == "optional": del types["human_or_machine"]
    if change == "extra": types["more"], row["more"] = pa.string(), "x"
    return shard(types, [row])


@pytest.mark.parametrize("change,texts", [
    ("renamed", ("column 'query' is missing", "expected string", "question: string")), ("missing", ("column 'label' is missing", "expected list of string")),
    ("type", ("column 'label' has changed", "found number")), ("numbers", ("column 'label'", "expected list of string", "found list of number")),
    ("image", ("column 'image'", "expected image or binary", "found string")),
    ("optional", ("column 'human_or_machine' differs", "expected number", "found no such column")), ("extra", ("column 'more'", "found string"))])
def test_changed_column(hub, run, tmp_path, change, texts):
    files = {"data/train-00000-of-00002.parquet": shard("chartqa", [chart(i) for i in range(3)]), "data/train-00001-of-00002.parquet": drifted(change)}
    hub.add(CHART, files | sharded("chartqa", "val", [chart(9)], 1))
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train,val")
    assert r.code == 2 and "train-00001-of-00002.parquet" in r.text and CHART in r.text and "--revision" in r.text and all(t in r.text for t in texts), r.text
    assert not list(tmp_path.glob("raw/*.jsonl")) and not list(tmp_path.glob("raw/images/*"))


def test_shards_that_store_the_same_differently(hub, run, tmp_path):
    import pyarrow as pa
    other = {"image": pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]), "query": pa.large_string(),
             "label": pa.large_list(pa.string()), "human_or_machine": pa.int32()}
    nulls = SCHEMAS["chartqa"] | {"human_or_machine": pa.null()}
    files = {f"data/train-{i:05}-of-00003.parquet": shard(t, [chart(i) | ({"human_or_machine": None} if t is nulls else {})])
             for i, t in enumerate(("chartqa", other, nulls))}
    hub.add(CHART, files)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 0 and len(rows_of(tmp_path/"raw", "chartqa_raw_train.jsonl")) == 3, r.text


def test_unreadable_rows_are_named_and_the_rest_goes_on(hub, run, tmp_path):
    rows = [chart(i, f"q{i}?") for i in range(8)]
    rows[2]["image"], rows[5]["image"], rows[6]["image"] = picture(2)[:-30], None, b"GIF89a nothing"
    rows[7]["query"] = " "
    chartqa(hub, rows, 2)
    out = tmp_path/"raw"
    r = run("chartqa", "--out_dir", out, "--splits", "train")
    assert r.code == 2 and "4 rows could not be used and were left out" in r.text and "Traceback" not in r.text
    for file, row, n, why in ((0, 2, 2, "not a readable image"), (1, 1, 5, "no image bytes"), (1, 2, 6, "not a readable image"), (1, 3, 7, "'query' is empty")):
        assert re.search(rf"train-0000{file}-of-00002.parquet, row {row} \(row {n} of train\): .*{why}", r.text), r.text
    assert [x["query"] for x in rows_of(out, "chartqa_raw_train.jsonl")] == ["q0?", "q1?", "q3?", "q4?"]
    e = manifest(out)["splits"]["train"]
    assert e["rows"]["left_out"] == 4 and e["left_out"][0]["row"] == 2
    check_whole(out)
    hub.log.clear()
    r = run("chartqa", "--out_dir", out, "--splits", "train")
    assert r.code == 2 and "nothing to do" in r.text and "4 rows" in r.text and len([x for x in hub.log if "ChartQA" in x.path]) == 1


def test_damaged_shards(hub, run, tmp_path):
    good = shard("chartqa", [chart(i) for i in range(40)])
    middle = bytearray(good)
    middle[40:len(good) // 2] = bytes(len(good) // 2 - 40)
    for data, text in ((b"PAR1 not parquet", "not a readable parquet file"), (bytes(middle), "not a readable parquet file"), (good[:-40], "not a readable")):
        hub.add(CHART, {"data/train-00000-of-00001.parquet": data})
        r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
        assert r.code == 2 and text in r.text and "train-00000-of-00001.parquet" in r.text and "Traceback" not in r.text, r.text
    hub.add(CHART, {"data/train-00000-of-00001.parquet": good})
    assert run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train").code == 0


def test_damaged_cache_is_fetched_again(hub, run, tmp_path):
    chartqa(hub, n=1)
    assert run("chartqa", "--out_dir", tmp_path/"a", "--splits", "train").code == 0
    blob = max((tmp_path/"home").rglob("blobs/*"), key=lambda p: p.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:200])
    r = run("chartqa", "--out_dir", tmp_path/"b", "--splits", "train")
    assert r.code == 0 and tree(tmp_path/"a") == tree(tmp_path/"b"), r.text


def test_nothing_usable(hub, run, tmp_path):
    chartqa(hub, [chart(i, label=[]) for i in range(3)])
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "not one usable row (3 without an answer" in r.text and not list(tmp_path.glob("raw/*.jsonl"))


def test_missing_split_and_wrong_configuration(hub, run, tmp_path):
    chartqa(hub, val=[])
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "val")
    assert r.code == 2 and "no split 'val'" in r.text and "known: train" in r.text
    r = run("chartqa", "--out_dir", tmp_path/"usual")
    assert r.code == 0 and "no split 'val'" in r.text and "no split 'test'" in r.text, r.text
    assert list(manifest(tmp_path/"usual")["splits"]) == ["train"]
    hub.log.clear()
    r = run("chartqa", "--out_dir", tmp_path/"usual")
    assert r.code == 0 and "nothing to do" in r.text and len([x for x in hub.log if "ChartQA" in x.path]) == 1
    hub.add(INFO, sharded("infovqa", "validation", [info(1)], 1, "Other") | {"README.md": card({"Other": {"validation": "Other/*"}})})
    r = run("infovqa", "--out_dir", tmp_path/"info", "--splits", "val")
    assert r.code == 2 and "InfographicVQA" in r.text and "'Other'" in r.text and "Traceback" not in r.text
    hub.add(CHART, sharded("chartqa", "other", [chart(1)], 1))
    for _ in range(2):
        r = run("chartqa", "--out_dir", tmp_path/"none")
        assert r.code == 2 and "has none of the splits train, val, test" in r.text
    hub.add(CHART, {"train.csv": b"a,b\n1,2\n", "README.md": card()})
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "train.csv of split 'train' is not a parquet file" in r.text
    hub.add(CHART, {"README.md": card()})
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "Traceback" not in r.text


# --- faults of this machine

def whole_or_absent(out, rows=10):
    "A JSONL that is there is complete, and so are its pictures"
    for p in out.glob("chartqa_raw_*.jsonl"):
        lines = rows_of(out, p.name)
        assert len(lines) == rows and all((out/x["image"]).is_file() for x in lines)
        for x in lines: open_image(out/x["image"])
    if (out/"manifest.json").exists():
        for e in manifest(out)["splits"].values():
            for name, digest in e["files"].items(): assert sha256_file(out/name) == digest


@pytest.mark.slow
def test_killed_at_every_step(hub, run, tmp_path):
    "Run after run is killed one step later than the last; each begins where the last one ended"
    chartqa(hub)
    assert run("chartqa", "--out_dir", tmp_path/"calm", "--splits", "train", home="calm_home").code == 0
    hub.log.clear()
    out, n, code = tmp_path/"raw", 1, None
    while code != 0:
        r = run("chartqa", "--out_dir", out, "--splits", "train", kill=n)
        code, n = r.code, n + 1
        assert code in (0, -9), r.text
        whole_or_absent(out)
    assert n > 10 and tree(out) == tree(tmp_path/"calm") and not (out/".download").exists()
    assert len(hub.gets("train-00000")) <= 3
    chartqa(hub, [chart(70 + i, f"q{i}?") for i in range(10)])
    assert "--overwrite" in (r := run("chartqa", "--out_dir", out, "--splits", "train")).text and r.code == 2
    for n in range(1, 99, 2):
        r = run("chartqa", "--out_dir", out, "--splits", "train", "--overwrite", kill=n)
        whole_or_absent(out)
        if r.code == 0: break
    check_whole(out)
    assert n > 10 and rows_of(out, "chartqa_raw_train.jsonl")[0]["query"] == "q0?" and len(list(out.glob("images/*"))) == 10


def test_killed_with_workers(hub, run, tmp_path):
    import signal
    import time
    chartqa(hub, [chart(i) for i in range(30)], 10)
    job = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", proc=2, wait=False)
    end = time.time() + 20
    while not list(tmp_path.glob("raw/.download/train/parts/0*")) and time.time() < end: time.sleep(.01)
    children = [p for t in Path(f"/proc/{job.pid}/task").iterdir() for p in (t/"children").read_text().split()]
    os.kill(job.pid, signal.SIGKILL)
    end = time.time() + 20
    alive = lambda p: Path(f"/proc/{p}").exists() and Path(f"/proc/{p}/stat").read_text().split(")")[1].split()[0] != "Z"
    while any(map(alive, children)) and time.time() < end: time.sleep(.05)
    assert len(children) >= 2 and not any(map(alive, children))
    assert job.end().code == -9 and not list(tmp_path.glob("raw/*.jsonl"))
    before = {x.path for x in hub.gets("train-")}
    hub.log.clear()
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", proc=2)
    assert r.code == 0 and "going on" in r.text and len(before & {x.path for x in hub.gets("train-")}) <= 2, r.text
    assert len(rows_of(tmp_path/"raw", "chartqa_raw_train.jsonl")) == 30


def noise(seed): return np.random.default_rng(seed).integers(0, 255, (120, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize("main,file", [("main", "train-00000"), ("models_main", "MiniLM.*safetensors")])
def test_killed_within_a_file(hub, run, tmp_path, main, file):
    "Killed when half of a file has arrived: the next run asks for the other half"
    import signal
    import time
    chartqa(hub, [chart(i) | {"image": (Image.fromarray(noise(i)).save(o := io.BytesIO(), "PNG"), o.getvalue())[1]} for i in range(4)], 1)
    add_models(hub, minilm=MODEL_FILES | {"model.safetensors": noise(0).tobytes()*2})
    hub.fault(f"GET .*{file}", cut=50_000)
    words = ["chartqa", "--out_dir", tmp_path/"raw", "--splits", "train"] if main == "main" else ["--out_dir", tmp_path/"models"]
    job, end = run(*words, main=main, chunk=10_000, wait=False), time.time() + 30
    while not any(p.stat().st_size >= 50_000 for p in tmp_path.rglob("*.part")) and time.time() < end: time.sleep(.01)
    os.kill(job.pid, signal.SIGKILL)
    assert job.end().code == -9 and len(hub.gets(file)) == 1
    r = run(*words, main=main)
    assert r.code == 0 and [x.range for x in hub.gets(file)] == [None, "bytes=50000-"] and not list(tmp_path.rglob("*.part")), r.text


def test_a_part_that_is_rotten(hub, run, tmp_path):
    "The hash of the whole tells; the file is fetched anew"
    chartqa(hub)
    assert run("chartqa", "--out_dir", tmp_path/"a", "--splits", "train").code == 0
    shard = next(tmp_path.rglob("assets/**/*train-00000*.parquet"))
    digest, good = sha256_file(shard), shard.read_bytes()
    for bad in (b"x"*100, good + b"more"):
        shard.unlink(missing_ok=True)
        shard.with_name(f"{shard.name}.{digest}.part").write_bytes(bad)
        shutil.rmtree(tmp_path/"a")
        r = run("chartqa", "--out_dir", tmp_path/"a", "--splits", "train")
        assert r.code == 0 and shard.read_bytes() == good and ("does not have the hash" in r.text) == (len(bad) == 100), r.text


def test_full_disk_at_every_step(hub, run, tmp_path):
    chartqa(hub)
    out, n = tmp_path/"raw", 1
    while (r := run("chartqa", "--out_dir", out, "--splits", "train", full=n)).code != 0:
        assert r.code == 2 and "disk is full" in r.text and "run the same command again" in r.text and "Traceback" not in r.text, r.text
        whole_or_absent(out)
        n += 4
    assert n > 10
    check_whole(out)


@pytest.mark.parametrize("proc", [1, 2])
def test_limit_on_file_size(hub, run, tmp_path, proc):
    "Writing stops for real: the shard does not fit, then one of its pictures"
    big = [chart(0) | {"image": np.random.default_rng(0).bytes(3 * 300 * 300)}, chart(1)]
    big[0]["image"] = (Image.frombytes("RGB", (300, 300), big[0]["image"]).save(o := io.BytesIO(), "TIFF"), o.getvalue())[1]
    chartqa(hub, big, 1)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", size=100_000, proc=proc)
    assert r.code == 2 and "disk is full" in r.text and "train-00000" in r.text and not list(tmp_path.glob("raw/*.jsonl")), r.text
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", proc=proc)
    assert r.code == 0, r.text


def test_small_disk(hub, run, tmp_path):
    "A file system of 200 kB, where that is permitted"
    disk = tmp_path/"disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True).returncode: pytest.skip("no permission to mount")
    try:
        g = np.random.default_rng(0)
        noise = lambda: (Image.fromarray(g.integers(0, 255, (100, 100, 3), dtype=np.uint8)).save(o := io.BytesIO(), "PNG"), o.getvalue())[1]
        chartqa(hub, [chart(i) | {"image": noise()} for i in range(12)])
        r = run("chartqa", "--out_dir", disk/"raw", "--splits", "train")
        assert r.code == 2 and "disk is full" in r.text and not list(disk.glob("raw/*.jsonl")), r.text
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        r = run("chartqa", "--out_dir", disk/"raw", "--splits", "train")
        assert r.code == 0 and "going on" in r.text
        check_whole(disk/"raw")
    finally: subprocess.run(["umount", str(disk)], check=True)


def test_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_): raise OSError(errno.EPERM, "no links here")
    monkeypatch.setattr(L.os, "link", refuse)
    (tmp_path/"a").write_bytes(b"new")
    (tmp_path/"b").write_bytes(b"old")
    L._place_image(tmp_path/"a", tmp_path/"b")
    L._place_image(tmp_path/"a", tmp_path/"c")
    assert (tmp_path/"b").read_bytes() == (tmp_path/"c").read_bytes() == b"new"


def test_two_at_once(hub, run, tmp_path):
    import time
    chartqa(hub)
    hub.fault("GET /api/datasets", 503, {"Retry-After": "2"})
    first = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train", wait=False)
    end = time.time() + 20
    while not hub.log and time.time() < end: time.sleep(.01)
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "another download is writing here" in r.text
    assert first.end().code == 0


def test_files_of_others_are_left_alone(hub, run, tmp_path):
    chartqa(hub)
    (tmp_path/"raw").mkdir()
    mine = tmp_path/"raw/chartqa_raw_train.jsonl"
    mine.write_text("mine\n")
    r = run("chartqa", "--out_dir", tmp_path/"raw", "--splits", "train")
    assert r.code == 2 and "was not made by r3nb_download" in r.text and mine.read_text() == "mine\n"
    assert run("chartqa", "--out_dir", tmp_path/"other", "--splits", "train").code == 0
    infovqa(hub)
    r = run("infovqa", "--out_dir", tmp_path/"other", "--splits", "val")
    assert r.code == 2 and "give each dataset its own --out_dir" in r.text
    r = run("chartqa", "--out_dir", mine, "--splits", "train")
    assert r.code == 2 and "Traceback" not in r.text


def test_memory_does_not_grow_with_the_dataset(hub, run, tmp_path):
    "Pictures of 1.1 MB each; keeping them, or their shards, would add 110 MB"
    peak = []
    for n in (20, 120):
        rows = [chart(i, f"q{i}?") | {"image": picture(i, "BMP", (600, 600))} for i in range(n)]
        hub.add(CHART, sharded("chartqa", "train", rows, n // 20, group=20))
        r = run("chartqa", "--out_dir", tmp_path/f"raw{n}", "--splits", "train")
        assert r.code == 0, r.text
        peak.append(r.memory / 1024)
    assert peak[1] - peak[0] < 40, f"{peak[0]:.0f} MB for 22 MB of pictures, {peak[1]:.0f} MB for 130 MB"


# --- models

MODEL_FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "vocab.txt": b"a\nb", "merges.txt": b"a b", "model.safetensors": b"weights" * 1000,
               "1_Pooling/config.json": b"{}", "modules.json": b"[]", "pytorch_model.bin": b"no", "tf_model.h5": b"no", "flax_model.msgpack": b"no",
               "onnx/model.onnx": b"no", "onnx/config.json": b"{}", "openvino/openvino_model.bin": b"no", "train_script.py": b"no",
               "README.md": card(licence="mit"), ".gitattributes": b"no"}
WANTED = {"config.json", "tokenizer.json", "vocab.txt", "merges.txt", "model.safetensors", "1_Pooling/config.json", "modules.json"}


def add_models(hub, **change):
    commits = {m.folder: hub.add(m.repo, MODEL_FILES | {"model.safetensors": m.repo.encode() * 1000}, kind="models") for m in L.MODELS}
    for name, files in change.items():
        m = next(m for m in L.MODELS if name in m.folder.lower())
        commits[m.folder] = hub.add(m.repo, files, kind="models")
    return commits


def test_models(hub, run, tmp_path):
    commits, out = add_models(hub), tmp_path/"models"
    r = run("--out_dir", out, main="models_main")
    assert r.code == 0, r.text
    assert sorted(p.name for p in out.iterdir()) == ["all-MiniLM-L6-v2", "clip-vit-base-patch32", "manifest.json"]
    for name in ("all-MiniLM-L6-v2", "clip-vit-base-patch32"):
        e = manifest(out)["models"][name]
        assert set(tree(out/name)) == WANTED and e["files"] == tree(out/name) and e["revision"] == commits[name] and e["licence"] == "mit"
        assert (out/name/"model.safetensors").read_bytes() == e["repository"].encode() * 1000
    assert r.text.count("licence of") == 2 and "openai/clip-vit-base-patch32" in r.text
    hub.log.clear()
    r = run("--out_dir", out, main="models_main")
    assert r.code == 0 and r.text.count("nothing to do") == 2 and all(x.path.startswith("/api/") for x in hub.log) and len(hub.log) <= 3
    r = run("--out_dir", out, "--backbone", main="models_main")
    assert r.code == 0 and set(tree(out/"Qwen3-VL-8B-Instruct")) == WANTED


def test_models_pinned(hub, run, tmp_path):
    old = add_models(hub)
    add_models(hub, minilm=MODEL_FILES | {"config.json": b'{"new": 1}'}, clip=MODEL_FILES | {"config.json": b'{"new": 1}'})
    pins = ",".join(f"{k}={v}" for k, v in old.items())
    assert run("--out_dir", tmp_path, "--revision", pins, main="models_main").code == 0
    assert (tmp_path/"clip-vit-base-patch32/config.json").read_bytes() == b"{}"
    hub.log.clear()
    assert run("--out_dir", tmp_path, "--revision", pins, main="models_main").code == 0 and hub.log == []
    r = run("--out_dir", tmp_path, main="models_main")
    assert r.code == 2 and "--overwrite" in r.text and (tmp_path/"clip-vit-base-patch32/config.json").read_bytes() == b"{}"
    (tmp_path/"clip-vit-base-patch32/notes.txt").write_text("mine")
    r = run("--out_dir", tmp_path, "--overwrite", main="models_main")
    assert r.code == 2 and "notes.txt" in r.text and (tmp_path/"clip-vit-base-patch32/notes.txt").exists()
    (tmp_path/"clip-vit-base-patch32/notes.txt").unlink()
    assert run("--out_dir", tmp_path, "--overwrite", main="models_main").code == 0
    assert (tmp_path/"clip-vit-base-patch32/config.json").read_bytes() == b'{"new": 1}'
    r = run("--out_dir", tmp_path, "--revision", "clip=abc", main="models_main")
    assert r.code == 2 and "unknown repository 'clip'" in r.text
    r = run("--out_dir", tmp_path, "--revision", "v7", main="models_main")
    assert r.code == 2 and "no such revision" in r.text


def test_models_only_as_pickle(hub, run, tmp_path):
    "A real CLIP whose weights are a pickle becomes one that loads from safetensors; a pickle that runs code is refused"
    import tiny
    import torch
    from transformers import CLIPModel
    made = tiny.clip(tmp_path/"clip")
    weights = CLIPModel.from_pretrained(made).state_dict()
    torch.save(weights, o := io.BytesIO())
    files = {p.name: p.read_bytes() for p in made.iterdir() if p.suffix != ".safetensors"}
    add_models(hub, clip=files | {"pytorch_model.bin": o.getvalue(), "tf_model.h5": b"no"})
    r = run("--out_dir", tmp_path/"m", main="models_main")
    assert r.code == 0, r.text
    folder = tmp_path/"m/clip-vit-base-patch32"
    assert set(tree(folder)) == {*files, "model.safetensors"} and manifest(tmp_path/"m")["models"][folder.name]["files"] == tree(folder)
    found = CLIPModel.from_pretrained(folder, use_safetensors=True).state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in weights)
    add_models(hub, clip=files | {"pytorch_model.bin": b"cos\nsystem\n(S'touch pwned'\ntR."})
    r = run("--out_dir", tmp_path/"n", main="models_main")
    assert r.code == 2 and "not a plain file of weights" in r.text and not (tmp_path/"n/clip-vit-base-patch32").exists()


def test_models_killed_and_faults(hub, run, tmp_path):
    add_models(hub)
    out, n, code = tmp_path/"models", 1, None
    while code != 0:
        code = run("--out_dir", out, main="models_main", kill=n).code
        n += 1
        for folder in out.glob("[ac]*"): assert set(tree(folder)) >= WANTED
    e = manifest(out)["models"]
    assert n > 9 and all(tree(out/k) == v["files"] for k, v in e.items()) and not (out/".download").exists()
    hub.repos["models", L.MODELS[2].repo].gated = True
    r = run("--out_dir", out, "--backbone", main="models_main")
    assert r.code == 2 and "accept its terms" in r.text and f"{hub.url}/Qwen/Qwen3-VL-8B-Instruct" in r.text
    del hub.repos["models", L.MODELS[2].repo]
    r = run("--out_dir", out, "--backbone", main="models_main")
    assert r.code == 2 and "404" in r.text and "Qwen/Qwen3-VL-8B-Instruct" in r.text
    (tmp_path/"mine/all-MiniLM-L6-v2").mkdir(parents=True)
    r = run("--out_dir", tmp_path/"mine", main="models_main")
    assert r.code == 2 and "was not made by r3nb_models" in r.text


def test_models_busy_and_broken(hub, run, tmp_path):
    add_models(hub)
    hub.fault("GET /api/models", 503, {"Retry-After": "0"})
    hub.fault("GET .*MiniLM.*safetensors", 503, {"Retry-After": "0"})
    hub.fault("GET .*clip.*safetensors", cut=5100)
    r = run("--out_dir", tmp_path, main="models_main", chunk=1000)
    assert r.code == 0, r.text
    assert [x.range for x in hub.gets("clip.*safetensors")] == [None, "bytes=5000-"]


# --- the command line

def test_console_scripts():
    import configparser
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT/"settings.ini", encoding="utf-8")
    scripts = cfg["DEFAULT"]["console_scripts"]
    assert "r3nb_download=r3nb.download:main" in scripts and "r3nb_models=r3nb.download:models_main" in scripts
    with pytest.raises(SystemExit) as e: L.main(["--help"])
    assert e.value.code == 0
    with pytest.raises(SystemExit): L.main(["chartqa"])


def test_as_a_user_runs_it(server, hub, tmp_path):
    "A process of its own, with the default number of workers, and no environment but the endpoint"
    chartqa(hub)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path/"hf"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", "import sys; from r3nb.download import main; main(sys.argv[1:])", "chartqa", "--out_dir", "data/raw/chartqa", "--splits", "train,val"]
    r = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    check_whole(tmp_path/"data/raw/chartqa")
    assert "| chartqa train |" in r.stdout and "gpl-3.0" in r.stdout
