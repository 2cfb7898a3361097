"""The plan of time: seconds of one epoch of each network, measured before anything is run, and what is left to do."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric

from lsbook.augmentation import AUGMENTATIONS
from lsbook.training import make_optimizer, segmentation_loss

from .jobs import CLASSICAL, LEVEL_SET, STEPS, Job
from .lse_search import SEARCHES
from .run import Experiment, preprocessing, recipe_of, write_json
from .variants import build

SEARCH_SECONDS = 240  # of a classical peer or of the LSE's settings; their budget, not a measurement
REPEATS = 3


def seconds_per_slice(job: Job) -> float:
    """CPU seconds of a training step, forward and backward, per slice: the least of REPEATS after a first one."""
    recipe, size = recipe_of(job), preprocessing(job).size
    fabric = Fabric(accelerator="auto", devices=1, precision=recipe.precision)
    search = SEARCHES[job.change.get("search", "usual")]
    most = search[1] if job.model == "lse" else STEPS  # the LSE finds its own number, up to that
    options = {"steps": round(most * job.change.get("steps", 1))} if job.model in LEVEL_SET else {}
    bare = build(job.model, **options)
    model, optimizer = fabric.setup(bare, make_optimizer(bare, recipe.rate))
    image, share = torch.zeros(recipe.batch, 1, size, size), torch.zeros(recipe.batch, 1, size, size)
    share[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        optimizer.zero_grad()
        changed, target = AUGMENTATIONS[recipe.augmentation](image, share)
        fabric.backward(segmentation_loss(model(fabric.to_device(changed)), fabric.to_device(target)))
        optimizer.step()
        seconds.append(time.process_time() - started)
    return min(seconds[1:]) / recipe.batch


def make_plan(experiment: Experiment, wanted: Sequence[Job], path: Path, known: dict[str, dict]) -> dict[str, dict]:
    """CPU seconds of an epoch and of a whole training by kind of job, written to ``path`` with those that are known."""
    plan = dict(known)
    for job in wanted:
        if job.kind in plan:
            continue
        if job.model in CLASSICAL:
            plan[job.kind] = {"cpu_seconds": SEARCH_SECONDS}
            continue
        slices = len(experiment.datasets(job)[0])
        epoch = seconds_per_slice(job) * slices
        epochs = recipe_of(job).epochs
        total = epoch * epochs + (SEARCH_SECONDS if job.model == "lse" else 0)
        plan[job.kind] = {"slices": slices, "cpu_seconds_per_epoch": epoch, "epochs": epochs}
        plan[job.kind]["cpu_seconds"] = total
    write_json(path, plan)
    return plan


def progress(experiment: Experiment, wanted: Sequence[Job], plan: dict[str, dict]) -> str:
    """What is done, what is left, and the CPU time that it needs by the plan."""
    left = [job for job in wanted if not experiment.report(job).is_file()]
    seconds = sum(plan[job.kind]["cpu_seconds"] for job in left)
    kinds = ", ".join(sorted({job.kind for job in left}))
    done = f"{len(wanted) - len(left)} of {len(wanted)} jobs are done"
    return f"{done}; left: {kinds}; about {seconds / 3600:.1f} CPU hours" if left else f"{done}."
