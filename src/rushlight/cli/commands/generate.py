"""`rushlight generate`: continue a prompt."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.loading import load_model, load_options, note_embedded_model
from rushlight.cli.options import INPUT, OUTPUT, SAMPLING, Debug, ModelFlag, Source, Stop, model_and_prompt, quoted
from rushlight.cli.prompt_progress import with_prompt_progress
from rushlight.cli.sampling_options import sampling_options
from rushlight.cli.terminal import note, out_json, out_text, status, stderr_is_terminal, write_err
from rushlight.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rushlight.generation import SamplingParams, SamplingSettings
    from rushlight.runtime.model import Model
    from rushlight.runtime.result import Beam, Generation, Stats

EXAMPLES = """
\b
Examples:
  rushlight generate -p "Once upon a time"
  rushlight generate tales "Once upon a time"
  rushlight generate openai-community/gpt2 "My name is" -n 40 --stats
  rushlight generate ./folder -p "Dear" --temp 0.8 --top-p 0.9 --seed 7
  rushlight generate gpt2 -p "1, 2, 3," --stop $'\\n' --no-echo
  rushlight generate ./folder --port my_model.py -p "Dear"
  cat chapter.txt | rushlight generate gpt2 --json
"""


@load_options()
@sampling_options()
def generate(
    source: Source = None,
    argument: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", rich_help_panel=INPUT, help="The same as --prompt. With -m, it is the only argument."
        ),
    ] = None,
    model: ModelFlag = None,
    *,
    load_with: dict[str, Any],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            rich_help_panel=INPUT,
            help="The prompt. Default: stdin, without the newline at its end.",
        ),
    ] = None,
    settings: SamplingSettings,
    stop: Stop = None,
    beams: Annotated[
        int | None,
        typer.Option(
            "--beams",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Find the most likely output by beam search with N beams instead of sampling.",
        ),
    ] = None,
    echo: Annotated[
        bool, typer.Option("--echo/--no-echo", rich_help_panel=OUTPUT, help="Print the prompt too (the default).")
    ] = True,
    stats: Annotated[
        bool, typer.Option("--stats", rich_help_panel=OUTPUT, help="Print token counts, times and rates on stderr.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT,
            help="Print one JSON object on stdout instead, with log-probabilities if requested.",
        ),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Continue a prompt and stream the output."""
    from rushlight.generation.sampling.params import SamplingParams

    name, prompt = model_and_prompt(source, argument, model, prompt)
    # Validated before loading, which may download the model.
    params = SamplingParams(**settings)
    if stop:
        from rushlight.text.stop import StopStrings

        StopStrings(stop)
    if not as_json and (params.logprobs is not None or params.prompt_logprobs is not None):
        raise typer.BadParameter(
            "log-probabilities are only part of the JSON output: add --json", param_hint="--logprobs"
        )
    _check_beams(beams, params, {"--stats": stats, "--draft": load_with["draft"] is not None})
    prompt = _read_stdin(name) if prompt is None else prompt

    began = perf_counter()
    loaded = load_model(name, load_with)
    ready = perf_counter()
    if beams is not None:
        _beam_search(loaded, prompt, beams, params, stop or (), echo=echo, as_json=as_json, name=name)
        return
    times = {"load_s": ready - began}

    def timed(pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            times.setdefault("first_text_s", perf_counter() - ready)
            yield piece

    if params.n > 1:
        with status(f"generating {params.n} outputs"):
            generated = loaded.generate(prompt, stop=stop or (), **settings)
        outputs = generated if isinstance(generated, list) else [generated]
        _note_request(name, params)
    else:
        stream = loaded.stream(prompt, stop=stop or (), **settings)
        outputs = stream.results
        _note_request(name, params)
        pieces = timed(with_prompt_progress(stream, stream))
        if as_json:
            for _ in pieces:
                pass
        else:
            print_text(prompt if echo else "", pieces)
    if as_json:
        from rushlight.runtime.result import generations_to_json

        record = generations_to_json(outputs, loaded.tokenizer)
        result = outputs[0]
        rates = {"prefill_tok_s": result.stats.prefill_tok_s, "decode_tok_s": result.stats.decode_tok_s}
        record = {"model": loaded.name, "prompt": prompt, **record, "stats": asdict(result.stats) | rates | times}
        out_json(record)
    elif params.n > 1:
        for output in outputs:
            print_text(prompt if echo else "", [output.text])
    _note_ends(outputs, loaded.context_length, params, as_json=as_json)
    if stats:
        write_err(_table([output.stats for output in outputs], times))


def _note_request(name: str | None, params: SamplingParams) -> None:
    """Notes about a valid request, before its output."""
    note_embedded_model(name, "rushlight generate smollm2 -p ...")
    if params.n > 1 and not params.temperature:
        note("at temperature 0 all outputs are the same: use --temp 0.8 to sample")


def _note_ends(
    outputs: Iterable[Generation | Beam], context_length: int, params: SamplingParams, *, as_json: bool
) -> None:
    """Notes why an output was cut: on a terminal, and always if it may then violate the schema or the pattern."""
    reasons = {output.finish_reason for output in outputs}
    constraint = "JSON schema" if params.json_schema is not None else "pattern" if params.regex is not None else None
    violated = f": the output may not match the {constraint}" if constraint else ""
    if "context" in reasons and (constraint or not as_json):
        note(f"the model's context of {context_length:,} tokens is full{violated}")
    if "length" in reasons and (constraint or (stderr_is_terminal() and params.max_tokens and not as_json)):
        note(f"stopped after {params.max_tokens:,} tokens (--max-tokens){violated}")


def print_text(prompt: str, pieces: Iterable[str]) -> None:
    """Streams the prompt and the pieces, then a newline, even after an error.

    The prompt is written with the first piece: until then the row shows the status.
    """
    try:
        for piece in pieces:
            out_text(prompt + piece)
            prompt = ""
    finally:
        out_text(f"{prompt}\n")


def _check_beams(beams: int | None, params: SamplingParams, flags: dict[str, bool]) -> None:
    """Raises typer.BadParameter for flags and settings that a beam search does not take."""
    if beams is None:
        return
    from rushlight.generation import BeamSearch
    from rushlight.generation.sampling.params import SETTINGS, SamplingParams

    defaults = SamplingParams()
    flags |= {
        each.flag: getattr(params, name) != getattr(defaults, name)
        for name, each in SETTINGS.items()
        if each.flags and not each.in_beam_search
    }
    refused = [flag for flag, is_given in flags.items() if is_given]
    if refused:
        raise typer.BadParameter(
            f"beam search finds the most likely output and does not support {', '.join(refused)}", param_hint="--beams"
        )
    BeamSearch(n_beams=beams, params=params)


def _beam_search(
    model: Model,
    prompt: str,
    beams: int,
    params: SamplingParams,
    stop: Sequence[str],
    *,
    echo: bool,
    as_json: bool,
    name: str | None,
) -> None:
    """Print the best output of a beam search."""
    from rushlight.generation.sampling.params import SETTINGS

    settings = {name: getattr(params, name) for name, each in SETTINGS.items() if each.in_beam_search}
    with status("searching"):
        [best] = model.beam_search(prompt, n_beams=beams, stop=stop, **settings)
    _note_request(name, params)
    if as_json:
        record = {
            "model": model.name,
            "prompt": prompt,
            "text": best.text,
            "ids": best.ids,
            "finish_reason": best.finish_reason,
            "beams": beams,
            "logprob": best.logprob,
            "score": best.score,
        }
        out_json(record)
    else:
        print_text(prompt if echo else "", [best.text])
    _note_ends([best], model.context_length, params, as_json=as_json)


def _read_stdin(source: str | None) -> str:
    """The prompt from stdin, without the newline that `echo` and editors add at the end.

    Args:
        source: the argument SOURCE, which may have been meant as the prompt.
    """
    from rushlight.text.tokenizer import MAX_PROMPT_BYTES

    if sys.stdin is None or sys.stdin.isatty():
        meant = "" if source is None else f"; {quoted(source)} was read as SOURCE: write the prompt after it"
        raise typer.BadParameter(f"no prompt given, and stdin is a terminal{meant}", param_hint="--prompt")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise RequestError(
            "the prompt is too long", file="standard input", expected=f"at most {MAX_PROMPT_BYTES:,} bytes"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        found = f"0x{data[error.start]:02x}"
        raise RequestError("the prompt is not UTF-8", file="standard input", offset=error.start, found=found) from None
    return re.sub(r"\r?\n\Z", "", text)


def _table(outputs: Sequence[Stats], times: Mapping[str, float]) -> str:
    first = outputs[0]
    n_generated = sum(output.generated_tokens for output in outputs)
    decode_s = max(output.decode_s for output in outputs)  # they are decoded in one batch
    decode_tok_s = (n_generated - len(outputs)) / decode_s if decode_s else 0.0
    rows = [
        ("prompt", f"{first.prompt_tokens:,} tokens", f"{first.prefill_tok_s:,.1f} tok/s"),
        ("generated", f"{n_generated:,} tokens", f"{decode_tok_s:,.1f} tok/s"),
        ("load", f"{times['load_s']:.2f} s", ""),
    ]
    if len(outputs) == 1:  # several are only printed when all are finished
        rows.append(("first text", f"{times['first_text_s']:.2f} s" if "first_text_s" in times else "none", ""))
    return "\n".join(f"{name:<10}  {amount:>14}  {rate:>15}".rstrip() for name, amount, rate in rows)
