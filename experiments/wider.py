"""Wider ranges for the classical peers: some settings had ended at a border of those in ``METHODS``."""

from .classical import METHODS, WINDOW, Peer


def wider(name: str, stops: range | tuple[int, ...], **values: tuple[float, ...]) -> Peer:
    """A peer with other stops and values."""
    return METHODS[name]._replace(stops=tuple(stops), space=METHODS[name].space | values)


WIDER = {
    "threshold": wider(
        "threshold",
        range(12),
        radius=(0.02, 0.04, 0.06, 0.1),
        sigma=(0.1, 0.25, 0.5, 1, 1.5),
        below=(*WINDOW, 0.7),
        above=(*WINDOW, 0.7, 1.0),
    ),
    "chan-vese": wider(
        "chan-vese",
        range(10, 121, 10),
        sigma=(0.1, 0.25, 0.5, 1, 2),
        likeness=(0.5, 0.7, 1, 1.5, 2, 4),
        smoothing=(1, 2, 3, 4, 6, 8),
    ),
    "morphological-gac": wider(
        "morphological-gac",
        range(20, 161, 20),
        radius=(0.04, 0.06, 0.1, 0.15),
        sigma=(0.1, 0.25, 0.5, 1, 1.5),
    ),
    "itk-gac": wider(
        "itk-gac",
        (100, 200, 300, 400, 600, 800, 1200),
        radius=(0.02, 0.04, 0.06, 0.1),
        sigma=(0.4, 0.7, 1, 1.5),
        sharpness=(1, 2, 4),
        curvature=(0.2, 0.5, 1, 2, 4),
        advection=(0.3, 1, 3, 6, 10),
    ),
}
