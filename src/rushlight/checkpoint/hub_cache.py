"""Lists and deletes the models in the hub's shared cache, which other programs fill too.

    models--owner--name/
        refs/main               the commit of a branch
        snapshots/COMMIT/...    a link to a blob for each file
        blobs/HASH              the files; HASH.incomplete and HASH.*.incomplete are half downloads

huggingface_hub's scan leaves out a repository with a single dangling link. Broken ones are what a user looks for, so
they are listed and deleted here too, without that scan, which reads the whole cache.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from rushlight.checkpoint.shards import INDEX, read_index
from rushlight.checkpoint.short_names import SHORT_NAMES
from rushlight.errors import RushlightError, SourceError, first_ten, printable_name
from rushlight.files.sniff import PICKLE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CachedModel", "cache_folder", "cached_models", "delete", "find_cached"]

_PREFIX = "models--"


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        repo_id: "owner/name".
        folder: its folder in the cache.
        nbytes: what it takes on disk.
        commits: its snapshots, the one that is loaded first.
        problems: what keeps it from being loaded offline, each in one sentence.
    """

    repo_id: str
    folder: Path
    nbytes: int
    commits: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def snapshot(self) -> Path | None:
        """The folder of the snapshot that is loaded; None if there is none."""
        return self.folder / "snapshots" / self.commits[0] if self.commits else None


def cache_folder() -> Path:
    """The folder of the cache: HF_HUB_CACHE, or `hub` in HF_HOME, or ~/.cache/huggingface/hub."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def cached_models() -> list[CachedModel]:
    """The models in the cache, by name; none if there is no cache.

    Raises:
        SourceError: the cache cannot be read.
    """
    cache = cache_folder()
    try:
        names = [entry.name for entry in os.scandir(cache) if entry.name.startswith(_PREFIX)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(
            f"the hub's cache cannot be read: {error.strerror}",
            file=cache,
            remedy="fix it, or set HF_HUB_CACHE to another folder",
        ) from error
    return [_describe(cache / name) for name in sorted(names, key=str.lower) if name != _PREFIX]


def find_cached(name: str) -> CachedModel:
    """The model in the cache that a user names: by its id, its short name, or its name without the owner.

    Raises:
        SourceError: none or several have this name, or the cache cannot be read.
    """
    models = cached_models()
    full = SHORT_NAMES.get(name, name).lower()
    named = [model for model in models if model.repo_id.lower() == full]
    if not named and "/" not in name:
        named = [model for model in models if model.repo_id.lower().rpartition("/")[2] == full]
    if len(named) == 1:
        return named[0]
    partly = named or [model for model in models if full and full in model.repo_id.lower()]
    shown = printable_name(name)
    if partly:
        raise SourceError(
            f"{shown} is {'the name of several models' if named else 'part of the name of a model'} in the cache",
            found=", ".join(first_ten([model.repo_id for model in partly])),
            remedy="write the complete name, with its owner",
        )
    raise SourceError(
        f"the cache has no model {shown}", file=cache_folder(), remedy="`rushlight list` shows what it has"
    )


def delete(model: CachedModel) -> int:
    """Deletes a model from the cache, with all its snapshots, and returns the number of bytes that this freed.

    Raises:
        SourceError: its folder is a link, or cannot be deleted; what was deleted until then is gone.
    """
    cache = cache_folder().resolve()
    if model.folder.is_symlink() or model.folder.resolve().parent != cache:
        raise SourceError(
            "a link to a folder outside the cache, which is not deleted",
            file=model.folder,
            remedy="delete the link, and the folder if you no longer need it",
        )
    folder = cache / model.folder.name
    if not folder.is_dir():  # opening a named pipe would wait for ever
        raise SourceError("cannot be deleted: not a folder", file=folder, remedy="delete it yourself")
    for path in (cache, *_folders(folder)):
        if not os.access(path, os.W_OK | os.X_OK):
            raise SourceError("cannot be deleted from: Permission denied", file=path, remedy="change its permissions")
    before = _disk_bytes(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SourceError(f"cannot be deleted: {error.strerror}", file=error.filename or folder) from error
    return before


def _describe(folder: Path) -> CachedModel:
    repo_id = folder.name.removeprefix(_PREFIX).replace("--", "/")
    commits: tuple[str, ...] = ()
    try:
        commits = _commits(folder)
        problems = tuple(_problems(folder, commits))
    except OSError as error:
        problems = (f"cannot be read: {error.strerror}",)
    return CachedModel(repo_id, folder, _disk_bytes(folder), commits, problems)


def _commits(folder: Path) -> tuple[str, ...]:
    """The snapshots of a repository: the main branch's first, then the newest."""
    snapshots = folder / "snapshots"
    found = [path for path in snapshots.iterdir() if path.is_dir()] if snapshots.is_dir() else []
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    main = folder / "refs" / "main"
    commit = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    return tuple(sorted((path.name for path in found), key=lambda name: name != commit))


def _problems(folder: Path, commits: tuple[str, ...]) -> Iterator[str]:
    partial = list((folder / "blobs").glob("*.incomplete"))
    if partial:
        n_bytes = sum(path.stat().st_size for path in partial)
        resumes = all("." not in path.stem for path in partial)
        remedy = f": `rushlight pull` continues {'it' if len(partial) == 1 else 'them'}" if resumes else ""
        yield f"{_count(len(partial), 'half download')} of {n_bytes:,} bytes{remedy}"
    main = folder / "refs" / "main"
    if main.is_file() and (commit := main.read_text("utf-8", "replace").strip()) not in commits:
        yield f"the main branch is at {printable_name(commit[:12])}, which was not downloaded"
    if not commits:
        yield "nothing was downloaded"
        return
    snapshot = folder / "snapshots" / commits[0]
    paths = [path for path in snapshot.rglob("*") if path.is_symlink() or path.is_file()]
    names = {path.relative_to(snapshot).as_posix() for path in paths}
    if dangling := sorted(path.relative_to(snapshot).as_posix() for path in paths if not path.exists()):
        yield f"{_count(len(dangling), 'link')} to a file that is missing: {', '.join(first_ten(dangling))}"
    yield from _weights_problems(snapshot, names - set(dangling))


def _weights_problems(snapshot: Path, names: set[str]) -> Iterator[str]:
    """What is missing of the weights, which decides whether anything can run."""
    if "model.safetensors" in names:
        return
    if INDEX in names:
        try:
            shards = read_index(snapshot / INDEX).names
        except RushlightError as error:
            yield f"{INDEX} is invalid: {error.message}"
            return
        if absent := [name for name in shards if name not in names]:
            yield f"{len(absent)} of {len(shards)} shards are missing: {', '.join(first_ten(absent))}"
    elif not any(name.endswith(".safetensors") and "/" not in name for name in names):
        pickles = any(name.endswith(PICKLE_SUFFIXES) for name in names)
        yield "no safetensors, only pickles" if pickles else "the weights were not downloaded"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and those in it, without following links."""
    for path, _, _ in os.walk(folder):
        yield Path(path)


def _disk_bytes(folder: Path) -> int:
    """The size of the files in a folder, each once, without following links."""
    sizes = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = (Path(path) / name).lstat()
                if stat.S_ISREG(found.st_mode):
                    sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
