"""Memory, load time, search time and merge time of large indices, with stand-in encoders that cost next to nothing.

    python benchmarks/index_scale.py                            10,000 and 100,000 documents, minutes
    python benchmarks/index_scale.py --small 100000 --large 1000000   the sizes of the goals; needs about 12 GB of disk in --work
    python benchmarks/index_scale.py --passages 4               long documents, of about so many passages each
    python benchmarks/index_scale.py --kinds 1000               vectors in clusters instead of vectors without any structure (the harder case)

Each build runs in a process of its own; its peak memory is the operating system's figure, mapped files included. All documents share one picture. Text vectors have 384 dimensions.
"""
import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import HashImage, HashText, chart, peak_mb, report, run_self

from r3nb.copies import Look
from r3nb.core import read_json
from r3nb.documents import shared_plan
from r3nb.encoders import build_shard, check_shards
from r3nb.indices import PASSAGE, EvidenceIndex, Parts, join_parts, merge_shards
from r3nb.passages import Cut

BATCH, SHARDS = 256, 8


LINES = 8 # lines of about 13 tokens in a passage of 100


def text_of(i, passages=1):
    "A short text, or one of several passages."
    if passages == 1: return f"document {i} says {i * 7919 % 1000003} " + "and so on " * (i % 13)
    return "\n".join(f"line {k} of {i} says {(i * 7919 + k) % 1000003}" for k in range(LINES * passages - i % 7))


def make_jsonl(folder, n, passages):
    "Records of n documents that share one picture."
    path = folder / f"{n}.jsonl"
    if not (folder / "a.png").exists(): chart(0, (60, 45)).save(folder / "a.png")
    with open(path, "w") as f:
        for i in range(n):
            f.write(json.dumps(dict(sample_id=f"s{i}", dataset="chartqa", split="train", image_id=f"d/{i}", image_path="a.png", question="?", answer="1", answers=["1"],
                                    pseudo_text=text_of(i, passages), ocr_text="", ocr_conf=None, meta={})) + "\n")
    return path


def encoders(kinds): return {"text": HashText(384, kinds), "image": HashImage()}


def build(folder, n, kinds, passages):
    "Build an index of n documents; peak memory and seconds."
    e, start = encoders(kinds), time.perf_counter()
    EvidenceIndex.build(make_jsonl(folder, n, passages), folder, folder / f"index_{n}", e["text"], e["image"], BATCH)
    return dict(mb=peak_mb(), seconds=time.perf_counter() - start)


def load(folder, n, kinds, passages):
    "Seconds to open an index and to answer the first query."
    e, start = encoders(kinds), time.perf_counter()
    index = EvidenceIndex.load(folder / f"index_{n}", e["text"], e["image"])
    opened = time.perf_counter() - start
    index.search(texts=index.text_vectors[:1].copy(), exclude=[{"d/0"}])
    return dict(seconds=opened, first=time.perf_counter() - start, mb=peak_mb())


def search(folder, n, kinds, passages):
    "Milliseconds per query, in batches of 32 with exclusion by id and by hash, and recall against numpy."
    e, g = encoders(kinds), np.random.default_rng(1)
    index = EvidenceIndex.load(folder / f"index_{n}", e["text"], e["image"])
    own = np.sort(g.choice(n, 320, replace=False))
    q = index.text_vectors[index.passages.rows(own)[0][index.passages.rows(own)[1]]] + .04 * g.standard_normal((320, 384), dtype="float32")
    q, ids = q / np.linalg.norm(q, axis=1, keepdims=True), [{f"d/{i}"} for i in own]
    looks, times, found = [Look((~index.hashes[0]).tobytes().hex())] * 32, [], []
    for a in range(0, 320, 32):
        start = time.perf_counter()
        found += index.search(texts=q[a:a + 32], exclude=ids[a:a + 32], exclude_copies=looks, top_k=3)
        times.append((time.perf_counter() - start) / 32 * 1e3)
    right, truth = [], np.full((64, 0), 0, "float32")
    for a in range(0, n, 32768): # pages, each with its best passage
        rows, begin = index.passages.rows(np.arange(a, min(n, a + 32768)))
        s = np.maximum.reduceat(q[:64] @ index.text_vectors[rows[0]:rows[-1] + 1].T, begin, axis=1)
        for i, page in enumerate(own[:64]):
            if a <= page < a + s.shape[1]: s[i, page - a] = -2
        truth = -np.sort(-np.concatenate([truth, s], axis=1), axis=1)[:, :3]
    for f, t in zip(found[:64], truth, strict=True): right.append(np.mean([e.score >= t[2] - 2e-5 for e in f["text"]]))
    return dict(first=times[0], ms=float(np.median(times[1:])), recall=float(np.mean(right)), passages=len(index.text_vectors), **index.info["text"]["structure"])


def shards(folder, n, kinds, passages):
    "Build eight shards, one after the other."
    out, jsonl = folder / f"sharded_{n}", make_jsonl(folder, n, passages)
    for i in range(SHARDS): build_shard(out, shared_plan(out, jsonl, folder, Cut(PASSAGE, HashText(384, kinds))), i, SHARDS, encoders(kinds), BATCH, folder)
    return {}


def copy_files(files, target):
    "Seconds to read files and write their bytes to another place, down to the disk."
    start, size = time.perf_counter(), 0
    for f in files:
        with open(f, "rb") as a, open(target / f"{f.parent.name}_{f.name}", "wb") as b:
            shutil.copyfileobj(a, b, 1 << 20)
            size += b.tell()
            b.flush()
            os.fsync(b.fileno())
    return time.perf_counter() - start, size


def merge(folder, n, kinds, passages):
    "Seconds of joining the shards, of a plain copy of the same bytes, and of the whole merge with its structures."
    out, scratch = folder / f"sharded_{n}", folder / "copy"
    plan, parts, about = check_shards(out, SHARDS)
    scratch.mkdir()
    plain, size = copy_files([*(f for p in parts for f in p.glob("*.npy")), plan / "documents.arrow"], scratch)
    shutil.rmtree(scratch)
    scratch.mkdir()
    start = time.perf_counter()
    join_parts(Parts(plan, parts, about["batch_size"]), scratch)
    for f in scratch.iterdir():
        with open(f, "rb") as file: os.fsync(file.fileno())
    joined, mb = time.perf_counter() - start, peak_mb()
    shutil.rmtree(scratch)
    start = time.perf_counter()
    merge_shards(out, SHARDS)
    whole = time.perf_counter() - start
    same = read_json(out / "index.json")["fingerprint"] == read_json(folder / f"index_{n}" / "index.json")["fingerprint"]
    return dict(copy=plain, join=joined, whole=whole, mb_copied=size / 1e6, peak_mb=mb, same=same)


STEPS = {f.__name__: f for f in (build, load, search, shards, merge)}


def main():
    "Run the steps in processes of their own and report."
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--small", type=int, default=10_000, help="documents of the small index")
    ap.add_argument("--large", type=int, default=100_000, help="documents of the large index")
    ap.add_argument("--kinds", type=int, default=0, help="clusters of the vectors; 0 for none")
    ap.add_argument("--passages", type=int, default=1, help="passages of a document, about")
    ap.add_argument("--work", default="", help="folder for the files, removed at the end")
    ap.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.step: return print(json.dumps(STEPS[args.step[0]](Path(args.work), int(args.step[1]), args.kinds, args.passages)))
    with tempfile.TemporaryDirectory(dir=args.work or None) as folder:
        step = lambda name, n: run_self("--step", name, n, "--work", folder, "--kinds", args.kinds, "--passages", args.passages)
        small, large = step("build", args.small), step("build", args.large)
        sizes = dict(small=args.small, large=args.large)
        report("index build: growth of peak memory", large["mb"] - small["mb"], "MB", "< 300 from 100k to 1M", small_mb=round(small["mb"]), large_mb=round(large["mb"]),
               seconds=round(large["seconds"], 1), **sizes)
        opened = step("load", args.large)
        report("index load", opened["seconds"], "s", "< 2 at 1M", documents=args.large, with_first_query_s=round(opened["first"], 2))
        found = step("search", args.large)
        report("index search, top 3, batches of 32, with exclusion", found["ms"], "ms/query", "< 10 at 1M", documents=args.large, passages=found["passages"], first_batch=round(found["first"], 2),
               factory=found["factory"], nprobe=found.get("nprobe"), candidates=found.get("candidates"), recall_at_build=found["recall_at_3"], recall_here=round(found["recall"], 4))
        step("shards", args.large)
        merged = step("merge", args.large)
        report(f"merge of {SHARDS} shards: joining files, against a plain copy", merged["join"] / merged["copy"], "x the time", "limited by disk", documents=args.large,
               MB=round(merged["mb_copied"]), copy_s=round(merged["copy"], 2), join_s=round(merged["join"], 2), with_structures_s=round(merged["whole"], 2),
               peak_mb=round(merged["peak_mb"]), equals_single_build=merged["same"])


if __name__ == "__main__": main()
