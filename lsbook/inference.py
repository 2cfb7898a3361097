"""Segment whole scans with a trained network, in the scan's own grid, a slab of slices at a time."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from .ct import Preprocessing, Scan, liver_range, read_scan, to_slices
from .metrics import dice, slice_dice
from .nifti import Volume

SLAB = 16  # slices in work at a time


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part (faces, edges and corners connect) of a bool mask ``(X, Y, Z)``; empty stays empty.

    The mask is changed in place, and returned: beside it only a slab is in memory. Parts are numbered slab by slab. A
    slab reaches into the first slice of the next: parts of the two that share a voxel there are one.
    """
    sizes, links, shared = [np.zeros(1, int)], [np.zeros((2, 0), int)], None
    for own, parts, count, before in numbered_slabs(mask):
        sizes.append(np.bincount(parts[: len(own)].ravel(), minlength=count + 1)[1:])
        if shared is not None:
            pairs = np.unique(shared * (count + 1) + parts[0])  # as one number each, the first is (0, 0)
            links.append(np.stack(np.divmod(pairs[pairs > 0], count + 1)) + [[0], [before]])
        shared = np.where(parts[-1] > 0, parts[-1] + before, 0)
    voxels, (one, other) = np.concatenate(sizes), np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(voxels), len(voxels)))
    group = connected_components(graph, directed=False)[1]
    kept = group == np.bincount(group, voxels).argmax()
    for own, parts, count, before in numbered_slabs(mask):
        chosen = kept[before : before + count + 1].copy()
        chosen[0] = False  # what is outside stays there
        own[...] = chosen[parts[: len(own)]]
    return mask


def numbered_slabs(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """For each slab: its slices ``(SLAB, Y, X)``, a view of the mask; the numbers, from 1, of the parts that it and the
    next slice make up; how many parts these are, and how many there were in all slabs before."""
    slices, before = mask.transpose(2, 1, 0), 0
    for first in range(0, len(slices), SLAB):
        parts, count = label(slices[first : first + SLAB + 1], np.ones((3, 3, 3)))
        yield slices[first : first + SLAB], parts, count, before
        before += count


@torch.no_grad()
def slice_probabilities(model: nn.Module, images: Tensor, batch: int = SLAB) -> Tensor:
    """Probability of liver of each slice, ``(Z, 1, size, size)``, a batch at a time."""
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(part.to(device)).cpu() for part in images.split(batch)])


def smooth_across(slices: Tensor) -> Tensor:
    """Each of the slices ``(Z, 1, H, W)`` and its two neighbors, averaged with the weights 1-2-1; the ends repeat.

    A network that sees slices one by one errs on each anew. The liver goes on from slice to slice and most errors do
    not, so that a mean over neighbors lowers the errors.
    """
    around = torch.cat([slices[:1], slices, slices[-1:]])
    return (around[:-2] + around[2:] + 2 * slices) / 4


def segment(model: nn.Module, preprocessing: Preprocessing, volume: Volume, batch: int = SLAB) -> np.ndarray:
    """Liver mask of a scan, bool ``(X, Y, Z)`` in RAS+ axes on the scan's grid.

    Probabilities are smoothed across slices, brought back to the scan's grid, cut at 0.5, and the largest connected
    part is kept. ``batch`` slices are in work at a time, and the result does not depend on how many; as long as the
    scan is only the mask, a byte a voxel.

    Raises:
        FloatingPointError: if the network's output is not finite.
    """
    x, y, depth = volume.data.shape
    mask, done = np.empty((depth, y, x), bool).transpose(2, 1, 0), 0
    found = torch.empty(0, 1, preprocessing.size, preprocessing.size)
    for first in range(0, depth, batch):
        end = min(first + batch, depth)
        single = (replace(volume, voxels=volume.data[:, :, z : z + 1]) for z in range(first, end))
        images = torch.cat([preprocessing.images(one) for one in single])
        found = torch.cat([found[-2:], slice_probabilities(model, images)])
        if not found.isfinite().all():
            raise FloatingPointError(f"{volume.path}: the network's output is not finite; take another checkpoint")
        smooth, oldest = smooth_across(found), end - len(found)
        ready = end if end == depth else end - 1  # the last slice waits for its neighbor
        for z in range(done, ready):
            mask[:, :, z : z + 1] = preprocessing.restore(smooth[[z - oldest]], volume) > 0.5
        done = ready
    return largest_component(mask)


def score_scan(model: nn.Module, preprocessing: Preprocessing, scan: Scan) -> dict:
    """Dice of a scan in its own grid: over all voxels, over those of the liver's range, and the mean of its slices'."""
    image, mask = read_scan(scan)
    found, truth = (to_slices(part) for part in (segment(model, preprocessing, image), mask.data > 0))
    inside = liver_range(truth)
    scores = {"dice": dice(truth, found), "dice_liver_slices": dice(truth[inside], found[inside])}
    return scores | {"mean_slice_dice": float(slice_dice(truth[inside], found[inside]).mean())}
