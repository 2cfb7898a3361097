"""Reading kernels from any source, and naming them: stencil, moments, operator, each against an independent path."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn

from lsbook import stencils
from lsbook.checkpoints import save_checkpoint
from lsbook.kernels import (
    CONFUSABLE,
    Nearest,
    atoms,
    classes,
    dictionary,
    moments,
    nearest,
    operators,
    read_kernels,
)
from lsbook.networks import build_model
from lsbook.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = list(dictionary())


def kernel(*rows):
    return np.array(rows, dtype=float)


def text(k):
    (found,) = operators(np.array(k, dtype=float)[None])
    return found.text


# -- the dictionary ---------------------------------------------------------------------------------------------------


def test_the_dictionary_holds_the_eleven_of_the_paper_and_the_stencils_of_the_level_set_equation():
    """Written out once more as integers; only direction and sign count here, the scale has a test of its own."""
    paper = {
        "mean": kernel([1, 1, 1], [1, 1, 1], [1, 1, 1]),
        "Laplacian, 5 points": kernel([0, 1, 0], [1, -4, 1], [0, 1, 0]),
        "Laplacian, 9 points": kernel([1, 1, 1], [1, -8, 1], [1, 1, 1]),
        "Laplacian, diagonal": kernel([1, 0, 1], [0, -4, 0], [1, 0, 1]),
        "Gaussian": kernel([1, 2, 1], [2, 4, 2], [1, 2, 1]),
        "Sobel x": kernel([-1, 0, 1], [-2, 0, 2], [-1, 0, 1]),
        "Sobel y": kernel([-1, -2, -1], [0, 0, 0], [1, 2, 1]),
        "identity": kernel([0, 0, 0], [0, 1, 0], [0, 0, 0]),
        "sharpen": kernel([0, -1, 0], [-1, 5, -1], [0, -1, 0]),
        "second diagonal down": kernel([1, 0, 0], [0, -2, 0], [0, 0, 1]),
        "second diagonal up": kernel([0, 0, 1], [0, -2, 0], [1, 0, 0]),
    }
    ours = {name.replace("_", " "): k.numpy() for name, k in stencils.kernels().items()}
    ours["mixed xy"] = ours.pop("mixed")
    ours["central x"], ours["central y"] = (
        kernel([0, 0, 0], [-1, 0, 1], [0, 0, 0]),
        kernel([0, -1, 0], [0] * 3, [0, 1, 0]),
    )
    assert set(NAMES) == set(paper | ours) and len(NAMES) == 20
    for name, k in (paper | ours).items():
        found = nearest(k[None])
        assert found.cosine[0] == pytest.approx(1, abs=1e-12), name
        assert NAMES[found.stencil[0]] == name


def test_every_orientation_and_sign_of_every_stencil_is_in_the_dictionary():
    """The symmetries of the square: turns and mirror images. One-sided differences turn into each other."""
    for name, k in dictionary().items():
        for turned in (np.rot90(k), np.rot90(k, 2), np.fliplr(k), k.T, -k):
            assert abs(nearest(turned[None]).cosine[0]) == pytest.approx(1, abs=1e-12), name


def test_sobel_edges_differ_by_their_sign_only():
    right = kernel([-1, 0, 1], [-2, 0, 2], [-1, 0, 1])
    found = nearest(np.stack([right, -right]))
    assert [NAMES[n] for n in found.stencil] == ["Sobel x", "Sobel x"]
    np.testing.assert_allclose(found.cosine, [1, -1])
    np.testing.assert_allclose(found.scale, [8, -8])


def test_stencils_that_nearly_coincide_are_one_class():
    """The class is the set of Laplacians, with sharpen, which is a Laplacian and the identity."""
    family = dict(zip(NAMES, classes(), strict=True))
    alike = {n for n in NAMES if family[n] == family["Laplacian, 5 points"]}
    assert alike == {"Laplacian, 5 points", "Laplacian, 9 points", "Laplacian, diagonal", "sharpen"}
    assert len(set(classes())) == 17
    five, nine = dictionary()["Laplacian, 5 points"], dictionary()["Laplacian, 9 points"]
    cosine = (five * nine).sum() / np.sqrt((five**2).sum() * (nine**2).sum())
    assert cosine == pytest.approx(3 / np.sqrt(10)) and round(cosine, 2) == 0.95


def test_stencils_of_different_classes_are_less_alike_than_the_two_laplacians():
    gram, family = np.abs(atoms() @ atoms().T), np.array(classes())
    assert gram[family[:, None] != family].max() < CONFUSABLE < 3 / np.sqrt(10)


def test_nearest_is_the_smallest_angle_of_a_search_one_by_one():
    points = np.random.default_rng(0).standard_normal((50, 3, 3))
    found = nearest(points)
    for n, k in enumerate(points):
        cosines = [(k * a).sum() / np.sqrt((k**2).sum() * (a**2).sum()) for a in dictionary().values()]
        best = int(np.argmax(np.abs(cosines)))
        assert (found.stencil[n], found.cosine[n]) == (best, pytest.approx(cosines[best]))
        a = dictionary()[NAMES[best]].ravel()
        (scale,) = np.linalg.lstsq(a[:, None], k.ravel(), rcond=None)[0]
        assert found.scale[n] == pytest.approx(scale)


def test_a_zero_kernel_has_no_nearest_stencil_and_a_small_one_has():
    tiny = 1e-5 * dictionary()["central x"]
    found = nearest(np.stack([np.zeros((3, 3)), tiny, dictionary()["mean"]]))
    assert found.stencil.tolist() == [-1, NAMES.index("central x"), NAMES.index("mean")]
    assert found.cosine[0] == found.scale[0] == 0 and found.scale[1] == pytest.approx(1e-5)
    assert isinstance(found, Nearest)


# -- moments and operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_moments_are_what_correlation_makes_of_polynomials(spacing):
    """Independent path: SciPy correlates (no flip) the kernel with x^a y^b / (a! b!) sampled around 0."""
    points = np.random.default_rng(1).standard_normal((7, 3, 3))
    y, x = np.meshgrid(*(h * np.arange(-3.0, 4.0) for h in spacing), indexing="ij")
    for n, k in enumerate(points):
        for a, b in np.ndindex(3, 3):
            polynomial = x**a * y**b / ((1, 1, 2)[a] * (1, 1, 2)[b])
            value = ndimage.correlate(polynomial, k, mode="nearest")[3, 3]
            assert moments(points, spacing)[n, a, b] == pytest.approx(value, abs=1e-12)


def test_the_nine_moments_determine_the_kernel():
    rows = moments(np.eye(9).reshape(9, 3, 3)).reshape(9, 9)
    assert np.linalg.matrix_rank(rows) == 9


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_stencils_of_any_spacing_have_the_moment_one(spacing):
    """The kernels that the equation's networks use hold 1 / h: their operator has the coefficient 1 at that h."""
    where = {"backward_y": (0, 1), "forward_y": (0, 1), "backward_x": (1, 0), "forward_x": (1, 0)}
    where |= {"second_y": (0, 2), "second_x": (2, 0), "mixed": (1, 1)}
    for name, k in stencils.kernels(spacing).items():
        assert moments(k.numpy()[None], spacing)[0][where[name]] == pytest.approx(1), name


TEXTS = {
    "central x": "1 u_x; order 1, error O(h^2)",
    "central y": "1 u_y; order 1, error O(h^2)",
    "backward x": "1 u_x -0.5 u_xx; order 1, error O(h^1)",
    "forward y": "1 u_y +0.5 u_yy; order 1, error O(h^1)",
    "second x": "1 u_xx; order 2, error O(h^2)",
    "mixed xy": "1 u_xy; order 2, error O(h^2)",
    "Sobel x": "1 u_x +0.25 u_xyy; order 1, error O(h^2)",
    "Sobel y": "1 u_y +0.25 u_xxy; order 1, error O(h^2)",
    "Laplacian, 5 points": "1 u_xx +1 u_yy; order 2, error O(h^2)",
    "Laplacian, 9 points": "1 u_xx +1 u_yy +0.333 u_xxyy; order 2, error O(h^2)",
    "second diagonal down": "1 u_xy +0.5 u_xx +0.5 u_yy +0.25 u_xxyy; order 2, error O(h^2)",
    "second diagonal up": "-1 u_xy +0.5 u_xx +0.5 u_yy +0.25 u_xxyy; order 2, error O(h^2)",
    "identity": "1 u; order 0 (it has a mean), exact",
    "mean": "1 u +0.333 u_xx +0.333 u_yy +0.111 u_xxyy; order 0 (it has a mean), error O(h^2)",
    "sharpen": "1 u -1 u_xx -1 u_yy; order 0 (it has a mean), error O(h^2)",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_operator_of_a_stencil_as_text(name):
    assert text(dictionary()[name]) == TEXTS[name]


def test_sign_scale_and_axes_are_in_the_text():
    """A downwind stencil for transport to the right is a forward difference; rows count downwards."""
    assert text([[0, 0, 0], [0, 2, -2], [0, 0, 0]]) == "-2 u_x -1 u_xx; order 1, error O(h^1)"
    assert text([[0, -1, 0], [0, 0, 0], [0, 1, 0]]) == "2 u_y; order 1, error O(h^2)"
    assert text([[1, 0, -1], [0, 0, 0], [-1, 0, 1]]) == "4 u_xy; order 2, error O(h^2)"
    assert text([[0, 0, 0], [0, -3, 0], [0, 0, 0]]) == "-3 u; order 0 (it has a mean), exact"
    assert text(np.zeros((3, 3))) == "zero kernel"


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_error_is_the_one_that_is_observed(name):
    """On a smooth function, halving h divides the error by 2^order. Kernels are scaled by h^-(order of derivative)."""
    k = dictionary()[name]
    (found,) = operators(k[None])
    m, errors = moments(k[None])[0], []
    for h in (0.02, 0.01):
        y, x = np.meshgrid(h * np.arange(-1.0, 2.0) + 0.3, h * np.arange(-1.0, 2.0) + 0.7, indexing="ij")
        terms = [(a, found.order - a) for a in range(3) if 0 <= found.order - a < 3]
        exact = sum(m[a, b] * 1.1**a * np.exp(1.1 * 0.7) * 0.9**b * np.exp(0.9 * 0.3) for a, b in terms)
        errors.append(abs((k * np.exp(1.1 * x + 0.9 * y)).sum() / h**found.order - exact))
    if found.accuracy is None:
        assert max(errors) < 1e-12
    else:
        assert np.log2(errors[0] / errors[1]) == pytest.approx(found.accuracy, abs=0.1)


def test_eleven_percent_of_random_kernels_have_a_negligible_mean():
    """The share that the module states: what chance gives when kernels are called mean-zero."""
    found = operators(np.random.default_rng(0).standard_normal((20_000, 3, 3)))
    assert np.mean([o.order > 0 for o in found]) == pytest.approx(0.11, abs=0.01)


def test_a_small_mean_is_neglected_and_a_larger_one_makes_the_order_zero():
    """The border is a cosine of 0.05 with the mean kernel, whatever the scale."""
    central, mean = (k / np.linalg.norm(k) for k in (dictionary()["central x"], dictionary()["mean"]))
    for scale in (1e-3, 1e3):
        assert operators(scale * (central + 0.045 * mean)[None])[0].order == 1
        assert operators(scale * (central + 0.055 * mean)[None])[0].order == 0


# -- reading ----------------------------------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False))


def test_module_state_dict_safetensors_and_npz_give_the_same_kernels(tmp_path):
    net = small_network()
    state = net.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{k: v.numpy() for k, v in state.items()})
    for source in (net, state, tmp_path / "a.safetensors", str(tmp_path / "a.npz")):
        layers, skipped = read_kernels(source)
        assert [layer.name for layer in layers] == ["0", "3"] and skipped == {}
        assert [layer.folded for layer in layers] == ["1", ""]
        assert layers[0].weight.dtype == np.float64
        np.testing.assert_array_equal(layers[1].weight, net[3].weight.detach().double().numpy())
        assert layers[0].padding == ("zeros" if source is net else "unknown")


def settle(net, norms):
    """Batch normalization as after a training: statistics and gains that matter, some of them negative."""
    generator = torch.Generator().manual_seed(3)
    for norm in norms:
        for part, (low, high) in {norm.weight: (-2, 2), norm.running_var: (0.1, 3), norm.running_mean: (-1, 1)}.items():
            part.data = torch.empty_like(part).uniform_(low, high, generator=generator)
    return net.double().eval()


class Named(nn.Module):
    """Two convolutions with the names that residual networks give them; the second normalization has another eps."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 5, 3, groups=5), nn.BatchNorm2d(5, eps=0.5)

    def forward(self, x):
        return self.norm2(self.conv2(self.bn1(self.conv1(x))))


def test_folded_kernels_do_what_convolution_and_normalization_do():
    """Independent path: differences of the network's outputs for two inputs, which no bias enters."""
    net = Named()
    settle(net, [net.bn1, net.norm2])
    first, second = read_kernels(net)[0]
    assert (first.folded, second.folded, second.groups) == ("bn1", "norm2", 5)
    a, b = torch.randn(2, 1, 3, 9, 9, dtype=torch.float64)
    ours = torch.nn.functional.conv2d(a - b, torch.from_numpy(first.weight))
    ours = torch.nn.functional.conv2d(ours, torch.from_numpy(second.weight), groups=5)
    torch.testing.assert_close(ours, (net(a) - net(b)).detach(), rtol=1e-9, atol=1e-9)


def test_every_layer_of_the_textbook_unet_has_its_normalization_folded(tmp_path):
    net = UNet(filters=2, depth=3, textbook=True, batch_norm=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "a.safetensors")
    for source in (net, tmp_path / "a.safetensors"):
        layers, skipped = read_kernels(source)
        assert len(layers) == 10 and all(layer.folded for layer in layers)
        assert skipped == {"readout": "1x1 kernels, not 3x3"}


def test_monai_names_its_normalization_otherwise():
    """Its up-sampling layers are transposed convolutions: they are skipped, and so is what normalizes them."""
    import monai.networks.nets  # here, because it takes seconds

    options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (4, 8, 16), "strides": (2, 2)}
    layers, skipped = read_kernels(monai.networks.nets.UNet(**options, norm="BATCH", num_res_units=0))
    assert len(layers) == 3 and all(layer.folded.endswith("adn.N") for layer in layers)
    reasons = sorted(reason.split(" ")[0] for reason in skipped.values())
    assert reasons == ["batch", "transposed", "transposed"]


def test_only_one_normalization_is_folded_into_a_layer():
    net = nn.ModuleDict({"conv1": nn.Conv2d(1, 2, 3), "bn1": nn.BatchNorm2d(2), "norm1": nn.BatchNorm2d(2)})
    settle(net, [net["bn1"], net["norm1"]])
    (layer,), skipped = read_kernels(net)
    factor = (net["bn1"].weight / (net["bn1"].running_var + 1e-5).sqrt()).view(-1, 1, 1, 1)
    np.testing.assert_allclose(layer.weight, (net["conv1"].weight * factor).detach().numpy())
    assert (layer.folded, list(skipped)) == ("bn1", ["norm1"])


class NormalizesFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)


@pytest.mark.parametrize("make", [NormalizesFirst, lambda: NormalizesFirst().state_dict()])
def test_normalization_before_a_convolution_is_not_folded_but_named(make):
    (layer,), skipped = read_kernels(make())
    assert layer.folded == "" and "not folded" in skipped["bn1"]


def test_what_is_no_3x3_convolution_is_skipped_by_name():
    net = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding_mode="replicate"),
            "one": nn.Conv1d(2, 2, 3),
            "three": nn.Conv3d(2, 2, 3),
            "point": nn.Conv2d(2, 2, 1),
            "wide": nn.Conv2d(2, 2, 5),
            "flat": nn.Conv2d(2, 2, (1, 3)),
            "up": nn.ConvTranspose2d(2, 2, 3),
            "dense": nn.Linear(3, 3),
        }
    )
    (layer,), skipped = read_kernels(net)
    assert (layer.name, layer.groups, layer.padding, layer.weight.shape) == ("depthwise", 4, "replicate", (4, 1, 3, 3))
    assert skipped.keys() == {"one", "three", "point", "wide", "flat", "up", "dense"}
    reasons = {"one": "1-D", "three": "3-D", "point": "1x1", "wide": "5x5", "flat": "1x3", "up": "transposed"}
    assert all(word in skipped[name] for name, word in reasons.items())


def test_weights_that_no_convolution_module_owns_are_read_too():
    layers, skipped = read_kernels(build_model("lsn", steps=1))
    assert {"learned_curvature.normal", "learned_curvature.divergence"} < {layer.name for layer in layers}
    assert list(skipped) == ["edge_net.readout"]
    normal = next(layer for layer in layers if layer.name == "learned_curvature.normal")
    found = nearest(normal.weight[:2].reshape(-1, 3, 3))
    assert [NAMES[n] for n in found.stencil] == ["central y", "central x"]
    np.testing.assert_allclose(found.scale, 1, atol=1e-6)


def test_half_precision_and_integers(tmp_path):
    save_file({"a.weight": torch.ones(1, 1, 3, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    (layer,), _ = read_kernels(tmp_path / "a.safetensors")
    assert layer.weight.dtype == np.float64 and layer.weight.shape == (1, 1, 3, 3)
    (layer,), _ = read_kernels({"a": np.ones((2, 1, 3, 3), np.float16), "epoch": 3, "b": np.ones((2, 2, 3, 3), int)})
    assert layer.name == "a"


def test_a_bare_convolution_is_a_network_too():
    (layer,), _ = read_kernels(nn.Conv2d(4, 4, 3, groups=2, padding_mode="reflect"))
    assert (layer.name, layer.groups, layer.padding) == ("weight", 2, "reflect")
    with pytest.raises(ValueError, match="weight: transposed convolution"):
        read_kernels(nn.ConvTranspose2d(2, 2, 3))


# -- faults of the input ----------------------------------------------------------------------------------------------


def bad_norm():
    net = small_network()
    net[1].running_var[0] = float("nan")
    return {k: v.numpy() for k, v in net.state_dict().items()}


FAULTS = {
    "a.safetensors": {
        "empty": (lambda p: p.write_bytes(b""), "cannot be read as weights"),
        "text": (lambda p: p.write_text("no weights at all"), "cannot be read as weights"),
        "no convolution": (lambda p: save_file({"w": torch.zeros(3)}, p), "no 3x3 convolution weights .*give arrays"),
        "NaN": (lambda p: save_file({"c.weight": torch.full((1, 1, 3, 3), torch.nan)}, p), "c holds NaN.*take"),
        "cut": (
            lambda p: (save_checkpoint(p, UNet(filters=2, depth=2), {}), p.write_bytes(p.read_bytes()[:-9])),
            "cannot be read as weights",
        ),
    },
    "a.npz": {
        "empty": (lambda p: p.write_bytes(b""), "cannot be read as weights.*give"),
        "text": (lambda p: p.write_text("no weights"), "cannot be read as weights"),
        "one array": (lambda p: p.write_bytes(array_file()), "cannot be read as weights"),
        "objects": (lambda p: np.savez(p, a=np.array([{}], dtype=object)), "cannot be read as weights"),
        "nothing in it": (lambda p: np.savez(p), "no 3x3 convolution weights .*give arrays"),
        "1x1 only": (lambda p: np.savez(p, c=np.ones((2, 2, 1, 1))), "c: 1x1 kernels.*give arrays"),
        "Keras": (lambda p: np.savez(p, c=np.ones((3, 3, 8, 4))), "as in Keras: transpose it"),
        "no kernel": (lambda p: np.savez(p, c=np.ones((0, 2, 3, 3))), "c: no kernels in it"),
        "infinite": (lambda p: np.savez(p, c=np.full((1, 1, 3, 3), np.inf)), "c holds NaN or infinite"),
        "NaN in the normalization": (lambda p: np.savez(p, **bad_norm()), "0 holds NaN"),
    },
}


def array_file():
    stream = io.BytesIO()
    np.save(stream, np.ones((1, 1, 3, 3)))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in FAULTS.items() for case in cases])
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path, name, case):
    make, message = FAULTS[name][case]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_kernels(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz: no such file; give"):
        read_kernels(tmp_path / "gone.npz")


def test_a_module_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="this Linear: no 3x3 convolution weights"):
        read_kernels(nn.Linear(2, 2))
