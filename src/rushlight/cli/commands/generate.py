"""`rushlight generate`: continue a prompt."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, fields
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import (
    OUTPUT,
    SAMPLING,
    TEXT,
    Debug,
    Device,
    Draft,
    Dtype,
    Exact,
    FrequencyPenalty,
    IgnoreEos,
    LogitBias,
    MaxTokens,
    MinP,
    ModelFlag,
    Offline,
    Port,
    PresencePenalty,
    RepetitionPenalty,
    Revision,
    Seed,
    Source,
    Speculate,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    model_and_prompt,
    parse_biases,
    quoted,
)
from rushlight.cli.prompt_progress import with_prompt_progress
from rushlight.cli.terminal import is_watched, out_json, out_text, say, say_wrapped, status
from rushlight.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rushlight.generation import CompletionSettings, SamplingParams
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


def generate(
    source: Source = None,
    words: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", rich_help_panel=TEXT, help="The same as --prompt. Beside -m, the only argument."
        ),
    ] = None,
    model: ModelFlag = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    exact: Exact = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            rich_help_panel=TEXT,
            help="What to continue. Without it: stdin, less the newline at its end.",
        ),
    ] = None,
    max_tokens: MaxTokens = 100,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema",
            metavar="FILE",
            rich_help_panel=TEXT,
            help="Write JSON that this schema accepts; needs rushlight[constrain].",
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex",
            metavar="PATTERN",
            rich_help_panel=TEXT,
            help="Write a text that this pattern matches as a whole; needs rushlight[constrain].",
        ),
    ] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    seed: Seed = None,
    samples: Annotated[
        int,
        typer.Option("--samples", metavar="N", rich_help_panel=SAMPLING, help="Write N texts, each with its own seed."),
    ] = 1,
    beams: Annotated[
        int | None,
        typer.Option(
            "--beams",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Search for the likeliest text with N beams; nothing is drawn.",
        ),
    ] = None,
    echo: Annotated[
        bool,
        typer.Option("--echo/--no-echo", rich_help_panel=OUTPUT, help="Print the prompt too, which is the default."),
    ] = True,
    speculate: Speculate = None,
    draft: Draft = None,
    stats: Annotated[
        bool, typer.Option("--stats", rich_help_panel=OUTPUT, help="Print counts, times and rates on stderr.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object on stdout in place of the text."),
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="K",
            rich_help_panel=OUTPUT,
            help="With --json: how likely each token was, and the K likeliest in its place.",
        ),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        typer.Option(
            "--prompt-logprobs", metavar="K", rich_help_panel=OUTPUT, help="With --json: the same of the prompt."
        ),
    ] = None,
    _debug: Debug = False,
) -> None:
    """Continue a prompt and print the text as it comes."""
    import rushlight
    from rushlight.generation.sampling.params import SamplingParams
    from rushlight.runtime.result import generations_to_json
    from rushlight.text.stop import StopStrings

    name, prompt = model_and_prompt(source, words, model, prompt)
    settings: CompletionSettings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": parse_biases(logit_bias),
        "seed": seed,
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "speculate": speculate,
        "json_schema": None if json_schema is None else _read_schema(json_schema),
        "regex": regex,
    }
    if not as_json and (logprobs is not None or prompt_logprobs is not None):
        raise typer.BadParameter("the plain text has no place for them: add --json", param_hint="--logprobs")
    # The model checks these too, but by then it may have been downloaded for nothing.
    params = SamplingParams(n=samples, **settings)
    StopStrings(stop or ())
    _check_beams(beams, params, {"--stats": stats, "--draft": draft is not None})
    prompt = _read_stdin(name) if prompt is None else prompt

    began = perf_counter()
    with status(f"loading {name or 'the embedded model'}"):
        loaded = rushlight.load(
            name,
            device=device,
            dtype=dtype,
            threads=threads,
            exact=exact,
            offline=offline,
            revision=revision,
            port=port,
            draft=draft,
        )
    ready = perf_counter()
    if beams is not None:
        _search(loaded, prompt, beams, params, stop or (), echo=echo, as_json=as_json, is_named=name is not None)
        return
    times = {"load_s": ready - began}

    def timed(pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            times.setdefault("first_text_s", perf_counter() - ready)
            yield piece

    if samples > 1:
        with status(f"generating {samples} texts"):
            texts = loaded.generate(prompt, stop=stop or (), n=samples, **settings)
        _say_of_request(name is not None, params)
    else:
        stream = loaded.stream(prompt, stop=stop or (), **settings)
        texts = stream.results
        _say_of_request(name is not None, params)
        pieces = timed(with_prompt_progress(stream))
        if as_json:
            for _ in pieces:
                pass
        else:
            print_text(prompt if echo else "", pieces)
    if as_json:
        record = generations_to_json(texts, loaded.tokenizer)
        result = texts[0]
        rates = {"prefill_tok_s": result.stats.prefill_tok_s, "decode_tok_s": result.stats.decode_tok_s}
        record = {"model": loaded.name, "prompt": prompt, **record, "stats": asdict(result.stats) | rates | times}
        out_json(record)
    elif samples > 1:
        for text in texts:
            print_text(prompt if echo else "", [text.text])
    _say_of_ends(texts, loaded.context_length, params, as_json=as_json)
    if stats:
        say(_table([text.stats for text in texts], times))


def _say_of_request(is_named: bool, params: SamplingParams) -> None:
    """Said once nothing is wrong with the request, and before its text."""
    if not is_named:
        say_wrapped("note: no model named: this is the embedded one, of tales; or try: rushlight generate gpt2 -p ...")
    if params.n > 1 and not params.temperature:
        say_wrapped("note: at temperature 0 all texts are the same: --temp 0.8 draws them")


def _say_of_ends(
    texts: Iterable[Generation | Beam], context_length: int, params: SamplingParams, *, as_json: bool
) -> None:
    """Say what cut a text: where its form is then broken, or a person reads it; the JSON record says it to programs."""
    reasons = {text.finish_reason for text in texts}
    has_form = params.json_schema is not None or params.regex is not None
    broken = ": the text may not have the form that was asked for" if has_form else ""
    if "context" in reasons and (has_form or not as_json):
        say_wrapped(f"note: the model's context of {context_length:,} tokens is full{broken}")
    if "length" in reasons and (has_form or (is_watched() and params.max_tokens and not as_json)):
        say_wrapped(f"note: cut after {params.max_tokens:,} tokens (--max-tokens){broken}")


def print_text(prompt: str, pieces: Iterable[str]) -> None:
    """The prompt and the pieces as they come, then the end of the line, whatever ends them.

    The prompt comes with the first piece: until then the row is that of the status.
    """
    try:
        for piece in pieces:
            out_text(prompt + piece)
            prompt = ""
    finally:
        out_text(f"{prompt}\n")


_BEAM_SETTINGS = (
    "max_tokens",
    "ignore_eos",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)
"""The fields of SamplingParams that a beam search takes."""


def _check_beams(beams: int | None, params: SamplingParams, flags: dict[str, object]) -> None:
    """Refuse what a beam search would leave out: these flags, and settings that it does not take."""
    from rushlight.generation import BeamSearch, SamplingParams

    if beams is None:
        return
    greedy = SamplingParams(**{name: getattr(params, name) for name in _BEAM_SETTINGS})
    flags |= {
        "--samples" if field.name == "n" else f"--{field.name.replace('_', '-')}": getattr(params, field.name)
        != getattr(greedy, field.name)
        for field in fields(params)
    }
    given = [flag for flag, is_given in flags.items() if is_given]
    if given:
        raise typer.BadParameter(
            f"beam search looks for the likeliest text and has no {', '.join(given)}", param_hint="--beams"
        )
    BeamSearch(n_beams=beams, params=params)


def _search(
    model: Model,
    prompt: str,
    beams: int,
    params: SamplingParams,
    stop: Sequence[str],
    *,
    echo: bool,
    as_json: bool,
    is_named: bool,
) -> None:
    """Print the best text of a beam search."""
    settings = {name: getattr(params, name) for name in _BEAM_SETTINGS}
    with status("searching"):
        [best] = model.beam_search(prompt, n_beams=beams, stop=stop, **settings)
    _say_of_request(is_named, params)
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
    _say_of_ends([best], model.context_length, params, as_json=as_json)


def _read_schema(file: str) -> str:
    from rushlight.files.text_file import read_text
    from rushlight.generation.sampling.params import MAX_GRAMMAR_CHARS

    # The limit counts characters; one has at most 4 bytes.
    return read_text(file, max_bytes=4 * MAX_GRAMMAR_CHARS, error=RequestError, allow_pipe=True)


def _read_stdin(source: str | None) -> str:
    """The prompt that is piped in, exactly, but for the one newline that `echo` and editors put at the end.

    Args:
        source: what was given as SOURCE, which may have been meant as the prompt.
    """
    from rushlight.text.tokenizer import MAX_PROMPT_BYTES

    if sys.stdin is None or sys.stdin.isatty():
        meant = "" if source is None else f"; {quoted(source)} is SOURCE, the prompt comes after it"
        raise typer.BadParameter(f"none was given, and none is piped in{meant}", param_hint="--prompt")
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


def _table(texts: Sequence[Stats], times: Mapping[str, float]) -> str:
    first = texts[0]
    n_generated = sum(text.generated_tokens for text in texts)
    decode_s = max(text.decode_s for text in texts)  # they were generated together
    decode_tok_s = (n_generated - len(texts)) / decode_s if decode_s else 0.0
    rows = [
        ("prompt", f"{first.prompt_tokens:,} tokens", f"{first.prefill_tok_s:,.1f} tok/s"),
        ("generated", f"{n_generated:,} tokens", f"{decode_tok_s:,.1f} tok/s"),
        ("load", f"{times['load_s']:.2f} s", ""),
        ("first text", f"{times['first_text_s']:.2f} s" if "first_text_s" in times else "none", ""),
    ]
    if len(texts) > 1:
        del rows[-1]  # they are printed when all are there
    return "\n".join(f"{what:<10}  {amount:>14}  {rate:>15}".rstrip() for what, amount, rate in rows)
