"""Draw _static/front.webp, the moving picture of the front page, and its last frame: python tools/front_motion.py

A front of the level set equation finds the liver of a phantom. Each time step is a layer of a network: the layer that
made the step is lit. The picture plays once, in five seconds.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from front_picture import fronts_of_phantom
from matplotlib.figure import Figure
from PIL import Image

from lsbook.figures import COLORS, bare, use_style

STATIC = Path(__file__).parents[1] / "_static"
FRAMES, STEPS = 26, 3  # pictures, and time steps from one to the next
BOXES = FRAMES - 1
TITLE = 15  # points, so that it is read on a phone
FRAME_MS, LIMIT = 190, 400_000  # milliseconds a picture; bytes of the file


def frame(image: np.ndarray, u: np.ndarray, step: int, last: int) -> Figure:
    """Slice with the front, the level set function, and below them the chain of layers, lit up to this step."""
    figure, axes = plt.subplot_mosaic([["slice", "u"], ["layers", "layers"]], figsize=(7, 4.6), height_ratios=[5, 1])
    bare(axes["slice"]).imshow(image, vmin=-1, vmax=1)
    axes["slice"].contour(u, levels=[0.0], colors=[COLORS["lse"]], linewidths=2.2)
    axes["slice"].set_title(f"contour, {step} time steps", fontsize=TITLE)
    bare(axes["u"]).imshow(u, cmap="PuOr", vmin=-4, vmax=4)
    axes["u"].contour(u, levels=[0.0], colors="black", linewidths=1.4)
    axes["u"].set_title(f"u, {step} layers", fontsize=TITLE)
    chain = bare(axes["layers"])
    lit = step / last * BOXES
    for box in range(BOXES):
        color = COLORS["lsn"] if box < lit else "#E4E4E4"
        chain.add_patch(plt.Rectangle((box + 0.1, 0.15), 0.72, 0.7, color=color))
        chain.plot([box - 0.18, box + 0.1], [0.5, 0.5], color=COLORS["plain"], linewidth=1)
    chain.set(xlim=(-0.3, BOXES), ylim=(0, 1))
    chain.set_title(f"one time step is one layer; a box is {last // BOXES} of them", fontsize=TITLE)
    return figure


def picture(figure: Figure) -> Image.Image:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=100)
    plt.close(figure)
    return Image.open(raw).convert("RGB")


if __name__ == "__main__":
    use_style()
    image, _, fronts = fronts_of_phantom(FRAMES - 1, STEPS)
    last = (FRAMES - 1) * STEPS
    pictures = [picture(frame(image[0, 0], u[0, 0], n * STEPS, last)) for n, u in enumerate(fronts)]
    pictures[-1].save(STATIC / "front_still.webp", quality=80, method=6)
    moving = STATIC / "front.webp"
    pictures[0].save(moving, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=1, quality=60, method=6)
    if moving.stat().st_size > LIMIT:
        raise SystemExit(f"{moving} has {moving.stat().st_size} bytes, more than {LIMIT}: lower its quality")
