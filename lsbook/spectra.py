"""How much does a layer, a network or a step amplify? Symbols, singular values, Lipschitz bounds, spectral radius.

All norms are Euclidean. A convolution on the infinite grid is multiplication by its symbol, a matrix (out, in) at each
pair of angles; its norm is the symbol's largest singular value over all angles. That bounds the layer on every image
with zero borders or none (both are the infinite convolution, restricted) and with periodic ones, whatever the stride
or dilation. Replicated borders feed it up to 4 copies of a pixel, reflected ones up to 9, which at most doubles or
triples the norm (images of 2 x 2 pixels or more, padded by one). Unknown borders are taken for zero ones.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigs
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .levelset import cfl, sliced_step, speeds
from .networks import BAND, DT, LevelSetNetwork
from .unet import Block, UNet

GRID = 16  # angles in each direction from which a norm is bounded, at least
FACTORS = "bound", "max", "median", "min", "constant", "stripes_x", "stripes_y", "checkerboard"
# How much the norm of a 3x3 layer can grow by its borders.
BORDERS = {"zeros": 1.0, "circular": 1.0, "unknown": 1.0, "replicate": 2.0, "reflect": 3.0}
# Lipschitz constants of layers without weights, in use.
CONSTANTS = {nn.ReLU: 1.0, nn.Identity: 1.0, nn.Dropout: 1.0, nn.Dropout2d: 1.0, nn.Tanh: 1.0, nn.Sigmoid: 0.25}


def symbol(weight: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What kernels make of waves exp(i (y row + x column)): weights ``(..., h, w)``, angles ``(Y,)``, ``(X,)``.

    Returns:
        ``(Y, X, ...)``, complex. A central difference has i sin x, a second difference 2 cos x - 2.
    """
    ey, ex = (np.exp(1j * np.outer(t, np.arange(n) - n // 2)) for t, n in zip((y, x), weight.shape[-2:], strict=True))
    return np.einsum("...ab,ya,xb->yx...", weight, ey, ex, optimize=True)


def singular_values(weight: np.ndarray, shape: tuple[int, int], groups: int = 1) -> np.ndarray:
    """Singular values, descending, of a layer on a periodic grid ``shape`` (Sedghi, Gupta, Long 2019).

    Args:
        weight: ``(out, in / groups, h, w)``. Half of the angles suffice, as the weights are real.
    """
    height, width = shape
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    y, x = (2 * np.pi * np.arange(n) / size for n, size in ((height, height), (width // 2 + 1, width)))
    values = np.linalg.svd(symbol(parts, y, x), compute_uv=False)
    return np.sort(np.concatenate([values.ravel(), values[:, 1 : (width + 1) // 2].ravel()]))[::-1]


def spectrum(weight: np.ndarray, groups: int = 1, padding: str = "zeros") -> dict[str, float]:
    """What a layer ``(out, in / groups, h, w)`` amplifies, and how much at most.

    Between the angles of a grid of N a trigonometric polynomial of degree d is at most 1 / cos(pi d / N) times its
    largest value on it (Ehlich, Zeller 1964), once for each direction: 4 % for 3x3 kernels, N = 16. N is at least
    twice the kernel's size, as the theorem needs more than 2 d.

    Returns:
        ``bound`` of the norm on images of any size, see above; ``max``, ``median``, ``min`` of the singular values on a
        grid of N; the largest factor for a ``constant``, for ``stripes_y`` and ``stripes_x`` that change
        sign from pixel to pixel along that axis, and for a ``checkerboard``.
    """
    ends, grid = np.array([0, np.pi]), [max(GRID, 2 * size) for size in weight.shape[-2:]]
    values = singular_values(weight, (grid[0], grid[1]), groups)
    between = math.prod(math.cos(math.pi * (size // 2) / n) for size, n in zip(weight.shape[-2:], grid, strict=True))
    gains = np.linalg.norm(symbol(weight.reshape(groups, -1, *weight.shape[1:]), ends, ends), 2, axis=(-2, -1))
    found = [BORDERS[padding] * values[0] / between, values[0], np.median(values), values[-1], *gains.max(axis=-1).flat]
    return dict(zip(FACTORS, found, strict=True))


def network_bound(module: nn.Module) -> float:
    """Lipschitz bound, in use and not in training, of a UNet, or of a Sequential of the modules that are known.

    A product over the layers would be wrong for skips and up-sampling: a sum of branches adds their bounds, channels
    side by side add in squares, and nearest up-sampling doubles the norm, for each pixel appears four times.

    Raises:
        TypeError: for a module of another kind, also inside; it names what is not known.
    """
    kind = type(module)
    if kind is nn.Conv2d:
        return convolution_bound(module, module.weight)
    if kind is nn.Sequential:
        return sequential_bound(list(module))
    if kind is Block:
        first, second = network_bound(module.first), network_bound(module.second)
        return first * (1 + second) if module.residual else first * second
    if kind is UNet:
        total, skips = 1.0, []
        for block in module.down:
            total *= network_bound(block)
            skips.append(total)
        for block, skip in zip(module.up, skips[-2::-1], strict=True):
            joined = math.hypot(2 * total, skip) if module.textbook else 2 * total + skip
            total = network_bound(block) * joined
        return total * network_bound(module.readout) * CONSTANTS[nn.Sigmoid]
    if kind in CONSTANTS:
        return CONSTANTS[kind]
    raise TypeError(f"no Lipschitz bound is known for {kind.__name__}; a product over layers might be wrong")


def convolution_bound(module: nn.Conv2d, weight: Tensor) -> float:
    """Bound of a convolution with other weights than its own."""
    narrow = [(0, 0), (1, 1)] if min(module.kernel_size) > 2 else [(0, 0)]
    if module.padding_mode != "zeros" and module.padding not in narrow:
        raise TypeError(f"no Lipschitz bound is known for {module.padding_mode} borders wider than a pixel or kernel")
    return float(spectrum(weight.detach().double().cpu().numpy(), module.groups, module.padding_mode)["bound"])


def sequential_bound(modules: list[nn.Module]) -> float:
    """Product of the bounds of some modules, batch normalization folded into the convolution before it."""
    kinds = [type(module) for module in modules[:2]]
    if kinds == [nn.Conv2d, nn.BatchNorm2d] and modules[1].running_var is not None:
        conv, norm = modules[:2]
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        fused = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)[0]
        return convolution_bound(conv, fused) * sequential_bound(modules[2:])
    return network_bound(modules[0]) * sequential_bound(modules[1:]) if modules else 1.0


def spectral_radius(step: Callable[[Tensor], Tensor], u: Tensor, tolerance: float = 1e-3) -> float:
    """Largest |eigenvalue| of the Jacobian of ``step`` at u, float64 ``(1, 1, H, W)``, by Arnoldi's method (ARPACK).

    Raises:
        RuntimeError: if the method does not converge (SciPy's ArpackNoConvergence).
    """
    u = u.detach().double().requires_grad_()
    out = step(u)

    def transposed(vector: np.ndarray) -> np.ndarray:
        (back,) = torch.autograd.grad(out, u, torch.from_numpy(vector).view_as(u), retain_graph=True)
        return back.numpy().ravel()

    jacobian = LinearOperator((u.numel(), u.numel()), matvec=transposed, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(u.numel())
    return float(np.abs(eigs(jacobian, k=1, v0=start, tol=tolerance, return_eigenvectors=False)).max())


def stability(model: LevelSetNetwork, image: Tensor, every: int = 10, stretch: float = 1.0) -> dict:
    """Is the step of a level set network stable on a slice ``(1, 1, H, W)``, with dt times ``stretch``? In float64.

    Returns:
        ``cfl``: the CFL number, None where curvature is learned, for which no formula is known. At every ``every``-th
        u of the trajectory, ``radius``: spectral radius of the Jacobian of the step, before u is clipped, and
        ``largest``: max |u|. Were u kept, a small error would die out below a radius of 1, perhaps after some growth,
        and grow without end above it. But u moves, so the radius along the trajectory is an indicator, no proof.
    """
    model, dt = copy.deepcopy(model).double().eval(), stretch * DT
    bend, result = model.learned_curvature, {"cfl": None, "radius": [], "largest": []}
    with torch.no_grad():
        g, u, coefficients = model.edge(image.double()), model.start(image.double()), model.coefficients()
        v = speeds(g, *coefficients)
    if bend is None:
        result["cfl"] = cfl(dt, g, *coefficients.tolist())
    for number in range(model.steps):
        if number % every == 0:
            result["radius"].append(spectral_radius(lambda w: sliced_step(w, v, dt, bending=bend), u))
            result["largest"].append(float(u.abs().max()))
        with torch.no_grad():
            u = sliced_step(u, v, dt, bending=bend)
            u = u if bend is None else u.clamp(-BAND, BAND)
    return result
