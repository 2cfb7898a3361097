"""Are kernels closer to known stencils than chance would have them? Null models, one fixed statistic, a test.

The statistic is fixed, and chosen from chance alone, without any trained network: the share of a layer's kernels that
match, that is, whose best |cosine| with :func:`lsbook.kernels.dictionary` is at least 0.8225 (:data:`MATCH`), as it is
for 5 % of random directions in R^9. A share is an effect size with a meaning; it depends neither on the scale of
kernels, which ReLU leaves free, nor on which of two confusable stencils is the nearer; and it leads to the rate of a
mixture. The median of the best |cosine|, 0.62 under chance, has no such reading.

Null models: Gaussian kernels; the layer's own with permuted entries; a dictionary turned at random; Gaussian kernels
with the mean and the covariance of the layer's; the same layer in networks that were only initialized; and principal
components of the patches that the layer sees, the main confounder, which takes images (:func:`patch_components`).

The independent unit is the trained network (fold and seed): kernels of one layer were trained together. So a layer of
one network has an excess over each null model, and a p-value needs several networks. Folds share most of their training
scans, so an interval speaks about networks trained again on such scans, not about other data.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from .kernels import atoms, unit

MATCH = 0.8225  # best |cosine| that 5 % of random directions in R^9 reach
NULLS = {
    "Gaussian": lambda points, rng: rng.standard_normal(points.shape),
    "entries permuted": lambda points, rng: rng.permuted(points, axis=1),
    "dictionary rotated": lambda points, rng: points @ stats.ortho_group.rvs(9, random_state=rng),
    "same covariance": lambda points, rng: rng.multivariate_normal(
        points.mean(axis=0), np.cov(points.T, bias=True), len(points), method="eigh"
    ),
}


def matches(kernels: np.ndarray) -> np.ndarray:
    """Which of the kernels ``(n, 3, 3)`` match a known stencil; zero kernels do not."""
    return (np.abs(unit(kernels) @ atoms().T) >= MATCH).any(axis=1)


def null_rates(
    kernels: np.ndarray, others: Mapping[str, Sequence[np.ndarray]], draws: int = 40, seed: int = 0
) -> dict[str, np.ndarray]:
    """Rates of matches under each null model, an array each.

    Gaussian kernels; the layer's own with permuted entries; against a dictionary turned by a random rotation (the
    kernels are turned instead); Gaussian ones with mean and covariance of the layer's unit kernels, which for a layer
    of few kernels nearly repeats it.

    Args:
        kernels: ``(n, 3, 3)``; of more than 2000, a random 2000 stand for all.
        others: sets of kernels ``(m, 3, 3)`` that are null models too: of the same layer in networks that were only
            initialized, or the :func:`patch_components` of its input.
    """
    rng = np.random.default_rng(seed)
    points = rng.permutation(unit(kernels))[:2000]
    drawn = {name: [matches(null(points, rng)) for _ in range(draws)] for name, null in NULLS.items()}
    given = {name: [matches(part) for part in parts] for name, parts in others.items()}
    return {name: np.array([m.mean() for m in found]) for name, found in (drawn | given).items()}


@torch.no_grad()
def patch_components(model: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
    """Principal components ``(9, 3, 3)``, largest first, of the 3x3 patches that each 3x3 convolution sees.

    Filters fitted to smooth images resemble them, and they resemble derivatives: the main confounder. (Where images
    vary as much in x as in y, the components are derivatives in any two directions, which the dictionary may not hold.)
    Patches of all channels count, none that reaches over the border. Layers whose input is smaller are left out.

    Args:
        model: only its ``nn.Conv2d`` are seen, not kernels that it applies otherwise.
        images: input of the model.
    """
    found = {}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, 1)[:, None].double()
        if min(x.shape[2:]) > 2 * max(module.dilation):
            patches = F.unfold(x, 3, module.dilation).movedim(1, 2).reshape(-1, 9)
            found[names[module]] = torch.linalg.eigh(torch.cov(patches.T))[1].T.flip(0).reshape(9, 3, 3).numpy()

    names = {m: n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    handles = [module.register_forward_pre_hook(collect) for module in names]
    try:
        model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def planted_rate(rate: np.ndarray, null_rate: float) -> np.ndarray:
    """Share of planted stencils in a mixture, of which every planted and ``null_rate`` of the other kernels match."""
    return (rate - null_rate) / (1 - null_rate)


class Evidence(NamedTuple):
    """For each layer: mean over the networks, its 95 % interval (Student's t), p (two-sided), p after correction."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_corrected: np.ndarray


def across_networks(values: np.ndarray) -> Evidence:
    """Is the mean of ``values`` ``(networks, layers)``, an excess or a :func:`planted_rate`, other than 0?

    Two-sided, as fewer matches than chance are a finding too. p is corrected over the layers for the false discovery
    rate (Benjamini, Hochberg 1995). Where all networks agree exactly no error can be estimated: p = 1, and the interval
    is infinite. For layers of few kernels, 16 but not 64, p is too often small: see ``by_layer_size`` in planted.json.

    Raises:
        ValueError: for fewer than two networks.
    """
    n = len(values)
    if n < 2:
        raise ValueError("one network gives no p-value: kernels of one network are not independent; give several")
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n)
    t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 1e-12)
    p = 2 * stats.t.sf(np.abs(t), n - 1)
    width = np.where(error > 1e-12, error * stats.t.ppf(0.975, n - 1), np.inf)
    return Evidence(mean, mean - width, mean + width, p, stats.false_discovery_control(p))
