"""Performance goals on a CPU, and whether the record of a benchmark run meets them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

RIVAL = "llama.cpp"

DECODE_RATIO = {"f32": 2.0, "bf16": 2.0, "int8": 2.0, "int4": 2.0}
PREFILL_RATIO = {"f32": 2.0, "bf16": 1.7, "int8": 2.0}
BATCH_RATIO = {"f32": 1.8, "bf16": 2.0, "int8": 2.0, "int4": 2.0}
BANDWIDTH_SHARE = 0.85
FIRST_TOKEN_S = 0.25
PEAK_OVERHEAD_BYTES = 80e6
IMPORT_S = 0.060
HELP_S = 0.150
PYTHON_SHARE = 0.03
SAMPLING_SHARE = 0.02
INSTALLED_BYTES = 130e6
PERPLEXITY_RATIO = {"int8": 1.002, "int4": 1.02}
SPECULATION_RATIO = 3.0
NO_HITS_RATIO = 0.97


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals.

    Attributes:
        metric: the quantity measured.
        goal: its target, as text.
        measured: its value as text, or why it was not measured.
        met: whether the value meets the goal; None where it was not measured.
    """

    metric: str
    goal: str
    measured: str
    met: bool | None

    @classmethod
    def at_least(cls, metric: str, value: float | None, goal: float, unit: str, why: str = "not measured") -> Goal:
        """A lower bound on a ratio or share."""
        text = why if value is None else _format(value, unit)
        return cls(metric, f"≥ {_format(goal, unit)}", text, None if value is None else value >= goal)

    @classmethod
    def at_most(cls, metric: str, value: float | None, goal: float, unit: str, why: str = "not measured") -> Goal:
        """An upper bound on a cost."""
        text = why if value is None else _format(value, unit)
        return cls(metric, f"≤ {_format(goal, unit)}", text, None if value is None else value <= goal)


def _format(value: float, unit: str) -> str:
    match unit:
        case "×":
            return f"{value:.2f} ×"
        case "× quality":
            return f"{value:.4f} ×"
        case "%":
            return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
        case "ms":
            return f"{value * 1e3:.0f} ms"
        case "s":
            return f"{value:.3f} s"
        case _:
            return f"{value / 1e6:.0f} MB"


def goals(record: dict[str, Any]) -> list[Goal]:
    """All goals, with those that were not measured."""
    own = record["own"]
    rows = []
    for dtype, goal in DECODE_RATIO.items():
        value, why = ratio(record, "decode_tok_s", dtype)
        rows.append(Goal.at_least(f"decode, one sequence, {dtype}, over {RIVAL}", value, goal, "×", why))
    rows += [_bandwidth(record, dtype) for dtype in DECODE_RATIO]
    for dtype, goal in PREFILL_RATIO.items():
        value, why = ratio(record, "prefill_tok_s", dtype)
        metric = f"prefill of {record['config']['prompt_tokens']}, {dtype}, over {RIVAL}"
        rows.append(Goal.at_least(metric, value, goal, "×", why))
    for dtype, goal in BATCH_RATIO.items():
        value, why = ratio(record, "batch_decode_tok_s", dtype)
        metric = f"decode, batch size {record['config']['batch_size']}, {dtype}, over {RIVAL}"
        rows.append(Goal.at_least(metric, value, goal, "×", why))
    engine = own.get("engine", {})
    for name, metric, goal in (
        ("speculation", "repetitive completion, speculative over plain decoding, f32", SPECULATION_RATIO),
        ("no_hits", "non-repetitive completion, speculative over plain decoding, f32", NO_HITS_RATIO),
    ):
        rows.append(Goal.at_least(metric, _median(engine.get(name)), goal, "×"))
    rows += _first_token(record)
    rows += [_peak(record, dtype) for dtype in DECODE_RATIO]
    bare = _median(own.get("bare_python_s"))
    import_s, help_s = _median(own.get("import_s")), _median(own.get("help_s"))
    over_bare = None if import_s is None or bare is None else import_s - bare
    rows.append(Goal.at_most("import rushlight, over bare python", over_bare, IMPORT_S, "ms"))
    rows.append(Goal.at_most("rushlight --help", help_s, HELP_S, "ms"))
    rows.append(_step_share(record, "call overhead, share of a decode step, int4", "calls_s", "int4", PYTHON_SHARE))
    metric = "sampling (top-k, top-p, min-p, penalties), share of a decode step, int8"
    rows.append(_step_share(record, metric, "sampling_s", "int8", SAMPLING_SHARE))
    size = _runtime(record, "rushlight").get("installed_bytes")
    why = "not measured: rushlight is not installed, or editable"
    rows.append(Goal.at_most("installed size with dependencies", size, INSTALLED_BYTES, "MB", why))
    rows += [_perplexity(own, dtype, goal) for dtype, goal in PERPLEXITY_RATIO.items()]
    return rows


def ratio(record: dict[str, Any], metric: str, dtype: str, rival: str = RIVAL) -> tuple[float | None, str]:
    """The rate of rushlight over a rival's at the same dtype: the median of the rounds' ratios, or None and why."""
    found = []
    for name in ("rushlight", rival):
        entry = _runtime(record, name)
        results = entry.get("dtypes", {}).get(dtype, {})
        if problem := entry.get("problem") or results.get("problem"):
            return None, f"not measured: {name}: {problem}"
        if results.get("agrees") is False:
            return None, f"not compared: {name} computes different results"
        if metric not in results:
            return None, f"not measured: {name} has no {dtype}"
        found.append(results[metric]["values"])
    return statistics.median(ours / theirs for ours, theirs in zip(*found, strict=False)), ""


def _runtime(record: dict[str, Any], name: str) -> dict[str, Any]:
    return record["runtimes"].get(name, {"problem": "not selected"})


def _mine(record: dict[str, Any], dtype: str) -> dict[str, Any]:
    return _runtime(record, "rushlight").get("dtypes", {}).get(dtype, {})


def _median(sample: dict[str, Any] | None) -> float | None:
    return None if sample is None else sample["median"]


def _bandwidth(record: dict[str, Any], dtype: str) -> Goal:
    own, rate = record["own"], _mine(record, dtype).get("decode_tok_s")
    limit = own.get("bandwidth_gb_s", {}).get(dtype)
    share = None
    if rate and limit:
        step_bytes = own["step_bytes"][dtype]
        share = statistics.median(
            tok_s * step_bytes / 1e9 / gb_s for tok_s, gb_s in zip(rate["values"], limit["values"], strict=False)
        )
    metric = f"decode, one sequence, {dtype}, share of the bandwidth of only reading the weights"
    if share is not None and own["reader"] != "weights":
        # NumPy does not reach the bandwidth of this machine.
        measured = f"{share:.0%} of the bandwidth of NumPy: the backend cannot read weights without computing"
        return Goal(metric, f"≥ {_format(BANDWIDTH_SHARE, '%')}", measured, None)
    return Goal.at_least(metric, share, BANDWIDTH_SHARE, "%")


def _first_token(record: dict[str, Any]) -> list[Goal]:
    mine = _median(_mine(record, "f32").get("first_token_s"))
    theirs = _median(_runtime(record, RIVAL).get("dtypes", {}).get("f32", {}).get("first_token_s"))
    below = Goal(
        f"process start to first token, f32, compared with {RIVAL}",
        f"below {'its time' if theirs is None else _format(theirs, 's')}",
        "not measured" if mine is None or theirs is None else _format(mine, "s"),
        None if mine is None or theirs is None else mine < theirs,
    )
    return [Goal.at_most("process start to first token, f32", mine, FIRST_TOKEN_S, "s"), below]


def _peak(record: dict[str, Any], dtype: str) -> Goal:
    peak = _mine(record, dtype).get("peak_bytes")
    memory = record["own"].get("memory", {}).get(dtype)
    metric = f"peak memory minus weights and KV cache, {dtype}"
    if peak is None or memory is None:
        return Goal.at_most(metric, None, PEAK_OVERHEAD_BYTES, "MB")
    return Goal.at_most(metric, peak - memory["weights"] - memory["kv"], PEAK_OVERHEAD_BYTES, "MB")


def _step_share(record: dict[str, Any], metric: str, cost: str, dtype: str, goal: float) -> Goal:
    """A cost in seconds as a share of a decode step."""
    costs = record["own"].get(cost)
    seconds = _median(costs.get(dtype) if costs and "median" not in costs else costs)
    rate = _median(_mine(record, dtype).get("decode_tok_s"))
    return Goal.at_most(metric, None if seconds is None or rate is None else seconds * rate, goal, "%")


def _perplexity(own: dict[str, Any], dtype: str, goal: float) -> Goal:
    loss = own.get("loss", {})
    value = math.exp(loss[dtype] - loss["f32"]) if {dtype, "f32"} <= loss.keys() else None
    why = "not measured" if loss else "not measured: no --held-out text"
    metric = f"perplexity of the embedded model on held-out text, {dtype} over f32"
    return Goal.at_most(metric, value, goal, "× quality", why)
