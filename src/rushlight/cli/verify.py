"""`rushlight verify`: whether a model computes what PyTorch did, and if not, where it first does not."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug, Device, Dtype, Offline, Revision, Source, Threads
from rushlight.cli.record import Ids, Texts, parse_ids
from rushlight.cli.terminal import out, say, show, status
from rushlight.errors import RequestError, printable

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.model import Model
    from rushlight.proof import Golden

FAILED = 1
RECORDING = "Recording"

EXAMPLES = """
\b
Examples:
  rushlight verify ./folder --golden golden.safetensors
  rushlight verify ./folder --golden golden.safetensors --dtype int8 --html report.html
  rushlight verify ./folder --golden golden.safetensors --json | jq .first_divergent
  rushlight verify ./folder --against transformers --text "Once upon a time"
  rushlight verify openai-community/gpt2
"""


def verify(
    source: Source = None,
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
    dtype: Dtype = "auto",
    threads: Threads = None,
    offline: Offline = False,
    revision: Revision = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            rich_help_panel=RECORDING,
            help="Relative error allowed to a module alone; ten times that to the whole run. Without it: by dtype.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every module.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", rich_help_panel=OUTPUT, help="Write a web page with a plot of the errors."
        ),
    ] = None,
    _debug: Debug = False,
) -> None:
    """Compare a model with PyTorch, module by module. Exit code 1 if they differ.

    Needs no PyTorch but for --against. The first module that diverges by itself is named, with the cause if trying
    finds it. Without a recording, OpenAI's GPT-2 124M is compared with published answers.
    """
    import rushlight
    from rushlight.checkpoint import open_checkpoint

    _check_flags(golden, against, text, ids, html, tolerance)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(_name(source), offline=offline, revision=revision))
        if golden is None and against is None:
            _check_known(checkpoint)
        recording = _recording(source, golden, text, ids, offline, revision) if golden or against else None
        with status(f"loading {source or 'the embedded model'}"):
            model = rushlight.load(
                source, device=device, dtype=dtype, threads=threads, offline=offline, revision=revision
            )
        if recording is None:
            _known_answers(model, as_json)
        else:
            _compare(model, recording, checkpoint, tolerance, as_json, html)


def _check_flags(
    golden: Path | None,
    against: str | None,
    text: list[str] | None,
    ids: list[str] | None,
    html: Path | None,
    tolerance: float | None,
) -> None:
    """Refuse what does not go together, before anything is loaded."""
    if against not in (None, "transformers"):
        raise typer.BadParameter(f"{against!r} is not one of: transformers", param_hint="--against")
    if golden is not None and against is not None:
        raise typer.BadParameter("--golden and --against are two recordings: give one", param_hint="--against")
    if against is None and (text or ids):
        raise typer.BadParameter("--text and --ids are for --against: a golden file has its own prompts")
    if golden is None and against is None and (html is not None or tolerance is not None):
        raise typer.BadParameter("--html and --tolerance need a recording: --golden or --against")


def _name(source: str | None) -> str | Path:
    from rushlight import demo

    return demo.folder() if source is None else source


def _recording(
    source: str | None,
    golden: Path | None,
    text: list[str] | None,
    ids: list[str] | None,
    offline: bool,
    revision: str | None,
) -> Golden:
    if golden is not None:
        from rushlight.proof import read_golden

        return read_golden(golden)
    from rushlight.proof.record import record_source

    with status("recording with transformers"):
        prompts = parse_ids(ids)
        return record_source(str(_name(source)), texts=text or (), ids=prompts, offline=offline, revision=revision)


def _compare(
    model: Model, golden: Golden, checkpoint: Checkpoint, tolerance: float | None, as_json: bool, html: Path | None
) -> None:
    from rushlight.proof import verify as verify_model

    with status("comparing"):
        report = verify_model(model, golden, checkpoint=checkpoint, tolerance=tolerance)
    if html is not None:
        from rushlight.proof.page import write_report

        write_report(html, report)
    if as_json:
        out(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        from rushlight.cli.verify_view import report_view

        show(report_view(report))
        for note in report.notes:
            say(printable(f"note: {note}"))
    if html is not None:
        say(printable(f"wrote {html}"))
    if not report.passed:
        raise typer.Exit(FAILED)


def _check_known(checkpoint: Checkpoint) -> None:
    """Go on only with a model whose answers are known.

    Raises:
        RequestError: there is nothing to compare it with.
    """
    from rushlight.loader import identify
    from rushlight.proof.known import is_gpt2_124m

    if not is_gpt2_124m(identify(checkpoint)[1]):
        raise RequestError(
            f"there is nothing to compare {checkpoint.source} with: published answers are known of GPT-2 124M alone",
            remedy="record it where PyTorch is, `rushlight record SOURCE -o golden.safetensors`, and verify it with"
            " --golden golden.safetensors; or give --against transformers",
        )


def _known_answers(model: Model, as_json: bool) -> None:
    from rushlight.cli.verify_view import answers_view
    from rushlight.proof.known import known_answers

    with status("computing the known answers"):
        answers = list(known_answers(model))
    right = all(answer.right for answer in answers)
    if as_json:
        out(
            json.dumps({"passed": right, "answers": [answer.to_json() for answer in answers]}, ensure_ascii=False)
            + "\n"
        )
    else:
        show(answers_view(answers))
    if not right:
        raise typer.Exit(FAILED)
