"""The wider ranges of the classical peers hold the usual ones, and go on where settings had ended at a border."""

import json
from pathlib import Path

import pytest

from experiments.classical import METHODS
from experiments.wider import WIDER

JOBS = json.loads((Path(__file__).parent.parent / "results" / "liver.json").read_text())["jobs"]


@pytest.mark.parametrize("name", METHODS)
def test_what_had_ended_at_a_border_has_room(name):
    usual, wider = METHODS[name], WIDER[name]
    assert wider.run is usual.run and wider.space.keys() == usual.space.keys()
    found = [row["options"] for row in JOBS.values() if (row["job"]["model"], row["job"]["variant"]) == (name, "")]
    assert len(found) == 5
    for key, values in {"stop": usual.stops, **usual.space}.items():
        others = {"stop": wider.stops, **wider.space}[key]
        low, high = min(values), max(values)
        assert min(others) <= low or key == "stop", f"{key}: the wider range leaves out {low}"
        assert max(others) >= high, f"{key}: the wider range leaves out {high}"
        for value in {options[key] for options in found} if len(values) > 1 else ():
            assert value != low or key in ("smoothing", "stop") or min(others) < low, f"{key} had ended at {low}"
            assert value != high or max(others) > high, f"{key} had ended at {high}"
