"""Convert a GPT-2 saved by transformers into the form that rushlight ships: F16, the original tensor names, small JSON.

python pack.py TRAINED PACKED
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG_KEYS = """model_type architectures vocab_size n_positions n_embd n_layer n_head n_inner activation_function
    layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn tie_word_embeddings
    bos_token_id eos_token_id""".split()


def pack(trained: Path, packed: Path) -> None:
    """Writes model.safetensors, config.json and tokenizer.json to the folder `packed`."""
    packed.mkdir(parents=True, exist_ok=True)
    pack_weights(trained / "model.safetensors", packed / "model.safetensors")
    pack_config(trained / "config.json", packed / "config.json")
    pack_tokenizer(trained / "tokenizer.json", packed / "tokenizer.json")


def pack_weights(trained: Path, packed: Path) -> None:
    """Rounds to F16 (to nearest, ties to even), and renames as in openai-community/gpt2, without the class prefix."""
    tensors = load_file(trained)
    rounded = {name.removeprefix("transformer."): tensor.to(torch.float16) for name, tensor in tensors.items()}
    save_file(rounded, packed, metadata={"format": "pt"})


def pack_config(trained: Path, packed: Path) -> None:
    """Keeps the keys of the language model, without those of training, other heads and versions."""
    config = json.loads(trained.read_text())
    kept = {key: config[key] for key in CONFIG_KEYS} | {"dtype": "float16"}
    packed.write_text(json.dumps(kept, indent=2) + "\n")


def pack_tokenizer(trained: Path, packed: Path) -> None:
    """Removes white space from the JSON; its content stays."""
    tokenizer = json.loads(trained.read_text(encoding="utf-8"))
    packed.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path, help="folder with model.safetensors, config.json and tokenizer.json")
    parser.add_argument("packed", type=Path, help="folder to write")
    arguments = parser.parse_args()
    pack(arguments.trained, arguments.packed)
