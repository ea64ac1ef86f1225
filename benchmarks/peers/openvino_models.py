"""Models as PyTorch modules to trace for OpenVINO, with keys and values passed in and out.

(S, T) ids at the positions after those in the past -> the logits of the requested columns, and the keys and values.
Attention is in the form that OpenVINO's CPU plugin fuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class Decoder(torch.nn.Module):
    """The tensors of a checkpoint as buffers, and what the architectures share."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.config = config
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())

    def of(self, name: str) -> Any:
        return getattr(self, name.replace(".", "_"))

    def attend(self, q: Any, keys: Any, values: Any, position_ids: Any, beam_idx: Any, past: Any) -> tuple[Any, ...]:
        """(S, heads, T, D) -> (S, T, heads · D), with the keys and values of all positions."""
        # The plugin fuses attention only if sequences are selected by beam index.
        k, v = (
            torch.cat([old.index_select(0, beam_idx), new], 2) for old, new in zip(past, (keys, values), strict=True)
        )
        seen = torch.arange(past[0].shape[2] + q.shape[2])
        mask = seen[None, None, None, :] <= position_ids[:, None, :, None]  # (S, 1, T, past + T)
        group = self.n_head // self.n_kv_head
        repeated = (
            (part[:, :, None].expand(-1, -1, group, -1, -1).reshape(part.shape[0], self.n_head, -1, self.head_dim))
            if group > 1
            else part
            for part in (k, v)
        )
        out = functional.scaled_dot_product_attention(q, *repeated, attn_mask=mask)
        return out.transpose(1, 2).flatten(2), k, v

    def heads(self, x: Any) -> Any:
        """(S, T, heads · D) -> (S, heads, T, D)."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class GPT2(Decoder):
    """GPT-2."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(config, {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
        self.n_layer, self.n_head = config["n_layer"], config["n_head"]
        self.n_kv_head, self.head_dim = self.n_head, config["n_embd"] // self.n_head

    def norm(self, x: Any, name: str) -> Any:
        weight, bias = self.of(f"{name}.weight"), self.of(f"{name}.bias")
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, self.config["layer_norm_epsilon"])

    def product(self, x: Any, name: str) -> Any:
        return x @ self.of(f"{name}.weight") + self.of(f"{name}.bias")

    def forward(self, input_ids: Any, position_ids: Any, columns: Any, beam_idx: Any, *past: Any) -> Any:
        x = functional.embedding(input_ids, self.of("wte.weight")) + functional.embedding(
            position_ids, self.of("wpe.weight")
        )
        present: list[Any] = []
        for i in range(self.n_layer):
            products = self.product(self.norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, dim=-1)
            q, k, v = map(self.heads, products)
            h, *new = self.attend(q, k, v, position_ids, beam_idx, past[2 * i : 2 * i + 2])
            present += new
            x = x + self.product(h, f"h.{i}.attn.c_proj")
            h = self.product(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            x = x + self.product(functional.gelu(h, approximate="tanh"), f"h.{i}.mlp.c_proj")
        x = self.norm(x.index_select(1, columns), "ln_f")
        return x @ self.of("wte.weight").T, *present


class Llama(Decoder):
    """Llama, and Qwen3 with its norms of queries and keys."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(config, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
        self.n_layer, self.n_head = config["num_hidden_layers"], config["num_attention_heads"]
        self.n_kv_head, self.head_dim = config["num_key_value_heads"], config["head_dim"]
        rope = config["rope_parameters"]
        if rope["rope_type"] != "default":
            raise RuntimeError(f"no conversion of {rope['rope_type']!r} rotary embeddings for OpenVINO here")
        halves = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.register_buffer("frequencies", rope["rope_theta"] ** -halves)
        self.head = "lm_head.weight" if "lm_head.weight" in tensors else "embed_tokens.weight"

    def norm(self, x: Any, name: str) -> Any:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.config["rms_norm_eps"]) * self.of(f"{name}.weight")

    def product(self, x: Any, name: str) -> Any:
        return functional.linear(x, self.of(f"{name}.weight"))

    def forward(self, input_ids: Any, position_ids: Any, columns: Any, beam_idx: Any, *past: Any) -> Any:
        x = functional.embedding(input_ids, self.of("embed_tokens.weight"))
        angles = (position_ids[:, :, None].float() * self.frequencies).repeat(1, 1, 2)[:, None]  # (S, 1, T, D)
        cos, sin = angles.cos(), angles.sin()

        def rotated(x: Any) -> Any:
            low, high = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-high, low], -1) * sin

        present: list[Any] = []
        for i in range(self.n_layer):
            h = self.norm(x, f"layers.{i}.input_layernorm")
            q, k, v = (self.heads(self.product(h, f"layers.{i}.self_attn.{name}_proj")) for name in "qkv")
            if self.config["model_type"] == "qwen3":
                q, k = (self.norm(part, f"layers.{i}.self_attn.{name}_norm") for part, name in ((q, "q"), (k, "k")))
            h, *new = self.attend(rotated(q), rotated(k), v, position_ids, beam_idx, past[2 * i : 2 * i + 2])
            present += new
            x = x + self.product(h, f"layers.{i}.self_attn.o_proj")
            h = self.norm(x, f"layers.{i}.post_attention_layernorm")
            gate, up = (self.product(h, f"layers.{i}.mlp.{name}_proj") for name in ("gate", "up"))
            x = x + self.product(functional.silu(gate) * up, f"layers.{i}.mlp.down_proj")
        x = self.norm(x.index_select(1, columns), "norm")
        return functional.linear(x, self.of(self.head)), *present


MODULES = {"gpt2": GPT2, "llama": Llama, "qwen3": Llama}
"""model_type -> its module."""
