"""The `rushlight` command: its subcommands, and the command line of the original program."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from rushlight.cli.options import Command, Debug
from rushlight.cli.terminal import out

ORIGINAL_TOKENS = 100

COMMANDS = {
    "generate": "Continue a prompt and stream the output.",
    "chat": "Chat with a model; answers are streamed.",
    "batch": "Generate completions for the prompts in a file, in batches.",
    "models": "List the built-in model types, with well-known checkpoints and their short names.",
    "pull": "Download a model from the hub, and print the path of its folder.",
    "list": "List the downloaded models: their size, whether they run here, and what is broken.",
    "rm": "Delete a downloaded model, after asking.",
    "inspect": "Show a checkpoint as a tree of modules.",
    "check": "Report every reason why a checkpoint does not fit a model, with suggested fixes.",
    "convert": "Pack the weights of a checkpoint into a folder that every command opens as it opens the original.",
    "port": "Write a model file from a checkpoint's tensor names, to complete and load with --port.",
    "record": "Record the module outputs of transformers, to verify a port without PyTorch.",
    "verify": "Compare a model with PyTorch, module by module. Exit code 1 if they differ.",
    "lens": "Show the next-token predictions of every block: the logit lens.",
    "eval": "Measure the perplexity of a text with sliding windows.",
    "bench": "Measure prefill, decode, memory bandwidth, time to first token and memory.",
    "devices": "List the devices that models can run on.",
}
"""The commands with the first line of their help, so that `--help` imports none of them."""

MODULES = {"eval": "evaluate", "list": "list_models", "rm": "remove"}
"""Commands in a module of another name: `eval` and `list` are builtins."""


class Commands(TyperGroup):
    """A group that imports a command when it is used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = load_command(cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def load_command(name: str) -> Any:
    """The command from its module, whose function has the name of the module."""
    module_name = MODULES.get(name, name)
    module = import_module(f"rushlight.cli.commands.{module_name}")
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=Command, epilog=module.EXAMPLES)(getattr(module, module_name))
    return get_command(single)


app = typer.Typer(
    name="rushlight",
    cls=Commands,
    help="See, port, prove and run PyTorch models from their .safetensors, without PyTorch.",
    epilog="""
\b
Examples:
  rushlight generate -p "Once upon a time"
  rushlight generate qwen3:0.6b -p "My name is" --max-tokens 40
  rushlight chat smollm2
  rushlight inspect model.safetensors
  rushlight --model-path model.safetensors --device cpu --prompt "My name is"
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Without a command: the prompt.")
    ] = None,
    _debug: Debug = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Without a command: continue the prompt by 100 greedily decoded tokens, as the original program did."""
    given = {"--model-path": model_path, "--device": device, "--prompt": prompt}
    if ctx.invoked_subcommand is not None:
        misplaced = [flag for flag, value in given.items() if value is not None]
        if misplaced:
            raise typer.BadParameter(f"{', '.join(misplaced)} must follow the command '{ctx.invoked_subcommand}'")
    elif model_path is not None and prompt is not None:
        original(model_path, "auto" if device is None else device, prompt)
    elif any(value is not None for value in given.values()):
        missing = "--prompt" if prompt is None else "--model-path"
        raise typer.BadParameter(f"{missing} is missing; for the embedded model: rushlight generate -p TEXT")
    else:
        out(ctx.get_help() + "\n")


def original(model_path: str, device: str, prompt: str) -> None:
    """`rushlight --model-path FILE --device NAME --prompt TEXT`, with the output of the program it re-creates."""
    import rushlight
    from rushlight.cli.commands import generate
    from rushlight.cli.log import log_to_stderr

    with log_to_stderr():
        model = rushlight.load(model_path, device=device)
        out("Model loaded successfully!\n")
        generate.print_text(prompt, model.stream(prompt, max_tokens=ORIGINAL_TOKENS))
