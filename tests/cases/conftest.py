"""Small inputs for the cases: situations that users of other tools reported, recreated with random weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

BYTE_SYMBOLS = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""The bytes that a byte-level vocabulary spells as themselves; the others follow from U+0100 on."""

MakeGPT2 = Callable[..., Path]


def byte_vocabulary() -> dict[str, int]:
    """The symbol of each byte to its id, which is the byte, and `<|endoftext|>` as 256."""
    others = [byte for byte in range(256) if byte not in BYTE_SYMBOLS]
    symbols = {byte: chr(byte) for byte in BYTE_SYMBOLS} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {symbols[byte]: byte for byte in range(256)} | {"<|endoftext|>": 256}


def gpt2_weights(vocab_size: int, n_positions: int, *, n_embd: int = 64, n_layer: int = 2, seed: int = 0) -> dict:
    """Random weights of a GPT-2 under the names of GPT2LMHeadModel, large enough that argmax is never a near tie."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0) -> np.ndarray:
        return random.normal(mean, 0.2, shape).astype(np.float32)

    weights = {"wte.weight": normal(vocab_size, n_embd), "wpe.weight": normal(n_positions, n_embd)}
    for layer in range(n_layer):
        block = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            weights |= {f"{block}{norm}.weight": normal(n_embd, mean=1.0), f"{block}{norm}.bias": normal(n_embd)}
        for name, n_in, n_out in (
            ("attn.c_attn", n_embd, 3 * n_embd),
            ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", n_embd, 4 * n_embd),
            ("mlp.c_proj", 4 * n_embd, n_embd),
        ):
            weights |= {f"{block}{name}.weight": normal(n_in, n_out), f"{block}{name}.bias": normal(n_out)}
    weights |= {"ln_f.weight": normal(n_embd, mean=1.0), "ln_f.bias": normal(n_embd)}
    return {f"transformer.{name}": value for name, value in weights.items()}


@pytest.fixture
def make_gpt2(tmp_path: Path) -> MakeGPT2:
    """Writes a random GPT-2 of two blocks with a byte-level tokenizer into a folder, and returns the folder.

    Keywords: name, vocab_size, n_positions, seed, and further keys of config.json. `files` maps further file names to
    text, to a value that is written as JSON, or to None to omit the file.
    """

    def make(
        name: str = "m",
        *,
        vocab_size: int = 257,
        n_positions: int = 64,
        seed: int = 0,
        files: dict | None = None,
        **config,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(gpt2_weights(vocab_size, n_positions, seed=seed), folder / "model.safetensors", {"format": "pt"})
        contents = {
            "config.json": {
                "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab_size,
                "n_positions": n_positions, "n_embd": 64, "n_head": 2, "n_layer": 2, "eos_token_id": 256,
                "bos_token_id": 256, **config,
            },
            "vocab.json": byte_vocabulary(),
            "merges.txt": "",
            **(files or {}),
        }  # fmt: skip
        for path, content in contents.items():
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text, encoding="utf-8")
        return folder

    return make
