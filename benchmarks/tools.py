"""Four tools that draw a contour from a seed disc, each behind the same two functions: ``segment`` and ``trajectory``.

All see the same image ``(H, W)`` in [-1, 1] and start from the same disc. What is tuned are each tool's own settings.
``segment`` is what a user would run: from the image to the mask, edge indicator included. ``trajectory`` yields (stop,
seconds, mask) along one run, so that tuning tries many stops at the cost of one; seconds are the processor's, from the
image to this mask.
"""

import time
from collections.abc import Iterator
from itertools import product

import numpy as np
import SimpleITK as sitk
import torch
from skimage.segmentation import (
    inverse_gaussian_gradient,
    morphological_chan_vese,
    morphological_geodesic_active_contour,
)

from lsbook.levelset import cfl, edge_indicator, speeds
from lsbook.networks import BAND
from lsbook.stepping import advance

Setting = dict[str, float]
Masks = Iterator[tuple[float, float, np.ndarray]]


def combinations(**values: tuple[float, ...]) -> list[Setting]:
    """All combinations of the given values."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def edges(image: np.ndarray, setting: Setting) -> torch.Tensor:
    """g, the same for the two solvers of the level set equation; ``(1, 1, H, W)``."""
    return edge_indicator(torch.from_numpy(image)[None, None], setting["contrast"], setting["sigma"])


EDGES = {"contrast": (0.02, 0.03, 0.05, 0.1), "sigma": (1.0, 2.0)}


class Ours:
    """The fused steps, at the longest stable time step; stops at a time."""

    name = "this book"
    grid = combinations(**EDGES, alpha=(0.1, 0.3, 1.0), beta=(1.0, 3.0, 10.0))
    coarse = combinations(contrast=(0.1,), sigma=(1.0,), alpha=(0.3,), beta=(1.0,))
    stops = [10.0 * k for k in range(1, 31)]

    @staticmethod
    def prepare(image: np.ndarray, distance: np.ndarray, setting: Setting) -> tuple:
        g = edges(image, setting)
        coefficients = setting["alpha"], setting["beta"], 1.0
        u = torch.from_numpy(distance)[None, None].clamp(-BAND, BAND)
        return u, speeds(g, *torch.tensor(coefficients)), 0.95 / cfl(1.0, g, *coefficients)

    @classmethod
    def iterations(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> int:
        """Steps until the stop: the fastest pixel of the image sets their length, wherever the contour is."""
        return int(np.ceil(setting["stop"] / cls.prepare(image, distance, setting)[2]))

    @classmethod
    def segment(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> np.ndarray:
        u, v, longest = cls.prepare(image, distance, setting)
        steps = int(np.ceil(setting["stop"] / longest))
        return (advance(u, v, setting["stop"] / steps, steps)[0, 0] > 0).numpy()

    @classmethod
    def trajectory(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> Masks:
        spent, started = 0.0, time.process_time()
        u, v, longest = cls.prepare(image, distance, setting)
        steps = int(np.ceil(cls.stops[0] / longest))
        for stop in cls.stops:
            u = advance(u, v, cls.stops[0] / steps, steps)
            spent += time.process_time() - started
            yield stop, spent, (u[0, 0] > 0).numpy()
            started = time.process_time()


class SparseField:
    """SimpleITK's geodesic active contour, a sparse field solver; stops after a number of iterations."""

    name = "SimpleITK"
    grid = combinations(**EDGES, curvature=(0.1, 0.3, 1.0), advection=(1.0, 3.0, 10.0))
    coarse = combinations(contrast=(0.1,), sigma=(1.0,), curvature=(0.3,), advection=(1.0,))
    stops = list(range(50, 1601, 50))

    @staticmethod
    def iterations(image: np.ndarray, distance: np.ndarray, setting: Setting) -> int:
        """Its stop; the fastest pixel at the contour sets their length."""
        return setting["stop"]

    @staticmethod
    def filter(setting: Setting, iterations: int) -> sitk.GeodesicActiveContourLevelSetImageFilter:
        solver = sitk.GeodesicActiveContourLevelSetImageFilter()
        solver.SetPropagationScaling(1.0)
        solver.SetCurvatureScaling(setting["curvature"])
        solver.SetAdvectionScaling(setting["advection"])
        solver.SetMaximumRMSError(0.0)  # so that it makes all its iterations
        solver.SetNumberOfIterations(iterations)
        return solver

    @classmethod
    def segment(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> np.ndarray:
        g = sitk.GetImageFromArray(edges(image, setting)[0, 0].numpy())
        start = sitk.GetImageFromArray(-distance)
        return sitk.GetArrayViewFromImage(cls.filter(setting, setting["stop"]).Execute(start, g)) < 0

    @classmethod
    def trajectory(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> Masks:
        """In stretches: each starts from the level set that the one before ended with, to a small part of a pixel."""
        spent, started = 0.0, time.process_time()
        g = sitk.GetImageFromArray(edges(image, setting)[0, 0].numpy())
        phi, before = sitk.GetImageFromArray(-distance), 0
        for stop in cls.stops:
            phi, before = cls.filter(setting, stop - before).Execute(phi, g), stop
            spent += time.process_time() - started
            yield stop, spent, sitk.GetArrayFromImage(phi) < 0
            started = time.process_time()


class Morphological:
    """What scikit-image's two morphological tools share: a run reports each iteration; stops after some."""

    stops = list(range(5, 201, 5))

    @staticmethod
    def iterations(image: np.ndarray, distance: np.ndarray, setting: Setting) -> int:
        return setting["stop"]

    @classmethod
    def trajectory(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> Masks:
        found, started = [], time.process_time()
        cls.run(
            image,
            distance,
            setting,
            cls.stops[-1],
            lambda u: found.append((time.process_time() - started, u.astype(bool))),
        )
        yield from ((stop, *found[stop]) for stop in cls.stops)

    @classmethod
    def segment(cls, image: np.ndarray, distance: np.ndarray, setting: Setting) -> np.ndarray:
        return cls.run(image, distance, setting, setting["stop"], lambda u: None).astype(bool)


class MorphologicalGeodesic(Morphological):
    """Balloon 1 and its own edge map; ``quantile`` is that of the threshold below which the balloon rests."""

    name = "scikit-image, geodesic"
    grid = combinations(steepness=(100.0, 1000.0), sigma=(2.0, 4.0, 6.0), quantile=(0.2, 0.3, 0.5), smoothing=(1,))
    coarse = combinations(steepness=(1000.0,), sigma=(2.0,), quantile=(0.4,), smoothing=(1,))

    @staticmethod
    def run(image, distance, setting, iterations, callback) -> np.ndarray:
        g = inverse_gaussian_gradient(image, setting["steepness"], setting["sigma"])
        return morphological_geodesic_active_contour(
            g, iterations, distance > 0, setting["smoothing"], np.quantile(g, setting["quantile"]), 1, callback
        )


class MorphologicalChanVese(Morphological):
    """Without edges: two mean values; ``outside`` is the weight of the inside's variance, the outside's is 1."""

    name = "scikit-image, Chan-Vese"
    grid = combinations(inside=(1.0, 2.0, 5.0), smoothing=(1, 3))
    coarse = combinations(inside=(2.0,), smoothing=(1,))

    @staticmethod
    def run(image, distance, setting, iterations, callback) -> np.ndarray:
        return morphological_chan_vese(
            image, iterations, distance > 0, setting["smoothing"], setting["inside"], 1, callback
        )


TOOLS = (Ours, SparseField, MorphologicalGeodesic, MorphologicalChanVese)
