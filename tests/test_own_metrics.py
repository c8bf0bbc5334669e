"A metric that is a user's own function: by import path, from dataset.json through evaluation, tables and comparison, checked wherever it is called"
import importlib
import json
import sys

import pytest
import tiny
from test_eval import Parrot
from test_eval import config as asked

from r3nb import lmms_task
from r3nb.compare import CompareConfig, compare_files, rescore
from r3nb.core import ConfigError, R3Error, read_jsonl, write_jsonl
from r3nb.data import UnifyConfig, folder_spec, unify
from r3nb.eval import evaluate, sweep
from r3nb.interchange import TasksConfig, write_tasks
from r3nb.metrics import score
from r3nb.own import page_records

NAME = "own_scores:digits"
CODE = '''
def digits(prediction, references):
    "The share of a reference's digits that the prediction has in their place, the best over all references"
    right = lambda r: sum(a == b for a, b in zip(prediction, r)) / max(len(prediction), len(r), 1)
    return SCALE * max(right(r) for r in references)

def percent(prediction, references): return 100.0
def none(prediction, references): return None
def broken(prediction, references): return prediction.no_such_thing
SCALE = .8
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Records of a dataset of one's own, which name a metric of one's own"
    d = tmp_path_factory.mktemp("scores")
    (d/"raw/demo").mkdir(parents=True)
    rows = [r.to_dict() | {"dataset": "menus", "meta": r.meta | {"metric": NAME}} for r in tiny.records(4)]
    for i, r in enumerate(rows): tiny.page(i).save(d/"raw"/r["image_path"])
    write_jsonl(d/"val.jsonl", rows)
    (d/"own_scores.py").write_text(CODE)
    sys.path.insert(0, str(d))
    yield d
    sys.path.remove(str(d))
    sys.modules.pop("own_scores", None)


def test_a_dataset_names_it(world, tmp_path):
    "In dataset.json; the records carry the name"
    raw = tmp_path/"menus"
    (raw/"images").mkdir(parents=True)
    tiny.page(0).save(raw/"images/a.png")
    write_jsonl(raw/"menus_raw_val.jsonl", [{"image": "images/a.png", "question": "What?", "answers": ["12"]}])
    (raw/"dataset.json").write_text(json.dumps({"metric": NAME}))
    unify(UnifyConfig("menus", str(raw), str(tmp_path/"unified"), text_from="none"))
    (_, row), = read_jsonl(tmp_path/"unified/menus_unified_val.jsonl")
    assert row["meta"]["metric"] == NAME and score("menus", "13", row["answers"], row["meta"]["metric"])["score"] == .4
    for wrong, say in (("own_scores:digit", "did you mean 'digits'"), ("no_such_module:f", "PYTHONPATH"), ("digits", "package.module:function")):
        (raw/"dataset.json").write_text(json.dumps({"metric": wrong}))
        with pytest.raises(ConfigError, match=say) as e: folder_spec("menus", raw)
        assert "dataset.json" in str(e.value)
    with pytest.raises(ConfigError, match="did you mean 'digits'"): page_records(raw/"images", metric="own_scores:digit")


@pytest.mark.parametrize("name,say", [("percent", "returned 100.0.*from 0"), ("none", "returned None"), ("broken", "AttributeError.*mend the function")])
def test_what_it_returns_is_checked(world, name, say):
    with pytest.raises(ConfigError, match=say): score("menus", "13", ["12"], f"own_scores:{name}")


def test_it_is_the_score_of_rows_tables_and_comparisons(world, tmp_path):
    summary = evaluate(asked(world, tmp_path/"out"), Parrot())
    rows = [r for _, r in read_jsonl(tmp_path/"out/predictions.jsonl")]
    assert all(r["scores"]["score"] == r["scores"][NAME] for r in rows) and {0, .8} <= {r["scores"][NAME] for r in rows}
    assert summary["scores"] and all(s["estimate"] == pytest.approx(s[NAME]) for s in summary["scores"])
    both = compare_files(CompareConfig([str(tmp_path/"out")], mode_a="base+text", mode_b="base", value=NAME, n_boot=20))
    assert both["value"] == NAME and both["comparisons"]
    with pytest.raises(R3Error, match="did you mean"): compare_files(CompareConfig([str(tmp_path/"out")], mode_a="base+text", mode_b="base", value="own_scores:digit", n_boot=20))


def test_rows_of_other_code_are_not_mixed(world, tmp_path):
    out, file = tmp_path/"out", world/"own_scores.py"
    sweep(asked(world, out), Parrot())
    try:
        file.write_text(CODE.replace("SCALE = .8", "SCALE = .4"))
        importlib.reload(sys.modules["own_scores"])
        with pytest.raises(ConfigError, match=r"own_scores:digits were made by other code"): sweep(asked(world, out, corruption_levels=[0, .5, .8]), Parrot())
        assert rescore(out/"predictions.jsonl", n_boot=20)["scores"][0][NAME] <= .4, "rescoring is how to use the new code"
    finally:
        file.write_text(CODE)
        importlib.reload(sys.modules["own_scores"])


def test_lmms_eval_computes_the_same(world, tmp_path, monkeypatch):
    out = tmp_path/"tasks"
    write_tasks(TasksConfig(str(world/"val.jsonl"), str(world/"raw"), out=str(tmp_path/"tasks")))
    text, = [p.read_text() for p in out.glob("r3nb_menus/*.yaml")]
    assert "!function 'utils.own_metric'" in text and NAME in text
    row = {"metric": NAME, "answers": ["12", "7"]}
    assert lmms_task.own_metric(row, [" 13\n"]) == {NAME: score("menus", "13", row["answers"], NAME)["score"]}
    assert lmms_task.own_metric(row, [" \n"]) == {NAME: 0.0} == {NAME: score("menus", "", row["answers"], NAME)["score"]}
    monkeypatch.setattr(sys.modules["own_scores"], NAME.split(":")[1], lambda prediction, references: 2)
    with pytest.raises(ValueError, match="returned 2 for '13'"): lmms_task.own_metric(row, ["13"])
