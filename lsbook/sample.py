"""Two real CT scans out of published Python packages: fetched by name, checked, converted, never installed."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter

from lsbook.files import atomic_path, cache_folder

SampleName = Literal["totalseg", "lits117"]
Scan = tuple[np.ndarray, np.ndarray, np.ndarray]  # int16 HU (X, Y, Z); uint8 labels 0, 1, 2; affine (4, 4) in mm
DOWNLOAD_SECONDS = 300
# Nominal, since the wheel holds no spacing: with this one (mm) vertebrae have about their usual size, to 15 % at best.
LITS117_AFFINE = np.diag([-1.3, -1.3, 1.5, 1.0])


class SampleUnavailable(RuntimeError):
    """A sample could not be had; the message is one line: which sample, what failed, what to do."""


def convert_totalseg(image: bytes, segmentation: bytes) -> Scan:
    """Two ``.nii.gz`` files, an image in HU and a segmentation of 117 structures, of which 5 is the liver."""
    volume, organs = (nib.Nifti1Image.from_bytes(gzip.decompress(content)) for content in (image, segmentation))
    liver = np.asarray(organs.dataobj) == 5
    return np.asarray(volume.dataobj).astype(np.int16), liver.astype(np.uint8), volume.affine


def convert_lits117(image: bytes, segmentation: bytes) -> Scan:
    """Two ``.mrc`` files, float32 HU (rounded to whole HU here) and labels 0, 1, 2.

    MRC files are often (z, y, x); these are (x, y, z), and their headers give neither orientation nor spacing.
    Seen in pictures: the indices run to the patient's left (the liver is at low x, the aorta left of the vena cava),
    back (the spine is at high y) and head (lungs and heart are at high z). The spacing is nominal.
    """
    hu, labels = (MrcInterpreter(iostream=io.BytesIO(content)).data for content in (image, segmentation))
    return np.rint(hu).astype(np.int16), labels.astype(np.uint8), LITS117_AFFINE


@dataclass(frozen=True)
class Sample:
    """Where a sample comes from, and what may be done with it."""

    package: str
    version: str
    sha256: str  # of the package's file
    kind: Literal["sdist", "wheel"]
    members: tuple[str, str]  # image and segmentation: exact names inside that file
    convert: Callable[[bytes, bytes], Scan]
    number: int  # N of volume-N.nii.gz and segmentation-N.nii.gz
    source: str
    licence: str
    publishable: bool  # whether a page that is put on the web may show it
    kept: str


TOTALSEG_FOLDER = "totalsegmentator-2.18.0/tests/reference_files"
LITS117_FOLDER = "liver_ct_segmentation_package/data"
SAMPLES: dict[str, Sample] = {
    "totalseg": Sample(
        package="totalsegmentator",
        version="2.18.0",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        kind="sdist",
        members=(f"{TOTALSEG_FOLDER}/example_ct.nii.gz", f"{TOTALSEG_FOLDER}/example_seg_fast_force_split.nii.gz"),
        convert=convert_totalseg,
        number=0,
        source="example CT of TotalSegmentator (Wasserthal et al., 2023), liver mask by a model (a silver standard)",
        licence="Apache-2.0",
        publishable=True,
        kept="the CT in HU as int16, and the liver of its segmentation",
    ),
    "lits117": Sample(
        package="liver-ct-segmentation-package",
        version="1.6.0",
        sha256="67ffa526d8500ce5e3d9f2c96c1690543d811d352d93d531301d35791b9d6bba",
        kind="wheel",
        members=(f"{LITS117_FOLDER}/img_117.mrc", f"{LITS117_FOLDER}/lab_117.mrc"),
        convert=convert_lits117,
        number=117,
        source="LiTS scan 117 (Bilic et al., 2023), cropped to the liver and resampled, labels by experts",
        licence="CC BY-NC-ND 4.0",
        publishable=False,
        kept="HU rounded to int16, and labels; orientation told from pictures, spacing nominal: mm mean little",
    ),
}


def fetch(name: SampleName) -> Path:
    """Folder ``sample/NAME`` of the cache, with ``volume-N.nii.gz``, ``segmentation-N.nii.gz`` and ``SOURCE.txt``.

    What is there already needs no network. ``lits117`` has a nominal spacing: see :func:`convert_lits117`.

    Raises:
        SampleUnavailable: if the name is unknown, or the download, the hash check or the writing fails.
    """
    if folder := available(name):
        return folder
    sample = _sample(name)
    try:
        volume, segmentation, source = _files(cache_folder("sample", name), sample)
        with tempfile.TemporaryDirectory() as temporary:
            content = _download(sample, Path(temporary)).read_bytes()
        if hashlib.sha256(content).hexdigest() != sample.sha256:
            raise ValueError(f"the file of {sample.package} {sample.version} is not the expected one: sha256 differs")
        hu, labels, affine = sample.convert(*_read_members(sample, content))
        # All three are written before the first gets its name, and SOURCE.txt, which marks a complete folder, is last.
        with atomic_path(source) as text, atomic_path(segmentation) as mask, atomic_path(volume) as image:
            nib.save(nib.Nifti1Image(hu, affine), image)
            nib.save(nib.Nifti1Image(labels, affine), mask)
            facts = [f"{field}: {value}\n" for field, value in vars(sample).items() if field != "convert"]
            text.write_text("".join(facts), encoding="utf-8")
    except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        advice = f"check the network and the disk, then run `python -m lsbook sample {name}`; the phantom needs neither"
        raise SampleUnavailable(f"sample {name}: {' '.join(str(error).split())}; {advice}") from error
    return source.parent


def available(name: SampleName) -> Path | None:
    """The sample's folder if the cache holds all of it, else None; never touches the network."""
    sample = _sample(name)
    try:
        files = _files(cache_folder("sample", name), sample)
    except OSError:  # a cache that cannot be made holds nothing
        return None
    complete = all(file.is_file() for file in files) and sample.sha256 in files[2].read_text(encoding="utf-8")
    return files[2].parent if complete else None


def caption(name: SampleName) -> str:
    """One sentence with source and licence, to print under a figure that shows the sample."""
    sample = _sample(name)
    return f"CT: {sample.source}, from the package {sample.package} {sample.version}; licence {sample.licence}."


def prefetch(names: Sequence[str]) -> int:
    """Fetch the samples and print source, licence and folder of each; 0, or 2 if one failed (the reason on stderr)."""
    status = 0
    for name in names:
        try:
            folder = fetch(name)
            print(f"{name}\n  source:  {SAMPLES[name].source}\n  licence: {SAMPLES[name].licence}\n  folder:  {folder}")
        except SampleUnavailable as error:
            print(error, file=sys.stderr)
            status = 2
    return status


def _sample(name: str) -> Sample:
    if name not in SAMPLES:
        raise SampleUnavailable(f"sample {name}: there is none of this name; choose from {', '.join(SAMPLES)}")
    return SAMPLES[name]


def _files(folder: Path, sample: Sample) -> tuple[Path, Path, Path]:
    n = sample.number
    return folder / f"volume-{n}.nii.gz", folder / f"segmentation-{n}.nii.gz", folder / "SOURCE.txt"


def _download(sample: Sample, folder: Path) -> Path:
    """The package's file, put into ``folder`` by pip, which checks its hash before it looks inside.

    It then asks an sdist for its metadata, which runs the build backend and can't be switched off; build isolation
    stays on, so that this happens in an environment that pip throws away and ours needs no setuptools.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{sample.package}=={sample.version} --hash=sha256:{sample.sha256}\n", encoding="utf-8")
    form = "--no-binary" if sample.kind == "sdist" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", form, sample.package]
    command += ["--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--retries=2", "--timeout=20"]
    command += ["--requirement", str(requirements), "--dest", str(folder / "package")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"pip took longer than {DOWNLOAD_SECONDS} s for {sample.package}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        told = next((line for line in lines if line.lower().startswith("error")), lines[-1])
        raise ValueError(f"pip could not download {sample.package} {sample.version} ({told})")
    return next((folder / "package").iterdir())


def _read_members(sample: Sample, content: bytes) -> list[bytes]:
    """Image and segmentation by their exact names, in memory: no name in the archive ever becomes a path on disk."""
    if sample.kind == "wheel":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [archive.read(name) for name in sample.members]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [archive.extractfile(name).read() for name in sample.members]
