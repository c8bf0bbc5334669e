"What people bring: PDFs with forms, bounds and faults; scans of odd depths; tables of questions; other scripts; files of other programs"
import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import raw_pdf
from PIL import Image, ImageDraw, TiffImagePlugin

from r3nb import core
from r3nb.core import ConfigError, DataError, ImageError, check_image, open_image, page_count, read_json, read_jsonl, rng, write_jsonl
from r3nb.data import UnifyConfig, folder_spec, raw_answers, unify
from r3nb.metrics import METRIC_KEYS, exact_match, plain_form, rouge_l, score, screenqa, token_f1
from r3nb.ocr import OCRConfig, run_ocr
from r3nb.own import ask_pages, page_records, pdf_pages, tiff_pages

T, TOY = raw_pdf.text("Hello"), {"engine": "toy_ocr:Toy"}
ink = lambda f, box: int((np.asarray(Image.open(f).convert("L").crop(box)) < 128).sum())
names = lambda files: [Path(f).name for f in files]


# ---- PDFs

AP = b"/Tx BMC BT /Helv 18 Tf 0 g 4 12 Td (4711 EUR) Tj ET EMC"

@pytest.mark.parametrize("field, appearance, needs", [
    ("/FT /Tx /V (4711 EUR)", None, True), ("/FT /Tx /V (4711 EUR)", None, False), ("/FT /Tx /V (4711 EUR)", AP, False), ("/FT /Ch /Ff 131072 /Opt [(red) (blue)] /V (blue)", None, True),
    ("/FT /Btn /V /Yes /AS /Yes /MK << /CA (4) >>", None, True), ("/FT /Tx /Ff 4096 /V (one\\rtwo)", None, True), ("/FT /Tx /Ff 16777216 /MaxLen 8 /V (12345678)", None, True)])
def test_what_is_filled_in_is_drawn(tmp_path, field, appearance, needs):
    full, empty = raw_pdf.form(tmp_path/"full.pdf", field, appearance, needs), raw_pdf.form(tmp_path/"empty.pdf", "/FT /Tx")
    at = lambda p: ink(pdf_pages(p, tmp_path/"raw", dpi=72)[0], (40, 100, 240, 140))
    assert at(full) > 100 and at(empty) == 0


def test_pixels_are_bounded_before_drawing(tmp_path, capsys):
    p = raw_pdf.document(tmp_path/"big.pdf", [(T, {"box": (0, 0, 14_400, 14_400)}), (T, {}), (T, {"box": (0, 0, 20, 14_400)})])
    a, b, c = (Image.open(f).size for f in pdf_pages(p, tmp_path/"raw", max_pixels=1_000_000))
    assert 990_000 < a[0]*a[1] <= 1_000_000 and b == (625, 417) and c[0]*c[1] <= 1_000_000 and c[1] > 600*c[0]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "big.pdf: pages 1, 3 drawn at fewer than 150 dots" in said
    for bad in (0, 10**9, "5"):
        with pytest.raises(ConfigError, match="max_pixels"): pdf_pages(p, tmp_path/"raw", max_pixels=bad)


def test_a_broken_page_is_named_and_the_others_are_made(tmp_path, capsys):
    p = raw_pdf.document(tmp_path/"kid.pdf", [(T, {})]*3, missing=(1,))
    for _ in range(2): # the second time the pages are taken as they are
        assert names(pdf_pages(p, tmp_path/"raw")) == ["kid_1.png", "kid_3.png"]
        assert "kid.pdf: page 2 of 3 cannot be drawn" in capsys.readouterr().out
    with pytest.raises(DataError, match="none.pdf: page 1 of 2 cannot be drawn"): pdf_pages(raw_pdf.document(tmp_path/"none.pdf", [(T, {})]*2, missing=(0, 1)), tmp_path/"raw")
    assert sorted(f.name for f in (tmp_path/"raw").iterdir()) == [".kid.pages.json", "kid_1.png", "kid_3.png"]


@pytest.mark.parametrize("keep, says", [(10, "not a readable PDF"), (.4, "not a readable PDF"), (0, "not a readable PDF")])
def test_damaged_pdfs(tmp_path, keep, says):
    p = raw_pdf.document(tmp_path/"cut.pdf", [(T, {})]*3)
    whole = p.read_bytes()
    p.write_bytes(whole[:keep if keep == 10 else int(len(whole)*keep)])
    with pytest.raises(DataError, match=says) as e: pdf_pages(p, tmp_path/"raw")
    assert "\n" not in str(e.value) and not (tmp_path/"raw").exists()
    with pytest.raises(DataError, match="zero.pdf: not a readable PDF, or one without a page"): pdf_pages(raw_pdf.document(tmp_path/"zero.pdf", []), tmp_path/"raw")
    (tmp_path/"file").write_text("x")
    with pytest.raises(ConfigError, match="this is a file"): pdf_pages(raw_pdf.document(p, [(T, {})]), tmp_path/"file")


def test_turned_and_cropped_pages(tmp_path):
    p = raw_pdf.document(tmp_path/"r.pdf", [(T, {"more": m}) for m in ("", "/Rotate 90", "/Rotate 180", "/CropBox [20 80 140 140]")])
    upright, side, over, crop = pdf_pages(p, tmp_path/"raw", dpi=72)
    assert [Image.open(f).size for f in (upright, side, over, crop)] == [(300, 200), (200, 300), (300, 200), (120, 60)]
    assert np.abs(np.asarray(Image.open(over).rotate(180), float) - np.asarray(Image.open(upright))).mean() < 1
    assert np.abs(np.asarray(Image.open(upright).crop((20, 60, 140, 120)), float) - np.asarray(Image.open(crop))).mean() < 1


SONG = ("/F1 << /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H /DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light "
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> >>] >>")
EMPTY = f"/F1 << /Type /Font /Subtype /Type3 /FontBBox [0 0 1000 1000] /FontMatrix [.001 0 0 .001 0 0] /CharProcs << >> /Encoding << /Differences [72 /H 101 /e 108 /l 111 /o] >> /FirstChar 72 /LastChar 111 /Widths [{'500 '*40}] >>"

@pytest.mark.parametrize("content, fonts, seen", [(T, EMPTY, False), (("<< >>", b"0 0 300 20 re f " + T[1]), EMPTY, False), (raw_pdf.text("Hello", mode=3), None, False),
                                                  (T, None, True), (("<< >>", b"0 0 300 20 re f"), None, True), (("<< >>", b""), None, True)])
def test_text_that_does_not_show_is_said(tmp_path, capsys, content, fonts, seen):
    pdf_pages(raw_pdf.document(tmp_path/"f.pdf", [(T, {}), (content, {"fonts": fonts} if fonts else {})]), tmp_path/"raw")
    assert ("page 2 with text that does not show" in capsys.readouterr().out) != seen


def test_pages_never_overwrite_those_of_another_pdf(tmp_path):
    made = {}
    for year, size in (("2023", 24), ("2024", 48)):
        (tmp_path/year).mkdir()
        made[year] = pdf_pages(raw_pdf.document(tmp_path/year/"report.pdf", [(raw_pdf.text(year, size=size), {})]*2), tmp_path/"raw")
    before = {f: f.read_bytes() for fs in made.values() for f in fs}
    assert len(before) == 4
    for year in ("2024", "2023"): assert pdf_pages(tmp_path/year/"report.pdf", tmp_path/"raw") == made[year] # in another order, too
    assert {f: f.read_bytes() for f in before} == before and len(list((tmp_path/"raw").glob("*.png"))) == 4


def test_no_stale_pages_and_nobody_elses_file_is_touched(tmp_path):
    raw = tmp_path/"raw"
    make = lambda n: pdf_pages(raw_pdf.document(tmp_path/"grow.pdf", [(raw_pdf.text(f"page {i} of {n}"), {}) for i in range(n)]), raw, dpi=36)
    raw.mkdir()
    (raw/"notes.png").write_text("mine")
    for n in (12, 3, 10, 2):
        assert len(make(n)) == n and len(list(raw.glob("*.png"))) == n + 1
    (raw/"grow_2.png").write_text("drawn over") # somebody changed a page
    (raw/"grow_01.png").write_text("mine")      # and made another file where a longer version would write
    twelve = make(12)
    assert len(twelve) == 12 and (raw/"grow_01.png").read_text() == "mine" and (raw/"grow_2.png").read_text() == "drawn over" and (raw/"notes.png").read_text() == "mine"
    assert make(12) == twelve and len(list(raw.glob("*.png"))) == 15


def test_a_moved_pdf_keeps_the_names_of_its_pages(tmp_path):
    a = raw_pdf.document(tmp_path/"a.pdf", [(T, {})])
    files = pdf_pages(a, tmp_path/"raw")
    a.rename(tmp_path/"b.pdf")
    assert pdf_pages(tmp_path/"b.pdf", tmp_path/"raw") == files


def test_a_kill_while_pages_are_drawn(tmp_path):
    p = raw_pdf.document(tmp_path/"a.pdf", [(T, {})]*3)
    code = "import sys, os, r3nb.own as o\ndraw, n = o._draw_page, []\ndef slow(*a):\n    n.append(1)\n    if len(n) == 3: os.kill(os.getpid(), 9)\n    return draw(*a)\no._draw_page = slow\no.pdf_pages(*sys.argv[1:])"
    assert subprocess.run([sys.executable, "-c", code, str(p), str(tmp_path/"raw")]).returncode == -9
    assert not list((tmp_path/"raw").glob("a_*"))
    assert names(pdf_pages(p, tmp_path/"raw")) == ["a_1.png", "a_2.png", "a_3.png"]


# ---- depth

GREY = np.linspace(0, 1, 64*40).reshape(40, 64)

def scan(path, bits, colours=0, **tags):
    "A ramp of so many bits, in a file of 16"
    a = np.rint(GREY*(2**bits - 1)).astype(np.uint16)
    if colours:
        import cv2
        a = np.stack([a, a[::-1], a[:, ::-1]], -1) if colours == 3 else np.dstack([a, a[::-1], a[:, ::-1], np.full_like(a, 65535)])
        cv2.imwrite(str(path), a[..., [2, 1, 0, 3][:colours]])
        return path
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for k, v in tags.items(): ifd[int(k[1:])] = v
    Image.fromarray(a).save(path, **({"tiffinfo": ifd} if tags else {}))
    return path


def plain_tiff(path, body, bits, photometric=1):
    "A TIFF of 64 × 40 samples, as they stand"
    tags = {256: 64, 257: 40, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 40, 279: len(body)}
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in tags.items()) + bytes(4))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("end", ["png", "tif", "pgm", "jp2"])
def test_scans_open_at_their_true_brightness(tmp_path, bits, end):
    got = np.asarray(open_image(scan(tmp_path/f"a.{end}", bits)), float)[..., 0]
    assert np.abs(got - 255*GREY).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("end", ["png", "tif", "ppm"])
@pytest.mark.parametrize("colours", [3, 4])
def test_colours_of_ten_and_twelve_bits(tmp_path, bits, end, colours):
    if (end, colours) == ("ppm", 4): pytest.skip("a PPM has no fourth channel")
    got = np.asarray(open_image(scan(tmp_path/f"a.{end}", bits, colours)), float)
    assert np.abs(got - 255*np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)).max() <= 1.01


def test_what_a_file_says_about_its_depth_counts(tmp_path):
    top = lambda path: int(np.asarray(open_image(path)).max())
    dark = lambda name, **tags: top(scan(tmp_path/name, 9, **tags)) # 511 at most
    assert dark("n.tif") == round(511/1023*255)
    assert dark("m.tif", t281=4095) == round(511/4095*255) and dark("f.tif", t281=65535) == round(511/257)
    png = scan(tmp_path/"s.png", 9).read_bytes()
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    for bits, want in ((12, round(511/4095*255)), (16, round(511/257)), (8, round(511/1023*255))):
        (tmp_path/"s.png").write_bytes(png[:33] + chunk(b"sBIT", bytes([bits])) + png[33:])
        assert top(tmp_path/"s.png") == want


def test_twelve_bits_packed_signed_negative_and_fractions(tmp_path):
    from test_odd_images import big_endian_tiff
    deep = np.rint(GREY*1023).astype(np.uint16)
    (tmp_path/"b.tif").write_bytes(big_endian_tiff(deep))
    assert np.abs(np.asarray(open_image(tmp_path/"b.tif"), float)[..., 0] - 255*GREY).max() <= 1
    for a in (GREY.astype(np.float32), (GREY*1023).astype(np.float32), np.rint(GREY*1023).astype(np.int32), np.rint(GREY*65535).astype(np.int32)):
        Image.fromarray(a).save(tmp_path/"x.tif")
        assert np.abs(np.asarray(open_image(tmp_path/"x.tif"), float)[..., 0] - 255*GREY).max() <= 1
    plain_tiff(tmp_path/"w.tif", (1023 - deep).tobytes(), 16, photometric=0) # 0 is white
    plain_tiff(tmp_path/"p.tif", b"".join(int("".join(f"{v:012b}" for v in row), 2).to_bytes(96, "big") for row in np.rint(GREY*4095).astype(int)), 12) # packed
    for name in ("w.tif", "p.tif"): assert np.abs(np.asarray(open_image(tmp_path/name), float)[..., 0] - 255*GREY).max() <= 1, name
    plain_tiff(tmp_path/"t.tif", b"x"*40*80, 10)
    for f in (open_image, check_image):
        with pytest.raises(ImageError, match="t.tif: TIFF of a kind that nothing installed here decodes.*save it as PNG"): f(tmp_path/"t.tif")


def leaf(i, size=(160, 60)):
    im = Image.new("RGB", size, "white")
    ImageDraw.Draw(im).rectangle((10, 10, 20 + 30*i, 40), fill="black")
    return im


def test_all_pages_of_a_tiff_are_pages(tmp_path, capsys):
    (tmp_path/"in").mkdir()
    leaf(0).save(tmp_path/"in/scan.tif", save_all=True, append_images=[leaf(1), leaf(2)])
    leaf(3).save(tmp_path/"in/one.tiff")
    assert (page_count(tmp_path/"in/scan.tif"), page_count(tmp_path/"in/one.tiff")) == (3, 1)
    run_ocr(OCRConfig(image_dir=[str(tmp_path/"in")], out=str(tmp_path/"c.jsonl"), engine="toy_ocr:Toy", workers=1))
    assert "scan.tif holds 3 pages, of which only the first is read" in capsys.readouterr().out
    pages = page_records(tmp_path/"in", workers=1, ocr=TOY)
    assert [p.image_id for p in pages] == ["one.tiff", *(f"scan.tif.pages/scan_{i}.png" for i in (1, 2, 3))]
    assert len({p.pseudo_text for p in pages}) == 4 and [p.image_id for p in page_records(tmp_path/"in", workers=1, ocr=TOY)] == [p.image_id for p in pages]
    assert np.array_equal(open_image(tmp_path/"in/scan.tif", 2), open_image(tmp_path/"in/scan.tif.pages/scan_3.png"))
    leaf(0).save(tmp_path/"in/scan.tif", save_all=True, append_images=[leaf(1)]) # a shorter version
    assert len(page_records(tmp_path/"in", workers=1, ocr=TOY)) == 3
    assert len(tiff_pages(tmp_path/"in/scan.tif", tmp_path/"other")) == 2


def test_previews_and_animations_are_not_pages(tmp_path):
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[254] = 1
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path/"p.tif"), True) as f:
        for im, info in ((leaf(0, (20, 10)), small), (leaf(1), {}), (leaf(2), {})):
            im.save(f, format="TIFF", tiffinfo=info)
            f.newFrame()
    assert page_count(tmp_path/"p.tif") == 2 and open_image(tmp_path/"p.tif").size == (160, 60)
    for end in ("gif", "png", "webp"):
        leaf(0).save(tmp_path/f"a.{end}", save_all=True, append_images=[leaf(1)])
        assert page_count(tmp_path/f"a.{end}") == 1


@pytest.mark.parametrize("head, says", [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*save it as PNG"), (b"\xff\x0a\xfa\x1f\x01\x90", "JPEG XL.*save it as PNG"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"%PDF-1.4\n", "pdf_pages"),
    (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*PNG"), (b"II\xbc\x01", "JPEG XR"), (b"", "not a readable image"), (b"hello", "not a readable image")])
def test_a_picture_whose_decoder_is_missing(tmp_path, head, says):
    (tmp_path/"x.png").write_bytes(head)
    for f in (open_image, check_image):
        with pytest.raises(ImageError, match=f"x.png.*{says}") as e: f(tmp_path/"x.png")
        assert "\n" not in str(e.value)


def test_damaged_pictures_are_one_error(tmp_path):
    "Each byte that matters is spoilt in turn; whatever a decoder makes of it, it is one kind of error"
    made = {}
    for end, more in (("png", {}), ("tif", {"compression": "tiff_lzw"}), ("jpg", {}), ("gif", {}), ("webp", {}), ("bmp", {}), ("jp2", {}), ("tiff", {})):
        leaf(1).save(tmp_path/f"a.{end}", **more)
        data, r = (tmp_path/f"a.{end}").read_bytes(), rng("spoil", end)
        for k in range(25):
            bad = bytearray(data[:len(data) if k % 3 else r.integers(len(data))])
            for at in r.integers(0, min(len(bad), 200) or 1, 4): bad[at:at + 1] = bytes([r.integers(256)])
            (tmp_path/f"b.{end}").write_bytes(bad)
            try: made[end] = open_image(tmp_path/f"b.{end}").mode
            except ImageError as e: assert f"b.{end}" in str(e)
    assert set(made.values()) == {"RGB"}


# ---- folders of pages

def folder(root, **pictures):
    for name, i in pictures.items():
        p = root/name.replace("__", "/").replace("_dot_", ".")
        p.parent.mkdir(parents=True, exist_ok=True)
        leaf(i).save(p)
    return root


records = lambda root, **kw: page_records(root, workers=1, ocr=TOY, **kw)
ids = lambda pages: [p.image_id for p in pages]


def test_one_cache_and_two_folders(tmp_path):
    a, b = folder(tmp_path/"a", one_dot_png=0, two_dot_png=1), folder(tmp_path/"b", one_dot_png=2, same_dot_png=1)
    assert ids(records(a)) == ["one.png", "two.png"] and ids(records(b)) == ["one.png", "same.png"]
    assert records(a)[0].pseudo_text != records(b)[0].pseudo_text
    (a/"two.png").unlink()
    assert ids(records(a)) == ["one.png"]


def test_equal_pages_equal_stems_and_equal_names(tmp_path):
    root = folder(tmp_path/"r", doc_1_dot_png=0, doc_2_dot_png=1, doc_3_dot_png=0, x_dot_png=1, x_dot_jpg=2, u__x_dot_png=3, v__y_dot_png=0, w__y_dot_png=1)
    pages = records(root)
    assert len(pages) == len(set(ids(pages))) == len({p.sample_id for p in pages}) == 8
    ask = lambda name: ask_pages(pages, [{"page": name, "question": "?"}])[0].image_id
    assert [ask(n) for n in ("doc_3", "doc_3.png", "x.png", "x.jpg", "u/x", "u\\x.png", "./v/y")] == ["doc_3.png", "doc_3.png", "x.png", "x.jpg", "u/x.png", "u/x.png", "v/y.png"]
    with pytest.raises(DataError, match=r"'x' in column 'page' of row 1 may be x.jpg or x.png"): ask("x")
    with pytest.raises(DataError, match=r"no page 'y', in column 'page' of row 1 .*v/y.png"): ask("y")


def test_symbolic_links_are_followed_and_loops_are_not(tmp_path):
    elsewhere, root = folder(tmp_path/"disk", p_dot_png=0, q__p_dot_png=1), folder(tmp_path/"r", own_dot_png=2)
    (root/"linked").symlink_to(elsewhere)
    (root/"linked_page.png").symlink_to(elsewhere/"p.png")
    (elsewhere/"back").symlink_to(root)
    (root/"loop").symlink_to(root)
    assert ids(records(root)) == ["linked/p.png", "linked/q/p.png", "linked_page.png", "own.png"]
    only = tmp_path/"only"
    only.mkdir()
    (only/"l").symlink_to(elsewhere/"q")
    assert ids(records(only)) == ["l/p.png"]


def test_names_in_other_letters(tmp_path):
    root = tmp_path/"r"
    root.mkdir()
    for i, name in enumerate(("北京.png", "cafe\u0301.png", "Ведомость 1.png")): leaf(i).save(root/name)
    pages = records(root)
    ask = lambda name: ask_pages(pages, [{"page": name, "question": "?"}])[0].image_path
    assert [ask(n) for n in ("北京", "café", "café.png", "Ведомость 1")] == ["北京.png", "cafe\u0301.png", "cafe\u0301.png", "Ведомость 1.png"]
    (Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png"))).write_bytes((root/"北京.png").read_bytes())
    with pytest.raises(DataError, match="not UTF-8"): records(root)


def test_options_of_ocr(tmp_path):
    root = folder(tmp_path/"r", a_dot_png=0)
    page_records(root, workers=1, ocr={"engine": "toy_ocr:Toy", "engine_args": {"fear": "999"}})
    for args in ({"fear": 999}, ["fear=999"]): page_records(root, workers=1, engine="toy_ocr:Toy", engine_args=args)
    with pytest.raises(ConfigError, match="does not accept {'dread': '9'}"): page_records(root, engine="toy_ocr:Toy", engine_args={"dread": 9})
    with pytest.raises(ConfigError, match="'engine' is given twice"): page_records(root, engine="toy_ocr:Toy", ocr={"engine": "toy_ocr:Toy"})
    with pytest.raises(ConfigError, match="did you mean 'engine_args'"): page_records(root, ocr={"engine_arg": []})
    with pytest.raises(ConfigError, match="'out' is decided"): page_records(root, ocr={"out": "x"})
    (tmp_path/"empty").mkdir()
    with pytest.raises(DataError, match="no pictures"): page_records(tmp_path/"empty", ocr=TOY)


# ---- tables of questions

@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return records(folder(tmp_path_factory.mktemp("own")/"r", **{f"{i}_dot_png": i for i in range(4)}))


def answers(pages, **cells): return ask_pages(pages, [{"page": 1, "question": "?"} | cells])[0].answers


@pytest.mark.parametrize("cell, want", [
    ("yes", ["yes"]), (["yes"], ["yes"]), (["x", None, " ", float("nan"), "x", "y"], ["x", "y"]), (("x", 2), ["x", "2"]), (np.array(["x", "y"]), ["x", "y"]), (pd.Series(["x", None]), ["x"]),
    ('["x", "y"]', ["x", "y"]), ("['x', 'y']", ["x", "y"]), ("['x' 'y']", ["x", "y"]), ("[sic]", ["[sic]"]), ("[]", []), (None, []), (float("nan"), []), (pd.NA, []), (pd.NaT, []), ("", []),
    (7.0, ["7"]), (np.float64(7), ["7"]), (7.5, ["7.5"]), (np.float32(.1), ["0.1"]), (np.int64(3), ["3"]), (True, ["True"]), (np.bool_(False), ["False"]), (0, ["0"]), (0.0, ["0"]), ({"b", "a"}, ["a", "b"])])
def test_answers_as_people_write_them(pages, cell, want):
    assert answers(pages, answers=cell) == want
    if not isinstance(cell, list) or len(cell) == 1: assert answers(pages, answer=cell) == want


def test_a_table_from_a_file(pages, tmp_path):
    path = tmp_path/"q.csv"
    path.write_bytes('\ufeffpage,question,answer\n1,Total?,7\n2.png,Total?,\n0,How many?,12\n,,\n'.encode())
    for rows in (pd.read_csv(path), pd.read_csv(path).to_dict("records"), list(csv.DictReader(open(path, encoding="utf-8"))), (r for r in pd.read_csv(path, dtype_backend="numpy_nullable").to_dict("records"))):
        asked = ask_pages(pages, rows)
        assert [(a.image_id, a.answers) for a in asked] == [("1.png", ["7"]), ("2.png", []), ("0.png", ["12"])]
        write_jsonl(tmp_path/"q.jsonl", asked)
    frame = pd.DataFrame({"page": [1, 2], "question": ["?", "?"], "answer": [2.0, 1.5]})
    assert [a.answer for a in ask_pages(pages, frame)] == ["2.0", "1.5"] # not a column of whole numbers
    frame.to_csv(path) # with a column of row numbers
    assert len(ask_pages(pages, pd.read_csv(path))) == 2
    assert ask_pages(pages, [{"page": 1.0, "question": "?", "answer": "b", "answers": "['a', 'b']"}])[0].answers == ["b", "a"]


@pytest.mark.parametrize("row, says", [
    ({"page": "9", "question": "?"}, "question 1: there is no page '9', in column 'page' of row 2"), ({"page": "1", "question": float("nan"), "answer": "x"}, "question 1.*column 'question' of row 2"),
    ({"page": None, "question": "?"}, "row 2 names no page.*'page'"), ({"page": "1", "question": "?", "anwser": "x"}, "question 1: unknown column 'anwser'.*did you mean 'answer'"),
    ({"page": "1", "question": "?", "answers": [{"text": "x"}]}, "column 'answers' of row 2 holds"), ({"page": "1", "question": "?", None: ["x"]}, "unknown column ''"), ("page", "question 1 is 'page'")])
def test_faults_name_row_and_column(pages, row, says):
    with pytest.raises(DataError, match=says): ask_pages(pages, [{"page": "1", "question": "?"}, row])


# ---- scores

PERFECT = ["北京", "Привет мир", "हिन्दी भाषा", "ภาษาไทย", "مرحبا بالعالم", "日本語のテスト", "한국어 답", "Ελληνικά", "café", "ÅNGSTRÖM", "שלום"]

@pytest.mark.parametrize("text", PERFECT)
def test_every_script_counts(text):
    for f in (exact_match, token_f1, rouge_l): assert (f(text, [text]), f("nothing", [text]), f("", [text])) == (1, 0, 0), f.__name__
    assert exact_match(text.swapcase() + "。", [text]) == 1


@pytest.mark.parametrize("a, b", [("cafe\u0301", "café"), ("Straße", "STRASSE"), ("Ｋｍ　５", "km 5"), ("¿Cómo?", "cómo"), ("می‌شود", "میشود"), ("北京，中国", "北京中国"), ("ΟΔΟΣ", "οδος"), ("«да»", "Да")])
def test_one_spelling(a, b): assert exact_match(a, [b]) == token_f1(a, [b]) == rouge_l(a, [b]) == 1


def test_wrong_stays_wrong_in_every_script():
    assert exact_match("हिन्दू", ["हिन्दी"]) == token_f1("हिन्दू", ["हिन्दी"]) == rouge_l("हिन्दू", ["हिन्दी"]) == 0 # marks are part of a word
    assert 0 < token_f1("北京市", ["北京"]) < 1 and exact_match("北京市", ["北京"]) == 0 and 0 < rouge_l("北京市", ["北京"]) < 1


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_answer_is_never_right(empty):
    for refs in (["A"], ["the"], ["?"], ["。"], ["", " "], ["<no answer>"]):
        assert exact_match(empty, refs) == token_f1(empty, refs) == rouge_l(empty, refs) == 0
        for metric in METRIC_KEYS: assert score("own", empty, refs, metric)["score"] == 0, (metric, refs)
    assert screenqa("", ["a"]) == (1, 0) # the official scorer, to the letter


def test_short_answers_that_look_like_nothing():
    assert exact_match("A", ["a"]) == token_f1("a.", ["A"]) == 1 and exact_match("the", ["a"]) == exact_match("+", ["-"]) == token_f1("an", ["A"]) == 0
    assert exact_match("+", ["+"]) == 1 and plain_form("The A") == "the a" and exact_match("the red", ["red"]) == 1


# ---- draws

KEYS = [("families", 3, "screenqa_val_7"), ("x", 0.4, None, True, b"\xff"), (1, ("a", "b'c\"d\n\t\x00"))]

def test_draws_for_ascii_keys_are_what_they_were():
    import hashlib
    for keys in KEYS:
        was = np.random.default_rng(int.from_bytes(hashlib.sha256(repr(keys).encode()).digest(), "big"))
        assert was.integers(0, 2**62, 4).tolist() == rng(*keys).integers(0, 2**62, 4).tolist()


def test_keys_are_ascii_bytes_that_no_python_changes(monkeypatch):
    seen = []
    sha = core.hashlib.sha256
    monkeypatch.setattr(core.hashlib, "sha256", lambda b: seen.append(b) or sha(b))
    rng("🫨", "é", "\ud800", ("北京", 1))
    assert seen == [rb"('\U0001fae8', '\xe9', '\ud800', ('\u5317\u4eac', 1))"]


# ---- files of other programs

@pytest.mark.parametrize("raw, says", [
    (b'{"a": 1}\n{"a": 1e999}\n', ":2: malformed.*1e999 is too large"), (b'{"a": -1E+400}', ":1: malformed.*too large"), (b'{"a": ' + b"9"*400 + b".0}", ":1: .*too large"), (b'{"a": ' + b"9"*5000 + b"}", ":1: malformed"),
    (b'{"a": Infinity}', ":1: .*Infinity is not JSON"), (b'{"a": "\\udead"}', ":1: .*surrogate"), ('{"a": 1}\n'.encode("utf-16"), ":1: malformed.*save the file as UTF-8"),
    ('{"a": 1}\n'.encode("utf-16-le"), ":1: malformed.*save the file as UTF-8"), ('{"a": "é"}\n'.encode("latin-1"), ":1: malformed.*save the file as UTF-8"), (b"["*100_000, ":1: malformed.*deeply")])
def test_lines_that_no_reader_takes(tmp_path, raw, says):
    (tmp_path/"f.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=f"f.jsonl{says}"): list(read_jsonl(tmp_path/"f.jsonl"))
    (tmp_path/"f.json").write_bytes(raw.replace(b'{"a": 1}\n{', b'{\n'))
    with pytest.raises(DataError, match="f.json:?[12]?: not JSON"): read_json(tmp_path/"f.json")


def test_marks_and_line_ends_that_every_reader_takes(tmp_path):
    (tmp_path/"f.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n\xef\xbb\xbf{"a": "\\ud83d\\ude00"}\r\n\xef\xbb\xbf')
    assert [r for _, r in read_jsonl(tmp_path/"f.jsonl")] == [{"a": 1}, {"a": "😀"}]
    (tmp_path/"f.json").write_bytes(b'\xef\xbb\xbf{"a": [1.5, 1e9]}\r\n')
    assert read_json(tmp_path/"f.json") == {"a": [1.5, 1e9]}
    (tmp_path/"f.json").write_text('{"time_step_limit": [0.0, Infinity]}') # as in some model's config
    assert read_json(tmp_path/"f.json", strict=False)["time_step_limit"][1] == float("inf")
    with pytest.raises(DataError, match="f.json:1: not JSON .Infinity"): read_json(tmp_path/"f.json")
    with pytest.raises(DataError, match="this is a folder"): read_json(tmp_path)


def own_data(tmp_path, *rows, mark=b""):
    raw = tmp_path/"raw/menus"
    (raw/"images").mkdir(parents=True, exist_ok=True)
    leaf(1).save(raw/"images/a.png")
    leaf(1).save(raw/"images/pages.tif", save_all=True, append_images=[leaf(2)])
    (raw/"dataset.json").write_bytes(mark + b'{"metric": "exact_match"}')
    (raw/"menus_raw_train.jsonl").write_bytes(b"".join(mark + (r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\r\n" for r in rows))
    return UnifyConfig("menus", str(raw), str(tmp_path/"out"), workers=1)


def test_unify_takes_marks_and_lists_and_counts_well(tmp_path, capsys):
    row = {"image": "images/a.png", "question": "?", "answers": "['x', 'y']"}
    out = unify(own_data(tmp_path, row, mark=b"\xef\xbb\xbf"))["train"]
    assert [r["answers"] for _, r in read_jsonl(out)] == [["x", "y"]]
    assert "menus train: 1 record, 0 with text" in capsys.readouterr().out
    unify(replace(own_data(tmp_path, row, row | {"image": "images/pages.tif"}), overwrite=True))
    said = capsys.readouterr().out
    assert "2 records, 0 with text" in said and "pages.tif holds 2 pages" in said
    with pytest.raises(DataError, match=r"menus_raw_train.jsonl:2: malformed line .1e999"): unify(own_data(tmp_path, row, b'{"image": "images/a.png", "question": "?", "answers": ["x"], "price": 1e999}'))
    spec = folder_spec("menus", tmp_path/"raw/menus")
    assert raw_answers({"answers": ["x", None]}, spec, "f:1") == ["x"] and raw_answers({"answers": "[1, 2]"}, spec, "f:1") == ["1", "2"]


def test_what_is_typed_into_the_explorer():
    from r3nb.explorer import Ask, Explorer
    page = Explorer.__new__(Explorer)
    for typed in ({"question": "how \ud800 much?"}, {"question": "?", "answer": "\udc00"}):
        with pytest.raises(DataError, match="lone surrogate") as e: page.own_page(Ask(picture=b"x", **typed))
        str(e.value).encode("ascii")


def test_pictures_that_are_not_files(tmp_path):
    for name, bits, colours in (("a.png", 10, 0), ("a.tif", 12, 0), ("b.tif", 10, 3), ("b.png", 12, 3)):
        path = scan(tmp_path/name, bits, colours)
        assert np.array_equal(open_image(io.BytesIO(path.read_bytes())), open_image(path)), name
    with pytest.raises(ImageError, match="HEIC"): open_image(io.BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"))
