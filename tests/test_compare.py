"""Everything that is read from predictions alone: pairing, tables, intervals."""
import numpy as np
import pandas as pd
import pytest

from r3nb import compare as cp
from r3nb.compare import summarise
from r3nb.core import DataError, rng, write_jsonl
from r3nb.metrics import score

RATE = {"base": (.5, 1), "base+text": (.9, 1), "r3": (.9, .4)} # mode: share of right answers on clean pages, and its loss per level


def row(i, mode, level, seed, rate, **kw):
    "One invented prediction; all modes share the luck of a question, as in a paired design"
    start, slope = rate
    ds = ("screenqa", "chartqa", "infovqa")[i//3 % 3]
    word = "red" if rng("compare", i, level, seed).random() < start - slope*level else "blue"
    return {"sample_id": f"s{i}", "image_id": f"im{i//3}", "dataset": ds, "mode": mode, "level": level, "seed": seed, "prompt_sha256": "", "prediction": word,
            "references": ["red"], "scores": score(ds, word, ["red"]), "text": "a red page", "evidence": [], "gates": None, "confidence": None, "meta": {}} | kw


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
    rows = [{"dataset": "d", "image_id": str(i), "sample_id": str(i), "mode": m, "level": v, "seed": 0, "score": s if v == .6 else 0.}
            for m, s in score.items() for v in (0., .2, .6) for i in range(12) if m != "r3-gate" or v == .6]
    table = {r["mode"]: r for r in cp.ablation_table(pd.DataFrame(rows), n=50)}
    assert {m: (r["levels"], r["estimate"]) for m, r in table.items()} == {"r3+shuffled": ([.6], .5), "r3-gate": ([.6], .25)}
