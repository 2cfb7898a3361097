"""Logo and moving picture: drawn from a level set, small, and still after five seconds."""

from pathlib import Path
from xml.etree import ElementTree

import draw_logo
import torch
from PIL import Image

STATIC = Path(__file__).parents[1] / "_static"


def test_the_letters_are_a_signed_distance(one_thread):
    u = draw_logo.letters("LN")
    assert u.shape[2] == draw_logo.HEIGHT
    slope = torch.stack(torch.gradient(u[0, 0])).norm(dim=0)
    assert abs(float(slope.median()) - 1) < 0.05
    assert (u > 0).any() and u[..., : draw_logo.MARGIN].max() < 0


def test_the_logo_is_a_picture_of_growing_fronts(one_thread):
    paths = ElementTree.fromstring(draw_logo.svg("L"))
    assert [path.get("fill") for path in paths] == draw_logo.SHADES[::-1]
    corners = [[tuple(map(float, p.split())) for p in path.get("d").strip("MZ").split("L")] for path in paths]
    lefts = [min(x for x, _ in corner) for corner in corners]
    grown = draw_logo.DT * draw_logo.STEPS
    assert all(abs(inner - outer - grown) < 0.3 for outer, inner in zip(lefts, lefts[1:], strict=False))


def test_the_moving_picture_is_small_and_stops():
    path = STATIC / "front.webp"
    assert path.stat().st_size <= 400_000
    with Image.open(path) as picture:
        assert picture.info["loop"] == 1
        duration = 0
        for frame in range(picture.n_frames):
            picture.seek(frame)
            picture.load()
            duration += picture.info["duration"]
    assert 3000 <= duration <= 5000
