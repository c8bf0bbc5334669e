"""OCR of real pages: how much is read, how sure the reading is, and what it costs. Pages are drawn here, and rendered from PDF files with a text layer if some are given.

    OMP_NUM_THREADS=1 python benchmarks/ocr_pages.py                         # all kinds of pages, upright and turned
    OMP_NUM_THREADS=1 python benchmarks/ocr_pages.py --pdf a.pdf --pdf b.pdf # also the pages of these files, at 150 dots per inch, against their text layers
    OMP_NUM_THREADS=1 python benchmarks/ocr_pages.py --ratio                 # seconds per page against a bare loop of RapidOCR with the same settings

`recall` is the share of the page's words that the reading has, as often as the page has them; words are runs of letters and digits without regard to case. `of letters` is the same for
letters, where words that the recogniser has run together count. Times are for one thread, and memory is the peak of a process that reads this page alone, beside one that reads a blank one.
"""
import argparse
import os
import random
import re
import statistics
import time
from collections import Counter

import numpy as np
from bench import peak_of, report
from PIL import Image, ImageDraw, ImageFont

from r3nb.ocr import RapidOCREngine, letters

WORDS = ("river market signal garden north copper winter station letter engine harbour silver morning paper bridge window figure yellow museum travel summer record carbon island ticket "
         "butter camera planet forest circle number public school doctor energy animal budget family report screen memory people annual global average").split()
# size, height of print, distance of lines, share of the width that a line fills, lines at most
KINDS = {"A4": ((1240, 1754), 21, 1.5, .85, 99), "screen": ((1440, 2560), 44, 2.2, .6, 40), "infographic": ((2000, 6500), 24, 4.5, .45, 60), "chart": ((800, 600), 16, 2.2, .5, 14),
         "dense": ((1200, 6000), 20, 1.4, .95, 999)}
GOAL = .95


def face(size): return ImageFont.load_default(size)


def drawn(kind, seed=0):
    "A page of some kind, and its words."
    (width, height), size, step, share, most = KINDS[kind]
    r, page, said, y = random.Random(f"{kind}/{seed}"), Image.new("RGB", (width, height), "white"), [], size
    draw = ImageDraw.Draw(page)
    if kind in ("screen", "infographic"): draw.rectangle((0, 0, width, 4*size), fill="#1b4f72")
    if kind in ("chart", "infographic"):
        for i in range(6): draw.rectangle((width*.72 + i*width*.04, height - 60 - r.randint(20, height//3), width*.72 + (i + .7)*width*.04, height - 60), fill="#b03a2e")
    for _ in range(most):
        if y > height - 2*size: break
        line, x = [], size + r.randint(0, size)
        while True:
            word = r.choice(WORDS) if r.random() < .85 else f"{r.randint(10, 9999):,}"
            if x + draw.textlength(" ".join([*line, word]), face(size)) > width*share: break
            line.append(word)
        draw.text((x, y), " ".join(line), fill="white" if kind in ("screen", "infographic") and y < 3*size else "black", font=face(size))
        said, y = said + line, y + round(size*step)
    return page, " ".join(said)


def of_pdf(path, dpi=150):
    "The pages of a PDF that have at least 50 words, and their text layers."
    import pypdfium2
    doc = pypdfium2.PdfDocument(path)
    for i in range(len(doc)):
        text = doc[i].get_textpage().get_text_range()
        if len(text.split()) >= 50: yield doc[i].render(scale=dpi/72).to_pil().convert("RGB"), text


def parts(text): return Counter(re.findall(r"[^\W_]+", text.lower()))
def recall(truth, read, of=parts): return sum((of(truth) & of(read)).values()) / max(1, sum(of(truth).values()))
def signs(text): return Counter("".join(parts(text).elements()))


def measure(name, engine, page, truth, turns=(0, 1, 2, 3)):
    "Recall, confidence and seconds for a page in each position."
    for turn in turns:
        start = time.process_time()
        read = engine(page.rotate(90*turn, expand=True))
        took = time.process_time() - start
        report(f"{name}, turned by {90*turn}", recall(truth, read.text), "recall", f">= {GOAL}", of_letters=round(recall(truth, read.text, signs), 3), confidence=read.conf, seconds=round(took, 2),
               words=len(truth.split()), size="x".join(map(str, page.size)))


def bare(engine, page):
    "A call of RapidOCR by itself, with the engine's networks and settings: its detector sees the page at the same scale."
    seen, detect = [], engine.detect
    engine.detect = lambda page, scale: seen.append(scale) or detect(page, scale)
    engine.look(np.asarray(page)[..., ::-1].copy(), letters(np.asarray(page)))
    del engine.detect
    return lambda page: (setattr(engine.ocr._load_det_model(), "limit_side_len", round(max(page.size)*seen[-1])), engine.ocr(page))


def ratio(engine, rounds):
    "Throughput of the engine and of bare RapidOCR, in turns."
    engine.ocr.max_side_len = 10**6 # RapidOCR would shrink pages of more than 2,000 pixels before it looks at them
    for kind in ("A4", "screen", "chart"):
        page, took = drawn(kind)[0], np.zeros((rounds, 2))
        calls = engine, bare(engine, page)
        for i in range(rounds):
            for k in (i % 2, 1 - i % 2):
                start = time.process_time()
                calls[k](page)
                took[i, k] = time.process_time() - start
        report(f"{kind}: pages per second of bare RapidOCR", statistics.median(took[:, 1] / took[:, 0]), "x", f">= {GOAL}", seconds=round(float(np.median(took[:, 0])), 2),
               bare_seconds=round(float(np.median(took[:, 1])), 2))


PEAK = """
import sys
sys.path.insert(0, sys.argv[3])
from ocr_pages import drawn
from PIL import Image
from r3nb.ocr import RapidOCREngine
page = drawn(sys.argv[1])[0]
RapidOCREngine()(page if sys.argv[2] == "read" else Image.new("RGB", (200, 100), "white"))
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--kind", action="append", choices=KINDS, help="kinds of drawn pages; all by default")
    ap.add_argument("--pdf", action="append", default=[], help="a PDF with a text layer")
    ap.add_argument("--upright", action="store_true", help="do not turn the pages")
    ap.add_argument("--ratio", action="store_true", help="only the ratio to bare RapidOCR")
    ap.add_argument("--rounds", type=int, default=3, help="rounds of the ratio")
    ap.add_argument("--no_memory", action="store_true", help="leave memory out")
    args = ap.parse_args()
    import cv2
    cv2.setNumThreads(0)
    engine, turns = RapidOCREngine(), (0,) if args.upright else (0, 1, 2, 3)
    if args.ratio: return ratio(engine, args.rounds)
    for kind in args.kind or ([] if args.pdf else KINDS):
        page, truth = drawn(kind)
        measure(kind, engine, page, truth, turns)
        if not args.no_memory:
            (_, peak), (_, before) = (peak_of(PEAK, kind, what, os.path.dirname(os.path.abspath(__file__))) for what in ("read", "blank"))
            report(f"{kind}: memory of reading it", peak - before, "MB", whole=round(peak))
    for path in args.pdf:
        for i, (page, truth) in enumerate(of_pdf(path)): measure(f"{os.path.basename(path)}, page {i + 1}", engine, page, truth, turns)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
