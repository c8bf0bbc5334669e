"""What a training step costs beside a plain LoRA step on the same backbone and tokens, and whether workers hide the preparation of samples.

    python benchmarks/train_step.py              # a few minutes on one core
    python benchmarks/train_step.py --cpu        # on a busy machine: CPU time of the training process in place of time on the clock, first part only
    python benchmarks/train_step.py --batch 1 --gradient_checkpointing     # as the runbook trains

Both trainers are run in turn, in one process and on one thread, on samples that are prepared beforehand; a step is the time from the end of one step to the end of the next, so
writing prompts and tokenising counts for both. The ratio is taken within each round, and the median over rounds is reported. The plain step is transformers' Trainer on the same backbone with the same LoRA,
the same prompts and the same optimizer. The second part trains on samples that are prepared as the training goes: in the training process, in a worker, and in the training process with an evidence cache."""
import argparse
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from bench import report
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
import tiny

from r3nb.indices import EvidenceIndex
from r3nb.mini import backbone_dir, clip_dir
from r3nb.model import R3Collator, R3Model
from r3nb.train import EvidenceConfig, TrainConfig, build_trainer, open_store, prepare_evidence


class Clock(TrainerCallback):
    "Seconds from the end of each step to the end of the next."
    now = staticmethod(time.perf_counter)
    def __init__(self): self.ends = []
    def on_step_end(self, args, state, control, **kwargs): self.ends.append(self.now())
    def seconds(self, skip=2): return [b - a for a, b in zip(self.ends[skip:], self.ends[skip + 1:], strict=False)]


class Ready(Dataset):
    "Examples that were made beforehand, the same for everybody."
    def __init__(self, examples): self.examples = examples
    def __len__(self): return len(self.examples)
    def __getitem__(self, i): return self.examples[i]


class InOrder(Trainer):
    def _get_train_sampler(self, dataset=None): return SequentialSampler(self.train_dataset)


def world(folder, n):
    "A world of drawn pages with the encoders of the small study."
    made = tiny.world(folder, n, sizes=((320, 256), (256, 320)))
    index = EvidenceIndex.build(made.records, made.root, folder/"own", "minilm", str(clip_dir()))
    return made, index


def config(made, index, out, steps, batch, **options):
    return TrainConfig(model_name=str(backbone_dir()), train_jsonl=str(made.jsonl), image_root=str(made.root), index_dir=str(index.folder), output_dir=str(out), max_steps=steps,
                       batch_size=batch, warmup_steps=0, save_every=10**6, log_every=10, num_workers=0, threads=1, lora_r=16, **options)


def run(trainer):
    "Train, and give the seconds of each step."
    clock = Clock()
    trainer.add_callback(clock)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()): trainer.train()
    return clock.seconds()


def r3(cfg, ready=None):
    "A fresh training of R3 in a fresh folder."
    shutil.rmtree(cfg.output_dir, ignore_errors=True)
    trainer = build_trainer(cfg)
    if ready is not None: trainer.train_dataset = ready
    return run(trainer)


def plain(cfg, ready, prompts):
    "transformers' Trainer on the backbone with the same LoRA and prompts."
    shutil.rmtree(cfg.output_dir, ignore_errors=True)
    model = R3Model.from_pretrained(cfg.model_name, cfg.model_config())  # opens backbone and processor, puts LoRA on
    collator = R3Collator(model.processor, model.r3)

    def collate(examples):
        batch = collator.inputs([prompts[id(e)] for e in examples], [e.corrupted.image for e in examples], [e.record.answer for e in examples])
        return batch["inputs"] | {"labels": batch["labels"]}
    args = TrainingArguments(cfg.output_dir, use_cpu=not torch.cuda.is_available(), max_steps=cfg.max_steps, per_device_train_batch_size=cfg.batch_size, learning_rate=cfg.lr,
                             optim="adamw_torch", save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=10,
                             activation_checkpointing=cfg.gradient_checkpointing, activation_checkpointing_kwargs={"use_reentrant": False} if cfg.gradient_checkpointing else None)
    trainer = InOrder(model=model.backbone.train(), args=args, train_dataset=ready, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return run(trainer)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--steps", type=int, default=14)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--cpu", action="store_true")
    ap.add_argument("--gradient_checkpointing", action="store_true")
    a = ap.parse_args()
    if a.cpu: Clock.now = staticmethod(time.process_time)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        made, index = world(tmp, 32)
        lean = config(made, index, tmp/"lean", a.steps, a.batch, disable_teacher=True, gradient_checkpointing=a.gradient_checkpointing)
        taught = replace(lean, output_dir=str(tmp/"taught"), disable_teacher=False)
        first = build_trainer(taught)
        examples = [first.train_dataset[p] for p in range(a.steps * a.batch)]
        batch = first.collator(examples[:a.batch], first.model)
        prompts = {id(e): m["prompt"] for i in range(0, len(examples), a.batch)
                   for e, m in zip(examples[i:i + a.batch], first.collator(examples[i:i + a.batch], first.model)["meta"], strict=True)}
        tokens = int(batch["inputs"]["attention_mask"].sum())
        ready, kinds = Ready(examples), {"plain": lambda: plain(replace(lean, output_dir=str(tmp/"plain")), ready, prompts), "r3": lambda: r3(lean, ready),
                                         "r3 with teacher": lambda: r3(taught, ready)}
        rows = [{k: statistics.median(f()) for k, f in (kinds.items() if i % 2 == 0 else reversed(kinds.items()))} for i in range(a.rounds)]
        more = dict(batch=a.batch, tokens=tokens, rounds=a.rounds)
        report("plain LoRA step", statistics.median(r["plain"] for r in rows) * 1000, "ms", **more)
        for kind, goal in (("r3", "<= 1.3"), ("r3 with teacher", "")):
            ratios = [r[kind] / r["plain"] for r in rows]
            report(f"{kind}: step / plain LoRA step", statistics.median(ratios), "x", goal, lowest=round(min(ratios), 3), highest=round(max(ratios), 3))
        if a.cpu: return
        cache = prepare_evidence(EvidenceConfig(**asdict(replace(lean, evidence_cache=str(tmp/"cache")))))
        assert open_store(replace(lean, evidence_cache=str(cache)), index, 32)
        ways = {"samples ready": lambda: r3(lean, ready), "prepared in the training process": lambda: r3(lean), "prepared in a worker": lambda: r3(replace(lean, num_workers=1)),
                "evidence cache, training process": lambda: r3(replace(lean, evidence_cache=str(cache))), "evidence cache, worker": lambda: r3(replace(lean, evidence_cache=str(cache), num_workers=1))}
        rows = [{k: statistics.median(f()) for k, f in ways.items()} for _ in range(a.rounds)]
        for way in list(ways)[1:]: report(f"{way}: step / step with samples ready", statistics.median(r[way] / r["samples ready"] for r in rows), "x", **more)


if __name__ == "__main__": main()
