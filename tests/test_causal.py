"""The causal test: weights are put back, a space that holds all kernels costs nothing, controls are drawn."""

import numpy as np
import pytest
import torch

from experiments.causal import WITH_MEAN, causal_rows, changed_dice, spaces
from experiments.subspaces import MEAN, random_basis, subspaces
from experiments.variants import build, convolutions
from lsbook.kernels import read_kernels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network():
    """A small U-Net whose kernels are all level set stencils, and a score that falls as its output changes."""
    torch.manual_seed(0)
    model = build("unet", filters=4, depth=2).eval()
    basis = torch.from_numpy(subspaces()["level set stencils"]).float()
    with torch.no_grad():
        for conv in convolutions(model).values():
            conv.weight.copy_((conv.weight.flatten(2) @ basis.T @ basis).view_as(conv.weight))
    image = torch.randn(1, 1, 16, 16)

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model(image)

    before = output()
    return model, lambda: 1 - float((output() - before).abs().max())


def test_weights_are_put_back_also_after_an_error(network):
    model, score = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert changed_dice(model, score, ["down.0.first.0"], np.zeros_like) < 1
    with pytest.raises(RuntimeError):
        changed_dice(model, score, ["down.0.first.0"], lambda w: w[..., :2])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_space_that_holds_the_kernels_costs_nothing_and_its_controls_do(network):
    model, score = network
    rows = list(causal_rows(model, score, {"layer": 1, "all": 2}))
    assert len(rows) == 5 * (len(read_kernels(model)[0]) + 1)
    for row in rows:
        holds = row["space"] in ("mean-zero", "level set stencils", WITH_MEAN)
        assert (row["energy"] == pytest.approx(1, abs=1e-6)) == holds
        assert (row["projection"] > 1 - 1e-5) == holds
        assert len(row["random subspace"]) == (2 if row["target"] == "all" else 1)
        assert max(row["random subspace"]) < 1 - 1e-5
        assert (min(row["random removal"]) > 1 - 1e-5) == holds  # nothing to remove


def test_rows_that_are_done_are_not_done_again_and_the_others_are_the_same(network):
    model, score = network
    rows = list(causal_rows(model, score, {"layer": 1, "all": 1}))
    done = [(row["target"], row["space"]) for row in rows[3:]]
    assert list(causal_rows(model, score, {"layer": 1, "all": 1}, done)) == rows[:3]


def test_random_spaces_beside_stencils_and_mean_hold_the_mean_too():
    assert len(spaces()[WITH_MEAN]) == 6 and np.allclose(MEAN @ spaces()[WITH_MEAN].T @ spaces()[WITH_MEAN], MEAN)
    rng = np.random.default_rng(0)
    for hold, share in ((MEAN, 1.0), (MEAN[:0], 6 / 9)):
        bases = [random_basis(6, rng, hold) for _ in range(1500)]
        assert np.allclose([b @ b.T for b in bases], np.eye(6))
        assert np.mean([((b @ MEAN[0]) ** 2).sum() for b in bases]) == pytest.approx(share, abs=0.03)
