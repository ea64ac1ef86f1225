"""`rushlight verify`: whether a model computes what PyTorch did, and if not, where it first does not."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.commands.record import Ids, Texts, parse_ids
from rushlight.cli.options import (
    OUTPUT,
    Debug,
    Device,
    Dtype,
    Exact,
    ModelFlag,
    Offline,
    Port,
    Revision,
    Source,
    Threads,
    one_of,
)
from rushlight.cli.terminal import out_json, say_wrapped, show, status
from rushlight.cli.web_page import Html, Open, deliver
from rushlight.errors import RequestError, printable_line

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.nn import Module
    from rushlight.proof import Golden, VerifyReport
    from rushlight.runtime.model import Model

FAILED = 1
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


def verify(
    source: Source = None,
    model: ModelFlag = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden", "-g", metavar="FILE", rich_help_panel=RECORDING, help="What `rushlight record` wrote."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="NAME",
            rich_help_panel=RECORDING,
            help="transformers: record now; needs the [proof] extra.",
        ),
    ] = None,
    text: Texts = None,
    ids: Ids = None,
    device: Device = "auto",
    dtype: Dtype = "f32",
    threads: Threads = None,
    exact: Exact = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            rich_help_panel=RECORDING,
            help="Relative error allowed to a module alone, such as 1e-5. Without it: by dtype.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every module.")
    ] = False,
    html: Html = None,
    open_page: Open = False,
    _debug: Debug = False,
) -> None:
    """Compare a model with PyTorch, module by module. Exit code 1 if they differ.

    Needs no PyTorch but for --against. The first module that diverges by itself is named, with the cause if trying
    finds it. Without a recording, OpenAI's GPT-2 124M is compared with published answers. Computes in f32, exactly,
    whatever the checkpoint's dtype; --dtype says what else to prove.
    """
    from rushlight import demo
    from rushlight.checkpoint import display_name, open_checkpoint
    from rushlight.models.tied import tied_heads
    from rushlight.proof import read_golden
    from rushlight.proof import verify as compare

    wants_page = html is not None or open_page
    _check_flags(golden, against, bool(text or ids), wants_page or tolerance is not None)
    source = one_of(source, model)
    name = _name(source)
    shown = demo.NAME if source is None else display_name(source)
    options = {"offline": offline, "revision": revision}
    with open_checkpoint(name, offline=offline, revision=revision, allow_missing=tied_heads) as checkpoint:
        if golden is not None:
            recording = read_golden(golden)
        elif against is not None:
            recording = _record(str(name), text, ids, offline, revision)
        else:
            _check_known(checkpoint, shown)
            recording = None
        with status(f"loading {source or 'the embedded model'}"):
            loaded = _load(
                source, checkpoint, port, device=device, dtype=dtype, threads=threads, exact=exact, **options
            )
        if recording is None:
            right = _known_answers(loaded, as_json)
        else:
            with status("comparing"):
                report = compare(
                    loaded,
                    recording,
                    checkpoint=checkpoint,
                    tolerance=tolerance,
                    source=shown,
                )
            _tell(report, as_json, wants_page, html, open_page)
            right = report.passed
    if not right:
        raise typer.Exit(FAILED)


def _check_flags(golden: Path | None, against: str | None, has_prompts: bool, needs_recording: bool) -> None:
    """Refuse what does not go together, before anything is loaded."""
    if against not in (None, "transformers"):
        raise typer.BadParameter(f"{against!r} is not one of: transformers", param_hint="--against")
    if golden is not None and against is not None:
        raise typer.BadParameter("--golden and --against are two recordings: give one", param_hint="--against")
    if against is None and has_prompts:
        raise typer.BadParameter("--text and --ids are for --against: a golden file has its own prompts")
    if golden is None and against is None and needs_recording:
        raise typer.BadParameter("--html, --open and --tolerance need a recording: --golden or --against")


def _name(source: str | None) -> str | Path:
    from rushlight import demo

    return demo.folder() if source is None else source


def _record(source: str, text: list[str] | None, ids: list[str] | None, offline: bool, revision: str | None) -> Golden:
    from rushlight.proof.record_source import record_source

    prompts = parse_ids(ids)
    with status("recording with transformers"):
        return record_source(source, texts=text or (), ids=prompts, offline=offline, revision=revision)


def _load(source: str | None, checkpoint: Checkpoint, port: str | None, **options: Any) -> Model | Module:
    """A language model, or with a port of something else its module."""
    from rushlight.loading.identify import identify
    from rushlight.loading.load import load, load_module
    from rushlight.models import TextConfig, load_port

    if port is not None:
        config = identify(checkpoint, load_port(port))[1]
        if not isinstance(config, TextConfig):
            return load_module(_name(source), port=port, **options)
    return load(source, port=port, **options)


def _tell(report: VerifyReport, as_json: bool, wants_page: bool, html: Path | None, open_page: bool) -> None:
    """Print the report, or what it comes to where a page has the rest."""
    from rushlight.cli.views.verification import report_view

    if as_json:
        out_json(report.to_json())
    else:
        show(report_view(report, table=not wants_page))
        for note in report.notes:
            say_wrapped(printable_line(f"note: {note}"))
    if wants_page:
        from rushlight.viewer import render_page

        deliver(render_page("verify", f"{report.source}: verified", report.to_json()), html, open_page=open_page)


def _check_known(checkpoint: Checkpoint, shown: str) -> None:
    """Go on only with a model whose answers are known.

    Raises:
        RequestError: there is nothing to compare it with.
    """
    from rushlight.loading.identify import identify
    from rushlight.proof.known_answers import is_gpt2_124m

    if not is_gpt2_124m(identify(checkpoint)[1]):
        raise RequestError(
            f"there is nothing to compare {shown} with: published answers are known of GPT-2 124M alone",
            remedy="where PyTorch is, `rushlight record SOURCE -o golden.safetensors`, and then anywhere verify it with"
            " --golden golden.safetensors; or give --against transformers",
        )


def _known_answers(model: Model | Module, as_json: bool) -> bool:
    """Print the known answers of GPT-2 124M; whether all are right."""
    from rushlight.cli.views.verification import answers_view
    from rushlight.proof.known_answers import known_answers
    from rushlight.runtime.model import Model

    if not isinstance(model, Model):
        raise RequestError("the known answers are those of a language model, and this port is none")
    with status("computing the known answers"):
        answers = list(known_answers(model))
    right = all(answer.right for answer in answers)
    if as_json:
        record = {"passed": right, "answers": [answer.to_json() for answer in answers]}
        out_json(record)
    else:
        show(answers_view(answers))
    return right
