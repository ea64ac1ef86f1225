"""Divides the memory for keys and values into blocks of each group of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rushlight.backends.batch import KVGroup
    from rushlight.generation.runner import LanguageModel

WINDOW_SHARE = 0.5
"""Groups with a window get the blocks that all sequences need, but at most this share of the memory, and no more than
leaves room for a full context in the other groups; as many as one sequence needs in any case."""


class _Part(NamedTuple):
    """A group of layers of a model.

    Attributes:
        group: the layers.
        block_bytes: the size of a block.
        at_once: the most blocks that a sequence holds at once.
    """

    group: KVGroup
    block_bytes: int
    at_once: int


def divide(models: Sequence[LanguageModel], allowed: int, max_sequences: int, max_rows: int) -> list[list[int]]:
    """The number of blocks for each group of layers of each model.

    Groups without a window get the same number each, as many as `max_sequences` full contexts take or as fit.

    Args:
        models: the models, whose sequences are the same; the first bounds their length.
        allowed: bytes for all of them.
        max_sequences: the most sequences.
        max_rows: the most rows of a sequence in a step.
    """
    context_length = models[0].context_length
    parts = [_parts(model, context_length, max_rows) for model in models]
    everything = [part for each in parts for part in each]
    windows = [part for part in everything if part.group.window is not None]
    full = [part for part in everything if part.group.window is None]
    wanted = sum(max_sequences * part.at_once * part.block_bytes for part in windows)
    share = min(1.0, _room_for_windows(allowed, windows, full) / wanted) if wanted else 0.0
    evenly = allowed // max(1, sum(part.block_bytes for part in everything))

    def of_window(part: _Part) -> int:
        return max(int(max_sequences * part.at_once * share), min(part.at_once, evenly))

    left = allowed - sum(of_window(part) * part.block_bytes for part in windows)
    most = max_sequences * max((part.at_once for part in full), default=0)
    of_full = max(0, min(most, left // max(1, sum(part.block_bytes for part in full))))
    return [[of_full if part.group.window is None else of_window(part) for part in each] for each in parts]


def _room_for_windows(allowed: int, windows: Sequence[_Part], full: Sequence[_Part]) -> float:
    """The bytes for groups with a window."""
    beside_one_context = allowed - sum(part.at_once * part.block_bytes for part in full)
    if not full or beside_one_context < sum(part.at_once * part.block_bytes for part in windows):
        return allowed * (WINDOW_SHARE if full else 1.0)
    return min(allowed * WINDOW_SHARE, beside_one_context)


def _parts(model: LanguageModel, context_length: int, max_rows: int) -> list[_Part]:
    return [
        _Part(group, model.backend.kv_block_bytes(group), group.n_blocks_for(context_length, max_rows))
        for group in model.kv_shape.groups
    ]
