"""The committed results: means, verdicts and README follow from them, and the committed weights were measured."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from readme_table import README, TABLE, readme_table
from write_claims import claims

from experiments.jobs import FOLDS, LADDER, Job
from experiments.merge import MEASURES, patients, verdicts
from lsbook.checkpoints import load_checkpoint
from lsbook.networks import LevelSetNetwork

RESULTS = Path(__file__).parents[1] / "results"
LIVER = json.loads((RESULTS / "liver.json").read_text())
WEIGHTS = sorted((RESULTS / "weights").glob("*.safetensors"))
NAMES = [path.stem for path in WEIGHTS]


def test_readme_shows_the_results():
    assert TABLE.search(README.read_text()).group() == readme_table(LIVER)


@pytest.mark.parametrize("name", LIVER["summaries"])
def test_summaries_are_those_of_the_patients(name):
    model, _, variant = name.partition(" ")
    summary = LIVER["summaries"][name]
    for measure in MEASURES:
        values = list(patients(LIVER["jobs"], model, variant, measure, LIVER["same_patient"]).values())
        assert summary[measure]["mean"] == pytest.approx(np.mean(values))
        assert summary[measure]["deviation"] == pytest.approx(np.std(values, ddof=1))
        assert summary[measure]["low"] <= summary[measure]["mean"] <= summary[measure]["high"]
    tested = [scan for f in range(FOLDS) for scan in LIVER["jobs"][Job(model, f, 0, variant).name]["scans"]]
    assert sorted(tested) == sorted(set(tested))


def test_verdicts_follow_from_the_scans():
    found, stored = verdicts(LIVER["jobs"], LIVER["same_patient"]), LIVER["verdicts"]
    assert {claim: row["verdict"] for claim, row in found.items()} == {c: row["verdict"] for c, row in stored.items()}
    assert found["P4"]["interval_90"] == pytest.approx(stored["P4"]["interval_90"], rel=1e-12)
    assert found["P5"]["tests"].keys() == stored["P5"]["tests"].keys()
    for name, test in found["P5"]["tests"].items():
        assert test == pytest.approx(stored["P5"]["tests"][name], rel=1e-12)


def test_scores_of_slices_are_those_of_the_scans():
    found = defaultdict(list)
    with (RESULTS / "liver-slices.csv").open() as file:
        for row in csv.DictReader(file):
            if row["assd"]:
                found[row["model"], row["variant"], row["fold"], row["scan"]].append(float(row["assd"]))
    checked = 0
    for job in LIVER["jobs"].values():
        about = job["job"]
        for scan, scores in job["scans"].items() if not about["seed"] else ():
            key = about["model"], about["variant"], str(about["fold"]), scan
            if scores["unit"] == "pixels" and scores["assd"] is not None:
                assert np.mean(found[key]) == pytest.approx(scores["assd"], rel=1e-3)
                checked += 1
    assert checked > 100


def test_every_fold_of_a_complete_network_has_its_weights():
    complete = [model for model in LADDER if model in LIVER["summaries"]]
    assert {f"{m}-fold{f}" for m in complete for f in range(FOLDS)} <= set(NAMES)
    assert sum(path.stat().st_size for path in WEIGHTS) < 20e6
    assert max(path.stat().st_size for path in WEIGHTS) < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_that_were_measured(name):
    model, preprocessing, info = load_checkpoint(RESULTS / "weights" / f"{name}.safetensors")
    measured = LIVER["jobs"][info["job"]]
    assert info["job"] == f"{name}-seed0" and info["model"] == name.rpartition("-")[0]
    assert preprocessing.size == 128
    assert sum(p.numel() for p in model.parameters()) == measured["parameters"]
    assert info["epoch"] == measured["epoch"] and info["commit"] == measured["commit"]
    assert "dirty" not in info["commit"]
    best = max(measured["log"], key=lambda row: row["validation_dice"])
    assert best["epoch"] == measured["epoch"]
    assert not set(info["scans"]["train"] + info["scans"]["validation"]) & set(measured["scans"])
    if isinstance(model, LevelSetNetwork):
        expected = torch.tensor([best["alpha"], best["beta"], best["gamma"]])
        torch.testing.assert_close(model.coefficients().detach(), expected)


def test_verdicts_on_the_claims_follow_from_the_results():
    assert json.loads((RESULTS / "claims.json").read_text(encoding="utf-8")) == claims()


def test_memory_of_data_loading_does_not_grow_with_the_number_of_scans():
    rows = json.loads((RESULTS / "memory.json").read_text())["rows"]
    assert [row["scans"] for row in rows] == [5, 31, 131]
    assert rows[-1]["slices"] > 25 * rows[0]["slices"]
    assert rows[-1]["most_mib"] < 1.05 * rows[0]["most_mib"]


def test_the_paper_s_unet_trained_again_from_another_commit_is_the_same_to_the_last_digit():
    def numbers(variant: str) -> list:
        rows = [LIVER["jobs"]["-".join(filter(None, ["unet", variant, f"fold{fold}-seed0"]))] for fold in range(5)]
        scores = [{k: v for k, v in s.items() if "seconds" not in k} for row in rows for s in row["scans"].values()]
        return [row["commit"] for row in rows], [row["log"] for row in rows], scores

    (commits, *first), (others, *again) = numbers(""), numbers("followed")
    assert first == again and not set(commits) & set(others)
