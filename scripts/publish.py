"""Copy the results of a study with variants to where the notebooks and the home page show them.

    python scripts/publish.py runs/mini-full        writes nbs/results/mini-full: results.json and the figures
"""
import shutil
import sys
from pathlib import Path

from r3nb.core import atomic_dir, read_json, sha256_file

study = Path(sys.argv[1])
source, target = study / "0_results", Path(__file__).resolve().parents[1] / "nbs/results" / study.name
outputs = read_json(source / "manifest.json")["outputs"]
if sha256_file(source / "results.json") not in str(outputs): sys.exit(f"{source}/results.json is not the one that its manifest names; run the study again")
with atomic_dir(target) as part:
    shutil.copy(source / "results.json", part)
    for f in sorted((source / "figures").iterdir()): shutil.copy(f, part)
print(f"{target}: {', '.join(sorted(p.name for p in target.iterdir()))}")
