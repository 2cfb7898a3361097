"""Finite difference stencils written as 3x3 convolution kernels.

Axis order is the tensor's: ``spacing = (hy, hx)``, y along the rows (downwards), x along the columns. Deep learning's
"convolution" is cross-correlation, ``out[i, j] = sum_ab k[a, b] u[i + a - 1, j + b - 1]``, so a kernel reads as it
is applied: ``[-1, 1, 0] / h`` is the backward difference u_j - u_(j-1). Every kernel here has mean zero.

Formulas: LeVeque, Finite Difference Methods for Ordinary and Partial Differential Equations (2007), chapter 1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Spacing = tuple[float, float]

BACKWARD = (-1.0, 1.0, 0.0)
FORWARD = (0.0, -1.0, 1.0)
CENTRAL = (-0.5, 0.0, 0.5)
SECOND = (1.0, -2.0, 1.0)


class Differences(NamedTuple):
    """All differences of u that the level set equation needs, each of u's shape ``(B, 1, H, W)``."""

    backward_y: Tensor
    forward_y: Tensor
    backward_x: Tensor
    forward_x: Tensor
    second_y: Tensor
    second_x: Tensor
    mixed: Tensor

    @property
    def central_y(self) -> Tensor:
        """(D+ + D-) / 2 along y, second order."""
        return (self.backward_y + self.forward_y) / 2

    @property
    def central_x(self) -> Tensor:
        """(D+ + D-) / 2 along x, second order."""
        return (self.backward_x + self.forward_x) / 2


def along_y(weights: tuple[float, ...], scale: float = 1.0) -> Tensor:
    """A 3x3 kernel with the three weights, divided by ``scale``, in its middle column."""
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    kernel[:, 1] = torch.tensor(weights, dtype=torch.float64) / scale
    return kernel


def along_x(weights: tuple[float, ...], scale: float = 1.0) -> Tensor:
    """A 3x3 kernel with the three weights, divided by ``scale``, in its middle row."""
    return along_y(weights, scale).T.contiguous()


def kernels(spacing: Spacing = (1.0, 1.0)) -> dict[str, Tensor]:
    """The seven kernels of :class:`Differences`, by name and in its order, float64, shape ``(3, 3)``.

    Raises:
        ValueError: if a spacing is not positive.
    """
    hy, hx = spacing
    if not (hy > 0 and hx > 0):
        raise ValueError(f"spacing must be two positive lengths (hy, hx), not {spacing}")
    central_y, central_x = along_y(CENTRAL, hy), along_x(CENTRAL, hx)
    return {
        "backward_y": along_y(BACKWARD, hy),
        "forward_y": along_y(FORWARD, hy),
        "backward_x": along_x(BACKWARD, hx),
        "forward_x": along_x(FORWARD, hx),
        "second_y": along_y(SECOND, hy**2),
        "second_x": along_x(SECOND, hx**2),
        "mixed": central_y[:, 1:2] * central_x[1:2, :],
    }


def replicate(u: Tensor) -> Tensor:
    """Pad rows and columns by one, repeating the border: a zero normal derivative (Neumann). ``(B, C, H+2, W+2)``."""
    return F.pad(u, (1, 1, 1, 1), mode="replicate")


def differences(u: Tensor, bank: Tensor) -> Differences:
    """All differences of ``u`` by one convolution.

    Args:
        u: shape ``(B, 1, H, W)``.
        bank: the kernels, stacked to ``(7, 1, 3, 3)`` in the order of :func:`kernels`.
    """
    return Differences(*F.conv2d(replicate(u), bank).split(1, dim=1))


def kernel_bank(spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """:func:`kernels` stacked for :func:`differences`, float64, shape ``(7, 1, 3, 3)``."""
    return torch.stack(list(kernels(spacing).values())).unsqueeze(1)


def central_gradient(f: Tensor, spacing: Spacing = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Central differences (f_y, f_x) of ``f``, shape ``(B, 1, H, W)`` each; |f_y| <= 1 / (2 hy) where 0 <= f <= 1."""
    hy, hx = spacing
    padded = replicate(f)
    f_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / (2 * hy)
    f_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / (2 * hx)
    return f_y, f_x
