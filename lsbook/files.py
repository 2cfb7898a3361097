"""Where files are kept, and how they are written so that a cut never leaves half of one."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pooch
from filelock import FileLock, Timeout


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

    What a process that was killed left of the same file is removed by the next that writes it (on Linux, where
    ``/proc`` tells which processes of this machine are alive). The temporary name ends as the final one does, because
    writers choose a format by the suffix (``.nii.gz``).

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f"-{platform.node()}-{path.name}"
    for left in path.parent.glob(".partial-*") if Path("/proc/self").exists() else ():
        if left.name.endswith(ending) and not Path("/proc", left.name.split("-")[1]).exists():
            left.unlink(missing_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}{ending}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error}); check its folder and disk") from error
    finally:
        partial.unlink(missing_ok=True)


def hold(folder: Path) -> AbstractContextManager:
    """The lock of a folder for the time of a ``with``; the system frees it when the process ends, however it ends.

    Raises:
        ValueError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder}: another run is at work there; wait for its end or choose another --out") from error
