"""One training loop for the whole ladder.

Lightning Fabric runs the same loop on a CPU, a GPU or many processes. After each epoch the state is written: a run that
was cut goes on where it stopped and ends with the same numbers: all randomness of an epoch comes from (seed, epoch).
"""

import csv
import hashlib
import json
import math
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .checkpoints import save_checkpoint, take_over
from .ct import Preprocessing, SliceDataset
from .files import atomic_path
from .levelset import gaussian_blur
from .metrics import dice
from .networks import LevelSetNetwork, build_model
from .nifti import one_line

COEFFICIENT_RATE = 30  # the three scalars of the equation learn so many times faster than a kernel's weights


def soft_dice_loss(prediction: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """|y - p|^2 / (|y|^2 + |p|^2 + s), mean over the slices: the paper's squared soft Dice with a smoothing term.

    s is ``smooth`` times the number of pixels. Without it a slice with no liver gives 1 whatever p is; with it the loss
    falls to 0 as p does.

    Args:
        prediction, target: probabilities and mask, ``(B, 1, H, W)``.
    """
    error = ((target - prediction) ** 2).sum(dim=(1, 2, 3))
    size = (target**2).sum(dim=(1, 2, 3)) + (prediction**2).sum(dim=(1, 2, 3))
    return (error / (size + smooth * target[0].numel())).mean()


def densest_point(dataset: SliceDataset, radius: float = 0.06) -> tuple[float, float, float]:
    """Seed disc (y, x, radius), as fractions: where most slices of the dataset have liver. Use training scans only."""
    mean = torch.stack([target for _, target in dataset]).mean(dim=0, keepdim=True)
    size = mean.shape[-1]
    peak = int(gaussian_blur(mean, 0.02 * size).argmax())
    return (peak // size + 0.5) / size, (peak % size + 0.5) / size, radius


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam; the coefficients of the equation are a group of their own with a higher rate."""
    scalars = [p for name, p in model.named_parameters() if name == "raw"]
    others = [p for name, p in model.named_parameters() if name != "raw"]
    groups = [{"params": others, "rate": rate}, {"params": scalars, "rate": rate * COEFFICIENT_RATE}]
    return torch.optim.Adam([group | {"lr": group["rate"]} for group in groups if group["params"]])


def scan_dice(model: nn.Module, dataset: SliceDataset, batch: int = 16) -> dict[str, float]:
    """Dice of each scan over all its slices in the dataset, at working size, threshold 0.5."""
    device = next(model.parameters()).device
    model.eval()
    found, truth = [], []
    with torch.no_grad():
        for image, target in DataLoader(dataset, batch):
            found.append((model(image.to(device)) > 0.5).cpu().numpy())
            truth.append(target.numpy())
    found, truth = np.concatenate(found), np.concatenate(truth)
    numbers = np.array([number for number, _ in dataset.index])
    return {scan.name: dice(truth[numbers == n], found[numbers == n]) for n, scan in enumerate(dataset.scans)}


def jitter(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A batch ``(B, 1, H, W)`` as other patients and scanners might have given it; draws from torch's generator.

    Each slice is turned by up to 9 degrees, zoomed by up to 10 % and shifted by up to 5 %, its gain changed by up to a
    quarter and its offset by up to 0.4 (40 HU in the default window), clipped to [-1, 1] like the window.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(image)).uniform_(low, high).to(image)

    angle, zoom = uniform(-0.16, 0.16), uniform(0.9, 1.1)
    c, s = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([c, -s, uniform(-0.1, 0.1), s, c, uniform(-0.1, 0.1)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    mask = F.grid_sample(mask, grid, mode="nearest", padding_mode="border", align_corners=False)
    gain, offset = uniform(math.log(0.8), math.log(1.25)).exp(), uniform(-0.4, 0.4)
    return (image * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)).clamp(-1, 1), mask


def train_epoch(fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """One pass over the loader; the mean loss.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    model.train()
    total = 0.0
    for image, target in loader:
        optimizer.zero_grad()
        image, target = jitter(image, target)
        loss = soft_dice_loss(model(image), target)
        if not torch.isfinite(loss):
            raise FloatingPointError("the loss is not finite; lower the learning rate and check the input for NaN")
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        total += float(loss.detach()) / len(loader)
    return total


def train(
    name: str,
    options: dict,
    train_set: SliceDataset,
    validation_set: SliceDataset,
    preprocessing: Preprocessing,
    out: str | os.PathLike,
    epochs: int,
    seed: int = 0,
    batch: int = 16,
    rate: float = 1e-3,
    provenance: dict | None = None,
    fabric: Fabric | None = None,
    start_from: str | os.PathLike | None = None,
) -> list[dict]:
    """Train a model of the ladder; go on from ``out`` if a run with the same settings was cut there.

    Adam's rate falls along a half cosine from ``rate`` to 0 (Loshchilov, Hutter 2017).

    ``start_from`` is a checkpoint of the rung below, whose weights the new model takes over where it has them.

    Writes to ``out``: ``best.safetensors`` (highest mean Dice over the validation scans), ``last.pt`` (state to go on
    from), ``log.csv`` and ``log.json``.

    Returns:
        One row an epoch: epoch, loss, validation Dice, and for level set networks alpha, beta, gamma.

    Raises:
        ValueError: if ``out`` holds a run with other settings.
    """
    out = Path(out)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    torch.manual_seed(seed)
    bare = build_model(name, **options)
    if start_from:
        take_over(bare, start_from)
    model, optimizer = fabric.setup(bare, make_optimizer(bare, rate))
    settings = {"model": name, "options": options, "preprocessing": asdict(preprocessing)}
    settings |= {
        "epochs": epochs,
        "seed": seed,
        "batch": batch,
        "rate": rate,
        "train": [scan.name for scan in train_set.scans],
    }
    settings |= {"slices": len(train_set), "validation": [scan.name for scan in validation_set.scans]}
    if start_from:
        digest = hashlib.sha256(Path(start_from).read_bytes()).hexdigest()
        settings["start_from"] = f"{Path(start_from).parent.name}/{Path(start_from).name}, sha256 {digest}"
    settings = json.loads(json.dumps(settings))
    rows: list[dict] = []
    if (out / "last.pt").is_file():
        try:
            state = torch.load(out / "last.pt", map_location=fabric.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{out / 'last.pt'}: cannot be read ({one_line(error)}); remove it to start anew"
            ) from error
        if state["settings"] != settings:
            raise ValueError(f"{out}: holds a run with other settings; choose another --out or remove it")
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows = state["rows"]

    for epoch in tqdm(range(len(rows), epochs), desc=name, initial=len(rows), total=epochs, disable=None):
        torch.manual_seed(seed * 100_003 + epoch)
        order = torch.Generator().manual_seed(seed * 100_003 + epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * (1 + math.cos(math.pi * epoch / epochs)) / 2
        loader = fabric.setup_dataloaders(DataLoader(train_set, batch, shuffle=True, generator=order))
        row = {"epoch": epoch + 1, "loss": train_epoch(fabric, model, optimizer, loader)}
        row["validation_dice"] = float(np.mean(list(scan_dice(bare, validation_set, batch).values())))
        if isinstance(bare, LevelSetNetwork):
            row |= dict(zip(("alpha", "beta", "gamma"), bare.coefficients().detach().tolist(), strict=True))
        best = not rows or row["validation_dice"] > max(r["validation_dice"] for r in rows)
        rows.append(row)
        if fabric.global_rank == 0:
            if best:
                save_checkpoint(out / "best.safetensors", bare, settings | {"epoch": epoch + 1} | (provenance or {}))
            write_log(out, rows)
            state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"rows": rows, "settings": settings}
            with atomic_path(out / "last.pt") as partial:
                torch.save(state, partial)
        fabric.barrier()
    return rows


def write_log(out: Path, rows: list[dict]) -> None:
    """The rows as ``log.csv`` and ``log.json``."""
    with atomic_path(out / "log.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with atomic_path(out / "log.json") as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n")
