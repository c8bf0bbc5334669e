"A family of damage that is a user's own function: by import path, in every command that names families, seeded, recorded, refused when it breaks the rules"
import hashlib
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
from test_eval import Parrot
from test_eval import config as asked

from r3nb.core import ConfigError, read_json, read_jsonl, sha256_file, write_jsonl
from r3nb.corrupt import corrupt, draw_families
from r3nb.corrupt import main as gallery_main
from r3nb.eval import evaluate, sweep
from r3nb.frozen import FreezeConfig, check_conditions, freeze, verify
from r3nb.train import EvidenceConfig, TrainConfig, build_trainer, prepare_evidence, train

CODE = '''
import numpy as np

def bar(img, s, r):
    top, h = r.uniform(.2, .5), len(img)
    img[int(top*h):int((top + .5*s)*h) + 1] = DARK
    return img

def swapped(text, s, r):
    words = text.split(" ")
    for i, u in enumerate(r.random(len(words) // 2)):
        if u < s: words[2*i], words[2*i + 1] = words[2*i + 1], words[2*i]
    return " ".join(words)

def lazy(img, s, r): return img
def dice(img, s, r): return np.random.default_rng().integers(0, 255, img.shape, np.uint8)
def small(img, s, r): return img[::2]
def floats(img, s, r): return img*.5
def silent(text, s, r): return None
def broken(img, s, r): return img[s]
def other(x, s, r): return x
def short(img): return img
DARK = 20
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Records on disk, and a module of families on the path"
    d = tmp_path_factory.mktemp("own")
    (d/"raw/demo").mkdir(parents=True)
    rows = tiny.records(4)
    for i, r in enumerate(rows): tiny.page(i).save(d/"raw"/r.image_path)
    write_jsonl(d/"val.jsonl", rows)
    (d/"own_stains.py").write_text(CODE)
    sys.path.insert(0, str(d))
    yield d
    sys.path.remove(str(d))
    sys.modules.pop("own_stains", None)


BOTH = ("own_stains:bar", "own_stains:swapped")
case = lambda i=0: (tiny.records(4)[i], tiny.page(i))
mark = lambda c: hashlib.sha256(c.image.tobytes() + c.pseudo_text.encode()).hexdigest()


def test_drawn_beside_the_built_in_ones(world):
    assert draw_families("x", 0, ["own_stains:swapped", "jpeg", "own_stains:bar"]) == (("jpeg", "own_stains:bar"), ("own_stains:swapped",))
    drawn, own = draw_families("x", 0), draw_families("x", 0, ["image", "text", *BOTH])
    assert own == ((*drawn[0], BOTH[0]), (*drawn[1], BOTH[1]))


def test_seeded_nested_and_of_its_own_modality(world):
    levels = (.1, .4, .8, 1)
    done = [corrupt(*case(), v, families=BOTH) for v in levels]
    assert [mark(c) for c in done] == [mark(corrupt(*case(), v, families=BOTH[::-1])) for v in levels]
    assert all(a.c_vis > b.c_vis and a.c_text >= b.c_text for a, b in zip(done, done[1:], strict=False)) and done[0].families == BOTH
    dark = [(np.asarray(c.image) == 20).all(axis=(1, 2)) for c in done]
    assert all((b | ~a).all() for a, b in zip(dark, dark[1:], strict=False)), "the bar moves with the level"
    assert mark(done[2]) != mark(corrupt(*case(), .8, seed=1, families=BOTH)) and mark(corrupt(*case(), 0, families=BOTH)) == mark(corrupt(*case(), 0))
    record, image = case()
    assert corrupt(record, image, .8, families=BOTH[0]).pseudo_text == record.pseudo_text
    assert corrupt(record, image, .8, families=BOTH[1]).image.tobytes() == image.convert("RGB").tobytes()
    assert corrupt(record, image, .8, families="own_stains:lazy").image.tobytes() != image.convert("RGB").tobytes(), "above 0 every sample is damaged"


@pytest.mark.parametrize("name, say", [("dice", "two results for the same call"), ("small", "expected ndarray uint8 [48, 64, 3]"), ("floats", "returned ndarray float64"),
                                       ("silent", "returned NoneType"), ("broken", "failed (IndexError"), ("other", "name its first argument img or text"),
                                       ("short", "name its first argument img or text"), ("baar", "did you mean 'bar'"), ("DARK", "first argument")])
def test_functions_that_break_the_rules_are_refused(world, name, say):
    with pytest.raises(ConfigError) as e: corrupt(*case(), .5, families=f"own_stains:{name}")
    assert say in str(e.value) and "own_stains" in str(e.value)


def test_wishes_without_effect_are_refused(world):
    check_conditions(["drawn", BOTH[0]], [.5], [0], text_damage="reocr")
    for kw, say in (({"text_damage": "reocr"}, "is simulated"), ({"target": "none"}, "changes nothing")):
        with pytest.raises(ConfigError, match=say): check_conditions([BOTH[1]], [.5], [0], **kw)
    with pytest.raises(ConfigError, match="package.module:function"): check_conditions(["coffee"], [.5], [0])


def test_gallery_and_frozen_set_record_the_code(world, tmp_path):
    gallery_main([str(world/"val.jsonl"), "--image_root", str(world/"raw"), "--out", str(tmp_path/"gallery"), "--levels", "0,0.5", "--families", "text," + BOTH[0]])
    digest = sha256_file(world/"own_stains.py")
    assert digest in read_json(tmp_path/"gallery/manifest.json")["inputs"].values()
    assert all(BOTH[0] in r["families"] for _, r in read_jsonl(tmp_path/"gallery/corruption.jsonl"))
    options = FreezeConfig(str(world/"val.jsonl"), str(tmp_path/"frozen"), str(world/"raw"), levels=[0, .5], damage=["drawn", *BOTH], workers=2)
    folder = freeze(options)
    assert digest in read_json(folder/"manifest.json")["inputs"].values()
    verify(folder)
    rows = {(r["damage"], r["sample_id"]): r["image_sha256"] for _, r in read_jsonl(folder/"corruption.jsonl") if r["level"]}
    record, image = case() # what two spawned processes made is what this one makes
    assert rows[BOTH[0], record.sample_id] == hashlib.sha256(repr(image.size).encode() + corrupt(record, image, .5, families=BOTH[0]).image.tobytes()).hexdigest()


def test_evaluated_beside_the_drawn_damage_and_not_mixed_with_other_code(world, tmp_path):
    out, bird = tmp_path/"out", Parrot()
    sweep(asked(world, out), Parrot())
    summary = evaluate(asked(world, out, damage=["drawn", *BOTH]), bird)
    assert {s[1] for s in bird.seen} == {.5}, "rows of the drawn damage are kept"
    assert set(summary["damages"]) == {"drawn", *BOTH} and {r["damage"] for r in summary["by_damage"]} >= set(BOTH)
    assert sha256_file(world/"own_stains.py") in read_json(out/"manifest.json")["inputs"].values()
    source, before = (world/"own_stains.py").read_text(), (out/"predictions.jsonl").read_bytes()
    try:
        (world/"own_stains.py").write_text(source.replace("DARK = 20", "DARK = 200"))
        importlib.reload(sys.modules["own_stains"])
        with pytest.raises(ConfigError, match=r"own_stains:bar were made by other code"): sweep(asked(world, out, damage=["drawn", BOTH[0]]), Parrot())
        assert (out/"predictions.jsonl").read_bytes() == before
    finally:
        (world/"own_stains.py").write_text(source)
        importlib.reload(sys.modules["own_stains"])


def test_command_line_in_workers(world, tmp_path):
    "A worker process finds the module through PYTHONPATH; without it one sentence says what is missing"
    words = [sys.executable, "-m", "r3nb.frozen", "freeze", "--jsonl", str(world/"val.jsonl"), "--image_root", str(world/"raw"), "--levels", "0.5", "--seeds", "0,1", "--damage", BOTH[0], "--workers", "2"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(world), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([*words, "--out", str(tmp_path/"a")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path/"a/manifest.json").read_text())["rows"] == 8
    done = subprocess.run([*words, "--out", str(tmp_path/"b")], env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "cannot import 'own_stains'" in done.stderr and "Traceback" not in done.stderr


def test_trained_on(world, tmp_path):
    "Every sample gets the family, a cache is made with it, and a run whose code has changed is not gone on with"
    pages = tiny.world(tmp_path)
    options = dict(model_name=str(tiny.backbone(tmp_path/"backbone")), train_jsonl=str(pages.jsonl), image_root=str(pages.root), index_dir=str(pages.index), families=["text", BOTH[0]],
                   max_steps=2, batch_size=2, save_every=1, num_workers=0, bottleneck=16, heads=2, top_k=2, warmup_steps=1, level_sampling="max", threads=1)
    cfg = TrainConfig(**options, output_dir=str(tmp_path/"run"), val_jsonl=str(pages.jsonl), eval_every=2, val_samples=2)
    with pytest.raises(ConfigError, match="unknown corruption family 'coffee'"): replace(cfg, families=["coffee"]).check()
    trainer = build_trainer(cfg)
    seen = [trainer.train_dataset.damage(p)[2] for p in range(2, 4)]
    assert all(BOTH[0] in s.families and s.level == .8 for s in seen)
    train(cfg)
    cache = prepare_evidence(EvidenceConfig(**options, evidence_cache=str(tmp_path/"cache"), levels=[.8]))
    train(replace(cfg, evidence_cache=str(cache), output_dir=str(tmp_path/"cached")))
    with pytest.raises(ConfigError, match=r"families \['text', 'own_stains:bar'\], not \[\]; other code of families"): train(replace(cfg, families=[], evidence_cache=str(cache), output_dir=str(tmp_path/"no")))
    source = (world/"own_stains.py").read_text()
    try:
        (world/"own_stains.py").write_text(source.replace("DARK = 20", "DARK = 200"))
        with pytest.raises(ConfigError, match=r"other options \(code of families\)"): train(cfg)
        with pytest.raises(ConfigError, match="other code of families"): train(replace(cfg, evidence_cache=str(cache), output_dir=str(tmp_path/"no2")))
    finally: (world/"own_stains.py").write_text(source)
