"""Data: the three raw layouts, every kind of bad row, leaks between splits, samples and mixtures."""
import dataclasses
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from bench import peak_of
from jsonschema import Draft202012Validator
from PIL import Image
from tiny import clip

from r3nb import data as D
from r3nb.core import ConfigError, DataError, ImageError, QARecord, read_records, record_schema, sha256_file, write_json, write_jsonl

ROWS = {
    "screenqa": lambda im, q, a: {"screen_id": im, "question": q, "ground_truth": a, "file_name": f"{im}.jpg", "image": f"images/{im}.png"},
    "chartqa": lambda im, q, a: {"image": f"images/{im}.png", "query": q, "label": a, "human_or_machine": 1},
    "infovqa": lambda im, q, a: {"questionId": f"id-{im}-{q}", "question": q, "answers": a, "answer_type": ["single span"],
                                 "image": f"images/{im}.png", "operation/reasoning": ["none"], "ocr": f"words of {im}", "data_split": "x"},
}


def raw(tmp_path, ds="chartqa", splits=("train", "val"), n=3):
    "A raw folder with `n` images a split and two questions on each; every image differs"
    folder = tmp_path/"raw"/ds
    (folder/"images").mkdir(parents=True)
    for s, split in enumerate(splits):
        rows = []
        for i in range(n):
            Image.new("RGB", (24, 24), (40 * i, 80 * s, 20 * len(ds))).save(folder/f"images/{split}_{i}.png")
            rows += [ROWS[ds](f"{split}_{i}", f"q{k}?", [f"a{k}", f"b{k}"]) for k in range(2)]
        write_jsonl(folder/f"{ds}_raw_{split}.jsonl", rows)
    return folder


def edit(path, line, **change):
    "Change columns of one row (lines count from 1)"
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | change)
    path.write_text("\n".join(lines) + "\n")


def cfg(folder, tmp_path, ds="chartqa", **kw):
    return D.UnifyConfig(ds, str(folder), str(tmp_path/"unified"), image_prefix=ds, **kw)


def ocr_cache(folder, path, skip=()):
    rows = [{"image_sha256": sha256_file(p), "image": p.name, "text": f"text  of\n{p.stem}", "conf": .8, "words": [], "engine": "fake 1"}
            for p in sorted((folder/"images").iterdir()) if p.stem not in skip]
    return str(write_jsonl(path, rows))


@pytest.mark.parametrize("ds,val", [("screenqa", "validation"), ("chartqa", "val"), ("infovqa", "validation")])
def test_unify_each_dataset(tmp_path, ds, val):
    folder = raw(tmp_path, ds, ("train", val))
    out = D.unify(cfg(folder, tmp_path, ds))
    assert {k: p.name for k, p in out.items()} == {s: f"{ds}_unified_{s}.jsonl" for s in ("train", "val")}
    records = read_records(out["val"], image_root=tmp_path/"raw", check_images=True)
    r = records[3]
    assert (r.sample_id, r.image_id, r.image_path) == (f"{ds}_val_3", f"{ds}/{val}_1", f"{ds}/images/{val}_1.png")
    assert (r.split, r.question, r.answer, r.answers) == ("val", "q1?", "a1", ["a1", "b1"])
    assert r.pseudo_text == (f"words of {val}_1" if ds == "infovqa" else "")
    spec = D.DATASETS[ds]
    assert set(r.meta) == set(ROWS[ds]("x", "q", [])) - {spec.question_field, spec.answers_field, spec.image_field, spec.ocr_field}


def test_ocr_cache_gives_text_and_never_question_or_answer(tmp_path):
    folder = raw(tmp_path)
    out = D.unify(cfg(folder, tmp_path, ocr_cache=ocr_cache(folder, tmp_path/"ocr.jsonl")))
    for r in read_records(out["train"]):
        assert r.pseudo_text == f"text of\n{r.image_id.split('/')[1]}" and r.ocr_conf == .8 and "\n" in r.ocr_text
        assert r.question not in r.pseudo_text and not any(a in r.pseudo_text.split() for a in r.answers)


def test_image_missing_from_cache_names_line_and_command(tmp_path):
    folder = raw(tmp_path)
    cache = ocr_cache(folder, tmp_path/"ocr.jsonl", skip=("train_1",))
    with pytest.raises(DataError, match=r"chartqa_raw_train.jsonl:3: images/train_1.png is not in the OCR cache.*r3nb_ocr"):
        D.unify(cfg(folder, tmp_path, ocr_cache=cache))


@pytest.mark.parametrize("change,error,words", [
    (dict(label=[]), DataError, "no answer"), (dict(label=["  "]), DataError, "no answer"), (dict(label=None), DataError, "no answer"),
    (dict(label=[3]), DataError, "list of strings"), (dict(label={"full_answer": "x"}), DataError, "list of strings"),
    (dict(query=""), DataError, "'query'"), (dict(query=None), DataError, "'query'"),
    (dict(image="../../etc/passwd"), DataError, "image root"), (dict(image="/etc/passwd"), DataError, "image root"),
    (dict(image="images\\..\\..\\x.png"), DataError, "image root"), (dict(image="images/gone.png"), ImageError, "gone.png"),
    (dict(image={"bytes": ""}), DataError, "'image'"),
])
def test_bad_rows_name_file_and_line_and_leave_nothing(tmp_path, change, error, words):
    folder = raw(tmp_path)
    edit(folder/"chartqa_raw_val.jsonl", 2, **change)
    with pytest.raises(error, match=r"chartqa_raw_val.jsonl:2: ") as e: D.unify(cfg(folder, tmp_path))
    assert words in str(e.value)
    assert not (tmp_path/"unified").exists() or not list((tmp_path/"unified").iterdir())


def test_truncated_image_and_malformed_line_and_empty_file(tmp_path):
    folder = raw(tmp_path)
    whole = (folder/"images/val_1.png").read_bytes()
    (folder/"images/val_1.png").write_bytes(whole[:-20])
    with pytest.raises(ImageError, match=r"raw_val.jsonl:3: .*val_1.png"): D.unify(cfg(folder, tmp_path))
    (folder/"images/val_1.png").write_bytes(whole)
    path = folder/"chartqa_raw_train.jsonl"
    good = path.read_text()
    path.write_text(good + '{"image": "images/tr')
    with pytest.raises(DataError, match=r"raw_train.jsonl:7: malformed"): D.unify(cfg(folder, tmp_path))
    path.write_text("")
    with pytest.raises(DataError, match="empty"): D.unify(cfg(folder, tmp_path))
    path.write_text(good)
    assert set(D.unify(cfg(folder, tmp_path))) == {"train", "val"}


def test_repeated_screenqa_rows_become_one_with_all_references(tmp_path, capsys):
    folder = raw(tmp_path, "screenqa", ("train",))
    rows = [json.loads(s) for s in (folder/"screenqa_raw_train.jsonl").read_text().splitlines()]
    write_jsonl(folder/"screenqa_raw_train.jsonl", [rows[0], rows[0] | {"ground_truth": ["b0", "c0"]}, *rows[1:]])
    records = read_records(D.unify(cfg(folder, tmp_path, "screenqa"))["train"])
    assert len(records) == len(rows) and records[0].answers == ["a0", "b0", "c0"]
    assert [r.sample_id for r in records[:2]] == ["screenqa_train_0", "screenqa_train_2"]
    assert "1 repeated row dropped" in capsys.readouterr().out


def test_both_val_names_and_shared_image_ids_are_refused(tmp_path):
    folder = raw(tmp_path, splits=("val", "validation"))
    with pytest.raises(DataError, match="both chartqa_raw_val.jsonl and chartqa_raw_validation.jsonl"): D.unify(cfg(folder, tmp_path))
    (folder/"chartqa_raw_validation.jsonl").unlink()
    Image.new("RGB", (9, 9)).save(folder/"images/val_0.jpg")
    edit(folder/"chartqa_raw_val.jsonl", 3, image="images/val_0.jpg")
    with pytest.raises(DataError, match=r":3: .*share the image id"): D.unify(cfg(folder, tmp_path))


def test_unanswered_infovqa_test_is_unified_but_not_merged(tmp_path):
    folder = raw(tmp_path, "infovqa", ("validation", "test"))
    path = folder/"infovqa_raw_test.jsonl"
    for n in range(6): edit(path, n + 1, answers=[])
    out = D.unify(cfg(folder, tmp_path, "infovqa"))
    assert all(r.answers == [] and r.answer == "" for r in read_records(out["test"], need_answers=False))
    with pytest.raises(DataError, match=r"unified_test.jsonl:1: .*use infovqa_unified_val.jsonl"):
        D.merge([out["val"], out["test"]], tmp_path/"val.jsonl", image_root=tmp_path/"raw")
    assert not (tmp_path/"val.jsonl").exists()


def test_a_registry_row_adds_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setitem(D.DATASETS, "menus", D.DatasetSpec("menus", (), "ask", "reply", "anls", image_field="photo", ocr_field="seen"))
    folder = tmp_path/"raw/menus"
    (folder/"images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder/"images/m.png")
    write_jsonl(folder/"menus_raw_train.jsonl", [{"ask": "soup?", "reply": "pea", "photo": "images/m.png", "seen": "Pea soup", "price": 4}])
    r, = read_records(D.unify(cfg(folder, tmp_path, "menus"))["train"])
    assert (r.answers, r.pseudo_text, r.meta) == (["pea"], "Pea soup", {"price": 4})


def unified(tmp_path, ds="chartqa"):
    folder = raw(tmp_path, ds)
    return folder, D.unify(cfg(folder, tmp_path, ds))


def test_merge_equals_cat_and_prints_a_table(tmp_path, capsys):
    outs = [unified(tmp_path, ds)[1]["train"] for ds in ("chartqa", "screenqa")]
    table = D.merge(outs, tmp_path/"train.jsonl", image_root=tmp_path/"raw")
    assert (tmp_path/"train.jsonl").read_bytes() == b"".join(p.read_bytes() for p in outs)
    assert [(r["dataset"], r["questions"], r["images"]) for r in table] == [("chartqa", 6, 3), ("screenqa", 6, 3)]
    assert "| chartqa" in capsys.readouterr().out


def test_merge_finds_one_picture_in_two_splits_under_another_name(tmp_path):
    folder, out = unified(tmp_path)
    (folder/"images/val_2.png").write_bytes((folder/"images/train_0.png").read_bytes())
    with pytest.raises(DataError, match=r"unified_val.jsonl:5: .*val_2.png.*train_0.png.*unified_train.jsonl:1"):
        D.merge([out["val"]], tmp_path/"val.jsonl", image_root=tmp_path/"raw", against=[out["train"]])
    with pytest.raises(DataError, match="same picture"): D.merge(out.values(), tmp_path/"all.jsonl", image_root=tmp_path/"raw")
    with pytest.raises(ConfigError, match="image_root"): D.merge([out["val"]], tmp_path/"val.jsonl", against=[out["train"]])
    assert not (tmp_path/"val.jsonl").exists() and not (tmp_path/"all.jsonl").exists()


def test_merge_refuses_bad_input_and_keeps_the_old_output(tmp_path):
    folder, out = unified(tmp_path)
    old = tmp_path/"train.jsonl"
    D.merge([out["train"]], old, image_root=tmp_path/"raw")
    before = old.read_bytes()
    with pytest.raises(DataError, match=r"duplicate sample_id 'chartqa_train_0', first at .*:1"): D.merge([out["train"]] * 2, old)
    with pytest.raises(ConfigError, match="no file given"): D.merge([], old)
    with pytest.raises(DataError, match="no such file"): D.merge([tmp_path/"gone.jsonl"], old)
    edit(out["train"], 2, answers=[])
    with pytest.raises(DataError, match=r"unified_train.jsonl:2: .*no answers"): D.merge([out["train"]], old)
    edit(out["train"], 2, answers=["x"], image_path="../up.png")
    with pytest.raises(DataError, match=r"unified_train.jsonl:2: .*image root"): D.merge([out["train"]], old, image_root=tmp_path/"raw")
    (folder/"images/train_0.png").unlink()
    with pytest.raises(ImageError, match=r"unified_train.jsonl:1: .*train_0.png"): D.merge([out["train"]], old, image_root=tmp_path/"raw")
    assert old.read_bytes() == before


def lines_of(message): return [l.strip() for l in str(message).splitlines()]


def test_merge_reports_all_problems_together(tmp_path):
    folder, out = unified(tmp_path)
    edit(out["train"], 1, split="training")
    edit(out["train"], 2, answers=[])
    edit(out["train"], 3, sample_id="chartqa_train_3")
    edit(out["train"], 5, image_path="chartqa/images/gone.png", image_id="chartqa/gone")
    edit(out["train"], 6, pseudo_text="Oslo [answer_hint] 3")
    (folder/"images/val_2.png").write_bytes((folder/"images/val_2.png").read_bytes()[:60])
    with open(out["val"], "a") as f: f.write("{torn\n[1]\n")
    with pytest.raises(DataError) as e: D.merge([*out.values(), tmp_path/"no.jsonl"], tmp_path/"all.jsonl", image_root=tmp_path/"raw")
    first, *rest = lines_of(e.value)
    assert first == "9 problems:" and len(rest) == 9 and not (tmp_path/"all.jsonl").exists()
    for where, words in [("train.jsonl:1", "'split' should be one of train, val, test"), ("train.jsonl:2", "no answers"), ("train.jsonl:4", "duplicate sample_id"),
                         ("train.jsonl:6", "[answer_hint]"), ("val.jsonl:7", "malformed"), ("val.jsonl:8", "expected an object"), ("no.jsonl", "no such file"),
                         ("train.jsonl:5", "gone.png"), ("val.jsonl:5", "val_2.png")]:
        assert sum(f"{where}: " in l and words in l for l in rest) == 1, (where, words)


def test_merge_shows_twenty_problems_and_counts_all(tmp_path):
    _, out = unified(tmp_path)
    row = json.loads(out["train"].read_text().splitlines()[0])
    write_jsonl(tmp_path/"many.jsonl", [row | {"sample_id": f"s{i}", "answers": []} for i in range(500)])
    with pytest.raises(DataError) as e: D.merge([tmp_path/"many.jsonl"], tmp_path/"o.jsonl")
    shown = lines_of(e.value)
    assert shown[0] == "500 problems, the first 20:" and len(shown) == 21 and "many.jsonl:20: s19" in shown[20]


def test_merge_names_the_unanswered_split_once(tmp_path):
    folder = raw(tmp_path, "infovqa", ("validation", "test"), n=20)
    for n in range(40): edit(folder/"infovqa_raw_test.jsonl", n + 1, answers=[])
    out = D.unify(cfg(folder, tmp_path, "infovqa"))
    with pytest.raises(DataError) as e: D.merge([out["test"]], tmp_path/"val.jsonl", image_root=tmp_path/"raw")
    assert "use infovqa_unified_val.jsonl" in str(e.value) and "40 such records" in str(e.value) and len(lines_of(e.value)) == 1


def test_one_picture_packed_twice_is_one_picture(tmp_path):
    folder, out = unified(tmp_path)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    noisy.save(folder/"images/train_0.png")
    noisy.save(folder/"images/val_1.png", compress_level=0)
    args = ([out["val"]], tmp_path/"val.jsonl", tmp_path/"raw", [out["train"]])
    with pytest.raises(DataError, match=r"unified_val.jsonl:3: .*val_1.png.*same picture.*train_0.png.*unified_train.jsonl:1"): D.merge(*args)
    assert D.merge(*args, compare="files")[0]["questions"] == 6
    (folder/"images/val_1.png").write_bytes((folder/"images/train_0.png").read_bytes())
    with pytest.raises(DataError, match="same picture"): D.merge(*args, compare="files")


def test_a_turned_picture_is_found_and_a_single_split_is_not_decoded(tmp_path, monkeypatch):
    folder, out = unified(tmp_path)
    noisy, turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)), Image.Exif()
    turned[0x0112] = 6
    noisy.save(folder/"images/train_0.png")
    noisy.rotate(90, expand=True).save(folder/"images/val_1.png", exif=turned)
    with pytest.raises(DataError, match="val_1.png.*same picture.*train_0.png"): D.merge(out.values(), tmp_path/"o.jsonl", tmp_path/"raw")
    opened = []
    monkeypatch.setattr(D, "open_image", lambda path, real=D.open_image: opened.append(path.name) or real(path))
    D.merge([out["train"]], tmp_path/"train.jsonl", tmp_path/"raw")
    assert opened == []
    Image.new("RGB", (61, 40)).save(folder/"images/val_1.png") # of a shape of its own
    D.merge([out["val"]], tmp_path/"val.jsonl", tmp_path/"raw", [tmp_path/"train.jsonl"])
    assert sorted(opened) == ["train_1.png", "train_2.png", "val_0.png", "val_2.png"]


def test_two_files_under_one_image_id_and_one_path_in_two_splits(tmp_path):
    _, out = unified(tmp_path)
    edit(out["val"], 1, image_id="chartqa/val_1")
    with pytest.raises(DataError, match=r"unified_val.jsonl:\d: the image id chartqa/val_1 names both"): D.merge([out["val"]], tmp_path/"o.jsonl")
    edit(out["val"], 1, image_id="chartqa/val_0", split="train")
    with pytest.raises(DataError, match=r"val.jsonl:2: .* is the same picture"): D.merge([out["val"]], tmp_path/"o.jsonl") # no image_root: the path tells


def test_merge_of_foreign_but_valid_lines_and_cat(tmp_path):
    "Defaults are filled in, blank lines dropped, ASCII escapes undone; what `cat` joins can be merged and read"
    _, out = unified(tmp_path)
    row = json.loads(out["train"].read_text().splitlines()[0])
    short = {k: v for k, v in row.items() if k not in ("ocr_text", "ocr_conf", "meta")} | {"sample_id": "mine", "question": "Zürich?"}
    (tmp_path/"cat.jsonl").write_bytes(out["train"].read_bytes() + b"\n" + json.dumps(short).encode())
    table = D.merge([tmp_path/"cat.jsonl"], tmp_path/"joined.jsonl", image_root=tmp_path/"raw")
    assert table[0]["questions"] == 7 and read_records(tmp_path/"joined.jsonl")[6].question == "Zürich?"
    assert "Zürich" in (tmp_path/"joined.jsonl").read_text(encoding="utf-8")
    D.merge([tmp_path/"joined.jsonl"], tmp_path/"again.jsonl")
    assert (tmp_path/"again.jsonl").read_bytes() == (tmp_path/"joined.jsonl").read_bytes()


def test_half_a_surrogate_pair_is_named(tmp_path):
    folder = raw(tmp_path)
    path = folder/"chartqa_raw_train.jsonl"
    path.write_text(path.read_text().replace("q1?", "\\ud83d", 1))
    with pytest.raises(DataError, match=r"raw_train.jsonl:2: malformed line .*surrogates"): D.unify(cfg(folder, tmp_path))


@pytest.mark.parametrize("ds", ["screenqa", "infovqa"])
def test_workers_change_nothing(tmp_path, ds):
    folder = raw(tmp_path, ds, ("train", "validation"), n=30)
    a, b = (D.unify(dataclasses.replace(cfg(folder, tmp_path, ds, workers=w), out_dir=str(tmp_path/f"u{w}"))) for w in (1, 7))
    assert all(a[s].read_bytes() == b[s].read_bytes() for s in a)
    for w in (1, 7): D.merge(a.values(), tmp_path/f"m{w}.jsonl", tmp_path/"raw", workers=w)
    assert (tmp_path/"m1.jsonl").read_bytes() == (tmp_path/"m7.jsonl").read_bytes()
    for broken in range(12): (folder/f"images/train_{broken}.png").write_bytes(b"")
    messages = set()
    for w in (1, 7):
        with pytest.raises(ImageError, match="12 problems") as e: D.unify(dataclasses.replace(cfg(folder, tmp_path, ds, workers=w), out_dir=str(tmp_path/"x")))
        messages.add(str(e.value))
    assert len(messages) == 1


def test_rows_without_answers_apart_are_passed_over(tmp_path):
    folder = raw(tmp_path)
    want = D.unify(cfg(folder, tmp_path))["train"].read_bytes()
    write_jsonl(folder/"chartqa_unanswered_train.jsonl", [ROWS["chartqa"]("gone", "q?", [])])
    assert D.unify(cfg(folder, tmp_path))["train"].read_bytes() == want
    for p in folder.glob("chartqa_raw_*"): p.unlink()
    with pytest.raises(DataError, match=r"no chartqa_raw_<split>.jsonl .*chartqa_unanswered_train.jsonl hold rows without answers"): D.unify(cfg(folder, tmp_path))


def test_text_from_says_where_the_text_comes_from(tmp_path, capsys):
    folder = raw(tmp_path, "infovqa", ("train", "validation"))
    path = folder/"infovqa_raw_train.jsonl" # the training split comes without an OCR column
    write_jsonl(path, [{k: v for k, v in json.loads(s).items() if k != "ocr"} for s in path.read_text().splitlines()])
    cache = ocr_cache(folder, tmp_path/"ocr.jsonl")
    read = lambda split, **kw: read_records(D.unify(cfg(folder, tmp_path, "infovqa", splits=[split], overwrite=True, **kw))[split])[0]
    assert (read("val", text_from="column").pseudo_text, read("val").pseudo_text) == ("words of validation_0",) * 2
    assert "with text, from the dataset's own column 'ocr'" in capsys.readouterr().out
    assert (read("val", ocr_cache=cache).pseudo_text, read("val", text_from="none").pseudo_text) == ("text of\nvalidation_0", "")
    assert read("train").pseudo_text == "" and "6 records, 0 with text" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"raw_train.jsonl:1: no text in column 'ocr'"): read("train", text_from="column")
    for kw in (dict(text_from="cache"), dict(text_from="column", ocr_cache=cache), dict(text_from="none", ocr_cache=cache)):
        with pytest.raises(ConfigError, match="text_from"): read("val", **kw)


def menus(tmp_path, **spec):
    folder = tmp_path/"raw/menus"
    (folder/"images").mkdir(parents=True)
    for split in ("train", "val"):
        Image.new("RGB", (30, 20), "ivory" if split == "train" else "linen").save(folder/f"images/{split}.jpg")
        write_jsonl(folder/f"menus_raw_{split}.jsonl", [{"ask": "Which soup?", "reply": ["pea", "pea soup"], "photo": f"images/{split}.jpg", "seen": "Pea soup"}])
    write_json(folder/"dataset.json", {"metric": "anls", "question_field": "ask", "answers_field": "reply", "image_field": "photo", "ocr_field": "seen"} | spec)
    return folder


def test_a_folder_of_ones_own_through_unify_merge_and_scores(tmp_path, capsys):
    from r3nb.compare import rescore
    from r3nb.eval import EvalConfig, eval_records
    from r3nb.metrics import anls, score
    folder = menus(tmp_path)
    D.unify_main(["--dataset", "menus", "--raw_dir", str(folder), "--out_dir", str(tmp_path/"u"), "--image_prefix", "menus"])
    D.merge_main([str(tmp_path/"u/menus_unified_train.jsonl"), "--out", str(tmp_path/"train.jsonl"), "--image_root", str(tmp_path/"raw")])
    D.merge_main([str(tmp_path/"u/menus_unified_val.jsonl"), "--out", str(tmp_path/"val.jsonl"), "--image_root", str(tmp_path/"raw"),
                  "--against", str(tmp_path/"train.jsonl")])
    assert "| menus" in capsys.readouterr().out
    r, = read_records(tmp_path/"val.jsonl", tmp_path/"raw", check_images=True)
    assert (r.sample_id, r.answers, r.pseudo_text, r.meta) == ("menus_val_0", ["pea", "pea soup"], "Pea soup", {"metric": "anls"})
    assert score(r.dataset, "pea sup", r.answers, r.meta["metric"])["score"] == anls("pea sup", r.answers) > .8
    with pytest.raises(DataError, match="no metric for dataset 'menus'.*dataset.json"): score(r.dataset, "pea", r.answers)
    assert eval_records(EvalConfig(val_jsonl=str(tmp_path/"val.jsonl"), image_root=str(tmp_path/"raw"))) == [r]
    write_jsonl(tmp_path/"bare.jsonl", [r.to_dict() | {"meta": {}}])
    with pytest.raises(DataError, match="no metric"): eval_records(EvalConfig(val_jsonl=str(tmp_path/"bare.jsonl"), image_root=str(tmp_path/"raw")))
    row = {"sample_id": r.sample_id, "image_id": r.image_id, "dataset": "menus", "mode": "base", "level": 0.0, "seed": 0, "prediction": "pea sup",
           "references": r.answers, "text": "", "evidence": [], "gates": None, "confidence": None, "meta": r.meta}
    write_jsonl(tmp_path/"predictions.jsonl", [row])
    assert rescore(tmp_path/"predictions.jsonl", n_boot=20)["scores"][0]["estimate"] == anls("pea sup", r.answers)


@pytest.mark.parametrize("spec,words", [
    (dict(metric="anlss"), "did you mean 'anls'"), (dict(metrics="anls"), "did you mean 'metric'"), (dict(name="menus"), "leave 'name' out"),
    (dict(unique="a"), None), (dict(metric=3), "should be str")])
def test_wrong_dataset_json_is_named(tmp_path, spec, words):
    folder = menus(tmp_path, **spec)
    if words is None: # a list written as one string
        assert cfg(folder, tmp_path, "menus") and D.folder_spec("menus", folder).unique == ("a",)
        return
    with pytest.raises(ConfigError) as e: cfg(folder, tmp_path, "menus")
    assert words in str(e.value) and "dataset.json" in str(e.value)


def test_names_of_ones_own(tmp_path):
    folder = menus(tmp_path)
    for name, words in (("chartqa", "taken by the registry"), ("../x", "cannot be part of a file name")):
        with pytest.raises(ConfigError, match=words): cfg(folder, tmp_path, name)
    edit(folder/"menus_raw_val.jsonl", 1, metric="euro")
    with pytest.raises(DataError, match=r"raw_val.jsonl:1: the column name 'metric' is reserved"): D.unify(cfg(folder, tmp_path, "menus"))
    (folder/"dataset.json").unlink()
    with pytest.raises(ConfigError, match=r"unknown dataset 'menus'.*dataset.json"): cfg(folder, tmp_path, "menus")


def test_metric_names_are_those_of_the_metrics():
    from r3nb.metrics import METRIC_KEYS, TASK_METRICS
    known = {"screenqa": "sqa_f1", "chartqa": "relaxed_accuracy", "infovqa": "anls"}
    assert set(METRIC_KEYS) == set(D.METRICS) and known.items() <= TASK_METRICS.items()


RECORD = dict(sample_id="s", dataset="d", split="val", image_id="i", image_path="i.png", question="q?", answer="a", answers=["a"], pseudo_text="",
              ocr_text="", ocr_conf=.5, meta={})


def test_schema_file_and_record_agree():
    "Each field with each kind of value: the shipped schema, read by jsonschema, and QARecord give the same verdict"
    schema = record_schema()
    Draft202012Validator.check_schema(schema)
    known = dataclasses.fields(QARecord)
    optional = {f.name for f in known if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING}
    assert list(schema["properties"]) == [f.name for f in known] and set(schema["required"]) == {f.name for f in known} - optional
    values = ["x", "", " \u00a0", "train", "validation", 0, 1, 1.5, -0.1, 10**400, True, False, None, [], ["a"], [1], ["a", None], [[]], {}, {"a": [1]}]
    rows = [RECORD | {k: v} for k in [*RECORD, "extra"] for v in values] + [{k: v for k, v in RECORD.items() if k != gone} for gone in RECORD] + [RECORD]
    validator, verdicts = Draft202012Validator(schema), Counter()
    for row in rows:
        try: ours = bool(QARecord.from_dict(row))
        except DataError: ours = False
        assert ours == validator.is_valid(row), row
        verdicts[ours] += 1
    assert min(verdicts.values()) > 30


def test_what_is_written_fits_the_schema(tmp_path):
    validator = Draft202012Validator(record_schema())
    for ds, val in (("screenqa", "validation"), ("infovqa", "test")):
        out = D.unify(cfg(raw(tmp_path, ds, ("train", val)), tmp_path, ds))
        for p in out.values():
            for line in p.read_text().splitlines(): validator.validate(json.loads(line))


@pytest.mark.slow
def test_a_raw_file_larger_than_what_is_remembered(tmp_path):
    "Two thousand rows of twenty kilobytes each: to hold them would take 40 MB; the peak of the process grows by less than a third of that"
    folder = raw(tmp_path, "screenqa", ("train",), n=2)
    rows = [json.loads(s) for s in (folder/"screenqa_raw_train.jsonl").read_text().splitlines()]
    code = ("import sys; from r3nb.data import UnifyConfig, merge, unify\n"
            "out = unify(UnifyConfig('screenqa', sys.argv[1], sys.argv[2], 'screenqa'))['train']\n"
            "merge([out], sys.argv[2] + '/m.jsonl', sys.argv[3])")
    peaks = []
    for n in (100, 2_000):
        write_jsonl(folder/"screenqa_raw_train.jsonl", (rows[i % 4] | {"question": f"{i} " + "why "*5000} for i in range(n)))
        peaks.append(peak_of(code, folder, tmp_path/f"u{n}", tmp_path/"raw")[1])
    assert peaks[1] - peaks[0] < 13, peaks


def test_ocr_column_of_a_service():
    pages = [json.dumps({"PAGE": [{"BlockType": "PAGE"}], "LINE": [{"Text": "one"}, {"Text": "two"}], "WORD": [{"Text": "one"}]}), "x"]
    for value in (str(pages), json.dumps(pages), json.dumps(json.loads(pages[0]))): assert D.ocr_column_text(value) == "one\ntwo"
    for value in ("[1, 2]", "{not json", "plain", "[" * 5000): assert D.ocr_column_text(value) == value
    assert D.ocr_column_text(7) == ""


def fakes(**sizes):
    return [QARecord(f"{d}_{i}", d, "train", f"{d}/{i}", "x.png", "q", "a", ["a"], "") for d, n in sizes.items() for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 57, 109, 110, 500])
def test_stratified_sample_has_the_size_and_every_dataset(n):
    records = fakes(a=100, b=9, c=1)
    s = D.stratified_sample(records, n, seed=4)
    assert len(s) == min(n, 110) and len({r.sample_id for r in s}) == len(s)
    if n >= 3: assert {r.dataset for r in s} == {"a", "b", "c"}
    assert s == D.stratified_sample(records, n, seed=4)
    assert {r.sample_id for r in s} == {r.sample_id for r in D.stratified_sample(records[::-1], n, seed=4)}


@pytest.mark.parametrize("alpha", [0., .5, 1.])
def test_mixture_probabilities_rounds_and_prefix(alpha):
    records = fakes(a=90, b=9, c=1)
    idx = D.mixture_sampler(records, alpha, 20000, seed=1)
    p = np.array([90., 9., 1.]) ** alpha
    counts = Counter(records[i].dataset for i in idx)
    assert np.allclose([counts[d] / 20000 for d in "abc"], p / p.sum(), atol=.015)
    per_question = Counter(i for i in idx.tolist() if records[i].dataset == "a")
    assert len(per_question) == 90 and max(per_question.values()) - min(per_question.values()) <= 1
    assert np.array_equal(idx[:777], D.mixture_sampler(records, alpha, 777, seed=1))
    assert not np.array_equal(idx, D.mixture_sampler(records, alpha, 20000, seed=2))


def test_mixture_is_the_same_in_another_process_and_refuses_nonsense():
    code = ("from r3nb.core import QARecord; from r3nb.data import mixture_sampler\n"
            "r = [QARecord(f'{d}{i}', d, 't', 'i', 'p', 'q', 'a', ['a'], '') for d in 'ab' for i in range(5)]\n"
            "print(mixture_sampler(r, .5, 20, 9).tolist())")
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(D.mixture_sampler(fakes(a=2), .5, 0)) == 0
    with pytest.raises(DataError, match="empty"): D.mixture_sampler([], .5, 3)
    for alpha in (-1., float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="alpha"): D.mixture_sampler(fakes(a=2), alpha, 3)


def test_dataset_items_and_missing_image(tmp_path):
    folder, out = unified(tmp_path)
    ds = D.QADataset.from_jsonl(out["val"], tmp_path/"raw")
    assert len(ds) == 6 and ds[5]["image"].mode == "RGB" and ds[5]["record"].sample_id == "chartqa_val_5"
    (folder/"images/val_2.png").unlink()
    with pytest.raises(ImageError, match="val_2.png"): ds[5]
    with pytest.raises(DataError): D.QADataset([], tmp_path)


def test_commands_exit_codes_and_help(tmp_path, capsys):
    folder = raw(tmp_path)
    D.unify_main(["--dataset", "chartqa", "--raw_dir", str(folder), "--out_dir", str(tmp_path/"u"), "--image_prefix", "chartqa"])
    D.merge_main([str(tmp_path/"u/chartqa_unified_train.jsonl"), "--out", str(tmp_path/"t.jsonl"), "--image-root", str(tmp_path/"raw")])
    assert len(read_records(tmp_path/"t.jsonl")) == 6
    capsys.readouterr()
    for argv, words in [(["--dataset", "chartq", "--raw_dir", "x", "--out_dir", "y"], "did you mean 'chartqa'"),
                        (["--dataset", "chartqa", "--raw_dir", str(tmp_path), "--out_dir", "y"], "check raw_dir")]:
        with pytest.raises(SystemExit) as e: D.unify_main(argv)
        assert e.value.code == 2 and words in capsys.readouterr().err
    for main, flag in [(D.unify_main, "--ocr_cache"), (D.merge_main, "--against")]:
        with pytest.raises(SystemExit) as e: main(["--help"])
        assert e.value.code == 0 and flag in capsys.readouterr().out


def test_a_missing_unanswered_split_names_the_one_to_use(tmp_path, capsys):
    out = D.unify(cfg(raw(tmp_path, "infovqa", ("validation",)), tmp_path, "infovqa"))
    assert "infovqa test: the public test split of infovqa has no references; use infovqa_unified_val.jsonl" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"infovqa_unified_test.jsonl: no such file.*use infovqa_unified_val.jsonl to evaluate"):
        D.merge([out["val"], out["val"].with_name("infovqa_unified_test.jsonl")], tmp_path/"val.jsonl")
    with pytest.raises(DataError) as e: D.merge([out["val"].with_name("chartqa_unified_test.jsonl")], tmp_path/"val.jsonl")
    assert "references" not in str(e.value)


def test_a_split_without_any_text_is_said(tmp_path, capsys):
    folder = raw(tmp_path, "chartqa")
    D.unify(cfg(folder, tmp_path))
    assert "chartqa train: no record has text, so it cannot be searched; run r3nb_ocr" in capsys.readouterr().out
    D.unify(cfg(folder, tmp_path, text_from="none"))
    assert "no record has text" not in capsys.readouterr().out


def test_merge_can_leave_out_what_two_splits_share(tmp_path, capsys):
    folder, out = unified(tmp_path)
    before = {s: p.read_text().splitlines() for s, p in out.items()}
    Image.open(folder/"images/train_0.png").save(folder/"images/val_2.png", compress_level=0)
    shared = [line for line in before["val"] if '"image_path": "chartqa/images/val_2.png"' in line]
    kept = [line for line in before["val"] if line not in shared]
    assert shared and kept
    run = lambda inputs, **kw: D.merge(inputs, tmp_path/"val.jsonl", image_root=tmp_path/"raw", overwrite=True, **kw)
    with pytest.raises(DataError, match="--drop_shared"): run([out["val"]], against=[out["train"]])
    capsys.readouterr()
    table = run([out["val"]], against=[out["train"]], drop_shared=True)
    assert (tmp_path/"val.jsonl").read_text().splitlines() == kept and table[0]["questions"] == len(kept)
    assert table[0]["images"] == len({json.loads(line)["image_id"] for line in kept})
    assert f"left out: {len(shared)} questions about 1 picture of another split" in capsys.readouterr().out
    run([out["train"], out["val"]], drop_shared=True) # the first file keeps its rows
    assert (tmp_path/"val.jsonl").read_text().splitlines() == before["train"] + kept
    run([out["train"]], drop_shared=True)
    assert (tmp_path/"val.jsonl").read_bytes() == out["train"].read_bytes()
    with pytest.raises(ConfigError, match="needs image_root"): D.merge([out["val"]], tmp_path/"x.jsonl", drop_shared=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["merge", "ocr", "index"])
def test_a_full_disk_is_one_sentence_and_the_run_can_be_repeated(tmp_path, command):
    "A limit on the size of files stands for the full disk"
    rng = np.random.default_rng(0)
    (tmp_path/"raw/images").mkdir(parents=True)
    for i in range(12): Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path/f"raw/images/{i}.png")
    clip(tmp_path/"clip")
    write_jsonl(tmp_path/"a.jsonl", [dict(sample_id=f"s_{i}", dataset="s", split="train", image_id=f"{i}", image_path=f"images/{i}.png", question="q", answer="a", answers=["a"],
                                          pseudo_text=" ".join(rng.permutation(list("abcdefghijkl"))) * 9) for i in range(12)])
    (tmp_path/"wordy.py").write_text("""from r3nb.ocr import OCRResult
class Wordy:
    name, version = "wordy", "1"
    def __call__(self, image): return OCRResult("word " * 400, .5, [])
""")
    code = {"merge": "from r3nb.data import merge_main as main; args = ['a.jsonl', '--out', 'out.jsonl', '--image_root', 'raw']",
            "ocr": "from r3nb.ocr import main; args = ['--image_dir', 'raw', '--out', 'out.jsonl', '--engine', 'wordy:Wordy', '--workers', '1']",
            "index": "from r3nb.indices import main; args = ['--jsonl', 'a.jsonl', '--image_root', 'raw', '--out_dir', 'out.index', '--image_encoder', 'clip']"}[command]
    run = lambda size: subprocess.run([sys.executable, "-c", f"import sys, resource; {code}; sys.path.insert(0, '.'); {size}; main(args)"], cwd=tmp_path, capture_output=True, text=True)
    full = run("resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))")
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr[-1500:]
    said = full.stderr.splitlines()[-1]
    assert said.startswith("error: ") and ("the disk is full" in said or "free space" in said) and not list(tmp_path.glob("out.jsonl")) + list(tmp_path.glob("out.index"))
    again = run("pass")
    assert again.returncode == 0, again.stderr[-1500:]
    if command == "ocr": assert len((tmp_path/"out.jsonl").read_text().splitlines()) == 12
