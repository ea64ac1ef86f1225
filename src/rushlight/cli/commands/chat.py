"""`rushlight chat`: a conversation, at a terminal or line by line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.chat.lines import answer_lines
from rushlight.cli.chat.terminal import Terminal
from rushlight.cli.interrupt import interrupts_as_exceptions
from rushlight.cli.options import (
    OUTPUT,
    TEXT,
    Debug,
    Device,
    Draft,
    Dtype,
    Exact,
    FrequencyPenalty,
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
)
from rushlight.cli.terminal import say_wrapped, status

if TYPE_CHECKING:
    from rushlight.generation.sampling.params import SamplingSettings

EXAMPLES = """
\b
Examples:
  rushlight chat
  rushlight chat tales "Who lived in the wood?"
  rushlight chat ./folder --system-prompt "Answer in one sentence."
  rushlight chat gpt2 --chat-template template.jinja --temp 0.9 --seed 7
  echo "Who are you?" | rushlight chat microsoft/DialoGPT-small
  rushlight chat gpt2 --json < turns.jsonl
"""
FAILED = 2


def chat(
    source: Source = None,
    words: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE", rich_help_panel=TEXT, help="The same as --prompt. Beside -m, the only argument."
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
    speculate: Speculate = None,
    draft: Draft = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", rich_help_panel=TEXT, help="The first message; the conversation goes on."
        ),
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(
            "--system-prompt", metavar="TEXT", rich_help_panel=TEXT, help="What stands before the conversation."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE",
            rich_help_panel=TEXT,
            help="A Jinja template's file, text or name. Without it: the model's own.",
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option("--load", metavar="FILE", rich_help_panel=TEXT, help="Go on with a conversation that was saved."),
    ] = None,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    seed: Seed = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            rich_help_panel=TEXT,
            help="Keep what is typed for the next time, which is the default.",
        ),
    ] = True,
    stats: Annotated[
        bool, typer.Option("--stats", rich_help_panel=OUTPUT, help="Print counts and rates of each answer on stderr.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Read and write a JSON object a line, a turn each."),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Hold a conversation; its answers are printed as they come."""
    import rushlight
    from rushlight.generation.sampling.params import SamplingParams
    from rushlight.text.stop import StopStrings

    name, prompt = model_and_prompt(source, words, model, prompt)
    settings: SamplingSettings = {
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
        "speculate": speculate,
    }
    # The model checks these too, but by then it may have been downloaded for nothing.
    SamplingParams(**settings)
    StopStrings(stop or ())
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
    with rushlight.Chat(
        loaded, system_prompt=system_prompt, template=chat_template, stop=stop or (), **settings
    ) as conversation:
        if load is not None:
            conversation.load(load)
            if system_prompt is not None:
                conversation.system_prompt = system_prompt
        if name is None:
            say_wrapped("note: no model named: this is the embedded one, of tales; or try: rushlight chat gpt2")
        if as_json or not _at_terminal():
            if not answer_lines(conversation, prompt, as_json=as_json, stats=stats):
                raise typer.Exit(FAILED)
        else:
            with interrupts_as_exceptions():
                Terminal(conversation, history=history, stats=stats).run(prompt)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
