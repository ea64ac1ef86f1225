"""Runs every check on a checkpoint, in the order in which causes hide one another.

With a shifted prefix every name is missing; with the config of another model every shape is wrong. So each cause that
is found is fixed in the checker's view of the tensors before the next check runs. The last check reports what binding
would still refuse.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from rushlight.checkpoint import open_headers
from rushlight.checkpoint.stats import measure
from rushlight.errors import ConfigError, RequestError, TokenizerError, first_ten
from rushlight.loading.near_types import LIST_THEM, describe_type
from rushlight.loading.sidecars import find_tokenizer, generation_config
from rushlight.models import ARCHITECTURES, GPT2_VOCAB_SIZE, TextConfig, load_port
from rushlight.models.tied import tied_heads
from rushlight.porting.check.checker import Checker
from rushlight.porting.check.config import check_config
from rushlight.porting.check.fit import Fit
from rushlight.porting.check.frameworks import check_framework
from rushlight.porting.check.names import check_unknown, check_wrappers, find_architecture
from rushlight.porting.check.report import CheckReport

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture

MAX_PADDING = 128
"""Training programs pad the vocabulary by fewer ids than this, for faster matrix products."""

__all__ = ["check", "check_checkpoint", "resolve_architecture"]


def check(
    source: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    port: str | os.PathLike[str] | None = None,
    data: bool = True,
    offline: bool = False,
    revision: str | None = None,
) -> CheckReport:
    """Reports everything that keeps a checkpoint from fitting a model, by cause, each with a suggested fix.

    Args:
        source: as `rushlight.inspect` takes it; only the headers of remote files are read.
        architecture: the architecture to compare it with, such as "gpt2". By default the one that config.json names, or
            that the tensor names show.
        port: your own Python file with the model, in place of `architecture`; it is run.
        data: whether to read the values, to find NaN and Inf and to compare a tied head with its table.
        offline: do not use the network; the hub's cache must hold the files.
        revision: the branch, tag or commit of a hub id.

    Raises:
        SourceError, CheckpointError: the source does not lead to a valid checkpoint.
        PortError: the port cannot be used.
        RequestError: there is no such architecture, or both an architecture and a port are given.
    """
    expected = resolve_architecture(architecture, port)
    with open_headers(
        source, offline=offline, revision=revision, allow_missing=partial(tied_heads, architecture=expected)
    ) as checkpoint:
        return check_checkpoint(checkpoint, expected, data=data)


def resolve_architecture(name: str | None, port: str | os.PathLike[str] | None) -> Architecture | None:
    """The architecture that the user names, by its model_type or as a Python file; None if neither is given.

    Raises:
        PortError, RequestError: as `check`.
    """
    if name is not None and port is not None:
        raise RequestError(f"both an architecture, {name}, and a port are given", remedy="give only one of them")
    if name is not None and name not in ARCHITECTURES:
        raise RequestError(
            describe_type(name) or f"rushlight has no architecture {name!r}",
            expected=", ".join(get_close_matches(name, ARCHITECTURES)) or None,
            remedy=LIST_THEM,
        )
    return ARCHITECTURES[name] if name is not None else load_port(port) if port is not None else None


def is_built_in(architecture: Architecture) -> bool:
    """Whether an architecture is rushlight's own rather than a port."""
    return ARCHITECTURES.get(architecture.model_type) is architecture


def check_checkpoint(
    checkpoint: Checkpoint,
    architecture: Architecture | None = None,
    *,
    data: bool = True,
    advance: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Compares an open checkpoint with a model and reports everything that keeps it from fitting.

    Args:
        checkpoint: an open checkpoint; of a remote one only the headers are read.
        architecture: the model; by default the one that config.json names, or that the tensor names show.
        data: whether to read the values, to find NaN and Inf and to compare a tied head with its table.
        advance: called with the number of bytes read since the last call.

    Raises:
        TruncatedError: a file was changed or cut while it was read.
    """
    readable = data and not checkpoint.is_remote
    checker = Checker(checkpoint, readable=readable)
    model = saved_by = None
    is_port = architecture is not None and not is_built_in(architecture)
    if not is_port and check_framework(checker):  # a port may use the names of any framework
        architecture = None
    else:
        check_wrappers(checker, architecture.rules.prefixes if architecture else ())
        flag = None if architecture is None else "--port" if is_port else "--architecture"
        architecture = find_architecture(checker, architecture, flag)
        if architecture is None:
            check_unknown(checker)
    if architecture is not None:
        config = check_config(checker, architecture)
        is_other_model = any(each.is_problem and each.cause == "architecture" for each in checker.findings)
        if config is not None and not is_other_model:
            fit = Fit(checker, architecture, config)
            model = f"{fit.title if is_port else architecture.model_type} ({config})"
            saved_by = _check_origin(checker, architecture, fit)
            if isinstance(config, TextConfig):
                _check_generation_config(checker, config)
                _check_tokenizer(checker, architecture, config)
    if readable:
        _check_values(checker, advance)
    else:
        why = "Only the headers of remote files are read" if data else "As requested, only the headers were read"
        checker.note("unknown", "the values were not checked", f"{why}, so NaN and Inf would not be found.")
    return CheckReport(
        source=checkpoint.source,
        saved_by=saved_by,
        model=model,
        n_tensors=len(checkpoint),
        data="read" if readable else "elsewhere" if data else "skipped",
        findings=tuple(sorted(checker.findings, key=lambda finding: not finding.is_problem)),
        script=checker.fix_script.text(),
    )


def _check_origin(checker: Checker, architecture: Architecture, fit: Fit) -> str | None:
    """The program that saved the checkpoint, with a note on what such programs do differently; None if unknown.

    Names that differ from the model's, and metadata of another library, show another program.
    """
    origin = architecture.describe_source(checker.tensors)
    if origin is None:
        return None
    if origin.unknown_key and checker.config_values.get(origin.unknown_key) is None:
        checker.note("unknown", origin.unknown_title, origin.unknown_detail, origin.unknown_fix)
    is_pytorch = checker.checkpoint.metadata.get("format", "pt") == "pt"
    return origin.saved_by if fit.names_match and is_pytorch else None


def _check_generation_config(checker: Checker, config: TextConfig) -> None:
    try:
        author = generation_config(checker.checkpoint, config)
    except ConfigError as error:
        title = f"{PurePath(error.file or '').name} is invalid"
        if title not in [finding.title for finding in checker.findings]:
            checker.problem("config", title, error.message, "correct it")
        return
    if author.not_applied:
        title = "the author's generation settings are not applied by default"
        in_chat = " `rushlight chat` samples as the author does." if author.sampling else ""
        checker.note("config", title, f"{author.describe_not_applied()}.{in_chat}")


def _check_tokenizer(checker: Checker, architecture: Architecture, config: TextConfig) -> None:
    """Compares the tokenizer's vocabulary with the model's."""
    vocab_size = config.vocab_size
    try:
        tokenizer = find_tokenizer(checker.checkpoint)
        if isinstance(tokenizer, TokenizerError):
            why = f"{tokenizer.message}. Prompts have to be token ids."
            checker.note("tokenizer", "the tokenizer cannot be read", why, tokenizer.remedy or "")
            return
        beyond = tokenizer.check_fits(vocab_size) if tokenizer else []
    except TokenizerError as error:
        checker.problem("tokenizer", "the tokenizer does not fit", f"{error.message}.", error.remedy or "")
        return
    if beyond:
        checker.note(
            "tokenizer",
            "added tokens that the model does not embed",
            f"{', '.join(first_ten(beyond))}: never generated, and refused in a prompt.",
        )
    if tokenizer is None and architecture.fallback_tokenizer(vocab_size):
        checker.note("tokenizer", "no tokenizer next to the weights", "GPT-2's, which has as many tokens, is used.")
    elif tokenizer is None and GPT2_VOCAB_SIZE < vocab_size <= GPT2_VOCAB_SIZE + MAX_PADDING:
        checker.note(
            "tokenizer",
            "no tokenizer next to the weights",
            f"The model has {vocab_size:,} token ids: probably GPT-2's {GPT2_VOCAB_SIZE:,}, padded as by nanoGPT.",
            "put GPT-2's tokenizer.json next to the weights",
        )
    elif tokenizer is None:
        fix = "put the model's tokenizer.json next to the weights"
        checker.note("tokenizer", "no tokenizer next to the weights", "Prompts have to be token ids.", fix)
    elif tokenizer.vocab_size < vocab_size:
        checker.note(
            "tokenizer",
            f"{vocab_size - tokenizer.vocab_size:,} unused token ids",
            f"The model has {vocab_size:,} and the tokenizer {tokenizer.vocab_size:,}: the vocabulary is padded, and "
            "the ids beyond the tokenizer's are never sampled.",
        )


def _check_values(checker: Checker, advance: Callable[[int], object]) -> None:
    """Finds NaN and Inf, which break every output, and weights that are all zero, which are rarely intended."""
    stats = measure(checker.checkpoint.values(), advance)
    views = {each.tensor.name: each for each in checker.tensors.values()}
    if unread := [each for name, each in views.items() if name not in stats]:
        checker.note(
            "unknown",
            "values of an unsupported dtype",
            "rushlight cannot read these, so NaN and Inf in them would not be found.",
            "",
            [(each, each.dtype) for each in unread],
        )
    broken = [(views[name], f"{s.n_nan:,} NaN, {s.n_inf:,} Inf") for name, s in stats.items() if s.n_nan or s.n_inf]
    if broken:
        checker.problem(
            "values",
            "NaN or Inf in the weights",
            "One such value makes every output NaN: training diverged, or a conversion overflowed.",
            "use an earlier checkpoint, or convert again from float32",
            broken,
        )
    zeros = [
        (views[name], str(views[name].shape))
        for name, s in stats.items()
        if s.min == s.max == 0 and not name.endswith("bias")
    ]
    if zeros:
        checker.note("values", "weights that are all zero", "They were not trained, or not saved.", "", zeros)
