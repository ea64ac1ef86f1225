"""The flags that several commands share, each written once, and how `--help` lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rushlight.cli.word_wrap import shortened
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL, TEXT, SAMPLING, OUTPUT = "Model", "Text", "Sampling", "Output"

_MAX_SHOWN = 60
"""Columns of an argument that an error shows."""


def _devices(incomplete: str) -> list[str]:
    from rushlight.backends import DEVICES

    return [word for word in ("auto", *DEVICES) if word.startswith(incomplete)]


def _dtypes(incomplete: str) -> list[str]:
    from rushlight.backends import DTYPES

    return [word for word in DTYPES if word.startswith(incomplete)]


def complete_source(incomplete: str) -> list[str]:
    """`tales` and the matching paths if `tales` matches; otherwise nothing, and the shell completes paths."""
    from rushlight import demo

    if not demo.NAME.startswith(incomplete):
        return []
    paths = Path().glob(f"{incomplete}*")
    shown = sorted(f"{path}/" if path.is_dir() else str(path) for path in paths if not path.name.startswith("."))
    return [demo.NAME, *shown]


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        rich_help_panel=MODEL,
        help="A .safetensors file, a folder, tales, or a hub id. Without it: tales, the embedded model.",
    ),
]
HeaderSource = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        show_default=False,
        rich_help_panel=MODEL,
        help="A .safetensors file, a folder, an index of shards, tales (the embedded model), a hub id such as"
        " openai-community/gpt2, or a URL.",
    ),
]
"""For commands that read headers alone, which URLs have too."""
Device = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        metavar="NAME",
        autocompletion=_devices,
        rich_help_panel=MODEL,
        help="auto, cpu, metal, cuda or reference; auto is the fastest there is.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        autocompletion=_dtypes,
        rich_help_panel=MODEL,
        help="f32, f16, bf16, int8 or int4 weights; auto is the checkpoint's own.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        metavar="N",
        rich_help_panel=MODEL,
        help="Compute with N threads, one a core at most. Without it: RUSHLIGHT_NUM_THREADS, or as many as pay.",
    ),
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact",
        rich_help_panel=MODEL,
        help="Compute the same bits on every processor in every dtype. Slower for bf16 weights where the processor"
        " multiplies bf16; the other dtypes are always so. Without it: RUSHLIGHT_EXACT.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", rich_help_panel=MODEL, help="Ask nothing of the network: use what was downloaded.")
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", rich_help_panel=MODEL, help="Branch, tag or commit of a hub model."),
]
Port = Annotated[
    str | None,
    typer.Option(
        "--port",
        metavar="FILE",
        rich_help_panel=MODEL,
        help="Run your own Python file with the model, as `rushlight port` writes it.",
    ),
]
ModelFlag = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SOURCE",
        autocompletion=complete_source,
        rich_help_panel=MODEL,
        help="The same as SOURCE.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-n", metavar="N", rich_help_panel=TEXT, help="Generate at most N tokens.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=TEXT, help="Stop before this text. Repeatable."),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", rich_help_panel=TEXT, help="Go on through the end-of-text token.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "--temp",
        metavar="T",
        rich_help_panel=SAMPLING,
        help="Divide the logits by T; 0 always takes the likeliest token.",
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", rich_help_panel=SAMPLING, help="Draw from the K likeliest; 0 is all.")
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", rich_help_panel=SAMPLING, help="Draw from the fewest that make up a probability of P."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", metavar="P", rich_help_panel=SAMPLING, help="Draw from those P times as likely as the likeliest."
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        rich_help_panel=SAMPLING,
        help="Weaken tokens of prompt and text by the factor X.",
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(
        "--presence-penalty", metavar="X", rich_help_panel=SAMPLING, help="Take X off the tokens of the text so far."
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        "--frequency-penalty", metavar="X", rich_help_panel=SAMPLING, help="Take X off them for each time they occur."
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=X", rich_help_panel=SAMPLING, help="Add X to a token. Repeatable."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", rich_help_panel=SAMPLING, help="Draw the same text each time.")
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        rich_help_panel=MODEL,
        help="Guess tokens and check several in one step; the text stays the same. Without either: where it pays.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="SOURCE",
        rich_help_panel=MODEL,
        help="A smaller model with the same vocabulary, to guess the tokens with.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""Declared for the parser and for `--help`; `rushlight.cli.error_report` reads it."""


def one_of(source: str | None, model: str | None) -> str | None:
    """The model that is named as SOURCE, by --model, or by neither."""
    if source is not None and model is not None and source != model:
        raise typer.BadParameter(f"{model!r} and SOURCE {source!r} are two models", param_hint="--model")
    return model if source is None else source


def need_source(source: str | None, model: str | None) -> str:
    """As `one_of`, for a command that does not take the embedded model for none.

    Raises:
        typer.BadParameter: no model is named.
    """
    name = one_of(source, model)
    if name is None:
        raise typer.BadParameter(
            "none was given, and this command needs one; tales is the embedded model", param_hint="SOURCE"
        )
    return name


def model_and_prompt(
    source: str | None, argument: str | None, model: str | None, flag: str | None
) -> tuple[str | None, str | None]:
    """The model, named as SOURCE, by --model, or by neither; and the prompt, an argument, of --prompt, or neither.

    Beside --model, an argument that stands alone is the prompt.

    Raises:
        typer.BadParameter: one of them is given twice, or the prompt stands where SOURCE does: it cannot be a source.
    """
    from rushlight.checkpoint.source import could_be_source

    if model is not None and argument is None and flag is None:
        return model, source
    source = one_of(source, model)
    if argument is not None and flag is not None:
        raise typer.BadParameter("the prompt is there already, as the second argument", param_hint="--prompt")
    if source and not could_be_source(source):
        raise typer.BadParameter(
            f"{quoted(source)} is neither a path that exists nor the name of a model; "
            "if it is the prompt, write -p before it",
            param_hint="SOURCE",
        )
    return source, flag if argument is None else argument


def quoted(argument: str) -> str:
    """An argument as an error shows it: on one line, with the middle of a long one left out."""
    return f"'{shortened(printable_line(argument), _MAX_SHOWN)}'"


def parse_biases(texts: Sequence[str] | None) -> dict[int, float]:
    """What --logit-bias says, by token id."""
    return dict(_parse_bias(text) for text in texts or ())


def _parse_bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not ID=VALUE, as in 50256=-1.5", param_hint="--logit-bias") from None


class Command(TyperCommand):
    """A command whose `--help` is plain text, with the parameters under the panels that they name.

    Typer's own panels need Rich, whose import alone takes longer than all the rest of `--help`.
    """

    def invoke(self, ctx: Any) -> Any:
        from rushlight.cli.log import log_to_stderr

        with log_to_stderr():
            return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            panel = getattr(param, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append(_help_record(param))
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _help_record(param: Any) -> tuple[str, str]:
    """A parameter's names with the word for its value, and what it does with its default."""
    is_option = param.param_type_name == "option"
    names = " / ".join(", ".join(sorted(names, key=len)) for names in (param.opts, param.secondary_opts) if names)
    name = f"{names} {param.metavar}" if is_option and param.metavar else param.metavar or names
    has_default = param.default is not None and not isinstance(param.default, bool)
    return name, f"{param.help} [{param.default}]" if has_default else param.help
