"""Networks of the experiment alone: kernels that stay in a subspace, MONAI's U-Net, kernels followed."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments import jobs as jobs_module
from experiments import run as running
from experiments.jobs import RECIPES, Job, Recipe
from experiments.run import Experiment
from experiments.subspaces import project, subspaces
from experiments.variants import build, convolutions, load
from lsbook.ct import find_scans
from lsbook.kernels import read_kernels
from lsphantom.patients import write_cohort

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Trainings of two epochs on slices of 32 pixels."""
    quick = {"unet": Recipe(2, rate=2e-3), "monai-unet": Recipe(2, rate=2e-3, precision="bf16-mixed")}
    monkeypatch.setattr(jobs_module, "RECIPES", RECIPES | quick)
    monkeypatch.setattr(running, "RECIPES", RECIPES | quick)
    monkeypatch.setattr(running, "preprocessing", lambda job: running.Preprocessing(32))
    folder = write_cohort(tmp_path / "cohort", 9, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    return Experiment(find_scans(folder), [], tmp_path / "out", known_spacing=False)


@pytest.mark.parametrize("name", subspaces())
def test_kernels_stay_in_their_subspace_while_they_learn(name):
    basis = subspaces()[name]
    torch.manual_seed(0)
    free = build("unet", filters=4)
    torch.manual_seed(0)
    model = build("unet", within=name, filters=4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = model.down[1].first[0].weight.detach().clone()
    lengths = [sum(float(c.weight.detach().norm() ** 2) for c in convolutions(m).values()) for m in (free, model)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 32, 32)).mean().backward()
        optimizer.step()
    assert not torch.equal(before, model.down[1].first[0].weight)
    for conv in convolutions(model).values():
        weight = conv.weight.detach().double().numpy()
        np.testing.assert_allclose(project(weight, basis), weight, atol=1e-6)


def test_a_job_with_kept_kernels_is_trained_tested_and_read_again(experiment):
    job = Job("unet", 0, 0, "stencils")
    experiment.run(job)
    assert experiment.report(job).is_file()
    model, info = load(experiment.out / job.name / "best.safetensors")
    assert info["options"] == {"within": "level set stencils"}
    assert not any("parametrizations" in key for key in model.state_dict())
    for layer in read_kernels(model)[0]:
        near = project(layer.weight, subspaces()["level set stencils"])
        np.testing.assert_allclose(near, layer.weight, atol=1e-6)


def test_a_followed_training_is_the_same_training_and_keeps_its_kernels(experiment):
    for variant in ("", "followed"):
        experiment.run(Job("unet", 0, 0, variant))
    same, followed = (experiment.out / Job("unet", 0, 0, v).name for v in ("", "followed"))
    one, other = (load_file(folder / "best.safetensors") for folder in (same, followed))
    assert all(torch.equal(one[key], other[key]) for key in one)
    epochs = sorted((followed / "epochs").iterdir())
    assert [path.stem for path in epochs] == ["001", "002"]
    kernels = [load_file(path) for path in epochs]
    assert not torch.equal(*(k["down.0.first.0.weight"] for k in kernels))
    assert any(all(torch.equal(k[key], one[key]) for key in k) for k in kernels)  # the best epoch is one of them


def test_monai_learns_by_the_same_loop(experiment):
    job = Job("monai-unet", 0)
    experiment.run(job)
    model, _ = load(experiment.out / job.name / "best.safetensors")
    layers, skipped = read_kernels(model)
    assert len(layers) > 10 and "transposed" in str(skipped)
