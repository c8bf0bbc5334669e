"""Time per sample by part on pages of real sizes, and ratios against the bare library calls, on one core.

    python benchmarks/real_pages.py --models models --raw data/raw                                  raw folders of ScreenQA, ChartQA and InfographicVQA (any of them) in one folder
    python benchmarks/real_pages.py --models models --jsonl data/unified/train.jsonl --image_root data/raw      any unified records
    ... --part samples | ratios | memory      one of the three tables; --no_ocr leaves the slowest part out

`--models` names the folder with Qwen3-VL-8B-Instruct (its processor alone is opened) and clip-vit-base-patch32, as `r3nb_models --out_dir models` and `r3nb_download` lay them out; models with random weights take as long. Raw data are made by r3nb_download, or drawn.

Pages are spread over the file of each dataset (`--pages` each), each is prepared `--draws` times as a training does, at levels between 0 and .8, with the sample's own draw of damage. A record
without text gets made-up words in the amount that its dataset has (50 on a chart, 100 on a screen, 218 on an infographic, every fourth of these 1,100). Parts: `open`, `damage` (with its confidence map and the text), `CLIP` and `MiniLM` (the query
vectors), `search` (in as many vectors as there are training pages, 61,485), `rest` (signals, page vectors), `processor` (scaling, tokens and pixels of the damaged picture; a teacher sees the clean one, too, and pays it twice),
`OCR again` (reading the damaged picture, which only evaluations with text_damage reocr do). The parts are timed one sample at a time. `live` is what a worker of training does without a cache, for `--batch` samples
at once (by default as many as r3nb_train puts into a batch) and with nothing remembered of their pages, `alone` the same for one sample, `cached` what it does with an evidence cache. The mix weighs datasets as
training does: (number of questions) ** .5, with 68,980, 28,299 and 14,514.

Times are of the processor (`ms`); on an idle machine they are those of the clock, which stands beside (`clock_ms`). Both sides of a ratio take turns. Evidence is prepared per record at 5 levels.

How many cores one H100 needs is arithmetic, not measured: a token takes 2 operations per parameter forward and 2 backward (the frozen weights get no gradient), 2 more with checkpointing and 2 for the teacher, times 8.77 billion
parameters; the GPU has 989 TFLOP/s (NVIDIA's data sheet of the H100 SXM, bfloat16, dense), of which a training reaches `--share`, .4 by default; a share of 1 is the bound that nothing can pass.
"""
import argparse
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from bench import peak_of, report

SIZES = {"screenqa": 68_980, "chartqa": 28_299, "infovqa": 14_514} # questions of the training sets
PAGES = 61_485 # and their pages
WORDS = {"screenqa": (100,), "chartqa": (50,), "infovqa": (218, 218, 218, 1100)} # on a page
LIMIT = 2_097_152 # pixels that the backbone sees
GOALS = {"live": 4.5, "cached": 10, "damage": 1.5, "open": 1.2}
H100, PARAMETERS = 989e12, 8.77e9


class Clock:
    "Seconds of the processor and of the clock, by name."
    def __init__(self): self.took = defaultdict(list)
    def __call__(self, name, work, n=1): # n samples at once
        wall, cpu = time.perf_counter(), time.process_time()
        out = work()
        self.took[name] += [((time.process_time() - cpu) / n, (time.perf_counter() - wall) / n)] * n
        return out
    def mean(self, name): return np.mean(self.took[name], axis=0) * 1e3 if self.took[name] else np.zeros(2)


def made_up(dataset, i):
    "Words as many as a page of the dataset has."
    g, n = np.random.default_rng(i), WORDS.get(dataset, (100,))
    return " ".join(g.choice("river market signal 4,711 north 17% winter USD letter engine harbour silver 1,205 paper bridge figure".split(), n[i % len(n)]))


def from_raw(raw, folder):
    "Unified records of all raw folders."
    from r3nb.core import read_records, write_jsonl
    from r3nb.data import UnifyConfig, unify
    rows = []
    for name in (n for n in SIZES if (Path(raw) / n / f"{n}_raw_train.jsonl").is_file()):
        unify(UnifyConfig(name, str(Path(raw) / name), str(folder), image_prefix=name, splits=["train"], text_from="none"))
        rows += read_records(folder / f"{name}_unified_train.jsonl", raw)
    if not rows: raise SystemExit(f"{raw}: none of {', '.join(SIZES)} with <name>_raw_train.jsonl; make them with r3nb_download")
    return write_jsonl(folder / "all.jsonl", rows), raw


def chosen(records, n):
    "One record of each of `n` pages per dataset, spread over the file, with text."
    from dataclasses import replace
    pages, out = defaultdict(dict), []
    for r in records: pages[r.dataset].setdefault(r.image_id, r)
    for name, by in pages.items():
        some = list(by.values())
        some = [some[i * len(some) // n] for i in range(n)] if len(some) > n else some
        out += [replace(r, pseudo_text=r.pseudo_text.strip() or made_up(name, i), ocr_conf=.9) for i, r in enumerate(some)]
    return out


def opened(args, folder):
    "Records, their index, the collator and a training set with and without an evidence cache."
    from transformers import AutoProcessor

    from r3nb.core import read_records, sha256_file, write_jsonl
    from r3nb.evidence import Grid
    from r3nb.indices import CHANNELS, EvidenceIndex
    from r3nb.model import PLACEHOLDERS, R3Collator
    from r3nb.train import TrainConfig
    source, root = from_raw(args.raw, folder) if args.raw else (args.jsonl, args.image_root)
    jsonl = write_jsonl(folder / "records.jsonl", chosen(read_records(source, root), args.pages))
    records, models = read_records(jsonl, root), Path(args.models)
    index = EvidenceIndex.build(records, root, folder / "index", "minilm", str(models / "clip-vit-base-patch32"))
    cfg = TrainConfig(model_name=str(models / "Qwen3-VL-8B-Instruct"), train_jsonl=str(jsonl), image_root=str(root), index_dir=str(index.folder), warmup_steps=0, batch_size=1, # levels go by single samples
                      max_steps=len(records) * args.draws, evidence_cache=str(folder / "cache"))
    processor = AutoProcessor.from_pretrained(cfg.model_name)
    processor.tokenizer.add_tokens(list(PLACEHOLDERS), special_tokens=True)
    config = cfg.model_config(index)
    grid = Grid(index.fingerprint, sha256_file(jsonl), cfg.seed, cfg.top_k, list(CHANNELS), cfg.corrupt_text_target, [0, .2, .4, .6, .8], copies=index.copies)
    return records, index, cfg, config, R3Collator(processor, config), grid


def fit(collator, image):
    "A picture as the backbone sees it."
    from r3nb.model import fit_picture
    try: return fit_picture(image, collator.manner, LIMIT)
    except TypeError: # before pictures had a limit
        from PIL import Image
        share = math.sqrt(LIMIT / (image.width * image.height))
        return image if share >= 1 else image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.HAMMING)


def searcher(folder, n, width):
    "A search in as many random vectors as there are training pages."
    from r3nb.ann import Searcher, build_structure
    v = np.random.default_rng(0).standard_normal((n, width), dtype="float32")
    np.save(folder / f"{width}.npy", v / np.linalg.norm(v, axis=1, keepdims=True))
    about = build_structure(folder / f"{width}.npy", folder / f"{width}.faiss", "Flat")
    return Searcher(folder / f"{width}.faiss", folder / f"{width}.npy", about)


def look_through(searchers, vectors):
    "The best three of all vectors in both channels."
    return [s.top(v, 3, lambda i, rows: np.ones(len(rows), bool)) for s, v in zip(searchers, vectors, strict=True)]


def by_part(clock, data, collator, index, searchers, position, engine):
    "One sample, part by part, as `TrainSet.examples` makes it."
    from dataclasses import replace

    from r3nb.core import open_image, resolve_image
    from r3nb.corrupt import corrupt
    from r3nb.indices import query_text
    from r3nb.model import make_examples
    r, level, seed = data.records[data.order[position]], data.level(position), data.damage_seed(position)
    image = clock("open", lambda: open_image(resolve_image(data.cfg.image_root, r.image_path)))
    seen = clock("damage", lambda: corrupt(r, image, level, seed))
    own = clock("CLIP", lambda: index.encoders["image"].encode([seen.image]))
    text = clock("MiniLM", lambda: index.encoders["text"].encode([query_text(seen)]))
    clock("search", lambda: look_through(searchers, (text, own)))
    found = index.search(text, own, [{r.image_id}], [[index.look(r)]], 3)
    example = clock("rest", lambda: make_examples(index, [r], [seen], collator.config, found, own, [(image, r.pseudo_text, r.question)])[0])
    evidence = clock("rest2", lambda: collator.evidence([example]))
    batch = clock("processor", lambda: collator([replace(example, corrupted=replace(seen, image=fit(collator, seen.image)))], evidence=evidence))
    if engine is not None: clock("OCR again", lambda: engine(seen.image))
    return int(batch["inputs"]["attention_mask"].sum())


def fill_cache(clock, index, grid, records, root, folder):
    "An evidence cache, record by record."
    from r3nb.evidence import BLOCK, block_file, claim, fill_block
    claim(folder, grid)
    rows = [clock(f"evidence {r.dataset}", lambda r=r: fill_block(index, grid, [r], root)) for r in records]
    for b in range(-(-len(rows) // BLOCK)): np.save(block_file(folder, b), np.concatenate(rows[b * BLOCK:(b + 1) * BLOCK]))


def forget():
    "Let go of what is remembered of pages: among those of a training none comes back soon."
    from r3nb import copies
    for memory in (copies._file_view, copies._cut_hashes, copies._file_difference): memory.cache_clear()


def as_workers_do(clock, kind, data, collator, searchers, positions, batch):
    "Prepare samples in batches; the index of the benchmark's own pages is small, so that searching a large one is timed beside it."
    widths = [s.index.d for s in searchers]
    for a in range(0, len(positions), batch):
        some = positions[a:a + batch]
        vectors = [np.random.default_rng(a).standard_normal((len(some), d), dtype="float32") for d in widths]
        clock(f"search {kind}", lambda vectors=vectors: look_through(searchers, vectors), len(some))
        forget()
        clock(kind, lambda some=some: [collator.evidence([e]) for e in data.examples(some)], len(some))


def samples(args, folder):
    "Times of all parts for each dataset, and the rates of their mix."
    from r3nb.evidence import EvidenceStore, one_thread
    from r3nb.ocr import RapidOCREngine
    from r3nb.train import TrainSet
    records, index, cfg, config, collator, grid = opened(args, folder)
    engine, whole, clocks = None if args.no_ocr else RapidOCREngine(), Clock(), defaultdict(Clock)
    searchers = [searcher(folder, args.vectors, index.info[c]["dim"]) for c in ("text", "image")]
    fill_cache(whole, index, grid, records, cfg.image_root, folder / "cache")
    live = TrainSet(cfg, records, index, config)
    cached = TrainSet(cfg, records, index, config, store=EvidenceStore(folder / "cache", index, cfg.train_jsonl, len(records), cfg.seed, cfg.top_k, config.channels, cfg.corrupt_text_target))
    tokens = defaultdict(list)
    for data in (live, cached): data.order = np.tile(np.arange(len(records)), args.draws)
    with one_thread():
        live[0], cached[0]
        for p in range(len(live)):
            name = records[live.order[p]].dataset
            tokens[name].append(by_part(clocks[name], live, collator, index, searchers, p, engine if p < len(records) else None))
        for name in clocks:
            own = [p for p in range(len(live)) if records[live.order[p]].dataset == name]
            for kind, data, batch in (("alone", live, 1), ("live", live, args.batch), ("cached", cached, args.batch)): as_workers_do(clocks[name], kind, data, collator, searchers, own, batch)
    tell(args, clocks, whole, {k: statistics.mean(v) for k, v in tokens.items()})


def tell(args, clocks, whole, tokens):
    "The table of parts, and what follows for a GPU."
    names, parts = list(clocks), ["open", "damage", "CLIP", "MiniLM", "search", "rest", "processor", *["OCR again"] * (not args.no_ocr), "alone", "live", "cached"]
    share = {n: SIZES.get(n, statistics.mean(SIZES.values()))**.5 for n in names}
    share = {n: v / sum(share.values()) for n, v in share.items()}
    mean = {n: {p: clocks[n].mean(p) + (clocks[n].mean("rest2") if p == "rest" else 0) for p in parts} for n in names}
    for n, kind in product(names, ("alone", "live")): mean[n][kind] += clocks[n].mean(f"search {kind}")
    mean["mix"] = {p: sum(share[n] * mean[n][p] for n in names) for p in parts}
    mean["mix"]["evidence"], tokens = sum(share[n] * whole.mean(f"evidence {n}") for n in names), sum(share[n] * tokens[n] for n in names)
    for n in names: report(f"{n}, ms by part", mean[n]["live"][0], "ms live", **{p: round(mean[n][p][0], 1) for p in parts}, clock_ms=round(mean[n]["live"][1], 1))
    report("mix, ms by part", mean["mix"]["live"][0], "ms live", **{p: round(mean["mix"][p][0], 1) for p in parts}, shares={k: round(v, 3) for k, v in share.items()})
    rate, cpu = {}, {}
    for kind in ("alone", "live", "cached"):
        cpu[kind], clock = mean["mix"][kind]
        rate[kind] = 1e3 / cpu[kind]
        twice = 1e3 / (cpu[kind] + 2 * mean["mix"]["processor"][0])
        report(f"mix, samples prepared {kind}", rate[kind], "samples/s and core", f">= {GOALS[kind]}" if kind in GOALS else "", by_the_clock=round(1e3 / clock, 2), with_processor_and_teacher=round(twice, 2))
    report("evidence of the mix at 5 levels", 1e3 / mean["mix"]["evidence"][0], "records/s and core", hours_for_111793_records_on_16_cores=round(111_793 * mean["mix"]["evidence"][0] / 3.6e6 / 16, 1))
    for part in (args.share, 1.):
        most = H100 * part / (8 * PARAMETERS * tokens)
        report(f"one H100 at {part:.0%} of its peak", most, "samples/s (arithmetic)", tokens=round(tokens), cores_live=math.ceil(most / rate["live"]), cores_cached=math.ceil(most / rate["cached"]))


def ratio(name, rounds, what, pairs, goal=""):
    "Report ours against theirs."
    value, ours, bare = turns(pairs, rounds)
    report(f"{name}: {what} / bare calls", value, "x", goal, ms=round(ours, 1), bare_ms=round(bare, 1))


def turns(pairs, rounds):
    "Median ratio over rounds in which ours and theirs take turns, and the median ms of both."
    took = np.zeros((rounds, 2))
    for i in range(-1, rounds): # one round to warm up
        for k in (i % 2, 1 - i % 2):
            start = time.process_time()
            for p in pairs: p[k]()
            took[i, k] = (time.process_time() - start) / len(pairs) * 1e3
    return statistics.median(took[:, 0] / took[:, 1]), *np.median(took, axis=0)


def reduced(path, size):
    "Pillow's reducing decode: a JPEG is decoded at a fraction of its size if that is enough, and the rest is reduced."
    from PIL import Image
    with Image.open(path) as im:
        im.thumbnail(size, Image.Resampling.HAMMING, reducing_gap=2.0)
        return im.convert("RGB")


def ratios(args, folder):
    "Each part against the bare calls, for the pages of each dataset."
    import corruption
    from PIL import Image

    from r3nb.core import open_image, resolve_image
    from r3nb.corrupt import IMAGE_FAMILIES
    from r3nb.indices import query_text
    records, index, cfg, config, collator, _ = opened(args, folder)
    clip, words = index.encoders["image"], index.encoders["text"]
    for name in dict.fromkeys(r.dataset for r in records):
        some = [r for r in records if r.dataset == name]
        paths = [resolve_image(cfg.image_root, r.image_path) for r in some]
        pages = [open_image(p) for p in paths]
        sizes = [fit(collator, im).size for im in pages]
        tell_ratio = partial(ratio, name, args.rounds)
        tell_ratio("open", [(lambda p=p: open_image(p), lambda p=p: Image.open(p).convert("RGB")) for p in paths])
        tell_ratio("open and scale", [(lambda p=p: fit(collator, open_image(p)), lambda p=p, s=s: reduced(p, s)) for p, s in zip(paths, sizes, strict=True)], f"<= {GOALS['open']}")
        for family in (*IMAGE_FAMILIES, None):
            pairs = [corruption.pair(r, im, .6, family) for r, im in zip(some, pages, strict=True)]
            tell_ratio(f"damage, {family or 'drawn'}", pairs, f"<= {GOALS['damage']}")
        tell_ratio("CLIP", [(lambda im=im: clip.encode([im]), lambda im=im: bare_clip(clip, im)) for im in pages])
        asked = [query_text(corruption.corrupt(r, im, .4)) for r, im in zip(some, pages, strict=True)]
        tell_ratio("MiniLM", [(lambda t=t: words.encode([t]), lambda t=t: words.model.encode([t], normalize_embeddings=True, show_progress_bar=False)) for t in asked])


def bare_clip(clip, image):
    "The calls of transformers for one picture."
    import torch
    from PIL import Image
    image = image.resize((clip.model.config.vision_config.image_size,) * 2, Image.Resampling.BICUBIC, reducing_gap=3.0)
    with torch.inference_mode(): return clip.model.get_image_features(pixel_values=clip.processor(images=[image], do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"])


PEAK = """
import sys
import cv2
cv2.setNumThreads(0)
from r3nb.core import QARecord, open_image
from r3nb.corrupt import corrupt
from r3nb.evidence import keep_memory
if sys.argv[3] == "kept": keep_memory()
image = open_image(sys.argv[1])
if sys.argv[2] != "none": corrupt(QARecord("s", "infovqa", "train", "i", "p", "q", "a", ["a"], "words " * 200), image, .6, 0, None if sys.argv[2] == "drawn" else sys.argv[2])
print(image.width * image.height)
"""


def memory(args, folder):
    "Peak memory of the damage of the largest page, in copies of its pixels."
    from r3nb.core import read_records, resolve_image
    from r3nb.corrupt import IMAGE_FAMILIES
    source, root = from_raw(args.raw, folder) if args.raw else (args.jsonl, args.image_root)
    from PIL import Image
    area = lambda p: (lambda im: im.width * im.height)(Image.open(p))
    path = max({resolve_image(root, r.image_path) for r in read_records(source, root)}, key=area)
    for kept in ("kept", "given back"):
        (_, before), *rows = [(f, peak_of(PEAK, path, f, kept)) for f in ("none", "drawn", *IMAGE_FAMILIES)]
        for family, (lines, peak) in rows:
            copies = (peak - before[1]) * 2**20 / (3 * int(lines[-1]))
            report(f"peak memory of damage, {family}, memory {kept}", copies, "copies of the page beside the opened one", "<= 10", mb=round(peak), opened_mb=round(before[1]), pixels=int(lines[-1]))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--models", default="models", help="folder with Qwen3-VL-8B-Instruct and clip-vit-base-patch32")
    ap.add_argument("--raw", help="folder with raw folders of the datasets")
    ap.add_argument("--jsonl", help="or unified records")
    ap.add_argument("--image_root", default=".", help="and the folder of their images")
    ap.add_argument("--pages", type=int, default=4, help="pages of each dataset")
    ap.add_argument("--draws", type=int, default=3, help="how often each is prepared")
    ap.add_argument("--batch", type=int, default=8, help="samples that a worker prepares at once")
    ap.add_argument("--rounds", type=int, default=5, help="rounds of each ratio")
    ap.add_argument("--vectors", type=int, default=PAGES, help="vectors to search in")
    ap.add_argument("--share", type=float, default=.4, help="share of a GPU's peak that a training reaches")
    ap.add_argument("--part", choices=("samples", "ratios", "memory"), action="append", help="which table; all of them by default")
    ap.add_argument("--no_ocr", action="store_true", help="do not read damaged pages again")
    args = ap.parse_args()
    if bool(args.raw) == bool(args.jsonl): ap.error("give either --raw or --jsonl")
    import cv2
    import torch

    from r3nb.evidence import keep_memory
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_memory()
    for part in args.part or ("samples", "ratios", "memory"):
        with tempfile.TemporaryDirectory() as tmp: globals()[part](args, Path(tmp))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
