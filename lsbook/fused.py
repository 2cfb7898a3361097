"""All steps of the level set equation fused into one loop, with a hand-derived adjoint: the fast form for training.

The same update as :class:`lsbook.levelset.LevelSetStep`, compiled by numba. Forward keeps u of each step and
nothing else; backward walks the steps in reverse, forms each pixel's differences again and scatters the gradient to its
nine neighbours. In torch's autograd the same would keep about a hundred arrays per step.

Names in the loops: c is u at the pixel, k and m the row and column before it, a and b the backward and forward
difference along y, l, r along x. ``v`` holds the four fields of :class:`lsbook.levelset.Speeds`. Numbers are passed in,
in the array's own precision, because a literal would turn float32 arithmetic into float64.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .levelset import ROOT_FLOOR, Speeds, regularization
from .stencils import Spacing

compiled = numba.njit(cache=True, error_model="numpy")
compiled_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)


@compiled
def pad(p):
    """Copy the outer pixels of the interior into the frame of width one (replicate)."""
    p[0, 1:-1], p[-1, 1:-1] = p[1, 1:-1], p[-2, 1:-1]
    p[:, 0], p[:, -1] = p[:, 1], p[:, -2]


@compiled
def fold(p):
    """The adjoint of :func:`pad`: add the frame to the outer pixels. Nothing reads the frame afterwards."""
    p[:, 1] += p[:, 0]
    p[:, -2] += p[:, -1]
    p[1] += p[0]
    p[-2] += p[-1]


@compiled
def step(p, q, bend, wind_y, wind_x, push, constants):
    """One step of one image: padded p ``(H+2, W+2)`` in, padded q out, four speeds ``(H, W)``."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(1, p.shape[0] - 1):
        for j in range(1, p.shape[1] - 1):
            c, k, m = p[i, j], i - 1, j - 1
            a, b = (c - p[k, j]) * per_y, (p[i + 1, j] - c) * per_y
            l, r = (c - p[i, m]) * per_x, (p[i, j + 1] - c) * per_x  # noqa: E741
            rate = max(wind_y[k, m], zero) * b + min(wind_y[k, m], zero) * a
            rate += max(wind_x[k, m], zero) * r + min(wind_x[k, m], zero) * l
            side = one if push[k, m] > zero else -one
            slope_y, slope_x = max(max(side * b, -side * a), zero), max(max(side * r, -side * l), zero)
            rate += push[k, m] * math.sqrt(slope_y * slope_y + slope_x * slope_x)
            uy, ux = (a + b) * half, (l + r) * half
            uyy, uxx = (b - a) * per_y, (r - l) * per_x
            uxy = (p[i + 1, j + 1] - p[i + 1, m] - p[k, j + 1] + p[k, m]) * (half * per_y * half * per_x)
            top = uyy * ux * ux - (uxy + uxy) * ux * uy + uxx * uy * uy
            q[i, j] = c + dt * (rate + bend[k, m] * top / (ux * ux + uy * uy + epsilon))
    pad(q)


@compiled
def adjoint_row_transport(p, rate, wind_y, wind_x, d_wind_y, d_wind_x, da, db, dl, dr, i, constants):
    """Row i of the adjoint of F . grad u: derivatives with respect to F and to a, b, l, r."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for m in range(da.size):
        c, y, x = p[i, m + 1], wind_y[i - 1, m], wind_x[i - 1, m]
        slope_y = p[i + 1, m + 1] - c if y > zero else (c - p[i - 1, m + 1] if y < zero else zero)
        d_wind_y[i - 1, m] += rate[m] * slope_y * per_y
        slope_x = p[i, m + 2] - c if x > zero else (c - p[i, m] if x < zero else zero)
        d_wind_x[i - 1, m] += rate[m] * slope_x * per_x
    for m in range(da.size):
        da[m] = rate[m] * min(wind_y[i - 1, m], zero)
        db[m] = rate[m] * max(wind_y[i - 1, m], zero)
    for m in range(da.size):
        dl[m] = rate[m] * min(wind_x[i - 1, m], zero)
        dr[m] = rate[m] * max(wind_x[i - 1, m], zero)


@compiled
def adjoint_row_balloon(p, rate, push, d_push, da, db, dl, dr, i, constants):
    """Row i of the adjoint of F |grad u| (Godunov), added to the derivatives with respect to a, b, l, r."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for m in range(da.size):
        c, f = p[i, m + 1], push[i - 1, m]
        side = one if f > zero else -one
        back_y, fore_y = -side * (c - p[i - 1, m + 1]) * per_y, side * (p[i + 1, m + 1] - c) * per_y
        back_x, fore_x = -side * (c - p[i, m]) * per_x, side * (p[i, m + 2] - c) * per_x
        slope_y, slope_x = max(max(fore_y, back_y), zero), max(max(fore_x, back_x), zero)
        norm = math.sqrt(slope_y * slope_y + slope_x * slope_x)
        d_push[i - 1, m] += rate[m] * norm if f != zero else zero
        share = rate[m] * f * side / max(norm, floor)
        slope_y, slope_x = share * slope_y, share * slope_x
        da[m] -= zero if fore_y >= back_y else slope_y
        db[m] += slope_y if fore_y >= back_y else zero
        dl[m] -= zero if fore_x >= back_x else slope_x
        dr[m] += slope_x if fore_x >= back_x else zero


@compiled
def adjoint_row_curvature(p, rate, bend, d_bend, da, db, dl, dr, dxy, i, constants):
    """Row i of the adjoint of alpha g kappa |grad u|, added to da, db, dl, dr; dxy for the corners of u_xy."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for m in range(da.size):
        c = p[i, m + 1]
        a, b = (c - p[i - 1, m + 1]) * per_y, (p[i + 1, m + 1] - c) * per_y
        l, r = (c - p[i, m]) * per_x, (p[i, m + 2] - c) * per_x  # noqa: E741
        uy, ux = (a + b) * half, (l + r) * half
        uyy, uxx = (b - a) * per_y, (r - l) * per_x
        quarter = half * per_y * half * per_x
        uxy = (p[i + 1, m + 2] - p[i + 1, m] - p[i - 1, m + 2] + p[i - 1, m]) * quarter
        below = one / (ux * ux + uy * uy + epsilon)
        bent = (uyy * ux * ux - (uxy + uxy) * ux * uy + uxx * uy * uy) * below
        d_bend[i - 1, m] += rate[m] * bent
        w = rate[m] * bend[i - 1, m] * below
        duy, dux = w * (uxx * uy - ux * uxy - bent * uy), w * (uyy * ux - uy * uxy - bent * ux)
        duyy, duxx = w * ux * ux * per_y, w * uy * uy * per_x
        dxy[m] = -(w + w) * ux * uy * quarter
        da[m] += duy - duyy
        db[m] += duy + duyy
        dl[m] += dux - duxx
        dr[m] += dux + duxx


@compiled
def add_row(target, values, factor):
    """target += factor * values, without a temporary array."""
    for m in range(values.size):
        target[m] += factor * values[m]


@compiled
def adjoint_step(p, grad, dp, bend, wind_y, wind_x, push, d_bend, d_wind_y, d_wind_x, d_push, constants):
    """Adjoint of :func:`step` at p: from ``grad`` of q to ``dp`` of p (padded, frame 0), adding to the speeds' d_...

    Row by row, the derivatives with respect to a, b, l, r and u_xy are formed, then scattered to the neighbours.
    """
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    da, db, dl, dr, dxy = np.empty((5, p.shape[1] - 2), dtype=p.dtype)
    dp[:] = 0
    for i in range(1, p.shape[0] - 1):
        rate = dt * grad[i, 1:-1]
        adjoint_row_transport(p, rate, wind_y, wind_x, d_wind_y, d_wind_x, da, db, dl, dr, i, constants)
        adjoint_row_balloon(p, rate, push, d_push, da, db, dl, dr, i, constants)
        adjoint_row_curvature(p, rate, bend, d_bend, da, db, dl, dr, dxy, i, constants)
        add_row(dp[i, 1:-1], grad[i, 1:-1], one)
        add_row(dp[i, 1:-1], da, per_y)
        add_row(dp[i - 1, 1:-1], da, -per_y)
        add_row(dp[i, 1:-1], db, -per_y)
        add_row(dp[i + 1, 1:-1], db, per_y)
        add_row(dp[i, 1:-1], dl, per_x)
        add_row(dp[i, :-2], dl, -per_x)
        add_row(dp[i, 1:-1], dr, -per_x)
        add_row(dp[i, 2:], dr, per_x)
        add_row(dp[i + 1, 2:], dxy, one)
        add_row(dp[i - 1, :-2], dxy, one)
        add_row(dp[i + 1, :-2], dxy, -one)
        add_row(dp[i - 1, 2:], dxy, -one)
    fold(dp)


@compiled
def flush(values, target, tiny):
    """Copy, with numbers below ``tiny`` set to 0: a gradient's far tail would become denormal, ten times slower."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            target[i, j] = values[i, j] if abs(values[i, j]) > tiny else 0 * tiny


@compiled_parallel
def run(history, v, constants):
    """Fill ``history`` (N+1, B, H+2, W+2), whose first entry is padded u0, with N steps."""
    for i in numba.prange(history.shape[1]):
        for n in range(history.shape[0] - 1):
            step(history[n, i], history[n + 1, i], v[0, i], v[1, i], v[2, i], v[3, i], constants)


@compiled_parallel
def run_adjoint(history, v, grad, dv, constants, tiny):
    """Turn ``grad`` of the last u (B, H+2, W+2) into that of u0, in place, and collect ``dv`` (4, B, H, W)."""
    for i in numba.prange(history.shape[1]):
        dp = np.empty_like(grad[i])
        for n in range(history.shape[0] - 2, -1, -1):
            p, d = history[n, i], dv[:, i]
            adjoint_step(p, grad[i], dp, v[0, i], v[1, i], v[2, i], v[3, i], d[0], d[1], d[2], d[3], constants)
            flush(dp, grad[i], tiny)


class FusedSteps(torch.autograd.Function):
    """N steps as one differentiable operation: u0 ``(B, H, W)``, v ``(4, B, H, W)`` to u ``(B, H, W)``."""

    @staticmethod
    def forward(ctx, u0: Tensor, v: Tensor, constants: tuple, steps: int) -> Tensor:
        keep = steps if any(ctx.needs_input_grad) else 1
        batch, height, width = u0.shape
        history = np.empty((keep + 1, batch, height + 2, width + 2), dtype=u0.detach().numpy().dtype)
        history[0] = np.pad(u0.detach().numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
        speeds = v.detach().contiguous().numpy()
        for _ in range(steps // keep):
            run(history, speeds, constants)
            if keep < steps:
                history[0] = history[-1]
        ctx.save_for_backward(v, torch.from_numpy(history))
        ctx.constants = constants
        return torch.from_numpy(history[-1, :, 1:-1, 1:-1].copy())

    @staticmethod
    def backward(ctx, grad: Tensor):
        v, history = (saved.detach().contiguous().numpy() for saved in ctx.saved_tensors)
        grad = np.pad(grad.numpy(), ((0, 0), (1, 1), (1, 1)))
        dv = np.zeros_like(v)
        run_adjoint(history, v, grad, dv, ctx.constants, grad.dtype.type(1e-30))
        return torch.from_numpy(grad[:, 1:-1, 1:-1].copy()), torch.from_numpy(dv), None, None


def fused_steps(u: Tensor, v: Speeds, dt: float, steps: int, spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """Advance u ``(B, 1, H, W)``, on the CPU, by ``steps`` steps; equal to that many of ``LevelSetStep``."""
    if steps == 0:
        return u
    kind = u.detach().numpy().dtype.type
    hy, hx = spacing
    constants = tuple(kind(c) for c in (dt, 1 / hy, 1 / hx, regularization(spacing), 1, 0.5, 0, ROOT_FLOOR))
    fields = torch.stack([field.expand_as(u)[:, 0] for field in v]).to(u.dtype)
    return FusedSteps.apply(u[:, 0], fields, constants, steps)[:, None]
