"""The flags that several commands share, each written once, and how `--help` lays them out."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

MODEL, TEXT, SAMPLING, OUTPUT = "Model", "Text", "Sampling", "Output"


def _devices(incomplete: str) -> list[str]:
    from rushlight.backends import DEVICES

    return [word for word in ("auto", *DEVICES) if word.startswith(incomplete)]


def _dtypes(incomplete: str) -> list[str]:
    from rushlight.backends import DTYPES

    return [word for word in DTYPES if word.startswith(incomplete)]


Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        rich_help_panel=MODEL,
        help="A .safetensors file, a folder, or a hub id. Without it: the embedded model of tales.",
    ),
]
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
        help="Compute with N threads. Without it: RUSHLIGHT_NUM_THREADS, or a thread a core.",
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
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""Declared for the parser and for `--help`; `rushlight.cli.failure` reads it."""


class Command(TyperCommand):
    """A command whose `--help` is plain text, with the parameters under the panels that they name.

    Typer's own panels need Rich, whose import alone takes longer than all the rest of `--help`.
    """

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
