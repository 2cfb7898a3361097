"""From a folder of CT scans to slices a network can read, and back to the scan's own grid.

Slices are ``(H, W)`` with rows from front to back and columns from the patient's right to left, as radiologists see
them: the liver is on the viewer's left. A scan is padded with air to a square of equal sides in mm, windowed (HU cut
to a range, then scaled to [-1, 1]) and brought to the working size. Liver is every label > 0: lesions belong to it; a
working pixel on its border holds the share of its area that is liver, as its gray value is the mean over its area.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .files import atomic_path, cache_folder
from .nifti import SLICE, Volume, read_volume


class Scan(NamedTuple):
    """One CT scan on disk with its expert mask."""

    name: str
    image: Path
    mask: Path


def find_scans(folder: str | os.PathLike) -> list[Scan]:
    """Pairs of image and mask in a folder laid out as LiTS or as a task of the Medical Segmentation Decathlon.

    LiTS: ``volume-N.nii[.gz]`` beside ``segmentation-N.nii[.gz]``; MSD: ``imagesTr/NAME.nii.gz`` and the same name in
    ``labelsTr``.

    Raises:
        OSError: if the folder is not there, may not be read, or holds no scan; if an image or a mask is alone.
        ValueError: if an image or a mask is there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one with volume-N.nii.gz and segmentation-N.nii.gz")
    prefixes = ("imagesTr/", "labelsTr/") if (folder / "imagesTr").is_dir() else ("volume-", "segmentation-")
    images, masks = (named(folder, prefix) for prefix in prefixes)
    if not images:
        raise FileNotFoundError(f"{folder}: no scans; expected volume-N.nii.gz or imagesTr/NAME.nii.gz with masks")
    for name in sorted(images.keys() ^ masks.keys()):
        kind, path = ("mask", images[name]) if name in images else ("image", masks[name])
        raise FileNotFoundError(f"{path}: has no {kind} {prefixes[kind == 'mask']}{name}.nii.gz; add it or move this")
    order = sorted(images, key=lambda name: [part.zfill(9) for part in re.split(r"(\d+)", name)])
    return [Scan(name, images[name], masks[name]) for name in order]


def named(folder: Path, prefix: str) -> dict[str, Path]:
    """NIfTI files ``{prefix}{name}.nii[.gz]`` by name, hidden ones left out; errors as in :func:`find_scans`."""
    found: dict[str, Path] = {}
    inside, start = folder / os.path.dirname(prefix), os.path.basename(prefix)
    for entry in sorted(os.listdir(inside)) if inside.is_dir() else ():  # glob would find nothing where it may not read
        if match := re.fullmatch(rf"{start}([^.].*?)\.nii(\.gz)?", entry):
            first = found.setdefault(match[1], inside / entry)
            if first.name != entry:
                raise ValueError(f"{inside / entry}: is there twice ({first.name}); remove one of them")
    return found


class Split(NamedTuple):
    """Names of the scans to train on, to choose the best epoch by, and to test on."""

    train: list[str]
    validation: list[str]
    test: list[str]


def split(names: Sequence[str], fold: int, folds: int, same_patient: Iterable[Sequence[str]] = ()) -> Split:
    """Fold number ``fold`` (from 0) of a split by patient: a fold's patients are tested, a fifth of the rest validate.

    The order of patients is shuffled once, with a fixed seed, so that the folds are the same for every model and run.
    Patients with several scans do not validate as long as others can: their scans are better used for training.

    Args:
        names: all scans.
        same_patient: groups of scans of one person, which stay together.

    Raises:
        ValueError: if the fold does not exist, there are too few patients, or a scan is in two groups.
    """
    patient = {name: (name,) for name in names}
    for group in same_patient:
        if unknown := [name for name in group if name not in patient]:
            raise ValueError(f"no scan is named {', '.join(unknown)}; the scans are {', '.join(names)}")
        members = tuple(name for name in names if name in group)
        if any(len(patient[name]) > 1 for name in members):
            raise ValueError(f"scans {', '.join(members)}: one of them is in two groups of the same patient")
        patient |= dict.fromkeys(members, members)
    patients = list(dict.fromkeys(patient.values()))
    if not 0 <= fold < folds:
        raise ValueError(f"fold {fold} does not exist: with {folds} folds it is a number from 0 to {folds - 1}")
    if folds < 2 or len(patients) < folds or len(patients) - -(-len(patients) // folds) < 2:
        raise ValueError(f"{len(patients)} patients cannot be split into {folds} folds of train, validation and test")
    shuffled = [patients[i] for i in np.random.default_rng(0).permutation(len(patients))]
    test = shuffled[fold::folds]
    rest = [p for p in shuffled if p not in test]
    single = [p for p in rest if len(p) == 1]
    validation = (single if len(single) > 1 else rest)[:: max(2, min(5, len(rest)))]
    parts = ([p for p in rest if p not in validation], validation, test)
    return Split(*([name for name in names if patient[name] in part] for part in parts))


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes slices. It is stored in each checkpoint, so that prediction repeats it.

    Attributes:
        size: side of the working slices in pixels.
        low, high: window in HU, mapped to -1 and 1.
    """

    size: int = 128
    low: float = -40.0
    high: float = 160.0

    def __post_init__(self) -> None:
        if not (type(self.size) is int and 0 < self.size <= 2048 and -1e9 < self.low < self.high < 1e9):
            raise ValueError(f"size {self.size}, window {self.low} to {self.high} HU: need size 1 to 2048, low < high")

    def images(self, volume: Volume) -> Tensor:
        """Slices ``(Z, 1, size, size)`` in [-1, 1], float32: area average where both sides shrink, else bilinear."""
        slices = torch.from_numpy(to_slices(volume.data).copy()).unsqueeze(1)
        slices = ((slices - float(self.low)) / (self.high - self.low) * 2 - 1).clamp(-1, 1)
        return self.resample(F.pad(slices, square_padding(volume), value=-1.0))

    def labels(self, volume: Volume) -> Tensor:
        """Share of liver in each pixel of the slices, float32 in [0, 1], ``(Z, 1, size, size)``; resampled as images.

        Nearest labels would lie up to a quarter of a working pixel beside images that are averaged over areas.
        """
        slices = torch.from_numpy((to_slices(volume.data) > 0).astype(np.float32)).unsqueeze(1)
        return self.resample(F.pad(slices, square_padding(volume)))

    def resample(self, slices: Tensor) -> Tensor:
        """Slices ``(Z, 1, H, W)`` at the working size: area average where both sides shrink, else bilinear."""
        if min(slices.shape[-2:]) > self.size:
            return F.interpolate(slices, size=(self.size, self.size), mode="area")
        return F.interpolate(slices, size=(self.size, self.size), mode="bilinear", align_corners=False)

    def restore(self, slices: Tensor, volume: Volume) -> np.ndarray:
        """Bring slices ``(Z, 1, size, size)``, say probabilities, back to the volume's grid ``(X, Y, Z)``, bilinear."""
        left, right, top, bottom = square_padding(volume)
        x, y, _ = volume.data.shape
        slices = F.interpolate(slices, size=(top + y + bottom, left + x + right), mode="bilinear", align_corners=False)
        return from_slices(slices[:, 0, top : top + y, left : left + x].numpy())


def to_slices(data: np.ndarray) -> np.ndarray:
    """RAS+ ``(X, Y, Z)`` to slices ``(Z, H, W)``: first row in front, first column at the patient's right."""
    return data[::-1, ::-1].transpose(2, 1, 0)


def from_slices(slices: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_slices`."""
    return slices.transpose(2, 1, 0)[::-1, ::-1]


def square_padding(volume: Volume) -> tuple[int, int, int, int]:
    """Pixels of air (left, right, top, bottom) that make the slices square in mm; ValueError if they are too many."""
    sides = np.multiply(volume.data.shape[:2], volume.spacing[:2]).tolist()
    if max(sides) ** 2 > SLICE * math.prod(volume.spacing[:2]):
        raise ValueError(f"{volume.path}: slices of {sides} mm take too many pixels as squares; check its voxel size")
    x, y = (round((max(sides) - side) / h) for side, h in zip(sides, volume.spacing[:2], strict=True))
    return x // 2, x - x // 2, y // 2, y - y // 2


def read_scan(scan: Scan) -> tuple[Volume, Volume]:
    """Image and mask of a scan.

    Raises:
        ValueError: if they do not lie on the same grid, or the mask holds no liver.
    """
    image, mask = read_volume(scan.image), read_volume(scan.mask, labels=True)
    if image.data.shape != mask.data.shape:
        raise ValueError(f"{scan.mask}: has shape {mask.data.shape}, its image {image.data.shape}; they must be equal")
    if not np.allclose(image.affine, mask.affine, atol=1e-2):
        raise ValueError(f"{scan.mask}: its affine differs from that of {scan.image.name}; resample it to that grid")
    if not mask.data.any():
        raise ValueError(f"{scan.mask}: holds no liver (every label is 0); leave this scan out")
    return image, mask


def liver_range(mask: np.ndarray) -> slice:
    """Slices from the first to the last with liver, of a mask ``(Z, ...)``."""
    with_liver = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    return slice(int(with_liver[0]), int(with_liver[-1]) + 1)


def prepared_scan(scan: Scan, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Working slices of a scan, mapped from the cache on disk, ``(Z, size, size)``.

    Images are float32 in [-1, 1]; the share of liver is uint8, in 255ths.
    """
    stamps = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in (scan.image, scan.mask)]
    key = hashlib.sha256(json.dumps(["share of liver", stamps, asdict(preprocessing)]).encode()).hexdigest()[:24]
    paths = [cache_folder("slices") / f"{key}-{part}.npy" for part in ("image", "label")]
    if not all(path.is_file() for path in paths):
        image, mask = read_scan(scan)
        labels = (preprocessing.labels(mask) * 255).round().to(torch.uint8)
        if labels.max() < 128:
            raise ValueError(f"{scan.mask}: its liver vanishes at {preprocessing.size} pixels; take a larger size")
        for path, slices in zip(paths, (preprocessing.images(image), labels), strict=True):
            with atomic_path(path) as partial:
                np.save(partial, slices[:, 0].numpy())
    return tuple(np.load(path, mmap_mode="r") for path in paths)


class SliceDataset(Dataset):
    """Slices of many scans; only those within the liver's range unless ``all_slices``. Items: image and share of liver,
    float32 ``(1, size, size)`` each. Slices stay on disk until they are asked for.

    Attributes:
        scans: the scans, in the order given.
        index: (number of the scan, slice) of each item.
    """

    def __init__(self, scans: Sequence[Scan], preprocessing: Preprocessing, all_slices: bool = False):
        self.scans = list(scans)
        self.arrays = [prepared_scan(scan, preprocessing) for scan in self.scans]
        self.index = []
        for number, (_, labels) in enumerate(self.arrays):
            chosen = range(len(labels)) if all_slices else range(len(labels))[liver_range(labels > 127)]
            self.index += [(number, z) for z in chosen]
        if not self.scans:
            raise ValueError("no scans, so no slices; give at least one scan")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        number, z = self.index[item]
        images, labels = self.arrays[number]
        return torch.from_numpy(images[z].copy())[None], torch.from_numpy(labels[z].astype(np.float32) / 255)[None]
