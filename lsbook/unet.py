"""Two convolutional networks: the U-Net that level set networks are compared with, and their learned edge indicator.

U-Net: Ronneberger, Fischer, Brox 2015; the variant with additive skips follows Actor, Fuentes, Riviere 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(
    channels_in: int, channels_out: int, padding_mode: str = "zeros", batch_norm: bool = False
) -> nn.Sequential:
    """3x3 convolution, same size, batch normalization (Ioffe, Szegedy 2015) if wanted, and ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode=padding_mode, bias=not batch_norm)
    conv = conv.to(memory_format=torch.channels_last)  # up to twice as fast on a CPU
    return nn.Sequential(conv, *([nn.BatchNorm2d(channels_out)] if batch_norm else []), nn.ReLU())


class Block(nn.Module):
    """Two 3x3 convolutions with ReLU; ``residual`` adds the first one's output to the second's."""

    def __init__(self, channels_in: int, channels_out: int, residual: bool, batch_norm: bool = False):
        super().__init__()
        self.first = convolution(channels_in, channels_out, batch_norm=batch_norm)
        self.second = convolution(channels_out, channels_out, batch_norm=batch_norm)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.second(x) if self.residual else self.second(x)


class UNet(nn.Module):
    """A U-Net for one-channel slices: ``(B, 1, H, W)`` in [-1, 1] to probabilities ``(B, 1, H, W)``.

    The paper's: the same number of filters at every level, skips and blocks that add. The textbook one: filters double
    with each level, skips are concatenated. Both: max pooling, nearest up-sampling, spatial dropout at the end.

    Args:
        filters: channels of the finest level.
        depth: number of levels, so that H and W are divided by 2^(depth - 1).
        textbook: choose the textbook variant.
        dropout: rate of the spatial dropout.
        batch_norm: normalize after each 3x3 convolution.
    """

    def __init__(
        self, filters: int = 16, depth: int = 5, textbook: bool = False, dropout: float = 0.25, batch_norm: bool = False
    ):
        super().__init__()
        self.textbook = textbook
        widths = [filters * 2**level if textbook else filters for level in range(depth)]
        inputs = [1, *widths[:-1]]
        self.down = nn.ModuleList(Block(i, o, not textbook, batch_norm) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList()
        for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True):
            self.up.append(Block(fine + coarse if textbook else coarse, fine, not textbook, batch_norm))
        self.dropout = nn.Dropout2d(dropout)
        self.readout = nn.Conv2d(filters, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        factor = 2 ** (len(self.down) - 1)
        if image.shape[-2] % factor or image.shape[-1] % factor:
            raise ValueError(f"slices of {tuple(image.shape[-2:])} pixels: both sides must be multiples of {factor}")
        x, skips = image, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x, skip = F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()
            x = block(torch.cat([x, skip], dim=1) if self.textbook else x + skip)
        return torch.sigmoid(self.readout(self.dropout(x)))


class EdgeNet(nn.Module):
    """Learned edge indicator g: a U-Net of two levels, ``(B, 1, H, W)`` image to g in (0, 1), same shape.

    Borders are replicated, or the frame of the image would be its strongest edge. The last bias starts at 2, so that
    g starts near 0.9 and a front moves from the first epoch on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = self.chain(1, 16, 16)
        self.coarse = self.chain(16, 16, 16)
        self.merge = self.chain(32, 32, 32, 16)
        self.readout = nn.Conv2d(16, 1, 1)
        nn.init.constant_(self.readout.bias, 2.0)

    @staticmethod
    def chain(*channels: int) -> nn.Sequential:
        pairs = zip(channels[:-1], channels[1:], strict=True)
        return nn.Sequential(*(convolution(i, o, padding_mode="replicate") for i, o in pairs))

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        coarse = self.coarse(F.max_pool2d(fine, 2, ceil_mode=True))
        coarse = F.interpolate(coarse, scale_factor=2, mode="nearest")[..., : image.shape[-2], : image.shape[-1]]
        return torch.sigmoid(self.readout(self.merge(torch.cat([fine, coarse], dim=1))))
