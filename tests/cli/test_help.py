"""`--help`, `--version` and shell completion."""

import subprocess
import sys

import pytest

from rushlight import __version__
from rushlight.cli.app import COMMANDS, load_command


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "root")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_fits_80_columns_and_has_examples(rushlight, command, flag, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = rushlight(*command, flag)
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    examples = done.out.partition("Examples:\n")[2].splitlines()
    assert examples
    assert all("rushlight" in line for line in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_help(name):
    assert [param.name for param in load_command(name).params if not param.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_their_first_lines(name):
    assert load_command(name).help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_a_misspelt_command_suggests_the_nearest(rushlight):
    done = rushlight("genrate")
    assert done.code == 2
    assert "'generate'" in done.err


def test_no_arguments_print_the_help(rushlight):
    done = rushlight()
    assert done == rushlight("--help")
    assert done.code == 0
    assert "--model-path" in done.out


def test_version(rushlight):
    assert rushlight("--version") == (0, f"rushlight {__version__}\n", "")


def test_python_m(process):
    assert process("$rushlight --version") == (0, f"rushlight {__version__}\n", "")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom rushlight.cli import main\n"
        f"for name in {[*COMMANDS]!r}:\n"
        "    try: main([name, '--help'])\n    except SystemExit: pass\n"
        "    heavy = {'numpy', 'tokenizers', 'huggingface_hub', 'torch', 'jinja2', 'rich'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_printed(process, shell):
    done = process("$rushlight", env={"_RUSHLIGHT_COMPLETE": f"source_{shell}"})
    assert done.code == 0
    assert "_RUSHLIGHT_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        ("rushlight ins", 1, {"inspect"}),
        ("rushlight generate --repet", 2, {"--repetition-penalty"}),
        ("rushlight generate --device ", 3, {"auto", "cpu", "metal", "mlx-cpu", "cuda", "torch-cpu", "reference"}),
        ("rushlight generate --dtype f", 3, {"f32", "f64", "f16"}),
        ("rushlight generate qwen", 2, {"qwen2.5", "qwen3"}),
        ("rushlight chat qwen3:0", 2, {"qwen3:0.6b"}),
        ("rushlight pull smollm3", 2, {"smollm3", "smollm3:3b"}),
        ("rushlight models smol", 2, {"smollm2", "smollm3"}),
    ],
)
def test_completions(process, words, at, expected):
    done = process(
        "$rushlight", env={"_RUSHLIGHT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    )
    assert set(done.out.split()) == expected


@pytest.mark.parametrize(
    ("command", "flag"),
    [("batch", "--output FILE"), ("port", "--output FILE"), ("record", "--output FILE"), ("eval", "--text FILE")],
)
def test_required_options_are_marked(rushlight, command, flag):
    words = " ".join(rushlight(command, "--help").out.split())
    assert "[required]" in words.partition(flag)[2].partition("--")[0]
    assert words.count("[required]") == 1


def test_the_usage_names_a_required_argument_without_braces(rushlight):
    assert rushlight("batch", "--help").out.startswith("Usage: rushlight batch [OPTIONS] INPUT\n")
