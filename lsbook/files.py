"""Where files are kept, and how they are written so that a cut never leaves half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pooch


def cache_folder(*parts: str) -> Path:
    """Folder for data that can be made or fetched again; the environment variable ``LSBOOK_CACHE`` moves it.

    Args:
        parts: names of folders below it, for example ``"sample"``.

    Returns:
        The folder, which exists afterwards.

    Raises:
        OSError: if it cannot be made; the message names it and the variable.
    """
    root = Path(os.environ.get("LSBOOK_CACHE") or pooch.os_cache("lsbook"))
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: cannot make this cache folder ({error}); set LSBOOK_CACHE to another") from error
    return folder


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write to the yielded path; on success it replaces ``path`` in one step, on an error nothing is left behind.

    The temporary name ends as the final one does, because writers choose a format by the suffix (``.nii.gz``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
