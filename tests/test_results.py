"""The committed results: README shows them, and the committed weights are the ones that were measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from collect_results import README, TABLE, readme_table

from lsbook.checkpoints import load_checkpoint
from lsbook.networks import LevelSetNetwork

RESULTS = Path(__file__).parents[1] / "results"
LIVER = json.loads((RESULTS / "liver-fold0.json").read_text())


def test_readme_shows_the_results():
    assert TABLE.search(README.read_text()).group() == readme_table(LIVER)


@pytest.mark.parametrize("name", LIVER["models"])
def test_means_are_those_of_the_scans(name):
    model = LIVER["models"][name]
    assert sorted(model["scans"]) == sorted(LIVER["test"])
    for key, mean in model["mean"].items():
        assert mean == pytest.approx(np.mean([scan[key] for scan in model["scans"].values()]))
    best = max(model["log"], key=lambda row: row["validation_dice"])
    assert best["epoch"] == model["epoch"]


@pytest.mark.parametrize("name", LIVER["models"])
def test_weights_are_those_that_were_measured(name):
    model, preprocessing, info = load_checkpoint(RESULTS / "weights" / f"{name}-fold0.safetensors")
    measured = LIVER["models"][name]
    assert info["model"] == name and preprocessing.size == LIVER["size"]
    assert sum(p.numel() for p in model.parameters()) == measured["parameters"]
    assert info["epoch"] == measured["epoch"] and info["commit"] == measured["commit"]
    assert "dirty" not in info["commit"]
    assert not set(info["scans"]["train"]) & set(LIVER["test"]) and info["scans"]["test"] == LIVER["test"]
    if isinstance(model, LevelSetNetwork):
        row = measured["log"][measured["epoch"] - 1]
        expected = torch.tensor([row["alpha"], row["beta"], row["gamma"]])
        torch.testing.assert_close(model.coefficients().detach(), expected)


def test_memory_of_data_loading_does_not_grow_with_the_number_of_scans():
    rows = json.loads((RESULTS / "memory.json").read_text())["rows"]
    assert [row["scans"] for row in rows] == [5, 31, 131]
    assert rows[-1]["slices"] > 25 * rows[0]["slices"]
    assert rows[-1]["most_mib"] < 1.05 * rows[0]["most_mib"]
