"""Evaluation: modes, one damage for all, resuming after a kill, statistics from the file, and the real model behind it."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from r3nb import eval as ev
from r3nb import frozen
from r3nb.compare import ORDER, rescore, summarise
from r3nb.core import CheckpointError, ConfigError, DataError, read_jsonl, rng, write_jsonl
from r3nb.eval import Answer, EvalConfig, evaluate, parse_mode, sweep

MAIN = ["base", "base+text"]


def DIE(part): os.abort()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Pages and records on disk, without any encoder"
    d = tmp_path_factory.mktemp("world")
    (d/"raw/demo").mkdir(parents=True)
    rows = tiny.records(8)
    for i, r in enumerate(rows):
        r.meta = {"kind": ["extractive", "visual"][i % 2], "has_sibling": i % 4 < 2}
        tiny.page(i).save(d/"raw"/r.image_path)
    write_jsonl(d/"val.jsonl", rows)
    return d


class Parrot:
    "Answers with a part of what it sees, and keeps what it was shown"
    def __init__(self): self.seen = []

    def answer(self, mode, cases, evidence):
        for c in cases: self.seen.append((mode.name, c.level, c.seed, c.record.sample_id, c.seen.image.tobytes(), c.seen.pseudo_text))
        return [Answer(c.record.answer if rng("p", mode.name, c.level, c.seed, c.record.sample_id).random() > c.level else "7", c.seen.question) for c in cases]


def config(world, out, **kw):
    return EvalConfig(model_name="none", val_jsonl=str(world/"val.jsonl"), image_root=str(world/"raw"), out_dir=str(out), n_boot=50,
                      **{"eval_mode": MAIN, "corruption_levels": [0, .5], "seeds": [0, 1], "batch_size": 3} | kw)


@pytest.mark.parametrize("name", ["", "bass", "base+tex", "r3+", "r3-", "r3+gate", "lora+random", "r3 ", "r3-gate+wrong"])
def test_unknown_modes(name):
    with pytest.raises(ConfigError): parse_mode(name)


def test_ablation_names_are_flags_of_the_model():
    from r3nb.model import R3Config
    assert set(ev.ABLATIONS.values()) < set(R3Config.__dataclass_fields__)
    for m in ("base", "base+text", "lora", "rag", "r3", *(f"r3-{a}" for a in ev.ABLATIONS)): replace(R3Config(), **ev.flags_of(parse_mode(m), EvalConfig()))


def test_tables_know_the_main_modes(): assert tuple(ev.MODES)[:len(ORDER)] == ORDER


def test_disable_flags_name_the_mode():
    cfg = EvalConfig(eval_mode=["base", "r3", "r3-gate"], disable_gate=True, disable_prefix=True)
    assert [m.name for m in ev.modes_of(cfg)] == ["base", "r3-prefix-gate", "r3-gate-prefix"]


@pytest.mark.parametrize("change, error, words", [
    ({"eval_mode": []}, ConfigError, "empty"), ({"corruption_levels": [2]}, ConfigError, "outside"), ({"seeds": []}, ConfigError, "seeds"),
    ({"batch_size": 0}, ConfigError, "batch_size is 0"), ({"workers": 0}, ConfigError, "workers is 0"), ({"eval_mode": ["rag"]}, ConfigError, "--index_dir"), ({"eval_mode": ["lora"]}, ConfigError, "--lora_checkpoint_dir"),
    ({"eval_mode": ["lora"], "lora_checkpoint_dir": "gone"}, CheckpointError, "gone"), ({"val_jsonl": "gone.jsonl"}, DataError, "gone.jsonl"),
    ({"dataset_prefixes": ["chart", "screne"]}, ConfigError, "screenqa"), ({"damage": []}, ConfigError, "damage is empty"),
    ({"damage": ["motion_blurr"]}, ConfigError, "did you mean 'motion_blur'"), ({"damage": ["image"], "corruption_levels": [.5]}, ConfigError, "level 0"),
    ({"damage": ["drawn", "truncation"], "corrupt_text_target": "none"}, ConfigError, "'truncation' changes nothing")])
def test_refused_before_any_work(world, tmp_path, change, error, words):
    cfg = replace(config(world, tmp_path/"out"), **change)
    with pytest.raises(error, match=words): sweep(cfg, Parrot())
    assert not (tmp_path/"out/predictions.jsonl").exists()


def test_every_mode_sees_the_same_damage(world, tmp_path):
    bird = Parrot()
    sweep(config(world, tmp_path/"out"), bird)
    by_mode = {m: {s[1:4]: s[4:] for s in bird.seen if s[0] == m} for m in MAIN}
    assert by_mode["base"] == by_mode["base+text"] and len(by_mode["base"]) == 8 * 3
    clean, bad = by_mode["base"][0.0, 0, "demo_train_0"], by_mode["base"][.5, 0, "demo_train_0"]
    assert clean != bad and by_mode["base"][.5, 1, "demo_train_0"] != bad
    manifest = [r for _, r in read_jsonl(tmp_path/"out/corruption.jsonl")]
    assert len(manifest) == 8 * 3 and {"families", "image_sha256", "text_sha256"} <= set(manifest[0])


def test_damages_share_the_clean_page_and_touch_what_they_name(world, tmp_path):
    bird, out = Parrot(), tmp_path/"out"
    path = sweep(config(world, out, eval_mode=["base+text"], damage=["drawn", "image", "text", "gaussian_blur"]), bird)
    rows = [r for _, r in read_jsonl(out/"corruption.jsonl")]
    assert len(rows) == 8 * (1 + 4 * 2) and len(bird.seen) == len(rows) and {r["damage"] for r in rows if r["level"] == 0} == {"drawn"}
    at = {ev.damage_key(r): r for r in rows}
    for (what, level, seed, name), r in at.items():
        clean, drawn = at["drawn", 0.0, 0, name], at["drawn", level, seed, name]
        same = lambda key, other, r=r: r[key] == other[key]
        if level: assert same("image_sha256", clean) == (what == "text") and same("text_sha256", clean) == (what in ("image", "gaussian_blur"))
        if what in ("drawn", "image"): assert same("image_sha256", drawn)
        if what in ("drawn", "text"): assert same("text_sha256", drawn)
        if what == "gaussian_blur": assert r["families"] == ["gaussian_blur"]
    predictions = [r for _, r in read_jsonl(path)]
    assert {ev.damage_key(r) for r in predictions} == set(at)


def test_pooled_numbers_are_those_of_the_drawn_damage(world, tmp_path):
    "More damages change no pooled table, and a file of before that names no damage gives the same ones"
    plain = summarise(sweep(config(world, tmp_path/"a"), Parrot()), 50)
    path = sweep(config(world, tmp_path/"b", damage=["image", "drawn", "truncation"]), Parrot())
    more = summarise(path, 50)
    for k in set(plain) - {"predictions_sha256", "n_predictions", "damages", "by_damage", "robustness_by_damage", "cut"}: assert plain[k] == more[k], k
    assert (plain["damages"], plain["by_damage"], more["damages"]) == (["drawn"], [], ["drawn", "image", "truncation"])
    rows = [r for _, r in read_jsonl(path)]
    write_jsonl(tmp_path/"old.jsonl", [{k: v for k, v in r.items() if k != "damage"} for r in rows if r["damage"] == "drawn"])
    assert summarise(tmp_path/"old.jsonl", 50)["scores"] == plain["scores"]
    curve = [r for r in more["by_damage"] if r["damage"] == "image" and r["dataset"] == "all"]
    assert [r for r in curve if r["level"] == 0] == [{"damage": "image"} | r for r in plain["scores"] if r["dataset"] == "all" and r["level"] == 0]
    mean = np.mean([r["scores"]["score"] for r in rows if r["damage"] == "image" and r["mode"] == "base"])
    assert next(r for r in curve if r["level"] == .5 and r["mode"] == "base")["estimate"] == pytest.approx(mean)


def test_a_damage_added_later_joins(world, tmp_path):
    sweep(config(world, tmp_path/"out"), Parrot())
    bird = Parrot()
    path = sweep(config(world, tmp_path/"out", damage=["drawn", "text"]), bird)
    assert len(bird.seen) == 8 * 2 * 2 and {s[1] for s in bird.seen} == {.5}
    assert path.read_bytes() == sweep(config(world, tmp_path/"fresh", damage=["drawn", "text"]), Parrot()).read_bytes()


def test_ablations_keep_to_the_drawn_damage(world, tmp_path):
    cfg = EvalConfig(eval_mode=["base"], ablation_mode=["base+text"], ablation_levels=[.6], damage=["drawn", "jpeg"])
    assert [len(ev.modes_at(cfg, .6, d)) for d in ("drawn", "jpeg")] == [2, 1]


def test_no_pseudo_text_hides_it_from_everybody(world, tmp_path):
    bird = Parrot()
    path = sweep(config(world, tmp_path/"out", no_pseudo_text=True), bird)
    assert not any(s[5] for s in bird.seen) and not any(r["text"] for _, r in read_jsonl(path))


def test_base_row_has_no_text_and_text_row_has(world, tmp_path):
    rows = [r for _, r in read_jsonl(sweep(config(world, tmp_path/"out"), Parrot()))]
    assert not any(r["text"] for r in rows if r["mode"] == "base") and all(r["text"] for r in rows if r["mode"] == "base+text" and r["level"] == 0)


def test_batch_size_does_not_matter(world, tmp_path):
    paths = [sweep(config(world, tmp_path/str(n), batch_size=n), Parrot()) for n in (1, 3, 16)]
    assert len({p.read_bytes() for p in paths}) == 1


def test_a_mode_added_later_joins(world, tmp_path):
    one, two = Parrot(), Parrot()
    sweep(config(world, tmp_path/"out", eval_mode=["base"]), one)
    sweep(config(world, tmp_path/"out"), two)
    assert {s[0] for s in two.seen} == {"base+text"}
    assert (tmp_path/"out/predictions.jsonl").read_bytes() == sweep(config(world, tmp_path/"fresh"), Parrot()).read_bytes()
    none = Parrot()
    sweep(config(world, tmp_path/"out"), none)
    assert not none.seen


def test_another_option_starts_afresh(world, tmp_path):
    sweep(config(world, tmp_path/"out"), Parrot())
    before, again = (tmp_path/"out/predictions.jsonl").read_bytes(), Parrot()
    with pytest.raises(ConfigError, match="max_new_tokens was 16, is 3.*--overwrite"): sweep(config(world, tmp_path/"out", max_new_tokens=3), again)
    assert not again.seen and (tmp_path/"out/predictions.jsonl").read_bytes() == before
    sweep(config(world, tmp_path/"out", max_new_tokens=3, overwrite=True), again)
    assert len(again.seen) == 8 * 3 * 2 and (tmp_path/"out/.replaced/predictions.jsonl").read_bytes() == before # until the evaluation is complete


def test_foreign_folder_is_left_alone(world, tmp_path):
    (tmp_path/"thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"): sweep(config(world, tmp_path), Parrot())
    assert (tmp_path/"thesis.tex").exists()


KILL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_eval import Parrot, config
from pathlib import Path
from r3nb.eval import evaluate
class Mortal(Parrot):
    def answer(self, mode, cases, evidence):
        if len(self.seen) >= {n}: os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(mode, cases, evidence)
evaluate(config(Path({world!r}), Path({out!r})), Mortal())
"""


@pytest.mark.slow
def test_killed_and_resumed(world, tmp_path):
    out = tmp_path/"out"
    for n in (10, 20):
        code = KILL.format(tests=str(Path(__file__).parent), world=str(world), out=str(out), n=n)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
        assert not (out/"predictions.jsonl").exists() and not (out/"summary.json").exists()
        part = out/"predictions.partial.jsonl"
        os.truncate(part, part.stat().st_size - 7)
    last = Parrot()
    evaluate(config(world, out), last)
    assert 0 < len(last.seen) < 48
    evaluate(config(world, tmp_path/"whole"), Parrot())
    for name in ("predictions.jsonl", "corruption.jsonl", "summary.json"): assert (out/name).read_bytes() == (tmp_path/"whole"/name).read_bytes()
    assert not list(out.glob("*.partial*"))


def test_a_torn_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path/"p.jsonl"
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(DataError, match=":2"): list(ev.read_partial(path))


def test_sample_is_stratified(world, tmp_path):
    rows = [r for _, r in read_jsonl(sweep(config(world, tmp_path/"out", max_eval_samples=4), Parrot()))]
    assert {r["dataset"] for r in rows} == {"screenqa", "chartqa"} and len({r["sample_id"] for r in rows}) == 4


def test_summary_is_of_the_file_alone(world, tmp_path):
    path = sweep(config(world, tmp_path/"out"), Parrot())
    first = summarise(path, 50)
    lines = path.read_text().splitlines()
    other = tmp_path/"shuffled.jsonl"
    other.write_text("\n".join(lines[i] for i in np.random.default_rng(0).permutation(len(lines))) + "\n")
    again = summarise(other, 50)
    for k in ("scores", "differences", "robustness"): assert json.dumps(first[k]).count("nan") == 0
    pooled = lambda s: {(r["mode"], r["level"], r["dataset"]): round(r["estimate"], 9) for r in s["scores"]}
    assert pooled(first) == pooled(again)
    rows = [r for _, r in read_jsonl(path)]
    mean = np.mean([r["scores"]["score"] for r in rows if r["mode"] == "base+text" and r["level"] == .5])
    assert pooled(first)["base+text", .5, "all"] == pytest.approx(mean)


def test_rescore_repairs_scores(world, tmp_path):
    path = sweep(config(world, tmp_path/"out"), Parrot())
    good = path.read_bytes()
    write_jsonl(path, [r | {"scores": {"score": 1.0}} for _, r in read_jsonl(path)])
    rescore(path, 50)
    assert path.read_bytes() == good


def unanswered(world, path, **meta):
    "The records of the world without their answers, as InfographicVQA's test split comes"
    rows = [r | {"dataset": "infovqa", "split": "test", "answer": "", "answers": [], "meta": {"questionId": str(100 + i)} | meta} for i, (_, r) in enumerate(read_jsonl(world/"val.jsonl"))]
    return str(write_jsonl(path, rows))


def test_questions_without_answers_only_where_asked_for(world, tmp_path):
    test = unanswered(world, tmp_path/"test.jsonl")
    with pytest.raises(DataError, match="no answers"): sweep(replace(config(world, tmp_path/"out"), val_jsonl=test), Parrot())
    with pytest.raises(DataError, match="8 of 8 records have answers"): sweep(config(world, tmp_path/"out", no_answers=True), Parrot())
    assert not (tmp_path/"out/predictions.jsonl").exists()


def test_answers_for_the_test_server(world, tmp_path):
    from r3nb.compare import SubmissionConfig, submission
    cfg = replace(config(world, tmp_path/"out", no_answers=True, eval_mode=["base"], clean_only=True), val_jsonl=unanswered(world, tmp_path/"test.jsonl"))
    class Sure(Parrot):
        def answer(self, mode, cases, evidence): return [Answer(f"it is {c.record.sample_id}", c.seen.question) for c in cases]
    summary = evaluate(cfg, Sure())
    rows = [r for _, r in read_jsonl(tmp_path/"out/predictions.jsonl")]
    assert summary["answered"] is False and summary["scores"] == [] and len(rows) == 8 and all(r["scores"] == {} for r in rows)
    assert json.loads((tmp_path/"out/examples/examples.json").read_text())["cases"] == []
    entries = submission(SubmissionConfig(str(tmp_path/"out/predictions.jsonl"), out=str(tmp_path/"send.json")))
    assert entries == json.loads((tmp_path/"send.json").read_text()) and {e["questionId"]: e["answer"] for e in entries} == {int(r["meta"]["questionId"]): r["prediction"] for r in rows}
    assert [e["questionId"] for e in entries] == list(range(100, 108)) and all(list(e) == ["questionId", "answer"] for e in entries)


def test_settings_stand_beside_every_score(world, tmp_path):
    said = evaluate(config(world, tmp_path/"out", prompt_suffix=" One word.", max_new_tokens=5), Parrot())["settings"]
    assert (said["prompt_suffix"], said["max_new_tokens"], said["dtype"], said["decoding"], said["depends_on_batch_size"]) == (" One word.", 5, "float32", "greedy", False)
    assert said["versions"]["torch"] and said["content"]["val_jsonl"] and not {"out_dir", "batch_size", "val_jsonl", "image_root"} & set(said)
    assert str(tmp_path) not in json.dumps(said) and str(world) not in json.dumps(said)
    rescore(tmp_path/"out/predictions.jsonl", 50)
    assert json.loads((tmp_path/"out/summary.json").read_text())["settings"] == said


def test_the_suffix_on_record_is_the_one_in_the_prompt(world, tmp_path):
    "A checkpoint brings its own suffix, unless the option names another; two checkpoints may differ"
    for name, suffix in (("r3", " Briefly."), ("lora", " Shortly.")):
        (tmp_path/name).mkdir()
        (tmp_path/name/"r3_config.json").write_text(json.dumps({"config": {"suffix": suffix}}))
    cfg = config(world, tmp_path/"out", checkpoint_dir=str(tmp_path/"r3"))
    assert ev.suffix_of(cfg) == " Briefly." and ev.suffix_of(replace(cfg, prompt_suffix="!")) == "!"
    assert ev.suffix_of(replace(cfg, lora_checkpoint_dir=str(tmp_path/"lora"))) == {"checkpoint_dir": " Briefly.", "lora_checkpoint_dir": " Shortly."}


def test_command_line(world, tmp_path):
    run = lambda *a: subprocess.run([sys.executable, "-m", "r3nb.eval", *a], capture_output=True, text=True, cwd=tmp_path)
    help = run("--help")
    assert help.returncode == 0
    for flag in ("--eval_mode", "--clean_only", "--corruption_levels", "--no_pseudo_text", "--corrupt_text_target", "--checkpoint_dir", "--model_name", "--val_jsonl",
                 "--image_root", "--index_dir", "--max_eval_samples", "--out_json", "--disable_text_retrieval", "--disable_image_retrieval", "--disable_prefix", "--disable_gate"):
        assert flag in help.stdout, flag
    wrong = run("--eval_mode", "bsae", "--model_name", "m", "--val_jsonl", str(world/"val.jsonl"), "--image_root", str(world/"raw"))
    assert wrong.returncode == 2 and "base" in wrong.stderr and "Traceback" not in wrong.stderr
    path = sweep(config(world, tmp_path/"out"), Parrot())
    again = run("--rescore", str(path), "--n_boot", "20", "--out_json", "s.json")
    assert again.returncode == 0 and "| base+text |" in again.stdout and (tmp_path/"s.json").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "A tiny random backbone, an index, and a checkpoint"
    from r3nb.model import R3Config, R3Model
    d = tmp_path_factory.mktemp("real")
    w = tiny.world(d, 8)
    w.backbone = tiny.backbone(d/"backbone")
    R3Model.from_pretrained(w.backbone, R3Config(image_dim=24, n_prefix=2, n_memory=2, n_latent=1, bottleneck=16)).save_pretrained(d/"ckpt")
    w.ckpt, w.dir = d/"ckpt", d
    return w


def real_config(w, out, **kw):
    return EvalConfig(model_name=str(w.backbone), val_jsonl=str(w.jsonl), image_root=str(w.root), index_dir=str(w.index), checkpoint_dir=str(w.ckpt),
                      lora_checkpoint_dir=str(w.ckpt), out_dir=str(out), seeds=[3], n_boot=20, max_new_tokens=3, **kw)


def test_real_model_all_modes_any_batch(real, tmp_path):
    modes = ["base", "base+text", "lora", "rag", "r3", "r3+shuffled", "r3+random", "r3-soft_prefix", "r3-text_retrieval", "rag+random"]
    for n in (1, 4): evaluate(real_config(real, tmp_path/str(n), eval_mode=modes, corruption_levels=[.6], batch_size=n))
    rows, other = ([r for _, r in read_jsonl(tmp_path/n/"predictions.jsonl")] for n in "14")
    assert rows == other
    by = lambda m: [r for r in rows if r["mode"] == m]
    assert all(r["evidence"] == [] and r["gates"] is None for m in ("base", "base+text", "lora") for r in by(m))
    assert all(r["gates"] and r["confidence"]["true_vis"] < 1 for r in by("r3")) and all(r["evidence"] for r in by("rag"))
    assert {e["channel"] for r in by("r3-text_retrieval") for e in r["evidence"]} == {"image"}
    assert not any(e["image_id"] == r["image_id"] for r in rows for e in r["evidence"])
    assert [r["evidence"] for r in by("r3+shuffled")] != [r["evidence"] for r in by("r3")]


@pytest.mark.slow
def test_workers_do_not_change_the_answers(real, tmp_path, monkeypatch):
    monkeypatch.setattr(ev, "BLOCK", 3)
    options = dict(eval_mode=["base+text", "r3", "r3+random"], corruption_levels=[0, .6], ablation_mode=["r3-selection"], threads=1)
    alone = sweep(real_config(real, tmp_path/"1", **options))
    shared = sweep(real_config(real, tmp_path/"2", workers=2, **options))
    assert alone.read_bytes() == shared.read_bytes()
    assert (tmp_path/"1/corruption.jsonl").read_bytes() == (tmp_path/"2/corruption.jsonl").read_bytes()


TEAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_eval import Parrot, config
from pathlib import Path
from r3nb import eval as ev
from r3nb import frozen
ev.BLOCK = 2
class Mortal(Parrot):
    def answer(self, mode, cases, evidence):
        if len(self.seen) >= {n}: os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(mode, cases, evidence)
with ev.team() as us:
    summary = ev.evaluate(config(Path({world!r}), Path({out!r})), Mortal(), us)
    assert (summary is not None) == us.leads
"""


def torchrun(n, *words, **env):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", *map(str, words)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | env)


@pytest.mark.slow
def test_any_number_of_processes_and_a_kill_between(world, tmp_path, monkeypatch):
    "Two processes are killed, three go on; the files are those of one"
    out = tmp_path/"out"
    for n, deadly in ((2, 7), (3, 10**6)):
        (tmp_path/"go.py").write_text(TEAM.format(tests=str(Path(__file__).parent), world=str(world), out=str(out), n=deadly))
        done = torchrun(n, tmp_path/"go.py")
        assert (done.returncode == 0) == (n == 3), done.stderr[-2000:]
        if n == 2: assert list(out.glob("predictions.partial*.jsonl")) and not (out/"predictions.jsonl").exists()
    monkeypatch.setattr(ev, "BLOCK", 2)
    evaluate(config(world, tmp_path/"whole"), Parrot())
    for name in ("predictions.jsonl", "corruption.jsonl", "summary.json"): assert (out/name).read_bytes() == (tmp_path/"whole"/name).read_bytes()
    assert not list(out.glob("*.partial*"))


@pytest.mark.slow
def test_torchrun_command(real, tmp_path):
    options = dict(eval_mode=["base+text", "r3"], corruption_levels=[0, .6], threads=1)
    words = ["--eval_mode", "base+text,r3", "--corruption_levels", "0,0.6", "--seeds", "3", "--max_new_tokens", "3", "--n_boot", "20", "--threads", "1"]
    paths = {"model_name": real.backbone, "val_jsonl": real.jsonl, "image_root": real.root, "index_dir": real.index, "checkpoint_dir": real.ckpt, "out_dir": tmp_path/"2"}
    done = torchrun(2, "-m", "r3nb.eval", *words, *(str(x) for k, v in paths.items() for x in (f"--{k}", v)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| r3 |") == 1
    assert (tmp_path/"2/predictions.jsonl").read_bytes() == sweep(real_config(real, tmp_path/"1", **options)).read_bytes()
    both = torchrun(2, "-m", "r3nb.eval", *words, "--workers", "2", *(str(x) for k, v in paths.items() for x in (f"--{k}", v)))
    assert both.returncode and "leave out --workers" in both.stderr


def test_pictures_are_decoded_and_prepared_once(real, tmp_path, monkeypatch):
    "Two seeds at one level, three modes of one model: each page is opened once, each batch of damaged pages prepared once"
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    opened, prepared, whole = [], [], frozen.open_image
    monkeypatch.setattr(frozen, "open_image", lambda p: opened.append(str(p)) or whole(p))
    make = Qwen2VLImageProcessor.__call__
    monkeypatch.setattr(Qwen2VLImageProcessor, "__call__", lambda self, images, **kw: prepared.append(images) or make(self, images, **kw))
    cfg = replace(real_config(real, tmp_path/"o", eval_mode=["base", "base+text", "r3"], corruption_levels=[.6], batch_size=4), seeds=[3, 4])
    sweep(cfg)
    calls = [tuple(id(im) for row in images for im in row) for images in prepared]
    assert len(opened) == len(set(opened)) == 8 and len(calls) == len(set(calls)) and sum(len(c) == 4 for c in calls) == 2 * 2


def test_kept_pages_stay_within_their_budget(world):
    rows = tiny.records(8)
    size = lambda r: 3 * (lambda im: im.width * im.height)(ev.open_image(world/"raw"/r.image_path))
    pages = ev.Pages(world/"raw", sum(map(size, rows[:2])))
    for _ in range(2):
        for r in rows: assert pages.open(r.image_path).tobytes() == ev.open_image(world/"raw"/r.image_path).tobytes()
    assert set(pages.kept) <= {r.image_path for r in rows} and pages.room >= 0 and len(pages.kept) >= 1
    pages.turn_to(rows[4:])
    assert not pages.kept.keys() & {r.image_path for r in rows[:4]} - {r.image_path for r in rows[4:]}


@pytest.mark.slow
def test_a_dead_worker_is_an_error_and_costs_only_its_part(real, tmp_path, monkeypatch):
    from r3nb.core import WorkerError
    options = dict(eval_mode=["base", "base+text"], corruption_levels=[0, .6], threads=1)
    monkeypatch.setattr(ev, "_at_desk", DIE)
    with pytest.raises(WorkerError, match="run again"): sweep(real_config(real, tmp_path/"out", workers=2, **options))
    assert not (tmp_path/"out/predictions.jsonl").exists()
    monkeypatch.undo()
    assert sweep(real_config(real, tmp_path/"out", **options)).read_bytes() == sweep(real_config(real, tmp_path/"whole", **options)).read_bytes()


def test_base_is_the_plain_backbone(real, tmp_path):
    "Mode base answers exactly as transformers alone does"
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    rows = {r["sample_id"]: r for _, r in read_jsonl(sweep(real_config(real, tmp_path/"o", eval_mode=["base", "base+text"], corruption_levels=[0])))}
    plain = {}
    for _, r in read_jsonl(tmp_path/"o/predictions.jsonl"): plain.setdefault(r["mode"], {})[r["sample_id"]] = r["prediction"]
    model, proc = AutoModelForImageTextToText.from_pretrained(real.backbone).eval(), AutoProcessor.from_pretrained(real.backbone)
    for i, r in enumerate(real.records[:3]):
        for mode, said in (("base", f"Question: {r.question}"), ("base+text", f"Text: {r.pseudo_text}\nQuestion: {r.question}")):
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said}]}]
            batch = proc(text=[proc.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)], images=[tiny.page(i)], return_tensors="pt")
            with torch.no_grad(): out = model.generate(**batch, max_new_tokens=3, do_sample=False)
            assert proc.tokenizer.decode(out[0, batch["input_ids"].shape[1]:], skip_special_tokens=True).strip() == plain[mode][r.sample_id]
    assert rows


def test_without_a_folder_each_run_has_its_own(world, tmp_path, monkeypatch, capsys):
    "The first is in `eval`; another one goes beside it, the same one goes on where it was"
    monkeypatch.chdir(tmp_path)
    first = sweep(config(world, ""), Parrot())
    assert first.as_posix() == "eval/predictions.jsonl" and not capsys.readouterr().err.count("note: eval holds")
    had = first.read_bytes()
    bird = Parrot()
    other = sweep(config(world, "", max_new_tokens=7), bird)
    assert other.as_posix() == "eval-2/predictions.jsonl" and bird.seen and "note: eval holds other results, which stay; these are in eval-2" in capsys.readouterr().err
    for kw, place in (({}, "eval"), ({"max_new_tokens": 7}, "eval-2")):
        again = Parrot()
        assert sweep(config(world, "", **kw), again).parent.as_posix() == place and not again.seen
    fewer = sweep(config(world, "", corruption_levels=[0.0]), Parrot()) # would drop finished answers
    assert fewer.parent.as_posix() == "eval-3" and first.read_bytes() == had
