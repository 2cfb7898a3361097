"""Whole scans: batches, the largest part, the scan's own grid, scores."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import label
from torch import nn

from lsbook.ct import Preprocessing, Scan
from lsbook.inference import SLAB, largest_component, score_scan, segment, slice_probabilities, smooth_across
from lsbook.networks import build_model
from lsbook.nifti import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


class Bright(nn.Module):
    """Calls bright pixels liver; anything goes while it trains."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.0))

    def forward(self, image):
        assert image.shape[0] <= 16
        return torch.rand_like(image) if self.training else torch.sigmoid(50 * (image - self.level))


def volume(data, spacing=(1.0, 1.0, 3.0)):
    return Volume(data.astype(np.float32), np.diag([*spacing, 1.0]), Path("memory"), nib.Nifti1Header(), np.eye(3))


def box(*sides):
    """A mask (24, 24, 20) that is 1 in a box given by three (first, end)."""
    mask = np.zeros((24, 24, 20), bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


LARGE, SMALL = box((2, 14), (3, 15), (4, 12)), box((17, 22), (17, 22), (4, 19))
CORNER = box((14, 16), (15, 17), (12, 14))  # touches LARGE at a corner only


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        (LARGE | SMALL, LARGE),
        (SMALL, SMALL),
        (LARGE | CORNER | SMALL, LARGE | CORNER),
        (LARGE & False, LARGE & False),
        (LARGE | True, LARGE | True),
    ],
    ids=["two", "one", "corner", "empty", "full"],
)
def test_the_largest_part_is_kept(mask, kept):
    given = mask.copy()
    found = largest_component(given)
    assert found is given and found.dtype == bool
    np.testing.assert_array_equal(found, kept)


def largest(mask):
    """The largest parts by scikit-image, of the whole mask at once: one, or some of equal size."""
    parts = label(mask, connectivity=3)
    sizes = np.bincount(parts.ravel())[1:]
    return [parts == number + 1 for number in np.flatnonzero(sizes == sizes.max())]


@pytest.mark.parametrize("depth", [1, SLAB, SLAB + 1, 5 * SLAB + 3])
@pytest.mark.parametrize("share", [0.05, 0.09, 0.12, 0.6], ids=str)
def test_parts_that_go_through_many_slabs(share, depth):
    """Noise around the density at which its parts join; both orders in memory."""
    mask = np.random.default_rng(depth).random((40, 30, depth)) < share
    expected = largest(mask)
    assert len(expected) == 1 or share < 0.1 or depth == 1
    for given in (mask.copy(), np.asfortranarray(mask)):
        found = largest_component(given)
        assert any(np.array_equal(found, part) for part in expected)


def test_a_part_that_turns_back_through_the_slabs():
    """Two columns that are joined in the last slice only are larger than one that is longer than either."""
    mask = np.zeros((9, 3, 4 * SLAB), bool)
    mask[[1, 3]], mask[1:4, :, -1] = True, True
    mask[1:4:2, :, : SLAB // 2] = False
    mask[6] = True
    expected = mask.copy()
    expected[6] = False
    np.testing.assert_array_equal(largest_component(mask), expected)


def test_the_slice_that_two_slabs_share_counts_once():
    mask = np.zeros((9, 3, 2 * SLAB), bool)
    mask[0, :, 3:5] = True
    mask[4, :, SLAB] = True
    mask[5, 0, SLAB] = True
    expected = mask & (np.arange(2 * SLAB) < SLAB)
    np.testing.assert_array_equal(largest_component(mask), expected)


def test_smoothing_is_a_convolution_with_repeated_ends():
    slices = torch.rand(7, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = ndimage.convolve1d(slices.numpy(), [0.25, 0.5, 0.25], axis=0, mode="nearest")
    np.testing.assert_allclose(smooth_across(slices), expected, rtol=1e-6)
    assert torch.equal(smooth_across(slices.flip(0)), smooth_across(slices).flip(0))
    assert torch.equal(smooth_across(slices[:1]), slices[:1])


@pytest.mark.parametrize("name", ["lse", "unet"])
def test_a_slices_probability_does_not_depend_on_its_batch(name):
    torch.manual_seed(0)
    model = build_model(name, **({"steps": 5} if name == "lse" else {})).train()
    images = torch.rand(5, 1, 32, 32) * 2 - 1
    whole = slice_probabilities(model, images)
    assert whole.shape == images.shape and not whole.requires_grad
    torch.testing.assert_close(slice_probabilities(model, images, batch=2), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(slice_probabilities(model, images.flip(0)), whole.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [24, 12, 48])
def test_segment_keeps_the_largest_part_on_the_scans_own_grid(size):
    scan = volume(np.where(LARGE | SMALL, 150, -100))
    found = segment(Bright().train(), Preprocessing(size), scan)
    assert found.dtype == bool and found.shape == scan.data.shape
    assert not found[16:, 16:].any()
    if size == 24:
        np.testing.assert_array_equal(found, LARGE)
    assert 2 * (found & LARGE).sum() / (found.sum() + LARGE.sum()) > 0.9


def test_segment_undoes_the_padding():
    scan = volume(np.where(LARGE, 150, -100)[:, :16])
    np.testing.assert_array_equal(segment(Bright(), Preprocessing(24), scan), LARGE[:, :16])


@pytest.mark.parametrize("depth", [1, 2, 16, 17, 37])
def test_segment_is_smoothing_of_the_whole_whatever_the_slab(depth):
    """Blurred noise: many voxels are liver only because, or only until, their neighbours are looked at."""
    noise = ndimage.gaussian_filter(np.random.default_rng(depth).normal(size=(24, 20, depth)), (2, 2, 0))
    scan, preprocessing = volume(60 + 400 * noise), Preprocessing(16)
    alone = slice_probabilities(Bright(), preprocessing.images(scan))
    smooth = torch.from_numpy(ndimage.convolve1d(alone.numpy(), [0.25, 0.5, 0.25], axis=0, mode="nearest"))
    (expected,) = largest(preprocessing.restore(smooth, scan) > 0.5)
    (unsmoothed,) = largest(preprocessing.restore(alone, scan) > 0.5)
    assert depth == 1 or (expected != unsmoothed).mean() > 0.01
    for batch in (1, 3, 16):
        np.testing.assert_array_equal(segment(Bright(), preprocessing, scan, batch), expected, err_msg=f"{batch}")


def test_nothing_found_is_an_empty_mask():
    assert not segment(Bright(), Preprocessing(24), volume(np.full((24, 24, 3), -100))).any()


def test_scores_within_the_livers_range_and_over_all_slices(tmp_path):
    """Found: slices 4 to 11. Truth: 6 to 11 whole and half of 12, so that all three scores differ."""
    truth = box((2, 14), (3, 15), (6, 12)) | box((2, 8), (3, 15), (12, 13))
    scan = Scan("1", tmp_path / "volume-1.nii", tmp_path / "segmentation-1.nii")
    nib.save(nib.Nifti1Image(np.where(LARGE | SMALL, 150, -100).astype(np.int16), np.eye(4)), scan.image)
    nib.save(nib.Nifti1Image(truth * np.uint8(2), np.eye(4)), scan.mask)  # a lesion is liver
    assert score_scan(Bright(), Preprocessing(24), scan) == {
        "dice": pytest.approx(2 * 6 / (8 + 6.5)),
        "dice_liver_slices": pytest.approx(2 * 6 / (6 + 6.5)),
        "mean_slice_dice": pytest.approx(6 / 7),
    }
