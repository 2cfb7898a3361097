"""Weights with all that is needed to use them again: model, options, preprocessing, provenance."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .ct import Preprocessing
from .files import atomic_path
from .networks import build_model
from .nifti import one_line


def save_checkpoint(path: str | os.PathLike, model: nn.Module, info: dict) -> None:
    """Weights as safetensors, with ``info`` (model, options, preprocessing, provenance) as JSON in its metadata."""
    with atomic_path(path) as partial:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial, {"lsbook": json.dumps(info)})


def load_checkpoint(path: str | os.PathLike) -> tuple[nn.Module, Preprocessing, dict]:
    """The model of a checkpoint, ready to predict, its preprocessing and its info.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or was not written by :func:`save_checkpoint`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one with `python -m lsbook train`")
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["lsbook"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = build_model(info["model"], **info["options"])
        model.load_state_dict(state)
        return model.eval(), Preprocessing(**info["preprocessing"]), info
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise ValueError(f"{path}: not a checkpoint of this package ({reason}); give a best.safetensors") from error


def take_over(model: nn.Module, path: str | os.PathLike) -> None:
    """Give the model the weights that it shares with a checkpoint of the rung below.

    Raises:
        ValueError: if there are none, or they differ in shape.
    """
    own, other = model.state_dict(), load_checkpoint(path)[0].state_dict()
    if not other.keys() <= own.keys() or any(own[key].shape != value.shape for key, value in other.items()):
        raise ValueError(f"{path}: its weights do not fit into this model; start from the rung below")
    model.load_state_dict(own | other)
