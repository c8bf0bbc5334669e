"""The figures of the story, with captions and the efficiency table, from the published results and the shipped weights.

    python scripts/story.py                     writes nbs/figures, in about two minutes
    python scripts/story.py --keep_cost         does not measure again what each mode costs
"""
import argparse
import tempfile
from pathlib import Path

from r3nb.core import atomic_path, read_json, write_json
from r3nb.corrupt import corrupt
from r3nb.eval import Case, evaluate, find_evidence, parse_mode
from r3nb.explorer import Ask, Explorer
from r3nb.paper import StoryConfig, cost_md, draw_story, measure_cost

ROOT = Path(__file__).resolve().parents[1]
RESULTS, OUT = ROOT/"nbs/results/mini-full/results.json", ROOT/"nbs/figures"


def examples(explorer, folder):
    "A small evaluation on the sample world, for the pictures of gallery and evidence"
    cfg = explorer.readers.cfg
    cfg.eval_mode, cfg.corruption_levels, cfg.n_boot, cfg.out_dir = ["base", "base+text", "rag", "r3"], [0, .3, .6, .9], 200, str(folder)
    evaluate(cfg, explorer.readers)
    return folder/"examples"


def cost(explorer, level=.6, batch=12):
    "What each mode costs on the same questions, in turn"
    records = list(explorer.records.values())[:batch]
    cases = [Case(r, level, 0, corrupt(r, explorer.page(Ask(r.sample_id))[1], level)) for r in records]
    found = find_evidence(explorer.index, cases, ["retrieved"], explorer.readers.cfg.top_k)["retrieved"]
    def answer(name):
        mode = parse_mode(name)
        return explorer.readers.answer(mode, cases, found if mode.evidence else None)
    model, _ = explorer.readers.open("r3")
    rows = measure_cost(answer, model.processor.tokenizer)
    return {"questions": len(records), "level": level, "rows": rows, "table": cost_md(rows, model)}


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--keep_cost", action="store_true", help="take the measured cost from the last time")
    args, explorer = ap.parse_args(), Explorer.demo()
    OUT.mkdir(exist_ok=True)
    found = read_json(OUT/"efficiency.json") if args.keep_cost else cost(explorer)
    write_json(OUT/"efficiency.json", found)
    with atomic_path(OUT/"efficiency.md") as p: p.write_text(f"# What each mode costs\n\n{found['table']} Measured with the tiny model on {found['questions']} questions at λ = {found['level']:g}, on a CPU.\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as tmp:
        for name, file in draw_story(StoryConfig(str(RESULTS), str(OUT), str(examples(explorer, Path(tmp)/"eval")))).items(): print(f"{name}: {file.relative_to(ROOT)}")
