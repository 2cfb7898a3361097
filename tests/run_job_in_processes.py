"""Started once in each process by torch's launcher: one job of the experiment, of two epochs."""

import sys
from pathlib import Path

import torch

from experiments import jobs, run
from lsbook.ct import find_scans

if __name__ == "__main__":
    cohort, out, devices, nodes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    run.RECIPES["unet"] = jobs.Recipe(2, rate=2e-3, augmentation="none")
    run.preprocessing = lambda job: run.Preprocessing(32)
    experiment = run.Experiment(find_scans(cohort), [], out, known_spacing=False, devices=devices, nodes=nodes)
    experiment.run(jobs.Job("unet", 0))
