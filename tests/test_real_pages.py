"Pages of real sizes: quick ways give what the plain ways give, and the benchmark of all parts runs."
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image

import r3nb.corrupt as C
import r3nb.encoders as E
import r3nb.evidence as evidence
from r3nb.core import open_image, rng, write_jsonl
from r3nb.model import image_signals

SMALL = [(288, 512), (600, 600), (448, 448), (503, 509), (600, 11), (1, 1), (2, 3), (13, 590)]
LARGE = [(1080, 1920), (1031, 1487), (2048, 1024), (40, 9000)]
BENCH = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCH))


def pixels(w, h, seed=0):
    "Text-like bars on a page."
    g, out = np.random.default_rng(seed), np.full((h, w, 3), 250, np.uint8)
    for _ in range(min(400, w * h // 9)):
        y, x, n = (int(g.integers(v)) for v in (h, w, 60))
        out[y:y + 1 + n // 6, x:x + n + 1] = g.integers(0, 255, 3)
    return out


@pytest.mark.parametrize("size", SMALL + LARGE)
@pytest.mark.parametrize("s", [.05, .5, .9])
def test_noise_in_tiles_is_noise_in_one_piece(size, s):
    "And so is darkness with noise"
    a, field = pixels(*size), C._noise_field()
    for f, sd, light in ((C.gaussian_noise, 6 + 170*s, None), (C.low_light, 3 + 22*s, np.rint(np.arange(256)*max(.04, (1 - s)**1.5)).astype(np.uint8))):
        r = rng(s)
        top, left = (int(r.integers(n)) for n in field.shape[:2])
        window = field[(np.arange(size[1]) + top) % len(field)][:, (np.arange(size[0]) + left) % field.shape[1]]
        table = ((np.arange(256) - 128)*round(8*sd) >> 8).astype(np.int16)
        want = cv2.add(a if light is None else cv2.LUT(a, light), cv2.LUT(np.ascontiguousarray(window), table), dtype=cv2.CV_8U)
        assert np.array_equal(f(a, s, rng(s)), want)


@pytest.mark.parametrize("size", SMALL + LARGE)
@pytest.mark.parametrize("s", [.05, .5, 1.])
def test_holes_show_one_checkerboard(size, s):
    "What is missing is the same part of the same board as when the whole board is drawn"
    a, (w, h) = pixels(*size), size
    p = max(2, round(3*np.sqrt(h*w)/448))
    board = np.where(((np.arange(h)[:, None]//p + np.arange(w)//p) % 2)[..., None], np.uint8(232), np.uint8(24)).repeat(3, axis=2)
    for f in (C.occlusion, C.crop):
        out = f(a, s, rng("x"))
        assert ((out == a).all(2) | (out == board).all(2)).all()
        assert np.array_equal(f(board, s, rng("x")), board)
        assert w*h < 100 or not np.array_equal(out, a)


@pytest.mark.parametrize("size", SMALL + LARGE)
@pytest.mark.parametrize("s", [.1, .6, 1.])
def test_a_wide_blur_is_near_the_plain_one(size, s):
    "Narrow ones, and all of pages up to 600 pixels, are the plain one"
    a, sigma = pixels(*size), (.45 + 2.7*s)*np.sqrt(size[0]*size[1])/448
    plain, got = cv2.GaussianBlur(a, (0, 0), sigma, hint=cv2.ALGO_HINT_ACCURATE), C.gaussian_blur(a, s, rng("x"))
    if sigma < C.WIDE: assert np.array_equal(got, plain)
    else:
        apart = np.abs(got.astype(int) - plain)
        assert apart.mean() < .8 and apart.max() <= 24 and abs(C.similarity_map(a, got).mean() - C.similarity_map(a, plain).mean()) < .01
    assert sigma < C.WIDE or max(size) > 600


def test_blur_grows_with_the_level_over_all_grids():
    "No step where the grid of the blur changes"
    a = pixels(1080, 1920)
    seen = [C.similarity_map(a, C.gaussian_blur(a, s, rng("x"))).mean() for s in np.linspace(.4, 1, 9)]
    assert all(x > y for x, y in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize("value, spot, flat", [(7, None, True), (200, (70, 3), False), (200, (0, 0), False)])
def test_one_odd_pixel_makes_a_page_not_flat(value, spot, flat):
    a = np.full((130, 40, 3), value, np.uint8)
    if spot: a[spot] = 9
    assert C._flat(a) == flat
    assert C._same(a, a.copy()) and not C._same(a, np.where(np.arange(130)[:, None, None] == 129, a + 1, a).astype(np.uint8))


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("size", SMALL + LARGE + [(1024, 768), (1025, 800), (1200, 5000)])
def test_squares_for_clip(size, side):
    "Exact up to 1,024 pixels, and so near beyond that no vector could tell"
    im = Image.fromarray(pixels(*size))
    exact = np.asarray(im.resize(tuple(max(1, round(v * side / max(size))) for v in size), Image.Resampling.BICUBIC)).astype(float)
    square = np.asarray(E.pad_square(im, side)).astype(float)
    h, w = exact.shape[:2]
    got = square[(side - h) // 2:(side - h) // 2 + h, (side - w) // 2:(side - w) // 2 + w]
    if max(size) <= E.LARGE: assert np.array_equal(got, exact)
    else: assert np.abs(got - exact).mean() < 2 and (got.ravel() @ exact.ravel()) / np.linalg.norm(got) / np.linalg.norm(exact) > .999


def test_vectors_of_reduced_squares(tmp_path, monkeypatch):
    "Cosine with the exact way above .999, whatever the size; signals of the picture hardly move"
    encoder = E.ImageEncoder(tiny.clip(tmp_path / "clip"))
    pages = [Image.fromarray(pixels(*s)) for s in LARGE]
    quick, signals = encoder.encode(pages), [image_signals(im) for im in pages]
    monkeypatch.setattr(E, "LARGE", 10**6)
    monkeypatch.setattr("r3nb.model.LARGE", 10**6)
    assert (np.sum(quick * encoder.encode(pages), axis=1) > .999).all()
    assert max(abs(a - b) for x, im in zip(signals, pages, strict=True) for a, b in zip(x, image_signals(im), strict=True)) < .05


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_opening_turns_a_picture_once(tmp_path, mode, turn):
    "As a copy that is turned would be"
    exif, im = Image.Exif(), Image.fromarray(pixels(60, 40)).convert(mode)
    exif[0x112] = turn
    path = tmp_path / "x.png"
    im.save(path, exif=exif)
    want = {1: im.copy, 3: lambda: im.rotate(180), 6: lambda: im.rotate(270, expand=True), 8: lambda: im.rotate(90, expand=True)}[turn]().convert("RGB")
    assert open_image(path).size == want.size and open_image(path).tobytes() == want.tobytes()


def test_memory_is_kept_where_the_library_can(monkeypatch):
    "Asked for what to keep; an old library takes no large threshold and is told never to map; another library is left alone"
    asked = []
    def library(takes):
        monkeypatch.setattr(evidence.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda k, v: bool(asked.append((k, v)) or takes(k))))
        evidence.keep_memory.cache_clear()
        return evidence.keep_memory()
    assert library(lambda k: True) and asked == [(-1, 2**30), (-3, 2**30)]
    assert library(lambda k: k != -3) and asked[-1] == (-4, 0)
    monkeypatch.setattr(evidence.ctypes, "CDLL", lambda name: SimpleNamespace())
    evidence.keep_memory.cache_clear()
    assert not evidence.keep_memory()
    evidence.keep_memory.cache_clear()


@pytest.mark.parametrize("size", [(288, 512), (1080, 1920), (1440, 2560)])
def test_a_page_that_is_halved_first_has_nearly_the_same_map(size, monkeypatch):
    "Small pages exactly; on large ones the mean moves by .07 at most, and worse damage stays worse"
    a = pixels(*size)
    damaged = [[C.damage_image(a, s, (f,), ("x", 1)) for s in (.3, .8)] for f in ("gaussian_noise", "gaussian_blur", "jpeg")]
    halved = np.array([[C.similarity_map(a, d).mean() for d in row] for row in damaged])
    monkeypatch.setattr(C, "_reduced", lambda a, size: a if a.shape[1::-1] == tuple(size) else cv2.resize(a, size, interpolation=cv2.INTER_AREA))
    plain = np.array([[C.similarity_map(a, d).mean() for d in row] for row in damaged])
    assert np.abs(halved - plain).max() <= (0 if size == (288, 512) else .07) and (halved[:, 0] > halved[:, 1]).all()


@pytest.mark.slow
def test_benchmark_of_real_pages(tmp_path):
    "Two small pages through the whole of it: every part, rate and ratio is there"
    import torch
    torch.set_num_threads(1)
    rows = tiny.records(4)
    for i, r in enumerate(rows):
        r.dataset, path = ["screenqa", "infovqa"][i % 2], tmp_path / "raw" / r.image_path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(120, 90, i)).save(path)
    write_jsonl(tmp_path / "all.jsonl", [r.to_dict() for r in rows])
    tiny.clip(tmp_path / "clip-vit-base-patch32")
    tiny.processor().save_pretrained(tmp_path / "Qwen3-VL-8B-Instruct")
    words = ["--models", tmp_path, "--jsonl", tmp_path / "all.jsonl", "--image_root", tmp_path / "raw", "--pages", 1, "--draws", 1, "--rounds", 1, "--vectors", 50, "--no_ocr"]
    done = subprocess.run([sys.executable, BENCH / "real_pages.py", *map(str, words), "--part", "samples", "--part", "ratios"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = {r["benchmark"]: r for r in map(json.loads, (line for line in done.stdout.splitlines() if line.startswith("{")))}
    assert {"open", "damage", "CLIP", "MiniLM", "search", "rest", "processor", "live", "cached"} <= said["screenqa, ms by part"].keys() == said["infovqa, ms by part"].keys()
    assert {f"mix, samples prepared {k}" for k in ("live", "cached")} | {"mix, ms by part", "evidence of the mix at 5 levels", "one H100 at 40% of its peak", "one H100 at 100% of its peak"} <= said.keys()
    assert {f"infovqa: {w} / bare calls" for w in ("open", "open and scale", "CLIP", "MiniLM", *(f"damage, {f}" for f in (*C.IMAGE_FAMILIES, "drawn")))} <= said.keys()
    assert abs(sum(said["mix, ms by part"]["shares"].values()) - 1) < .01 and all(r["value"] > 0 for r in said.values())
