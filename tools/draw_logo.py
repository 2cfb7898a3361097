"""Draw _static/logo.svg and _static/favicon.svg from a level set: python tools/draw_logo.py

The letters LSN grow outward with unit speed, by the steps of the book, until they have merged.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from skimage.measure import approximate_polygon, find_contours

from lsbook.levelset import evolve
from lsbook.redistance import redistance

STATIC = Path(__file__).parents[1] / "_static"
HEIGHT, MARGIN, LETTERS = 72, 14, 44  # pixels: of the grid, around the letters, of a letter
SPACE = 5  # pixels between letters
DT, STEPS = 0.5, 5  # per front
# From the letters outward, shades of the blue that stands for a learned edge indicator; seen on white and on black.
SHADES = ["#0072B2", "#2C8BC4", "#5AA6D3", "#8CC2E2", "#BEDDF0"]


def letters(text: str) -> torch.Tensor:
    """Signed distance to the letters of a text, in pixels, positive inside; shape ``(1, 1, H, W)``, rows downward."""
    masks = []
    for letter in text:
        outline = TextPath((0, 0), letter, size=LETTERS / 0.73, prop=FontProperties(family="DejaVu Sans"))
        box = outline.get_extents()
        x, y = np.meshgrid(np.arange(box.width + SPACE), HEIGHT - np.arange(HEIGHT) - (HEIGHT - LETTERS) / 2)
        points = np.stack([x + box.x0 - SPACE / 2, y], axis=-1).reshape(-1, 2)
        masks.append(sum(Outline(p).contains_points(points) for p in outline.to_polygons()).reshape(x.shape) > 0)
    mask = np.pad(np.concatenate(masks, axis=1), ((0, 0), (MARGIN, MARGIN)))
    return redistance(torch.from_numpy(mask * 2.0 - 1.0)[None, None], (1.0, 1.0))


def svg(text: str) -> str:
    """The fronts as an SVG image, the latest at the bottom."""
    torch.set_num_threads(1)
    fronts = [letters(text)]
    for _ in SHADES[1:]:
        fronts.append(evolve(fronts[-1], torch.ones_like(fronts[-1]), 0.0, 0.0, 1.0, dt=DT, steps=STEPS))
    height, width = fronts[0].shape[-2:]
    paths = []
    for u, shade in reversed(list(zip(fronts, SHADES, strict=True))):
        curves = [approximate_polygon(curve, 0.1) for curve in find_contours(u[0, 0].numpy(), 0.0)]
        line = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in curve) + "Z" for curve in curves)
        paths.append(f'<path fill="{shade}" fill-rule="evenodd" d="{line}"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return head + "".join(paths) + "</svg>\n"


if __name__ == "__main__":
    (STATIC / "logo.svg").write_text(svg("LSN"), encoding="utf-8")
    (STATIC / "favicon.svg").write_text(svg("L"), encoding="utf-8")
