"""Networks of the experiment alone: a balloon that asks gray values, kernels kept in a subspace or followed."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments import jobs as jobs_module
from experiments import run as running
from experiments.classical import contrast_to_seed
from experiments.jobs import RECIPES, Job, Recipe
from experiments.lse_search import SEARCHES, tune_lse
from experiments.run import Experiment
from experiments.subspaces import project, subspaces
from experiments.variants import GrayLSE, build, convolutions, load
from lsbook.ct import find_scans
from lsbook.kernels import read_kernels
from lsbook.networks import LevelSetNetwork
from lsphantom.patients import write_cohort

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Trainings of two epochs on slices of 32 pixels."""
    quick = {
        "lse": RECIPES["lse"],
        "unet": Recipe(2, rate=2e-3),
        "monai-unet": Recipe(2, rate=2e-3, precision="bf16-mixed"),
    }
    monkeypatch.setattr(jobs_module, "RECIPES", RECIPES | quick)
    monkeypatch.setattr(running, "RECIPES", RECIPES | quick)
    monkeypatch.setattr(running, "preprocessing", lambda job: running.Preprocessing(32))
    folder = write_cohort(tmp_path / "cohort", 9, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    return Experiment(find_scans(folder), [], tmp_path / "out", known_spacing=False)


@pytest.mark.parametrize("likeness", [0.0, 3.0])
def test_the_gray_balloon_is_that_of_the_likeness_which_the_classical_peers_use(likeness):
    options = {"sigma": 1.5, "seed": (0.4, 0.6, 0.2), "steps": 30}
    gray, plain = GrayLSE(likeness, **options), LevelSetNetwork(False, False, **options)
    image = torch.rand(2, 1, 31, 24, generator=torch.Generator().manual_seed(0)) * 2 - 0.8
    seed = (plain.start(image)[0, 0] > 0).numpy()
    assert seed.sum() % 2, "with an odd number of pixels all medians agree"
    v, other = gray.speeds(image), plain.speeds(image)
    assert all(torch.equal(a, b) for a, b in zip(v[:3], other[:3], strict=True)), "edges act as before"
    for push, slice_ in zip(v.push[:, 0].detach().numpy(), image[:, 0].numpy(), strict=True):
        like = 1 / (1 + (likeness * contrast_to_seed(slice_, seed, 1.5)) ** 2)
        np.testing.assert_allclose(push, gray.coefficients()[2].item() * (2 * like - 1), atol=1e-5)
    assert likeness == 0 or v.push.min() < 0 < v.push.max()


def test_the_gray_balloon_stops_where_there_is_no_edge():
    """A bright disc that fades out slowly: g is about 1 all over, so only the gray value tells where to stop."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    image = (0.6 - 0.02 * torch.hypot(y - 24, x - 24))[None, None]
    options = {"seed": (0.5, 0.5, 0.1), "steps": 200, "contrast": 0.3}
    areas = [int((m(image) > 0.5).sum()) for m in (GrayLSE(5.0, **options), LevelSetNetwork(False, False, **options))]
    assert areas[1] == image.numel()
    radius = (areas[0] / np.pi) ** 0.5  # it rests where I - m = 1 / 5, ten pixels from where I = m, for straight fronts
    assert 8 < radius < 14


@pytest.mark.parametrize("variant", ["wide", "gray"])
def test_a_job_of_a_solver_is_tuned_in_its_ranges_trained_tested_and_read_again(experiment, monkeypatch, variant):
    ranges, most = SEARCHES[variant]

    def quick(dataset, center, steps, **options):
        assert (options["ranges"], steps) == (ranges, most)
        return tune_lse(dataset, center, **options, steps=40, draws=10, refinements=2, slices=(6, 12))

    monkeypatch.setattr(running, "tune_lse", quick)
    job = Job("lse", 0, 0, variant)
    experiment.run(job)
    model, info = load(experiment.out / job.name / "best.safetensors")
    assert isinstance(model, GrayLSE) == (variant == "gray")
    for name in ranges.keys() & info["options"].keys():
        assert ranges[name][0] <= info["options"][name] <= ranges[name][1]
    if variant == "gray":
        assert info["options"]["likeness"] == model.likeness
    assert experiment.report(job).is_file()


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
