"""Copy results to where the notebooks and the home page show them. Their numbers come from these files only.

    python scripts/publish.py runs/mini-full                  a study with variants: nbs/results/mini-full, its results and figures
    python scripts/publish.py runs/mini/4_eval/sweep mini     one evaluation: nbs/results/mini.json, the tables that are quoted
"""
import shutil
import sys
from pathlib import Path

from r3nb.compare import CompareConfig, compare_files
from r3nb.core import atomic_dir, read_json, sha256_file, write_json

RESULTS = Path(__file__).resolve().parents[1] / "nbs/results"
TABLES = ("scores", "differences", "gain_by_kind", "esar")


def study(folder):
    "The pooled results of a study with variants, and its figures"
    source, target = folder / "0_results", RESULTS / folder.name
    outputs = read_json(source / "manifest.json")["outputs"]
    if sha256_file(source / "results.json") not in str(outputs): sys.exit(f"{source}/results.json is not the one that its manifest names; run the study again")
    with atomic_dir(target) as part:
        shutil.copy(source / "results.json", part)
        for f in sorted((source / "figures").iterdir()): shutil.copy(f, part)
    print(f"{target}: {', '.join(sorted(p.name for p in target.iterdir()))}")


def evaluation(folder, name):
    "The tables of one evaluation over all datasets, how often `r3` invents an answer against `rag`, and what it was made from"
    summary, made = read_json(folder / "summary.json"), read_json(folder / "manifest.json")
    if sha256_file(folder / "predictions.jsonl") not in str(made["outputs"]): sys.exit(f"{folder}: its predictions are not those that its manifest names; evaluate again")
    found = compare_files(CompareConfig([str(folder)], mode_a="r3", mode_b="rag", value="invented"))
    out = {k: summary[k] for k in ("n_questions", "n_images", "n_predictions", "levels", "seeds", "n_boot")}
    out |= {k: [r for r in summary[k] if r.get("dataset", "all") == "all"] for k in TABLES} | {"invented": found["comparisons"][0]["rows"]}
    out["made_from"] = {k: made[k] for k in ("created", "git", "python", "packages")} | {
        "predictions_sha256": summary["predictions_sha256"], **{k: summary["settings"][k] for k in ("text_damage", "ocr_engine", "ocr_engine_args")}}
    write_json(RESULTS / f"{name}.json", out)
    print(RESULTS / f"{name}.json")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3): sys.exit(__doc__)
    if len(sys.argv) == 2: study(Path(sys.argv[1]))
    else: evaluation(Path(sys.argv[1]), sys.argv[2])
