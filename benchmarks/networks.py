"""Convolutional networks: training throughput against MONAI's, memory of segmenting a scan, time to read kernels."""

import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lsbook.checkpoints import save_checkpoint
from lsbook.ct import Preprocessing
from lsbook.inference import segment
from lsbook.kernel_report import write_report
from lsbook.networks import build_model
from lsbook.nifti import read_volume, write_mask
from lsbook.training import soft_dice_loss

from .measure import Plan, peak_of, ratio, seconds_each, target, threads, times

SLACK = 0.05  # of the number of parameters


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def nearest(models: Iterable[nn.Module], wanted: int) -> nn.Module:
    """The model whose number of parameters is nearest to the wanted one."""
    return min(models, key=lambda model: abs(parameters(model) - wanted))


def monai_unet(wanted: int, equal_widths: bool) -> nn.Module:
    """MONAI's UNet of five levels, as wide as ``wanted`` parameters allow; two residual units or none, as fits best."""
    from monai.networks.nets import UNet  # here: it takes seconds, and scan needs none of it

    widths = [[w * (1 if equal_widths else 2**level) for level in range(5)] for w in range(4, 32)]
    return nearest((UNet(2, 1, 1, w, (2, 2, 2, 2), num_res_units=r) for w, r in product(widths, (0, 2))), wanted)


def basic_unet(wanted: int) -> nn.Module:
    """MONAI's BasicUNet, the classical U-Net with normalization, as wide as ``wanted`` parameters allow."""
    from monai.networks.nets import BasicUNet

    equal = [(w,) * 5 + (last,) for w in range(8, 24) for last in range(w, w + 4)]
    doubled = [(w, 2 * w, 4 * w, 8 * w, 16 * w, w) for w in range(2, 24)]
    return nearest((BasicUNet(2, 1, 1, features=widths) for widths in equal + doubled), wanted)


@torch.no_grad()
def gflop(model: nn.Module, size: int) -> float:
    """10^9 operations of convolutions in the forward pass of one image; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, size, size))
    return counter.get_total_flops() / 1e9


def training_step(model: nn.Module, size: int, batch: int) -> Callable[[], None]:
    """Forward, backward and Adam on a fixed batch."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 1, size, size, generator=generator) * 2 - 1
    truth = (image > 0.5).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def once() -> None:
        optimizer.zero_grad()
        found = model(image)
        soft_dice_loss(found if found.min() >= 0 and found.max() <= 1 else torch.sigmoid(found), truth).backward()
        optimizer.step()

    return once


def unet(plan: Plan) -> dict:
    """ms of a training step of the book's two U-Nets and of MONAI's of equal numbers of parameters."""
    size, batch = (32, 2) if plan.quick else (256, 8)
    ours = {name: build_model(name) for name in ("unet", "unet-textbook")}
    models = ours | {
        f"MONAI {kind}, as {name}": make(parameters(model))
        for name, model in ours.items()
        for kind, make in (
            ("UNet", lambda wanted, name=name: monai_unet(wanted, name == "unet")),
            ("BasicUNet", basic_unet),
        )
    }
    rows = []
    for count in plan.threads:
        with threads(count):
            samples = seconds_each(
                {name: training_step(model, size, batch) for name, model in models.items()}, min(plan.repeats, 7)
            )
        for name, model in models.items():
            row = {"model": name, "threads": count, "parameters": parameters(model), "gflop": gflop(model, size)}
            row |= times(samples[name])
            rows.append(row | {"images_per_s": 1e3 * batch / row["median_ms"]})
    targets = []
    for name in ours:
        for kind in ("UNet", "BasicUNet"):
            other = f"MONAI {kind}, as {name}"
            assert abs(parameters(models[other]) / parameters(ours[name]) - 1) < SLACK, other
            most = {"threads": plan.threads[-1]}
            against = ratio(rows, {"model": other} | most, {"model": name} | most)
            targets.append(target(f"throughput of {name} / MONAI {kind}", 1, **against))
    return {"size": size, "batch": batch, "rows": rows, "targets": targets}


def write_scan(path: Path, slices: int, side: int) -> Path:
    """A generated scan of ``side`` x ``side`` x ``slices`` voxels, int16 HU: a body with a bright ellipsoid in it."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, side, dtype=np.float32)], indexing="ij")
    rng, voxels = np.random.default_rng(0), np.empty((side, side, slices), np.int16)
    for k, z in enumerate(np.linspace(-1, 1, slices)):
        body = np.where(np.hypot(x / 0.9, y / 0.7) < 1, -60, -1000)
        voxels[:, :, k] = np.where(np.hypot(x - 0.3, y) ** 2 + z**2 / 2 < 0.2, 110, body) + rng.normal(0, 10, x.shape)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.5, 1])), path)
    return path


def predict(model: nn.Module, preprocessing: Preprocessing, image: Path, out: Path) -> None:
    """What ``python -m lsbook predict`` does, from file to file."""
    volume = read_volume(image)
    write_mask(out, segment(model, preprocessing, volume), volume)


def scan(plan: Plan) -> dict:
    """Peak memory of segmenting a scan of 512 x 512 pixels and 30 to 600 slices, from file to file.

    The mask is the one array as long as the scan, a byte a voxel. So two ratios are targets: with the mask, and of what
    is needed beside it.
    """
    side, lengths = (64, (4, 8, 12)) if plan.quick else (512, (30, 100, 300, 600))
    rows = []
    for suffix, slices in product((".nii", ".nii.gz"), lengths):
        row = {"file": suffix, "slices": slices, "mask_mib": side * side * slices / 2**20}
        rows.append(row | peak_of(plan, "scan", suffix, slices, side))
    short, long = lengths[0], lengths[-2]  # the target names 300 slices
    targets = []
    for suffix in (".nii", ".nii.gz"):
        few, many = (row for row in rows if row["file"] == suffix and row["slices"] in (short, long))
        beside = [row["peak_mib"] - row["mask_mib"] for row in (few, many)]
        name = f"memory of {long} slices / {short}, {suffix}"
        targets.append(target(name, 1.2, many["peak_mib"] / few["peak_mib"], at_least=False))
        targets.append(target(f"{name}, beside the mask", 1.2, beside[1] / beside[0], at_least=False))
    return {"side": side, "rows": rows, "targets": targets}


def kernels(plan: Plan) -> dict:
    """Seconds of ``python -m lsbook kernels`` on a textbook U-Net of about 2 million weights, without the imports."""
    options = {"filters": 2, "depth": 2} if plan.quick else {"filters": 32, "depth": 4}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        model = build_model("unet-textbook", **options)
        save_checkpoint(path, model, {"model": "unet-textbook", "options": options, "preprocessing": {}})
        for count in plan.threads:
            with threads(count):
                started = time.perf_counter()
                write_report(path, folder)
                rows.append({"threads": count, "weights": parameters(model), "seconds": time.perf_counter() - started})
    return {"rows": rows, "targets": []}
