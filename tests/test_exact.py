"""Exact solutions: each is held against its equation by automatic differentiation, or against its formula by search."""

import math

import pytest
import torch

from lsbook import exact

double = torch.float64


def random_points(dimensions: int, n: int = 400) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(dimensions)
    return tuple(2 * torch.rand(n, dtype=double) - 1 for _ in range(dimensions))


def derivatives(u, x, t):
    """u_t, grad u and kappa |grad u| of the formula u(x, t) by automatic differentiation."""
    x = [a.clone().requires_grad_() for a in x]
    time = torch.full_like(x[0], t).requires_grad_()
    *slopes, rate = torch.autograd.grad(u(x, time).sum(), [*x, time], create_graph=True)
    norm = torch.stack(slopes).norm(dim=0)
    kappa = torch.zeros_like(norm)
    for a, slope in zip(x, slopes, strict=True):
        kappa = kappa + torch.autograd.grad((slope / norm).sum(), a, retain_graph=True, allow_unused=True)[0]
    return rate.detach(), torch.stack(slopes).detach(), norm.detach(), (kappa * norm).detach()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_unit_speed(dimensions):
    x, t = random_points(dimensions), 0.2
    outside = exact.radius(x) > 1.01 * t
    for ball, sign in ((exact.growing_ball, 1), (exact.shrinking_ball, -1)):
        rate, _, norm, _ = (
            derivatives(lambda x, t, f=ball: f(x, t, 0.5), x, t) if dimensions > 1 else slope_1d(ball, x, t)
        )
        torch.testing.assert_close(rate[outside], sign * norm[outside])
    plateau = exact.growing_ball(x, t, 0.5)[exact.radius(x) <= t]
    assert len(plateau) > 0 and (plateau == 0.5).all()


def slope_1d(ball, x, t):
    """As :func:`derivatives`, on a line, where there is no curvature."""
    x, time = x[0].clone().requires_grad_(), torch.full_like(x[0], t).requires_grad_()
    slope, rate = torch.autograd.grad(ball((x,), time, 0.5).sum(), (x, time))
    return rate, slope[None], slope.abs(), None


@pytest.mark.parametrize("dimensions", [2, 3])
def test_curvature_flow(dimensions):
    x, t = random_points(dimensions), 0.07
    rate, _, _, bend = derivatives(lambda x, t: exact.curvature_ball(x, t, 0.5), x, t)
    torch.testing.assert_close(rate, bend)
    assert float(exact.curvature_ball([torch.zeros(1)] * dimensions, 0.125 / (dimensions - 1), 0.5)) == 0


def test_a_profile_is_carried_against_the_wind():
    x, wind = random_points(2), (0.3, -0.2)

    def u(x, t):
        return exact.advected(lambda y, x: torch.sin(3 * y) * torch.cos(2 * x), x, [t * w for w in wind], 1.0)

    rate, slopes, _, _ = derivatives(u, x, 0.4)
    torch.testing.assert_close(rate, wind[0] * slopes[0] + wind[1] * slopes[1])
    at = [torch.tensor(-0.3 * 2), torch.tensor(0.2 * 2)]  # where x + t w is the origin at t = 2
    torch.testing.assert_close(exact.advected(lambda y, x: torch.hypot(y, x), at, wind, 2.0), torch.tensor(0.0))


def best_within_reach(u0, x, t, pick):
    """The formula of Hopf and Lax by brute force: the best of u0 over a fine polar grid of the disc of radius t."""
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=double)
    reach = t * torch.linspace(0, 1, 41, dtype=double)
    dy = (reach[:, None] * angle.sin()).flatten()
    dx = (reach[:, None] * angle.cos()).flatten()
    return pick(u0((x[0][:, None] + dy, x[1][:, None] + dx)), dim=1)


@pytest.mark.parametrize("t", [0.1, 0.35])
@pytest.mark.parametrize(
    "solution, pick",
    [
        (lambda x, t: exact.growing_ball(x, t, 0.5), torch.amax),
        (lambda x, t: exact.shrinking_ball(x, t, 0.5), torch.amin),
        (lambda x, t: exact.growing_square(x, t, 0.5), torch.amax),
        (lambda x, t: exact.shrinking_square(x, t, 0.5), torch.amin),
        (lambda x, t: exact.merging_balls(x, t, 0.3, [(0.1, -0.4), (0.0, 0.4)]), torch.amax),
    ],
    ids=["growing ball", "shrinking ball", "growing square", "shrinking square", "merging balls"],
)
def test_hopf_lax(solution, pick, t):
    x = random_points(2)
    sought = best_within_reach(lambda y: solution(y, 0.0), x, t, pick)
    nearest = t * math.hypot(1 / 80, math.pi / 720)  # from any point to a point of the search; slopes are at most 1
    torch.testing.assert_close(solution(x, t), sought, rtol=0, atol=nearest)


def test_a_square_rounds_outside_and_stays_sharp_inside():
    diagonal = (torch.linspace(0, 1, 2001, dtype=double),) * 2
    half, t = 0.4, 0.2
    for square, where in ((exact.growing_square, half + t / math.sqrt(2)), (exact.shrinking_square, half - t)):
        u = square(diagonal, t, half)
        assert abs(float(diagonal[0][u > 0].max()) - where) < 1e-3


def test_crossing_front_obeys_its_equation_and_waits_at_the_edge():
    x = random_points(1)
    y, time = x[0].clone().requires_grad_(), torch.full_like(x[0], 0.3).requires_grad_()
    u, speed = exact.crossing_front((y,), time, depth=4.0, width=0.2)
    slope, rate = torch.autograd.grad(u.sum(), (y, time))
    torch.testing.assert_close(rate, speed.detach() * slope.abs())
    _, speed = exact.crossing_front((torch.tensor([0.0, 5.0]),), 0.0, depth=4.0)
    torch.testing.assert_close(speed, torch.tensor([0.2, 1.0]))
    assert exact.crossing_front(exact.centers((4, 6), (1.0, 1.0)), 0.0)[0].shape == (1, 1, 4, 6)


@pytest.mark.parametrize("shape, spacing", [((4,), (0.5,)), ((3, 4), (1.0, 2.0)), ((2, 3, 4), (1.0, 0.5, 0.25))])
def test_centers(shape, spacing):
    x = exact.centers(shape, spacing)
    assert torch.broadcast_shapes(*(a.shape for a in x)) == (1, 1, *shape)
    for a, n, h in zip(x, shape, spacing, strict=True):
        assert a.dtype == double and abs(float(a.sum())) < 1e-12
        assert float(a.max() - a.min()) == pytest.approx((n - 1) * h)
