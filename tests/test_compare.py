"""Everything that is read from predictions alone: pairing, tables, intervals, the comparison of two runs, the file for the test server."""
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from r3nb import compare as cp
from r3nb.compare import CompareConfig, SubmissionConfig, compare_files, load_predictions, submission, summarise
from r3nb.core import ConfigError, DataError, rng, write_json, write_jsonl
from r3nb.metrics import flip_rate, robustness, score

RATE = {"base": (.5, 1), "base+text": (.9, 1), "r3": (.9, .4)} # mode: share of right answers on clean pages, and its loss per level


def row(i, mode, level, seed, rate, **kw):
    "One invented prediction; all modes share the luck of a question, as in a paired design"
    start, slope = rate
    ds = ("screenqa", "chartqa", "infovqa")[i//3 % 3]
    word = "red" if rng("compare", i, level, seed).random() < start - slope*level else "blue"
    return {"sample_id": f"s{i}", "image_id": f"im{i//3}", "dataset": ds, "mode": mode, "level": level, "seed": seed, "prompt_sha256": "", "prediction": word,
            "references": ["red"], "scores": score(ds, word, ["red"]), "text": "a red page", "evidence": [],
            "shown": {"text": "a red page", "passages": []}, "gates": None, "confidence": None, "meta": {}} | kw


def rows(rates=RATE, n=60, levels=(0.0, .6), seeds=(0, 1)):
    "The rows of an invented sweep"
    return [row(i, m, v, s, r) for m, r in rates.items() for v in levels for s in (seeds if v else seeds[:1]) for i in range(n)]


def test_unpaired_modes_are_refused(tmp_path):
    with pytest.raises(DataError, match="pair"): summarise(write_jsonl(tmp_path/"p.jsonl", rows()[:-1]), 50)


def test_a_row_without_a_field_is_named(tmp_path):
    (tmp_path/"p.jsonl").write_text('{"sample_id": "a"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:1"): summarise(tmp_path/"p.jsonl")


def test_interval_resamples_pages():
    "Copies of a question on the same page must not make the interval narrower"
    right = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    frame = lambda copies: pd.DataFrame([{"dataset": "d", "image_id": i, "sample_id": f"{i}.{j}", "level": 0.0, "seed": 0, "score": v} for i, v in enumerate(right) for j in range(copies)])
    one, many = cp.interval(frame(1)), cp.interval(frame(10))
    assert many["high"] - many["low"] == pytest.approx(one["high"] - one["low"])


def test_ablations_are_compared_at_the_levels_that_all_share():
    "A control that ran everywhere and an ablation that ran at one level stand side by side at that level"
    score = {"r3": 1., "r3+shuffled": .5, "r3-gate": .75}
    rows = [{"dataset": "d", "image_id": str(i), "sample_id": str(i), "mode": m, "level": v, "seed": 0, "damage": "drawn", "score": s if v == .6 else 0.}
            for m, s in score.items() for v in (0., .2, .6) for i in range(12) if m != "r3-gate" or v == .6]
    table = {r["mode"]: r for r in cp.ablation_table(pd.DataFrame(rows), n=50)}
    assert {m: (r["levels"], r["estimate"]) for m, r in table.items()} == {"r3+shuffled": ([.6], .5), "r3-gate": ([.6], .25)}


# ---- reading

def test_a_file_of_before_names_no_damage(tmp_path):
    new = load_predictions(write_jsonl(tmp_path/"new.jsonl", rows()))
    old = load_predictions(write_jsonl(tmp_path/"old.jsonl", [{k: v for k, v in r.items() if k != "damage"} for r in rows()]))
    assert set(new.damage) == set(old.damage) == {"drawn"} and new.drop(columns=["words", "wanted"]).equals(old.drop(columns=["words", "wanted"]))


def test_many_rows_are_read_in_parts(tmp_path):
    some = rows(n=30)
    many = [r | {"sample_id": f"{k}.{r['sample_id']}"} for k in range(60) for r in some]
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", many), texts=False)
    assert len(df) == len(many) > 3*5_000 and df.score.sum() == pytest.approx(sum(r["scores"]["score"] for r in many)) and list(df.index) == list(range(len(df)))


@pytest.mark.parametrize("change, words", [({"scores": {"score": "high"}}, "ValueError"), ({"level": None}, "TypeError"), ({"meta": [1]}, "AttributeError"), ({"gates": [1, 2]}, "ValueError")])
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, words):
    bad = rows()[:3]
    bad[1] = bad[1] | change
    with pytest.raises(DataError, match=rf"p\.jsonl:2: not a prediction .*{words}"): load_predictions(write_jsonl(tmp_path/"p.jsonl", bad))


def test_some_without_scores_are_refused(tmp_path):
    mixed = [r | ({"scores": {}} if i == 5 else {}) for i, r in enumerate(rows())]
    with pytest.raises(DataError, match=r"1 of 540 answers have no score"): load_predictions(write_jsonl(tmp_path/"p.jsonl", mixed))


def test_support_and_hallucination_look_at_what_was_shown(tmp_path):
    shown = lambda own, *passages: {"text": own, "passages": [{"image_id": f"e{i}", "channel": "text", "text": t} for i, t in enumerate(passages)]}
    base = row(0, "rag", 0.0, 0, (1, 0), shown=shown("nothing here", "a red page"), prediction="green", scores={"score": 0.0})
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", [base, base | {"sample_id": "b", "shown": shown("nothing here")}, base | {"sample_id": "c", "prediction": "here"}]))
    assert list(df.support) == [1, 0, 1] and list(df.invented) == [1, 1, 0] and list(df.misread) == [0, 0, 1] and list(df.esar) == [0, 0, 1]


def test_a_file_of_another_program(tmp_path):
    "What only our rows have may be missing; it is then unknown, not zero"
    few = [{k: r[k] for k in ("sample_id", "image_id", "dataset", "mode", "level", "seed", "scores")} for r in rows()]
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", few))
    assert df.support.isna().all() and df.invented.isna().all() and df.g_self.isna().all()
    s = summarise(tmp_path/"p.jsonl", 50)
    assert [r["hallucination"] for r in s["robustness"]] == [None]*len(s["robustness"]) and s["classes"] == [] and s["calibration"] == []
    json.dumps(s, allow_nan=False)
    ours = write_jsonl(tmp_path/"ours/predictions.jsonl", [r | {"references": []} for r in rows()])
    assert line(run(tmp_path/"p.jsonl", ours.parent), "mean", 2)["estimate"] == 0


# ---- classes of questions

def test_classes_of_questions(tmp_path):
    meta = [{"answer_type": ["single span", "multi-span"], "operation/reasoning": []}, {"answer_type": ["single span"], "operation/reasoning": ["counting", "counting", "arithmetic"]},
            {"human_or_machine": 0}, {"human_or_machine": 1}, {"answer_type": None, "operation/reasoning": None, "human_or_machine": ""}]
    some = [row(i, "base", 0.0, 0, (1, 0), meta=m, dataset="infovqa", scores={"score": float(i)}) for i, m in enumerate(meta)]
    table = {(r["column"], r["class"]): (r["estimate"], r["questions"], r["n"]) for r in cp.class_table(load_predictions(write_jsonl(tmp_path/"p.jsonl", some)), 50)}
    assert table == {("answer_type", "single span"): (.5, 2, 2), ("answer_type", "multi-span"): (0, 1, 1), ("operation/reasoning", "none"): (0, 1, 1), ("operation/reasoning", "counting"): (1, 1, 1),
                     ("operation/reasoning", "arithmetic"): (1, 1, 1), ("human_or_machine", "human"): (2, 1, 1), ("human_or_machine", "augmented"): (3, 1, 1)}


def test_questions_without_an_answer(tmp_path):
    refs = (["<no answer>", "<no answer>"], ["<no answer>", "4"], ["4"])
    some = [row(i, "base", 0.0, 0, (1, 0), dataset="screenqa", references=r, prediction="<no answer>", scores=score("screenqa", "<no answer>", r)) for i, r in enumerate(refs)]
    table = {r["class"]: r["estimate"] for r in cp.class_table(load_predictions(write_jsonl(tmp_path/"p.jsonl", some)), 50) if r["column"] == "no_answer"}
    assert table == {"no answer": 1, "some raters say no answer": 1, "answer": 0}


# ---- robustness

def test_robustness_equals_its_definitions(tmp_path):
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", rows(levels=(0.0, .3, .6))))
    table, diffs = cp.robustness_table(df, "r3", 100)
    curves = {m: g.groupby("level").score.mean().to_dict() for m, g in df.groupby("mode")}
    for mode in RATE:
        r, want = next(r for r in table if r["mode"] == mode and r["dataset"] == "all"), robustness(curves[mode], curves["base+text"])
        for k in ("clean", "area", "worst", "worst_level", "retention"): assert r[k] == pytest.approx(want[k]), k
        assert r["error_ratio"] == (None if mode == "base+text" else pytest.approx(want["error_ratio"][.6]))
        g = df[df["mode"] == mode]
        clean = g[g.level == 0].set_index("sample_id").score
        bad = g[g.level > 0]
        assert r["flip_rate"] == pytest.approx(flip_rate(clean.loc[bad.sample_id].to_numpy(), bad.score.to_numpy()))
        assert r["hallucination"] == pytest.approx(g.invented.mean()) and r["support"] == pytest.approx(g.support.mean())
        assert all(r[f"{k}_low"] <= r[k] + 1e-12 and r[k] <= r[f"{k}_high"] + 1e-12 for k in ("area", "retention", "flip_rate", "hallucination"))
    area = {m: robustness(c)["area"] for m, c in curves.items()}
    assert next(d for d in diffs if (d["b"], d["what"], d["dataset"]) == ("base", "area", "all"))["estimate"] == pytest.approx(area["r3"] - area["base"])


def test_what_is_undefined_is_none(tmp_path):
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", rows({"base": (0, 0)}, levels=(0.0, .6))))
    r = cp.robustness_table(df, None, 50)[0][0]
    assert (r["retention"], r["retention_low"], r["flip_rate"], r["error_ratio"], r["area"]) == (None, None, None, None, 0)
    json.dumps(r, allow_nan=False)
    damaged = load_predictions(write_jsonl(tmp_path/"q.jsonl", rows(levels=(.6,))))
    r = cp.robustness_table(damaged, None, 50)[0][0]
    assert r["clean"] is None and r["retention"] is None and r["flip_rate"] is None and r["area"] == r["worst"]


def naive(df, n, stat):
    "The reference: one resample after the other, its rows gathered page by page, the number computed from the rows"
    pages, r, out = sorted(df.image_id.unique()), rng("paired_bootstrap", 0), []
    of = {p: df[df.image_id == p] for p in pages}
    for _ in range(n): out.append(stat(pd.concat([of[pages[i]] for i in r.integers(0, len(pages), len(pages))])))
    return np.quantile(out, [.025, .975])


def test_intervals_of_curves_equal_the_naive_loop(tmp_path):
    df = load_predictions(write_jsonl(tmp_path/"p.jsonl", rows(n=45, levels=(0.0, .3, .6))))
    table, diffs = cp.robustness_table(df, "r3", 60)
    curve = lambda g, m: g[g["mode"] == m].groupby("level").score.mean()
    area = lambda g, m: np.trapezoid(curve(g, m), curve(g, m).index)/.6
    kept = lambda g, m: curve(g, m).iloc[-1]/curve(g, m).iloc[0]
    row_of = next(r for r in table if r["mode"] == "r3" and r["dataset"] == "all")
    assert (row_of["area_low"], row_of["area_high"]) == pytest.approx(naive(df, 60, lambda g: area(g, "r3")))
    for what, f in (("area", area), ("retention", kept)):
        d = next(d for d in diffs if (d["b"], d["what"], d["dataset"]) == ("base", what, "all"))
        assert (d["low"], d["high"]) == pytest.approx(naive(df, 60, lambda g, f=f: f(g, "r3") - f(g, "base"))), what


# ---- families of damage

FAMILIES = [row(i, m, .6, 0, (s, k*c), damage=d) for m, (s, k) in RATE.items() for d, c in (("jpeg", 1.2), ("truncation", .2)) for i in range(60)]


def test_families_share_the_clean_page_and_leave_the_pooled_tables_alone(tmp_path):
    plain, more = summarise(write_jsonl(tmp_path/"a.jsonl", rows()), 50), summarise(write_jsonl(tmp_path/"b.jsonl", rows() + FAMILIES), 50)
    for k in set(plain) - {"n_predictions", "predictions_sha256", "damages", "by_damage", "robustness_by_damage"}: assert plain[k] == more[k], k
    assert (plain["by_damage"], more["damages"], more["n_predictions"]) == ([], ["drawn", "jpeg", "truncation"], len(rows() + FAMILIES))
    at = {(r["damage"], r["mode"], r["level"]): r["estimate"] for r in more["by_damage"] if r["dataset"] == "all"}
    assert at["jpeg", "r3", 0] == at["truncation", "r3", 0] == at["drawn", "r3", 0] and at["jpeg", "r3", .6] < at["truncation", "r3", .6]
    assert at["jpeg", "r3", .6] == pytest.approx(np.mean([r["scores"]["score"] for r in FAMILIES if r["mode"] == "r3" and r["damage"] == "jpeg"]))
    tough = {(r["damage"], r["mode"]): r for r in more["robustness_by_damage"] if r["dataset"] == "all"}
    assert tough["jpeg", "base"]["area"] == pytest.approx((at["jpeg", "base", 0] + at["jpeg", "base", .6])/2) and tough["drawn", "r3"]["flip_rate"] is not None


# ---- confidence

def test_confidence_is_held_against_the_damage(tmp_path):
    from scipy.stats import spearmanr
    r = rng("confidence")
    true = np.repeat(r.random(60), 3).round(1)
    said = np.clip(true*.5 + .3 + r.normal(0, .1, 180), 0, 1)
    some = [row(i, "r3", .6, 0, (1, 0), confidence={"vis": float(said[i]), "text": .5, "true_vis": float(true[i]), "true_text": float(true[i])}) for i in range(180)]
    image, text = cp.calibration_table(load_predictions(write_jsonl(tmp_path/"p.jsonl", some)), "r3", 200)
    assert image["rank"] == pytest.approx(spearmanr(said, true)[0]) and image["rank_low"] < image["rank"] < image["rank_high"]
    bins = np.minimum((said*10).astype(int), 9)
    assert image["error"] == pytest.approx(sum(abs(said[bins == b].mean() - true[bins == b].mean())*(bins == b).mean() for b in set(bins)))
    assert [b["n"] for b in image["bins"]] == [int((bins == b).sum()) for b in sorted(set(bins))] and image["mean_gap"] == pytest.approx((said - true).mean())
    assert text["rank"] is None and len(text["bins"]) == 1 and text["error"] == pytest.approx(abs(.5 - true.mean()))


def test_other_sources_of_confidence_are_ablations(tmp_path):
    s = summarise(write_jsonl(tmp_path/"p.jsonl", rows(RATE | {"r3+oracle_confidence": (.95, .4), "r3+fixed_confidence": (.9, .7)})), 50)
    found = {r["mode"]: r["estimate"] for r in s["ablations"]}
    assert set(found) == {"r3+oracle_confidence", "r3+fixed_confidence"} and found["r3+oracle_confidence"] <= 0 < found["r3+fixed_confidence"] and s["main"] == "r3"


# ---- any two runs

@pytest.fixture
def two(tmp_path):
    "Two runs: the second has a better r3, and no rag"
    a = write_jsonl(tmp_path/"a/predictions.jsonl", rows(RATE | {"rag": (.9, .6)}))
    b = write_jsonl(tmp_path/"b/predictions.jsonl", rows({"base": (.5, 1), "r3": (.95, .2)}))
    return str(a), str(b)


def run(*files, **kw): return compare_files(CompareConfig(list(map(str, files)), **{"n_boot": 60} | kw))


def line(found, what, i=0, **of): return next(r for r in found["comparisons"][i]["rows"] if r["what"] == what and all(r[k] == v for k, v in of.items()))


def test_two_runs(two):
    found = run(*two)
    assert [(t["a"], t["b"]) for t in found["comparisons"]] == [("A (base)", "B (base)"), ("A (r3)", "B (r3)")]
    t = found["comparisons"][1]
    assert (t["answers_a"], t["pairs"], t["questions"], t["images"], t["notes"]) == (180, 180, 60, 20, [])
    a, b = (load_predictions(f) for f in two)
    mean = lambda df, v: df[(df["mode"] == "r3") & (df.level == v)].score.mean()
    r = line(found, "λ=0.6", 1)
    assert (r["n"], r["a"], r["b"]) == (120, pytest.approx(mean(a, .6)), pytest.approx(mean(b, .6))) and r["estimate"] == pytest.approx(r["a"] - r["b"]) and r["high"] < 0
    assert line(found, "area", 1)["estimate"] == pytest.approx((mean(a, 0) + mean(a, .6) - mean(b, 0) - mean(b, .6))/2)
    assert line(found, "λ=0.6", 0)["p"] == 1 and all(r["p"] <= r["p_holm"] for t in found["comparisons"] for r in t["rows"])


def test_modes_within_one_run_and_across(two):
    alone = run(two[0])
    assert [(t["a"], t["b"]) for t in alone["comparisons"]] == [("r3", "base"), ("r3", "base+text"), ("r3", "rag")]
    assert [(t["a"], t["b"]) for t in run(two[0], mode_b="rag")["comparisons"]] == [("r3", "rag")]
    assert [(t["a"], t["b"]) for t in run(two[0], mode_a="rag", mode_b="r3")["comparisons"]] == [("rag", "r3")]
    assert [(t["a"], t["b"]) for t in run(*two, mode_a="rag", mode_b="r3")["comparisons"]] == [("A (rag)", "B (r3)")]
    one, other = line(run(two[0], mode_a="rag", mode_b="r3"), "mean"), line(run(two[0], mode_a="r3", mode_b="rag"), "mean")
    assert one["estimate"] == -other["estimate"] and one["low"] == pytest.approx(-other["high"])


@pytest.mark.parametrize("kw, words", [(dict(mode_a="rga"), "mode_a: no answers of mode 'rga' .*did you mean 'rag'"), (dict(mode_a="rag"), "other file has no mode 'rag'.*--mode_b"),
                                       (dict(mode_b="base+text"), "mode_b: no answers"), (dict(value="f2"), "no score 'f2'.*'f1'"), (dict(by=["levle"]), "did you mean 'level'")])
def test_wrong_options_are_named(two, kw, words):
    with pytest.raises(ConfigError, match=words): run(*two, **kw)


def test_nothing_to_compare_is_said(tmp_path, two):
    one = write_jsonl(tmp_path/"one.jsonl", rows({"rag": (.9, .5)}))
    with pytest.raises(ConfigError, match="nothing to set it against"): run(one)
    with pytest.raises(ConfigError, match="share no mode: rag against base, r3"): run(one, two[1])
    lone = write_jsonl(tmp_path/"lone.jsonl", rows({"lora": (.9, .5)}))
    assert run(one, lone)["comparisons"][0]["b"] == "B (lora)"
    apart = write_jsonl(tmp_path/"apart.jsonl", [r | {"sample_id": "x" + r["sample_id"]} for r in rows({"rag": (.9, .5)})])
    with pytest.raises(DataError, match="no question under the same damage in common"): run(one, apart, common=True)
    with pytest.raises(DataError, match="no such file"): run(one, tmp_path/"gone.jsonl")


def test_a_missing_answer_is_named_or_dropped_on_demand(tmp_path, two):
    some = [r for r in rows({"base": (.5, 1)}) if not (r["sample_id"] == "s7" and r["level"] == .6 and r["seed"] == 1)]
    short = write_jsonl(tmp_path/"short.jsonl", some)
    with pytest.raises(DataError, match=r"B \(base\) lacks 1 answers that A \(base\) has, the first is s7 at level 0.6, seed 1"): run(two[0], short)
    with pytest.raises(DataError, match=r"A \(base\) lacks 1 answers"): run(short, two[0])
    t = run(two[0], short, common=True)["comparisons"][0]
    assert t["pairs"] == 179 and "dropped" in t["notes"][0] and "s7" in t["notes"][0]


def test_conditions_of_one_run_only_are_left_out_and_named(tmp_path, two):
    wide = write_jsonl(tmp_path/"wide.jsonl", rows({"base": (.5, 1)}, levels=(0.0, .3, .6), seeds=(0, 1, 2)))
    t = run(two[0], wide)["comparisons"][0]
    assert t["pairs"] == 180 and t["notes"] == ["left out, as only B (base) has it: level 0.3 seed 0; level 0.3 seed 1; level 0.3 seed 2; level 0.6 seed 2"]


def test_the_seed_of_the_clean_page_does_not_matter(tmp_path):
    a, b = (write_jsonl(tmp_path/f"{s}.jsonl", [r | {"seed": r["seed"] if r["level"] else s} for r in rows({"base": (.5, 1)})]) for s in (0, 5))
    t = run(a, b)["comparisons"][0]
    assert t["pairs"] == 180 and not t["notes"]


@pytest.mark.parametrize("change, words", [({"references": ["red", "rose"]}, "another references"), ({"image_id": "elsewhere"}, "another image_id"), ({"dataset": "infovqa"}, "another dataset")])
def test_the_same_question_must_be_the_same(tmp_path, change, words):
    a, b = (rows({"base": (.5, 1)}) for _ in "ab")
    b[4] = b[4] | change
    with pytest.raises(DataError, match=f"s4 at level 0, seed 0 has {words}"): run(write_jsonl(tmp_path/"a.jsonl", a), write_jsonl(tmp_path/"b.jsonl", b))


def test_answers_that_are_there_twice(tmp_path):
    a = rows({"base": (.5, 1)})
    with pytest.raises(DataError, match="1 answers are there twice, the first is s0"): run(write_jsonl(tmp_path/"a.jsonl", [*a, a[0]]), write_jsonl(tmp_path/"b.jsonl", a))


def test_other_damage_and_other_settings_are_told(tmp_path):
    a, b = rows({"base+text": (.5, 1)}), [r | {"text": "another page"} if i < 3 else r for i, r in enumerate(rows({"base+text": (.5, 1)}))]
    files = write_jsonl(tmp_path/"a/predictions.jsonl", a), write_jsonl(tmp_path/"b/predictions.jsonl", b)
    assert "3 of 180 pairs were shown different text" in run(*files)["comparisons"][0]["notes"][0]
    for d, suffix, print_ in (("a", "", "1"), ("b", " Briefly.", "2")): write_json(tmp_path/d/"summary.json", {"settings": {"prompt_suffix": suffix, "top_k": 3}, "inputs_fingerprint": print_})
    first, second = run(*files)["notes"]
    assert first == "the runs differ in prompt_suffix: '' against ' Briefly.'" and "not equal" in second


def test_split_by_dataset_family_and_class(tmp_path):
    kinds = lambda i: {"kind": "visual" if i % 2 else "text", "answer_type": ["one", "two"] if i % 3 else ["one"]}
    make = lambda shift: [r | {"meta": kinds(int(r["sample_id"][1:]))} for r in rows({"r3": (.9, shift)}) + [row(i, "r3", .6, 0, (.9, shift), damage="jpeg") for i in range(60)]]
    files = write_jsonl(tmp_path/"a.jsonl", make(.2)), write_jsonl(tmp_path/"b.jsonl", make(.6))
    a = load_predictions(files[0])
    by = run(*files, by=["dataset"])
    assert line(by, "mean", dataset="all")["n"] == 180 and line(by, "mean", dataset="chartqa")["a"] == pytest.approx(a[(a.dataset == "chartqa") & (a.damage == "drawn")].score.mean())
    by = run(*files, by=["damage", "level"])
    assert line(by, "λ=0.6", damage="jpeg")["a"] == pytest.approx(a[a.damage == "jpeg"].score.mean()) and line(by, "λ=0", damage="jpeg") == line(by, "λ=0", damage="drawn") | {"damage": "jpeg"}
    by = run(*files, by=["answer_type", "kind"])
    assert line(by, "mean", answer_type="two", kind="visual")["n"] == 3*sum(1 for i in range(60) if i % 2 and i % 3) and line(by, "mean", answer_type="one", kind="text")["n"] == 90
    by = run(*files, by=["seed"])
    assert line(by, "mean", seed="1")["n"] == 60
    assert run(*files)["comparisons"][0]["pairs"] == 180


def test_other_scores(two):
    assert line(run(*two, value="em"), "mean", 1)["a"] == pytest.approx(load_predictions(two[0]).query("mode == 'r3'").em.mean())
    assert line(run(*two, value="support"), "mean", 1)["a"] == 1 and line(run(*two, value="invented"), "λ=0.6", 1)["a"] > 0
    only = run(*two, value="anls")["comparisons"][1]
    assert only["notes"] == ["dropped, as they have no anls: 126 pairs"] and only["pairs"] == 54


def test_the_table_equals_the_naive_loop(tmp_path, two):
    found = run(*two, n_boot=60)
    a, b = (load_predictions(f).query("mode == 'r3'") for f in two)
    both = a.merge(b[["sample_id", "level", "seed", "score"]], on=["sample_id", "level", "seed"], suffixes=("", "_b"))
    both["diff"] = both.score - both.score_b
    curve = lambda g, c: g.groupby("level")[c].mean()
    for what, stat in (("mean", lambda g: g["diff"].mean()), ("λ=0.6", lambda g: g[g.level == .6]["diff"].mean()), ("retention", lambda g: curve(g, "score").iloc[1]/curve(g, "score").iloc[0] - curve(g, "score_b").iloc[1]/curve(g, "score_b").iloc[0])):
        r = line(found, what, 1)
        assert (r["low"], r["high"]) == pytest.approx(naive(both, 60, stat)), what


def simulated(i, gain=0.0, pages=60):
    "Pairs of answers whose true difference is `gain` at every level; questions of a page share their luck"
    r = rng("simulated", i)
    page = np.repeat(r.normal(0, .5, pages), 6)
    frame = pd.DataFrame({"image_id": np.repeat([f"p{k}" for k in range(pages)], 6), "sample_id": [f"s{k//3}" for k in range(pages*6)], "level": np.tile([0, .4, .8], pages*2)})
    noise = lambda: r.normal(0, .3, len(frame))
    shared = page*frame.level.to_numpy()
    return frame.assign(one=.5 + gain + shared + noise(), two=.5 + noise())


def test_intervals_cover_the_truth():
    hits = {"mean": 0, "area": 0, "λ=0.8": 0}
    for i in range(150):
        for r in cp.group_rows(simulated(i), CompareConfig(["x"], n_boot=300)):
            if r["what"] in hits: hits[r["what"]] += r["low"] <= 0 <= r["high"]
    assert all(.89 <= h/150 <= .995 for h in hits.values()), hits


def test_the_detectable_difference_is_detected_four_times_in_five():
    at = {r["what"]: r for r in cp.group_rows(simulated("pilot", pages=400), CompareConfig(["x"], n_boot=1000, power=[120]))}["area"]
    assert at["detectable_120"] == pytest.approx(at["detectable"]*(800/120)**.5)
    seen = sum(next(r for r in cp.group_rows(simulated(i, at["detectable_120"]), CompareConfig(["x"], n_boot=300)) if r["what"] == "area")["low"] > 0 for i in range(120))
    assert .68 <= seen/120 <= .92


def test_ten_thousand_questions_are_quick():
    r = rng("quick")
    frame = pd.DataFrame({"image_id": np.repeat([f"p{i}" for i in range(10_000)], 5), "sample_id": np.repeat([f"s{i}" for i in range(10_000)], 5), "level": np.tile([0, .2, .4, .6, .8], 10_000),
                          "one": (r.random(50_000) < .7).astype(float), "two": (r.random(50_000) < .6).astype(float)})
    t = time.process_time()
    assert len(cp.group_rows(frame, CompareConfig(["x"]))) == 8
    assert time.process_time() - t < 10


def test_command_line_without_a_model_library(two, tmp_path):
    code = "import sys; from r3nb.compare import main; main(sys.argv[1:]); bad = {'torch', 'transformers', 'faiss', 'datasets', 'nltk'} & set(sys.modules); assert not bad, bad"
    done = subprocess.run([sys.executable, "-c", code, *two, "--mode_a", "rag", "--mode_b", "r3", "--n_boot", "50", "--power", "500,1000", "--out_json", str(tmp_path/"out.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "**A (rag) − B (r3)**: 180 and 180 answers, 180 pairs, 60 questions about 20 pages" in done.stdout and "detectable at n=500" in done.stdout
    found = json.loads((tmp_path/"out.json").read_text())
    assert found["comparisons"][0]["rows"][0]["what"] == "λ=0" and found["files"]["A"]["answers"] == 720 and len(found["files"]["B"]["sha256"]) == 64
    wrong = subprocess.run([sys.executable, "-m", "r3nb.compare", two[0], "--mode_a", "bass"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: mode_a") and "Traceback" not in wrong.stderr


def test_answers_without_scores_cannot_be_compared(tmp_path):
    none = write_jsonl(tmp_path/"p.jsonl", [r | {"scores": {}, "references": []} for r in rows()])
    with pytest.raises(DataError, match="no scores"): run(none, none)
    s = summarise(none, 50)
    assert s["answered"] is False and s["scores"] == [] and "without scores" in cp.show(s)


# ---- the file for the test server

def test_rows(n=4, **kw): return [row(i, "r3", 0.0, 0, (1, 0), dataset="infovqa", references=[], scores={}, prediction=f"é {i}", meta={"questionId": str(70 - i)}) | kw for i in range(n)]


def send(tmp_path, some, **kw): return submission(SubmissionConfig(str(write_jsonl(tmp_path/"p.jsonl", some)), out=str(tmp_path/"send.json"), **kw))


test_rows.__test__ = False


def test_submission_is_what_the_server_takes(tmp_path):
    out = send(tmp_path, test_rows() + [row(0, "r3", 0.0, 0, (1, 0), dataset="chartqa"), *(r | {"damage": "jpeg", "level": .4} for r in test_rows())])
    read = json.loads((tmp_path/"send.json").read_text(encoding="utf-8"))
    assert out == read == [{"questionId": 67 + i, "answer": f"é {3 - i}"} for i in range(4)] and all(type(e["questionId"]) is int for e in read)


@pytest.mark.parametrize("some, kw, error, words", [
    (lambda: [*test_rows(), test_rows()[0]], {}, DataError, r"p\.jsonl:5: question id 70 was answered in line 1"),
    (lambda: [r | {"meta": {}} for r in test_rows()], {}, DataError, r"p\.jsonl:1: s0 has no question id"),
    (lambda: [r | {"meta": {"questionId": "12a"}} for r in test_rows()], {}, DataError, "'12a'"),
    (lambda: [r | {"prediction": 5} for r in test_rows()], {}, DataError, "should be a string"),
    (lambda: test_rows() + [r | {"mode": "rag"} for r in test_rows()], {}, ConfigError, "several of mode: r3, rag; choose with --mode"),
    (lambda: test_rows(), {"mode": "rg"}, ConfigError, "no answers of mode 'rg'"), (lambda: test_rows(), {"level": .5}, ConfigError, "no answers of level '0.5'"),
    (lambda: [r | {"level": .5, "seed": s} for s in (0, 1) for r in test_rows()], {"level": .5}, ConfigError, "several of seed"),
    (lambda: rows({"base": (1, 0)}, n=3), {}, DataError, "no answers to questions of infovqa")])
def test_a_file_that_the_server_would_refuse_is_not_written(tmp_path, some, kw, error, words):
    with pytest.raises(error, match=words): send(tmp_path, some(), **kw)
    assert not (tmp_path/"send.json").exists()


def test_submission_command(tmp_path):
    write_jsonl(tmp_path/"p.jsonl", test_rows() + [r | {"mode": "rag"} for r in test_rows()])
    code = "import sys; from r3nb.compare import submission_main; submission_main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"p.jsonl"), "--out", str(tmp_path/"send.json"), "--mode", "rag"], capture_output=True, text=True)
    assert done.returncode == 0 and "4 answers; the public test split has 3,288" in done.stdout
