"""NIfTI in any orientation becomes RAS+ and goes back to where it came from."""

import gc
import gzip
import itertools
import struct
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest

from lsbook import nifti
from lsbook.nifti import read_volume, write_mask

SHAPE, SPACING, ORIGIN = (5, 6, 7), (1.5, 2.0, 3.0), (-20.0, 7.0, 30.0)
STRAIGHT = np.eye(3)
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def store(path, ras, axes=(0, 1, 2), signs=(1, 1, 1), turn=STRAIGHT):
    """Write RAS+ data with its axes permuted and then flipped, and an affine, made by hand, that says so."""
    data, affine = ras.transpose(axes), np.eye(4)
    affine[:3, 3] = ORIGIN
    for own, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, own] = sign * SPACING[axis] * turn[:, axis]
        if sign < 0:
            data = np.flip(data, own)
            affine[:3, 3] += (ras.shape[axis] - 1) * SPACING[axis] * turn[:, axis]
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def some_image():
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def some_mask():
    return np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)


def turned(degrees):
    """A rotation matrix, by the given angle about x and then about z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("degrees", [0, 20], ids=["straight", "oblique"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_is_read_as_ras_and_written_back(tmp_path, axes, signs, degrees, monkeypatch):
    monkeypatch.setattr(nifti, "BLOCK", 70)  # one or two slices, and not the same number in all blocks
    path = store(tmp_path / "scan.nii", some_image(), axes, signs, turned(degrees))
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, some_image())
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-5)

    write_mask(tmp_path / "mask.nii.gz", some_mask(), volume)
    scan, mask = nib.load(path), nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, scan.affine)
    np.testing.assert_array_equal(mask.dataobj, np.flip(some_mask().transpose(axes), np.flatnonzero(np.less(signs, 0))))
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz", labels=True).data, some_mask())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_both_suffixes_for_images_and_masks(tmp_path, suffix):
    image = read_volume(store(tmp_path / f"scan{suffix}", some_image()))
    mask = read_volume(store(tmp_path / f"mask{suffix}", some_mask()), labels=True)
    np.testing.assert_array_equal(image.data, some_image())
    np.testing.assert_array_equal(mask.data, some_mask())
    assert mask.data.dtype == np.uint8
    assert image.path == tmp_path / f"scan{suffix}"


def test_a_volume_is_read_only_and_its_file_has_no_name(tmp_path, cache):
    volume = read_volume(store(tmp_path / "scan.nii", some_image()))
    slab = volume.data[:, :, 2:4]
    with pytest.raises(ValueError, match="read-only"):
        volume.data[0, 0, 0] = 1
    assert not list((cache / "volumes").iterdir())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del volume
        gc.collect()
    assert not caught  # the file was closed
    np.testing.assert_array_equal(slab, some_image()[:, :, 2:4])  # a look outlives its volume


def peak_mib(work):
    """Most memory of NumPy and Python during a call; what is mapped from a file is not counted."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0)], ids=["axial", "sagittal"])
def test_memory_does_not_grow_with_the_scan(tmp_path, suffix, axes, monkeypatch):
    """Four times as many slices: 32 MiB of float32, and 8 MiB of mask that is not held twice."""
    monkeypatch.setattr(nifti, "BLOCK", 2**18)
    peaks = []
    for depth in (32, 128):
        pattern = (np.arange(256)[:, None, None] + np.arange(256)[:, None] + np.arange(depth)).astype(np.int16) % 91
        path, mask = store(tmp_path / f"scan{depth}{suffix}", pattern, axes), pattern > 60

        def read_and_write(path=path, pattern=pattern, mask=mask, depth=depth):
            volume = read_volume(path)
            for z in range(0, depth, 8):
                np.testing.assert_array_equal(volume.data[:, :, z : z + 8], pattern[:, :, z : z + 8])
            write_mask(tmp_path / f"mask{suffix}", mask, volume)

        peaks.append(peak_mib(read_and_write))
    assert peaks[0] < 8 and peaks[1] < 1.1 * peaks[0], peaks


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    path = store(tmp_path / "scan.nii", some_image())
    monkeypatch.setattr(nifti.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 839}))
    with pytest.raises(OSError, match=r"scan\.nii: needs 840 bytes in .*volumes, 839 are free; set LSBOOK_CACHE"):
        read_volume(path)


def test_slope_and_intercept_are_applied_when_read_and_reset_in_a_mask(tmp_path):
    scaled = nib.Nifti1Image(some_image(), np.eye(4))  # nibabel stores these numbers as they are
    scaled.header.set_slope_inter(2, -1024)
    scaled.header["cal_max"], scaled.header["descrip"] = 500, "a scanner"
    nib.save(scaled, tmp_path / "scan.nii")
    raw = nib.load(tmp_path / "scan.nii")
    assert (raw.dataobj.slope, raw.dataobj.inter) == (2, -1024)  # the file does hold what this test is about
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.data, some_image() * 2.0 - 1024)

    write_mask(tmp_path / "mask.nii", some_mask(), volume)
    mask = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(mask.dataobj.get_unscaled(), some_mask())
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)
    assert mask.get_data_dtype() == np.uint8
    assert mask.header["cal_max"] == 0


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_a_mask_keeps_the_codes_of_the_affine(tmp_path, sform, qform):
    image = nib.Nifti1Image(some_image(), None)
    affine = np.array([[0, -2, 0, 9], [-1.5, 0, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii", np.ones((6, 5, 7), np.uint8), read_volume(tmp_path / "scan.nii"))
    mask = nib.load(tmp_path / "mask.nii")
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (sform, qform)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)


def test_a_mask_that_does_not_fit_or_has_no_nifti_name_is_refused(tmp_path):
    volume = read_volume(store(tmp_path / "scan.nii", some_image()))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) does not fit .*scan\.nii"):
        write_mask(tmp_path / "mask.nii", np.zeros((2, 2, 2)), volume)
    with pytest.raises(ValueError, match=r"mask\.png: .*\.nii"):
        write_mask(tmp_path / "mask.png", some_mask(), volume)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def save(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def cut(path, share):
    save(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def patch_affine(path, row_z):
    """A file whose affine, which nibabel would not write like this, has the given third row."""
    save(path, np.zeros(SHAPE, np.float32))
    content = bytearray(path.read_bytes())
    content[312:328] = struct.pack("<4f", *row_z)
    path.write_bytes(content)


def garble(path, members, fault):
    """A file compressed in so many pieces, with one byte of the last piece changed to an impossible one."""
    save(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    content = gzip.decompress(path.read_bytes())
    pieces = [gzip.compress(content[:9000])] * (members - 1) + [gzip.compress(content[9000 * (members - 1) :])]
    damaged = bytearray(pieces.pop())
    damaged[fault] = 7
    path.write_bytes(b"".join([*pieces, damaged]))


def vast(path):
    """A header that asks for 30000 x 30000 x 30000 numbers, and a few of them."""
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(1000)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


HOLE = np.where(np.arange(210).reshape(SHAPE) == 100, np.nan, 0)
BAD_IMAGES = {
    "text.nii.gz": (lambda p: p.write_text("no scan" * 100), "not a readable NIfTI"),
    "text.nii": (lambda p: p.write_text("no scan" * 100), "not a readable NIfTI"),
    "notes.txt": (lambda p: p.write_text("no scan"), "not a readable NIfTI"),
    "empty.nii": (lambda p: p.write_bytes(b""), "not a readable NIfTI"),
    "mgh.mgz": (lambda p: nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), p), "NIfTI"),
    "half.nii.gz": (lambda p: cut(p, 0.5), "cannot be read .* copy it again"),
    "half.nii": (lambda p: cut(p, 0.5), "cannot be read .* copy it again"),
    "head.nii.gz": (lambda p: cut(p, 0.002), "not a readable NIfTI"),
    "sum.nii.gz": (lambda p: garble(p, 1, -8), "cannot be read .*CRC.* copy it again"),
    "voxels.nii.gz": (lambda p: garble(p, 2, 10), "cannot be read .*block type.* copy it again"),
    "header.nii.gz": (lambda p: garble(p, 1, 10), "not a readable NIfTI .*block type"),
    "vast.nii": (vast, "asks for 108000000000000 bytes, .* copy it again"),
    "vast.nii.gz": (vast, "asks for 108000000000000 bytes, .* copy it again"),
    "large.nii": (lambda p: save(p, np.where(np.isnan(HOLE), 1e300, 0)), "infinite"),
    "hole.nii": (lambda p: save(p, HOLE), "NaN"),
    "ray.nii": (lambda p: save(p, np.where(np.isnan(HOLE), np.inf, 0)), "infinite"),
    "series.nii.gz": (lambda p: save(p, np.zeros((*SHAPE, 2))), r"shape \(5, 6, 7, 2\), not three axes"),
    "slice.nii.gz": (lambda p: save(p, np.zeros((5, 6))), r"shape \(5, 6\), not three axes"),
    "colour.nii": (lambda p: save(p, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "colour.nii: "),
    "flat.nii": (lambda p: patch_affine(p, (0, 0, 0, 0)), "affine"),
    "lost.nii": (lambda p: patch_affine(p, (0, 0, 1, np.nan)), "affine"),
}
BAD_MASKS = {
    "half.nii": (lambda p: save(p, np.full(SHAPE, 0.5)), "0.5"),
    "negative.nii": (lambda p: save(p, np.full(SHAPE, -1, np.int16)), "-1"),
    "large.nii": (lambda p: save(p, np.full(SHAPE, 256, np.int16)), "256"),
    "hole.nii": (lambda p: save(p, HOLE), "NaN"),
}


@pytest.mark.parametrize(
    ("labels", "name", "make", "fault"),
    [(False, name, *row) for name, row in BAD_IMAGES.items()] + [(True, name, *row) for name, row in BAD_MASKS.items()],
    ids=[*(f"image {name}" for name in BAD_IMAGES), *(f"mask {name}" for name in BAD_MASKS)],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_the_file(tmp_path, labels, name, make, fault):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=fault) as error:
        read_volume(tmp_path / name, labels)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nii: no such file"):
        read_volume(tmp_path / "gone.nii")


def test_whole_numbers_stored_as_floats_are_a_mask(tmp_path):
    save(tmp_path / "mask.nii", some_mask().astype(np.float64))
    mask = read_volume(tmp_path / "mask.nii", labels=True)
    assert mask.data.dtype == np.uint8
    np.testing.assert_array_equal(mask.data, some_mask())
