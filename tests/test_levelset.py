"""The level set equation: signs, axes, exact solutions, bounds, symmetry, and schemes that must fail."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import find_contours
from torch import Tensor

from lsbook import levelset
from lsbook.fused import fused_steps
from lsbook.levelset import (
    KAPPA_LIMIT,
    LevelSetStep,
    Speeds,
    balloon,
    cfl,
    curvature,
    divergence_curvature,
    edge_indicator,
    evolve,
    gaussian_blur,
    maximum,
    regularization,
    root,
    sliced_step,
    speeds,
    worst_cfl,
)
from lsbook.stencils import Differences, central_gradient, differences, kernel_bank

pytestmark = pytest.mark.usefixtures("one_thread")

SPACINGS = [(1.0, 1.0), (0.7, 1.6)]
quick = settings(max_examples=40, deadline=None, derandomize=True)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, shape))


def scalars(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def place(shape: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Coordinates (y, x) in units of length, 0 at the middle of the grid; ``(1, 1, H, W)`` each."""
    y, x = (h * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for n, h in zip(shape, spacing, strict=True))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return y[None, None], x[None, None]


def turned(field: Tensor, axis: str) -> Tensor:
    """A field made for x, used along y instead."""
    return field.transpose(2, 3).contiguous() if axis == "y" else field


# The forms of the step, and the wrong schemes that the same checks must refuse.


def convolved(u: Tensor, v: Speeds, dt: float, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    return LevelSetStep(dt, spacing)(u, v)


def fused(u: Tensor, v: Speeds, dt: float, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    return fused_steps(u, v, dt, 1, spacing)


def downwind(u: Tensor, v: Speeds, dt: float) -> Tensor:
    """Forward and backward differences taken for one another."""
    d = differences(u, kernel_bank().to(u.dtype))
    swapped = d._replace(forward_y=d.backward_y, backward_y=d.forward_y, forward_x=d.backward_x, backward_x=d.forward_x)
    return u + dt * (levelset.transport(swapped, v) + balloon(swapped, v))


def central(u: Tensor, v: Speeds, dt: float) -> Tensor:
    """No upwinding at all."""
    uy, ux = central_gradient(u)
    return u + dt * (v.wind_y * uy + v.wind_x * ux + v.push * (ux**2 + uy**2).sqrt())


FORMS = [convolved, sliced_step, fused]
WRONG = [downwind, central]


# Pieces


def test_regularization_shrinks_with_the_grid():
    assert regularization((1.0, 1.0)) == pytest.approx(0.01)
    assert regularization((0.5, 3.0)) == pytest.approx(0.0025)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_root_is_a_root_with_a_finite_derivative(kind):
    values = torch.tensor([0.0, 1e-40, 1e-12, 0.25, 9.0], dtype=kind, requires_grad=True)
    torch.testing.assert_close(root(values), values.detach().sqrt(), rtol=1e-6, atol=2e-18)
    assert not root(values)[0]
    root(values).sum().backward()
    assert values.grad.isfinite().all()
    assert float(values.grad[3]) == pytest.approx(1)


def test_maximum_is_the_maximum():
    a, b = uniform(0, 50) - 0.5, uniform(1, 50) - 0.5
    torch.testing.assert_close(maximum(a, b), torch.maximum(a, b), rtol=0, atol=1e-16)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 0.7, 1.5])
@pytest.mark.parametrize("shape", [(20, 31), (3, 5)])
def test_gaussian_blur_equals_scipy(sigma, shape):
    """Cut off at 3 sigma, rounded up to whole pixels; scipy's own rounding is the same for whole sigma."""
    image = uniform(0, 2, 1, *shape)
    cut = {"truncate": 3} if sigma == int(sigma) else {"radius": math.ceil(3 * sigma)}
    expected = [ndimage.gaussian_filter(i[0].numpy(), sigma, mode="nearest", **cut) for i in image]
    np.testing.assert_allclose(gaussian_blur(image, sigma)[:, 0].numpy(), np.stack(expected), atol=1e-14)


def test_no_blur():
    image = uniform(0, 1, 1, 4, 4)
    assert torch.equal(gaussian_blur(image, 0), image)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_edge_indicator_is_one_half_where_the_gradient_is_the_contrast(spacing):
    y, x = place((24, 24), spacing)
    for ramp in (0.3 * y, 0.3 * x, 0.18 * y + 0.24 * x):
        g = edge_indicator(ramp, contrast=0.3, sigma=1.0, spacing=spacing)
        np.testing.assert_allclose(g[0, 0, 5:-5, 5:-5].numpy(), 0.5, atol=1e-12)
    assert torch.equal(edge_indicator(torch.ones_like(y), 0.3, 1.0, spacing), torch.ones_like(y))


def test_edge_indicator_smooths_by_one_pixel_unless_told_otherwise():
    image = uniform(2, 1, 1, 12, 13)
    assert torch.equal(edge_indicator(image, 0.3), edge_indicator(image, 0.3, sigma=1.0))
    assert not torch.equal(edge_indicator(image, 0.3), edge_indicator(image, 0.3, sigma=2.0))


@quick
@given(st.integers(0, 1000), st.floats(1e-3, 10), st.sampled_from([0, 0.5, 1, 2.5]), st.floats(1e-3, 1e3))
def test_edge_indicator_stays_in_its_bounds(seed, contrast, sigma, scale):
    g = edge_indicator(scale * (uniform(seed, 2, 1, 9, 11) - 0.5).float(), contrast, sigma)
    assert g.min() > 0 and g.max() <= 1


def test_edge_indicator_does_not_see_other_slices():
    image = uniform(0, 3, 1, 16, 16)
    image[2] *= 100
    alone = edge_indicator(image[:1], 0.1)
    torch.testing.assert_close(edge_indicator(image, 0.1)[:1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_speeds_are_the_coefficients_times_g_and_its_gradient(spacing):
    g = uniform(0, 1, 1, 8, 9)
    gy, gx = np.gradient(g[0, 0].numpy(), *spacing)
    v = speeds(g, *scalars(2, 3, -5), spacing)
    inner = (0, 0, slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(v.bend, 2 * g)
    np.testing.assert_allclose(v.push, -5 * g)
    np.testing.assert_allclose(v.wind_y[inner], 3 * gy[1:-1, 1:-1])
    np.testing.assert_allclose(v.wind_x[inner], 3 * gx[1:-1, 1:-1])


def test_the_step_is_a_layer_without_weights():
    step = LevelSetStep(0.1)
    assert not list(step.parameters()) and not step.state_dict()


# Transport and balloon: signs, axes, upwind side


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("sign", [1, -1])
def test_transport_at_cfl_1_shifts_by_exactly_one_pixel(form, axis, sign):
    """u_t = F u_x is solved by u(x + F t): with F dt = h upwind differences copy the neighbour on the side of F."""
    u = uniform(0, 1, 1, 6, 12)
    zero = torch.zeros_like(u)
    u_axis, wind, still = turned(u, axis), turned(zero + 2.0 * sign, axis), turned(zero, axis)
    v = Speeds(still, wind, still, still) if axis == "y" else Speeds(still, still, wind, still)
    after = turned(form(u_axis, v, 0.5), axis)
    inner = slice(1, -1)
    torch.testing.assert_close(after[..., inner], u.roll(-sign, dims=3)[..., inner], rtol=0, atol=1e-14)
    border = -1 if sign > 0 else 0  # the inflow side keeps its value: no slope across the border
    torch.testing.assert_close(after[..., border], u[..., border], rtol=0, atol=1e-14)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("start", [-9.0, 9.0])
def test_beta_draws_a_front_to_an_edge_from_either_side(axis, start):
    """g has a valley at x = 0; a front 9 pixels away is in the slope of the valley and ends in it."""
    _, x = place((5, 41))
    u, g = turned(start - x, axis), turned(1 - 0.9 * torch.exp(-(x**2) / 50), axis)
    assert cfl(2.0, g, 0, 1, 0) < 1
    u = evolve(u, g, 0.0, 1.0, 0.0, 2.0, 300)
    row = turned(u, axis)[0, 0, 2]
    (change,) = torch.nonzero(row.sign().diff()).flatten().tolist()
    assert abs(change + 0.5 - 20) <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("gamma", [0.5, -0.5])
def test_a_planar_front_moves_with_speed_gamma_g(form, axis, side, gamma):
    """u = +-x +- gamma g t, exactly, away from the borders; gamma > 0 makes the inside larger."""
    _, x = place((5, 41))
    g = torch.full_like(x, 0.8)
    u = turned(side * x, axis)
    v = speeds(turned(g, axis), *scalars(0, 0, gamma))
    for _ in range(10):
        u = form(u, v, 0.7)
    inner = (..., slice(12, -12))
    torch.testing.assert_close(turned(u, axis)[inner], (side * x + gamma * 0.8 * 7.0)[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_the_balloon_looks_to_the_upwind_side(form, axis):
    """Expanding, a peak's foot rises and its tip stays; shrinking, the tip sinks and the foot stays."""
    peak = torch.zeros(1, 1, 1, 7, dtype=torch.float64)
    peak[..., 3] = 1
    for gamma, expected in ((1, [0, 0, 0.5, 1, 0.5, 0, 0]), (-1, [0, 0, 0, 0.5, 0, 0, 0])):
        v = speeds(turned(torch.ones_like(peak), axis), *scalars(0, 0, gamma))
        after = turned(form(turned(peak, axis), v, 0.5), axis)
        np.testing.assert_allclose(after.flatten().numpy(), expected, atol=1e-15)


# Exact solutions: circles


def radii(u: Tensor, spacing: tuple[float, float]) -> np.ndarray:
    """Distances of the zero contour's points from the middle of the grid."""
    (contour,) = find_contours(u[0, 0].numpy(), 0.0)
    middle = (np.array(u.shape[-2:]) - 1) / 2
    return np.hypot(*((contour - middle) * spacing).T)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.75, 1.5)])
@pytest.mark.parametrize(
    "coefficients, start, time, expected",
    [
        ((0.0, 0.0, 1.0), 12.0, 8.0, 20.0),  # r0 + gamma t
        ((0.0, 0.0, -1.0), 20.0, 8.0, 12.0),
        ((1.0, 0.0, 0.0), 20.0, 72.0, 16.0),  # sqrt(r0^2 - 2 alpha t)
        ((0.0, 1.0, 0.0), 20.0, 8.0, 20.0),  # g is flat: nothing moves
    ],
    ids=["expanding", "shrinking", "curvature", "transport"],
)
def test_circles_have_their_exact_radius_in_all_directions(spacing, coefficients, start, time, expected):
    shape = tuple(2 * round(30 / h) + 1 for h in spacing)
    y, x = place(shape, spacing)
    g = torch.ones_like(x)
    steps = math.ceil(time * cfl(1.0, g, *coefficients, spacing) / 0.8) or 10
    u = evolve(start - torch.hypot(y, x), g, *coefficients, time / steps, steps, spacing)
    r = radii(u, spacing)
    assert r.mean() == pytest.approx(expected, abs=0.15 * max(spacing))
    assert np.abs(r - expected).max() < 0.3 * max(spacing)


def curvature_error(n: int, epsilon: float | None) -> float:
    """Mean error of r0 - sqrt(x^2 + 2 t) in a band, on n x n cells of [-1, 1]^2; epsilon None is the scheme's own."""
    h, time = 2 / n, 0.02
    y, x = place((n, n), (h, h))
    radius = torch.hypot(y, x)
    u, steps = 0.6 - radius, math.ceil(time / (0.4 * h**2))
    bank = kernel_bank((h, h))
    for _ in range(steps):
        u = u + time / steps * curvature(differences(u, bank), epsilon or regularization((h, h)))
    band = (radius > 0.4) & (radius < 0.7)
    return float((u - (0.6 - (radius**2 + 2 * time).sqrt()))[band].abs().mean())


def test_curvature_is_of_second_order_and_a_fixed_epsilon_is_not():
    coarse, fine = curvature_error(24, None), curvature_error(48, None)
    assert math.log2(coarse / fine) > 1.8
    coarse, fine = curvature_error(24, 1e-2), curvature_error(48, 1e-2)
    assert math.log2(coarse / fine) < 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_the_balloon_is_of_first_order(sign):
    def error(n: int) -> float:
        h = 2 / n
        y, x = place((n, n), (h, h))
        radius, steps = torch.hypot(y, x), n // 4
        u = evolve(0.5 - radius, torch.ones_like(x), 0.0, 0.0, sign, 0.15 / steps, steps, (h, h))
        band = (radius > 0.3) & (radius < 0.75)
        return float((u - (0.5 - radius + sign * 0.15))[band].abs().mean())

    assert 0.85 < math.log2(error(48) / error(96)) < 1.3


@pytest.mark.parametrize("spacing", SPACINGS)
def test_curvature_of_a_quadratic_by_calculus(spacing):
    y, x = place((9, 9), spacing)
    u = y**2 + 3 * x * y - 2 * x**2 + 4 * x
    uy, ux = 2 * y + 3 * x, 3 * y - 4 * x + 4
    expected = (-4 * uy**2 - 2 * ux * uy * 3 + 2 * ux**2) / (ux**2 + uy**2 + 0.01)
    bent = curvature(differences(u, kernel_bank(spacing)), 0.01)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(bent[inner], expected[inner], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_divergence_form_by_numpy_gradients_and_on_a_circle(spacing):
    u = uniform(3, 1, 1, 11, 13)
    uy, ux = np.gradient(u[0, 0].numpy(), *spacing)
    norm = np.sqrt(ux**2 + uy**2 + 0.01)
    kappa = np.gradient(uy / norm, spacing[0], axis=0) + np.gradient(ux / norm, spacing[1], axis=1)
    ours = divergence_curvature(u, 0.01, spacing)[0, 0].numpy()
    np.testing.assert_allclose(ours[2:-2, 2:-2], (kappa * np.hypot(uy, ux))[2:-2, 2:-2], atol=1e-12)

    y, x = place((61, 61), spacing)
    radius = torch.hypot(y, x)
    band = (radius > 8) & (radius < 15)
    for bent in (
        divergence_curvature(-radius, 1e-4, spacing),
        curvature(differences(-radius, kernel_bank(spacing)), 0),
    ):
        torch.testing.assert_close(bent[band], -1 / radius[band], rtol=0.05, atol=0)


def test_no_curvature_of_central_differences_is_above_its_limit_and_a_peak_reaches_it():
    """Directions have length 1, so each of the two differences is at most 1 per pixel."""
    y, x = place((7, 7))
    for u, reached in ((-(y**2) - x**2, True), (uniform(4, 1, 1, 7, 7), False)):
        uy, ux = central_gradient(u)
        norm = torch.hypot(uy, ux).clamp_min(1e-30)
        kappa = central_gradient(uy / norm)[0] + central_gradient(ux / norm)[1]
        largest = float(kappa.abs().max())
        assert largest <= KAPPA_LIMIT and (largest == KAPPA_LIMIT) == reached


# Bounds. With alpha = 0 and a CFL number up to 1 the step is monotone; wrong schemes are not.


def speeds_at_cfl(seed: int, shape: tuple[int, int], beta: float, gamma: float, number: float) -> tuple[Speeds, float]:
    g = uniform(seed, 1, 1, *shape)
    dt = number / max(cfl(1.0, g, 0, beta, gamma), 1e-6)
    return speeds(g, *scalars(0, beta, gamma)), dt


COEFFICIENT = st.floats(-3, 3).filter(lambda c: abs(c) > 0.01)


@quick
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9), COEFFICIENT, COEFFICIENT, st.booleans())
def test_maximum_principle_of_transport_and_balloon(seed, height, width, beta, gamma, binary):
    u = uniform(seed + 1, 1, 1, height, width)
    u = u.round() if binary else u
    v, dt = speeds_at_cfl(seed, (height, width), beta, gamma, 1.0)
    for form in FORMS:
        w = u
        for _ in range(5):
            after = form(w, v, dt)
            assert after.max() <= w.max() + 1e-12 and after.min() >= w.min() - 1e-12
            w = after


@quick
@given(st.integers(0, 1000), COEFFICIENT, COEFFICIENT, st.floats(0.01, 1))
def test_comparison_principle_of_transport_and_balloon(seed, beta, gamma, gap):
    """A level set that lies inside another one stays inside."""
    low = uniform(seed + 1, 1, 1, 7, 8)
    high = low + gap * uniform(seed + 2, 1, 1, 7, 8) * (uniform(seed + 3, 1, 1, 7, 8) > 0.5)
    v, dt = speeds_at_cfl(seed, (7, 8), beta, gamma, 1.0)
    for form in FORMS:
        a, b = low, high
        for _ in range(5):
            a, b = form(a, v, dt), form(b, v, dt)
            assert (a <= b + 1e-12).all()


def overshoot(form, gamma: float, beta: float) -> float:
    """How far 20 steps from a 0/1 start leave [0, 1]."""
    u = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    u[:, :, 8:16, 8:16] = 1
    g = 1 - 0.5 * uniform(0, 1, 1, 24, 24)
    v, dt = speeds(g, *scalars(0, beta, gamma)), 0.5
    assert cfl(dt, g, 0, beta, gamma) < 1
    for _ in range(20):
        u = form(u, v, dt)
    return float(max(u.max() - 1, -u.min()))


MOVES = [(0.8, 0.0), (-0.8, 0.0), (0.0, 1.0), (0.0, -1.0)]


@pytest.mark.parametrize("gamma, beta", MOVES)
@pytest.mark.parametrize("form", FORMS)
def test_no_overshoot_from_a_0_1_start(form, gamma, beta):
    assert overshoot(form, gamma, beta) < 1e-12


@pytest.mark.parametrize("gamma, beta", MOVES)
@pytest.mark.parametrize("form", WRONG)
def test_wrong_schemes_overshoot_from_the_same_start(form, gamma, beta):
    assert overshoot(form, gamma, beta) > 0.1


def growth(form, steps: int = 60) -> float:
    """max |u| after a smooth wave was carried along x at CFL 0.8."""
    _, x = place((4, 64))
    u, zero = torch.cos(2 * math.pi * x / 16), torch.zeros_like(x)
    for _ in range(steps):
        u = form(u, Speeds(zero, zero, zero + 1.0, zero), 0.8)
    return float(u.abs().max())


def test_downwind_blows_up_where_upwind_stays():
    assert all(growth(form) <= 1 for form in FORMS)
    assert growth(downwind) > 1e6


@pytest.mark.parametrize("sign", [1, -1])
def test_the_cfl_number_of_the_balloon_is_sharp(sign):
    """A pixel with all its neighbours at one height: 1 is the last number without overshoot."""
    u = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    u[0, 0, 2, 2] = 0
    g = torch.ones_like(u)
    v = speeds(g, *scalars(0, 0, sign))
    for number, highest in ((1.0, 1.0), (1.1, 1.1)):
        dt = number / cfl(1.0, g, 0, 0, sign)
        for form in FORMS:
            after = sign * form(sign * u, v, dt)
            assert float(after.max()) == pytest.approx(highest, abs=1e-12)


def test_the_cfl_number_of_curvature_is_sharp():
    """A zigzag along a straight front is multiplied by 1 - 2 CFL each step: it stays at 1, grows at 1.2."""
    _, x = place((24, 24))
    zigzag = 1e-6 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12).view(1, 1, 24, 1)
    g = torch.ones_like(x)
    v = speeds(g, *scalars(1, 0, 0))
    for form in FORMS:
        for number, low, high in ((1.0, 0.9, 1.01), (1.2, 500, 1000)):
            u, dt = 10 * x + zigzag, number / cfl(1.0, g, 1, 0, 0)
            for _ in range(20):
                u = form(u, v, dt)
            assert low < float((u - 10 * x)[:, :, 4:-4, 4:-4].abs().max()) / 1e-6 < high


@pytest.mark.parametrize("form", [sliced_step, fused])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_forms_agree_where_speeds_change_sign_or_vanish_within_an_image(form, spacing):
    u, bend, wind_y, wind_x, push = uniform(5, 5, 2, 1, 9, 8) - 0.5
    v = Speeds(bend.relu(), wind_y, wind_x, push)
    assert (push > 0).any() and (push < 0).any() and not v.bend.all()
    torch.testing.assert_close(form(u, v, 0.1, spacing), convolved(u, v, 0.1, spacing), rtol=0, atol=1e-14)


# Symmetry, constants, borders


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", [0.8, -0.8])
def test_mirrored_turned_and_shifted_images_evolve_alike(form, gamma):
    u, g = uniform(0, 1, 1, 9, 12) - 0.5, uniform(1, 1, 1, 9, 12)
    spacing, coefficients = (0.8, 1.3), scalars(0.6, 1.2, gamma)

    def run(u: Tensor, g: Tensor, spacing: tuple[float, float]) -> Tensor:
        v = speeds(g, *coefficients, spacing)
        for _ in range(10):
            u = form(u, v, 0.1, spacing)
        return u

    expected = run(u, g, spacing)
    for dims in ((2,), (3,), (2, 3)):
        torch.testing.assert_close(run(u.flip(dims), g.flip(dims), spacing).flip(dims), expected, rtol=0, atol=1e-12)
    turned = run(u.transpose(2, 3), g.transpose(2, 3), spacing[::-1]).transpose(2, 3)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(u + 3, g, spacing) - 3, expected, rtol=0, atol=1e-12)
    # inside and outside exchanged: -u solves the equation with -gamma
    coefficients = scalars(0.6, 1.2, -gamma)
    torch.testing.assert_close(-run(-u, g, spacing), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_units_of_length_do_not_matter(form):
    """u in millimetres instead of pixels: beta dt / h^2 and gamma dt / h are what counts."""
    u, g, h = uniform(0, 1, 1, 9, 12) - 0.5, uniform(1, 1, 1, 9, 12), 2.5
    pixels = form(u, speeds(g, *scalars(0, 1.2, -0.8)), 0.2, (1.0, 1.0))
    millimetres = form(u * h, speeds(g, *scalars(0, 1.2 * h**2, -0.8 * h), (h, h)), 0.2, (h, h))
    torch.testing.assert_close(millimetres / h, pixels, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_a_constant_stays_constant(form, gamma):
    u = torch.full((2, 1, 6, 7), 0.3, dtype=torch.float64)
    assert torch.equal(form(u, speeds(uniform(0, 2, 1, 6, 7), *scalars(1, 1, gamma)), 0.2), u)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_borders_are_replicated(form, gamma):
    """One step on a grid equals one step on that grid with its border repeated once by hand, frame cut off."""
    u, v = uniform(0, 1, 1, 6, 7), Speeds(*(uniform(i, 1, 1, 6, 7) - 0.5 for i in range(1, 5)))
    v = v._replace(push=gamma * v.push.abs())
    wide = [torch.from_numpy(np.pad(f.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")) for f in (u, *v)]
    cut = form(wide[0], Speeds(*wide[1:]), 0.2)[..., 1:-1, 1:-1]
    torch.testing.assert_close(form(u, v, 0.2), cut, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gamma", [1.0, -1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_another_form_of_the_bending_can_be_plugged_in(gamma, spacing):
    u, g = uniform(0, 2, 1, 8, 9), uniform(1, 2, 1, 8, 9)
    v = speeds(g, *scalars(0.7, 1.0, gamma), spacing)

    def bending(u: Tensor) -> Tensor:
        return divergence_curvature(u, 0.01, spacing)

    a, b = LevelSetStep(0.1, spacing, bending)(u, v), sliced_step(u, v, 0.1, spacing, bending)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    rest = LevelSetStep(0.1, spacing)(u, v._replace(bend=torch.zeros_like(g)))
    torch.testing.assert_close(a - rest, 0.1 * 0.7 * g * bending(u), rtol=0, atol=1e-14)


# Gradients from a 0/1 start


def gradients_from_0_1(form) -> tuple[Tensor, ...]:
    """Derivatives with respect to u0, g and the three coefficients, float32, after 30 steps.

    Ahead of the front u falls off by a factor each pixel, down to slopes whose squares are 0 in float32.
    """
    u = torch.zeros(1, 1, 40, 40)
    u[:, :, 2:6, 2:6] = 1
    u.requires_grad_()
    g = (0.5 + 0.5 * uniform(0, 1, 1, 40, 40)).float().requires_grad_()
    coefficients = torch.tensor([0.7, 1.0, 0.8], requires_grad=True)
    v, w = speeds(g, *coefficients), u
    for _ in range(30):
        w = form(w, v, 0.2)
    return torch.autograd.grad((w**2).sum(), (u, g, coefficients))


def divergence_form(u: Tensor, v: Speeds, dt: float) -> Tensor:
    return sliced_step(u, v, dt, bending=lambda u: divergence_curvature(u, regularization((1.0, 1.0))))


@pytest.mark.parametrize("form", [*FORMS, divergence_form])
def test_gradients_from_a_0_1_start_are_finite(form):
    du, dg, dc = gradients_from_0_1(form)
    assert du.isfinite().all() and dg.isfinite().all() and dc.isfinite().all()
    assert max(d.abs().max() for d in (du, dg, dc)) < 1e3
    assert du.any() and dg.any() and dc.all()


@pytest.mark.parametrize("form", [convolved, sliced_step, divergence_form])
def test_a_root_without_floor_gives_none(form, monkeypatch):
    monkeypatch.setattr(levelset, "root", torch.sqrt)
    assert any(gradient.isnan().any() for gradient in gradients_from_0_1(form))


# CFL and evolve


@pytest.mark.parametrize("spacing", SPACINGS)
def test_cfl_by_its_formula(spacing):
    hy, hx = spacing
    g = uniform(0, 2, 1, 9, 8)
    d = Differences(*differences(g, kernel_bank(spacing)))
    per_pixel = 0.1 * (
        2.0 * g * (1 / hy**2 + 1 / hx**2) ** 0.5
        + 3.0 * (d.central_y.abs() / hy + d.central_x.abs() / hx)
        + 2 * 0.5 * g / min(hy, hx) ** 2
    )
    for beta, gamma in ((3.0, 2.0), (-3.0, -2.0)):
        assert cfl(0.1, g, 0.5, beta, gamma, spacing) == pytest.approx(float(per_pixel.max()), rel=1e-12)


def test_the_sign_of_alpha_does_not_matter_to_the_cfl_number():
    g = uniform(1, 1, 1, 6, 7)
    assert cfl(0.2, g, -0.7, 0.5, 0.3) == cfl(0.2, g, 0.7, 0.5, 0.3)
    assert torch.equal(worst_cfl(0.2, *scalars(-0.7, 0.5, 0.3)), worst_cfl(0.2, *scalars(0.7, 0.5, 0.3)))


SPACED = [edge_indicator, speeds, divergence_curvature, LevelSetStep, sliced_step, cfl, worst_cfl, evolve]


@pytest.mark.parametrize("function", SPACED)
def test_pixels_are_of_unit_size_unless_told_otherwise(function):
    assert inspect.signature(function).parameters["spacing"].default == (1.0, 1.0)


@quick
@given(st.integers(0, 1000), st.floats(0, 3), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from(SPACINGS))
def test_worst_cfl_bounds_every_image(seed, alpha, beta, gamma, spacing):
    worst = float(worst_cfl(0.2, *scalars(alpha, beta, gamma), spacing))
    for g in (uniform(seed, 1, 1, 6, 7), uniform(seed, 1, 1, 6, 7).round()):
        assert cfl(0.2, g, alpha, beta, gamma, spacing) <= worst + 1e-12


@pytest.mark.parametrize("spacing", SPACINGS)
def test_worst_cfl_is_reached(spacing):
    """g = 1 at a pixel between 0 and 1 along both axes."""
    g = torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    worst = float(worst_cfl(0.2, *scalars(0.5, -2, 3), spacing))
    assert cfl(0.2, g, 0.5, -2, 3, spacing) == pytest.approx(worst, rel=1e-12)


def test_evolve_refuses_a_step_that_is_too_long_and_says_which_is_not():
    g, u = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"CFL number of 2\.00, not 0 to 1; take dt <= 0\.5"):
        evolve(u, g, 1.0, 0.0, 0.0, 1.0, 1)
    evolve(u, g, 1.0, 0.0, 0.0, 0.5, 1)


def test_evolve_takes_a_step_that_moves_nothing_and_refuses_one_back_in_time():
    g, u = torch.ones(1, 1, 8, 8), uniform(0, 1, 1, 8, 8)
    assert torch.equal(evolve(u, g, 0.0, 0.0, 0.0, 0.1, 2), u)
    with pytest.raises(ValueError, match=r"dt = -0.1 gives a CFL number of -0\.20"):
        evolve(u, g, 1.0, 0.0, 0.0, -0.1, 1)


def test_evolve_refuses_curvature_flow_that_runs_backwards():
    g, u = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="alpha = -0.1 < 0"):
        evolve(u, g, -0.1, 0.0, 0.0, 0.1, 1)


def test_evolve_repeats_the_step():
    u, g = uniform(0, 2, 1, 9, 8), uniform(1, 2, 1, 9, 8)
    expected, step = u, LevelSetStep(0.05, (0.7, 1.6))
    for _ in range(4):
        expected = step(expected, speeds(g, *scalars(0.5, -1.0, 0.7), (0.7, 1.6)))
    ours = evolve(u, g, 0.5, -1.0, 0.7, 0.05, 4, (0.7, 1.6))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    assert torch.equal(evolve(u, g, 0.5, -1.0, 0.7, 0.05, 0, (0.7, 1.6)), u)


# Gradients in float64, against finite differences.


def generic(seed: int, *shape: int) -> Tensor:
    """Values whose differences are well away from the kinks of ReLU and of the maximum."""
    return (4 * uniform(seed, *shape)).requires_grad_()


LAYERS = {
    "differences": lambda u, d, v: torch.cat(tuple(differences(u, kernel_bank((0.7, 1.2))))),
    "central gradient": lambda u, d, v: torch.cat(central_gradient(u, (0.7, 1.2))),
    "blur": lambda u, d, v: gaussian_blur(u, 0.8),
    "edge indicator": lambda u, d, v: edge_indicator(u, 0.5),
    "maximum": lambda u, d, v: maximum(u, v.push),
    "root": lambda u, d, v: root(u**2 + 0.1),
    "transport": lambda u, d, v: levelset.transport(d, v),
    "godunov, growing": lambda u, d, v: levelset.godunov(d, +1),
    "godunov, shrinking": lambda u, d, v: levelset.godunov(d, -1),
    "balloon": lambda u, d, v: balloon(d, v),
    "curvature": lambda u, d, v: curvature(d, 0.01),
    "divergence form": lambda u, d, v: divergence_curvature(u, 0.01, (0.7, 1.2)),
    "step": lambda u, d, v: LevelSetStep(0.05)(u, v),
    "sliced step": lambda u, d, v: sliced_step(u, v, 0.05),
    "fused step": lambda u, d, v: fused_steps(u, v, 0.05, 1),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_gradcheck_of_every_layer(layer):
    fields = [generic(seed, 1, 1, 4, 5) for seed in range(5)]

    def with_differences(u, bend, wind_y, wind_x, push):
        v = Speeds(bend, wind_y - 2, wind_x - 2, push - 2)  # speeds of either sign
        return layer(u, differences(u, kernel_bank()), v)

    assert torch.autograd.gradcheck(with_differences, fields)


@pytest.mark.parametrize("gamma", [0.7, -0.7])
@pytest.mark.parametrize("form", [convolved, fused], ids=["convolutions", "fused"])
def test_gradcheck_of_twenty_unrolled_steps(form, gamma):
    u0, g = generic(1, 1, 1, 5, 6), uniform(2, 1, 1, 5, 6).requires_grad_()
    coefficients = scalars(0.3, 0.8, gamma).requires_grad_()

    def unrolled(u: Tensor, g: Tensor, coefficients: Tensor) -> Tensor:
        v = speeds(g, *coefficients)
        for _ in range(20):
            u = form(u, v, 0.1)
        return u

    assert torch.autograd.gradcheck(unrolled, (u0, g, coefficients))


def test_coefficients_are_recovered_from_an_observed_evolution():
    """An inverse problem solved by training: dt is fixed, all of u is seen, all three come back to 1 %."""
    y, x = place((40, 40))
    u0 = torch.minimum(10 - y.abs(), 6 - x.abs()).clamp(-4, 4)
    g = edge_indicator(torch.tanh(12 - torch.hypot(y, x)), 0.3)
    truth = scalars(0.5, 1.4, 0.6)
    observed = fused_steps(u0, speeds(g, *truth), 0.15, 40)
    guess = scalars(0.2, 0.3, 0.2).requires_grad_()
    optimizer = torch.optim.LBFGS([guess], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        misfit = (fused_steps(u0, speeds(g, *guess), 0.15, 40) - observed).square().mean()
        misfit.backward()
        return misfit

    optimizer.step(closure)
    assert ((guess / truth - 1).abs() < 0.01).all(), guess


def test_every_form_has_the_gradient_of_alpha_at_0():
    u, g = 4 * uniform(1, 1, 1, 8, 9), uniform(2, 1, 1, 8, 9)
    gradients = []
    for form in (convolved, sliced_step, fused):
        alpha = scalars(0.0).requires_grad_()
        out = form(u, speeds(g, alpha, *scalars(0.5, 0.5)), 0.1)
        gradients.append(float(torch.autograd.grad((out**2).sum(), alpha)[0]))
    assert abs(gradients[0]) > 0.01
    assert gradients[1:] == pytest.approx(gradients[:1] * 2)
