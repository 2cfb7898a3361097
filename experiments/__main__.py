"""``python -m experiments {list,run,merge}``: the experiment on liver CT, job by job."""

import argparse
import sys
from pathlib import Path

import torch

from .jobs import Job, jobs
from .merge import merge
from .plan import make_plan, progress
from .run import Experiment, read_json, scans_for

SETS = "main,classical,seeds,ablations,fine,kernels,solver,tuning"


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    c = commands.add_parser("list", help="the jobs, with their numbers")
    c.add_argument("--sets", default=SETS, help=f"sets of jobs, in the order of their work (default {SETS})")

    c = commands.add_parser("run", help="run the jobs that are not finished; go on where they were cut")
    c.add_argument("--data", type=Path, required=True, help="folder laid out as LiTS or as MSD Task03")
    c.add_argument("--out", type=Path, required=True, help="folder of the jobs' folders; several runs may share it")
    c.add_argument("--sets", default=SETS, help="as in list")
    c.add_argument("--job", type=int, action="append", help="only the job of this number in the list; may be repeated")
    c.add_argument("--same-patient", action="append", default=[], metavar="N,M,...", help="scans of one person")
    c.add_argument(
        "--pixels", action="store_true", help="the scans' spacing is not known: distances in pixels, by slice"
    )
    c.add_argument("--skip-bad", action="store_true", help="leave out scans that cannot be used, and name them")
    c.add_argument("--devices", type=int, default=1, help="processes or GPUs of one job on each node (default 1)")
    c.add_argument("--nodes", type=int, default=1, help="nodes that a launcher such as torchrun started for one job")
    c.add_argument("--threads", type=int, default=1, help="threads of one process (default 1)")

    c = commands.add_parser("merge", help="gather finished jobs, also from several folders, into results")
    c.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="--out of the runs")
    c.add_argument("--same-patient", action="append", default=[], metavar="N,M,...", help="as in the runs")
    c.add_argument("--out", type=Path, required=True, help="folder for liver.json, liver-slices.csv and weights/")
    return main


def run(args: argparse.Namespace, wanted: list[Job], groups: list[list[str]]) -> None:
    """All jobs; one whose lower rung is in work elsewhere is passed over and tried again."""
    torch.set_num_threads(args.threads)
    scans, shared = scans_for(args.data, args.skip_bad), {"devices": args.devices, "nodes": args.nodes}
    experiment = Experiment(scans, groups, args.out, not args.pixels, **shared)
    args.out.mkdir(parents=True, exist_ok=True)
    experiment.check_folds()
    path = args.out / "plan.json"
    plan = read_json(path) if path.is_file() else {}
    if not {job.kind for job in wanted} <= plan.keys():
        plan = make_plan(experiment, wanted if plan else jobs(SETS.split(",")), path, plan)

    def left() -> list[Job]:
        return [job for job in wanted if not experiment.report(job).is_file()]

    before = None
    while (todo := left()) and todo != before:  # until a pass finishes nothing: the rest is in work elsewhere
        before = todo
        for job in todo:
            if not job.below or experiment.report(job.below).is_file():
                print(progress(experiment, wanted, plan), flush=True)
                experiment.run(job)
    print(progress(experiment, wanted, plan))


def main(argv: list[str] | None = None) -> int:
    """Run one command; a fault of the input gives one line on standard error and status 2."""
    args = parser().parse_args(argv)
    try:
        wanted = jobs(args.sets.split(",")) if args.command != "merge" else []
        groups = [[name.strip() for name in group.split(",")] for group in getattr(args, "same_patient", [])]
        if args.command == "list":
            print("\n".join(f"{number} {job.name}" for number, job in enumerate(wanted)))
        elif args.command == "merge":
            merge(args.folders, args.out, groups)
        else:
            chosen = wanted if args.job is None else [wanted[number] for number in args.job]
            if args.devices * args.nodes > 1 and len(chosen) > 1:
                raise ValueError("with several processes run one job a time: name it by --job")
            run(args, chosen, groups)
    except IndexError:
        print(f"experiments: no job has that number; there are {len(wanted)}, from 0", file=sys.stderr)
        return 2
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
