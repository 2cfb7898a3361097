"""Weights with all that is needed to use them again: model, options, preprocessing, provenance."""

import inspect
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from .ct import Preprocessing
from .files import atomic_path
from .networks import build_model
from .nifti import one_line
from .stepping import METHODS

MOST = {"steps": 10_000, "depth": 10, "sigma": 100}  # of an option of a stored model: none shall run for ever


def save_checkpoint(path: str | os.PathLike, model: nn.Module, info: dict) -> None:
    """Weights as safetensors, with ``info`` (model, options, preprocessing, provenance) as JSON in its metadata."""
    with atomic_path(path) as partial:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        partial.write_bytes(save(state, {"lsbook": json.dumps(info)}))


def load_checkpoint(path: str | os.PathLike) -> tuple[nn.Module, Preprocessing, dict]:
    """The model of a checkpoint, ready to predict, its preprocessing and its info.

    Raises:
        OSError: if the file is missing or may not be read.
        ValueError: if it was not written by :func:`save_checkpoint`, or holds options that no model has, or weights
            that are not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one with `python -m lsbook train`")
    Path(path).open("rb").close()  # says why it may not be read, which safetensors does not
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["lsbook"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.device("meta"):  # a model without memory, until it is known that the weights are there
            planned = build_model(info["model"], **info["options"])
        check_options(planned, info["options"])
        planned.load_state_dict(state, assign=True)
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("NaN or infinite weights")
        model = build_model(info["model"], **info["options"])
        model.load_state_dict(state)
        return model.eval(), Preprocessing(**info["preprocessing"]), info
    except Exception as error:  # whatever a broken or hostile file leads to
        raise ValueError(f"{path}: not a checkpoint of lsbook ({one_line(error)}); give a best.safetensors") from error


def check_options(model: nn.Module, options: dict) -> None:
    """Raise ValueError unless each option is of its default's kind, and not so large that it means no model."""
    for key, value in options.items():
        usual, given = np.asarray(inspect.signature(type(model)).parameters[key].default), np.asarray(value)
        fits = given.dtype.kind in usual.dtype.kind.replace("f", "fi") and given.shape[-1:] == usual.shape[-1:]
        if not fits or (key in MOST and not 0 <= value <= MOST[key]) or (key == "method" and value not in METHODS):
            raise ValueError(f"option {key} is {value!r}")


def take_over(model: nn.Module, path: str | os.PathLike) -> None:
    """Give the model the weights that it shares with a checkpoint of the rung below.

    Raises:
        ValueError: if there are none, or they differ in shape.
    """
    own, other = model.state_dict(), load_checkpoint(path)[0].state_dict()
    if not other.keys() <= own.keys() or any(own[key].shape != value.shape for key, value in other.items()):
        raise ValueError(f"{path}: its weights do not fit into this model; start from the rung below")
    model.load_state_dict(own | other)
