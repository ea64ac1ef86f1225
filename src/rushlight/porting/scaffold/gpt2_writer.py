"""Writing the port of a GPT-2, whose forward is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.porting.scaffold.known import Known, gpt2_config, gpt2_module
from rushlight.porting.scaffold.tree import number
from rushlight.porting.scaffold.writer import Writer

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.porting.scaffold.tree import Node

__all__ = ["GPT2Writer"]


class GPT2Writer(Writer):
    """Writes the port of a GPT-2, whatever wrapped it and whichever way round its weights are."""

    def __init__(self, checkpoint: Checkpoint, config: GPT2Config, prefixes: tuple[str, ...]) -> None:
        self.config = config
        self._prefixes = prefixes
        self._other_heads = False
        super().__init__(checkpoint)
        self.prefixes = prefixes
        self.buffers = GPT2.rules.buffers
        self.heads = GPT2.rules.heads if self._other_heads else ()
        self.tied = dict(GPT2.rules.tied)

    def paths(self, weights: list[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
        rules = replace(GPT2.rules, prefixes=self._prefixes)
        others = {name for name, _ in weights if rules.other_head(name) and not name.startswith("lm_head.")}
        self._other_heads = bool(others)
        kept = [(name, shape) for name, shape in weights if name not in others and not rules.ignored(name)]
        shapes = {rules.canonical(name): shape for name, shape in kept}
        shapes.setdefault("lm_head.weight", shapes["wte.weight"])
        order = ["wte", "wpe", "h", "ln_f", "lm_head", "ln_1", "attn", "c_attn", "ln_2", "mlp", "c_fc", "c_proj"]
        ranks = {word: i for i, word in enumerate([*order, "weight", "bias"])}
        return sorted(
            shapes.items(),
            key=lambda item: [ranks.get(part, 99 if (n := number(part)) is None else n) for part in item[0].split(".")],
        )

    def root_stem(self) -> str:
        return "GPT2"

    def known(self, node: Node) -> Known | None:
        sure = self.conv1d or "activation_function" in self.values
        return None if node.tensors else gpt2_module(frozenset(node.children), self.config, sure_of_gelu=sure)

    def epsilon(self) -> str:
        return "config.layer_norm_epsilon"

    def name_sizes(self) -> dict[int, str]:
        config = self.config
        sizes = {config.n_embd: "n_embd"}
        for name in ("vocab_size", "n_positions", "n_inner"):
            sizes.setdefault(getattr(config, name), name)
        return sizes

    def n_rows(self, node: Node, rows: int) -> str:
        key = {"wte": "vocab_size", "wpe": "n_positions"}.get(node.path)
        return f"config.{key}" if key and getattr(self.config, key) == rows else super().n_rows(node, rows)

    def count(self, node: Node) -> str:
        return "config.n_layer" if node.path == "h" else super().count(node)

    def config_class(self) -> str:
        return gpt2_config(self.config)

    def imports(self) -> list[str]:
        dataclass, typing, blank, *ours = super().imports()
        math = ["import math"] if any("math." in text for text in self.classes.values()) else []
        return [*math, dataclass, typing, blank, "from rushlight.backends.batch import KVShape", *ours]

    def body(self, node: Node, name: str) -> str:
        body = super().body(node, name)
        if "Activation(" in body:
            self.used.add("Activation")
        return body

    def more_tests(self) -> str:
        if self.to_write:
            return ""
        return """

def test_it_computes_logits():
    model = rushlight.load(SOURCE, port=PORT, device="reference")
    assert model.logits([0, 1]).shape == (2, model.config.vocab_size)
"""
