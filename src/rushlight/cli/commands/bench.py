"""`rushlight bench`: benchmark a model on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.loading import load_options
from rushlight.cli.options import MODEL, OUTPUT, Debug, ModelFlag, Source, one_of
from rushlight.cli.terminal import out, out_json, show, status, write_err
from rushlight.errors import printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rushlight.bench import Measurement, Repeats

WORKLOAD = "Workload"

EXAMPLES = """
\b
Examples:
  rushlight bench
  rushlight bench openai-community/gpt2 --dtype f32,bf16,int8
  rushlight bench ./folder --batch 1,4,16 --tokens 64 --repeats 9
  rushlight bench ./folder --json | jq '.measurements[0].decode'
"""


@load_options(without=("dtype", "draft", "context", "add_bos"))
def bench(
    source: Source = None,
    model: ModelFlag = None,
    *,
    load_with: dict[str, Any],
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAMES",
            rich_help_panel=MODEL,
            help="Dtypes to measure, such as f32 or f32,bf16; all: every dtype the device supports.",
        ),
    ] = "auto",
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            metavar="N",
            rich_help_panel=WORKLOAD,
            help="Length of the prefill. Default: 512, or the context length if that is less.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", rich_help_panel=WORKLOAD, help="Decode N tokens per sequence.")
    ] = 32,
    batch: Annotated[
        str,
        typer.Option("--batch", metavar="SIZES", rich_help_panel=WORKLOAD, help="Batch sizes of the decode."),
    ] = "1,16",
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", rich_help_panel=WORKLOAD, help="Repeat each measurement N times.")
    ] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every repeat.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Measure prefill, decode, memory bandwidth, time to first token and memory.

    Prints medians with their range. Compare only figures of the same run.
    """
    from rushlight.bench import BenchConfig, dtypes_of, machine, measure

    config = BenchConfig(
        source=one_of(source, model),
        **load_with,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        batch_sizes=_sizes(batch),
        repeats=repeats,
    )
    dtypes = dtypes_of(load_with["device"]) if dtype == "all" else dtype.split(",")
    measurements = [measure(config, name, status) for name in dtypes]
    host = machine()
    if as_json:
        record = host | {"config": asdict(config), "measurements": [each.to_json() for each in measurements]}
        out_json(record)
        return
    first = measurements[0]
    where = f"{first.device}: {host['cores']} cores, {host['cpu']}"
    out(f"{printable_name(first.model)}: {first.n_parameters:,} parameters, {where}\n\n")
    show(rates(measurements))
    out("\n")
    show(costs(measurements))
    for each in measurements:
        if each.disturbed:
            write_err(f"note: the {each.dtype} figures are unreliable: {'; '.join(each.disturbed)}")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of batch sizes such as 1,16", param_hint="--batch") from None


def rates(measurements: Sequence[Measurement]) -> RenderableType:
    """The table of prefill and decode rates, with the bandwidth of the weights and its share of the maximum."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("dtype")
    table.add_column("step")
    for head in ("tok/s", "min – max", "bandwidth", "of maximum"):
        table.add_column(head, justify="right")
    for measurement in measurements:
        dtype = Text(measurement.dtype, "bold")
        rate = measurement.prefill_tok_s
        table.add_row(dtype, f"prefill, {measurement.prefill_tokens} tokens", _bold(rate), _spread(rate), "", "")
        for decode in measurement.decode:
            step = "decode" if decode.batch_size == 1 else f"decode, batch size {decode.batch_size}"
            read = decode.read_gb_s.median
            ratio = decode.bandwidth_share
            share = Text("unknown", "dim") if ratio is None else Text.assemble((_bar(ratio), "cyan"), f" {ratio:4.0%}")
            table.add_row("", step, _bold(decode.tok_s), _spread(decode.tok_s), f"{read:.1f} GB/s", share)
    return table


def costs(measurements: Sequence[Measurement]) -> RenderableType:
    """The table of weight bytes, maximum bandwidth, time to first token and peak memory."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("dtype")
    for head in ("weights per step", "max bandwidth", "read by", "first token", "peak memory"):
        table.add_column(head, justify="right")
    for each in measurements:
        table.add_row(
            Text(each.dtype, "bold"),
            f"{each.step_bytes / 1e6:.1f} MB",
            f"{each.bandwidth_gb_s.median:.1f} GB/s",
            each.reader,
            f"{each.first_token_s.median:.3f} s" if each.first_token_s else "no tokenizer",
            f"{each.peak_bytes / 1e6:.0f} MB" if each.peak_bytes else "",
        )
    return table


def _bold(repeats: Repeats) -> RenderableType:
    from rich.text import Text

    return Text(_rounded(repeats.median), "bold green")


def _spread(repeats: Repeats) -> str:
    return f"{_rounded(repeats.min)} – {_rounded(repeats.max)}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _bar(share: float, width: int = 10) -> str:
    """A bar of eighths: "███▌      " for 0.35."""
    eighths = round(share * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")).ljust(width)
