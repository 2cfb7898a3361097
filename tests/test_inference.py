"""Whole scans: batches, the largest part, the scan's own grid, scores."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from lsbook.ct import Preprocessing, Scan
from lsbook.inference import largest_component, score_scan, segment, slice_probabilities
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
    found = largest_component(mask)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, kept)


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


def test_nothing_found_is_an_empty_mask():
    assert not segment(Bright(), Preprocessing(24), volume(np.full((24, 24, 3), -100))).any()


def test_scores_within_the_livers_range_and_over_all_slices(tmp_path):
    """Found: slices 4 to 11. Truth: 6 to 11 whole and half of 12, so that all three scores differ."""
    truth = box((2, 14), (3, 15), (6, 12)) | box((2, 8), (3, 15), (12, 13))
    scan = Scan("1", tmp_path / "volume-1.nii", tmp_path / "segmentation-1.nii")
    nib.save(nib.Nifti1Image(np.where(LARGE | SMALL, 150, -100).astype(np.int16), np.eye(4)), scan.image)
    nib.save(nib.Nifti1Image(truth * np.uint8(2), np.eye(4)), scan.mask)  # a lesion is liver
    assert score_scan(Bright(), Preprocessing(24), scan) == {
        "dice": pytest.approx(2 * 6 / (6 + 6.5)),
        "dice_all_slices": pytest.approx(2 * 6 / (8 + 6.5)),
        "mean_slice_dice": pytest.approx(6 / 7),
    }
