"""Outputs that are saved in the notebooks: what a saved one is, what counts as the same, and that every page has them."""
import base64
import io
import json
import re
import sys

import pytest
from browser import ROOT
from PIL import Image, ImageDraw

sys.path.insert(0, str(ROOT/"scripts"))
from docs import misplaced, notebooks, parts, stamp
from outputs import EMBEDDED, PICTURE, PLAIN, check, different, outputs, save, small, without_outputs

PAGES = {page: path for page, path in notebooks().items() if page != "index"}
stream = lambda text, name="stdout": {"output_type": "stream", "name": name, "text": text}
shown = lambda **data: {"output_type": "execute_result", "execution_count": 7, "metadata": {}, "data": {k.replace("_", "/", 1): v for k, v in data.items()}}


def png(colour="white", size=(40, 30), noise=False, kind="PNG"):
    im = Image.effect_noise(size, 90).convert("RGB") if noise else Image.new("RGB", size, colour)
    if noise: ImageDraw.Draw(im).rectangle((5, 5, size[0]//2, size[1]//2), fill=colour)
    out = io.BytesIO()
    im.save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return base64.b64encode(out.getvalue()).decode()


def of(path): return [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code" for o in c["outputs"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_what_it_promises(page):
    assert len(of(PAGES[page])) >= 1, "no saved output: run make docs"


def test_most_cells_that_a_reader_sees_have_one():
    cells = [c for p in PAGES.values() for c in json.loads(p.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    cells = [c for c in cells if not re.search(r"^#\|\s*(export|exports|exporti|hide|default_exp)\b", "".join(c["source"]), re.M) and "show_doc" not in "".join(c["source"])]
    assert sum(bool(c["outputs"]) for c in cells) > len(cells)/2


OF_A_MACHINE = re.compile(r"/(?:home|root|Users|tmp|work|var)/|0x[0-9a-f]{6,}|\x1b\[|\b(?:in|after|took|takes) \d[\d.,]* (?:ms|s|sec|seconds|min|minutes)\b"
                          r"|\d+:\d\d (?:so far|last time)|done in \d|\d (?:images|samples|tokens|pages|it)/s|\d{4}-\d\d-\d\d[ T]\d\d:\d\d")


@pytest.mark.parametrize("page", PAGES)
def test_saved_outputs_are_small_and_of_no_machine(page):
    path = PAGES[page]
    assert path.stat().st_size < 400_000
    for o in of(path):
        text = "".join(o.get("text") or "".join("".join(v) for k, v in o["data"].items() if not k.startswith("image/png")))
        wrong = OF_A_MACHINE.search(EMBEDDED.sub("", text))
        assert not wrong, f"{page}: {text[max(0, wrong.start() - 60):wrong.end() + 60]!r}"
        assert all(len(base64.b64decode(p)) <= PICTURE for _, p in EMBEDDED.findall(text))
        if "image/png" in o.get("data", {}): assert len(base64.b64decode(o["data"]["image/png"])) <= PICTURE


def test_a_machine_leaves_no_trace():
    got = outputs([stream("read in 1.4 s (1.40 images/s)\n"), stream("hidden", "stderr"), stream("a\x1b[31mb\x1b[0m\n"), stream("10%\r100%\n"),
                   stream(f"{ROOT}/nbs/x <object at 0x7f00deadbeef>\n"), stream("stage    0:02   4 kB, bad.json:3:10\n"),
                   stream("stage: done in 0:03, 1:02:07 so far, took 0:01 last time; next alarm 07:15\n"),
                   stream("[2026-01-02 03:04:05,678] [WARNING] [x.py:1:f] no GPU\n"), shown(text_plain="<Figure>", image_png=png())])
    text, picture = got
    assert text["text"] == "read in … s (… images/s)\nab\n100%\nnbs/x <object>\nstage       …   4 kB, bad.json:3:10\n" \
                           "stage: done in …, … so far, took … last time; next alarm 07:15\n"
    assert list(picture["data"]) == ["image/png"] and "execution_count" not in picture


def test_large_pictures_become_small_and_the_same_each_time():
    big = png("red", (900, 700), noise=True)
    assert len(base64.b64decode(big)) > PICTURE
    assert small(big) == small(big) and len(base64.b64decode(small(big))) <= PICTURE and small(png()) == png()


def test_pictures_in_html_become_small_too():
    "What differs between two of them is seen; another encoding of the same pixels is not a difference"
    html = lambda *args, kind="webp", **kw: f'<b>a page</b><img src="data:image/{kind};base64,{png(*args, kind=kind.upper(), **kw)}">'
    said = lambda a, b: different(outputs([shown(text_html=a)]), outputs([shown(text_html=b)]))
    big = html("red", (500, 400), noise=True)
    [(_, packed)] = EMBEDDED.findall(outputs([shown(text_html=big)])[0]["data"]["text/html"])
    assert len(big) > 2*PICTURE and len(base64.b64decode(packed)) <= PICTURE
    assert said(html(), html()) is None and said(html("white"), html((254, 254, 254))) is None
    assert "differs by" in said(html("white"), html("black")) and "saved is" in said(html(), html().replace("page", "form"))


def test_a_figure_is_kept_in_256_colours_where_that_is_smaller():
    figure = Image.linear_gradient("L").resize((700, 500)).convert("RGB")
    draw = ImageDraw.Draw(figure)
    for i in range(300): draw.line((i*7 % 700, 0, i*13 % 700, 500), fill=(i*5 % 256, i*3 % 256, 90))
    out = io.BytesIO()
    figure.save(out, "PNG")
    less = base64.b64decode(small(base64.b64encode(out.getvalue()).decode()))
    assert len(less) < out.tell() and out.tell() > PLAIN and Image.open(io.BytesIO(less)).mode == "P"


def test_outputs_are_no_part_of_a_fingerprint(tmp_path):
    "A page whose outputs are saved is not executed again because of them; one whose code has changed is"
    path = tmp_path/PAGES["modules/words"].name
    text = PAGES["modules/words"].read_text(encoding="utf-8")
    book = json.loads(text)
    path.write_text(text, encoding="utf-8")
    before = stamp(path)
    cell = next(c for c in book["cells"] if c["cell_type"] == "code" and not "".join(c["source"]).startswith("#|"))
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["something else\n"]}]
    path.write_text(json.dumps(book), encoding="utf-8")
    assert without_outputs(text) == without_outputs(path.read_text(encoding="utf-8")) and stamp(path) == before
    cell["source"] = [*cell["source"], "\n", "print(1)"]
    path.write_text(json.dumps(book), encoding="utf-8")
    assert stamp(path) != before


def test_a_chapter_without_a_part_is_named():
    "Before anything is executed"
    pages, book = ["modules/core", "modules/words", "method"], {"Ground": {"chapters": ["core", "core"]}, "Data": {"chapters": ["gone"]}}
    said = "; ".join(misplaced(pages, book))
    assert "'words' stands in no part" in said and "no chapter 'gone'" in said and "'core' stands in more" in said
    assert not list(misplaced(notebooks(), parts()))


@pytest.mark.parametrize("old,new,same", [
    ("score 0.8512, n 12\n", "score 0.8513, n 12\n", True), ("score 1,234.5\n", "score 1,234.6\n", True), ("lr 1.0000e-05\n", "lr 1.0001e-05\n", True),
    ("error 5.7e-06\n", "error 3.8e-06\n", True), ("lr 1.0e-05\n", "lr 2.0e-05\n", False),
    ("sha 1a2b3c4d5e6f\n", "sha 9f8e7d6c5b4a\n", True), ("score 0.85\n", "score 0.95\n", False), ("n 12\n", "n 13\n", False), ("answer cat\n", "answer dog\n", False),
    ("one\n", "one\ntwo\n", False)])
def test_what_counts_as_the_same_text(old, new, same):
    why = different(outputs([stream(old)]), outputs([stream(new)]))
    assert (why is None) == same and (same or "saved is" in why)


def test_what_counts_as_the_same_picture():
    def diff(a, b): return different(outputs([shown(image_png=a)]), outputs([shown(image_png=b)]))
    assert diff(png("white"), png((254, 254, 254))) is None
    assert "differs by" in diff(png("white"), png("black")) and "pixels" in diff(png(), png(size=(41, 30)))
    assert "saved is" in different([], outputs([stream("new\n")])) and "nothing" in different(outputs([stream("old\n")]), [])


def test_saving_and_checking(tmp_path):
    "Outputs come into a notebook by the ids of its cells; the second time nothing is written; a cell that shows something else is named"
    path, cell = tmp_path/"a.ipynb", {"cell_type": "code", "execution_count": None, "id": "c1", "metadata": {}, "outputs": [], "source": ["1 + 1"]}
    path.write_text(json.dumps({"cells": [cell, {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["x"]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    found = {"c1": outputs([shown(text_plain="2"), shown(image_png=png())])}
    assert save(path, found) and not save(path, found) and list(check(path, found)) == []
    assert [line.split(":")[0] for line in check(path, {"c1": outputs([shown(text_plain="3"), shown(image_png=png())])})] == ["a.ipynb, cell c1"]
    assert list(check(path, {}))
