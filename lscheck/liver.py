"""Part III, from network to liver: checks of chapters 11 to 15."""

from typing import Any

import numpy as np

from .answers import call, close, evaluate, judged, named, numbers, require


def reach(levels: int, pixel: int) -> tuple[int, int]:
    """How many pixels to the left and to the right a U-Net's output pixel can see, two convolutions per block."""
    a, b = pixel - 2, pixel + 2
    for _ in range(levels - 1):
        a, b = a // 2 - 2, b // 2 + 2
    for _ in range(levels - 1):
        a, b = 2 * a - 2, 2 * b + 3
    return pixel - a, b - pixel


@judged
def check_steps(answer: Any) -> str:
    """Chapter 11: a function (levels), least number of level set steps that see all that a U-Net's pixels can see."""
    for levels in range(1, 8):
        fields = [reach(levels, pixel) for pixel in range(2**levels)]
        widths = {left + right + 1 for left, right in fields}
        pixel, (left, right) = max(enumerate(fields), key=lambda field: max(field[1]))
        steps, least = float(evaluate(answer, levels)), max(left, right)
        start = f"with {levels} level{'s' * (levels > 1)} "
        guesses = {
            " That is a field's width; a step sees one pixel farther on both sides.": max(widths),
            " That is the width of the narrower field, not a distance from its pixel.": min(widths),
            " That is half a width, as if the field had its pixel in the middle.": max(widths) // 2,
            " That is half of the narrower width: not all pixels are alike.": min(widths) // 2,
        }
        hint = named(steps, guesses)
        sees = f"pixel {pixel} sees {left} pixels to its left and {right} to its right"
        require(steps >= least, start + f"{sees}; your {steps:g} steps see {steps:g} on each side.{hint}")
        require(steps <= least, start + f"your {steps:g} steps see more than any pixel of the U-Net.{hint}")
    return "each level doubles the field while a step adds one pixel on each side, and the field leans to one side."


@judged
def check_slices(answer: Any) -> str:
    """Chapter 12: a function of an array with the codes PIR that returns radiological slices ``(Z, H, W)``."""
    sides = (("front", "back"), ("head", "feet"), ("left", "right"))  # of the patient, along the axes of the array
    place = np.indices((4, 3, 5))
    data = 100.0 * place[0] + 10 * place[1] + place[2]
    found = numbers(call(answer, data.copy()), None, "what your function returns")
    same = found.ndim == 3 and sorted(found.ravel()) == sorted(data.ravel())
    require(same, f"an array (4, 3, 5) became one of shape {found.shape} with other voxels: turn it, and no more.")
    for dim, (name, axis, sense) in enumerate((("slices", 1, -1), ("rows", 0, 1), ("columns", 2, -1))):
        steps = np.unique(np.diff(found, axis=dim))
        own = {100: 0, 10: 1, 1: 2}.get(int(abs(steps[0]))) if len(steps) == 1 else None
        require(own is not None, "voxels that were neighbors are neighbors no more: reshape does not turn an array.")
        (begin, end), (first, last) = sides[own][:: int(np.sign(steps[0]))], sides[axis][::sense]
        turned = " The liver is on the wrong side." if own == axis == 2 else ""
        reason = f"your {name} run from {begin} to {end} of the patient, not from {first} to {last}.{turned}"
        require(begin == first, reason)
    return "slices run from the feet to the head, rows from front to back, columns from the patient's right to left."


@judged
def check_report(answer: Any) -> str:
    """Chapter 13: a function (p, y, p_test, y_test) of outputs and masks ``(B, 1, H, W)``, the test Dice to report."""
    levels = np.array([0.22, 0.42, 0.62, 0.82])  # any usual list of thresholds has one in each gap

    def scan(*liver: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Two slices; in each the number of liver pixels among 16 of each level."""
        p = np.broadcast_to(np.repeat(levels, 16), (2, 64)).reshape(2, 1, 8, 8).copy()
        y = np.arange(16) < np.array(liver).T[:, :, None]  # slice, level, pixel
        return p, y.reshape(2, 1, 8, 8)

    validation = scan((2, 0), (14, 8), (16, 15), (16, 16))
    test = scan((0, 0), (3, 0), (9, 2), (16, 12))

    def overlap(p: np.ndarray, y: np.ndarray, cut: float) -> float:
        return float(2 * (y & (p > cut)).sum() / (y.sum() + (p > cut).sum()))

    cuts = (0.1, 0.3, 0.5, 0.7)
    chosen = max(cuts, key=lambda cut: overlap(*validation, cut))
    right = overlap(*test, chosen)
    report = float(evaluate(answer, *validation, *test))
    best = max(overlap(*test, cut) for cut in cuts)
    slices = np.mean([overlap(p, y, chosen) for p, y in zip(*test, strict=True)])
    mistakes = {
        f"The test scans chose their own threshold: {best - right:.3f} of it is luck, not skill.": best,
        "That is the Dice of the validation scans, which chose the threshold.": overlap(*validation, chosen),
        "That is the threshold 0.5, which the validation scans do not prefer.": overlap(*test, 0.5),
        "That is the mean of the slices' Dice; here all slices count as one set of pixels.": slices,
        "That is the share of right pixels, which counts background.": float(((test[0] > chosen) == test[1]).mean()),
        "That is the Jaccard index.": right / (2 - right),
        "That is the threshold, not the Dice that it leads to.": chosen,
    }
    reason = f"you report {report:.3f}, where the threshold of the validation scans gives {right:.3f}. "
    require(close(report, right), reason + named(report, mistakes))
    return f"the validation scans choose the threshold, the test scans are only measured: {right:.3f} is honest."


@judged
def check_least_time(answer: Any) -> str:
    """Chapter 14: a function (pixels, operations, size, gflops, gbytes) that gives a step's least time in ms."""
    machines = ((512**2, 76, 4, 90.0, 8.0), (512**2, 76, 8, 90.0, 8.0), (512**2, 76, 4, 20.0, 60.0))
    for pixels, work, size, gflops, gbytes in machines:
        by_work, array = 1e-6 * pixels * work / gflops, 1e-6 * pixels * size / gbytes
        right, time = max(by_work, 3 * array), float(evaluate(answer, pixels, work, size, gflops, gbytes))
        mistakes = {
            "Both happen at once in the best case: the longer one counts, not the sum.": by_work + 3 * array,
            "That is the shorter of the two bounds; the longer one binds.": min(by_work, 3 * array),
        }
        for n in (1, 2, 4, 5, 6):
            mistakes[f"{n} arrays are moved, but u and g are read and u is written."] = max(by_work, n * array)
        for n in (-9, -6, -3, 3, 6, 9):
            mistakes[f"That is 10^{n} times the right one: mind the units."] = right * 10.0**n
        hint = named(1.0, {why: value / time for why, value in mistakes.items()}) if time > 0 else ""
        moved, done = 1e6 * time * gbytes / pixels, 1e6 * time * gflops / pixels
        reason = f"your {time:.3g} ms are {moved:.3g} bytes moved, or {done:.3g} operations done, per pixel. {hint}"
        require(close(time / right, 1), reason)
    return "the longer of the two bounds, with three arrays: only measuring tells how near a program comes."


@judged
def check_patients(answer: Any) -> str:
    """Chapter 15: a function (tests, level), the least number of patients with which Holm's tests could all reject."""

    def least(factor: float, level: float) -> int:
        return next(n for n in range(1, 99) if factor / 2**n < level)

    for tests, level in ((1, 0.05), (2, 0.05), (2, 0.01), (6, 0.05), (4, 0.5)):
        n, right = float(evaluate(answer, tests, level)), least(2 * tests, level)
        at_level = right - 1 if 2 * tests / 2 ** (right - 1) == level else 0
        mistakes = {
            " You left out that there are several tests.": least(2, level),
            " You divided by the number of tests; the smallest p is multiplied by it.": least(2 / tests, level),
            " At this n the corrected p is the level, not below it.": at_level,
            " You count one tail: the test is two-sided.": least(tests, level),
        }
        start = f"for {tests} test{'s' * (tests > 1)} at {level:g} you say {n:g} patients. "
        best = f"If all signs agree, the smallest corrected p is {2 * tests} / 2^{n:g} = {2 * tests / 2**n:.3g}."
        require(n >= right, start + best + named(n, mistakes))
        require(n <= right, start + f"{right} are enough: {2 * tests} / 2^{right} is below the level.")
    return "with all signs alike p is 2 / 2^n, and Holm multiplies the smallest by the number of tests."
