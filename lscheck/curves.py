"""Part I, from curves to an equation: checks of chapters 1 to 3."""

import itertools
from typing import Any

import numpy as np

from .answers import evaluate, judged, named, numbers, require


@judged
def check_majority(answer: Any) -> str:
    """Chapter 1: a function of arrays (u, v, w) that is positive inside at least two of three shapes."""
    signs = np.repeat(list(itertools.product((1.0, -1.0), repeat=3)), 60, axis=0)
    fields = (signs * np.random.default_rng(0).uniform(0.1, 2, signs.shape)).T
    found, count = evaluate(answer, *fields, shape=(480,)), (signs > 0).sum(axis=1)
    require(
        bool((found % 1).any() or abs(found).max() > 1 or found.min() < 0),
        "a mask has no slope: return negative values outside.",
    )
    rules = {
        "inside and outside are swapped: it is positive where at least two see outside.": (1, 1, 0, 0),
        "it is positive where one alone sees liver: that is the union.": (0, 1, 1, 1),
        "it is negative where only two see liver: that is the intersection.": (0, 0, 0, 1),
        "it is positive where exactly two see liver, and negative where all three do.": (0, 0, 1, 0),
    }
    rule = named([(found[count == k] > 0).mean() for k in range(4)], rules)
    require(not rule, rule)
    for part in np.split(np.arange(480), 8):  # eight patterns of signs
        wrong = part[(found[part] > 0) != (count[part] >= 2)]
        inside = ", ".join(name for name, sign in zip("uvw", signs[part[0]], strict=True) if sign > 0) or "none"
        require(len(wrong) < 60, f"where {inside} of u, v, w is positive, yours has the wrong sign: a pair is missing.")
        values = np.round(fields[:, wrong[:1]], 2).ravel().tolist()
        require(not values, f"at u, v, w = {values} its sign is wrong: sizes decide there, where signs should vote.")
    jump = abs(evaluate(answer, *(1e-6 * fields), shape=(480,))).max()
    require(jump < 1e-3, f"the signs are right, but on the contour it jumps by {2 * jump:.2g}: its place is lost.")
    return "it votes by maxima and minima (the median), so it has no jump, and no slope grows."


@judged
def check_lifetime(answer: Any) -> str:
    """Chapter 2: a function (radius, h) that gives the steps of 0.4 h^2 in which a disc vanishes by curvature."""
    radius, h = 9.6, 0.8  # 12 pixels
    steps = float(evaluate(answer, radius, h))
    require(steps > 0, f"a disc of 12 pixels would be gone after {steps:g} steps.")
    scaled, twice = (float(evaluate(answer, *case)) / steps for case in ((10 * radius, 10 * h), (2 * radius, h)))
    require(
        abs(scaled - 1) < 0.02, f"in another unit of length the same disc would need {scaled:.3g} times as many steps."
    )
    require(
        abs(twice - 4) < 0.08, f"with twice the radius you get {twice:.3g} times the steps; r^2 = r_0^2 - 2t says 4."
    )
    factors = {
        " The rate of r^2 is 2, not 1.": 2,
        " The rate of r^2 is 2, not 4.": 0.5,
        " The factor 0.4 of the step is missing.": 0.4,
    }
    left, hint = radius**2 - 2 * steps * 0.4 * h**2, named(steps / 180, factors)
    size = abs(left) ** 0.5 / h
    require(
        left < 0.02 * radius**2, f"after your {steps:g} steps a disc of 12 pixels still has {size:.1f} pixels.{hint}"
    )
    require(left > -0.02 * radius**2, f"a disc of 12 pixels is gone long before your {steps:g} steps are over.{hint}")
    return "the number grows with the square of the radius in pixels: half the pixel, four times the steps."


@judged
def check_units(answer: Any) -> str:
    """Chapter 3: (alpha, beta, gamma, lambda, T) in millimeters, of 8, 8, 1, 0.07, 120 in pixels of 0.8 mm."""
    h, given = 0.8, numbers(answer, (5,))
    require(bool((given > 0).all()), "one of the five is not positive, but another unit of length changes no sign.")
    alpha, beta, gamma, contrast, time = given
    consequences = (  # in pixels: with the answer, with the numbers it was made from
        (alpha, 8.0, "a circle of 10 pixels shrinks by {:.3g}, not {:.3g} pixels per time", alpha / (10 * h) / h, 0.8),
        (beta, 8.0, "a slope of 0.1 in g pulls by {:.3g}, not {:.3g} pixels per time", beta * 0.1 / h**2, 0.8),
        (gamma, 1.0, "the balloon grows by {:.3g}, not {:.3g} pixels per time", gamma / h, 1.0),
        (contrast, 0.07, "an edge that had g = 0.5 has {:.3g}", 1 / (1 + (0.07 / h / contrast) ** 2), 0.5),
        (time, 120.0, "the run takes the time {:.3g}, not {:.3g}", time, 120.0),
    )
    for name, (new, old, text, got, right) in zip(("alpha", "beta", "gamma", "lambda", "T"), consequences, strict=True):
        power = round(np.log(new / old) / np.log(h), 2) + 0.0
        reason = f"with your {name}, {text.format(got, right)}. It took 0.8 to the power {power:.2g}."
        require(abs(got / right - 1) < 0.01, reason)
    return "each number took 0.8 to the power of the lengths in its unit: 2, 2, 1, -1 and 0."
