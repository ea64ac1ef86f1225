"""The doctor: everything that keeps a checkpoint from fitting a model, by cause, each with its fix.

Causes hide one another: under a shifted prefix every name is missing, and to the config of another model every shape is
wrong. So they are looked for in the order in which they hide, and each that is found is fixed in the view of the
tensors that the next look has. What the last one finds is what binding would still refuse.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from rushlight.checkpoint import open_headers, read_config
from rushlight.checkpoint.stats import measure
from rushlight.errors import ConfigError, RequestError, TokenizerError, first_ten
from rushlight.loading.load import LANGUAGE_MODEL, generation_config, tokenizer_beside
from rushlight.models import ARCHITECTURES, GPT2_VOCAB_SIZE, load_port
from rushlight.models.gpt2 import GPT2
from rushlight.models.tied import tied_heads
from rushlight.porting.check.checker import Checker
from rushlight.porting.check.config import check_config
from rushlight.porting.check.fit import Fit
from rushlight.porting.check.frameworks import check_framework
from rushlight.porting.check.names import check_shared_table, check_unknown, check_wrappers, find_architecture
from rushlight.porting.check.report import CheckReport
from rushlight.porting.scaffold.known import NANOGPT_GELU

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture, Config

__all__ = ["check", "check_checkpoint", "resolve_architecture"]


def check(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    port: str | os.PathLike[str] | None = None,
    data: bool = True,
    offline: bool = False,
    revision: str | None = None,
) -> CheckReport:
    """Says everything that keeps a checkpoint from fitting a model, by cause, each with its fix.

    Args:
        source: as `rushlight.inspect` takes it; of what is elsewhere only the headers are looked at.
        model: the architecture to hold it against, such as "gpt2". Without one it is what config.json names, or what
            the tensors seem to be.
        port: your own Python file with the model, in place of `model`; it is run.
        data: whether to look at the values: for NaN and Inf, and whether a tied head equals its table.
        offline: ask nothing of the network; the hub's cache must have it.
        revision: the branch, tag or commit of a hub id.

    Raises:
        SourceError, CheckpointError: there is nothing sound to look at.
        PortError: the port cannot be used.
        RequestError: there is no such model, or both a model and a port.
    """
    architecture = resolve_architecture(model, port)
    with open_headers(
        source, offline=offline, revision=revision, allow_missing=partial(tied_heads, architecture=architecture)
    ) as checkpoint:
        return check_checkpoint(checkpoint, architecture, data=data)


def resolve_architecture(model: str | None, port: str | os.PathLike[str] | None) -> Architecture | None:
    """The architecture that a user names, by its word or by a file of their own; None if they name none.

    Raises:
        PortError, RequestError: as `check`.
    """
    if model is not None and port is not None:
        raise RequestError(f"a model, {model}, and a port are both given", remedy="give one of them")
    if model is not None and model not in ARCHITECTURES:
        raise RequestError(f"rushlight has no architecture {model!r}", expected=", ".join(ARCHITECTURES))
    return ARCHITECTURES[model] if model is not None else load_port(port) if port is not None else None


def check_checkpoint(
    checkpoint: Checkpoint,
    architecture: Architecture | None = None,
    *,
    data: bool = True,
    advance: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Holds a checkpoint against a model and says everything that keeps it from fitting.

    Args:
        checkpoint: an open checkpoint; of one on another machine only the headers are looked at.
        architecture: the model; None is the one that config.json names, or whose tensors these seem to be.
        data: whether to look at the values: for NaN and Inf, and whether a tied head equals its table.
        advance: is told the bytes read as they are.

    Raises:
        TruncatedError: a file was changed or cut while it was read.
    """
    readable = data and not checkpoint.is_remote
    checker = Checker(checkpoint, readable=readable)
    model = saved_by = None
    is_port = architecture is not None and architecture not in ARCHITECTURES.values()
    if not is_port and check_framework(checker):  # a port may have the names of any framework
        architecture = None
    else:
        check_wrappers(checker, architecture.rules.prefixes if architecture else ())
        flag = None if architecture is None else "--port" if is_port else "--architecture"
        architecture = find_architecture(checker, architecture or _named_by_config(checkpoint), flag)
        if architecture is None:
            check_unknown(checker, _config_value(checkpoint, "model_type"))
    if architecture is not None:
        check_shared_table(checker, architecture)
        config = check_config(checker, architecture)
        if config is not None:
            fit = Fit(checker, architecture, config)
            model = f"{getattr(architecture, 'model_type', None) or fit.title} ({config})"
            if architecture is GPT2:
                saved_by = _writer_of_gpt2(checker, fit)
                if fit.all_turned:
                    _check_gelu(checker)
            _check_tokens(checker, config)
    if readable:
        _check_values(checker, advance)
    else:
        why = "Only its headers were fetched" if data else "As was asked"
        checker.note("unknown", "the values were not looked at", f"{why}: NaN and Inf would not show.")
    return CheckReport(
        source=checkpoint.source,
        saved_by=saved_by,
        model=model,
        n_tensors=len(checkpoint),
        data="read" if readable else "elsewhere" if data else "skipped",
        findings=tuple(sorted(checker.findings, key=lambda finding: not finding.is_problem)),
        script=checker.fix_script.text(),
    )


def _config_value(checkpoint: Checkpoint, key: str) -> object:
    """What stands in config.json under a key; None if nothing does. What is wrong with the file is said elsewhere."""
    path = checkpoint.sidecar("config.json")
    try:
        return path and read_config(path).get(key)
    except ConfigError:
        return None


def _named_by_config(checkpoint: Checkpoint) -> Architecture | None:
    word = _config_value(checkpoint, "model_type")
    return ARCHITECTURES.get(word) if isinstance(word, str) else None


def _writer_of_gpt2(checker: Checker, fit: Fit) -> str | None:
    """What saved a GPT-2. nanoGPT and llm.c's train_gpt2.py write the same names, with PyTorch's Linear.

    None if the names are not those of a GPT-2 alone, or the metadata names another library.
    """
    if not fit.is_named_alike or checker.checkpoint.metadata.get("format", "pt") != "pt":
        return None
    prefixed = any(name.startswith("transformer.") for name in checker.tensors)
    if not fit.all_turned:
        if prefixed:
            return "transformers, GPT2LMHeadModel: names with transformer."
        return "transformers, GPT2Model: names without a prefix, as openai-community/gpt2 has them"
    if fit.without_biases:
        return "nanoGPT, with bias=False"
    if any(name.endswith(".attn.bias") for name in checker.tensors):
        return "llm.c's train_gpt2.py, or nanoGPT without flash attention: both write the same"
    return "nanoGPT"


def _check_gelu(checker: Checker) -> None:
    if _config_value(checker.checkpoint, "activation_function") is None:
        checker.note(
            "unknown",
            "no tensor tells which GELU the model was trained with",
            f"{NANOGPT_GELU}; gelu_tanh is what is taken.",
            'if nanoGPT trained it, set activation_function to "gelu" in config.json, which is the erf one',
        )


def _check_tokens(checker: Checker, config: Config) -> None:
    """The vocabulary of the tokenizer against the model's."""
    if not all(hasattr(config, name) for name in LANGUAGE_MODEL):
        return
    vocab_size = config.vocab_size
    try:
        author = generation_config(checker.checkpoint, config)
    except ConfigError as error:
        title = f"{PurePath(error.file or '').name} is wrong"
        if title not in [finding.title for finding in checker.findings]:
            checker.problem("config", title, error.message, "correct it")
    else:
        if author.not_applied:
            why = f"{author.describe_not_applied()}."
            checker.note("config", "generation settings of the author's that are not applied by themselves", why)
    try:
        tokenizer = tokenizer_beside(checker.checkpoint)
        if isinstance(tokenizer, TokenizerError):
            what = "the tokenizer beside the weights cannot be read"
            checker.note(
                "tokenizer", what, f"{tokenizer.message}. Prompts have to be token ids.", tokenizer.remedy or ""
            )
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
    if tokenizer is None and vocab_size == GPT2_VOCAB_SIZE:
        checker.note("tokenizer", "no tokenizer beside the weights", "GPT-2's, which has as many tokens, is used.")
    elif tokenizer is None:
        padded = GPT2_VOCAB_SIZE < vocab_size <= GPT2_VOCAB_SIZE + 128
        checker.note(
            "tokenizer",
            "no tokenizer beside the weights",
            f"{vocab_size:,} rows: GPT-2's {GPT2_VOCAB_SIZE:,} tokens, it seems, padded as nanoGPT and llm.c do."
            if padded
            else "Prompts have to be token ids.",
            f"put {'GPT-2' if padded else 'the model'}'s tokenizer.json beside the weights",
        )
    elif tokenizer.vocab_size < vocab_size:
        checker.note(
            "tokenizer",
            f"{vocab_size - tokenizer.vocab_size:,} ids have no token",
            f"The model has {vocab_size:,}, the tokenizer {tokenizer.vocab_size:,}: the vocabulary is padded, and what "
            "is beyond is never chosen.",
        )


def _check_values(checker: Checker, advance: Callable[[int], object]) -> None:
    """NaN and Inf, which no model survives, and tensors of zeros, which few learn."""
    stats = measure(checker.checkpoint.values(), advance)
    seen = {each.tensor.name: each for each in checker.tensors.values()}
    if unread := [each for name, each in seen.items() if name not in stats]:
        checker.note(
            "unknown",
            "values that were not read",
            "NaN and Inf in these would not show: rushlight has no statistics of their dtype.",
            "",
            [(each, each.dtype) for each in unread],
        )
    broken = [(seen[name], f"{s.n_nan:,} NaN, {s.n_inf:,} Inf") for name, s in stats.items() if s.n_nan or s.n_inf]
    if broken:
        checker.problem(
            "values",
            "NaN or Inf in the weights",
            "One such value makes every output NaN: the training diverged, or a conversion overflowed.",
            "take an earlier checkpoint, or convert again from float32",
            broken,
        )
    zeros = [
        (seen[name], str(seen[name].shape))
        for name, s in stats.items()
        if s.min == s.max == 0 and not name.endswith("bias")
    ]
    if zeros:
        checker.note(
            "values", "weights that are all zero", "Nothing was learned there, or they were not saved.", "", zeros
        )
