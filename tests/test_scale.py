"""Indices at scale: streams, shards, structures, additions and removals. Fast stand-in encoders, and the real ones where bits could depend on them."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from PIL import Image
from test_indices import page, record
from tiny import clip

import r3nb.ann
import r3nb.indices as indices
from r3nb.ann import RECALL, RowFile, Searcher, build_structure, noisy_queries, scan_rows, top_rows
from r3nb.core import ConfigError, DataError, ImageError, IndexMismatchError, QARecord, _tmp_name, write_jsonl
from r3nb.documents import PageStore, feed, shared_plan
from r3nb.encoders import build_shard
from r3nb.indices import CHANNELS, EvidenceIndex, IndexConfig, ImageEncoder, TextEncoder, main, merge_shards, my_shards
from r3nb.passages import Cut

N, PASSAGES = 23, 10 # documents; tokens of a passage, so that a third of the pages has several


class Words:
    "A text encoder that treats each text by itself: a seeded random vector per text."
    name, fingerprint, width = "words", "words-1", 16
    def __init__(self): self.calls = []
    def encode(self, texts):
        self.calls.append(list(texts))
        v = np.stack([np.random.default_rng(abs(hash(t)) if t == "" else int.from_bytes(t.encode()[:64], "big")).normal(size=self.width) for t in texts])
        return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32")


class Pixels:
    "An image encoder that treats each picture by itself."
    name, fingerprint = "pixels", "pixels-1"
    def __init__(self): self.calls = []
    def encode(self, images):
        self.calls.append(len(images))
        v = np.stack([np.asarray(im.convert("RGB").resize((3, 3)), dtype="float32").ravel() + 1 for im in images])
        return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32")


def rows_of(n=N):
    "Records with questions in pairs, every fifth text repeated, every seventh picture repeated."
    out = []
    for i in range(n):
        for q in range(1 + i % 2):
            text = f"the same words {'x' * 9}" if i % 5 == 4 else " ".join(f"word{i}" + "abc"[k % 3] * (i % 3) for k in range(1 + i * 7 % 11))
            out.append(record(i, q, pseudo_text=text, image_path=f"w/images/{i - i % 7 if i % 7 == 6 else i}.png"))
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("scale")
    (root / "w/images").mkdir(parents=True)
    for i in range(N): page(i).save(root / f"w/images/{i}.png")
    write_jsonl(root / "train.jsonl", [r.to_dict() for r in rows_of()])
    clip(root / "clip", 0)
    return SimpleNamespace(root=root, jsonl=root / "train.jsonl", flags=["--jsonl", str(root / "train.jsonl"), "--image_root", str(root), "--batch_size", "3",
                                                                        "--image_encoder", str(root / "clip")])


def fakes(): return {"text": Words(), "image": Pixels()}


def shard(world, out, i, n, encoders=None, batch_size=3, jsonl=None, overwrite=False):
    e = encoders or fakes()
    return build_shard(out, shared_plan(out, jsonl or world.jsonl, world.root, Cut(PASSAGES, e["text"])), i, n, e, batch_size, world.root, overwrite=overwrite)


def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in ("manifest.json", ".plan.lock")}


def fake_build(world, out, records=None, **kw):
    e = fakes()
    return EvidenceIndex.build(world.jsonl if records is None else records, world.root, out, e["text"], e["image"], 3, **{"passage_tokens": PASSAGES} | kw)


# ---- shards

@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 40])
def test_any_number_of_shards_in_any_order_equals_one_process(world, tmp_path, n):
    fake_build(world, tmp_path / "single")
    for i in np.random.default_rng(n).permutation(n).tolist(): shard(world, tmp_path / "parts", i, n)
    merge_shards(tmp_path / "parts", n)
    assert files(tmp_path / "parts") == files(tmp_path / "single")


@pytest.mark.slow
def test_torchrun_equals_one_process_with_real_encoders(world, tmp_path):
    import torch
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "r3nb.indices", *world.flags,
               "--out_dir", str(tmp_path / "parts"), "--num_shards", "3"]
    got = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, got.stderr[-2000:]
    assert all(f"shard {i} of 3" in got.stdout for i in range(3))
    main(["--out_dir", str(tmp_path / "parts"), "--merge_shards", "3"])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try: main([*world.flags, "--out_dir", str(tmp_path / "single")])
    finally: torch.set_num_threads(threads)
    assert files(tmp_path / "parts") == files(tmp_path / "single")


def test_missing_and_foreign_shards_are_named(world, tmp_path):
    out = tmp_path / "i"
    for i in (0, 2): shard(world, out, i, 3)
    with pytest.raises(DataError, match=r"shard 1 of 3 is missing \(found: shard_0_of_3, shard_2_of_3\)"): merge_shards(out, 3)
    with pytest.raises(DataError, match="shard 0, 1 of 2 is missing"): merge_shards(out, 2)
    assert not (out / "index.json").exists()
    other_text = fakes()
    other_text["text"].fingerprint = "words-2"
    write_jsonl(tmp_path / "other.jsonl", [r.to_dict() for r in rows_of(N - 1)])
    for kw, said in ((dict(encoders=other_text), "text encoder"), (dict(batch_size=4), "batch size"), (dict(jsonl=tmp_path / "other.jsonl"), "records or pictures")):
        shard(world, out, 1, 3, **kw, overwrite=True)
        with pytest.raises(IndexMismatchError, match=f"shard 1 of 3 is foreign.*{said}"): merge_shards(out, 3)
    shard(world, out, 1, 4)
    shutil.rmtree(out / "shard_1_of_3")
    (out / "shard_1_of_4").rename(out / "shard_1_of_3")
    with pytest.raises(IndexMismatchError, match="shard 1 of 3 is foreign.*number of shards"): merge_shards(out, 3)
    assert not (out / "index.json").exists()
    with pytest.raises(ConfigError, match="was built with .*--overwrite"): shard(world, out, 1, 3)
    shard(world, out, 1, 3, overwrite=True)
    merge_shards(out, 3)
    assert (out / "index.json").exists()


def test_swapped_and_damaged_shards_are_refused(world, tmp_path):
    out = tmp_path / "i"
    for i in range(2): shard(world, out, i, 2)
    for a, b in (("shard_0_of_2", "x"), ("shard_1_of_2", "shard_0_of_2"), ("x", "shard_1_of_2")): (out / a).rename(out / b)
    with pytest.raises(IndexMismatchError, match="shard 0 of 2 is foreign.*shard number"): merge_shards(out, 2)
    for a, b in (("shard_0_of_2", "x"), ("shard_1_of_2", "shard_0_of_2"), ("x", "shard_1_of_2")): (out / a).rename(out / b)
    path = out / "shard_1_of_2/image_vectors.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="shard_1_of_2.*damaged"): merge_shards(out, 2)
    path.unlink()
    with pytest.raises(DataError, match="missing from shard 1 of 2"): merge_shards(out, 2)


def test_finished_shards_are_kept_and_a_merge_can_be_repeated(world, tmp_path):
    out = tmp_path / "i"
    assert shard(world, out, 0, 2) and shard(world, out, 1, 2)
    stamp = (out / "shard_0_of_2/text_vectors.npy").stat().st_mtime_ns
    assert not shard(world, out, 0, 2) and (out / "shard_0_of_2/text_vectors.npy").stat().st_mtime_ns == stamp
    merge_shards(out, 2)
    first = files(out)
    merge_shards(out, 2)
    assert files(out) == first and not shard(world, out, 1, 2)


def test_a_changed_picture_makes_a_new_plan_and_new_shards(tmp_path):
    (tmp_path / "w/images").mkdir(parents=True)
    for i in range(4): page(i).save(tmp_path / f"w/images/{i}.png")
    write_jsonl(tmp_path / "t.jsonl", [record(i).to_dict() for i in range(4)])
    world = SimpleNamespace(root=tmp_path, jsonl=tmp_path / "t.jsonl")
    for i in range(2): shard(world, tmp_path / "i", i, 2)
    os.utime(tmp_path / "w/images/2.png")
    assert not shard(world, tmp_path / "i", 0, 2), "a new time alone changes nothing"
    page(9).save(tmp_path / "w/images/2.png")
    with pytest.raises(ConfigError, match="records or pictures.*--overwrite"): shard(world, tmp_path / "i", 0, 2)
    assert shard(world, tmp_path / "i", 0, 2, overwrite=True)
    with pytest.raises(IndexMismatchError, match="foreign"): merge_shards(tmp_path / "i", 2)
    assert shard(world, tmp_path / "i", 1, 2, overwrite=True)
    merge_shards(tmp_path / "i", 2)


def test_a_picture_that_changes_after_the_plan_is_an_error(world, tmp_path):
    shutil.copytree(world.root / "w", tmp_path / "w")
    plan = shared_plan(tmp_path / "i", world.jsonl, tmp_path)
    page(40).save(tmp_path / "w/images/1.png")
    with pytest.raises(DataError, match="1.png: the picture changed"): build_shard(tmp_path / "i", plan, 0, 1, fakes(), 3, tmp_path)
    assert not list((tmp_path / "i").glob("shard*")) and not list((tmp_path / "i").glob(".tmp-*"))


SLOW = """
import sys, time
import numpy as np
sys.path.insert(0, {tests!r})
from test_scale import fakes
from r3nb.documents import shared_plan
from r3nb.encoders import build_shard
from r3nb.passages import Cut
e = fakes()
fast = e["text"].encode
e["text"].encode = lambda t: (time.sleep(.15), fast(t))[1]
for i in range(3): build_shard({out!r}, shared_plan({out!r}, {jsonl!r}, {root!r}, Cut(10, e["text"])), i, 3, e, 3, {root!r})
"""


def test_killed_shards_can_be_built_again(world, tmp_path):
    out = tmp_path / "i"
    code = SLOW.format(tests=str(Path(__file__).parent), out=str(out), jsonl=str(world.jsonl), root=str(world.root))
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 120
    while time.time() < until and run.poll() is None and not ((out / "shard_0_of_3/shard.json").exists() and list(out.glob(".tmp-*shard_1_of_3"))): time.sleep(.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert (out / "shard_0_of_3").exists() and not (out / "shard_1_of_3").exists() and list(out.glob(".tmp-*shard_1_of_3"))
    stamp = (out / "shard_0_of_3/shard.json").stat().st_mtime_ns
    for i in range(3): shard(world, out, i, 3)
    assert (out / "shard_0_of_3/shard.json").stat().st_mtime_ns == stamp and not list(out.glob(".tmp-*"))
    merge_shards(out, 3)
    fake_build(world, tmp_path / "single")
    assert files(out) == files(tmp_path / "single")


def test_what_a_kill_left_beside_the_index_is_rescued(world, tmp_path):
    "Killed between moving the shards into the new folder and renaming it, the shards are in the hidden folder."
    out = tmp_path / "i"
    for i in range(2): shard(world, out, i, 2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hidden = tmp_path / _tmp_name(out).name.replace(f"-{os.getpid():x}-", f"-{gone.pid:x}-")
    hidden.mkdir()
    (out / "shard_1_of_2").rename(hidden / "shard_1_of_2")
    with indices.replace_folder(out) as new: (new / "index.json").write_text("{}")
    assert (out / "shard_1_of_2/shard.json").exists() and not hidden.exists()


def test_options_of_sharding(world, tmp_path, monkeypatch):
    cfg = lambda **kw: IndexConfig(jsonl="a", image_root="b", **kw)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert my_shards(cfg(num_shards=10)) == [1, 5, 9] and my_shards(cfg(num_shards=1)) == []
    with pytest.raises(ConfigError, match="--num_shards 4"): my_shards(cfg())
    with pytest.raises(ConfigError, match="by hand"): my_shards(cfg(num_shards=4, shard=2))
    with pytest.raises(SystemExit): main(["--out_dir", str(tmp_path), "--merge_shards", "2"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert my_shards(cfg(num_shards=3)) == [0, 1, 2] and my_shards(cfg(num_shards=3, shard=2)) == [2]
    for kw, said in ((dict(num_shards=0), "num_shards is 0"), (dict(shard=1), "num_shards given"), (dict(batch_size=0), "batch_size"),
                     (dict(merge_shards=2), "one of"), (dict(index_factory="IVF,what"), "index_factory 'IVF,what'")):
        with pytest.raises(ConfigError, match=said): cfg(**kw)
    with pytest.raises(ConfigError, match="image_root"): IndexConfig(jsonl="a")


def test_help_is_whole_when_the_module_runs_as_a_program():
    got = subprocess.run([sys.executable, "-m", "r3nb.indices", "--help"], capture_output=True, text=True, timeout=120).stdout
    for comment in ("unified records (JSONL) whose images become documents", "texts or images per forward pass", "FAISS factory string", "one image_id per line"):
        assert comment in " ".join(got.split())


def test_foreign_files_keep_shards_out_too(world, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("x")
    with pytest.raises(SystemExit): main([*world.flags, "--out_dir", str(tmp_path / "precious"), "--num_shards", "2"])
    assert "thesis.tex" in capsys.readouterr().err and len(list((tmp_path / "precious").iterdir())) == 1


# ---- streams

def test_each_distinct_item_is_encoded_once_in_blocks(world, tmp_path):
    e = fakes()
    EvidenceIndex.build(world.jsonl, world.root, tmp_path / "i", e["text"], e["image"], 3)
    texts = [t for call in e["text"].calls for t in call]
    assert len(texts) == len(set(texts)) == len({r.pseudo_text for r in rows_of()}) and max(map(len, e["text"].calls)) == 3
    assert texts == sorted(texts, key=len, reverse=True)
    assert sum(e["image"].calls) == len({r.image_path for r in rows_of()})


def test_records_may_come_from_a_generator_and_are_not_kept(world, tmp_path):
    alive = []
    def stream():
        for r in rows_of():
            alive.append(sys.getrefcount(r))
            yield r
    index = fake_build(world, tmp_path / "g", stream())
    assert index.fingerprint == fake_build(world, tmp_path / "j").fingerprint


@pytest.mark.slow
def test_memory_of_a_build_does_not_follow_the_number_of_documents(tmp_path):
    "Peak of Python's own allocations, beyond the point where all buffers are full."
    import tracemalloc
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    waves = lambda texts: np.sin(np.outer([int(t.split()[0]) + 1 for t in texts], np.arange(1, 17))).astype("float32")
    text = SimpleNamespace(name="waves", fingerprint="waves", encode=waves)
    def peak(n):
        stream = (QARecord(f"s{i}", "w", "train", f"w/{i}", "a.png", "q", "a", ["a"], f"{i} " + "long text " * 60) for i in range(n))
        tracemalloc.start()
        try:
            EvidenceIndex.build(stream, tmp_path, tmp_path / f"i{n}", text, Pixels(), 256)
            return tracemalloc.get_traced_memory()[1]
        finally: tracemalloc.stop()
    assert peak(32000) - peak(17000) < 15000 * 100  # a text has 600 bytes, its vectors 100, its row in the index 700


PICK_ROWS = """
import sys
import numpy as np
from r3nb.ann import RowFile
if sys.argv[2] == "pick":
    some = np.sort(np.random.default_rng(0).choice(100_000, 1_000, replace=False))
    for _ in range(3): assert (RowFile(sys.argv[1]).take(some)[:, 0] == some).all()
"""


def test_picked_rows_leave_nothing_in_memory(tmp_path):
    "1,000 rows of a file of 150 MB: the operating system maps far more around each than is read"
    from bench import peak_of # here: a test above imports this file in a process of its own
    np.save(tmp_path/"v.npy", np.repeat(np.arange(100_000, dtype="float32")[:, None], 384, axis=1))
    (_, picked), (_, before) = (peak_of(PICK_ROWS, tmp_path/"v.npy", what) for what in ("pick", "nothing"))
    assert picked - before < 20, f"{picked - before:.0f} MB"


def test_faults_in_a_stream_have_a_line(world, tmp_path, capsys):
    rows = [r.to_dict() for r in rows_of(3)]
    for bad, said in ((rows[0], "duplicate sample_id"), (rows[1] | {"sample_id": "n", "image_path": "w/none.png"}, "image_path|none.png"),
                      (record(7).to_dict() | {"image_path": "w/none.png"}, "none.png"), (record(7).to_dict() | {"answers": [""]}, "no answers"),
                      (record(7).to_dict() | {"pseudo_text": "[ANSWER_HINT] 3"}, "leak answers"), (rows[0] | {"sample_id": "n", "pseudo_text": "else"}, "earlier record")):
        write_jsonl(tmp_path / "bad.jsonl", [*rows, bad])
        with pytest.raises((DataError, ImageError), match=rf"bad.jsonl:{len(rows) + 1}.*({said})"):
            feed(PageStore(image_root=world.root), tmp_path / "bad.jsonl")


def test_pictures_of_odd_modes_and_sizes_are_indexed(tmp_path):
    g = np.random.default_rng(0)
    noise = Image.fromarray(g.integers(0, 255, (40, 60, 3), dtype="uint8"))
    pictures = {"cmyk.jpg": noise.convert("CMYK"), "p.png": noise.convert("P"), "la.png": noise.convert("LA"), "rgba.png": noise.convert("RGBA"),
                "one.png": Image.new("RGB", (1, 1)), "wide.png": Image.new("RGB", (20000, 3), "red"), "bit.png": noise.convert("1"),
                "deep.png": Image.fromarray(g.integers(0, 65535, (30, 30), dtype="uint16"))}
    for name, im in pictures.items(): im.save(tmp_path / name)
    noise.save(tmp_path / "anim.gif", save_all=True, append_images=[noise.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "turned.jpg", exif=turned)
    names = [*pictures, "anim.gif", "turned.jpg"]
    records = [record(i, image_id=n, image_path=n) for i, n in enumerate(names)]
    index = EvidenceIndex.build(records, tmp_path, tmp_path / "i", Words(), ImageEncoder(clip(tmp_path / "clip", 0)), 4)
    assert np.isfinite(index.image_vectors).all() and len(index) == len(names)


# ---- adding and removing

def test_adding_equals_a_fresh_build(world, tmp_path):
    "Bit for bit, with encoders that treat each item by itself; only what is new is encoded."
    whole = fake_build(world, tmp_path / "whole")
    half = fake_build(world, tmp_path / "i", rows_of()[:20])
    e = fakes()
    grown = EvidenceIndex.load(tmp_path / "i", e["text"], e["image"]).add(rows_of())
    encoded = {t for call in e["text"].calls for t in call}
    parts = lambda records: {r.pseudo_text[a:b] for r in records for a, b in Cut(PASSAGES)(r.pseudo_text)}
    assert encoded == parts(rows_of()) - parts(rows_of()[:20]) and len(parts(rows_of())) > len({r.pseudo_text for r in rows_of()})
    fresh, now = files(tmp_path / "whole"), files(tmp_path / "i")
    assert now == fresh and grown.fingerprint == whole.fingerprint and len(half) < len(grown)


def test_removing_equals_a_fresh_build(world, tmp_path):
    gone = {"w/04", "w/00", "w/17"}
    left = fake_build(world, tmp_path / "i").remove(sorted(gone))
    fake_build(world, tmp_path / "fresh", [r for r in rows_of() if r.image_id not in gone])
    assert files(tmp_path / "i") == files(tmp_path / "fresh") and "w/04" not in left.row_of and left.row_of["w/05"] == 3
    assert not any(h.image_id in gone for f in left.search(texts=["the same words"], top_k=20) for h in f["text"])


def test_real_encoders_add_within_rounding(world, tmp_path):
    text, image = TextEncoder(), ImageEncoder(world.root / "clip")
    whole = EvidenceIndex.build(world.jsonl, world.root, tmp_path / "whole", text, image, 4)
    part = EvidenceIndex.build(rows_of()[:15], world.root, tmp_path / "i", text, image, 4)
    grown = part.add(world.jsonl)
    assert np.array_equal(grown.text_vectors[:len(part)], part.text_vectors) and np.array_equal(grown.image_vectors[:len(part)], part.image_vectors)
    for c in CHANNELS: assert np.abs(grown.vectors(c) - whole.vectors(c)).max() < 2e-6
    assert [p for p in grown.pages] == [p for p in whole.pages] and np.array_equal(grown.hashes, whole.hashes)
    query = [r.pseudo_text[:15] for r in rows_of()[::4]]
    assert [[e.row for e in f["text"]] for f in grown.search(texts=query)] == [[e.row for e in f["text"]] for f in whole.search(texts=query)]


def test_failed_changes_leave_the_index_as_it_was(world, tmp_path):
    index = fake_build(world, tmp_path / "i")
    before = files(tmp_path / "i")
    with pytest.raises(DataError, match="earlier record"): index.add([record(3, pseudo_text="something else")])
    with pytest.raises(ImageError, match="none.png"): index.add([record(50, image_path="w/none.png")])
    with pytest.raises(DataError, match="'w/99'"): index.remove(["w/01", "w/99"])
    with pytest.raises(DataError, match="empty"): index.remove([f"w/{i:02d}" for i in range(N)])
    broken = EvidenceIndex.load(tmp_path / "i", *fakes().values())
    broken.encoders["text"].encode = lambda texts: 1 / 0
    page(60).save(world.root / "w/images/60.png")
    with pytest.raises(ZeroDivisionError): broken.add([record(60)])
    assert files(tmp_path / "i") == before and not list(tmp_path.glob(".tmp-*"))


def test_entities_of_added_records_are_united(world, tmp_path):
    index = fake_build(world, tmp_path / "i")
    grown = index.add([record(3, 9, meta={"entity": "other"}, pseudo_text=rows_of()[4].pseudo_text)])
    assert len(grown) == len(index) and grown.rows_about["other"] == [3] and grown.rows_about["e1"] == [2, 3]


def test_add_and_remove_on_the_command_line(world, tmp_path, capsys):
    out = ["--out_dir", str(tmp_path / "i")]
    write_jsonl(tmp_path / "some.jsonl", [r.to_dict() for r in rows_of(5)])
    write_jsonl(tmp_path / "more.jsonl", [record(i).to_dict() for i in range(10, 13)])
    main([*world.flags[2:], "--jsonl", str(tmp_path / "some.jsonl"), *out])
    main([*out, "--add", str(tmp_path / "more.jsonl")])
    assert "8 documents" in capsys.readouterr().out
    (tmp_path / "ids.txt").write_text("w/10\n\n w/01 \n")
    main([*out, "--remove", str(tmp_path / "ids.txt")])
    index = EvidenceIndex.load(tmp_path / "i")
    assert [p["image_id"] for p in index.pages] == ["w/00", "w/02", "w/03", "w/04", "w/11", "w/12"]
    for flags, said in ((["--remove", str(tmp_path / "none.txt")], "none.txt"), (["--add", str(tmp_path / "more.jsonl"), "--image_encoder", str(clip(tmp_path / "c2", 3))], "made by encoder"),
                        (["--add", "x", "--remove", "y"], "one of")):
        with pytest.raises(SystemExit) as e: main([*out, *flags])
        assert e.value.code == 2 and said in capsys.readouterr().err
    assert len(EvidenceIndex.load(tmp_path / "i")) == 6


# ---- structures

def spread(n, d, kinds=0, seed=0):
    g = np.random.default_rng(seed)
    v = g.normal(size=(n, d)) if not kinds else np.random.default_rng(99).normal(size=(kinds, d))[g.integers(0, kinds, n)] + .5 * g.normal(size=(n, d))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32")


@pytest.mark.parametrize("factory", ["IVF64,PQ16x4fs", "IVF64,SQ8", "HNSW16"])
def test_recall_is_what_the_manifest_says(tmp_path, factory):
    "20,000 vectors; checked against numpy on queries that the tuning has not seen."
    v = spread(20_000, 32, kinds=300)
    np.save(tmp_path / "v.npy", v)
    about = build_structure(tmp_path / "v.npy", tmp_path / "v.faiss", factory)
    assert about["factory"] == factory and about["recall_at_3"] >= RECALL and about["queries"] > 200
    g, s = np.random.default_rng(5), Searcher(tmp_path / "v.faiss", tmp_path / "v.npy", about)
    q = np.concatenate([spread(60, 32, seed=7), v[g.choice(len(v), 60)] + .1 * g.normal(size=(60, 32)).astype("float32")])
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    truth = np.sort(q @ v.T, axis=1)[:, ::-1][:, 2]
    found = s.top(q, 3, lambda i, rows: rows >= 0)
    assert np.mean([[score >= t - 2e-5 for _, score in f] for f, t in zip(found, truth, strict=True)]) >= .98
    exact = {row: float(v[row] @ q[i]) for i, f in enumerate(found[:5]) for row, _ in f}
    assert all(abs(score - float(v[row] @ q[i])) < 1e-5 for i, f in enumerate(found[:5]) for row, score in f) and exact


def test_vectors_without_clusters_reach_the_recall_too(tmp_path):
    np.save(tmp_path / "v.npy", spread(20_000, 32))
    about = build_structure(tmp_path / "v.npy", tmp_path / "v.faiss", "IVF32,PQ16x4fs")
    assert about["recall_at_3"] >= RECALL and about["nprobe"] > 8


def test_size_chooses_the_structure(tmp_path, monkeypatch):
    monkeypatch.setattr(r3nb.ann, "FLAT_UP_TO", 5000)
    np.save(tmp_path / "v.npy", spread(20_000, 16))
    about = build_structure(tmp_path / "v.npy", tmp_path / "v.faiss")
    assert about["factory"].startswith("IVF") and about["chosen"] == "by size" and about["recall_at_3"] >= RECALL


def test_a_structure_answers_alone_as_in_company(tmp_path):
    np.save(tmp_path / "v.npy", spread(20_000, 32, kinds=50))
    about = build_structure(tmp_path / "v.npy", tmp_path / "v.faiss", "IVF64,PQ16x4fs")
    s, (_, q) = Searcher(tmp_path / "v.faiss", tmp_path / "v.npy", about), noisy_queries(tmp_path / "v.npy", count=20)
    every = lambda i, rows: rows >= 0
    assert [s.top(q[i:i + 1], 3, every)[0] for i in range(len(q))] == s.top(q, 3, every)


def test_wide_exclusion_is_exact_on_any_structure(tmp_path):
    v = spread(8000, 16)
    np.save(tmp_path / "v.npy", v)
    about = build_structure(tmp_path / "v.npy", tmp_path / "v.faiss", "IVF16,PQ8x4fs")
    s, q = Searcher(tmp_path / "v.faiss", tmp_path / "v.npy", about), spread(6, 16, seed=3)
    flat = faiss.IndexFlatIP(16)
    flat.add(v)
    for allowed in (lambda i, r: r >= 7900, lambda i, r: r % 5 == i % 5, lambda i, r: r < 0, lambda i, r: r == 4321):
        assert s.top(q, 3, allowed) == top_rows(flat, q, 3, allowed) == scan_rows(tmp_path / "v.npy", q, 3, allowed)


def test_scan_equals_flat_search_with_ties(tmp_path):
    v = np.repeat(spread(50, 8), 40, axis=0)
    np.save(tmp_path / "v.npy", v)
    flat = faiss.IndexFlatIP(8)
    flat.add(v)
    q, banned = spread(10, 8, seed=1), np.random.default_rng(0).random((10, len(v))) < .5
    allowed = lambda i, rows: ~banned[i][rows]
    assert scan_rows(tmp_path / "v.npy", q, 5, allowed) == top_rows(flat, q, 5, allowed)


def test_an_index_with_a_structure_keeps_the_rules(world, tmp_path):
    flat = fake_build(world, tmp_path / "flat")
    texts, ban = [r.pseudo_text for r in rows_of()[::3]], [{r.image_id} for r in rows_of()[::3]]
    rows = lambda ix: [[e.row for e in f["text"]] for f in ix.search(texts=texts, exclude=ban, exclude_copies=[ix.look(r) for r in rows_of()[::3]])]
    for factory in ("IVF4,Flat", "HNSW8", "IVF2,SQ8"):
        index = fake_build(world, tmp_path / "i", index_factory=factory, overwrite=True)
        info = json.loads((tmp_path / "i/index.json").read_text())
        manifest = json.loads((tmp_path / "i/manifest.json").read_text())
        assert info["text"]["structure"]["factory"] == factory == manifest["config"]["structure"]["image"]["factory"] and info["text"]["structure"]["chosen"] == "by the user"
        assert rows(index) == rows(flat)
        assert index.remove(["w/01"]).info["text"]["structure"]["factory"] == factory


def test_factories_that_cannot_work_are_refused_early(world, tmp_path, capsys):
    for factory, said in (("Flatt", "'Flatt'"), ("PQ5", "'PQ5'"), ("IVF500,Flat", "cannot be trained on")):
        with pytest.raises(ConfigError, match=said): fake_build(world, tmp_path / "i", index_factory=factory)
    narrow = fakes()
    narrow["text"].dim, narrow["text"].encode = 16, lambda texts: 1 / 0
    with pytest.raises(ConfigError, match="PQ3.*width 16"): EvidenceIndex.build(world.jsonl, world.root, tmp_path / "i", narrow["text"], narrow["image"], index_factory="PQ3")
    with pytest.raises(SystemExit): main([*world.flags, "--out_dir", str(tmp_path / "i"), "--index_factory", "nonsense"])
    assert "'nonsense'" in capsys.readouterr().err and not (tmp_path / "i").exists()


def test_a_gpu_nominates_and_the_file_decides(world, tmp_path, monkeypatch):
    index, moved = fake_build(world, tmp_path / "i"), []
    plain = [[(e.row, e.score) for e in f["text"]] for f in index.search(texts=["word3 word3", "word8"])]
    class Rough:
        "A flat index with noisy scores, in place of one on a GPU."
        def __init__(self, cpu): self.cpu, self.ntotal = cpu, cpu.ntotal
        def search(self, q, k): return (lambda s, r: (s + .2, r))(*self.cpu.search(q, k))
    resources = SimpleNamespace(setTempMemory=lambda size: None)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda res, device, cpu: (moved.append(device), Rough(cpu))[1], raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    again = EvidenceIndex.load(tmp_path / "i", *fakes().values())
    assert [[(e.row, e.score) for e in f["text"]] for f in again.search(texts=["word3 word3", "word8"])] == plain and moved == [1]
    def no_such(*args): raise RuntimeError("not on a GPU")
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", no_such, raising=False)
    kept = EvidenceIndex.load(tmp_path / "i", *fakes().values())
    assert [[(e.row, e.score) for e in f["text"]] for f in kept.search(texts=["word3 word3", "word8"])] == plain


def test_loading_reads_nothing_ahead(world, tmp_path):
    "No list or dictionary with an entry per document is made."
    index = fake_build(world, tmp_path / "i")
    assert isinstance(index.text_vectors, np.memmap) and isinstance(index.blank, np.memmap) and isinstance(index.row_of.table, np.memmap)
    held = [v for v in vars(index).values() if isinstance(v, (list, dict, set)) and len(v) >= N]
    assert not held and "docs" not in vars(index)


def test_ids_with_equal_hashes_are_told_apart(world, tmp_path, monkeypatch):
    import r3nb.documents as documents
    monkeypatch.setattr(documents, "id_hash", lambda image_id: 7)
    index = fake_build(world, tmp_path / "i")
    assert [index.row_of[f"w/{i:02d}"] for i in range(N)] == list(range(N)) and index.row_of.get("w/99") is None


def test_an_index_of_an_older_format_says_so(world, tmp_path):
    fake_build(world, tmp_path / "i")
    info = json.loads((tmp_path / "i/index.json").read_text())
    (tmp_path / "i/index.json").write_text(json.dumps(info | {"format": 1}))
    with pytest.raises(IndexMismatchError, match="format 1.*r3nb_index"): EvidenceIndex.load(tmp_path / "i", *fakes().values())


def test_rows_are_read_as_written(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(60, dtype="float32").reshape(20, 3))
    rows = np.random.default_rng(0).integers(0, 20, 50)
    assert np.array_equal(RowFile(tmp_path / "v.npy").take(rows), np.load(tmp_path / "v.npy")[rows])
