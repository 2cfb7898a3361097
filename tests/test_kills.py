"""One kill of a real training, and that the driver of the many kills sees what it looks for."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deep.kills import damaged, differences, kill, partials
from lsbook.files import atomic_path
from lsbook.training import write_log

ROOT = Path(__file__).parents[1]


def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path):
    """And a second process in the folder of a training at work is refused."""
    out = tmp_path / "kills.json"
    command = [sys.executable, "-m", "deep.kills", "--out", str(out), "--kills", "1", "--programs", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["summary"]["kills"] == 1
    assert report["summary"]["damaged"] == report["summary"]["differences"] == 0
    at_once = report["train"]["two_in_one_folder"][0]
    assert sorted(at_once["statuses"]) == [0, 2] and at_once["refused"] == 1
    assert report["summary"]["wrong_pairs"] == 0


@pytest.fixture
def pair(tmp_path):
    """Two folders that hold the same results of one run."""
    out = tmp_path / "a" / "out"
    out.mkdir(parents=True)
    write_log(out, [{"epoch": 1, "loss": 0.5}])
    torch.save({"weight": torch.ones(3), "rows": [1]}, out / "last.pt")
    (out / "metrics.json").write_text('{"dice": 0.5, "cpu_seconds_per_slice": 1.0, "commit": "one"}')
    (out / ".lock").touch()
    return tmp_path / "a", Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))


def test_the_same_results_do_not_differ_but_for_times_and_the_commit(pair):
    a, b = pair
    (b / "out" / "metrics.json").write_text('{"dice": 0.5, "cpu_seconds_per_slice": 2.0, "commit": "two"}')
    assert differences(a, b) == damaged(a) == []


def test_each_difference_is_seen(pair):
    a, b = pair
    torch.save({"weight": torch.tensor([1, 1, 1.0000001]), "rows": [1]}, b / "out" / "last.pt")
    (b / "out" / "log.csv").write_text("epoch,loss\n1,0.6\n")
    (b / "out" / "metrics.json").unlink()
    (a / "out" / ".partial-1-here-last.pt").touch()
    expected = ["out/.partial-1-here-last.pt", "out/metrics.json", "out/last.pt", "out/log.csv"]
    assert sorted(differences(a, b)) == sorted(expected)


@pytest.mark.parametrize("name", ["last.pt", "log.json", "metrics.json"])
def test_half_a_file_is_damaged(pair, name):
    path = pair[0] / "out" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (fault,) = damaged(pair[0])
    assert fault.startswith(f"out/{name}: ")


WRITER = """
import sys, time
from lsbook.files import atomic_path
with atomic_path(sys.argv[1]) as partial:
    partial.write_text("half")
    time.sleep(60)
"""


def test_a_kill_aimed_at_a_file_leaves_it_half_written_and_the_next_writer_removes_that(tmp_path):
    earlier = f".partial-1-{platform.node()}-log.csv"  # of another process: nothing to aim at
    (tmp_path / earlier).touch()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "log.json")], cwd=ROOT)
    assert kill(process.pid, tmp_path, 0.0, writing=True) is None
    assert partials(tmp_path, process.pid) == ["log.json"]
    alive = tmp_path / f".partial-{os.getpid()}-elsewhere-log.json"
    alive.touch()
    with atomic_path(tmp_path / "log.json") as partial:
        partial.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, earlier, "log.json"])
    process.wait()
