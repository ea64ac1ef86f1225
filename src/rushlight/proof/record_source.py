"""Records what transformers computes for a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import Checkpoint, open_checkpoint
from rushlight.errors import RecordError
from rushlight.models.tied import tied_heads
from rushlight.proof.digest import tensor_digests
from rushlight.proof.record import record, required_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rushlight.proof.golden import Golden

__all__ = ["DTYPES", "GREEDY_TOKENS", "TEXTS", "record_source"]

DTYPES = ("float32", "float64", "bfloat16", "float16")
GREEDY_TOKENS = 20
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody in the village of 300 souls is surprised.",
    "def add(a, b):\n    return a + b",
)
"""The default prompts."""
N_IDS = 24
"""The number of ids in the default prompt of a model without a tokenizer."""


def record_source(
    source: str,
    *,
    texts: Sequence[str] = (),
    ids: Sequence[Sequence[int]] = (),
    dtype: str = "float32",
    greedy: int = GREEDY_TOKENS,
    offline: bool = False,
    revision: str | None = None,
) -> Golden:
    """Record what transformers' AutoModelForCausalLM computes for a checkpoint, on the CPU with eager attention.

    Without texts and ids, the prompts are TEXTS, or arbitrary ids if there is no tokenizer.

    Raises:
        LibraryError: PyTorch or transformers is not installed.
        SourceError, CheckpointError: as `rushlight.open_checkpoint`.
        RecordError: transformers cannot load every weight, or there is no tokenizer for the texts.
    """
    torch, transformers = required_library("torch"), required_library("transformers")
    if dtype not in DTYPES:
        raise RecordError(f"cannot record in dtype {dtype!r}", expected=", ".join(DTYPES))
    with open_checkpoint(source, offline=offline, revision=revision, allow_missing=tied_heads) as checkpoint:
        folder = _folder(checkpoint)
        weights = tensor_digests(checkpoint)
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise RecordError(f"transformers cannot load the model: {error}", file=source) from error
    # transformers initialises missing weights at random, and only logs it.
    if missing := [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]:
        names = ", ".join(sorted(missing)[:10])
        raise RecordError(f"transformers finds no tensors for {len(missing)} of its weights: {names}", file=source)
    prompts: list[list[int]] = [list(prompt) for prompt in ids]
    words: list[str | None] = [None] * len(prompts)
    if texts or not prompts:
        tokenizer = _tokenizer(transformers, folder)
        if tokenizer is None and texts:
            raise RecordError("there is no tokenizer for the text", file=source, remedy="give token ids: --ids 1,2,3")
        if tokenizer is None:
            vocab_size = int(model.config.vocab_size)
            prompts, words = [[(7919 * i + 11) % vocab_size for i in range(N_IDS)]], [None]
        else:
            for text in texts or TEXTS:
                prompts.append(_prompt_ids(tokenizer, text))
                words.append(text)
    vocab_size = int(getattr(model.config, "vocab_size", 0))
    if unknown := sorted({i for prompt in prompts for i in prompt if vocab_size and not 0 <= i < vocab_size}):
        raise RecordError(f"no such token: {unknown[0]}", file=source, expected=f"ids from 0 to {vocab_size - 1}")
    if any(not prompt for prompt in prompts):
        raise RecordError("a prompt has no tokens", file=source)
    golden = record(model, prompts, texts=words, greedy=greedy, weights=weights)
    golden.name = f"transformers {transformers.__version__}"
    return golden


def _prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text after those that the tokenizer puts before it, without those that it puts after it."""
    ids, all_ids = list(tokenizer.encode(text, add_special_tokens=False)), list(tokenizer.encode(text))
    start = next((i for i in range(len(all_ids)) if all_ids[i : i + len(ids)] == ids), 0)
    return [*all_ids[:start], *ids]


def _folder(checkpoint: Checkpoint) -> Path:
    if checkpoint.folder is None or checkpoint.sidecar("config.json") is None:
        raise RecordError(
            "transformers needs a config.json next to the weights",
            file=checkpoint.source,
            remedy="to record a module from Python, call rushlight.record(module, inputs, path)",
        )
    if (name := checkpoint.files[0].name) != "model.safetensors" and len(checkpoint.files) == 1:
        raise RecordError(
            "transformers reads only model.safetensors",
            file=checkpoint.source,
            expected="model.safetensors",
            found=name,
        )
    return checkpoint.folder


def _tokenizer(transformers: Any, folder: Path) -> Any:
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RecordError(f"transformers cannot load the tokenizer: {error}", file=folder) from error
