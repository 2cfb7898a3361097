"""Numbers that run away or are missing give a clear error or a stated recovery; a seed gives the same numbers again."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lsbook import training
from lsbook.__main__ import main
from lsbook.checkpoints import load_checkpoint
from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.inference import segment
from lsbook.levelset import cfl, evolve, worst_cfl
from lsbook.networks import DT, SAFETY, build_model, disc
from lsbook.nifti import read_volume
from lsbook.training import make_optimizer, segmentation_loss, train, train_epoch

pytestmark = pytest.mark.usefixtures("one_thread")

WORKING = Preprocessing(32)
LSE = {"steps": 6, "seed": (0.45, 0.3, 0.1)}


@pytest.fixture(scope="module")
def sets(cohort: Path) -> tuple[SliceDataset, SliceDataset]:
    scans = find_scans(cohort)
    return SliceDataset(scans[:2], WORKING), SliceDataset(scans[2:3], WORKING)


def fit(sets: tuple, out: Path, name: str = "unet", epochs: int = 3, preprocessing: Preprocessing = WORKING) -> list:
    options, kind = ({}, "all") if name == "unet" else (LSE, "gray")
    return train(name, options, *sets, preprocessing, out, epochs, seed=3, batch=8, rate=3e-3, augmentation=kind)


def state(out: Path) -> dict:
    return torch.load(out / "last.pt", weights_only=True)


# -- the CFL limit ----------------------------------------------------------------------------------------------------


def test_a_step_beyond_the_cfl_limit_is_refused_and_the_longest_one_that_is_named_stays_bounded():
    u, g = disc((24, 24), (0.5, 0.5), 0.2), torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    terms = (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"CFL number of \d") as error:
        evolve(u, g, *terms, dt=0.5, steps=400)
    longest = float(re.search(r"take dt <= (\S+)", str(error.value))[1])
    assert cfl(longest, g, *terms) == pytest.approx(1, abs=0.01)
    dt = 0.99 * longest
    found = evolve(u, g, *terms, dt=dt, steps=400)
    assert u.min() - 1e-3 <= found.min() and found.max() <= u.max() + 1e-3


@pytest.mark.parametrize("raw", [(0.5, 1.0, 1.0), (1e6, 1e6, -1e6), (-1e6, 1e30, 0.0), (3e37, 0.0, 3e37)], ids=str)
def test_a_network_stays_below_the_cfl_limit_whatever_its_coefficients(raw):
    model = build_model("lse", steps=200)
    model.raw.data.copy_(torch.tensor(raw))
    assert worst_cfl(DT, *model.coefficients()) <= SAFETY * (1 + 1e-6)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        u0, u = model.start(image), model.level_set(image)
    assert u0.min() - 0.1 <= u.min() and u.max() <= u0.max() + 0.1  # curvature's stencil has no exact maximum principle


# -- NaN and infinity -------------------------------------------------------------------------------------------------


class Root(nn.Module):
    """A finite output whose gradient is not: the root of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(image * self.weight.sqrt())


def one_epoch(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], augmentation: str = "all") -> float:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(model, make_optimizer(model, 1e-3))
    return train_epoch(fabric, model, optimizer, loader, augmentation=augmentation)


@pytest.mark.parametrize(
    ("model", "image", "fault"),
    [
        (build_model("unet", depth=1), torch.full((1, 16, 16), torch.nan), "the output is empty or not finite; lower"),
        (build_model("unet", depth=1), torch.full((1, 16, 16), torch.inf), "the output is empty or not finite; lower"),
        (Root(), torch.ones(1, 16, 16), "the loss or its gradient is not finite; lower"),
    ],
    ids=["NaN in an image", "infinity in an image", "gradient"],
)
def test_what_is_not_finite_stops_the_training_before_it_gets_into_the_weights(model, image, fault):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=fault):
        one_epoch(model, DataLoader([(image, torch.zeros(1, 16, 16))]))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_training_that_met_nan_goes_on_from_its_last_good_epoch(sets, tmp_path, monkeypatch):
    calls = []

    def sick(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return segmentation_loss(prediction, target) * (torch.nan if len(calls) == 5 else 1)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="the loss or its gradient"):
        patch.setattr(training, "segmentation_loss", sick)
        fit(sets, tmp_path / "cut")
    assert 1 <= len(state(tmp_path / "cut")["rows"]) < 3
    assert fit(sets, tmp_path / "cut") == fit(sets, tmp_path / "whole")
    torch.testing.assert_close(state(tmp_path / "cut")["model"], state(tmp_path / "whole")["model"], rtol=0, atol=0)


def test_a_network_that_gives_nan_leaves_no_mask(cohort):
    model = build_model("lse", steps=2)
    model.raw.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"volume-0\.nii\.gz: the network's output is not finite; take"):
        segment(model, WORKING, read_volume(cohort / "volume-0.nii.gz"))


RUN = ["--folds", "4", "--size", "32", "--batch", "8", "--epochs", "2", "--steps", "4"]


@pytest.mark.parametrize(
    ("model", "rate", "fault"),
    [
        ("unet", "1e4", "the output is empty or not finite; lower the learning rate"),
        ("lse-g", "1e30", "not finite; lower the learning rate"),
        ("lse", "nan", "learning rate nan: must be a finite number"),
        ("lse", "inf", "learning rate inf: must be a finite number"),
        ("unet", "-1", "learning rate -1.0: must be a finite number, and not negative"),
    ],
)
def test_a_rate_that_leads_nowhere_is_one_line_and_leaves_no_checkpoint(cohort, tmp_path, capsys, model, rate, fault):
    command = ["train", "--data", str(cohort), "--out", str(tmp_path), "--model", model, "--rate", rate, *RUN]
    assert main(command) == 2
    line = capsys.readouterr().err.split("\r")[-1]
    assert line.count("\n") == 1 and fault in line
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_a_loss_that_rises_is_said_and_the_best_epoch_kept(cohort, tmp_path, capsys):
    command = ["train", "--data", str(cohort), "--out", str(tmp_path), "--model", "unet-textbook", "--rate", "10", *RUN]
    assert main([*command, "--augmentation", "none"]) == 0
    told = re.search(r"lsbook: the loss rose from (\S+) to (\S+); the epoch of the best", capsys.readouterr().err)
    rows = state(tmp_path)["rows"]
    first, last = float(told[1]), float(told[2])
    assert (first, last) == pytest.approx((rows[0]["loss"], rows[1]["loss"]), rel=1e-3) and first < last
    best = int(np.argmax([row["validation_dice"] for row in rows]))
    assert load_checkpoint(tmp_path / "best.safetensors")[2]["epoch"] == best + 1


# -- nothing ----------------------------------------------------------------------------------------------------------


def test_no_scans_are_refused():
    with pytest.raises(ValueError, match="no scans, so no slices; give at least one"):
        SliceDataset([], WORKING)


def test_a_batch_without_slices_is_refused():
    nothing = torch.zeros(0, 1, 16, 16)
    with pytest.raises(FloatingPointError, match="the output is empty or not finite; lower"):
        one_epoch(build_model("unet", depth=1), [(nothing, nothing)], "none")


# -- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lse", "lse-g", "unet"])
def test_a_seed_gives_the_same_bits_with_one_thread_and_with_two_and_nearly_the_same_across(sets, tmp_path, name):
    """Sums run in another order with more threads: after two epochs weights agree to 1e-3, losses to 1e-5."""
    runs = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for run in "ab":
            out = tmp_path / f"{threads}{run}"
            runs[threads, run] = fit(sets, out, name, epochs=2), state(out)["model"]
    torch.set_num_threads(1)
    for threads in (1, 2):
        (rows, weights), (again, same) = runs[threads, "a"], runs[threads, "b"]
        assert rows == again
        torch.testing.assert_close(weights, same, rtol=0, atol=0)
    (rows, weights), (across, other) = runs[1, "a"], runs[2, "a"]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in across], rtol=1e-5)
    torch.testing.assert_close(weights, other, rtol=0, atol=0 if name == "lse" else 1e-3)
