"""Gather finished runs of `python -m lsbook train` into a results file, and copy their weights beside it.

python tools/collect_results.py RUNS results/liver-fold0.json lse lse-g lsn unet
"""

import json
import shutil
import sys
from pathlib import Path

runs, target, models = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
reports = {name: json.loads((runs / name / "metrics.json").read_text()) for name in models}
first = reports[models[0]]["checkpoint"]
result = {
    "data": "LiTS 2017 (doi:10.1016/j.media.2022.102680), 31 scans, 8-bit slices of 256 x 256 pixels, liver's range",
    "command": "python -m lsbook train --data DIR --model MODEL --fold {fold} --folds {folds} --seed {seed} ...".format(
        **first
    ),
    "machine": "2 CPU cores",
    "size": first["preprocessing"]["size"],
    **first["scans"],
    "models": {},
}
weights = target.parent / "weights"
weights.mkdir(parents=True, exist_ok=True)
for name, report in reports.items():
    checkpoint = report.pop("checkpoint")
    if checkpoint["scans"] != first["scans"]:
        raise SystemExit(f"{runs / name}: was run on another split than {models[0]}")
    log = json.loads((runs / name / "log.json").read_text())
    seconds = runs / name / "seconds.txt"
    result["models"][name] = report | {
        "options": checkpoint["options"],
        "best_epoch": checkpoint["epoch"],
        "start_from": checkpoint["start_from"],
        "commit": checkpoint["commit"],
        "torch": checkpoint["torch"],
        "seconds": float(seconds.read_text()) if seconds.is_file() else None,
        "log": log,
    }
    shutil.copy(runs / name / "best.safetensors", weights / f"{name}-fold{first['fold']}.safetensors")
target.write_text(json.dumps(result, indent=1) + "\n")
