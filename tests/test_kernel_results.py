"""The committed findings about kernels: a sample is computed again from the weights, and verdicts follow from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.causal import spaces
from experiments.evidence import OTHER_STARTS, SEEDS, judge, points, verdicts
from experiments.jobs import FOLDS
from experiments.subspaces import energy, subspaces
from lsbook.chance import matches, null_rates
from lsbook.checkpoints import load_checkpoint
from lsbook.kernels import classes, nearest, read_kernels
from lsbook.networks import build_model
from lsbook.spectra import spectrum

RESULTS = Path(__file__).parents[1] / "results"
EVIDENCE = json.loads((RESULTS / "kernels.json").read_text())
CAUSAL = json.loads((RESULTS / "causal.json").read_text())
OURS = [name for name in EVIDENCE["networks"] if (RESULTS / "weights" / f"{name}-fold0.safetensors").exists()]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fold", range(FOLDS))
@pytest.mark.parametrize("name", OURS)
def test_findings_are_those_of_the_committed_weights(name, fold):
    model, _, _ = load_checkpoint(RESULTS / "weights" / f"{name}-fold{fold}.safetensors")
    layers, found = read_kernels(model)[0], EVIDENCE["networks"][name][fold]
    assert list(found) == [layer.name for layer in layers]
    for layer in layers:
        kernels, row = points(layer), found[layer.name]
        hit = matches(kernels)
        assert (row["kernels"], row["rate"]) == (len(kernels), pytest.approx(hit.mean()))
        names = np.array(classes())[nearest(kernels).stencil[hit]]
        assert row["classes"] == {str(n): int((names == n).sum()) for n in np.unique(names)}
        for space, basis in subspaces().items():
            assert row["energy"][space] == pytest.approx(energy(kernels, basis), rel=1e-9)
        assert row["norm"] == pytest.approx(spectrum(layer.weight, layer.groups, layer.padding)["bound"], rel=1e-9)


@pytest.mark.parametrize("name", OURS)
def test_null_models_of_a_layer_are_those_that_were_recorded(name):
    model, _, info = load_checkpoint(RESULTS / "weights" / f"{name}-fold0.safetensors")
    layer, others = read_kernels(model)[0][1], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        fresh = read_kernels(build_model(info["model"], **info["options"]))[0]
        others += [points(other) for other in fresh if other.name == layer.name]
    recorded = EVIDENCE["networks"][name][0][layer.name]["null"]
    again = {null: r.mean() for null, r in null_rates(points(layer), {"initialization": others}).items()}
    assert again.pop("initialization") == pytest.approx(recorded["initialization"], abs=1e-12)
    # the others are means of 40 draws; which ones depends on the versions of NumPy and SciPy
    assert again == pytest.approx({null: recorded[null] for null in again}, abs=0.02)


@pytest.mark.parametrize("name", EVIDENCE["networks"])
def test_decisions_and_verdicts_follow_from_the_shares(name):
    networks = EVIDENCE["networks"][name]
    assert len(networks) == len(EVIDENCE["by"][name]) == FOLDS
    judged, stored = judge(networks), EVIDENCE["judged"][name]
    assert (judged["tested"], judged["decision"]) == (stored["tested"], stored["decision"])
    assert judged["p"] == pytest.approx(stored["p"], rel=1e-6)
    assert verdicts(judged) == EVIDENCE["verdicts"][name]


def test_every_network_and_null_model_is_there_from_a_commit():
    assert set(EVIDENCE["networks"]) == {"unet", "unet-textbook", "lse-g", "lsn", "monai-unet"}
    assert set(EVIDENCE["stability"]) == {"lse-g", "lsn"} and set(EVIDENCE["followed"]) == {"unet followed"}
    for name, networks in EVIDENCE["networks"].items():
        for layer in EVIDENCE["judged"][name]["tested"]:
            assert len(networks[0][layer]["null"]) == 6
    commits = {by["commit"] for rows in EVIDENCE["by"].values() for by in rows}
    commits |= {row["commit"] for run in CAUSAL["unet"] for row in run["rows"]}
    assert commits and not any(commit.endswith("-dirty") for commit in commits)
    assert len(EVIDENCE["other starts"]) == len(OTHER_STARTS)


def test_causal_rows_are_of_the_committed_weights():
    assert len(CAUSAL["unet"]) == FOLDS
    for fold, network in enumerate(CAUSAL["unet"]):
        model, _, _ = load_checkpoint(RESULTS / "weights" / f"unet-fold{fold}.safetensors")
        modules = dict(model.named_modules())
        assert {row["target"] for row in network["rows"]} == {la.name for la in read_kernels(model)[0]} | {"all"}
        assert len(network["rows"]) == len(spaces()) * len({row["target"] for row in network["rows"]})
        for row in network["rows"]:
            values = [row["projection"], *row["random subspace"], *row["random removal"]]
            draws = CAUSAL["draws"]["all" if row["target"] == "all" else "layer"]
            assert len(values) == 1 + 2 * draws and 0 <= min(values) <= max(values) <= 1
            if row["target"] != "all":  # as stored: the projection is of the weights before batch normalization
                weight = modules[row["target"]].weight.detach().double().numpy().reshape(-1, 3, 3)
                assert row["energy"] == pytest.approx(energy(weight, spaces()[row["space"]]), rel=1e-9)
