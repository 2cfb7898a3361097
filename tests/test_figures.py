"""Figures: text alternatives, size in bytes, and sliders whose links are saved with the page."""

import base64
import gc
import html
import io
import re

import ipywidgets as widgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ipywidgets.embed import dependency_state
from PIL import Image

from lsbook.figures import COLORS, NAMES, bare, draw_slice, image_tag, show, slider, use_style
from lsbook.networks import MODELS


@pytest.fixture(autouse=True)
def own_style():
    """Without a display, and with nothing left over for the next test."""
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def picture(seed: int = 0, inches: float = 1) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(inches, inches), dpi=100)
    draw_slice(axes, np.random.default_rng(seed).uniform(-1, 1, (128, 128)))
    return figure


def png(tag: str) -> bytes:
    return base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', tag)[1])


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_text_alternative_is_refused(alt):
    with pytest.raises(ValueError, match="text alternative"):
        image_tag(picture(), alt)


def test_the_text_alternative_is_escaped():
    alt = 'u > 0 & "inside" <b>'
    tag = image_tag(picture(), alt)
    quoted = re.search(r' alt="([^"]*)"', tag)[1]
    assert html.unescape(quoted) == alt
    assert "<" not in quoted


def test_a_picture_is_a_small_png_and_its_figure_is_closed():
    figure = picture(inches=4)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    data = png(image_tag(figure, "noise"))
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and image.size == (400, 400)
    assert len(image.getcolors(256)) <= 128
    assert len(data) < 0.7 * len(raw.getvalue())
    assert len(data) < 150_000  # noise, the worst case: 7 bits for each of 160 000 pixels
    assert not plt.fignum_exists(figure.number)


def test_few_colours_still_show_the_slice():
    use_style()
    figure = plt.figure(figsize=(1.28, 1.28), dpi=100, layout="none")
    ramp = np.linspace(-1, 1, 128).repeat(128).reshape(128, 128)
    draw_slice(figure.add_axes((0, 0, 1, 1)), ramp)
    gray = np.asarray(Image.open(io.BytesIO(png(image_tag(figure, "ramp")))).convert("L"), float)
    np.testing.assert_allclose(gray, (ramp + 1) / 2 * 255, atol=3)


def test_show_escapes_its_caption():
    shown = show(picture(), "noise", 'Slice <5> & "more"').data
    assert "<figcaption>Slice &lt;5&gt; &amp; &quot;more&quot;</figcaption>" in shown
    assert 'alt="noise"' in shown
    assert "figcaption" not in show(picture(), "noise").data


def test_slider_draws_each_position_once_and_in_order():
    calls = []

    def draw(position: int):
        calls.append(position)
        return picture(position), f"step {position}"

    box = slider(draw, 4, "time", start=2)
    assert calls == [0, 1, 2, 3]
    stack, handle = box.children
    assert [re.search(r'alt="([^"]+)"', child.value)[1] for child in stack.children] == [f"step {i}" for i in range(4)]
    assert stack.selected_index == handle.value == 2
    assert (handle.min, handle.max) == (0, 3)
    assert handle.description == "time"
    assert not plt.get_fignums()


def test_the_links_of_a_slider_are_saved_with_the_page():
    """A static page has no kernel: the link must be in the browser's own state."""
    box = slider(lambda i: (picture(i), f"step {i}"), 3, "time")
    gc.collect()
    state = dependency_state([box])
    models = {key: value["model_name"] for key, value in state.items()}
    links = [value["state"] for value in state.values() if value["model_name"] == "LinkModel"]

    def end(link: dict, side: str) -> tuple[str, str]:
        reference, attribute = link[side]
        return models[reference.removeprefix("IPY_MODEL_")], attribute

    assert {(end(link, "source"), end(link, "target")) for link in links} == {
        (("IntSliderModel", "value"), ("StackModel", "selected_index")),
    }
    assert list(models.values()).count("HTMLModel") == 3
    assert all(isinstance(link, widgets.widgets.widget_link.Link) for link in box.links)


def test_a_slider_shows_its_first_picture_to_readers_without_script(monkeypatch):
    shown = []
    monkeypatch.setattr("lsbook.figures.display", shown.append)
    slider(lambda i: (picture(i), f"step {i}"), 3, "time", start=1)
    (still,) = shown
    assert re.fullmatch(r'<noscript><img [^>]*alt="step 1"[^>]*></noscript>', still.data)


def test_without_links_in_the_browser_the_kernel_moves_the_pictures(monkeypatch):
    monkeypatch.delattr(widgets, "Stack")  # as in ipywidgets 7
    box = slider(lambda i: (picture(i), f"step {i}"), 3, "time", start=1)
    shown, handle = box.children
    assert 'alt="step 1"' in shown.value
    handle.value = 2
    assert 'alt="step 2"' in shown.value


def test_draw_slice_puts_the_contour_where_u_is_zero_and_rows_downwards():
    _, axes = plt.subplots()
    rows = np.arange(32.0)[:, None]
    draw_slice(axes, np.zeros((32, 48)), [(20.25 - rows + np.zeros((1, 48)), COLORS["lse"], "LSE")])
    (contour,) = [c for c in axes.collections if isinstance(c, matplotlib.contour.ContourSet)]
    np.testing.assert_allclose(contour.get_paths()[0].vertices[:, 1], 20.25)
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSE"]
    assert axes.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_a_level_set_without_contour_keeps_its_place_in_the_legend(value):
    _, axes = plt.subplots()
    draw_slice(axes, np.zeros((8, 8)), [(np.full((8, 8), value), "red", "vanished")])
    assert not axes.collections
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["vanished"]


def test_a_slice_without_contours_has_no_legend_and_no_frame():
    _, axes = plt.subplots()
    draw_slice(axes, np.zeros((8, 8)))
    assert axes.get_legend() is None
    assert bare(axes) is axes
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    assert not any(spine.get_visible() for spine in axes.spines.values())


def test_style_sets_what_the_book_relies_on():
    use_style()
    assert plt.rcParams["image.interpolation"] == "nearest"
    assert plt.rcParams["image.cmap"] == "gray"
    assert plt.rcParams["figure.constrained_layout.use"]


def test_every_model_has_a_name_and_every_colour_is_used_once():
    assert set(NAMES) == set(MODELS)
    assert len(set(COLORS.values())) == len(COLORS)
    assert all(matplotlib.colors.is_color_like(color) for color in COLORS.values())
    assert {"lse", "lse-g", "lsn", "unet", "reference"} <= set(COLORS)
