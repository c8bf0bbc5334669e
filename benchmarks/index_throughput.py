"""Throughput of an index build against a bare loop over the same encoders, and against a naive loop over all records.

    python benchmarks/index_throughput.py                       96 charts, MiniLM and a CLIP of ViT-B/32 size with random weights
    python benchmarks/index_throughput.py --pages 2000 --clip models/clip-vit-base-patch32

The data are like ChartQA: 1.55 questions per picture (28,299 on 18,317), texts of very different lengths. The bare loop knows the distinct items beforehand and calls the encoders in batches,
sentence-transformers sorting the texts by length as it does by itself; the naive loop encodes the picture and the text of every record as they come. The three take turns, and the ratios are
medians over the rounds.
"""
import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import chart, report

from r3nb.core import QARecord, open_image, write_jsonl
from r3nb.indices import EvidenceIndex, ImageEncoder, TextEncoder


def random_clip(folder):
    "A CLIP with a vision tower of ViT-B/32 size and random weights: the cost of the real one, without its weights."
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, max_position_embeddings=16,
                 bos_token_id=0, eos_token_id=1, pad_token_id=2)
    CLIPModel(CLIPConfig(text_config=small, vision_config=dict(image_size=224, patch_size=32))).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def make_world(folder, pages):
    "Charts and records; every 20 pictures carry 31 questions."
    g, words, records = np.random.default_rng(0), [f"word{i}" for i in range(500)], []
    for i in range(pages):
        chart(i).save(folder / f"{i}.png")
        text = " ".join(g.choice(words, int(g.integers(5, 120))))
        for q in range(2 if i % 20 < 11 else 1):
            records.append(QARecord(f"c_{i}_{q}", "chartqa", "train", f"c/{i}", f"{i}.png", "how much?", "1", ["1"], f"{text} {i}"))
    write_jsonl(folder / "train.jsonl", [r.to_dict() for r in records])
    return records


def bare(folder, records, text, image):
    "The encoders alone, on distinct items."
    once = list({r.image_id: r for r in records}.values())
    text.encode([r.pseudo_text for r in once])
    for i in range(0, len(once), 32): image.encode([open_image(folder / r.image_path) for r in once[i:i + 32]])


def naive(folder, records, text, image):
    "Every record by itself, in batches as they come."
    for i in range(0, len(records), 32):
        block = records[i:i + 32]
        text.encode([r.pseudo_text for r in block])
        image.encode([open_image(folder / r.image_path) for r in block])


def main():
    "Run and report."
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pages", type=int, default=96, help="number of pictures")
    ap.add_argument("--rounds", type=int, default=3, help="how often each loop runs")
    ap.add_argument("--clip", default="", help="directory of a CLIP model; empty makes one of ViT-B/32 size")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        records = make_world(folder, args.pages)
        text, image = TextEncoder(), ImageEncoder(args.clip or random_clip(folder / "clip"))
        text.encode(["warm"]), image.encode([chart(0)])
        build = lambda: EvidenceIndex.build(folder / "train.jsonl", folder, folder / "index", text, image)
        times = {name: [] for name in ("build", "bare", "naive")}
        for _ in range(args.rounds):
            for name, loop in (("build", build), ("bare", lambda: bare(folder, records, text, image)), ("naive", lambda: naive(folder, records, text, image))):
                start = time.perf_counter()
                loop()
                times[name].append(time.perf_counter() - start)
                shutil.rmtree(folder / "index", ignore_errors=True)
        middle = {name: statistics.median(t) for name, t in times.items()}
        ratio = lambda name: statistics.median(b / a for a, b in zip(times["build"], times[name], strict=True))
        more = dict(pages=args.pages, questions=len(records), pages_per_s=round(args.pages / middle["build"], 2))
        report("index build: throughput against a bare encode loop", ratio("bare"), "x", ">= 0.9", **more)
        report("index build: throughput against a naive loop over all records", ratio("naive"), "x", ">= 1.5", **more)


if __name__ == "__main__": main()
