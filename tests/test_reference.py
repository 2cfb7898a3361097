"""The NumPy step against formulas by hand, and all forms of the step against it."""

import numpy as np
import pytest
import torch

from lsbook.fused import fused_steps
from lsbook.levelset import LevelSetStep, Speeds, cfl, edge_indicator, sliced_step, speeds
from lsbook.reference import numpy_step, one_sided, upwind_norm

pytestmark = pytest.mark.usefixtures("one_thread")

# batch, shape, spacing
GRIDS = [
    (1, (32, 32), (1.0, 1.0)),
    (3, (33, 26), (1.0, 1.0)),
    (3, (25, 41), (0.7, 1.6)),
    (1, (1, 7), (1.0, 1.0)),
]


def case(batch: int, shape: tuple[int, int], spacing: tuple[float, float], gamma: float, rough: bool):
    """Random u with |u| <= 1, g of a random image or, rough, g itself random; dt at 0.9 of the CFL limit."""
    generator = torch.Generator().manual_seed(7)
    u, image = 2 * torch.rand(2, batch, 1, *shape, generator=generator, dtype=torch.float64) - 1
    g = (image + 1) / 2 if rough else edge_indicator(image, contrast=0.3, spacing=spacing)
    coefficients = (1.0, 2.0, gamma)
    dt = 0.9 / cfl(1.0, g, *coefficients, spacing)
    v = speeds(g, *torch.tensor(coefficients, dtype=torch.float64), spacing)
    return u, g, v, coefficients, dt


@pytest.mark.parametrize("rough", [False, True], ids=["edge indicator", "rough g"])
@pytest.mark.parametrize("gamma, tolerance", [(1.0, 1e-12), (-1.0, 1e-10)])
@pytest.mark.parametrize("batch, shape, spacing", GRIDS)
def test_all_forms_of_the_step_agree_over_100_steps(batch, shape, spacing, gamma, tolerance, rough):
    u, g, v, coefficients, dt = case(batch, shape, spacing, gamma, rough)
    step = LevelSetStep(dt, spacing)
    convolved = sliced = u
    referee = [image[0].numpy() for image in u]
    for _ in range(100):
        convolved, sliced = step(convolved, v), sliced_step(sliced, v, dt, spacing)
        referee = [
            numpy_step(w, edges[0].numpy(), *coefficients, dt, spacing) for w, edges in zip(referee, g, strict=True)
        ]
    fused = fused_steps(u, v, dt, 100, spacing)
    expected = torch.from_numpy(np.stack(referee)[:, None])
    assert (expected - u).abs().max() > 0.1, "the front must move, or agreement shows nothing"
    for form in (convolved, sliced, fused):
        torch.testing.assert_close(form, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_single_precision_stays_close_to_double(gamma):
    u, _, v, _, dt = case(3, (33, 26), (0.7, 1.6), gamma, rough=False)
    spacing = (0.7, 1.6)
    expected = fused_steps(u, v, dt, 100, spacing)
    u, v = u.float(), Speeds(*(field.float() for field in v))
    convolved = sliced = u
    step = LevelSetStep(dt, spacing)
    for _ in range(100):
        convolved, sliced = step(convolved, v), sliced_step(sliced, v, dt, spacing)
    for form in (convolved, sliced, fused_steps(u, v, dt, 100, spacing)):
        assert form.dtype == torch.float32
        torch.testing.assert_close(form.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("term", [0, 1, 2])
def test_the_agreement_notices_each_term(term):
    """With one coefficient 1 % off, the referee disagrees: none of the terms is idle in the agreement test."""
    u, g, v, coefficients, dt = case(1, (32, 32), (1.0, 1.0), 1.0, rough=False)
    wrong = [c * (1.01 if i == term else 1) for i, c in enumerate(coefficients)]
    w = u[0, 0].numpy()
    for _ in range(10):
        w = numpy_step(w, g[0, 0].numpy(), *wrong, dt)
    assert np.abs(fused_steps(u, v, dt, 10)[0, 0].numpy() - w).max() > 1e-4


def test_one_sided_differences_by_hand():
    u = np.array([[1.0, 4.0, 9.0]])
    backward, forward = one_sided(u, 0.5, axis=1)
    np.testing.assert_allclose(backward, [[0, 6, 10]])
    np.testing.assert_allclose(forward, [[6, 10, 0]])
    for part in one_sided(u, 0.5, axis=0):
        np.testing.assert_array_equal(part, 0)


def test_upwind_norm_of_a_peak_and_of_a_pit():
    """Outward, the foot of a peak grows and its tip stays; inward, the tip sinks and the foot stays."""
    peak = np.array([[0.0, 0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(upwind_norm(peak, (1, 1), outward=True), [[0, 1, 0, 1, 0]])
    np.testing.assert_allclose(upwind_norm(peak, (1, 1), outward=False), [[0, 0, 1, 0, 0]])
    np.testing.assert_allclose(upwind_norm(-peak, (1, 1), outward=True), [[0, 0, 1, 0, 0]])
    np.testing.assert_allclose(upwind_norm(-peak, (1, 1), outward=False), [[0, 1, 0, 1, 0]])


def test_upwind_norm_of_a_plane_is_its_slope():
    y, x = np.mgrid[:9, :9] * np.array([0.5, 2.0])[:, None, None]
    for outward in (True, False):
        inner = upwind_norm(3 * y - 4 * x, (0.5, 2.0), outward)[1:-1, 1:-1]
        np.testing.assert_allclose(inner, 5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_one_numpy_step_of_a_quadratic_and_a_plane_by_calculus(spacing):
    """Differences are exact here, so each term is its formula; epsilon is (h / 10)^2."""
    y, x = np.mgrid[-3:4, -3:4] * np.array(spacing)[:, None, None]
    i, j = 4, 5  # an inner pixel, beside the centre
    u = y**2 + 3 * x * y - 2 * x**2
    uy, ux, uyy, uxy, uxx = 2 * y + 3 * x, 3 * y - 4 * x, 2.0, 3.0, -4.0
    bend = (uxx * uy**2 - 2 * ux * uy * uxy + uyy * ux**2) / (ux**2 + uy**2 + (min(spacing) / 10) ** 2)
    after = numpy_step(u, np.full_like(u, 0.5), 0.8, 1.0, 0.0, 0.1, spacing)
    assert after[i, j] - u[i, j] == pytest.approx(0.1 * 0.8 * 0.5 * bend[i, j], rel=1e-12)

    plane, g = 2 * y - 3 * x, 0.5 + 0.02 * y + 0.03 * x
    after = numpy_step(plane, g, 0.8, 1.5, -0.6, 0.1, spacing)
    rate = 1.5 * (0.02 * 2 - 0.03 * 3) - 0.6 * g * 13**0.5
    np.testing.assert_allclose((after - plane)[1:-1, 1:-1], 0.1 * rate[1:-1, 1:-1], rtol=1e-12)
