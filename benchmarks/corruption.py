"""Cost of `corrupt` at 448 pixels against the bare library calls that it is made of, in one run.

    python benchmarks/corruption.py                  every family alone at level 0.6, and 24 drawn mixtures at four levels
    python benchmarks/corruption.py --size 1024      pictures of another size

The bare side makes the same calls of OpenCV, numpy, PIL and rapidfuzz with the same parameters, which are computed beforehand: pixels out of the PIL image, the damage, the confidence map, the
similarity of the texts, a PIL image of the result; the checkerboard of holes lies ready. What `corrupt` adds is its checks, its keyed generators, the draw of the families and the damage of the text. Both sides take turns and give the same
bytes, which is asserted (but for blurs so wide that they are computed on a smaller picture); times are of the processor, one thread, and ratios are medians over the rounds.
"""
import argparse
import math
import statistics
import time

import cv2
import numpy as np
from bench import chart, report
from PIL import Image
from rapidfuzz.distance import Levenshtein

from r3nb.core import QARecord, rng
from r3nb.corrupt import _ORDER, _SHARE, GRID, IMAGE_FAMILIES, WIDE, _noise_field, corrupt, working_size

GOAL = 1.5


def noise_call(shape, sd, r):
    "The calls that add noise, without their parameters' computation."
    field, (h, w) = _noise_field(), shape
    top, left = (int(r.integers(n)) for n in field.shape[:2])
    down, right = (max(0, n) for n in (top + h - field.shape[0], left + w - field.shape[1]))
    table = ((np.arange(256) - 128) * round(8 * sd) >> 8).astype(np.int16)
    return lambda a: cv2.add(a, cv2.LUT(cv2.copyMakeBorder(field, 0, down, 0, right, cv2.BORDER_WRAP)[top:top + h, left:left + w], table), dtype=cv2.CV_8U)


def checkers(h, w):
    "A checkerboard of the size of a picture."
    p = max(2, round(3 * math.sqrt(h * w) / 448))
    on = (np.arange(h)[:, None] // p + np.arange(w) // p) % 2
    return np.where(on[..., None], np.uint8(232), np.uint8(24)).repeat(3, axis=2)


def hatched(a, hatch, boxes):
    "Copy a checkerboard into boxes."
    out = a.copy()
    for box in boxes: out[box] = hatch[box]
    return out


def kept(a, hatch, box):
    "A checkerboard with a part of the picture in it."
    out = hatch.copy()
    out[box] = a[box]
    return out


def jpeg_call(a, share):
    "Compress, expand, mix."
    worst = cv2.imdecode(cv2.imencode(".jpg", a, [cv2.IMWRITE_JPEG_QUALITY, 2])[1], cv2.IMREAD_COLOR)
    return cv2.addWeighted(a, 1 - share, worst, share, 0)


def call(family, shape, s, r):
    "The library calls of one family as a function of the pixels, every parameter known."
    hatch = checkers(*shape) if family in ("occlusion", "crop") else None
    (h, w), unit = shape, math.sqrt(shape[0] * shape[1]) / 448
    if family == "gaussian_blur": return lambda a, sigma=(0.45 + 2.7 * s) * unit: cv2.GaussianBlur(a, (0, 0), sigma, hint=cv2.ALGO_HINT_ACCURATE)
    if family == "motion_blur":
        n = 1 + 2 * max(1, round((0.9 + 5 * s) * unit))
        box = (n, 1) if r.random() < 0.5 else (1, n)
        return lambda a: cv2.blur(a, box)
    if family == "downsample":
        f = 1.3 + 4.2 * s * unit
        small = max(1, round(w / f)), max(1, round(h / f))
        return lambda a: cv2.resize(cv2.resize(a, small, interpolation=cv2.INTER_AREA), (w, h), interpolation=cv2.INTER_LINEAR_EXACT)
    if family == "jpeg": return lambda a: jpeg_call(a, 0.15 + 0.85 * s)
    if family == "gaussian_noise": return noise_call(shape, 6 + 170 * s, r)
    if family == "low_light":
        lut, noise = np.rint(np.arange(256) * max(0.04, (1 - s)**1.5)).astype(np.uint8), noise_call(shape, 3 + 22 * s, r)
        return lambda a: noise(cv2.LUT(a, lut))
    if family == "colour_jitter":
        turn, shift = 0.8 * math.pi * s * r.uniform(0.5, 1) * r.choice([-1, 1]), 70 * s * r.choice([-1, 1])
        c, k, q, contrast = math.cos(turn), (1 - math.cos(turn)) / 3, math.sin(turn) / math.sqrt(3), max(0.04, 1 - 1.05 * s)
        m = np.hstack([contrast * np.array([[c + k, k - q, k + q], [k + q, c + k, k - q], [k - q, k + q, c + k]]), np.full((3, 1), 128 * (1 - contrast) + shift)]).astype(np.float32)
        return lambda a: cv2.transform(a, m)
    if family == "occlusion":
        n, boxes = 3 + int(r.integers(3)), []
        for cy, cx, aspect in zip(r.uniform(.1, .9, n), r.uniform(.1, .9, n), r.uniform(.5, 2, n), strict=True):
            y, x = int(cy * h), int(cx * w)
            dy, dx = (max(2, round(math.sqrt(0.9 * s / n * e) * side / 2)) for e, side in ((1 / aspect, h), (aspect, w)))
            boxes.append(np.s_[max(0, y - dy):y + dy, max(0, x - dx):x + dx])
        return lambda a: hatched(a, hatch, boxes)
    (ay, ax), lost = r.uniform(.2, .8, 2), 0.55 * s
    top, left = math.ceil(ay * lost * h), math.ceil(ax * lost * w)
    box = np.s_[top:max(top + 1, h - math.ceil((1 - ay) * lost * h)), left:max(left + 1, w - math.ceil((1 - ax) * lost * w))]
    return lambda a: kept(a, hatch, box)


def bare_map(x, y, size):
    "The calls of the confidence map."
    if size != x.shape[1::-1]: x, y = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (x, y))
    strips = []
    for top in range(0, len(x), 64):
        a, b = x[top:top + 64].astype(np.float32), y[top:top + 64].astype(np.float32)
        strips.append([cv2.resize(v, (v.shape[1] // 8, v.shape[0] // 8), interpolation=cv2.INTER_AREA) for v in (a, b, a * a, b * b, a * b)])
    mx, my, xx, yy, xy = (np.concatenate(v) for v in zip(*strips, strict=True))
    c1, c2 = (0.01 * 255)**2, (0.03 * 255)**2
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return np.clip(cv2.resize(ssim.mean(axis=2), (GRID, GRID), interpolation=cv2.INTER_AREA), 0, 1)


def bare(record, image, level, families):
    "A function that makes the bare calls for one sample, with the result of `corrupt` to hold it against."
    done = corrupt(record, image, level, 0, families)
    visual, (w, h) = [f for f in done.families if f in IMAGE_FAMILIES], image.size
    s = level * _SHARE[min(3, len(visual))]
    calls = [call(f.__name__, (h, w), s, rng(f.__name__, 0, record.sample_id)) for f in _ORDER if f.__name__ in visual]
    side = lambda n: 64 * min(8, max(1, round(n / 64)))
    size = side(w), side(h)
    def run():
        clean = np.asarray(image)
        out = clean
        for c in calls: out = c(out)
        grid = bare_map(clean, out, size)
        return Image.fromarray(out), grid, float(grid.mean()), Levenshtein.normalized_similarity(done.pseudo_text, record.pseudo_text)
    im, grid, c_vis, c_text = run()
    same = im.tobytes() == done.image.tobytes()
    wide = "gaussian_blur" in visual and (0.45 + 2.7 * s) * math.sqrt(w * h) / 448 >= WIDE # computed on a smaller picture
    assert (same or wide or working_size(w, h) != (w, h)) and c_text == done.c_text, done.families
    assert not same or (np.array_equal(grid, done.c_vis_map) and c_vis == done.c_vis), done.families
    return run


def pair(record, image, level, families):
    "`corrupt`, and the bare calls for the same sample."
    return (lambda: corrupt(record, image, level, 0, families)), bare(record, image, level, families)


def ratio(pairs, rounds):
    "Median ratio over rounds in which both sides take turns, and the median times of both for one sample, in ms."
    took = np.zeros((rounds, 2))
    for i in range(rounds):
        for k in (i % 2, 1 - i % 2):
            start = time.process_time()
            for p in pairs: p[k]()
            took[i, k] = (time.process_time() - start) / len(pairs) * 1e3
    return statistics.median(took[:, 0] / took[:, 1]), *np.median(took, axis=0)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--size", type=int, default=448, help="side of the pictures in pixels (default: 448)")
    ap.add_argument("--rounds", type=int, default=25, help="rounds of each measurement (default: 25)")
    a = ap.parse_args()
    cv2.setNumThreads(1)
    words = [f"word{i}" for i in range(500)]
    record = lambda i: QARecord(f"s{i}", "chartqa", "val", "i", "p", "q", "a", ["a"], " ".join(rng("words", i).choice(words, 60)))
    pages = [chart(i, (a.size, a.size)) for i in range(8)]
    record_of = [record(i) for i in range(24)]
    for name, pairs in ((*((f, [pair(record_of[i], pages[i % 8], .6, f) for i in range(8)]) for f in IMAGE_FAMILIES),
                         ("drawn", [pair(record_of[i], pages[i % 8], level, None) for i in range(24) for level in (.2, .4, .6, .8)]))):
        r, ours, theirs = ratio(pairs, a.rounds)
        report(f"corruption {name} {a.size} px", r, "x of the bare calls", f"<= {GOAL}", ms=round(ours, 2), bare_ms=round(theirs, 2))
