"""rushlight, through its public API and the timing functions of `rushlight bench`."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.bench.bandwidth import WeightReader
    from rushlight.bench.steps import Sequences

DISTRIBUTION = "rushlight"
NEEDS: tuple[str, ...] = ()
FORMATS = {dtype: dtype for dtype in ("f32", "f16", "bf16", "int8", "int4")}


def prepare(checkpoint: Path, _form: str, _folder: Path) -> Path:
    """The checkpoint, unchanged: rushlight converts dtypes when it loads."""
    return checkpoint


class Runtime:
    """A loaded model. RUSHLIGHT_NUM_THREADS sets the threads; an empty path is the embedded model."""

    def __init__(self, path: str, form: str, _threads: int) -> None:
        import rushlight

        self.model = rushlight.load(path or None, dtype=form)
        self._reader: WeightReader | None = None
        self._long: dict[int, Sequences] = {}

    def computes(self) -> str:
        from rushlight.backends import _native

        ops, dtype = self.model.module.ops, self.model.dtype
        kinds = {"bf16": "f32" if ops.arithmetic == "exact" else "bf16", "int8": "int8", "int4": "int8"}
        kind = kinds.get(dtype, "f32")
        isa = os.environ.get("RUSHLIGHT_ISA") or _native.instruction_sets()[0]
        if isa == "amx" and kind != "bf16":
            isa = "avx512vnni"  # AMX computes products of bf16 alone
        return f"{kind}, {isa}"

    def logits(self, ids: Sequence[int]) -> NDArray[np.floating]:
        return self.model.logits(ids)

    def prefill(self, ids: Sequence[int]) -> None:
        from rushlight.generation import Context

        model = self.model
        Context(model.language_model, len(ids)).feed(ids).argmax()

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        from rushlight.bench.steps import Sequences

        sequences = Sequences(self.model, len(prompts), len(prompts[0]) + n_tokens)
        chosen = [sequences.prefill(prompts)]
        start = perf_counter()
        for _ in range(n_tokens):
            chosen.append(sequences.step(chosen[-1]))
        seconds = perf_counter() - start
        return seconds, [list(tokens) for tokens in zip(*chosen, strict=True)]

    def decode_at(self, position: int, n_tokens: int) -> float:
        from rushlight.bench.steps import Sequences

        if position not in self._long:
            self._long[position] = Sequences(self.model, 1, position)
            self._long[position].fill(position - n_tokens)
        sequences = self._long[position]
        sequences.length = position - n_tokens
        tokens = [0]
        start = perf_counter()
        for _ in range(n_tokens):
            tokens = sequences.step(tokens)
        return perf_counter() - start

    # Measurements that only rushlight has.

    def bandwidth(self) -> dict[str, object]:
        """Times only reading the weights of a decode step, without computing."""
        from rushlight.bench.bandwidth import WeightReader

        if self._reader is None:
            self._reader = WeightReader(self.model)
            self._reader.time()
        return {"seconds": self._reader.time(), "bytes": self._reader.nbytes, "reader": self._reader.name}

    def memory(self, n_tokens: int) -> dict[str, object]:
        """Bytes of the loaded weights, a tied head counted once, and of the KV cache for n_tokens."""
        from rushlight.backends.batch import BLOCK_SIZE

        config, ops = self.model.config, self.model.module.ops
        modules = [module for _, module in self.model.module.named_modules() if hasattr(module, "weight")]
        is_tied = config.tie_word_embeddings
        weights = [module.weight for module in modules if not (is_tied and _is_table(module, config.vocab_size))]
        return {
            "weights": sum(int(weight.nbytes) for weight in weights if hasattr(weight, "nbytes")),
            "kv": ops.kv_block_bytes(config.kv_shape) // BLOCK_SIZE * n_tokens,
        }

    def sizes(self) -> dict[str, object]:
        """What a step reads and computes.

        Returns:
            step_bytes: the weights of a decode step.
            weights, head_weights: the numbers of weights, and of those in the head.
            kv_bytes: keys and values of a position.
            attention: multiply-adds of attention for each pair of positions, with all layers.
            context: the maximum number of positions.
        """
        from rushlight.backends.batch import BLOCK_SIZE
        from rushlight.bench.bandwidth import matrices

        model = self.model
        config, ops = model.config, model.module.ops
        weights = matrices(model)
        counts = [math.prod(weight.shape) for weight in weights]
        n_head = getattr(config, "n_head", None) or config.num_attention_heads
        n_layer = getattr(config, "n_layer", None) or config.num_hidden_layers
        head_dim = getattr(config, "head_dim", None) or config.kv_shape.head_dim
        return {
            "step_bytes": sum(int(weight.nbytes) for weight in weights),
            "weights": sum(counts),
            "head_weights": counts[-1],
            "kv_bytes": ops.kv_block_bytes(config.kv_shape) // BLOCK_SIZE,
            "attention": 2 * n_layer * n_head * head_dim,
            "context": model.context_length,
        }

    def sampling(self, n: int) -> dict[str, object]:
        """Times n sampled tokens, with every sampling parameter in use."""
        import numpy as np

        from rushlight.generation import Sampler, SamplingParams

        params = SamplingParams(
            temperature=0.8,
            top_k=40,
            top_p=0.95,
            min_p=0.02,
            repetition_penalty=1.1,
            presence_penalty=0.1,
            frequency_penalty=0.1,
            seed=1,
        )
        ops = self.model.module.ops
        sampler = Sampler(params, self.model.config.vocab_size, range(16))
        rows = np.random.default_rng(0).normal(0, 2, (n + 1, self.model.config.vocab_size)).astype(np.float32)
        times = []
        for position in range(n + 1):
            logits = ops.from_numpy(rows[position : position + 1])
            start = perf_counter()
            [token] = ops.sample(logits, [sampler.row(position)])
            sampler.accept_token(token)
            times.append(perf_counter() - start)
        return {"seconds": times[1:]}

    def engine(self, n_tokens: int, n_sequences: int, repeats: int) -> dict[str, object]:
        """The ratios of `benchmarks.engine`, round by round."""
        from benchmarks.engine import measure

        return dict(measure(self.model, n_tokens=n_tokens, n_sequences=n_sequences, repeats=repeats))

    def loss(self, file: str, n_windows: int) -> dict[str, object]:
        """The mean loss per token over windows of context length."""
        import numpy as np

        length = self.model.context_length
        text = Path(file).read_text(encoding="utf-8")[: 8 * length * n_windows]
        ids = self.model.tokenizer.encode(text)
        losses: list[float] = []
        for start in range(0, min(len(ids) - length + 1, n_windows * length), length):
            window = ids[start : start + length]
            logits = self.model.logits(window)[:-1].astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            chosen = logits[np.arange(length - 1), window[1:]]
            losses += (np.log(np.exp(logits).sum(-1)) - chosen).tolist()
        return {"loss": sum(losses) / len(losses), "tokens": len(losses)}


def _is_table(module: Any, vocab_size: int) -> bool:
    """Whether a module is the table of token embeddings."""
    from rushlight.nn import Embedding

    return isinstance(module, Embedding) and vocab_size in module.weight.shape


def first_token(path: str, form: str, _threads: int) -> None:
    """Runs `rushlight generate`."""
    from rushlight.cli import main

    sys.argv[0] = "rushlight"
    main(["generate", path, "--dtype", form, "--prompt", PROMPT, "--max-tokens", "1", "--ignore-eos", "--no-echo"])
