"""The commands put together, and the original program's own line at the root."""

from __future__ import annotations

from typing import Annotated

import typer

from rushlight.cli import batch, bench, chat, check, devices, evaluate, generate, inspect, lens, port, record, verify
from rushlight.cli.options import Command, Debug
from rushlight.cli.terminal import out

ORIGINAL_TOKENS = 100

app = typer.Typer(
    name="rushlight",
    help="See, port, prove and run PyTorch models from their .safetensors, without PyTorch.",
    epilog="""
\b
Examples:
  rushlight generate -p "Once upon a time"
  rushlight generate openai-community/gpt2 -p "My name is" --max-tokens 40
  rushlight chat openai-community/gpt2
  rushlight inspect model.safetensors
  rushlight --model-path model.safetensors --device cpu --prompt "My name is"
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=Command, epilog=generate.EXAMPLES)(generate.generate)
app.command("chat", cls=Command, epilog=chat.EXAMPLES)(chat.chat)
app.command("batch", cls=Command, epilog=batch.EXAMPLES)(batch.batch)
app.command("inspect", cls=Command, epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("check", cls=Command, epilog=check.EXAMPLES)(check.check)
app.command("port", cls=Command, epilog=port.EXAMPLES)(port.port)
app.command("record", cls=Command, epilog=record.EXAMPLES)(record.record)
app.command("verify", cls=Command, epilog=verify.EXAMPLES)(verify.verify)
app.command("lens", cls=Command, epilog=lens.EXAMPLES)(lens.lens)
app.command("eval", cls=Command, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("bench", cls=Command, epilog=bench.EXAMPLES)(bench.bench)
app.command("devices", cls=Command, epilog=devices.EXAMPLES)(devices.devices)


def _print_version(wanted: bool) -> None:
    if wanted:
        from rushlight import __version__

        out(f"rushlight {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    model_path: Annotated[
        str | None, typer.Option("--model-path", "-m", metavar="PATH", help="Without a command: the model to run.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", metavar="NAME", help="Without a command: auto, cpu, metal or cuda.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Without a command: the text to continue.")
    ] = None,
    _debug: Debug = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Without a command, do what the original program did: continue the prompt greedily by 100 tokens."""
    given = {"--model-path": model_path, "--device": device, "--prompt": prompt}
    if ctx.invoked_subcommand is not None:
        misplaced = [flag for flag, value in given.items() if value is not None]
        if misplaced:
            raise typer.BadParameter(
                f"{', '.join(misplaced)} before a command; write it behind '{ctx.invoked_subcommand}'"
            )
    elif model_path is not None and prompt is not None:
        original(model_path, "auto" if device is None else device, prompt)
    elif any(value is not None for value in given.values()):
        missing = "--prompt" if prompt is None else "--model-path"
        raise typer.BadParameter(f"{missing} is missing; for the embedded model: rushlight generate -p TEXT")
    else:
        out(ctx.get_help() + "\n")


def original(model_path: str, device: str, prompt: str) -> None:
    """What `rushlight --model-path FILE --device NAME --prompt TEXT` prints: the words of the program it re-creates."""
    import rushlight

    model = rushlight.load(model_path, device=device)
    out("Model loaded successfully!\n")
    generate.print_text(prompt, model.stream(prompt, max_tokens=ORIGINAL_TOKENS))
