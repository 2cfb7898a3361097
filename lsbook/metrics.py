"""How well two masks agree: overlap, volume, and the distances between their surfaces.

A surface is the mask minus its erosion by the neighbours that share a face (6 in 3-D, 4 in 2-D). What lies outside the
array is background, so a mask that touches the array's border has surface there.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, spatial


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) over all pixels or voxels (Dice 1945); 1 if both masks are empty.

    Args:
        reference, prediction: masks of equal shape, nonzero inside.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b = inside(reference, prediction)
    return dice_of_counts(int((a & b).sum()), int(a.sum()) + int(b.sum()))


def dice_of_counts(shared: int, total: int) -> float:
    """Dice of two masks that share so many pixels or voxels and hold so many in all; 1 if both are empty."""
    return 2 * shared / total if total else 1.0


def slice_dice(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """:func:`dice` of each slice of two stacks ``(Z, H, W)``; float64 ``(Z,)``."""
    return np.array([dice(a, b) for a, b in zip(reference, prediction, strict=True)])


def ravd_percent(reference: np.ndarray, prediction: np.ndarray) -> float | None:
    """Absolute relative volume difference 100 ||B| - |A|| / |A|, A the reference (CHAOS; Kavur et al. 2021).

    0 if both masks are empty, None if the reference alone is; 100 if the prediction alone is.
    """
    a, b = (int(mask.sum()) for mask in inside(reference, prediction))
    return 100 * abs(b - a) / a if a else (None if b else 0.0)


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each surface pixel or voxel to the nearest one of the other mask's surface.

    Nearest neighbours come from k-d trees of the surfaces, so time and memory follow the surfaces' size, not the box
    around both masks as with distance transforms: a pair of livers in 512 x 512 x 300 voxels takes seconds and some
    100 MiB, also with a stray voxel in a far corner. Hundreds of thousands of scattered voxels take minutes.

    Args:
        reference, prediction: masks of equal shape, of any dimension, nonzero inside.
        spacing: length of a pixel or voxel along each axis, in the array's axis order; the result has its unit.

    Returns:
        Distances from the reference's surface to the prediction's, and the other way round, float64; both are empty if
        either mask is.

    Raises:
        ValueError: if the shapes differ, or the spacing is not one positive length for each axis.
    """
    masks = inside(reference, prediction)
    lengths = np.asarray(spacing, dtype=float)
    if lengths.shape != (masks[0].ndim,) or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"spacing {spacing} is not one positive length for each of {masks[0].ndim} axes")
    if not all(mask.any() for mask in masks):
        return np.empty(0), np.empty(0)
    a, b = (np.argwhere(surface(mask)) * lengths for mask in masks)
    return spatial.KDTree(b).query(a)[0], spatial.KDTree(a).query(b)[0]


def compare(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float | None]:
    """All measures of a scan, or of a slice, as one row of a table.

    Args and errors are those of :func:`surface_distances`; the distances are in mm if ``spacing`` is.

    Returns:
        ``dice`` and ``ravd_percent`` as the functions of that name; ``assd_mm``, the average symmetric surface
        distance: the mean of the distances of both directions, pooled; ``mssd_mm``, their maximum (Hausdorff);
        ``hd95_mm``, the larger of the two directions' 95th percentiles. Distances are 0 if both masks are empty, None
        if one is.
    """
    scores = {"dice": dice(reference, prediction), "ravd_percent": ravd_percent(reference, prediction)}
    ways = surface_distances(reference, prediction, spacing)
    if ways[0].size:
        distances = np.concatenate(ways).mean(), max(map(np.max, ways)), max(np.percentile(way, 95) for way in ways)
        return scores | dict(zip(("assd_mm", "mssd_mm", "hd95_mm"), map(float, distances), strict=True))
    return scores | dict.fromkeys(("assd_mm", "mssd_mm", "hd95_mm"), 0.0 if scores["dice"] else None)


def surface(mask: np.ndarray) -> np.ndarray:
    """The pixels or voxels of a bool mask with a neighbour outside it across a face; beyond the array is outside."""
    found = np.zeros_like(mask)
    for box in ndimage.find_objects(mask.view(np.uint8)):  # one box around all that is set, or none
        found[box] = mask[box] & ~ndimage.binary_erosion(mask[box])
    return found


def inside(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool; ValueError if their shapes differ."""
    if reference.shape != prediction.shape:
        raise ValueError(f"masks of different shapes {reference.shape} and {prediction.shape} cannot be compared")
    return reference != 0, prediction != 0
