"""Checks of the reader's answers: right ones pass in every form, and each mistake is told its own reason."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lscheck
from experiments import subspaces
from lsbook import ct, kernels, networks, schemes

CHAPTERS = sorted((Path(__file__).parents[1] / "book").glob("[01][0-9]_*.ipynb"))
CHECKS = {name: getattr(lscheck, name) for name in lscheck.__all__}


def majority(u, v, w):
    return np.maximum(np.maximum(np.minimum(u, v), np.minimum(v, w)), np.minimum(u, w))


def lifetime(radius, h):
    return (radius / h) ** 2 / 0.8


def units(**other):
    right = {"alpha": 5.12, "beta": 5.12, "gamma": 0.8, "contrast": 0.0875, "time": 120.0}
    return list((right | other).values())


HALF = np.outer([-1, 1, 0], [1, 2, 1]) / 32


def transport(u, a, h):
    slope = torch.cat([u[:1], u, u[-1:]]).diff() / h
    return F.relu(-a) * slope[1:] - F.relu(a) * slope[:-1]


def circular(u, a, h):
    slope = (u.roll(-1) - u) / h
    return F.relu(-a) * slope - F.relu(a) * slope.roll(1)


def central(u, a, h):
    ends = torch.cat([u[:1], u, u[-1:]])
    return -a * (ends[2:] - ends[:-2]) / (2 * h)


def layers(pixels, alpha, beta, gamma, share=0.95):
    return math.ceil(pixels * (2 * alpha + beta + math.sqrt(2) * gamma) / (share * gamma))


def longest(h, w, force, bend):
    return 1 / schemes.von_neumann_number(1.0, h, w, force, bend)


def shortest(h, w, force, bend):
    terms = ((w, 0.0, 0.0), ((0.0, 0.0), force, 0.0), ((0.0, 0.0), 0.0, bend))
    return min(longest(h, *term) for term in terms if any([*term[0], *term[1:]]))


def mixed(h, w, force, bend, carry=1.0, push=1.0, curve=1.0):
    """The longest step with a share of each term forgotten or counted too often."""
    unit = (0.0, 0.0)
    numbers = [schemes.von_neumann_number(1.0, h, *term) for term in ((w, 0, 0), (unit, force, 0), (unit, 0, bend))]
    return 1 / max(np.dot([carry, push, curve], numbers), 1e-9)


def weights(s, ideal=(0.1, 0.6, 0.3)):
    clean = [not start < s < start + 3 for start in (0, -1, -2)]
    return np.array(ideal) * clean / np.dot(ideal, clean)


def transposed(y, fold=True):
    frame = F.pad(y, (2, 0)) / 2 - F.pad(y, (0, 2)) / 2
    inner = frame[1:-1].clone()
    if fold:
        inner[0] += frame[0]
        inner[-1] += frame[-1]
    return inner


def difference(y):
    ends = torch.cat([y[:1], y, y[-1:]])
    return (ends[2:] - ends[:-2]) / 2


def border_test(value=-1.0, room=1e-5):
    def test(network):
        answer = network(torch.full((1, 1, 16, 16), value))
        assert answer.max() - answer.min() <= room

    return test


def ramp_test(network):
    answer = network(torch.linspace(0, 1, 16).expand(1, 1, 16, 16))
    assert answer.max() - answer.min() < 1e-5


def identity_test(network):
    image = torch.full((1, 1, 16, 16), -1.0)
    return torch.equal(network(image), image)


def inner_test(network):
    answer = network(torch.full((1, 1, 16, 16), -1.0))[..., 4:8, 4:8]
    assert answer.max() - answer.min() < 0.1


def negative_test(network):
    assert network(torch.full((1, 1, 16, 16), -1.0)).max() <= 0


def change_test(network):
    assert network(torch.full((1, 1, 16, 16), -1.0)).mean() > -0.9


def positive_test(network):
    answer = network(torch.ones(1, 1, 16, 16))
    assert answer.max() <= 0 or answer.max() - answer.min() < 1e-5


def steps(levels):
    return 7 * 2 ** (levels - 1) - 5


def slices(data):
    return data.transpose(1, 0, 2)[::-1, :, ::-1]


CUTS = np.linspace(0.1, 0.9, 17)


def overlap(p, y, cut):
    return 2 * (y & (p > cut)).sum() / (y.sum() + (p > cut).sum())


def best(p, y):
    return max(CUTS, key=lambda cut: overlap(p, y, cut))


def honest(p, y, p_test, y_test):
    return overlap(p_test, y_test, best(p, y))


def patients(tests, level, factor=2):
    return math.floor(math.log2(factor * tests / level)) + 1


def least(pixels, operations, size, gflops, gbytes, arrays=3):
    return 1e-6 * pixels * max(operations / gflops, arrays * size / gbytes)


STENCILS = np.stack([kernels.dictionary()[name] for name in subspaces.STENCILS]).reshape(5, 9)
DX, DY = kernels.dictionary()["central x"], kernels.dictionary()["central y"]
THIRD, FOURTH = np.outer([1, -2, 1], [-0.5, 0, 0.5]), np.outer([1, -2, 1], [1, -2, 1])


def near(mean=0.05, third=1.0, first=DX):
    return np.stack([first + mean, DX + third * THIRD])


def project(k, onto=STENCILS):
    return (np.linalg.pinv(onto) @ onto @ np.ravel(k)).reshape(3, 3)


def summed(k, units=True):
    shared = STENCILS / np.linalg.norm(STENCILS, axis=1, keepdims=True) if units else STENCILS
    return (shared.T @ shared @ k.ravel()).reshape(3, 3)


def rounding(low, high, bits):
    return (high - low) / (2**bits - 1) / math.sqrt(12)


RIGHT = {
    "check_majority": [
        majority,
        lambda *fields: np.median(fields, axis=0),
        lambda *fields: np.median(fields, axis=0).astype(np.float32),
        lambda *fields: torch.from_numpy(np.median(fields, axis=0)),
        lambda *fields: np.median(fields, axis=0).tolist(),
    ],
    "check_lifetime": [
        lifetime,
        lambda r, h: math.ceil(lifetime(r, h) - 1e-9),
        lambda r, h: torch.tensor(lifetime(r, h), dtype=torch.float32),
    ],
    "check_units": [units(), tuple(units()), np.array(units(), np.float32), torch.tensor(units())],
    "check_kernel": [
        HALF,
        HALF.tolist(),
        HALF.astype(np.float32),
        torch.from_numpy(HALF),
        list(torch.from_numpy(HALF)),
    ],
    "check_transport": [
        transport,
        lambda u, a, h: transport(u, a, h).float(),
        lambda u, a, h: transport(u, a, h).numpy(),
        lambda u, a, h: schemes.advection(u[None, None], [-a], [h])[0, 0],
        lambda u, a, h: torch.where(
            a > 0, -a * torch.cat([u[:1], u]).diff() / h, -a * torch.cat([u, u[-1:]]).diff() / h
        ),
    ],
    "check_layers": [layers, lambda *case: float(layers(*case)), lambda *case: torch.tensor(layers(*case))],
    "check_longest_step": [longest, lambda *case: np.float32(longest(*case))],
    "check_shares": [weights, lambda s: weights(s).tolist(), lambda s: torch.from_numpy(weights(s)).float()],
    "check_adjoint": [
        transposed,
        lambda y: transposed(y).float(),
        lambda y: torch.autograd.functional.vjp(difference, torch.zeros_like(y), y)[1],
    ],
    "check_border_test": [border_test(), lambda network: network(-torch.ones(1, 1, 32, 32)).std() < 1e-5],
    "check_steps": [steps, lambda levels: float(steps(levels))],
    "check_slices": [
        slices,
        lambda data: np.flip(data.transpose(1, 0, 2), (0, 2)),
        lambda data: torch.tensor(slices(data).copy()),
    ],
    "check_report": [
        honest,
        lambda p, y, q, z: np.float32(honest(p, y, q, z)),
        lambda *case: torch.tensor(honest(*case)),
    ],
    "check_patients": [
        patients,
        lambda tests, level: np.float32(patients(tests, level)),
        lambda tests, level: next(n for n in range(99) if tests * 2.0 ** (1 - n) < level),
    ],
    "check_least_time": [least, lambda *case: np.float32(least(*case))],
    "check_near": [
        near(),
        near().tolist(),
        tuple(near()),
        torch.from_numpy(near(0.1, 0.6)).float(),
        np.stack([DX + 0.05, DX + 0.5 * THIRD.T]),
    ],
    "check_projection": [
        project,
        lambda k: torch.from_numpy(project(k)).float(),
        lambda k: (STENCILS.T @ np.linalg.lstsq(STENCILS.T, k.ravel(), rcond=None)[0]).reshape(3, 3),
    ],
    "check_rounding": [rounding, lambda *case: np.float32(rounding(*case))],
}

WRONG = {
    "check_majority": {
        "swapped": lambda *f: -majority(*f),
        "that is the union": lambda *f: np.max(f, axis=0),
        "that is the intersection": lambda *f: np.min(f, axis=0),
        "exactly two": lambda *f: np.minimum(majority(*f), -np.min(f, axis=0)),
        "where u, w of u, v, w is positive": lambda u, v, w: np.maximum(np.minimum(u, v), np.minimum(v, w)),
        "sizes decide": lambda u, v, w: u + v + w,
        "a mask has no slope": lambda *f: majority(*f) > 0,
        "on the contour it jumps by 2": lambda *f: np.sign(majority(*f)),
    },
    "check_lifetime": {
        "The rate of r^2 is 2, not 1": lambda r, h: (r / h) ** 2 / 0.4,
        "The rate of r^2 is 2, not 4": lambda r, h: (r / h) ** 2 / 1.6,
        "The factor 0.4": lambda r, h: (r / h) ** 2 / 2,
        "still has 8.5 pixels.": lambda r, h: (r / h) ** 2 / 1.6,
        "gone long before": lambda r, h: 3 * (r / h) ** 2,
        "in another unit of length": lambda r, h: r**2 / 0.8,
        "you get 2 times the steps": lambda r, h: r / h / 0.8,
        "gone after 0 steps": lambda r, h: 0,
    },
    "check_units": {
        "shrinks by 1, not 0.8": units(alpha=6.4),
        "shrinks by 1.25, not 0.8 pixels per time. It took 0.8 to the power 0": units(alpha=8.0),
        "pulls by 1, not 0.8": units(beta=6.4),
        "balloon grows by 1.25, not 1 ": units(gamma=1.0),
        "balloon grows by 1.56": units(gamma=1.25),
        "had g = 0.5 has 0.291": units(contrast=0.056),
        "takes the time 96, not 120": units(time=96.0),
        "changes no sign": units(gamma=-0.8),
    },
    "check_kernel": {
        "must sum to zero": HALF + 0.01,
        "so yours is a derivative in x": HALF.T,
        "on u = x, where u_y = 0": HALF + HALF.T,
        "instead of 1. The sign is wrong": -HALF,
        "gives 8 instead of 1. The spacing is missing": 8 * HALF,
        "spacing of the other axis": 2 * HALF,
        "lacks its factor 1/4": 4 * HALF,
        "Spacing and the average's factor": 32 * HALF,
        "divided by the spacing twice": HALF / 8,
        "Both spacings are divided by": HALF / 4,
        "a one-sided one h": HALF / 2,
        "reads the row below, so it is no backward difference. It is flipped": -HALF[::-1],
        "reads the row below, so it is no backward difference.": np.outer([-1, 0, 1], [1, 2, 1]) / 64,
        "averaged by [0. 4. 0.] / 4": np.outer([-1, 1, 0], [0, 4, 0]) / 32,
    },
    "check_transport": {
        "moves to the left": lambda u, a, h: transport(u, -a, h),
        "takes both sides alike": central,
        "a wave by up to 1.12": central,
        "reads the downwind side: a step with Courant number 1/2 multiplies a wave by up to 2": lambda u, a, h: (
            transport(u.flip(0), -a.flip(0), h).flip(0) * 0 + 2 * central(u, a, h) - transport(u, a, h)
        ),
        "at the rate -0.5 instead of -1": lambda u, a, h: transport(u, a, h) / 2,
        "both gates are shut": lambda u, a, h: 0 * u,
        "with a = -1 nothing moves": lambda u, a, h: transport(u, a.clamp(min=0), h),
        "a constant u = 1 changes": lambda u, a, h: transport(u, a, h) + u,
        "0.25 times the right ones": lambda u, a, h: transport(u, a, 1.0),
        "one of both is not": lambda u, a, h: transport(u, a.mean() * torch.ones_like(a), h),
        "all is right but the two ends": circular,
    },
    "check_layers": {
        "That is a pixel per layer": lambda pixels, *rest: pixels,
        "need W = 1.41": lambda pixels, *rest: pixels,
        "A diagonal front counts": lambda pixels, *rest: math.ceil(pixels / 0.95),
        "the network keeps 0.95": lambda *case: layers(*case, share=1.0),
        "Rounded down it does not arrive": lambda *case: layers(*case) - 1,
        "no whole number": lambda *case: layers(*case) - 0.1,
        "Only the ratios of coefficients count": lambda p, a, b, c: layers(p, a, b, c) * (c if c == 3 else 1),
        "Transport rests where g is constant": lambda p, a, b, c: layers(p, a, 0, c),
        "the term takes its share of W": lambda p, a, b, c: layers(p, 0, b, c),
        "the front may go faster": lambda *case: layers(*case, share=0.5),
        "in 0 layers": lambda *case: 0,
    },
    "check_longest_step": {
        "transport alone your step 0.4 has the number 1.4; it must lie in (0, 1]. The shares": lambda h, w, F, b: min(
            [x / abs(v) for x, v in zip(h, w, strict=True) if v] or [longest(h, w, F, b)]
        ),
        "Each axis has its own spacing": lambda h, w, F, b: longest(h[::-1], w, F, b),
        "The wind's sign does not matter": lambda h, w, F, b: 1 / (w[0] / h[0] + w[1] / h[1]),
        "That is a front along an axis": lambda h, w, F, b: min(h) / abs(F) if F else longest(h, w, F, b),
        "the root of a sum of squares": lambda h, w, F, b: (
            1 / (abs(F) * (1 / h[0] + 1 / h[1])) if F else longest(h, w, F, b)
        ),
        "ours is Godunov's": lambda h, w, F, b: mixed(h, w, F, b, push=math.sqrt(2)),
        "A shrinking front": lambda h, w, F, b: longest(h, w, F, b) * (1 if F >= 0 else -1),
        "a factor 2 is missing": lambda h, w, F, b: mixed(h, w, F, b, curve=0.5),
        "along the front only": lambda h, w, F, b: mixed(h, w, F, b, curve=6.5 / 6.25),
        "smaller spacing": lambda h, w, F, b: mixed(h, w, F, b, curve=1 / 25),
        "A second derivative has h^2": lambda h, w, F, b: mixed(h, w, F, b, curve=0.4),
        "has the number 0.5: stable, but it may be 2 times as long.": lambda *case: longest(*case) / 2,
        "the shortest of three limits": shortest,
    },
    "check_shares": {
        "sum to 0.9": lambda s: weights(s) * (0.9 if s == 2.5 else 1),
        "sum to 2": lambda s: 2 * weights(s),
        "in the order -2..1, -1..2, 0..3": lambda s: weights(s, (0.3, 0.6, 0.1)) if s > 3 else weights(s),
        "those of the backward derivative": lambda s: weights(-s),
        "trust the stencil 0..3, which has the kink": lambda s: [0.1, 0.6, 0.3],
        "the ratio 1 : 6 : 3": lambda s: weights(s, (1 / 3, 1 / 3, 1 / 3)),
    },
    "check_adjoint": {
        "That is D itself": difference,
        "It is -1 times the right one": lambda y: -transposed(y),
        "It is 2 times the right one": lambda y: 2 * transposed(y),
        "Minus D is the transpose away from the ends only": lambda y: -difference(y),
        "0.5 of a value is lost: fold the padding back": lambda y: transposed(y, fold=False),
        "not linear": lambda y: transposed(y) ** 3 * 4,
        "It is another matrix.": lambda y: y,
    },
    "check_border_test": {
        "accepts a network that averages with zero padding. Its image is 0": border_test(value=0.0),
        "zero padding. Look at all pixels": inner_test,
        "never calls": lambda network: None,
        "rejects a network that returns its input plus 1. Constant need not mean": identity_test,
        "Its image is no constant": ramp_test,
        "rejects a network that answers with probabilities": negative_test,
        "rejects a network that averages with repeated borders": change_test,
        "accepts a network that takes differences with zero padding": positive_test,
        "by a rounding of 1e-7": border_test(room=0.0),
        "accepts a network that adds a thousandth per row": border_test(room=0.1, value=-10.0),
    },
    "check_steps": {
        "That is a field's width": lambda levels: steps(levels) if levels < 4 else 13 * 2 ** (levels - 1) - 4,
        "the width of the narrower field": lambda levels: steps(levels) if levels < 4 else 12 * 2 ** (levels - 1) - 4,
        "as if the field had its pixel in the middle": lambda levels: [0, 2, 9, 22, 50][levels],
        "not all pixels are alike": lambda levels: steps(levels) if levels < 4 else 6 * 2 ** (levels - 1) - 2,
        "see more than any pixel": lambda levels: steps(levels) + 1,
    },
    "check_slices": {
        "with other voxels": lambda data: data[1:],
        "reshape does not turn": lambda data: data.reshape(3, 4, 5),
        "your slices run from front to back of the patient, not from feet to head": lambda data: data,
        "your slices run from head to feet": lambda data: slices(data)[::-1],
        "your rows run from back to front": lambda data: slices(data)[:, ::-1],
        "your rows run from right to left": lambda data: slices(data).transpose(0, 2, 1),
        "your columns run from left to right of the patient, not from right to left. The liver": lambda data: slices(
            data
        )[:, :, ::-1],
    },
    "check_report": {
        "0.148 of it is luck, not skill": lambda p, y, q, z: overlap(q, z, best(q, z)),
        "Dice of the validation scans": lambda p, y, q, z: overlap(p, y, best(p, y)),
        "the threshold 0.5": lambda p, y, q, z: overlap(q, z, 0.5),
        "the mean of the slices' Dice": lambda p, y, q, z: np.mean(
            [honest(p, y, *one) for one in zip(q, z, strict=True)]
        ),
        "which counts background": lambda p, y, q, z: ((q > best(p, y)) == z).mean(),
        "the Jaccard index": lambda *case: honest(*case) / (2 - honest(*case)),
        "That is the threshold": lambda *case: 0.3,
        "gives 0.609.": lambda *case: 0.123,
    },
    "check_patients": {
        "You count one tail": lambda tests, level: patients(tests, level, 1),
        "several tests": lambda tests, level: patients(1, level),
        "multiplied by it": lambda tests, level: patients(1 / tests, level),
        "not below it": lambda tests, level: math.ceil(math.log2(2 * tests / level)),
        "6 are enough": lambda tests, level: 7,
        "= 0.0625": lambda tests, level: 5,
    },
    "check_least_time": {
        "not the sum": lambda p, w, s, f, b: least(p, w, s, f, 1e9) + least(p, w, s, 1e9, b),
        "the shorter of the two": lambda p, w, s, f, b: min(least(p, w, s, f, 1e9), least(p, w, s, 1e9, b)),
        "6 arrays are moved": lambda *case: least(*case, arrays=6),
        "2 arrays are moved": lambda *case: least(*case, arrays=2),
        "24 bytes": lambda *case: least(*case, arrays=6),
        "10^-3 times": lambda *case: 1e-3 * least(*case),
        "That is the shorter": lambda p, w, s, f, b: least(p, w, s, f, 1e9),
    },
    "check_near": {
        "zero": np.zeros((2, 3, 3)),
        "no match, that begins at": near(mean=0.5, first=np.diag([3.0, 0, 0])),
        "no match, that begins at 0.8225. Are they swapped?": near()[::-1],
        "but that is no derivative": near(mean=9.0),
        "It needs a mean": near(mean=0.0),
        "take a larger one": near(mean=1e-6),
        "the second has the mean": near() + [np.zeros((3, 3)), np.full((3, 3), 0.1)],
        "not u_x": np.stack([near()[0], DY + 0.15 * FOURTH]),
        "O(h^2), not u_x": np.stack([near()[0], 2 * DX + 0 * FOURTH]),
        "u_x +0.3 u_y +1 u_xyy; order 1, error O(h^2), not u_x": near() + [np.zeros((3, 3)), 0.3 * DY],
        "an error of order h": np.stack([near()[0], kernels.dictionary()["forward x"] + 0.4 * FOURTH]),
        "the second matches central x": near(third=0.01),
        "the second matches Sobel x": near(third=0.25),
        "the second matches Laplacian, 5 points": np.stack([near()[0], DX + FOURTH]),
    },
    "check_projection": {
        "is not linear": lambda k: project(k) * np.abs(k).sum(),
        "It counts twice there": summed,
        "whose length is not 1": lambda k: summed(k, units=False),
        "the space of dimension 8": lambda k: k - k.mean(),
        "the space of dimension 2": lambda k: project(k, STENCILS[:2]),
        "as it is": lambda k: k,
        "what is left": lambda k: k - project(k),
        "the other space of dimension 5": lambda k: project(k, subspaces.subspaces()["monomials"]),
        "must stay as it is": lambda k: project(k) / 2,
        "of dimension 6, not 5": lambda k: project(k, np.concatenate([STENCILS, np.ones((1, 9))])),
        "not orthogonal to it": lambda k: project(k) + DX * k.sum(),
    },
    "check_rounding": {
        "the distance of two levels": lambda *case: rounding(*case) * math.sqrt(12),
        "the largest error": lambda *case: rounding(*case) * math.sqrt(3),
        "the mean of the error's size": lambda *case: rounding(*case) * math.sqrt(12) / 4,
        "That is a variance": lambda *case: rounding(*case) ** 2,
        "The root is missing": lambda *case: rounding(*case) / math.sqrt(12),
        "0.289 is rounded": lambda low, high, bits: 0.289 * (high - low) / (2**bits - 1),
        "write 2**bits": lambda low, high, bits: (high - low) / ((2 ^ bits) - 1) / math.sqrt(12),
        "2^n - 1 gaps": lambda low, high, bits: (high - low) / 2**bits / math.sqrt(12),
        "not / 3": lambda *case: 2 * rounding(*case),
        "the number of bits": lambda low, high, bits: (high - low) / bits / math.sqrt(12),
        "you say 0 HU.": lambda *case: 0,
    },
}


def test_every_check_is_tested():
    assert set(RIGHT) == set(WRONG) == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name, answers in RIGHT.items() for k in range(len(answers))]
)
def test_right_answers_in_all_forms(name, number):
    reason = CHECKS[name](RIGHT[name][number])
    assert reason.startswith("Right: ") and reason.endswith(".")


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, answers in WRONG.items() for reason in answers])
def test_each_mistake_has_its_own_reason(name, reason):
    found = CHECKS[name](WRONG[name][reason])
    assert found.startswith("Not yet: ") and reason in found, found


@pytest.mark.parametrize("name", CHECKS)
def test_no_answer_asks_for_one(name):
    assert CHECKS[name](None) == CHECKS[name](...) == "Not yet: put your answer in place of None."


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(
    "answer",
    [
        "one",
        3.0,
        [1, 2],
        {},
        object(),
        lambda *inputs: "one",
        lambda: 1,
        lambda *inputs: 1 / 0,
        lambda *inputs: math.nan,
    ],
    ids=str,
)
def test_answers_of_a_wrong_type_get_a_sentence(name, answer):
    assert CHECKS[name](answer).startswith("Not yet: ")


def test_what_is_wrong_with_the_form_is_said():
    assert "shape (2,)" in lscheck.check_units([1, 2])
    assert "a function is asked for, not float" in lscheck.check_steps(3.0)
    assert "raised ZeroDivisionError" in lscheck.check_steps(lambda levels: 1 / 0)
    assert "a function of a network is asked for, not float" in lscheck.check_border_test(3.0)
    assert lscheck.check_transport(3.0) == lscheck.check_steps(3.0)  # also where it is called within another function
    assert "holds inf or nan" in lscheck.check_steps(lambda levels: math.nan)


def test_the_reader_cannot_spoil_a_check_by_changing_its_arrays():
    def destructive(u, v, w):
        answer = majority(u, v, w)
        u[:], v[:], w[:] = 0, 0, 0
        return answer

    assert lscheck.check_majority(destructive).startswith("Right")


def test_checks_leave_the_random_numbers_of_the_chapter_alone():
    state = torch.random.get_rng_state()
    for name, check in CHECKS.items():
        check(RIGHT[name][0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_slices_are_those_of_the_package():
    data = np.random.default_rng(0).random((4, 3, 5))  # codes PIR
    ras = data.transpose(2, 0, 1)[:, ::-1, ::-1]
    np.testing.assert_array_equal(slices(data), ct.to_slices(ras))


def test_layers_are_those_of_the_network():
    model = networks.build_model("lse")
    model.raw.data = torch.tensor([-30.0, 9e5, 9e5])
    gamma = model.coefficients()[2].item() * networks.DT
    assert layers(40, 0, 1, 1) == math.ceil(40 / gamma)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_every_chapter_checks_an_answer_and_accepts_its_own(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    words = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (name,) = (name for name in CHECKS if any(f"from lscheck import {name}" in cell for cell in code))
    assert any("answer = None" in cell and f"print({name}(answer))" in cell for cell in code)
    assert any('"Right"' in cell and name in cell and "from lscheck" not in cell for cell in code), "the solution"
    assert 3 <= words.count("```{exercise}") <= 5
    assert "*Hint:*" in words


def test_each_check_belongs_to_one_chapter():
    text = "".join(path.read_text(encoding="utf-8") for path in CHAPTERS)
    assert len(CHAPTERS) == len(CHECKS) == 18
    assert all(text.count(f"from lscheck import {name}") == 1 for name in CHECKS)
