"""From finished jobs to the committed results: ``liver.json``, ``liver-slices.csv``, the weights, and the verdicts.

The primary measure is the Dice of a scan's liver slices, those that the paper trains and tests on. The unit is the
patient (:mod:`experiments.statistics`). Written down before any run of folds 2 to 4: P4 (the LSN is about as accurate
as the LSE) is an equivalence with a margin of 0.02 Dice; P5 (neither reaches the U-Net) is two paired tests, of the
paper's U-Net against LSE and against LSN, corrected by Holm.
"""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lsbook.checkpoints import load_checkpoint
from lsbook.files import atomic_path

from .classical import METHODS
from .jobs import FOLDS, LADDER, Job
from .run import read_json
from .scoring import DISTANCES
from .statistics import MARGIN, Summary, by_patient, equivalence, paired_differences, summary, wilcoxon_holm

PRIMARY = "dice_liver_slices"
MEASURES = (PRIMARY, "dice", "ravd_percent", *DISTANCES)
P5 = {"U-Net against LSE": ("unet", "lse"), "U-Net against LSN": ("unet", "lsn")}
KEPT = ("options", "epoch", "batch", "rate", "augmentation", "precision", "start_from", "commit", "torch", "python")


def read_reports(folders: Sequence[Path]) -> dict[str, tuple[Path, dict]]:
    """Reports of the finished jobs by name, each with its folder.

    Raises:
        ValueError: if a job was finished in two folders, or there is none.
    """
    found: dict[str, tuple[Path, dict]] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/report.json")):
        name = path.parent.name
        if name in found:
            raise ValueError(f"{path}: the job was also finished in {found[name][0].parent}; remove one of them")
        found[name] = path.parent, read_json(path)
    if not found:
        raise FileNotFoundError(f"{', '.join(map(str, folders))}: no finished job; run `python -m experiments run`")
    return found


def check_alike(reports: dict[str, tuple[Path, dict]], groups: Sequence[Sequence[str]]) -> None:
    """Raise ValueError if jobs cannot be compared: other folds or units, or scans of a patient in different parts."""
    splits: dict[int, dict] = {}
    first = next(iter(next(iter(reports.values()))[1]["scans"].values()))["unit"]
    for folder, report in reports.values():
        path, split = folder / "report.json", report["split"]
        if splits.setdefault(report["job"]["fold"], split) != split:
            raise ValueError(
                f"{path}: other folds than another job has; run all with the same scans and --same-patient"
            )
        if any(scan["unit"] != first for scan in report["scans"].values()):
            raise ValueError(
                f"{path}: distances in another unit than another job has; run all with or without --pixels"
            )
        for group in map(set, groups):
            if sum(bool(group & set(part)) for part in split.values()) > 1:
                raise ValueError(
                    f"{path}: scans {', '.join(sorted(group))} are in different parts; merge needs the run's groups"
                )


def searched(start: Path) -> dict[str, float]:
    """What the search of an LSE's settings left: their training Dice, and alpha and beta, in units of gamma."""
    model, _, about = load_checkpoint(start)
    alpha, beta, gamma = model.coefficients().detach()
    return {"dice": about["training_dice"], "alpha": float(alpha / gamma), "beta": float(beta / gamma)}


def row_of(folder: Path, report: dict) -> dict:
    """What is kept of a job: its report, all but the slices, and what a search of an LSE's settings had found."""
    checkpoint = report.get("checkpoint", {})
    row = {"job": {key: report["job"][key] for key in ("model", "fold", "seed", "variant")}}
    row |= {key: checkpoint[key] for key in KEPT if key in checkpoint}
    row |= {key: report[key] for key in ("options", "center", "training_dice", "commit") if key in report}
    row |= {key: report[key] for key in ("parameters", "training_cpu_seconds", "split")}
    row |= {"log": report["log"]} if "log" in report else {}
    start = folder / "start.safetensors"
    row |= {"searched": searched(start)} if start.is_file() else {}
    row["scans"] = {name: {k: v for k, v in scan.items() if k != "slices"} for name, scan in report["scans"].items()}
    return row


def tuned_settings(model: str, options: dict) -> int:
    """How many settings a search chose: of the LSE all its options, of a classical tool those that have a choice."""
    if model in METHODS:
        return 1 + sum(len(values) > 1 for values in METHODS[model].space.values())  # one for the stop
    return len(options) if model == LADDER[0] else 0


def patients(rows: dict[str, dict], model: str, variant: str, measure: str, groups: Sequence[Sequence[str]]) -> dict:
    """A measure of each patient over all folds, of the jobs with seed 0; scans without a value are left out."""
    names = [Job(model, fold, 0, variant).name for fold in range(FOLDS)]
    scores = {scan: value[measure] for name in names for scan, value in rows[name]["scans"].items()}
    return by_patient({scan: value for scan, value in scores.items() if value is not None}, groups)


def is_complete(rows: dict[str, dict], model: str, variant: str = "") -> bool:
    """Whether all folds are there."""
    return all(Job(model, fold, 0, variant).name in rows for fold in range(FOLDS))


def verdicts(rows: dict[str, dict], groups: Sequence[Sequence[str]]) -> dict[str, dict]:
    """P4 and P5, where their models are complete."""
    scores = {m: patients(rows, m, "", PRIMARY, groups) for m in ("lse", "lsn", "unet") if is_complete(rows, m)}
    if len(scores) < 3:
        return {}
    verdict, interval = equivalence(paired_differences(scores["lsn"], scores["lse"]))
    tests = wilcoxon_holm({name: paired_differences(scores[a], scores[b]) for name, (a, b) in P5.items()})
    significant = [test for test in tests.values() if test.p_holm < 0.05]
    better = all(test in significant and test.difference > 0 for test in tests.values())
    worse = any(test.difference < 0 for test in significant)
    p4 = {"verdict": verdict, "margin": MARGIN, "difference": "LSN minus LSE", "interval_90": interval._asdict()}
    p5 = {"verdict": "confirmed" if better else "refuted" if worse else "undecided"}
    return {"P4": p4, "P5": p5 | {"tests": {name: test._asdict() for name, test in tests.items()}}}


def merge(folders: Sequence[Path], out: Path, groups: Sequence[Sequence[str]]) -> None:
    """Write ``liver.json``, ``liver-slices.csv`` and the ladder's weights (seed 0, no variant) to ``out``."""
    reports = read_reports(folders)
    check_alike(reports, groups)
    rows = {name: row_of(folder, report) for name, (folder, report) in reports.items()}
    kinds = list(dict.fromkeys((row["job"]["model"], row["job"]["variant"]) for row in rows.values()))
    summaries: dict[str, dict[str, Summary]] = {}
    for model, variant in kinds:
        if is_complete(rows, model, variant):
            values = {m: patients(rows, model, variant, m, groups) for m in MEASURES}
            key = " ".join(filter(None, (model, variant)))
            summaries[key] = {m: summary(list(v.values()))._asdict() for m, v in values.items()}
            summaries[key]["patients"] = values[PRIMARY]
    plans = [read_json(path) for folder in folders for path in folder.glob("plan.json")]
    result = {"folds": FOLDS, "same_patient": groups, "primary": PRIMARY, "plan": plans[0] if plans else None}
    result |= {"verdicts": verdicts(rows, groups), "summaries": summaries, "jobs": rows}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "liver.json") as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")
    with atomic_path(out / "liver-slices.csv") as partial, partial.open("w", newline="") as file:
        write_slices(csv.writer(file), reports)
    (out / "weights").mkdir(exist_ok=True)
    for folder, report in reports.values():
        job = report["job"]
        if job["model"] in LADDER and not job["seed"] and not job["variant"]:
            with atomic_path(out / "weights" / f"{job['model']}-fold{job['fold']}.safetensors") as partial:
                shutil.copy(folder / "best.safetensors", partial)
    print(f"{out / 'liver.json'}: {len(rows)} jobs, {', '.join(summaries) or 'no model'} complete over {FOLDS} folds")


def write_slices(table: "csv.writer", reports: dict[str, tuple[Path, dict]]) -> None:
    """Every slice of every test scan of the jobs with seed 0, one line each, to four digits."""
    columns = ("dice", "ravd_percent", *DISTANCES)
    table.writerow(["model", "variant", "fold", "scan", "z", *columns])
    for _, report in reports.values():
        job = report["job"]
        for scan, scores in report["scans"].items() if not job["seed"] else ():
            slices = scores["slices"]
            for i, z in enumerate(slices["z"]):
                values = ["" if slices[c][i] is None else f"{slices[c][i]:.4g}" for c in columns]
                table.writerow([job["model"], job["variant"], job["fold"], scan, z, *values])
