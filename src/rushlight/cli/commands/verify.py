"""`rushlight verify`: compare a model with a recording of PyTorch, and find the first divergent module."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.commands.record import Ids, Texts, parse_ids
from rushlight.cli.exit_codes import CHECK_FAILED
from rushlight.cli.loading import load_options
from rushlight.cli.options import OUTPUT, Debug, ModelFlag, Source, one_of
from rushlight.cli.terminal import note, out_json, show, status
from rushlight.cli.web_page import Html, Open, deliver
from rushlight.errors import RequestError, printable_line

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.nn import Module
    from rushlight.proof import Golden, VerifyReport
    from rushlight.runtime.model import Model

RECORDING = "Recording"

EXAMPLES = """
\b
Examples:
  rushlight verify ./folder --golden golden.safetensors
  rushlight verify ./folder --golden golden.safetensors --dtype int8
  rushlight verify ./folder --golden golden.safetensors --html report.html
  rushlight verify ./folder -g golden.safetensors --json | jq .first_divergent
  rushlight verify ./folder -g golden.safetensors --port my_model.py
  rushlight verify ./folder --against transformers --text "Once upon a time"
  rushlight verify openai-community/gpt2
"""


@load_options(without=("draft", "context", "add_bos"), dtype="f32")
def verify(
    ctx: typer.Context,
    source: Source = None,
    model: ModelFlag = None,
    *,
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden", "-g", metavar="FILE", rich_help_panel=RECORDING, help="A recording made by `rushlight record`."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="transformers",
            rich_help_panel=RECORDING,
            help="Record with transformers now; needs the [proof] extra.",
        ),
    ] = None,
    text: Texts = None,
    ids: Ids = None,
    load_with: dict[str, Any],
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            rich_help_panel=RECORDING,
            help="Relative error allowed for a teacher-forced module, such as 1e-5. Default: by dtype.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every module.")
    ] = False,
    every_module: Annotated[
        bool,
        typer.Option(
            "--all",
            rich_help_panel=OUTPUT,
            help="Print a row for every module. By default, those of all blocks share a row in a long table.",
        ),
    ] = False,
    html: Html = None,
    open_page: Open = False,
    _debug: Debug = False,
) -> None:
    """Compare a model with PyTorch, module by module. Exit code 1 if they differ.

    Needs PyTorch only for --against. Names the first module that diverges, and its cause if it can be found. Without a
    recording, OpenAI's GPT-2 124M is compared with published results. Computes in f32 unless --dtype selects another
    dtype; a converted folder in its own.
    """
    from rushlight import demo
    from rushlight.checkpoint import display_name, open_checkpoint
    from rushlight.cli.views.verification import report_view, verdict_view
    from rushlight.models.tied import tied_heads
    from rushlight.proof import read_golden
    from rushlight.proof import verify as compare

    wants_page = html is not None or open_page
    _check_flags(golden, against, bool(text or ids), wants_page or tolerance is not None)
    source = one_of(source, model)
    name = _name(source)
    shown = demo.NAME if source is None else display_name(source)
    where = {name: load_with[name] for name in ("offline", "revision")}
    with open_checkpoint(name, **where, allow_missing=tied_heads) as checkpoint:
        if golden is not None:
            recording = read_golden(golden)
        elif against is not None:
            recording = _record(str(name), text, ids, **where)
        else:
            _check_known(checkpoint, shown)
            recording = None
        if checkpoint.conversion is not None and _is_default(ctx, "dtype"):
            load_with["dtype"] = "auto"
        with status(f"loading {source or 'the embedded model'}"):
            loaded = _load(source, checkpoint, **load_with)
        if recording is None:
            passed = _known_answers(loaded, as_json)
        else:
            with status("comparing"):
                report = compare(
                    loaded,
                    recording,
                    checkpoint=checkpoint,
                    tolerance=tolerance,
                    source=shown,
                )
            if as_json:
                out_json(report.to_json())
            else:
                # The page has the table.
                show(report_view(report, table=not wants_page, every_module=every_module))
                for each in report.notes:
                    note(printable_line(each))
            if wants_page:
                deliver(_page(report), html, open_page=open_page)
            if not as_json:
                show(verdict_view(report))
            passed = report.passed
    if not passed:
        raise typer.Exit(CHECK_FAILED)


def _check_flags(golden: Path | None, against: str | None, has_prompts: bool, needs_recording: bool) -> None:
    """Refuses conflicting flags before anything is loaded."""
    if against not in (None, "transformers"):
        raise typer.BadParameter(f"expected transformers, found {against!r}", param_hint="--against")
    if golden is not None and against is not None:
        raise typer.BadParameter("--golden and --against exclude each other", param_hint="--against")
    if against is None and has_prompts:
        raise typer.BadParameter("--text and --ids need --against: a golden file has its own prompts")
    if golden is None and against is None and needs_recording:
        raise typer.BadParameter("--html, --open and --tolerance need a recording: --golden or --against")


def _is_default(ctx: typer.Context, parameter: str) -> bool:
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "DEFAULT"


def _name(source: str | None) -> str | Path:
    from rushlight import demo

    return demo.folder() if source is None else source


def _record(
    source: str, text: list[str] | None, ids: list[str] | None, *, offline: bool, revision: str | None
) -> Golden:
    from rushlight.proof.record_source import record_source

    prompts = parse_ids(ids)
    with status("recording with transformers"):
        return record_source(source, texts=text or (), ids=prompts, offline=offline, revision=revision)


def _load(source: str | None, checkpoint: Checkpoint, *, port: str | None, **options: Any) -> Model | Module:
    """A language model, or the module of a port that is not a language model."""
    from rushlight.loading.identify import identify
    from rushlight.loading.load import load, load_module
    from rushlight.models import TextConfig, load_port

    if port is not None:
        config = identify(checkpoint, load_port(port, source=source))[1]
        if not isinstance(config, TextConfig):
            return load_module(_name(source), port=port, **options)
    return load(source, port=port, **options)


def _page(report: VerifyReport) -> str:
    from rushlight.viewer import render_page

    return render_page("verify", f"{report.source}: verified", report.to_json())


def _check_known(checkpoint: Checkpoint, shown: str) -> None:
    """Raises RequestError for a model without published results."""
    from rushlight.loading.identify import identify
    from rushlight.proof.known_answers import is_gpt2_124m

    if not is_gpt2_124m(identify(checkpoint)[1]):
        raise RequestError(
            f"nothing to compare {shown} with: there are published results only for GPT-2 124M",
            remedy="run `rushlight record SOURCE -o golden.safetensors` where PyTorch is installed, and verify with"
            " --golden golden.safetensors; or use --against transformers",
        )


def _known_answers(model: Model | Module, as_json: bool) -> bool:
    """Prints the comparison with published results of GPT-2 124M; returns whether all agree."""
    from rushlight.cli.views.verification import answers_view
    from rushlight.proof.known_answers import known_answers
    from rushlight.runtime.model import Model

    if not isinstance(model, Model):
        raise RequestError("the published results are those of a language model, and this port is not one")
    with status("comparing with published results"):
        answers = list(known_answers(model))
    passed = all(answer.right for answer in answers)
    if as_json:
        record = {"passed": passed, "answers": [answer.to_json() for answer in answers]}
        out_json(record)
    else:
        show(answers_view(answers))
    return passed
