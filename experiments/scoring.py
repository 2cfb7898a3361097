"""Scores of a scan, in its own grid: of the whole, within the liver's range, and slice by slice."""

import time

import numpy as np
from torch import nn

from lsbook.ct import Preprocessing, Scan, liver_range, read_scan, to_slices
from lsbook.inference import segment
from lsbook.metrics import compare, dice, ravd_percent

DISTANCES = ("assd", "mssd", "hd95")


def score_masks(truth: np.ndarray, found: np.ndarray, spacing: tuple[float, float, float] | None) -> dict:
    """All scores of a predicted mask.

    Args:
        truth, found: bool ``(Z, H, W)``.
        spacing: (z, y, x) in mm; None where it is not known: distances are then within slices, in pixels.

    Returns:
        ``dice`` over all voxels and ``dice_liver_slices`` over those of the liver's range, the range the paper trains
        and tests on; ``ravd_percent``; the distances ``assd``, ``mssd``, ``hd95`` of the volume in mm, or the means of
        those of the slices in pixels, over the slices of the range where both masks have liver; ``unit`` says which;
        ``slices``: Dice, volume difference and the three distances of each slice of the range, in the same unit.
    """
    inside = liver_range(truth)
    rows = {"z": list(range(inside.start, inside.stop)), "dice": [], "ravd_percent": []} | {
        key: [] for key in DISTANCES
    }
    for a, b in zip(truth[inside], found[inside], strict=True):
        row = compare(a, b, (1.0, 1.0) if spacing is None else spacing[1:])
        for key in ("dice", "ravd_percent"):
            rows[key].append(row[key])
        for key in DISTANCES:
            rows[key].append(row[f"{key}_mm"])
    scores = {"dice": dice(truth, found), "dice_liver_slices": dice(truth[inside], found[inside])}
    scores["ravd_percent"] = ravd_percent(truth, found)
    if spacing is None:
        known = {key: [d for d in rows[key] if d is not None] for key in DISTANCES}
        scores |= {key: float(np.mean(values)) if values else None for key, values in known.items()}
    else:
        whole = compare(truth, found, spacing)
        scores |= {key: whole[f"{key}_mm"] for key in DISTANCES}
    return scores | {"unit": "pixels" if spacing is None else "mm", "slices": rows}


def score_scan(model: nn.Module, preprocessing: Preprocessing, scan: Scan, known_spacing: bool) -> dict:
    """:func:`score_masks` of a network's result on a scan, and ``cpu_seconds_per_slice`` of the segmentation."""
    image, mask = read_scan(scan)
    started = time.process_time()
    found = segment(model, preprocessing, image)
    seconds = (time.process_time() - started) / found.shape[2]
    spacing = tuple(image.spacing[::-1]) if known_spacing else None
    scores = score_masks(to_slices(mask.data > 0), to_slices(found), spacing)
    return {"cpu_seconds_per_slice": seconds} | scores
