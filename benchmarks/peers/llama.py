"""llama.cpp through llama-cpp-python: its C functions for the timing, its `Llama` class for the first token.

Other types than float32 are made by llama.cpp's own quantiser, so they are what its users run (Q4_0 keeps the tied
embedding table in 6 bits, or in 8 where its rows are not a multiple of 256).
"""

from __future__ import annotations

import ctypes
import random
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTION = "llama-cpp-python"
NEEDS: tuple[str, ...] = ()
FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "int8", "Q4_0": "int4", "Q4_K_M": "int4"}

_FILE_TYPES = {"F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}
"""llama.h, enum llama_ftype."""

_FLOATS = ("AVX2", "FMA", "F16C", "AVX512")
_INTEGERS = ("AVX2", "AVX_VNNI", "AVX512", "AVX512_VNNI", "AMX_INT8")
_INSTRUCTIONS = {
    "F32": _FLOATS,
    "F16": _FLOATS,
    "BF16": (*_FLOATS, "AVX512_BF16"),
    "Q8_0": _INTEGERS,
    "Q4_0": _INTEGERS,
    "Q4_K_M": _INTEGERS,
}
"""Format -> the instructions that its products use where llama.cpp was built with them, by its own names."""

CONTEXT_TOKENS = 1024
"""Context length of a single sequence; less if the model has less. llama.cpp reserves its memory up front."""

SEQUENCE_TOKENS = 128
"""Context length per sequence of a batch."""

BATCH_TOKENS = 512
"""The most tokens of a call of llama_decode."""


def prepare(checkpoint: Path, form: str, folder: Path) -> Path:
    """Writes a GGUF file of the format."""
    plain = folder / "F32.gguf"
    if not plain.exists():
        from benchmarks.peers.gguf_files import write_gguf

        write_gguf(checkpoint, plain)
    if form == "F32":
        return plain
    path = folder / f"{form}.gguf"
    if not path.exists():
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = _FILE_TYPES[form]
        partial = path.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(bytes(plain), bytes(partial), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp failed to write {path}")
        partial.rename(path)
    return path


class Runtime:
    """A model and a context, driven by llama_decode."""

    def __init__(self, path: str, form: str, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp failed to load {path}")
        self._folder = Path(path).parent
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._most_tokens = llama_cpp.llama_model_n_ctx_train(self._model)
        self._form = form
        self._threads = threads
        self._contexts: dict[tuple[int, int, bool], Any] = {}

    def computes(self) -> str:
        features = self._c.llama_print_system_info().decode().replace("|", ":").split(":")
        names = [each.removesuffix(" = 1").strip() for each in features if each.strip().endswith("= 1")]
        return f"f32 sums, {' '.join(name for name in names if name in _INSTRUCTIONS[self._form])}"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._feed(self._context(), [ids], 0, all_logits=True).copy()

    def prefill(self, ids: Sequence[int]) -> None:
        self._feed(self._context(max(CONTEXT_TOKENS, len(ids))), [ids], 0).argmax()

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        n, length = len(prompts), len(prompts[0])
        context = self._context(CONTEXT_TOKENS if n == 1 else SEQUENCE_TOKENS * n, n)
        chosen = [self._feed(context, prompts, 0).argmax(-1)]
        start = perf_counter()
        for i in range(n_tokens):
            chosen.append(self._feed(context, chosen[-1][:, None], length + i).argmax(-1))
        seconds = perf_counter() - start
        return seconds, [[int(i) for i in tokens] for tokens in zip(*chosen, strict=True)]

    def decode_at(self, position: int, n_tokens: int) -> float:
        c, first = self._c, position - n_tokens
        is_new = (position, 1, True) not in self._contexts
        context = self._context(position, is_kept=True)
        if is_new:
            self._fill(context, first)
        tokens = [[0]]
        start = perf_counter()
        for i in range(n_tokens):
            tokens = [[int(self._feed(context, tokens, first + i).argmax())]]
        seconds = perf_counter() - start
        c.llama_memory_seq_rm(c.llama_get_memory(context), 0, first, -1)
        return seconds

    def _fill(self, context: Any, n_tokens: int) -> None:
        """Computes keys and values, or reads those that a model of the same weights in another format has computed."""
        c, file = self._c, bytes(self._folder / f"state-{n_tokens}.bin")
        count = ctypes.c_size_t()
        ids = (c.llama_token * n_tokens)(*random.Random(0).choices(range(self._vocab_size), k=n_tokens))  # noqa: S311
        if Path(file.decode()).exists() and c.llama_state_seq_load_file(
            context, file, 0, (c.llama_token * n_tokens)(), n_tokens, ctypes.byref(count)
        ):
            return
        self._feed(context, [list(ids)], 0)
        c.llama_state_seq_save_file(context, file, 0, ids, n_tokens)

    def _feed(self, context: Any, sequences: Any, position: int, *, all_logits: bool = False) -> NDArray[np.float32]:
        """Runs the next tokens of a batch; a view of the logits of each sequence's last token, or of all tokens.

        A single sequence may be longer than a call of llama_decode; then `all_logits` are those of the last call.
        """
        import numpy as np

        c = self._c
        if position == 0:
            c.llama_memory_clear(c.llama_get_memory(context), False)
        if len(sequences) == 1 and len(sequences[0]) > BATCH_TOKENS:
            (ids,) = sequences
            *starts, last = range(0, len(ids), BATCH_TOKENS)
            for start in starts:
                self._run(context, [ids[start : start + BATCH_TOKENS]], position + start, "none")
            sequences, position = [ids[last:]], position + last
        n_rows = self._run(context, sequences, position, "all" if all_logits else "last")
        return np.ctypeslib.as_array(c.llama_get_logits(context), (n_rows, self._vocab_size))

    def _run(self, context: Any, sequences: Any, position: int, logits: str) -> int:
        """One call of llama_decode: the number of tokens whose logits it computes."""
        c = self._c
        batch = c.llama_batch_init(BATCH_TOKENS, 0, 1)
        n_rows = 0
        try:
            batch.n_tokens = 0
            for s, ids in enumerate(sequences):
                for t, token in enumerate(ids):
                    i = batch.n_tokens
                    batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position + t, 1
                    batch.seq_id[i][0] = s
                    batch.logits[i] = wanted = logits == "all" or (logits == "last" and t == len(ids) - 1)
                    n_rows += wanted
                    batch.n_tokens += 1
            if c.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
        finally:
            c.llama_batch_free(batch)
        return n_rows

    def _context(self, n_tokens: int = CONTEXT_TOKENS, n_sequences: int = 1, *, is_kept: bool = False) -> Any:
        """The cached context for a length and a batch size; other parameters are those of llama-cpp-python.

        One that `is_kept` is never cleared: prompts get another.
        """
        n_tokens = n_tokens if n_sequences > 1 else min(n_tokens, self._most_tokens)
        key = n_tokens, n_sequences, is_kept
        if key not in self._contexts:
            params = self._c.llama_context_default_params()
            params.n_seq_max = n_sequences
            params.n_ctx = n_tokens
            params.n_batch = params.n_ubatch = BATCH_TOKENS
            params.n_threads = params.n_threads_batch = self._threads
            self._contexts[key] = self._c.llama_init_from_model(self._model, params)
            if not self._contexts[key]:
                raise RuntimeError("llama.cpp failed to create a context")
        return self._contexts[key]


def first_token(path: str, _form: str, threads: int) -> None:
    """Follows the documentation of llama-cpp-python."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    sys.stdout.write(model(PROMPT, max_tokens=1, temperature=0.0)["choices"][0]["text"] + "\n")
    sys.stdout.flush()
