"""Schemes: declared orders by regression, independent NumPy forms, limits from both sides, schemes that must fail."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
import skfmm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsbook import exact
from lsbook.levelset import LevelSetStep, regularization, root, speeds
from lsbook.schemes import (
    DERIVATIVES,
    STEPPERS,
    advection,
    declared_order,
    eikonal,
    evolve_by,
    mean_curvature,
    monotone_number,
    one_sided,
    upwind_norm,
    von_neumann_number,
)

pytestmark = pytest.mark.usefixtures("one_thread")

double = torch.float64
quick = settings(max_examples=40, deadline=None, derandomize=True)
PAIRS = [("upwind", "euler"), ("eno2", "rk2"), ("weno5", "rk3")]
HAMILTONIANS = ["godunov", "osher-sethian"]


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (1, 1, *shape)))


def regressed(sizes: list[int], errors: list[float]) -> float:
    """The observed order: minus the slope of log error over log n, by least squares over all grids."""
    assert len(sizes) >= 4
    return -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def march(rate: Callable[[Tensor], Tensor], u: Tensor, end: float, longest: float, time: str = "euler") -> Tensor:
    """To the time ``end`` in equal steps of at most ``longest``."""
    steps = math.ceil(end / longest)
    return evolve_by(rate, u, end / steps, steps, time)


# Wrong schemes that the checks below must catch.


def downwind(u: Tensor, wind: list[float], spacing: list[float], boundary: str = "replicate") -> Tensor:
    """The sides taken for one another."""
    rate = torch.zeros_like(u)
    for axis, (w, h) in enumerate(zip(wind, spacing, strict=True)):
        backward, forward = one_sided(u, axis, h, boundary=boundary)
        rate = rate + max(w, 0) * backward + min(w, 0) * forward
    return rate


def central_balloon(u: Tensor, speed: float, spacing: list[float]) -> Tensor:
    """F |grad u| by central differences."""
    square = sum((sum(one_sided(u, axis, h)) / 2) ** 2 for axis, h in enumerate(spacing))
    return speed * root(square)


# Orders.


def waves(*x: Tensor) -> Tensor:
    return sum(torch.sin(2 * math.pi * (k + 1) * a + k) for k, a in enumerate(x))


def advection_errors(rate, sizes: list[int], dimensions: int, time: str, power: float) -> list[float]:
    """Mean error on periodic unit boxes of n cells along the first axis, 2 n along the others, dt ~ h**power."""
    errors, wind = [], [1.0, -0.7, 0.4][:dimensions]
    for n in sizes:
        shape = [n] + [2 * n] * (dimensions - 1)
        h = [1 / cells for cells in shape]
        x = exact.centers(shape, h)
        longest = 0.2 / sizes[0] * (sizes[0] / n) ** power
        u0 = exact.advected(waves, x, wind, 0.0)
        u = march(lambda u, h=h, wind=wind: rate(u, wind, h), u0, 0.2, longest, time)
        errors.append(float((u - exact.advected(waves, x, wind, 0.2)).abs().mean()))
    return errors


@pytest.mark.parametrize(
    "space, time, power, dimensions, sizes",
    [
        ("upwind", "euler", 1, 1, [80, 160, 320, 640]),
        ("upwind", "euler", 1, 2, [40, 60, 80, 120]),
        ("eno2", "rk2", 1, 1, [40, 80, 160, 320]),
        ("eno2", "rk2", 1, 2, [24, 32, 48, 64]),
        ("eno2", "rk3", 1, 3, [12, 16, 20, 24]),
        ("weno5", "rk3", 1, 1, [160, 320, 640, 1280]),
        ("weno5", "rk3", 5 / 3, 1, [40, 60, 80, 120]),
        ("weno5", "rk3", 5 / 3, 2, [24, 32, 40, 48]),
    ],
)
def test_order_of_smooth_advection(space, time, power, dimensions, sizes):
    def rate(u, wind, h):
        return advection(u, wind, h, space, "circular")

    observed = regressed(sizes, advection_errors(rate, sizes, dimensions, time, power))
    assert abs(observed - declared_order(space, time, power)) < 0.2, observed


def test_downwind_has_no_order():
    errors = advection_errors(lambda u, w, h: downwind(u, w, h, "circular"), [40, 80, 160, 320], 1, "euler", 1)
    assert errors[-1] > 1e3 * errors[0]


def front_errors(rate, solution, sizes: list[int], time: str, norm: str = "mean", dimensions: int = 2) -> list[float]:
    """Errors at t = 0.25 in the band |u| < 0.15 of boxes [-1, 1]^d with steps of h / 2."""
    errors = []
    for n in sizes:
        h = [2 / n] * dimensions
        x = exact.centers([n] * dimensions, h)
        u = march(lambda u, h=h: rate(u, h), solution(x, 0.0), 0.25, h[0] / 2, time)
        truth = solution(x, 0.25)
        error = (u - truth).abs()[truth.abs() < 0.15]
        errors.append(float(error.mean() if norm == "mean" else error.max()))
    return errors


def growing(x, t):
    return exact.growing_ball(x, t, 0.4)


def shrinking(x, t):
    return exact.shrinking_ball(x, t, 0.65)


@pytest.mark.parametrize("hamiltonian", HAMILTONIANS)
@pytest.mark.parametrize(
    "space, time, solution, speed, sizes",
    [
        ("upwind", "euler", growing, 1.0, [40, 60, 80, 120]),
        ("upwind", "euler", shrinking, -1.0, [40, 60, 80, 120]),
        ("eno2", "rk2", growing, 1.0, [60, 80, 120, 160]),
        ("eno2", "rk3", shrinking, -1.0, [60, 80, 120, 160]),
        ("weno5", "rk3", growing, 1.0, [80, 100, 128, 160]),
        ("weno5", "rk3", shrinking, -1.0, [80, 100, 128, 160]),
    ],
)
def test_order_of_circles_away_from_the_tip(hamiltonian, space, time, solution, speed, sizes):
    """u changes linearly in time along the front, so that the order in space is seen alone."""
    errors = front_errors(lambda u, h: eikonal(u, speed, h, space, hamiltonian), solution, sizes, time)
    assert abs(regressed(sizes, errors) - DERIVATIVES[space]) < 0.2, regressed(sizes, errors)


def test_order_of_a_sphere():
    sizes = [16, 20, 24, 32]
    errors = front_errors(lambda u, h: eikonal(u, 1.0, h), growing, sizes, "euler", dimensions=3)
    assert abs(regressed(sizes, errors) - 1) < 0.2, regressed(sizes, errors)


def merging(x, t):
    return exact.merging_balls(x, t, 0.25, [(-0.13, -0.36), (0.21, 0.33)])  # no grid line along the kink


def square(x, t):
    return exact.growing_square(x, t, 0.4)


@pytest.mark.parametrize("space, time", PAIRS[1:])
@pytest.mark.parametrize("solution, norm", [(merging, "max"), (square, "mean")], ids=["merging", "square"])
def test_high_orders_fall_to_one_at_kinks(space, time, solution, norm):
    sizes = [40, 60, 80, 120, 160]
    errors = front_errors(lambda u, h: eikonal(u, 1.0, h, space), solution, sizes, time, norm)
    assert abs(regressed(sizes, errors) - 1) <= 0.25, regressed(sizes, errors)


def test_a_central_balloon_passes_the_circle_and_is_caught_by_kinks():
    sizes, rate = [40, 60, 80, 120], lambda u, h: central_balloon(u, 1.0, h)
    assert regressed(sizes, front_errors(rate, growing, sizes, "euler")) > 0.8
    assert regressed(sizes, front_errors(rate, merging, sizes, "euler", "max")) < 0
    assert regressed(sizes, front_errors(rate, square, sizes, "euler", "max")) < 0.5
    u0 = (exact.growing_ball(exact.centers((40, 40), (1.0, 1.0)), 0.0, 8.0) > 0).double()
    assert evolve_by(lambda u: central_balloon(u, 1.0, (1.0, 1.0)), u0, 0.5, 60).max() > 5
    assert evolve_by(lambda u: eikonal(u, 1.0, (1.0, 1.0)), u0, 0.5, 60).max() <= 1


@pytest.mark.parametrize("epsilon, expected", [(None, 2.0), (1e-2, None)])
def test_order_of_curvature_flow_and_of_a_fixed_epsilon(epsilon, expected):
    errors, sizes = [], [40, 56, 80, 112]
    for n in sizes:
        h = (2 / n, 2 / n)
        x = exact.centers((n, n), h)
        u0, truth = exact.curvature_ball(x, 0.0, 0.6), exact.curvature_ball(x, 0.05, 0.6)
        u = march(lambda u, h=h: mean_curvature(u, h, epsilon), u0, 0.05, 0.2 * h[0] ** 2)
        errors.append(float((u - truth).abs()[truth.abs() < 0.1].mean()))
    observed = regressed(sizes, errors)
    assert abs(observed - expected) < 0.2 if expected else observed < 1, observed


def test_curvature_flow_of_a_sphere():
    errors, sizes = [], [20, 24, 32, 40]
    for n in sizes:
        h = (2 / n,) * 3
        x = exact.centers((n,) * 3, h)
        u0, truth = exact.curvature_ball(x, 0.0, 0.6), exact.curvature_ball(x, 0.03, 0.6)
        u = march(lambda u, h=h: mean_curvature(u, h), u0, 0.03, 0.1 * h[0] ** 2)
        errors.append(float((u - truth).abs()[truth.abs() < 0.15].mean()))
    assert abs(regressed(sizes, errors) - 2) < 0.2, regressed(sizes, errors)


def test_a_front_crosses_an_edge():
    errors, sizes = [], [80, 160, 320, 640]
    for n in sizes:
        h = (2 / n,)
        x = exact.centers((n,), h)
        u0, speed = exact.crossing_front(x, -0.7)
        u = march(lambda u, h=h, speed=speed: eikonal(u, speed, h), u0, 1.0, h[0] / 2)
        truth, _ = exact.crossing_front(x, 0.3)
        errors.append(float((u - truth).abs()[truth.abs() < 0.15].mean()))
    assert abs(regressed(sizes, errors) - 1) < 0.2, regressed(sizes, errors)


def test_orders_in_time():
    """On u_t = -u, where space plays no part."""
    for time, order in STEPPERS.items():
        errors = [
            abs(float(march(lambda u: -u, torch.ones(1, dtype=double), 1.0, 1 / n, time)) - math.exp(-1))
            for n in (10, 20, 40, 80)
        ]
        assert abs(regressed([10, 20, 40, 80], errors) - order) < 0.1


def test_declared_orders():
    assert declared_order("weno5", "rk3") == 3
    assert declared_order("weno5", "rk3", 5 / 3) == pytest.approx(5)
    assert declared_order("upwind", "rk3") == 1
    assert declared_order("eno2", "euler", 2) == 2


# Independent forms, in NumPy, cell by cell.


def neighbors(row: np.ndarray, i: int, boundary: str) -> Callable[[int], float]:
    n = len(row)
    return lambda k: row[(i + k) % n] if boundary == "circular" else row[min(max(i + k, 0), n - 1)]


def eno2_by_newton(at: Callable[[int], float], h: float, side: int) -> float:
    """Slope at the cell of the parabola through it, its neighbor on ``side``, and the smoother of the two next ones."""
    best = None
    for third in (-side, 2 * side):
        points = sorted((0, side, third))
        parabola = np.polynomial.Polynomial.fit(points, [at(k) for k in points], 2).convert().coef
        bend = abs(parabola[2]) if len(parabola) > 2 else 0.0
        slope = parabola[1] if len(parabola) > 1 else 0.0
        if best is None or bend < best[0]:
            best = (bend, slope)
    return best[1] / h


def weno5_by_interpolation(at: Callable[[int], float], h: float, side: int) -> float:
    """Three cubics' slopes at the cell, averaged by the weights of Jiang and Peng written with integrals of squares."""
    cells = [[-3, -2, -1, 0], [-2, -1, 0, 1], [-1, 0, 1, 2]]
    slopes, roughness = [], []
    for points in cells:
        values = [at(-side * k) for k in points]  # mirrored where the bias is to the right
        cubic = np.polynomial.Polynomial(np.linalg.solve(np.vander(points, increasing=True).astype(float), values))
        slope = cubic.deriv()
        slopes.append(slope(0.0))
        # sum over k of the integral over one cell of (h^k d^k/dx^k u_x)^2; u_x is the cell average's reconstruction
        average = np.polynomial.Polynomial([0.0])
        differences = [values[j + 1] - values[j] for j in range(3)]
        middles = [points[j] + 0.5 for j in range(3)]
        # the parabola whose averages over [m - 1/2, m + 1/2] are the differences
        matrix = [[1.0, m, m**2 + 1 / 12] for m in middles]
        average = np.polynomial.Polynomial(np.linalg.solve(matrix, differences))
        total = 0.0
        for k in (1, 2):
            square = average.deriv(k) ** 2
            integral = square.integ()
            total += integral(0.0) - integral(-1.0)
        roughness.append(total / h**2)
    weights = np.array([0.1, 0.6, 0.3]) / (1e-6 + np.array(roughness)) ** 2
    return -side * float(weights @ slopes / weights.sum()) / h


@pytest.mark.parametrize("boundary", ["replicate", "circular"])
@pytest.mark.parametrize("space", ["eno2", "weno5"])
def test_one_sided_by_interpolation(space, boundary):
    h, u = 0.3, uniform(3, 12)
    row = u[0, 0].numpy()
    backward, forward = (d[0, 0].numpy() for d in one_sided(u, 0, h, space, boundary))
    for i in range(len(row)):
        at = neighbors(row, i, boundary)
        independent = eno2_by_newton if space == "eno2" else weno5_by_interpolation
        assert backward[i] == pytest.approx(independent(at, h, -1), rel=1e-10, abs=1e-10)
        assert forward[i] == pytest.approx(independent(at, h, +1), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("space", DERIVATIVES)
@pytest.mark.parametrize("shape", [(9,), (8, 9), (7, 8, 9)])
def test_all_axes_by_the_same_code(space, shape):
    """Along each axis a field that varies only there has the derivatives of the line, and none along the others."""
    for axis, n in enumerate(shape):
        line = uniform(axis, n)
        view = [1, 1] + [n if k == axis else 1 for k in range(len(shape))]
        u = line.view(view).expand(1, 1, *shape)
        for k in range(len(shape)):
            for got, wanted in zip(one_sided(u, k, 0.7, space), one_sided(line, 0, 0.7, space), strict=True):
                wanted = wanted.view(view).expand_as(u) if k == axis else torch.zeros_like(u)
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.6)])
@pytest.mark.parametrize("gamma", [0.4, -0.4])
def test_first_order_is_the_level_set_step(gamma, spacing):
    u, g = uniform(1, 13, 17), (uniform(2, 13, 17) + 1) / 2
    v = speeds(g, *torch.tensor([0.1, 0.3, gamma], dtype=double), spacing)

    def rate(u: Tensor) -> Tensor:
        bent = v.bend * mean_curvature(u, spacing)
        return bent + advection(u, (v.wind_y, v.wind_x), spacing) + eikonal(u, v.push, spacing)

    torch.testing.assert_close(
        evolve_by(rate, u, 0.05, 3), three(LevelSetStep(0.05, spacing), u, v), rtol=0, atol=1e-13
    )


def three(step: LevelSetStep, u: Tensor, v) -> Tensor:
    for _ in range(3):
        u = step(u, v)
    return u


def test_mean_curvature_by_calculus_in_three_dimensions():
    """On u = x.A x / 2 + b.x central differences are exact; kappa |grad u| = tr A - p.A p / |p|^2, p = A x + b."""
    rng = np.random.default_rng(5)
    a = rng.standard_normal((3, 3))
    a, b, spacing = a + a.T, rng.standard_normal(3), (0.5, 0.8, 1.1)
    x = exact.centers((6, 7, 8), spacing)
    grid = torch.stack(torch.broadcast_tensors(*x), dim=-1).numpy()
    u = torch.from_numpy(np.einsum("...i,ij,...j", grid, a, grid) / 2 + grid @ b)
    p = grid @ a + b
    square = (p**2).sum(-1)
    bent = (np.trace(a) * square - np.einsum("...i,ij,...j", p, a, p)) / (square + regularization(spacing))
    inside = (0, 0, *[slice(1, -1)] * 3)
    np.testing.assert_allclose(mean_curvature(u, spacing)[inside], bent[inside], atol=1e-10)


def test_nothing_bends_on_a_line():
    assert not mean_curvature(uniform(1, 9), (0.5,)).any()


# The two limits.


TERMS = {
    "transport": {"wind": (0.8, -0.5)},
    "balloon": {"speed": 1.3},
    "shrinking": {"speed": -1.3},
    "both": {"wind": (-0.6, 0.9), "speed": 0.7},
}


@pytest.mark.parametrize("hamiltonian", HAMILTONIANS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 1.5)])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
def test_monotonicity_holds_up_to_its_limit_and_breaks_beyond(terms, spacing, hamiltonian):
    wind, speed = terms.get("wind", (0.0, 0.0)), terms.get("speed", 0.0)

    def rate(u: Tensor) -> Tensor:
        return advection(u, wind, spacing) + eikonal(u, speed, spacing, hamiltonian=hamiltonian)

    limit = 1 / monotone_number(1.0, spacing, wind, speed, hamiltonian)
    rng = np.random.default_rng(0)
    for _ in range(20):
        u = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 9, 8)))
        v = u + torch.from_numpy(rng.uniform(0, 1, (1, 1, 9, 8)) ** 4)
        assert (evolve_by(rate, u, 0.95 * limit, 1) <= evolve_by(rate, v, 0.95 * limit, 1) + 1e-12).all()
    assert not pit_breaks(rate, 0.95 * limit, spacing)
    assert pit_breaks(rate, 1.05 * limit, spacing)


def pit_breaks(rate: Callable[[Tensor], Tensor], dt: float, spacing: tuple[float, ...]) -> bool:
    """Whether lifting one cell, a pit or a peak whose slopes are proportional to 1 / h, lowers it after the step."""
    shape = [7] * len(spacing)
    x = exact.centers(shape, spacing)
    for sign in (1.0, -1.0):
        u = sign * sum((a.abs() / h**2) for a, h in zip(x, spacing, strict=True))
        v = u.clone()
        v[(0, 0, *(n // 2 for n in shape))] += 1e-4
        if (evolve_by(rate, u, dt, 1) > evolve_by(rate, v, dt, 1) + 1e-9).any():
            return True
    return False


def growth_on_a_plane(
    rate: Callable[[Tensor], Tensor], normal: Tensor, dt: float, spacing: tuple[float, float]
) -> float:
    """Factor over 40 steps of a tiny checkerboard laid on a plane front (interior cells, away from the border)."""
    shape = (96, 96)
    x = exact.centers(shape, spacing)
    plane = sum(n * a for n, a in zip(normal, x, strict=True))
    board = 1e-9 * torch.where((torch.arange(96).view(-1, 1) + torch.arange(96)) % 2 == 0, 1.0, -1.0).double()
    with_board, without = evolve_by(rate, plane + board, dt, 40), evolve_by(rate, plane, dt, 40)
    inside = (0, 0, slice(46, 50), slice(46, 50))
    return float((with_board - without)[inside].abs().max() / 1e-9)


ALL = {
    "transport": ((0.8, -0.5), 0.0, 0.0),
    "balloon": ((0.0, 0.0), 1.3, 0.0),
    "shrinking": ((0.0, 0.0), -1.3, 0.0),
    "curvature": ((0.0, 0.0), 0.0, 0.6),
    "all": ((0.5, -0.4), 0.7, 0.3),
    "all, shrinking": ((-0.5, 0.4), -0.7, 0.3),
}


@pytest.mark.parametrize("terms", ALL.values(), ids=ALL.keys())
def test_plane_waves_decay_up_to_the_von_neumann_limit_and_grow_beyond(terms):
    wind, speed, bend = terms
    spacing, normal = (1.0, 1.0), torch.tensor([1.0, 1.0], dtype=double) / math.sqrt(2)

    def rate(u: Tensor) -> Tensor:
        return advection(u, wind, spacing) + eikonal(u, speed, spacing) + bend * mean_curvature(u, spacing)

    limit = 1 / von_neumann_number(1.0, spacing, wind, speed, bend)
    assert growth_on_a_plane(rate, normal, 0.95 * limit, spacing) < 1
    assert growth_on_a_plane(rate, normal, 1.05 * limit, spacing) > 10


def test_monotone_limits_of_the_two_hamiltonians():
    h = (0.5, 0.5)
    assert monotone_number(0.5 / math.sqrt(2), h, speed=1.0) == pytest.approx(1)
    assert monotone_number(0.25, h, speed=-1.0, hamiltonian="osher-sethian") == pytest.approx(1)
    assert von_neumann_number(0.125, h, bend=1.0) == pytest.approx(1)
    assert von_neumann_number(0.125 / 2, (0.5,) * 3, bend=1.0) == pytest.approx(1)
    assert von_neumann_number(0.5, (0.5,), wind=(1.0,)) == pytest.approx(1)
    assert von_neumann_number(9.0, (0.5,), bend=1.0) == 0


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    wind=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    speed=st.floats(-2, 2),
    hamiltonian=st.sampled_from(HAMILTONIANS),
    spacing=st.sampled_from([(1.0, 1.0), (0.5, 1.3)]),
)
def test_comparison_principle(seed, wind, speed, hamiltonian, spacing):
    rng = np.random.default_rng(seed)
    u = torch.from_numpy(np.cumsum(rng.standard_normal((1, 1, 8, 9)), axis=-1))
    v = u + torch.from_numpy(rng.exponential(1, u.shape) * (rng.random(u.shape) < 0.3))
    number = monotone_number(1.0, spacing, wind, speed, hamiltonian)
    dt = 1 / max(number, 1e-3)

    def rate(u: Tensor) -> Tensor:
        return advection(u, wind, spacing) + eikonal(u, speed, spacing, hamiltonian=hamiltonian)

    for _ in range(3):
        u, v = evolve_by(rate, u, dt, 1), evolve_by(rate, v, dt, 1)
        assert (u <= v + 1e-10).all()


@pytest.mark.parametrize("hamiltonian", HAMILTONIANS)
@pytest.mark.parametrize("space", DERIVATIVES)
@pytest.mark.parametrize("speed", [0.7, -0.7])
def test_mirrored_and_turned_fields_evolve_alike(space, speed, hamiltonian):
    u, wind, h = uniform(8, 10, 12), (0.4, -0.3), (0.7, 1.2)

    def step(u: Tensor, wind: tuple[float, float], h: tuple[float, float]) -> Tensor:
        rate = advection(u, wind, h, space) + eikonal(u, speed, h, space, hamiltonian)
        return u + 0.1 * (rate + mean_curvature(u, h))

    once = step(u, wind, h)
    for flip, signs in (((2,), (-1, 1)), ((3,), (1, -1)), ((2, 3), (-1, -1))):
        mirrored = step(u.flip(flip), (signs[0] * wind[0], signs[1] * wind[1]), h)
        torch.testing.assert_close(mirrored.flip(flip), once, rtol=0, atol=1e-12)
    turned = step(u.transpose(2, 3), wind[::-1], h[::-1])
    torch.testing.assert_close(turned.transpose(2, 3), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("space", DERIVATIVES)
def test_ties_are_broken_without_a_side(space):
    u = torch.tensor([0.0, 0, 1, 1, 2, 3, 3, 2, 2, 0], dtype=double).view(1, 1, -1)
    backward, forward = one_sided(u, 0, 1.0, space)
    mirrored = one_sided(u.flip(2), 0, 1.0, space)
    torch.testing.assert_close(-mirrored[1].flip(2), backward, rtol=0, atol=1e-14)
    torch.testing.assert_close(-mirrored[0].flip(2), forward, rtol=0, atol=1e-14)


@pytest.mark.parametrize("space", DERIVATIVES)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (4, 5, 6)])
def test_a_constant_stays_constant(space, shape):
    u, h = torch.full((1, 1, *shape), 2.5, dtype=double), [0.5] * len(shape)
    rate = advection(u, [1.0] * len(shape), h, space) + eikonal(u, 1.0, h, space) + mean_curvature(u, h)
    assert not rate.any()


def test_the_hamiltonians_differ_at_extrema_only():
    ramp = torch.arange(9.0, dtype=double).view(1, 1, 1, 9).expand(1, 1, 9, 9) ** 2
    peak = -exact.centers((9, 9), (1.0, 1.0))[1].abs().expand(1, 1, 9, 9)
    for sign in (1, -1):
        both = [upwind_norm(ramp, sign, (1.0, 1.0), "upwind", name) for name in HAMILTONIANS]
        torch.testing.assert_close(*both)
    godunov, osher = (upwind_norm(peak, -1, (1.0, 1.0), "upwind", name) for name in HAMILTONIANS)
    assert torch.nonzero(godunov != osher)[:, 3].unique().tolist() == [4]
    torch.testing.assert_close(osher[..., 4], math.sqrt(2) * godunov[..., 4])


@pytest.mark.parametrize("space", DERIVATIVES)
def test_gradients(space):
    torch.manual_seed(2)
    u = torch.randn(1, 1, 4, 5, dtype=double, requires_grad=True)
    wind = [torch.randn(1, 1, 4, 5, dtype=double, requires_grad=True) for _ in range(2)]
    push = torch.randn(1, 1, 4, 5, dtype=double, requires_grad=True)

    def step(u: Tensor, a: Tensor, b: Tensor, push: Tensor) -> Tensor:
        return evolve_by(
            lambda u: advection(u, (a, b), (0.7, 1.2), space) + eikonal(u, push, (0.7, 1.2), space), u, 0.1, 2
        )

    assert torch.autograd.gradcheck(step, (u, *wind, push))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda u: one_sided(u, 0, 1.0, "eno3"), "space must be one of upwind, eno2, weno5, not 'eno3'"),
        (lambda u: one_sided(u, 0, 1.0, "upwind", "zeros"), "boundary must be"),
        (lambda u: one_sided(u[:, :, :2], 0, 1.0, "weno5", "circular"), "'circular' on >= 3 cells"),
        (lambda u: eikonal(u, 1.0, (1.0,), hamiltonian="lax"), "hamiltonian must be 'godunov'"),
        (lambda u: evolve_by(lambda u: u, u, 0.1, 1, "rk4"), "time must be one of euler, rk2, rk3"),
        (lambda u: monotone_number(0.1, (1.0,), hamiltonian="lax"), "hamiltonian must be"),
    ],
)
def test_unknown_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(uniform(0, 8))


# Referees by other people.


def test_curvature_flow_of_simpleitk():
    """Its filter takes the same compact differences; it has another rule where the gradient vanishes."""
    y, x = torch.meshgrid(torch.arange(40.0, dtype=double), torch.arange(50.0, dtype=double), indexing="ij")
    u = (3 * torch.sin(0.2 * x) * torch.cos(0.15 * y) + 0.4 * x - 0.3 * y)[None, None]
    image = sitk.GetImageFromArray(u[0, 0].numpy())
    theirs = sitk.GetArrayFromImage(sitk.CurvatureFlow(image, timeStep=0.1, numberOfIterations=5))
    ours = evolve_by(lambda u: mean_curvature(u, (1.0, 1.0), 1e-12), u, 0.1, 5)[0, 0].numpy()
    inside = (slice(6, -6), slice(6, -6))
    moved = np.abs(ours - u[0, 0].numpy())[inside].max()
    assert moved > 0.01
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5 * moved)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.3)])
def test_travel_times_of_fast_marching(spacing):
    """Where and when a front at the speed F arrives: the level set equation in time against the eikonal equation."""
    x = exact.centers((60, 50), spacing)
    u = exact.growing_ball(x, 0.0, 5.0)
    speed = (0.6 + 0.4 * torch.sin(0.3 * x[0]) * torch.cos(0.2 * x[1])).expand_as(u)
    arrival = skfmm.travel_time(u[0, 0].numpy(), speed[0, 0].numpy(), dx=spacing)
    end = 10.0
    ours = march(lambda u: eikonal(u, speed, spacing), u, end, 0.3, "rk2")[0, 0].numpy() > 0
    theirs = np.asarray(arrival) < end
    late = np.abs(np.asarray(arrival) - end) * speed[0, 0].numpy()  # about the distance to the front
    assert ours.sum() > 2 * (u > 0).sum()
    assert late[ours != theirs].max(initial=0) < max(spacing)
