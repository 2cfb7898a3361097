"""Has ``lsbook`` read many hostile files (:mod:`deep.damage`): ``python -m deep.fuzz [INPUTS]``, 100,000 unless told.

Each is to be used or refused: with one of the documented errors, in one line that names the file, the fault and the
remedy. Everything else is a crash. So is one that takes more than 1 GiB beyond what the process held before, or more
than 20 seconds of CPU time.

Child processes read a chunk of inputs each. A chunk that is done stays in ``build/fuzz``: a run that was cut goes on.
The result is written to ``results/fuzz.json``.
"""

import hashlib
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
import torch

from lsbook.__main__ import versions
from lsbook.checkpoints import load_checkpoint
from lsbook.ct import Preprocessing
from lsbook.files import atomic_path
from lsbook.inference import segment
from lsbook.kernels import read_kernels
from lsbook.networks import build_model
from lsbook.nifti import Volume, read_volume, write_mask

from .damage import hostile_file, valid_files

ROOT = Path(__file__).parents[1]
RESULTS, WORK = ROOT / "results" / "fuzz.json", ROOT / "build" / "fuzz"
INPUTS, CHUNK, SECONDS, MEMORY = 100_000, 1000, 20, 2**30

# What a message of refusal holds, and the kind of fault that it is counted as
FAULTS = {
    "not a readable NIfTI": "no NIfTI file, or a header with a fault",
    "not three axes": "number of axes",
    "no usable orientation": "orientation or voxel size",
    "one real number": "colors or complex numbers",
    "its header asks for": "more voxels than the file can hold",
    "slices of more than": "too many voxels in a slice",
    "pixels as squares": "a slice that is too long",
    "voxels cannot be read": "voxels cut short or damaged",
    "NaN or infinite voxels": "NaN or infinite voxels",
    "a mask must hold": "voxels that are no labels",
    "not a checkpoint": "no checkpoint, or one with a fault",
    "output is not finite": "a network's output",
    "cannot be read as weights": "no file of weights",
    "no 3x3 convolution weights": "no kernels",
    "NaN or infinite weights": "NaN or infinite weights",
}


@cache
def small_network() -> torch.nn.Module:
    """A network for what is not about networks."""
    torch.manual_seed(0)
    return build_model("unet", filters=1, depth=1).eval()


def use_scan(path: Path) -> None:
    """Read a scan, segment it, write the mask and read it back."""
    volume = read_volume(path)
    assert volume.data.ndim == 3 and np.isfinite(volume.data).all() and np.isfinite(volume.spacing).all()
    mask = segment(small_network(), Preprocessing(16), volume)
    write_mask(path.with_name("mask.nii"), mask, volume)
    assert np.array_equal(read_volume(path.with_name("mask.nii"), labels=True).data, mask)


def use_mask(path: Path) -> None:
    """Read a mask and look at all of it."""
    assert set(np.unique(read_volume(path, labels=True).data)) <= {0, 1, 2}


def use_checkpoint(path: Path) -> None:
    """Load a checkpoint and segment with it; one that asks for large slices is only loaded."""
    model, preprocessing, _ = load_checkpoint(path)
    volume = Volume(np.zeros((4, 4, 2), np.float32), np.eye(4), path, nib.Nifti1Header(), np.eye(3))
    if preprocessing.size <= 64:
        assert segment(model, preprocessing, volume).shape == volume.data.shape


READERS: dict[str, Callable[[Path], object]] = {
    "scan": use_scan,
    "mask": use_mask,
    "checkpoint": use_checkpoint,
    "weights": read_kernels,
}


def verdict(reader: str, path: Path) -> str:
    """ "accepted", or the kind of fault that the file was refused for.

    Raises:
        AssertionError: if the message or what else was printed is not one line that names file, fault and remedy.
        Exception: whatever comes out of the reader that is not documented.
    """
    heard: list[logging.LogRecord] = []
    logger, handler = nib.imageglobals.logger, logging.Handler()
    handler.emit, before = heard.append, logger.handlers
    logger.handlers = [handler]
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            READERS[reader](path)
        message, kind = f"{path.name}: accepted;", "accepted"
    except (OSError, ValueError, FloatingPointError) as error:
        message = str(error)
        kind = next((kind for words, kind in FAULTS.items() if words in message), "")
    finally:
        logger.handlers = before
    assert kind and path.name in message and ";" in message and "\n" not in message, message
    assert not heard and not warned, f"{message} {[str(line) for line in (*heard, *warned)]}"
    return kind


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def read_chunk(numbers: list[int], folder: Path, at: Path) -> dict:
    """Counts, crashes and most memory of some inputs; the number in work is kept in the file ``at``."""
    counts, crashes, before = Counter(), {}, resident()
    for number in numbers:
        at.write_text(str(number))
        for clock, seconds in ((signal.ITIMER_PROF, SECONDS), (signal.ITIMER_REAL, 20 * SECONDS)):
            signal.setitimer(clock, seconds)  # without a handler it ends the process, wherever that is
        reader, name, content = hostile_file(Random(number))
        (folder / name).write_bytes(content)
        try:
            counts[f"{reader}: {verdict(reader, folder / name)}"] += 1
        except Exception as error:
            crashes[number] = f"{type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"counts": counts, "crashes": crashes, "most_bytes": most, "cpu_seconds": time.process_time()}


def in_child(numbers: list[int], folder: Path, result: Path) -> dict:
    """:func:`read_chunk` in a process of its own with little memory; an input that kills it is a crash."""
    killed: dict[int, str] = {}
    at = folder / "at"
    while not result.is_file():
        child = os.fork()
        if not child:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            found = read_chunk([number for number in numbers if number not in killed], folder, at)
            found["crashes"] |= killed
            with atomic_path(result) as partial:
                partial.write_text(json.dumps(found))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            killed[int(at.read_text())] = f"killed by signal {os.WTERMSIG(status)}"
    return json.loads(result.read_text())


def code_digest() -> str:
    """Of the code that is tested and of what damages the files: what was found with other code does not count."""
    sources = sorted([*(ROOT / "lsbook").glob("*.py"), *(ROOT / "deep").glob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def main(inputs: int) -> None:
    torch.set_num_threads(1)
    small_network()
    valid_files()
    if not os.fork():  # a process that has run compiled loops can have no children, so a child compiles them
        build_model("lse", steps=1)(torch.zeros(1, 1, 8, 8))
        os._exit(0)
    os.wait()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LSBOOK_CACHE"] = folder
        chunks, work = [], WORK / code_digest()
        for first in range(0, inputs, CHUNK):
            numbers = list(range(first, min(first + CHUNK, inputs)))
            chunks.append(in_child(numbers, Path(folder), work / f"{first}-{len(numbers)}.json"))
            print(f"{numbers[-1] + 1} inputs, {sum(len(c['crashes']) for c in chunks)} crashes", flush=True)
    counts = sum((Counter(chunk["counts"]) for chunk in chunks), Counter())
    report = {
        "date": date.today().isoformat(),
        **versions(),
        "inputs": inputs,
        "accepted": sum(n for kind, n in counts.items() if kind.endswith(": accepted")),
        "crashes": {number: text for chunk in chunks for number, text in chunk["crashes"].items()},
        "most_mib": round(max(chunk["most_bytes"] for chunk in chunks) / 2**20, 1),
        "cpu_seconds": round(sum(chunk["cpu_seconds"] for chunk in chunks)),
        "counts": dict(sorted(counts.items())),
    }
    with atomic_path(RESULTS) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS)
