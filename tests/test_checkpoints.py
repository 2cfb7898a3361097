"""Checkpoints come back as they were, and what is none is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lsbook.checkpoints import load_checkpoint, save_checkpoint
from lsbook.ct import Preprocessing
from lsbook.networks import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

INFO = {"model": "unet", "options": {}, "preprocessing": {"size": 32, "low": -40.0, "high": 160.0}}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lse", {"steps": 4, "seed": (0.2, 0.6, 0.2), "contrast": 0.5, "sigma": 0.0}),
        ("lsn", {"steps": 4, "checkpoint_every": 2}),
        ("unet", {"filters": 4, "depth": 3}),
        ("unet-textbook", {"depth": 2}),
    ],
)
def test_a_checkpoint_brings_back_the_model_and_its_preprocessing(tmp_path, name, options):
    model = build_model(name, **options)
    info = {"model": name, "options": options, "preprocessing": {"size": 48, "low": -100.0, "high": 200.0}}
    save_checkpoint(tmp_path / "a" / "model.safetensors", model, info | {"note": "é"})
    loaded, preprocessing, found = load_checkpoint(tmp_path / "a" / "model.safetensors")
    assert preprocessing == Preprocessing(48, -100.0, 200.0)
    assert found == json.loads(json.dumps(info)) | {"note": "é"}
    assert not loaded.training
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model.eval()(image), rtol=0, atol=0)


def cut_checkpoint(path):
    save_checkpoint(path, build_model("unet"), INFO)
    path.write_bytes(path.read_bytes()[:-100])


BAD_CHECKPOINTS = {
    "text": lambda p: p.write_text("no weights"),
    "empty": lambda p: p.write_bytes(b""),
    "cut": cut_checkpoint,
    "foreign": lambda p: save_file({"weight": torch.zeros(3)}, p),
    "foreign metadata": lambda p: save_file({"weight": torch.zeros(3)}, p, {"lsbook": "not JSON"}),
    "weights of another model": lambda p: save_checkpoint(p, build_model("lse"), INFO),
    "unknown model": lambda p: save_checkpoint(p, build_model("unet"), INFO | {"model": "vnet"}),
    "unknown option": lambda p: save_checkpoint(p, build_model("unet"), INFO | {"options": {"width": 3}}),
    "no preprocessing": lambda p: save_checkpoint(p, build_model("unet"), {"model": "unet", "options": {}}),
}


@pytest.mark.parametrize("make", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_line_that_names_the_file(tmp_path, make):
    make(tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match=r"some\.safetensors: not a checkpoint") as error:
        load_checkpoint(tmp_path / "some.safetensors")
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path / "gone.safetensors")
