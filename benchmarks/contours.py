"""Peers: the cost of an iteration, and the time to a contour, each tool tuned on other slices, from the same disc."""

import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from lsbook.ct import Preprocessing, find_scans, read_scan, split, to_slices
from lsbook.metrics import dice
from lsbook.phantom import make_patient

from .measure import Plan, seconds_each, target, threads, times
from .tools import TOOLS, MorphologicalChanVese, MorphologicalGeodesic, Ours, SparseField

SEED_RADIUS = 10  # pixels
NEAR = 0.002  # Dice that may be given up for speed


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
    tune, test = (1, 1) if plan.quick else (6, 16)
    found = {
        "phantom": tuple([phantom_case(n, plan.quick) for n in part] for part in (range(tune), range(100, 100 + test)))
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
        found["CT"] = tuple([prepared[n] for n in part] for part in (parts.test[:tune], parts.train + parts.validation))
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


def tuning(plan: Plan) -> dict:
    """For each data set and tool a setting and stop: of those within NEAR of its best mean Dice, the fastest.

    Processor time is counted, which other work on the machine changes little.
    """
    rows = []
    with threads(1):
        for data, (tune, _) in cases(plan).items():
            for tool in TOOLS:
                scores: dict[tuple, list[float]] = {}
                spent: dict[tuple, float] = {}
                settings = tool.coarse if plan.quick else tool.grid
                for number, setting in enumerate(settings):
                    for one in tune:
                        started = time.process_time()
                        for stop, mask in tool.trajectory(one.image, one.distance, setting):
                            scores.setdefault((number, stop), []).append(dice(one.mask, mask))
                        whole = time.process_time() - started
                        for stop in tool.stops:
                            spent[number, stop] = spent.get((number, stop), 0) + whole * stop / tool.stops[-1]
                means = {key: statistics.fmean(values) for key, values in scores.items()}
                best = max(means.values())
                number, stop = min((key for key in means if means[key] >= best - NEAR), key=spent.__getitem__)
                rows.append(
                    {
                        "data": data,
                        "tool": tool.name,
                        "dice": means[number, stop],
                        "best": best,
                        "setting": settings[number] | {"stop": stop},
                    }
                    | {"slices": len(tune), "settings": len(settings), "stops": len(tool.stops)}
                )
    return {"rows": rows, "targets": []}


def contours(plan: Plan) -> dict:
    """Dice and ms of each tool on slices it was not tuned on, from image to mask, on all threads that are allowed."""
    if "tuning" not in plan.done:
        raise ValueError("the group tuning has to run before contours")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(plan.threads[-1])
    tuned = {(row["data"], row["tool"]): row["setting"] for row in plan.done["tuning"]["rows"]}
    rows, targets = [], []
    for data, (_, test) in cases(plan).items():
        spent: dict[str, list[dict]] = {tool.name: [] for tool in TOOLS}
        found: dict[str, list[float]] = {tool.name: [] for tool in TOOLS}
        with threads(plan.threads[-1]):
            for one in test:
                runs = {
                    tool.name: lambda t=tool, o=one, s=tuned[data, tool.name]: t.segment(o.image, o.distance, s)
                    for tool in TOOLS
                }
                for name, run in runs.items():
                    found[name].append(dice(one.mask, run()))
                for name, samples in seconds_each(runs, 2 if plan.quick else 3).items():
                    spent[name].append(times(samples))
        rows += [
            {"data": data, "tool": name, "dice": statistics.fmean(found[name]), "slices": len(test)}
            | {key: statistics.fmean(row[key] for row in spent[name]) for key in ("min_ms", "median_ms")}
            | {"dices": dict(zip([one.name for one in test], found[name], strict=True))}
            for name in spent
        ]
        own, *others = rows[-len(TOOLS) :]
        for row, wanted in zip(others[:2], (5, None), strict=True):
            more = {"by_minimum": row["min_ms"] / own["min_ms"]}
            if wanted:
                targets.append(
                    target(f"{row['tool']} / ours, time, {data}", wanted, row["median_ms"] / own["median_ms"], **more)
                )
            gain = own["dice"] - row["dice"]
            targets.append(target(f"Dice of ours - {row['tool']}, {data}", -0.003 if wanted else 0.0, gain))
    return {"rows": rows, "targets": targets}
