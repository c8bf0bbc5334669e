"Train named scenarios, one after the other, in this process, which may be one of several: `python two.py JOB.json`, or under torchrun."
import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

import r3nb.train as T
from r3nb.backends import finish, first, rank, world_size
from r3nb.model import R3Collator

BASE = dict(max_steps=6, warmup_steps=3, save_every=3, log_every=1, num_workers=0, bottleneck=16, heads=2, n_prefix=2, n_memory=2, n_latent=1, top_k=2, lr=1e-3,
            lr_warmup_steps=1, ema_decay=.5, threads=1, eval_every=0)
SCENARIOS = {
    "plain": dict(eval_every=3, val_samples=3),
    "accum": dict(seed=5, lora_r=4),
    "full": dict(use_lora=False, freeze_vision=False, max_steps=4, save_every=4, fsdp_min_params=20_000),
    "flags": dict(disable_visual_memory=True, disable_relevance=True, lambda_align=0., confidence="fixed", weight_decay=.1, disable_teacher=True, max_steps=3),
    "text": dict(seed=2, gradient_checkpointing=True, max_steps=4, save_every=4),
    "resume": dict(eval_every=3, val_samples=3), "moved": dict(eval_every=3, val_samples=3),
    "nan": dict(max_steps=3)}


class StopAt(TrainerCallback):
    "Leave the loop after a step, as if interrupted."
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kwargs): control.should_training_stop |= state.global_step >= self.step


def without_pictures(collator, prompts, images):
    "`R3Collator.process` for a batch whose second half, the whole share of the second of two processes, has no pictures."
    half = len(prompts) // 2 if world_size() == 1 else 0 if rank() else len(prompts)
    rows, other = [], []
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        if i < half:
            row, more = process(collator, [prompt], [image])
            rows += row
            other.append(more)
            continue
        turn = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = collator.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        out = collator.processor(text=[text], return_tensors="pt")
        rows.append({k: out[k][0] if k in out else torch.zeros_like(out["input_ids"][0]) for k in collator.manner.per_token})
    return rows, {k: torch.cat([o[k] for o in other]) for k in (other[0] if other else ())}


process = R3Collator.process


def run(job, name):
    "One scenario; what is to be seen of it only while it runs goes into `facts.json`."
    n, out = world_size(), Path(job["out"]) / name
    batch = dict(batch_size=1, grad_accum=2) if name == "accum" and n == 2 else dict(batch_size=4 // n)
    cfg = T.TrainConfig(**BASE | job["paths"] | SCENARIOS[name] | batch, output_dir=str(out), backend=job["backend"], deepspeed_config=job["deepspeed_config"])
    built = []
    def keep(c): built.append(build(c)); return built[-1]
    T.build_trainer = keep
    R3Collator.process = without_pictures if name == "text" else process
    T.answer_loss = (lambda o, k: loss(o, k) * (float("nan") if rank() == n - 1 and built[-1].state.global_step == 1 else 1)) if name == "nan" else loss
    if name == "resume":
        trainer = build(cfg)
        trainer.add_callback(StopAt(4))
        trainer.train()
        del trainer
    if name == "moved": first(lambda: move(job["one"], out))
    said = ""
    try: T.train(cfg)
    except T.TrainingError as e: said = str(e)
    facts = {"said": said, **look(built[-1])} | ({"texts": answers(built[-1])} if name == "plain" else {})
    first(lambda: (out / "facts.json").write_text(json.dumps(facts)) and None)


build, loss = T.build_trainer, T.answer_loss


def move(one, out):
    "The run of one process as it was after three steps, for another number of processes to go on with."
    shutil.copytree(Path(one) / "plain", out)
    shutil.rmtree(out / "checkpoints" / "step_6")


def look(trainer):
    "How many parameters are in parts, and of how many."
    ps = list(trainer.live.parameters())
    return {"parameters": len(ps), "dtensors": sum(hasattr(p, "placements") for p in ps), "ds": sum(hasattr(p, "ds_id") for p in ps), "backend": trainer.backend,
            "parts": sum(p.to_local().numel() if hasattr(p, "to_local") else p.ds_tensor.numel() if hasattr(p, "ds_id") else p.numel() for p in ps)}


def answers(trainer):
    "Generation after training, longer in the second process than in the first."
    live = trainer.live
    rows = trainer.train_dataset.__getitems__([0, 1])
    batch = trainer.collator(rows, trainer.ranker, answers=False)
    texts = live.generate(batch, 3 + rank()).ids
    return [t[:3] for t in texts]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    for name in job["names"]:
        run(job, name)
        if dist.is_initialized(): dist.barrier()
    finish()
