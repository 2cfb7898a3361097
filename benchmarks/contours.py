"""Peers: the cost of an iteration, and the time to a contour, each tool tuned on other slices, from the same disc.

Nothing is chosen by what comes out on the slices that the comparison is made on:

1. On some patients, the same for all, every tool runs with every setting of its grid, and is looked at at many stops.
   A setting with a stop has a mean Dice over these slices, and a time.
2. *Own best*: of the settings and stops within NEAR of the tool's best mean Dice, the fastest.
3. *Equal Dice*, for the two solvers of the level set equation: the level is the lower of their two best mean values,
   less SAME. Of the settings and stops that reach it, each takes the fastest: it is as fast as it can be at this level.
4. With settings and stops fixed, time and Dice are measured on slices of other patients. There the two need not have
   equal Dice any more. So the difference is a target too, with the standard error of a mean over patients.
"""

import statistics
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from lsbook.ct import Preprocessing, find_scans, read_scan, split, to_slices
from lsbook.metrics import dice
from lsphantom.patients import make_patient

from .measure import Plan, seconds_each, target, threads, times
from .tools import TOOLS, MorphologicalChanVese, MorphologicalGeodesic, Ours, SparseField

SEED_RADIUS = 10  # pixels
NEAR = 0.002  # Dice that may be given up for speed
SAME = 0.003  # Dice that differ by less are the same
OWN, EQUAL = "own best", "equal Dice"
SOLVERS = (Ours, SparseField)
Curve = dict[tuple[int, float], tuple[float, float]]  # (number of the setting, stop): mean Dice, mean seconds


class Case(NamedTuple):
    """A slice, its liver, and the signed distance to the seed disc; float32, bool, float32 ``(H, W)``."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    distance: np.ndarray


def disc_around(shape: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    """Signed distance to a circle in pixels, positive inside."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (radius - np.hypot(y - center[0], x - center[1])).astype(np.float32)


def case(name: str, images: np.ndarray, masks: np.ndarray) -> Case:
    """The slice with most liver, seeded where the liver is deepest, as a user would click."""
    z = int(masks.reshape(len(masks), -1).sum(axis=1).argmax())
    center = np.unravel_index(distance_transform_edt(masks[z]).argmax(), masks[z].shape)
    return Case(name, np.ascontiguousarray(images[z]), masks[z], disc_around(masks[z].shape, center, SEED_RADIUS))


def phantom_case(number: int, quick: bool) -> Case:
    shape, spacing = ((128, 128, 6), (3.0, 3.0, 24.0)) if quick else ((256, 256, 12), (1.5, 1.5, 12.0))
    image, labels = make_patient(number, shape, spacing)
    scaled = np.clip((to_slices(image) + 40) / 100 - 1, -1, 1)  # the window of Preprocessing
    return case(f"patient {number}", scaled.astype(np.float32), to_slices(labels) > 0)


def cases(plan: Plan) -> dict[str, tuple[list[Case], list[Case]]]:
    """By data set: slices to tune on, and slices to measure on, of other patients."""
    tune, test = (1, 2) if plan.quick else (10, 16)
    found = {
        "phantom": tuple([phantom_case(n, plan.quick) for n in part] for part in (range(tune), range(200, 200 + test)))
    }
    if plan.data:
        scans = {scan.name: scan for scan in find_scans(plan.data)}
        parts = split(list(scans), 0, 3, plan.same_patient)
        preprocessing = Preprocessing(64 if plan.quick else 256)
        prepared = {}
        for name, scan in scans.items():
            image, mask = read_scan(scan)
            images, masks = preprocessing.images(image)[:, 0].numpy(), preprocessing.labels(mask)[:, 0].numpy() > 0.5
            prepared[name] = case(name, images, masks)
        for_tuning = (parts.test + parts.validation)[:tune]
        found["CT"] = tuple([prepared[name] for name in names] for names in (for_tuning, parts.train))
    return found


def iteration(plan: Plan) -> dict:
    """ms per iteration on 256 x 256 with the contour at rest on a circle of radius 20 and 80.

    Two lengths of run are timed; their difference leaves out what each tool does once.
    """
    side = 64 if plan.quick else 256
    counts = {Ours: (50, 250), SparseField: (50, 250), MorphologicalGeodesic: (2, 12), MorphologicalChanVese: (2, 12)}
    rows = []
    for radius, count in product((5, 15) if plan.quick else (20, 80), plan.threads):
        distance = disc_around((side, side), ((side - 1) / 2, (side - 1) / 2), radius)
        image = np.tanh(distance / 3)
        runs: dict[tuple[str, int], Callable] = {}
        for tool, length in ((tool, length) for tool, lengths in counts.items() for length in lengths):
            setting = tool.coarse[0] | {"stop": length}
            if tool is Ours:  # its stop is a time: take as many steps of the longest stable length
                setting["stop"] = 0.999 * length * tool.prepare(image, distance, setting)[2]
            runs[tool.name, length] = lambda t=tool, i=image, d=distance, s=setting: t.segment(i, d, s)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
        with threads(count):
            samples = seconds_each(runs, plan.repeats)
        for tool, (few, many) in counts.items():
            short, whole = times(samples[tool.name, few]), times(samples[tool.name, many])
            row = {"tool": tool.name, "radius": radius, "threads": count, "iterations": many}
            row |= {key: (whole[key] - short[key]) / (many - few) for key in whole}
            rows.append(row | {f"with_start_{key}": value / many for key, value in whole.items()})
    return {"size": side, "rows": rows, "targets": iteration_targets(rows)}


def iteration_targets(rows: list[dict]) -> list[dict]:
    found = []
    small = min(row["radius"] for row in rows)
    for row in rows:
        same = {"tool": Ours.name, "radius": row["radius"], "threads": row["threads"]}
        (own,) = [one for one in rows if same.items() <= one.items()]
        wanted = {SparseField.name: 4 if row["radius"] == small else 8, MorphologicalGeodesic.name: 150}
        if row["tool"] in wanted:
            name = f"{row['tool']} / ours, an iteration, radius {row['radius']}, threads {row['threads']}"
            least = row["min_ms"] / own["min_ms"]
            found.append(target(name, wanted[row["tool"]], row["median_ms"] / own["median_ms"], by_minimum=least))
    return found


def curve(tool: type, slices: list[Case], settings: list[dict]) -> Curve:
    """Mean Dice and processor time on the slices for each setting and stop; other work on the machine matters little.

    SimpleITK starts anew at each stop, which costs it some ms, in all its settings. So this time chooses among stops
    and settings of one tool and is not reported.
    """
    found: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for number, setting in enumerate(settings):
        for one in slices:
            for stop, seconds, mask in tool.trajectory(one.image, one.distance, setting):
                found.setdefault((number, stop), []).append((dice(one.mask, mask), seconds))
    return {key: tuple(map(statistics.fmean, zip(*values, strict=True))) for key, values in found.items()}


def fastest(curve: Curve, level: float) -> tuple[int, float]:
    """Setting and stop of the least time among those of at least this Dice."""
    return min((key for key, (reached, _) in curve.items() if reached >= level), key=lambda key: curve[key][1])


def levels(best: dict[str, float]) -> list[tuple[str, str, float]]:
    """(tool, aim, Dice to be reached on the slices for tuning), given the best Dice of each tool on them."""
    solvers = [tool.name for tool in SOLVERS]
    equal = min(best[name] for name in solvers) - SAME
    return [(name, OWN, value - NEAR) for name, value in best.items()] + [(name, EQUAL, equal) for name in solvers]


def tuning(plan: Plan) -> dict:
    """For each data set, tool and aim the setting and stop that reach the aim's Dice on the tuning slices soonest."""
    rows = []
    with threads(1):
        for data, (tune, _) in cases(plan).items():
            settings = {tool.name: tool.coarse if plan.quick else tool.grid for tool in TOOLS}
            curves = {tool.name: curve(tool, tune, settings[tool.name]) for tool in TOOLS}
            best = {name: max(reached for reached, _ in found.values()) for name, found in curves.items()}
            for name, aim, level in levels(best):
                number, stop = fastest(curves[name], level)
                row = {"data": data, "tool": name, "aim": aim, "dice": curves[name][number, stop][0], "level": level}
                row |= {"best": best[name], "setting": settings[name][number] | {"stop": stop}, "slices": len(tune)}
                rows.append(row | {"settings": len(settings[name]), "stops": len({stop for _, stop in curves[name]})})
    return {"rows": rows, "targets": []}


def contours(plan: Plan) -> dict:
    """Dice and ms of each tool on slices it was not tuned on, from image to mask, on all threads that are allowed."""
    if "tuning" not in plan.done:
        raise ValueError("the group tuning has to run before contours")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(plan.threads[-1])
    by_name = {tool.name: tool for tool in TOOLS}
    rows, targets = [], []
    for data, (_, test) in cases(plan).items():
        tuned = {(r["tool"], r["aim"]): r["setting"] for r in plan.done["tuning"]["rows"] if r["data"] == data}
        spent: dict[tuple[str, str], list[dict]] = {key: [] for key in tuned}
        found: dict[tuple[str, str], list[float]] = {key: [] for key in tuned}
        made = {
            key: statistics.fmean(by_name[key[0]].iterations(o.image, o.distance, setting) for o in test)
            for key, setting in tuned.items()
        }
        with threads(plan.threads[-1]):
            for one in test:
                runs = {
                    key: lambda t=by_name[key[0]], o=one, s=setting: t.segment(o.image, o.distance, s)
                    for key, setting in tuned.items()
                }
                for key, run in runs.items():
                    found[key].append(dice(one.mask, run()))
                for key, samples in seconds_each(runs, 2 if plan.quick else 3).items():
                    spent[key].append(times(samples))
        rows += [
            {"data": data, "tool": name, "aim": aim, "dice": statistics.fmean(found[name, aim]), "slices": len(test)}
            | {"iterations": made[name, aim]}
            | {key: statistics.fmean(row[key] for row in spent[name, aim]) for key in ("min_ms", "median_ms")}
            | {"dices": dict(zip([one.name for one in test], found[name, aim], strict=True))}
            for name, aim in spent
        ]
        targets += contours_targets(data, [row for row in rows if row["data"] == data])
    return {"rows": rows, "targets": targets}


def contours_targets(data: str, rows: list[dict]) -> list[dict]:
    """Time and Dice against SimpleITK at equal Dice, and Dice against scikit-image, each at its own best."""
    at = {(row["tool"], row["aim"]): row for row in rows}
    ratio = {
        (aim, key): at[SparseField.name, aim][key] / at[Ours.name, aim][key]
        for aim in (EQUAL, OWN)
        for key in ("median_ms", "min_ms")
    }
    more = {"by_minimum": ratio[EQUAL, "min_ms"], "at_own_best": ratio[OWN, "median_ms"]}
    found = [target(f"SimpleITK / ours, time at equal Dice, {data}", 5, ratio[EQUAL, "median_ms"], **more)]
    for other, aim, least in ((SparseField.name, EQUAL, -SAME), (MorphologicalGeodesic.name, OWN, 0.0)):
        gains = [a - b for a, b in zip(*(at[name, aim]["dices"].values() for name in (Ours.name, other)), strict=True)]
        error = statistics.pstdev(gains) / max(1, len(gains) - 1) ** 0.5
        name = f"Dice of ours - {other}, {aim}, {data}"
        found.append(target(name, least, statistics.fmean(gains), standard_error=error))
    return found
