"""Rates, ratios and shares of a model's record."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks.limits import is_wide

OURS = "rushlight"
LLAMA = "llama.cpp"
DTYPES = ("f32", "f16", "bf16", "int8", "int4")


class Ratio(NamedTuple):
    """The rate of rushlight over that of another runtime.

    Attributes:
        value: the median of the rounds' ratios.
        runtime, form: the other runtime and its format.
    """

    value: float
    runtime: str
    form: str

    @property
    def text(self) -> str:
        return f"{self.value:.2f} × ({self.runtime} {self.form})"


def entry(record: dict[str, Any], runtime: str, form: str) -> dict[str, Any]:
    """What was found of a runtime at a format; empty if it was not measured."""
    return record["runtimes"].get(runtime, {}).get("formats", {}).get(form, {})


def samples(record: dict[str, Any], runtime: str, form: str, cell: str) -> dict[int, dict[str, float]]:
    """Rounds -> what was measured in them: tok_s, and where it is known read_gb_s, read_one_gb_s and peak_gops."""
    columns = entry(record, runtime, form).get("cells", {}).get(cell, {})
    names = [name for name in columns if name != "rounds"]
    rows = zip(*(columns[name] for name in names), strict=True)
    return dict(zip(columns.get("rounds", ()), (dict(zip(names, row, strict=True)) for row in rows), strict=True))


def median(record: dict[str, Any], runtime: str, form: str, cell: str) -> float | None:
    """The median rate, in tokens per second."""
    found = samples(record, runtime, form, cell)
    return statistics.median(each["tok_s"] for each in found.values()) if found else None


def dtypes(record: dict[str, Any]) -> list[str]:
    """The dtypes that were measured."""
    found = {each.get("dtype") for runtime in record["runtimes"].values() for each in runtime["formats"].values()}
    return [dtype for dtype in DTYPES if dtype in found]


def rivals(record: dict[str, Any], dtype: str, runtime: str) -> list[str]:
    """The formats of a runtime that a dtype of rushlight is compared with.

    They are those of the same dtype and, of llama.cpp, others whose logits are at least as near to the reference: they
    are of equal or better quality, and may be faster. A format whose results disagree with the reference is none.
    """
    error = entry(record, OURS, dtype).get("logits_error")
    found = []
    for form, other in record["runtimes"].get(runtime, {}).get("formats", {}).items():
        theirs = other.get("logits_error")
        is_as_good = runtime == LLAMA and error is not None and theirs is not None and theirs <= error
        if other.get("agrees") is not False and (other.get("dtype") == dtype or is_as_good):
            found.append(form)
    return found


def ratio(
    record: dict[str, Any], cell: str, dtype: str, runtime: str, form: str, *, wide_only: bool = False
) -> Ratio | None:
    """The ratio to one format, over the rounds that both were measured in; None if there are none.

    Args:
        record, cell, dtype, runtime, form: what to compare.
        wide_only: only rounds in the wide regime, with WIDE_GB_S and more.
    """
    if entry(record, OURS, dtype).get("agrees") is False or not _same_group(record, dtype, runtime, form):
        return None
    ours, theirs = samples(record, OURS, dtype, cell), samples(record, runtime, form, cell)
    common = [i for i in ours if i in theirs and not (wide_only and ours[i].get("read_gb_s", 0.0) < WIDE_GB_S)]
    if not common:
        return None
    return Ratio(statistics.median(ours[i]["tok_s"] / theirs[i]["tok_s"] for i in common), runtime, form)


WIDE_GB_S = 50.0
"""The bandwidth from which goals of decoding are ratios, not shares of it."""


def least_ratio(
    record: dict[str, Any], cell: str, dtype: str, runtimes: list[str], *, wide_only: bool = False
) -> Ratio | None:
    """The ratio to the fastest format of equal quality among the runtimes; None if none was measured."""
    found = [
        each
        for runtime in runtimes
        for form in rivals(record, dtype, runtime)
        if (each := ratio(record, cell, dtype, runtime, form, wide_only=wide_only))
    ]
    return min(found, default=None)


def others(record: dict[str, Any]) -> list[str]:
    """All runtimes but rushlight."""
    return [name for name in record["runtimes"] if name != OURS]


def _same_group(record: dict[str, Any], dtype: str, runtime: str, form: str) -> bool:
    """Whether both were measured in the same rounds."""
    theirs = entry(record, runtime, form).get("dtype")
    return any({dtype, theirs} <= set(group.split(",")) for group in record["rounds"])


def reading_share(record: dict[str, Any], dtype: str) -> float | None:
    """Decoding's bandwidth of weights over that of plain reading beside it: the median of the rounds' shares."""
    sizes = record["own"].get("sizes", {}).get(dtype)
    found = samples(record, OURS, dtype, "decode")
    shares = (
        [
            each["tok_s"] * sizes["step_bytes"] / 1e9 / each["read_gb_s"]
            for each in found.values()
            if "read_gb_s" in each
        ]
        if sizes
        else []
    )
    return statistics.median(shares) if shares else None


def reader_share(record: dict[str, Any], dtype: str) -> float | None:
    """The bandwidth of only reading the weights of a dtype over plain reading beside it."""
    found = samples(record, OURS, dtype, "decode").values()
    shares = [each["weights_gb_s"] / each["read_gb_s"] for each in found if "weights_gb_s" in each]
    return statistics.median(shares) if shares else None


class Share(NamedTuple):
    """How much of the machine's limit a cell reaches.

    Attributes:
        value: the least time that the machine allows over the time measured: the median of the rounds.
        bound: "bandwidth" or "peak", whichever allows less.
    """

    value: float
    bound: str


def limit_share(record: dict[str, Any], cell: str, dtype: str) -> Share | None:
    """A cell's share of the limit: bytes over the bandwidth, or operations over the peak, in the same round."""
    sizes = record["own"].get("sizes", {}).get(dtype)
    work = record["work"].get(cell) if "work" in record else None
    if not sizes or "weights" not in sizes or not work:
        return None
    n_tokens, n_sequences, position = work["n_tokens"], work["n_sequences"], work["position"]
    is_prefill = work["do"] == "prefill"
    steps = 1 if is_prefill else n_tokens / n_sequences
    heads = n_sequences * steps  # rows whose logits are computed
    pairs = position * (position + 1) / 2 if is_prefill else n_tokens * position
    products = 2 * ((sizes["weights"] - sizes["head_weights"]) * n_tokens + sizes["head_weights"] * heads)
    attention = 2 * sizes["attention"] * pairs
    n_bytes = sizes["step_bytes"] * steps + (0 if is_prefill else sizes["kv_bytes"] * position * n_tokens)
    shares, bounds = [], []
    for each in samples(record, OURS, dtype, cell).values():
        if not {"read_gb_s", "peak_gops"} <= each.keys():
            continue
        limits_s = {
            "bandwidth": n_bytes / 1e9 / each["read_gb_s"],
            "peak": products / 1e9 / each["peak_gops"] + attention / 1e9 / each["peak_f32_gops"],
        }
        bound = max(limits_s, key=lambda name: limits_s[name])
        shares.append(limits_s[bound] * each["tok_s"] / n_tokens)
        bounds.append(bound)
    return Share(statistics.median(shares), statistics.mode(bounds)) if shares else None


def attention_share(record: dict[str, Any], dtype: str) -> float | None:
    """Attention's share of a prefill of 2,048, from the times of 512 and 2,048 in the same rounds.

    A prefill of n takes a·n + b·n², where attention is b·n²: with the time t of 512 and u of 2,048 its share is
    (1 - 4 t / u) · 4 / 3.
    """
    short, long = (samples(record, OURS, dtype, f"prefill {n}") for n in (512, 2048))
    shares = [(1 - 4 * (512 / short[i]["tok_s"]) / (2048 / long[i]["tok_s"])) * 4 / 3 for i in short if i in long]
    return statistics.median(shares) if shares else None


def readings(record: dict[str, Any]) -> list[tuple[float, float]]:
    """All plain readings of a record: with all threads and with one, in GB/s."""
    found = []
    for runtime, each in record["runtimes"].items():
        for form, measured in each["formats"].items():
            for cell in measured.get("cells", {}):
                rows = samples(record, runtime, form, cell).values()
                found += [(row["read_gb_s"], row["read_one_gb_s"]) for row in rows if "read_one_gb_s" in row]
    return found


def round_readings(record: dict[str, Any]) -> dict[tuple[str, int], tuple[float, float, float]]:
    """(dtypes, round) -> medians of reading with all threads and with one, and the share in the wide regime."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for runtime, each in record["runtimes"].items():
        for form, measured in each["formats"].items():
            group = next((key for key in record["rounds"] if measured.get("dtype") in key.split(",")), "")
            for cell in measured.get("cells", {}):
                for i, row in samples(record, runtime, form, cell).items():
                    if "read_one_gb_s" in row:
                        found.setdefault((group, i), []).append((row["read_gb_s"], row["read_one_gb_s"]))
    return {
        key: (
            statistics.median(both for both, _ in rows),
            statistics.median(one for _, one in rows),
            sum(is_wide(*row) for row in rows) / len(rows),
        )
        for key, rows in sorted(found.items())
    }
