"""Writes a checkpoint as a GGUF file in float32, with the names and keys of llama.cpp's own conversion scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import rushlight

if TYPE_CHECKING:
    from pathlib import Path

    import gguf
    import numpy as np
    from numpy.typing import NDArray

NAMES = {
    "gpt2": {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "llama": {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
}
NAMES["qwen3"] = {**NAMES["llama"], "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
"""Architecture -> the paths of its modules, within a layer or outside, -> their names in GGUF."""

PRE_TOKENIZERS = {"gpt2": "gpt-2", "llama": "smollm", "qwen3": "qwen2"}
"""Architecture -> llama.cpp's name of the regular expression that splits text, for the benchmarked models."""


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Writes the file; it appears only when it is complete."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in NAMES:
        raise RuntimeError(f"no names in GGUF for a {config['model_type']}; known: {', '.join(NAMES)}")
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), config["model_type"])
    _add_sizes(writer, config)
    _add_tokenizer(writer, checkpoint, config)
    with rushlight.open_checkpoint(checkpoint) as tensors:
        for name, tensor in tensors.items():
            writer.add_tensor(gguf_name(name, config["model_type"]), _values(name, tensor.float32(), config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def gguf_name(name: str, model_type: str = "gpt2") -> str:
    """A tensor's name in GGUF: transformer.h.0.ln_1.bias is blk.0.attn_norm.bias."""
    path, _, kind = name.removeprefix("transformer.").removeprefix("model.").rpartition(".")
    if path.startswith(("h.", "layers.")):
        _, layer, inner = path.split(".", 2)
        return f"blk.{layer}.{NAMES[model_type][inner]}.{kind}"
    return f"{NAMES[model_type][path]}.{kind}"


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if config["model_type"] == "gpt2":
        writer.add_block_count(config["n_layer"])
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """Adds the vocabulary of a byte-level BPE, padded with unused tokens as llama.cpp's scripts do."""
    import gguf

    vocab, merges, special = _bpe(checkpoint, config)
    by_id = {i: token for token, i in vocab.items()} | special
    ids = range(config["vocab_size"])
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[config["model_type"]])
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in ids])
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL if i in by_id else kinds.UNUSED for i in ids]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _bpe(checkpoint: Path, config: dict[str, Any]) -> tuple[dict[str, int], list[str], dict[int, str]]:
    """The tokens and their ids, the merges, and the special tokens by id."""
    if not (checkpoint / "tokenizer.json").exists():
        vocab = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
        merges = (checkpoint / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        end = config["eos_token_id"]
        return vocab, merges, {end: next(token for token, i in vocab.items() if i == end)}
    file = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"]]
    special = {added["id"]: added["content"] for added in file["added_tokens"] if added["special"]}
    return file["model"]["vocab"], merges, special


def _values(name: str, values: NDArray[np.float32], config: dict[str, Any]) -> NDArray[np.float32]:
    """A tensor in llama.cpp's layout."""
    if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return values.T.copy()
    if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        # Its rotary embedding of a Llama takes neighbouring channels as pairs, not those half a head apart.
        halves = values.reshape(-1, 2, config["head_dim"] // 2, values.shape[1])
        return halves.swapaxes(1, 2).reshape(values.shape).copy()
    return values
