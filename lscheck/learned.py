"""Part IV, what the network learned: checks of chapters 16 to 18."""

from typing import Any

import numpy as np

from lsbook.chance import MATCH
from lsbook.kernels import MONOMIALS, dictionary, moments, nearest, operators

from .answers import close, evaluate, judged, named, numbers, require

AVERAGES = ("mean", "Gaussian", "identity", "sharpen")  # known kernels that are no derivatives
STENCILS = ("central x", "central y", "second x", "second y", "mixed xy")


@judged
def check_near(answer: Any) -> str:
    """Chapter 16: two kernels, one that matches a derivative but is none, one that is u_x but matches nothing."""
    kernels = numbers(answer, (2, 3, 3))
    match, known = nearest(kernels), list(dictionary())
    near, consistent = operators(kernels)
    names, cosines = [known[n] for n in match.stencil], np.abs(match.cosine)
    require(near.order is not None and consistent.order is not None, "one of them is zero.")
    swap = " Are they swapped?" if cosines[1] >= MATCH > cosines[0] else ""
    said = f"the first is nearest to {names[0]}, |cosine| {cosines[0]:.3f}"
    require(cosines[0] >= MATCH, f"{said}: no match, that begins at {MATCH}.{swap}")
    require(names[0] not in AVERAGES, f"{said}: it matches, but that is no derivative.{swap}")
    hidden = " Its mean is so small that it counts as zero here: take a larger one." if kernels[0].sum() else ""
    require(near.order == 0, f"the first is a derivative: {near.text}.{hidden or ' It needs a mean.'}{swap}")
    m = moments(kernels[1:])[0]
    require(close(m[0, 0], 0), f"the second has the mean {m[0, 0] / 9:.3g}, so it is no derivative.")
    require(close((m[1, 0], m[0, 1]), (1, 0)), f"the second is {consistent.text}, not u_x.")
    require(close((m[2, 0], m[1, 1], m[0, 2]), 0), f"the second has an error of order h: it is {consistent.text}.")
    said = f"the second matches {names[1]}, |cosine| {cosines[1]:.3f}"
    require(cosines[1] < MATCH, f"{said}: add another share, or another kernel, without moments up to order 2.")
    return f"{near.text} is near {names[0]}, and {consistent.text} is near nothing. Near in R^9 is not consistent."


@judged
def check_projection(answer: Any) -> str:
    """Chapter 17: a function (3, 3) -> (3, 3), the nearest kernel in the span of the five level set stencils."""
    stencils = np.stack([dictionary()[name] for name in STENCILS]).reshape(5, 9)
    right = np.linalg.pinv(stencils) @ stencils
    found = np.stack([evaluate(answer, unit, shape=(3, 3)).ravel() for unit in np.eye(9).reshape(9, 3, 3)])
    k = np.random.default_rng(0).standard_normal((3, 3))
    linear = close(evaluate(answer, k, shape=(3, 3)).ravel(), k.ravel() @ found)
    require(linear, "it is not linear: a projection of a sum is the sum of the projections.")
    lengths = np.linalg.norm(stencils, axis=1, keepdims=True)
    one, x, xx = MONOMIALS
    entries = np.stack([np.outer(*pair) for pair in ((one, x), (x, one), (one, xx), (x, x), (xx, one))])
    entries = (entries - entries.mean(axis=(1, 2), keepdims=True)).reshape(5, 9)
    other = np.linalg.pinv(entries) @ entries
    mistakes = {
        "it sums the projections on each stencil, but u_xx and u_yy are not orthogonal: both have the center. "
        "It counts twice there.": (stencils / lengths).T @ (stencils / lengths),
        "it sums products with stencils whose length is not 1.": stencils.T @ stencils,
        "it removes the mean: that is the space of dimension 8.": np.eye(9) - 1 / 9,
        "it keeps the first differences alone: that is the space of dimension 2.": np.linalg.pinv(stencils[:2])
        @ stencils[:2],
        "it returns the kernel as it is.": np.eye(9),
        "it projects on the monomials, whose entries follow a polynomial: the other space of dimension 5.": other,
        "it returns what is left when the projection is taken away.": np.eye(9) - right,
    }
    reason = named(found, mistakes)
    require(not reason, reason)
    kept = close(stencils @ found, stencils)
    require(kept, "a stencil of the space must stay as it is, and yours changes one.")
    rank = np.linalg.matrix_rank(found, tol=1e-4)
    require(rank == 5, f"its results fill a space of dimension {rank}, not 5.")
    require(close(found, found.T), "its results lie in the space, but what it takes away is not orthogonal to it.")
    return "what it keeps lies in the span, and what it takes away is orthogonal to it."


@judged
def check_rounding(answer: Any) -> str:
    """Chapter 18: a function (low, high, bits), standard deviation in HU of the error of rounding a window to bits."""
    for low, high, bits in ((-100.0, 400.0, 8), (-160.0, 240.0, 4), (0.0, 1.0, 1)):
        level, found = (high - low) / (2**bits - 1), evaluate(answer, low, high, bits)
        mistakes = {
            " That is the distance of two levels; the error is at most half of it.": level,
            " That is the largest error, not its standard deviation.": level / 2,
            " That is the mean of the error's size.": level / 4,
            " That is a variance.": level**2 / 12,
            " The root is missing: the variance is gap^2 / 12.": level / 12,
            " 0.289 is rounded: which number is it?": 0.289 * level,
            " In Python 2^bits is no power: write 2**bits.": (high - low) / ((2 ^ bits) - 1) / np.sqrt(12),
            " n bits have 2^n levels, so 2^n - 1 gaps.": (high - low) / 2**bits / np.sqrt(12),
            " An error between plus and minus half a gap has the variance gap^2 / 12, not / 3.": level / np.sqrt(3),
            " The window is divided by the number of bits, not of gaps.": (high - low) / bits / np.sqrt(12),
        }
        hint = named(found, mistakes)
        case = f"{bits} bit{'s' * (bits > 1)} for {low:g} to {high:g} HU"
        require(close(found, level / np.sqrt(12)), f"{case}: you say {float(found):.4g} HU.{hint}")
    return "an error spread evenly over a gap has a standard deviation of gap / sqrt(12)."
