"""From folders of scans to slices and back: geometry, folders, folds, cache."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from lsbook import ct
from lsbook.ct import Preprocessing, Scan, SliceDataset, find_scans, from_slices, prepared_scan, read_scan, split
from lsbook.metrics import dice
from lsbook.nifti import Volume, read_volume


def volume(data, spacing=(1.0, 1.0, 1.0)):
    """RAS+ data in memory; preprocessing needs no file."""
    return Volume(np.ascontiguousarray(data), np.diag([*spacing, 1.0]), Path("memory"), nib.Nifti1Header(), np.eye(3))


def grid(shape):
    return np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_slices_are_seen_as_a_radiologist_sees_them():
    right, front, head = (np.zeros((3, 4, 5), np.uint8) for _ in range(3))
    right[-1], front[:, -1], head[..., -1] = 1, 1, 1
    assert ct.to_slices(right).shape == (5, 4, 3)
    assert ct.to_slices(right)[:, :, 0].all() and not ct.to_slices(right)[:, :, 1:].any()
    assert ct.to_slices(front)[:, 0].all() and not ct.to_slices(front)[:, 1:].any()
    assert ct.to_slices(head)[-1].all() and not ct.to_slices(head)[:-1].any()


def test_from_slices_is_the_inverse_of_to_slices():
    data = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.testing.assert_array_equal(from_slices(ct.to_slices(data)), data)


def test_the_phantom_lies_on_its_back_with_the_liver_at_the_viewers_left(cohort):
    scan = find_scans(cohort)[0]
    images, labels = prepared_scan(scan, Preprocessing(32, 180, 400))  # a window of bone
    _, rows, columns = np.nonzero(labels)
    assert columns.mean() < 14
    _, bone_rows, _ = np.nonzero(images[:, :, 12:20] > -1)  # the spine, away from the ribs at the sides
    assert bone_rows.mean() > rows.mean() + 3


@pytest.mark.parametrize(("hu", "value"), [(-1000, -1), (-40, -1), (10, -0.5), (60, 0), (160, 1), (3000, 1)])
def test_window(hu, value):
    images = Preprocessing(8, -40, 160).images(volume(np.full((8, 8, 2), hu, np.float32)))
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.float32
    torch.testing.assert_close(images, torch.full_like(images, value), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_whole_factor_averages_blocks_of_the_windowed_image_and_of_the_liver(factor):
    rng = np.random.default_rng(0)
    hu = rng.uniform(-500, 500, (8 * factor, 8 * factor, 3)).astype(np.float32)
    mask = rng.integers(0, 3, hu.shape).astype(np.uint8)
    windowed = np.clip((ct.to_slices(hu) + 40) / 100 - 1, -1, 1)
    blocks = windowed.reshape(3, 8, factor, 8, factor).mean(axis=(2, 4))
    found = Preprocessing(8).images(volume(hu))[:, 0].numpy()
    np.testing.assert_allclose(found, blocks, atol=1e-6)
    labels = Preprocessing(8).labels(volume(mask))
    assert labels.dtype == torch.float32
    share = (ct.to_slices(mask) > 0).reshape(3, 8, factor, 8, factor).mean(axis=(2, 4))
    np.testing.assert_allclose(labels[:, 0].numpy(), share, atol=1e-6)


def test_a_larger_size_interpolates():
    x, y, _ = grid((16, 16, 2))
    ramp = volume((x + 2 * y) / 100)
    found = Preprocessing(32, -1, 1).images(ramp)[0, 0].numpy()
    column, row = 15 - ((np.arange(32) + 0.5) / 2 - 0.5), 15 - ((np.arange(32) + 0.5) / 2 - 0.5)
    expected = (column[None, :] + 2 * row[:, None]) / 100
    np.testing.assert_allclose(found[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-6)
    mask = np.random.default_rng(0).integers(0, 3, (16, 16, 2)).astype(np.uint8)
    share = ndimage.zoom((ct.to_slices(mask) > 0).astype(float), (1, 2, 2), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(Preprocessing(32).labels(volume(mask))[:, 0].numpy(), share, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spacing", "padded"),
    [
        ((40, 20, 2), (2.0, 2.0, 5.0), (slice(10, 30), slice(None))),
        ((20, 40, 2), (2.0, 2.0, 5.0), (slice(None), slice(10, 30))),
        ((40, 20, 2), (1.0, 2.0, 5.0), (slice(None), slice(None))),
    ],
    ids=["wide", "tall", "square in mm"],
)
def test_a_scan_is_padded_with_air_to_a_square_in_mm(shape, spacing, padded):
    scan = volume(np.full(shape, 60, np.float32), spacing)
    images = Preprocessing(40).images(scan)
    expected = np.full((40, 40), -1.0)
    expected[padded] = 0
    np.testing.assert_allclose(images[0, 0].numpy(), expected, atol=1e-6)
    labels = Preprocessing(40).labels(volume(np.ones(shape, np.uint8), spacing))
    np.testing.assert_array_equal(labels[1, 0].numpy(), expected == 0)


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 40, 3), (40, 64, 3)], ids=["square", "wide", "tall"])
def test_restore_puts_every_pixel_back_where_images_took_it_from(shape):
    x, y, z = grid(shape)
    field = volume((x - 2 * y) / 128 + z / 10 - 0.2)  # linear: averages and interpolation keep it
    field.data.clip(-0.99, 0.99, out=field.data)
    inside = np.zeros(shape, bool)
    inside[3:-3, 3:-3] = True
    inside &= np.abs(field.data) < 0.9
    assert inside.mean() > 0.4
    back = Preprocessing(32, -1, 1)
    found = back.restore(back.images(field), field)
    assert found.shape == shape
    np.testing.assert_allclose(found[inside], field.data[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((97, 71, 2), (1.0, 1.0, 5.0), 48), ((50, 81, 2), (1.7, 0.9, 5.0), 64), ((33, 45, 2), (2.0, 2.0, 5.0), 64)],
)
def test_a_mask_survives_the_way_there_and_back(shape, spacing, size):
    x, y, _ = grid(shape)
    mm = np.hypot((x - 0.4 * shape[0]) * spacing[0], (y - 0.6 * shape[1]) * spacing[1])
    mask = mm < 24
    way = Preprocessing(size, 0, 1)
    back = way.restore(way.images(volume(mask.astype(np.float32), spacing)), volume(mask, spacing)) > 0
    assert dice(mask, back) > 0.97
    labels = way.labels(volume(2 * mask.astype(np.uint8), spacing))  # a lesion is liver
    images = way.images(volume(mask.astype(np.float32), spacing))
    torch.testing.assert_close(labels, (images + 1) / 2, atol=1e-6, rtol=0)  # the same place, to a part of a pixel


# -- folders ----------------------------------------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


LITS = ["volume-10.nii", "segmentation-10.nii", "volume-2.nii.gz", "segmentation-2.nii.gz", "volume-1.nii"]
LITS += ["segmentation-1.nii.gz", ".volume-3.nii", "._volume-2.nii.gz", "volume-4.nii.gz.part", "README.nii", "x.csv"]
MSD = ["imagesTr/liver_10.nii.gz", "labelsTr/liver_10.nii.gz", "imagesTr/liver_2.nii", "labelsTr/liver_2.nii"]
MSD += ["imagesTr/._liver_2.nii.gz", "imagesTr/.liver_9.nii.gz", "imagesTs/liver_7.nii.gz", "dataset.json"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            LITS,
            [
                ("1", "volume-1.nii", "segmentation-1.nii.gz"),
                ("2", "volume-2.nii.gz", "segmentation-2.nii.gz"),
                ("10", "volume-10.nii", "segmentation-10.nii"),
            ],
        ),
        (
            MSD,
            [
                ("liver_2", "imagesTr/liver_2.nii", "labelsTr/liver_2.nii"),
                ("liver_10", "imagesTr/liver_10.nii.gz", "labelsTr/liver_10.nii.gz"),
            ],
        ),
    ],
    ids=["LiTS", "MSD"],
)
def test_scans_are_found_in_natural_order(tmp_path, files, expected):
    touch(tmp_path, *files)
    found = [(s.name, *(str(p.relative_to(tmp_path)) for p in (s.image, s.mask))) for s in find_scans(tmp_path)]
    assert found == expected


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ([], FileNotFoundError, ["no scans"]),
        (["segmentation-1.nii"], FileNotFoundError, ["no scans"]),
        (["volume-1.nii"], FileNotFoundError, ["volume-1.nii", "segmentation-1", "no mask"]),
        (["imagesTr/liver_1.nii.gz"], FileNotFoundError, ["liver_1.nii.gz", "no mask"]),
        (["volume-1.nii", "volume-1.nii.gz", "segmentation-1.nii"], ValueError, ["volume-1.nii.gz", "twice"]),
    ],
)
def test_a_faulty_folder_is_refused(tmp_path, files, error, words):
    touch(tmp_path, *files)
    with pytest.raises(error) as raised:
        find_scans(tmp_path)
    for word in [str(tmp_path), *words]:
        assert word in str(raised.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_scans(tmp_path / "nowhere")


def write_scan(folder, image, mask, image_affine=None, mask_affine=None, name="1"):
    for kind, data, affine in (("volume", image, image_affine), ("segmentation", mask, mask_affine)):
        affine = np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine
        nib.save(nib.Nifti1Image(data, affine), folder / f"{kind}-{name}.nii")
    return Scan(name, folder / f"volume-{name}.nii", folder / f"segmentation-{name}.nii")


HU = np.zeros((16, 16, 6), np.int16)
LIVER = np.zeros((16, 16, 6), np.uint8)
LIVER[4:12, 4:12, 2:5], LIVER[6, 6, 3] = 1, 2


@pytest.mark.parametrize(
    ("mask", "affine", "fault"),
    [
        (LIVER[:-1], None, r"shape \(15, 16, 6\), its image \(16, 16, 6\)"),
        (LIVER, np.diag([-1.0, -1.0, 2.5, 1.0]), "affine differs"),
        (LIVER * 0, None, "no liver"),
    ],
    ids=["shape", "affine", "empty"],
)
def test_a_mask_that_does_not_fit_its_image_is_refused(tmp_path, mask, affine, fault):
    with pytest.raises(ValueError, match=fault) as error:
        read_scan(write_scan(tmp_path, HU, mask, mask_affine=affine))
    assert "segmentation-1.nii" in str(error.value)


# -- folds ------------------------------------------------------------------------------------------------------------

NAMES = [str(n) for n in range(31)]
PAIRS = [("3", "17"), ("0", "30", "8")]


@pytest.mark.parametrize(
    ("count", "folds", "groups"),
    [(n, k, ()) for n, k in [(31, 5), (31, 2), (31, 28), (12, 4), (5, 5), (4, 2), (3, 3)]]
    + [(31, 5, PAIRS), (31, 28, PAIRS), (12, 4, [("0", "1")])],
)
def test_folds_partition_the_scans_by_patient(count, folds, groups):
    names, tested = NAMES[:count], []
    for fold in range(folds):
        parts = split(names, fold, folds, groups)
        assert all(parts), f"an empty part of fold {fold}: {parts}"
        assert sorted(sum(parts, [])) == sorted(names)
        assert parts == split(names, fold, folds, groups)
        for group in groups:
            assert sum(bool(set(group) & set(part)) for part in parts) == 1
        for part in parts:
            assert part == [name for name in names if name in part]
        tested += parts.test
    assert sorted(tested) == sorted(names)


def test_folds_of_five_test_and_validate_on_about_a_fifth():
    sizes = [[len(part) for part in split(NAMES, fold, 5)] for fold in range(5)]
    assert sorted(size[2] for size in sizes) == [6, 6, 6, 6, 7]
    assert {size[1] for size in sizes} == {5}
    assert split(NAMES, 0, 5).test != NAMES[::5]  # shuffled


@pytest.mark.parametrize(
    ("count", "fold", "folds", "groups", "fault"),
    [
        (31, 5, 5, (), "fold 5 does not exist"),
        (31, -1, 5, (), "fold -1 does not exist"),
        (31, 0, 1, (), "cannot be split"),
        (4, 0, 5, (), "4 patients cannot be split into 5"),
        (2, 0, 2, (), "cannot be split"),
        (3, 0, 2, (), "cannot be split"),
        (31, 0, 5, [("0", "99")], "no scan is named 99"),
        (5, 0, 5, [("0", "1")], "4 patients cannot be split into 5"),
        (31, 0, 5, [("0", "1"), ("1", "2")], "two groups"),
    ],
)
def test_impossible_folds_are_refused(count, fold, folds, groups, fault):
    with pytest.raises(ValueError, match=fault):
        split(NAMES[:count], fold, folds, groups)


def test_patients_with_several_scans_do_not_validate_while_others_can():
    groups = [["3", "17"], ["0", "30", "8"]]
    for fold in range(5):
        assert not set(split(NAMES, fold, 5, groups).validation) & {"3", "17", "0", "30", "8"}
    pairs = [[str(2 * n), str(2 * n + 1)] for n in range(4)]
    assert all(len(part) >= 2 for part in split(NAMES[:8], 0, 4, pairs))  # no others here


# -- prepared slices --------------------------------------------------------------------------------------------------


def test_prepared_slices_are_cached_mapped_and_renewed_when_the_file_changes(tmp_path, monkeypatch):
    reads = []

    def counted(path, labels=False):
        reads.append(Path(path).name)
        return read_volume(path, labels)

    monkeypatch.setattr(ct, "read_volume", counted)
    scan = write_scan(tmp_path, HU, LIVER)
    images, labels = prepared_scan(scan, Preprocessing(16))
    assert reads == ["volume-1.nii", "segmentation-1.nii"]
    assert isinstance(images, np.memmap) and isinstance(labels, np.memmap)
    assert (images.dtype, labels.dtype, images.shape) == (np.float32, np.uint8, (6, 16, 16))
    share = Preprocessing(16).labels(read_volume(scan.mask, True))[:, 0].numpy()
    np.testing.assert_array_equal(labels, np.round(255 * share))

    again = prepared_scan(scan, Preprocessing(16))
    assert len(reads) == 2, "the second call read the scan again"
    np.testing.assert_array_equal(again[0], images)

    assert prepared_scan(scan, Preprocessing(8))[0].shape == (6, 8, 8)
    assert len(reads) == 4
    assert prepared_scan(scan, Preprocessing(16, 0, 100))[0].max() == -1  # another window, another file
    assert images.max() > -1

    write_scan(tmp_path, HU, np.where(LIVER == 2, 0, LIVER))
    os.utime(scan.mask, ns=(1, 1))  # a clock with coarse ticks would hide the change
    assert (labels > 0).sum() == (LIVER > 0).sum()
    assert (prepared_scan(scan, Preprocessing(16))[1] > 0).sum() == (LIVER == 1).sum()


def test_a_dataset_holds_the_slices_of_the_liver_or_all(tmp_path):
    taller = np.concatenate([np.zeros((16, 16, 1), np.uint8), LIVER], axis=2)
    scans = [write_scan(tmp_path, HU, LIVER, name="1")]
    scans += [write_scan(tmp_path, np.full(taller.shape, 100, np.int16), taller, name="2")]
    dataset = SliceDataset(scans, Preprocessing(16))
    assert dataset.index == [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (1, 5)]
    assert SliceDataset(scans, Preprocessing(16), all_slices=True).index == [(0, z) for z in range(6)] + [
        (1, z) for z in range(7)
    ]
    for image, target in dataset:
        assert image.shape == target.shape == (1, 16, 16)
        assert image.dtype == target.dtype == torch.float32
    image, target = dataset[4]
    torch.testing.assert_close(image, torch.full((1, 16, 16), 0.4))
    np.testing.assert_array_equal(target[0].numpy(), ct.to_slices(taller)[4] > 0)  # a lesion is liver
    assert target.sum() == 64


def test_a_liver_that_falls_between_the_working_pixels_is_refused_by_name(tmp_path):
    speck = np.zeros_like(LIVER)
    speck[4, 4, 3] = 1
    with pytest.raises(ValueError, match="segmentation-1.nii"):
        SliceDataset([write_scan(tmp_path, HU, speck)], Preprocessing(4))
