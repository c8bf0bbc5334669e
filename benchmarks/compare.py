"""How long `r3nb_compare` takes: 10,000 resamples of 10,000 questions at 5 levels, two files, the whole command; and one pass of the bootstrap against a plain loop.

    python benchmarks/compare.py [questions] [pages]
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import report

from r3nb.core import rng
from r3nb.metrics import resample

LEVELS = (0, .2, .4, .6, .8)
NOISE = "harbour report revenue users battery storage calories distance tickets orders costs settings account privacy language version "


def write(path, shift, questions, pages):
    "Answers of one mode, with as much text in each row as a real run has."
    r = rng("compare benchmark", shift)
    with open(path, "w") as f:
        for i in range(questions):
            for level in LEVELS:
                right = float(r.random() < .9 - level*(.7 - shift))
                scores = {k: right for k in ("score", "em", "f1", "bleu", "rouge_l", "anls")}
                f.write(json.dumps({"sample_id": f"infovqa_val_{i}", "image_id": f"infovqa/{i % pages}", "dataset": "infovqa", "mode": "r3", "level": level, "seed": 0,
                    "damage": "drawn", "prompt_sha256": "0"*64, "prediction": "432", "references": ["432", "four hundred"], "scores": scores, "text": NOISE*4,
                    "evidence": [{"image_id": f"infovqa/{k}", "score": .5, "channel": "text"} for k in range(3)], "formed": None,
                    "shown": {"text": NOISE*2 + str(i), "passages": [{"image_id": f"infovqa/{k}", "channel": "text", "text": NOISE*3} for k in range(3)]}, "gates": [.2, .3, .5],
                    "confidence": {"vis": .5, "text": .5, "true_vis": .5, "true_text": .5}, "meta": {"answer_type": ["single span"]}}) + "\n")
    return path


def loop(sums, sizes, n):
    "The same resamples, one after the other."
    r = rng("paired_bootstrap", 0)
    return np.array([sums[d].sum(axis=0)/sizes[d].sum() for d in (r.integers(0, len(sizes), len(sizes)) for _ in range(n))])


def children():
    "Seconds of processor time that finished child processes took."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    questions, pages = (int(v) for v in [*sys.argv[1:], "10000", "10000"][:2])
    with tempfile.TemporaryDirectory() as d:
        files = [str(write(Path(d)/f"{s}.jsonl", s, questions, pages)) for s in (0, .2)]
        for by, value in (("level", "score"), ("level,dataset", "score"), ("level", "esar")):
            t, cpu = time.perf_counter(), children()
            subprocess.run([sys.executable, "-m", "r3nb.compare", *files, "--by", by, "--value", value], check=True, stdout=subprocess.DEVNULL, env=os.environ)
            report(f"r3nb_compare of {value} by {by}", time.perf_counter() - t, "s", "10" if (by, value) == ("level", "score") else "", cpu_s=round(children() - cpu, 2), questions=questions, pages=pages, rows=2*5*questions)
    r = rng("one pass")
    sums, sizes = r.random((pages, 5)), np.ones(pages)
    ratios = []
    for _ in range(3):
        t0 = time.perf_counter(); slow = loop(sums, sizes, 500)
        t1 = time.perf_counter(); fast = resample(np.column_stack([sums, sizes]), 500)
        ratios.append((t1 - t0)/(time.perf_counter() - t1))
        assert np.allclose(slow, fast[:, :-1]/fast[:, -1:])
    report("resampling, faster than a loop over resamples", float(np.median(ratios)), "times", "", pages=pages)


if __name__ == "__main__": main()
