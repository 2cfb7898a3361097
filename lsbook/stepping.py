"""Many steps of the level set equation, by the fastest form that the device and the installed packages allow."""

from importlib.util import find_spec

from torch import Tensor

from .levelset import LevelSetStep, Speeds
from .stencils import Spacing

METHODS = ("auto", "fused", "stacked")


def choose_method(u: Tensor, method: str = "auto") -> str:
    """The method itself, or for "auto" the fastest: "fused" (:mod:`lsbook.fused`) on a CPU with numba, else "stacked".

    "stacked" is :class:`LevelSetStep`, one convolution with all stencils a step.

    Raises:
        ValueError: if the method is not one of :data:`METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if method != "auto":
        return method
    return "fused" if u.device.type == "cpu" and find_spec("numba") else "stacked"


def advance(u: Tensor, v: Speeds, dt: float, steps: int, spacing: Spacing = (1.0, 1.0), method: str = "auto") -> Tensor:
    """u ``(B, 1, H, W)`` after ``steps`` steps, differentiable; all methods agree to rounding.

    Raises:
        ValueError: if the method is not one of :data:`METHODS`.
    """
    if choose_method(u, method) == "fused":
        from .fused import fused_steps  # here, because numba takes a second to import and need not be installed

        return fused_steps(u, v, dt, steps, spacing)
    step = LevelSetStep(dt, spacing).to(u.device)
    for _ in range(steps):
        u = step(u, v)
    return u
