"""Write README's table of results anew from ``results/liver.json``.

python -m tools.readme_table
"""

import json
import re
from pathlib import Path

from experiments.jobs import CLASSICAL, LADDER, Job
from experiments.merge import tuned_settings
from lsbook.figures import NAMES
from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OTHERS = ("threshold", "Chan–Vese", "morphological geodesic contour", "ITK's geodesic contour")
MORE = {"lse gray": "LSE, gray balloon (added later)", "unet-textbook 256": "the same at 256 × 256 pixels"}
for tool, told in zip(CLASSICAL, OTHERS, strict=True):
    MORE |= {tool: told, f"{tool} wide": f"{told}, tuned in wider ranges (added later)"}
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def readme_table(result: dict) -> str:
    """Mean Dice over patients with its interval, worst and best patient: a row for each model that is complete.

    Of the classical tools only the best is shown, from the usual or the wider search.
    """
    summaries, primary = result["summaries"], result["primary"]
    tools = [kind for kind in summaries if kind.split(" ")[0] in CLASSICAL]
    best = max(tools, key=lambda model: summaries[model][primary]["mean"], default="")
    rows = ["| model | trained numbers, tuned settings | mean Dice (95 % interval) | worst patient | best patient |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for model in (LADDER[0], "lse gray", *LADDER[1:], "unet-textbook 256", best):
        if model not in summaries:
            continue
        dice, patients = summaries[model][primary], summaries[model]["patients"].values()
        name, _, variant = model.partition(" ")
        job = result["jobs"][Job(name, 0, 0, variant).name]
        settings = tuned_settings(name, job["options"])
        searched = f"{settings} tuned settings" if settings else ""
        numbers = ", ".join(filter(None, [str(job["parameters"]) if model != best else "", searched]))
        interval = f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f})"
        rows.append(f"| {(NAMES | MORE)[model]} | {numbers} | {interval} | {min(patients):.3f} | {max(patients):.3f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    table = readme_table(json.loads((ROOT / "results" / "liver.json").read_text()))
    with atomic_path(README) as partial:
        partial.write_text(TABLE.sub(lambda _: table, README.read_text()))
