"""Compares a model with published results of OpenAI's GPT-2 124M.

gpt2_known_answers.json lists the results with the file and commit that each comes from: the test suites of transformers
(Apache-2.0), lm-evaluation-harness (MIT) and llm.c (MIT), all computed in float32.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.runtime.model import Model

__all__ = ["Answer", "is_gpt2_124m", "known_answers"]

GPT2_124M = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
LOSS_TOLERANCE = 1e-4
"""Of llm.c's loss, absolute, in nats."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A published result and the model's.

    Attributes:
        what: the result, in words.
        source: the project that published it.
        expected, found: the published result, and the model's.
        right: whether they agree.
    """

    what: str
    source: str
    expected: str
    found: str
    right: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_gpt2_124m(config: object) -> bool:
    """Whether a config is that of GPT-2 124M. Fine-tuned models share it, but not the results."""
    return all(getattr(config, key, None) == value for key, value in GPT2_124M.items())


def known_answers(model: Model) -> Iterator[Answer]:
    """Compute each published result with the model.

    Args:
        model: GPT-2 124M in float32 or float64, with its tokenizer.

    Raises:
        TokenizerError: it has no tokenizer.
    """
    published = json.loads(resources.files("rushlight.proof").joinpath("gpt2_known_answers.json").read_text("utf-8"))
    yield from _greedy(model, published["greedy_ids"], published["greedy_text"])
    yield from _lm_eval(model, published["lm_eval"])
    state = published["llm.c"]
    loss = -float(np.mean([_log_probs(model, x, y) for x, y in zip(state["x"], state["y"], strict=True)]))
    right = abs(loss - state["loss"]) <= LOSS_TOLERANCE
    yield Answer("the loss on 4 × 64 tokens of tiny Shakespeare", "llm.c", f"{state['loss']:.6f}", f"{loss:.6f}", right)


def _greedy(model: Model, by_ids: dict[str, Any], by_text: dict[str, Any]) -> Iterator[Answer]:
    n = len(by_ids["prompt_ids"])
    expected_ids = by_ids["output_ids"][n:]
    ids = model.generate(by_ids["prompt_ids"], max_tokens=len(expected_ids)).ids
    yield Answer("greedy ids", "transformers", str(expected_ids), str(ids), ids == expected_ids)
    for case in by_text["cases"]:
        prompt, expected = case["prompt"], case["output"].removeprefix(case["prompt"])
        n = _n_tokens(model, case["output"]) - _n_tokens(model, prompt)
        text = model.generate(prompt, max_tokens=n).text
        yield Answer(f"greedy text after {prompt!r}", "transformers", repr(expected), repr(text), text == expected)


def _lm_eval(model: Model, known: dict[str, Any]) -> Iterator[Answer]:
    source, tolerance = "lm-evaluation-harness", known["rel_tol"]
    case = known["greedy_until"]
    text = model.generate(case["prompt"], stop=case["stop"]).text
    what = f"greedy text after {case['prompt']!r} until a stop string"
    yield Answer(what, source, repr(case["output"]), repr(text), text == case["output"])

    for case in known["loglikelihood"]["cases"]:
        context, targets = _encode(model, case["context"]), _encode(model, case["continuation"])
        total = float(_log_probs(model, context + targets[:-1], targets).sum())
        right = abs(total - case["sum"]) <= tolerance * abs(case["sum"])
        what = f"log-probability of {case['continuation'][:32]!r}"
        yield Answer(what, source, f"{case['sum']:.4f}", f"{total:.4f}", right)

    case = known["rolling"]
    read = _encode(model, case["text"])
    yield Answer("token ids of a text", source, str(case["ids"]), str(read), read == case["ids"])
    ids = [case["prefix_token"], *case["ids"]]
    found = _log_probs(model, ids[:-1], ids[1:])
    yield _each("log-probability of each token", source, found, case["logprobs"], tolerance)
    windows: list[float] = []
    for start in range(0, len(case["ids"]), 5):
        targets = case["ids"][start : start + 5]
        stop = start + len(targets)
        windows += _log_probs(model, ids[stop - 5 : stop], targets).tolist()
    expected = case["logprobs_in_windows_of_5"]
    yield _each("log-probability of each token with a context of five", source, np.array(windows), expected, tolerance)


def _each(what: str, source: str, found: NDArray[np.float64], expected: Sequence[float], tolerance: float) -> Answer:
    wanted = np.array(expected)
    off = np.abs(found - wanted) / np.abs(wanted)
    worst = int(off.argmax())
    right = bool((off <= tolerance).all())
    return Answer(what, source, f"{wanted[worst]:.5f} at {worst}", f"{found[worst]:.5f} at {worst}", right)


def _log_probs(model: Model, ids: Sequence[int], targets: Sequence[int]) -> NDArray[np.float64]:
    """The log-probability of each of the last len(targets) tokens that follow `ids`, in nats."""
    logits = model.logits(ids)[-len(targets) :].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen: NDArray[np.float64] = logits[np.arange(len(targets)), targets]
    chosen -= np.log(np.exp(logits).sum(axis=-1))
    return chosen


def _n_tokens(model: Model, text: str) -> int:
    return len(_encode(model, text))


def _encode(model: Model, text: str) -> list[int]:
    if model.tokenizer is None:
        raise TokenizerError("the published results require a tokenizer, and the model has none")
    return model.tokenizer.encode(text)
