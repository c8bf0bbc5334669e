"Commands: the words of other programs, precision, room and devices, the length of a training, paths that are looked at first, validation, unreadable pictures."
import importlib
import json
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

import r3nb.room as room
import r3nb.train as T
from r3nb.core import CheckpointError, ConfigError, DataError, ImageError, from_dict, parse_cli, picture_of, read_json, read_records, write_json
from r3nb.data import UnifyConfig, dataset_spec
from r3nb.download import DownloadConfig
from r3nb.eval import EvalConfig, Readers, check_config, check_models, eval_records, evaluate, with_dtype
from r3nb.evidence import fill_block
from r3nb.hardware import BF16
from r3nb.model import R3Config, R3Model, make_examples, saved_dtype
from r3nb.room import Room, check_load, check_room, pick_dtype, read_device_map, weights_in
from r3nb.train import TrainConfig, TrainSet, amount, build_trainer, check_fit, passed_on, prepare_evidence, train, weight_bytes, with_steps
from r3nb.words import BY_NAME, BY_SENTENCE, HOMES, SAME, called, close_name, hint, joined

# words ---------------------------------------------------------------------------------------------------------------------------------

COMMANDS = {"r3nb_train": ("train", "TrainConfig"), "r3nb_evidence": ("train", "EvidenceConfig"), "r3nb_eval": ("eval", "EvalConfig"), "r3nb_plan": ("plan", "PlanConfig"),
            "r3nb_check": ("model", "CheckConfig"), "r3nb_export": ("export", "ExportConfig"), "r3nb_download": ("download", "DownloadConfig"), "r3nb_models": ("download", "ModelsConfig"),
            "r3nb_ocr": ("ocr", "OCRConfig"), "r3nb_unify": ("data", "UnifyConfig"), "r3nb_merge": ("data", "MergeConfig"), "r3nb_index": ("indices", "IndexConfig"),
            "r3nb_audit": ("audit", "AuditConfig"), "r3nb_compare": ("compare", "CompareConfig"), "r3nb_submission": ("compare", "SubmissionConfig"),
            "r3nb_corrupt": ("corrupt", "CorruptConfig"), "r3nb_corrupt freeze": ("frozen", "FreezeConfig"), "r3nb_corrupt verify": ("frozen", "VerifyConfig"), "r3nb_tasks": ("interchange", "TasksConfig"),
            "r3nb_study run": ("study", "StudyConfig"), "r3nb_study clean": ("study", "CleanConfig"), "r3nb_mini world": ("mini", "WorldConfig"), "r3nb_mini pretrain": ("mini", "PretrainConfig")}
OLD = ["learning_rate", "corruption_warmup_steps", "gate_conf_weight", "lora_lr_mult", "answer_only", "max_train_steps", "lambda_consistency", "lambda_entropy", "lambda_reconstruction",
       "clip_model", "save_steps", "eval_steps", "num_train_epochs", "gradient_accumulation_steps", "val_every", "warmup_ratio"]


def options(command):
    module, name = COMMANDS[command]
    return getattr(importlib.import_module(f"r3nb.{module}"), name)


def names(command): return [f.name for f in fields(options(command)) if f.init]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_answer_to_words_of_the_old_pipeline(command, capsys):
    words = [w for w in OLD if w not in names(command)]
    with pytest.raises(SystemExit) as e: parse_cli(options(command), [x for w in words for x in (f"--{w.replace('_', '-')}", "1")], command, rest="trainer" if command in ("r3nb_train", "r3nb_evidence") else None)
    said = dict(part.split(": ", 1) for part in capsys.readouterr().err.split("error: ")[1].replace("; unknown", "\nunknown").splitlines())
    assert e.value.code == 2 and list(said) == [f"unknown option --{w}" for w in words]
    assert not any("lr_warmup_steps" in v for k, v in said.items() if "warmup_ratio" not in k)
    for word in words:
        with pytest.raises(ConfigError, match=word) as e: from_dict(options(command), {word: 1}, "a.yaml")
        assert hint(word, names(command)) in str(e.value)


@pytest.mark.parametrize("word, name", [
    ("learning_rate", "lr"), ("num_train_epochs", "num_epochs"), ("corruption_warmup_steps", "warmup_steps"), ("gate_conf_weight", "lambda_gate"), ("max_train_steps", "max_steps"),
    ("per_device_train_batch_size", "batch_size"), ("per_device_eval_batch_size", "batch_size"), ("save_steps", "save_every"), ("eval_steps", "eval_every"), ("retrieval_topk", "top_k"), ("output_file", "output_dir"),
    ("warmup_ratio", "lr_warmup_steps"), ("lambda_consistency", "lambda_cons"), ("lambda_confidence", "lambda_conf"), ("lora_rank", "lora_r"), ("model_path", "model_name"), ("train_file", "train_jsonl"),
    ("validation_file", "val_jsonl"), ("maxSteps", "max_steps"), ("Batch-Size", "batch_size"), ("max_step", "max_steps"), ("use_lorra", "use_lora"), ("steps_max", "max_steps")])
def test_training_knows_what_is_meant(word, name):
    assert f"{name} here" in (said := hint(word, names("r3nb_train"))) or f"'{name}'" in said


@pytest.mark.parametrize("command, word, said", [
    ("r3nb_eval", "retrieval_topk", "called top_k"), ("r3nb_eval", "output_file", "called out_json"), ("r3nb_eval", "output_dir", "called out_dir"), ("r3nb_eval", "learning_rate", "it is lr, an option of r3nb_train"),
    ("r3nb_eval", "checkpoint", "called checkpoint_dir"), ("r3nb_eval", "levels", "r3nb_evidence"), ("r3nb_eval", "corruption_level", "called corruption_levels"), ("r3nb_index", "clip_model", "called image_encoder"),
    ("r3nb_train", "clip_model", "image_encoder of r3nb_index"), ("r3nb_index", "val_jsonl", "called jsonl"), ("r3nb_download", "workers", "called num_proc"), ("r3nb_models", "model_name", "called backbone"),
    ("r3nb_ocr", "image_root", "called image_dir"), ("r3nb_corrupt", "output_dir", "called out"), ("r3nb_train", "dtype", "fp16 or bf16"), ("r3nb_export", "max_steps", "an option of r3nb_train")])
def test_other_commands_know_too(command, word, said): assert said in hint(word, names(command))


@pytest.mark.parametrize("word", ["flux_capacitor", "test", "min_steps", "warmup", "lambda_cond", "train", "x", "save", "no", "lr_steps", "bottle", "image_tau", "text", "max_corruptions_per_page"])
def test_nothing_rather_than_something_wrong(word):
    for command in COMMANDS:
        if word in names(command): continue
        said = hint(word, names(command))
        assert not said.startswith("did you mean") or joined(word).startswith(joined(said.split("'")[1])[:4]) and len(joined(word)) > 3, (command, said)
    assert close_name("corruption_warmup_steps", names("r3nb_train")) == "" and close_name("lambda_cond", names("r3nb_train")) == ""


def test_the_table_speaks_of_options_that_exist():
    every = {n for c in COMMANDS for n in names(c)} | {"modes", "max_pixels", "overwrite"}
    assert {n for row in SAME for n in row.split()} <= every
    for home, own in HOMES.items(): assert set(own.split()) <= set(names(home)), home
    for command in COMMANDS: # a word never means two things, and no option is another one's word for itself
        for n in names(command): assert called(n, [n]) in ("", n)
    ours = {f.name for f in fields(TrainConfig)}
    passed = {f.name for f in fields(TrainingArguments) if f.init} - ours
    for n in passed: # what is handed on to the Trainer is not taken for a word of ours, unless it does the same
        if called(n, ours): assert n in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps",
                                         "dataloader_num_workers", "activation_checkpointing", "deepspeed", "fsdp", "fsdp_config", "resume_from_checkpoint", "warmup_ratio"), n
        assert joined(n) not in BY_SENTENCE
    with pytest.raises(ConfigError, match="called eval_every here"): passed_on({"eval_steps": 3})
    assert BY_NAME["gateconfweight"] == ["lambda_gate"]


def test_a_dash_too_few(capsys):
    for words, said in ((["-learning_rate", "1"], "two dashes: --lr"), (["--model_nam", "x"], "did you mean 'model_name'"), (["--train_file", "x"], "called train_jsonl")):
        with pytest.raises(SystemExit): parse_cli(options("r3nb_eval") if said != "called train_jsonl" else TrainConfig, words, "r3nb", None)
        assert said in capsys.readouterr().err or said == "two dashes: --lr"


@pytest.mark.parametrize("name", ["infographicvqa", "InfographicVQA", "infographic_vqa", "infovqa"])
def test_infographicvqa_is_infovqa(name, tmp_path):
    (tmp_path / "infovqa_raw_val.jsonl").write_text("{}\n")
    assert dataset_spec(name).name == DownloadConfig(name, out_dir="x").dataset == UnifyConfig(name, str(tmp_path), "y").dataset == "infovqa"


# precision -----------------------------------------------------------------------------------------------------------------------------

def gpu(monkeypatch, capability=(8, 0), count=1, free=31e9, total=34e9):
    "Pretend that this machine has GPUs."
    told = {"is_available": True, "device_count": count, "get_device_capability": capability, "get_device_name": "a GPU", "mem_get_info": (int(free), int(total)), "memory_reserved": 0, "memory_allocated": 0}
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**37, total=2**38))
    monkeypatch.setattr(room, "container", lambda: None)
    for k, v in told.items(): monkeypatch.setattr(torch.cuda, k, lambda *_, v=v: v)


@pytest.mark.parametrize("capability, want", [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_precision_without_a_checkpoint(capability, want, monkeypatch):
    assert with_dtype(EvalConfig()).dtype == "float32"
    gpu(monkeypatch, capability)
    assert with_dtype(EvalConfig()).dtype == want and with_dtype(EvalConfig(device="cpu")).dtype == "float32" and with_dtype(EvalConfig(dtype="float16")).dtype == "float16"
    if capability < BF16:
        with pytest.raises(ConfigError, match="bfloat16, and cuda:0 .sm_7"): pick_dtype("auto", "cuda:0", {"c": "bfloat16"})


def checkpoint(folder, **how):
    write_json(folder / "r3_config.json", {"config": {}} | {k: v for k, v in how.items() if k == "dtype"})
    if "dtype" not in how: write_json(folder / "train_config.json", how)
    return str(folder)


@pytest.mark.parametrize("how, want", [({"dtype": "bfloat16"}, "bfloat16"), ({"fp16": True}, "float16"), ({"bf16": True}, "bfloat16"), ({"fp16": False}, "float32")])
def test_precision_of_the_checkpoint(how, want, tmp_path):
    cfg = EvalConfig(checkpoint_dir=checkpoint(tmp_path / "a", **how), eval_mode=["base", "r3"])
    assert with_dtype(cfg).dtype == saved_dtype(tmp_path / "a") == want and with_dtype(replace(cfg, dtype="float32")).dtype == "float32"
    both = replace(cfg, lora_checkpoint_dir=checkpoint(tmp_path / "b", dtype="float16"), eval_mode=["base", "lora", "r3"])
    if want == "float16": assert with_dtype(both).dtype == "float16"
    else:
        with pytest.raises(ConfigError, match="all modes of a run have to share one precision"): with_dtype(both)
    assert with_dtype(replace(both, eval_mode=["base", "r3"])).dtype == want  # a checkpoint that no mode uses has no say


# room ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cfg(place, tmp_path):
    return TrainConfig(model_name=str(place.backbone), train_jsonl=str(place.jsonl), image_root=str(place.root), index_dir=str(place.index),
                       output_dir=str(tmp_path / "run"), max_steps=2, batch_size=2, warmup_steps=1, save_every=2, log_every=1, num_workers=0, threads=1, disable_teacher=True,
                       bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2, lr=1e-3, module_lr=1e-2, lr_warmup_steps=1, report_to=["none"])


@pytest.fixture
def asked(place):
    return EvalConfig(model_name=str(place.backbone), val_jsonl=str(place.jsonl), image_root=str(place.root), index_dir=str(place.index), eval_mode=["base", "rag"], clean_only=True, max_eval_samples=2,
                      max_new_tokens=2, n_boot=20, threads=1)


def small(monkeypatch, gb, name="this machine"): monkeypatch.setattr(room, "memory", lambda device="cpu": Room(name, gb, gb)) or monkeypatch.setattr(T, "memory", room.memory)


def test_counts_are_the_models(place):
    w = weights_in(place.backbone)
    model = R3Model.from_pretrained(place.backbone, R3Config(lora_r=4))
    own = [p for n, p in model.backbone.named_parameters() if "lora_" not in n]
    assert w.total == sum(p.numel() for p in own) and w.stored == {"float32"}
    assert w.lora(4, R3Config().lora_targets) == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert w.vision == sum(p.numel() for n, p in model.backbone.named_parameters() if "visual" in n)


def test_the_arithmetic_is_the_planners(place):
    "Frozen weights, gradients and moments of what trains, and the teacher, as r3nb_plan counts them for one GPU."
    from r3nb.hardware import parse_gpus
    from r3nb.plan import PlanConfig, budget, open_model
    m = open_model(PlanConfig(str(place.backbone), bottleneck=16, lora_r=8, disable_teacher=True, max_tokens=64, image_tokens=16), torch.float16)
    w = weights_in(place.backbone)
    for method, lora in (("LoRA", True), ("full", False)):
        plan = budget(m, method, "ddp", parse_gpus("1x32GB"))[0]
        ours = weight_bytes(TrainConfig(model_name="m", train_jsonl="t", image_root="i", fp16=True, use_lora=lora, disable_teacher=True), w)
        small_ = 16 * m.modules # the reconstruction modules, which are not counted here
        assert sum(ours.values()) == pytest.approx(plan["weights"] + plan["gradients"] + plan["optimizer"] - small_, rel=1e-6)


@pytest.mark.parametrize("run", ["train", "eval", "check", "export", "from_pretrained"])
def test_weights_that_cannot_fit_are_refused_before_they_are_read(run, cfg, asked, tmp_path, monkeypatch, capsys):
    from r3nb.export import main as export
    from r3nb.model import main as check
    ckpt = tmp_path / "ckpt"
    ckpt.mkdir()
    write_json(ckpt / "r3_config.json", {"config": {}, "backbone": cfg.model_name, "backbone_sha256": ""})
    small(monkeypatch, 1e5)
    for module in ("export", "model"): monkeypatch.setattr(importlib.import_module(f"r3nb.{module}"), "memory", room.memory, raising=False)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", lambda *a, **k: pytest.fail("the weights were read"))
    said = r"billion weights.*needs \d+\.\d GB.*this machine has 0\.0 GB free of 0\.0 GB"
    if run in ("check", "export"):
        main, words = (check, ["--model_name", cfg.model_name]) if run == "check" else (export, ["--checkpoint_dir", str(ckpt), "--full", "--out", str(tmp_path / "full")])
        with pytest.raises(SystemExit) as e: main(words)
        assert e.value.code == 2 and "this machine has 0.0 GB free" in capsys.readouterr().err
        return
    with pytest.raises(ConfigError, match=said):
        if run == "train": build_trainer(cfg)
        elif run == "eval": evaluate(replace(asked, out_dir=str(tmp_path / "out")))
        else: R3Model.from_pretrained(cfg.model_name)


BIG = room.Weights({"model.embed_tokens.weight": (151936, 4096), "lm_head.weight": (151936, 4096), "model.visual.w": (1, 500_000_000), "model.layers.0.self_attn.q_proj.weight": (4096, 1_714_599)}, {"bfloat16"})  # 8.77 billion


@pytest.mark.parametrize("change, capability, says", [
    (dict(), (7, 0), r"8\.7\d billion weights in float32, LoRA, needs 35\.\d GB.*--fp16 \(17\.\d GB\).*--fp16 --load_in_4bit \("), (dict(), (9, 0), r"--bf16 \(17\.\d GB\)"),
    (dict(fp16=True, use_lora=False), (7, 0), r"trained in full, needs 1\d\d\.\d GB \(weights 3\d.*gradients 3\d.*optimizer 6\d.*what would fit: --use_lora \(17")])
def test_the_sentence_says_what_would_fit(change, capability, says, place, monkeypatch):
    gpu(monkeypatch, capability)
    monkeypatch.setattr(T, "weights_in", lambda folder: BIG)
    cfg = TrainConfig(model_name=str(place.backbone), train_jsonl="t", image_root="i", disable_teacher=True, **change)
    with pytest.raises(ConfigError, match=says): check_fit(cfg)
    check_fit(replace(cfg, fp16=True, use_lora=True))
    gpu(monkeypatch, capability, count=4)
    with pytest.raises(ConfigError, match="--backend fsdp on 4 GPUs.*--device_map auto" if not change else "nothing|fsdp on 4 GPUs|--use_lora"): check_fit(cfg)
    check_fit(replace(cfg, device_map="auto", use_lora=True))  # four GPUs hold it in float32


def test_a_run_with_two_checkpoints_holds_two_models(asked, tmp_path, monkeypatch):
    a, b = (checkpoint(tmp_path / k, dtype="float16") for k in "ab")
    gpu(monkeypatch, (7, 0))
    monkeypatch.setattr(room, "weights_in", lambda folder: BIG)
    run = replace(asked, checkpoint_dir=a, lora_checkpoint_dir=b, eval_mode=["base", "lora", "r3"], dtype="float16")
    with pytest.raises(ConfigError, match=r"2 times backbone .* in float16 needs 35\.\d GB.*what would fit: a run for each checkpoint \(17\.\d GB\)"): check_models(run)
    check_models(replace(run, eval_mode=["base", "r3"]))
    with pytest.raises(ConfigError, match=r"--workers 1 \(17"): check_models(replace(run, eval_mode=["r3"], workers=2))
    with pytest.raises(ConfigError, match="float32 needs 35"): check_models(replace(run, eval_mode=["r3"], dtype="float32"))


def test_what_passes_through_the_machine_counts(place, monkeypatch):
    gpu(monkeypatch, free=1e12, total=1e12)
    monkeypatch.setattr(room, "memory", lambda device="cpu": Room("this machine", 1e5, 1e5) if device == "cpu" else Room(device, 1e12, 1e12))
    check_load(place.backbone, "float32", "cuda:0")  # mapped from the file
    with pytest.raises(ConfigError, match="loading backbone.*from files in float32"): check_load(place.backbone, "bfloat16", "cuda:0")
    check_room("it", {"a": 5.}, Room("r", 5, 5), {})


# devices and attention -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong, said", [("auot", "did you mean 'auto'"), ("cuda:0", "has no GPUs"), ("{a", "not JSON"), ({"": 0}, "has no GPUs"), ({}, "expected auto"), ("gpu", "unknown device"), ([1], "expected auto")])
def test_device_maps_that_cannot_be(wrong, said, cfg):
    if wrong == []: return
    with pytest.raises(ConfigError, match=said): read_device_map(wrong)
    if wrong: 
        with pytest.raises(ConfigError, match=said): replace(cfg, device_map=wrong).check()


@pytest.mark.parametrize("change, said", [(dict(backend="fsdp"), "backend fsdp"), (dict(backend="ddp"), "backend ddp"), (dict(deepspeed_config="x.json"), "deepspeed_config"), (dict(backend="deepspeed", deepspeed_config="x"), "backend deepspeed"),
                                          (dict(load_in_4bit=True), "load_in_4bit"), (dict(use_lora=False, disable_teacher=False), "disable_teacher")])
def test_device_map_is_for_one_process(change, said, cfg, monkeypatch):
    with pytest.raises(ConfigError, match=said): replace(cfg, device_map="auto", **change).check()
    for k, v in {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items(): monkeypatch.setenv(k, v)
    with pytest.raises(ConfigError, match="a launcher has started 2"): replace(cfg, device_map="auto").check()


SPLITS = ["auto", {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}, {"model.visual": "disk", "model.language_model": "cpu", "lm_head": "disk"}]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_model_in_parts_answers_as_a_whole_one(split, place, cfg, tmp_path):
    "With soft tokens, LoRA and a checkpoint; the parts on disk are brought when they are needed."
    if not (place.folder / "ckpt").exists():
        model = R3Model.from_pretrained(place.backbone, cfg.model_config(SimpleNamespace(info={"text": {"dim": 384}, "image": {"dim": 24}})))
        torch.manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad: p.add_(torch.randn_like(p) * .1)
        model.save_pretrained(place.folder / "ckpt")
        assert saved_dtype(place.folder / "ckpt") == "float32"
    index = T.EvidenceIndex.load(place.index)
    spread, whole = (R3Model.load(place.folder / "ckpt", None, "float32", m) for m in (split, ""))
    seen = [tiny.damaged(i) for i in (0, 1)]
    batch = T.R3Collator(whole.processor, whole.r3)(make_examples(index, place.records[:2], seen, whole.r3), whole)
    with torch.no_grad(): a, b = (m(batch).logits for m in (spread, whole))
    assert torch.allclose(a, b, atol=1e-5) and (spread.neutral.device, next(spread.modules_.parameters()).device) == (torch.device("cpu"),) * 2
    ask = T.R3Collator(whole.processor, whole.r3)(make_examples(index, place.records[:2], seen, whole.r3), whole, answers=False)
    assert spread.generate(ask, 3).ids == whole.generate(ask, 3).ids
    if split != "auto":
        assert any(p.is_meta for p in spread.backbone.parameters()) and not any(p.is_meta for n, p in spread.named_parameters() if "lora_" in n)
        with pytest.raises(ConfigError, match="left a part of the model on disk"): build_trainer(replace(cfg, device_map=split))


def test_device_map_and_attention_reach_the_commands(asked, cfg, tmp_path):
    plain, spread = (evaluate(replace(asked, out_dir=str(tmp_path / k), device_map=m, attn_implementation=a)) for k, m, a in (("a", "", ""), ("b", SPLITS[1], "eager")))
    assert (plain["settings"]["dtype"], spread["settings"]["dtype"], spread["settings"]["attn_implementation"], spread["settings"]["device_map"]) == ("float32", "float32", "eager", SPLITS[1])
    said = lambda k: [json.loads(line)["prediction"] for line in open(tmp_path / k / "predictions.jsonl")]
    assert said("a") == said("b")
    trainer = build_trainer(replace(cfg, device_map="auto", attn_implementation="eager"))
    assert trainer.live.config._attn_implementation == "eager"
    train(replace(cfg, device_map="auto", attn_implementation="eager"))


@pytest.mark.parametrize("name, said", [("flash", "unknown 'flash'"), ("sdap", "did you mean 'sdpa'"), ("flash_attention_2", "needs the package flash-attn"), ("flex_attention", "does not work with it")])
def test_attention_that_cannot_be_had(name, said, cfg, asked, place):
    if name == "flex_attention":
        with pytest.raises(ConfigError, match=said): R3Model.from_pretrained(place.backbone, attention=name)
        return
    with pytest.raises(ConfigError, match=said): replace(cfg, attn_implementation=name).check()
    with pytest.raises(ConfigError, match=said): check_config(replace(asked, attn_implementation=name))


# length --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, n, processes, steps", [(dict(), 8, 1, 4), (dict(), 9, 1, 5), (dict(num_epochs=.5), 8, 1, 2), (dict(num_epochs=3), 8, 1, 12), (dict(grad_accum=2), 8, 2, 1), (dict(num_epochs=.1), 8, 1, 1),
                                                         (dict(max_steps=7), 8, 1, 7), (dict(num_epochs=.1, batch_size=1), 30, 1, 3)])
def test_steps_of_an_epoch(change, n, processes, steps, cfg):
    assert with_steps(replace(cfg, **{"max_steps": None} | change), n, processes).max_steps == steps


@pytest.mark.parametrize("change, said", [(dict(max_steps=3, num_epochs=1.), "give one of them"), (dict(max_steps=0), "max_steps is 0, expected 1 or more"), (dict(max_steps=None, num_epochs=0.), "num_epochs is 0"),
                                          (dict(max_steps=None, num_epochs=-1.), "more than 0"), (dict(max_steps=None, num_epochs=float("inf")), "num_epochs is inf"), (dict(eval_every=-1), "eval_every is -1")])
def test_lengths_that_cannot_be(change, said, cfg):
    with pytest.raises(ConfigError, match=said): replace(cfg, **change).check()


def test_the_share_of_the_data_is_told_as_it_is(place, cfg):
    "Six records of one dataset and two of another, drawn evenly: the small one is seen again and again, the large one not to its end."
    records = [replace(r, dataset="chartqa" if i < 2 else "screenqa") for i, r in enumerate(place.records)]
    data = TrainSet(replace(cfg, max_steps=None, sampling_alpha=0.), records, None, cfg.model_config())
    drawn, lines = Counter(records[i].dataset for i in data.order), amount(data)
    assert len(data) == 8 and lines[0].startswith("4 steps of 2 samples: 8 samples, 1.00 times the 8 records") and f"{len(set(data.order.tolist()))} of these" in lines[0]
    for d, size in (("chartqa", 2), ("screenqa", 6)): assert any(f"{d}: {drawn[d]} samples from {size} records" in line for line in lines)
    assert any("level 0.12 of 0.8 only" in line for line in amount(TrainSet(replace(cfg, warmup_steps=20), records, None, cfg.model_config()))) is False
    assert "warmup_steps is 200" in amount(TrainSet(replace(cfg, warmup_steps=200), records, None, cfg.model_config()))[-1]


def test_one_epoch_and_the_same_command_again(cfg, capsys):
    run = replace(cfg, max_steps=None, num_epochs=.5, save_every=1)
    last = train(run)
    assert last.name == "step_2" and "2 steps of 2 samples: 4 samples, 0.50 times the 8 records" in capsys.readouterr().out
    shutil.rmtree(last)
    assert train(run) == last == train(replace(run, max_steps=2, num_epochs=None))
    with pytest.raises(ConfigError, match="max_steps 2 -> 4"): train(replace(run, num_epochs=None))
    assert read_json(last / "train_config.json")["max_steps"] == 2


# paths ---------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", [("train_jsonl", "gone.jsonl"), ("val_jsonl", "gone.jsonl"), ("image_root", "gone"), ("index_dir", "gone"), ("model_name", "./gone"), ("resume_from", "gone"), ("evidence_cache", "gone"), ("deepspeed_config", "gone.json")])
def test_paths_are_looked_at_before_the_model(name, value, cfg, monkeypatch):
    monkeypatch.setattr(T, "open_model", lambda *a: pytest.fail("the model was opened"))
    monkeypatch.setattr(T, "pick_backend", lambda *a: "none")
    with pytest.raises((ConfigError, DataError, CheckpointError), match=value.replace("./", "")): build_trainer(replace(cfg, **{name: value}))


@pytest.fixture
def torn(place, tmp_path):
    "The world again, with one picture that has no readable head and one that is torn further down."
    root = tmp_path / "raw"
    shutil.copytree(place.root, root)
    rows = [json.loads(line) for line in open(place.jsonl)]
    tiny.page(3, (300, 400)).save(root / "demo/torn.jpg", quality=95)
    data = (root / "demo/torn.jpg").read_bytes()
    (root / "demo/torn.jpg").write_bytes(data[:len(data) // 2])
    rows[3]["image_path"] = "demo/torn.jpg"
    (tmp_path / "torn.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return SimpleNamespace(jsonl=tmp_path / "torn.jsonl", root=root, said=r"torn\.jsonl:4: sample demo_train_3: .*torn\.jpg")


def test_heads_of_pictures_are_read_first(cfg, torn, monkeypatch):
    monkeypatch.setattr(T, "open_model", lambda *a: pytest.fail("the model was opened"))
    (torn.root / "demo/2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"torn\.jsonl:3: .*2\.png"): build_trainer(replace(cfg, train_jsonl=str(torn.jsonl), image_root=str(torn.root)))
    with pytest.raises(ImageError, match=r"torn\.jsonl:3: .*2\.png"): build_trainer(replace(cfg, val_jsonl=str(torn.jsonl), image_root=str(torn.root)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torn_picture_names_sample_file_and_line_in_training(workers, cfg, torn):
    run = replace(cfg, train_jsonl=str(torn.jsonl), image_root=str(torn.root), num_workers=workers, max_steps=8)
    with pytest.raises(ImageError, match=torn.said) as e: train(run)
    assert "Traceback" not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_torn_picture_names_them_in_an_evidence_cache(workers, cfg, torn, tmp_path):
    how = T.EvidenceConfig(**vars(cfg) | {"train_jsonl": str(torn.jsonl), "image_root": str(torn.root), "evidence_cache": str(tmp_path / "cache")}, levels=[0.], workers=workers)
    with pytest.raises(ImageError, match=torn.said) as e: prepare_evidence(how)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_torn_picture_names_them_in_evaluation(workers, asked, torn, tmp_path):
    run = replace(asked, val_jsonl=str(torn.jsonl), image_root=str(torn.root), max_eval_samples=0, eval_mode=["base"], workers=workers, out_dir=str(tmp_path / "out"))
    with pytest.raises(ImageError, match=torn.said): evaluate(run)


@pytest.mark.parametrize("change, error", [(dict(model_name="./gone"), ConfigError), (dict(checkpoint_dir="gone"), CheckpointError), (dict(index_dir="gone", eval_mode=["base"]), DataError), (dict(lora_checkpoint_dir="gone"), CheckpointError)])
def test_paths_of_an_evaluation(change, error, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(R3Model, "from_pretrained", lambda *a: pytest.fail("the model was opened"))
    with pytest.raises(error, match="gone"): evaluate(replace(asked, out_dir=str(tmp_path / "out"), **change))


def test_prefixes_take_the_full_name(asked, place, tmp_path):
    rows = [json.loads(line) | {"dataset": "infovqa"} for line in open(place.jsonl)]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert len(eval_records(replace(asked, val_jsonl=str(tmp_path / "v.jsonl"), dataset_prefixes=["infographicvqa"], max_eval_samples=0))) == 8


# validation ----------------------------------------------------------------------------------------------------------------------------

def bits(folder): return {f.name: load_file(f) for f in sorted(Path(folder).glob("*.safetensors"))}


def history(folder): return [json.loads(line) for line in open(Path(folder) / "history.jsonl")]


def test_validation_scores_answers_and_changes_no_bit(cfg, place, tmp_path, monkeypatch):
    plain = bits(train(replace(cfg, max_steps=3, lora_dropout=.2, num_workers=1, output_dir=str(tmp_path / "a"))))
    watched = replace(cfg, max_steps=3, lora_dropout=.2, num_workers=1, val_jsonl=str(place.jsonl), eval_every=2, val_samples=4, output_dir=str(tmp_path / "b"))
    asked, generate = [], R3Model.generate
    def right(self, batch, most, role="student"): # answers every question of chartqa right
        assert not self.training
        torch.rand(3); np.random.rand()
        asked.append(len(batch["meta"]))
        out = generate(self, batch, 2)
        number = lambda m: int(m["sample_id"].split("_")[-1])
        return replace(out, texts=[str(100 + number(m)) if number(m) % 2 else "?" for m in batch["meta"]])
    monkeypatch.setattr(R3Model, "generate", right)
    other = bits(train(watched))
    assert plain.keys() == other.keys() and all(torch.equal(plain[f][k], other[f][k]) for f in plain for k in plain[f])
    rows = [r for r in history(watched.output_dir) if "val_loss" in r]
    assert [r["step"] for r in rows] == [2, 3] and sum(asked) == 8  # every second step, and the end
    assert all((r["val_score"], r["val_score_chartqa"], r["val_score_screenqa"]) == (.5, 1., 0.) for r in rows)


def test_validation_is_on_where_there_are_records(cfg, place):
    has = lambda c: any(isinstance(cb, T.Validation) for cb in build_trainer(c).callback_handler.callbacks)
    assert cfg.eval_every == 1000 and not has(cfg)
    watched = replace(cfg, val_jsonl=str(place.jsonl), output_dir=cfg.output_dir + "2")
    assert has(watched) and not has(replace(watched, eval_every=0))


def test_pictures_of_records(torn):
    r = read_records(torn.jsonl)[3]
    with pytest.raises(ImageError, match=torn.said): picture_of(r, torn.root, torn.jsonl)
    with pytest.raises(ImageError, match="^sample demo_train_3: "): picture_of(r, torn.root)
    with pytest.raises(ImageError, match="^gone.jsonl: sample"): picture_of(r, torn.root, "gone.jsonl")
    with pytest.raises(ImageError, match="^sample"): fill_block(None, SimpleNamespace(variants=1, damage_seed=lambda v: 0), [r], torn.root)


def test_readers_settle_precision_too(asked): assert Readers(asked).cfg.dtype == "float32"
