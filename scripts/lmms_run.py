"""Run lmms-eval on a folder of r3nb_tasks with a model on this machine, and write what it answered and scored.

    python scripts/lmms_run.py TASKS_FOLDER MODEL_FOLDER OUT.json task [task …]

It needs an environment with lmms-eval (`make interchange` makes one) and nothing of r3nb. The model class is lmms-eval's own `huggingface`, mended in two
places: it passes `videos=[]` and `audios=[]` to processors, which transformers 5 refuses, and it always loads weights in bfloat16.
"""
import importlib.metadata
import json
import os
import sys

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.chat.huggingface import Huggingface
from lmms_eval.tasks import TaskManager
from transformers import AutoModelForImageTextToText


class Chat(Huggingface):
    "lmms-eval's `huggingface`, without empty media lists, in the precision that is asked for"
    def __init__(self, pretrained, dtype="float32", device="cpu"):
        super().__init__(pretrained=pretrained, device=device, device_map=device, batch_size=1)
        self._model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype).eval().to(device)
        whole = self.processor
        self.processor = lambda **kw: whole(**{k: v for k, v in kw.items() if v != []})
        self.processor.apply_chat_template, self.processor.batch_decode = whole.apply_chat_template, whole.batch_decode


def headline(task): return next(m["metric"] for m in task["metric_list"])


def main(folder, model, out, *tasks):
    done = simple_evaluate(model=Chat(model), tasks=list(tasks), task_manager=TaskManager(include_path=folder, include_defaults=False),
                           batch_size=1, bootstrap_iters=0)
    found = {}
    for name, rows in done["samples"].items():
        metric = headline(done["configs"][name])
        found[name] = {"metric": metric, "score": done["results"][name][f"{metric},none"], "results": done["results"][name], "samples": [
            {"sample_id": r["doc"]["sample_id"], "answer": r["filtered_resps"][0], "prompt": r["arguments"][0], "score": r[metric]} for r in rows]}
    versions = {p: importlib.metadata.version(p) for p in ("lmms-eval", "transformers", "datasets", "torch")}
    with open(out, "w") as f: json.dump({"versions": versions, "tasks": found}, f, indent=1, ensure_ascii=False, default=str)


if __name__ == "__main__": main(*sys.argv[1:])
