"""Redistancing: against exact, fast marching and Euclidean distances, the drift of the contour, and what must fail."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import skfmm
import torch
from scipy import ndimage
from torch import Tensor

from lsbook import exact
from lsbook.redistance import redistance
from lsbook.schemes import eikonal

pytestmark = pytest.mark.usefixtures("one_thread")


def steep_and_flat(n: int, dimensions: int = 2) -> tuple[Tensor, Tensor, list[float]]:
    """A function with the zero contour of a ball of radius 0.5, |grad u| from 0.1 to 2 on it; its distance; spacing."""
    h = [2 / n] * dimensions
    x = exact.centers([n] * dimensions, h)
    distance = exact.growing_ball(x, 0.0, 0.5)
    return distance * (0.1 + (x[0] - 0.3) ** 2 + (x[1] - 0.2) ** 2), distance, h


def regressed(sizes: list[int], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def without_the_fix(u: Tensor, spacing: list[float], steps: int) -> Tensor:
    """Sussman, Smereka, Osher 1994 as it stands: upwind differences, across the contour too, and a smeared sign."""
    sign = u / (u**2 + min(spacing) ** 2).sqrt()
    dt = 0.5 / math.sqrt(sum(1 / h**2 for h in spacing))
    phi = u
    for _ in range(steps):
        phi = phi + dt * (sign + eikonal(phi, -sign, spacing))
    return phi


def drift(phi: Tensor, distance: Tensor, h: float) -> float:
    """Mean distance between the contours, read off in cells beside the contour where |grad distance| = 1."""
    beside = distance.abs() < 0.75 * h
    return float((phi - distance)[beside].abs().mean())


def test_the_contour_stays_to_second_order_and_drifts_without_the_fix():
    sizes, fixed, unfixed = [32, 48, 64, 96, 128], [], []
    for n in sizes:
        u, distance, h = steep_and_flat(n)
        fixed.append(drift(redistance(u, h, width=0.2), distance, h[0]))
        unfixed.append(drift(without_the_fix(u, h, 2 * n), distance, h[0]))
    assert abs(regressed(sizes, fixed) - 2) < 0.3, fixed
    assert fixed[-1] < 0.02 * h[0]
    assert unfixed[-1] > 5 * fixed[-1]


@pytest.mark.parametrize("space, order", [("upwind", 1), ("eno2", 2)])
def test_the_distance_has_the_order_of_its_differences(space, order):
    sizes, errors = [32, 48, 64, 96], []
    for n in sizes:
        u, distance, h = steep_and_flat(n)
        near = distance.abs() < 0.25
        errors.append(float((redistance(u, h, 0.4, space) - distance)[near].abs().mean()))
    assert regressed(sizes, errors) > order - 0.2, errors


def test_fast_marching_finds_the_same_distance():
    u, distance, h = steep_and_flat(96)
    ours = redistance(u, h, space="eno2")[0, 0].numpy()
    theirs = skfmm.distance(u[0, 0].numpy(), dx=h)
    exactly = distance[0, 0].numpy()
    away = exactly < 0.35  # from the tip
    assert np.abs(ours - theirs)[away].max() < 0.5 * h[0]
    assert np.abs(ours - exactly)[away].mean() <= np.abs(theirs - exactly)[away].mean()


def test_anisotropic_spacing_against_euclidean_distances():
    h, n = (0.02, 0.05), (100, 40)
    x = exact.centers(n, h)
    inside = (torch.maximum(x[0].abs() / 0.5, x[1].abs() / 0.6) < 1)[0, 0].numpy()
    u = torch.where(torch.from_numpy(inside), 1.0, -1.0).double()[None, None]
    ours = redistance(u, h)[0, 0].numpy()
    euclid = ndimage.distance_transform_edt(inside, h) - ndimage.distance_transform_edt(~inside, h)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.SetSpacing(h[::-1])
    maurer = -sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True))
    # A mask has no sub-pixel contour: the three put it inside a cell in their own ways.
    assert np.abs(ours - euclid).max() < 1.5 * max(h)
    assert np.abs(ours - maurer).max() < 1.5 * max(h)


def test_three_dimensions():
    u, distance, h = steep_and_flat(32, dimensions=3)
    phi = redistance(u, h, width=0.4)
    near = distance.abs() < 0.25
    assert float((phi - distance)[near].abs().max()) < h[0]
    assert float((u - distance)[near].abs().max()) > 2 * h[0]


def test_a_distance_is_left_alone():
    _, distance, h = steep_and_flat(64)
    phi = redistance(distance, h, width=0.3, space="eno2")
    near = distance.abs() < 0.25
    assert float((phi - distance)[near].abs().max()) < 0.05 * h[0]


def test_a_cell_alone_and_a_line_of_cells_have_a_distance():
    u = -torch.ones(1, 1, 9, 9, dtype=torch.float64)
    u[0, 0, 4, 4] = 1.0
    u[0, 0, 1, 1:8] = 1.0
    phi = redistance(u, (1.0, 1.0))
    assert phi.isfinite().all() and ((phi > 0) == (u > 0)).all()
    assert 0.2 < float(phi[0, 0, 4, 4]) <= 1


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_no_contour_is_an_error(value):
    u = torch.ones(2, 1, 6, 6)
    u[0, 0, 2:4, 2:4] = -1
    u[1] = value
    with pytest.raises(ValueError, match="no zero contour in a sample"):
        redistance(u, (1.0, 1.0))
