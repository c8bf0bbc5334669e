"""The report: verdicts follow the data, tables agree with the summary, figures come from saved files only."""
import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from r3nb import figures as fg
from r3nb.core import ConfigError, DataError, read_json, rng, write_json, write_jsonl
from r3nb.compare import summarise
from r3nb.figures import Claim, ReportConfig, claims, write_report
from r3nb.metrics import score

ROOT = Path(__file__).parent.parent
LEVELS = (0.0, .6, .8)
GOOD = {"base": (.5, 1), "base+text": (.9, 1), "lora": (.9, 1), "rag": (.9, .6), "r3": (.9, .3), "r3+shuffled": (.9, 1), "r3-gate": (.9, .32)}


def predictions(path, rates, flat=(), n=150):
    "Invented predictions; modes named in `flat` gain nothing where there is no sibling"
    rows = []
    for mode, (start, slope) in rates.items():
        for level in LEVELS:
            for i in range(n):
                sibling, luck = i % 4 > 0, rng("f", i, level).random()  # the same luck for all modes: a paired design
                s = 1 if mode in flat and not sibling else slope
                word, ds = "red" if luck < start - s*level else "blue", ("screenqa", "chartqa", "infovqa")[i//3 % 3]
                rows.append({"sample_id": f"s{i}", "image_id": f"im{i//3}", "dataset": ds, "mode": mode, "level": level, "seed": 0, "prompt_sha256": "", "prediction": word,
                             "references": ["red"], "scores": score(ds, word, ["red"]), "text": "", "evidence": [], "shown": {"text": "red page", "passages": []}, "gates": [.3, .3, .4] if mode[:2] == "r3" else None,
                             "confidence": {"vis": .5, "text": .5, "true_vis": 1 - level, "true_text": 1.0} if mode[:2] == "r3" else None,
                             "meta": {"kind": "visual", "has_sibling": sibling}})
    return summarise(write_jsonl(path, rows), 300)


@pytest.fixture(scope="module")
def good(tmp_path_factory): return predictions(tmp_path_factory.mktemp("p")/"p.jsonl", GOOD, flat=("r3", "rag", "r3-gate"))


@pytest.fixture
def folder(tmp_path, good):
    "An evaluation's folder as the report finds it"
    d = tmp_path/"eval"
    (d/"examples").mkdir(parents=True)
    Image.new("RGB", (60, 90), "white").save(d/"examples/a.png")
    shown = {"image": "a.png", "sample_id": "s0", "dataset": "screenqa", "level": .6, "seed": 0, "question": "What is $x_1$?", "text": "50% & more", "c_vis": .5, "c_text": .5,
             "families": [], "map": [[1, .5], [0, 1]]}
    case = shown | {"sort": "failure", "references": ["4"], "answers": {"base": {"prediction": "", "score": 0.0}}, "gates": None, "evidence": []}
    write_json(d/"examples/examples.json", {"gallery": [shown], "cases": [case]})
    write_json(d/"summary.json", good)
    return d


def test_all_claims_hold_where_they_should(good): assert [c.holds for c in claims(good)] == [True] * 7


@pytest.mark.slow
@pytest.mark.parametrize("change, fails", [
    ({"r3": (.6, .3)}, "On undamaged pages"), ({"r3": (.9, 1)}, "R3 beats base+text"), ({"r3": (.9, 1)}, "R3 beats lora"),
    ({"r3+shuffled": (.9, .3)}, "it beats itself with shuffled"), ({"r3+shuffled": (.9, .5)}, "Shuffled evidence does not help")])
def test_a_claim_fails_with_its_data(tmp_path, change, fails):
    found = claims(predictions(tmp_path/"p.jsonl", GOOD | change, flat=("r3",)))
    assert next(c for c in found if fails in c.text).holds is False


def test_gain_without_siblings_is_noticed(tmp_path):
    last = claims(predictions(tmp_path/"p.jsonl", GOOD))[-1]
    assert last.holds is False and any("without sibling" in n for n in last.numbers)


def test_unmeasured_is_not_a_failure(tmp_path):
    found = claims(predictions(tmp_path/"p.jsonl", {"base+text": (.9, 1), "r3": (.9, .3)}))
    assert {c.text: c.holds for c in found}["Shuffled evidence does not help: R3 with it is no better than lora, which sees none"] is None


def test_one_failing_level_fails_the_claim(good):
    bad = copy.deepcopy(good)
    next(r for r in bad["differences"] if (r["a"], r["b"], r["level"], r["dataset"]) == ("r3", "lora", .8, "all"))["low"] = -.01
    assert next(c for c in claims(bad) if c.text.endswith("beats lora")).holds is False


@pytest.mark.parametrize("low, high, words", [(.1, .3, "above"), (-.3, -.1, "BELOW"), (-.1, .1, "could be shown")])
def test_rag_sentence_follows_the_interval(good, low, high, words):
    s = copy.deepcopy(good)
    next(r for r in s["differences"] if (r["a"], r["b"], r["level"], r["dataset"]) == ("r3", "rag", .6, "all")).update(low=low, high=high, estimate=(low + high)/2)
    assert words in fg.rag_sentence(s, .6)


def test_ablations_are_sorted_into_three(good):
    row = good["ablations"][0]
    s = {"ablations": [row | {"mode": f"r3-{n}", "estimate": e, "p_holm": p} for n, e, p in (("gate", .1, .01), ("prefix", -.1, .01), ("latent", .1, .2))]}
    text = fg.ablation_sentences(s)
    assert "gate" in text[0] and "WITHOUT" in text[1] and "prefix" in text[1] and "latent" in text[2]


def test_tables_agree_with_the_summary(good):
    head, body = fg.main_cells(good)
    cell = {(row[0], head[i]): row[i] for row in body for i in range(1, len(row))}
    for r in good["scores"]:
        if r["dataset"] == "all": assert cell[r["mode"], f"λ={r['level']:g}"].startswith(f"{100*r['estimate']:.1f} [")
    tex = fg.latex_table(head, body)
    assert tex.count(r"\\") == len(body) + 1 and "λ" not in tex
    with pytest.raises(ConfigError, match="chartqa"): fg.main_cells(good, "chartqq")


@pytest.mark.slow
def test_report_from_saved_files(folder, tmp_path):
    write_jsonl(tmp_path/"run/history.jsonl", [{"step": i, "loss": 1/i, "level": i/10} for i in range(1, 9)])
    files = write_report(ReportConfig(str(folder), str(tmp_path/"out"), train_dirs={"r3": str(tmp_path/"run")}))
    assert {"robustness", "ablations", "siblings", "gates", "calibration", "training", "gallery", "example0", "report.md", "summary.md", "table.tex"} <= set(files)
    report = files["report.md"].read_text()
    for name in re.findall(r"\]\(([^)]+)\)", report): assert (tmp_path/"out"/name).is_file() and (tmp_path/"out"/name).with_suffix(".pdf").is_file()
    assert report.index("## Scores") < report.index("## Verdict") < report.index("## Examples")
    assert files["summary.md"].read_text().splitlines()[2].startswith("| mode |")
    first = {k: p.read_bytes() for k, p in files.items()}
    again = write_report(ReportConfig(str(folder), str(tmp_path/"out"), train_dirs={"r3": str(tmp_path/"run")}))
    assert {k: p.read_bytes() for k, p in again.items()} == first


def test_report_of_a_poor_run(tmp_path, folder):
    "One mode, one level, no meta, no gates: what is missing is left out and said"
    rows = [{"sample_id": f"s{i}", "image_id": f"im{i}", "dataset": "chartqa", "mode": "base", "level": 0.0, "seed": 0, "prompt_sha256": "", "prediction": "1", "references": ["1"],
             "scores": score("chartqa", "1", ["1"]), "text": "", "evidence": [], "shown": {"text": "red page", "passages": []}, "gates": None, "confidence": None, "meta": {}} for i in range(3)]
    write_json(folder/"summary.json", summarise(write_jsonl(tmp_path/"p.jsonl", rows), 50))
    files = write_report(ReportConfig(str(folder), str(tmp_path/"out")))
    assert "ablations" not in files and "gates" not in files
    assert "*Not run.*" in files["report.md"].read_text() and "not measured in this run" in files["report.md"].read_text()


def test_redundancy_zero_is_said(folder, tmp_path, good):
    text = fg.redundancy_md(good, ReportConfig("e", "o", redundancy=0.0))
    assert "redundancy 0" in text and "points" in text
    beside = fg.redundancy_md(good, ReportConfig("e", "o", redundancy=.75, control_dir=str(folder)))
    assert "In this world" in beside
    assert "has not been run" in fg.redundancy_md(good, ReportConfig("e", "o", control_dir=str(tmp_path/"gone")))


def test_every_control_has_its_row(good, tmp_path):
    text = fg.controls_md(good)
    rows = {l.split("|")[1].strip(): l for l in text.splitlines()[2:]}
    assert set(rows) == {"r3+shuffled", "r3+random", "r3+oracle", "redundancy 0"}
    assert "not run" not in rows["r3+shuffled"] and all("**not run**" in rows[k] for k in ("r3+random", "r3+oracle", "redundancy 0"))
    found = next(r for r in good["ablations"] if r["mode"] == "r3+shuffled")
    assert f"{100*found['estimate']:+.1f} [" in rows["r3+shuffled"] and "p = " in rows["r3+shuffled"]
    there = fg.controls_md(good, other=predictions(tmp_path/"p.jsonl", GOOD | {"r3": (.9, 1)})).splitlines()[-1]
    assert "not run" not in there and "+0.0" in there
    assert "not run" not in fg.controls_md(good, redundancy=0.0).splitlines()[-1]
    assert "nothing to control" in fg.controls_md(predictions(tmp_path/"q.jsonl", {"base": (.5, 1)}, n=30))


@pytest.mark.slow
def test_sources_of_confidence(tmp_path, good):
    text = fg.confidence_sentences(predictions(tmp_path/"p.jsonl", GOOD | {"r3+oracle_confidence": (.9, .1), "r3+fixed_confidence": (.9, .5)}))
    assert "cannot be ranked" in text[0] and text[2].startswith("With the measured confidence in its place the score changes by +") and "changes by -" in text[3]
    assert "not run (r3+oracle_confidence)" in fg.confidence_sentences(good)[2]
    assert not any("confidence" in s for s in fg.ablation_sentences(predictions(tmp_path/"q.jsonl", GOOD | {"r3+fixed_confidence": (.9, .5)})))


def test_families_have_their_own_panels(tmp_path, good):
    import pandas as pd
    rows = [{"damage": d} | r for d in ("drawn", "jpeg", "image", "blur") for r in good["scores"] if r["mode"] in ("base+text", "r3")]
    fig = fg.damage_figure(good | {"by_damage": rows})
    assert [ax.get_title() for ax in fig.axes if ax.get_visible()] == ["drawn (pooled)", "image", "blur", "jpeg"]
    assert {l.get_label() for l in fig.axes[1].lines} == {"base+text", "r3"} and fg.damage_figure(good) is None and "--damage" in fg.damage_md(good)
    line = next(l for l in fig.axes[3].lines if l.get_label() == "r3")
    assert list(line.get_ydata()) == list(pd.DataFrame(good["scores"]).query("mode == 'r3' and dataset == 'all'").sort_values("level").estimate)


def test_classes_power_and_settings_are_in_the_report(folder, tmp_path, good):
    write_json(folder/"summary.json", good | {"settings": {"prompt_suffix": "\nOne word.", "versions": {"torch": "9"}}})
    report = write_report(ReportConfig(str(folder), str(tmp_path/"out")))["report.md"].read_text()
    assert "| prompt_suffix | `'\\nOne word.'` |" in report and "torch 9" in report and "n=150 (this run)" in report and "| kind of question | visual |" in report
    for title in ("## Controls", "## Families of damage", "## Classes of questions", "## Settings"): assert report.count(title) == 1
    assert "not on record" in fg.settings_md({})


def test_a_run_without_references_has_no_report(folder, tmp_path, good):
    write_json(folder/"summary.json", good | {"answered": False})
    with pytest.raises(DataError, match="r3nb_submission"): write_report(ReportConfig(str(folder), str(tmp_path/"out")))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="summary.json"): write_report(ReportConfig(str(tmp_path), str(tmp_path/"out")))
    with pytest.raises(DataError, match="history.jsonl"): fg.load_log(tmp_path)


def test_modes_differ_without_colour():
    looks = [fg.look(m) for m in fg.LOOK]
    assert len({str(v["linestyle"]) for v in looks}) == len(looks) == len({v["marker"] for v in looks}) == len({v["color"] for v in looks})


def test_claim_defaults(): assert Claim("x", None).numbers == []


def test_readme_is_in_step():
    assert subprocess.run([sys.executable, str(ROOT/"scripts/readme.py"), "--check"]).returncode == 0


def test_summary_json_has_no_nan(folder):
    assert "NaN" not in (folder/"summary.json").read_text() and read_json(folder/"summary.json")["main"] == "r3"
