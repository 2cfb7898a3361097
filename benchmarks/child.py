"""One piece of work in a process of its own, whose peak memory is printed: ``python -m benchmarks.child WORK ...``."""

import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_kib() -> int:
    """Most resident memory so far: since :func:`reset` where the system can, else since the start."""
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def reset() -> int:
    """Forget the peak so far (Linux; elsewhere it stays); returns the resident memory now."""
    gc.collect()
    if RESET.is_file():
        RESET.write_text("5")
    return peak_kib()


def mib_since(before: int) -> float:
    """Peak memory above an earlier level, one page at least."""
    return max(peak_kib() - before, 4) / 1024


def training(method: str, size: str, batch: str, steps: str) -> dict:
    """A training step of :mod:`benchmarks.training`, its inputs counted as well."""
    from .training import training_step

    training_step(method, 16, 1, 4)()  # compiles, and loads what is loaded late
    before = reset()
    training_step(method, int(size), int(batch), int(steps))()
    return {"peak_mib": mib_since(before)}


def scan(suffix: str, slices: str, side: str) -> dict:
    """Segment a generated scan of so many slices, read from a file, as ``python -m lsbook predict`` does."""
    from lsbook.ct import Preprocessing
    from lsbook.networks import build_model

    from .networks import predict, write_scan

    with tempfile.TemporaryDirectory() as folder:
        image, small = Path(folder) / f"scan{suffix}", Path(folder) / f"small{suffix}"
        write_scan(image, int(slices), int(side))
        write_scan(small, 2, 64)
        model, preprocessing = build_model("unet"), Preprocessing(128)
        predict(model, preprocessing, small, Path(folder) / f"small-mask{suffix}")  # loads what is loaded late
        before, started = reset(), time.perf_counter()
        predict(model, preprocessing, image, Path(folder) / f"mask{suffix}")
        seconds = time.perf_counter() - started
    return {"peak_mib": mib_since(before), "seconds": seconds}


def differences(size: str, batch: str) -> dict:
    """The stacked convolution alone, some times, on one thread: for its library's log."""
    import torch

    from lsbook.stencils import differences, kernel_bank

    torch.set_num_threads(1)
    u, bank = torch.rand(int(batch), 1, int(size), int(size)), kernel_bank().float()
    for _ in range(10):
        differences(u, bank)
    return {}


WORKS = {"differences": differences, "training": training, "scan": scan}

if __name__ == "__main__":
    print(json.dumps(WORKS[sys.argv[1]](*sys.argv[2:])))
