"""The experiment: which jobs, that cut and finished jobs go on or stay, what a report holds, and the verdicts."""

import csv
import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import __main__ as command
from experiments import jobs as jobs_module
from experiments import run as running
from experiments.jobs import FOLDS, LADDER, RECIPES, VARIANTS, Job, Recipe, jobs
from experiments.lse_search import candidate
from experiments.merge import MEASURES, PRIMARY, merge
from experiments.plan import make_plan, progress
from experiments.run import Clock, Experiment, covering_discs, locked, recipe_of
from experiments.scoring import score_masks
from lsbook.checkpoints import save_checkpoint
from lsbook.ct import find_scans
from lsbook.metrics import compare, dice
from lsbook.networks import build_model, disc
from lsphantom.patients import write_cohort

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = [["0", "1"]]
QUICK = {"unet": Recipe(2, rate=2e-3, augmentation="none"), "lsn": Recipe(1, augmentation="gray")}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("many"), 9, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    return find_scans(folder)


@pytest.fixture
def experiment(scans, tmp_path, monkeypatch):
    """An experiment with recipes of an epoch or two, on slices of 32 pixels."""
    monkeypatch.setattr(jobs_module, "RECIPES", RECIPES | QUICK)
    monkeypatch.setattr(running, "RECIPES", RECIPES | QUICK)
    monkeypatch.setattr(running, "preprocessing", lambda job: running.Preprocessing(32))
    return Experiment(scans, GROUPS, tmp_path / "out", known_spacing=False)


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_the_main_set_is_every_model_on_every_fold_and_each_job_comes_after_the_rung_below():
    main = jobs(["main"])
    assert {(job.model, job.fold) for job in main} == {(m, f) for m in LADDER for f in range(FOLDS)}
    everything = jobs(command.SETS.split(","))
    assert len(set(everything)) == len(everything) == len({job.name for job in everything})
    for number, job in enumerate(everything):
        assert job.below is None or job.below in everything[:number]
    assert sum(job.seed > 0 for job in everything) == 2 * len(LADDER)
    assert {job.variant for job in everything} == set(VARIANTS)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="no set of jobs is named other"):
        jobs(["main", "other"])


def test_a_variant_changes_its_recipe_only():
    assert recipe_of(Job("unet-textbook", 0)) == RECIPES["unet-textbook"]
    changed = recipe_of(Job("unet-textbook", 0, 0, "plain"))
    assert changed.augmentation == "none" and changed.epochs == RECIPES["unet-textbook"].epochs


def test_discs_cover_the_mean_liver(scans):
    class Fixed(list):
        pass

    shape = torch.zeros(1, 40, 40)
    shape[0, 5:30, 10:22], shape[0, 24:30, 10:36] = 1, 1
    discs = covering_discs(Fixed([(None, shape)] * 3), 12)
    covered = torch.stack([disc((40, 40), (y, x), radius)[0, 0] > 0 for y, x, radius in discs]).any(0)
    assert not (covered & (shape[0] == 0)).any()
    assert (covered & (shape[0] > 0)).sum() > 0.75 * shape.sum()
    assert [radius for *_, radius in discs] == sorted((radius for *_, radius in discs), reverse=True)


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_of_masks_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    truth, found = np.zeros((2, 6, 9, 10), bool)
    truth[1:5, 2:7, 2:8], found[0:4, 3:8, 2:8] = True, True
    found[2] &= rng.random((9, 10)) < 0.8
    found[3] = False
    scores = score_masks(truth, found, None)
    assert scores["dice"] == dice(truth, found)
    assert scores["dice_liver_slices"] == dice(truth[1:5], found[1:5]) != scores["dice"]
    rows = [compare(a, b, (1, 1)) for a, b in zip(truth[1:5], found[1:5], strict=True)]
    assert scores["slices"]["z"] == [1, 2, 3, 4]
    assert scores["slices"]["dice"] == [row["dice"] for row in rows]
    assert scores["slices"]["assd"][2] is None
    assert scores["assd"] == pytest.approx(np.mean([row["assd_mm"] for row in rows if row["assd_mm"] is not None]))
    assert scores["unit"] == "pixels"
    whole = score_masks(truth, found, (3.0, 2.0, 1.0))
    assert {key: whole[key] for key in ("assd", "mssd", "hd95")} == {
        key: compare(truth, found, (3.0, 2.0, 1.0))[f"{key}_mm"] for key in ("assd", "mssd", "hd95")
    }
    assert whole["unit"] == "mm" and whole["slices"]["mssd"][0] == compare(truth[1], found[1], (2.0, 1.0))["mssd_mm"]
    nothing = score_masks(truth, np.zeros_like(truth), None)
    assert nothing["dice"] == 0 and nothing["hd95"] is None and nothing["ravd_percent"] == 100


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_job_leaves_a_report_and_is_not_run_again(experiment, monkeypatch):
    job = Job("unet", 0)
    experiment.run(job)
    report = json.loads(experiment.report(job).read_text())
    parts = experiment.parts(job)
    assert list(report["scans"]) == parts.test and not set(parts.test) & set(report["checkpoint"]["train"])
    assert {"0", "1"} <= set(parts.test) or not {"0", "1"} & set(parts.test)
    assert len(report["log"]) == 2 and report["training_cpu_seconds"] > 0
    assert report["parameters"] == 39617 and report["checkpoint"]["job"] == job.name
    before = experiment.report(job).stat().st_mtime_ns
    monkeypatch.setattr(running, "train", None)
    experiment.run(job)
    assert experiment.report(job).stat().st_mtime_ns == before


def test_a_job_that_was_cut_in_its_test_keeps_the_scans_it_has(experiment, monkeypatch):
    job, scored = Job("unet", 0), []
    real = running.score_scan

    def cut(model, preprocessing, scan, known):
        scored.append(scan.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return real(model, preprocessing, scan, known)

    monkeypatch.setattr(running, "score_scan", cut)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(job)
    assert not experiment.report(job).is_file()
    experiment.run(job)
    assert scored == [experiment.parts(job).test[i] for i in (0, 1, *range(1, len(experiment.parts(job).test)))]


def test_a_rung_takes_steps_and_seed_of_the_rung_below(experiment, monkeypatch):
    folder = experiment.out / "lse-g-fold0-seed0"
    folder.mkdir(parents=True)
    options = {"steps": 6, "seed": [[0.5, 0.4, 0.2]]}
    below = build_model("lse-g", **options)
    info = {"model": "lse-g", "options": options, "preprocessing": {}}
    save_checkpoint(folder / "best.safetensors", below, info)
    experiment.run(Job("lsn", 0))
    checkpoint = json.loads(experiment.report(Job("lsn", 0)).read_text())["checkpoint"]
    assert checkpoint["options"] == options | {"checkpoint_every": 10}
    assert checkpoint["start_from"].startswith("lse-g-fold0-seed0/best.safetensors, sha256 ")


def test_a_variant_changes_the_options_that_it_names_and_no_others(experiment):
    def options(variant):
        job = Job("lse-g", 0, 0, variant)
        return experiment.options(job, experiment.datasets(job)[0])[0]

    usual = options("")
    assert options("half-the-steps") == usual | {"steps": usual["steps"] // 2}
    assert options("twice-the-steps") == usual | {"steps": usual["steps"] * 2}
    assert options("half-the-radius") == usual | {"seed": (*usual["seed"][:2], usual["seed"][2] / 2)}
    assert options("twice-the-radius") == usual | {"seed": (*usual["seed"][:2], usual["seed"][2] * 2)}
    assert Job("lsn", 1, 0, "longer").below == Job("lse-g", 1)


def hold(path, ready):
    with locked(path) as mine:
        ready.put(mine)
        time.sleep(60)


def test_a_job_in_work_elsewhere_is_passed_over_until_that_process_dies(experiment, monkeypatch):
    job = Job("unet", 1)
    lock = experiment.out / job.name / "lock"
    lock.parent.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    other = context.Process(target=hold, args=(lock, ready))
    other.start()
    try:
        assert ready.get(timeout=60)
        monkeypatch.setattr(running, "train", None)
        experiment.run(job)
        assert not experiment.report(job).is_file()
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with locked(lock) as mine:
        assert mine


def test_of_several_processes_none_waits_for_a_first_that_found_the_job_taken(experiment):
    job = Job("unet", 1)
    together = Experiment(list(experiment.scans.values()), [], experiment.out, known_spacing=False, nodes=2)
    folder = experiment.out / job.name
    folder.mkdir(parents=True)
    with locked(folder / "lock") as mine:
        assert mine
        with pytest.raises(ValueError, match="unet-fold1-seed0: another run is at work on this job; wait"):
            together.run(job)


def test_the_clock_keeps_the_seconds_of_each_epoch_and_adds_those_of_later_lives(tmp_path):
    clock = Clock(tmp_path / "seconds.json")
    clock.__enter__()  # and no exit: the process is killed
    work = [i**2 for i in range(200_000)]
    clock.on_epoch_end(model=None, epoch=1)
    first = clock.total
    assert len(work) and first > 0
    with Clock(tmp_path / "seconds.json") as clock:
        sorted(work, key=lambda x: -x)
    assert clock.total > first


def test_the_lse_like_lse_g_has_its_steps_disc_and_recipe(experiment, monkeypatch):
    monkeypatch.setattr(running, "tune_lse", lambda *_, **__: candidate(np.log([0.1, 1, 0.02, 0.3, 2]), (0.4, 0.3), 80))
    job = Job("lse", 0, 0, "as-lse-g")
    options, _ = experiment.options(job, experiment.datasets(job)[0])
    like, _ = experiment.options(Job("lse-g", 0), experiment.datasets(job)[0])
    assert options == like | {"contrast": pytest.approx(0.1), "sigma": pytest.approx(1)}
    assert recipe_of(job) == RECIPES["lse-g"] != RECIPES["lse"]


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="lock: cannot be locked .*No locks available.*give an --out on a disk"):
        with locked(tmp_path / "lock"):
            pass


def test_the_plan_measures_each_network_once_and_progress_says_what_is_left(experiment, monkeypatch):
    wanted = [Job("unet", 0), Job("unet", 1), Job("threshold", 0)]
    plan = make_plan(experiment, wanted, experiment.out.parent / "plan.json", {})
    assert set(plan) == {"unet", "threshold"} and plan["unet"]["cpu_seconds_per_epoch"] > 0
    assert json.loads((experiment.out.parent / "plan.json").read_text()) == plan
    assert make_plan(experiment, wanted, experiment.out.parent / "plan.json", plan) == plan, "nothing is measured twice"
    text = progress(experiment, wanted, plan)
    assert "0 of 3 jobs are done" in text and "threshold, unet" in text and "CPU hours" in text
    experiment.run(wanted[0])
    assert "1 of 3 jobs are done" in progress(experiment, wanted, plan)


# -- merging ----------------------------------------------------------------------------------------------------------


def report(job, scores, **more):
    scans = {
        name: dict.fromkeys(MEASURES, value)
        | {"unit": "pixels", "cpu_seconds_per_slice": 0.1}
        | {"slices": {"z": [3], "dice": [value], "ravd_percent": [1.0], "assd": [None], "mssd": [2.0], "hd95": [1.5]}}
        for name, value in scores.items()
    }
    described = {"model": job.model, "fold": job.fold, "seed": job.seed, "variant": job.variant}
    return {"job": described, "parameters": 3, "training_cpu_seconds": 1.0, "split": {}, "scans": scans} | more


def write_reports(folder, offsets, noise=0.005):
    """Reports of three models on all folds, of 20 patients, with these mean Dices."""
    rng = np.random.default_rng(0)
    patient = rng.normal(0, 0.03, 20)
    for model, mean in offsets.items():
        for fold in range(FOLDS):
            job = Job(model, fold)
            path = folder / job.name / "report.json"
            path.parent.mkdir(parents=True)
            scores = {str(n): mean + patient[n] + noise * rng.normal() for n in range(fold, 20, FOLDS)}
            path.write_text(json.dumps(report(job, scores)))
            (path.parent / "best.safetensors").write_bytes(b"weights of " + job.name.encode())


def test_what_the_search_of_an_lse_had_found_is_kept(tmp_path):
    write_reports(tmp_path / "runs", {"lse": 0.7})
    found = candidate(np.log([0.1, 1, 0.06, 0.3, 2]), (0.4, 0.3), 120)
    folder = tmp_path / "runs" / Job("lse", 2).name
    about = {"model": "lse", "options": found.options, "preprocessing": {}, "training_dice": 0.75}
    save_checkpoint(folder / "start.safetensors", found.network(), about)
    merge([tmp_path / "runs"], tmp_path / "results", [])
    rows = json.loads((tmp_path / "results" / "liver.json").read_text())["jobs"]
    assert [name for name, row in rows.items() if "searched" in row] == [folder.name]
    assert rows[folder.name]["searched"] == {"dice": 0.75, "alpha": pytest.approx(0.3), "beta": pytest.approx(2)}


@pytest.mark.parametrize(
    ("lsn", "unet", "p4", "p5"),
    [
        (0.701, 0.9, "confirmed", "confirmed"),
        (0.80, 0.9, "refuted", "confirmed"),
        (0.72, 0.9, "undecided", "confirmed"),
        (0.701, 0.6, "confirmed", "refuted"),
        (0.701, 0.7005, "confirmed", "undecided"),
    ],
)
def test_verdicts_follow_the_rules(tmp_path, lsn, unet, p4, p5):
    write_reports(tmp_path / "runs", {"lse": 0.7, "lsn": lsn, "unet": unet})
    merge([tmp_path / "runs"], tmp_path / "results", GROUPS)
    result = json.loads((tmp_path / "results" / "liver.json").read_text())
    assert (result["verdicts"]["P4"]["verdict"], result["verdicts"]["P5"]["verdict"]) == (p4, p5)
    assert result["verdicts"]["P4"]["interval_90"]["patients"] == 19  # scans 0 and 1 are one patient
    assert result["summaries"]["lse"][PRIMARY]["mean"] == pytest.approx(0.7, abs=0.03)


def test_merge_gathers_folders_writes_slices_and_copies_weights(tmp_path):
    write_reports(tmp_path / "a", {"lse": 0.7})
    write_reports(tmp_path / "b", {"unet": 0.9})
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "results", [])
    result = json.loads((tmp_path / "results" / "liver.json").read_text())
    assert result["verdicts"] == {} and set(result["summaries"]) == {"lse", "unet"}
    assert "'slices'" not in str(result["jobs"])
    with (tmp_path / "results" / "liver-slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and rows[0]["assd"] == "" and rows[0]["mssd"] == "2"
    weights = sorted(path.name for path in (tmp_path / "results" / "weights").iterdir())
    assert weights == sorted(f"{m}-fold{f}.safetensors" for m in ("lse", "unet") for f in range(FOLDS))


def test_merge_refuses_a_job_that_is_there_twice_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished job"):
        merge([tmp_path], tmp_path / "results", [])
    write_reports(tmp_path / "a", {"lse": 0.7})
    write_reports(tmp_path / "b", {"lse": 0.7})
    with pytest.raises(ValueError, match="also finished in"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "results", [])


def change_report(path, change):
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("other folds than another job", lambda report: report.update(split={"train": ["2"]})),
        ("in another unit", lambda report: next(iter(report["scans"].values())).update(unit="mm")),
    ],
)
def test_merge_refuses_jobs_that_cannot_be_compared(tmp_path, fault, change):
    write_reports(tmp_path, {"lse": 0.7, "unet": 0.9})
    change_report(tmp_path / "unet-fold2-seed0" / "report.json", change)
    with pytest.raises(ValueError, match=f"unet-fold2-seed0.report.json: .*{fault}"):
        merge([tmp_path], tmp_path / "results", [])
    assert not (tmp_path / "results").exists()


def test_merge_refuses_groups_that_the_runs_tore_apart(tmp_path):
    write_reports(tmp_path, {"lse": 0.7})
    for path in tmp_path.glob("*/report.json"):
        change_report(path, lambda report: report.update(split={"train": ["0", "1"], "test": ["2"]}))
    merge([tmp_path], tmp_path / "results", [["0", "1"]])
    with pytest.raises(ValueError, match="scans 1, 2 are in different parts"):
        merge([tmp_path], tmp_path / "results", [["1", "2"]])


def test_a_damaged_report_is_named(tmp_path):
    write_reports(tmp_path, {"lse": 0.7})
    (tmp_path / "lse-fold1-seed0" / "report.json").write_text('{"job": ')
    with pytest.raises(ValueError, match="lse-fold1-seed0.report.json: cannot be read .*; remove it"):
        merge([tmp_path], tmp_path / "results", [])


def test_jobs_of_other_folds_are_refused_before_anything_is_run(experiment, scans, tmp_path):
    """Another scan, or another group, and test scans of one job would be training scans of the other."""
    job = Job("threshold", 0)
    path = experiment.report(job)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report(job, {}, split=experiment.parts(job)._asdict())))
    experiment.check_folds()
    for others, groups in ((scans[:-1], GROUPS), (scans, [[scans[0].name, scans[-1].name]])):
        with pytest.raises(ValueError, match="threshold-fold0-seed0.report.json: finished with other folds"):
            Experiment(others, groups, experiment.out).check_folds()


def test_an_unfinished_model_gets_no_summary(tmp_path):
    write_reports(tmp_path / "a", {"lse": 0.7, "unet": 0.9})
    (tmp_path / "a" / "unet-fold3-seed0" / "report.json").unlink()
    merge([tmp_path / "a"], tmp_path / "results", [])
    assert set(json.loads((tmp_path / "results" / "liver.json").read_text())["summaries"]) == {"lse"}


# -- command ----------------------------------------------------------------------------------------------------------


def test_the_command_lists_jobs_and_names_faults_in_one_line(tmp_path, capsys):
    assert command.main(["list", "--sets", "main"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "0 lse-fold0-seed0"
    for arguments, fault in [
        (["list", "--sets", "none"], "no set of jobs is named none"),
        (["run", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)], "nowhere: no such folder"),
        (["run", "--data", ".", "--out", str(tmp_path), "--job", "9999"], "no job has that number"),
        (["run", "--data", ".", "--out", str(tmp_path), "--devices", "2"], "one job a time"),
        (["merge", str(tmp_path), "--out", str(tmp_path)], "no finished job"),
    ]:
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert fault in error and error.count("\n") == 1


def test_the_page_names_as_many_tasks_as_there_are_jobs():
    page = (Path(__file__).parents[1] / "book" / "run_the_experiment.md").read_text(encoding="utf-8")
    first, last = re.search(r"--array=(\d+)-(\d+)", page).groups()
    assert (int(first), int(last)) == (0, len(jobs(command.SETS.split(","))) - 1)


def test_a_bad_scan_is_left_out_on_request_only(tmp_path, capsys, monkeypatch):
    folder = write_cohort(tmp_path / "cohort", 3, shape=(32, 32, 6), spacing=(12.0, 12.0, 24.0))
    image = find_scans(folder)[1].image
    image.write_bytes(image.read_bytes()[:200])
    seen = []

    def stop(scans, *_, **__):
        seen.extend(scan.name for scan in scans)
        raise ValueError("enough")

    monkeypatch.setattr(command, "Experiment", stop)
    arguments = ["run", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--skip-bad"]) == 2
    assert len(seen) == 2 and image.name in capsys.readouterr().err
    assert command.main(arguments) == 2 and len(seen) == 5
