"""Segment whole scans with a trained network, in the scan's own grid."""

import numpy as np
import torch
from skimage.measure import label
from torch import Tensor, nn

from .ct import Preprocessing, Scan, liver_range, read_scan, to_slices
from .metrics import dice, slice_dice
from .nifti import Volume


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part (faces, edges and corners connect) of a mask ``(X, Y, Z)``; empty stays empty."""
    parts = label(mask, connectivity=mask.ndim)
    if parts.max() == 0:
        return mask
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


@torch.no_grad()
def slice_probabilities(model: nn.Module, images: Tensor, batch: int = 16) -> Tensor:
    """Probability of liver of each slice, ``(Z, 1, size, size)``, a batch at a time."""
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(part.to(device)).cpu() for part in images.split(batch)])


def segment(model: nn.Module, preprocessing: Preprocessing, volume: Volume) -> np.ndarray:
    """Liver mask of a scan, bool ``(X, Y, Z)`` in RAS+ axes on the scan's grid.

    Probabilities are brought back to the scan's grid, cut at 0.5, and the largest connected part is kept.
    """
    probability = slice_probabilities(model, preprocessing.images(volume))
    return largest_component(preprocessing.restore(probability, volume) > 0.5)


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
