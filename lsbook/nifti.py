"""NIfTI volumes in one orientation: axes (X, Y, Z) that run to the patient's right, front and head (RAS+).

A scan may be larger than the memory at hand. So a file is read once, in blocks, each checked, turned, and put into a
temporary file; what is looked at later is mapped from there.
"""

import math
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from .files import atomic_path, cache_folder

BLOCK = 2**22  # voxels in work at a time
SLICE = 2**24  # voxels of a slice at most, along any axis; memory follows from it
nib.imageglobals.logger.setLevel("CRITICAL")  # what it would say of a header is raised instead
DEFLATED = 1032  # a byte of a .gz file stands for no more bytes than this


@dataclass(frozen=True)
class Stored:
    """Voxels ``(X, Y, Z)`` in a temporary file that vanishes with this object, and with the process at the latest.

    Attributes:
        order: the three axes, the one that the file runs through slowest first.
        backwards: whether it runs through that one from the end.
    """

    file: BinaryIO
    dtype: np.dtype
    shape: tuple[int, int, int]
    order: list[int]
    backwards: bool

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def look(self) -> np.ndarray:
        """All voxels, read-only, from a new map of the file: in memory is only what is touched while it is held."""
        stored = np.memmap(self.file, self.dtype, "r", shape=tuple(self.shape[axis] for axis in self.order))
        return np.asarray(stored[::-1] if self.backwards else stored).transpose(np.argsort(self.order))


@dataclass(frozen=True)
class Volume:
    """A scan or mask in RAS+ axes, with what is needed to write a result back into its own grid.

    Attributes:
        voxels: an array, or one that is on disk; read it by ``data``.
        affine: from data's indices to mm.
        path: where it was read.
        header: the file's own header, with its own affine and axis order.
        to_own: orientation transform (nibabel) from RAS+ back to the file's axes.
    """

    voxels: np.ndarray | Stored
    affine: np.ndarray
    path: Path
    header: nib.Nifti1Header
    to_own: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """``(X, Y, Z)``; HU (float32) for images, labels (uint8) for masks. What was read is mapped, and read-only."""
        return self.voxels.look() if isinstance(self.voxels, Stored) else self.voxels

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, in data's axis order."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


def read_volume(path: str | os.PathLike, labels: bool = False) -> Volume:
    """Read a 3-D NIfTI file (``.nii``, ``.nii.gz``, any orientation) and turn it to RAS+.

    Memory does not grow with the file. Disk does, by 4 bytes a voxel (a mask by 1), until the volume is let go: in the
    cache folder, since the system's folder for temporary files may itself be in memory.

    Args:
        path: the file.
        labels: read a mask, whose values are 0, 1 (liver) and 2 (lesion), instead of an image.

    Raises:
        FileNotFoundError, PermissionError: if there is no such file, or it may not be read.
        ValueError: if it is no readable 3-D NIfTI image; the message names the file, the fault and the remedy.
        OSError: if the disk has no room for the voxels.
    """
    path = Path(path)
    image, own = load_header(path)
    affine = image.affine @ nib.orientations.inv_ornt_aff(own, image.shape)
    to_own = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), own)
    return Volume(store(path, image, own, labels), affine, path, image.header, to_own)


def load_header(path: Path) -> tuple[nib.Nifti1Pair, np.ndarray]:
    """The image, its voxels unread, and the orientation of its axes (nibabel); errors as in :func:`read_volume`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a NIfTI file (.nii or .nii.gz), no folder of DICOM slices")
    path.open("rb").close()  # says why it may not be read, which nibabel does not
    try:
        # nibabel would change a voxel size of 0 to 1, and warn of what is refused here.
        with nib.imageglobals.ErrorLevel(30), warnings.catch_warnings(action="ignore"):
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair):
                raise ValueError(f"it is {type(image).__name__}")
            shape, own, sizes = image.shape, nib.io_orientation(image.affine), nib.affines.voxel_sizes(image.affine)
        source = Path(image.file_map["image"].filename)
        held = source.stat().st_size * {".nii": 1, ".img": 1, ".gz": DEFLATED}.get(source.suffix.lower(), math.inf)
    except Exception as error:  # whatever nibabel meets in a broken header
        raise ValueError(f"{path}: not a readable NIfTI file ({one_line(error)}); convert it to .nii.gz") from error
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: has shape {shape}, not three axes; split a series into one file for each scan")
    if np.isnan(own).any() or not np.isfinite(image.affine).all() or not 1e-3 <= sizes.min() <= sizes.max() <= 1e3:
        raise ValueError(f"{path}: its affine has no usable orientation or voxel size; repair the header")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{path}: holds {image.get_data_dtype()} voxels; convert it to one real number for each voxel")
    asked = math.prod(shape) * image.get_data_dtype().itemsize
    if asked > held:
        too_short = f"its header asks for {asked} bytes, it holds {held} at most"
        raise ValueError(f"{path}: voxels cannot be read ({too_short}); it may be cut short, copy it again")
    if math.prod(sorted(shape)[1:]) > SLICE:
        raise ValueError(f"{path}: has shape {shape}, slices of more than {SLICE} voxels; crop it or make it coarser")
    return image, own.astype(int)


def store(path: Path, image: nib.Nifti1Pair, own: np.ndarray, labels: bool) -> Stored:
    """Put the voxels, checked and turned, into a temporary file, block after block."""
    dtype, folder = np.dtype(np.uint8 if labels else np.float32), cache_folder("volumes")
    needed, free = math.prod(image.shape) * dtype.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{path}: needs {needed} bytes in {folder}, {free} are free; set LSBOOK_CACHE to another folder")
    slowest, sign = own[2]
    order = [int(slowest), *(axis for axis in (2, 1, 0) if axis != slowest)]
    shape = tuple(image.shape[axis] for axis in np.argsort(own[:, 0]))
    stored = Stored(tempfile.TemporaryFile(dir=folder, buffering=0), dtype, shape, order, sign < 0)
    inside = np.array([*own[:2], (slowest, 1)])  # the sequence of the blocks is turned when it is looked at
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite
            for block in blocks(path, image):
                turned = nib.orientations.apply_orientation(checked(path, block, labels), inside).transpose(order)
                content = np.ascontiguousarray(turned, dtype)
                if stored.file.write(content) < content.nbytes:
                    raise OSError("the disk is full")
    except OSError as error:
        raise OSError(f"{path}: cannot be kept in {folder} ({error}); make room or set LSBOOK_CACHE") from error
    return stored


def blocks(path: Path, image: nib.Nifti1Pair) -> Iterator[np.ndarray]:
    """The voxels in the file's own axes, scaled, some slices along its last axis at a time; read to the file's end."""
    x, y, slices = image.shape
    raw, most = image.dataobj, max(1, BLOCK // (x * y))
    try:
        with nib.openers.ImageOpener(image.file_map["image"].filename) as file:
            file.seek(raw.offset)
            for first in range(0, slices, most):
                count = min(most, slices - first)
                content = file.read(x * y * count * raw.dtype.itemsize)
                block = np.frombuffer(content, raw.dtype).reshape((x, y, count), order="F")  # fails if content is short
                yield nib.volumeutils.apply_read_scaling(block, raw.slope, raw.inter)
            while file.read(BLOCK):  # a .gz file ends with a checksum
                pass
    except Exception as error:  # as above
        raise ValueError(f"{path}: voxels cannot be read ({one_line(error)}); cut short? copy it again") from error


def checked(path: Path, block: np.ndarray, labels: bool) -> np.ndarray:
    """The block, as float32 if it is of an image, after a look at each voxel."""
    if not labels:
        block = block.astype(np.float32)
    if not np.isfinite(block).all():
        raise ValueError(f"{path}: has NaN or infinite voxels; replace them, for example by -1000 HU (air)")
    if labels and (wrong := block[(block != np.round(block)) | (block < 0) | (block > 2)]).size:
        raise ValueError(f"{path}: a mask must hold 0, 1 (liver) and 2 (lesion), not {wrong[0]}; relabel it")
    return block


def write_mask(path: str | os.PathLike, mask: np.ndarray, like: Volume) -> None:
    """Write a mask, given in RAS+ axes, as uint8 NIfTI in the grid, orientation and affine of ``like``'s own file."""
    if mask.shape != like.data.shape:
        raise ValueError(f"mask of shape {mask.shape} does not fit {like.path} of shape {like.data.shape}")
    if not str(path).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the result must be named .nii or .nii.gz")
    if Path(path).resolve() == like.path.resolve():
        raise ValueError(f"{path}: is the scan itself; give the result another name")
    voxels = mask.view(np.uint8) if mask.dtype == bool else mask.astype(np.uint8, copy=False)  # no second mask
    header = like.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    own = nib.orientations.apply_orientation(voxels, like.to_own)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with atomic_path(path) as partial:
        nib.save(kind(own, like.header.get_best_affine(), header), partial)
