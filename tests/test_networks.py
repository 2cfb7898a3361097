"""The ladder: what is trained, what cannot go unstable, and what a slice's result may depend on."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from lsbook import networks
from lsbook.levelset import LevelSetStep, cfl, divergence_curvature, edge_indicator, regularization, speeds
from lsbook.metrics import dice
from lsbook.networks import (
    BAND,
    DT,
    MODELS,
    SAFETY,
    WIDTH,
    LearnedCurvature,
    LevelSetNetwork,
    build_model,
    disc,
    signed_distance,
)
from lsbook.stencils import CENTRAL, along_x, along_y
from lsbook.unet import EdgeNet, UNet

pytestmark = pytest.mark.usefixtures("one_thread")

LADDER = ("lse", "lse-g", "lsn")


def slices(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape)).to(dtype)


def seeded(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, **options)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Starts


@pytest.mark.parametrize("shape", [(40, 40), (30, 50)])
def test_disc_is_a_clipped_signed_distance(shape):
    u = disc(shape, (0.5, 0.25), 0.2)
    assert u.shape == (1, 1, *shape) and u.dtype == torch.float32
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5  # pixel centres; the slice reaches from 0 to H and to W
    r = np.hypot(y - 0.5 * shape[0], x - 0.25 * shape[1])
    np.testing.assert_allclose(u[0, 0].numpy(), np.clip(0.2 * max(shape) - r, -BAND, BAND), atol=1e-5)
    assert u.max() == BAND and u.min() == -BAND
    assert u[0, 0, shape[0] // 2, shape[1] // 4] > 0 > u[0, 0, 0, -1]
    assert float((u > 0).sum()) == pytest.approx(math.pi * (0.2 * max(shape)) ** 2, rel=0.05)


def blob(seed: int) -> np.ndarray:
    y, x = np.mgrid[:40, :48]
    angle = np.arctan2(y - 18, x - 26)
    return np.hypot(y - 18, x - 26) < 9 + 3 * np.cos((2 + seed) * angle)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_signed_distance_has_the_sign_of_the_mask_and_the_lengths_of_itk(seed, kind):
    mask = blob(seed).astype(kind)
    u = signed_distance(mask)
    assert u.shape == (1, 1, 40, 48) and u.dtype == torch.float32
    u = u[0, 0].numpy()
    np.testing.assert_array_equal(u > 0, mask > 0)
    assert np.abs(u).min() == 0.5 and np.abs(u).max() == BAND

    def to_the_object(binary: np.ndarray) -> np.ndarray:
        image = sitk.GetImageFromArray(binary.astype(np.uint8))
        return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False))

    # ITK measures to the nearest pixel of the other side, half a pixel beyond the border between them.
    expected = np.where(mask > 0, to_the_object(mask == 0) - 0.5, 0.5 - to_the_object(mask > 0))
    np.testing.assert_allclose(u, np.clip(expected, -BAND, BAND), atol=1e-5)


@pytest.mark.parametrize("value", [0, 1])
def test_signed_distance_of_a_mask_without_border_is_the_band_everywhere(value):
    u = signed_distance(np.full((6, 7), value, bool))
    assert torch.equal(u, torch.full((1, 1, 6, 7), BAND if value else -BAND))


# What is trained


def test_what_each_model_trains():
    assert [(n, p.numel()) for n, p in seeded("lse").named_parameters()] == [("raw", 3)]
    edges, kernels = count(EdgeNet()), count(LearnedCurvature())
    assert kernels == 16 * 9 + 16 * 9
    assert count(seeded("lse-g")) == 3 + edges
    assert count(seeded("lsn")) == 3 + edges + kernels
    assert all(p.requires_grad for name in MODELS for p in seeded(name).parameters())


@pytest.mark.parametrize("name", LADDER)
def test_coefficients_start_at_one(name):
    torch.testing.assert_close(seeded(name).coefficients(), torch.ones(3), rtol=0, atol=1e-4)


def test_build_model_knows_its_names_and_passes_options_on():
    for name in MODELS[:3]:
        model = build_model(name, steps=7, seed=(0.5, 0.5, 0.1))
        assert isinstance(model, LevelSetNetwork) and model.steps == 7 and model.seed == [[0.5, 0.5, 0.1]]
        assert (model.edge_net is None, model.learned_curvature is None) == (name == "lse", name != "lsn")
    for name in MODELS[3:]:
        model = build_model(name, depth=3)
        assert isinstance(model, UNet) and model.textbook == (name == "unet-textbook") and len(model.down) == 3
        normalized = any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        assert normalized == (name == "unet-textbook") and model.dropout.p == (0.25 if name == "unet" else 0.0)
    with pytest.raises(ValueError, match="'u-net'.*lse.*unet"):
        build_model("u-net")


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_finite_gradient(name):
    model = seeded(name, **({"steps": 20} if name in LADDER else {}))
    (model.eval()(slices(0, 2, 1, 32, 32)) * slices(1, 2, 1, 32, 32)).sum().backward()
    for label, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.any(), label


# Stability


@pytest.mark.parametrize("size", [1.0, 10.0, 1e3, 1e6])
def test_coefficients_are_stable_for_every_image(size):
    """Huge raw values of any sign, and the steepest g there is: noise, checkerboard, stripes two pixels wide."""
    model = seeded("lse")
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(3)
    checkerboard = (torch.arange(12).view(-1, 1) + torch.arange(12).view(1, -1)) % 2
    images = [
        checkerboard.float()[None, None],
        (stripes.view(-1, 1) * stripes.view(1, -1))[None, None],
        ((stripes.view(-1, 1) + stripes.view(1, -1)) > 0).float()[None, None],
        (slices(0, 4, 1, 12, 12) > 0).float(),
        torch.ones(1, 1, 12, 12),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        model.raw.data = size * torch.randn(3, generator=generator)
        alpha, beta, gamma = model.coefficients().tolist()
        assert alpha >= 0
        assert (beta, gamma) == (pytest.approx(beta), pytest.approx(gamma))
        assert [math.copysign(1, c) for c in (beta, gamma)] == model.raw[1:].sign().tolist()
        for g in images:
            assert cfl(DT, g, alpha, beta, gamma) <= SAFETY * (1 + 1e-5)


def test_coefficients_within_the_limit_are_left_alone():
    model = seeded("lse")
    model.raw.data = torch.tensor([0.0, -0.5, 0.25])
    torch.testing.assert_close(model.coefficients(), torch.tensor([math.log(2), -0.5, 0.25]))


@pytest.mark.parametrize("name", LADDER)
def test_a_front_with_huge_coefficients_stays_finite(name):
    model = seeded(name, steps=50)
    model.raw.data = torch.tensor([50.0, -80.0, 60.0])
    with torch.no_grad():
        u = model.level_set(slices(0, 1, 1, 32, 32))
    assert u.isfinite().all() and u.abs().max() < 2 * BAND


# What the result depends on


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_does_not_depend_on_its_neighbours_in_the_batch(name):
    model = seeded(name).double().eval()
    batch = slices(0, 3, 1, 32, 32, dtype=torch.float64)
    batch[2] *= 10
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(image[None]) for image in batch])
    assert together.shape == batch.shape
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LADDER)
def test_a_given_start_replaces_the_disc(name):
    model, image = seeded(name, steps=20), slices(0, 2, 1, 24, 30)
    with torch.no_grad():
        by_default = model.level_set(image)
        u0 = disc((24, 30), model.seed[0][:2], model.seed[0][2]).expand(2, 1, 24, 30)
        torch.testing.assert_close(model.level_set(image, u0), by_default)
        other = model.level_set(image, -torch.full_like(image, BAND))
    assert (other < 0).all()
    assert not torch.allclose(other, by_default)


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("every, frames", [(10, 4), (7, 5), (25, 2), (40, 2)])
def test_the_trajectory_starts_at_u0_and_ends_at_the_level_set(name, every, frames):
    model, image = seeded(name, steps=25), slices(0, 2, 1, 24, 30)
    with torch.no_grad():
        path = list(model.trajectory(image, every=every))
        assert len(path) == frames
        assert torch.equal(path[0], model.start(image))
        torch.testing.assert_close(path[-1], model.level_set(image), rtol=0, atol=1e-6)
        u0 = disc((24, 30), (0.5, 0.5), 0.2).expand_as(image)
        assert torch.equal(next(model.trajectory(image, u0)), u0)


@pytest.mark.parametrize("name", LADDER)
def test_the_read_out_is_a_sigmoid_of_u(name):
    model, image = seeded(name, steps=5), slices(0, 2, 1, 24, 30)
    with torch.no_grad():
        u, p = model.level_set(image), model(image)
    np.testing.assert_allclose(p.numpy(), 1 / (1 + np.exp(-u.numpy() / WIDTH)), atol=1e-6)


def test_lse_uses_the_formula_for_g_and_its_own_scale():
    model, image = seeded("lse", contrast=0.2, sigma=2.0), slices(0, 2, 1, 24, 30)
    torch.testing.assert_close(model.edge(image), edge_indicator(image, 0.2, 2.0))
    assert not torch.allclose(model.edge(image), edge_indicator(image, 0.2, 1.0))


def test_lse_finds_a_bright_disc_from_a_seed_inside():
    """The whole chain without training: g of the image, the front grows, stops at the edge, is read out."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    target = torch.hypot(y - 30, x - 34) < 16
    image = torch.where(target, 0.5, -0.5)[None, None]
    model = seeded("lse", seed=(0.45, 0.5, 0.06))
    with torch.no_grad():
        start, end = model.start(image) > 0, model(image) > 0.5
    assert dice(target.numpy(), start[0, 0].numpy()) < 0.2
    assert dice(target.numpy(), end[0, 0].numpy()) > 0.92


def test_on_a_flat_image_the_front_grows_by_gamma_t():
    model = seeded("lse", seed=(0.5, 0.5, 0.15))
    model.raw.data = torch.tensor([-30.0, 0.0, 1.0])
    with torch.no_grad():
        area = float((model(torch.zeros(1, 1, 96, 96)) > 0.5).sum())
    assert math.sqrt(area / math.pi) == pytest.approx(0.15 * 96 + model.steps * DT, abs=0.6)


# Learned curvature


def set_to_stencils(curvature: LearnedCurvature) -> None:
    torch.nn.init.zeros_(curvature.normal)
    torch.nn.init.zeros_(curvature.divergence)
    curvature.set_channels(slice(5, 7), torch.stack([along_y(CENTRAL), along_x(CENTRAL)]))


def test_learned_kernels_set_to_stencils_are_the_divergence_form():
    curvature = LearnedCurvature().double()
    set_to_stencils(curvature)
    u = slices(0, 2, 1, 21, 26, dtype=torch.float64)
    torch.testing.assert_close(curvature(u), divergence_curvature(u, regularization((1.0, 1.0))), rtol=0, atol=1e-13)


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_the_lsn_with_kernels_set_to_stencils_is_the_level_set_equation(gamma):
    model = seeded("lsn", steps=20).double()
    set_to_stencils(model.learned_curvature)
    model.raw.data[2] = gamma
    image, u = slices(0, 2, 2, 1, 21, 26, dtype=torch.float64)
    step = LevelSetStep(DT, bending=lambda u: divergence_curvature(u, regularization((1.0, 1.0))))
    with torch.no_grad():
        ours = model.level_set(image, u)
        v = speeds(model.edge(image), *model.coefficients())
        expected = u
        for _ in range(20):
            expected = step(expected, v)
            assert expected.abs().max() < BAND  # where nothing is clipped
    assert (expected - u).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_learned_curvature_starts_near_the_divergence_form():
    """On a circle it gives about -1 / r; the random channels disturb it, and are there to be trained."""
    torch.manual_seed(0)
    curvature = LearnedCurvature()
    assert torch.equal(curvature.normal[0, 0].double(), along_y(CENTRAL))
    assert torch.equal(curvature.divergence[0, 1].double(), along_x(CENTRAL))
    assert 0.03 < curvature.normal[2:].std() < 0.07
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    r = torch.hypot(y, x)[None, None]
    with torch.no_grad():
        bent = curvature((10 - r).clamp(-BAND, BAND))
    assert float(bent[(r > 8) & (r < 12)].mean()) == pytest.approx(-0.1, abs=0.05)


def test_learned_curvature_is_bounded():
    """|kappa| <= 2 per pixel, whatever was learned."""
    torch.manual_seed(0)
    curvature = LearnedCurvature()
    torch.nn.init.normal_(curvature.divergence, std=100.0)
    u = slices(0, 1, 1, 16, 16)
    y, x = np.gradient(u[0, 0].numpy())
    with torch.no_grad():
        bent = curvature(u)[0, 0].numpy()
    ratio = np.abs(bent[1:-1, 1:-1]) / np.hypot(y, x)[1:-1, 1:-1]
    assert 1.99 < ratio.max() < 2 + 1e-4


def test_the_lsn_stays_in_its_band_and_would_not_without_the_clip(monkeypatch):
    """The CFL bound does not know what was learned: kernels of the wrong sign let the flow run backwards and grow."""
    model = seeded("lsn", steps=100)
    set_to_stencils(model.learned_curvature)
    model.learned_curvature.divergence.data *= -10
    image, u0 = slices(0, 1, 1, 24, 24), BAND * slices(1, 1, 1, 24, 24)
    with torch.no_grad():
        assert model.level_set(image, u0).abs().max() <= BAND
        monkeypatch.setattr(networks, "BAND", math.inf)
        assert model.level_set(image, u0).abs().max() > 2 * BAND


# Checkpointing


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("every", [1, 4, 10, 30])
def test_checkpointing_changes_neither_output_nor_gradients(name, every):
    image, results = slices(0, 2, 1, 20, 22), []
    for segment in (0, every):
        model = seeded(name, steps=10, checkpoint_every=segment)
        out = model(image)
        (out * slices(1, 2, 1, 20, 22)).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def kept(model: LevelSetNetwork, image: torch.Tensor) -> int:
    """Numbers that autograd saves in a forward pass for the backward pass, outside checkpointed segments."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: sizes.append(saved.numel()), lambda nothing: nothing):
        model(image)
    return sum(sizes)


@pytest.mark.parametrize("name", ["lse", "lse-g"])
def test_checkpointing_keeps_less_in_memory(name):
    """Autograd through 100 convolutions keeps many arrays of each; ten segments keep their ends only."""
    image = slices(0, 2, 1, 64, 64)
    everything = kept(seeded(name, method="stacked"), image)
    assert everything > 1000 * image.numel()
    assert kept(seeded(name, method="stacked", checkpoint_every=10), image) < everything / 4


def test_gradcheck_of_the_learned_layers():
    torch.manual_seed(5)
    u = (3 * torch.randn(1, 1, 8, 8, dtype=torch.float64)).requires_grad_()
    bend = LearnedCurvature(channels=3).double()
    assert torch.autograd.gradcheck(bend, u)
    weights = [p.detach().clone().requires_grad_() for p in bend.parameters()]

    def of_weights(normal, divergence):
        return torch.func.functional_call(bend, {"normal": normal, "divergence": divergence}, (u.detach(),))

    assert torch.autograd.gradcheck(of_weights, weights)
    net = EdgeNet().double().eval()
    assert torch.autograd.gradcheck(net, u.detach().clone().requires_grad_(), atol=1e-6)


def test_several_discs_start_their_union():
    model = seeded("lse", steps=0, seed=[(0.3, 0.3, 0.1), (0.6, 0.7, 0.15)])
    image = slices(0, 2, 1, 24, 30)
    u0 = torch.maximum(disc((24, 30), (0.3, 0.3), 0.1), disc((24, 30), (0.6, 0.7), 0.15))
    torch.testing.assert_close(model.level_set(image), u0.expand(2, 1, 24, 30), rtol=0, atol=0)


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("method", ["auto", "stacked"])
def test_steps_stay_in_single_precision_under_autocast(name, method):
    model, image = seeded(name, steps=20, method=method), slices(0, 2, 1, 24, 30)
    with torch.no_grad():
        plain = model.level_set(image)
        with torch.autocast("cpu", torch.bfloat16):
            under = model.level_set(image)
            if model.edge_net is not None:
                assert (model.edge(image) - model.edge(image).bfloat16()).abs().max() == 0  # the net itself is not
        assert under.dtype == torch.float32
        if name == "lse":
            torch.testing.assert_close(under, plain, rtol=0, atol=0)
        else:
            assert 0 < (under - plain).abs().max() < 0.2  # g differs by its rounding
