"""The LSE's own settings, found on the training scans: what its gradient training cannot change, and where it starts.

The number of steps, the edge scale and the seed disc are no weights of the network, and from a poor start the three
coefficients find a poor optimum. A random search over all of them costs minutes, because the steps are fast.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lsbook.ct import SliceDataset
from lsbook.levelset import worst_cfl
from lsbook.networks import DT, SAFETY, LevelSetNetwork

from .classical import Sample, sample
from .variants import build

# Ranges searched, on a logarithmic scale. Contrast is per pixel, sigma in pixels, the radius a fraction of the side;
# alpha and beta are relative to gamma: a common factor of the three is a matter of the number of steps.
RANGES = {"contrast": (0.01, 0.3), "sigma": (0.5, 4), "radius": (0.02, 0.2), "alpha": (0.01, 3), "beta": (0.1, 20)}
WIDE = RANGES | {"sigma": (0.1, 4), "radius": (0.008, 0.2), "alpha": (0.001, 3)}  # for what had ended at a border
GRAY = WIDE | {"likeness": (0.5, 20)}  # of a balloon that asks gray values (experiments.variants.GrayLSE)
GRAY_FIRST = RANGES | {"likeness": (0.5, 20)}  # some settings ended at a border of these
SEARCHES = {"usual": (RANGES, 400), "wide": (WIDE, 600), "gray": (GRAY, 600), "gray-first": (GRAY_FIRST, 400)}
STOPS = 20  # steps between two looks at the contour


class Found(NamedTuple):
    """Options of ``LevelSetNetwork``, its raw coefficients, mean Dice on training slices, and how many were tried."""

    options: dict
    raw: list[float]
    dice: float
    tried: int

    def network(self) -> LevelSetNetwork:
        """The LSE with these options and coefficients."""
        model = build("lse", **self.options)
        model.raw.data[:] = torch.tensor(self.raw)
        return model


def candidate(point: np.ndarray, center: Sequence, steps: int) -> Found:
    """The LSE at a point of the search: logarithms of the values within its ranges.

    ``center`` is (y, x) of the seed disc, or a list of discs (y, x, radius), which then are the seed as they stand.

    The coefficients are the largest in the given ratio that are stable on every image, so that fewest steps are needed.
    """
    contrast, sigma, radius, alpha, beta, *likeness = np.exp(point).tolist()
    c = torch.tensor([alpha, beta, 1.0])
    c = c * SAFETY / worst_cfl(DT, *c)
    raw = [float(c[0].expm1().log()), float(c[1]), float(c[2])]  # alpha = softplus(raw)
    seed = (*center, radius) if np.ndim(center) == 1 else center
    options = {"steps": steps, "contrast": contrast, "sigma": sigma, "seed": seed}
    return Found(options | ({"likeness": likeness[0]} if likeness else {}), raw, 0.0, 0)


@torch.no_grad()
def best_stop(found: Found, slices: Sample) -> Found:
    """The same with its best number of steps, a multiple of :data:`STOPS` up to the given one, and its score."""
    states = found.network().trajectory(torch.from_numpy(slices.images)[:, None], every=STOPS)
    scores = [slices.mean_dice((u[:, 0] > 0).numpy()) for u in states]
    best = 1 + int(np.argmax(scores[1:]))
    return found._replace(options=found.options | {"steps": best * STOPS}, dice=scores[best])


def tune_lse(
    dataset: SliceDataset,
    center: Sequence,
    steps: int = 400,
    draws: int = 160,
    refinements: int = 60,
    slices: tuple[int, int] = (40, 120),
    seed: int = 0,
    ranges: dict[str, tuple[float, float]] = RANGES,
) -> Found:
    """Random search, then a local one from the best point: steps of an evolution strategy (1+1) (Rechenberg 1973).

    Args:
        dataset: training slices; nothing else is looked at.
        center: (y, x) of the seed disc as fractions, from :func:`lsbook.training.densest_point`, or a list of discs.
        steps: the most that are tried.
        draws: points drawn, each on every k-th slice, ``slices[0]`` in all; a tenth goes on to the ``slices[1]``.
        refinements: normal steps tried from the best; their width grows on success and shrinks on failure.
        seed: of the draws and steps.
        ranges: of :data:`SEARCHES`; with a likeness for a :class:`experiments.variants.GrayLSE`.
    """
    rng = np.random.default_rng(seed)
    low, high = np.log(list(ranges.values())).T
    few, many = (sample(dataset, count) for count in slices)
    points = sorted(
        rng.uniform(low, high, (draws, len(low))),
        key=lambda point: -best_stop(candidate(point, center, steps), few).dice,
    )
    results = [(best_stop(candidate(point, center, steps), many), point) for point in points[: max(1, draws // 10)]]
    (best, at), width = max(results, key=lambda result: result[0].dice), 0.3
    for _ in range(refinements):
        point = np.clip(at + width * rng.normal(size=len(at)), low, high)
        found = best_stop(candidate(point, center, steps), many)
        if found.dice > best.dice:
            best, at, width = found, point, width * 1.3
        else:
            width = max(width * 0.93, 0.03)
    return best._replace(tried=(draws + refinements) * (steps // STOPS))
