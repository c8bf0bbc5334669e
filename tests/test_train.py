"Mechanism of training: losses reach their modules, data depend on position only, resume is exact, faults are named."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from r3nb.core import _tmp_name, CheckpointError, ConfigError
from r3nb.model import R3Collator, R3Model
from r3nb.train import (TrainConfig, TrainingError, TrainSet, build_trainer, curriculum_level, gate_loss, losses, main, newest_checkpoint,
                        rewind_history, train)


@pytest.fixture
def cfg(place, tmp_path):
    return TrainConfig(model_name=str(place.backbone), train_jsonl=str(place.jsonl), image_root=str(place.root), index_dir=str(place.index),
                       output_dir=str(tmp_path / "run"), max_steps=4, batch_size=2, warmup_steps=2, save_every=2, log_every=1, num_workers=0,
                       bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2, lr=1e-3, module_lr=1e-2, lr_warmup_steps=1, ema_decay=.5)


def bits(folder): return {f.name: load_file(f) for f in sorted(Path(folder).glob("*.safetensors"))}


def same(a, b): return a.keys() == b.keys() and all(a[f].keys() == b[f].keys() and all(torch.equal(a[f][k], b[f][k]) for k in a[f]) for f in a)


class StopAt(TrainerCallback):
    "Leave the loop after a step, as if interrupted."
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kwargs): control.should_training_stop |= state.global_step >= self.step


def history(folder): return [json.loads(line) for line in open(Path(folder) / "history.jsonl")]


# curriculum ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("top", [.3, .8, 1.])
@pytest.mark.parametrize("warmup", [0, 1, 7, 100, 500])
def test_curriculum_is_monotone_and_stays(top, warmup):
    levels = [curriculum_level(s, top, warmup, 100) for s in range(700)]
    assert levels == sorted(levels) and all(0 <= v <= top for v in levels)
    assert all(v == top for v in levels[warmup:])
    assert all(isinstance(v, float) for v in levels)


@pytest.mark.parametrize("cycles", [1, 2, 3, 7])
def test_cyclic_curriculum_rises_in_every_cycle(cycles):
    levels = [curriculum_level(s, .8, 0, 84, "cyclic", cycles) for s in range(84)]
    period = 84 // cycles
    for c in range(cycles):
        part = levels[c * period:(c + 1) * period]
        assert part == sorted(part) and part[0] == 0 and part[-1] == .8


@pytest.mark.parametrize("args", [(-1, .8, 2, 9), (0, 1.2, 2, 9), (0, .8, -2, 9), (0, .8, 2, 0), (0, .8, 2, 9, "linear", 0), (0, .8, 2, 9, "square")])
def test_curriculum_refuses_nonsense(args):
    with pytest.raises(ConfigError): curriculum_level(*args)


# each loss moves its module ------------------------------------------------------------------------------------------------------------

MEANT_FOR = {"ce": ("modules_.prefix", "modules_.memory", "modules_.latent", "lora_"), "cons": ("modules_.prefix", "modules_.memory", "modules_.latent", "lora_"),
             "conf": ("modules_.confidence",), "gate": ("modules_.gate", "modules_.aligner"), "ent": ("modules_.gate",), "align": ("modules_.aligner",),
             "page": ("modules_.relevance",)}


@pytest.fixture(scope="module")
def setting(place):
    "A shaken model with a teacher, and batches of one and four."
    cfg = TrainConfig(model_name=str(place.backbone), train_jsonl="t", image_root=str(place.root), index_dir="x", bottleneck=16, heads=2, n_prefix=2,
                      n_memory=2, n_latent=1, top_k=2, max_steps=4, batch_size=4, warmup_steps=0)
    model = R3Model.from_pretrained(place.backbone, cfg.model_config(place.opened))
    model.add_teacher()
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p) * .1)
    rows = TrainSet(cfg, place.records, place.opened, model.r3).__getitems__([4, 5, 6, 7])
    collator = R3Collator(model.processor, model.r3)
    return cfg, model, {n: collator(rows[:n], model, teacher=True) for n in (1, 4)}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("term", MEANT_FOR)
def test_each_loss_moves_its_module(setting, term, n):
    cfg, model, batches = setting
    batch = batches[n]
    with torch.no_grad(): teacher = model({**batch["teacher"], "evidence": batch["evidence"]}, "teacher")
    model.zero_grad()
    parts = losses(model(batch), teacher, batch, cfg, (batch["labels"] != -100).sum())
    assert set(parts) == set(MEANT_FOR) and parts[term].abs() > 0
    parts[term].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    for module in MEANT_FOR[term]: assert any(module in name for name in moved), (term, module)
    assert not any(".teacher." in name or name.startswith("teacher_") for name in moved)
    if term == "conf": assert all(name.startswith("modules_.confidence") for name in moved)
    if term == "page": assert all(name.startswith("modules_.relevance") for name in moved)
    if term != "page": assert not any(name.startswith("modules_.relevance") for name in moved)
    if term in ("ce", "cons"): assert not any(name.startswith("modules_.confidence") for name in moved)  # no lying about the damage


def test_gate_target_reaches_the_gate(place, cfg):
    "The gate's loss alone, a few steps: the gate comes closer to its target."
    model = R3Model.from_pretrained(place.backbone, cfg.model_config(place.opened)).train()
    batch = R3Collator(model.processor, model.r3)(TrainSet(replace(cfg, warmup_steps=0), place.records, place.opened, model.r3).__getitems__([0, 1, 2, 3]))
    opt = torch.optim.Adam(model.modules_.parameters(), 1e-2)
    seen = []
    for _ in range(20):
        out = model.modules_(batch["evidence"], model.r3, model.neutral, model.scale)
        loss = gate_loss(out, batch["evidence"])
        opt.zero_grad(); loss.backward(); opt.step()
        seen.append(loss.item())
    assert seen[-1] < .5 * seen[0]


# data ----------------------------------------------------------------------------------------------------------------------------------

def test_samples_depend_on_position_only(place, cfg):
    config = cfg.model_config(place.opened)
    a, b = (TrainSet(replace(cfg, max_steps=n), place.records, place.opened, config) for n in (4, 4))
    for p in (7, 0, 3):
        x, y = a[p], b[p]
        assert x.record.sample_id == y.record.sample_id and x.corrupted.image.tobytes() == y.corrupted.image.tobytes()
        assert x.corrupted.pseudo_text == y.corrupted.pseudo_text and (x.own == y.own).all()
        assert x.record.image_id not in {e.image_id for e in x.pages}
    assert a.level(0) == a.level(1) == 0 and max(a.level(p) for p in range(8)) <= .8
    assert len({a[p].corrupted.seed for p in range(8)}) == 8
    off = TrainSet(replace(cfg, disable_corruption=True), place.records, place.opened, config)
    assert off[7].corrupted.image.tobytes() == off[7].clean[0].tobytes()


# training ------------------------------------------------------------------------------------------------------------------------------

def test_resume_is_exact_whatever_the_workers(cfg, tmp_path):
    "One run in one go with a worker; one interrupted after two steps, resumed without workers: equal bits, dropout included."
    one = replace(cfg, num_workers=1, lora_dropout=.2, output_dir=str(tmp_path / "one"))
    whole = bits(train(one))
    two = replace(one, num_workers=0, output_dir=str(tmp_path / "two"))
    first = build_trainer(two)
    first.add_callback(StopAt(3))
    first.train()
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_3", ignore_errors=True)
    assert newest_checkpoint(two.output_dir).name == "step_2"
    assert same(bits(train(two)), whole)
    strip = lambda rows: [{k: v for k, v in r.items() if "per_second" not in k and k != "memory_gb"} for r in rows]
    assert strip(history(one.output_dir)) == strip(history(two.output_dir))
    assert set(whole) == {"adapter_model.safetensors", "modules.safetensors", "teacher.safetensors", "optimizer.safetensors"}
    assert list((tmp_path / "one" / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_kill_and_resume(cfg, tmp_path):
    "kill -9 in the middle; the second start ends with the weights of an undisturbed run."
    long = replace(cfg, max_steps=7, save_every=1, disable_teacher=True)
    whole = bits(train(replace(long, output_dir=str(tmp_path / "whole"))))
    words = [f"--{k}={v}" for k, v in vars(long).items() if isinstance(v, (str, int, float)) and not isinstance(v, bool) and v != ""]
    run = subprocess.Popen([sys.executable, "-m", "r3nb.train", *words, "--disable_teacher"], env=os.environ | {"OMP_NUM_THREADS": "1"},
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 180
    while time.time() < until and run.poll() is None and not newest_checkpoint(long.output_dir): time.sleep(.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    reached = newest_checkpoint(long.output_dir)
    assert reached is not None
    mine = _tmp_name(reached.parent / "step_9").name
    (reached.parent / mine.replace(f"-{os.getpid():x}-", f"-{run.pid:x}-")).mkdir() # what the killed process might have left
    assert same(bits(train(long)), whole)
    assert not list(reached.parent.glob(".tmp-*")) and [r["step"] for r in history(long.output_dir)] == list(range(1, 8))


def test_accumulation_equals_one_batch(cfg, tmp_path):
    "Two micro-batches of two give the update of one batch of four: the answer loss counts tokens over the whole step."
    plain = replace(cfg, max_steps=2, disable_teacher=True, lambda_align=0, lambda_conf=0, lambda_gate=0, lambda_ent=0, max_grad_norm=0)
    a = bits(train(replace(plain, batch_size=4, output_dir=str(tmp_path / "a"))))
    b = bits(train(replace(plain, batch_size=2, grad_accum=2, output_dir=str(tmp_path / "b"))))
    worst = max((a[f][k] - b[f][k]).abs().max().item() for f in a for k in a[f])
    assert worst < 1e-4


def test_lora_mode_trains_lora_alone(cfg, place):
    model = R3Model.load(train(replace(cfg, train_mode="lora", index_dir="", max_steps=2)))
    fresh = R3Model.from_pretrained(place.backbone, model.r3)
    assert all(torch.equal(a, b) for a, b in zip(model.modules_.state_dict().values(), fresh.modules_.state_dict().values(), strict=True))
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert model.r3.n_soft == (0, 0, 0) and model.r3.channels == ()


@pytest.mark.parametrize("change", [dict(teacher="shared"), dict(teacher="copy"), dict(disable_teacher=True), dict(disable_gate=True), dict(disable_memory=True),
                                    dict(disable_soft_prefix=True), dict(disable_prefix=True), dict(use_lora=False), dict(freeze_vision=False), dict(gradient_checkpointing=True),
                                    dict(context_order="score"), dict(confidence="oracle"), dict(bf16=True), dict(schedule="cyclic", cycles=2)],
                         ids=lambda c: "-".join(c))
def test_options_train(cfg, change):
    run = replace(cfg, max_steps=1, save_every=1, **change)
    assert train(run).name == "step_1"
    if change == dict(freeze_vision=False):
        saved = bits(newest_checkpoint(run.output_dir))
        assert "backbone.safetensors" not in saved and any("visual" in k for k in saved["adapter_model.safetensors"])
        assert any("visual" in k and ".teacher." in k for k in saved["teacher.safetensors"])
        R3Model.load(newest_checkpoint(run.output_dir))
    row = history(run.output_dir)[0]
    assert ("loss_cons" in row) == (not run.disable_teacher) and ("loss_gate" in row) == (not run.disable_gate)


def test_options_of_the_trainer_are_passed_on(cfg):
    "Cosine schedule, another beta, one checkpoint kept; the runbook's words for LoRA, true and false."
    words = [w for k, v in vars(cfg).items() if isinstance(v, (str, int, float)) and not isinstance(v, bool) and v != "" for w in (f"--{k}", str(v))]
    main([*words, "--use_lora", "--disable_teacher", "true", "--lr_scheduler_type", "cosine", "--adam_beta2=.9", "--save_total_limit", "1", "--optim", "adamw_torch"])
    assert [p.name for p in (Path(cfg.output_dir) / "checkpoints").iterdir()] == ["step_4"]
    rates = [r["learning_rate"] for r in history(cfg.output_dir) if "loss" in r]
    assert rates == pytest.approx([0, 1e-3, 7.5e-4, 2.5e-4]) and json.loads((newest_checkpoint(cfg.output_dir) / "train_config.json").read_text())["trainer"]["adam_beta2"] == ".9"


def test_full_fine_tuning_moves_the_language_model_only(cfg, place):
    "Unless the vision tower is set free; checkpoint and stage hand the trained weights on."
    full = replace(cfg, use_lora=False, max_steps=2)
    last = train(full)
    trained, base = bits(last)["backbone.safetensors"], load_file(place.backbone / "model.safetensors")
    assert not any("visual" in k for k in trained) and trained.keys() == {k for k in base if "visual" not in k}
    assert sum(not torch.equal(trained[k], base[k]) for k in trained) > .8 * len(trained)
    model = R3Model.load(last)
    assert all(torch.equal(p, trained[n]) for n, p in model.backbone.named_parameters() if n in trained)
    with pytest.raises(CheckpointError, match="holds a trained backbone"): train(replace(cfg, resume_from=str(last), output_dir=cfg.output_dir + "2"))
    second = train(replace(full, resume_from=str(Path(full.output_dir)), freeze_vision=False, max_steps=1, save_every=1, lr_warmup_steps=0, output_dir=cfg.output_dir + "3"))
    assert any("visual" in k for k in bits(second)["backbone.safetensors"])


def test_gradient_checkpointing_changes_nothing(cfg, tmp_path):
    a, b = (bits(train(replace(cfg, max_steps=2, gradient_checkpointing=g, output_dir=str(tmp_path / str(g))))) for g in (False, True))
    assert max((a[f][k] - b[f][k]).abs().max().item() for f in a for k in a[f]) < 1e-5


def test_stages_follow_each_other(cfg, tmp_path):
    "A stage that switches a module off still hands it on."
    first = train(replace(cfg, max_steps=2, output_dir=str(tmp_path / "1")))
    second = train(replace(cfg, max_steps=1, save_every=1, lr_warmup_steps=0, resume_from=str(first), disable_visual_memory=True, output_dir=str(tmp_path / "2")))
    a, b = (bits(f)["modules.safetensors"] for f in (first, second))
    assert torch.equal(a["memory.up.weight"], b["memory.up.weight"]) and not torch.equal(a["prefix.up.weight"], b["prefix.up.weight"])


def test_validation_is_logged_and_leaves_training_alone(cfg, place, tmp_path):
    plain = bits(train(replace(cfg, output_dir=str(tmp_path / "a"))))
    watched = replace(cfg, val_jsonl=str(place.jsonl), eval_every=2, val_samples=3, output_dir=str(tmp_path / "b"))
    assert same(bits(train(watched)), plain)
    assert [r["step"] for r in history(watched.output_dir) if "val_loss" in r] == [2, 4]


# faults --------------------------------------------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_finite_names_step_and_samples(cfg, monkeypatch):
    import r3nb.train as T
    monkeypatch.setattr(T, "answer_loss", lambda out, n: out.logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 \(ce nan.*demo_train_\d, demo_train_\d"): train(cfg)
    assert newest_checkpoint(cfg.output_dir) is None


def test_other_options_or_records_are_refused(cfg, place, tmp_path):
    train(replace(cfg, max_steps=1, save_every=1))
    with pytest.raises(ConfigError, match="max_steps 1 -> 2"): train(replace(cfg, max_steps=2))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(place.jsonl.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ConfigError, match="records"): train(replace(cfg, max_steps=1, train_jsonl=str(other)))


def test_incomplete_checkpoints_are_passed_over(cfg):
    last = train(replace(cfg, max_steps=2))
    shutil.copytree(last, last.with_name("step_9"))
    (last.with_name("step_9") / "checkpoint.json").unlink()
    assert newest_checkpoint(cfg.output_dir) == last


def test_rewound_history_drops_torn_lines(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    rewind_history(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_command_line_errors(cfg, place, capsys):
    common = ["--model_name", cfg.model_name, "--train_jsonl", cfg.train_jsonl, "--image_root", cfg.image_root, "--output_dir", cfg.output_dir]
    for words, said in ((common, "index_dir is empty"), ([*common, "--index_dir", "x", "--max_corruption", "2"], "max_corruption is 2.0"),
                        ([*common[:2], "--train_jsonl", "nowhere.jsonl", *common[4:], "--index_dir", "x"], "nowhere.jsonl: no such file"),
                        ([*common, "--index_dir", "x", "--fp16"], "fp16 needs a GPU"),
                        ([*common, "--index_dir", "x", "--adam_beta_2", "1"], "did you mean 'adam_beta2'"), ([*common, "--index_dir", "x", "--learning_rate", "1"], "called lr here"),
                        ([*common, "--index_dir", "x", "--backend", "fsdp"], "needs a launcher"), ([*common, "--index_dir", "x", "--resume_from", "gone"], "neither a checkpoint")):
        with pytest.raises(SystemExit) as e: main(words)
        assert e.value.code == 2 and said in capsys.readouterr().err


def test_some_damaged_samples_lose_all_text(place, cfg):
    "With blank, text vanishes more often the worse the damage, never from whole pages, and the target of the text's confidence is 0"
    config = cfg.model_config(place.opened)
    options = replace(cfg, max_steps=200, level_sampling="max", max_corruption=.8, warmup_steps=0)
    plain, some, none = (TrainSet(o, place.records, place.opened, config) for o in (options, replace(options, blank=.5), replace(options, blank=1., disable_corruption=True)))
    rows = [(plain.damage(i), some.damage(i), none.damage(i)) for i in range(100)]
    rows = [r for r in rows if r[0][2].pseudo_text] # a short text may be gone as it is
    empty = [b for _, b, _ in rows if not b[2].pseudo_text]
    assert .25 <= len(empty) / len(rows) <= .55 and all(s.c_text == 0 and r.ocr_conf == 0 and r.pseudo_text for r, _, s in empty)
    for a, b, c in rows:
        assert a[2].image.tobytes() == b[2].image.tobytes() and c[2].pseudo_text == c[0].pseudo_text
        assert not b[2].pseudo_text or b[2].pseudo_text == a[2].pseudo_text
    assert [some.damage(i)[2].pseudo_text for i in range(20)] == [some.damage(i)[2].pseudo_text for i in range(20)]


def test_distracted_samples_get_foreign_evidence(place, cfg):
    "The share is as asked, the sample itself stays as it was, and all depends on the position only."
    config = cfg.model_config(place.opened)
    for r in place.records: r.meta["entity"] = r.sample_id
    plain, some = (TrainSet(replace(cfg, max_steps=100, distract=d), place.records, place.opened, config) for d in (0., .3))
    chosen = [p for p in range(200) if some.stranger(p)]
    assert not any(plain.stranger(p) for p in range(200)) and 35 <= len(chosen) <= 85
    assert all(some.stranger(p).meta["entity"] != some.records[some.order[p]].meta["entity"] for p in chosen)
    batch = sorted({*chosen[:3], *(p for p in range(8) if p not in chosen)})
    got, own = some.__getitems__(batch), plain.__getitems__(batch)
    pages = lambda e: [(p.image_id, p.channel) for p in e.pages]
    for p, e, o in zip(batch, got, own, strict=True):
        assert e.record.image_id not in [q.image_id for q in e.pages] and pages(some[p]) == pages(e)
        assert e.corrupted.pseudo_text == o.corrupted.pseudo_text and (p in chosen or pages(e) == pages(o))
    assert any(pages(e) != pages(o) for p, e, o in zip(batch, got, own, strict=True) if p in chosen)


# what is logged -------------------------------------------------------------------------------------------------------------------------

def test_log_lines_hold_all_that_was_promised(cfg):
    train(replace(cfg, max_steps=2, warmup_steps=0, level_sampling="max"))
    rows = history(cfg.output_dir)
    assert all({"loss", "loss_ce", "loss_cons", "loss_conf", "loss_gate", "loss_align", "level", "gate_text", "gate_image", "gate_self", "conf_vis", "conf_text", "error_conf_vis",
                "error_conf_text", "grad_norm", "learning_rate", "samples_per_second", "tokens_per_second", "memory_gb"} <= r.keys() for r in rows)
    for r in rows:
        assert 0 < r["error_conf_vis"] < 1 and r["samples_per_second"] > 0 and r["tokens_per_second"] > 20 * r["samples_per_second"] and .05 < r["memory_gb"] < 50
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(Path(cfg.output_dir) / "tensorboard"))
    board.Reload()
    assert {"train/loss_ce", "train/level", "train/error_conf_text", "train/tokens_per_second", "train/memory_gb"} <= set(board.Tags()["scalars"])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_logs_go_to_the_tracker_that_was_named(cfg, name, tmp_path, monkeypatch):
    "A stand-in for the package writes down how it is called"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{name}.py").write_text("calls = []\ndef init(**kw): calls.append(('init', kw))\ndef log(row, step=None): calls.append(('log', row, step))\n"
                                                  "def finish(): calls.append(('finish',))\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    train(replace(cfg, max_steps=2, report_to=[name]))
    calls = sys.modules.pop(name).calls
    assert [c[0] for c in calls] == ["init", "log", "log", "log", "finish"] and [c[2] for c in calls[1:3]] == [1, 2]
    assert calls[0][1]["project"] == "r3nb" and calls[0][1]["resume"] == "allow" and calls[0][1]["config"]["max_steps"] == 2 and ("id" in calls[0][1]) == (name == "wandb")
    assert {"loss_ce", "level", "gate_text", "grad_norm", "tokens_per_second"} <= calls[1][1].keys()
    assert not (Path(cfg.output_dir) / "tensorboard").exists()


def test_reporters_are_checked_and_may_change(cfg):
    with pytest.raises(ConfigError, match="report_to: unknown 'tensorbord'.*did you mean 'tensorboard'"): replace(cfg, report_to=["tensorbord"]).check()
    with pytest.raises(ConfigError, match="report_to wandb needs its package; install it with pip install wandb"): replace(cfg, report_to=["wandb"]).check()
    last = train(replace(cfg, max_steps=1, save_every=1, report_to=["none"]))
    assert not (Path(cfg.output_dir) / "tensorboard").exists() and train(replace(cfg, max_steps=1, save_every=1)) == last


def test_a_run_begun_before_an_option_existed_goes_on(cfg):
    last = train(replace(cfg, max_steps=1, save_every=1))
    path = Path(cfg.output_dir) / "run.json"
    before = json.loads(path.read_text())
    for young in ("freeze_vision", "load_in_4bit"): before["options"].pop(young)
    path.write_text(json.dumps(before))
    assert train(replace(cfg, max_steps=1, save_every=1)) == last
    with pytest.raises(ConfigError, match="freeze_vision True -> False"): train(replace(cfg, max_steps=1, save_every=1, freeze_vision=False))


def test_vision_trains_when_asked(cfg, place):
    "LoRA in the tower gets gradients through the picture; frozen, it has none"
    model = R3Model.load(train(replace(cfg, max_steps=2, freeze_vision=False, lora_targets=["attention"])))
    tower = [p for n, p in model.named_parameters() if "visual" in n and "lora_B" in n]
    assert len(tower) == 4 and all(p.abs().max() > 0 for p in tower)


class WaitForNext(TrainerCallback):
    "At the end of a step, wait until the samples of the next one are there."
    def __init__(self, notes): self.notes, self.waited = notes, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps: return
        until, done = time.time() + 60, lambda: {int(l.split()[0]): int(l.split()[1]) for l in self.notes.read_text().splitlines()}
        while state.global_step * 2 not in done() and time.time() < until: time.sleep(.02)
        self.waited.append(done().get(state.global_step * 2))


def test_workers_prepare_the_next_samples_while_a_step_runs(cfg, tmp_path, monkeypatch):
    "Damage, OCR text and evidence of the next batch come from another process before the current step has ended"
    notes, real = tmp_path / "notes", TrainSet.__getitems__
    notes.touch()

    def noted(self, positions):
        rows = real(self, positions)
        with open(notes, "a") as f: f.write(f"{positions[0]} {os.getpid()}\n")
        return rows
    monkeypatch.setattr(TrainSet, "__getitems__", noted)
    trainer = build_trainer(replace(cfg, num_workers=1))
    waits = WaitForNext(notes)
    trainer.add_callback(waits)
    trainer.train()
    assert len(waits.waited) == 3 and None not in waits.waited and os.getpid() not in waits.waited
