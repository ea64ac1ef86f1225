"""Identifies the architecture of a checkpoint, after removing the prefixes that wrappers add to its names."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from rushlight.errors import RushlightError, printable_name
from rushlight.loading.families import PORT_IT, family
from rushlight.loading.near_types import refusal
from rushlight.models import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rushlight.models import Architecture
    from rushlight.porting.check.checker import Checker

__all__ = ["check_unknown", "check_wrappers", "find_architecture"]

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""The part that a wrapper adds to names, at any depth -> the wrapper."""

HOLDERS = {
    "module.": "DistributedDataParallel or DataParallel",
    "model.": "a LightningModule, or another module",
}
"""The prefix of every name if the model is an attribute of another module -> that module."""

SHOWN_BY_NAMES = ("gpt2",)
"""The types that names alone show; those of the Llama family share theirs."""

N_LANDMARKS = 20
"""Slots of a port that are looked for to find a common prefix; a port does not declare landmarks."""


def check_wrappers(checker: Checker, expected: Iterable[str]) -> None:
    """Removes the parts of names that wrappers add, unless one of the `expected` prefixes contains them."""
    for part, wrapper in WRAPPERS.items():
        if any(part in prefix for prefix in expected):
            continue
        changed = checker.rename(partial(_without, part))
        if changed:
            checker.problem(
                "prefix",
                f"names with {part}",
                f"{wrapper} adds it to the names of the modules that it wraps.",
                "save the state_dict of the wrapped model, or remove it from the names, as the script does",
                changed,
                in_script=True,
            )
            checker.fix_script.strip(part, anywhere=True)


def _without(part: str, name: str) -> str:
    return f".{name}".replace(f".{part}", ".")[1:]


def find_architecture(
    checker: Checker, named: Architecture | None = None, flag: str | None = None
) -> Architecture | None:
    """The architecture of a checkpoint, after removing a prefix from its names.

    The flag decides, then config.json's model_type, then the landmarks among the tensor names. Names alone do not
    suffice where there is a model_type: gpt_bigcode has every landmark of GPT-2 and computes something else. A model of
    which no tensor has its name is another one.

    Args:
        checker: its tensors lose the prefix.
        named: the architecture that the flag names, if any.
        flag: the flag that names it.

    Returns:
        None if model_type names another architecture, or if there is none and the names match no architecture.
    """
    model_type = checker.config_values.get("model_type")
    if named is None and model_type is not None:
        named = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
        if named is None:
            return None
    for architecture in [named] if named else [ARCHITECTURES[name] for name in SHOWN_BY_NAMES]:
        # A file may have a tied table only under the head's name.
        needed = _landmarks(checker, architecture) - set(architecture.rules.tied.values())
        prefixes = [_prefix(checker.tensors, landmark, architecture.rules.prefixes) for landmark in needed]
        present = [prefix for prefix in prefixes if prefix is not None]
        if named and needed and not present:
            _report_other_model(checker, needed, flag)
        if present and (named or len(present) == len(needed)):
            if prefix := Counter(present).most_common(1)[0][0]:
                _strip(checker, prefix)
            return architecture if named or architecture.recognises(checker.tensors) else None
    if named and flag is None and (relative := _by_landmarks(checker)) not in {None, named.model_type}:
        checker.note(
            "architecture",
            f"the names are those of {relative}",
            f"config.json's model_type is {named.model_type}, which decides.",
            f"if this is a {relative}, use the config.json that belongs to it",
        )
    return named


def _landmarks(checker: Checker, architecture: Architecture) -> frozenset[str]:
    """Names that every checkpoint of an architecture has; without landmarks, some of the slots of its model."""
    if architecture.landmarks:
        return architecture.landmarks
    try:
        if checker.config_values:
            config = architecture.config_type.from_json(checker.config_values)
        else:
            config = architecture.config_type.from_tensors(checker.tensors, file=checker.checkpoint.source)
        model = architecture(config)
    except RushlightError:
        return frozenset()
    return frozenset(name for name, _ in islice(model.named_slots(), N_LANDMARKS))


def _prefix(names: Iterable[str], landmark: str, prefixes: tuple[str, ...]) -> str | None:
    """The shortest prefix of `landmark` among the names, without an expected one of `prefixes`; None if absent."""
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
        f"The model was saved as part of {holder}, in its attribute {shown.rstrip('.')}.",
        "save the state_dict of the model itself, or remove the prefix, as the script does",
        changed,
        in_script=True,
    )
    checker.fix_script.strip(prefix)


def _report_other_model(checker: Checker, landmarks: frozenset[str], flag: str | None) -> None:
    found = family(checker.tensors)
    if found:
        fix = found.fix
    elif flag:
        fix = f"leave out {flag}, or check a checkpoint of this model"
    else:
        fix = "config.json names this model: replace it with the config.json that belongs to these weights"
    checker.problem(
        "architecture",
        "another model",
        f"No tensor is named {' or '.join(sorted(landmarks)[:3])}"
        + (f"; by its names this is {found.description}." if found else "."),
        fix,
    )


def check_unknown(checker: Checker) -> None:
    """Reports what is known about a checkpoint whose architecture is not built in."""
    model_type = checker.config_values.get("model_type")
    if model_type is not None:
        why, fix = refusal(model_type, checker.tensors)
        if relative := _by_landmarks(checker):
            why += f". The names are also those of {relative}, but equal names do not mean equal arithmetic"
            fix += f"; if this is a {relative} after all, correct model_type"
    elif found := family(checker.tensors):
        why, fix = f"By its names this is {found.description}", found.fix
    else:
        why = "The tensor names match no built-in architecture"
        fix = f"{PORT_IT}; --port FILE compares with a model file, `--architecture NAME` with a built-in architecture"
    examples = [(view, str(view.shape)) for view in list(checker.tensors.values())[:5]]
    checker.problem("architecture", "an architecture that is not built in", f"{why}.", fix, examples)


def _by_landmarks(checker: Checker) -> str | None:
    """The model_type of the architecture whose landmarks the names have, whatever their prefix."""
    for model_type in SHOWN_BY_NAMES:
        architecture = ARCHITECTURES[model_type]
        needed = architecture.landmarks - set(architecture.rules.tied.values())
        if needed and all(_prefix(checker.tensors, landmark, ()) is not None for landmark in needed):
            return model_type
    return None
