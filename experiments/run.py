"""Runs jobs: trains or tunes, tests, and leaves one ``report.json`` in each job's folder.

A job is finished when its report is there; it is then never run again. A job is taken by a lock that the system gives
back when its process ends, however it ends, so several runs may work on one folder. A training that was cut goes on
from its last epoch (:func:`lsbook.training.train`).
"""

import argparse
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from scipy.ndimage import distance_transform_edt

from lsbook.__main__ import git_commit, usable, versions
from lsbook.checkpoints import load_checkpoint, save_checkpoint
from lsbook.ct import Preprocessing, Scan, SliceDataset, Split, find_scans, split
from lsbook.files import atomic_path
from lsbook.training import densest_point, train

from .classical import METHODS, Classical, tune
from .jobs import CLASSICAL, FOLDS, LEVEL_SET, RADIUS, RECIPES, STEPS, Job, Recipe
from .lse_search import SEARCHES, tune_lse
from .scoring import score_scan
from .variants import Follow, build, load
from .wider import WIDER


class Experiment:
    """Scans, folds and the folder of results, for all jobs.

    Args:
        scans: all scans.
        same_patient: names of the scans of one person, for each person with several.
        out: folder of the jobs' folders.
        known_spacing: whether distances in mm mean something.
        devices: processes or GPUs of one job on each node, as Lightning Fabric counts them.
        nodes: how many nodes work on one job; a launcher has started the processes there.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        same_patient: Sequence[Sequence[str]],
        out: Path,
        known_spacing: bool = True,
        devices: int = 1,
        nodes: int = 1,
    ):
        self.scans = {scan.name: scan for scan in scans}
        self.same_patient, self.out = same_patient, out
        self.known_spacing, self.devices = known_spacing, {"devices": devices, "num_nodes": nodes}

    def parts(self, job: Job) -> Split:
        """Names of the job's scans for training, validation and test."""
        return split(list(self.scans), job.fold, FOLDS, self.same_patient)

    def report(self, job: Job) -> Path:
        """The file that says that a job is finished."""
        return self.out / job.name / "report.json"

    def check_finished(self, job: Job) -> None:
        """Raise FileNotFoundError if the job is not finished: its network may still be in training."""
        if not self.report(job).is_file():
            raise FileNotFoundError(f"{self.report(job)}: the job is not finished: `python -m experiments run` it")

    def check_folds(self) -> None:
        """Raise ValueError if a job in the folder was finished with other folds: test scans would be training scans."""
        for path in sorted(self.out.glob("*/report.json")):
            report = read_json(path)
            if report["split"] != split(list(self.scans), report["job"]["fold"], FOLDS, self.same_patient)._asdict():
                raise ValueError(
                    f"{path}: finished with other folds than --data, --same-patient and --skip-bad give now; "
                    "give them as in that run, or another folder"
                )

    def datasets(self, job: Job) -> tuple[SliceDataset, SliceDataset]:
        """Slices for training and validation."""
        return tuple(
            SliceDataset([self.scans[name] for name in part], preprocessing(job)) for part in self.parts(job)[:2]
        )

    def run(self, job: Job) -> None:
        """One job, from where it stands to its report; nothing if another process is at it or has finished it.

        With several processes the first holds the lock for all.

        Raises:
            ValueError: if another run holds it, and other processes of this one would wait for the first for ever.
        """
        folder = self.out / job.name
        folder.mkdir(parents=True, exist_ok=True)
        with nullcontext(True) if rank_zero_only.rank else locked(folder / "lock") as mine:
            if not mine and max(self.devices.values()) > 1:
                raise ValueError(f"{folder}: another run is at work on this job; wait for its end, or take another")
            if mine and not self.report(job).is_file():
                train_set, validation_set = self.datasets(job)
                if job.model in CLASSICAL:
                    model, found = self.tuned(job, train_set)
                else:
                    model, found = self.trained(job, train_set, validation_set)
                if model is not None:
                    self.test(job, model, found)

    def tuned(self, job: Job, train_set: SliceDataset) -> tuple[Classical, dict]:
        """A classical peer with the settings that suit the training scans best."""
        started = time.process_time()
        center = densest_point(train_set)[:2]
        peer = (WIDER if job.change.get("search") == "wide" else METHODS)[job.model]
        found = tune(peer, train_set, center, seed=job.seed)
        model = Classical(peer, found.settings, center)
        about = {"options": found.settings, "center": center, "training_dice": found.dice, "tried": found.tried}
        return model, about | {"commit": git_commit(), "training_cpu_seconds": time.process_time() - started}

    def trained(self, job: Job, train_set: SliceDataset, validation_set: SliceDataset) -> tuple:
        """A network after its training; (None, ...) in a process that only helped to train it."""
        folder, recipe = self.out / job.name, recipe_of(job)
        clock = Clock(folder / "seconds.json")
        options, start_from = self.options(job, train_set)
        callbacks = [clock, *([Follow(folder / "epochs")] if job.change.get("follow") else [])]
        fabric = Fabric(accelerator="auto", precision=recipe.precision, callbacks=callbacks, **self.devices)
        about = {"fold": job.fold, "folds": FOLDS, "scans": self.parts(job)._asdict(), "job": job.name}
        about |= {"precision": recipe.precision} | versions()
        with clock:
            rows = train(
                job.model,
                options,
                train_set,
                validation_set,
                preprocessing(job),
                folder,
                epochs=recipe.epochs,
                seed=job.seed,
                batch=recipe.batch,
                rate=recipe.rate,
                provenance=about,
                fabric=fabric,
                start_from=start_from,
                augmentation=recipe.augmentation,
                build=build,
            )
        if fabric.global_rank:
            return None, {}
        model, info = load(folder / "best.safetensors")
        return fabric.to_device(model), {"checkpoint": info, "log": rows, "training_cpu_seconds": clock.total}

    def options(self, job: Job, train_set: SliceDataset) -> tuple[dict, Path | None]:
        """The model's options, and the weights that it starts from."""
        if job.model not in LEVEL_SET:
            return {key: value for key, value in job.change.items() if key in ("batch_norm", "within")}, None
        if job.below:
            path = self.out / job.below.name / "best.safetensors"
            below = load_checkpoint(path)[2]["options"]
            extra = {"checkpoint_every": 10} if job.model == "lsn" else {}
            return {key: below[key] for key in ("steps", "seed")} | extra, path
        seed = densest_point(train_set, job.change.get("radius", RADIUS))
        discs = covering_discs(train_set, job.change["discs"]) if "discs" in job.change else None
        if job.model == "lse":
            start = self.found(job, train_set, discs if "search_discs" in job.change else seed[:2])
            about = load_checkpoint(start)[2]
            options = about["options"] | about.get("gray", {})
        else:
            start, options = None, {"steps": STEPS, "seed": seed}
        if job.change.get("like") == "lse-g":
            options |= {"steps": STEPS, "seed": seed}
        options["steps"] = round(options["steps"] * job.change.get("steps", 1))
        return options | ({"seed": discs} if discs else {}), start

    def found(self, job: Job, train_set: SliceDataset, center: Sequence) -> Path:
        """A checkpoint of the LSE with the settings that suit the training scans best; training starts from it."""
        folder = self.out / job.name
        start = folder / "start.safetensors"
        if not start.is_file():
            with Clock(folder / "seconds.json"):
                ranges, steps = SEARCHES[job.change.get("search", "usual")]
                found = tune_lse(train_set, center, steps, seed=job.seed, ranges=ranges)
            options = dict(found.options)
            gray = {"likeness": options.pop("likeness")} if "likeness" in options else {}
            about = {"model": "lse", "options": options, "gray": gray, "preprocessing": asdict(preprocessing(job))}
            save_checkpoint(start, found.network(), about | {"training_dice": found.dice, "tried": found.tried})
        return start

    def test(self, job: Job, model: torch.nn.Module, found: dict) -> None:
        """Scores of the test scans, each kept as soon as it is known, then the report."""
        folder, scores = self.out / job.name, {}
        for name in self.parts(job).test:
            kept = folder / f"score-{name}.json"
            if not kept.is_file():
                write_json(kept, score_scan(model, preprocessing(job), self.scans[name], self.known_spacing))
            scores[name] = read_json(kept)
        found["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        write_json(
            self.report(job), {"job": asdict(job), "split": self.parts(job)._asdict()} | found | {"scans": scores}
        )


def recipe_of(job: Job) -> Recipe:
    """The recipe of the job's model, or of the one that it is to be like, with the job's change."""
    recipe = RECIPES[job.change.get("like", job.model)]
    return Recipe(**(asdict(recipe) | {key: v for key, v in job.change.items() if key in asdict(recipe)}))


def preprocessing(job: Job) -> Preprocessing:
    """How the job's slices are made."""
    return Preprocessing(job.change.get("size", 128))


def covering_discs(dataset: SliceDataset, count: int) -> list[tuple[float, float, float]]:
    """Seed discs (y, x, radius), as fractions, that cover the mean liver, the largest first.

    The mean liver holds the pixels that are liver in half of the slices. A disc may overlap earlier ones: its center is
    the farthest uncovered pixel from the mean liver's border.
    """
    mean = (sum(share for _, share in dataset)[0] / len(dataset)).numpy() > 0.5
    depth, size = distance_transform_edt(np.pad(mean, 1))[1:-1, 1:-1] - 0.5, len(mean)
    y, x = np.indices(mean.shape)
    open_, discs = depth.copy(), []
    while len(discs) < count and open_.max() > 1:
        cy, cx = np.unravel_index(open_.argmax(), mean.shape)
        discs.append(((cy + 0.5) / size, (cx + 0.5) / size, float(depth[cy, cx]) / size))
        open_[np.hypot(y - cy, x - cx) < depth[cy, cx]] = 0
    return discs


class Clock:
    """Adds the CPU seconds of a block to those of earlier, cut processes, kept in a file: at its end, and each epoch.

    Of a process that was killed, the seconds since its last epoch are lost. Of several processes the first counts.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "Clock":
        self.started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.keep()

    def on_epoch_end(self, model: torch.nn.Module, epoch: int) -> None:
        self.keep()

    def keep(self) -> None:
        """Write the seconds until now."""
        now = time.process_time()
        if not rank_zero_only.rank:
            write_json(self.path, self.total + now - self.started)
        self.started = now

    @property
    def total(self) -> float:
        return json.loads(self.path.read_text()) if self.path.is_file() else 0.0


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock of that file; the system frees it when the process ends, however it ends.

    Raises:
        OSError: if the file cannot be locked at all.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError as error:
            raise OSError(f"{path}: cannot be locked ({error.strerror}); give an --out on a disk with locks") from error
        else:
            yield True


def finished_runs(command: str, about: str) -> tuple[Experiment, Path]:
    """Experiment and file for the result, from the command line of an analysis of finished jobs; sets one thread."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{command}", description=about)
    parser.add_argument("runs", type=Path, help="--out of `python -m experiments run`")
    parser.add_argument("--data", type=Path, required=True, help="as in the run")
    parser.add_argument("--same-patient", action="append", default=[], metavar="N,M,...", help="as in the run")
    parser.add_argument("--skip-bad", action="store_true", help="as in the run")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups = [[name.strip() for name in group.split(",")] for group in args.same_patient]
    try:
        experiment = Experiment(scans_for(args.data, args.skip_bad), groups, args.runs)
        experiment.check_folds()
    except (OSError, ValueError) as error:
        parser.exit(2, f"experiments: {error}\n")
    return experiment, args.out


def scans_for(folder: Path, skip_bad: bool) -> list[Scan]:
    """The scans of a folder, without those that cannot be used if these are to be skipped."""
    return [scan for scan in find_scans(folder) if not skip_bad or usable(scan, Preprocessing())]


def read_json(path: Path) -> dict:
    """What a file holds.

    Raises:
        ValueError: if it is damaged; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it, and it is made again") from error


def write_json(path: Path, value: object) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value) + "\n")
