"""Trainings and experiments, killed again and again, must end as if they had not been: ``python -m deep.kills``.

Each life of a program is a process of its own, forked from this one after the imports, and gets SIGKILL either at a
random moment or, from a random moment on, as soon as one of its files is half written. Then the same command is given
again, until a life ends by itself. After each kill every file that has its final name is read; at the end each file is
compared with that of an uncut run: weights, Adam's state, metrics and reports, bit for bit. Only seconds may differ.
Last, two processes are started in one folder.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from experiments import __main__ as experiment
from experiments import jobs, run
from lsbook import __main__ as command
from lsbook.ct import Preprocessing
from lsbook.files import atomic_path
from lsphantom.patients import write_cohort

PATIENTS = 9
RECIPES = {
    "unet": jobs.Recipe(8, rate=2e-3),
    "lse-g": jobs.Recipe(3, augmentation="gray"),
    "lsn": jobs.Recipe(2, rate=5e-4, augmentation="gray"),
}
PAUSE = 0.0005  # seconds between two looks for a file that is being written
LOCKS = (".lock", "lock")
TRAINS = "trains:"
Program = Callable[[Path, Path], int]


def train(cohort: Path, out: Path) -> int:
    """``python -m lsbook train`` for 16 epochs, then its test."""
    options = "--model unet --fold 0 --folds 3 --size 32 --epochs 16 --batch 4 --rate 2e-3"
    return command.main(["train", "--data", str(cohort), "--out", str(out), *options.split()])


def work(cohort: Path, out: Path) -> int:
    """``python -m experiments run`` for three of its jobs, one of which starts from the weights of another.

    Slices, epochs and steps are fewer than the experiment's, and the time plan is not measured.
    """
    run.RECIPES.update(RECIPES)
    run.STEPS = 20
    train = run.train

    def told(model: str, *given: object, **options: object) -> list[dict]:
        print(TRAINS, model, flush=True)
        return train(model, *given, **options)

    run.train = told
    run.preprocessing = lambda job: Preprocessing(32)
    everything = jobs.jobs(experiment.SETS.split(","))
    numbers = [n for n, job in enumerate(everything) if job.model in RECIPES and job.fold + job.seed == 0]
    numbers = [n for n in numbers if not everything[n].variant]
    run.write_json(out / "plan.json", {everything[n].model: {"cpu_seconds": 1} for n in numbers})
    chosen = [word for n in numbers for word in ("--job", str(n))]
    return experiment.main(["run", "--data", str(cohort), "--out", str(out), "--pixels", *chosen])


PROGRAMS: dict[str, Program] = {"train": train, "experiments": work}


def start(program: Program, cohort: Path, folder: Path) -> int:
    """A new life of the program in ``folder/out``, its cache and what it prints beside it; the process's number."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        with (folder / "printed.txt").open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["LSBOOK_CACHE"] = str(folder / "cache")
        status = program(cohort, folder / "out")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int | None:
    """The exit status of a life that has ended by itself, else None."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def partials(folder: Path, pid: int) -> list[str]:
    """Final names of the files that a process is writing, or was when it was killed."""
    return [path.name.split(f"-{platform.node()}-", 1)[1] for path in folder.rglob(f".partial-{pid}-*")]


def kill(pid: int, folder: Path, after: float, writing: bool) -> int | None:
    """Kill a life after so many seconds, or when it next writes a file after them; its status if it ended before."""
    began = time.monotonic()
    while time.monotonic() - began < after or (writing and not partials(folder, pid)):
        if (status := ended(pid)) is not None:
            return status
        time.sleep(PAUSE if writing and time.monotonic() - began > after else 0.005)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if status == -signal.SIGKILL else status


def plain(value: object) -> object:
    """A value in a form that can be compared, without times and the commit; tensors as type, shape and hash."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if "seconds" not in str(k) and k != "commit"}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def content(path: Path) -> object:
    """What a file holds, see :func:`plain`; fails if it is damaged."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return plain([tensors, json.loads(file.metadata()["lsbook"])])
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".npy":
        return plain(np.load(path))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.reader(file))
    return None if path.name == "seconds.json" else plain(json.loads(path.read_text()))


def files(folder: Path) -> dict[str, Path]:
    """The results and caches of a run by name; locks stay behind and hold nothing."""
    found = (path for part in ("out", "cache") for path in (folder / part).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found if path.name not in LOCKS}


def damaged(folder: Path) -> list[str]:
    """Files with their final name that cannot be read."""
    faults = []
    for name, path in files(folder).items():
        try:
            if not path.name.startswith(".partial-"):
                content(path)
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    return faults


def differences(folder: Path, uncut: Path) -> list[str]:
    """Files that one run has and the other has not, that hold something else, or that were left half written."""
    ours, theirs = files(folder), files(uncut)
    other = [name for name in sorted(ours.keys() & theirs.keys()) if content(ours[name]) != content(theirs[name])]
    return sorted(ours.keys() ^ theirs.keys()) + other


def epochs_done(folder: Path) -> int:
    """Epochs in the logs below a folder."""
    return sum(len(json.loads(path.read_text())) for path in (folder / "out").rglob("log.json"))


def kill_often(name: str, count: int, work_folder: Path, rng: random.Random) -> dict:
    """Kill a program ``count`` times, in as many runs as that takes; what was seen."""
    cohort, uncut, seconds = work_folder / "cohort", work_folder / f"{name}-uncut", 0.0
    for folder in (work_folder / f"{name}-warm", uncut):  # the first compiles the loops
        began = time.monotonic()
        assert os.waitpid(start(PROGRAMS[name], cohort, folder), 0)[1] == 0, (folder / "printed.txt").read_text()
        seconds = time.monotonic() - began
    found: dict = {"uncut_seconds": round(seconds, 2), "runs": 0, "kills": [], "damaged": [], "differences": []}
    while len(found["kills"]) < count or not found["runs"]:
        folder = work_folder / f"{name}-{found['runs']}"
        status = None
        while status is None:
            pid, writing, after = start(PROGRAMS[name], cohort, folder), rng.random() < 0.5, rng.uniform(0, seconds)
            more = len(found["kills"]) < count
            status = kill(pid, folder, after if more else 1e9, writing)
            if status is None:
                left = partials(folder, pid)
                row = {"run": found["runs"], "after_seconds": round(after, 2), "aimed_at_a_file": writing}
                found["kills"].append(row | {"epochs_done": epochs_done(folder), "half_written": left})
                found["damaged"] += damaged(folder)
        found["runs"] += 1
        found["differences"] += [f"status {status}"] if status else differences(folder, uncut)
        shutil.rmtree(folder)
    return found


def rivals(name: str, work_folder: Path, delay: float) -> dict:
    """Two processes in one folder, the second some seconds later: their statuses, and differences from an uncut run."""
    folder = work_folder / f"{name}-rivals"
    pids = [start(PROGRAMS[name], work_folder / "cohort", folder)]
    time.sleep(delay)
    pids.append(start(PROGRAMS[name], work_folder / "cohort", folder))
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    printed = (folder / "printed.txt").read_text().splitlines()
    refused, trained = (sum(word in line for line in printed) for word in ("another run", TRAINS))
    # one of two trainings is refused; of two experiments none is, and each job is trained once
    right = (sorted(statuses), refused, trained) == (([0, 2], 1, 0) if name == "train" else ([0, 0], 0, len(RECIPES)))
    found = {"delay_seconds": delay, "statuses": statuses, "refused": refused, "trained": trained, "right": right}
    found["differences"] = differences(folder, work_folder / f"{name}-uncut")
    shutil.rmtree(folder)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deep.kills", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/kills.json"))
    parser.add_argument("--kills", type=int, default=50, help="of all programs together (default 50)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng, began = random.Random(args.seed), time.monotonic()
    report: dict = {"date": date.today().isoformat(), "seed": args.seed} | command.versions()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_cohort(folder / "cohort", PATIENTS, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
        for number, name in enumerate(args.programs):
            share = (args.kills + number) // len(args.programs)
            report[name] = kill_often(name, share, folder, rng)
            delays = (0.0, report[name]["uncut_seconds"] / 2)
            report[name]["two_in_one_folder"] = [rivals(name, folder, delay) for delay in delays]
    runs = [report[name] for name in args.programs]
    kills = [row for found in runs for row in found["kills"]]
    pairs = [pair for found in runs for pair in found["two_in_one_folder"]]
    summary = {"kills": len(kills), "while_writing": sum(bool(row["half_written"]) for row in kills)}
    summary |= {key: sum(len(found[key]) for found in runs) for key in ("damaged", "differences")}
    summary["differences"] += sum(len(pair["differences"]) for pair in pairs)
    summary["wrong_pairs"] = sum(not pair["right"] for pair in pairs)
    summary["seconds"] = round(time.monotonic() - began)
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps(report | {"summary": summary}, indent=1) + "\n")
    print(json.dumps(summary))
    return int(summary["damaged"] + summary["differences"] + summary["wrong_pairs"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
