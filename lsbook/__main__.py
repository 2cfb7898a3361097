"""The command line: ``python -m lsbook {train,predict,evaluate,kernels,sample,warm}``."""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from lsphantom.patients import write_cohort

from . import __version__
from .augmentation import AUGMENTATIONS
from .checkpoints import load_checkpoint
from .ct import Preprocessing, Scan, SliceDataset, find_scans, prepared_scan, split
from .files import atomic_path, cache_folder
from .inference import score_scan, segment
from .levelset import speeds
from .metrics import compare
from .networks import MODELS, build_model
from .nifti import one_line, read_volume, write_mask
from .sample import prefetch
from .stepping import advance
from .training import densest_point, train


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m lsbook", description="Level set networks on liver CT.")
    main.add_argument("--version", action="version", version=f"lsbook {__version__}")
    commands = main.add_subparsers(dest="command", required=True)

    c = commands.add_parser("train", help="train a model on one fold, then test it on the held-out scans")
    c.add_argument("--data", required=True, help="folder laid out as LiTS or MSD, or the word 'phantom'")
    c.add_argument("--model", required=True, choices=MODELS)
    c.add_argument("--fold", type=int, default=0, help="number of the fold that is tested, from 0 (default 0)")
    c.add_argument("--folds", type=int, default=5)
    c.add_argument("--size", type=int, default=128, help="side of the working slices in pixels (default 128)")
    c.add_argument("--window", type=float, nargs=2, default=(-40.0, 160.0), metavar=("LOW", "HIGH"), help="in HU")
    c.add_argument("--epochs", type=int, default=10)
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--batch", type=int, default=16)
    c.add_argument("--rate", type=float, default=1e-3, help="Adam's step (default 1e-3)")
    c.add_argument("--all-slices", action="store_true", help="not only the slices of the liver's range")
    c.add_argument("--steps", type=int, default=100, help="time steps of a level set network (default 100)")
    c.add_argument("--contrast", type=float, default=0.05, help="edge scale of LSE, per pixel (default 0.05)")
    c.add_argument("--seed-radius", type=float, default=0.06, help="of the first disc, as a fraction of the size")
    c.add_argument("--skip-bad", action="store_true", help="leave out scans that cannot be used, and name them")
    c.add_argument("--same-patient", action="append", default=[], metavar="N,M,...", help="scans of one person")
    c.add_argument("--start-from", type=Path, help="checkpoint whose weights the model takes over where it has them")
    c.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), help="default: all for U-Nets, gray for the others")
    c.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed", "16-mixed"))
    c.add_argument("--devices", default="1", help="processes or GPUs of a node, as Fabric counts them (default 1)")
    c.add_argument("--nodes", type=int, default=1, help="nodes, started by a launcher such as torchrun (default 1)")
    c.add_argument("--out", type=Path, required=True)

    c = commands.add_parser("predict", help="segment a scan; the result is on the scan's own grid")
    c.add_argument("--weights", type=Path, required=True, help="best.safetensors of a training")
    c.add_argument("--image", type=Path, required=True)
    c.add_argument("--out", type=Path, required=True)

    c = commands.add_parser("evaluate", help="compare two masks; JSON on standard output")
    c.add_argument("--reference", type=Path, required=True)
    c.add_argument("--prediction", type=Path, required=True)

    c = commands.add_parser("kernels", help="which stencils are the kernels of a network? writes JSON and a web page")
    c.add_argument("file", type=Path, metavar="FILE", help="weights (out, in, 3, 3) as .safetensors or .npz")
    c.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for kernels.json and kernels.html")

    c = commands.add_parser("sample", help="fetch sample CT scans into the cache")
    c.add_argument("names", nargs="*", default=["totalseg", "lits117"], metavar="NAME", help="totalseg, lits117")

    commands.add_parser("warm", help="compile the level set steps once, so that nobody waits for it later")
    return main


def command_train(args: argparse.Namespace) -> None:
    if args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: train for at least one epoch")
    folder = write_cohort(cache_folder("phantom")) if args.data == "phantom" else Path(args.data)
    preprocessing, found = Preprocessing(args.size, *args.window), find_scans(folder)
    scans = {scan.name: scan for scan in found if not args.skip_bad or usable(scan, preprocessing)}
    groups = [[name.strip() for name in group.split(",")] for group in args.same_patient]
    names = split(list(scans), args.fold, args.folds, groups)
    parts = [SliceDataset([scans[n] for n in part], preprocessing, args.all_slices) for part in names[:2]]
    is_unet = args.model.startswith("unet")
    options = {} if is_unet else {"steps": args.steps, "seed": densest_point(parts[0], args.seed_radius)}
    options |= {"lse": {"contrast": args.contrast}, "lsn": {"checkpoint_every": 10}}.get(args.model, {})
    provenance = {key: getattr(args, key) for key in ("fold", "folds", "all_slices", "precision")} | versions()
    provenance |= {"data": args.data if args.data == "phantom" else folder.name, "scans": names._asdict()}
    provenance |= {"left_out": [scan.name for scan in found if scan.name not in scans]} if args.skip_bad else {}
    devices = {"devices": args.devices if args.devices == "auto" else int(args.devices), "num_nodes": args.nodes}
    fabric = Fabric(accelerator="auto", precision=args.precision, **devices)
    settings = {key: getattr(args, key) for key in ("epochs", "seed", "batch", "rate", "start_from")}
    settings |= {"augmentation": args.augmentation or ("all" if is_unet else "gray"), "provenance": provenance}
    rows = train(args.model, options, *parts, preprocessing, args.out, fabric=fabric, **settings)
    if fabric.global_rank == 0:
        if rows[-1]["loss"] > rows[0]["loss"]:
            told = f"the loss rose from {rows[0]['loss']:.4g} to {rows[-1]['loss']:.4g}"
            print(f"lsbook: {told}; the epoch of the best validation is kept, lower --rate", file=sys.stderr)
        model, _, info = load_checkpoint(args.out / "best.safetensors")
        results = {name: score_scan(fabric.to_device(model), preprocessing, scans[name]) for name in names.test}
        means = {key: float(np.mean([r[key] for r in results.values()])) for key in next(iter(results.values()))}
        report = {"mean": means, "scans": results, "epochs": len(rows), "checkpoint": info}
        report["parameters"] = sum(p.numel() for p in model.parameters())
        with atomic_path(args.out / "metrics.json") as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({"model": args.model, "fold": args.fold, **means}))


def usable(scan: Scan, preprocessing: Preprocessing) -> bool:
    """Whether the slices of a scan can be prepared; if not, the reason goes to standard error in one line."""
    try:
        return bool(prepared_scan(scan, preprocessing))
    except (PermissionError, ValueError) as error:
        print(f"lsbook: scan {scan.name} is left out: {error}", file=sys.stderr)
        return False


def command_predict(args: argparse.Namespace) -> None:
    model, preprocessing, _ = load_checkpoint(args.weights)
    volume = read_volume(args.image)
    mask = segment(model, preprocessing, volume)
    write_mask(args.out, mask, volume)
    print(f"{args.out}: liver of {mask.sum() * np.prod(volume.spacing) / 1000:.0f} ml in {volume.data.shape[2]} slices")


def command_evaluate(args: argparse.Namespace) -> None:
    reference, prediction = (read_volume(path, labels=True) for path in (args.reference, args.prediction))
    if reference.data.shape != prediction.data.shape:
        shapes = f"shape {prediction.data.shape}, the reference {reference.data.shape}"
        raise ValueError(f"{args.prediction}: has {shapes}; resample it to that grid")
    if not np.allclose(reference.affine, prediction.affine, atol=1e-2):
        raise ValueError(f"{args.prediction}: lies elsewhere than the reference (affines differ); resample it")
    print(json.dumps(compare(reference.data, prediction.data, reference.spacing)))


def command_kernels(args: argparse.Namespace) -> None:
    from .kernel_report import write_report  # here, because scikit-learn takes a second to import

    print(*write_report(args.file, args.out), sep="\n")


def command_warm(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    for kind in (torch.float32, torch.float64):
        u = torch.zeros(1, 1, 4, 4, dtype=kind, requires_grad=True)
        advance(u, speeds(torch.ones_like(u), *torch.ones(3, dtype=kind)), 0.1, 2).sum().backward()
    build_model("lsn", steps=2)(torch.zeros(1, 1, 16, 16)).sum().backward()
    print(f"Compiled the level set steps in {time.perf_counter() - started:.0f} s; later runs read them from a cache.")


def versions() -> dict[str, str | None]:
    """What runs: the package and its commit, torch, Python; a part of every checkpoint's provenance."""
    python = platform.python_version()
    return {"lsbook": __version__, "commit": git_commit(), "torch": torch.__version__, "python": python}


def git_commit() -> str | None:
    """Commit of the code that runs, or None outside a repository; "-dirty" if a Python file is not as committed."""
    told = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    commit = subprocess.run(["git", "describe", "--always"], **told).stdout.strip()
    changes = subprocess.run(["git", "status", "--porcelain", ":/*.py"], **told).stdout
    return f"{commit}-dirty" if changes else commit or None


def main(argv: list[str] | None = None) -> int:
    """Run one command; a fault of the input gives one line on standard error and status 2."""
    args = parser().parse_args(argv)
    commands = {"train": command_train, "predict": command_predict, "evaluate": command_evaluate}
    commands |= {"kernels": command_kernels, "warm": command_warm, "sample": lambda args: prefetch(args.names)}
    try:
        return commands[args.command](args) or 0
    except (OSError, ValueError, FloatingPointError) as error:
        raw = getattr(error, "errno", None)  # the system's own words, with no remedy among them
        advice = "; check that it is there, that you may read and write it, and that the disk has room" if raw else ""
        print(f"lsbook: {one_line(error)}{advice}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
