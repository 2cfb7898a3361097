"""NIfTI volumes in one orientation: axes (X, Y, Z) that run to the patient's right, front and head (RAS+)."""

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from .files import atomic_path

READ_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class Volume:
    """A scan or mask in RAS+ axes, with what is needed to write a result back into its own grid.

    Attributes:
        data: ``(X, Y, Z)``; HU (float32) for images, labels (uint8) for masks.
        affine: from data's indices to mm.
        path: where it was read.
        header: the file's own header, with its own affine and axis order.
        to_own: orientation transform (nibabel) from RAS+ back to the file's axes.
    """

    data: np.ndarray
    affine: np.ndarray
    path: Path
    header: nib.Nifti1Header
    to_own: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, in data's axis order."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


def read_volume(path: str | os.PathLike, labels: bool = False) -> Volume:
    """Read a 3-D NIfTI file (``.nii``, ``.nii.gz``, any orientation) and turn it to RAS+.

    Args:
        path: the file.
        labels: read a mask, whose values are whole numbers from 0 to 255, instead of an image.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable 3-D NIfTI image; the message names the file, the fault and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a NIfTI file (.nii or .nii.gz)")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"it is {type(image).__name__}")
        shape, own = image.shape, nib.io_orientation(image.affine)
    except READ_ERRORS as error:
        raise ValueError(
            f"{path}: not a readable NIfTI file ({one_line(error)}); convert the scan to .nii.gz"
        ) from error
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: has shape {shape}, not three axes; split a series into one file for each scan")
    if np.isnan(own).any() or not np.isfinite(image.affine).all() or min(image.header.get_zooms()) <= 0:
        raise ValueError(f"{path}: its affine has no usable orientation or voxel size; repair the header")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{path}: holds {image.get_data_dtype()} voxels; convert it to one real number for each voxel")
    try:
        data = np.asanyarray(image.dataobj) if labels else image.get_fdata(dtype=np.float32)
    except READ_ERRORS as error:
        raise ValueError(
            f"{path}: voxels cannot be read ({one_line(error)}); it may be cut short, copy it again"
        ) from error
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: has NaN or infinite voxels; replace them, for example by -1000 HU (air)")
    if labels and not (np.equal(data, np.round(data)).all() and data.min() >= 0 and data.max() <= 255):
        raise ValueError(f"{path}: a mask must hold whole numbers from 0 to 255, not {data.min()} to {data.max()}")
    ras = nib.orientations.apply_orientation(data, own)
    affine = image.affine @ nib.orientations.inv_ornt_aff(own, shape)
    to_own = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), own)
    dtype = np.uint8 if labels else np.float32
    return Volume(np.ascontiguousarray(ras, dtype=dtype), affine, path, image.header, to_own)


def write_mask(path: str | os.PathLike, mask: np.ndarray, like: Volume) -> None:
    """Write a mask, given in RAS+ axes, as uint8 NIfTI in the grid, orientation and affine of ``like``'s own file."""
    if mask.shape != like.data.shape:
        raise ValueError(f"mask of shape {mask.shape} does not fit {like.path} of shape {like.data.shape}")
    if not str(path).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the result must be named .nii or .nii.gz")
    own = nib.orientations.apply_orientation(mask.astype(np.uint8), like.to_own)
    header = like.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    with atomic_path(path) as partial:
        nib.save(nib.Nifti1Image(own, like.header.get_best_affine(), header), partial)
