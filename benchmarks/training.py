"""A training step through the level set equation: by the fused adjoint, by autograd, by autograd with checkpoints."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lsbook.levelset import LevelSetStep, Speeds, sliced_step, speeds
from lsbook.stepping import advance
from lsbook.training import soft_dice_loss

from .forms import COEFFICIENTS, example
from .measure import Plan, peak_of, ratio, seconds_each, slope, target, threads, times

DT = 0.2
METHODS = ("fused", "slices", "stacked", "stacked, checkpoints")


def evolve(method: str, u: Tensor, v: Speeds, steps: int) -> Tensor:
    """u after some steps, by one of METHODS; checkpoints every sqrt(steps) steps, as the fused form keeps them."""
    if method == "fused":
        return advance(u, v, DT, steps, method="fused")
    step = LevelSetStep(DT)

    def stretch(u: Tensor, v: Speeds, count: int) -> Tensor:
        for _ in range(count):
            u = sliced_step(u, v, DT) if method == "slices" else step(u, v)
        return u

    if method != "stacked, checkpoints":
        return stretch(u, v, steps)
    every = math.isqrt(steps - 1) + 1
    for first in range(0, steps, every):
        u = checkpoint(stretch, u, v, min(every, steps - first), use_reentrant=False)
    return u


def training_step(method: str, size: int, batch: int, steps: int) -> Callable[[], list[Tensor]]:
    """Forward and backward: gradients of the soft Dice loss by g, as an edge net needs them, and by the scalars."""
    u, g, _ = example(size, batch)
    truth = (u > -1).float()
    g.requires_grad_()
    coefficients = torch.tensor(COEFFICIENTS, requires_grad=True)

    def once() -> list[Tensor]:
        loss = soft_dice_loss(torch.sigmoid(evolve(method, u, speeds(g, *coefficients), steps)), truth)
        return list(torch.autograd.grad(loss, [g, coefficients]))

    return once


def training(plan: Plan) -> dict:
    """ms of one training step through 50 steps, batch 4, 256 x 256, and the peak memory of each method."""
    size, batch, steps = (32, 2, 6) if plan.quick else (256, 4, 50)
    rows = []
    runs = {method: training_step(method, size, batch, steps) for method in METHODS}
    first, *others = ([gradient.clone() for gradient in run()] for run in runs.values())
    for other in others:
        for a, b in zip(other, first, strict=True):
            assert (a - b).norm() < 1e-3 * b.norm(), "all methods must give one gradient"
    peaks = {method: peak_of(plan, "training", method, size, batch, steps) for method in METHODS}
    for count in plan.threads:
        with threads(count):
            samples = seconds_each(runs, min(plan.repeats, 7))
        rows += [
            {"method": method, "threads": count} | times(samples[method]) | {"peak_mib": peaks[method]["peak_mib"]}
            for method in METHODS
        ]
    targets = []
    for count in plan.threads:
        for method in METHODS[2:]:
            against = ratio(rows, {"method": method, "threads": count}, {"method": "fused", "threads": count})
            targets.append(target(f"{method} / fused, threads {count}", 20, **against))
    share = peaks["fused"]["peak_mib"] / peaks["stacked"]["peak_mib"]
    targets.append(target("memory of fused / stacked", 1 / 15, share, at_least=False))
    return {"size": size, "batch": batch, "steps": steps, "rows": rows, "targets": targets}


def memory(plan: Plan) -> dict:
    """Peak memory of a training step against the number of steps, batch 4, 256 x 256, each in a fresh process."""
    size, batch = (32, 2) if plan.quick else (256, 4)
    lengths = {
        "fused": (4, 8) if plan.quick else (25, 50, 100, 200, 400, 800),
        "stacked, checkpoints": (4, 8) if plan.quick else (25, 50, 100, 200),
        "stacked": (4, 8) if plan.quick else (10, 25, 50),
    }
    rows = [
        {"method": method, "steps": steps} | peak_of(plan, "training", method, size, batch, steps)
        for method, counts in lengths.items()
        for steps in counts
    ]
    own = [row for row in rows if row["method"] == "fused"]
    exponent = slope([row["steps"] for row in own], [row["peak_mib"] for row in own])
    return {
        "size": size,
        "batch": batch,
        "rows": rows,
        "targets": [target("memory of fused ~ steps ^", 0.55, exponent, at_least=False)],
    }
