"""Schemes of a declared order for the level set equation's terms, in one, two or three dimensions by the same code.

A field has the shape ``(B, 1, *space)`` with one, two or three space axes; ``spacing`` and ``wind`` have one entry for
each of them, in their order, and ``axis`` counts them from 0. A *rate* is a function from u to u_t. In space: upwind
differences of order 1, ENO of order 2 (Osher, Shu 1991) and WENO of order 5 (Jiang, Peng 2000). In time: forward Euler
and the TVD Runge-Kutta methods of order 2 and 3 (Shu, Osher 1988). Signs as in :mod:`lsbook.levelset`: u > 0 inside,
a positive speed expands, and u_t = w . grad u moves u with velocity -w.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .levelset import maximum, regularization, root

DERIVATIVES = {"upwind": 1, "eno2": 2, "weno5": 5}  # declared order in space
STEPPERS = {"euler": 1, "rk2": 2, "rk3": 3}  # declared order in time
WENO_FLOOR = 1e-6  # keeps the quotients of WENO's weights finite; for slopes of size 1


def declared_order(space: str, time: str, power: float = 1.0) -> float:
    """The order in h of a pair of schemes where u is smooth and the step is dt ~ h**power; at kinks it is at most 1."""
    return min(DERIVATIVES[space], STEPPERS[time] * power)


def extend(u: Tensor, axis: int, width: int, boundary: str = "replicate") -> Tensor:
    """Pad one space axis by ``width`` cells on both sides: "replicate" the last cell or continue "circular".

    Raises:
        ValueError: for another boundary, or a circular one of fewer than ``width`` cells.
    """
    dim, cells = axis + 2, u.shape[axis + 2]
    if boundary == "replicate":
        first, last = u.narrow(dim, 0, 1), u.narrow(dim, cells - 1, 1)
        return torch.cat([*[first] * width, u, *[last] * width], dim)
    if boundary != "circular" or cells < width:
        raise ValueError(f"boundary must be 'replicate', or 'circular' on >= {width} cells; got {boundary!r}, {cells}")
    return torch.cat([u.narrow(dim, cells - width, width), u, u.narrow(dim, 0, width)], dim)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """The one of a and b that is smaller in magnitude; their mean in a tie, so that mirrored fields stay mirrored."""
    return torch.where(a.abs() == b.abs(), (a + b) / 2, torch.where(a.abs() < b.abs(), a, b))


def weno(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """The derivative between c and d from five successive differences, downwind last (Jiang, Peng 2000, eq. 2.2).

    Three candidates of order 3 are averaged with weights that fall with their roughness; 1/10, 6/10, 3/10 give order 5.
    """
    candidates = ((2 * a - 7 * b + 11 * c) / 6, (-b + 5 * c + 2 * d) / 6, (2 * c + 5 * d - e) / 6)
    roughness = (
        13 / 12 * (a - 2 * b + c) ** 2 + (a - 4 * b + 3 * c) ** 2 / 4,
        13 / 12 * (b - 2 * c + d) ** 2 + (b - d) ** 2 / 4,
        13 / 12 * (c - 2 * d + e) ** 2 + (3 * c - 4 * d + e) ** 2 / 4,
    )
    weights = [ideal / (WENO_FLOOR + s) ** 2 for ideal, s in zip((0.1, 0.6, 0.3), roughness, strict=True)]
    return sum(w * p for w, p in zip(weights, candidates, strict=True)) / sum(weights)


def one_sided(
    u: Tensor, axis: int, h: float, space: str = "upwind", boundary: str = "replicate"
) -> tuple[Tensor, Tensor]:
    """Backward and forward biased derivatives of u along a space axis, of order ``DERIVATIVES[space]``; shape of u.

    Raises:
        ValueError: if ``space`` is not a key of :data:`DERIVATIVES`.
    """
    width = {"upwind": 1, "eno2": 2, "weno5": 3}.get(space)
    if width is None:
        raise ValueError(f"space must be one of {', '.join(DERIVATIVES)}, not {space!r}")
    dim, cells = axis + 2, u.shape[axis + 2]
    slopes = extend(u, axis, width, boundary).diff(dim=dim) / h  # between neighbors
    s = [slopes.narrow(dim, k, cells) for k in range(2 * width)]  # s[width - 1] before the cell, s[width] after it
    if space == "upwind":
        return s[0], s[1]
    if space == "eno2":
        bends = [s[k + 1] - s[k] for k in range(3)]
        return s[1] + smaller(bends[0], bends[1]) / 2, s[2] - smaller(bends[1], bends[2]) / 2
    return weno(*s[:5]), weno(*s[:0:-1])


def advection(
    u: Tensor,
    wind: Sequence[Tensor | float],
    spacing: Sequence[float],
    space: str = "upwind",
    boundary: str = "replicate",
) -> Tensor:
    """w . grad u, each axis differenced on the side that the flow comes from; see ``levelset.transport``."""
    rate = torch.zeros_like(u)
    for axis, (w, h) in enumerate(zip(wind, spacing, strict=True)):
        backward, forward = one_sided(u, axis, h, space, boundary)
        w = torch.as_tensor(w, dtype=u.dtype, device=u.device)
        rate = rate + F.relu(w) * forward - F.relu(-w) * backward
    return rate


def check_hamiltonian(name: str) -> None:
    """Raise ValueError unless the name is one of the two."""
    if name not in ("godunov", "osher-sethian"):
        raise ValueError(f"hamiltonian must be 'godunov' or 'osher-sethian', not {name!r}")


def upwind_norm(
    u: Tensor, sign: int, spacing: Sequence[float], space: str, hamiltonian: str, boundary: str = "replicate"
) -> Tensor:
    """Upwind |grad u| for a front that expands (+1) or shrinks (-1).

    Per axis "godunov" takes the larger of the two slopes that feed the cell (Rouy, Tourin 1992), "osher-sethian" the
    root of the sum of their squares (Osher, Sethian 1988); they differ at extrema only.
    """
    check_hamiltonian(hamiltonian)
    square = torch.zeros_like(u)
    for axis, h in enumerate(spacing):
        backward, forward = one_sided(u, axis, h, space, boundary)
        after, before = F.relu(sign * forward), F.relu(-sign * backward)
        square = square + (maximum(after, before) ** 2 if hamiltonian == "godunov" else after**2 + before**2)
    return root(square)


def eikonal(
    u: Tensor,
    speed: Tensor | float,
    spacing: Sequence[float],
    space: str = "upwind",
    hamiltonian: str = "godunov",
    boundary: str = "replicate",
) -> Tensor:
    """F |grad u| with the speed F, a number or a field of u's shape, of either sign."""
    speed = torch.as_tensor(speed, dtype=u.dtype, device=u.device)
    rate = torch.zeros_like(u)
    for sign in (1, -1):
        if (sign * speed > 0).any():
            norm = upwind_norm(u, sign, spacing, space, hamiltonian, boundary)
            rate = rate + sign * F.relu(sign * speed) * norm
    return rate


def mean_curvature(
    u: Tensor, spacing: Sequence[float], epsilon: float | None = None, boundary: str = "replicate"
) -> Tensor:
    """kappa |grad u| of order 2, kappa = div(grad u / |grad u|): the Laplacian less the second derivative along grad u.

    Compact central differences. ``epsilon`` in the denominator is ``levelset.regularization`` unless given.
    """
    epsilon = regularization(spacing) if epsilon is None else epsilon
    first, second = [], []
    for axis, h in enumerate(spacing):
        backward, forward = one_sided(u, axis, h, "upwind", boundary)
        first.append((backward + forward) / 2)
        second.append((forward - backward) / h)
    square = sum(d**2 for d in first)
    rate = torch.zeros_like(u)
    for j, h in enumerate(spacing):
        for i in range(j):
            mixed = sum(one_sided(first[i], j, h, "upwind", boundary)) / 2
            rate = rate + second[i] * first[j] ** 2 + second[j] * first[i] ** 2 - 2 * first[i] * first[j] * mixed
    return rate / (square + epsilon)


def evolve_by(rate: Callable[[Tensor], Tensor], u: Tensor, dt: float, steps: int, time: str = "euler") -> Tensor:
    """Advance u_t = rate(u) by ``steps`` steps; each stage is an average of u and of a forward Euler step.

    Raises:
        ValueError: if ``time`` is not a key of :data:`STEPPERS`.
    """
    mixtures = {"euler": (1.0,), "rk2": (1.0, 1 / 2), "rk3": (1.0, 1 / 4, 2 / 3)}.get(time)
    if mixtures is None:
        raise ValueError(f"time must be one of {', '.join(STEPPERS)}, not {time!r}")
    for _ in range(steps):
        stage = u
        for share in mixtures:
            stage = (1 - share) * u + share * (stage + dt * rate(stage))
        u = stage
    return u


def fastest(spacing: Sequence[float], wind: Sequence[Tensor | float], speed: Tensor | float, steepest: float) -> Tensor:
    """sum |w_i| / h_i + |F| steepest, for each cell."""
    rate = torch.as_tensor(speed, dtype=torch.float64).abs() * steepest
    for w, h in zip(wind if len(wind) else [0.0] * len(spacing), spacing, strict=True):
        rate = rate + torch.as_tensor(w, dtype=torch.float64).abs() / h
    return rate


def monotone_number(
    dt: float,
    spacing: Sequence[float],
    wind: Sequence[Tensor | float] = (),
    speed: Tensor | float = 0.0,
    hamiltonian: str = "godunov",
) -> float:
    """At most 1 where a first-order Euler step of transport and balloon is monotone: u <= v stays so. Sharp.

    dt (sum |w_i| / h_i + |F| (c sum 1 / h_i^2)^(1/2)) with c = 1 for Godunov's Hamiltonian, 2 for Osher-Sethian.
    """
    check_hamiltonian(hamiltonian)
    sides = 2 if hamiltonian == "osher-sethian" else 1
    steepest = math.sqrt(sides * sum(1 / h**2 for h in spacing))
    return dt * float(fastest(spacing, wind, speed, steepest).max())


def von_neumann_number(
    dt: float,
    spacing: Sequence[float],
    wind: Sequence[Tensor | float] = (),
    speed: Tensor | float = 0.0,
    bend: Tensor | float = 0.0,
) -> float:
    """At most 1 where the first-order Euler step with frozen coefficients damps all plane waves; sharp for equal h.

    To Godunov's :func:`monotone_number`, curvature with the factor ``bend`` adds 2 dt bend (sum of 1 / h^2 over all
    axes but the one with the largest h).
    """
    tangential = sum(1 / h**2 for h in sorted(spacing)[:-1])
    rate = fastest(spacing, wind, speed, math.sqrt(sum(1 / h**2 for h in spacing)))
    return dt * float((rate + 2 * torch.as_tensor(bend, dtype=torch.float64).abs() * tangential).max())
