"""The files of the embedded model: an ordinary, complete, small GPT-2 checkpoint in F16."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from rushlight import demo
from rushlight.text import read_tokenizer_json

CONFIG = json.loads((demo.folder() / "config.json").read_text())
WEIGHTS = demo.folder() / "model.safetensors"


def gpt2_shapes(*, n_layer: int, n_embd: int, n_positions: int, vocab_size: int) -> dict[str, list[int]]:
    """The names and shapes of the tensors in openai-community/gpt2, for other sizes."""
    c = n_embd
    block = {
        "ln_1.weight": [c],
        "ln_1.bias": [c],
        "attn.c_attn.weight": [c, 3 * c],
        "attn.c_attn.bias": [3 * c],
        "attn.c_proj.weight": [c, c],
        "attn.c_proj.bias": [c],
        "ln_2.weight": [c],
        "ln_2.bias": [c],
        "mlp.c_fc.weight": [c, 4 * c],
        "mlp.c_fc.bias": [4 * c],
        "mlp.c_proj.weight": [4 * c, c],
        "mlp.c_proj.bias": [c],
    }
    blocks = {f"h.{i}.{name}": shape for i in range(n_layer) for name, shape in block.items()}
    ends = {"wte.weight": [vocab_size, c], "wpe.weight": [n_positions, c], "ln_f.weight": [c], "ln_f.bias": [c]}
    return blocks | ends


def test_every_tensor_is_present_in_f16() -> None:
    sizes = {key: CONFIG[key] for key in ("n_layer", "n_embd", "n_positions", "vocab_size")}
    with safe_open(WEIGHTS, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        assert {name: slice_.get_shape() for name, slice_ in slices.items()} == gpt2_shapes(**sizes)
        assert {slice_.get_dtype() for slice_ in slices.values()} == {"F16"}


def test_every_weight_is_finite() -> None:
    raw = WEIGHTS.read_bytes()
    data_start = 8 + int.from_bytes(raw[:8], "little")
    exponents = np.frombuffer(raw, "<u2", offset=data_start) & 0x7C00
    assert exponents.size == 3_554_304
    assert exponents.max() < 0x7C00


def test_the_config_is_a_gpt2_config() -> None:
    assert CONFIG["model_type"] == "gpt2"
    assert CONFIG["dtype"] == "float16"
    assert CONFIG["n_embd"] == 64 * CONFIG["n_head"]


def test_the_tokenizer_fits() -> None:
    tokenizer = read_tokenizer_json(demo.folder() / "tokenizer.json")
    assert tokenizer.vocab_size == CONFIG["vocab_size"]
    assert tokenizer.vocabulary()["<|endoftext|>"] == CONFIG["eos_token_id"] == CONFIG["bos_token_id"]
    text = "Once upon a time there was a rushlight — “so bright”, said the cat. 猫"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" the") == tokenizer.encode(" the king")[:1]  # the tokenizer has merged entire words


def test_the_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in demo.folder().glob("*.*")) < 12_000_000


@pytest.mark.parity
def test_transformers_loads_every_tensor() -> None:
    from transformers import GPT2LMHeadModel

    _, loading = GPT2LMHeadModel.from_pretrained(demo.folder(), output_loading_info=True)
    assert not any(loading.values())


def test_the_notice_names_the_shipped_files() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    for shipped in "gpt2_merges.txt.gz", "src/rushlight/demo":
        assert shipped in notice
