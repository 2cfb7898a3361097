"""Figures of the book: one style, text alternatives, and sliders that work on a page without a kernel."""

import html
import io
from base64 import b64encode
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# Okabe, Ito 2008: told apart by color-blind readers. The same colors stand for the same things in all chapters.
COLORS = {
    "reference": "#F0E442",
    "lse": "#56B4E9",
    "lse-g": "#0072B2",
    "lsn": "#009E73",
    "unet": "#D55E00",
    "accent": "#CC79A7",
    "plain": "#444444",
}
NAMES = {"lse": "LSE", "lse-g": "LSE-G", "lsn": "LSN", "unet": "U-Net", "unet-textbook": "U-Net (textbook)"}


def use_style() -> None:
    """Set the book's matplotlib style."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.8,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "axes.prop_cycle": plt.cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#444444"]),
        }
    )


def image_tag(figure: Figure, alt: str) -> str:
    """The figure, closed, as an HTML image of at most 128 colors with a text alternative."""
    if not alt.strip():
        raise ValueError("a figure needs a text alternative that says what it shows")
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png")
    plt.close(figure)
    Image.open(raw).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    source = b64encode(small.getvalue()).decode()
    style = "max-width:100%;height:auto;background:white"
    return f'<img src="data:image/png;base64,{source}" alt="{html.escape(alt)}" style="{style}">'


def show(figure: Figure, alt: str, caption: str = "") -> HTML:
    """Show a figure with a text alternative and, below it, a caption."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return HTML(f'<figure style="margin:0">{image_tag(figure, alt)}{below}</figure>')


def slider(draw: Callable[[int], tuple[Figure, str]], count: int, label: str, start: int = 0) -> widgets.VBox:
    """A slider over pictures drawn beforehand, linked in the browser: it moves in Jupyter and on a static page.

    Readers without JavaScript see the picture at ``start``. Colab has ipywidgets 7, which cannot link pictures in the
    browser; there the kernel changes them.

    Args:
        draw: from the position 0 ... count - 1 to a figure and its text alternative.
        count: number of pictures.
        label: what the slider changes.
        start: first position shown.
    """
    tags = [image_tag(*draw(position)) for position in range(count)]
    display(HTML(f"<noscript>{tags[start]}</noscript>"))
    handle = widgets.IntSlider(
        start, 0, count - 1, description=label, readout=False, style={"description_width": "auto"}
    )
    handle.layout.width = "min(100%, 28rem)"
    if not hasattr(widgets, "Stack"):
        picture = widgets.HTML(tags[start])
        handle.observe(lambda change: setattr(picture, "value", tags[change["new"]]), "value")
        return widgets.VBox([picture, handle])
    stack = widgets.Stack([widgets.HTML(tag) for tag in tags], selected_index=start, layout={"overflow": "hidden"})
    box = widgets.VBox([stack, handle])
    # A link that is garbage collected is closed and would be missing from the saved page.
    box.links = [widgets.jslink((handle, "value"), (stack, "selected_index"))]
    return box


def bare(axes: Axes) -> Axes:
    """Axes for a picture: no ticks, no grid, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def draw_slice(axes: Axes, image: np.ndarray, contours: Sequence[tuple[np.ndarray, str, str]] = ()) -> None:
    """A CT slice ``(H, W)`` scaled to [-1, 1], with contours given as (u positive inside, color, label or "")."""
    bare(axes).imshow(image, cmap="gray", vmin=-1, vmax=1)
    for u, color, label in contours:
        if np.min(u) < 0 < np.max(u):
            axes.contour(u, levels=[0.0], colors=[color], linewidths=1.6)
        axes.plot([], [], color=color, label=label)
    if any(label for _, _, label in contours):
        axes.legend(loc="lower left", fontsize=8, framealpha=0.8)
