"""The U-Net's two variants: shapes and sizes by formula; the edge net: bounds and borders."""

import pytest
import torch
from torch import nn

from lsbook.unet import Block, EdgeNet, UNet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv3(i: int, o: int) -> int:
    return 9 * i * o + o


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("filters", [4, 16])
def test_parameters_of_the_additive_unet(filters, depth):
    """All blocks but the first are two f -> f convolutions: a skip that adds costs no parameter."""
    f = filters
    expected = conv3(1, f) + conv3(f, f) + (2 * (depth - 1)) * 2 * conv3(f, f) + (f + 1)
    assert count(UNet(filters=f, depth=depth)) == expected


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("filters", [4, 8])
def test_parameters_of_the_textbook_unet(filters, depth):
    """Level l has f 2^l filters; on the way up a block sees its own and the coarser level's, side by side."""
    expected = filters + 1
    for level in range(depth):
        o = filters * 2**level
        expected += conv3(1 if level == 0 else o // 2, o) + conv3(o, o)
        if level < depth - 1:
            expected += conv3(o + 2 * o, o) + conv3(o, o)
    assert count(UNet(filters=filters, depth=depth, textbook=True)) == expected


@pytest.mark.parametrize("textbook", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (48, 16)])
def test_unet_gives_a_probability_for_each_pixel(textbook, shape):
    torch.manual_seed(0)
    net = UNet(filters=4, textbook=textbook).eval()
    image = torch.rand(2, 1, *shape) * 2 - 1
    out = net(image)
    assert out.shape == image.shape
    assert 0 < out.min() and out.max() < 1 and out.std() > 0


@pytest.mark.parametrize("textbook", [False, True])
@pytest.mark.parametrize("shape", [(40, 32), (32, 40), (33, 33)])
def test_a_size_that_cannot_be_halved_four_times_is_refused(textbook, shape):
    with pytest.raises(ValueError, match="16"):
        UNet(filters=2, textbook=textbook)(torch.zeros(1, 1, *shape))


def test_a_shallower_unet_takes_smaller_multiples():
    assert UNet(filters=2, depth=3)(torch.zeros(1, 1, 36, 20)).shape == (1, 1, 36, 20)
    with pytest.raises(ValueError, match="4"):
        UNet(filters=2, depth=3)(torch.zeros(1, 1, 36, 22))


@pytest.mark.parametrize("textbook", [False, True])
def test_every_parameter_of_the_unet_gets_a_gradient(textbook):
    torch.manual_seed(0)
    net = UNet(filters=4, depth=3, textbook=textbook).eval()
    net(torch.rand(4, 1, 32, 32)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_residual_block_adds_its_first_convolution():
    torch.manual_seed(0)
    block = Block(2, 3, residual=True)
    x = torch.rand(1, 2, 8, 8)
    nn.init.zeros_(block.second[0].weight)
    nn.init.zeros_(block.second[0].bias)
    torch.testing.assert_close(block(x), block.first(x))
    block.residual = False
    assert not block(x).any()


@pytest.mark.parametrize("textbook", [False, True])
def test_skips_carry_the_fine_levels(textbook):
    """With the way through the coarse levels cut, the image still reaches the output over the first skip."""
    torch.manual_seed(0)
    net = UNet(filters=4, depth=3, textbook=textbook).eval()
    for block in net.up[:-1]:
        block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    a, b = net(torch.rand(1, 1, 16, 16)), net(torch.rand(1, 1, 16, 16))
    assert (a - b).abs().max() > 1e-4


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net, image = UNet(filters=4, depth=2, dropout=0.5), torch.rand(1, 1, 16, 16)
    assert any(not torch.equal(net(image), net(image)) for _ in range(8))
    net.eval()
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (1, 5)])
def test_edge_net_keeps_any_shape_and_stays_between_0_and_1(shape):
    torch.manual_seed(0)
    image = torch.rand(2, 1, *shape) * 2 - 1
    g = EdgeNet()(image)
    assert g.shape == image.shape
    assert 0 < g.min() and g.max() < 1


def test_edge_net_starts_with_open_ground_everywhere():
    """g near 0.9 at the start, or no front would move; but not constant, or nothing would be learned."""
    for seed in range(3):
        torch.manual_seed(seed)
        g = EdgeNet()(torch.rand(1, 1, 32, 32) * 2 - 1)
        assert g.min() > 0.75 and g.max() < 0.97
        assert g.std() > 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (15, 21)])
def test_a_constant_image_has_no_edge_at_its_frame(shape):
    torch.manual_seed(0)
    net = EdgeNet()
    image = torch.full((1, 1, *shape), 0.7)

    @torch.no_grad()
    def spread() -> float:
        g = net(image)
        return float(g.max() - g.min())

    assert spread() < 1e-6
    for module in net.modules():  # the same net with zero padding has a frame
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    assert spread() > 1e-4
