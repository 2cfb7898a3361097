"""Symbols, singular values and bounds, against dense matrices; the Jacobian of a step, against its eigenvalues."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsbook.kernels import dictionary
from lsbook.levelset import sliced_step, speeds
from lsbook.networks import DT, build_model
from lsbook.spectra import network_bound, singular_values, spectral_radius, spectrum, stability, symbol
from lsbook.unet import EdgeNet, UNet

pytestmark = pytest.mark.usefixtures("one_thread")

PADDING = {"zeros": "constant", "circular": "circular", "replicate": "replicate", "reflect": "reflect"}


def dense(weight, shape, groups=1, padding="circular", stride=1, dilation=1):
    """The matrix of a layer: its answers to all unit images, by PyTorch's convolution."""
    images = torch.eye(weight.shape[1] * groups * shape[0] * shape[1], dtype=torch.float64)
    images = images.view(-1, weight.shape[1] * groups, *shape)
    padded = F.pad(images, (dilation,) * 4, mode=PADDING[padding])
    return F.conv2d(padded, torch.from_numpy(weight), None, stride, 0, dilation, groups).flatten(1).T.numpy()


def weights(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# -- symbols and singular values --------------------------------------------------------------------------------------


def test_symbols_of_stencils_are_those_of_the_textbooks():
    y, x = np.linspace(0, np.pi, 5), np.linspace(-np.pi, np.pi, 7)
    yy, xx = np.meshgrid(y, x, indexing="ij")
    expected = {
        "central x": 1j * np.sin(xx),
        "backward x": 1 - np.exp(-1j * xx),
        "forward y": np.exp(1j * yy) - 1,
        "second y": 2 * np.cos(yy) - 2,
        "Laplacian, 5 points": 2 * np.cos(yy) + 2 * np.cos(xx) - 4,
        "mixed xy": -np.sin(xx) * np.sin(yy),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(symbol(dictionary()[name], y, x), value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(5, 6), (4, 7), (3, 3), (6, 4)])
@pytest.mark.parametrize(
    ("sizes", "groups"), [((3, 2, 3, 3), 1), ((2, 3, 3, 3), 1), ((4, 1, 3, 3), 4), ((4, 2, 3, 3), 2)]
)
def test_singular_values_are_those_of_the_dense_matrix(shape, sizes, groups):
    weight = weights(0, *sizes)
    theirs = np.linalg.svd(dense(weight, shape, groups), compute_uv=False)
    ours = singular_values(weight, shape, groups)
    assert len(ours) == shape[0] * shape[1] * groups * min(sizes[0] // groups, sizes[1])
    np.testing.assert_allclose(ours, theirs[: len(ours)], atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDING)
def test_the_bound_holds_for_images_of_any_size_with_any_border(padding, stride):
    """Random layers, and the mean filter, whose zero-padded norm comes near the bound as the image grows."""
    for seed, sizes in enumerate([(2, 2, 3, 3), (1, 3, 3, 3), (3, 1, 3, 3)]):
        weight = weights(seed, *sizes)
        bound = spectrum(weight, padding=padding)["bound"]
        for shape in ((3, 3), (4, 9), (7, 5)):
            assert np.linalg.norm(dense(weight, shape, padding=padding, stride=stride), 2) <= bound + 1e-12
    mean = dictionary()["mean"][None, None]
    norm = np.linalg.norm(dense(mean, (24, 24), padding="zeros"), 2)
    assert 0.93 * spectrum(mean)["bound"] < norm <= spectrum(mean)["bound"]


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_bound_holds_for_dilated_layers(padding):
    """The mean filter comes near it: the bound is not merely large."""
    for seed in range(4):
        weight = weights(seed, 2, 2, 3, 3)
        norm = np.linalg.norm(dense(weight, (7, 8), padding=padding, dilation=2), 2)
        assert norm <= spectrum(weight, padding=padding)["bound"] + 1e-12
    mean = dictionary()["mean"][None, None]
    assert np.linalg.norm(dense(mean, (24, 24), padding=padding, dilation=2), 2) > 0.8


@pytest.mark.parametrize(("padding", "copies"), [("replicate", 2), ("reflect", 3)])
def test_copied_borders_do_need_a_larger_bound(padding, copies):
    """A kernel that looks into the corner: without the factor for copies the bound would be wrong."""
    corner = np.zeros((1, 1, 3, 3))
    corner[0, 0] = np.full((3, 3), 1 / 9)
    shape = (2, 2) if padding == "replicate" else (3, 3)
    norm = np.linalg.norm(dense(corner, shape, padding=padding), 2)
    ratios = [
        np.linalg.norm(dense(w, shape, padding=padding), 2) / spectrum(w)["bound"] for w in weights(8, 200, 1, 1, 3, 3)
    ]
    assert max(ratios) > 1.05
    assert norm <= spectrum(corner, padding=padding)["bound"] == pytest.approx(copies * spectrum(corner)["bound"])


def test_zero_padded_is_no_more_than_periodic_on_a_grid_one_larger():
    """One row of zeros keeps the two ends of a periodic grid apart, so padding restricts the periodic layer."""
    for seed in range(5):
        weight = weights(seed, 2, 2, 3, 3)
        assert np.linalg.norm(dense(weight, (4, 6), padding="zeros"), 2) <= singular_values(weight, (5, 7))[0] + 1e-12


def test_the_bound_lies_above_a_much_finer_grid_and_close():
    for seed in range(20):
        weight = weights(seed, 1, 1, 3, 3)
        fine = singular_values(weight, (240, 240))[0]
        assert fine <= spectrum(weight)["bound"] <= 1.04 * fine


def test_wider_kernels_need_a_wider_margin():
    weight = np.zeros((1, 1, 1, 5))
    weight[0, 0, 0] = [1, 0, 0, 0, 1]
    found = spectrum(weight)
    assert found["bound"] == pytest.approx(found["max"] / np.cos(np.pi / 8))


@pytest.mark.parametrize("size", [5, 17, 31, 33])
def test_the_bound_holds_for_very_large_kernels(size):
    """On 16 angles a kernel of 17 or more is aliased; the angles must grow with it."""
    weight = weights(size, 1, 1, size, size)
    fine = np.abs(np.fft.fft2(weight[0, 0], (256, 256))).max()
    assert fine <= spectrum(weight)["bound"] < 4 * fine


def test_amplification_of_waves_is_what_the_layer_does_to_them():
    """Constant, stripes and checkerboard are eigenvectors of a single kernel on a periodic grid."""
    weight = weights(7, 1, 1, 3, 3)
    sign = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    waves = {
        "constant": torch.ones(6, 6, dtype=torch.float64),
        "stripes_y": sign[:, None].expand(6, 6),
        "stripes_x": sign[None, :].expand(6, 6),
        "checkerboard": sign[:, None] * sign,
    }
    found = spectrum(weight)
    for name, wave in waves.items():
        out = F.conv2d(F.pad(wave[None, None], (1, 1, 1, 1), mode="circular"), torch.from_numpy(weight))
        assert found[name] == pytest.approx(float(out.norm() / wave.norm())), name
    assert found["min"] <= found["median"] <= found["max"]


# -- bounds of networks -----------------------------------------------------------------------------------------------


def gain(net, image):
    """Norm of the Jacobian at an image: a lower bound of the Lipschitz constant."""
    jacobian = torch.autograd.functional.jacobian(net, image)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, image.numel()), 2))


def randomized(net, seed=0):
    """Weights and statistics away from the initial ones; float64, in use."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1.5, 1.5)
            module.running_var.uniform_(0.2, 2)
            module.running_mean.normal_()
    return net.double().eval()


NETWORKS = {
    "additive": lambda: UNet(filters=4, depth=3),
    "textbook": lambda: UNet(filters=4, depth=3, textbook=True),
    "textbook, normalized": lambda: UNet(filters=4, depth=3, textbook=True, batch_norm=True),
    "additive, normalized": lambda: UNet(filters=4, depth=2, batch_norm=True),
    "sequential": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 5)
    ),
    "replicated": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate"), nn.Tanh()),
    "periodic": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 1, 1)),
    "nested, strided": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU()), nn.Conv2d(4, 1, 1)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_jacobian_exceeds_the_bound(name):
    found = []
    for seed in range(4):
        net = randomized(NETWORKS[name](), seed)
        gains = [gain(net, 3 * torch.randn(1, 1, 8, 8, dtype=torch.float64)) for _ in range(3)]
        assert max(gains) <= network_bound(net)
        found.append(max(gains) / network_bound(net))
    assert max(found) > 1e-4


@pytest.mark.parametrize("textbook", [False, True])
def test_the_bound_of_a_unet_is_put_together_as_its_graph_is(textbook):
    """Each first channel is the sum of all channels, so a layer of n channels has the norm sqrt(n), times a margin."""
    net = UNet(filters=1, depth=2, textbook=textbook)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            middle = module.weight.shape[-1] // 2
            module.weight.data[0, :, middle, middle] = 1
    margin = np.cos(np.pi / 16) ** -2
    if textbook:  # 1 -> 1 -> 1, pooled, 1 -> 2 -> 2, doubled by up-sampling, beside the skip 3 -> 1 -> 1
        fine = margin**2
        coarse = fine * margin * (np.sqrt(2) * margin)
        joined = np.sqrt((2 * coarse) ** 2 + fine**2)
        expected = joined * (np.sqrt(3) * margin) * margin / 4
    else:  # a block: the first convolution plus the second of it; up-sampling doubles, the skip is added
        block = margin + margin * margin
        fine, coarse = block, block * block
        expected = (2 * coarse + fine) * block / 4
    assert network_bound(net) == pytest.approx(expected)


def test_normalization_is_folded_before_the_norm_is_taken():
    """Two channels with gains 3 and 0 through kernels of norm 1 and 5: the bound is 3, not 15."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0)).eval()
    net[0].weight.data = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    net[1].weight.data = torch.tensor([3.0, 0.0])
    assert network_bound(net) == pytest.approx(3)


def own_module():
    class Doubles(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    return nn.Sequential(Doubles(1, 1, 3), nn.ReLU())


UNKNOWN = {
    "Doubles": own_module,
    "EdgeNet": EdgeNet,
    "LevelSetNetwork": lambda: build_model("lse"),
    "BatchNorm2d": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
    "replicate borders wider": lambda: nn.Sequential(nn.Conv2d(1, 1, 5, padding=2, padding_mode="replicate")),
    "circular borders wider": lambda: nn.Sequential(nn.Conv2d(1, 1, 1, padding=1, padding_mode="circular")),
    "circular borders wider than a pixel": lambda: nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"),
    "circular borders wider than a pixel or kernel": lambda: nn.Conv2d(1, 1, 2, padding=1, padding_mode="circular"),
    "Softmax": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(1)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_gives_no_bound_and_is_named(name):
    with pytest.raises(TypeError, match=f"no Lipschitz bound is known for {name}"):
        network_bound(UNKNOWN[name]())


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lse", "lsn"])
def test_the_spectral_radius_is_that_of_the_dense_jacobian(name):
    torch.manual_seed(0)
    model = build_model(name, steps=3).double()
    image = torch.rand(1, 1, 12, 10, dtype=torch.float64)
    with torch.no_grad():
        v, u = speeds(model.edge(image), *model.coefficients()), model.start(image)

    def step(w):
        return sliced_step(w, v, 3 * DT, bending=model.learned_curvature)

    jacobian = torch.autograd.functional.jacobian(step, u).reshape(120, 120)
    expected = float(torch.linalg.eigvals(jacobian).abs().max())
    assert spectral_radius(step, u) == pytest.approx(expected, rel=2e-3)


def test_the_spectral_radius_of_diffusion_is_known():
    """u + r Laplacian on a periodic grid: largest |1 + r (2 cos + 2 cos - 4)|, at the checkerboard for large r."""
    laplacian = torch.from_numpy(dictionary()["Laplacian, 5 points"])[None, None]
    u = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    for r, radius in ((0.1, 1.0), (0.25, 1.0), (0.3, 1.4), (0.5, 3.0)):
        found = spectral_radius(lambda w, r=r: w + r * F.conv2d(F.pad(w, (1,) * 4, mode="circular"), laplacian), u)
        assert found == pytest.approx(radius, rel=2e-3)


def noisy_slice(size=24):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 1, size, size, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", ["lse", "lse-g"])
def test_the_cfl_number_is_at_most_one_and_stretches_with_dt(name):
    torch.manual_seed(0)
    model = build_model(name, steps=6)
    found, longer = (stability(model, noisy_slice(), every=3, stretch=s) for s in (1.0, 2.0))
    assert 0 < found["cfl"] <= 0.96 and longer["cfl"] == pytest.approx(2 * found["cfl"])
    assert len(found["radius"]) == len(found["largest"]) == 2
    assert max(found["radius"]) < 1.01
    assert next(model.parameters()).dtype == torch.float32 and model.training


def test_beyond_the_limit_the_radius_exceeds_one_and_u_grows():
    """Curvature alone, at three times its limit dt = h^2 / 2, from the seed disc in a flat image."""
    model = build_model("lse", steps=40)
    model.raw.data = torch.tensor([1.5, 0.0, 0.0])
    flat = torch.zeros(1, 1, 24, 24)
    limit = stability(model, flat, every=39)["cfl"]
    stable, unstable = (stability(model, flat, every=39, stretch=s / limit) for s in (0.9, 3.0))
    assert stable["cfl"] == pytest.approx(0.9) and unstable["cfl"] == pytest.approx(3.0)
    assert max(stable["radius"]) < 1.01 and max(stable["largest"]) < 4.1
    assert max(unstable["radius"]) > 1.2 and unstable["largest"][-1] > 6


def test_learned_curvature_has_no_cfl_number_but_a_radius():
    """Beyond stability u is clipped: it stays where it was started, in [-4, 4], and is wrong there."""
    torch.manual_seed(0)
    model = build_model("lsn", steps=30)
    model.raw.data = torch.tensor([1.0, 0.0, 2.0])
    found, longer = (stability(model, noisy_slice(), every=29, stretch=s) for s in (1.0, 20.0))
    assert found["cfl"] is None and len(found["radius"]) == 2
    assert max(found["radius"]) < 1.02 < 2 < max(longer["radius"])
    assert longer["largest"] == [4.0, 4.0]
