"""The synthetic cohort: reproducible, anatomically the right way round, and hard."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from lsphantom.patients import (
    HU,
    RELATIVE_TO_LIVER,
    draw_back,
    draw_trunk,
    ellipsoid,
    make_patient,
    new_patient,
    patient_seed,
    smooth_field,
    write_cohort,
)

SHAPE, SPACING = (64, 64, 12), (6.0, 6.0, 12.0)  # the default field of view with an eighth of the voxels


@pytest.fixture(scope="module")
def cohort():
    """The first eight patients of the default cohort, [(image, labels), ...]."""
    return [make_patient(patient_seed(0, number)) for number in range(8)]


def test_ellipsoid_is_a_distance_at_its_surface():
    place = np.zeros((3, 5), np.float32)
    place[1] = [28, 29, 30, 31, 32]
    np.testing.assert_allclose(ellipsoid(place, (0, 0, 0), (10, 30, 20)), [2, 1, 0, -1, -2], atol=0.1)
    np.testing.assert_allclose(ellipsoid(place, (0, 0, 0), (30, 10, 20), 90), [2, 1, 0, -1, -2], atol=0.1)


def test_smooth_field_has_unit_variance_and_is_the_same_on_a_finer_grid():
    field = smooth_field(np.random.default_rng(0), (60, 60, 60), (4, 4, 4), 12)
    assert abs(field.mean()) < 0.05
    assert field.std() == pytest.approx(1, abs=0.05)
    coarse = smooth_field(np.random.default_rng(1), (20, 20, 20), (6, 6, 6), 40)
    fine = smooth_field(np.random.default_rng(1), (60, 60, 60), (2, 2, 2), 40)
    np.testing.assert_allclose(coarse, fine[1::3, 1::3, 1::3], atol=1e-5)


def test_a_seed_is_a_patient():
    image, labels = make_patient(4, SHAPE, SPACING)
    again, same_labels = make_patient(4, SHAPE, SPACING)
    other, other_labels = make_patient(5, SHAPE, SPACING)
    assert image.dtype == np.float32 and labels.dtype == np.uint8
    assert image.shape == labels.shape == SHAPE
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same_labels)
    liver, other_liver = labels > 0, other_labels > 0
    assert 2 * (liver & other_liver).sum() / (liver.sum() + other_liver.sum()) < 0.95
    assert np.abs(image - other).mean() > 30


def test_the_same_patient_on_a_coarser_grid():
    fine = make_patient(4)[1][::2, ::2, ::2] > 0
    coarse = make_patient(4, SHAPE, SPACING)[1] > 0
    assert 2 * (fine & coarse).sum() / (fine.sum() + coarse.sum()) > 0.85


def test_liver_lies_right_and_high_and_the_spine_at_the_back(cohort):
    for image, labels in cohort:
        liver = np.argwhere(labels > 0)
        body = np.argwhere(image > -300)
        bone = np.argwhere(ndimage.gaussian_filter(image, 1) > 200)
        assert liver[:, 0].mean() > body[:, 0].mean() + 8  # voxels of 3 mm, the index grows to the right
        assert bone[:, 1].mean() < body[:, 1].mean() - 8
        slices = np.flatnonzero((labels > 0).any((0, 1)))
        assert 0 < slices[0] and slices[-1] < labels.shape[2] - 1
        inside = (image < -500)[40:100, 40:90]  # lung lies at the top, no more than gas in the gut at the bottom
        assert inside[:, :, -2].mean() > 0.3 > inside[:, :, 1].mean()


def test_liver_is_one_piece_of_plausible_volume(cohort):
    for image, labels in cohort:
        assert 0.07 < (labels > 0).sum() / (image > -300).sum() < 0.25
        assert 0.7 < (labels > 0).sum() * np.prod((3, 3, 6)) / 1e6 < 2.1  # litres
        assert ndimage.label(labels > 0)[1] == 1


def test_hu_values(cohort):
    low, high = HU["liver"]
    for image, labels in cohort:
        liver, lesion = image[labels == 1], image[labels == 2]
        assert low - 10 < np.median(liver) < high + 10
        assert np.percentile(liver, 99) > np.median(liver) + 30  # vessels
        if lesion.size > 100:
            assert -75 < lesion.mean() - liver.mean() < -15
        assert image.min() >= -1024 and image.max() > 250
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.mean() == pytest.approx(HU["air"][0], abs=5)
    assert sum((labels == 2).any() for _, labels in cohort) >= 4
    medians = [np.median(image[labels == 1]) for image, labels in cohort]
    assert np.ptp(medians) > 15  # enhancement differs between patients


def test_painted_tissues_lie_in_their_hu_ranges():
    patient = new_patient(0, SHAPE, SPACING)
    low, high = RELATIVE_TO_LIVER["spleen"]
    assert low <= patient.hu["spleen"] - patient.hu["liver"] <= high
    cavity, diaphragm = draw_trunk(patient)
    lung = patient.image[(diaphragm < -10) & (cavity > 10)]
    wall = patient.image[(cavity < -3) & (cavity > -7)]  # muscle, ribs between
    assert HU["lung"][0] < lung.mean() < HU["lung"][1]
    assert HU["muscle"][0] - 5 < np.median(wall[wall < 150]) < HU["muscle"][1] + 5
    assert wall.max() > 250
    back = draw_back(patient)
    assert np.median(patient.image[back > 8]) > HU["muscle"][0]
    assert not patient.labels.any()


def best_threshold_dice(image: np.ndarray, liver: np.ndarray) -> float:
    """Dice of the largest component within the HU interval that is best for this patient, chosen knowing the truth."""
    best = 0.0
    for low in range(50, 120, 10):
        for high in range(low + 20, 181, 10):
            pieces, _ = ndimage.label((image >= low) & (image <= high))
            sizes = np.bincount(pieces.ravel(), minlength=2)
            largest = pieces == sizes[1:].argmax() + 1
            best = max(best, 2 * (largest & liver).sum() / (largest.sum() + liver.sum()))
    return best


def test_thresholding_fails(cohort):
    dices = [best_threshold_dice(image, labels > 0) for image, labels in cohort]
    assert max(dices) < 0.75
    assert np.mean(dices) < 0.68
    assert min(dices) > 0.3  # the interval does find the liver, among other organs
    smooth = [best_threshold_dice(ndimage.gaussian_filter(image, 1), labels > 0) for image, labels in cohort[4:7]]
    assert max(smooth) < 0.8  # nor does smoothing first


def test_noise_is_correlated_over_neighbouring_voxels(cohort):
    for image, _ in cohort:
        outside = image[:14, :14] - image[:14, :14].mean()  # a corner of air: nothing but noise
        variance = (outside**2).mean()
        assert 8 < np.sqrt(variance) < 15
        near = (outside[1:] * outside[:-1]).mean() / variance
        far = (outside[8:] * outside[:-8]).mean() / variance
        assert near > 0.5 and abs(far) < 0.3


def test_a_small_field_of_view_is_refused():
    with pytest.raises(ValueError, match="field of view.*too small"):
        make_patient(0, (64, 64, 12), (3.0, 3.0, 6.0))


def read(path):
    return np.asarray(nib.load(path).dataobj)


def test_cohort_on_disk(tmp_path):
    folder = write_cohort(tmp_path / "a", 2, seed=3, shape=SHAPE, spacing=SPACING)
    names = {"volume-0.nii.gz", "segmentation-0.nii.gz", "volume-1.nii.gz", "segmentation-1.nii.gz"}
    assert {path.name for path in folder.iterdir()} == names
    volume = nib.load(folder / "volume-1.nii.gz")
    assert volume.get_data_dtype() == np.int16
    assert nib.load(folder / "segmentation-1.nii.gz").get_data_dtype() == np.uint8
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.header.get_zooms() == SPACING
    image, labels = make_patient(patient_seed(3, 1), SHAPE, SPACING)
    np.testing.assert_array_equal(read(folder / "volume-1.nii.gz"), np.round(image))
    np.testing.assert_array_equal(read(folder / "segmentation-1.nii.gz"), labels)

    alone = write_cohort(tmp_path / "b", 1, seed=3, shape=SHAPE, spacing=SPACING)
    for name in ("volume-0.nii.gz", "segmentation-0.nii.gz"):
        assert (alone / name).read_bytes() == (folder / name).read_bytes()


def test_a_cut_run_resumes(tmp_path):
    write_cohort(tmp_path, 2, shape=SHAPE, spacing=SPACING)
    lost = tmp_path / "segmentation-1.nii.gz"
    bytes_before = lost.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path != lost}
    lost.unlink()
    write_cohort(tmp_path, 2, shape=SHAPE, spacing=SPACING)
    assert lost.read_bytes() == bytes_before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_files_of_another_cohort_are_not_mixed_in(tmp_path):
    write_cohort(tmp_path, 1, seed=0, shape=SHAPE, spacing=SPACING)
    with pytest.raises(ValueError, match=r"volume-0\.nii\.gz: not from this cohort"):
        write_cohort(tmp_path, 1, seed=1, shape=SHAPE, spacing=SPACING)


def test_an_empty_cohort_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patients"):
        write_cohort(tmp_path, 0)
