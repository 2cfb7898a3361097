"""All steps of the level set equation fused into one loop, with a hand-derived adjoint: the fast form on the CPU.

The same update as :class:`lsbook.levelset.LevelSetStep`, compiled by numba, one image after the other so that its u
and speeds stay in the cache. Forward keeps u of about sqrt(N) of the N steps. Backward runs each stretch between them
again and walks it in reverse: it forms each pixel's differences anew and scatters the gradient to the nine neighbours.

Names in the loops: c is u at the pixel, k and m the row and column before it, a and b the backward and forward
difference along y, l, r along x; ``v`` holds the fields of ``levelset.Speeds``. Numbers come in the array's own
precision, because a literal would turn float32 arithmetic into float64.
"""

import math

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .levelset import Speeds
from .loops import compiled, compiled_parallel, flush, fold, kept_states, pad, prepare
from .stencils import Spacing


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
def scatter_row(dp, grad, da, db, dl, dr, dxy, i, per_y, per_x):
    """Add row i's derivatives, in rows with two zeros at both ends, to the rows i - 1, i, i + 1 of ``dp``."""
    for m in range(dp.shape[1]):
        dp[i - 1, m] += dxy[m + 2] - dxy[m] - per_y * da[m + 1]
    for m in range(dp.shape[1]):
        dp[i + 1, m] += dxy[m] - dxy[m + 2] + per_y * db[m + 1]
    for m in range(dp.shape[1]):
        across = dl[m + 1] - dl[m + 2] + dr[m] - dr[m + 1]
        dp[i, m] += grad[i, m] + per_y * (da[m + 1] - db[m + 1]) + per_x * across


@compiled
def adjoint_step(p, grad, dp, v, dv, i, rows, constants):
    """Adjoint of :func:`step` of image i at p: from ``grad`` of q, its frame 0, to ``dp`` of p; adds to ``dv``."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    da, db, dl, dr, dxy, rate = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5, 2:-2]
    a, b, l, r, xy = da[2:-2], db[2:-2], dl[2:-2], dr[2:-2], dxy[2:-2]  # noqa: E741
    dp[:] = 0
    for k in range(1, p.shape[0] - 1):
        for m in range(rate.size):
            rate[m] = dt * grad[k, m + 1]
        adjoint_row_transport(p, rate, v[1, i], v[2, i], dv[1, i], dv[2, i], a, b, l, r, k, constants)
        adjoint_row_balloon(p, rate, v[3, i], dv[3, i], a, b, l, r, k, constants)
        adjoint_row_curvature(p, rate, v[0, i], dv[0, i], a, b, l, r, xy, k, constants)
        scatter_row(dp, grad, da, db, dl, dr, dxy, k, per_y, per_x)
    fold(dp)


@compiled_parallel
def run(u, v, out, kept, bands, block, steps, constants):
    """N steps from u ``(B, H, W)`` to ``out``; u before the steps 0, block, 2 block, ... to ``kept``, if it has room.

    Bands of rows take a block of steps side by side, each with a margin of as many rows; at its end, where the rows
    beyond are missing, one more row is wrong after each step.
    """
    out[:] = u
    for first in range(0, steps, block):
        start = out.copy()
        if len(kept):
            kept[first // block] = start
        for t in numba.prange(u.shape[0] * bands):
            i, low, high = t // bands, u.shape[1] * (t % bands) // bands, u.shape[1] * (t % bands + 1) // bands
            top, end = max(low - block, 0) if bands > 1 else low, min(high + block, u.shape[1]) if bands > 1 else high
            p = np.empty((end - top + 2, u.shape[2] + 2), dtype=u.dtype)
            q = np.empty_like(p)
            p[1:-1, 1:-1] = start[i, top:end]
            pad(p)
            for _ in range(min(block, steps - first)):
                step(p, q, v[0, i, top:end], v[1, i, top:end], v[2, i, top:end], v[3, i, top:end], constants)
                p, q = q, p
            out[i, low:high] = p[1 + low - top : 1 + high - top, 1:-1]


@compiled_parallel
def run_adjoint(kept, v, grad, dv, every, steps, constants, tiny):
    """Turn ``grad`` of the last u, padded ``(B, H+2, W+2)``, into that of u0, in place; collect ``dv`` (4, B, H, W)."""
    for i in numba.prange(kept.shape[1]):
        states = np.empty((every, grad.shape[1], grad.shape[2]), dtype=kept.dtype)
        dp = np.empty_like(grad[i])
        rows = np.zeros((6, grad.shape[2] + 2), dtype=kept.dtype)
        for k in range(kept.shape[0] - 1, -1, -1):
            states[0, 1:-1, 1:-1] = kept[k, i]
            pad(states[0])
            count = min(every, steps - k * every)
            for n in range(count - 1):
                step(states[n], states[n + 1], v[0, i], v[1, i], v[2, i], v[3, i], constants)
            for n in range(count - 1, -1, -1):
                adjoint_step(states[n], grad[i], dp, v, dv, i, rows, constants)
                flush(dp, grad[i], tiny)


@torch.library.custom_op("lsbook::steps", mutates_args=(), device_types="cpu")
def steps_op(u: Tensor, v: Tensor, dt: float, hy: float, hx: float, steps: int, every: int) -> tuple[Tensor, Tensor]:
    """u ``(B, H, W)`` after N >= 1 steps with v ``(4, B, H, W)``, and each ``every``-th state (none if 0)."""
    u, v = u.detach().contiguous(), v.detach().contiguous()
    out, kept, constants = torch.empty_like(u), kept_states(u, steps, every), prepare(u, dt, hy, hx)
    bands = max(1, min(numba.get_num_threads() // len(u), u.shape[1] // (4 * (every or 8))))
    block = every or (8 if bands > 1 else steps)
    run(u.numpy(), v.numpy(), out.numpy(), kept.numpy(), bands, block, steps, constants)
    return out, kept


@torch.library.custom_op("lsbook::steps_adjoint", mutates_args=(), device_types="cpu")
def adjoint_op(
    grad: Tensor, kept: Tensor, v: Tensor, dt: float, hy: float, hx: float, steps: int, every: int
) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to u and v of :func:`steps_op`."""
    padded, v, constants = F.pad(grad.detach(), (1, 1, 1, 1)), v.detach().contiguous(), prepare(grad, dt, hy, hx)
    dv = torch.zeros_like(v)
    run_adjoint(kept.numpy(), v.numpy(), padded.numpy(), dv.numpy(), every, steps, constants, type(constants[0])(1e-30))
    return padded[:, 1:-1, 1:-1].contiguous(), dv


steps_op.register_fake(lambda u, v, dt, hy, hx, steps, every: (torch.empty_like(u), kept_states(u, steps, every)))
adjoint_op.register_fake(lambda grad, kept, v, *rest: (torch.empty_like(grad), torch.empty_like(v)))


def remember(ctx, inputs, output) -> None:
    _, v, *ctx.rest = inputs
    ctx.save_for_backward(output[1], v)


def backward(ctx, grad: Tensor, _) -> tuple:
    return *adjoint_op(grad, *ctx.saved_tensors, *ctx.rest), *[None] * len(ctx.rest)


steps_op.register_autograd(backward, setup_context=remember)


def fused_steps(u: Tensor, v: Speeds, dt: float, steps: int, spacing: Spacing = (1.0, 1.0)) -> Tensor:
    """Advance u ``(B, 1, H, W)``, on the CPU, by ``steps`` steps; equal to that many of ``LevelSetStep``."""
    if steps == 0:
        return u
    fields = torch.stack([field.expand_as(u)[:, 0] for field in v]).to(u.dtype)
    every = math.isqrt(steps - 1) + 1 if torch.is_grad_enabled() and (u.requires_grad or fields.requires_grad) else 0
    return steps_op(u[:, 0], fields, dt, *map(float, spacing), steps, every)[0][:, None]
