"""The benchmarks run, and what they store has the shape that the book's page reads. No time is judged here."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import contours
from benchmarks.forms import PARTS
from benchmarks.tools import TOOLS, MorphologicalChanVese, Ours, SparseField
from lsbook.loops import prepare

ROOT = Path(__file__).parents[1]
GROUPS = ["roofline", "forward", "library", "terms", "size", "iteration", "tuning", "contours"]
GROUPS += ["training", "memory", "unet", "scan", "kernels"]


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
    for group in ("tuning", "contours"):
        aims = [(row["tool"], row["aim"]) for row in groups[group]["rows"] if row["data"] == "CT"]
        assert aims == [(tool.name, "own best") for tool in TOOLS] + [(t.name, "equal Dice") for t in TOOLS[:2]]
    for row in groups["tuning"]["rows"]:
        assert row["best"] >= row["dice"] >= row["level"] - 1e-4  # they are rounded
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


def test_the_fastest_that_reaches_the_level_is_chosen():
    """Three settings at a stop each: the best, one that is nearly as good and faster, and one that is fast and bad."""
    curve = {(0, 300): (0.9012, 3.0), (1, 200): (0.9000, 2.0), (2, 100): (0.8960, 1.0)}
    assert contours.fastest(curve, 0.9012) == (0, 300)
    assert contours.fastest(curve, 0.9000) == (1, 200)
    assert contours.fastest(curve, 0.89) == (2, 100)
    best = {"this book": 0.90, "SimpleITK": 0.92, "x": 0.8}
    assert {(name, aim): level for name, aim, level in contours.levels(best)} == {
        ("this book", "own best"): pytest.approx(0.898),
        ("SimpleITK", "own best"): pytest.approx(0.918),
        ("x", "own best"): pytest.approx(0.798),
        ("this book", "equal Dice"): pytest.approx(0.897),  # the lower of the two best, whichever has it
        ("SimpleITK", "equal Dice"): pytest.approx(0.897),
    }


@pytest.mark.parametrize("tool", [Ours, SparseField, MorphologicalChanVese], ids=lambda tool: tool.name)
def test_a_trajectory_passes_through_what_a_run_to_the_stop_gives(tool):
    """Masks of the phantom at some stops; seconds go on from stop to stop, without what the caller does there."""
    one, setting = contours.phantom_case(0, quick=True), tool.coarse[0]
    before, own, started = 0.0, 0.0, time.process_time()
    for number, (stop, seconds, mask) in enumerate(tool.trajectory(one.image, one.distance, setting)):
        mark = time.process_time()
        assert before <= seconds
        before = seconds
        if number in (1, 7):
            run = tool.segment(one.image, one.distance, setting | {"stop": stop})
            assert (run != mask).sum() <= 0.01 * run.sum()
        while time.process_time() < mark + 0.005:
            pass
        own += time.process_time() - mark
    assert 0 < before <= time.process_time() - started - own + 0.01 < own + before


def test_targets_of_contours_compare_at_equal_dice():
    def row(tool, aim, ms, *dices):
        return {"tool": tool, "aim": aim, "min_ms": ms, "median_ms": 2 * ms, "dices": dict(enumerate(dices))}

    rows = [
        row("this book", "own best", 10.0, 0.9, 0.9, 0.9),
        row("SimpleITK", "own best", 20.0, 0.9, 0.9, 0.9),
        row("scikit-image, geodesic", "own best", 50.0, 0.8, 0.8, 0.8),
        row("this book", "equal Dice", 5.0, 0.88, 0.90, 0.92),
        row("SimpleITK", "equal Dice", 30.0, 0.91, 0.90, 0.92),
    ]
    fast, same, better = contours.contours_targets("phantom", rows)
    assert (fast["reached"], fast["by_minimum"], fast["at_own_best"], fast["met"]) == (6, 6, 2, True)
    gains = [-0.03, 0.0, 0.0]
    assert same["reached"] == pytest.approx(np.mean(gains)) and not same["met"]
    assert same["standard_error"] == pytest.approx(np.std(gains, ddof=1) / math.sqrt(3))
    assert better["reached"] == pytest.approx(0.1) and better["met"]


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
