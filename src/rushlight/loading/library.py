"""The models in the hub's cache, with what can run here and what is broken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rushlight.checkpoint import open_checkpoint, read_config
from rushlight.checkpoint.hub_cache import cached_models
from rushlight.errors import RushlightError, TokenizerError
from rushlight.loading.footprint import footprint
from rushlight.models import ARCHITECTURES
from rushlight.models.tied import tied_heads

if TYPE_CHECKING:
    from rushlight.checkpoint.hub_cache import CachedModel
    from rushlight.loading.footprint import Footprint

__all__ = ["Downloaded", "library"]


class Downloaded(NamedTuple):
    """A model in the cache.

    Attributes:
        cached: its files.
        model_type: that of its config.json; None if it has none.
        footprint: the memory that it needs; None if its type is not built in, or if it is broken.
        problems: what keeps it from running, or from taking text, apart from its type.
    """

    cached: CachedModel
    model_type: str | None
    footprint: Footprint | None
    problems: tuple[str, ...]

    @property
    def is_built_in(self) -> bool:
        """Whether rushlight has its architecture."""
        return self.model_type in ARCHITECTURES


def library() -> list[Downloaded]:
    """The models in the cache, by name.

    Raises:
        SourceError: the cache cannot be read.
    """
    return [_describe(cached) for cached in cached_models()]


def _describe(cached: CachedModel) -> Downloaded:
    folder = cached.snapshot
    if folder is None:
        return Downloaded(cached, None, None, cached.problems)
    model_type, problems = _model_type(folder)
    problems = [*cached.problems, *problems]
    needs = None
    if not cached.problems:
        try:
            with open_checkpoint(folder, allow_missing=tied_heads) as checkpoint:
                needs = footprint(checkpoint)
        except RushlightError as error:
            problems.append(error.message)
        else:
            if needs is None and model_type in ARCHITECTURES and not problems:
                problems.append("config.json is not valid: `rushlight check` says why")
    if model_type in ARCHITECTURES and (problem := _tokenizer_problem(folder)):
        problems.append(f"takes token ids only, not text: {problem}")
    return Downloaded(cached, model_type, needs, tuple(problems))


def _tokenizer_problem(folder: Path) -> str | None:
    """Why a model has no tokenizer. A tokenizer.json, which takes long to read, is not read."""
    from rushlight.text import read_tokenizer

    if (folder / "tokenizer.json").exists():
        return None
    try:
        found = read_tokenizer(lambda pattern: min(filter(Path.exists, folder.glob(pattern)), default=None))
    except TokenizerError as error:
        found = error
    if isinstance(found, TokenizerError):
        return found.message
    return "no tokenizer.json" if found is None else None


def _model_type(folder: Path) -> tuple[str | None, list[str]]:
    """model_type in config.json, and why it cannot be read."""
    path = folder / "config.json"
    if not path.exists():
        return None, ["no config.json was downloaded"]
    try:
        value = read_config(path).get("model_type")
    except RushlightError as error:
        return None, [f"config.json is invalid: {error.message}"]
    return (value, []) if isinstance(value, str) else (None, ["config.json has no model_type"])
