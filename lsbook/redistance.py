"""Turn a level set function into the signed distance to its zero contour, without moving the contour.

March phi_t = s (1 - |grad phi|), s = sign(u), until |grad phi| = 1 (Sussman, Smereka, Osher 1994). Differences taken
across the contour would move it; so cells beside it get their distance from u itself, u / |grad u|, and keep it
(a variant of the sub-cell fix of Russo, Smereka 2000, who drive them there).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .schemes import eikonal, one_sided


def beside_contour(u: Tensor) -> Tensor:
    """True in cells that have a neighbor along an axis on the other side of the contour; bool, u's shape."""
    side, near = u > 0, torch.zeros_like(u, dtype=torch.bool)
    for dim in range(2, u.ndim):
        cells = u.shape[dim] - 1
        differs = side.narrow(dim, 0, cells) != side.narrow(dim, 1, cells)
        near.narrow(dim, 0, cells).logical_or_(differs)
        near.narrow(dim, 1, cells).logical_or_(differs)
    return near


def contour_distance(u: Tensor, spacing: Sequence[float]) -> Tensor:
    """u / |grad u|: the distance to the contour, to second order, in cells beside it."""
    pairs = [one_sided(u, axis, h) for axis, h in enumerate(spacing)]
    central = sum(((backward + forward) / 2) ** 2 for backward, forward in pairs).sqrt()
    steepest = torch.stack([d.abs() for pair in pairs for d in pair]).amax(dim=0)
    # Central differences vanish at a ridge one cell wide: there the steepest one-sided slope is taken.
    norm = torch.where(central > steepest / 2, central, steepest)
    return u / norm.clamp(min=torch.finfo(u.dtype).tiny)


def redistance(u: Tensor, spacing: Sequence[float], width: float | None = None, space: str = "upwind") -> Tensor:
    """Signed distance to the zero contour of u ``(B, 1, *space)``, in the unit of ``spacing``, positive inside.

    Args:
        width: distances up to this are right, farther ones lag behind; None for the whole box.
        space: differences away from the contour, a key of ``schemes.DERIVATIVES``.

    Raises:
        ValueError: if u of some sample has only one sign and thus no contour.
    """
    near = beside_contour(u)
    if not near.flatten(1).any(dim=1).all():
        raise ValueError("u has no zero contour in a sample of the batch: it is positive, or not positive, everywhere")
    held = contour_distance(u, spacing)
    sign = torch.where(u > 0, 1.0, -1.0).to(u.dtype)
    if width is None:
        width = math.hypot(*(n * h for n, h in zip(u.shape[2:], spacing, strict=True)))
    dt = 0.5 / math.sqrt(sum(1 / h**2 for h in spacing))
    phi = torch.where(near, held, u)
    for _ in range(math.ceil(2 * width / dt)):
        phi = torch.where(near, held, phi + dt * (sign + eikonal(phi, -sign, spacing, space)))
    return phi
