"""Classical peers: what established tools make of the same slices, from the same seed, tuned on training scans only.

A slice is an image I ``(H, W)`` in [-1, 1]; the seed is a disc at the point where most training slices have liver, and
the median of I in it, m, is all that a peer learns of this patient's liver. Three peers draw a contour from the disc,
one takes what lies in an intensity window around m. Their settings are found by :func:`tune`.

Conventions of the tools, which the tests check:

scikit-image: the level set is a mask, 1 inside. The geodesic contour wants a potential near 1 off edges and 0 on them;
balloon 1 grows it by a pixel an iteration where the potential is above ``threshold``.

SimpleITK: the level set is a distance, negative inside. The feature image is such a potential g. A positive propagation
scaling expands, a positive curvature scaling smooths, a positive advection scaling draws the contour to edges: gamma,
alpha and beta of :mod:`lsbook.levelset`. The time step is the solver's own, so iterations are no measure of time.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from skimage.morphology import disk
from skimage.segmentation import morphological_chan_vese, morphological_geodesic_active_contour
from torch import Tensor, nn

from lsbook.ct import SliceDataset
from lsbook.metrics import dice
from lsbook.networks import disc

Settings = dict[str, float]
Rungs = Sequence[tuple[int, int]]
DARKEST = -0.2  # 40 HU in the default window: a seed in fat or air, in a slice with little liver, tells nothing of it
Run = Callable[[np.ndarray, np.ndarray, Settings, Sequence[int]], list[np.ndarray]]


class Peer(NamedTuple):
    """A method and the values that :func:`tune` may give to its settings.

    Attributes:
        run: from an image ``(H, W)``, a seed mask ``(H, W)``, settings and stops in rising order to a bool mask for
            each stop. All stops of one run cost little more than the last.
        stops: where a run may end; the one that is chosen becomes the setting ``stop``.
        space: the values of the other settings. ``radius`` is that of the seed disc, as a fraction of the side.
    """

    run: Run
    stops: tuple[int, ...]
    space: dict[str, tuple[float, ...]]


def contrast_to_seed(image: np.ndarray, seed: np.ndarray, sigma: float) -> np.ndarray:
    """I - m after smoothing by a Gaussian of ``sigma`` pixels; m is the seed's median, DARKEST at least."""
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)
    return smooth - max(np.median(smooth[seed]), DARKEST)


def potential(image: np.ndarray, seed: np.ndarray, settings: Settings) -> np.ndarray:
    """g = 1 / (1 + q^sharpness), q = (|grad I| / contrast)^2 + (likeness (I - m))^2, of the smoothed image.

    With likeness 0 and sharpness 1 it is the edge indicator of :func:`lsbook.levelset.edge_indicator`; with likeness it
    also falls where the intensity is not that of the seed. The metric of a geodesic contour may be any positive g.
    """
    difference = contrast_to_seed(image, seed, settings["sigma"])
    gy, gx = np.gradient(difference)
    q = (gx**2 + gy**2) / settings["contrast"] ** 2 + (settings["likeness"] * difference) ** 2
    return 1 / (1 + q ** settings["sharpness"])


def threshold(image: np.ndarray, seed: np.ndarray, settings: Settings, stops: Sequence[int]) -> list[np.ndarray]:
    """-below < I - m < above after smoothing, opened by a disc of ``stop`` pixels; of that, the seed's part."""
    difference = contrast_to_seed(image, seed, settings["sigma"])
    window = (difference > -settings["below"]) & (difference < settings["above"])
    return [seeded_part(ndimage.binary_opening(window, disk(r)), seed) for r in stops]


def seeded_part(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The connected part (edges and corners connect) with most pixels of the seed; empty if there is none."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    shared = np.bincount(parts[seed], minlength=2)
    shared[0] = 0  # the background
    return (parts == shared.argmax()) & shared.any()


def chan_vese(image: np.ndarray, seed: np.ndarray, settings: Settings, stops: Sequence[int]) -> list[np.ndarray]:
    """Morphological form (Marquez-Neila et al. 2014) of active contours without edges (Chan, Vese 2001).

    Its image is the likeness to the seed, 1 / (1 + (likeness (I - m))^2), because an abdomen has more than two
    intensities. ``inside`` is the weight of the inside's variance, the outside's is 1. It stops after ``stop``
    iterations: the contour moves by about a pixel in each, so that the liver's neighbours are reached later.
    """
    like = 1 / (1 + (settings["likeness"] * contrast_to_seed(image, seed, settings["sigma"])) ** 2)
    masks: list[np.ndarray] = []  # the first is the seed
    options = {"smoothing": settings["smoothing"], "lambda1": settings["inside"], "lambda2": 1}
    morphological_chan_vese(like, stops[-1], seed, **options, iter_callback=lambda u: masks.append(u > 0))
    return [masks[stop] for stop in stops]


def morphological_gac(
    image: np.ndarray, seed: np.ndarray, settings: Settings, stops: Sequence[int]
) -> list[np.ndarray]:
    """Morphological form (Marquez-Neila et al. 2014) of geodesic active contours, after ``stop`` iterations.

    The balloon rests where :func:`potential` is below 1/2, that is q > 1. Only that and the direction of its gradient
    matter, so another threshold or sharpness would be another contrast and likeness. The balloon is always on: without
    it the contour has nothing to follow inside an organ and does not leave the seed.
    """
    masks: list[np.ndarray] = []
    options = {"smoothing": settings["smoothing"], "threshold": 0.5, "balloon": 1}
    g = potential(image, seed, settings)
    morphological_geodesic_active_contour(g, stops[-1], seed, **options, iter_callback=lambda u: masks.append(u > 0))
    return [masks[stop] for stop in stops]


def itk_gac(image: np.ndarray, seed: np.ndarray, settings: Settings, stops: Sequence[int]) -> list[np.ndarray]:
    """Geodesic active contours (Caselles, Kimmel, Sapiro 1997) on ITK's sparse field, after ``stop`` iterations.

    The propagation scaling is 1; ``curvature`` and ``advection`` are relative to it. From stop to stop the solver goes
    on from its own level set, which changes the result by a small part of a pixel.
    """
    g = sitk.GetImageFromArray(potential(image, seed, settings).astype(np.float32))
    distance = ndimage.distance_transform_edt(~seed) - ndimage.distance_transform_edt(seed)
    phi = sitk.GetImageFromArray((distance - np.sign(distance) / 2).astype(np.float32))
    solver = sitk.GeodesicActiveContourLevelSetImageFilter()
    solver.SetNumberOfThreads(1)
    solver.SetPropagationScaling(1)
    solver.SetCurvatureScaling(settings["curvature"])
    solver.SetAdvectionScaling(settings["advection"])
    solver.SetMaximumRMSError(0)  # so that it makes all its iterations
    masks = []
    for before, stop in pairwise((0, *stops)):
        solver.SetNumberOfIterations(int(stop - before))
        phi = solver.Execute(phi, g)
        masks.append(sitk.GetArrayFromImage(phi) < 0)
    return masks


WINDOW = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # of [-1, 1]; 0.1 is 10 HU in the default window
METHODS = {
    "threshold": Peer(
        threshold,
        tuple(range(8)),
        {"radius": (0.04, 0.06, 0.1), "sigma": (0.5, 1, 1.5), "below": WINDOW, "above": WINDOW},
    ),
    "chan-vese": Peer(
        chan_vese,
        tuple(range(10, 121, 10)),
        {"radius": (0.04, 0.06, 0.1), "sigma": (0.5, 1, 2), "likeness": (1, 1.5, 2, 3, 4)}
        | {"inside": (0.5, 1, 2, 4), "smoothing": (1, 2, 3, 4)},
    ),
    "morphological-gac": Peer(
        morphological_gac,
        tuple(range(10, 81, 10)),
        {"radius": (0.04, 0.06, 0.1), "sigma": (0.5, 1, 1.5), "contrast": (0.03, 0.05, 0.08, 0.12, 0.2)}
        | {"likeness": (0, 1.5, 2, 3, 4, 5), "sharpness": (1,), "smoothing": (1, 2, 3, 4)},
    ),
    "itk-gac": Peer(
        itk_gac,
        (50, 100, 150, 200, 300, 400, 600),
        {"radius": (0.04, 0.06), "sigma": (0.7, 1, 1.5), "contrast": (0.03, 0.05, 0.1, 0.2)}
        | {"likeness": (0, 2, 4, 6), "sharpness": (1, 2), "curvature": (0.2, 0.5, 1, 2), "advection": (1, 3, 6, 10)},
    ),
}


class Sample(NamedTuple):
    """Slices to try settings on: images and liver masks ``(N, H, W)``, and the number of each slice's scan ``(N,)``."""

    images: np.ndarray
    livers: np.ndarray
    scans: np.ndarray

    def mean_dice(self, masks: np.ndarray) -> float:
        """Dice of each scan over its slices here, at working size; mean over the scans."""
        return float(np.mean([dice(self.livers[self.scans == n], masks[self.scans == n]) for n in set(self.scans)]))


def sample(dataset: SliceDataset, count: int) -> Sample:
    """About ``count`` slices of a dataset, evenly spaced: every k-th."""
    items = range(0, len(dataset), max(1, round(len(dataset) / count)))
    images, livers = zip(*(dataset[item] for item in items), strict=True)
    scans = np.array([dataset.index[item][0] for item in items])
    return Sample(torch.cat(images).numpy(), torch.cat(livers).numpy() > 0.5, scans)


def seed_mask(shape: tuple[int, int], center: Sequence[float], radius: float) -> np.ndarray:
    """The seed disc as a bool mask ``(H, W)``; center and radius are fractions of the sides, as in ``networks.disc``.

    Raises:
        ValueError: if no pixel is inside.
    """
    mask = (disc(shape, tuple(center), radius)[0, 0] > 0).numpy()
    if not mask.any():
        raise ValueError(f"a seed disc of radius {radius} holds no pixel of {shape[0]} x {shape[1]}; take a larger one")
    return mask


class Tuned(NamedTuple):
    """What :func:`tune` found: settings with ``stop``, their mean Dice on training slices, how many were tried."""

    settings: Settings
    dice: float
    tried: int


RUNGS = ((32, 16), (8, 48), (2, 120))


def tune(peer: Peer, dataset: SliceDataset, center: Sequence[float], rungs: Rungs = RUNGS, seed: int = 0) -> Tuned:
    """The best of randomly drawn settings by successive halving (Jamieson, Talwalkar 2016): few slices sort out most.

    Args:
        peer: whose settings.
        dataset: training slices; nothing else is looked at.
        center: (y, x) of the seed disc as fractions, from :func:`lsbook.training.densest_point`.
        rungs: (settings, slices): so many settings are drawn and run on so many slices; then so many of the best on so
            many slices, and so on. Each run is scored at every stop.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    points = [{name: v[rng.integers(len(v))] for name, v in peer.space.items()} for _ in range(rungs[0][0])]
    for keep, count in rungs:
        slices, results = sample(dataset, count), []
        for settings in points[:keep]:
            disc_mask = seed_mask(slices.images.shape[1:], center, settings["radius"])
            runs = zip(*(peer.run(image, disc_mask, settings, peer.stops) for image in slices.images), strict=True)
            scores = [slices.mean_dice(np.stack(masks)) for masks in runs]
            results.append((max(scores), settings | {"stop": peer.stops[int(np.argmax(scores))]}))
        points = [settings for _, settings in sorted(results, key=lambda result: -result[0])]
    return Tuned(points[0], max(score for score, _ in results), rungs[0][0] * len(peer.stops))


class Classical(nn.Module):
    """A tuned peer as a model: images ``(B, 1, H, W)`` in, masks of 0.0 and 1.0 out, so that it is scored like one.

    Its one parameter is the seed's center; it is not trained.
    """

    def __init__(self, peer: Peer, settings: Settings, center: Sequence[float]):
        super().__init__()
        self.peer, self.settings = peer, settings
        self.center = nn.Parameter(torch.tensor(center, dtype=torch.float64), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        seed = seed_mask(tuple(image.shape[-2:]), self.center.tolist(), self.settings["radius"])
        slices = image[:, 0].cpu().numpy()
        masks = [self.peer.run(part, seed, self.settings, [self.settings["stop"]])[0] for part in slices]
        return torch.from_numpy(np.stack(masks)).to(image)[:, None]
