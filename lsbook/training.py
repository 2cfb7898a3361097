"""One training loop for the whole ladder.

Lightning Fabric runs the same loop on a CPU, a GPU or many processes. After each epoch the state is written: a run that
was cut goes on where it stopped and ends with the same numbers: all randomness of an epoch comes from (seed, epoch).
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from .augmentation import AUGMENTATIONS
from .checkpoints import save_checkpoint, take_over
from .ct import Preprocessing, SliceDataset
from .files import atomic_path, hold
from .levelset import gaussian_blur
from .metrics import dice_of_counts
from .networks import LevelSetNetwork, build_model
from .nifti import one_line

MAX_NORM = 5.0  # longer gradients are shortened to it
COEFFICIENT_RATE = 30  # the three scalars of the equation learn so many times faster than a kernel's weights


def soft_dice_loss(prediction: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """|y - p|^2 / (|y|^2 + |p|^2 + s), mean over the slices: the paper's squared soft Dice with a smoothing term.

    s is ``smooth`` times the number of pixels. Without it a slice with no liver gives 1 whatever p is; with it the loss
    falls to 0 as p does.

    Args:
        prediction, target: probabilities and share of liver, ``(B, 1, H, W)``.
    """
    error = ((target - prediction) ** 2).sum(dim=(1, 2, 3))
    size = (target**2).sum(dim=(1, 2, 3)) + (prediction**2).sum(dim=(1, 2, 3))
    return (error / (size + smooth * target[0].numel())).mean()


def segmentation_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """:func:`soft_dice_loss` plus the mean cross-entropy of the pixels.

    Dice asks for the area; the cross-entropy asks for each pixel, also where a slice has little liver or the output is
    saturated.
    """
    p = prediction.float().clamp(1e-6, 1 - 1e-6)
    return soft_dice_loss(p, target) + F.binary_cross_entropy(p, target)


def densest_point(dataset: SliceDataset, radius: float = 0.06) -> tuple[float, float, float]:
    """Seed disc (y, x, radius), as fractions: where most slices of the dataset have liver. Use training scans only."""
    total = sum(target for _, target in dataset)[None]  # one slice at a time: in memory is only their sum
    size = total.shape[-1]
    peak = int(gaussian_blur(total, 0.02 * size).argmax())
    return (peak // size + 0.5) / size, (peak % size + 0.5) / size, radius


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam, the equation's coefficients in a group with a higher rate; ValueError for a rate below 0 or not finite."""
    if not 0 <= rate < math.inf:
        raise ValueError(f"learning rate {rate}: must be a finite number, and not negative; take 1e-3, or less")
    scalars = [p for name, p in model.named_parameters() if name == "raw"]
    others = [p for name, p in model.named_parameters() if name != "raw"]
    groups = [{"params": others, "rate": rate}, {"params": scalars, "rate": rate * COEFFICIENT_RATE}]
    return torch.optim.Adam([group | {"lr": group["rate"]} for group in groups if group["params"]])


def scan_dice(model: nn.Module, dataset: SliceDataset, batch: int = 16) -> dict[str, float]:
    """Dice of each scan over all its slices in the dataset, at working size, threshold 0.5."""
    device = next(model.parameters()).device
    model.eval()
    counts, numbers = np.zeros((len(dataset.scans), 2), int), iter([number for number, _ in dataset.index])
    with torch.no_grad():
        for image, target in DataLoader(dataset, batch):
            found, truth = (model(image.to(device)) > 0.5).cpu(), target > 0.5
            for a, b, n in zip(truth, found, numbers, strict=False):  # numbers last: no end of a batch takes one
                counts[n] += int((a & b).sum()), int(a.sum()) + int(b.sum())
    return {scan.name: dice_of_counts(*map(int, row)) for scan, row in zip(dataset.scans, counts, strict=True)}


def learning_rate(progress: float) -> float:
    """Factor of the rate at a share of the run in [0, 1]: up in 5 %, then down along a half cosine to 0.

    The cosine is that of Loshchilov and Hutter 2017.
    """
    return min(1.0, progress / 0.05) * (1 + math.cos(math.pi * progress)) / 2


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epoch: int = 0,
    epochs: int = 1,
    augmentation: str = "all",
) -> float:
    """Pass number ``epoch`` (from 0) of ``epochs`` over the loader; the mean loss of the slices, over all processes.

    Raises:
        FloatingPointError: if the model's output, the loss or its gradient is not finite; the weights stay.
    """
    model.train()
    total, count = torch.zeros((), device=fabric.device), 0
    for step, (image, target) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate((epoch + (step + 1) / len(loader)) / epochs)
        optimizer.zero_grad()
        image, target = AUGMENTATIONS[augmentation](image, target)
        prediction = model(image)
        if not prediction.mean().isfinite():  # nor is the mean of nothing
            raise FloatingPointError("the output is empty or not finite; lower the learning rate and check the input")
        loss = segmentation_loss(prediction, target)
        fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM, error_if_nonfinite=False)
        if not torch.isfinite(norm + loss):
            raise FloatingPointError("the loss or its gradient is not finite; lower the learning rate")
        optimizer.step()
        total, count = total + loss.detach() * len(image), count + len(image)
    return float(fabric.all_reduce(total / count, reduce_op="mean"))


def epoch_loader(fabric: Fabric, dataset: SliceDataset, batch: int, seed: int) -> DataLoader:
    """This process's share of a shuffled pass; all processes together see the batches that one process would see.

    Raises:
        ValueError: if the batch cannot be shared out evenly.
    """
    ranks = fabric.world_size
    if batch % ranks:
        raise ValueError(f"a batch of {batch} slices cannot be shared by {ranks} processes; choose a multiple")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    order = torch.cat([order, order[: -len(order) % ranks]])[fabric.global_rank :: ranks]
    loader = DataLoader(Subset(dataset, order.tolist()), batch // ranks)
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


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
    augmentation: str = "all",
    build: Callable[..., nn.Module] = build_model,
) -> list[dict]:
    """Train a model of the ladder; go on from ``out`` if a run with the same settings was cut there.

    ``batch`` counts the slices of one step over all processes of ``fabric``; ``rate`` is Adam's highest. ``start_from``
    is a checkpoint of the rung below, whose weights the new model takes over where it has them. ``augmentation`` says
    how slices are changed anew in each epoch (a key of :data:`lsbook.augmentation.AUGMENTATIONS`). ``build(name,
    **options)`` makes the model. Callbacks of ``fabric`` may have ``on_epoch_end(model, epoch)``.

    Writes to ``out``: ``best.safetensors`` (highest mean Dice over the validation scans), ``last.pt`` (state to go on
    from), ``log.csv`` and ``log.json``.

    Returns:
        One row an epoch: epoch, loss, validation Dice, and for level set networks alpha, beta, gamma.

    Raises:
        ValueError: if ``out`` holds a run with other settings or one that is at work, if a process would get no whole
            number of slices, or if ``torchrun`` started more processes than ``fabric`` knows of.
    """
    out = Path(out)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    started = int(os.environ.get("WORLD_SIZE", 1))
    if fabric.world_size < started:
        raise ValueError(f"{started} processes were started, {fabric.world_size} asked for; give --devices and --nodes")
    torch.manual_seed(seed)
    bare = build(name, **options)
    settings = {"model": name, "options": options, "preprocessing": asdict(preprocessing), "slices": len(train_set)}
    settings |= {"epochs": epochs, "seed": seed, "batch": batch, "rate": rate, "augmentation": augmentation}
    settings |= {"train": [s.name for s in train_set.scans], "validation": [s.name for s in validation_set.scans]}
    if start_from:
        take_over(bare, start_from)
        digest = hashlib.sha256(Path(start_from).read_bytes()).hexdigest()
        settings["start_from"] = f"{Path(start_from).parent.name}/{Path(start_from).name}, sha256 {digest}"
    model, optimizer = fabric.setup(bare, make_optimizer(bare, rate))
    settings = json.loads(json.dumps(settings))
    last, rows = out / "last.pt", []
    with nullcontext() if fabric.global_rank else hold(out):
        if last.is_file():
            try:
                state = torch.load(last, map_location=fabric.device, weights_only=True)
                same = state["settings"] == settings
            except Exception as error:  # whatever a broken file leads to
                raise ValueError(f"{last}: cannot be read ({one_line(error)}); remove it to start anew") from error
            if not same:
                raise ValueError(f"{out}: holds a run with other settings; choose another --out or remove it")
            bare.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            rows = state["rows"]

        for epoch in tqdm(range(len(rows), epochs), desc=name, initial=len(rows), total=epochs, disable=None):
            number = seed * 100_003 + epoch
            torch.manual_seed(number + 1_000_000_007 * fabric.global_rank)
            loader = epoch_loader(fabric, train_set, batch, number)
            loss = train_epoch(fabric, model, optimizer, loader, epoch, epochs, augmentation)
            row = {"epoch": epoch + 1, "loss": loss}
            row["validation_dice"] = float(np.mean(list(scan_dice(bare, validation_set, batch).values())))
            if isinstance(bare, LevelSetNetwork):
                row |= dict(zip(("alpha", "beta", "gamma"), bare.coefficients().detach().tolist(), strict=True))
            best = not rows or row["validation_dice"] > max(r["validation_dice"] for r in rows)
            rows.append(row)
            if fabric.global_rank == 0:
                if best:
                    info = settings | {"epoch": epoch + 1} | (provenance or {})
                    save_checkpoint(out / "best.safetensors", bare, info)
                write_log(out, rows)
                state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
                torch.save(state | {"settings": settings}, content := io.BytesIO())  # a full disk: RuntimeError
                with atomic_path(last) as partial:
                    partial.write_bytes(content.getbuffer())
            fabric.call("on_epoch_end", model=bare, epoch=epoch + 1)
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
