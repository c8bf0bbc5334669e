"""Peak memory of an evaluation as the number of questions grows, with a reader that costs nothing.

    python benchmarks/eval_memory.py                 500 and 5,000 questions, 2 modes, 3 levels
    python benchmarks/eval_memory.py 1000 20000      other sizes

All questions are about 64 pages of 850 x 600 pixels. Each run is a process of its own, from reading the records to the summary; its peak is the operating system's figure.
"""
import json
import sys
import tempfile
from pathlib import Path

from bench import chart, peak_mb, report, run_self

from r3nb.core import QARecord, write_jsonl
from r3nb.eval import Answer, EvalConfig, evaluate

PAGES = 64


class Parrot:
    "Says the first word of the text that it is shown"
    def answer(self, mode, cases, evidence): return [Answer((c.seen.pseudo_text.split() or [""])[0] if mode.text else "", c.seen.question) for c in cases]


def records(n):
    for i in range(n):
        yield QARecord(f"s{i}", "chartqa", "val", f"c/{i * PAGES // n}", f"{i * PAGES // n}.png", f"How much is bar {i}?", str(i), [str(i)], f"{i} bars " + "label 42 " * 40)


def run(folder, n):
    "Evaluate n questions; peak memory in MB."
    write_jsonl(folder / f"{n}.jsonl", records(n))
    evaluate(EvalConfig(model_name="none", val_jsonl=str(folder / f"{n}.jsonl"), image_root=str(folder), out_dir=str(folder / f"out{n}"), eval_mode=["base", "base+text"],
                        corruption_levels=[0, .4, .8], n_boot=100), Parrot())
    return dict(mb=peak_mb())


def main():
    "Run both sizes and report the growth."
    if sys.argv[1:2] == ["--one"]: return print(json.dumps(run(Path(sys.argv[2]), int(sys.argv[3]))))
    small, large = [int(a) for a in sys.argv[1:]] or [500, 5000]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(PAGES): chart(i, (850, 600)).save(Path(folder) / f"{i}.png")
        mb = {n: run_self("--one", folder, n)["mb"] for n in (small, large)}
    report("evaluation: growth of peak memory", mb[large] - mb[small], "MB", "flat", small=small, large=large, small_mb=round(mb[small]), large_mb=round(mb[large]),
           kb_per_question=round(1024 * (mb[large] - mb[small]) / (large - small), 1))


if __name__ == "__main__": main()
