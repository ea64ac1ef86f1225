"""Recognises the family of a checkpoint from its tensor names, for error messages where config.json does not help."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NAME_IT", "PORT_IT", "Family", "family", "for_source"]

PORT_IT = "`rushlight port SOURCE -o my_model.py` writes a model file under these names to start from"
NAME_IT = (
    "put the config.json that was published with these weights next to them: its model_type says which one it is; "
    f"for a relative, {PORT_IT}"
)
"""For families with built-in types, which differ in arithmetic that names do not show."""


class Family(NamedTuple):
    """A family of checkpoints.

    Attributes:
        pattern: a regular expression that is found in one of their tensor names.
        description: the family, to complete "this is ...".
        fix: the suggested fix.
    """

    pattern: str
    description: str
    fix: str = PORT_IT


_FAMILIES = (
    Family(
        r"lora_[AB]\b",
        "a LoRA adapter, not a model",
        "merge it into its base model (peft's merge_and_unload) and save the result",
    ),
    Family(r"\.(qweight|qzeros)$", "a GPTQ or AWQ quantised model", "use the checkpoint it was quantised from"),
    Family(r"\.(absmax|quant_map|SCB)$", "a bitsandbytes quantised model", "use the checkpoint it was quantised from"),
    Family(r"(^|\.)exp_avg(_sq)?\b", "the state of an optimizer", "save only the model's state_dict"),
    Family(r"(^|\.)encoder\.layers\.0\.self_attn\.q_proj\.", "of the BART family: BART, Whisper or a relative"),
    Family(
        r"(^|\.)layers\.0\.(mlp\.experts|block_sparse_moe)\.",
        "a mixture-of-experts model, which rushlight does not run",
        "use a dense model: `rushlight models` lists what is built in",
    ),
    Family(r"(^|\.)decoder\.layers\.0\.self_attn\.q_proj\.", "OPT or a relative", NAME_IT),
    Family(
        r"(^|\.)layers\.0\.self_attn\.q_proj\.",
        "of the Llama family: Llama, Mistral, Qwen, Gemma or a relative",
        NAME_IT,
    ),
    Family(r"(^|\.)layers\.0\.attention\.query_key_value\.", "GPT-NeoX or Pythia", NAME_IT),
    Family(r"(^|\.)h\.0\.attn\.attention\.q_proj\.", "GPT-Neo", NAME_IT),
    Family(r"(^|\.)h\.0\.attn\.q_proj\.", "GPT-J or CodeGen", NAME_IT),
    Family(r"(^|\.)h\.0\.self_attention\.query_key_value\.", "BLOOM or Falcon", NAME_IT),
    Family(r"(^|\.)layer\.0\.attention\.self\.query\.", "of the BERT family: BERT, RoBERTa or a relative"),
    Family(r"(^|\.)layer\.0\.attention\.q_lin\.", "DistilBERT"),
    Family(r"(^|\.)block\.0\.layer\.0\.SelfAttention\.", "T5"),
    Family(r"(^|\.)mixer\.(A_log|in_proj\.weight)$", "Mamba"),
    Family(r"(^|\.)layer4\.0\.conv1\.weight$", "ResNet"),
)


def for_source(text: str, source: str) -> str:
    """A fix with the checkpoint's name or path in place of SOURCE, as one word of a command line."""
    return text.replace("rushlight port SOURCE ", f"rushlight port {shlex.quote(source)} ")


def family(names: Iterable[str]) -> Family | None:
    """The first family whose pattern one of the names matches; None if there is none."""
    names = list(names)
    return next((each for each in _FAMILIES if any(re.search(each.pattern, name) for name in names)), None)
