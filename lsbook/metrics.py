"""How well two masks agree."""

import numpy as np


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) over all pixels or voxels (Dice 1945); 1 if both masks are empty.

    Args:
        reference, prediction: masks of equal shape, nonzero inside.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"masks of different shapes {reference.shape} and {prediction.shape} cannot be compared")
    a, b = reference != 0, prediction != 0
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def slice_dice(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """:func:`dice` of each slice of two stacks ``(Z, H, W)``; float64 ``(Z,)``."""
    return np.array([dice(a, b) for a, b in zip(reference, prediction, strict=True)])
