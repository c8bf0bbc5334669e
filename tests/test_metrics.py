"Metrics equal the official scorers; statistics equal their naive forms"
import json
import time
from pathlib import Path

import numpy as np
import pytest
import scorers

from r3nb.core import DataError, rng
from r3nb.metrics import (NO_ANSWER, TASK_METRICS, anls, answer_support, area, bleu, detectable_difference, error_ratio, exact_match,
    flip_rate, hallucinated, holm, paired_bootstrap, relaxed_accuracy, retention, robustness, rouge_l, score, screenqa, supported,
    token_f1)

PAIRS = json.loads(Path(__file__).with_name("metric_pairs.json").read_text())


@pytest.mark.parametrize("row", PAIRS["relaxed_accuracy"], ids=str)
def test_relaxed_pairs(row): assert relaxed_accuracy(row["prediction"], [row["reference"]]) == row["score"]


@pytest.mark.parametrize("row", PAIRS["anls"], ids=str)
def test_anls_pairs(row): assert anls(row["prediction"], row["references"]) == pytest.approx(row["score"], abs=1e-6)


@pytest.mark.parametrize("row", PAIRS["screenqa"], ids=str)
def test_screenqa_pairs(row): assert screenqa(row["prediction"], row["references"]) == (row["em"], row["f1"])


@pytest.mark.parametrize("prediction, reference, right", [
    ("105", "100", 1), ("105.0001", "100", 0), ("95", "100", 1), ("94.99", "100", 0), ("-105", "-100", 1), ("1e2", "100", 1),
    ("0", "0.0", 0), ("0.0", "0", 0), ("0%", "0", 0), ("0", "0%", 0), ("0%", "0%", 1), ("-0", "0", 0), ("0.001", "0", 0), ("5", "0", 0),
    ("nan", "nan", 0), ("NaN", "nan", 0), ("inf", "inf", 0), ("5", "inf", 0), ("inf", "5", 0), ("-inf", "inf", 0), ("1e999", "5", 0),
    ("nan%", "nan%", 0), ("nan", "0", 0), ("x", "nan", 0), ("%", "%", 1), ("%", "5", 0), ("5 %", "0.05", 1), ("5%%", "0.05", 1),
    ("%5", "5", 0), ("1_000", "1000", 1), ("٣", "3", 1), ("+5", "5", 1), (".5", "0.5", 1), ("5.", "5", 1), ("0x10", "16", 0),
    (" 5\n", "5", 1), ("5", " 5 ", 1), ("yes", "yes ", 0), ("\tYES ", "yes", 1), ("", "", 1), ("  ", "", 1), ("", "0", 0), ("5", "", 0),
    ("5%", "5%", 1), ("5.2%", "5%", 1), ("STRASSE", "straße", 0), ("1/2", "0.5", 0), ("[a, b]", "[A, B]", 1), ("2,5", "2.5", 0),
    ("It could be 1, 2, 3, 4 or 5", "4", 0), ("yes, it is", "yes", 0)])
def test_relaxed_corners(prediction, reference, right): assert relaxed_accuracy(prediction, [reference]) == right


PIECES = ["a", "an", "the", "A", "B", "ab", "yes", "No", "red", "1", "2", "10", "105", "100", "95", "0", "0.05", "5", "-5", "+5", "1e2", "1E+2", "1_0", "1,000", ".5", "5.",
          "inf", "-Infinity", "nan", "NaN", "٣", "%", "%%", " ", "  ", "\t", "\n", "\u00a0", "\u2003", "\x1f", "", "ß", "İ", "ŉ", "ﬁ", "é", "e\u0301", "数", "🙂", "_", "-", "'", ".", ",",
          "$", "€", "–", "“", "<no answer>", "<No Answer>", "no answer", "\u200b", "\ufeff", "\x00"]


def pairs(n, key, pieces=PIECES, joint=("", " ")):
    "Predictions with references that are often near them"
    r = rng("pairs", key)
    text = lambda k: joint[r.integers(len(joint))].join(pieces[i] for i in r.integers(0, len(pieces), r.integers(0, k)))
    for _ in range(n):
        refs = [text(5) for _ in range(1 + r.integers(3))]
        p = refs[r.integers(len(refs))] if r.random() < .7 else text(5)
        kind = r.integers(6)
        if kind == 1: p = p.swapcase()
        if kind == 2: p = " " + p + "\n"
        if kind == 3 and p: p = p[:-1]
        if kind == 4: p += pieces[r.integers(len(pieces))]
        yield p, refs


NUMBERS = ["1", "2", "9", "0", "00", "5", "95", "105", ".", "-", "+", "e", "E1", "e-3", "_", "%", " ", "inf", "nan", "x", ",", "٣", "\u00a0"]


@pytest.mark.parametrize("mine, other", [(relaxed_accuracy, scorers.relaxed), (anls, scorers.anls), (exact_match, scorers.em), (token_f1, scorers.f1),
                                         (screenqa, scorers.screenqa), (rouge_l, scorers.rouge_l)], ids=lambda f: f.__name__)
def test_second_opinion(mine, other):
    right, own = 0, mine in (exact_match, token_f1, rouge_l) # these go their own way beyond ASCII, and where nothing is left of a text: tests/test_own.py
    shared = lambda p, refs: all(t.isascii() and (mine is rouge_l or scorers.words(t)) for t in (p, *refs))
    for p, refs in [*pairs(1500*(1 + 3*own), mine.__name__), *pairs(700, "numbers", NUMBERS), *pairs(300, "words", joint=(" ",))]:
        if own and not shared(p, refs): continue
        assert mine(p, refs) == pytest.approx(other(p, refs), abs=1e-12), (p, refs)
        right += np.mean(mine(p, refs)) > 0
    assert 250 < right < 2400 # neither all right nor all wrong, or this shows nothing


def test_second_opinion_on_bleu():
    for p, refs in pairs(800, "bleu", ["red", "blue", "car", "the", "7", "box"], joint=(" ",)):
        p = " ".join(p.lower().split())
        assert bleu(p, refs) == pytest.approx(scorers.bleu(p, refs), abs=1e-9), (p, refs)


def test_libraries_are_called_with_their_defaults():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer
    for p, refs in pairs(300, "libraries"):
        assert bleu(p, refs) == pytest.approx(min(1, sacrebleu.sentence_bleu(p, refs).score/100), abs=1e-12)
        if "".join([p, *refs]).isascii(): assert rouge_l(p, refs) == RougeScorer(["rougeL"]).score_multi(refs, p)["rougeL"].fmeasure


def test_very_long_texts():
    long = "revenue 432 " * 5000
    assert relaxed_accuracy(long, ["432"]) == exact_match(long, ["432"]) == anls(long, ["432"]) == 0 and 0 < token_f1(long, ["432"]) < .001
    assert relaxed_accuracy("1" + "0"*6000, ["5"]) == 0 and relaxed_accuracy("9" * 400, ["9" * 400]) == 0 and anls(long, [long[:-1] + "x"]) > .99


@pytest.mark.parametrize("prediction, references, expected", [
    (NO_ANSWER, ["x"], (0, 0)), (NO_ANSWER, ["x", NO_ANSWER], (1, 1)), ("no answer", [NO_ANSWER], (0, 0)), (" <no answer>", [NO_ANSWER], (0, 0)),
    ("<no answer>.", ["no answer"], (1, 1)), ("", [NO_ANSWER], (0, 0)), ("", [""], (1, 0)), ("the", ["an"], (1, 0)), ("x", [], (0, 0)),
    (NO_ANSWER, [], (0, 0)), ("a b c", ["b c d"], (0, 0.8)), ("b b", ["b"], (0, 2/3)), ("b", ["x", "b y", "B!"], (1, 1)),
    ("it's", ["its"], (1, 1)), ("5–6", ["56"], (0, 0)), ("theatre", ["atre"], (0, 0)), ("the-a", ["thea"], (1, 1)), ("a  b\n", ["b"], (1, 1)),
    ("It could be 1, 2, 3, 4 or 5", ["4"], (0, 0.2))])
def test_screenqa_corners(prediction, references, expected): assert screenqa(prediction, references) == pytest.approx(expected)


def test_every_reference_counts():
    for f in (relaxed_accuracy, anls, exact_match, token_f1, rouge_l):
        assert f("blue", ["red", "green", "blue"]) == 1 and f("blue", ["red"]) == 0, f.__name__
    assert screenqa("blue", ["red", "blue"]) == (1, 1) and bleu("deep blue sea", ["red", "deep blue sea"]) == pytest.approx(1)
    assert relaxed_accuracy("9", ["1", "9"]) == 1 and token_f1("a", ("the", "b")) == 0


OCR = ("Harbour report Revenue 432 Users 1810 Battery 77% Storage 256 Calories 424 Distance 903 Tickets 38 Orders 615 yes red blue "
    "Settings Account Privacy Language English Theme Dark Version 3.2 Sign out Help About 2019 2020 Total 4,512 Change -3% ")*2
COMMON = "yes no 0 1 2 3 4 5 10 100 50% red blue green 2019 2020 other male female <no answer> none all"
ANSWERS = ["432", "77%", "Battery", "yes", "red", "2019", "English", "Sign out", "no", "2", NO_ANSWER, "Harbour report"]


@pytest.mark.parametrize("cheat", [OCR, COMMON, COMMON.replace(" ", ", ")], ids=["echo", "list", "commas"])
def test_cheats_score_near_zero(cheat):
    for dataset, metric in TASK_METRICS.items():
        rows = [score(dataset, cheat, [a]) for a in ANSWERS]
        assert rows[0]["score"] == rows[0][metric]
        for k in rows[0]: assert np.mean([r[k] for r in rows]) < 0.1 and max(r[k] for r in rows) < 0.2, (dataset, k)


def test_score_of_a_perfect_answer():
    for dataset in TASK_METRICS: assert all(v == pytest.approx(1) for v in score(dataset, "deep blue sea", ["red", "deep blue sea"]).values())
    with pytest.raises(DataError, match="chartqa"): score("chartqaa", "x", ["x"])


@pytest.mark.parametrize("f", [relaxed_accuracy, anls, exact_match, token_f1, bleu, rouge_l, screenqa])
def test_wrong_types_are_named(f):
    for prediction, references in ((5, ["5"]), (None, ["5"]), ("5", "5"), ("5", None), ("5", [5]), ("5", [None]), (["5"], ["5"])):
        with pytest.raises(DataError): f(prediction, references)
    if f is not screenqa:
        with pytest.raises(DataError, match="no references"): f("5", [])


def test_robustness_summaries():
    curve, base = {0.8: 0.2, 0: 0.8, 0.4: 0.6}, {0: 1.0, 0.4: 0.5, 0.8: 0.0}
    assert area(curve) == pytest.approx((0.7*0.4 + 0.4*0.4)/0.8) and area({0.5: 0.3}) == 0.3
    assert retention(curve) == pytest.approx({0: 1, 0.4: 0.75, 0.8: 0.25}) and retention({0: 0.0, 1: 0.0}) == {0: None, 1: None}
    assert error_ratio(curve, base) == {0: None, 0.4: pytest.approx(0.8), 0.8: pytest.approx(0.8)}
    s = robustness(curve, base)
    assert (s["clean"], s["worst"], s["worst_level"], s["retention"]) == (0.8, 0.2, 0.8, pytest.approx(0.25))
    assert flip_rate([1, 1, 1, 0], [1, 0, 0.5, 1]) == pytest.approx(1/3) and flip_rate([0], [1]) is None
    for bad in ({}, {0: float("nan")}):
        with pytest.raises(DataError): area(bad)
    with pytest.raises(DataError, match="level 0"): retention({0.2: 1})


def test_support_and_hallucination():
    assert supported("Sign out", ["help", "Sign out!"]) and not supported("sign", ["assignment"])
    assert supported("424", ["Calories424"]) and not supported("42", ["424"]) and not supported("the", ["the"])
    assert answer_support(["x", "77"], (t for t in ["Battery 77"])) and not answer_support(["78"], ["Battery 77"])
    assert hallucinated("Rome", 0, ["Paris"]) and not hallucinated("Rome", 1, ["Paris"]) and not hallucinated("Paris", 0, ["Paris"])
    assert not hallucinated(NO_ANSWER, 0, []) and not hallucinated(" ", 0, [])


def naive_bootstrap(a, b, clusters, n, seed):
    "One resample after the other, gathering the rows of each drawn cluster"
    r, names = rng("paired_bootstrap", seed), np.unique(clusters)
    rows, means = {c: np.flatnonzero(clusters == c) for c in names}, []
    for _ in range(n):
        pick = np.concatenate([rows[names[i]] for i in r.integers(0, len(names), len(names))])
        means.append((a[pick] - b[pick]).mean())
    return np.quantile(means, [0.025, 0.975])


def test_bootstrap_equals_the_naive_loop():
    r = rng("bootstrap data")
    clusters = np.array([f"img{i}" for i in r.integers(0, 37, 150)])
    a, b = (r.random(150) < 0.7).astype(float), (r.random(150) < 0.5).astype(float)
    got = paired_bootstrap(a, b, clusters, n=300, seed=4)
    assert (got.low, got.high) == pytest.approx(naive_bootstrap(a, b, clusters, 300, 4)) and got.diff == pytest.approx((a - b).mean())
    shuffled = r.permutation(150)
    assert paired_bootstrap(a[shuffled], b[shuffled], clusters[shuffled], n=300, seed=4) == got
    many = paired_bootstrap(np.stack([a, b], 1), np.stack([b, b], 1), clusters, n=300, seed=4)
    assert many[0] == got and (many[1].diff, many[1].low, many[1].high, many[1].p) == (0, 0, 0, 1)


def test_bootstrap_covers_the_truth():
    hits = 0
    for i in range(120):
        r = rng("coverage", i)
        page = np.repeat(r.normal(0.1, 1, 80), 3)
        got = paired_bootstrap(page + r.normal(0, 0.5, 240), np.zeros(240), np.repeat(np.arange(80), 3), n=400, seed=i)
        hits += got.low <= 0.1 <= got.high
    assert 0.86 <= hits/120 <= 1


def test_bootstrap_is_quick_and_lean():
    r = rng("speed")
    a, b, t0 = r.random((10_000, 5)), r.random((10_000, 5)), time.perf_counter()
    assert len(paired_bootstrap(a, b, np.arange(10_000), n=10_000)) == 5
    assert time.perf_counter() - t0 < 10


def test_bootstrap_refuses_what_does_not_pair():
    ok = np.zeros(4)
    for a, b, c in ((ok, np.zeros(3), ok), (ok, ok, np.zeros(3)), ([], [], []), ([np.nan], [0], [0]), (0.0, 0.0, 0)):
        with pytest.raises(DataError): paired_bootstrap(a, b, c)
    with pytest.raises(DataError): paired_bootstrap(ok, ok, ok, n=0)


def test_detectable_difference_matches_the_interval():
    r = rng("power")
    clusters = np.repeat(np.arange(200), 2)
    a = r.normal(0, 1, 400)
    got = paired_bootstrap(a, 0*a, clusters, n=2000)
    assert detectable_difference(a, 0*a, clusters) == pytest.approx((got.high - got.low)/3.92*2.8016, rel=0.08)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm([]) == []
    with pytest.raises(DataError): holm([1.2])
