"""Tasks for lmms-eval: the pixels, prompts and scores of r3nb_eval; folders that load on their own; and lmms-eval itself, where it is installed."""
import ast
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import test_odd_images
import yaml
from datasets import load_dataset
from PIL import Image

from r3nb import interchange as I
from r3nb.core import ConfigError, DataError, QARecord, R3Error, open_image, read_json, read_records, sha256_file, sha256_text, write_jsonl
from r3nb.frozen import Condition, FreezeConfig, FreshInputs, Pages, freeze
from r3nb.interchange import TasksConfig, write_tasks
from r3nb.metrics import METRIC_KEYS, anls, relaxed_accuracy, score, screenqa
from r3nb.model import build_prompt

ROOT = Path(__file__).parent.parent


def module(path):
    "A Python file as a module of its own, as lmms-eval imports one"
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    out = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(out)
    return out


lmms = module(ROOT/"scripts/check_lmms.py")
needs_lmms = pytest.mark.skipif(not lmms.installed(), reason="lmms-eval is not installed; run: make interchange")
PAIRS = read_json(Path(__file__).with_name("metric_pairs.json"))


class Names(yaml.SafeLoader): "YAML with functions as their names"


Names.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
read_yaml = lambda p: yaml.load(Path(p).read_text(encoding="utf-8"), Names)


def task_docs(path, cache):
    "A task file and its rows, found as lmms-eval finds them: relative to the task file"
    task = read_yaml(path)
    files = {k: str(Path(path).parent/v) for k, v in task["dataset_kwargs"]["data_files"].items()}
    return task, load_dataset(task["dataset_path"], data_files=files, cache_dir=str(cache))[task["test_split"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "30 questions in the form of ChartQA and InfoVQA, as records and as tasks for the tiny model, clean and frozen"
    d = tmp_path_factory.mktemp("interchange")
    data = lmms.questions(d, ("chartqa", "infovqa"))
    return d, data, lmms.written(d, data)


@pytest.fixture(scope="module")
def predictions(world): return lmms.ours(world[0], world[1])


def test_folders_load_on_their_own(world, predictions, tmp_path):
    "With yaml and datasets alone, after a move; prompts are r3nb_eval's own, of which some were cut"
    d, data, cfg = world
    moved = tmp_path/"moved"
    (d/"tasks").rename(moved)
    try:
        records, cut = {r.sample_id: r for r in read_records(data["jsonl"])}, 0
        for name, mine in predictions.items():
            folder = moved/"_".join(name.split("_")[:2])
            task, docs = task_docs(folder/f"{name}.yaml", tmp_path/"cache")
            utils = module(folder/"utils.py")
            assert task["task"] == name and sorted(o["sample_id"] for o in docs) == sorted(mine)
            for o in docs:
                r = records[o["sample_id"]]
                prompt = getattr(utils, task["doc_to_text"].split(".")[1])(o, task["lmms_eval_specific_kwargs"]["default"])
                assert sha256_text(prompt) == mine[r.sample_id]["prompt_sha256"]
                pixels = utils.doc_to_visual(o)[0].tobytes()
                assert (o["answers"], o["question"], json.loads(o["meta"])) == (r.answers, r.question, r.meta)
                assert (o["text"] == r.pseudo_text and pixels == open_image(Path(data["image_root"])/r.image_path).tobytes()) or o["damage"] == "drawn"
                cut += len(prompt) < len(r.pseudo_text)
        assert cut >= 8 and len(predictions) == 8 # of 120 prompts
    finally: moved.rename(d/"tasks")


def test_suffix_counts_as_in_r3nb_eval(world, tmp_path):
    "It is in the task file, not in the rows, and prompts are still those of r3nb_eval"
    suffix = "\nAnswer the question using a single word or phrase."
    write_tasks(replace(world[2], frozen="", out=str(tmp_path/"tasks"), prompt_suffix=suffix, max_eval_samples=10))
    for name, mine in lmms.ours(tmp_path, world[1], prompt_suffix=suffix, max_eval_samples=10, clean_only=True).items():
        task, docs = task_docs(tmp_path/"tasks"/name.removesuffix("_text")/f"{name}.yaml", tmp_path/"cache")
        own = {o["sample_id"]: o["prompt_text" if name.endswith("_text") else "prompt"] for o in docs}
        assert task["lmms_eval_specific_kwargs"]["default"]["post_prompt"] == suffix and not any("phrase" in p for p in own.values())
        assert {k: sha256_text(p + suffix) for k, p in own.items()} == {k: r["prompt_sha256"] for k, r in mine.items()}


def test_written_twice_is_the_same(world, tmp_path):
    d, _, cfg = world
    write_tasks(replace(cfg, out=str(tmp_path/"again")))
    files = lambda top: {p.relative_to(top).as_posix(): p.read_bytes() for p in Path(top).rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert files(tmp_path/"again") == files(d/"tasks")


def test_utils_need_only_python(world):
    tree = ast.parse((world[0]/"tasks/r3nb_chartqa/utils.py").read_text())
    top = {a.name.split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names} | {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert top and top <= sys.stdlib_module_names
    assert "r3nb" not in {a for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.module.split(".")}


@pytest.mark.parametrize("metric", sorted(set(METRIC_KEYS) - {"relaxed_accuracy", "anls"})) # these two are lmms-eval's
def test_headline_is_the_score_of_r3nb(metric):
    function, names = I.SCORES[metric]
    odd = () if metric == "screenqa" else (("ŽLUTÝ kůň…", ["žlutý kůň", "kůň"]), ("北京 市", ["北京市"]), ("", ["!"]), ("ＡＢＣ", ["abc"])) # the official score knows Latin letters only
    for said, refs in (("a red bank", ["the red bank", "bank"]), ("12 of 30 homes", ["12 homes", "thirty"]), ("no", ["yes"]), *odd):
        out = getattr(module(ROOT/"r3nb/lmms_task.py"), function)({"answers": refs}, [f" {said}\n"])
        assert set(out) == set(names) and out[names[0]] == pytest.approx(score("mine", said, refs, metric)["score"], abs=1e-12)


def test_every_metric_can_be_exported(): assert set(I.SCORES) == set(METRIC_KEYS)


@pytest.mark.parametrize("row", PAIRS["screenqa"], ids=str)
def test_screenqa_scores(row):
    out = module(ROOT/"r3nb/lmms_task.py").screenqa({"answers": row["references"]}, [row["prediction"]])
    assert (out["sqa_em"], out["sqa_f1"]) == pytest.approx(screenqa(row["prediction"].strip(), row["references"]), abs=1e-12)


def test_pixels_of_odd_pictures(tmp_path):
    "Whatever file it is, plain decoding of what is written gives the pixels of open_image"
    kept, made = [], []
    test_odd_images.zoo(tmp_path/"zoo")
    for p in sorted(p for p in (tmp_path/"zoo").iterdir() if p.is_file()):
        try: want = open_image(p)
        except R3Error: continue
        data = I.picture_bytes(p)
        assert I.open_picture(data).tobytes() == want.tobytes() and I.open_picture(data).size == want.size, p.name
        (kept if data == p.read_bytes() else made).append(p.name)
    assert len(kept) > 10 and len(made) > 3, (kept, made)


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    "A frozen set of three datasets under two damages"
    d = tmp_path_factory.mktemp("cold")
    rows = [QARecord(f"{ds}_val_{i}", ds, "val", f"p{i}", f"p{i}.png", f"what\n{i}?", "1", ["1", "one"], f"page {i} of many words", meta={"human_or_machine": 1})
            for i, ds in enumerate(("chartqa", "infovqa", "chartqa", "screenqa"))]
    for i in range(4): Image.effect_mandelbrot((64, 48), (-2, -1, 1 + i, 1), 20).convert("RGB").save(d/f"p{i}.png")
    write_jsonl(d/"val.jsonl", rows)
    return freeze(FreezeConfig(jsonl=str(d/"val.jsonl"), image_root=str(d), out=str(d/"frozen"), levels=[0, 0.2, 0.6], seeds=[0, 1],
                               damage=["drawn", "gaussian_blur"], workers=1)), rows


def test_frozen_conditions_become_tasks(cold, tmp_path):
    "One task for each dataset, condition and mode, with the inputs that are made on the fly"
    tasks = write_tasks(TasksConfig(frozen=str(cold[0]), out=str(tmp_path/"out"), text=True, name="cold"))
    assert len(tasks) == 3*(1 + 2*4)*2 and "cold_chartqa_drawn_l0_s0" in tasks
    assert tasks["cold_infovqa_gaussian_blur_l0.2_s1_text"] == {"group": "cold_infovqa_gaussian_blur_text", "top": "cold_frozen_text", "metric": "anls", "n": 1}
    task, docs = task_docs(tmp_path/"out/cold_chartqa/cold_chartqa_drawn_l0.6_s1_text.yaml", tmp_path/"cache")
    assert task["metadata"] == {"version": 1.0, "mode": "base+text", "max_pixels": 2_097_152, "dataset": "chartqa", "damage": "drawn", "level": 0.6, "seed": 1,
                                "frozen": read_json(cold[0]/"manifest.json")["fingerprint"]}
    assert [m["metric"] for m in task["metric_list"]] == ["relaxed_overall", "relaxed_augmented_split"]
    fresh = list(FreshInputs(Pages(cold[0].parent))([cold[1][0], cold[1][2]], Condition("drawn", 0.6, 1)))
    for o, d in zip(docs, fresh, strict=True):
        assert (o["sample_id"], o["text"], o["prompt_text"]) == (d.record.sample_id, d.seen.pseudo_text, build_prompt(d.seen.question, d.seen.pseudo_text))
        assert o["image"].tobytes() == d.seen.image.tobytes() != open_image(cold[0].parent/d.record.image_path).tobytes()


def test_groups(cold, tmp_path):
    tasks = write_tasks(TasksConfig(frozen=str(cold[0]), out=str(tmp_path/"out"), text=True, name="cold"))
    groups = {g["group"]: g for g in map(read_yaml, (tmp_path/"out").glob("*.yaml"))}
    assert set(groups["cold_frozen_text"]["task"]) == {f"cold_{d}_{k}_text" for d in ("chartqa", "infovqa", "screenqa") for k in ("drawn", "gaussian_blur")}
    assert sorted(t for g in groups.values() for t in g["task"] if t in tasks) == sorted(tasks)
    assert groups["cold_infovqa_drawn"]["aggregate_metric_list"] == [{"metric": "anls", "aggregation": "mean", "weight_by_size": True}]
    assert not groups.keys() & tasks.keys()


def test_clean_and_frozen_together(world, cold, tmp_path):
    cfg = replace(world[2], text=False, model_name="", frozen=str(cold[0]), out=str(tmp_path/"out"), dataset_prefixes=["chart"], max_eval_samples=4)
    tasks = write_tasks(cfg)
    assert tasks["r3nb_chartqa"]["n"] == 4 and len(tasks) == 1 + 9
    assert "prompt_text" not in pq.read_schema(tmp_path/"out/r3nb_chartqa/data/clean.parquet").names
    assert read_json(tmp_path/"out/manifest.json")["config"]["max_eval_samples"] == 4


@pytest.mark.parametrize("change, error, words", [
    ({"jsonl": "", "frozen": ""}, ConfigError, "--jsonl and --image_root, a frozen set with --frozen"), ({"image_root": ""}, ConfigError, "add --image_root"),
    ({"name": "a,b"}, ConfigError, "cannot begin the name"), ({"max_new_tokens": 0}, ConfigError, "expected 1 or more"),
    ({"dataset_prefixes": ["screen"]}, ConfigError, "no dataset starts with 'screen'"), ({"jsonl": "no.jsonl"}, DataError, "no such file"),
    ({"frozen": "nowhere"}, DataError, "no such file"), ({"model_name": "no/such/model/here"}, ConfigError, "neither a folder nor a model id")])
def test_options_that_cannot_work(world, tmp_path, change, error, words):
    with pytest.raises(error) as e: write_tasks(replace(world[2], **({"model_name": "", "frozen": ""} | change), out=str(tmp_path/"out")))
    assert words in str(e.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("datasets, metrics, words", [
    (["mine", "mine"], ["anls", "token_f1"], "several metrics"), (["a/b", "mine"], ["anls"]*2, "cannot be part of a task's name"),
    (["mine", "mine_text"], ["anls"]*2, "two tasks of that name"), (["mine", "text"], ["anls"]*2, "a task and a group of that name")])
def test_datasets_that_cannot_be_tasks(tmp_path, datasets, metrics, words):
    Image.new("RGB", (9, 9)).save(tmp_path/"p.png")
    rows = [QARecord(f"s{i}", d, "val", "p", "p.png", "what?", "x", ["x"], "", meta={"metric": m}) for i, (d, m) in enumerate(zip(datasets, metrics, strict=True))]
    write_jsonl(tmp_path/"val.jsonl", rows)
    with pytest.raises(DataError, match=words): write_tasks(TasksConfig(jsonl=str(tmp_path/"val.jsonl"), image_root=str(tmp_path), out=str(tmp_path/"out"), text=True))
    assert not (tmp_path/"out").exists()


def test_altered_frozen_set(cold, tmp_path):
    shutil.copytree(cold[0], tmp_path/"frozen")
    file = next((tmp_path/"frozen").glob("data-*.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="differ from the manifest"): write_tasks(TasksConfig(frozen=str(tmp_path/"frozen"), out=str(tmp_path/"out")))
    with pytest.raises(ConfigError, match="leave no question"): write_tasks(TasksConfig(frozen=str(cold[0]), out=str(tmp_path/"out"), dataset_prefixes=["x"]))
    assert [p.name for p in tmp_path.iterdir()] == ["frozen"]


def test_folders_of_others_are_left_alone(world, tmp_path):
    (tmp_path/"out").mkdir()
    (tmp_path/"out/thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="was not written by r3nb_tasks"): write_tasks(replace(world[2], out=str(tmp_path/"out")))
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_frozen_set_is_not_overwritten(cold):
    "It has a manifest too, but not ours"
    before = sha256_file(cold[0])
    with pytest.raises(ConfigError, match="was not written by r3nb_tasks"): write_tasks(TasksConfig(frozen=str(cold[0]), out=str(cold[0])))
    assert sha256_file(cold[0]) == before


def test_a_killed_run_leaves_the_old_folder(world, tmp_path):
    "SIGKILL while rows are written: the earlier export stays whole, and the command can be run again"
    flags = ["--jsonl", world[1]["jsonl"], "--image_root", world[1]["image_root"], "--out", str(tmp_path/"out")]
    I.main(flags)
    before = (tmp_path/"out/manifest.json").read_text()
    code = f"import os, signal, r3nb.interchange as I\nI.write_groups = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nI.main({[*flags, '--overwrite']!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path/"out/manifest.json").read_text() == before
    I.main(flags)
    assert (tmp_path/"out/r3nb.yaml").is_file()


def test_command_line(world, tmp_path, capsys):
    I.main(["--jsonl", world[1]["jsonl"], "--image_root", world[1]["image_root"], "--out", str(tmp_path/"out"), "--text", "--dataset_prefixes", "info"])
    said = capsys.readouterr().out
    assert "r3nb_infovqa_text: 15 questions, scored by anls" in said and "own text is whole" in said
    with pytest.raises(SystemExit, match="2"): I.main(["--out", str(tmp_path/"x")])
    assert "error: nothing to write" in capsys.readouterr().err


def test_committed_check_is_of_these_tasks():
    done = read_json(ROOT/"benchmarks/interchange.json")
    for r in done["tasks"]: assert r["same_prompts"] == r["same_answers"] == r["same_scores"] == r["questions"] >= 15 and abs(r["lmms_eval"] - r["r3nb_eval"]) <= 1e-6
    pinned = dict(l.split("==") for f in ("cpu.txt", "lmms.txt") for l in (ROOT/"locks"/f).read_text().split() if "==" in l)
    assert done["versions"] == {p: pinned[p] for p in done["versions"]}, "run: make interchange"


@needs_lmms
def test_lmms_eval_agrees(world, predictions):
    "Prompts, answers letter by letter, and scores to 1e-6: clean, frozen against damage made on the fly, with the page's text and without"
    found = lmms.theirs(world[0])
    rows = lmms.compared(predictions, found)
    assert {r["task"] for r in rows} == {f"r3nb_{d}{c}{m}" for d in ("chartqa", "infovqa") for c in ("", "_drawn_l0.4_s0") for m in ("", "_text")}
    for r in rows:
        assert r["same_prompts"] == r["same_answers"] == r["same_scores"] == r["questions"] == 15, r
        assert abs(r["lmms_eval"] - r["r3nb_eval"]) <= 1e-6, r
    assert len({round(r["lmms_eval"], 6) for r in rows}) > 2 and all(0 < r["lmms_eval"] < 1 for r in rows) # scores that could have differed


@needs_lmms
def test_scorers_of_lmms_eval(tmp_path):
    "lmms-eval's ANLS and relaxed accuracy on official pairs and on random ones, one by one"
    r = random.Random(0)
    some = lambda: "".join(r.choice("abé ß 0123456789.%,-$") for _ in range(r.randrange(8)))
    pairs = [(some().strip(), [some() or "x" for _ in range(r.randrange(1, 4))]) for _ in range(2000)]
    pairs += [(f"{r.uniform(-20, 120):.{r.randrange(3)}f}{r.choice(['', '%'])}", [f"{r.choice([0, 5, 20, 100])}{r.choice(['', '%'])}"]) for _ in range(1000)]
    pairs += [(p["prediction"].strip(), p.get("references") or [p["reference"]]) for k in ("anls", "relaxed_accuracy") for p in PAIRS[k]]
    (tmp_path/"pairs.json").write_text(json.dumps(pairs))
    code = ("import json, sys, importlib.util; from lmms_eval.api.metrics import anls\n"
            "spec = importlib.util.spec_from_file_location('utils', sys.argv[2]); u = importlib.util.module_from_spec(spec); spec.loader.exec_module(u)\n"
            "out = [(float(anls(refs, [said])['anls']), u.chartqa({'answers': refs, 'kind': 'human'}, [said])) for said, refs in json.load(open(sys.argv[1]))]\n"
            "json.dump(out, open(sys.argv[1] + '.out', 'w'))")
    lmms.with_lmms("-c", code, tmp_path/"pairs.json", ROOT/"r3nb/lmms_task.py")
    for (said, refs), (theirs, chart) in zip(pairs, read_json(tmp_path/"pairs.json.out"), strict=True):
        assert theirs == pytest.approx(anls(said, refs), abs=1e-9), (said, refs)
        assert chart == {"relaxed_overall": relaxed_accuracy(said, refs), "relaxed_human_split": relaxed_accuracy(said, refs)}, (said, refs)
    assert sum(c["relaxed_overall"] for _, c in read_json(tmp_path/"pairs.json.out")) > 20 # some pairs are right
