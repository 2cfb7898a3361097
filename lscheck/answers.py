"""What all checks share: a judge sees an answer as numbers, and the reader sees a sentence, never a traceback."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Judge = Callable[[Any], str]


class NotYet(Exception):
    """An answer is not right yet; the text says why, as the reader will see it."""


def judged(judge: Judge) -> Judge:
    """Make a check of a judge, which returns why an answer is right or raises :class:`NotYet`.

    The check returns one or two sentences that begin with "Right:" or "Not yet:".
    """

    @functools.wraps(judge)
    def check(answer: Any) -> str:
        if answer is None or answer is ...:
            return "Not yet: put your answer in place of None."
        try:
            return f"Right: {judge(answer)}"
        except NotYet as reason:
            return f"Not yet: {reason}".rstrip()

    return check


def require(condition: bool, reason: str) -> None:
    """Raise :class:`NotYet` with the reason unless the condition holds."""
    if not condition:
        raise NotYet(reason)


def numbers(answer: Any, shape: tuple[int, ...] | None, whose: str = "your answer") -> np.ndarray:
    """An answer as a float64 array of a shape, None for any; lists, arrays and tensors of any precision will do.

    Raises:
        NotYet: if it is no array of finite numbers, or has another shape.
    """
    form = "a single number" if shape == () else f"an array of numbers of the shape {shape}" if shape else "an array"
    try:
        value = answer.detach().numpy() if isinstance(answer, Tensor) else np.asarray(answer)
        value = value.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"{whose} is not {form}, but {type(answer).__name__}.") from None
    require(shape in (None, value.shape), f"{whose} has the shape {value.shape}; it must be {form}.")
    require(bool(np.isfinite(value).all()), f"{whose} holds inf or nan; only finite numbers are of use.")
    return value


def call(answer: Any, *arguments: Any) -> Any:
    """What the reader's function returns; a :class:`NotYet` from within it is passed on.

    Raises:
        NotYet: if the answer is no function, or raises an error.
    """
    require(callable(answer), f"a function is asked for, not {type(answer).__name__}: write def or lambda.")
    try:
        return answer(*arguments)
    except NotYet:
        raise
    except Exception as error:
        raise NotYet(f"your function raised {type(error).__name__}: {error}") from error


def evaluate(answer: Any, *arguments: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """:func:`call`, as numbers of a shape; 0-dimensional where a single number is asked for."""
    copies = [a.clone() if isinstance(a, Tensor) else a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    return numbers(call(answer, *copies), shape, "what your function returns")


def close(a: Any, b: Any) -> bool:
    """Equal to about five digits, so that float32 will do."""
    return bool(np.allclose(a, b, rtol=2e-5, atol=1e-5))


def named(value: Any, mistakes: dict[str, Any], otherwise: str = "") -> str:
    """The name of the first mistake that leads to this value."""
    return next((name for name, wrong in mistakes.items() if close(value, wrong)), otherwise)


def columns(answer: Any, n: int) -> np.ndarray:
    """The matrix ``(n, n)`` of a linear function of float64 tensors ``(n,)``, column by column."""
    return np.stack([evaluate(answer, e, shape=(n,)) for e in torch.eye(n, dtype=torch.float64)], axis=1)
