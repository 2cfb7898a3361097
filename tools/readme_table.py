"""Write README's table of results anew from ``results/liver.json``.

python -m tools.readme_table
"""

import json
import re
from pathlib import Path

from experiments.jobs import LADDER, Job
from lsbook.figures import NAMES
from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def readme_table(result: dict) -> str:
    """Mean Dice over patients with its interval, worst and best patient: a row for each model that is complete."""
    rows = ["| model | trained numbers | mean Dice (95 % interval) | worst patient | best patient |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for model in LADDER:
        if model not in result["summaries"]:
            continue
        summary = result["summaries"][model]
        dice, patients = summary[result["primary"]], summary["patients"].values()
        numbers = result["jobs"][Job(model, 0).name]["parameters"]
        interval = f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f})"
        rows.append(f"| {NAMES[model]} | {numbers} | {interval} | {min(patients):.3f} | {max(patients):.3f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    table = readme_table(json.loads((ROOT / "results" / "liver.json").read_text()))
    with atomic_path(README) as partial:
        partial.write_text(TABLE.sub(lambda _: table, README.read_text()))
