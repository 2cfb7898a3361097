"""``python -m benchmarks``: measure, print a table, store."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lsbook.__main__ import git_commit
from lsbook.files import atomic_path

from . import contours, forward, networks, training
from .measure import ROOT, Plan, machine

GROUPS: dict[str, Callable[[Plan], dict]] = {
    "roofline": forward.roofline,
    "forward": forward.forward,
    "library": forward.library,
    "terms": forward.terms,
    "size": forward.size,
    "iteration": contours.iteration,
    "tuning": contours.tuning,
    "contours": contours.contours,
    "training": training.training,
    "memory": training.memory,
    "unet": networks.unet,
    "scan": networks.scan,
    "kernels": networks.kernels,
}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    main.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME", help=", ".join(GROUPS))
    main.add_argument("--resume", action="store_true", help="leave out groups that this commit has already stored")
    main.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    main.add_argument("--repeats", type=int, default=15, help="rounds of each measurement (default 15)")
    most = min(2, os.cpu_count() or 1)
    main.add_argument("--threads", type=int, nargs="+", default=sorted({1, most}), help="default 1 2, where it can")
    main.add_argument("--data", type=Path, help="a folder of CT scans, to compare contours on; else only phantoms")
    main.add_argument(
        "--same-patient", action="append", default=[], metavar="A,B", help="scans of one person; may be repeated"
    )
    main.add_argument("--out", type=Path, default=ROOT / "results" / "speed.json")
    return main


def shown(value: object) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"[{len(value)}]" if isinstance(value, list | dict) else str(value)


def table(rows: list[dict]) -> str:
    """Rows as aligned columns, one block for each set of columns."""
    lines, columns = [], None
    widths = {key: max(len(key), *(len(shown(row[key])) for row in rows if key in row)) for row in rows for key in row}
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines.append("  " + "  ".join(key.ljust(widths[key]) for key in columns))
        lines.append("  " + "  ".join(shown(row[key]).ljust(widths[key]) for key in columns))
    return "\n".join(lines)


def rounded(value: object) -> object:
    """Numbers to five digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def store(path: Path, name: str, group: dict) -> None:
    """Put a group into the file, beside those that are there."""
    groups = json.loads(path.read_text())["groups"] if path.is_file() else {}
    groups[name] = rounded(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(
            json.dumps({"groups": {key: groups[key] for key in GROUPS if key in groups}}, indent=1) + "\n"
        )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    facts, commit = machine(), git_commit()
    for name in args.only:
        done = json.loads(args.out.read_text())["groups"] if args.out.is_file() else {}
        if args.resume and name in done and done[name]["commit"] == commit and done[name]["quick"] == args.quick:
            continue
        plan = Plan(
            args.quick,
            2 if args.quick else args.repeats,
            args.threads,
            args.data,
            [group.split(",") for group in args.same_patient],
            done,
        )
        load, started = os.getloadavg()[0], time.perf_counter()
        measured = GROUPS[name](plan)
        seconds = time.perf_counter() - started
        circumstances = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "quick": args.quick,
            "repeats": plan.repeats,
            "load": [load, os.getloadavg()[0]],
            "seconds": seconds,
            "machine": facts,
        }
        store(args.out, name, circumstances | measured)
        print(f"\n{name}  ({seconds:.0f} s, load {load:.1f})")
        print(table(measured["rows"]))
        if measured["targets"]:
            print(table(measured["targets"]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
