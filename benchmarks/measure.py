"""How time, memory and a machine are measured."""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numba
import torch

from . import child

ROOT = Path(__file__).parents[1]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Plan(NamedTuple):
    """What a group is asked to do.

    Attributes:
        quick: tiny sizes; the numbers mean nothing.
        repeats: rounds; in each every form runs once, in turn.
        threads: numbers of threads to measure with.
        data: a folder of CT scans, or None for phantoms alone.
        same_patient: groups of scans of one person.
        done: results of the groups that ran before, by name.
    """

    quick: bool
    repeats: int
    threads: list[int]
    data: Path | None
    same_patient: list[list[str]]
    done: dict[str, dict]


def seconds_each(runs: dict[str, Callable[[], object]], repeats: int, at_least: float = 0.05) -> dict[str, list[float]]:
    """Seconds of one call of each run, ``repeats`` times, taken in turns so that a slow minute slows all of them.

    Each is called once beforehand. A sample is the mean over as many calls as ``at_least`` seconds hold.
    """
    calls, samples = {}, {name: [] for name in runs}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        calls[name] = max(1, math.ceil(at_least / (time.perf_counter() - started)))
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - started) / calls[name])
    return samples


def times(samples: list[float], per: float = 1.0) -> dict:
    """The two numbers of a row: least and median, in ms per ``per``-th of a call."""
    return {"min_ms": 1e3 * min(samples) / per, "median_ms": 1e3 * statistics.median(samples) / per}


def ratio(rows: list[dict], slow: dict, fast: dict) -> dict:
    """How many times the first row's time the second's fits in, by medians and by least times.

    The rows are named by the fields that single them out.
    """
    found = []
    for wanted in (slow, fast):
        (row,) = [row for row in rows if wanted.items() <= row.items()]
        found.append(row)
    return {
        "reached": found[0]["median_ms"] / found[1]["median_ms"],
        "by_minimum": found[0]["min_ms"] / found[1]["min_ms"],
    }


def target(name: str, wanted: float, reached: float, at_least: bool = True, **more: float) -> dict:
    """A target of the project and how near a run came to it."""
    met = reached >= wanted if at_least else reached <= wanted
    return {"name": name, "sense": "at least" if at_least else "at most", "target": wanted} | {
        "reached": reached,
        "met": bool(met),
        **more,
    }


def slope(x: list[float], y: list[float]) -> float:
    """Exponent p of y ~ x^p by least squares in logarithms."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch and numba on so many threads, inside."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def peak_of(plan: Plan, work: str, *arguments: object) -> dict:
    """Run one work of :mod:`benchmarks.child` in a fresh process (if quick, in this one): peak memory and more."""
    if plan.quick:
        return child.WORKS[work](*map(str, arguments))
    command = [sys.executable, "-m", "benchmarks.child", work, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """The processor's own name."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def caches() -> dict[str, str]:
    """Sizes of the data caches of the first core, where the system tells them: {"L1": "48K", ...}."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def machine() -> dict:
    """Facts of the machine that numbers depend on; neither its name nor its paths."""
    packages = ("torch", "numba", "numpy", "SimpleITK", "scikit-image", "monai")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
