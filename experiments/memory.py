"""Does memory grow with the number of scans? ``python -m experiments.memory --out results/memory.json``.

Scans of 512 x 512 x 300 voxels are generated once and linked under many names, so each is read, prepared and cached as
a scan of its own. A new process seeks the seed disc, which reads every slice, reads ``BATCHES`` shuffled batches of all
scans, and scores a network on all slices; what it holds itself (RssAnon, Linux) is its memory. Pages of the mapped
slices (RssFile) grow with the scans that were read; they are the system's, which drops them when it needs room.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from lsbook.files import atomic_path

SHAPE = (512, 512, 300)
COUNTS = (5, 31, 131)
BATCHES = 200

CHILD = """
import sys, torch
from pathlib import Path
from torch.utils.data import DataLoader
from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.training import densest_point, scan_dice
torch.set_num_threads(1)
torch.manual_seed(0)
dataset = SliceDataset(find_scans(sys.argv[1]), Preprocessing(128))
def held(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))
before = held("RssAnon")
densest_point(dataset)
most = held("RssAnon")
for number, (image, share) in enumerate(DataLoader(dataset, 16, shuffle=True)):
    most = max(most, held("RssAnon"))
    if number + 1 == int(sys.argv[2]):
        break
class Watched(torch.nn.Conv2d):
    def forward(self, image):
        global most
        most = max(most, held("RssAnon"))
        return super().forward(image)
scan_dice(Watched(1, 1, 1), dataset)
print(len(dataset), before, most, held("RssFile"))
"""


def write_scan(folder: Path) -> tuple[Path, Path]:
    """A ball of liver in noise, and its mask."""
    rng = np.random.default_rng(0)
    x, y, z = (np.arange(n) - n / 2 for n in SHAPE)
    liver = (x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2 < 120**2).astype(np.uint8)
    image = rng.integers(-100, 200, SHAPE, dtype=np.int16)
    image[liver > 0] //= 2
    affine = np.diag([0.8, 0.8, 1.5, 1.0])
    paths = folder / "image.nii", folder / "mask.nii"
    for path, data in zip(paths, (image, liver), strict=True):
        nib.save(nib.Nifti1Image(data, affine), path)
    return paths


def measure(counts: tuple[int, ...]) -> list[dict]:
    """Slices, MiB before the first batch, most MiB while batches are read, and MiB of mapped pages, for each count."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, mask = write_scan(folder)
        cohort = folder / "cohort"
        cohort.mkdir()
        for count in counts:
            for number in range(rows[-1]["scans"] if rows else 0, count):
                os.link(image, cohort / f"volume-{number}.nii")
                os.link(mask, cohort / f"segmentation-{number}.nii")
            command = [sys.executable, "-c", CHILD, str(cohort), str(BATCHES)]
            environment = os.environ | {"LSBOOK_CACHE": str(folder / "cache")}
            subprocess.run(command, env=environment, check=True, capture_output=True)  # prepares the slices
            result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            slices, before, most, mapped = map(float, result.stdout.split())
            rows.append({"scans": count, "slices": int(slices), "batches": BATCHES, "start_mib": before})
            rows[-1] |= {"most_mib": most, "mapped_mib": mapped}
            print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    measured = measure(COUNTS)
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps({"shape": SHAPE, "rows": measured}, indent=1) + "\n")
