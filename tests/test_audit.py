"""The audit: what it counts, on a world small enough to count by hand."""
import json
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from test_indices import page, record
from test_scale import Pixels, Words

from r3nb.audit import AuditConfig, draw_sample, duplicate_rows, held_and_kept, main, measure, passage_panel, rank_scores, records_by_split, run_audit, split_pages, target_of
from r3nb.core import ConfigError, DataError, read_json, write_jsonl
from r3nb.indices import EvidenceIndex

N = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Twelve training pages in pairs of siblings; validation pages: two with siblings, one without, one that is a copy."
    root = tmp_path_factory.mktemp("audit")
    (root / "w/images").mkdir(parents=True)
    for i in range(N + 3): page(i).save(root / f"w/images/{i}.png")
    page(4).resize((120, 65)).save(root / "w/images/copy.png")
    train = [record(i, answers=[f"fact{i // 2}"], answer=f"fact{i // 2}", pseudo_text=f"page{i} says fact{i // 2}") for i in range(N)]
    val = [record(N + k, split="val", answers=[a], answer=a, meta=m | {"has_sibling": bool(m)}, question=f"about page{k}?", pseudo_text=f"page{k} says {a}")
           for k, (a, m) in enumerate([("fact0", {"entity": "e0"}), ("absent", {"entity": "e1"}), ("lonely", {})])]
    val.append(record(N + 3, split="val", image_path="w/images/copy.png", answers=["fact2"], answer="fact2", meta={"entity": "e2", "has_sibling": True}, pseudo_text="page4 says fact2"))
    for name, rows in (("train", train), ("val", val)): write_jsonl(root / f"{name}.jsonl", [r.to_dict() for r in rows])
    index = EvidenceIndex.build(root / "train.jsonl", root, root / "indices", Words(), Pixels())
    return SimpleNamespace(root=root, train=train, val=val, index=index, files=[str(root / "train.jsonl"), str(root / "val.jsonl")])


def test_targets(world):
    assert target_of(world.index, world.train[3]) == ("siblings", {2})
    assert target_of(world.index, world.val[0]) == ("siblings", {0, 1})
    assert target_of(world.index, world.val[2]) == ("", set())
    assert target_of(world.index, record(5, meta={})) == ("same page", {5})


def test_scores_of_ranks():
    got = rank_scores([7, 2, 9, 4], {2, 4, 5}, [1, 2, 4, 9])
    assert got == {"recall@1": 0, "recall@2": 1 / 3, "recall@4": 2 / 3, "recall@9": 2 / 3, "mrr": .5}


def test_measures_agree_with_a_count_by_hand(world):
    cfg = AuditConfig(world.files, recall_at=[1, 11], top_k=11)
    answers, recalls, _ = measure(world.index, {"train": world.train, "val": world.val}, cfg)
    by = {(r["split"], r["group"]): r for r in answers}
    assert by["train", "all"]["own page"] == 1 and by["train", "all"]["either"] == 1  # all other pages are evidence, the sibling among them
    assert by["val", "all"]["questions"] == 4 and by["val", "all"]["either"] == .5 and by["val", "all"]["own page"] == 1
    assert by["val", "sibling"]["questions"] == 3 and by["val", "no sibling"]["either"] == 0
    assert all(r["recall@11"] == 1 for r in recalls if r["split"] == "train" and r["target"] == "siblings")
    val = next(r for r in recalls if r["split"] == "val" and r["channel"] == "text")
    assert val["questions"] == 3 and val["recall@11"] == pytest.approx((1 + 1 + .5) / 3, abs=1e-4)  # the copy of page 4 may receive page 5 only


def test_the_same_page_is_found_by_question_and_picture(world):
    lone = [record(i, meta={}, question=world.train[i].pseudo_text, pseudo_text=world.train[i].pseudo_text) for i in range(4)]
    _, recalls, _ = measure(world.index, {"train": lone}, AuditConfig(world.files, recall_at=[1]))
    assert [(r["target"], r["channel"], r["recall@1"], r["mrr"]) for r in recalls] == [("same page", "text", 1, 1), ("same page", "image", 1, 1)]


def test_near_copies_across_splits(world):
    rows, pairs = duplicate_rows(split_pages(world.index, {"train": world.train, "val": world.val}))
    assert [(r["pictures"], r["copy in train"], r["copy in val"], r["copy in index"], r["not compared"]) for r in rows] == [(12, 0, 1, 0, 0), (4, 1, 0, 1, 0)]
    held, kept = held_and_kept(pairs)
    assert [(e["image_id"], e["other_id"], e["other_path"]) for e in held] == [("w/04", "w/15", "w/images/copy.png")] and held[0]["bits"] <= 16
    assert all(e["change"] > 5 or "other" in e["reason"] for e in kept)


def test_a_draw_is_seeded_and_covers_splits(world):
    cfg = AuditConfig(world.files, max_queries=3, recall_at=[1])
    answers, _, _ = measure(world.index, {"train": world.train, "val": world.val}, cfg)
    assert [r["questions"] for r in answers if r["group"] == "all"] == [3, 3]
    assert [r.sample_id for r in draw_sample(world.train, 5, 1)] == [r.sample_id for r in draw_sample(world.train[::-1], 5, 1)]
    assert draw_sample(world.train, 5, 1) != draw_sample(world.train, 5, 2)


def test_files_and_faults(world, tmp_path, monkeypatch):
    import r3nb.audit
    monkeypatch.setattr(r3nb.audit.EvidenceIndex, "load", classmethod(lambda cls, *a, **k: world.index))
    cfg = AuditConfig(world.files, out_dir=str(tmp_path / "audit"), levels=[0, .5], recall_at=[1, 3])
    result = run_audit(cfg)
    saved, text = read_json(tmp_path / "audit/audit.json"), (tmp_path / "audit/audit.md").read_text()
    assert saved["near copies"] == result["near copies"] and saved["held"][0]["other_id"] == "w/15" and saved["held_pairs"] == 1 and "(1 pairs)" in text and {r["level"] for r in saved["answers"]} == {0, .5}
    assert saved["leaks"][1]["near_duplicate"] == 1 and text.count("## ") == 7 and "| val |" in text
    assert Image.open(tmp_path / "audit/audit.png").size[0] > 500 and (tmp_path / "audit/audit.pdf").stat().st_size > 1000
    first = (tmp_path / "audit/audit.json").read_bytes()
    run_audit(cfg)
    assert (tmp_path / "audit/audit.json").read_bytes() == first
    assert len(json.loads((tmp_path / "audit/manifest.json").read_text())["inputs"]) == 2
    with pytest.raises(DataError, match="two of the files"): records_by_split(AuditConfig([world.files[0]] * 2), world.root)
    for kw, said in ((dict(top_k=0), "top_k"), (dict(levels=[2]), "levels"), (dict(recall_at=[]), "recall_at"), (dict(max_queries=-1), "max_queries")):
        with pytest.raises(ConfigError, match=said): AuditConfig(world.files, **kw)
    with pytest.raises(ConfigError, match="no file"): AuditConfig([])


def test_questions_without_references_are_searched_but_not_judged(world):
    rows = [record(0, 5, answers=[""], answer="")]
    answers, recalls, _ = measure(world.index, {"test": rows}, AuditConfig(world.files, recall_at=[1]))
    assert answers == [] and recalls[0]["questions"] == 1


def test_command_line(world, capsys, tmp_path):
    with pytest.raises(SystemExit) as e: main(["--jsonl", world.files[0], "--index_dir", str(tmp_path / "none")])
    assert e.value.code == 2 and "not an index" in capsys.readouterr().err
    got = subprocess.run([sys.executable, "-m", "r3nb.audit", "--help"], capture_output=True, text=True, timeout=200).stdout
    assert "pages of evidence per channel" in got and np.all([f"--{f}" in got for f in ("jsonl", "index_dir", "image_root", "out_dir", "top_k", "levels")])


def test_passages_and_prompts_are_counted(world, tmp_path):
    "A long page whose answer stands in its last passage; the prompt is written with a tokenizer alone."
    from tiny import processor
    processor().save_pretrained(tmp_path / "tok")
    filler = "\n".join(f"line {k} says nothing of note" for k in range(60))
    rows = [record(i, answers=[f"fact{i // 2}"], answer=f"fact{i // 2}", question="What is the fact?", pseudo_text=f"{filler}\npage{i}\nthe fact is fact{i // 2}") for i in range(4)]
    index = EvidenceIndex.build(rows, world.root, tmp_path / "i", Words(), Pixels())
    cfg = AuditConfig(world.files, tokenizer=str(tmp_path / "tok"), recall_at=[1])
    *_, passages = measure(index, {"train": rows}, cfg)
    by = {r["channel"]: r for r in passages}
    assert list(by) == ["text", "image", "either"] and by["either"]["page"] == 1 and by["either"]["questions"] == 4
    assert 0 < by["either"]["best passage"] <= by["either"]["best 3"] <= 1 and 0 <= by["either"]["prompt"] <= 1
    short = [record(i, answers=[f"fact{i // 2}"], answer=f"fact{i // 2}", pseudo_text=f"page{i} says fact{i // 2}") for i in range(4)]
    *_, passages = measure(EvidenceIndex.build(short, world.root, tmp_path / "s", Words(), Pixels()), {"train": short}, cfg)
    assert all(r["page"] == r["best passage"] == r["best 3"] == r["prompt"] for r in passages)
    assert not any("prompt" in r for r in measure(index, {"train": rows}, AuditConfig(world.files, recall_at=[1]))[2])


def test_a_bar_for_each_place_that_was_measured():
    rows = [{"split": "val", "level": 0, "channel": c, "questions": 4, "page": 1., "best passage": .5, "best 3": .75, "prompt": prompt}
            for c, prompt in (("text", .1), ("either", None))]
    fig, ax = plt.subplots()
    passage_panel(ax, rows)
    assert [b.get_height() for b in ax.patches] == [1., .5, .75] and [t.get_text() for t in ax.get_xticklabels()] == ["val (4)"]
    plt.close(fig)
