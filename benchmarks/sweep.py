"""A sweep of 5 levels and 5 modes against a loop that treats each mode and level alone.

    python benchmarks/sweep.py                  24 pages with 3 questions each: 1,800 answers, some minutes
    python benchmarks/sweep.py --small          pages of the embedded world's size and its tiny CLIP: less to decode, damage and encode

Both use the same functions of r3nb, the same tiny Qwen3-VL, and answer in batches of 16. The loop opens, damages, searches and prepares for every mode and level anew, in the order of the file; the sweep does each
of these once for all modes, and puts questions of like length together. Pages have the sizes of the real datasets (phone screens of 1080 x 1920 pixels, charts, tall infographics), texts go through the packaged MiniLM and
pictures through a CLIP of ViT-B/32 size. Models are opened once by either. The two take turns; the ratio is the median over the rounds. Answers are compared: they must be the same.
"""
import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from bench import report
from index_throughput import random_clip
from PIL import Image

from r3nb.core import QARecord, open_image, read_jsonl, resolve_image, rng, write_jsonl
from r3nb.corrupt import corrupt
from r3nb.eval import Case, EvalConfig, Readers, eval_records, open_index, parse_mode, sweep
from r3nb.indices import EvidenceIndex, ImageEncoder, TextEncoder, encode_queries, retrieve
from r3nb.mini import DRAW, FAMILY, backbone_dir, clip_dir, entities, make_document, page_text, questions
from r3nb.model import R3Config, R3Model

MODES, LEVELS = ["base", "base+text", "lora", "rag", "r3"], [0, .2, .4, .6, .8]
SCALE = {"screen": 3.75, "chart": 1.9, "infographic": 3.5} # to about the size of the real pages


def make_pages(folder, split, numbers, scale):
    "Render pages with three questions each, as unified records."
    rows, families = [], list(DRAW)
    for i, entity in zip(numbers, entities(numbers[-1] + 1, 0)[numbers[0]:], strict=True):
        family, g = families[i % 3], rng("benchmark", split, i)
        doc = make_document(entity, family, g)
        im = DRAW[family](doc, g)
        if scale: im = im.resize((int(im.width * SCALE[family]), int(im.height * SCALE[family])), Image.Resampling.BICUBIC)
        name, text, asked = f"{split}_{i}.png", page_text(doc, g), questions(doc)
        im.save(folder / name)
        for kind in ("extractive", "comparison", "visual"):
            q, a, _ = asked[kind][0]
            rows.append(QARecord(f"{split}_{i}_{kind}", FAMILY[family], split, f"{split}/{i}", name, q, a, [a], text))
    return write_jsonl(folder / f"{split}.jsonl", rows)


def naive(cfg):
    "Every mode and level alone, in the order of the file; answers by mode, level and sample."
    index, out = open_index(cfg), {}
    readers, records = Readers(cfg, index), eval_records(cfg)
    for name in MODES:
        mode = parse_mode(name)
        for level in LEVELS:
            for i in range(0, len(records), cfg.batch_size):
                batch = records[i:i + cfg.batch_size]
                seen = [corrupt(r, open_image(resolve_image(cfg.image_root, r.image_path)), level, 0) for r in batch]
                cases = [Case(r, level, 0, c) for r, c in zip(batch, seen, strict=True)]
                found = retrieve(index, batch, seen, cfg.top_k) if mode.evidence else None
                if mode.model == "r3":
                    for c, v in zip(cases, encode_queries(index, seen, ("image",))["image"], strict=True): c.own = v
                for c, a in zip(cases, readers.answer(mode, cases, found), strict=True): out[name, level, c.record.sample_id] = a.text
    return out


def main():
    "Run and report."
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pages", type=int, default=24, help="pages with three questions each")
    ap.add_argument("--rounds", type=int, default=3, help="how often each loop runs")
    ap.add_argument("--threads", type=int, default=1, help="threads of torch")
    ap.add_argument("--small", action="store_true", help="the embedded world's own sizes")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        val, train = (make_pages(folder, s, n, not args.small) for s, n in (("val", range(args.pages)), ("train", range(args.pages // 2, 3 * args.pages))))
        clip = clip_dir() if args.small else random_clip(folder / "clip")
        index = EvidenceIndex.build(train, folder, folder / "index", TextEncoder(), ImageEncoder(clip))
        R3Model.from_pretrained(backbone_dir(), R3Config(image_dim=index.info["image"]["dim"])).save_pretrained(folder / "r3")
        cfg = EvalConfig(model_name=str(backbone_dir()), val_jsonl=str(val), image_root=tmp, index_dir=str(folder / "index"), checkpoint_dir=str(folder / "r3"),
                         lora_checkpoint_dir=str(folder / "r3"), eval_mode=MODES, corruption_levels=LEVELS, threads=args.threads)
        times = []
        for n in range(args.rounds):
            start = time.perf_counter()
            expected = naive(cfg)
            middle = time.perf_counter()
            rows = [r for _, r in read_jsonl(sweep(replace(cfg, out_dir=str(folder / f"out{n}"))))]
            times.append((middle - start, time.perf_counter() - middle))
            assert {(r["mode"], r["level"], r["sample_id"]): r["prediction"] for r in rows} == expected, "the answers differ"
        report("evaluation: sweep of 5 levels x 5 modes against a loop over modes and levels", statistics.median(a / b for a, b in times), "x", ">= 3",
               answers=len(rows), naive_s=round(statistics.median(a for a, _ in times), 1), sweep_s=round(statistics.median(b for _, b in times), 1), threads=args.threads)


if __name__ == "__main__": main()
