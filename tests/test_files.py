"""Cache folder and atomic writes."""

import platform
import subprocess
import sys

import pytest

from lsbook.files import atomic_path, cache_folder, hold


def test_the_variable_moves_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_folder("a", "b") == tmp_path / "deep" / "cache" / "a" / "b"
    assert cache_folder("a", "b").is_dir()


def test_a_cache_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"file/slices: .* set LSBOOK_CACHE"):
        cache_folder("slices")


def test_an_atomic_write_replaces_the_file_only_at_its_end(tmp_path):
    path = tmp_path / "new" / "scan.nii.gz"
    for content in ("first", "second"):
        with atomic_path(path) as partial:
            partial.write_text(content)
            assert partial.name.endswith(".nii.gz")
            assert not path.exists() if content == "first" else path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [[], ["result.json"]], ids=["no file before", "a file before"])
def test_an_atomic_write_that_fails_leaves_all_as_it_was(tmp_path, before):
    for name in before:
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "result.json") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(before, "old")


def test_what_a_killed_process_left_is_removed_by_the_next_writer_of_the_same_file_only(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, path = platform.node(), tmp_path / "log.json"
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept = [f".partial-{gone.pid}-{here}-log.csv", f".partial-{gone.pid}-another-machine-log.json"]
    kept.append(f".partial-{alive.pid}-{here}-log.json")
    for name in [f".partial-{gone.pid}-{here}-log.json", *kept]:
        (tmp_path / name).write_text("half")
    with atomic_path(path) as partial:
        partial.write_text("whole")
    alive.communicate(b"\n")
    assert {name.name for name in tmp_path.iterdir()} == {"log.json", *kept}
    assert path.read_text() == "whole"


def test_a_folder_is_held_by_one_process_until_the_end_of_the_with(tmp_path):
    for _ in range(2):
        with hold(tmp_path / "run"):
            with pytest.raises(ValueError, match=r"run: another run is at work there"):
                hold(tmp_path / "run")
