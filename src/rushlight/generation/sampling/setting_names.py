"""What to say of a setting that does not exist: the one that was meant, by spelling or by another library's name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ELSEWHERE = {
    "best_of": "n",
    "do_sample": "temperature",
    "eos_token_id": "stop_ids",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "response_format": "json_schema",
    "rng_seed": "seed",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_token_ids": "stop_ids",
    "temp": "temperature",
    "top_logprobs": "logprobs",
}
"""Names of transformers, vLLM, llama.cpp, Ollama, mlx-lm and OpenAI's API -> the setting that does the same here."""


def unknown_setting(name: object, known: Sequence[str]) -> str:
    """What is wrong with a name that is not among the `known` ones.

    `stop` is known too: it stands beside the settings, as an argument of its own.
    """
    if name == "stop":
        return "stop is not a setting but an argument beside them"
    text = f"there is no setting {name!r}"
    if not isinstance(name, str):
        return text
    near = ELSEWHERE.get(name) or next(iter(get_close_matches(name, [*known, "stop"], n=1)), None)
    return f"{text}; did you mean {near}?" if near else f"{text} among {', '.join(known)}"
