"""What a model was shown, and what is counted on it: support, ESAR and hallucination; controls that some or all questions cannot have."""
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from chat import Chat

from r3nb import compare as cp
from r3nb.compare import CompareConfig, compare_files, load_predictions, notes_of, rescore, show, summarise
from r3nb.core import ConfigError, DataError, read_jsonl, write_jsonl
from r3nb.eval import Answer, EvalConfig, evaluate, main
from r3nb.indices import EvidenceIndex, can_form, retrieve
from r3nb.metrics import NO_ANSWER, VERDICTS, answer_support, hallucinated, score, supported, verdict, weak, word_line
from r3nb.model import R3Collator, R3Config, R3Model, build_prompt, make_examples

# ---- what stands in a text

STANDS = [("Sign out", "Help. Sign out!"), ("1,234", "1234 users"), ("1234567", "total 1,234,567"), ("$5", "5 dollars"), ("12.5%", "rose by 12.5 %"), ("The Red Car", "a red car"), ("new york", "New\nYork, NY"),
          ("424", "Calories424"), ("calories", "Calories424"), ("北京", "我住在北京市"), ("北京", "北京"), ("Привет", "«Привет», мир"), ("हिन्दी", "यह हिन्दी है"), ("５", "5 items"), ("Smith", "Name:Smith,John"),
          ("5 pm", "open until 5 p.m. daily"), ("U.S.", "made in the US"), ("11/12/2020", "due 11/12/2020."), ("1 234", "1 234"), ("1’234", "1234 CHF"), ("l'été", "à l'été"), ("ＡＢＣ", "ＡＢＣ")]
ABSENT = [("43", "432"), ("432", "43"), ("sign", "assignment"), ("125", "12.5%"), ("5", "12.5"), ("12", "12.5"), ("35", "3.5"), ("1", "1,234"), ("", "x"), ("  ", " "), ("!", "!"), ("the", "the"), (NO_ANSWER, "no answer"),
          ("New York", "York New"), ("red car", "red old car"), ("ह", "हिन्दी"), ("мир", "Владимир"), ("北海", "北京海"), ("1234", "12345"), ("rome", "Rom"), ("4,2", "42")]


@pytest.mark.parametrize("answer, text", STANDS)
def test_stands(answer, text): assert supported(answer, ["other", text]) and answer_support(["nowhere", answer], [text]) and not hallucinated(answer, 0, [text])


@pytest.mark.parametrize("answer, text", ABSENT)
def test_does_not_stand(answer, text): assert not supported(answer, [text]) and not answer_support([answer], [text])


def test_a_text_is_not_glued_to_the_next(): assert not supported("new york", ["the new", "york"])


@pytest.mark.parametrize("said, right, texts, want", [
    ("432", 1, ["432"], "right_supported"), ("432", 1, [], "right_unsupported"), ("17", 0, ["17 orders"], "misread"), ("99", 0, ["17 orders"], "invented"), ("", 0, ["x"], "silent"), (NO_ANSWER, 1, [], "silent"),
    (NO_ANSWER, 0, ["no answer"], "silent"), (" . ", 0, [], "silent"), ("17", .5, ["17"], "right_supported"), ("17", .49, [], "invented")])
def test_verdicts(said, right, texts, want): assert verdict(said, right, supported(said, texts)) == want


def test_weak_answers(): assert [a for a in ("Yes", "no", "7", "$42", "A", "100", "7.5", "北", "北京", "Oslo", "") if weak(a)] == ["Yes", "no", "7", "$42", "A", "北", ""]


# ---- what was shown

@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "A world in which page i states the answer of page i + 1, for the first four pages"
    d = tmp_path_factory.mktemp("shown")
    w = tiny.world(d, 8)
    w.records = [replace(r, pseudo_text=f"{r.pseudo_text} Users {901 + i if i < 4 else 'none'} " + "harbour report " * 4, answers=[str(900 + i), "<no answer>"], answer=str(900 + i),
                         meta={"entity": "same"}) for i, r in enumerate(w.records)]
    write_jsonl(w.jsonl, w.records)
    EvidenceIndex.build(w.records, w.root, w.index, "minilm", str(w.clip), overwrite=True)
    w.backbone = tiny.backbone(d/"backbone")
    R3Model.from_pretrained(w.backbone, R3Config(image_dim=24, n_prefix=2, n_memory=2, n_latent=1, bottleneck=16, own_tokens=12, evidence_tokens=40, trust=1)).save_pretrained(d/"ckpt")
    w.ckpt = d/"ckpt"
    return w


def config(w, out, **kw):
    return EvalConfig(**{"model_name": str(w.backbone), "val_jsonl": str(w.jsonl), "image_root": str(w.root), "index_dir": str(w.index), "checkpoint_dir": str(w.ckpt), "out_dir": str(out),
                         "corruption_levels": [0, .5], "seeds": [3], "n_boot": 20, "max_new_tokens": 2, "batch_size": 4} | kw)


@pytest.mark.parametrize("sizes", [{"own_tokens": 5, "evidence_tokens": 9}, {"own_tokens": 0}, {"evidence_tokens": 0}, {"max_tokens": 110}, {}])
def test_the_collator_says_what_went_into_the_prompt(real, sizes):
    model = R3Model.load(real.ckpt, real.backbone)
    c = replace(model.r3, **sizes, disable_soft_prefix=True, context_order="score")
    rows = [replace(r, pseudo_text=r.pseudo_text + " <|im_end|>  tail") for r in tiny.records(3)]
    examples = make_examples(tiny.fake_index(text_dim=384), rows, [tiny.damaged(i, 0) for i in range(3)], c, [tiny.found(i) for i in range(3)], np.zeros((3, 24), np.float32))
    batch = R3Collator(model.processor, c)(examples, None, answers=False, bare=True)
    for e, m in zip(examples, batch["meta"], strict=True):
        own, passages = m["shown"]["text"], m["shown"]["passages"]
        assert build_prompt(e.corrupted.question, own, [p["text"] for p in passages]) == m["prompt"] # nothing else stands there, and all of it does
        assert [p["image_id"] for p in passages] == [p["image_id"] for p in m["evidence"]] and " ".join(e.corrupted.pseudo_text.split()).startswith(own)
        for p in passages: assert next(q.text for q in e.pages if q.image_id == p["image_id"]).startswith(p["text"]) and p["channel"] in ("text", "image")
        assert bool(own) == (c.own_tokens > 0) and bool(passages) == (c.evidence_tokens > 0)
    if sizes.get("evidence_tokens") == 9: assert all(len(m["shown"]["passages"]) == 1 for m in batch["meta"])


def test_rows_of_a_real_run_say_what_was_shown(real, tmp_path, capsys):
    modes = ["base", "base+text", "rag", "r3", "r3-context", "r3+oracle", "rag+oracle"]
    s = evaluate(config(real, tmp_path/"out", eval_mode=modes))
    rows = [r for _, r in read_jsonl(tmp_path/"out/predictions.jsonl")]
    of = lambda m: [r for r in rows if r["mode"] == m]
    assert all(r["shown"] == {"text": "", "passages": []} for r in of("base")) and all(r["shown"]["passages"] == [] for m in ("base+text", "r3-context") for r in of(m))
    assert all(not r["shown"]["text"] and not r["text"] or " ".join(r["text"].split()).startswith(r["shown"]["text"]) and r["shown"]["text"] != r["text"] for r in of("base+text") if r["level"] == 0)
    assert any(r["shown"]["passages"] for r in of("rag")) and all("text" not in e for r in rows for e in r["evidence"])
    for r in rows:
        assert {p["image_id"] for p in r["shown"]["passages"]} <= {e["image_id"] for e in r["evidence"]} and r["image_id"] not in {e["image_id"] for e in r["evidence"]}
        assert (r["formed"] is None) == ("oracle" not in r["mode"])
    # the oracle: page i states the answer of page i + 1, for the first four pages
    for m in ("r3+oracle", "rag+oracle"):
        for r in of(m):
            i = int(r["sample_id"].split("_")[-1])
            assert {e["image_id"] for e in r["evidence"]} == ({f"demo/{i - 1}"} if 1 <= i <= 4 else set()) and r["formed"] == (1 <= i <= 4)
    assert [(r["mode"], r["questions"], r["formed"]) for r in s["controls"]] == [("r3+oracle", 8, 4), ("rag+oracle", 8, 4)]
    assert sum("evidence of its kind exists for 4 of 8 questions" in n for n in notes_of(s)) == 2 and "4 of 8" in show(s)
    n = {r["mode"]: r["n"] for r in s["scores"] if r["level"] == 0 and r["dataset"] == "all"}
    assert n["r3"] == 8 and n["r3+oracle"] == 4 and next(r for r in s["ablations"] if r["mode"] == "r3+oracle")["n"] == 4
    assert s["shown_unknown"] == 0 and {r["mode"] for r in s["esar"]} == set(modes) and all(r["esar"] == 0 for r in s["esar"] if r["mode"] == "base")
    json.dumps(s, allow_nan=False)


def test_an_endpoint_was_shown_the_same(real, tmp_path):
    kw = {"eval_mode": ["base", "base+text", "rag"], "corruption_levels": [.5], "dataset_prefixes": ["chartqa"]}
    evaluate(config(real, tmp_path/"local", **kw))
    with Chat([str(real.backbone)]) as server: evaluate(config(real, tmp_path/"served", endpoint=server.url, **kw))
    local, served = ([r for _, r in read_jsonl(tmp_path/d/"predictions.jsonl")] for d in ("local", "served"))
    assert [r["shown"] for r in local] == [r["shown"] for r in served] and any(r["shown"]["passages"] for r in served)
    sent = {a.prompt for a in server.log}
    for r in served: assert any(f"Text: {r['shown']['text']}" in t for t in sent if r["shown"]["text"]) or not r["shown"]["text"]


# ---- controls that cannot be formed

def one_page(w, folder):
    "An index with a single page"
    return EvidenceIndex.build(w.records[:1], w.root, folder, "minilm", str(w.clip))


@pytest.mark.parametrize("mode, kept, pages, why", [
    ("r3+oracle", [0], 8, "no other page holds an accepted answer"), ("rag+oracle", [0, 5, 6, 7], 8, "no other page holds an accepted answer"), ("rag+random", [0], 1, "no page but their own"),
    ("rag+shuffled", [0, 1, 2], 8, "none of them has a partner"), ("r3+oracle-text_retrieval-image_retrieval", [1], 8, "both channels are switched off")])
def test_a_control_of_no_question_is_refused_before_any_work(real, tmp_path, monkeypatch, mode, kept, pages, why):
    import r3nb.model
    monkeypatch.setattr(r3nb.model.R3Model, "load", lambda *a, **k: pytest.fail("a model was opened"))
    val = write_jsonl(tmp_path/"val.jsonl", [real.records[i] for i in kept])
    index = one_page(real, tmp_path/"index").folder if pages == 1 else real.index
    with pytest.raises(ConfigError, match=why) as e: evaluate(config(real, tmp_path/"out", val_jsonl=str(val), index_dir=str(index), eval_mode=["base+text", mode]))
    assert mode in str(e.value) and "\n" not in str(e.value) and not (tmp_path/"out").exists()


def test_weak_answers_come_last(real, tmp_path):
    rows = [replace(r, pseudo_text=t) for r, t in zip(tiny.records(5), ["page one 7", "7 things", "total 4711 here", "yes 4711 7", "nothing 47 11"], strict=True)]
    index = EvidenceIndex.build(rows, real.root, tmp_path/"index", "minilm", str(real.clip))
    assert [index.rows_stating(a).tolist() for a in (["7"], ["7", "4,711"], ["yes"], ["yes", "7"], ["47 11"], ["4711", "nowhere"])] == [[0, 1, 3], [2, 3], [3], [0, 1, 3], [4], [2, 3]]
    assert can_form(index, "oracle", [replace(rows[0], answers=["page"]), replace(rows[1], answers=["4711"])]) and not can_form(index, "oracle", [replace(rows[0], answers=["page", "<no answer>"])])


def test_near_copies_are_no_oracle(real, tmp_path):
    rows = [replace(r, pseudo_text=f"total {4711 + i // 2} {i}", answers=[str(4711 + i // 2)]) for i, r in enumerate(tiny.records(4))]
    tiny.page(0).save(real.root/"demo/again.png")
    rows[1] = replace(rows[1], image_path="demo/again.png")
    index = EvidenceIndex.build(rows, real.root, tmp_path/"index", "minilm", str(real.clip))
    assert not can_form(index, "oracle", rows[:2]) and can_form(index, "oracle", rows[2:])
    found = retrieve(index, rows, [tiny.damaged(i, 0) for i in range(4)], mode="oracle")
    assert [[e.row for e in f["text"]] for f in found] == [[], [], [3], [2]]


def test_many_pages_that_state_it_give_the_nearest(real, tmp_path):
    rows = [replace(r, pseudo_text=f"total 4711 {r.pseudo_text}", answers=["4711"]) for r in tiny.records(8)]
    index = EvidenceIndex.build(rows, real.root, tmp_path/"index", "minilm", str(real.clip))
    seen = [tiny.damaged(i, 0) for i in range(8)]
    plain, found = (retrieve(index, rows, seen, 3, mode=m) for m in ("retrieved", "oracle"))
    assert [[(e.row, e.score) for e in f[c]] for f in found for c in ("text", "image")] == [[(e.row, e.score) for e in f[c]] for f in plain for c in ("text", "image")]


# ---- tables

def row(i, said, ref, shown, mode="rag", level=0.0, seed=0, page=None, **kw):
    own, *passages = shown
    return {"sample_id": f"s{i:02}", "image_id": page or f"im{i}", "dataset": "infovqa", "mode": mode, "level": level, "seed": seed, "prediction": said, "references": ref, "scores": score("infovqa", said, ref),
            "text": "whole page that says everything: 1 2 3 red blue", "evidence": [{"image_id": "e", "score": .5, "channel": "text"}], "meta": {},
            "shown": {"text": own, "passages": [{"image_id": f"e{k}", "channel": "text", "text": t} for k, t in enumerate(passages)]}} | kw


FIVE = [row(0, "red", ["red"], ["a red page"]), row(1, "42", ["42"], ["page"]), row(2, "orange", ["purple"], ["page", "an orange, purple"]), row(3, "Rome", ["purple"], ["page", "purp"]), row(4, "", ["purple"], ["page"])]


def test_five_kinds_and_their_shares(tmp_path):
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", FIVE))
    assert [next(k for k in VERDICTS if r[k]) for _, r in df.iterrows()] == list(VERDICTS) and list(df.support) == [1, 0, 1, 0, 0] and list(df.esar) == [1, 0, 1, 0, 0]
    s = summarise(tmp_path/"p.jsonl", 50)
    r = next(r for r in s["esar"] if r["dataset"] == "all")
    assert [r[k] for k in VERDICTS] == [.2] * 5 and r["esar"] == .4 and r["esar_low"] <= .4 <= r["esar_high"] and r["n"] == 5
    t = next(t for t in s["robustness"] if t["dataset"] == "all")
    assert (t["support"], t["esar"], t["misread"], t["hallucination"]) == (.4, .4, .2, .2)


def test_chance_is_another_question_of_the_same_set(tmp_path):
    "All are shown their own number and a common word; by chance only the common word is found"
    rows = [row(i, "common" if i % 2 else str(1000 + i), ["x"], [f"common {1000 + i}"], page=f"im{i // 2}") for i in range(40)]
    more = [r | {"dataset": "chartqa", "sample_id": "c" + r["sample_id"], "shown": {"text": "nothing", "passages": []}} for r in rows]
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", rows + more))
    one = df[df.dataset == "infovqa"]
    assert one.esar.mean() == 1 and one.esar_chance.mean() == .5 and df[df.dataset == "chartqa"].esar_chance.mean() == 0
    back = load_predictions(write_jsonl(tmp_path/"back.jsonl", (rows + more)[::-1])).iloc[::-1].reset_index(drop=True)
    assert list(back.esar_chance) == list(df.esar_chance)


def test_chance_leaves_the_own_page_out(tmp_path):
    rows = [row(i, f"n{i}", ["x"], ["", f"n{1 - i}"]) for i in range(2)]
    for i, r in enumerate(rows): r["shown"]["passages"].append({"image_id": f"im{1 - i}", "channel": "image", "text": f"n{1 - i} n{i}"})
    assert list(load_predictions(write_jsonl(tmp_path/"p.jsonl", rows)).esar_chance) == [1, 1]
    for r in rows: r["shown"]["passages"] = r["shown"]["passages"][1:]
    assert list(load_predictions(write_jsonl(tmp_path/"p.jsonl", rows)).esar_chance) == [0, 0] # the other was shown this question's own page only


def test_chance_without_a_partner_is_unknown(tmp_path):
    rows = [row(i, "red", ["red"], ["red"], page="one") for i in range(3)]
    s = summarise(write_jsonl(tmp_path/"p.jsonl", rows), 50)
    assert all(r["esar"] == 1 and r["esar_chance"] is None for r in s["esar"]) and s["robustness"][0]["esar_chance"] is None
    json.dumps(s, allow_nan=False)


def test_questions_without_an_answer_have_nothing_to_show(tmp_path):
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", [row(0, "x", [NO_ANSWER], ["no answer"]), row(1, "x", [NO_ANSWER, "4"], ["4"]), row(2, "x", ["4"], [""])]))
    assert np.isnan(df.support[0]) and list(df.support[1:]) == [1, 0]
    t = summarise(tmp_path/"p.jsonl", 50)["robustness"][0]
    assert t["support"] == .5


def old(r):
    "A row as earlier versions wrote it: whole pages, and no word about what was shown"
    return {k: v for k, v in r.items() if k not in ("shown", "formed")} | {"evidence": [{"image_id": "e", "score": .5, "channel": "text", "text": "purple orange Rome 42 red"}]}


def test_a_file_of_before_is_rescored_and_says_what_is_unknown(tmp_path, capsys):
    path = write_jsonl(tmp_path/"predictions.jsonl", map(old, FIVE))
    main(["--rescore", str(path)])
    said = capsys.readouterr().out
    assert "support, ESAR and hallucination are unknown: 5 rows do not say what the model was shown" in said and "| rag |" in said
    s = rescore(path, 20)
    assert s["esar"] == [] and all(r[k] is None for r in s["robustness"] for k in ("support", "esar", "hallucination", "misread")) and not any("invented" in r or "support" in r for r in s["scores"])
    both = write_jsonl(tmp_path/"mixed.jsonl", [*FIVE[:3], *map(old, FIVE[3:])])
    assert "2 rows do not say" in show(summarise(both, 20))
    with pytest.raises(DataError, match="no pair is left that has a support.*evaluate again"): compare_files(CompareConfig([str(path), str(path)], value="support", n_boot=20))


def test_new_rows_keep_their_numbers_when_rescored(tmp_path):
    path = write_jsonl(tmp_path/"predictions.jsonl", FIVE)
    assert rescore(path, 20)["esar"] == summarise(path, 20)["esar"] and [r["shown"] for _, r in read_jsonl(path)] == [r["shown"] for r in FIVE]


@pytest.mark.parametrize("bad", [{"shown": ["x"]}, {"shown": {"text": "x"}}, {"shown": {"text": None, "passages": []}}, {"shown": {"text": "", "passages": [{"text": "x"}]}}])
def test_a_broken_field_is_named_with_its_line(tmp_path, bad):
    with pytest.raises(DataError, match=r"p\.jsonl:2: not a prediction"): load_predictions(write_jsonl(tmp_path/"p.jsonl", [FIVE[0], FIVE[1] | bad]))


def lacking(n=40, gone=range(10)):
    "A control that is better by a lot where it exists, and whose other answers are all wrong"
    right = lambda mode, i, level: (mode == "r3+oracle" and i not in gone) or (mode == "r3" and i % 2) or level == 0
    return [row(i, "red" if right(m, i, lv) else "blue", ["red"], ["red"], mode=m, level=lv, formed=None if m != "r3+oracle" else i not in gone)
            for m in ("base+text", "r3", "r3+oracle") for lv in (0.0, .6) for i in range(n)]


def test_pairs_without_the_control_are_left_out(tmp_path):
    s = summarise(write_jsonl(tmp_path/"p.jsonl", lacking()), 50)
    ablation = next(r for r in s["ablations"] if r["mode"] == "r3+oracle")
    assert (ablation["n"], ablation["estimate"]) == (30, pytest.approx(-.5)) and s["controls"] == [{"mode": "r3+oracle", "questions": 40, "formed": 30}]
    at = {(r["mode"], r["level"]): (r["n"], r["estimate"]) for r in s["scores"] if r["dataset"] == "all"}
    assert at["r3+oracle", .6] == (30, 1) and at["r3", .6] == (40, .5)
    diff = next(r for r in s["differences"] if (r["a"], r["b"], r["level"], r["dataset"]) == ("r3", "r3+oracle", .6, "all"))
    assert (diff["n"], diff["estimate"]) == (30, pytest.approx(-.5))
    area = next(r for r in s["robustness_differences"] if (r["b"], r["what"], r["dataset"]) == ("r3+oracle", "area", "all"))
    assert area["estimate"] == pytest.approx(-.25)
    table = compare_files(CompareConfig([str(tmp_path/"p.jsonl")], mode_a="r3", mode_b="r3+oracle", n_boot=50))["comparisons"][0]
    assert table["pairs"] == 60 and any("control's kind: 20 pairs" in n for n in table["notes"]) and next(r for r in table["rows"] if r["what"] == "λ=0.6")["estimate"] == pytest.approx(-.5)


def test_a_control_of_no_row_leaves_the_other_tables(tmp_path):
    s = summarise(write_jsonl(tmp_path/"p.jsonl", lacking(gone=range(40))), 50)
    assert s["controls"][0]["formed"] == 0 and {r["mode"] for r in s["scores"]} == {"base+text", "r3"} and s["ablations"] == []
    with pytest.raises(DataError, match="no pair is left"): compare_files(CompareConfig([str(tmp_path/"p.jsonl")], mode_a="r3", mode_b="r3+oracle", n_boot=20))


def test_a_reader_that_does_not_say_what_it_showed(real, tmp_path):
    class Silent:
        def answer(self, mode, cases, evidence): return [Answer("7", c.seen.question) for c in cases]
    s = evaluate(config(real, tmp_path/"out", eval_mode=["base+text"]), Silent())
    assert s["shown_unknown"] == 16 and s["esar"] == [] and "do not say what the model was shown" in show(s)


def test_word_lines_are_stable():
    for _, text in STANDS + ABSENT: assert word_line(word_line(text)) == word_line(text)
    assert cp.TEXT_VALUES == ("support", "esar", "esar_chance", *VERDICTS)
