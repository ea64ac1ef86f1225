"""Names: what wrappers have put into them, and which architecture they are of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from rushlight.errors import RushlightError, printable_name
from rushlight.models import ARCHITECTURES
from rushlight.porting.check.families import family

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rushlight.models import Architecture
    from rushlight.porting.check.checker import Checker

__all__ = ["check_shared_table", "check_unknown", "check_wrappers", "find_architecture"]

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""What is put into names, at any depth, by what wraps a module."""

ENOUGH = 20
"""Names that tell what stands before all."""

HOLDERS = {
    "module.": "DistributedDataParallel or DataParallel",
    "model.": "a LightningModule, or another module",
}
"""What is put before all names by what holds a whole model under an attribute."""


def check_wrappers(checker: Checker, expected: Iterable[str]) -> None:
    """Takes out what wrappers put into names, but where one of the `expected` prefixes has it."""
    for wrapper, what in WRAPPERS.items():
        if any(wrapper in prefix for prefix in expected):
            continue
        changed = checker.rename(partial(_without, wrapper))
        if changed:
            checker.problem(
                "prefix",
                f"names with {wrapper}",
                f"They are put there by {what}, into the names of the model that it wraps.",
                "save the state_dict of the model inside; or take the word out of the names, as below",
                changed,
                in_script=True,
            )
            checker.fix_script.strip(wrapper, anywhere=True)


def _without(wrapper: str, name: str) -> str:
    return f".{name}".replace(f".{wrapper}", ".")[1:]


def find_architecture(checker: Checker, named: Architecture | None, flag: str | None = None) -> Architecture | None:
    """The architecture that was named, or the one whose landmarks are there; a prefix before them is taken off.

    Args:
        checker: its tensors get their names without the prefix.
        named: by the flag, or without one by config.json; None if by neither.
        flag: the flag that names it.
    """
    for architecture in [named] if named else ARCHITECTURES.values():
        # A table may be in the file under its head's name alone.
        needed = _landmarks(checker, architecture) - set(architecture.rules.tied.values())
        prefixes = [_prefix(checker.tensors, landmark, architecture.rules.prefixes) for landmark in needed]
        there = [prefix for prefix in prefixes if prefix is not None]
        if named and needed and not there:
            _check_another_model(checker, needed, flag)
        if there and (named or len(there) == len(needed)):
            if prefix := Counter(there).most_common(1)[0][0]:
                _strip(checker, prefix)
            return architecture
    return named


def _landmarks(checker: Checker, architecture: Architecture) -> frozenset[str]:
    """Names that every checkpoint of an architecture has; of a port that tells none, some of its slots."""
    landmarks: frozenset[str] = getattr(architecture, "landmarks", frozenset())
    if landmarks:
        return landmarks
    try:
        model = architecture(architecture.config_type.from_tensors(checker.tensors, file=checker.checkpoint.source))
    except RushlightError:
        return landmarks
    return frozenset(name for name, _ in islice(model.named_slots(), ENOUGH))


def _prefix(names: Iterable[str], landmark: str, prefixes: tuple[str, ...]) -> str | None:
    """What stands before `landmark`, less one of the `prefixes` that may; the shortest, or None if it is nowhere."""
    before = [name.removesuffix(landmark) for name in names if f".{name}".endswith(f".{landmark}")]
    if not before:
        return None
    shortest = min(before, key=len)
    return next((shortest.removesuffix(prefix) for prefix in prefixes if shortest.endswith(prefix)), shortest)


def _strip(checker: Checker, prefix: str) -> None:
    changed = checker.rename(lambda name: name.removeprefix(prefix))
    shown, holder = printable_name(prefix), HOLDERS.get(prefix, "another module")
    checker.problem(
        "prefix",
        f"names that begin with {shown}",
        f"The model was saved from inside {holder}, which held it as {shown.rstrip('.')}.",
        "save the state_dict of the model itself; or take the prefix off, as below",
        changed,
        in_script=True,
    )
    checker.fix_script.strip(prefix)


def check_shared_table(checker: Checker, architecture: Architecture) -> None:
    """Finds a table that is in the file under the name of the head that it is tied to, and gives it its own."""
    rules = architecture.rules
    names = {rules.canonical(name): name for name in checker.tensors}
    for head, table in rules.tied.items():
        if table in names or head not in names:
            continue
        seen = checker.tensors[names[head]]
        prefix = next((p for p in rules.prefixes if any(name.startswith(p) for name in checker.tensors)), "")
        checker.problem(
            "tie",
            f"{table} is there only as {head}",
            "The two are tied, and of tied tensors safetensors' save_model keeps one: the first by name.",
            f"give the tensor the name {prefix}{table} too, as below",
            [(seen, str(seen.shape))],
            in_script=True,
        )
        checker.tensors[prefix + table] = replace(seen, name=prefix + table)
        checker.fix_script.copy(seen.name, prefix + table)


def _check_another_model(checker: Checker, landmarks: frozenset[str], flag: str | None) -> None:
    relative = family(checker.tensors)
    checker.problem(
        "architecture",
        "another model",
        f"Nothing here is called {' or '.join(sorted(landmarks)[:3])}"
        + (f"; by its names this is {relative.what}." if relative else "."),
        relative.fix
        if relative
        else f"leave {flag} out, or give the checkpoint of this model"
        if flag
        else "config.json names this model: put the config.json of these weights in its place",
    )


def check_unknown(checker: Checker, model_type: object) -> None:
    """Says what is known of a checkpoint whose architecture is not; `model_type` is config.json's word, if any."""
    ours = ", ".join(ARCHITECTURES)
    told = f"config.json calls it {printable_name(model_type)}; " if isinstance(model_type, str) else ""
    relative = family(checker.tensors)
    if relative:
        checker.problem(
            "architecture",
            "a model that rushlight does not have",
            f"By its names this is {relative.what}; {told}rushlight has {ours}.",
            relative.fix,
        )
    else:
        checker.problem(
            "architecture",
            "a model that rushlight does not know",
            f"The names are not those of {ours}; {told}rushlight has no other model.",
            "`rushlight port SOURCE -o my_model.py` writes a model file under these names to begin with; "
            "`--architecture NAME` compares them with a model of rushlight's all the same",
            [(seen, str(seen.shape)) for seen in list(checker.tensors.values())[:5]],
        )
