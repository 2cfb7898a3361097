"""Synthetic abdominal CT: a seeded cohort of "patients" whose liver is hard to find by its HU value alone.

Nothing here is a scan. Organs are implicit functions, positive inside and in mm from the surface like the u of a level
set; they are painted one over the other in a warped frame, then blurred and given noise. Volumes are (X, Y, Z) in RAS+:
the index grows towards the patient's Right, Anterior, Superior. The upper abdomen, kidneys to lungs, fits into 144 mm.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from lsbook.files import atomic_path

from .anatomy import BACK, HU, ORGANS, RELATIVE_TO_LIVER, Shape, Vector, ellipsoid, smooth_field

SMALLEST_EXTENT = (370, 280, 140)  # mm; less would cut the body or the liver


@dataclass
class Patient:
    """What is drawn on: ``place`` (3, X, Y, Z) in mm of the patient's own frame, ``image`` in HU, ``labels`` 0/1/2."""

    rng: np.random.Generator
    spacing: Vector
    place: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    hu: dict[str, float]

    def paint(self, inside: np.ndarray, hu: float | np.ndarray, label: int = 0) -> None:
        """Paint where ``inside`` (mm, (X, Y, Z)) is positive; a voxel on the surface gets a mixture of both values."""
        share = np.clip(0.5 + inside / self.spacing[0], 0, 1)
        self.image += share * (hu - self.image)
        self.labels[inside > 0] = label

    def field(self, length: float) -> np.ndarray:
        """A new smooth random field on this grid, see ``smooth_field``."""
        return smooth_field(self.rng, self.labels.shape, self.spacing, length)

    def organ(self, name: str, roughness: float = 0.0) -> np.ndarray:
        """One of ``ORGANS`` as this patient has it: moved, scaled and turned a little, its surface rough by some mm."""
        center, radii, turn = ORGANS[name]
        center = np.add(center, self.rng.normal(0, 0 if max(radii) == 400 else 4, 3))
        inside = ellipsoid(self.place, center, radii * self.rng.uniform(0.9, 1.1, 3), turn + self.rng.normal(0, 5))
        return inside + roughness * self.field(40) if roughness else inside


def new_patient(seed: int, shape: Shape, spacing: Vector) -> Patient:
    """A patient of random size, position and enhancement, of whom nothing but air is drawn yet."""
    rng = np.random.default_rng(seed)
    hu = {name: rng.uniform(*ends) for name, ends in HU.items()}
    hu |= {name: hu["liver"] + rng.uniform(*ends) for name, ends in RELATIVE_TO_LIVER.items()}
    axes = [(np.arange(n) - (n - 1) / 2) * step - rng.normal(0, 4) for n, step in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    turn, size = np.deg2rad(rng.normal(0, 3)), rng.uniform([0.94, 0.96, 0.95], [1.06, 1.14, 1.05])
    place = np.stack([np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x, z])
    place = (place / size[:, None, None, None]).astype(np.float32)
    place += 4 * np.stack([smooth_field(rng, shape, spacing, 70) for _ in range(3)])
    return Patient(rng, spacing, place, np.full(shape, hu["air"], np.float32), np.zeros(shape, np.uint8), hu)


def draw_trunk(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """Skin, fat, muscle wall, bowel, lungs and ribs; returns the inside of the muscle wall and of the diaphragm."""
    rng, hu, (x, y, z) = patient.rng, patient.hu, patient.place
    skin = 112 * (1 - ((np.abs(x) / 168) ** 2.4 + (np.abs(y) / 112) ** 2.4) ** (1 / 2.4))
    wall = skin - rng.uniform(7, 20) * (1 + 0.25 * patient.field(60)) - 3 * np.cos(np.arctan2(y, x) * 2)
    cavity = wall - rng.uniform(10, 15)
    patient.paint(skin, hu["muscle"])
    patient.paint(skin - 2, hu["fat"] + 6 * patient.field(10))
    patient.paint(wall, hu["muscle"] + 8 * patient.field(12))
    patient.paint(cavity, hu["fat"] + 14 * patient.field(8))

    patient.paint(np.minimum(cavity - 3, 4 * (patient.field(10) - 1.7)), hu["vessel"])  # of the mesentery
    loops = np.minimum(12 * (patient.field(30) + 0.3 + 0.004 * y - 0.006 * z), 16 * np.abs(patient.field(24)) - 2)
    bowel = np.minimum(cavity - 3, loops)  # loops parted by thin layers of fat
    patient.paint(bowel, hu["gut wall"])
    patient.paint(bowel - 6, np.where(patient.field(30) + 0.02 * y > 1.2, hu["gas"], hu["gut content"]))

    dome = [top - 58 * (((x - right) / 104) ** 2 + ((y - 16) / 100) ** 2) for right, top in ((62, 58), (-62, 50))]
    diaphragm = (np.maximum(*dome) - z) * 0.7
    patient.paint(np.minimum(cavity, 3 - diaphragm), hu["muscle"])
    patient.paint(np.minimum(cavity - 1, -diaphragm), hu["lung"] + 25 * patient.field(8))

    around = np.arctan2(np.abs(x), -y / 0.7)  # 0 at the spine, pi at the sternum
    turn = (z + 38 * around + rng.uniform(0, 30)) / 30  # ribs run forwards and down, 30 mm apart
    rib = 5 - np.hypot(np.abs(turn - np.round(turn)) * 24, (wall + cavity) / 2 - 1)
    margin = z + 75 - 40 * np.maximum(around - 1.2, 0)  # the costal margin rises towards the sternum
    patient.paint(np.minimum.reduce([rib, margin, 26 * (around - 0.3)]), hu["bone"])
    return cavity, diaphragm


def draw_neighbours(patient: Patient, cavity: np.ndarray, diaphragm: np.ndarray) -> None:
    """Heart, pancreas, spleen and stomach: soft tissue in the liver's HU range, where the liver will touch it."""
    hu, below = patient.hu, np.minimum(cavity, diaphragm) - 1
    patient.paint(np.minimum(patient.organ("heart", 3), cavity - 4), hu["heart"] + 5 * patient.field(25))
    patient.paint(patient.organ("pancreas", 5), hu["pancreas"] + 12 * patient.field(8))
    patient.paint(np.minimum(patient.organ("spleen", 3), below), hu["spleen"] + 5 * patient.field(30))
    stomach = np.minimum(patient.organ("stomach", 5), below - 1)
    food = patient.field(14) + 0.02 * (20 - patient.place[1]) > 0
    content = np.where(food, hu["gut content"] + 12 * patient.field(9), hu["fluid"])
    level = patient.rng.uniform(28, 56)  # gas floats above the fluid of a patient who lies on the back
    patient.paint(stomach, hu["gut wall"])
    patient.paint(stomach - 5, np.where(patient.place[1] > level, hu["gas"], content))


def draw_back(patient: Patient) -> np.ndarray:
    """Kidneys, muscles of the back, spine, aorta, vena cava; returns the inside of them all, where no liver can be."""
    hu, taken, streaks = patient.hu, [], -15 * np.maximum(patient.field(9) - 0.8, 0)
    for side in ("right", "left"):
        kidney = patient.organ(f"{side} kidney")
        sinus = ellipsoid(patient.place, np.multiply(ORGANS[f"{side} kidney"][0], (0.72, 0.9, 1)), (15, 13, 24))
        taken.append(kidney + np.clip(3 * patient.field(40) + 2, 0, 6))  # in places no fat parts it from the liver
        patient.paint(taken[-1], hu["fat"])
        patient.paint(kidney, hu["kidney"] + 8 * patient.field(9))
        patient.paint(np.minimum(sinus, kidney + 4), hu["fat"] + 30)
    for name, tissue in BACK.items():
        taken.append(patient.organ(name))
        patient.paint(taken[-1], hu[tissue] + streaks)
    body = patient.organ("vertebra")
    level = (patient.place[2] + patient.rng.uniform(0, 32)) / 32  # one vertebra and one disc every 32 mm
    disc = np.abs(level - np.round(level)) * 32 < 3.5
    patient.paint(body, np.where(disc, hu["disc"], hu["bone"]))
    patient.paint(body - 3, np.where(disc, hu["disc"], hu["marrow"] + 25 * patient.field(6)))
    return np.maximum.reduce([*taken, body])


def draw_liver(patient: Patient, room: np.ndarray) -> None:
    """Liver (label 1) with vessels and lesions (label 2) where ``room`` > 0, but not in the first or last slice."""
    rng, hu, place = patient.rng, patient.hu, patient.place
    gallbladder = patient.organ("gallbladder", 2)
    slices = np.arange(place.shape[3], dtype=np.float32)
    ends = (np.minimum(slices, slices[::-1]) - 0.5) * patient.spacing[2]
    room = np.minimum(np.minimum(room, -2 - gallbladder), ends)
    lobes = np.logaddexp(patient.organ("right lobe") / 8, patient.organ("left lobe") / 8) * 8  # a smooth union
    lobes = np.minimum(lobes, -patient.organ("hilum", 4)) + 6 * patient.field(45) + 1.5 * patient.field(18)
    rounded = ndimage.gaussian_filter(np.clip(np.minimum(lobes, room), -12, 12), np.divide(3, patient.spacing))
    liver = np.minimum(rounded - 0.5, room)
    pieces, _ = ndimage.label(liver > 0)
    largest = np.bincount(pieces[pieces > 0]).argmax()
    liver[(pieces != largest) & (pieces > 0)] = -12  # a liver is one piece
    value = hu["liver"] + rng.uniform(8, 13) * patient.field(50) + 4 * patient.field(12)
    parted = np.clip(3 * patient.field(30) - 2, 0, 2)  # mm of fat, here and there, between the liver and other organs
    patient.paint(np.minimum(liver + parted, room), hu["fat"])
    patient.paint(liver, value, label=1)
    patient.paint(gallbladder + 2, hu["gut wall"])
    patient.paint(gallbladder, hu["fluid"])
    for length, radius in ((42, 8), (28, 5)):  # where two random fields vanish there is a curve: a vessel along it
        vessel = radius - 0.6 * length * np.hypot(patient.field(length), patient.field(length))
        patient.paint(np.minimum(vessel, liver - 2), hu["vessel"] - hu["liver"] + value, label=1)
    centers = rng.choice(np.argwhere(liver > 8), rng.integers(0, 6))
    for center in place[(slice(None), *centers.T)].T:
        radius = rng.uniform(5, 11) if rng.random() < 0.7 else rng.uniform(14, 24)
        lesion = ellipsoid(place, center, radius * rng.uniform(0.8, 1.2, 3), rng.uniform(0, 180))
        lesion = np.minimum(lesion + 0.2 * radius * patient.field(max(radius, 8)), liver)
        patient.paint(lesion, hu["lesion"] + rng.uniform(-8, 8) + 5 * patient.field(10), label=2)


def make_patient(
    seed: int, shape: Shape = (128, 128, 24), spacing: Vector = (3.0, 3.0, 6.0)
) -> tuple[np.ndarray, np.ndarray]:
    """The patient of this seed (>= 0) on a grid of ``shape`` voxels (X, Y, Z), ``spacing`` mm apart, in RAS+.

    Returns:
        Image (X, Y, Z) float32 in HU and labels (X, Y, Z) uint8: 0 background, 1 liver, 2 lesion.

    Raises:
        ValueError: if the seed is negative or the field of view, shape times spacing, below 370 x 280 x 140 mm.
    """
    extent = np.multiply(shape, spacing)
    if np.any(extent < SMALLEST_EXTENT):
        raise ValueError(f"field of view {extent} mm is too small: use {SMALLEST_EXTENT} mm or more, by larger voxels")
    patient = new_patient(seed, shape, spacing)
    cavity, diaphragm = draw_trunk(patient)
    draw_neighbours(patient, cavity, diaphragm)
    back = draw_back(patient)
    draw_liver(patient, np.minimum.reduce([cavity - 1, diaphragm - 1, -back]))
    noise = ndimage.gaussian_filter(patient.rng.standard_normal(shape, dtype=np.float32), np.divide(2.4, spacing))
    noise *= patient.rng.uniform(10, 14) / noise.std()  # HU
    image = ndimage.gaussian_filter(patient.image, np.divide(1.8, spacing)) + noise
    return np.clip(image, -1024, 3071), patient.labels


def patient_seed(seed: int, number: int) -> int:
    """The seed of patient ``number`` of the cohort ``seed``, whatever the size of the cohort."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def write_cohort(
    folder: Path, patients: int = 12, seed: int = 0, shape: Shape = (128, 128, 24), spacing: Vector = (3.0, 3.0, 6.0)
) -> Path:
    """Write volume-N.nii.gz (int16 HU) and segmentation-N.nii.gz (uint8) for N = 0 .. patients - 1; returns ``folder``.

    Files already there are kept, so that a cut run resumes; patient N does not depend on ``patients``.

    Raises:
        ValueError: if there are no patients, if a file already there is not from this cohort, or from ``make_patient``.
    """
    if patients < 1:
        raise ValueError(f"patients = {patients}: a cohort has at least one")
    for number in range(patients):
        origin = f"lsbook phantom 1, seed {seed}, patient {number}, shape {shape}, {spacing} mm"[:79]
        paths = [Path(folder) / f"{kind}-{number}.nii.gz" for kind in ("volume", "segmentation")]
        for path in filter(Path.exists, paths):
            if nib.load(path).header["descrip"].item().decode() != origin:
                raise ValueError(f"{path}: not from this cohort ({origin}); delete it or choose another folder")
        if all(map(Path.exists, paths)):
            continue
        image, labels = make_patient(patient_seed(seed, number), shape, spacing)
        for path, voxels in zip(paths, (np.round(image).astype(np.int16), labels), strict=True):
            if path.exists():
                continue
            nifti = nib.Nifti1Image(voxels, np.diag([*spacing, 1]))
            nifti.header.set_xyzt_units("mm")
            nifti.header["descrip"] = origin
            with atomic_path(path) as partial:
                nib.save(nifti, partial)
    return Path(folder)
