"""Compares config.json with the sizes that tensor shapes and names show."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError
from rushlight.models import TextConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.models import Architecture, Config
    from rushlight.porting.check.checker import Checker

__all__ = ["check_config"]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj")


def check_config(checker: Checker, architecture: Architecture) -> Config | None:
    """The config to compare the tensors with: config.json's if it is valid, with the sizes that the shapes show.

    So the config of another model is one problem instead of one per tensor. None if the sizes cannot be determined.
    """
    inferred = _inferred_sizes(checker, architecture)
    path = checker.checkpoint.sidecar("config.json")
    config: Any = None
    if path is None and inferred:
        checker.note(
            "config",
            "no config.json",
            "Sizes are read from the shapes. Shapes do not show the number of heads, the activation or an epsilon: "
            "these default to the published model's.",
            "put the model's config.json next to the weights",
        )
    elif path is not None:
        try:
            config = architecture.config_type.from_json(read_config(path), file=str(path))
        except ConfigError as error:
            checker.problem("config", "config.json is invalid", error.message, "correct it")
    if config is None:
        try:
            config = architecture.config_type.from_tensors(checker.tensors, file=checker.checkpoint.source)
        except ConfigError as error:
            checker.problem("config", "the sizes are unknown", error.message, error.remedy or "")
            return None
    else:
        inferred |= _heads(checker, architecture, config, inferred)
        _report_sizes(checker, config, inferred)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name for field in dataclasses.fields(config)}
        config = dataclasses.replace(config, **{key: size for key, size in inferred.items() if key in fields})
    checked: Config = config
    return checked


def _report_sizes(checker: Checker, config: Config, inferred: Mapping[str, int]) -> None:
    wrong = [
        f"{key} is {getattr(config, key):,} in config.json, {size:,} in the tensors"
        for key, size in inferred.items()
        if getattr(config, key, size) != size
    ]
    if wrong:
        checker.problem(
            "config",
            "config.json does not match the tensors",
            "\n".join(wrong),
            "correct config.json, or use the one that was published with the weights",
        )


def _heads(checker: Checker, architecture: Architecture, config: Config, inferred: Mapping[str, int]) -> dict[str, int]:
    """The heads, if the rows of the projections to queries and keys contradict config.json; by their fields.

    Rows show H·D and K·D alone, so that a value is only taken where one changed setting explains all of them.
    """
    if not isinstance(config, TextConfig):
        return {}
    n_key, kv_key, dim_key = (config.key_of(role) for role in ("heads", "kv_heads", "head_dim"))
    width = inferred.get(config.key_of("width"), 0)
    n, n_kv, dim = config.heads
    paths = {architecture.rules.canonical(name): view.shape for name, view in checker.tensors.items()}
    layers = {end: shape for path, shape in paths.items() for end in _PROJECTIONS if path.endswith(f".{end}.weight")}
    rows = {end: shape[0] for end, shape in layers.items() if len(shape) == 2 and width in {0, shape[1]}}

    def explained(heads: int, kv_heads: int, head_dim: int) -> bool:
        expected = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads, "qkv_proj": heads + 2 * kv_heads}
        return all(rows[end] == expected[end] * head_dim for end in rows)

    if not rows or explained(n, n_kv, dim):
        return {}
    q, k = rows.get("q_proj", 0), rows.get("k_proj", 0)
    other_kv = k // dim if k else (rows.get("qkv_proj", 0) // dim - n) // 2
    other_dim = q // n if q else rows.get("qkv_proj", 0) // (n + 2 * n_kv)
    if kv_key and other_kv > 0 and explained(n, other_kv, dim):
        return {kv_key: other_kv}
    if dim_key and other_dim > 0 and explained(n, n_kv, other_dim):
        return {dim_key: other_dim}
    if dim_key and q and explained(q // dim, n_kv, dim):
        return {n_key: q // dim}
    return {}


def _inferred_sizes(checker: Checker, architecture: Architecture) -> dict[str, int]:
    """The config fields that shapes and names show."""
    if not issubclass(architecture.config_type, TextConfig):
        return {}
    rules = architecture.rules
    shapes = {rules.canonical(name): view.shape for name, view in checker.tensors.items()}
    for head, table in rules.tied.items():
        if head in shapes:
            shapes.setdefault(table, shapes[head])  # of two tied tensors a file may hold either
    return architecture.config_type.infer_sizes(shapes)
