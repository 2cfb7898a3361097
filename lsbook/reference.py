"""The same level set step written a second time, in NumPy, from the textbook formulas: the referee of ``levelset``.

Nothing is shared with the torch code: no kernel, no ReLU. The upwind side is chosen by ``where``, the max and min of
Godunov's scheme are written as such (Osher, Fedkiw, Level Set Methods and Dynamic Implicit Surfaces, 2003, chapters 3
to 6). Arrays are ``(H, W)``; spacing is ``(hy, hx)``.
"""

import numpy as np


def one_sided(u: np.ndarray, h: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Backward and forward difference of u along an axis, zero across the border (Neumann)."""
    first, last = np.take(u, [0], axis), np.take(u, [-1], axis)
    steps = np.diff(np.concatenate([first, u, last], axis), axis=axis) / h
    n = u.shape[axis]
    return steps.take(range(n), axis), steps.take(range(1, n + 1), axis)


def upwind_norm(u: np.ndarray, spacing: tuple[float, float], outward: bool) -> np.ndarray:
    """Godunov's |grad u|: for an outward moving front (u grows) uphill differences count, otherwise downhill ones."""
    total = np.zeros_like(u)
    for axis, h in enumerate(spacing):
        backward, forward = one_sided(u, h, axis)
        if outward:
            total += np.maximum(np.minimum(backward, 0) ** 2, np.maximum(forward, 0) ** 2)
        else:
            total += np.maximum(np.maximum(backward, 0) ** 2, np.minimum(forward, 0) ** 2)
    return np.sqrt(total)


def numpy_step(
    u: np.ndarray,
    g: np.ndarray,
    alpha: float,
    beta: float,
    gamma: float,
    dt: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """One forward Euler step of u_t = alpha g kappa |grad u| + beta grad g . grad u + gamma g |grad u|."""
    hy, hx = spacing
    p = np.pad(u, 1, mode="edge")
    uy, ux = (p[2:, 1:-1] - p[:-2, 1:-1]) / (2 * hy), (p[1:-1, 2:] - p[1:-1, :-2]) / (2 * hx)
    uyy = (p[2:, 1:-1] - 2 * u + p[:-2, 1:-1]) / hy**2
    uxx = (p[1:-1, 2:] - 2 * u + p[1:-1, :-2]) / hx**2
    uxy = (p[2:, 2:] - p[2:, :-2] - p[:-2, 2:] + p[:-2, :-2]) / (4 * hy * hx)
    epsilon = (min(hy, hx) / 10) ** 2
    bend = (uyy * ux**2 - 2 * ux * uy * uxy + uxx * uy**2) / (ux**2 + uy**2 + epsilon)

    flow = np.zeros_like(u)
    for axis, h in enumerate(spacing):
        backward, forward = one_sided(u, h, axis)
        g_backward, g_forward = one_sided(g, h, axis)
        wind = beta * (g_backward + g_forward) / 2
        flow += wind * np.where(wind > 0, forward, backward)

    return u + dt * (alpha * g * bend + flow + gamma * g * upwind_norm(u, spacing, outward=gamma > 0))
