"""Exact solutions of the level set equation: the ruler for every scheme.

``x`` is a tuple of coordinates, one tensor for each space axis, that broadcast to ``(1, 1, *space)``. Lengths and times
in one unit. u > 0 inside. Most are cases of the formula of Hopf and Lax: under u_t = |grad u| the value at x and t is
the largest that u had at time 0 within the distance t of x; under u_t = -|grad u|, the smallest.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Points = Sequence[Tensor]


def centers(shape: Sequence[int], spacing: Sequence[float]) -> tuple[Tensor, ...]:
    """Cell centers of a grid whose middle is the origin: one float64 tensor for each axis, to be broadcast."""
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * h for n, h in zip(shape, spacing, strict=True)]
    return tuple(x.view([1, 1] + [-1 if i == axis else 1 for i in range(len(axes))]) for axis, x in enumerate(axes))


def radius(x: Points, center: Sequence[float] | None = None) -> Tensor:
    """|x - center|, shape ``(1, 1, *space)``."""
    center = center or [0.0] * len(x)
    return torch.sqrt(sum((a - c) ** 2 for a, c in zip(x, center, strict=True)))


def advected(profile: Callable[..., Tensor], x: Points, wind: Sequence[float], t: float) -> Tensor:
    """u_t = w . grad u with constant w: ``profile(*x)`` moved with velocity -w."""
    return profile(*(a + t * w for a, w in zip(x, wind, strict=True)))


def growing_ball(x: Points, t: float, r0: float) -> Tensor:
    """u_t = |grad u| from the cone r0 - |x|: r0 - max(|x| - t, 0). The tip turns into a plateau of radius t."""
    return r0 - (radius(x) - t).clamp(min=0)


def shrinking_ball(x: Points, t: float, r0: float) -> Tensor:
    """u_t = -|grad u| from the cone r0 - |x|: r0 - |x| - t."""
    return r0 - radius(x) - t


def curvature_ball(x: Points, t: float, r0: float) -> Tensor:
    """u_t = kappa |grad u| from the cone: r0 - sqrt(|x|^2 + 2 (d - 1) t) in d dimensions."""
    return r0 - torch.sqrt(sum(a**2 for a in x) + 2 * (len(x) - 1) * t)


def merging_balls(x: Points, t: float, r0: float, middles: Sequence[Sequence[float]]) -> Tensor:
    """u_t = |grad u| from several balls of radius r0: the largest of the single solutions, with a kink between them."""
    distance = torch.stack([radius(x, middle) for middle in middles]).amin(dim=0)
    return r0 - (distance - t).clamp(min=0)


def growing_square(x: Points, t: float, a: float) -> Tensor:
    """u_t = |grad u| in the plane, from a - max(|x|, |y|), whose level lines are squares: corners round to radius t.

    The value at a point is a - s, where s >= 0 is the half-width of the smallest square within the distance t.
    """
    far, near = torch.maximum(x[0].abs(), x[1].abs()), torch.minimum(x[0].abs(), x[1].abs())
    by_corner = (far + near - (2 * t**2 - (far - near) ** 2).clamp(min=0).sqrt()) / 2
    return a - torch.where(near <= far - t, far - t, by_corner).clamp(min=0)


def shrinking_square(x: Points, t: float, a: float) -> Tensor:
    """u_t = -|grad u| in the plane, from a - max(|x|, |y|): a - max(|x|, |y|) - t, corners stay sharp."""
    return a - torch.maximum(x[0].abs(), x[1].abs()) - t


def crossing_front(x: Points, t: float, depth: float = 4.0, width: float = 0.2) -> tuple[Tensor, Tensor]:
    """u_t = F |grad u| for a front that crosses an edge: (u, F), with F(x_0) = 1 / (1 + depth / cosh(x_0 / width)^2).

    The front moves towards larger x_0 and is where t equals the travel time T(x_0), T' = 1 / F, counted from T(0) = 0;
    u = t - T. At the edge, x_0 = 0, it is 1 + depth times slower than far away.
    """
    travel = x[0] + depth * width * torch.tanh(x[0] / width)
    speed = 1 / (1 + depth / torch.cosh(x[0] / width) ** 2)
    flat = sum((0 * a for a in x), torch.zeros(()))
    return t - travel + flat, speed + flat
