"""The loss, the loop, what it leaves behind, and that a cut run ends as an uncut one."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from monai.losses import DiceLoss
from torch import nn
from torch.utils.data import DataLoader

from lsbook import training
from lsbook.checkpoints import load_checkpoint
from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.files import hold
from lsbook.metrics import dice
from lsbook.networks import MODELS, build_model, disc
from lsbook.training import (
    COEFFICIENT_RATE,
    densest_point,
    learning_rate,
    make_optimizer,
    scan_dice,
    segmentation_loss,
    soft_dice_loss,
    train,
    train_epoch,
)

pytestmark = pytest.mark.usefixtures("one_thread")

WORKING = Preprocessing(32)
LEVEL_SET = {"steps": 8, "seed": (0.45, 0.3, 0.1)}
OPTIONS = {
    "lse": LEVEL_SET,
    "lse-g": LEVEL_SET,
    "lsn": LEVEL_SET | {"checkpoint_every": 4},
    "unet": {},
    "unet-textbook": {"dropout": 0.0},
}
EPOCHS = 3


@pytest.fixture(scope="module")
def scans(cohort):
    return find_scans(cohort)


@pytest.fixture(scope="module")
def sets(scans):
    """Two patients to train on, one to validate."""
    return SliceDataset(scans[:2], WORKING), SliceDataset(scans[2:3], WORKING)


@pytest.fixture(scope="module")
def fit(sets):
    """Train with the settings of this module, unless told otherwise."""

    def run(name, out, train_set=sets[0], preprocessing=WORKING, options=None, epochs=EPOCHS, **settings):
        kind = "all" if name.startswith("unet") else "none"
        settings = {"seed": 3, "batch": 8, "rate": 3e-3, "augmentation": kind} | settings
        options = OPTIONS[name] if options is None else options
        return train(name, options, train_set, sets[1], preprocessing, out, epochs, **settings)

    return run


@pytest.fixture(scope="module")
def runs(fit, tmp_path_factory):
    """One training of each model, made when it is first asked for: its folder and rows."""
    done = {}

    def run(name):
        if name not in done:
            out = tmp_path_factory.mktemp("runs") / name
            done[name] = out, fit(name, out)
        return done[name]

    return run


def state(out):
    return torch.load(out / "last.pt", weights_only=True)


def assert_same_run(out, other):
    """Weights, Adam's state, logs and the best checkpoint are equal bit for bit."""
    a, b = state(out), state(other)
    assert a["rows"] == b["rows"]
    assert (out / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    assert (out / "log.json").read_bytes() == (other / "log.json").read_bytes()
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    torch.testing.assert_close(a["optimizer"]["state"], b["optimizer"]["state"], rtol=0, atol=0)
    (best, _, info), (other_best, _, other_info) = (load_checkpoint(o / "best.safetensors") for o in (out, other))
    assert info == other_info
    torch.testing.assert_close(best.state_dict(), other_best.state_dict(), rtol=0, atol=0)


# -- loss -------------------------------------------------------------------------------------------------------------


def probabilities_and_masks():
    """Slices with a liver of very different sizes, and one without."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 1, 8, 10, generator=generator, dtype=torch.float64)
    y = torch.zeros_like(p)
    y[0, 0, :6, :9], y[1, 0, 3:5, 3:5], y[2, 0, 7, 9] = 1, 1, 1
    return p, y


@pytest.mark.parametrize("smooth", [0.0, 0.01, 0.3])
def test_loss_is_the_formula_slice_by_slice(smooth):
    p, y = probabilities_and_masks()
    values = []
    for a, b in zip(y.numpy(), p.numpy(), strict=True):
        values.append(np.sum((a - b) ** 2) / (np.sum(a**2) + np.sum(b**2) + smooth * 80))
    assert float(soft_dice_loss(p, y, smooth)) == pytest.approx(np.mean(values), rel=1e-12)
    pooled = float(((y - p) ** 2).sum() / ((y**2).sum() + (p**2).sum() + smooth * 320))
    assert abs(pooled - np.mean(values)) > 0.01
    monai = DiceLoss(squared_pred=True, smooth_nr=smooth * 80, smooth_dr=smooth * 80)(p, y)
    assert float(monai) == pytest.approx(np.mean(values), rel=1e-12)


def test_loss_is_zero_for_a_perfect_result_only():
    _, y = probabilities_and_masks()
    assert float(soft_dice_loss(y, y)) == 0
    assert float(soft_dice_loss(y[:3], y[:3], smooth=0.0)) == 0
    assert float(soft_dice_loss(1 - y, y)) > 0.9


def test_a_slice_without_liver_pushes_the_output_to_zero_but_not_without_smoothing():
    empty = torch.zeros(1, 1, 8, 8)
    logits = torch.full((1, 1, 8, 8), 2.0, requires_grad=True)
    unsmoothed = soft_dice_loss(torch.sigmoid(logits), empty, smooth=0.0)
    unsmoothed.backward()
    assert unsmoothed.item() == pytest.approx(1)
    assert logits.grad.abs().max() < 1e-7

    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = soft_dice_loss(torch.sigmoid(logits), empty)
        loss.backward()
        optimizer.step()
    assert torch.sigmoid(logits).max() < 0.01
    assert loss.item() < 0.01


# -- parts ------------------------------------------------------------------------------------------------------------


def test_densest_point_is_where_most_slices_have_liver():
    often = [(disc((40, 40), (0.3, 0.7), radius) > 0).float()[0] for radius in (0.05, 0.1, 0.15)]
    seldom = [(disc((40, 40), (0.8, 0.2), 0.3) > 0).float()[0]] * 2
    y, x, radius = densest_point([(None, mask) for mask in often + seldom], radius=0.1)
    assert (y, x) == pytest.approx((0.3, 0.7), abs=1.1 / 40)
    assert radius == 0.1


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_is_in_one_group_and_the_coefficients_learn_faster(name):
    model = build_model(name)
    groups = make_optimizer(model, 1e-3).param_groups
    grouped = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    raw = id(getattr(model, "raw", None))
    expected = [(id(p), 1e-3 * COEFFICIENT_RATE if id(p) == raw else 1e-3) for p in model.parameters()]
    assert sorted(grouped) == sorted(expected)


def test_the_rate_rises_then_falls_to_zero():
    steps = np.linspace(0, 1, 401)
    factors = np.array([learning_rate(step) for step in steps])
    assert factors[0] == 0 and factors[-1] == pytest.approx(0, abs=1e-12)
    assert 0.9 < factors.max() < 1 and steps[factors.argmax()] == pytest.approx(0.05)
    assert (np.diff(factors[:21]) > 0).all() and (np.diff(factors[20:]) < 0).all()


def test_the_loss_adds_the_cross_entropy_of_soft_targets():
    p, y = probabilities_and_masks()
    y = (0.2 + 0.7 * y).float()
    entropy = -np.mean(y.numpy() * np.log(p.numpy()) + (1 - y.numpy()) * np.log(1 - p.numpy()))
    expected = float(soft_dice_loss(p.float(), y)) + float(entropy)
    assert float(segmentation_loss(p.float(), y)) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(segmentation_loss(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])))


class Threshold(nn.Module):
    """A model that calls bright pixels liver, or noise while it trains."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.4))

    def forward(self, image):
        return torch.rand_like(image) if self.training else torch.sigmoid(50 * (image - self.level))


@pytest.mark.parametrize("batch", [5, 16])
def test_scan_dice_is_of_each_scan_over_all_its_slices(scans, batch):
    dataset = SliceDataset(scans[:2], WORKING)
    expected = {}
    for number, scan in enumerate(scans[:2]):
        items = [dataset[i] for i, (n, _) in enumerate(dataset.index) if n == number]
        found, truth = (np.concatenate([part.numpy() for part in parts]) for parts in zip(*items, strict=True))
        expected[scan.name] = dice(truth > 0.5, found > 0.4)
    assert scan_dice(Threshold().train(), dataset, batch) == expected
    assert len(set(expected.values())) == 2


def test_an_output_that_is_not_finite_stops_the_training():
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_model("unet")
    model, optimizer = fabric.setup(model, make_optimizer(model, 1e-3))
    loader = DataLoader([(torch.full((1, 16, 16), torch.nan), torch.zeros(1, 16, 16))])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="learning rate"):
        train_epoch(fabric, model, optimizer, loader)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns(runs, name):
    out, rows = runs(name)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    torch.manual_seed(3)
    start = build_model(name, **OPTIONS[name]).state_dict()
    end = state(out)["model"]
    assert end.keys() == start.keys()
    assert [key for key in start if torch.equal(start[key], end[key])] == []


@pytest.mark.parametrize("name", ["lsn", "unet"])
def test_logs_hold_the_rows(runs, name):
    out, rows = runs(name)
    fields = ["epoch", "loss", "validation_dice"] + (["alpha", "beta", "gamma"] if name == "lsn" else [])
    assert list(rows[0]) == fields
    assert json.loads((out / "log.json").read_text()) == rows
    with (out / "log.csv").open() as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == rows
    assert {path.name for path in out.iterdir()} == {"best.safetensors", "last.pt", "log.csv", "log.json", ".lock"}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(runs, fit, tmp_path):
    out, rows = runs("unet")
    fit("unet", tmp_path / "same")
    assert_same_run(out, tmp_path / "same")
    assert fit("unet", tmp_path / "other", seed=4)[0]["loss"] != rows[0]["loss"]


@pytest.mark.parametrize("name", ["unet", "lse"])
def test_a_run_cut_within_an_epoch_ends_as_an_uncut_one(runs, fit, tmp_path, monkeypatch, name):
    epochs = []

    def cut(*args):
        epochs.append(train_epoch(*args))
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return epochs[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_epoch", cut)
        fit(name, tmp_path)
    assert len(state(tmp_path)["rows"]) == 1
    assert len(fit(name, tmp_path)) == EPOCHS
    assert_same_run(runs(name)[0], tmp_path)


def test_a_finished_run_is_not_trained_again(runs, fit, monkeypatch):
    out, rows = runs("lse")
    monkeypatch.setattr(training, "train_epoch", None)
    assert fit("lse", out) == rows


def test_a_folder_in_which_another_run_is_at_work_is_refused(fit, tmp_path):
    with hold(tmp_path), pytest.raises(ValueError, match=rf"{tmp_path}: another run is at work there; wait"):
        fit("lse", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    fit("lse", tmp_path, epochs=1)


CHANGES = "seed epochs batch rate options preprocessing scans slices model start augmentation".split()


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_with_other_settings_is_not_continued(runs, fit, scans, tmp_path, change):
    out = shutil.copytree(runs("lse")[0], tmp_path / "run")
    before = (out / "last.pt").read_bytes()
    settings = {
        "seed": {"seed": 4},
        "epochs": {"epochs": EPOCHS + 1},
        "batch": {"batch": 7},
        "rate": {"rate": 1e-4},
        "options": {"options": LEVEL_SET | {"steps": 9}},
        "preprocessing": {"preprocessing": Preprocessing(32, -40, 161)},
        "scans": {"train_set": SliceDataset(scans[1:3], WORKING)},
        "slices": {"train_set": SliceDataset(scans[:2], WORKING, all_slices=True)},
        "model": {},
        "start": {"start_from": out / "best.safetensors"},
        "augmentation": {"augmentation": "gray"},
    }
    with pytest.raises(ValueError, match=rf"{out}: .*other settings"):
        fit("lse-g" if change == "model" else "lse", out, **settings[change])
    assert (out / "last.pt").read_bytes() == before


def test_a_model_starts_from_the_weights_that_it_shares_with_the_rung_below(runs, fit, tmp_path):
    below = runs("lse-g")[0] / "best.safetensors"
    fit("lsn", tmp_path, epochs=1, rate=0.0, start_from=below)
    weights, given = state(tmp_path)["model"], load_checkpoint(below)[0].state_dict()
    assert set(weights) - set(given) == {"learned_curvature.normal", "learned_curvature.divergence"}
    torch.testing.assert_close({key: weights[key] for key in given}, dict(given), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "below"), [("lse", "unet"), ("unet", "unet-textbook")])
def test_a_start_that_does_not_fit_is_refused(runs, fit, tmp_path, name, below):
    with pytest.raises(ValueError, match=r"best\.safetensors"):
        fit(name, tmp_path, epochs=1, start_from=runs(below)[0] / "best.safetensors")


def test_a_state_that_cannot_be_read_is_named(fit, tmp_path):
    (tmp_path / "last.pt").write_text("no state")
    with pytest.raises(ValueError, match=r"last\.pt"):
        fit("lse", tmp_path)


def test_the_best_checkpoint_is_of_the_first_best_epoch(fit, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.6])
    monkeypatch.setattr(training, "scan_dice", lambda *_: {"0": next(scores)})
    rows = fit("lse", tmp_path)
    assert [row["validation_dice"] for row in rows] == [0.2, 0.6, 0.6]
    best, _, info = load_checkpoint(tmp_path / "best.safetensors")
    assert info["epoch"] == 2
    found = best.coefficients().tolist()
    assert found == [rows[1][key] for key in ("alpha", "beta", "gamma")]
    assert found != [rows[2][key] for key in ("alpha", "beta", "gamma")]


@pytest.mark.parametrize("name", MODELS)
def test_the_best_checkpoint_has_the_dice_of_its_row(runs, sets, name):
    out, rows = runs(name)
    model, preprocessing, info = load_checkpoint(out / "best.safetensors")
    best = max(row["validation_dice"] for row in rows)
    assert rows[info["epoch"] - 1]["validation_dice"] == best
    assert np.mean(list(scan_dice(model, sets[1]).values())) == pytest.approx(best, abs=1e-12)
    assert preprocessing == WORKING
    assert info["train"] == [scan.name for scan in sets[0].scans]
