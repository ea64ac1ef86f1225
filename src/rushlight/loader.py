"""Loading: where a source, an architecture, a backend and a tokenizer meet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rushlight import demo
from rushlight.backends import open_backend
from rushlight.checkpoint import Checkpoint, open_checkpoint, read_json_object
from rushlight.errors import ConfigError, FormatError
from rushlight.model import Model
from rushlight.models import ARCHITECTURES, Architecture, recognise
from rushlight.models.gpt2 import GPT2_VOCAB_SIZE
from rushlight.models.schema import Fields
from rushlight.nn import bind

if TYPE_CHECKING:
    import os

    from rushlight.models.gpt2 import GPT2Config
    from rushlight.text import Tokenizer

MAX_CONFIG_BYTES = 2**20

_log = logging.getLogger("rushlight")


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    draft: str | os.PathLike[str] | None = None,
) -> Model:
    """Loads a model, ready to generate.

    Args:
        source: a `.safetensors` file, a folder, a `model.safetensors.index.json`, or a hub id such as
            `openai-community/gpt2`. None is the small model of tales that comes with the package.
        device: auto, or a word of `rushlight devices`.
        dtype: auto, the checkpoint's own; or what to keep the weights in: f32, f16, bf16, int8, int4; f64 is there for
            comparisons.
        threads: how many the CPU computes with; None is RUSHLIGHT_NUM_THREADS, or as many cores as it may use.
        offline: ask nothing of the network; the hub's cache must have it.
        revision: the branch, tag or commit of a hub id.
        draft: the source of a smaller model with the same vocabulary, which guesses what the model is going to say: a
            right guess saves a step, a wrong one changes nothing. Loaded with the same device, dtype and threads.

    Raises:
        RushlightError: one of its kinds, and nothing is loaded: never other weights, another device or dtype.
    """
    ops = open_backend(device, dtype, threads=threads)
    with open_checkpoint(demo.folder() if source is None else source, offline=offline, revision=revision) as checkpoint:
        architecture, config = identify(checkpoint)
        tokenizer = _tokenizer(checkpoint, config)
        module = architecture(config)
        n_parameters = sum(
            slot.n_elements
            for name, slot in module.named_slots()
            if not (config.tie_word_embeddings and name in architecture.rules.tied)
        )
        bind(
            module,
            checkpoint,
            ops,
            rules=architecture.rules,
            tie=config.tie_word_embeddings,
            title=f"{architecture.__name__} ({config})",
            file=checkpoint.source,
        )
    model = Model(
        module=module,
        config=config,
        backend=ops,
        tokenizer=tokenizer,
        name="tales" if source is None else checkpoint.source,
        n_parameters=n_parameters,
        eos_ids=_eos_ids(checkpoint, config),
    )
    if draft is not None:
        model.use_draft(load(draft, device=device, dtype=dtype, threads=threads, offline=offline))
    return model


def identify(checkpoint: Checkpoint) -> tuple[Architecture, GPT2Config]:
    """The architecture and config of a checkpoint: from its config.json, or without one from its names and shapes.

    Raises:
        ConfigError: the config.json is wrong, or there is none and the shapes do not tell.
        FormatError: there is no config.json, and no known architecture has tensors of these names.
    """
    path = checkpoint.sidecar("config.json")
    if path is not None:
        values = read_json_object(path, max_bytes=MAX_CONFIG_BYTES, error=ConfigError)
        architecture = _by_model_type(values, checkpoint, str(path))
        return architecture, architecture.config_type.from_json(values, file=str(path))

    recognised = recognise(checkpoint)
    if recognised is None:
        raise FormatError(
            "there is no config.json, and the tensor names are of no architecture that rushlight has",
            file=checkpoint.source,
            expected=", ".join(ARCHITECTURES),
            remedy="`rushlight inspect` shows the names",
        )
    config = recognised.config_type.from_tensors(checkpoint, file=checkpoint.source)
    _log.warning(
        "no config.json: read from the shapes as %s with %s; n_positions %d, vocab_size %d, head_dim 64, %s head",
        recognised.model_type,
        config,
        config.n_positions,
        config.vocab_size,
        "tied" if config.tie_word_embeddings else "separate",
    )
    return recognised, config


def _by_model_type(values: dict[str, Any], checkpoint: Checkpoint, file: str) -> Architecture:
    model_type = values.get("model_type")
    if model_type is None and (recognised := recognise(checkpoint)):
        return recognised
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ConfigError(
            f"rushlight has no architecture {model_type!r}" if model_type is not None else "model_type is missing",
            file=file,
            expected=", ".join(ARCHITECTURES),
        )
    return ARCHITECTURES[model_type]


def _tokenizer(checkpoint: Checkpoint, config: GPT2Config) -> Tokenizer | None:
    """The tokenizer beside the weights; GPT-2's own for a bare file with GPT-2's vocabulary; or None."""
    from rushlight.text import Tokenizer

    tokenizer = None
    if path := checkpoint.sidecar("tokenizer.json"):
        tokenizer = Tokenizer.from_file(path)
    elif (vocab := checkpoint.sidecar("vocab.json")) and (merges := checkpoint.sidecar("merges.txt")):
        tokenizer = Tokenizer.from_vocab_merges(vocab, merges)
    elif config.vocab_size == GPT2_VOCAB_SIZE:
        _log.warning("no tokenizer beside the weights: using GPT-2's, which has the same %d tokens", GPT2_VOCAB_SIZE)
        tokenizer = Tokenizer.gpt2()
    if tokenizer is not None:
        tokenizer.check_fits(config.vocab_size)
    return tokenizer


def _eos_ids(checkpoint: Checkpoint, config: GPT2Config) -> tuple[int, ...]:
    """What ends a text: generation_config.json's word where there is one, as in transformers, or config.json's."""
    path = checkpoint.sidecar("generation_config.json")
    if path is None:
        return config.eos_token_id
    values = read_json_object(path, max_bytes=MAX_CONFIG_BYTES, error=ConfigError)
    fields = Fields(values, str(path))
    ids = fields.token_ids("eos_token_id", config.vocab_size)
    fields.finish(benign=values)
    return ids or config.eos_token_id
