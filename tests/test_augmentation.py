"""Changed training slices: image and liver move together, lesions lie in the liver, gray values stay in their range."""

import math

import pytest
import torch

from lsbook.augmentation import AUGMENTATIONS, add_lesion, augment, change_gray_values, deform

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def batch():
    """200 equal slices: a disc of liver on a linear ramp around it."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inside = 14 - torch.hypot(y - 28, x - 36)
    image, share = (inside / 40).clamp(-1, 1), (inside + 0.5).clamp(0, 1)
    return image.expand(200, 1, 64, 64), share.expand(200, 1, 64, 64)


def center(share):
    weights = share / share.sum(dim=(2, 3), keepdim=True)
    at = torch.arange(64.0)
    return (weights.sum(3) * at).sum(2)[:, 0], (weights.sum(2) * at).sum(2)[:, 0]


def test_image_and_liver_are_deformed_together(batch):
    image, share = deform(*batch)
    again = (image * 40 + 0.5).clamp(0, 1)  # the share, read off the deformed image
    assert (again - share).abs().mean() < 0.01
    assert ((again > 0.5) != (share > 0.5)).float().mean() < 0.01


def test_the_deformation_has_the_stated_size(batch):
    _, share = deform(*batch)
    growth = share.sum(dim=(1, 2, 3)) / batch[1].sum(dim=(1, 2, 3))
    assert 0.5 < growth.min() < 0.8 and 1.3 < growth.max() < 1.9  # zoom by 0.8 to 1.25, squared, and the warp
    y, x = center(share)
    for found, start in ((y, 28), (x, 36)):
        assert 3 < (found - start).abs().max() < 15
        assert abs(float((found - start).mean())) < 1


def test_a_lesion_lies_in_the_liver_and_changes_about_every_second_slice(batch):
    image, share = batch
    found = add_lesion(image, share)
    changed = (found - image).abs() > 0.02
    assert not (changed & (share == 0)).any()
    assert 0.35 < changed.flatten(1).any(dim=1).float().mean() < 0.65
    darker = ((found - image) * share).sum(dim=(1, 2, 3))[changed.flatten(1).any(dim=1)] < 0
    assert 0.75 < darker.float().mean() < 1
    assert torch.equal(add_lesion(image, share, probability=0.0), image)


def test_a_slice_without_liver_gets_no_lesion(batch):
    image, _ = batch
    torch.testing.assert_close(add_lesion(image, torch.zeros_like(image), probability=1.0), image, rtol=0, atol=0)


def test_gray_values_of_a_constant_slice_change_by_gamma_gain_offset_and_noise(batch):
    torch.manual_seed(0)
    found = change_gray_values(torch.full((2000, 1, 16, 16), 0.0))
    assert found.abs().max() <= 1
    noise, mean = found.std(dim=(1, 2, 3)), found.mean(dim=(1, 2, 3))
    assert 0 <= noise.min() < 0.005 and 0.09 < noise.max() < 0.12
    # the middle gray 1/2 becomes 2^-gamma, gamma = exp(+-0.3); then gain and offset
    lowest = (2 * 0.5 ** math.exp(0.3) - 1) * 1.35 - 0.45
    highest = (2 * 0.5 ** math.exp(-0.3) - 1) * 1.35 + 0.45
    assert lowest - 0.02 <= mean.min() < -0.5 and 0.5 < mean.max() <= highest + 0.02


def test_blur_and_sharpening_keep_a_ramp():
    ramp = torch.linspace(-0.5, 0.5, 64).expand(300, 1, 64, 64)
    torch.manual_seed(0)
    found = change_gray_values(ramp)
    steps = found.mean(dim=2)[:, 0, 2:-2].diff(dim=1).mean(dim=1)  # noise averages out over the rows
    assert 0.5 / 63 < steps.min() and steps.max() < 1.9 / 63


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_state_of_the_generator_gives_the_same_slices(batch, name):
    torch.manual_seed(1)
    first = AUGMENTATIONS[name](*batch)
    torch.manual_seed(1)
    torch.testing.assert_close(AUGMENTATIONS[name](*batch), first, rtol=0, atol=0)
    image, share = first
    assert image.shape == share.shape == batch[0].shape
    assert image.min() >= -1 and image.max() <= 1 and share.min() >= 0 and share.max() <= 1
    assert torch.equal(share, batch[1]) == (name != "all")
    assert torch.equal(image, batch[0]) == (name == "none")


def test_each_slice_is_changed_in_its_own_way(batch):
    image, share = augment(*batch)
    assert image.flatten(1).unique(dim=0).shape[0] == 200 and share.flatten(1).unique(dim=0).shape[0] == 200
