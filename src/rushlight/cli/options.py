"""The options that several commands share, and the layout of `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rushlight.cli.word_wrap import shortened
from rushlight.errors import printable_line

MODEL, INPUT, SAMPLING, OUTPUT = "Model", "Input", "Sampling", "Output"
"""The groups of options in `--help`."""

_MAX_SHOWN = 60
"""Width of an argument in an error message."""


def _devices(incomplete: str) -> list[str]:
    from rushlight.backends import DEVICES

    return [word for word in ("auto", *DEVICES) if word.startswith(incomplete)]


def _dtypes(incomplete: str) -> list[str]:
    from rushlight.backends import DTYPES

    return [word for word in DTYPES if word.startswith(incomplete)]


def complete_short_name(incomplete: str) -> list[str]:
    """Completes the short names of models on the hub."""
    from rushlight.checkpoint.short_names import SHORT_NAMES

    return [name for name in SHORT_NAMES if name.startswith(incomplete)]


def complete_source(incomplete: str) -> list[str]:
    """Completes `tales` and short names together with the matching paths; for anything else the shell completes paths.

    Sizes are completed once their family is written.
    """
    from rushlight import demo

    names = [demo.NAME, *complete_short_name(incomplete)]
    names = [name for name in names if name.startswith(incomplete) and (":" in incomplete or ":" not in name)]
    if not names:
        return []
    paths = Path().glob(f"{incomplete}*")
    shown = sorted(f"{path}/" if path.is_dir() else str(path) for path in paths if not path.name.startswith("."))
    return list(dict.fromkeys([*names, *shown]))


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        rich_help_panel=MODEL,
        help="A .safetensors file, a folder, a hub id, a short name such as smollm2 (see `rushlight models`), or tales,"
        " the embedded model. Default: tales.",
    ),
]
HeaderSource = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        show_default=False,
        rich_help_panel=MODEL,
        help="A .safetensors file, a folder, an index of shards, a hub id such as openai-community/gpt2, a short name"
        " such as smollm2 (see `rushlight models`), a URL, or tales, the embedded model.",
    ),
]
"""For commands that only read headers, which works for URLs too."""
Device = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        metavar="NAME",
        autocompletion=_devices,
        rich_help_panel=MODEL,
        help="auto, cpu, metal, cuda or reference; auto is the fastest available device.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        autocompletion=_dtypes,
        rich_help_panel=MODEL,
        help="Weights in f32, f16, bf16, int8 or int4; auto is the dtype of the checkpoint.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        metavar="N",
        rich_help_panel=MODEL,
        help="Compute with N threads, at most one per core. Default: RUSHLIGHT_NUM_THREADS, or the fastest number.",
    ),
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact",
        rich_help_panel=MODEL,
        help="Compute bit-identical results on every processor, for bf16 weights too (slower on processors with bf16"
        " instructions). Default: RUSHLIGHT_EXACT.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", rich_help_panel=MODEL, help="Use only local and downloaded files, not the network.")
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", rich_help_panel=MODEL, help="The branch, tag or commit of a hub model."),
]
Bos = Annotated[
    bool,
    typer.Option(
        "--bos/--no-bos",
        rich_help_panel=INPUT,
        help="Begin a text with the tokens that the tokenizer adds before it, such as <s> (the default).",
    ),
]
Port = Annotated[
    str | None,
    typer.Option(
        "--port",
        metavar="FILE",
        rich_help_panel=MODEL,
        help="Use your own model file, such as one from `rushlight port`.",
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
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=SAMPLING, help="Stop before this string. Repeatable."),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="SOURCE",
        autocompletion=complete_source,
        rich_help_panel=MODEL,
        help="A smaller model with the same vocabulary that proposes draft tokens for speculative decoding.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        min=1,
        rich_help_panel=MODEL,
        help="Limit prompt and completion together to N tokens. Default: the model's context length.",
    ),
]
Copy = Annotated[
    bool,
    typer.Option(
        "--copy",
        rich_help_panel=MODEL,
        help="Read the weights of a converted folder into memory, instead of using its file where it lies.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""Declared for the parser and for `--help`; `rushlight.cli.error_report` reads it from the arguments."""


def one_of(source: str | None, model: str | None) -> str | None:
    """The model from SOURCE or --model; None if neither is given."""
    if source is not None and model is not None and source != model:
        raise typer.BadParameter(f"expected one model, found {model!r} and SOURCE {source!r}", param_hint="--model")
    return model if source is None else source


def need_source(source: str | None, model: str | None) -> str:
    """As `one_of`, for a command without a default model.

    Raises:
        typer.BadParameter: no model is given.
    """
    name = one_of(source, model)
    if name is None:
        raise typer.BadParameter("no model given; tales is the embedded model", param_hint="SOURCE")
    return name


def model_and_prompt(
    source: str | None, argument: str | None, model: str | None, flag: str | None
) -> tuple[str | None, str | None]:
    """The model from SOURCE or --model, and the prompt from the argument or --prompt; None for what is not given.

    With --model, a single argument is the prompt.

    Raises:
        typer.BadParameter: one of them is given twice, or SOURCE is not a source but probably the prompt.
    """
    from rushlight.checkpoint.source import could_be_source

    if model is not None and argument is None and flag is None:
        return model, source
    source = one_of(source, model)
    if argument is not None and flag is not None:
        raise typer.BadParameter("the prompt is given twice, as an argument and as an option", param_hint="--prompt")
    if source and not could_be_source(source):
        raise typer.BadParameter(
            f"{quoted(source)} is neither an existing path nor the name of a model; "
            "if it is the prompt, write -p before it",
            param_hint="SOURCE",
        )
    return source, flag if argument is None else argument


def quoted(argument: str) -> str:
    """An argument for an error message: quoted, on one line, with the middle of a long one left out."""
    return f"'{shortened(printable_line(argument), _MAX_SHOWN)}'"


class Command(TyperCommand):
    """A command whose `--help` is plain text with the parameters in groups.

    Typer's own groups need Rich, whose import takes longer than everything else in `--help`.
    """

    def invoke(self, ctx: Any) -> Any:
        from rushlight.cli.log import log_to_stderr

        with log_to_stderr():
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line, with required arguments as Click writes them: Typer's have braces."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            group = getattr(param, "rich_help_panel", None) or "Options"
            groups.setdefault(group, []).append(_help_record(param))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _help_record(param: Any) -> tuple[str, str]:
    """The flags and metavar of a parameter, and its help with the default, or a mark that it is required."""
    is_option = param.param_type_name == "option"
    names = " / ".join(", ".join(sorted(names, key=len)) for names in (param.opts, param.secondary_opts) if names)
    name = f"{names} {param.metavar}" if is_option and param.metavar else param.metavar or names
    has_default = param.default is not None and not isinstance(param.default, bool)
    mark = f" [{param.default}]" if has_default else " [required]" if is_option and param.required else ""
    return name, param.help + mark
