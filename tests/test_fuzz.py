"""Ten seconds of hostile files, the same ones in each run; ``python -m deep.fuzz`` reads many more."""

import gzip
import json
import os
import resource
import signal
import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deep import fuzz
from deep.damage import FIELDS, REAL, WHOLE, WORDS, hostile_file, valid_files
from deep.fuzz import verdict

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = settings(
    derandomize=True,
    database=None,
    deadline=20_000,  # ms for one file: what takes longer hangs
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
NUMBERS = {"f": st.sampled_from(REAL) | st.floats(width=32), "s": st.binary(min_size=4, max_size=4)}
NUMBERS |= {"b": st.integers(-128, 127), "h": st.sampled_from([n for n in WHOLE if -(2**15) <= n < 2**15])}
NUMBERS["h"] |= st.integers(-(2**15), 2**15 - 1)
NUMBERS["i"] = st.sampled_from([n for n in WHOLE if n < 2**31]) | st.integers(-(2**31), 2**31 - 1)
HEADER = st.lists(
    st.sampled_from(FIELDS).flatmap(lambda f: st.tuples(st.just(f), NUMBERS[f[1]])), min_size=1, max_size=4
)


def used_mib() -> float:
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@pytest.fixture(autouse=True)
def little_memory() -> None:
    before = used_mib()
    yield
    assert used_mib() < before + 1024


@pytest.mark.parametrize("reader", ["scan", "mask", "checkpoint", "weights"])
def test_every_kind_of_file_is_accepted_undamaged(tmp_path, reader):
    for content in valid_files()[reader]:
        name = "weights.npz" if content.startswith(b"PK") else "weights.safetensors"
        path = tmp_path / (name if reader in ("checkpoint", "weights") else "scan.nii")
        path.write_bytes(content)
        assert verdict(reader, path) == "accepted"


@settings(QUICK, max_examples=500)
@given(scan=st.sampled_from(valid_files()["scan"]), fields=HEADER, cut=st.none() | st.integers(0, 2000))
def test_scans_with_any_header_are_used_or_refused(tmp_path, scan, fields, cut):
    content = bytearray(scan)
    for (offset, form), value in fields:
        struct.pack_into("4s" if form == "s" else f"<{form}", content, offset, value)
    path = tmp_path / ("scan.nii" if cut is None else "scan.nii.gz")
    path.write_bytes(content if cut is None else gzip.compress(content, 1)[:cut])
    verdict("scan", path)


@settings(QUICK, max_examples=500)
@given(model=st.sampled_from(valid_files()["checkpoint"]), data=st.data())
def test_checkpoints_with_any_words_are_used_or_refused(tmp_path, model, data):
    size = int.from_bytes(model[:8], "little")
    head = model[8 : 8 + size]
    for _ in range(data.draw(st.integers(1, 3))):
        start, length = data.draw(st.integers(0, len(head))), data.draw(st.integers(0, 12))
        new = data.draw(st.sampled_from(WORDS) | st.binary(max_size=4))
        head = head[:start] + new + head[start + length :]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + model[8 + size :])
    verdict("checkpoint", path)


@settings(QUICK, max_examples=500)
@example(number=3860)  # crashed once: the size in a checkpoint was true
@example(number=29126)  # and here the end of the window
@given(number=st.integers(10**6, 10**7))
def test_damaged_files_of_all_kinds_are_used_or_refused(tmp_path, number):
    reader, name, content = hostile_file(Random(number))
    (tmp_path / name).write_bytes(content)
    verdict(reader, tmp_path / name)


def test_the_long_fuzz_counts_what_kills_its_process_and_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    def read(reader: str, path: Path) -> str:
        content = path.read_bytes()
        if content == hostile_file(Random(2))[2]:
            raise RuntimeError("not documented")
        if content == hostile_file(Random(3))[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        if content == hostile_file(Random(4))[2]:
            bytearray(2 * fuzz.MEMORY)
        return "accepted"

    monkeypatch.setattr(fuzz, "verdict", read)
    found = fuzz.in_child(list(range(6)), tmp_path, tmp_path / "chunk.json")
    assert found["crashes"].keys() == {"2", "3", "4"}
    assert "RuntimeError" in found["crashes"]["2"] and "signal 9" in found["crashes"]["3"]
    assert "MemoryError" in found["crashes"]["4"]
    assert sum(found["counts"].values()) == 3
    monkeypatch.setattr(fuzz, "verdict", None)
    assert fuzz.in_child(list(range(6)), tmp_path, tmp_path / "chunk.json") == json.loads(json.dumps(found))
