"""The measures against counts by hand, brute force, and three other programs (MONAI, SciPy, ITK)."""

import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_generalized_dice,
    compute_hausdorff_distance,
)
from scipy import ndimage

from lsbook.metrics import compare, dice, ravd_percent, slice_dice, surface, surface_distances

DISTANCES = ("assd_mm", "mssd_mm", "hd95_mm")
SPACINGS = {1: (0.4,), 2: (0.7, 2.5), 3: (0.7, 0.8, 5.0)}  # mm


def one(shape: tuple[int, ...], *index: int) -> np.ndarray:
    """A mask of one voxel."""
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of several smooth parts that overlap, some cut by the array's border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    other = field + 0.5 * ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    return field > np.quantile(field, 0.6), other > np.quantile(other, 0.65)


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


# -- surfaces ---------------------------------------------------------------------------------------------------------


def brute_surface(mask: np.ndarray) -> np.ndarray:
    """Voxel by voxel: one that is set and has a face neighbour that is not, or none at all (the array's border)."""
    padded = np.pad(mask, 1)
    steps = [s * step for step in np.eye(mask.ndim, dtype=int) for s in (-1, 1)]
    points = np.argwhere(padded)
    return np.array([p - 1 for p in points if not all(padded[tuple(p + step)] for step in steps)])


def brute(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """The three distances from the table of all distances between surface voxels."""
    p, q = brute_surface(a), brute_surface(b)
    table = np.sqrt((((p[:, None] - q[None]) * np.array(spacing)) ** 2).sum(-1))
    ways = [table.min(1), table.min(0)]
    values = np.concatenate(ways).mean(), max(w.max() for w in ways), max(np.percentile(w, 95) for w in ways)
    return dict(zip(DISTANCES, values, strict=True))


def monai(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """MONAI's numbers, in single precision, hence 1e-5; its warnings about empty masks are not ours."""
    pair = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (b, a)]
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = (
            compute_average_surface_distance(*pair, symmetric=True, **options),
            compute_hausdorff_distance(*pair, **options),
            compute_hausdorff_distance(*pair, percentile=95, **options),
        )
    return dict(zip(DISTANCES, map(float, values), strict=True))


def distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float | None]:
    scores = compare(a, b, spacing)
    assert list(scores) == ["dice", "ravd_percent", *DISTANCES]
    assert (scores["dice"], scores["ravd_percent"]) == (dice(a, b), ravd_percent(a, b))
    assert json.loads(json.dumps(scores)) == scores
    return {key: scores[key] for key in DISTANCES}


SHAPES = [(40,), (19, 23), (9, 12, 11), (4, 5, 6, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", [masks, blobs])
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_brute_force_in_any_dimension(pair, shape, seed):
    a, b = pair(seed, shape)
    for mask in (a, b):
        np.testing.assert_array_equal(np.argwhere(surface(mask)), brute_surface(mask))
    spacing = SPACINGS.get(len(shape), (1.0, 2.0, 0.5, 3.0))
    found = distances(a, b, spacing)
    assert found == pytest.approx(brute(a, b, spacing), rel=1e-12)
    assert 0 < found["assd_mm"] < found["mssd_mm"] and found["hd95_mm"] <= found["mssd_mm"]


@pytest.mark.parametrize("shape", [(48, 37), (21, 24, 16)], ids=str)
@pytest.mark.parametrize("pair", [masks, blobs])
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_monai_and_with_scipys_distance_transform(pair, shape, seed):
    a, b = pair(seed, shape)
    spacing = SPACINGS[len(shape)]
    assert distances(a, b, spacing) == pytest.approx(monai(a, b, spacing), rel=1e-5)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    to = [ndimage.distance_transform_edt(~found, sampling=spacing) for found in surfaces]
    ways = surface_distances(a, b, spacing)
    np.testing.assert_allclose(ways[0], to[1][surfaces[0]], rtol=1e-12)  # both in the order of the array
    np.testing.assert_allclose(ways[1], to[0][surfaces[1]], rtol=1e-12)


def test_one_voxel_each_is_the_distance_of_two_centers():
    a, b = one((5, 6, 7), 1, 2, 3), one((5, 6, 7), 4, 0, 4)
    spacing = SPACINGS[3]
    expected = math.sqrt((3 * 0.7) ** 2 + (2 * 0.8) ** 2 + 5.0**2)
    assert distances(a, b, spacing) == dict.fromkeys(DISTANCES, pytest.approx(expected, rel=1e-12))
    assert monai(a, b, spacing) == dict.fromkeys(DISTANCES, pytest.approx(expected, rel=1e-5))
    assert distances(a, a, spacing) == monai(a, a, spacing) == dict.fromkeys(DISTANCES, 0)


def test_anisotropic_spacing_decides_which_voxel_is_the_nearest():
    a = one((9, 9), 4, 4)
    b = one((9, 9), 4, 7) | one((9, 9), 2, 4)  # 3 columns or 2 rows away
    nearest = {(1.0, 1.0): 2.0, (3.0, 1.0): 3.0, (1.0, 0.1): 0.3}
    for spacing, distance in nearest.items():
        there, back = surface_distances(a, b, spacing)
        np.testing.assert_allclose(there, [distance])
        np.testing.assert_allclose(back, [2 * spacing[0], 3 * spacing[1]])
        assert distances(a, b, spacing) == pytest.approx(monai(a, b, spacing), rel=1e-5)


def test_average_pools_both_directions_and_the_percentile_is_of_the_worse_one():
    a, b = np.zeros((2, 60), dtype=bool), np.zeros((2, 60), dtype=bool)
    a[0, :20] = True
    b[0, :21] = b[0, 29] = True  # 22 voxels: 20 at distance 0, one at 1, one at 10 from a
    found = distances(a, b, (1.0, 1.0))
    assert found["assd_mm"] == pytest.approx(11 / 42)  # not the mean of the means, 11 / 44
    assert found["mssd_mm"] == 10
    # 22 sorted values: number 0.95 * 21 = 19.95, counted from 0, by linear interpolation; 0 in the other direction
    assert found["hd95_mm"] == pytest.approx(0.95)
    assert distances(b, a, (1.0, 1.0)) == pytest.approx(found, rel=1e-12)
    assert monai(a, b, (1.0, 1.0)) == pytest.approx(found, rel=1e-5)


def test_surface_has_face_neighbours_only():
    solid = np.zeros((7, 7, 7), dtype=bool)
    solid[1:6, 1:6, 1:6] = True
    assert surface(solid).sum() == 5**3 - 3**3
    corner = solid.copy()
    corner[1, 1, 1] = False  # the voxel behind it loses a corner neighbour only, and stays inside
    assert not surface(corner)[2, 2, 2] and surface(corner).sum() == 5**3 - 3**3 - 1
    disc = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(surface(disc), disc & (np.arange(9).reshape(3, 3) != 4))


def test_outside_of_the_array_is_background():
    full = np.ones((6, 7), dtype=bool)
    assert surface(full).sum() == 6 * 7 - 4 * 5  # its border is surface
    small = np.zeros_like(full)
    small[2:4, 2:5] = True
    spacing = (1.0, 3.0)
    for a, b in ((full, full), (full, small)):
        found = distances(a, b, spacing)
        assert distances(*(np.pad(mask, 4) for mask in (a, b)), spacing) == found  # the same with room around
        assert monai(a, b, spacing) == pytest.approx(found, rel=1e-5)
    assert distances(full, full, spacing) == dict.fromkeys(DISTANCES, 0)
    one_slice = np.ones((1, 6, 7), dtype=bool)  # in 3-D every voxel of a lone slice is surface
    assert surface(one_slice).all()


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)], ids=str)
def test_empty_masks(shape):
    empty, full, spacing = np.zeros(shape), np.ones(shape), SPACINGS[len(shape)]
    assert compare(empty, empty, spacing) == {"dice": 1, "ravd_percent": 0} | dict.fromkeys(DISTANCES, 0)
    nothing = dict.fromkeys(DISTANCES)
    assert compare(full, empty, spacing) == {"dice": 0, "ravd_percent": 100} | nothing
    assert compare(empty, full, spacing) == {"dice": 0, "ravd_percent": None} | nothing
    assert '"assd_mm": null' in json.dumps(compare(empty, full, spacing))
    for a, b in ((full, empty), (empty, full), (empty, empty)):  # where we say null or 0, MONAI says nan or inf
        assert not np.isfinite(list(monai(a, b, spacing).values())).any()


def test_distances_follow_the_geometry():
    a, b = blobs(5, (14, 11, 12))
    spacing = SPACINGS[3]
    found = distances(a, b, spacing)
    assert distances(b, a, spacing) == pytest.approx(found, rel=1e-12)
    assert distances(a * 2, (b * 255).astype(np.uint8), spacing) == found
    doubled = {key: 2 * value for key, value in found.items()}
    assert distances(a, b, tuple(2 * s for s in spacing)) == pytest.approx(doubled, rel=1e-12)
    turned = [m.transpose(2, 0, 1)[::-1] for m in (a, b)]
    assert distances(*turned, (spacing[2], spacing[0], spacing[1])) == pytest.approx(found, rel=1e-12)
    shifted = distances(np.pad(a, 3), np.roll(np.pad(a, 3), 2, axis=1), spacing)
    assert shifted["mssd_mm"] <= 2 * 0.8 * (1 + 1e-12)


def test_memory_follows_the_surface_and_not_the_box():
    a = np.zeros((160, 160, 100), dtype=bool)
    a[20:40, 20:40, 20:40] = True
    b = a | one(a.shape, 159, 159, 99)  # one stray voxel stretches the common box over the whole array
    tracemalloc.start()
    found = compare(a, b, (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["mssd_mm"] == pytest.approx(math.sqrt(2 * 120**2 + 60**2)) and found["hd95_mm"] == 0
    assert peak < 8 * a.size  # bytes; one distance transform keeps 12 a voxel


# -- volumes ----------------------------------------------------------------------------------------------------------


def test_volume_difference_is_relative_to_the_reference_and_has_no_sign():
    a, b = np.arange(12) < 8, np.arange(12) < 6
    assert ravd_percent(a, b) == pytest.approx(25)
    assert ravd_percent(b, a) == pytest.approx(100 / 3)
    assert ravd_percent(a, a[::-1]) == 0  # it does not see where


@pytest.mark.parametrize("seed", range(3))
def test_volume_difference_agrees_with_itk(seed):
    a, b = masks(seed)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    similarity = overlap.GetVolumeSimilarity()  # 2 (|A| - |B|) / (|A| + |B|), whence |B| / |A|
    assert ravd_percent(a, b) == pytest.approx(100 * abs((2 - similarity) / (2 + similarity) - 1), rel=1e-9)


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -2.0), (1.0, math.nan)], ids=str)
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        compare(np.ones((3, 4)), np.ones((3, 4)), spacing)


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        dice(np.ones((3, 4)), np.ones((4, 3)))
    for measure in (ravd_percent, lambda a, b: compare(a, b, (1.0, 1.0))):
        with pytest.raises(ValueError, match="different shapes"):
            measure(np.ones((3, 4)), np.ones((4, 3)))
    with pytest.raises(ValueError):
        slice_dice(np.ones((2, 4, 4)), np.ones((3, 4, 4)))
