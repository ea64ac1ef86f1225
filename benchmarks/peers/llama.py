"""llama.cpp through llama-cpp-python: its C functions for the timing, its `Llama` class for the first token.

Other types than float32 are made by llama.cpp's own quantiser, so they are what its users run (Q4_0 keeps the tied
embedding table in 6 bits, or in 8 where its rows are not a multiple of 256).
"""

from __future__ import annotations

import ctypes
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTION = "llama-cpp-python"
NEEDS: tuple[str, ...] = ()
DTYPES = ("f32", "f16", "bf16", "int8", "int4")

_FILE_TYPES = {"f16": 1, "bf16": 32, "int8": 7, "int4": 2}
"""llama.h, enum llama_ftype: MOSTLY_F16, MOSTLY_BF16, MOSTLY_Q8_0, MOSTLY_Q4_0."""

CONTEXT_TOKENS = 1024
"""Context length of a single sequence; less if the model has less. llama.cpp reserves its memory up front."""

SEQUENCE_TOKENS = 128
"""Context length per sequence of a batch."""


def prepare(checkpoint: Path, dtype: str, folder: Path) -> Path:
    """Writes a GGUF file of the dtype."""
    plain = folder / "f32.gguf"
    if not plain.exists():
        from benchmarks.peers.gguf_files import write_gguf

        write_gguf(checkpoint, plain)
    if dtype == "f32":
        return plain
    path = folder / f"{dtype}.gguf"
    if not path.exists():
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = _FILE_TYPES[dtype]
        partial = path.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(bytes(plain), bytes(partial), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp failed to write {path}")
        partial.rename(path)
    return path


class Runtime:
    """A model and a context, driven by llama_decode."""

    def __init__(self, path: str, _dtype: str, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp failed to load {path}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._n_ctx = min(llama_cpp.llama_model_n_ctx_train(self._model), CONTEXT_TOKENS)
        self._threads = threads
        self._contexts: dict[int, Any] = {}

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._feed([ids], 0, all_logits=True).copy()

    def prefill(self, ids: Sequence[int]) -> None:
        self._feed([ids], 0).argmax()

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        length = len(prompts[0])
        chosen = [self._feed(prompts, 0).argmax(-1)]
        start = perf_counter()
        for i in range(n_tokens):
            chosen.append(self._feed(chosen[-1][:, None], length + i).argmax(-1))
        seconds = perf_counter() - start
        return seconds, [[int(i) for i in tokens] for tokens in zip(*chosen, strict=True)]

    def _feed(self, sequences: Any, position: int, *, all_logits: bool = False) -> NDArray[np.float32]:
        """Runs the next tokens of a batch; a view of the logits of each sequence's last token, or of all tokens."""
        import numpy as np

        c, context = self._c, self._context(len(sequences))
        if position == 0:
            c.llama_memory_clear(c.llama_get_memory(context), False)
        batch = c.llama_batch_init(512, 0, 1)
        rows = []
        try:
            batch.n_tokens = 0
            for s, ids in enumerate(sequences):
                for t, token in enumerate(ids):
                    i = batch.n_tokens
                    batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position + t, 1
                    batch.seq_id[i][0] = s
                    batch.logits[i] = wanted = all_logits or t == len(ids) - 1
                    rows += [i] if wanted else []
                    batch.n_tokens += 1
            if c.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
        finally:
            c.llama_batch_free(batch)
        return np.ctypeslib.as_array(c.llama_get_logits(context), (len(rows), self._vocab_size))

    def _context(self, n_sequences: int) -> Any:
        """The cached context for a batch size; other parameters are those of llama-cpp-python."""
        if n_sequences not in self._contexts:
            params = self._c.llama_context_default_params()
            params.n_seq_max = n_sequences
            params.n_ctx = self._n_ctx if n_sequences == 1 else SEQUENCE_TOKENS * n_sequences
            params.n_batch = params.n_ubatch = 512
            params.n_threads = params.n_threads_batch = self._threads
            context = self._c.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError("llama.cpp failed to create a context")
            self._contexts[n_sequences] = context
        return self._contexts[n_sequences]


def first_token(path: str, _dtype: str, threads: int) -> None:
    """Follows the documentation of llama-cpp-python."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    sys.stdout.write(model(PROMPT, max_tokens=1, temperature=0.0)["choices"][0]["text"] + "\n")
    sys.stdout.flush()
