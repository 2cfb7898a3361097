"""Started once in each process by torch's launcher: trains a small U-Net with no dropout and no batch statistics."""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric

from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.training import train

if __name__ == "__main__":
    cohort, out, devices, nodes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    working = Preprocessing(32)
    scans = find_scans(cohort)
    sets = [SliceDataset(part, working) for part in (scans[:2], scans[2:3])]
    sets[0].index = sets[0].index[: len(sets[0]) // 8 * 8]  # whole batches, so that all processes get equal shares
    fabric = Fabric(accelerator="cpu", devices=devices, num_nodes=nodes)
    options = {"filters": 4, "depth": 3, "dropout": 0.0}
    train("unet", options, *sets, working, out, epochs=3, batch=8, rate=2e-2, fabric=fabric, augmentation="none")
