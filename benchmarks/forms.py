"""The same level set step in several forms, slow and fast, and loops that do part of its work.

Each form is a function of nothing that advances a batch, float32 ``(B, 1, H, W)``; all are equal to rounding.
"""

import shutil
from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsbook.fused import step
from lsbook.levelset import LevelSetStep, Speeds, curvature, regularization, sliced_step, speeds
from lsbook.levelset import balloon as godunov_balloon
from lsbook.levelset import transport as upwind_transport
from lsbook.loops import compiled, compiled_parallel, pad
from lsbook.reference import numpy_step
from lsbook.stencils import CENTRAL, Differences, along_x, along_y, kernels, replicate
from lsbook.stepping import advance

COEFFICIENTS = (1.0, 1.0, 1.0)  # alpha, beta, gamma


def example(size: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Speeds]:
    """u, g and speeds as they occur: smooth discs, and edges with noise."""
    generator = torch.Generator().manual_seed(size)
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size, dtype=dtype)], indexing="ij")
    radius = 0.3 + 0.4 * torch.rand(batch, 1, 1, 1, generator=generator, dtype=dtype)
    distance = radius - torch.hypot(y, x)
    u = (distance * size / 2).clamp(-4, 4)
    g = 1 - 0.9 * torch.exp(-((distance + 0.1) ** 2) / 0.005)
    g = (g - 0.1 * torch.rand(u.shape, generator=generator, dtype=dtype)).clamp(0, 1)
    return u, g, speeds(g, *torch.tensor(COEFFICIENTS, dtype=dtype))


class LiteralStep(torch.nn.Module):
    """Nine convolutions, one for each difference that the equation's terms name."""

    def __init__(self, dt: float):
        super().__init__()
        self.dt = dt
        named = kernels() | {"central_y": along_y(CENTRAL), "central_x": along_x(CENTRAL)}
        self.kernels = [kernel.float()[None, None] for kernel in named.values()]

    def forward(self, u: Tensor, v: Speeds) -> Tensor:
        *seven, uy, ux = (F.conv2d(replicate(u), kernel) for kernel in self.kernels)
        d = Differences(*seven)
        top = d.second_y * ux**2 - 2 * ux * uy * d.mixed + d.second_x * uy**2
        bend = top / (ux**2 + uy**2 + regularization((1.0, 1.0)))
        return u + self.dt * (v.bend * bend + upwind_transport(d, v) + godunov_balloon(d, v))


def numpy_lean(u: np.ndarray, v: tuple[np.ndarray, ...], dt: float) -> np.ndarray:
    """The step in NumPy with speeds computed beforehand, each difference once; all arrays ``(B, H, W)``, gamma > 0."""
    bend, wind_y, wind_x, push = v
    p = np.pad(u, ((0, 0), (1, 1), (1, 1)), mode="edge")
    north, south, west, east = p[:, :-2, 1:-1], p[:, 2:, 1:-1], p[:, 1:-1, :-2], p[:, 1:-1, 2:]
    a, b, l, r = u - north, south - u, u - west, east - u  # noqa: E741
    rate = wind_y * np.where(wind_y > 0, b, a) + wind_x * np.where(wind_x > 0, r, l)
    slope_y, slope_x = np.maximum(np.maximum(b, -a), 0), np.maximum(np.maximum(r, -l), 0)
    rate += push * np.sqrt(slope_y * slope_y + slope_x * slope_x)
    uy, ux = (a + b) / 2, (l + r) / 2
    uxy = (p[:, 2:, 2:] - p[:, 2:, :-2] - p[:, :-2, 2:] + p[:, :-2, :-2]) / 4
    top = (b - a) * ux * ux - 2 * ux * uy * uxy + (r - l) * uy * uy
    return u + dt * (rate + bend * top / (ux * ux + uy * uy + 0.01))


def flat_step(p: Tensor, v: Speeds, dt: float) -> Tensor:
    """The step by slices of a padded ``(B, 1, H+2, W+2)``, without branches: for a compiler of tensor programs."""
    u, north, south = p[:, :, 1:-1, 1:-1], p[:, :, :-2, 1:-1], p[:, :, 2:, 1:-1]
    west, east = p[:, :, 1:-1, :-2], p[:, :, 1:-1, 2:]
    mixed = (p[:, :, 2:, 2:] - p[:, :, 2:, :-2] - p[:, :, :-2, 2:] + p[:, :, :-2, :-2]) / 4
    d = Differences(u - north, south - u, u - west, east - u, south - 2 * u + north, east - 2 * u + west, mixed)
    rate = v.bend * curvature(d, regularization((1.0, 1.0))) + upwind_transport(d, v)
    slope_y = F.relu(torch.maximum(d.forward_y, -d.backward_y))
    slope_x = F.relu(torch.maximum(d.forward_x, -d.backward_x))
    return u + dt * (rate + v.push * (slope_y**2 + slope_x**2).sqrt())


def forms(size: int, batch: int, dt: float, steps: int, compiler: bool) -> dict[str, tuple[Callable[[], object], int]]:
    """By name: a function that advances the example and returns u ``(B, H, W)``, and how many steps it makes.

    ``compiler`` adds torch.compile, where a C++ compiler is installed.
    """
    u, g, v = example(size, batch)
    literal, stacked = LiteralStep(dt), LevelSetStep(dt)
    arrays, fields, edges = u[:, 0].numpy(), tuple(f[:, 0].numpy() for f in v), g[:, 0].numpy()
    alpha, beta, gamma = COEFFICIENTS
    found = {
        "nine convolutions": (lambda: literal(u, v)[:, 0], 1),
        "stacked convolution": (lambda: stacked(u, v)[:, 0], 1),
        "slices": (lambda: sliced_step(u, v, dt)[:, 0], 1),
        "NumPy, the reference": (
            lambda: np.stack([numpy_step(a, e, alpha, beta, gamma, dt) for a, e in zip(arrays, edges, strict=True)]),
            1,
        ),
        "NumPy, lean": (lambda: numpy_lean(arrays, fields, dt), 1),
        "fused": (lambda: advance(u, v, dt, steps, method="fused")[:, 0], steps),
    }
    if compiler and shutil.which("g++"):
        flat = torch.compile(flat_step, dynamic=False)

        def several() -> Tensor:
            w = u
            for _ in range(steps):
                w = flat(replicate(w), v, dt)
            return w[:, 0]

        found["torch.compile"] = (several, steps)
    return found


@compiled_parallel
def copies(a, b, count):
    """Copy each of a batch ``(B, n)`` to b and back, ``count`` times in all."""
    for i in numba.prange(len(a)):
        for n in range(count):
            source, out = (b[i], a[i]) if n % 2 else (a[i], b[i])
            for k in range(source.size):
                out[k] = source[k]


def copy(size: int, batch: int, steps: int, threads: int = 1) -> Callable[[], None]:
    """The bytes that ``steps`` steps must move, moved by copying: 12 read and 12 written for each pixel and step.

    A step reads u and four speeds and writes u, 4 bytes each. One image after the other, so in the cache like the step.
    On one thread a single image is copied by NumPy, which does it a little faster than a loop.
    """
    parts = max(batch, threads)
    a = np.ones((parts, 3 * size * size * batch // parts), np.float32)
    b = np.zeros_like(a)

    def one() -> None:
        for _ in range(steps):
            np.copyto(b, a)

    return one if parts == 1 else lambda: copies(a, b, steps)


@compiled
def multiply_and_add(x, y, a, b, rounds):
    """256 operations on each column of x and y, ``(4, n)``, in registers: as fast as a loop without FMA can compute."""
    for _ in range(rounds):
        for j in range(x.shape[1]):
            c0, c1, c2, c3 = x[0, j], x[1, j], x[2, j], x[3, j]
            d0, d1, d2, d3 = y[0, j], y[1, j], y[2, j], y[3, j]
            for _ in range(32):
                c0, c1, c2, c3 = c0 * a, c1 * a, c2 * a, c3 * a
                d0, d1, d2, d3 = d0 + b, d1 + b, d2 + b, d3 + b
            x[0, j], x[1, j], x[2, j], x[3, j] = c0, c1, c2, c3
            y[0, j], y[1, j], y[2, j], y[3, j] = d0, d1, d2, d3


@compiled
def pass_through(p, q, bend, wind_y, wind_x, push, constants):
    """All that a step reads and writes, next to no arithmetic."""
    dt = constants[0]
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            k, m = i - 1, j - 1
            q[i, j] = p[i, j] + dt * (bend[k, m] + wind_y[k, m] + wind_x[k, m] + push[k, m])
    pad(q)


@compiled
def transport(p, q, bend, wind_y, wind_x, push, constants):
    """The transport term alone."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            c, k, m = p[i, j], i - 1, j - 1
            a, b = (c - p[k, j]) * per_y, (p[i + 1, j] - c) * per_y
            l, r = (c - p[i, m]) * per_x, (p[i, j + 1] - c) * per_x  # noqa: E741
            rate = max(wind_y[k, m], zero) * b + min(wind_y[k, m], zero) * a
            rate += max(wind_x[k, m], zero) * r + min(wind_x[k, m], zero) * l
            q[i, j] = c + dt * rate
    pad(q)


@compiled
def balloon(p, q, bend, wind_y, wind_x, push, constants):
    """The balloon alone: with the only root."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            c, k, m = p[i, j], i - 1, j - 1
            a, b = (c - p[k, j]) * per_y, (p[i + 1, j] - c) * per_y
            l, r = (c - p[i, m]) * per_x, (p[i, j + 1] - c) * per_x  # noqa: E741
            side = one if push[k, m] > zero else -one
            slope_y, slope_x = max(max(side * b, -side * a), zero), max(max(side * r, -side * l), zero)
            q[i, j] = c + dt * push[k, m] * np.sqrt(slope_y * slope_y + slope_x * slope_x)
    pad(q)


@compiled
def bending(p, q, bend, wind_y, wind_x, push, constants):
    """The curvature term alone: with the only quotient."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            c, k, m = p[i, j], i - 1, j - 1
            a, b = (c - p[k, j]) * per_y, (p[i + 1, j] - c) * per_y
            l, r = (c - p[i, m]) * per_x, (p[i, j + 1] - c) * per_x  # noqa: E741
            uy, ux = (a + b) * half, (l + r) * half
            uxy = (p[i + 1, j + 1] - p[i + 1, m] - p[k, j + 1] + p[k, m]) * (half * per_y * half * per_x)
            top = (b - a) * per_y * ux * ux - (uxy + uxy) * ux * uy + (r - l) * per_x * uy * uy
            q[i, j] = c + dt * (bend[k, m] * top / (ux * ux + uy * uy + epsilon))
    pad(q)


PARTS = {"pass through": pass_through, "transport": transport, "balloon": balloon, "curvature": bending, "step": step}


@numba.njit
def repeated(part, p, q, bend, wind_y, wind_x, push, constants, count):
    """``count`` times p to q and q to p."""
    for _ in range(count):
        part(p, q, bend, wind_y, wind_x, push, constants)
        p, q = q, p
