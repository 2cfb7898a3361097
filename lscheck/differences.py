"""Part II, stencils, upwinding and step limits: checks of chapters 4 to 7."""

import math
from typing import Any

import numpy as np
import torch

from lsbook.schemes import advection, von_neumann_number

from .answers import close, columns, evaluate, judged, named, numbers, require


@judged
def check_kernel(answer: Any) -> str:
    """Chapter 4: 3x3 weights of the backward difference in y, columns averaged by 1, 2, 1; voxels of 8 by 4 mm."""
    k, hy, hx = numbers(answer, (3, 3)), 8.0, 4.0
    total, slope_y, slope_x = k.sum(), hy * (k[2] - k[0]).sum(), hx * (k[:, 2] - k[:, 0]).sum()
    require(close(total, 0), f"on an image that is 1 everywhere it gives {total:.4g}: weights must sum to zero.")
    axis = " Rows are y, so yours is a derivative in x." if close(slope_y, 0) else ""
    require(close(slope_x, 0), f"on u = x, where u_y = 0, it gives {slope_x:.4g}.{axis}")
    factors = {
        " The sign is wrong.": -1,
        " The spacing is missing.": 8,
        " That is the spacing of the other axis.": 2,
        " The average of the columns lacks its factor 1/4.": 4,
        " Spacing and the average's factor 1/4 are missing.": 32,
        " It is divided by the spacing twice.": 1 / 8,
        " Both spacings are divided by; a first derivative has one.": 1 / 4,
        " A central difference has 2h, a one-sided one h.": 1 / 2,
    }
    require(close(slope_y, 1), f"on u = y, in mm, it gives {slope_y:.4g} instead of 1.{named(slope_y, factors)}")
    flip = " It is flipped, with a sign that hides it: conv2d does not reverse kernels." if close(k[0], 0) else ""
    require(close(k[2], 0), f"u_y is right, but it reads the row below, so it is no backward difference.{flip}")
    average = np.round(4 * hy * k[1], 3)
    require(close(average, [1, 2, 1]), f"u_y is right, but the columns are averaged by {average} / 4, not 1, 2, 1.")
    return "sum 0, first moment 1, and the row below is not read; the leading error is -(h_y / 2) u_yy."


@judged
def check_transport(answer: Any) -> str:
    """Chapter 5: a function (u, a, h), upwind u_t of u_t + a u_x = 0 for float64 tensors ``(n,)``, ends repeated."""
    ones = torch.ones(9, dtype=torch.float64)
    for a, back, upwind in ((1.0, "left", (1, 0)), (-1.0, "right", (0, 1))):
        matrix = columns(lambda u, a=a: evaluate(answer, u, a * ones, 1.0, shape=(9,)), 9)
        left, own, right = matrix[4, 3:6]  # the weights of a pixel's neighbors and its own
        start, total, rate = f"with a = {a:+.0f} ", matrix[4].sum(), right - left
        require(close(total, 0), f"a constant u = 1 changes at the rate {total:.4g}; it must stay.")
        require(bool(matrix[4].any()), start + "nothing moves: both gates are shut.")
        require(not close(rate, a), start + f"a ramp moves to the {back}: u_t = a u_x has the other sign.")
        require(close(rate, -a), start + f"a ramp of slope 1 changes at the rate {rate:.4g} instead of {-a:g}.")
        sides = {"takes both sides alike": (0.5 * a, -0.5 * a), "reads the downwind side": (min(a, 0), -max(a, 0))}
        wave = np.exp(1j * np.linspace(0, math.pi, 61))
        growth = abs(1 + 0.5 * (own + left / wave + right * wave)).max()
        reason = f"it {named((left, right), sides, 'mixes both sides')}: a step with Courant number 1/2 multiplies"
        require(close((left, right), upwind), start + f"{reason} a wave by up to {growth:.3g}.")
    u, a = torch.rand(2, 9, dtype=torch.float64, generator=torch.manual_seed(0)) * 2 - 1
    rate, expected = evaluate(answer, u, a, 0.25, shape=(9,)), advection(u[None, None], [-a], [0.25])[0, 0].numpy()
    ratios = np.round(rate[1:-1] / expected[1:-1], 5)
    reason = f"with pixels of h = 1/4 all slopes are {ratios[0]:g} times the right ones: divide by h, once."
    require(bool((ratios == 1).all() or (ratios != ratios[0]).any()), reason)
    require(bool((ratios == 1).all()), "fields a of one sign are right, one of both is not: choose pixel by pixel.")
    require(close(rate, expected), "all is right but the two ends: beyond them the last value is repeated.")
    return "each pixel reads the side that its values come from, chosen by the sign of a alone: two gates of ReLU."


@judged
def check_layers(answer: Any) -> str:
    """Chapter 6: a function (pixels, alpha, beta, gamma), least layers for a straight front, scaled to W = 0.95."""
    for alpha, beta, gamma in ((0.0, 0.0, 1.0), (0.0, 0.0, 3.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.5, 2.0, 1.5)):
        layers = float(evaluate(answer, 40, alpha, beta, gamma))
        require(layers > 0, f"a front does not cross 40 pixels in {layers:g} layers.")
        share = 2 * alpha + beta + math.sqrt(2) * gamma
        least = 40 * share / (0.95 * gamma)
        hints = {
            " That is a pixel per layer: the CFL condition is left out.": 40,
            " A diagonal front counts, by the root of 2.": 40 / 0.95,
            " It is W <= 1; the network keeps 0.95.": 0.95 * least,
            " Rounded down it does not arrive.": least - 1,
            " Transport rests where g is constant, but takes its share of W.": least - 40 * beta / (0.95 * gamma),
            " A straight front has no curvature, but the term takes its share of W.": (
                least - 80 * alpha / (0.95 * gamma)
            ),
        }
        hint = named(math.ceil(layers), {why: math.ceil(value) for why, value in hints.items()})
        if layers > math.ceil(least):
            hint = " Only the ratios of coefficients count once they are scaled." if gamma == 3 else ""
        number = 0.95 * least / layers  # W of a front that needs just these layers
        why = f"with alpha, beta, gamma = {alpha:g}, {beta:g}, {gamma:g} your {layers:g} layers for 40 pixels "
        require(layers >= least, why + f"need W = {number:.3g}, which is scaled back to 0.95.{hint}")
        require(layers <= math.ceil(least), why + f"use W = {number:.3g} only: the front may go faster.{hint}")
        require(layers == math.ceil(least), why + "are no whole number.")
    return "the front makes 0.95 gamma / (2 alpha + beta + gamma sqrt 2) pixels per layer; what rests still costs."


@judged
def check_longest_step(answer: Any) -> str:
    """Chapter 7: a function (h, w, F, b), the longest step of theorem thm-cfl; h and w are pairs (y, x)."""
    h, rest, (w, force, bend) = (0.4, 2.0), (0.0, 0.0), ((1.0, -2.0), -2.0, 0.7)
    cases = (
        ("transport alone", (w, 0.0, 0.0)),
        ("the balloon alone", (rest, force, 0.0)),
        ("curvature alone", (rest, 0.0, bend)),
        ("all three", (w, force, bend)),
    )
    hints = {  # 1 / dt of mistakes; no two cases share one
        "The shares of the two axes add.": 1 / 0.4,
        "Each axis has its own spacing.": 2 / 0.4 + 1 / 2,
        "The wind's sign does not matter.": 1 / 0.4 - 2 / 2,
        "That is a front along an axis; others are worse.": 2 / 0.4,
        "The normal has length one, so it is the root of a sum of squares.": 2 * (1 / 0.4 + 1 / 2),
        "That is Osher and Sethian's gradient; ours is Godunov's.": 2 * math.hypot(1 / 0.4, 1 / 2) * math.sqrt(2),
        "A shrinking front needs a step of positive length, too.": -2 * math.hypot(1 / 0.4, 1 / 2),
        "At its worst the second difference is -4 / h^2: a factor 2 is missing.": 0.7 / 0.4**2,
        "Curvature acts along the front only, not along both axes at once.": 1.4 * (1 / 0.4**2 + 1 / 2**2),
        "The smaller spacing is the dangerous one.": 1.4 / 2**2,
        "A second derivative has h^2.": 1.4 / 0.4,
        "The shares of the terms add; the shortest of three limits is not enough.": 1.4 / 0.4**2,
    }
    for name, terms in cases:
        dt = float(evaluate(answer, h, *terms))
        number = von_neumann_number(1.0, h, *terms) * dt
        hint = named(dt, {f" {why}": 1 / value for why, value in hints.items()})
        reason = f"with {name} your step {dt:.4g} has the number {number:.4g}"
        require(0 < number < 1.0001, f"{reason}; it must lie in (0, 1].{hint}")
        require(number > 0.9999, f"{reason}: stable, but it may be {1 / max(number, 1e-9):.3g} times as long.{hint}")
    return "the shares of all terms add up to 1, each with the front, wave and pixel that are worst for it."
