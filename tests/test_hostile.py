"""What a user may give by mistake or by malice: each fault is one line with the file and the remedy, and status 2.

Two tables. REFUSED holds a case for each fault; nothing is written. ACCEPTED holds what is unusual and right.
"""

import gzip
import os
import pickle
import re
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lsbook.kernel_report  # noqa: F401, here because an ordinary user may not find it later
from lsbook.__main__ import main
from lsbook.checkpoints import load_checkpoint, save_checkpoint
from lsbook.ct import Preprocessing
from lsbook.networks import build_model
from lsbook.nifti import read_volume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, AFFINE = (16, 16, 4), np.diag([-2.0, -2.0, 4.0, 1.0])
INFO = {"model": "lse", "options": {"steps": 2}, "preprocessing": {"size": 16, "low": -40.0, "high": 160.0}}


def some_scan() -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 101, SHAPE).astype(np.int16)


def some_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 4:10, 1:3], mask[5, 6, 2] = 1, 2
    return mask


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(data, affine, dtype=data.dtype), path)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a checkpoint, a scan and its mask, and the folder ``data`` with four such pairs."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.safetensors", build_model("lse", steps=2), INFO)
    save(tmp_path / "ct.nii", some_scan())
    save(tmp_path / "mask.nii", some_mask())
    for number in range(4):
        save(tmp_path / "data" / f"volume-{number}.nii", some_scan() + np.int16(number))
        save(tmp_path / "data" / f"segmentation-{number}.nii", some_mask())
    return tmp_path


# -- what makes a fault: it changes a file of the place, or adds one --------------------------------------------------


def raw(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(content)


def image(name: str, data: np.ndarray, affine: np.ndarray = AFFINE, **more: type) -> Callable[[Path], object]:
    return lambda place: save(place / name, data, affine, **more)


def patched(name: str, offset: int, form: str, *values: float) -> Callable[[Path], object]:
    """A field of the header set to what nibabel would not write."""

    def make(place: Path) -> None:
        path = place / name
        content = bytearray(path.read_bytes())
        struct.pack_into(form, content, offset, *values)
        path.write_bytes(content)

    return make


def cut(name: str, share: float, pack: bool = False) -> Callable[[Path], object]:
    def make(place: Path) -> None:
        content = (place / name.removesuffix(".gz")).read_bytes()
        content = gzip.compress(content) if pack else content
        (place / name).write_bytes(content[: int(share * len(content))])

    return make


def vast(name: str) -> Callable[[Path], object]:
    """A header that asks for 30000^3 voxels, and few of them."""

    def make(place: Path) -> None:
        patched("ct.nii", 42, "<3h", 30000, 30000, 30000)(place)
        content = (place / "ct.nii").read_bytes()
        (place / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    return make


def with_hole(value: float) -> np.ndarray:
    data = some_scan().astype(np.float32)
    data[3, 4, 2] = value
    return data


def stored(**changes: object) -> Callable[[Path], object]:
    """The checkpoint, with other information than belongs to its weights."""
    return lambda place: save_checkpoint(place / "net.safetensors", build_model("lse", steps=2), INFO | changes)


def options(**changes: object) -> Callable[[Path], object]:
    return stored(options=INFO["options"] | changes)


def sized(**changes: object) -> Callable[[Path], object]:
    return stored(preprocessing=INFO["preprocessing"] | changes)


def sick(place: Path) -> None:
    model = build_model("lse", steps=2)
    torch.nn.init.constant_(model.raw, torch.nan)
    save_checkpoint(place / "net.safetensors", model, INFO)


class Harmful:
    """A pickle that would make a file when it is loaded."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


def arrays(**members: np.ndarray) -> Callable[[Path], object]:
    return lambda place: np.savez(place / "net.npz", **members)


def vast_array(place: Path) -> None:
    """An .npz whose array's header, not its content, is huge."""
    arrays(weight=np.zeros((2, 1, 3, 3)))(place)
    content = (place / "net.npz").read_bytes()
    (place / "net.npz").write_bytes(content.replace(b"(2, 1, 3, 3)", b"(2**60, 9,)") + b"")


def series(place: Path) -> None:
    """A folder of DICOM slices."""
    for number in range(3):
        path = place / "series" / f"IM{number:04d}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" + bytes(300))


def gone(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).unlink()


def copied(name: str, to: str) -> Callable[[Path], object]:
    return lambda place: shutil.copy(place / name, place / to)


def decathlon(*names: str) -> Callable[[Path], object]:
    def make(place: Path) -> None:
        for name in names:
            save(place / "task" / name, some_mask())

    return make


def run_of(state: object) -> Callable[[Path], object]:
    """A folder of a run whose state is something else."""

    def make(place: Path) -> None:
        (place / "out").mkdir()
        torch.save(state, place / "out" / "last.pt")

    return make


def nothing(place: Path) -> None:
    """The arguments alone are at fault."""


PREDICT = "predict --weights net.safetensors --image ct.nii --out out/m.nii"
EVALUATE = "evaluate --reference mask.nii --prediction other.nii"
KERNELS = "kernels net.npz --out out"
TRAIN = "train --data data --out out --model lse --steps 2 --folds 4 --size 16 --batch 4 --epochs 1 --seed-radius 0.2"
LAST, FIRST = "data/volume-3.nii", "data/segmentation-0.nii"

# name: what makes the fault, the command, what its one line says
REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # images
    "no image": (gone("ct.nii"), PREDICT, r"ct\.nii: no such file; give"),
    "a folder": (series, PREDICT.replace("ct.nii", "series"), "series: no such file; give .* no folder of DICOM"),
    "a DICOM slice": (
        series,
        PREDICT.replace("ct.nii", "series/IM0001.dcm"),
        r"IM0001\.dcm: not a readable NIfTI .*; c",
    ),
    "a DICOM slice named .nii": (raw("ct.nii", bytes(128) + b"DICM" + bytes(900)), PREDICT, r"ct\.nii: not a readable"),
    "text": (raw("ct.nii", b"no scan" * 100), PREDICT, r"ct\.nii: not a readable NIfTI file .*; convert"),
    "nothing in it": (raw("ct.nii", b""), PREDICT, r"ct\.nii: not a readable NIfTI file .*; convert"),
    "truncated": (cut("ct.nii", 0.6), PREDICT, r"ct\.nii: voxels cannot be read .*; it may be cut short, copy"),
    "truncated gzip": (
        cut("ct.nii.gz", 0.6, True),
        PREDICT.replace("ct.nii", "ct.nii.gz"),
        r"nii\.gz: .* copy it again",
    ),
    "truncated gzip header": (cut("ct.nii.gz", 0.01, True), PREDICT.replace("ct.nii", "ct.nii.gz"), r"nii\.gz: not a"),
    "wrong magic": (patched("ct.nii", 344, "4s", b"n+7\0"), PREDICT, r"ct\.nii: not a readable .*; convert"),
    "NaN voxel": (image("ct.nii", with_hole(np.nan)), PREDICT, r"ct\.nii: has NaN or infinite voxels; replace"),
    "infinite voxel": (image("ct.nii", with_hole(np.inf)), PREDICT, r"ct\.nii: has NaN or infinite voxels; replace"),
    "too large a voxel": (
        image("ct.nii", some_scan() * 1e300),
        PREDICT,
        r"ct\.nii: has NaN or infinite voxels; replace",
    ),
    "2-D": (image("ct.nii", some_scan()[:, :, 0]), PREDICT, r"ct\.nii: has shape \(16, 16\), not three axes; split"),
    "4-D": (image("ct.nii", some_scan()[..., None] * [1, 2]), PREDICT, r"ct\.nii: has shape .*, not three axes; split"),
    "complex": (image("ct.nii", some_scan() * 1j), PREDICT, r"ct\.nii: holds complex128 voxels; convert"),
    "scl_slope infinite product": (patched("ct.nii", 112, "<2f", 3e38, 0), PREDICT, r"ct\.nii: has NaN or infinite"),
    "vast header": (vast("ct.nii"), PREDICT, r"ct\.nii: voxels cannot be read \(its header asks for 54000000000000"),
    "vast header, gzip": (vast("v.nii.gz"), PREDICT.replace("ct.nii", "v.nii.gz"), "its header asks for 540000.* copy"),
    "vast slice": (
        image("ct.nii", np.zeros((4097, 4097, 1), np.int8)),
        PREDICT,
        r"ct\.nii: .* slices of more .*; crop",
    ),
    "vast square": (
        lambda p: save(p / "ct.nii", np.zeros((9000, 2, 2), np.int8), np.diag([500.0, 0.01, 1, 1])),
        PREDICT,
        r"ct\.nii: slices of .* mm take too many pixels as squares; check its voxel size",
    ),
    "zero spacing": (patched("ct.nii", 80, "<3f", 2, 0, 4), PREDICT, r"ct\.nii: .*should be non-zero\); convert"),
    "negative spacing": (patched("ct.nii", 80, "<3f", 2, -2, 4), PREDICT, r"ct\.nii: .*should be positive\); convert"),
    "zero column": (
        patched("ct.nii", 280, "<4f", 0, 0, 0, 0),
        PREDICT,
        r"ct\.nii: its affine has no usable .*; repair",
    ),
    "NaN affine": (
        patched("ct.nii", 280, "<4f", np.nan, 0, 0, 0),
        PREDICT,
        r"ct\.nii: .*(affine|SVD).*; (repair|conv)",
    ),
    "microscopic voxels": (image("ct.nii", some_scan(), AFFINE * 1e-5), PREDICT, r"ct\.nii: its affine .*; repair"),
    # results
    "no NIfTI name": (nothing, PREDICT.replace("m.nii", "m.png"), r"m\.png: the result must be named"),
    "over the scan": (nothing, PREDICT.replace("out/m.nii", "./ct.nii"), r"ct\.nii: is the scan itself; give"),
    "a file as folder": (nothing, PREDICT.replace("out/m.nii", "mask.nii/m.nii"), r"mask\.nii.*; check that"),
    # checkpoints
    "no checkpoint": (gone("net.safetensors"), PREDICT, r"net\.safetensors: no such checkpoint; train one"),
    "cut checkpoint": (cut("net.safetensors", 0.9), PREDICT, r"net\.safetensors: not a checkpoint .*; give"),
    "empty checkpoint": (raw("net.safetensors", b""), PREDICT, r"net\.safetensors: not a checkpoint .*; give"),
    "huge header": (raw("net.safetensors", b"\xff" * 64), PREDICT, r"net\.safetensors: not a checkpoint .*; give"),
    "a pickle": (raw("net.safetensors", pickle.dumps(Harmful())), PREDICT, r"net\.safetensors: not a checkpoint .*; g"),
    "foreign weights": (
        lambda place: save_file({"weight": torch.zeros(3)}, place / "net.safetensors"),
        PREDICT,
        r"net\.safetensors: not a checkpoint of lsbook .*; give",
    ),
    "weights of another model": (stored(model="lsn"), PREDICT, r"net\.safetensors: not a checkpoint .*; give"),
    "NaN weights": (sick, PREDICT, r"net\.safetensors: not a checkpoint .*\(NaN or infinite weights\); give"),
    "endless steps": (options(steps=10**12), PREDICT, r"net\.safetensors: .*\(option steps is 1000000000000\); give"),
    "steps as text": (options(steps="2"), PREDICT, r"net\.safetensors: .*\(option steps is '2'\); give"),
    "wide blur": (options(sigma=1e9), PREDICT, r"net\.safetensors: .*\(option sigma is 1000000000.0\); give"),
    "a seed of two numbers": (options(seed=[0.5, 0.5]), PREDICT, r"net\.safetensors: .*\(option seed .*\); give"),
    "unknown method": (options(method="magic"), PREDICT, r"net\.safetensors: .*\(option method is 'magic'\); give"),
    "unknown option": (options(speed=1), PREDICT, r"net\.safetensors: not a checkpoint .*; give"),
    "vast model": (
        stored(model="unet", options={"filters": 10**6, "depth": 9}),
        PREDICT,
        r"net\.safetensors: not a checkpoint .*; give",
    ),
    "vast slices": (sized(size=10**6), PREDICT, r"net\.safetensors: .* size 1 to 2048, .*; give"),
    "size as a float": (sized(size=16.0), PREDICT, r"net\.safetensors: .* size 1 to 2048, .*; give"),
    "endless window": (sized(high=float("inf")), PREDICT, r"net\.safetensors: .* low < high\); give"),
    "no edge scale": (
        lambda place: options(contrast=0.0)(place) or image("ct.nii", 0 * some_scan())(place),
        PREDICT,
        r"ct\.nii: the network's output is not finite; take another",
    ),
    # masks
    "another shape": (image("other.nii", some_mask()[:-1]), EVALUATE, r"other\.nii: has shape .*, the reference .*; "),
    "another affine": (
        image("other.nii", some_mask(), AFFINE * 1.1),
        EVALUATE,
        r"other\.nii: lies elsewhere .*; resample",
    ),
    "unknown labels": (
        image("other.nii", some_mask() * 5),
        EVALUATE,
        r"other\.nii: a mask must hold .*, not 5; relabel",
    ),
    "shares as labels": (image("other.nii", some_mask() / 2), EVALUATE, r"other\.nii: .*, not 0\.5; relabel"),
    "negative labels": (image("other.nii", -some_mask().astype(np.int8)), EVALUATE, r"other\.nii: .*, not -1; relabel"),
    "NaN in a mask": (image("other.nii", with_hole(np.nan)), EVALUATE, r"other\.nii: has NaN or infinite voxels; repl"),
    "a CT as mask": (copied("ct.nii", "other.nii"), EVALUATE, r"other\.nii: a mask must hold .*; relabel"),
    "no mask": (nothing, EVALUATE, r"other\.nii: no such file; give"),
    # folders of scans
    "no folder": (nothing, TRAIN.replace("data data", "data nowhere"), "nowhere: no such folder; give"),
    "no scans": (series, TRAIN.replace("data data", "data series"), "series: no scans; expected"),
    "missing mask": (gone(FIRST), TRAIN, r"volume-0\.nii: has no mask segmentation-0\.nii\.gz; add"),
    "missing image": (gone(LAST), TRAIN, r"segmentation-3\.nii: has no image volume-3\.nii\.gz; add"),
    "missing mask, decathlon": (
        decathlon("imagesTr/a.nii", "labelsTr/a.nii", "imagesTr/b.nii"),
        TRAIN.replace("data data", "data task"),
        r"imagesTr/b\.nii: has no mask labelsTr/b\.nii\.gz; add",
    ),
    "missing image, decathlon": (
        decathlon("imagesTr/a.nii", "labelsTr/a.nii", "labelsTr/b.nii"),
        TRAIN.replace("data data", "data task"),
        r"labelsTr/b\.nii: has no image imagesTr/b\.nii\.gz; add",
    ),
    "a scan twice": (copied(LAST, "data/volume-3.nii.gz"), TRAIN, r"volume-3\.nii\.gz: is there twice .*; remove"),
    "a mask twice": (
        copied(FIRST, "data/segmentation-0.nii.gz"),
        TRAIN,
        r"segmentation-0\.nii\.gz: is there twice .*; r",
    ),
    "a patient twice": (nothing, f"{TRAIN} --same-patient 0,1 --same-patient 1,2", "scans 1, 2: .* two groups .*"),
    "an unknown patient": (nothing, f"{TRAIN} --same-patient 0,77", "no scan is named 77; the scans are 0, 1, 2, 3"),
    "shape of a mask": (
        image(FIRST, some_mask()[:-1]),
        TRAIN,
        r"segmentation-0\.nii: has shape .*; they must be equal",
    ),
    "affine of a mask": (
        image(FIRST, some_mask(), AFFINE * 1.1),
        TRAIN,
        r"segmentation-0\.nii: its affine .*; resample",
    ),
    "empty mask": (image(FIRST, 0 * some_mask()), TRAIN, r"segmentation-0\.nii: holds no liver .*; leave"),
    "unknown labels in a mask": (image(FIRST, some_mask() * 60), TRAIN, r"segmentation-0\.nii: .*, not 60; relabel"),
    "a corrupt scan of many": (cut(LAST, 0.6), TRAIN, r"volume-3\.nii: voxels cannot be read .*; it may be cut"),
    # runs
    "state is text": (
        lambda p: (p / "out").mkdir() or raw("out/last.pt", b"no")(p),
        TRAIN,
        r"last\.pt: cannot .*; remove",
    ),
    "state without settings": (run_of({"rows": []}), TRAIN, r"last\.pt: cannot be read .*; remove"),
    "state is a list": (run_of([1, 2]), TRAIN, r"last\.pt: cannot be read .*; remove"),
    "state is harmful": (run_of(Harmful()), TRAIN, r"last\.pt: cannot be read .*; remove"),
    "start is cut": (
        cut("net.safetensors", 0.9),
        f"{TRAIN} --start-from net.safetensors",
        r"net\.safetensors: not a ch",
    ),
    # kernels
    "no weights": (nothing, KERNELS, r"net\.npz: no such file; give"),
    "weights are text": (raw("net.npz", b"weights"), KERNELS, r"net\.npz: cannot be read as weights .*; give"),
    "weights are a pickle": (
        raw("net.npz", pickle.dumps(Harmful())),
        KERNELS,
        r"net\.npz: cannot be read as weights .*",
    ),
    "pickled array": (
        arrays(w=np.array([Harmful()], object)),
        KERNELS,
        r"net\.npz: cannot be read as weights .*; give",
    ),
    "vast array": (vast_array, KERNELS, r"net\.npz: cannot be read as weights .*; give"),
    "no kernels": (arrays(w=np.zeros((3, 3))), KERNELS, r"net\.npz: no 3x3 convolution weights .*; give"),
    "NaN kernels": (
        arrays(w=np.full((1, 1, 3, 3), np.nan)),
        KERNELS,
        r"net\.npz: w holds NaN or infinite weights; take",
    ),
    "kernels of a folder": (series, KERNELS.replace("net.npz", "series"), "series: no such file; give"),
    # samples
    "no such sample": (nothing, "sample nobody", "sample nobody: there is none of this name; choose"),
}


def files_in(place: Path) -> dict[str, bytes]:
    """All files but the lock of a run, which stays."""
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(command: str, capsys: pytest.CaptureFixture) -> str:
    """The one line of a command that ends with status 2 and prints nothing else (a progress bar is no line)."""
    capsys.readouterr()
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    line = printed.err.split("\r")[-1]
    assert printed.out == ""
    assert line.endswith("\n") and line.count("\n") == 1, f"not one line: {printed.err}"
    return line


@pytest.mark.parametrize(("make", "command", "fault"), REFUSED.values(), ids=REFUSED)
def test_a_fault_is_one_line_with_the_file_and_the_remedy(place, monkeypatch, capsys, make, command, fault):
    monkeypatch.chdir(place)
    make(place)
    before = files_in(place)
    line = refused(command, capsys)
    assert re.search(fault, line), line
    assert line.startswith(("lsbook: ", "sample "))
    assert files_in(place) == before, "something was written"
    assert not (place / "harm").exists()


# -- the machine at fault ---------------------------------------------------------------------------------------------


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the rights of root, whom no permission binds."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except PermissionError:
        pytest.skip("root that may not become another user")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place, where every user may read, and its empty folder ``cache``, where every user may write."""
    with tempfile.TemporaryDirectory() as folder:
        public = shutil.copytree(place, Path(folder) / "place")
        (public / "cache").mkdir()
        for path in (Path(folder), public, public / "data", public / "cache"):
            path.chmod(0o777 if path.name == "cache" else 0o755)
        monkeypatch.setenv("LSBOOK_CACHE", str(public / "cache"))
        monkeypatch.chdir(public)
        yield public


# name: the file or folder, its mode, the command, what its one line says
FORBIDDEN = {
    "folder of scans": ("data", 0o000, TRAIN, r"Permission denied: 'data.*; check that"),
    "list of a folder": ("data", 0o311, TRAIN, r"Permission denied: 'data'; check that"),
    "image": ("ct.nii", 0o000, PREDICT, r"Permission denied: 'ct\.nii'; check that"),
    "mask": ("mask.nii", 0o000, EVALUATE, r"Permission denied: 'mask\.nii'; check that"),
    "scan of many": (LAST, 0o000, TRAIN, r"Permission denied: 'data/volume-3\.nii'; check that"),
    "checkpoint": ("net.safetensors", 0o000, PREDICT, r"Permission denied: 'net\.safetensors'; check that"),
    "kernels": (
        "net.safetensors",
        0o000,
        "kernels net.safetensors --out out",
        r"denied: 'net\.safetensors'; check that",
    ),
    "cache": ("cache", 0o000, PREDICT, r"cache.volumes: cannot make this cache folder .*; set LSBOOK_CACHE"),
}


@pytest.mark.parametrize(("name", "mode", "command", "fault"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_may_not_be_read_is_named(public_place, capsys, name, mode, command, fault):
    (public_place / name).chmod(mode)
    with ordinary_user():
        line = refused(command, capsys)
    (public_place / name).chmod(0o755)
    assert re.search(fault, line), line
    assert not (public_place / "out").exists()


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: to those who write it is as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = {
    "the voxels of a scan": (PREDICT, 1000, r"ct\.nii: cannot be kept in .*volumes .*; make room"),
    "a result": (PREDICT.replace("ct.nii", "tiny.nii"), 200, r"out/m\.nii: cannot be written .*; check its folder"),
    "a checkpoint": (TRAIN, 500, r"out/best\.safetensors: cannot be written .*; check its folder"),
    "a state": (TRAIN, 2500, r"out/last\.pt: cannot be written .*; check its folder"),
    "a report on kernels": ("kernels unet.safetensors --out out", 5000, r"out/kernels\.json: cannot be written .*; ch"),
}


@pytest.mark.parametrize(("command", "size", "fault"), FULL.values(), ids=FULL)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(place, monkeypatch, capsys, command, size, fault):
    monkeypatch.chdir(place)
    save(place / "tiny.nii", some_scan()[:2, :2, :2])
    save_file({"weight": torch.randn(8, 8, 3, 3)}, place / "unet.safetensors")
    assert (
        main(command.replace(" out", " first").split()) == 0
    )  # what is compiled or cached is so before the disk is full
    with room(size):
        line = refused(command, capsys)
    assert re.search(fault, line), line
    assert not list(place.rglob(".partial*"))
    for path in (place / "out").glob("*.safetensors"):
        load_checkpoint(path)
    assert main(command.split()) == 0  # with room again
    if command == TRAIN:
        metrics = [(place / out / "metrics.json").read_text() for out in ("first", "out")]
        assert metrics[0] == metrics[1]


# -- bad scans on request left out ------------------------------------------------------------------------------------


def test_a_corrupt_scan_of_many_is_left_out_on_request_and_reported(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    save(place / "data" / "volume-4.nii", some_scan() + np.int16(4))
    save(place / "data" / "segmentation-4.nii", some_mask())
    cut(LAST, 0.6)(place)
    assert "volume-3.nii: voxels cannot be read" in refused(TRAIN, capsys)
    assert main([*TRAIN.split(), "--skip-bad"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsbook")]
    assert len(lines) == 1
    assert re.search(r"scan 3 is left out: data/volume-3\.nii: voxels cannot be read .*; it may be cut", lines[0])
    info = load_checkpoint(place / "out" / "best.safetensors")[2]
    assert info["left_out"] == ["3"]
    assert sorted(sum(info["scans"].values(), [])) == ["0", "1", "2", "4"]


def test_nothing_is_left_out_where_all_scans_are_good(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main([*TRAIN.split(), "--skip-bad"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert load_checkpoint(place / "out" / "best.safetensors")[2]["left_out"] == []


# -- unusual and right ------------------------------------------------------------------------------------------------

GRAYS = (2 * np.random.default_rng(1).integers(0, 50, SHAPE)).astype(np.int16)


def oblique(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 5], [s, c, 0, -7], [0, 0, 1, 9], [0, 0, 0, 1]]) @ AFFINE


def scaled(place: Path) -> None:
    scan = nib.Nifti1Image(GRAYS // 2 + 10, AFFINE)
    scan.header.set_slope_inter(2, -20)
    nib.save(scan, place / "ct.nii")


def turned(axes: list[list[int]]) -> Callable[[Path], object]:
    return lambda place: nib.save(nib.Nifti1Image(GRAYS, AFFINE).as_reoriented(np.array(axes)), place / "ct.nii")


def swapped(place: Path) -> None:
    scan = nib.Nifti1Image(GRAYS, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(scan, place / "ct.nii")


KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
# name: what writes GRAYS, and the file's name
ACCEPTED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{kind: (image("ct.nii", GRAYS.astype(kind)), "ct.nii") for kind in KINDS},
    "slope and intercept": (scaled, "ct.nii"),
    "big-endian": (swapped, "ct.nii"),
    "NIfTI-2": (image("ct.nii", GRAYS, kind=nib.Nifti2Image), "ct.nii"),
    "two files, by the header": (image("ct.hdr", GRAYS, kind=nib.Nifti1Pair), "ct.hdr"),
    "two files, by the image": (image("ct.hdr", GRAYS, kind=nib.Nifti1Pair), "ct.img"),
    "gzip": (image("ct.nii.gz", GRAYS), "ct.nii.gz"),
    "permuted": (turned([[2, 1], [0, 1], [1, 1]]), "ct.nii"),
    "flipped": (turned([[0, -1], [1, 1], [2, -1]]), "ct.nii"),
    "oblique": (image("ct.nii", GRAYS, oblique(20)), "ct.nii"),
    "spaces": (image("my scan.nii", GRAYS), "my scan.nii"),
    "no ASCII": (image("Bauch-CT Müller 腹部.nii.gz", GRAYS), "Bauch-CT Müller 腹部.nii.gz"),
}


@pytest.fixture
def half(place: Path) -> Path:
    """A checkpoint of a network that calls about half of GRAYS liver."""
    torch.manual_seed(0)
    model, way = build_model("unet", filters=4, depth=1), Preprocessing(16)
    plain = read_volume(save(place / "plain.nii", GRAYS))
    with torch.no_grad():
        found = model.eval()(way.images(plain)).logit()
        model.readout.bias -= found.median()
    info = {"model": "unet", "options": {"filters": 4, "depth": 1}, "preprocessing": INFO["preprocessing"]}
    save_checkpoint(place / "nét 1.safetensors", model, info)
    return place


@pytest.mark.parametrize(("make", "name"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_unusual_and_right_gives_the_usual_result(half, monkeypatch, capsys, make, name):
    monkeypatch.chdir(half)
    make(half)
    results = []
    for scan, out in (("plain.nii", "plain-mask.nii"), (name, "Ergebnis für Ä/mask of it.nii.gz")):
        assert main(["predict", "--weights", "nét 1.safetensors", "--image", scan, "--out", out]) == 0
        printed = capsys.readouterr()
        assert printed.err == "" and printed.out.startswith(f"{out}: liver of ")
        results.append(read_volume(out, labels=True))
    assert 0.1 < results[0].data.mean() < 0.9
    np.testing.assert_array_equal(results[0].data, results[1].data)
    written, given = nib.load(out), nib.load(name)
    np.testing.assert_allclose(written.affine, given.affine)
    assert isinstance(written, nib.Nifti2Image) == isinstance(given, nib.Nifti2Image)  # which may have longer axes


def test_a_folder_and_scans_with_spaces_and_letters_beyond_ascii(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "data").rename(place / "mes données")
    for path in list((place / "mes données").iterdir()):
        path.rename(path.with_name(path.name.replace("-3", "-Frau Øre 3")))
    command = TRAIN.split()
    command[command.index("data")] = "mes données"
    assert main([*command, "--same-patient", "0,Frau Øre 3", "--folds", "3", "--fold", "1"]) == 0
    info = load_checkpoint(place / "out" / "best.safetensors")[2]
    assert "Frau Øre 3" in sum(info["scans"].values(), [])
