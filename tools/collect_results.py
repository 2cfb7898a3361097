"""Gather finished runs of `python -m lsbook train` into a results file, their weights beside it, and README's table.

python tools/collect_results.py RUNS results/liver-fold0.json lse lse-g lsn unet
"""

import json
import re
import shutil
import sys
from pathlib import Path

from lsbook.figures import NAMES
from lsbook.files import atomic_path

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def readme_table(result: dict) -> str:
    """README's table: Dice of the test scans, one row for each model."""
    rows = ["| model | trained numbers | mean Dice | worst scan | best scan |", "| --- | --- | --- | --- | --- |"]
    for name, model in result["models"].items():
        values = [scan["dice"] for scan in model["scans"].values()]
        mean, worst, best = sum(values) / len(values), min(values), max(values)
        rows.append(f"| {NAMES[name]} | {model['parameters']} | {mean:.3f} | {worst:.3f} | {best:.3f} |")
    return "\n".join(rows) + "\n"


def collect(runs: Path, target: Path, models: list[str]) -> dict:
    """The results of ``models``, whose runs must share one split; copies their weights to ``weights`` beside target."""
    reports = {name: json.loads((runs / name / "metrics.json").read_text()) for name in models}
    first = reports[models[0]]["checkpoint"]
    result = {
        "data": "LiTS 2017 (doi:10.1016/j.media.2022.102680), 31 scans, 8-bit slices of 256 x 256, liver's range",
        "commands": "results/README.md",
        "machine": "2 CPU cores, shared with other work",
        "fold": first["fold"],
        "folds": first["folds"],
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
        keys = ("options", "epoch", "seed", "batch", "rate", "commit", "torch", "python")
        result["models"][name] = report | {key: checkpoint[key] for key in keys}
        if "start_from" in checkpoint:
            result["models"][name]["start_from"] = checkpoint["start_from"]
        if (runs / name / "seconds.txt").is_file():
            result["models"][name]["seconds"] = float((runs / name / "seconds.txt").read_text())
        result["models"][name]["log"] = json.loads((runs / name / "log.json").read_text())
        shutil.copy(runs / name / "best.safetensors", weights / f"{name}-fold{first['fold']}.safetensors")
    return result


if __name__ == "__main__":
    found = collect(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    with atomic_path(sys.argv[2]) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    README.write_text(TABLE.sub(readme_table(found), README.read_text()))
