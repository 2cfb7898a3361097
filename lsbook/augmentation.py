"""Training slices as other patients, scanners and diseases might have given them.

Each slice of a batch is deformed, gets a lesion, and its gray values are changed, by amounts drawn from torch's
generator. Images are ``(B, 1, H, W)`` in [-1, 1], a share of liver is ``(B, 1, H, W)`` in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """One number for each slice of a batch, ``(B, 1, 1, 1)``."""
    return torch.empty(len(like), 1, 1, 1).uniform_(low, high).to(like)


def deform(image: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Turned by up to 15 degrees, zoomed by 0.8 to 1.25, stretched by up to 10 %, shifted by up to 7.5 %, and warped.

    The warp is a smooth random field (bicubic from 6 x 6 normal numbers) of up to 2 % of the side, one deviation.
    """
    angle = uniform(image, -15, 15) * math.pi / 180
    zoom = uniform(image, math.log(0.8), math.log(1.25)).exp()
    stretch = uniform(image, -0.1, 0.1).exp()
    c, s = zoom * angle.cos(), zoom * angle.sin()
    rows = [c * stretch, -s * stretch, uniform(image, -0.15, 0.15), s / stretch, c / stretch]
    matrix = torch.cat([*rows, uniform(image, -0.15, 0.15)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    coarse = 0.04 * torch.randn(len(image), 2, 6, 6).to(image) * uniform(image, 0, 1)
    grid = grid + F.interpolate(coarse, size=image.shape[-2:], mode="bicubic").movedim(1, 3)
    pair = F.grid_sample(torch.cat([image, share], dim=1), grid, padding_mode="border", align_corners=False)
    return pair[:, :1], pair[:, 1:]


def add_lesion(image: Tensor, share: Tensor, probability: float = 0.5) -> Tensor:
    """A soft, warped ellipse inside the liver of some slices, darker than the liver or, seldom, brighter.

    Its radius is 1.5 to 12 % of the side; inside it up to 60 % of the liver's own texture is kept.
    """
    batch, _, height, width = image.shape
    liver = (share > 0.5).to(image)
    center = torch.multinomial(liver.flatten(1) + 1e-6, 1).view(-1, 1, 1, 1)
    y = torch.arange(height).to(image).view(1, 1, -1, 1) - torch.div(center, width, rounding_mode="floor")
    x = torch.arange(width).to(image).view(1, 1, 1, -1) - center % width
    noise = 0.024 * width * torch.randn(batch, 2, 8, 8).to(image)
    warp = F.interpolate(noise, size=(height, width), mode="bicubic")
    y, x = y + warp[:, :1], x + warp[:, 1:]
    angle = uniform(image, 0, math.pi)
    radius = width * uniform(image, math.log(0.015), math.log(0.12)).exp()
    ratio = uniform(image, 1, 2).sqrt()
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    depth = radius - torch.hypot(along / ratio, across * ratio)  # about the distance to its border, in pixels
    lesion = torch.sigmoid(depth) * share * (uniform(image, 0, 1) < probability)
    mean = (image * liver).sum(dim=(2, 3), keepdim=True) / (liver.sum(dim=(2, 3), keepdim=True) + 1e-6)
    change = -uniform(image, 0.2, 1.0)
    change = torch.where(uniform(image, 0, 1) < 0.15, -0.3 * change, change)
    inside = mean + change + uniform(image, 0, 0.6) * (image - mean)
    return image + lesion * (inside - image)


def change_gray_values(image: Tensor) -> Tensor:
    """Blurred or sharpened, gamma, gain 0.75 to 1.35, offset to 0.45 (45 HU in the default window), noise; clipped."""
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    image = (image + uniform(image, -0.5, 1.0) * (blurred - image)).clamp(-1, 1)
    image = ((image + 1) / 2) ** uniform(image, -0.3, 0.3).exp() * 2 - 1
    image = image * uniform(image, math.log(0.75), math.log(1.35)).exp() + uniform(image, -0.45, 0.45)
    noise = torch.randn(image.shape).to(image)
    return (image + noise * uniform(image, 0, 0.1)).clamp(-1, 1)


def augment(image: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Deformation, lesion and gray values; the share of liver is deformed with its image."""
    image, share = deform(image, share)
    return change_gray_values(add_lesion(image, share)), share


AUGMENTATIONS = {
    "all": augment,
    "gray": lambda image, share: (change_gray_values(add_lesion(image, share)), share),  # the liver stays at the seed
    "none": lambda image, share: (image, share),
}
