"""Atomic folders: a folder appears in full, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["new_folder"]


@contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yields a hidden folder next to `path`, to be filled; at the end of the block it is synced and renamed to `path`.

    If the block raises, the folder is removed. What a killed process left behind, `.NAME.*.part`, is removed by the
    next call for the same path.

    Args:
        path: the folder to create; it may exist if it is empty.
        replace: whether it may exist with content, which is removed once the new one is complete.

    Raises:
        OSError: the folder cannot be created, or exists with content.
    """
    path = Path(path).absolute()
    _remove_leftovers(path)
    part = _part_of(path)
    part.mkdir()
    try:
        with _locked(part):
            yield part
            for file in part.rglob("*"):
                _sync(file)
            _sync(part)
            if replace and path.exists() and any(path.iterdir()):
                _exchange(part, path)
            else:
                part.rename(path)
            _sync(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _exchange(part: Path, path: Path) -> None:
    """Renames `part` to `path`, whose previous content is removed."""
    old = _part_of(path)
    path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _part_of(path: Path) -> Path:
    return path.parent / f".{path.name}.{token_hex(4)}.part"


def _remove_leftovers(path: Path) -> None:
    """Removes the unfinished folders of processes that have ended: a running one holds a lock."""
    prefix = f".{path.name}."
    for part in path.parent.iterdir():
        if part.name.startswith(prefix) and part.name.endswith(".part") and part.is_dir() and not part.is_symlink():
            with suppress(OSError), _locked(part):
                shutil.rmtree(part)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder, which the system releases when the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
