"""The kernels against their moments, and their convolutions against finite differences written by others."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lsbook.stencils import (
    Differences,
    along_x,
    along_y,
    central_gradient,
    differences,
    kernel_bank,
    kernels,
    replicate,
)

SPACINGS = [(1.0, 1.0), (0.7, 1.9)]
ORDER = {  # (derivative along y, along x)
    "backward_y": (1, 0),
    "forward_y": (1, 0),
    "backward_x": (0, 1),
    "forward_x": (0, 1),
    "second_y": (2, 0),
    "second_x": (0, 2),
    "mixed": (1, 1),
}


def field(seed: int = 0, shape: tuple[int, ...] = (2, 1, 9, 13)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def moment(kernel: torch.Tensor, spacing: tuple[float, float], a: int, b: int) -> float:
    """sum of k y^a x^b over the kernel, y and x measured from its centre in units of length."""
    y = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1) * spacing[0]
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).view(1, 3) * spacing[1]
    return float((kernel * y**a * x**b).sum())


def test_names_and_order_are_those_of_the_differences():
    assert tuple(kernels()) == Differences._fields == tuple(ORDER)
    assert kernel_bank((0.5, 2.0)).shape == (7, 1, 3, 3)
    assert kernel_bank().dtype == torch.float64


@pytest.mark.parametrize("function", [kernels, kernel_bank, central_gradient])
def test_pixels_are_of_unit_size_unless_told_otherwise(function):
    assert inspect.signature(function).parameters["spacing"].default == (1.0, 1.0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ORDER)
def test_moments_say_which_derivative_a_kernel_takes(name, spacing):
    """sum k y^a x^b = the derivative of y^a x^b at 0, for all powers up to the derivative's own order."""
    kernel, (p, q) = kernels(spacing)[name], ORDER[name]
    assert float(kernel.sum()) == pytest.approx(0, abs=1e-14)
    for a in range(3):
        for b in range(3):
            if a + b <= p + q:
                expected = math.factorial(p) * math.factorial(q) if (a, b) == (p, q) else 0.0
                assert moment(kernel, spacing, a, b) == pytest.approx(expected, abs=1e-13), (a, b)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_sided_kernels_are_of_first_order_and_look_to_their_own_side(spacing):
    """Their error term is h / 2 of the second derivative, negative for backward, positive for forward."""
    hy, hx = spacing
    k = kernels(spacing)
    assert moment(k["backward_y"], spacing, 2, 0) == pytest.approx(-hy)
    assert moment(k["forward_y"], spacing, 2, 0) == pytest.approx(hy)
    assert moment(k["backward_x"], spacing, 0, 2) == pytest.approx(-hx)
    assert moment(k["forward_x"], spacing, 0, 2) == pytest.approx(hx)


def test_along_x_is_the_transpose_and_scaled():
    weights = (1.0, 2.0, 5.0)
    assert along_y(weights, 2.0)[:, 1].tolist() == [0.5, 1.0, 2.5]
    assert along_x(weights, 2.0)[1].tolist() == [0.5, 1.0, 2.5]
    assert float(along_y(weights).sum()) == float(along_x(weights).sum()) == 8


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, 0.0), (1.0, -2.0), (float("nan"), 1.0)])
def test_a_spacing_that_is_no_length_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        kernels(spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_convolutions_equal_scipy_correlate(spacing):
    """The border is part of this: scipy's mode "nearest" replicates it."""
    u = field()
    ours = differences(u, kernel_bank(spacing))
    for name, kernel in kernels(spacing).items():
        theirs = [ndimage.correlate(image[0].numpy(), kernel.numpy(), mode="nearest") for image in u]
        np.testing.assert_allclose(getattr(ours, name)[:, 0].numpy(), np.stack(theirs), atol=1e-14, err_msg=name)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_convolutions_equal_numpy_differences(spacing):
    hy, hx = spacing
    u = field(1)
    d = Differences(*(part[:, 0].numpy() for part in differences(u, kernel_bank(spacing))))
    u = u[:, 0].numpy()
    np.testing.assert_allclose(d.backward_y[:, 1:], np.diff(u, axis=1) / hy, atol=1e-13)
    np.testing.assert_allclose(d.forward_y[:, :-1], np.diff(u, axis=1) / hy, atol=1e-13)
    np.testing.assert_allclose(d.backward_x[:, :, 1:], np.diff(u, axis=2) / hx, atol=1e-13)
    np.testing.assert_allclose(d.forward_x[:, :, :-1], np.diff(u, axis=2) / hx, atol=1e-13)
    np.testing.assert_allclose(d.second_y[:, 1:-1], np.diff(u, 2, axis=1) / hy**2, atol=1e-13)
    np.testing.assert_allclose(d.second_x[:, :, 1:-1], np.diff(u, 2, axis=2) / hx**2, atol=1e-13)
    gradient_y, gradient_x = np.gradient(u, hy, hx, axis=(1, 2))
    np.testing.assert_allclose(d.central_y[:, 1:-1], gradient_y[:, 1:-1], atol=1e-13)
    np.testing.assert_allclose(d.central_x[:, :, 1:-1], gradient_x[:, :, 1:-1], atol=1e-13)
    mixed = np.gradient(gradient_y, hx, axis=2)
    np.testing.assert_allclose(d.mixed[:, 1:-1, 1:-1], mixed[:, 1:-1, 1:-1], atol=1e-13)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_central_gradient_equals_the_mean_of_the_one_sided_convolutions(spacing):
    u = field(2)
    d = differences(u, kernel_bank(spacing))
    gy, gx = central_gradient(u, spacing)
    torch.testing.assert_close(gy, d.central_y, rtol=0, atol=1e-14)
    torch.testing.assert_close(gx, d.central_x, rtol=0, atol=1e-14)


def test_the_normal_difference_across_a_replicated_border_is_zero():
    d = differences(field(3), kernel_bank())
    assert not d.backward_y[:, :, 0].any() and not d.forward_y[:, :, -1].any()
    assert not d.backward_x[..., 0].any() and not d.forward_x[..., -1].any()
    assert d.forward_y[:, :, 0].all() and d.forward_x[..., 0].all()


def test_replicate_repeats_border_and_corners():
    u = field(4)
    np.testing.assert_array_equal(replicate(u)[:, 0].numpy(), np.pad(u[:, 0].numpy(), ((0, 0), (1, 1), (1, 1)), "edge"))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_gradient_of_an_indicator_has_the_bound_that_the_cfl_number_uses(spacing):
    """|g_y| <= 1 / (2 hy) and |g_x| <= 1 / (2 hx) for 0 <= g <= 1, reached by stripes two pixels wide."""
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(3)
    g = ((stripes.view(-1, 1) + stripes.view(1, -1)) / 2)[None, None]
    noise = torch.from_numpy(np.random.default_rng(5).integers(0, 2, (4, 1, 12, 12)).astype(float))
    for h, part in zip(spacing, central_gradient(noise, spacing), strict=True):
        assert part.abs().max() <= 1 / (2 * h) + 1e-15
    gy, gx = central_gradient((g > 0.5).double(), spacing)
    assert gy.abs().max() == pytest.approx(1 / (2 * spacing[0]))
    assert gx.abs().max() == pytest.approx(1 / (2 * spacing[1]))
