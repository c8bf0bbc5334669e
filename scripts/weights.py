"""The trained weights and the OCR readings that ship with the package, for the explorer and the tutorials.

    r3nb_study runs/profiles/mini.yaml --only train      trains them, about 6 minutes on 2 cores
    python scripts/weights.py runs/mini                  writes r3nb/shipped/tiny-r3
    python scripts/weights.py --readings                 writes r3nb/shipped/demo_ocr.jsonl

A run of mini-full trains the same model as its first training: python scripts/weights.py runs/mini-full/training0
"""
import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from r3nb.core import atomic_dir, atomic_path, read_json, read_records, sha256_file, write_json
from r3nb.explorer import DemoConfig, make_demo, shipped_dir
from r3nb.mini import backbone_dir

NOTE = """# R3 weights for the tiny Qwen3-VL

LoRA matrices and reconstruction modules, trained in the small world of r3nb by `runs/profiles/mini.yaml`. The explorer and the tutorials use them.
They know three-word company names and two-digit numbers, and nothing else: a demonstration of the method, not a model for documents of one's own.

```python
from r3nb.explorer import shipped_dir
from r3nb.mini import backbone_dir
from r3nb.model import R3Model
model = R3Model.load(shipped_dir()/"tiny-r3", backbone_dir())
```

| | |
|---|---|
| commit | `{commit}` |
| trained at | {created} |
| packages | {packages} |
| SHA-256 of the training records | `{records}` |
| SHA-256 of the backbone's weights | `{backbone}` |
| SHA-256 of adapter, modules | `{adapter}`, `{modules}` |
| options of training | {options} |
{scores}
Made by `r3nb_study runs/profiles/mini.yaml --only train` and `python scripts/weights.py runs/mini`.
"""


def weights(run):
    "Copy the last R3 checkpoint of a run, with a note on where it comes from and without paths of the machine that made it"
    stage = Path(run)/"3_train"
    source, manifest = stage/read_json(stage/"metrics.json")["checkpoints"]["r3"], read_json(stage/"manifest.json")
    if manifest["git"]["dirty"] is not False: sys.exit(f"{stage}: trained by code that is not committed; commit it and run the study again")
    trained, scores = read_json(stage/"r3/run.json"), read_json(Path(run)/"4_eval/metrics.json")["scores"] if (Path(run)/"4_eval/metrics.json").is_file() else {}
    with atomic_dir(shipped_dir()/"tiny-r3") as out:
        for name in ("adapter_model.safetensors", "modules.safetensors"):
            shutil.copyfile(source/name, out/name)
        write_json(out/"r3_config.json", read_json(source/"r3_config.json") | {"backbone": backbone_dir().name})
        write_json(out/"adapter_config.json", read_json(source/"adapter_config.json") | {"base_model_name_or_path": backbone_dir().name})
        at = lambda m: ", ".join(f"{100*scores[f'{m} at {v}']:.1f}" for v in ("0", "0.2", "0.4", "0.6", "0.8"))
        table = "".join(f"| scores of `{m}` at λ = 0, 0.2, 0.4, 0.6, 0.8 | {at(m)} |\n" for m in ("base", "rag", "r3") if f"{m} at 0.8" in scores)
        note = NOTE.format(commit=manifest["git"]["commit"], created=manifest["created"], packages=", ".join(f"{k} {v}" for k, v in manifest["packages"].items() if k in ("torch", "transformers", "peft", "numpy")),
                           records=trained["records"], backbone=trained["backbone"], adapter=sha256_file(out/"adapter_model.safetensors"), modules=sha256_file(out/"modules.safetensors"),
                           options=", ".join(f"{k} {v}" for k, v in manifest["config"].items()), scores=table)
        (out/"README.md").write_text(note, encoding="utf-8")
    print(shipped_dir()/"tiny-r3")


def readings():
    "Read the pages of the sample world by OCR, and keep the readings"
    shipped = shipped_dir()/"demo_ocr.jsonl"
    shipped.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        demo = make_demo(DemoConfig(str(Path(tmp)/"demo")))
        pages = {r.image_id for split in ("train", "val") for r in read_records(demo/f"{split}.jsonl", demo/"raw")}
        with atomic_path(shipped) as p: shutil.copyfile(demo/"ocr.jsonl", p)
    print(f"{shipped}: {len(pages)} pages")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("run", nargs="?", help="folder of a finished run, such as runs/mini")
    ap.add_argument("--readings", action="store_true", help="make the OCR readings of the sample world")
    args = ap.parse_args()
    if not args.run and not args.readings: ap.error("give the folder of a run, or --readings")
    if args.run: weights(args.run)
    if args.readings: readings()
