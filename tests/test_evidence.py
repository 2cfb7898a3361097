"""The evidence over folds: planted stencils are found, random kernels are not, and the rule gives the verdicts."""

import numpy as np
import pytest
import torch

from experiments import causal
from experiments.evidence import followed, judge, one_job, one_network, stability_of, verdicts
from experiments.jobs import Job
from experiments.run import Experiment
from experiments.variants import Follow, build, convolutions
from lsbook.kernels import atoms

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int, planted: tuple[str, ...] = ()) -> torch.nn.Module:
    """A U-Net of random kernels, in some layers stencils with a little noise."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build("unet", filters=8, depth=2)
    with torch.no_grad():
        for name, conv in convolutions(model).items():
            conv.weight.copy_(torch.randn_like(conv.weight))
            if name in planted:
                chosen = atoms()[rng.integers(len(atoms()), size=conv.weight[..., 0, 0].numel())]
                noisy = chosen + 0.17 * rng.standard_normal(chosen.shape)
                conv.weight.copy_(torch.from_numpy(noisy).view_as(conv.weight))
    return model


@pytest.fixture(scope="module")
def found():
    """Five networks with stencils in one layer, analysed."""
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    planted = ("down.1.first.0",)
    return [one_network(network(seed, planted), [network(100 + seed)], images) for seed in range(5)]


def test_only_the_layer_with_planted_stencils_holds_more_than_chance(found):
    judged = judge(found)
    assert "down.0.first.0" not in judged["tested"]  # eight kernels are too few
    decisions = dict(zip(judged["tested"], judged["decision"], strict=True))
    assert decisions.pop("down.1.first.0") == "more"
    assert set(decisions.values()) == {"not told"}
    layer = found[0]["down.1.first.0"]
    assert layer["rate"] > 0.5 and layer["cosine"] > 0.8
    assert set(layer["null"]) >= {"Gaussian", "entries permuted", "initialization", "components of the input"}


def test_energies_of_random_kernels_are_the_share_of_dimensions(found):
    for name, dimension in (("mean-zero", 8), ("level set stencils", 5), ("central differences", 2)):
        shares = [n["up.0.first.0"]["energy"][name] for n in found]
        assert np.mean(shares) == pytest.approx(dimension / 9, abs=0.08)


@pytest.mark.parametrize(
    ("decisions", "differ", "p6", "p7"),
    [
        (["more", "less"], 0.01, "confirmed", "confirmed"),
        (["more", "more"], 0.01, "confirmed", "undecided"),
        (["not told", "not told", "less"], 0.01, "undecided", "confirmed"),
        (["not told"], 0.5, "refuted", "refuted"),
    ],
)
def test_verdicts_follow_the_rule(decisions, differ, p6, p7):
    assert verdicts({"decision": decisions, "layers_differ_p": differ}) == {"P6": p6, "P7": p7}


@pytest.mark.parametrize("analyse", [one_job, causal.one_network])
def test_a_training_that_still_runs_is_not_analysed(analyse, tmp_path):
    (tmp_path / "unet-fold0-seed0").mkdir()
    with pytest.raises(FileNotFoundError, match=r"report\.json: the job is not finished: `python -m experiments run`"):
        analyse(Experiment([], [], tmp_path), Job("unet", 0))


def test_followed_kernels_start_with_the_fresh_network(tmp_path):
    model = network(0)
    follow = Follow(tmp_path / "epochs")
    follow.on_epoch_end(model, 1)
    rows = followed(tmp_path / "epochs", network(1))
    again = followed(tmp_path / "epochs", model)
    assert len(rows) == 2 and rows[0] != rows[1] and again[0] == again[1] == rows[1]
    first = next(iter(convolutions(model).values())).weight.detach().reshape(-1, 3, 3)
    np.testing.assert_allclose(rows[1]["first"], first, atol=6e-4)


def test_stability_has_a_row_for_each_stretch_and_grows_with_it():
    torch.manual_seed(0)
    model = build("lse-g", steps=12)
    rows = stability_of(model, torch.randn(1, 1, 16, 16))
    assert [row["stretch"] for row in rows] == [1.0, 2.0, 4.0]
    assert rows[0]["cfl"] <= 0.95 + 1e-9 and rows[2]["cfl"] == pytest.approx(4 * rows[0]["cfl"])
    assert rows[2]["radius"][-1] > rows[0]["radius"][-1]
