"""Loading: where a source, an architecture, a backend and a tokenizer meet."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from rushlight import demo
from rushlight.backends import open_backend
from rushlight.checkpoint import Checkpoint, display_name, open_checkpoint, read_config
from rushlight.errors import ConfigError, FormatError, PortError, RequestError, TokenizerError, first_ten
from rushlight.host.memory import naming_shortages
from rushlight.models import ARCHITECTURES, GPT2_VOCAB_SIZE, load_port, recognise
from rushlight.models.generation_config import GENERATION_KEYS, GenerationConfig
from rushlight.models.tied import tied_heads
from rushlight.nn import bind

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from rushlight.backends.protocol import Backend
    from rushlight.models import Architecture, Config
    from rushlight.nn import Module
    from rushlight.runtime.model import Model
    from rushlight.text import Tokenizer

LANGUAGE_MODEL = ("vocab_size", "context_length", "kv_shape", "tie_word_embeddings", "bos_token_id", "eos_token_id")
"""What the config of a model has that generates text."""

_WEIGHT_BYTES = {"f64": 8.0, "f32": 4.0, "f16": 2.0, "bf16": 2.0, "int8": 1.0625, "int4": 0.625}
"""Of a weight in a dtype, its share of the scales included."""

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
) -> Model:
    """Loads a model, ready to generate.

    Args:
        source: a `.safetensors` file, a folder, a `model.safetensors.index.json`, or a hub id such as
            `openai-community/gpt2`. None is the small model that comes with the package, as is the name `tales` unless
            there is a path of that name.
        device: auto, or a word of `rushlight devices`.
        dtype: auto, the checkpoint's own; or what to keep the weights in: f32, f16, bf16, int8, int4; f64 is there for
            comparisons.
        threads: how many the CPU computes with, at most one for each core that this process may use; None is
            RUSHLIGHT_NUM_THREADS, or as many of these as pay while it runs. The results are the same bits.
        exact: the CPU computes the same bits on every processor in every dtype; slower for bf16 weights where the
            processor multiplies bf16. None is RUSHLIGHT_EXACT, or False. f32, f16, int8 and int4 are always so.
        offline: ask nothing of the network; the hub's cache must have it.
        revision: the branch, tag or commit of a hub id.
        port: your own Python file with the model, as `rushlight port` writes it; it is run. Without one, it is the
            architecture that config.json names. A checkpoint never brings code of its own.
        draft: the source of a smaller model with the same vocabulary, which guesses what the model is going to say: a
            right guess saves a step, a wrong one changes nothing. Loaded with the same device, dtype and threads.
        kv_bytes: the most memory that keys and values of all texts may take, a draft model's too; None is what 64 full
            contexts take, or half of the memory there is, if that is less. It is taken only as it is used.

    Raises:
        RushlightError: one of its kinds, and nothing is loaded: never other weights, another device or dtype.
    """
    if kv_bytes is not None and (not isinstance(kv_bytes, int) or kv_bytes < 0):
        raise RequestError(f"kv_bytes is {kv_bytes!r}: it should be a whole number of bytes, 0 or more")
    ops = open_backend(device, dtype, threads=threads, exact=exact)
    ported = None if port is None else load_port(port)
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
        if missing := [name for name in LANGUAGE_MODEL if not hasattr(config, name)]:
            raise PortError(
                f"this is no language model: its config has no {', '.join(missing)}",
                file=port,
                remedy="add them, or load it with rushlight.load_module and call it",
            )
        module = architecture(config)
        n_parameters = sum(
            slot.n_elements
            for name, slot in module.named_slots()
            if not (config.tie_word_embeddings and name in architecture.rules.tied)
        )
        _bind(module, architecture, config, checkpoint, ops, dtype, finish=False)
        reading = _Beside(ops.finish_loading, files.pop_all())

    # While the weights are read: the modules that need NumPy, which takes long to import, and the tokenizer.
    from rushlight.runtime.model import Model

    tokenizer, no_tokenizer = _tokenizer(checkpoint, config)
    author = generation_config(checkpoint, config)
    if author.not_applied:
        _log.warning("%s", author.describe_not_applied())
    reading.finish()
    model = Model(
        module=module,
        config=config,
        backend=ops,
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        name=demo.NAME if source is None else display_name(checkpoint.source),
        n_parameters=n_parameters,
        eos_ids=author.eos_token_id,
        suppressed_ids=author.suppress_tokens,
        begin_suppressed_ids=author.begin_suppress_tokens,
        kv_bytes=kv_bytes,
        folder=checkpoint.folder,
        files=checkpoint.files,
    )
    if draft is not None:
        model.use_draft(load(draft, device=device, dtype=dtype, threads=threads, exact=exact, offline=offline))
    return model


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
) -> Module:
    """Loads a ported model of any kind as a module to call: its weights in their slots, its backend under `ops`.

    Args:
        source, port, device, dtype, threads, exact, offline, revision: as `load` takes them.

    Raises:
        RushlightError: as `load`.
    """
    ops = open_backend(device, dtype, threads=threads, exact=exact)
    ported = load_port(port)
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
    with naming_shortages("the model", _weight_bytes(checkpoint, dtype)):
        other_heads = bind(
            module,
            checkpoint,
            ops,
            rules=architecture.rules,
            tie=bool(architecture.rules.tied) and config.tie_word_embeddings,
            title=f"{module.describe()} ({config})",
            file=checkpoint.source,
            finish=finish,
        )
    if other_heads:
        _log.warning("left out, of other heads that text does not need: %s", ", ".join(first_ten(other_heads)))


def _weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What the weights take in a dtype."""
    if dtype in _WEIGHT_BYTES:
        return int(sum(math.prod(tensor.shape) for tensor in checkpoint.values()) * _WEIGHT_BYTES[dtype])
    return sum(tensor.nbytes for tensor in checkpoint.values())


class _Beside:
    """A call on a thread of its own, which closes what it needs open; an interrupt or an error here does not wait.

    Where no thread can be started, it is done here.
    """

    def __init__(self, call: Callable[[], None], needs: ExitStack) -> None:
        self._call, self._needs = call, needs
        self._error: BaseException | None = None
        self._thread: Thread | None = Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            self._run()

    def _run(self) -> None:
        try:
            with self._needs:
                self._call()
        except BaseException as error:  # raised again by `finish`
            self._error = error

    def finish(self) -> None:
        """Waits for its end, and raises what it raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def identify(checkpoint: Checkpoint, port: Architecture | None = None) -> tuple[Architecture, Config]:
    """The architecture and config of a checkpoint: from its config.json, or without one from its names and shapes.

    Args:
        checkpoint: an open checkpoint, of which only the headers are needed.
        port: the architecture, where the user names one.

    Raises:
        ConfigError: the config.json is wrong, or there is none and the shapes do not tell.
        FormatError: there is no config.json, and no known architecture has tensors of these names.
    """
    path = checkpoint.sidecar("config.json")
    if path is not None:
        values = read_config(path)
        architecture = port or _by_model_type(values, checkpoint, str(path))
        return architecture, architecture.config_type.from_json(values, file=str(path))

    if port is not None:
        return port, port.config_type.from_tensors(checkpoint, file=checkpoint.source)
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
        config.context_length,
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
            remedy="`rushlight port SOURCE -o my_model.py` writes a model file to begin with, for --port",
        )
    return ARCHITECTURES[model_type]


def tokenizer_beside(checkpoint: Checkpoint) -> Tokenizer | TokenizerError | None:
    """The tokenizer beside the weights, as `rushlight.text.read_tokenizer` finds it.

    Raises:
        TokenizerError: it is broken.
    """
    from rushlight.text import read_tokenizer

    return read_tokenizer(partial(_find, checkpoint))


def _find(checkpoint: Checkpoint, name: str) -> Path | None:
    """The path of a tokenizer's file next to the weights, by its name or a pattern."""
    if "*" in name:
        return next(iter(sorted(checkpoint.folder.glob(name))), None) if checkpoint.folder else None
    return checkpoint.sidecar(name)


def _tokenizer(checkpoint: Checkpoint, config: Config) -> tuple[Tokenizer | None, TokenizerError | None]:
    """The tokenizer beside the weights; GPT-2's own for a bare file with GPT-2's vocabulary; or None, and why not."""
    from rushlight.text import Tokenizer
    from rushlight.text.tokenizer_settings import read_settings

    tokenizer = tokenizer_beside(checkpoint)
    if isinstance(tokenizer, TokenizerError):
        return None, tokenizer
    if tokenizer is None and config.vocab_size == GPT2_VOCAB_SIZE:
        _log.warning("no tokenizer beside the weights: using GPT-2's, which has the same %d tokens", GPT2_VOCAB_SIZE)
        tokenizer = Tokenizer.gpt2(read_settings(partial(_find, checkpoint)))
    if tokenizer is not None and (beyond := tokenizer.check_fits(config.vocab_size)):
        _log.warning(
            "the model embeds %d tokens, and not the tokenizer's %s: never generated, and refused in a prompt",
            config.vocab_size,
            ", ".join(first_ten(beyond)),
        )
    return tokenizer, None


def generation_config(checkpoint: Checkpoint, config: Config) -> GenerationConfig:
    """What the author set for generation, in generation_config.json or, without one, in config.json.

    Raises:
        ConfigError: the file is wrong.
    """
    if path := checkpoint.sidecar("generation_config.json"):
        values = read_config(path)
    elif path := checkpoint.sidecar("config.json"):
        values = {key: value for key, value in read_config(path).items() if key in GENERATION_KEYS}
    else:
        return GenerationConfig(eos_token_id=config.eos_token_id)
    return GenerationConfig.from_json(values, config, file=str(path))
