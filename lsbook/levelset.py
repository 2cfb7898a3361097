"""The level set equation of geodesic active contours, and one explicit step of it as a network.

    u_t = alpha g kappa |grad u|  +  beta grad g . grad u  +  gamma g |grad u|,    kappa = div(grad u / |grad u|)

(Caselles, Kimmel, Sapiro 1997, with the three coefficients of Actor, Fuentes, Riviere 2020.) Here u > 0 inside, g is an
edge indicator in [0, 1], alpha >= 0 shortens the contour, beta > 0 draws it to edges, gamma > 0 expands it. Everything
that does not change from step to step is computed once (:func:`speeds`). :class:`LevelSetStep` is the definition, made
of convolutions, ReLU and pointwise operations; :func:`sliced_step` is the same update, several times faster to train
through. ``lsbook.reference`` repeats it in NumPy. Boundaries are replicated (zero normal derivative).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stencils import Differences, Spacing, central_gradient, differences, kernel_bank, replicate

Bending = Callable[[Tensor], Tensor]  # u -> kappa |grad u|

ROOT_FLOOR = 1e-18  # its square, a normal float32, is added under a root, where a small difference squared becomes 0
KAPPA_LIMIT = 2.0  # per pixel: the most that central differences taken twice can reach


def regularization(spacing: Spacing) -> float:
    """The epsilon in the denominator of the curvature term, (h / 10)^2: it vanishes with the grid, order 2 survives."""
    return (min(spacing) / 10) ** 2


def root(square: Tensor) -> Tensor:
    """sqrt(square), exactly 0 at 0 (to rounding) and with a finite derivative there."""
    return (square + ROOT_FLOOR**2).sqrt() - ROOT_FLOOR


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Smooth ``(B, 1, H, W)`` by a Gaussian of ``sigma`` pixels, cut off at 3 sigma, replicated at the border."""
    if sigma == 0:
        return image
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(image, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def edge_indicator(image: Tensor, contrast: float, sigma: float = 1.0, spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """g = 1 / (1 + (|grad G_sigma * I| / contrast)^2): near 0 on edges, 1 where the image is flat.

    The contrast is a fixed number and not taken from the batch, so a slice's g does not depend on its neighbours.

    Args:
        image: I, shape ``(B, 1, H, W)``.
        contrast: gradient (units of I per unit length) at which g is 1/2.
        sigma: width of the smoothing in pixels.

    Returns:
        g in (0, 1], shape ``(B, 1, H, W)``.
    """
    gy, gx = central_gradient(gaussian_blur(image, sigma), spacing)
    return 1 / (1 + (gx**2 + gy**2) / contrast**2)


class Speeds(NamedTuple):
    """What drives the front, computed once per image; each ``(B, 1, H, W)``: alpha g, beta grad g, gamma g."""

    bend: Tensor
    wind_y: Tensor
    wind_x: Tensor
    push: Tensor


def speeds(g: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, spacing: Spacing = (1.0, 1.0)) -> Speeds:
    """The speeds of the three terms from an edge indicator ``(B, 1, H, W)`` and three scalars."""
    gy, gx = central_gradient(g, spacing)
    return Speeds(alpha * g, beta * gy, beta * gx, gamma * g)


def transport(d: Differences, v: Speeds) -> Tensor:
    """F . grad u with F = beta grad g: ReLU picks the forward difference where F > 0, the backward where F < 0."""
    along_y = F.relu(v.wind_y) * d.forward_y - F.relu(-v.wind_y) * d.backward_y
    along_x = F.relu(v.wind_x) * d.forward_x - F.relu(-v.wind_x) * d.backward_x
    return along_y + along_x


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """max(a, b) as a network writes it: a + ReLU(b - a)."""
    return a + F.relu(b - a)


def godunov(d: Differences, sign: int) -> Tensor:
    """Upwind |grad u| of Godunov's scheme (Rouy, Tourin 1992) for a front that expands (+1) or shrinks (-1)."""
    along_y = maximum(F.relu(sign * d.forward_y), F.relu(-sign * d.backward_y))
    along_x = maximum(F.relu(sign * d.forward_x), F.relu(-sign * d.backward_x))
    return root(along_y**2 + along_x**2)


def balloon(d: Differences, v: Speeds) -> Tensor:
    """F |grad u| with F = gamma g, each sign of F with its own upwind gradient."""
    return F.relu(v.push) * godunov(d, +1) - F.relu(-v.push) * godunov(d, -1)


def curvature(d: Differences, epsilon: float) -> Tensor:
    """kappa |grad u| = (u_yy u_x^2 - 2 u_x u_y u_xy + u_xx u_y^2) / (u_x^2 + u_y^2 + epsilon), compact 3x3 stencils."""
    ux, uy = d.central_x, d.central_y
    numerator = d.second_y * ux**2 - 2 * ux * uy * d.mixed + d.second_x * uy**2
    return numerator / (ux**2 + uy**2 + epsilon)


def divergence_curvature(u: Tensor, epsilon: float, spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """kappa |grad u| as div(grad u / |grad u|) |grad u|, by central differences twice.

    A 5x5 stencil, blind to odd-even noise. This is the form that the level set network can learn; :func:`curvature` is
    the better scheme.
    """
    uy, ux = central_gradient(u, spacing)
    norm = (ux**2 + uy**2 + epsilon).sqrt()
    kappa = central_gradient(uy / norm, spacing)[0] + central_gradient(ux / norm, spacing)[1]
    return kappa * root(ux**2 + uy**2)


class LevelSetStep(nn.Module):
    """One forward Euler step of the level set equation, as a network layer with fixed kernels.

    Every operation is one of: convolution with a mean-zero 3x3 kernel, ReLU, sum, product, quotient, root, and the
    identity skip ``u + dt * (...)``. Shapes ``(B, 1, H, W)`` in and out. ``bending`` replaces the compact form of
    kappa |grad u| by another function of u.
    """

    def __init__(self, dt: float, spacing: Spacing = (1.0, 1.0), bending: Bending | None = None):
        super().__init__()
        self.dt, self.spacing, self.bending = dt, spacing, bending
        self.register_buffer("bank", kernel_bank(spacing), persistent=False)

    def forward(self, u: Tensor, v: Speeds) -> Tensor:
        d = differences(u, self.bank.to(u.dtype))
        bend = self.bending(u) if self.bending else curvature(d, regularization(self.spacing))
        return u + self.dt * (v.bend * bend + transport(d, v) + balloon(d, v))


def sliced_step(
    u: Tensor, v: Speeds, dt: float, spacing: Spacing = (1.0, 1.0), bending: Bending | None = None
) -> Tensor:
    """The update of :class:`LevelSetStep` by shifted slices; skips a side of the balloon, or a bend, that is zero."""
    hy, hx = spacing
    p = replicate(u)
    north, south = p[:, :, :-2, 1:-1], p[:, :, 2:, 1:-1]
    west, east = p[:, :, 1:-1, :-2], p[:, :, 1:-1, 2:]
    back_y, fore_y = (u - north) / hy, (south - u) / hy
    back_x, fore_x = (u - west) / hx, (east - u) / hx
    rate = F.relu(v.wind_y) * fore_y - F.relu(-v.wind_y) * back_y
    rate = rate + F.relu(v.wind_x) * fore_x - F.relu(-v.wind_x) * back_x
    for sign in (1, -1):
        if (sign * v.push > 0).any():
            along_y = F.relu(torch.maximum(sign * fore_y, -sign * back_y))
            along_x = F.relu(torch.maximum(sign * fore_x, -sign * back_x))
            rate = rate + sign * F.relu(sign * v.push) * root(along_y**2 + along_x**2)
    if bending:
        rate = rate + v.bend * bending(u)
    elif v.bend.requires_grad or v.bend.any():
        uy, ux = (south - north) / (2 * hy), (east - west) / (2 * hx)
        uyy, uxx = (fore_y - back_y) / hy, (fore_x - back_x) / hx
        uxy = (p[:, :, 2:, 2:] - p[:, :, 2:, :-2] - p[:, :, :-2, 2:] + p[:, :, :-2, :-2]) / (4 * hy * hx)
        numerator = uyy * ux**2 - 2 * ux * uy * uxy + uxx * uy**2
        rate = rate + v.bend * numerator / (ux**2 + uy**2 + regularization(spacing))
    return u + dt * rate


def cfl(dt: float, g: Tensor, alpha: float, beta: float, gamma: float, spacing: Spacing = (1.0, 1.0)) -> float:
    """The CFL number of a step: at most 1 where the frozen-coefficient scheme is stable, sharp for hy = hx.

    max over pixels of dt (|gamma| g sqrt(1/hy^2 + 1/hx^2) + |beta| (|g_y|/hy + |g_x|/hx) + 2 |alpha| g / min(h)^2)
    """
    hy, hx = spacing
    gy, gx = central_gradient(g, spacing)
    speed = abs(gamma) * g * math.hypot(1 / hy, 1 / hx) + abs(beta) * (gy.abs() / hy + gx.abs() / hx)
    return float(dt * (speed + 2 * abs(alpha) * g / min(spacing) ** 2).max())


def worst_cfl(dt: float, alpha: Tensor, beta: Tensor, gamma: Tensor, spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """A bound of :func:`cfl` over all images: 0 <= g <= 1, and hence |g_y| <= 1/(2 hy), |g_x| <= 1/(2 hx)."""
    hy, hx = spacing
    speed = gamma.abs() * math.hypot(1 / hy, 1 / hx) + beta.abs() * (1 / (2 * hy**2) + 1 / (2 * hx**2))
    return dt * (speed + 2 * alpha.abs() / min(spacing) ** 2)


def evolve(
    u: Tensor, g: Tensor, alpha: float, beta: float, gamma: float, dt: float, steps: int, spacing: Spacing = (1.0, 1.0)
) -> Tensor:
    """Advance u by ``steps`` steps of the equation with constant coefficients.

    Raises:
        ValueError: if the step is too long to be stable.
    """
    number = cfl(dt, g, alpha, beta, gamma, spacing)
    if not 0 <= number <= 1:
        raise ValueError(f"dt = {dt} gives a CFL number of {number:.2f}, not 0 to 1; take dt <= {dt / number:.3g}")
    if alpha < 0:
        raise ValueError(f"alpha = {alpha} < 0 makes the curvature flow run backwards, which has no solution")
    v = speeds(g, *(torch.as_tensor(c, dtype=u.dtype, device=u.device) for c in (alpha, beta, gamma)), spacing)
    for _ in range(steps):
        u = sliced_step(u, v, dt, spacing)
    return u
