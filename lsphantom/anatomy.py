"""What the phantom's abdomen is made of: tissues, organs, and the two functions that give them their shapes."""

import numpy as np

Shape, Vector = tuple[int, int, int], tuple[float, float, float]

# HU ranges from which each patient draws: typical portal venous phase values. Organs of the second table are drawn
# relative to the patient's liver: on purpose most of the liver's neighbours share its HU range.
HU = {
    "air": (-1000, -1000), "lung": (-880, -820), "gas": (-980, -940), "fat": (-112, -95), "fluid": (2, 22),
    "gut content": (40, 95), "muscle": (57, 71), "liver": (80, 118), "kidney": (140, 190), "aorta": (135, 170),
    "disc": (80, 105), "marrow": (170, 240), "bone": (300, 420),
}  # fmt: skip
RELATIVE_TO_LIVER = {
    "spleen": (-6, 10), "heart": (-10, 15), "pancreas": (-10, 4), "gut wall": (-8, 6), "vessel": (42, 65),
    "lesion": (-65, -28),
}  # fmt: skip

# Organs that begin as an ellipsoid: centre (to the right, front and top of the middle of the trunk) and radii in mm,
# turn about the long axis of the body in degrees. A radius of 400 runs through the whole volume.
ORGANS = {
    "right lobe": ((68, -4, -2), (84, 84, 66), 0), "left lobe": ((2, 48, 18), (88, 34, 36), -12),
    "hilum": ((2, -22, -44), (58, 46, 52), 25), "gallbladder": ((58, 40, -42), (16, 24, 22), 20),
    "heart": ((-26, 36, 76), (74, 52, 42), 20), "spleen": ((-102, -40, 12), (34, 60, 52), -22),
    "stomach": ((-66, 24, 6), (46, 54, 60), 25), "pancreas": ((-24, -2, -30), (64, 16, 20), 8),
    "right kidney": ((62, -58, -56), (27, 31, 44), -25), "left kidney": ((-62, -56, -44), (27, 31, 46), 25),
    "right erector": ((35, -84, 0), (31, 18, 400), 8), "left erector": ((-35, -84, 0), (31, 18, 400), -8),
    "right psoas": ((34, -50, -75), (17, 17, 62), 0), "left psoas": ((-34, -50, -75), (17, 17, 62), 0),
    "aorta": ((-13, -22, 0), (11, 11, 400), 0), "vena cava": ((24, -24, 0), (13, 11, 400), 0),
    "transverse process": ((0, -66, 0), (34, 5, 400), 0), "spinous process": ((0, -86, 0), (4, 13, 400), 0),
    "arch": ((0, -72, 0), (19, 14, 400), 0), "canal": ((0, -71, 0), (11, 8, 400), 0),
    "vertebra": ((0, -48, 0), (22, 17, 400), 0),
}  # fmt: skip
# What lies behind the liver, in the order in which it is painted, and its tissue.
BACK = {
    "right psoas": "muscle", "left psoas": "muscle", "right erector": "muscle", "left erector": "muscle",
    "transverse process": "marrow", "spinous process": "bone", "arch": "bone", "canal": "fluid",
    "aorta": "aorta", "vena cava": "vessel",
}  # fmt: skip


def ellipsoid(place: np.ndarray, center: Vector, radii: Vector, turn: float = 0.0) -> np.ndarray:
    """Signed distance in mm, exact to first order at the surface; ``turn`` in degrees about the third axis."""
    center, radii, turn = np.float32(center), np.float32(radii), np.deg2rad(np.float32(turn))
    x, y, z = (place[axis] - center[axis] for axis in range(3))
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    scaled = along / radii[0], across / radii[1], z / radii[2]
    norm = np.sqrt(sum(s**2 for s in scaled)) + 1e-3
    slope = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True))) + 1e-3 / radii.max()
    return norm * (1 - norm) / slope


def smooth_field(rng: np.random.Generator, shape: Shape, spacing: Vector, length: float) -> np.ndarray:
    """Gaussian random field (X, Y, Z) of mean 0 and variance 1: random bumps on a lattice of ``length`` mm.

    The same state of ``rng`` gives the same field, finer or coarser, on every grid with the same extent in mm.
    """
    weights = []
    for size, step in zip(shape, spacing, strict=True):
        knots = np.arange(-1, int(np.ceil(size * step / length)) + 2) * length
        bumps = np.exp(-0.5 * (((np.arange(size) + 0.5) * step)[:, None] - knots) ** 2 / (0.6 * length) ** 2)
        weights.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
    for weight in weights:  # each turn makes the first axis fine and puts it last
        field = np.tensordot(field, weight, (0, 1))
    return field
