"""`rushlight chat`: a conversation on a terminal, or line by line in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.chat.lines import answer_lines
from rushlight.cli.chat.repl import Repl
from rushlight.cli.exit_codes import BAD_INPUT
from rushlight.cli.interrupt import interrupts_as_exceptions
from rushlight.cli.loading import load_model, load_options, note_embedded_model
from rushlight.cli.log import without_notes_of_author
from rushlight.cli.options import INPUT, OUTPUT, Debug, ModelFlag, Source, Stop, model_and_prompt
from rushlight.cli.sampling_options import sampling_options, scalar_settings
from rushlight.cli.terminal import note
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from rushlight.generation.sampling.params import SamplingSettings

EXAMPLES = """
\b
Examples:
  rushlight chat
  rushlight chat tales "Who lived in the wood?"
  rushlight chat ./folder --system-prompt "Answer in one sentence."
  rushlight chat smollm2
  rushlight chat ./folder --chat-template template.jinja --temp 0.9 --seed 7
  echo "Who are you?" | rushlight chat microsoft/DialoGPT-small
  rushlight chat smollm2 --json < turns.jsonl
  rushlight chat qwen3 --chat-template-kwargs '{"enable_thinking": false}'
"""

WITHOUT = ("n", "logprobs", "prompt_logprobs", "json_schema", "regex")
"""Sampling settings that apply only to single requests."""

DEFAULTS = {
    "temperature": 0.7,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Settings that the author of a model may have chosen, and their defaults if not."""


@load_options(without=("add_bos",))
@sampling_options(without=WITHOUT, of_author=DEFAULTS, max_tokens=256)
def chat(
    source: Source = None,
    argument: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE", rich_help_panel=INPUT, help="The same as --prompt. With -m, it is the only argument."
        ),
    ] = None,
    model: ModelFlag = None,
    *,
    load_with: dict[str, Any],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", rich_help_panel=INPUT, help="The first message of the conversation."
        ),
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(
            "--system-prompt", metavar="TEXT", rich_help_panel=INPUT, help="The system prompt of the conversation."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE",
            rich_help_panel=INPUT,
            help="A Jinja chat template: a file, its text, or a name. Default: the template of the model.",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs",
            metavar="JSON",
            rich_help_panel=INPUT,
            help='Variables for the chat template, as a JSON object, such as {"enable_thinking": false}.',
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option("--load", metavar="FILE", rich_help_panel=INPUT, help="Continue a saved conversation."),
    ] = None,
    settings: SamplingSettings,
    stop: Stop = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            rich_help_panel=INPUT,
            help="Save typed messages in the history file (the default).",
        ),
    ] = True,
    stats: Annotated[
        bool,
        typer.Option("--stats", rich_help_panel=OUTPUT, help="Print token counts and rates of each answer on stderr."),
    ] = False,
    hide_thinking: Annotated[
        bool,
        typer.Option(
            "--hide-thinking",
            rich_help_panel=OUTPUT,
            help="Do not show the reasoning of answers. At a terminal it is dimmed; in a pipe it is never printed.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Read a message and write an answer as one JSON object per line."
        ),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Chat with a model; answers are streamed.

    Samples as the author's generation_config.json says, and otherwise with temperature 0.7.
    """
    import rushlight
    from rushlight.generation.sampling.params import SamplingParams, without_none
    from rushlight.text.stop import StopStrings

    name, prompt = model_and_prompt(source, argument, model, prompt)
    # Validated before loading, which may download the model.
    SamplingParams(**settings)
    StopStrings(stop or ())
    variables = None if chat_template_kwargs is None else _variables(chat_template_kwargs)
    with without_notes_of_author():
        loaded = load_model(name, load_with)
    given = without_none(settings)
    if text := loaded.author.describe_chat(given):
        note(printable_line(text))
    settings = {"temperature": DEFAULTS["temperature"], **loaded.author.sampling, **given}
    with rushlight.Chat(
        loaded,
        system_prompt=system_prompt,
        template=chat_template,
        variables=variables,
        stop=stop or (),
        **settings,
    ) as conversation:
        if load is not None:
            conversation.load(load)
            if system_prompt is not None:
                conversation.system_prompt = system_prompt
        note_embedded_model(name, "rushlight chat smollm2")
        if as_json or not _at_terminal():
            if not answer_lines(conversation, prompt, as_json=as_json, stats=stats):
                raise typer.Exit(BAD_INPUT)
        else:
            with interrupts_as_exceptions():
                repl = Repl(
                    conversation,
                    scalar_settings(WITHOUT),
                    history=history,
                    stats=stats,
                    shows_reasoning=not hide_thinking,
                )
                repl.run(prompt)


def _variables(text: str) -> dict[str, Any]:
    """The variables of --chat-template-kwargs.

    Raises:
        RequestError: not a JSON object.
    """
    from rushlight.errors import RequestError
    from rushlight.files.strict_json import parse_json_object

    return parse_json_object(
        text.encode(), file="--chat-template-kwargs", error=RequestError, remedy='write {"enable_thinking": false}'
    )


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
