"""Memory and time of r3nb_unify and r3nb_merge as the number of records grows, with few images shared by all.

    python benchmarks/merge_memory.py                     10,000 and 100,000 records
    python benchmarks/merge_memory.py 100000 1000000      other sizes

Each command runs in a process of its own; its peak memory is what the operating system reports when it ends.
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import peak_mb, peak_of
from PIL import Image

from r3nb.core import sha256_file, write_jsonl

IMAGES = 200


def make(folder, n):
    "A raw ChartQA folder of n questions on few images, and its OCR cache"
    raw = folder/"raw/chartqa"
    (raw/"images").mkdir(parents=True)
    for i in range(IMAGES): Image.new("RGB", (64, 64), (i, 2*i % 256, 0)).save(raw/f"images/train_{i}.png")
    write_jsonl(raw/"chartqa_raw_train.jsonl", ({"image": f"images/train_{i % IMAGES}.png", "query": f"What is number {i}?", "label": [str(i), f"{i}.0"],
                                                 "human_or_machine": i % 2} for i in range(n)))
    words = [{"text": f"word{j}", "box": [0.0, 1.5, 2.5, 3.5], "conf": 0.9} for j in range(150)]
    write_jsonl(folder/"ocr.jsonl", ({"image_sha256": sha256_file(raw/f"images/train_{i}.png"), "image": f"train_{i}.png", "text": "number word "*75,
                                      "conf": 0.9, "words": words, "engine": "by hand"} for i in range(IMAGES)))


def peak(code, *args):
    "Seconds and peak megabytes of a command in a process of its own"
    start = time.monotonic()
    _, mb = peak_of(code, *args)
    return time.monotonic() - start, mb


def main():
    sizes, rows = [int(a) for a in sys.argv[1:]] or [10_000, 100_000], []
    for n in sizes:
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            make(d, n)
            call = lambda main: f"import sys; from r3nb.data import {main}; {main}(sys.argv[1:])"
            unify = peak(call("unify_main"), "--dataset", "chartqa", "--raw_dir", d/"raw/chartqa", "--out_dir", d/"u", "--image_prefix", "chartqa",
                         "--ocr_cache", d/"ocr.jsonl")
            merge = peak(call("merge_main"), d/"u/chartqa_unified_train.jsonl", "--out", d/"train.jsonl", "--image_root", d/"raw")
            size = (d/"train.jsonl").stat().st_size/2**20
        rows.append({"records": n, "file MB": round(size), "unify s": round(unify[0], 1), "unify peak MB": round(unify[1]), "merge s": round(merge[0], 1),
                     "merge peak MB": round(merge[1])})
        print(json.dumps(rows[-1]), flush=True)
    first, last = rows[0], rows[-1]
    print(f"{os.cpu_count()} cores; growth from {first['records']} to {last['records']} records: unify {last['unify peak MB'] - first['unify peak MB']} MB, "
          f"merge {last['merge peak MB'] - first['merge peak MB']} MB; this process {peak_mb():.0f} MB")


if __name__ == "__main__": main()
