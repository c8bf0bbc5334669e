"""The same questions through r3nb_eval and through lmms-eval, on the packaged tiny model: are prompts, answers and scores the same?

    python scripts/check_lmms.py OUT.json

lmms-eval is looked for in the folder `.lmms`, where `make interchange` puts it before it runs this, and else among the installed packages.
"""
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from r3nb.core import read_json, read_jsonl, sha256_text, write_json, write_jsonl
from r3nb.data import UnifyConfig, merge, unify
from r3nb.eval import EvalConfig, evaluate
from r3nb.frozen import FreezeConfig, freeze
from r3nb.interchange import TasksConfig, task_name, write_tasks
from r3nb.mini import WorldConfig, backbone_dir, make_world

HERE = Path(__file__).resolve().parent
LMMS = HERE.parent/".lmms"
DATASETS, MODES, LEVEL = ("screenqa", "chartqa", "infovqa"), ("base", "base+text"), 0.4


def questions(folder, datasets=DATASETS):
    "15 questions about 5 pages of each dataset, with page texts from nothing to more than the budget of 256 tokens"
    make_world(WorldConfig(out_dir=str(folder/"raw"), n_train=4, n_val=15, redundancy=0))
    files = [unify(UnifyConfig(dataset=d, raw_dir=f"{folder}/raw/{d}", out_dir=f"{folder}/unified", image_prefix=d, splits=["val"]))["val"] for d in datasets]
    merge(files, folder/"val.jsonl", folder/"raw")
    rows = [r for _, r in read_jsonl(folder/"val.jsonl")]
    for i, r in enumerate(rows):
        page = " ".join(f"{o['meta']['fact']} {o['answer']}" for o in rows if o["image_id"] == r["image_id"])
        r["pseudo_text"] = page*(0, 1, 1, 1, 80)[i % 5]
    write_jsonl(folder/"val.jsonl", rows)
    return {"jsonl": str(folder/"val.jsonl"), "image_root": str(folder/"raw")}


def written(folder, data):
    "The questions as tasks, clean and frozen"
    frozen = freeze(FreezeConfig(**data, out=str(folder/"frozen"), levels=[LEVEL], workers=1))
    cfg = TasksConfig(**data, frozen=str(frozen), out=str(folder/"tasks"), text=True, model_name=str(backbone_dir()))
    write_tasks(cfg)
    return cfg


def ours(folder, data, **options):
    "Predictions of `r3nb_eval` by task and sample; damage is made on the fly"
    evaluate(EvalConfig(**{"model_name": str(backbone_dir()), "val_jsonl": data["jsonl"], "image_root": data["image_root"], "eval_mode": list(MODES),
                           "corruption_levels": [0, LEVEL], "out_dir": str(folder/"eval"), "n_boot": 50} | options))
    out = {}
    for _, r in read_jsonl(folder/"eval/predictions.jsonl"):
        condition = f"drawn_l{r['level']:g}_s{r['seed']}" if r["level"] else ""
        out.setdefault(task_name(TasksConfig(), r["dataset"], condition, r["mode"]), {})[r["sample_id"]] = r
    return out


def installed(): return (LMMS/"lmms_eval").is_dir() or importlib.util.find_spec("lmms_eval") is not None


def with_lmms(*args, **env):
    "Run Python with lmms-eval, in a process of its own"
    env = os.environ | {"PYTHONPATH": str(LMMS), "CUDA_VISIBLE_DEVICES": ""} | env
    done = subprocess.run([sys.executable, *map(str, args)], env=env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"lmms-eval failed:\n{done.stderr[-3000:]}")
    return done.stdout


def theirs(folder, groups=("r3nb", "r3nb_text", "r3nb_frozen", "r3nb_frozen_text")):
    "What lmms-eval answers, by task"
    with_lmms(HERE/"lmms_run.py", folder/"tasks", backbone_dir(), folder/"lmms.json", *groups, HF_HOME=str(folder/"hf"))
    return read_json(folder/"lmms.json")


def compared(mine, found):
    "One row for each task"
    rows = []
    for name, t in sorted(found["tasks"].items()):
        pairs = [(mine[name][s["sample_id"]], s) for s in t["samples"]]
        if len(pairs) != len(mine[name]): raise SystemExit(f"{name}: {len(pairs)} questions in lmms-eval, {len(mine[name])} in r3nb_eval")
        rows.append({"task": name, "metric": t["metric"], "questions": len(pairs), "lmms_eval": t["score"],
                     "r3nb_eval": sum(p["scores"]["score"] for p, _ in pairs)/len(pairs),
                     "same_prompts": sum(sha256_text(s["prompt"]) == p["prompt_sha256"] for p, s in pairs),
                     "same_answers": sum(s["answer"] == p["prediction"] for p, s in pairs),
                     "same_scores": sum(abs(s["score"] - p["scores"]["score"]) <= 1e-6 for p, s in pairs)})
    return rows


def check(folder):
    "Both harnesses on the same questions"
    data = questions(folder)
    written(folder, data)
    found = theirs(folder)
    return {"made_by": "make interchange", "model": "the tiny Qwen3-VL that ships with r3nb, float32, on a CPU",
            "versions": found["versions"], "tasks": compared(ours(folder, data), found)}


def main(out):
    if not installed(): raise SystemExit("lmms-eval is not installed; run: make interchange")
    with tempfile.TemporaryDirectory() as tmp: result = check(Path(tmp))
    for r in result["tasks"]: print("{task}: lmms-eval {lmms_eval:.6f}, r3nb_eval {r3nb_eval:.6f}; the same {same_answers} of {questions} answers".format(**r))
    write_json(out, result)
    if any(r[k] != r["questions"] for r in result["tasks"] for k in ("same_prompts", "same_answers", "same_scores")): raise SystemExit("the two harnesses differ")


if __name__ == "__main__": main(*sys.argv[1:])
