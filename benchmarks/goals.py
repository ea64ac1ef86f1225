"""Performance goals on a CPU, and whether the records of a benchmark run meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.rates import (
    LLAMA,
    OURS,
    WIDE_GB_S,
    Ratio,
    attention_share,
    entry,
    least_ratio,
    limit_share,
    median,
    others,
    ratio,
    reader_share,
    reading_share,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

READING_SHARE = {"f32": 0.95, "f16": 0.95, "bf16": 0.95, "int8": 0.92, "int4": 0.90}
READER_SHARE = 0.97
"""Of the reader of a format over that of f32: as fast, but for the 3 % that readings differ by."""
DECODE_RATIO = {"int8": 1.5, "int4": 1.6}
PREFILL_RATIO = 1.1
PEAK_SHARE = {"f32": 0.85, "bf16": 0.75, "int8": 0.60}
BATCH_RATIO, BATCH_OTHER_RATIO = 2.0, 1.3
MODEL_DECODE_RATIO, MODEL_PREFILL_RATIO = 1.5, 2.0
SMALL_MODELS = ("smollm2", "qwen3-shape")
IK_LLAMA = {
    ("bf16", "BF16"): (81 / 103, 1048 / 714),
    ("int8", "Q8_0"): (151 / 133, 1188 / 677),
    ("int4", "Q4_0"): (207 / 177, 1172 / 767),
    ("int4", "Q4_K_M"): (175 / 142, 1160 / 572),
}
"""rushlight's dtype and the format -> decode and prefill of ik_llama.cpp over llama.cpp, measured on SmolLM2."""
LONG_RATIO = 1.5
ATTENTION_SHARE = 0.25
SPECULATION_RATIO = 3.0
NO_HITS_RATIO = 0.97
FIRST_TOKEN_S = 0.25
FIRST_TOKEN_CONVERTED_S = 0.20
BUSY_RATIO = 0.9
PEAK_OVERHEAD_BYTES = 80e6
IMPORT_S = 0.060
HELP_S = 0.150
PYTHON_SHARE = 0.03
SAMPLING_SHARE = 0.02
INSTALLED_BYTES = 130e6
PERPLEXITY_RATIO = {"int8": 1.002, "int4": 1.02}
CALIBRATED_RATIO = 1.01


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
    def at_least(cls, metric: str, value: float | None, goal: float, unit: str, note: str = "") -> Goal:
        """A lower bound on a ratio or share; `note` follows the value, or says why there is none."""
        return cls._bound(metric, value, goal, unit, note, "≥", None if value is None else value >= goal)

    @classmethod
    def at_most(cls, metric: str, value: float | None, goal: float, unit: str, note: str = "") -> Goal:
        """An upper bound on a cost."""
        return cls._bound(metric, value, goal, unit, note, "≤", None if value is None else value <= goal)

    @classmethod
    def over(cls, metric: str, value: Ratio | None, goal: float, why: str = "not measured") -> Goal:
        """A lower bound on a ratio, which names the format compared with."""
        if value is None:
            return cls.at_least(metric, None, goal, "×", why)
        return cls.at_least(metric, value.value, goal, "×", f"{value.runtime} {value.form}")

    @classmethod
    def _bound(
        cls, metric: str, value: float | None, goal: float, unit: str, note: str, sign: str, met: bool | None
    ) -> Goal:
        text = note or "not measured"
        if value is not None:
            text = _format(value, unit) + (f" ({note})" if note else "")
        return cls(metric, f"{sign} {_format(goal, unit)}", text, met)


def _format(value: float, unit: str) -> str:
    match unit:
        case "×":
            return f"{value:.2f} ×"
        case "× quality":
            return f"{value:.4f} ×"
        case "%":
            return f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"
        case "ms":
            return f"{value * 1e3:.0f} ms"
        case "s":
            return f"{value:.3f} s"
        case _:
            return f"{value / 1e6:.0f} MB"


def goals(models: dict[str, dict[str, Any]], busy: dict[str, Any] | None = None) -> list[Goal]:
    """All goals, with those that were not measured.

    Args:
        models: the records of the models, by name. GPT-2's has most of the goals.
        busy: the record of `benchmarks.threads` on this kind of processor.
    """
    rows: list[Goal] = []
    if "gpt2" in models:
        record = models["gpt2"]
        rows += [*_decode(record), *_prefill("GPT-2", record), *_batch(record)]
    for name in SMALL_MODELS:
        if name in models:
            rows += _small_model(name, models[name])
    if "smollm2" in models:
        rows += _long(models["smollm2"])
    if "gpt2" in models:
        rows += _rest(models["gpt2"], busy)
    return rows


def _decode(record: dict[str, Any]) -> Iterator[Goal]:
    for dtype, goal in READING_SHARE.items():
        value = reading_share(record, dtype)
        metric = f"GPT-2, decode, {dtype}, share of plain reading beside it"
        if value is not None and record["own"].get("reader", "weights") != "weights":
            measured = f"{value:.0%}, without the native kernels"
            yield Goal(metric, f"≥ {_format(goal, '%')}", measured, None)
            continue
        yield Goal.at_least(metric, value, goal, "%")
    plain = reader_share(record, "f32")
    for dtype in READING_SHARE:
        if dtype == "f32":
            continue
        reader = reader_share(record, dtype)
        value = None if plain is None or reader is None else reader / plain
        yield Goal.at_least(f"GPT-2, only reading weights in {dtype}, over f32", value, READER_SHARE, "×")
    for dtype, goal in DECODE_RATIO.items():
        found = least_ratio(record, "decode", dtype, [LLAMA], wide_only=True)
        why = "not measured"
        if found is None and (anywhere := least_ratio(record, "decode", dtype, [LLAMA])):
            why = f"{anywhere.text}; memory gave less than {WIDE_GB_S:.0f} GB/s, so the share counts"
        metric = f"GPT-2, decode, {dtype}, over {LLAMA} where memory gives {WIDE_GB_S:.0f} GB/s and more"
        yield Goal.over(metric, found, goal, why)


def _prefill(title: str, record: dict[str, Any]) -> Iterator[Goal]:
    names = [name for name in record["cells"] if name.startswith("prefill")]
    for name in names:
        for dtype in READING_SHARE:
            found = least_ratio(record, name, dtype, others(record))
            yield Goal.over(f"{title}, {record['cells'][name]}, {dtype}, over the best other", found, PREFILL_RATIO)
    for name in names:
        for dtype, goal in PEAK_SHARE.items():
            share = limit_share(record, name, dtype)
            metric = f"{title}, {record['cells'][name]}, {dtype}, share of the arithmetic peak"
            yield Goal.at_least(metric, share and share.value, goal, "%")


def _batch(record: dict[str, Any]) -> Iterator[Goal]:
    title = f"GPT-2, {record['cells']['batch']}"
    for dtype in READING_SHARE:
        found = least_ratio(record, "batch", dtype, [LLAMA])
        yield Goal.over(f"{title}, {dtype}, over {LLAMA}", found, BATCH_RATIO)
        rest = [name for name in others(record) if name != LLAMA]
        found = least_ratio(record, "batch", dtype, rest)
        yield Goal.over(f"{title}, {dtype}, over the best of the rest", found, BATCH_OTHER_RATIO)


def _small_model(name: str, record: dict[str, Any]) -> Iterator[Goal]:
    title = record["title"]
    for dtype in READING_SHARE:
        found = least_ratio(record, "decode", dtype, [LLAMA])
        yield Goal.over(f"{title}, decode, {dtype}, over {LLAMA}", found, MODEL_DECODE_RATIO)
    for dtype in READING_SHARE:
        found = least_ratio(record, "prefill 512", dtype, [LLAMA])
        yield Goal.over(f"{title}, prefill of 512, {dtype}, over {LLAMA}", found, MODEL_PREFILL_RATIO)
    yield from _prefill(title, record)
    if name != "smollm2":
        return
    for (dtype, form), ik in IK_LLAMA.items():
        for cell, theirs in zip(("decode", "prefill 512"), ik, strict=True):
            found = ratio(record, cell, dtype, LLAMA, form)
            metric = f"{title}, {record['cells'].get(cell, cell)}, {dtype} over {form}: more than ik_llama.cpp has"
            yield Goal.over(metric, found, theirs)


def _long(record: dict[str, Any]) -> Iterator[Goal]:
    title = record["title"]
    for dtype in READING_SHARE:
        found = least_ratio(record, "decode at 8192", dtype, [LLAMA])
        yield Goal.over(f"{title}, decode at 8,192 positions, {dtype}, over {LLAMA}", found, LONG_RATIO)
    for dtype in READING_SHARE:
        metric = f"{title}, attention's share of a prefill of 2,048, {dtype}"
        yield Goal.at_most(metric, attention_share(record, dtype), ATTENTION_SHARE, "%")


def _rest(record: dict[str, Any], busy: dict[str, Any] | None) -> Iterator[Goal]:
    own = record["own"]
    engine = own.get("engine", {})
    for name, metric, goal in (
        ("speculation", "repetitive completion, speculative over plain decoding, f32", SPECULATION_RATIO),
        ("no_hits", "non-repetitive completion, speculative over plain decoding, f32", NO_HITS_RATIO),
    ):
        yield Goal.at_least(metric, _median(engine.get(name)), goal, "×")
    mine = _median(entry(record, OURS, "f32").get("first_token_s"))
    theirs = _median(entry(record, LLAMA, "F32").get("first_token_s"))
    yield Goal.at_most("process start to first token, f32 safetensors", mine, FIRST_TOKEN_S, "s")
    converted = _median(own.get("first_token_converted_s"))
    yield Goal.at_most("process start to first token, converted", converted, FIRST_TOKEN_CONVERTED_S, "s")
    yield Goal(
        f"process start to first token, f32, compared with {LLAMA}",
        f"below {'its time' if theirs is None else _format(theirs, 's')}",
        "not measured" if mine is None or theirs is None else _format(mine, "s"),
        None if mine is None or theirs is None else mine < theirs,
    )
    metric = "next to 1 to 4 busy processes, the default number of threads over the best"
    least, note = (busy["default_over_best"], busy["date"][:10]) if busy else (None, "")
    yield Goal.at_least(metric, least, BUSY_RATIO, "×", note)
    for dtype in READING_SHARE:
        peak, memory = entry(record, OURS, dtype).get("peak_bytes"), own.get("memory", {}).get(dtype)
        value = None if peak is None or memory is None else peak - memory["weights"] - memory["kv"]
        yield Goal.at_most(f"peak memory minus weights and KV cache, {dtype}", value, PEAK_OVERHEAD_BYTES, "MB")
    bare, import_s = _median(own.get("bare_python_s")), _median(own.get("import_s"))
    over_bare = None if import_s is None or bare is None else import_s - bare
    yield Goal.at_most("import rushlight, over bare python", over_bare, IMPORT_S, "ms")
    yield Goal.at_most("rushlight --help", _median(own.get("help_s")), HELP_S, "ms")
    yield _step_share(record, "call overhead, share of a decode step, int4", "calls_s", "int4", PYTHON_SHARE)
    metric = "sampling (top-k, top-p, min-p, penalties), share of a decode step, int8"
    yield _step_share(record, metric, "sampling_s", "int8", SAMPLING_SHARE)
    size = record["runtimes"].get(OURS, {}).get("installed_bytes")
    why = "" if size else "not measured: rushlight is not installed, or editable"
    yield Goal.at_most("installed size with dependencies", size, INSTALLED_BYTES, "MB", why)
    for dtype, goal in PERPLEXITY_RATIO.items():
        metric = f"perplexity of the embedded model on held-out text, {dtype} over f32"
        yield Goal.at_most(metric, _perplexity(own, dtype), goal, "× quality")
    metric = "perplexity of the embedded model on held-out text, int4 calibrated over f32"
    yield Goal.at_most(metric, _perplexity(own, "int4 calibrated"), CALIBRATED_RATIO, "× quality")


def _median(sample: dict[str, Any] | None) -> float | None:
    return None if sample is None else sample["median"]


def _step_share(record: dict[str, Any], metric: str, cost: str, dtype: str, goal: float) -> Goal:
    """A cost in seconds as a share of a decode step."""
    costs = record["own"].get(cost)
    seconds = _median(costs.get(dtype) if costs and "median" not in costs else costs)
    rate = median(record, OURS, dtype, "decode")
    return Goal.at_most(metric, None if seconds is None or rate is None else seconds * rate, goal, "%")


def _perplexity(own: dict[str, Any], dtype: str) -> float | None:
    loss = own.get("loss", {})
    return math.exp(loss[dtype] - loss["f32"]) if {dtype, "f32"} <= loss.keys() else None
