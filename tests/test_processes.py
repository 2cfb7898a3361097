"""Several processes give the training of one: the same loss curve and weights, to rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsbook.__main__ import main
from lsphantom.patients import write_cohort

HERE = Path(__file__).parent


def launched(script, cohort, out, devices=1, nodes=1):
    """Run a script beside this file in so many processes on so many nodes, all of them here, joined by gloo."""
    arguments = [str(HERE / script), str(cohort), str(out), str(devices), str(nodes)]
    launcher = ["-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={devices}"]
    if nodes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launcher += ["--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    processes = []
    for node in range(nodes):
        where = [f"--node-rank={node}"] if nodes > 1 else ["--standalone"]
        command = [sys.executable, *(launcher + where if devices * nodes > 1 else []), *arguments]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    for process in processes:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told


def trained(cohort, out, **processes):
    """The rows and weights of a training."""
    launched("train_in_processes.py", cohort, out, **processes)
    return json.loads((out / "log.json").read_text()), torch.load(out / "last.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def alone(cohort, tmp_path_factory):
    """The training of one process."""
    return trained(cohort, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("processes", [{"devices": 2}, {"nodes": 2}], ids=str)
def test_two_processes_train_as_one_with_the_same_global_batch(cohort, tmp_path, alone, processes):
    rows, weights = alone
    two_rows, two_weights = trained(cohort, tmp_path, **processes)
    assert len(rows) == 3 and rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for row, other in zip(rows, two_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["validation_dice"] == pytest.approx(other["validation_dice"], abs=1e-3)
    torch.testing.assert_close(two_weights, weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("processes", [{"devices": 2}, {"nodes": 2}], ids=str)
def test_two_processes_do_one_job_of_the_experiment(tmp_path, processes):
    cohort = write_cohort(tmp_path / "cohort", 9, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    launched("run_job_in_processes.py", cohort, tmp_path / "out", **processes)
    report = json.loads((tmp_path / "out" / "unet-fold0-seed0" / "report.json").read_text())
    assert len(report["log"]) == 2 and list(report["scans"]) == report["split"]["test"]


def test_processes_that_nobody_asked_for_do_not_train_side_by_side(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it
    for name, value in {"RANK": "1", "LOCAL_RANK": "0", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    command = ["train", "--data", str(cohort), "--model", "unet", "--size", "32", "--epochs", "1", "--folds", "3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "2 processes were started, 1 asked for; give --devices and --nodes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
