"""The identity of a job: the digests of everything besides the line that determines a result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b, sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.files.file import File
from rushlight.host.threads import usable_cores
from rushlight.text import TOKENIZER_FILES

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from rushlight.jobs.requests import RequestLines
    from rushlight.runtime.model import Model

CONFIG_FILES = ("config.json", "generation_config.json")

_PIECE_BYTES = 16 << 20
_MAX_THREADS = 16


def job_identity(
    model: Model, requests: RequestLines, *, echo: bool, port: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """The properties that all results of a job share, by name: short values verbatim, long ones as digests.

    The weights are identified by every byte of their files, not by name, path or time: a copy of a folder is the same
    model.

    Args:
        model: the model.
        requests: parses the lines.
        echo: whether results include their prompts.
        port: the user's model file.

    Raises:
        CheckpointError, SourceError: a file of the weights can no longer be read.
        OSError: another file cannot be read.
    """
    folders = [] if model.folder is None else [model.folder]
    return {
        "settings": requests.settings_digest(echo),
        "device": model.device.partition(":")[0],  # which of several GPUs does not matter
        "dtype": model.dtype,
        "arithmetic": model.arithmetic,
        "weights": _weights_digest(model.files),
        "config": _files_digest(folder / name for folder in folders for name in CONFIG_FILES),
        "tokenizer": _files_digest(folder / name for folder in folders for name in TOKENIZER_FILES),
        "prefix": " ".join(map(str, model.tokenizer.prefix_ids if model.tokenizer else ())),
        **({} if port is None else {"port": blake2b(Path(port).read_bytes(), digest_size=8).hexdigest()}),
    }


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names whose values differ between two identities."""
    return [name for name in dict.fromkeys(chain(now, before)) if before.get(name) != now.get(name)]


def _files_digest(paths: Iterable[Path]) -> str:
    """The digest, 16 hex digits, of the names and contents of the existing files."""
    digest = blake2b(digest_size=8)
    for path in paths:
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _weights_digest(paths: Iterable[Path]) -> str:
    """The digest, 16 hex digits, of the contents of large files, computed in parallel from digests of their pieces."""
    digest = blake2b(digest_size=8)
    pool = ThreadPoolExecutor(min(usable_cores(), _MAX_THREADS))
    try:
        for path in paths:
            with File(path) as file:
                digest.update(f"{file.size}\n".encode())
                for piece in pool.map(partial(_piece_digest, file), range(0, file.size, _PIECE_BYTES)):
                    digest.update(piece)
    finally:
        pool.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _piece_digest(file: File, start: int) -> bytes:
    piece = memoryview(bytearray(min(_PIECE_BYTES, file.size - start)))
    file.read_into(piece, start)
    return sha256(piece).digest()
