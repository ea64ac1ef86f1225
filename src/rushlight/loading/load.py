"""Loads a model: opens the checkpoint, builds its architecture, binds it on a backend, and adds the tokenizer."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rushlight import demo
from rushlight.backends import open_backend
from rushlight.backends.dtypes import WEIGHT_BYTES
from rushlight.checkpoint import display_name, open_checkpoint
from rushlight.errors import PortError, RequestError, RushlightError, first_ten
from rushlight.host.memory import naming_shortages
from rushlight.host.numpy_import import import_numpy
from rushlight.loading.background import BackgroundCall
from rushlight.loading.converted import memory_dtype, tensors_for
from rushlight.loading.footprint import footprint_of
from rushlight.loading.identify import identify
from rushlight.loading.sidecars import generation_config, load_tokenizer
from rushlight.models import TextConfig, load_port
from rushlight.models.tied import has_tied_heads, tied_heads
from rushlight.nn import bind
from rushlight.nn.bind import bind_constants

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from rushlight.backends.protocol import Backend
    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture, Config
    from rushlight.nn import Module
    from rushlight.runtime.model import Model

__all__ = ["load", "load_module"]

LARGE_BYTES = 2**30
"""The size of a checkpoint from which `load` says what the model needs before it reads the weights."""

_log = logging.getLogger("rushlight")


@naming_shortages("the model")
def load(
    source: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    exact: bool | None = None,
    offline: bool = False,
    revision: str | None = None,
    port: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | None = None,
    kv_bytes: int | None = None,
    context: int | None = None,
    add_bos: bool = True,
    copy: bool = False,
) -> Model:
    """Loads a model, ready to generate.

    Args:
        source: a `.safetensors` file, a folder, a `model.safetensors.index.json`, a hub id such as
            `openai-community/gpt2`, or a short name such as `smollm2`, as `rushlight models` lists them. None is the
            small model embedded in the package; so is the name `tales`. A file or folder of a name takes precedence.
        device: auto, or a device that `rushlight devices` lists.
        dtype: the dtype of the weights in memory: f32, f16, bf16, int8 or int4, or f64 for comparisons; auto is the
            dtype of the checkpoint. The weights of a converted one (see `convert`) stay as they are: devices other than
            cpu load their values, int8 and int4 as f32.
        threads: the number of CPU threads, at most one for each core that this process may use; None is
            RUSHLIGHT_NUM_THREADS, or the number that runs fastest. It does not change the bits of results.
        exact: whether results have the same bits on every CPU. This affects only bf16 weights, which are slower then on
            processors with bf16 instructions; other dtypes are always exact. None is RUSHLIGHT_EXACT, or False.
        offline: do not use the network; the hub's cache must hold the files.
        revision: the branch, tag or commit of a hub id.
        port: a Python file of yours that defines the model, as `rushlight port` writes it; it is run. By default
            config.json names the architecture. No code from a checkpoint is ever run.
        draft: the source of a smaller model with the same vocabulary, for speculative decoding: it proposes draft
            tokens, which the model verifies. The output does not change. It is loaded with the same device, dtype and
            threads.
        kv_bytes: the most memory for the keys and values of all sequences, including the draft model's; by default 64
            full contexts, or half of the available memory if that is less. It is allocated as it is used.
        context: the most tokens of prompt and completion together, at most the model's own limit, which is the default.
            The keys and values of one context of this length must fit in memory.
        add_bos: whether a text prompt begins with the tokens that the tokenizer adds before a text, such as `<s>`.
        copy: whether the weights of a converted checkpoint are read into memory on device cpu. By default they are used
            where they lie in the file, which other processes share; if it changes meanwhile, generation ends with an
            error.

    Raises:
        RushlightError: one of its subclasses. Nothing is loaded then; there is no fallback to another device or dtype.
    """
    if kv_bytes is not None and (not isinstance(kv_bytes, int) or kv_bytes < 0):
        raise RequestError("kv_bytes must be an integer of at least 0", found=repr(kv_bytes))
    if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
        raise RequestError("context must be an integer of at least 1", found=repr(context))
    ops = open_backend(device, dtype, threads=threads, exact=exact, copy=copy)
    ported = None if port is None else load_port(port, source=source)
    with ExitStack() as files:
        checkpoint = files.enter_context(
            open_checkpoint(
                demo.folder() if source is None else source,
                offline=offline,
                revision=revision,
                allow_missing=partial(tied_heads, architecture=ported),
            )
        )
        architecture, config = identify(checkpoint, ported)
        if not isinstance(config, TextConfig):
            raise PortError(
                "not a language model: its config does not derive from rushlight.models.TextConfig",
                file=port,
                remedy="load it with rushlight.load_module and call it, or derive the config of a language model",
            )
        name = demo.NAME if source is None else display_name(checkpoint.source)
        if context is not None:
            config = _limited(config, context)
        module = architecture(config)
        needed = footprint_of(checkpoint, architecture, config, module)
        have_bytes = ops.available_bytes()
        if sum(tensor.nbytes for tensor in checkpoint.values()) >= LARGE_BYTES:
            _log.info("%s %s", name, needed.describe_fit(have_bytes, dtype))
        in_memory = memory_dtype(checkpoint, ops, dtype)
        needed.require(in_memory, ops.device, have_bytes, context=context, kv_bytes=kv_bytes)
        _bind(module, architecture, config, checkpoint, ops, dtype, finish=False)
        reading = BackgroundCall(partial(ops.finish_loading, spare_core=True), files.pop_all())

    # While the weights are read, import NumPy, which is slow, and load the tokenizer. That takes a core: with as many
    # threads as cores next to it, it would be the last to finish.
    import_numpy()
    bind_constants(module, ops)
    from rushlight.runtime.model import Model

    tokenizer, no_tokenizer = load_tokenizer(checkpoint, architecture, config)
    if tokenizer is not None and not add_bos:
        tokenizer.prefix_ids = ()
    author = generation_config(checkpoint, config)
    if author.not_applied:
        _log.warning("%s", author.describe_not_applied(), extra={"of_author": True})
    ops.hurry()
    reading.join()
    model = Model(
        module=module,
        config=config,
        backend=ops,
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        name=name,
        n_parameters=needed.n_parameters,
        eos_ids=author.eos_token_id,
        suppressed_ids=author.suppress_tokens,
        begin_suppressed_ids=author.begin_suppress_tokens,
        author=author,
        kv_bytes=kv_bytes,
        folder=checkpoint.folder,
        files=checkpoint.files,
    )
    if draft is not None:
        with _naming_draft():
            loaded = load(draft, device=device, dtype=dtype, threads=threads, exact=exact, offline=offline, copy=copy)
        model.use_draft(loaded)
    return model


@contextmanager
def _naming_draft() -> Iterator[None]:
    """Says in the error of a draft model that it is one."""
    try:
        yield
    except RushlightError as error:
        error.message = f"the draft model cannot be loaded: {error.message}"
        raise


@naming_shortages("the model")
def load_module(
    source: str | os.PathLike[str],
    *,
    port: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    exact: bool | None = None,
    offline: bool = False,
    revision: str | None = None,
    copy: bool = False,
) -> Module:
    """Loads a ported model of any kind as a module to call, with bound weights and the backend as its `ops`.

    Args:
        source, port, device, dtype, threads, exact, offline, revision, copy: as for `load`.

    Raises:
        RushlightError: as `load`.
    """
    ops = open_backend(device, dtype, threads=threads, exact=exact, copy=copy)
    ported = load_port(port, source=source)
    with open_checkpoint(
        source, offline=offline, revision=revision, allow_missing=partial(tied_heads, architecture=ported)
    ) as checkpoint:
        architecture, config = identify(checkpoint, ported)
        module = architecture(config)
        _bind(module, architecture, config, checkpoint, ops, dtype)
    return module


def _bind(
    module: Module,
    architecture: Architecture,
    config: Config,
    checkpoint: Checkpoint,
    ops: Backend,
    dtype: str,
    *,
    finish: bool = True,
) -> None:
    in_memory = memory_dtype(checkpoint, ops, dtype)
    with naming_shortages("the model", _weight_bytes(checkpoint, in_memory)):
        other_heads = bind(
            module,
            tensors_for(checkpoint, ops),
            ops,
            rules=architecture.rules,
            tie=has_tied_heads(architecture, config),
            title=f"{module.describe()} ({config})",
            file=checkpoint.source,
            finish=finish,
        )
    if other_heads:
        parts = sorted({architecture.rules.canonical(name).partition(".")[0] for name in other_heads})
        _log.warning("ignored parts for other tasks: %s", ", ".join(first_ten(parts)))


def _limited(config: TextConfig, context: int) -> TextConfig:
    """The config with a limited context length.

    Raises:
        RequestError: it exceeds the model's own.
    """
    if context > config.max_context_length:
        raise RequestError(
            f"a context of {context:,} tokens is longer than the model's, {config.max_context_length:,}",
            remedy=f"use --context {config.max_context_length} or less, or leave it out",
        )
    return replace(config, context=context)


def _weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """The memory of the weights in a dtype."""
    if dtype in WEIGHT_BYTES:
        return int(sum(math.prod(tensor.shape) for tensor in checkpoint.values()) * WEIGHT_BYTES[dtype])
    return sum(tensor.nbytes for tensor in checkpoint.values())
