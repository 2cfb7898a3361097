"""Dice against a count by hand and against two other programs."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import compute_dice, compute_generalized_dice

from lsbook.metrics import dice, slice_dice


def masks(seed: int, shape: tuple[int, ...] = (5, 17, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of different size that overlap in part."""
    rng = np.random.default_rng(seed)
    a = rng.random(shape) < 0.3
    return a, (a & (rng.random(shape) < 0.8)) | (rng.random(shape) < 0.1)


def test_dice_counted_by_hand():
    reference = np.array([[1, 1, 1, 0]])
    prediction = np.array([[0, 0, 1, 1]])
    assert dice(reference, prediction) == pytest.approx(2 * 1 / (3 + 2))


def test_dice_of_equal_disjoint_and_empty_masks():
    full, empty = np.ones((3, 4)), np.zeros((3, 4))
    left, right = np.eye(3, 4), np.eye(3, 4, 1)
    assert dice(full, full) == 1
    assert dice(left, right) == 0
    assert dice(full, empty) == dice(empty, full) == 0
    assert dice(empty, empty) == 1


@pytest.mark.parametrize("seed", range(3))
def test_dice_agrees_with_monai_and_itk(seed):
    a, b = masks(seed)
    ours = dice(a, b)
    assert 0.2 < ours < 0.95
    one_channel = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (b, a)]  # MONAI: prediction first
    assert ours == pytest.approx(float(compute_dice(*one_channel)), rel=1e-6)
    assert ours == pytest.approx(float(compute_generalized_dice(*one_channel)), rel=1e-6)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    assert ours == pytest.approx(overlap.GetDiceCoefficient(), rel=1e-12)


def test_dice_is_symmetric_and_ignores_the_value_of_a_label():
    a, b = masks(3)
    assert dice(a, b) == dice(b, a)
    assert dice(a * 2, b * 255) == dice(a, b)
    assert dice((a * 2).astype(np.uint8), b) == dice(a, b)


def test_slice_dice_is_dice_slice_by_slice():
    a, b = masks(4)
    a[0], b[0] = 0, 0
    b[1] = 0
    values = slice_dice(a, b)
    assert values.dtype == np.float64 and values.shape == (5,)
    np.testing.assert_allclose(values, [dice(a[z], b[z]) for z in range(5)])
    assert values[0] == 1 and values[1] == 0
    assert values[2:].mean() != pytest.approx(dice(a, b), rel=1e-6)


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        dice(np.ones((3, 4)), np.ones((4, 3)))
    with pytest.raises(ValueError):
        slice_dice(np.ones((2, 4, 4)), np.ones((3, 4, 4)))
