"""The commands, as a user types them, and what a user sees when the input is at fault."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import lsbook.__main__
from lsbook.__main__ import main
from lsbook.checkpoints import load_checkpoint
from lsbook.ct import find_scans, split
from lsbook.metrics import compare, dice
from lsbook.nifti import read_volume

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SMALL = ["--folds", "4", "--size", "32", "--batch", "8", "--epochs", "1"]
LSE = ["--model", "lse", "--steps", "12", "--rate", "3e-3", "--seed-radius", "0.15"]


def train_arguments(data, out, *more):
    return ["train", "--data", str(data), "--out", str(out), *SMALL, *more]


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """The folder of a finished training of LSE on fold 1."""
    out = tmp_path_factory.mktemp("trained")
    assert main(train_arguments(cohort, out, *LSE, "--fold", "1", "--epochs", "2")) == 0
    return out


def one_line(capsys):
    """Standard error without the progress bar, after a fault: one line, and nothing on standard output."""
    printed = capsys.readouterr()
    line = printed.err.split("\r")[-1]
    assert printed.out == ""
    assert line.endswith("\n") and line.count("\n") == 1, f"not one line: {printed.err}"
    return line


def ras(path):
    return read_volume(path, labels=True).data


# -- train ------------------------------------------------------------------------------------------------------------


def test_train_reports_the_held_out_scans(trained, cohort):
    report = json.loads((trained / "metrics.json").read_text())
    parts = split([scan.name for scan in find_scans(cohort)], 1, 4)
    assert list(report["scans"]) == parts.test
    assert report["checkpoint"]["scans"] == parts._asdict()
    for key in ("dice", "dice_liver_slices", "mean_slice_dice"):
        values = [scores[key] for scores in report["scans"].values()]
        assert report["mean"][key] == pytest.approx(np.mean(values))
        assert all(0.2 < value < 1 for value in values)
    assert (report["parameters"], report["epochs"]) == (3, 2)
    stated = {"model": "lse", "fold": 1, "folds": 4, "seed": 0, "batch": 8, "data": cohort.name, "all_slices": False}
    assert {key: report["checkpoint"][key] for key in stated} == stated
    assert report["checkpoint"]["options"]["steps"] == 12
    assert str(cohort.parent) not in json.dumps(report)  # results are published: no path of a machine in them


def test_the_word_phantom_and_the_other_options(cohort, cache, tmp_path, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr(lsbook.__main__, "write_cohort", lambda folder: folders.append(folder) or cohort)
    more = ["--model", "lsn", "--steps", "4", "--all-slices", "--window", "-100", "200"]
    assert main(train_arguments("phantom", tmp_path, *more, "--same-patient", "0,1", "--folds", "3")) == 0
    assert folders == [cache / "phantom"]
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["fold"]) == ("lsn", 0)
    model, preprocessing, info = load_checkpoint(tmp_path / "best.safetensors")
    assert (preprocessing.size, preprocessing.low, preprocessing.high) == (32, -100, 200)
    assert (info["data"], info["all_slices"], info["folds"]) == ("phantom", True, 3)
    assert sum({"0", "1"} <= set(part) for part in info["scans"].values()) == 1
    assert (model.steps, model.learned_curvature is not None) == (4, True)


def test_a_killed_training_resumes_and_ends_as_one_that_was_not(cohort, tmp_path):
    epochs = 20
    arguments = [
        train_arguments(cohort, tmp_path / out, "--model", "unet", "--epochs", str(epochs)) for out in ("cut", "whole")
    ]
    command = [sys.executable, "-m", "lsbook", *arguments[0]]
    log = tmp_path / "cut" / "log.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.is_file() and len(json.loads(log.read_text())) >= 2):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(json.loads(log.read_text())) < epochs
    assert not (tmp_path / "cut" / "metrics.json").exists()

    for each in arguments:
        assert main(each) == 0
    cut, whole = ((tmp_path / out / "metrics.json").read_text() for out in ("cut", "whole"))
    assert json.loads(whole)["epochs"] == epochs
    assert cut == whole
    assert log.read_bytes() == (tmp_path / "whole" / "log.json").read_bytes()


# -- predict ----------------------------------------------------------------------------------------------------------

TURNS = {
    "as it is": [(0, 1), (1, 1), (2, 1)],
    "flipped": [(0, -1), (1, -1), (2, 1)],
    "permuted": [(2, 1), (0, 1), (1, 1)],
    "permuted and flipped": [(1, -1), (2, -1), (0, 1)],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_predict_gives_the_same_mask_whatever_the_order_of_the_axes(cohort, trained, tmp_path, turn, capsys):
    scan = nib.load(cohort / "volume-1.nii.gz")
    turned = scan.as_reoriented(np.array(turn))
    nib.save(turned, tmp_path / "ct.nii.gz")
    results = []
    for image, out in ((cohort / "volume-1.nii.gz", "a.nii.gz"), (tmp_path / "ct.nii.gz", "b.nii")):
        weights = str(trained / "best.safetensors")
        assert main(["predict", "--weights", weights, "--image", str(image), "--out", str(tmp_path / out)]) == 0
        results.append(ras(tmp_path / out))
        assert f"{out}: liver of {results[-1].sum() * 6 * 6 * 12 / 1000:.0f} ml in 12" in capsys.readouterr().out
    np.testing.assert_array_equal(*results)
    assert dice(ras(cohort / "segmentation-1.nii.gz"), results[0]) > 0.3
    written = nib.load(tmp_path / "b.nii")
    assert written.shape == turned.shape and written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "ct.nii.gz").affine)


# -- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_evaluate_prints_json(cohort, tmp_path, turn, capsys):
    reference = cohort / "segmentation-0.nii.gz"
    labels = nib.load(reference)
    liver = np.asarray(labels.dataobj) > 0  # lesions belong to it
    part = liver & (np.arange(64) < 20)[:, None, None]
    spacing = (6.0, 6.0, 12.0)
    assert labels.header.get_zooms() == spacing
    zero = {"dice": 1.0, "ravd_percent": 0.0, "assd_mm": 0.0, "mssd_mm": 0.0, "hd95_mm": 0.0}
    null = {"dice": 0.0, "ravd_percent": 100.0, "assd_mm": None, "mssd_mm": None, "hd95_mm": None}
    cut = compare(liver, part, spacing)
    a, b = int(liver.sum()), int(part.sum())
    assert cut["dice"] == 2 * b / (a + b) and cut["ravd_percent"] == 100 * (a - b) / a and cut["mssd_mm"] > 20
    for prediction, expected in ((liver, zero), (part, cut), (0 * part, null)):
        image = nib.Nifti1Image(prediction.astype(np.uint8), labels.affine)
        nib.save(image.as_reoriented(np.array(turn)), tmp_path / "p.nii")
        assert main(["evaluate", "--reference", str(reference), "--prediction", str(tmp_path / "p.nii")]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert list(printed) == list(expected)
        assert printed == {key: value and pytest.approx(value, rel=1e-6) for key, value in expected.items()}


# -- faults -----------------------------------------------------------------------------------------------------------

PREDICT = ["predict", "--weights", "TRAINED/best.safetensors", "--image", "COHORT/volume-0.nii.gz"]
FAULTS = {
    "no folder": (["train", "--data", "TMP/no", "--out", "TMP/out", *LSE], "no: no such folder"),
    "no scans": (["train", "--data", "TMP", "--out", "TMP/out", *LSE], "no scans"),
    "no fold": (
        ["train", "--data", "COHORT", "--out", "TMP/out", *SMALL, *LSE, "--fold", "4"],
        "fold 4 does not exist",
    ),
    "few scans": (["train", "--data", "COHORT", "--out", "TMP/out", *LSE], "4 patients cannot be split into 5"),
    "size": (
        ["train", "--data", "COHORT", "--out", "TMP/out", *SMALL, "--model", "unet", "--size", "24"],
        "multiples of 16",
    ),
    "no size": (["train", "--data", "COHORT", "--out", "TMP/out", *SMALL, *LSE, "--size", "0"], "size"),
    "window": (["train", "--data", "COHORT", "--out", "TMP/out", *SMALL, *LSE, "--window", "160", "-40"], "window"),
    "batch": (["train", "--data", "COHORT", "--out", "TMP/out", *SMALL, *LSE, "--batch", "0"], "batch"),
    "settings": (
        ["train", "--data", "COHORT", "--out", "TRAINED", *SMALL, *LSE, "--fold", "1", "--seed", "9"],
        "other",
    ),
    "no weights": (["predict", "--weights", "TMP/w", "--image", "TMP/i.nii", "--out", "TMP/o.nii"], "w: no such"),
    "weights": ([*PREDICT, "--out", "TMP/o.nii", "--weights", "TMP/text.nii"], "text.nii: not a checkpoint"),
    "no image": ([*PREDICT, "--out", "TMP/o.nii", "--image", "TMP/i.nii"], "i.nii: no such file"),
    "image": ([*PREDICT, "--out", "TMP/o.nii", "--image", "TMP/text.nii"], "text.nii: not a readable NIfTI"),
    "cut image": ([*PREDICT, "--out", "TMP/o.nii", "--image", "TMP/cut.nii"], "cut.nii: voxels cannot be read"),
    "name": ([*PREDICT, "--out", "TMP/o.png"], "o.png: "),
    "no mask": (["evaluate", "--reference", "TMP/r.nii", "--prediction", "TMP/r.nii"], "r.nii: no such file"),
    "mask": (
        ["evaluate", "--reference", "COHORT/segmentation-0.nii.gz", "--prediction", "COHORT/volume-0.nii.gz"],
        "volume-0.nii.gz: a mask must hold",
    ),
    "shapes": (
        ["evaluate", "--reference", "COHORT/segmentation-0.nii.gz", "--prediction", "TMP/small.nii"],
        "small.nii: has shape (2, 2, 2)",
    ),
    "sample": (["sample", "nobody"], "sample nobody: there is none of this name"),
}


@pytest.mark.parametrize(("arguments", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_input_is_one_line_and_status_2(cohort, trained, tmp_path, arguments, fault, capsys):
    (tmp_path / "text.nii").write_text("no scan" * 100)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "small.nii")
    shutil.copy(tmp_path / "small.nii", tmp_path / "cut.nii")
    os.truncate(tmp_path / "cut.nii", 355)
    capsys.readouterr()
    for word, folder in (("COHORT", cohort), ("TRAINED", trained), ("TMP", tmp_path)):
        arguments = [argument.replace(word, str(folder)) for argument in arguments]
    before = sorted(path.name for path in trained.iterdir())
    assert main(arguments) == 2
    assert fault in one_line(capsys)
    assert not list(tmp_path.glob("*o.*"))
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["train", "--model", "vnet"]], ids=str)
def test_a_wrong_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    assert leave.value.code == 2
    assert "usage: python -m lsbook" in capsys.readouterr().err


def test_warm_compiles_and_says_how_long_it_took(capsys):
    assert main(["warm"]) == 0
    assert re.match(r"Compiled the level set steps in \d+ s", capsys.readouterr().out)
