"""Copies and pages of one template: the rule, the search that holds copies back, and who says so."""
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from near_copies import COPIES, KINDS, changed, draw, misread, through
from PIL import Image
from test_indices import record
from test_scale import Pixels, Words

from r3nb import eval as ev
from r3nb.audit import AuditConfig, run_audit
from r3nb.copies import Look, alike, difference, limit_of, replaced, verdict, view_of
from r3nb.core import ConfigError, ImageError, read_json, write_jsonl
from r3nb.encoders import image_hash
from r3nb.eval import parse_mode
from r3nb.evidence import Grid
from r3nb.indices import EvidenceIndex, Found, leakage_audit, main, merge_shards, near_copies, retrieve

SMALL, MIDDLE = (310, 420), (640, 480)


def look(im, text=""): return Look(image_hash(im), image=im, text=text)


# ---- the rule

@pytest.mark.parametrize("kind", KINDS)
def test_template_pages_are_kept_and_copies_found(kind):
    im, words, _ = draw(kind, MIDDLE, 5, 5)
    page = look(im)
    for change in ("all", "line", "digit"): assert not verdict(page, look(changed(kind, MIDDLE, 5, 5, change)[0])).copy, change
    for name in ("jpeg 50", "scale 0.5-0.9", "crop 3% + jpeg 60", "pad 4% + gray + jpeg 70"):
        copy = look(COPIES[name](im, random.Random(kind)), misread(words, random.Random(kind)))
        for a, b in ((page, copy), (copy, page), (look(im, " ".join(words)), copy)): assert verdict(a, b).copy, (name, verdict(a, b))


@pytest.mark.parametrize("name", COPIES)
def test_every_sort_of_copy_of_a_thumbnail(name):
    im = draw("bars", SMALL, 1, 1)[0]
    assert verdict(look(im), look(COPIES[name](im, random.Random(name)))).copy


def test_template_pages_that_are_compressed_alike():
    a, b = (look(through(im, "JPEG", quality=70)) for im in (draw("invoice", MIDDLE, 2, 2)[0], changed("invoice", MIDDLE, 2, 2, "digit")[0]))
    assert not verdict(a, b).copy and verdict(a, a).copy


def test_pictures_decide_and_texts_tip():
    im, other = draw("table", SMALL, 3, 3)[0], draw("table", SMALL, 3, 4)[0]
    assert verdict(look(im, "quite one text here"), look(im, "another one altogether now")).copy  # equal pictures
    assert not verdict(look(im, "the same words here"), look(other, "the same words here")).copy  # equal texts
    quiet, loud = SimpleNamespace(noise=0., moved=False), SimpleNamespace(noise=.01, moved=False)
    one, two = "Invoice 4711 for Mary Stone", "Invoice 4712 for Mary Stone"
    assert limit_of(quiet, one, two) < limit_of(loud, one, two) == limit_of(quiet, "", two) < limit_of(loud, one, one)
    assert replaced(one, two) == 1 and replaced(one, "for Mary Stone") is None and replaced("a", "b") is None
    assert alike(one, two) and alike("", one) and not alike(one, "nothing of that kind is here")


def test_a_faint_digit_is_told_by_the_text():
    a = Image.new("L", (600, 800), 255)
    a.paste(0, (60, 60, 500, 64))
    b = a.copy()
    b.paste(240, (300, 500, 306, 503))
    assert 0 < difference(view_of(a), view_of(b)).worst < 5
    assert verdict(look(a, "Order 25 is due"), look(b, "Order 25 is due")).copy and not verdict(look(a, "Order 25 is due"), look(b, "Order 26 is due")).copy


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (20, 20), (6000, 40)])
def test_odd_shapes_are_copies_of_themselves(size):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype="uint8"))
    for mode in ("L", "RGB", "RGBA", "1"): assert verdict(look(im.convert("L")), look(im.convert("L").convert(mode).convert("L") if mode != "1" else im)).copy
    blank = look(Image.new("RGB", size, "white"))
    assert verdict(blank, blank).copy


# ---- in an index

@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    "Six invoices of one layout, and two copies of the first."
    root = tmp_path_factory.mktemp("copies")
    (root / "w/images").mkdir(parents=True)
    rows = []
    for i in range(6):
        im, words, _ = draw("invoice", MIDDLE, 0, i)
        im.save(root / f"w/images/{i}.png")
        rows.append(record(i, pseudo_text=" ".join(words)))
    first = draw("invoice", MIDDLE, 0, 0)[0]
    COPIES["jpeg 75"](first, None).save(root / "w/images/jpeg.png")
    COPIES["crop 3%"](first, random.Random(1)).save(root / "w/images/cut.png")
    rows += [record(10 + k, image_id=f"w/{n}", image_path=f"w/images/{n}.png", pseudo_text=rows[0].pseudo_text + " x" * k) for k, n in enumerate(("jpeg", "cut"))]
    write_jsonl(root / "train.jsonl", [r.to_dict() for r in rows])
    index = EvidenceIndex.build(rows, root, root / "index", Words(), Pixels())
    return SimpleNamespace(root=root, rows=rows, index=index, encoders=(Words(), Pixels()))


def asked(shelf, r, index=None, top_k=3, mode="retrieved"):
    seen = SimpleNamespace(question=r.question, pseudo_text=r.pseudo_text, image=Image.open(shelf.root / r.image_path))
    return retrieve(index or shelf.index, [r], [seen], top_k, mode=mode)[0]


def names(found): return {e.image_id for es in found.values() for e in es}


def test_invoices_are_evidence_for_each_other(shelf):
    for r in shelf.rows[1:6]:
        found = asked(shelf, r, top_k=7)
        assert len(found["text"]) == len(found["image"]) == 7 and found.held == []
    found = asked(shelf, shelf.rows[0], top_k=7)
    assert names(found) == {f"w/{i:02d}" for i in range(1, 6)} and {h.image_id for h in found.held} == {"w/jpeg", "w/cut"}
    assert all(h.change is not None and h.image_path.endswith(".png") and h.reason for h in found.held)


def test_copies_are_replaced_by_the_next_pages(shelf):
    one = asked(shelf, shelf.rows[0], top_k=2)
    assert len(one["text"]) == len(one["image"]) == 2 and not names(one) & {"w/00", "w/jpeg", "w/cut"}
    told = replace(shelf.rows[0], answers=["invoice"]) # a word of every page
    for mode in ("random", "oracle"): assert names(asked(shelf, told, top_k=7, mode=mode)) == {f"w/0{i}" for i in range(1, 6)}
    allowed = shelf.index.allowed("image", np.arange(8), {"w/00"}, [shelf.index.look(shelf.rows[0])])
    assert allowed.tolist() == [False, True, True, True, True, True, False, False]


def test_a_question_from_outside_the_index(shelf):
    COPIES["scale 0.5-0.9"](draw("invoice", MIDDLE, 0, 3)[0], random.Random(0)).save(shelf.root / "w/images/new.png")
    r = record(50, image_id="w/new", image_path="w/images/new.png", pseudo_text="")
    found = asked(shelf, r, top_k=8)
    assert {h.image_id for h in found.held} == {"w/03"} and len(names(found)) == 7
    assert leakage_audit(shelf.index, [r, shelf.rows[2]])["near_duplicate"] == 1


def test_the_old_rule_can_be_asked_for(shelf, tmp_path):
    old = EvidenceIndex.build(shelf.rows, shelf.root, tmp_path / "old", *shelf.encoders, copies="hash")
    near = {shelf.rows[i].image_id for i in near_copies(old.hashes, old.hashes[:1], 16)[0]} - {"w/00"}
    found = asked(shelf, shelf.rows[0], old, 8)
    assert "w/jpeg" in near and "w/cut" in names(found) and not near & names(found) and {h.image_id for h in found.held} == near
    assert old.fingerprint == shelf.index.fingerprint and old.remove(["w/05"]).copies == "hash" and EvidenceIndex.load(tmp_path / "old", *shelf.encoders).copies == "hash"
    info = read_json(shelf.root / "index/index.json")
    assert info.pop("copies") == "pictures"
    (shelf.root / "index/index.json").write_text(json.dumps(info))
    assert EvidenceIndex.load(shelf.root / "index", *shelf.encoders).copies == "pictures"  # an index of an older version
    assert Grid("i", "r", 0, 3, ["text"], "pseudo_text", [0]).copies == "hash"


def test_missing_pictures_are_named(shelf, tmp_path):
    index = EvidenceIndex.load(shelf.root / "index", *shelf.encoders, image_root=tmp_path)
    (tmp_path / "w/images").mkdir(parents=True)
    Image.open(shelf.root / "w/images/1.png").save(tmp_path / "w/images/1.png")
    with pytest.raises(ImageError, match=r"no such image.*copy of another.*image_root"): asked(SimpleNamespace(root=tmp_path, index=index), shelf.rows[1], index)


def test_hashes_alone_are_no_looks(shelf):
    with pytest.raises(ConfigError, match="look"): shelf.index.search(texts=["a"], exclude_copies=[shelf.index.query_hash(shelf.rows[0])])


def test_the_audit_lists_both(shelf, tmp_path, monkeypatch):
    import r3nb.audit
    monkeypatch.setattr(r3nb.audit.EvidenceIndex, "load", classmethod(lambda cls, *a, **k: shelf.index))
    run_audit(AuditConfig([str(shelf.root / "train.jsonl")], out_dir=str(tmp_path), max_queries=1))
    saved, text = read_json(tmp_path / "audit.json"), (tmp_path / "audit.md").read_text()
    held = {frozenset((p["image_id"], p["other_id"])) for p in saved["held"]}
    assert held == {frozenset(p) for p in (("w/00", "w/jpeg"), ("w/00", "w/cut"), ("w/jpeg", "w/cut"))} and saved["held_pairs"] == 3
    assert saved["kept_pairs"] == len(saved["kept"]) >= 10 and saved["kept"] == sorted(saved["kept"], key=lambda p: p["change"])
    assert {"image_path", "other_path", "bits", "change", "reason"} <= set(saved["held"][0])
    assert "(3 pairs)" in text and f"({saved['kept_pairs']} pairs, the first 10)" in text


def test_the_command_takes_the_rule(shelf, capsys):
    with pytest.raises(SystemExit): main(["--jsonl", "a", "--image_root", "b", "--copies", "guess"])
    assert "copies" in capsys.readouterr().err and "copies" in merge_shards.__annotations__


# ---- in an evaluation

def test_rows_and_summary_say_what_was_withheld(shelf, tmp_path):
    found = asked(shelf, shelf.rows[0], top_k=6)
    left = ev.only(found, parse_mode("r3-text_retrieval"))
    assert isinstance(left, Found) and left["text"] == [] and {h.channel for h in left.held} == {"image"} and ev.held_field({"text": []}) == ev.held_field(None) == {}
    row = lambda s, mode, f: {"sample_id": s, "mode": mode} | ev.held_field(f)
    write_jsonl(tmp_path / "p.jsonl", [row("a", "rag", found), row("a", "r3", found), row("a", "base", None), row("b", "rag", Found({})), row("c", "rag+shuffled", found)])
    count = ev.withheld(tmp_path / "p.jsonl")
    assert count == {"questions": 1, "of": 2, "pages": 2}
    assert ev.withheld_line(count) == "evidence was withheld for 1 of 2 questions: 2 pages are copies of their own; r3nb_audit lists them"
    assert "none of 2" in ev.withheld_line(count | {"questions": 0, "pages": 0}) and ev.withheld_line({"questions": 0, "of": 0, "pages": 0}) == ""
