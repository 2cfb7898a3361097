"""Several processes give the training of one: the same loss curve and weights, to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "train_in_processes.py"


def trained(cohort, out, processes):
    """The rows and weights of a run in so many processes, joined by gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(SCRIPT), str(cohort), str(out), str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads((out / "log.json").read_text()), torch.load(out / "last.pt", weights_only=True)["model"]


def test_two_processes_train_as_one_with_the_same_global_batch(cohort, tmp_path):
    rows, weights = trained(cohort, tmp_path / "one", 1)
    two_rows, two_weights = trained(cohort, tmp_path / "two", 2)
    assert len(rows) == 3 and rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for row, other in zip(rows, two_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["validation_dice"] == pytest.approx(other["validation_dice"], abs=1e-3)
    torch.testing.assert_close(two_weights, weights, rtol=1e-3, atol=1e-5)
