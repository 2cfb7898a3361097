"""The ladder from solver to network: LSE, LSE-G, LSN, U-Net (Actor, Fuentes, Riviere 2020).

Each takes slices ``(B, 1, H, W)`` scaled to [-1, 1] and gives the probability of liver, ``(B, 1, H, W)``. The first
three are one class: N steps of the level set equation that share their weights, started from a small disc.

    model   edge indicator g   curvature            trained
    LSE     formula            compact differences  alpha, beta, gamma
    LSE-G   learned            compact differences  + the edge net
    LSN     learned            learned 3x3 kernels  + the curvature kernels
    U-Net   -                  -                    everything

Lengths are in pixels (h = 1). The level set u is positive inside, starts as a signed distance clipped to +-BAND, and is
read out as sigmoid(u / WIDTH).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .levelset import KAPPA_LIMIT, Speeds, edge_indicator, regularization, root, sliced_step, speeds, worst_cfl
from .stencils import CENTRAL, along_x, along_y, central_gradient, replicate
from .stepping import advance, choose_method
from .unet import EdgeNet, UNet

MODELS = ("lse", "lse-g", "lsn", "unet", "unet-textbook")
DT = 0.2  # with alpha = beta = gamma = 1, the paper's start, the CFL number is then at most 0.88
BAND = 4.0  # pixels
WIDTH = 1.0  # pixels
SAFETY = 0.95  # CFL number that no image can exceed


def disc(shape: tuple[int, int], center: tuple[float, float], radius: float) -> Tensor:
    """Signed distance to a circle in pixels, u > 0 inside, clipped to +-BAND.

    Args:
        shape: (H, W) in pixels.
        center: (y, x) as fractions of H and W.
        radius: as a fraction of the longer side.

    Returns:
        u0, float32, shape ``(1, 1, H, W)``.
    """
    y = torch.arange(shape[0]).view(-1, 1) + 0.5 - center[0] * shape[0]
    x = torch.arange(shape[1]).view(1, -1) + 0.5 - center[1] * shape[1]
    return (radius * max(shape) - torch.hypot(y, x)).clamp(-BAND, BAND)[None, None]


def signed_distance(mask: np.ndarray) -> Tensor:
    """u0 from a mask ``(H, W)``: distance to its border in pixels, positive inside, clipped; ``(1, 1, H, W)``."""
    if mask.all() or not mask.any():
        return torch.full((1, 1, *mask.shape), BAND if mask.any() else -BAND)
    inside, outside = distance_transform_edt(mask), distance_transform_edt(mask == 0)
    u = np.where(mask, inside - 0.5, 0.5 - outside)
    return torch.from_numpy(u.astype(np.float32)).clamp(-BAND, BAND)[None, None]


class LearnedCurvature(nn.Module):
    """kappa |grad u| with learned kernels: 3x3 to ``channels``, division by their norm, 3x3 back to one.

    It starts as the divergence form: central differences in two channels, small random kernels in the others. kappa is
    clipped to +-KAPPA_LIMIT per pixel, the most that the divergence form can reach.
    """

    def __init__(self, channels: int = 16):
        super().__init__()
        self.normal = nn.Parameter(0.05 * torch.randn(channels, 1, 3, 3))
        self.divergence = nn.Parameter(0.05 * torch.randn(1, channels, 3, 3))
        self.set_channels(slice(0, 2), torch.stack([along_y(CENTRAL), along_x(CENTRAL)]))

    @torch.no_grad()
    def set_channels(self, which: slice, stencils: Tensor) -> None:
        """Copy stencils ``(n, 3, 3)`` into the chosen channels of both layers."""
        self.normal[which] = stencils.unsqueeze(1).to(self.normal.dtype)
        self.divergence[:, which] = stencils.unsqueeze(0).to(self.divergence.dtype)

    def forward(self, u: Tensor) -> Tensor:
        v = F.conv2d(replicate(u), self.normal)
        n = v / ((v**2).sum(dim=1, keepdim=True) + regularization((1.0, 1.0))).sqrt()
        kappa = F.conv2d(replicate(n), self.divergence).clamp(-KAPPA_LIMIT, KAPPA_LIMIT)
        uy, ux = central_gradient(u)
        return kappa * root(ux**2 + uy**2)


class LevelSetNetwork(nn.Module):
    """N steps of the level set equation on a slice: LSE, or with ``learn_edge`` LSE-G, or with both flags LSN.

    The three raw coefficients become alpha = softplus(raw) >= 0, beta, gamma, scaled down together where they pass
    the CFL limit on the worst image (:func:`lsbook.levelset.worst_cfl`). T = N dt is the stopping time. With learned
    curvature that bound covers transport and balloon; u is then clipped to +-BAND after each step, as the exact flow,
    which has a maximum principle, would stay there.

    Args:
        learn_edge: g from :class:`EdgeNet` instead of the formula.
        learn_curvature: :class:`LearnedCurvature` instead of compact differences.
        steps: N.
        contrast, sigma: edge scale of the formula, per pixel, and its smoothing in pixels.
        seed: (y, x, radius) of the disc that starts u, as fractions of the slice, or several whose union starts it; set
            it from training data only.
        method: form of the steps, see :mod:`lsbook.stepping`.
        checkpoint_every: recompute the forward pass in segments of so many steps to save memory; 0 keeps everything.
    """

    def __init__(
        self,
        learn_edge: bool,
        learn_curvature: bool,
        steps: int = 100,
        contrast: float = 0.05,
        sigma: float = 1.0,
        seed: Sequence[float] | Sequence[Sequence[float]] = (0.45, 0.3, 0.06),
        method: str = "auto",
        checkpoint_every: int = 0,
    ):
        super().__init__()
        self.steps, self.contrast, self.sigma, self.seed = steps, contrast, sigma, np.atleast_2d(seed).tolist()
        self.method, self.checkpoint_every = method, checkpoint_every
        self.raw = nn.Parameter(torch.tensor([0.5413, 1.0, 1.0]))  # softplus(0.5413) = 1
        self.edge_net = EdgeNet() if learn_edge else None
        self.learned_curvature = LearnedCurvature() if learn_curvature else None

    def coefficients(self) -> Tensor:
        """(alpha, beta, gamma) as used: alpha >= 0, and stable for every image."""
        raw = torch.cat([F.softplus(self.raw[:1]), self.raw[1:]])
        return raw / (worst_cfl(DT, *raw) / SAFETY).clamp(min=1.0)

    def edge(self, image: Tensor) -> Tensor:
        """g of the slices, ``(B, 1, H, W)`` in [0, 1]."""
        if self.edge_net is not None:
            return self.edge_net(image).to(image.dtype)
        with torch.autocast(image.device.type, enabled=False):
            return edge_indicator(image, self.contrast, self.sigma)

    def speeds(self, image: Tensor) -> Speeds:
        """What moves u, at each pixel; in the image's precision, as the steps are, also where autocast is on."""
        g = self.edge(image)
        with torch.autocast(image.device.type, enabled=False):
            return speeds(g, *self.coefficients())

    def start(self, image: Tensor) -> Tensor:
        """The seed disc, or discs, for a batch of slices."""
        discs = [disc(image.shape[-2:], (y, x), radius) for y, x, radius in self.seed]
        return torch.cat(discs).amax(dim=0, keepdim=True).to(image).expand_as(image)

    def advance(self, u: Tensor, v: Speeds, steps: int) -> Tensor:
        """u some steps later, by the fastest form; clipped to +-BAND after each step where curvature is learned."""
        bend = self.learned_curvature
        with torch.autocast(u.device.type, enabled=False):
            if bend is None:
                return advance(u, v, DT, steps, method=self.method)
            if choose_method(u, self.method) == "fused":
                from .fused_bending import fused_learned_steps

                return fused_learned_steps(u, v, bend.normal, bend.divergence, DT, BAND, steps)
            for _ in range(steps):
                u = sliced_step(u, v, DT, bending=bend).clamp(-BAND, BAND)
            return u

    def trajectory(self, image: Tensor, u0: Tensor | None = None, every: int = 10) -> Iterator[Tensor]:
        """u at steps 0, every, 2 every, ..., N."""
        v = self.speeds(image)
        u = self.start(image) if u0 is None else u0
        yield u
        for first in range(0, self.steps, every):
            u = self.advance(u, v, min(every, self.steps - first))
            yield u

    def level_set(self, image: Tensor, u0: Tensor | None = None) -> Tensor:
        """u after N steps, from the seed disc or from a given u0; ``(B, 1, H, W)``."""
        v = self.speeds(image)
        u = self.start(image) if u0 is None else u0
        segment = self.checkpoint_every if self.checkpoint_every and torch.is_grad_enabled() else self.steps
        for first in range(0, self.steps, max(segment, 1)):
            count = min(segment, self.steps - first)
            if segment < self.steps:
                u = checkpoint(self.advance, u, v, count, use_reentrant=False)
            else:
                u = self.advance(u, v, count)
        return u

    def forward(self, image: Tensor, u0: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.level_set(image, u0) / WIDTH)


def build_model(name: str, **options) -> nn.Module:
    """A model of the ladder by name; options are those of its class.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "unet":
        return UNet(**options)
    if name == "unet-textbook":
        return UNet(**({"filters": 8, "textbook": True, "dropout": 0.0, "batch_norm": True} | options))
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    return LevelSetNetwork(learn_edge=name != "lse", learn_curvature=name == "lsn", **options)
