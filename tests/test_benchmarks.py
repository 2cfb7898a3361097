"""The benchmarks run, and what they store has the shape that the book's page reads. No time is judged here."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.forms import PARTS
from lsbook.loops import prepare

ROOT = Path(__file__).parents[1]
GROUPS = ["roofline", "forward", "library", "terms", "size", "iteration", "tuning", "contours"]
GROUPS += ["training", "memory", "unet", "scan"]


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def quick(tmp_path_factory, cohort) -> tuple[Path, str]:
    """The file of one quick run of everything, on phantoms and on a folder of scans, and what was printed."""
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    done = run(out, "--data", str(cohort), "--same-patient", "0,1")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def numbers(value: object):
    """All numbers anywhere in a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def check(groups: dict, quick: bool) -> None:
    assert list(groups) == GROUPS
    for name, group in groups.items():
        assert group["quick"] is quick, name
        assert group["rows"], name
        assert {"date", "commit", "load", "seconds", "repeats", "machine", "targets"} <= set(group), name
        assert all(map(math.isfinite, numbers(group))), name
        for row in group["rows"]:
            assert row.get("min_ms", 0) <= row.get("median_ms", math.inf) or name == "iteration", (name, row)
        for target in group["targets"]:
            reached, wanted = target["reached"], target["target"]
            assert target["met"] == (reached >= wanted if target["sense"] == "at least" else reached <= wanted), target


def test_a_quick_run_measures_every_group(quick):
    out, printed = quick
    groups = json.loads(out.read_text())["groups"]
    check(groups, quick=True)
    assert all(f"\n{name}  (" in printed for name in GROUPS)
    assert {row["data"] for row in groups["contours"]["rows"]} == {"phantom", "CT"}
    assert {row["data"] for row in groups["tuning"]["rows"]} == {"phantom", "CT"}
    for row in groups["contours"]["rows"]:
        assert len(row["dices"]) == row["slices"] and 0 <= row["dice"] <= 1


def test_the_file_names_no_machine_and_no_path(quick):
    text = quick[0].read_text()
    for name in (socket.gethostname(), str(ROOT), str(quick[0].parent), sys.prefix):
        assert name not in text


def test_one_group_is_measured_anew_and_the_others_stay(quick, tmp_path):
    out = tmp_path / "speed.json"
    before = json.loads(quick[0].read_text())["groups"]
    out.write_text(quick[0].read_text())
    assert run(out, "--only", "terms").returncode == 0
    after = json.loads(out.read_text())["groups"]
    assert [name for name in GROUPS if before[name] != after[name]] == ["terms"]
    assert run(out, "--only", "terms", "size", "--resume").stdout == ""
    assert json.loads(out.read_text())["groups"] == after


def test_contours_need_settings(tmp_path):
    done = run(tmp_path / "speed.json", "--only", "contours")
    assert done.returncode == 2 and "tuning has to run before contours" in done.stderr


def test_the_committed_run_is_whole():
    check(json.loads((ROOT / "results" / "speed.json").read_text())["groups"], quick=False)


def test_the_profiled_terms_add_up_to_the_step():
    """The loops with one term each are what the step is made of: their changes of u sum to its change."""
    rng = np.random.default_rng(0)
    p, speeds = np.pad(rng.random((9, 11)), 1, mode="edge"), rng.uniform(-1, 1, (4, 9, 11))
    constants = prepare(torch.zeros(1, dtype=torch.float64), 0.1, 0.7, 1.2)
    change = {}
    for name in ("transport", "balloon", "curvature", "step"):
        q = np.empty_like(p)
        PARTS[name](p, q, *speeds, constants)
        change[name] = (q - p)[1:-1, 1:-1]
        assert np.abs(change[name]).max() > 0.01, name
    whole = change.pop("step")
    np.testing.assert_allclose(sum(change.values()), whole, rtol=0, atol=1e-12)
