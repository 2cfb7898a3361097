"""Several processes give the training of one: the same loss curve and weights, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsphantom.patients import write_cohort

HERE = Path(__file__).parent


def launched(script, cohort, out, processes):
    """Run a script beside this file in so many processes, joined by gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(HERE / script), str(cohort), str(out), str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr


def trained(cohort, out, processes):
    """The rows and weights of a training."""
    launched("train_in_processes.py", cohort, out, processes)
    return json.loads((out / "log.json").read_text()), torch.load(out / "last.pt", weights_only=True)["model"]


def test_two_processes_train_as_one_with_the_same_global_batch(cohort, tmp_path):
    rows, weights = trained(cohort, tmp_path / "one", 1)
    two_rows, two_weights = trained(cohort, tmp_path / "two", 2)
    assert len(rows) == 3 and rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for row, other in zip(rows, two_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["validation_dice"] == pytest.approx(other["validation_dice"], abs=1e-3)
    torch.testing.assert_close(two_weights, weights, rtol=1e-3, atol=1e-5)


def test_two_processes_do_one_job_of_the_experiment(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", 9, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    launched("run_job_in_processes.py", cohort, tmp_path / "out", 2)
    report = json.loads((tmp_path / "out" / "unet-fold0-seed0" / "report.json").read_text())
    assert len(report["log"]) == 2 and list(report["scans"]) == report["split"]["test"]
