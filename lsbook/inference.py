"""Segment whole scans with a trained network, in the scan's own grid."""

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import find_objects
from skimage.measure import label
from torch import Tensor, nn

from .ct import Preprocessing, Scan, liver_range, read_scan, to_slices
from .metrics import dice, slice_dice
from .nifti import Volume


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part (faces, edges and corners connect) of a mask ``(X, Y, Z)``; empty stays empty."""
    if not mask.any():
        return mask
    box = find_objects(mask.view(np.uint8))[0]
    parts = label(mask[box], connectivity=mask.ndim)
    kept = np.zeros_like(mask)
    kept[box] = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return kept


@torch.no_grad()
def slice_probabilities(model: nn.Module, images: Tensor, batch: int = 16) -> Tensor:
    """Probability of liver of each slice, ``(Z, 1, size, size)``, a batch at a time."""
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(part.to(device)).cpu() for part in images.split(batch)])


def segment(model: nn.Module, preprocessing: Preprocessing, volume: Volume, batch: int = 16) -> np.ndarray:
    """Liver mask of a scan, bool ``(X, Y, Z)`` in RAS+ axes on the scan's grid.

    Probabilities are brought back to the scan's grid, cut at 0.5, and the largest connected part is kept. ``batch``
    slices are in work at a time; only the mask is as long as the scan.
    """
    mask = np.empty(volume.data.shape, dtype=bool)
    for first in range(0, mask.shape[2], batch):
        slab = (slice(None), slice(None), slice(first, first + batch))
        part = replace(volume, data=volume.data[slab])
        mask[slab] = preprocessing.restore(slice_probabilities(model, preprocessing.images(part)), part) > 0.5
    return largest_component(mask)


def score_scan(model: nn.Module, preprocessing: Preprocessing, scan: Scan) -> dict:
    """Dice of a scan in its own grid: within the given liver range, over all slices, and the mean over slices."""
    image, mask = read_scan(scan)
    found, truth = (to_slices(part) for part in (segment(model, preprocessing, image), mask.data > 0))
    inside = liver_range(truth)
    return {
        "dice": dice(truth[inside], found[inside]),
        "dice_all_slices": dice(truth, found),
        "mean_slice_dice": float(slice_dice(truth[inside], found[inside]).mean()),
    }
