"""What the compiled loops of :mod:`lsbook.fused` and :mod:`lsbook.fused_bending` share: numba's options and borders."""

import numba
import torch
from torch import Tensor

from .levelset import ROOT_FLOOR, regularization

compiled = numba.njit(cache=True, error_model="numpy")
compiled_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)
# A sum along a row is vectorized only if its terms may be added in another order.
reordering = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


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
def flush(values, target, tiny):
    """Copy the interior, numbers below ``tiny`` as 0: a gradient's far tail would be denormal, ten times slower."""
    for i in range(1, values.shape[0] - 1):
        for j in range(1, values.shape[1] - 1):
            target[i, j] = values[i, j] if abs(values[i, j]) > tiny else 0 * tiny


def prepare(u: Tensor, dt: float, hy: float, hx: float) -> tuple:
    """The loops' constants in the precision of u; threads as many as torch has."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)  # the first call of numba's in a process changes OpenMP's number, which is torch's
    return tuple(u.numpy().dtype.type(c) for c in (dt, 1 / hy, 1 / hx, regularization((hy, hx)), 1, 0.5, 0, ROOT_FLOOR))


def kept_states(u: Tensor, steps: int, every: int) -> Tensor:
    """Room for the states that a run keeps, or for none."""
    return u.new_empty((-(-steps // every) if every else 0, *u.shape))
