"""The analysis of Actor, Fuentes, Riviere 2020: k-means of kernels as points in R^9, and a plane to draw them in."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

SAMPLE = 1000  # points that clusters and silhouettes are computed from; all points get a label


class Clusters(NamedTuple):
    """Centres ``(k, 9)``, number of the cluster of each point ``(n,)``, mean silhouette in [-1, 1]."""

    centers: np.ndarray
    labels: np.ndarray
    silhouette: float


def normalized(kernels: np.ndarray) -> np.ndarray:
    """Kernels ``(n, 3, 3)`` as the paper's code compares them, ``(n, 9)``: positive at the centre, of length 1.

    Those shorter than 1e-6 become 0.
    """
    points = kernels.reshape(-1, 9)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    signs = np.where(points[:, 4:5] < 0, -1.0, 1.0)
    return np.divide(signs * points, length, out=np.zeros_like(points), where=length >= 1e-6)


def plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``(n, 2)`` of points ``(n, 9)`` in the plane of their first two right singular vectors, ``(2, 9)``.

    The mean is not subtracted, as in the paper's code. Each vector's largest entry is positive.
    """
    axes = np.linalg.svd(points, full_matrices=len(points) < 2)[2][:2]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1))
    return points @ axes.T, axes


def cluster(points: np.ndarray, counts: Iterable[int] = (5,), seed: int = 0) -> Clusters:
    """k-means of points ``(n, 9)``; of several counts the one with the largest silhouette.

    Raises:
        ValueError: if no count is at least 2 and below the number of distinct points.
    """
    sample = np.random.default_rng(seed).permutation(points)[:SAMPLE]
    distinct = len(np.unique(sample, axis=0))
    fits = [KMeans(k, n_init=4, random_state=seed).fit(sample) for k in counts if 2 <= k < distinct]
    if not fits:
        raise ValueError(f"{distinct} distinct kernels are too few for so many clusters")
    scores = [float(silhouette_score(sample, fit.labels_)) for fit in fits]
    best = int(np.argmax(scores))
    return Clusters(fits[best].cluster_centers_, fits[best].predict(points), scores[best])
