"""Draw book/front.png, the picture of README and front page, from the phantom: python tools/front_picture.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.figures import bare, use_style
from lsbook.files import cache_folder
from lsbook.levelset import edge_indicator, evolve
from lsbook.networks import disc
from lsphantom.patients import write_cohort

ROOT = Path(__file__).parents[1]
SCAN, DT = 5, 0.25


def fronts_of_phantom(pictures: int, steps: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Slice and edge indicator ``(1, 1, 128, 128)`` of a phantom, and u at the start and after ``steps`` steps each."""
    torch.set_num_threads(1)
    scan = find_scans(write_cohort(cache_folder("phantom")))[SCAN]
    data = SliceDataset([scan], Preprocessing(size=128))
    image, mask = max(data, key=lambda item: float(item[1].sum()))
    image, mask = image[None], mask[0].numpy()
    g = edge_indicator(image, contrast=0.12, sigma=1.5)
    rows, columns = np.nonzero(mask)
    fronts = [disc((128, 128), (rows.mean() / 128, columns.mean() / 128), 0.05)]
    for _ in range(pictures):
        fronts.append(evolve(fronts[-1], g, alpha=0.4, beta=1.0, gamma=1.2, dt=DT, steps=steps))
    return image, g, fronts


if __name__ == "__main__":
    use_style()
    image, g, fronts = fronts_of_phantom(pictures=5, steps=15)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    bare(axes[0]).imshow(image[0, 0], vmin=-1, vmax=1)
    colors = plt.get_cmap("plasma")(np.linspace(0.25, 0.95, len(fronts)))
    for u, color in zip(fronts, colors, strict=True):
        axes[0].contour(u[0, 0], levels=[0.0], colors=[color], linewidths=1.6)
    axes[0].set_title("a front in time")
    bare(axes[1]).imshow(g[0, 0], vmin=0, vmax=1, cmap="cividis")
    axes[1].set_title("the edge indicator g that stops it")
    bare(axes[2]).imshow(fronts[-1][0, 0], cmap="PuOr", vmin=-5, vmax=5)
    axes[2].contour(fronts[-1][0, 0], levels=[0.0], colors="black", linewidths=1.2)
    axes[2].set_title("u, positive inside")
    figure.savefig(ROOT / "book" / "front.png", dpi=110)
