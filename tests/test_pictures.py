"Pictures and budgets: one limit for all families and commands, text before picture, answers without special tokens, greedy whatever the model's settings say."
import base64
import io
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import families
import numpy as np
import pytest
import tiny
import torch
from chat import Chat
from PIL import Image, ImageDraw
from test_model import CONFIG, INDEX

from r3nb import model as m
from r3nb.compare import rescore, show
from r3nb.core import ConfigError, DataError, read_json, read_jsonl, write_json, write_jsonl
from r3nb.corrupt import Corrupted
from r3nb.eval import BUDGETS, EvalConfig, budget_notes, budgets_of, evaluate, run_key, settled, sweep
from r3nb.interchange import TasksConfig, open_picture, write_tasks
from r3nb.model import FLOOR, Manner, R3Collator, R3Config, R3Model, fit_picture, foresee, make_examples, scaled_size, shown_size
from r3nb.plan import PlanConfig, backbone_config, open_model, picture_tokens
from r3nb.train import TrainConfig, build_trainer, train
from r3nb.train import main as train_main

LIMIT = 70_000


def large(i=0, size=(400, 300)):
    "A page above `LIMIT` with something on it."
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for k in range(12): draw.ellipse((7 * k, 9 * k, 60 + 9 * k, 60 + 10 * k), outline=("navy", "red", "green")[(i + k) % 3], width=3)
    return image


# one rule ------------------------------------------------------------------------------------------------------------------------------

SIZES = [(1080, 1920), (1080, 2340), (1440, 2560), (2000, 6500), (6500, 2000), (6250, 9375), (596, 842), (1, 1), (1449, 1448), (1, 5_000_000), (3_000_000, 7), (100_000, 30), (12_000, 12_000)]


@pytest.mark.parametrize("limit", [FLOOR, LIMIT, 1_000_000, 2_097_152])
@pytest.mark.parametrize("size", SIZES)
def test_a_scaled_size_keeps_limit_and_shape(size, limit):
    w, h = scaled_size(size, limit)
    if size[0] * size[1] <= limit: assert (w, h) == size; return
    assert min(w, h) >= 1 and w * h <= limit
    assert scaled_size((w, h), limit) == (w, h)
    if min(w, h) > 99:
        assert w * h > .85 * limit and abs(w - size[0] * h / size[1]) <= 1 + size[0] / size[1] and abs(h - size[1] * w / size[0]) <= 1 + size[1] / size[0]
    near = lambda side: 32 * max(1, round(side / 32))
    assert near(w) * near(h) <= limit  # as Qwen3-VL rounds it


@pytest.mark.parametrize("limit", [0, LIMIT, 2_097_152])
@pytest.mark.parametrize("ratio", [190, 5])
@pytest.mark.parametrize("size", [(1080, 1920), (1440, 2560), (2000, 6500), (596, 842), (1, 1), (1449, 1448), (20_000, 60), (60, 20_000), (3, 900)])
def test_the_canvas_keeps_the_limit_too(size, ratio, limit):
    image = Image.new("RGB", size, "navy")
    out = fit_picture(image, Manner(ratio=ratio), limit)
    assert fit_picture(out, Manner(ratio=ratio), limit) is out
    assert max(out.size) <= ratio * min(out.size) and min(out.size) >= 8
    if limit: assert out.width * out.height <= limit
    if size[0] * size[1] <= (limit or 10**9) and max(size) <= ratio * min(size) and min(size) >= 8: assert out is image


@pytest.mark.parametrize("given", [-1, 1, 4096, FLOOR - 1])
def test_absurd_limits_are_refused(given, tmp_path):
    with pytest.raises(ConfigError, match=f"max_pixels is {given}, expected 65536 or more, or 0"): R3Config(max_pixels=given)
    with pytest.raises(ConfigError, match="max_pixels"): PlanConfig("x", max_pixels=given)
    with pytest.raises(ConfigError, match="max_pixels"): budgets_of(EvalConfig(max_pixels=given))
    with pytest.raises(ConfigError, match="max_pixels"): write_tasks(TasksConfig(jsonl="x", image_root="x", out=str(tmp_path / "t"), max_pixels=given))


def test_the_command_line_refuses_them_too(capsys):
    with pytest.raises(SystemExit): train_main(["--model_name", "x", "--train_jsonl", "x", "--image_root", "x", "--max_pixels", "99"])
    assert "max_pixels is 99" in capsys.readouterr().err


# every family sees the same ------------------------------------------------------------------------------------------------------------

def example(image, text="Oslo report Total 100", config=CONFIG, i=0):
    r = tiny.records()[i]
    seen = Corrupted(image, text, r.question, .5, .5, np.ones((8, 8), "float32"), ())
    return make_examples(INDEX, [r], [seen], config, [tiny.found(i)], INDEX.vectors("image")[[i]], [(image, text, r.question)])[0]


@pytest.fixture(scope="module")
def seen_by(tmp_path_factory):
    "What the processor of a family is given for two large pictures and a small one, and the model's logits."
    root, made = tmp_path_factory.mktemp("families"), {}
    def get(family):
        if family not in made:
            torch.set_num_threads(1)
            model, config = R3Model.from_pretrained(families.backbone(family, root / family), replace(CONFIG, max_pixels=LIMIT)), replace(CONFIG, max_pixels=LIMIT)
            rows, given = [example(im, i=k) for k, im in enumerate((large(0), large(1, (90, 900)), tiny.page(2)))], []
            with pytest.MonkeyPatch.context() as mp:
                original = m.encode_turns
                mp.setattr(m, "encode_turns", lambda p, manner, texts, images: given.append(images) or original(p, manner, texts, images))
                batch = R3Collator(model.processor, config)(rows, model, teacher=True)
            with torch.no_grad(): assert model(batch).logits.isfinite().all()
            made[family] = given, rows, [x["cut"] for x in batch["meta"]]
        return made[family]
    return get


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "gemma3", "llava_next", "internvl", "smolvlm", "paligemma"])
def test_every_family_gets_the_same_pixels(seen_by, family):
    given, rows, cut = seen_by(family)
    want = [fit_picture(e.corrupted.image, Manner(), LIMIT) for e in rows]
    assert len(given) == 2 and [im.size for im in given[0]] == [im.size for im in want] and want[0].width * want[0].height <= LIMIT
    for images in given:  # the student's, and the teacher's clean ones
        assert [im.tobytes() for im in images] == [im.tobytes() for im in want]
    assert given[0][2] is rows[2].corrupted.image and cut == [["scaled"], ["scaled"], []]


def test_no_limit_is_none(tmp_path):
    collator = tiny_collator(max_pixels=0, max_tokens=100_000)
    image = large(0, (1600, 1300))
    assert collator.fitted([example(image)], [[0] * 9], collator.pictures([image], collator.manner, 0), None)[1][0].image is image


# text first, then the picture ----------------------------------------------------------------------------------------------------------

def tiny_collator(**budgets):
    "A collator whose processor takes pictures up to 16 million pixels, as the real one."
    processor = tiny.processor()
    processor.tokenizer.add_tokens(list(m.PLACEHOLDERS), special_tokens=True)
    processor.image_processor.size = {"shortest_edge": FLOOR, "longest_edge": 2**24}
    return R3Collator(processor, replace(CONFIG, **budgets))


def lengths(batch): return batch["inputs"]["attention_mask"].sum(1).tolist()


def test_text_is_shortened_before_the_picture():
    image, text = large(0, (640, 640)), "word " * 30
    free = lambda **b: tiny_collator(**b)([example(image, text)], answers=False)
    n = lengths(free())[0]
    bare = lengths(tiny_collator(own_tokens=0, evidence_tokens=0)([example(image, text)], answers=False))[0]
    tight = free(max_tokens=bare + 20)
    assert lengths(tight)[0] <= bare + 20 < n and (tight["inputs"]["input_ids"] == tiny.processor().image_token_id).sum() == 400
    assert tight["meta"][0]["cut"] == ["text", "evidence"] and "Evidence" not in tight["meta"][0]["prompt"]
    small = free(max_tokens=bare - 100)
    assert bare - 160 < lengths(small)[0] <= bare - 100 and small["meta"][0]["cut"] == ["text", "evidence", "shrunk"] and "Text" not in small["meta"][0]["prompt"]
    assert small["meta"][0]["prompt"].endswith("Question: What is the total of Oslo?")


def test_an_error_comes_when_both_are_at_the_floor():
    rest = lengths(tiny_collator(own_tokens=0, evidence_tokens=0)([example(large(0, (256, 256)))], answers=False))[0]
    least = tiny_collator(max_tokens=rest + 8)([example(large(0, (1700, 1200)))], answers=False)  # the processor makes 70 tokens of a small picture of this shape
    assert lengths(least)[0] <= rest + 8
    with pytest.raises(DataError, match=r"sample demo_train_0: \d+ tokens without any text and with a picture of \d+ x \d+ pixels.*max_tokens"):
        tiny_collator(max_tokens=rest - 20)([example(large(0, (1700, 1200)))], answers=False)


def test_shrinking_does_not_depend_on_the_batch():
    rows = [example(large(k, s), "word " * (40 * k), i=k) for k, s in enumerate(((640, 640), (300, 200), (500, 900), (96, 128)))]
    collator = tiny_collator(max_tokens=330)
    whole = collator(rows, answers=True)
    for i, row in enumerate(rows):
        alone = collator([row], answers=True)
        assert alone["meta"][0] == whole["meta"][i] and lengths(alone)[0] == lengths(whole)[i] <= 330
        assert torch.equal(alone["inputs"]["input_ids"][0], whole["inputs"]["input_ids"][i, -lengths(alone)[0]:])
    again = tiny_collator(max_tokens=330)(rows, answers=True)
    assert all(torch.equal(again["inputs"][k], whole["inputs"][k]) for k in whole["inputs"]) and "shrunk" in str([x["cut"] for x in whole["meta"]])


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_pictures_of_a_fixed_number_of_tokens_end_in_the_error(family, tmp_path):
    model = R3Model.from_pretrained(families.backbone(family, tmp_path / "b"), CONFIG)
    with pytest.raises(DataError, match="sample demo_train_0.*raise max_tokens"): R3Collator(model.processor, replace(CONFIG, max_tokens=25))([example(large())], answers=False)


# what is said beforehand ---------------------------------------------------------------------------------------------------------------

def records_of(folder, n=6, size=(400, 300), **changed):
    (folder / "raw/demo").mkdir(parents=True, exist_ok=True)
    rows = [replace(r, **changed) for r in tiny.records(n)]
    for i, r in enumerate(rows): (large(i, size) if i % 2 else tiny.page(i)).save(folder / "raw" / r.image_path)
    write_jsonl(folder / "rows.jsonl", [r.to_dict() for r in rows])
    return rows


def test_one_line_says_what_will_be_cut(tmp_path):
    rows = records_of(tmp_path)
    rows[0] = replace(rows[0], pseudo_text="word " * 90)
    line = foresee(tiny_collator(max_pixels=LIMIT, own_tokens=100), rows, tmp_path / "raw")
    assert line.startswith("3 of 6 pictures have more than 70,000 pixels") and "of all 6 records, 1 lose a part" in line and "0 may have to be shortened" in line and "\n" not in line
    assert "6 may have to be" in foresee(tiny_collator(max_tokens=150), rows, tmp_path / "raw")
    many = [replace(r, sample_id=f"{r.sample_id}_{k}") for k in range(60) for r in rows]
    assert "of 200 records among 360" in foresee(tiny_collator(), many, tmp_path / "raw")
    (tmp_path / "raw" / rows[1].image_path).write_bytes(b"no picture")
    assert foresee(tiny_collator(max_pixels=LIMIT), rows, tmp_path / "raw").startswith("2 of 5")  # the run itself says which one is broken


# answers -------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def backbone(tmp_path_factory): return tiny.backbone(tmp_path_factory.mktemp("b") / "backbone")


def training(folder, backbone, **kw):
    torch.set_num_threads(1)
    return TrainConfig(model_name=str(backbone), train_jsonl=str(folder / "rows.jsonl"), image_root=str(folder / "raw"), output_dir=str(folder / "run"), train_mode="lora",
                       **{"max_steps": 1, "batch_size": 2, "num_workers": 0, "bottleneck": 16, "heads": 2, "save_every": 1, "max_pixels": LIMIT, "report_to": ["none"]} | kw)


@pytest.mark.parametrize("answer", ["<|image_pad|>", " <|im_end|> <|r3_prefix|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_an_answer_of_special_tokens_only_is_named(tmp_path, backbone, answer):
    records_of(tmp_path, answer=answer, answers=[answer])
    with pytest.raises(DataError, match="sample demo_train_0: its answer .* special tokens only"): build_trainer(training(tmp_path, backbone))


def test_answers_are_cleaned_and_said(tmp_path, backbone, capsys):
    rows = records_of(tmp_path)
    rows[3] = replace(rows[3], answer="a<|im_end|>b<|image_pad|>", answers=["a<|im_end|>b<|image_pad|>"])
    write_jsonl(tmp_path / "rows.jsonl", [r.to_dict() for r in rows])
    last = train(training(tmp_path, backbone))
    out = capsys.readouterr().out
    assert "special tokens are taken out of the answers of 1 records: demo_train_3" in out and "3 of 6 pictures have more than 70,000" in out
    assert read_json(last / "r3_config.json")["config"]["max_pixels"] == LIMIT
    collator = tiny_collator()
    ids = collator([replace(example(tiny.page(0)), record=rows[3])])["labels"]
    assert collator.tokenizer.decode(ids[ids != -100]) == "a b<|im_end|>" and rows[3].answers == ["a<|im_end|>b<|image_pad|>"]


# training ------------------------------------------------------------------------------------------------------------------------------

def test_workers_hand_on_what_the_backbone_sees(tmp_path, backbone):
    records_of(tmp_path)
    trainer = build_trainer(training(tmp_path, backbone, disable_teacher=True, batch_size=6))
    examples = trainer.train_dataset.__getitems__(list(range(6)))
    out, evidence = trainer.collate(examples)
    for a, b in zip(examples, out, strict=True):
        assert b.clean is None and b.corrupted.image.tobytes() == fit_picture(a.corrupted.image, trainer.collator.manner, LIMIT).tobytes()
    want, got = (trainer.collator(e, evidence=evidence) for e in (examples, out))
    assert all(torch.equal(want["inputs"][k], got["inputs"][k]) for k in want["inputs"]) and want["meta"] != got["meta"]


def test_small_pictures_are_the_same_objects(tmp_path, backbone):
    records_of(tmp_path, size=(200, 300))
    trainer = build_trainer(training(tmp_path, backbone, batch_size=6))
    examples = trainer.train_dataset.__getitems__(list(range(6)))
    for a, b in zip(examples, trainer.collate(examples)[0], strict=True): assert b.corrupted.image is a.corrupted.image and b.clean[0] is a.clean[0]


def test_a_run_that_is_older_than_the_option_had_no_limit(tmp_path, backbone):
    records_of(tmp_path)
    build_trainer(training(tmp_path, backbone, max_pixels=0))
    before = read_json(tmp_path / "run/run.json")
    del before["options"]["max_pixels"]
    write_json(tmp_path / "run/run.json", before)
    build_trainer(training(tmp_path, backbone, max_pixels=0))
    with pytest.raises(ConfigError, match=f"max_pixels 0 -> {LIMIT}"): build_trainer(training(tmp_path, backbone))


# evaluation ----------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory, backbone):
    "Records with large and small pictures, and three checkpoints of the baseline: two limits, and one from before there were any."
    folder = tmp_path_factory.mktemp("world")
    records_of(folder)
    for name, limit in (("a", LIMIT), ("b", 80_000), ("old", 0)):
        config = replace(training(folder, backbone).model_config(), max_pixels=limit, own_tokens=40)
        R3Model.from_pretrained(backbone, config).save_pretrained(folder / name)
    saved = read_json(folder / "old/r3_config.json")
    del saved["config"]["max_pixels"]
    write_json(folder / "old/r3_config.json", saved)
    return folder


def evaluation(world, backbone, out, **kw):
    return EvalConfig(val_jsonl=str(world / "rows.jsonl"), image_root=str(world / "raw"), out_dir=str(out), n_boot=20,
                      **{"model_name": str(backbone), "eval_mode": ["base+text", "lora"], "lora_checkpoint_dir": str(world / "a"), "corruption_levels": [0, .5], "batch_size": 4, "max_new_tokens": 2} | kw)


def rows_of(out): return [r for _, r in read_jsonl(out / "predictions.jsonl")]


def test_all_modes_see_the_same_and_the_result_says_what(world, backbone, tmp_path, capsys, monkeypatch):
    shown, original = {}, m.encode_turns
    def watch(p, manner, texts, images):
        for t, im in zip(texts, images, strict=True): shown.setdefault(t, set()).add(im.tobytes())
        return original(p, manner, texts, images)
    monkeypatch.setattr(m, "encode_turns", watch)
    summary = evaluate(evaluation(world, backbone, tmp_path / "out"))
    err = capsys.readouterr().err
    assert "note: 3 of 6 pictures have more than 70,000 pixels" in err and "6 lose a part of their own text (own_tokens 40)" not in err and "as given" not in err
    assert {k: summary["settings"][k] for k in BUDGETS} == {"own_tokens": 40, "evidence_tokens": R3Config.evidence_tokens, "max_tokens": R3Config.max_tokens, "max_pixels": LIMIT}
    rows = rows_of(tmp_path / "out")
    assert {(r["mode"], r["sample_id"]): r["cut"] for r in rows if r["level"] == 0} == {(k, f"demo_train_{i}"): ["scaled"] * (i % 2) for k in ("base+text", "lora") for i in range(6)}
    assert all(w * h <= LIMIT for w, h in {Image.open(world / "raw" / f"demo/{i}.png").size for i in range(0, 6, 2)})
    assert sum(r["scaled"] for r in summary["cut"]) == 12 and "pictures scaled 12 (of 12)" in show(summary)
    assert rescore(tmp_path / "out/predictions.jsonl", 20)["cut"] == summary["cut"]


def test_given_values_win_and_are_said(world, backbone, tmp_path, capsys):
    cfg = evaluation(world, backbone, tmp_path / "out", own_tokens=5, max_pixels=0, corruption_levels=[0])
    summary = evaluate(cfg)
    err = capsys.readouterr().err
    assert err.count("note: own_tokens 5 and max_pixels 0 as given, where lora_checkpoint_dir was trained with own_tokens 40 and max_pixels 70000") == 1
    assert all(r["cut"] == ["text"] for r in rows_of(tmp_path / "out")) and summary["settings"]["max_pixels"] == 0 and "own text 6" in show(summary)
    assert len({run_key(settled(replace(cfg, **{b: v}))) for b in BUDGETS for v in (None, 99_999)}) == 7  # other rows may not join these


def test_checkpoints_have_to_agree(world, backbone, tmp_path):
    two = evaluation(world, backbone, tmp_path, checkpoint_dir=str(world / "b"))
    with pytest.raises(ConfigError, match="checkpoint_dir was trained with max_pixels 80000 and lora_checkpoint_dir was trained with max_pixels 70000.*give --max_pixels"): settled(two)
    assert settled(replace(two, max_pixels=LIMIT)).max_pixels == LIMIT
    assert settled(replace(two, eval_mode=["base"])).max_pixels == 80_000  # the baseline does not answer


def test_an_old_checkpoint_had_no_limit(world, backbone, tmp_path):
    cfg = evaluation(world, backbone, tmp_path, lora_checkpoint_dir=str(world / "old"))
    assert settled(cfg).max_pixels == 0 and "is older than the option max_pixels" in budget_notes(settled(cfg))[0]
    assert R3Model.load(world / "old").r3.max_pixels == 0 and R3Model.load(world / "a").r3.max_pixels == LIMIT
    assert not budget_notes(settled(evaluation(world, backbone, tmp_path)))


def test_a_bare_backbone_takes_the_options(world, backbone, tmp_path):
    cfg = evaluation(world, backbone, tmp_path / "out", eval_mode=["base", "base+text"], lora_checkpoint_dir="", own_tokens=4, max_tokens=90, max_pixels=FLOOR, corruption_levels=[0])
    sweep(cfg)
    cut = {(r["mode"], r["sample_id"][-1]): r["cut"] for r in rows_of(tmp_path / "out")}
    assert cut["base", "1"] == ["scaled"] and cut["base+text", "0"] == ["text"] and cut["base+text", "1"] == ["text", "scaled"]


def test_an_endpoint_gets_the_pixels_of_the_local_model(world, backbone, tmp_path, monkeypatch):
    local, original = set(), m.encode_turns
    for folder in (True, False):  # with the model's processor, and with nothing of it
        with Chat(["tiny"]) as server:
            sweep(evaluation(world, backbone, tmp_path / f"served{folder}", eval_mode=["base"], lora_checkpoint_dir="", endpoint=server.url, model_name="tiny", tokenizer=str(backbone) if folder else "",
                             max_pixels=LIMIT))
            urls = [part["image_url"]["url"] for a in server.log for part in a.body["messages"][0]["content"] if part["type"] == "image_url"]
        sent = {Image.open(io.BytesIO(base64.b64decode(u.split(",")[1]))).convert("RGB").tobytes() for u in urls}
        if not local:
            monkeypatch.setattr(m, "encode_turns", lambda p, manner, texts, images: local.update(im.tobytes() for im in images) or original(p, manner, texts, images))
            monkeypatch.setattr("r3nb.eval.foreseen", lambda *a: [])
            sweep(evaluation(world, backbone, tmp_path / "local", eval_mode=["base"], lora_checkpoint_dir="", max_pixels=LIMIT))
            monkeypatch.undo()
        assert len(sent) == 12 and sent <= local
        assert {tuple(r["cut"]) for r in rows_of(tmp_path / f"served{folder}")} == {(), ("scaled",)}


@pytest.mark.parametrize("named", [False, True])
def test_tasks_hold_scaled_pictures(world, backbone, tmp_path, named):
    import pyarrow.parquet as pq
    write_tasks(TasksConfig(jsonl=str(world / "rows.jsonl"), image_root=str(world / "raw"), out=str(tmp_path / "t"), text=True, max_pixels=LIMIT, own_tokens=3, model_name=str(backbone) if named else ""))
    rows = [r for f in sorted((tmp_path / "t").rglob("*.parquet")) for r in pq.read_table(f).to_pylist()]
    for r in rows:
        i = int(r["sample_id"][-1])
        want = fit_picture(Image.open(world / f"raw/demo/{i}.png").convert("RGB"), Manner(), LIMIT)
        assert open_picture(r["image"]["bytes"]).tobytes() == want.tobytes() and (len(r["prompt_text"]) < 60) == named
    assert len(rows) == 6


# greedy --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{"do_sample": True, "temperature": .7, "top_p": .8, "top_k": 20}, {"repetition_penalty": 5.}, {"no_repeat_ngram_size": 1, "min_new_tokens": 3},
                                      {"num_beams": 3, "length_penalty": 2.}])
def test_answers_are_greedy_whatever_the_model_asks_for(backbone, tmp_path, settings, caplog, recwarn):
    import shutil
    shutil.copytree(backbone, tmp_path / "b")
    path = tmp_path / "b/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    said = []
    for folder in (backbone, tmp_path / "b"):
        model = R3Model.from_pretrained(folder, CONFIG)
        batch = R3Collator(model.processor, CONFIG)([example(tiny.page(i), i=i) for i in range(3)], model, answers=False)
        with caplog.at_level(logging.WARNING): said += [model.generate(batch, 6).ids for _ in range(2)]
    assert said[0] == said[1] == said[2] == said[3]
    assert all(getattr(model.base.generation_config, k) == v for k, v in settings.items())
    assert not [r for r in caplog.records if "generation" in r.getMessage()] and not [w for w in recwarn if "temperature" in str(w.message)]


# planner -------------------------------------------------------------------------------------------------------------------------------

def test_the_planner_counts_a_large_page():
    big = backbone_config("Qwen/Qwen3-VL-8B-Instruct")
    assert [picture_tokens(big, p, 4096) for p in (2_097_152, 1_048_576, 0)] == [2048, 1024, 4095]
    assert max(np.prod([round(s / 32) for s in scaled_size(x, 2_097_152)]) for x in SIZES if x[0] * x[1] > 2_097_152) <= 2048
    cfg = PlanConfig(str(tiny_folder()), bottleneck=16)
    assert open_model(cfg, torch.float16).cfg.image_tokens == 2048 and open_model(replace(cfg, image_tokens=7), torch.float16).cfg.image_tokens == 7


def tiny_folder():
    from r3nb.mini import backbone_dir
    return backbone_dir()


def test_shown_size_says_picture_and_canvas():
    assert shown_size((20_000, 60), SimpleNamespace(ratio=190, least=8), 0) == ((20_000, 60), (20_000, 106))
