"""The forward step: against its other forms, against copying, against its own parts, against its size."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

from lsbook.loops import prepare
from lsbook.stepping import advance

from .forms import PARTS, copy, example, forms, multiply_and_add, repeated
from .measure import ROOT, Plan, ratio, seconds_each, slope, target, threads, times

DT = 0.2
SIZE = 256
STEPS = 50


@torch.no_grad()
def roofline(plan: Plan) -> dict:
    """The ceilings: arithmetic in registers and in a product of matrices, bytes as a copy moves them. One thread."""
    side, far, size = (64, 2**18, 64) if plan.quick else (768, 2**26, SIZE)
    a, big, other = torch.rand(side, side), torch.zeros(far), torch.ones(far)
    x, y, one, zero = np.ones((4, 512), np.float32), np.ones((4, 512), np.float32), np.float32(1), np.float32(0)
    runs = {
        "multiply and add": (lambda: multiply_and_add(x, y, one, zero, 100), 100 * 512 * 256, "Gflop/s"),
        "matrix product": (lambda: a @ a, 2 * side**3, "Gflop/s"),
        "copy in the cache": (copy(size, 1, STEPS), STEPS * 24 * size**2, "GB/s"),
        "copy in memory": (lambda: big.copy_(other), 8 * far, "GB/s"),
        "fused step": (forms(size, 1, DT, STEPS, compiler=False)["fused"][0], STEPS * size**2, "10^9 pixels/s"),
    }
    with threads(1):
        samples = seconds_each({name: run for name, (run, _, _) in runs.items()}, plan.repeats, 0.02)
    rows = [
        {"name": name, "unit": unit, "best": amount / min(samples[name]) / 1e9}
        for name, (_, amount, unit) in runs.items()
    ]
    return {"rows": rows, "targets": []}


def check(results: dict[str, Callable[[], object]]) -> None:
    """All forms of one step must agree, or their times mean nothing."""
    first, *others = (torch.as_tensor(np.asarray(run())) for run in results.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-4)


@torch.no_grad()
def forward(plan: Plan) -> dict:
    """ms per step of each form at batch 1 and 16 on one and two threads, and of copying what a step moves."""
    size, steps = (32, 4) if plan.quick else (SIZE, STEPS)
    rows = []
    for count in plan.threads:
        with threads(count):
            for batch in (1, 16):
                torch.compiler.reset()
                check({name: run for name, (run, _) in forms(size, batch, DT, 1, not plan.quick).items()})
                runs = forms(size, batch, DT, steps, not plan.quick)
                runs["copy of 24 B per pixel"] = copy(size, batch, steps, count), steps
                samples = seconds_each({name: run for name, (run, _) in runs.items()}, plan.repeats)
                rows += [
                    {"form": name, "batch": batch, "threads": count, "steps": runs[name][1]}
                    | times(samples[name], runs[name][1])
                    for name in runs
                ]
    most = plan.threads[-1]
    targets = []
    for batch, wanted in ((1, 25), (16, 90)):
        for count in plan.threads:
            here = {"batch": batch, "threads": count}
            against = ratio(rows, {"form": "stacked convolution"} | here, {"form": "fused"} | here)
            targets.append(target(f"stacked convolution / fused, batch {batch}, threads {count}", wanted, **against))
    for batch in (1, 16):
        here = {"batch": batch, "threads": most}
        for name in ("NumPy, the reference", "NumPy, lean"):
            against = ratio(rows, {"form": name} | here, {"form": "fused"} | here)
            targets.append(target(f"{name} / fused, batch {batch}", 30, **against))
        for count in plan.threads:
            here = {"batch": batch, "threads": count}
            against = ratio(rows, {"form": "copy of 24 B per pixel"} | here, {"form": "fused"} | here)
            targets.append(target(f"copy / fused, batch {batch}, threads {count}", 0.3, **against))
    return {"size": size, "rows": rows, "targets": targets}


@torch.no_grad()
def library(plan: Plan) -> dict:
    """What the stacked convolution is made of: oneDNN's own log of one call, and memory pages asked of the system."""
    size, rows = 32 if plan.quick else SIZE, []
    for batch in (1, 16):
        command = [sys.executable, "-m", "benchmarks.child", "differences", str(size), str(batch)]
        log = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"ONEDNN_VERBOSE": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
        parts: dict[tuple, list[float]] = {}
        for line in log.stdout.splitlines():
            fields = line.split(",")
            if fields[:4] == ["onednn_verbose", "v1", "primitive", "exec"] and ",7x1x3x3," not in line:
                channels = re.search(r"aBcd(\d+)b", line)
                key = fields[5], fields[6], int(channels[1]) if channels else None
                parts.setdefault(key, []).append(float(fields[-1]))
        rows += [
            {"batch": batch, "part": part, "by": by, "channels": channels, "min_ms": min(spent)}
            for (part, by, channels), spent in parts.items()
        ]
    for name in ("stacked convolution", "fused"):
        for batch in (1, 16):
            run, steps = forms(size, batch, DT, STEPS, compiler=False)[name]
            run()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                run()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            rows.append({"form": name, "batch": batch, "pages_per_step": faults / 5 / steps})
    return {"size": size, "rows": rows, "targets": []}


def terms(plan: Plan) -> dict:
    """ms of loops that do part of a step's work: the profile that says where its time goes. One thread."""
    size = 32 if plan.quick else SIZE
    u, _, v = example(size)
    fields, constants = [field[0, 0].numpy() for field in v], prepare(u, DT, 1.0, 1.0)
    p = np.pad(u[0, 0].numpy(), 1, mode="edge")

    def run(part: Callable) -> Callable[[], None]:
        return lambda: repeated(part, p.copy(), p.copy(), *fields, constants, STEPS)

    runs = {name: run(part) for name, part in PARTS.items()} | {"copy of 24 B per pixel": copy(size, 1, STEPS)}
    with threads(1):
        samples = seconds_each(runs, plan.repeats)
    rows = [{"part": name} | times(samples[name], STEPS) for name in runs]
    return {"size": size, "rows": rows, "targets": []}


@torch.no_grad()
def size(plan: Plan) -> dict:
    """ms per step of one image from 64 x 64 to 1024 x 1024 pixels, one thread."""
    sizes = (16, 32, 48) if plan.quick else (64, 96, 128, 192, 256, 384, 512, 724, 1024)
    runs = {}
    for side in sizes:
        u, _, v = example(side)
        for method, steps in (("fused", STEPS), ("stacked", 1)):
            runs[method, side] = lambda u=u, v=v, m=method, n=steps: advance(u, v, DT, n, method=m), steps
    with threads(1):
        samples = seconds_each({key: run for key, (run, _) in runs.items()}, plan.repeats)
    rows = [
        {"form": method, "side": side} | times(samples[method, side], steps)
        for (method, side), (_, steps) in runs.items()
    ]
    own = [row for row in rows if row["form"] == "fused"]
    exponent = slope([row["side"] ** 2 for row in own], [row["min_ms"] for row in own])
    return {"rows": rows, "targets": [target("time of fused ~ pixels ^", 1.1, exponent, at_least=False)]}
