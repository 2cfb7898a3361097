"""Write results/claims.json, the verdicts on the measured claims, from the results: python -m tools.write_claims"""

import json
from pathlib import Path

import numpy as np

from experiments.statistics import MARGIN, equivalence
from lsbook.files import atomic_path

RESULTS = Path(__file__).parents[1] / "results"
CHAPTER = "[the experiment](15_experiment.ipynb)"
WHICH = "[which kernels](16_which_kernels.ipynb)"
MATTER = "[do they matter](17_do_they_matter.ipynb)"


def liver_claims(result: dict) -> dict[str, dict[str, str]]:
    """P4 and P5 from ``liver.json``; empty if they have no verdict yet."""
    if not result["verdicts"]:
        return {}
    p4, p5 = (result["verdicts"][name] for name in ("P4", "P5"))
    low, mean, high = (p4["interval_90"][key] for key in ("low", "mean", "high"))
    lsn = result["summaries"]["lsn"]["patients"]
    patients = p4["interval_90"]["patients"]
    because = (
        f"Against a solver that sees edges alone: LSN minus LSE is {mean:+.3f} Dice over {patients} patients (90 % "
        f"interval {low:+.3f} to {high:+.3f}, margin ± {MARGIN}). LSN's edge indicator is learned, LSE's is a formula. "
    )
    for model, what in {"lse-g": "a learned one", "lse gray": "a balloon of gray values"}.items():
        if model in result["summaries"]:
            other = result["summaries"][model]["patients"]
            same, d = equivalence(np.array([lsn[name] - score for name, score in other.items()]))
            because += f"With {what} in the solver the difference is {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f}); "
            because += f"by the same rule, but not planned: {same}. "
    because += f"See {CHAPTER}."
    tests = "; ".join(
        f"{name}: {test['difference']:+.3f} Dice, p = {test['p_holm']:.1g}" for name, test in p5["tests"].items()
    )
    return {
        "P4": {"verdict": p4["verdict"].capitalize() + ".", "because": because},
        "P5": {"verdict": p5["verdict"].capitalize() + ".", "because": f"{tests} (Wilcoxon, Holm). See {CHAPTER}."},
    }


def kernel_claims(result: dict, causal: dict) -> dict[str, dict[str, str]]:
    """P6 and P7 of the paper's U-Net from ``kernels.json``; what P7 leaves out from ``causal.json``."""
    verdicts, judged = result["verdicts"]["unet"], result["judged"]["unet"]
    count, told = len(judged["decision"]), sum(word != "not told" for word in judged["decision"])
    costs = [
        [run["dice"] - np.mean(row[way]) for way in ("projection", "random subspace", "random removal")]
        for run in causal["unet"]
        for row in run["rows"]
        if (row["target"], row["space"]) == ("all", "mean-zero")
    ]
    means, another, as_much = np.mean(costs, axis=0)
    p6 = (
        f"In {told} of {count} layers of the U-Net the share of kernels that match a stencil is above, or below, what "
        f"all six models of chance give: more than random kernels have, less than principal components of the layers' "
        f"own input. See {WHICH}."
    )
    less = judged["decision"].count("less")
    p7 = (
        f"Layers differ consistently over the folds (Friedman's test, p = {judged['layers_differ_p']:.1g}); {less} of "
        f"{count} hold stencils less often than chance. Where kernels depart is in their means: to remove these from "
        f"all layers costs {means:.2f} Dice, to remove a random direction {another:.2f}, as much elsewhere "
        f"{as_much:.2f}. See {WHICH} and {MATTER}."
    )
    return {
        "P6": {"verdict": verdicts["P6"].capitalize() + ".", "because": p6},
        "P7": {"verdict": verdicts["P7"].capitalize() + ".", "because": p7},
    }


def claims() -> dict[str, dict[str, str]]:
    """All verdicts that the committed results allow."""
    liver, kernels, causal = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("liver", "kernels", "causal")
    )
    return liver_claims(liver) | kernel_claims(kernels, causal)


if __name__ == "__main__":
    with atomic_path(RESULTS / "claims.json") as partial:
        partial.write_text(json.dumps(claims(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
