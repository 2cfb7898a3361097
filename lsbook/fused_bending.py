"""The fused steps of :mod:`lsbook.fused` where curvature is learned: the level set network's fast form on the CPU.

The same update as :class:`lsbook.networks.LearnedCurvature` in a clipped :func:`lsbook.levelset.sliced_step`, in
pixels: C kernels take u to a vector field n, divided by its norm; C more take n to kappa; ``kernels`` (2, C, 9) holds
both. The rest is :func:`lsbook.fused.step`, called with 0 for the factor of compact curvature.
"""

import math

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import adjoint_step, step
from .levelset import KAPPA_LIMIT, Speeds
from .loops import compiled, compiled_parallel, flush, fold, kept_states, pad, prepare, reordering


@compiled
def correlate(p, i, k, out):
    """out[j] = sum over a, b of k[a, b] p[i + a, j + b]: one row of a correlation with a 3x3 kernel."""
    for j in range(out.size):
        upper = k[0] * p[i, j] + k[1] * p[i, j + 1] + k[2] * p[i, j + 2]
        middle = k[3] * p[i + 1, j] + k[4] * p[i + 1, j + 1] + k[5] * p[i + 1, j + 2]
        out[j] = upper + middle + k[6] * p[i + 2, j] + k[7] * p[i + 2, j + 1] + k[8] * p[i + 2, j + 2]


@reordering
def add_products(p, i, f, out):
    """out[a b] += sum over j of f[j] p[i + a, j + b]: the derivative of row i of :func:`correlate` towards k."""
    for a in range(3):
        left = middle = right = 0 * f[0]
        for j in range(f.size):
            left += f[j] * p[i + a, j]
            middle += f[j] * p[i + a, j + 1]
            right += f[j] * p[i + a, j + 2]
        out[3 * a] += left
        out[3 * a + 1] += middle
        out[3 * a + 2] += right


@compiled
def find_kappa(p, kernels, n, scale, kappa, constants):
    """n ``(C, H+2, W+2)``, 1 / norm and kappa ``(H, W)``, not clipped, from padded u."""
    epsilon, one = constants[3], constants[4]
    line = np.empty(scale.shape[1], dtype=scale.dtype)
    for i in range(len(scale)):
        scale[i] = epsilon
        for c in range(len(n)):
            correlate(p, i, kernels[0, c], line)
            for j in range(line.size):
                n[c, i + 1, j + 1] = line[j]
                scale[i, j] += line[j] * line[j]
        for j in range(line.size):
            scale[i, j] = one / math.sqrt(scale[i, j])
        for c in range(len(n)):
            for j in range(line.size):
                n[c, i + 1, j + 1] *= scale[i, j]
    for c in range(len(n)):
        pad(n[c])
    for i in range(len(kappa)):
        kappa[i] = 0
        for c in range(len(n)):
            correlate(n[c], i, kernels[1, c], line)
            kappa[i] += line


@compiled
def bend_step(p, q, bend, kappa, limit, constants):
    """Add dt bend kappa |grad u|, kappa clipped, to the interior of q; central differences of p."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(kappa.shape[0]):
        for j in range(kappa.shape[1]):
            uy, ux = (p[i + 2, j + 1] - p[i, j + 1]) * half, (p[i + 1, j + 2] - p[i + 1, j]) * half
            clipped = min(max(kappa[i, j], -limit), limit)
            q[i + 1, j + 1] += dt * bend[i, j] * clipped * math.sqrt(ux * ux + uy * uy)


@compiled
def clip_interior(q, band):
    """Clip u to +-band, and pad."""
    for i in range(1, q.shape[0] - 1):
        for j in range(1, q.shape[1] - 1):
            q[i, j] = min(max(q[i, j], -band), band)
    pad(q)


@compiled
def drop_clipped(grad, q, band):
    """No gradient passes where u was clipped."""
    for i in range(1, q.shape[0] - 1):
        for j in range(1, q.shape[1] - 1):
            grad[i, j] = grad[i, j] if abs(q[i, j]) <= band else 0 * band


@compiled
def adjoint_bend(p, grad, bend, kappa, limit, d_bend, d_kappa, du, constants):
    """Adjoint of :func:`bend_step`: fills the interior of d_kappa (frame of two), adds to d_bend and to du (padded)."""
    dt, per_y, per_x, epsilon, one, half, zero, floor = constants
    for i in range(kappa.shape[0]):
        for j in range(kappa.shape[1]):
            uy, ux = (p[i + 2, j + 1] - p[i, j + 1]) * half, (p[i + 1, j + 2] - p[i + 1, j]) * half
            norm, rate = math.sqrt(ux * ux + uy * uy), dt * grad[i + 1, j + 1]
            clipped = min(max(kappa[i, j], -limit), limit)
            d_bend[i, j] += rate * clipped * norm
            d_kappa[i + 2, j + 2] = rate * bend[i, j] * norm if clipped == kappa[i, j] else zero
            slope = half * rate * bend[i, j] * clipped / max(norm, floor)
            du[i + 2, j + 1] += slope * uy
            du[i, j + 1] -= slope * uy
            du[i + 1, j + 2] += slope * ux
            du[i + 1, j] -= slope * ux


@compiled
def adjoint_kappa(p, n, scale, kernels, d_kappa, dn, d_kernels, du):
    """Adjoint of :func:`find_kappa`: from d_kappa to du (padded, added) and d_kernels ``(2, C, 9)`` (added).

    ``d_kappa`` and ``dn`` ``(C, H+4, W+4)`` have a frame of two zeros. To go back, kernels are turned by 180 degrees.
    """
    line, inner = np.empty(p.shape[1], dtype=p.dtype), np.empty(scale.shape[1], dtype=p.dtype)
    along, padded = np.zeros_like(scale), np.empty_like(p)
    for c in range(len(n)):
        turned = kernels[1, c, ::-1].copy()
        for i in range(len(p)):
            correlate(d_kappa, i, turned, line)
            padded[i] = line
        fold(padded)
        for i in range(len(scale)):
            for j in range(inner.size):
                inner[j] = d_kappa[i + 2, j + 2]
            add_products(n[c], i, inner, d_kernels[1, c])
            for j in range(inner.size):
                dn[c, i + 2, j + 2] = padded[i + 1, j + 1]
                along[i, j] += padded[i + 1, j + 1] * n[c, i + 1, j + 1]
    for c in range(len(n)):
        turned = kernels[0, c, ::-1].copy()
        for i in range(len(scale)):
            for j in range(inner.size):
                inner[j] = (dn[c, i + 2, j + 2] - along[i, j] * n[c, i + 1, j + 1]) * scale[i, j]
                dn[c, i + 2, j + 2] = inner[j]
            add_products(p, i, inner, d_kernels[0, c])
        for i in range(len(p)):
            correlate(dn[c], i, turned, line)
            du[i] += line


@compiled
def unclipped_step(p, q, v, i, none, kernels, n, scale, kappa, limit, constants):
    """One step of image i into the interior of q; also n, scale and kappa at p."""
    step(p, q, none, v[1, i], v[2, i], v[3, i], constants)
    find_kappa(p, kernels, n, scale, kappa, constants)
    bend_step(p, q, v[0, i], kappa, limit, constants)


@compiled_parallel
def run(u, v, kernels, out, kept, every, steps, band, limit, constants):
    """N steps from u ``(B, H, W)`` to ``out``; v[0] is the factor of the learned bending. As :func:`fused.run`."""
    height, width = u.shape[1] + 2, u.shape[2] + 2
    for i in numba.prange(u.shape[0]):
        p, q = np.empty((height, width), dtype=u.dtype), np.empty((height, width), dtype=u.dtype)
        n = np.empty((kernels.shape[1], height, width), dtype=u.dtype)
        scale, kappa, none = np.empty_like(u[i]), np.empty_like(u[i]), np.zeros_like(u[i])
        p[1:-1, 1:-1] = u[i]
        pad(p)
        for k in range(steps):
            if every and k % every == 0:
                kept[k // every, i] = p[1:-1, 1:-1]
            unclipped_step(p, q, v, i, none, kernels, n, scale, kappa, limit, constants)
            clip_interior(q, band)
            p, q = q, p
        out[i] = p[1:-1, 1:-1]


@compiled_parallel
def run_adjoint(kept, v, kernels, grad, dv, d_kernels, every, steps, band, limit, constants, tiny):
    """As :func:`fused.run_adjoint`; ``d_kernels`` (B, 2, C, 9) for normal and divergence."""
    channels, height, width = kernels.shape[1], grad.shape[1], grad.shape[2]
    for i in numba.prange(kept.shape[1]):
        states = np.empty((every, height, width), dtype=kept.dtype)
        n = np.empty((channels, height, width), dtype=kept.dtype)
        dn = np.zeros((channels, height + 2, width + 2), dtype=kept.dtype)
        q, dp, du = np.empty_like(grad[i]), np.empty_like(grad[i]), np.empty_like(grad[i])
        d_kappa = np.zeros_like(dn[0])
        scale, kappa = np.empty_like(v[0, i]), np.empty_like(v[0, i])
        rows = np.zeros((6, width + 2), dtype=kept.dtype)
        plain, d_plain = v[:, i : i + 1].copy(), np.zeros_like(v[:, i : i + 1])  # without bending
        plain[0] = 0
        for s in range(kept.shape[0] - 1, -1, -1):
            states[0, 1:-1, 1:-1] = kept[s, i]
            pad(states[0])
            count = min(every, steps - s * every)
            for k in range(count - 1):
                p = states[k + 1]
                unclipped_step(states[k], p, v, i, plain[0, 0], kernels, n, scale, kappa, limit, constants)
                clip_interior(p, band)
            for k in range(count - 1, -1, -1):
                p = states[k]
                unclipped_step(p, q, v, i, plain[0, 0], kernels, n, scale, kappa, limit, constants)
                drop_clipped(grad[i], q, band)
                adjoint_step(p, grad[i], dp, plain, d_plain, 0, rows, constants)
                du[:] = 0
                adjoint_bend(p, grad[i], v[0, i], kappa, limit, dv[0, i], d_kappa, du, constants)
                adjoint_kappa(p, n, scale, kernels, d_kappa, dn, d_kernels[i], du)
                fold(du)
                dp += du
                flush(dp, grad[i], tiny)
        dv[1:, i] = d_plain[1:, 0]


class LearnedSteps(torch.autograd.Function):
    """N steps as one differentiable operation: u ``(B, H, W)``, v ``(4, B, H, W)``, kernels ``(2, C, 9)`` to u."""

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, kernels: Tensor, dt: float, band: float, steps: int) -> Tensor:
        every = math.isqrt(steps - 1) + 1 if any(ctx.needs_input_grad) else 0
        u, v, kernels = (field.detach().contiguous() for field in (u, v, kernels))
        out, kept, kind = torch.empty_like(u), kept_states(u, steps, every), u.numpy().dtype.type
        ctx.rest = every, steps, kind(band), kind(KAPPA_LIMIT), prepare(u, dt, 1.0, 1.0)
        run(*(field.numpy() for field in (u, v, kernels, out, kept)), *ctx.rest)
        ctx.save_for_backward(kept, v, kernels)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        kept, v, kernels = ctx.saved_tensors
        padded, dv, d_kernels = F.pad(grad, (1, 1, 1, 1)), torch.zeros_like(v), v.new_zeros((len(grad), *kernels.shape))
        arrays = (field.numpy() for field in (kept, v, kernels, padded, dv, d_kernels))
        run_adjoint(*arrays, *ctx.rest, padded.numpy().dtype.type(1e-30))
        return padded[:, 1:-1, 1:-1], dv, d_kernels.sum(dim=0), None, None, None


def fused_learned_steps(
    u: Tensor, v: Speeds, normal: Tensor, divergence: Tensor, dt: float, band: float, steps: int
) -> Tensor:
    """Advance u ``(B, 1, H, W)`` by steps with learned curvature, clipped to +-band pixels after each.

    ``normal`` ``(C, 1, 3, 3)`` and ``divergence`` ``(1, C, 3, 3)`` are those of ``LearnedCurvature``.
    """
    if steps == 0:
        return u
    fields = torch.stack([field.expand_as(u)[:, 0] for field in v]).to(u.dtype)
    kernels = torch.stack([normal.reshape(-1, 9), divergence.reshape(-1, 9)]).to(u.dtype)
    return LearnedSteps.apply(u[:, 0], fields, kernels, dt, band, steps)[:, None]
