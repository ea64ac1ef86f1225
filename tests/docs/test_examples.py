"""Runs the examples in the documents and compares their output.

- A ```python block is run; the blocks of one document share a namespace. A ```text block right after it is its output.
- A ```console block is run command by command, each `$ ` line in a separate shell; the lines after it are its output,
  standard error included.
- In an output, a line `...` matches any number of lines.
- `<!-- not run: why -->` on the line before a block excludes it. Blocks of other kinds are not run.
- `<!-- file: name.py -->` on the line before a block writes it to that file instead.
- A document with the line `<!-- needs PyTorch -->` is run together with the comparisons with PyTorch.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
PYTORCH = "<!-- needs PyTorch -->\n"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    line: int
    kind: str
    text: str
    output: str | None
    """The ```text block that directly follows, if there is one."""
    excepted: bool
    file: str | None
    """The file to write it to instead of running it."""


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    fence = re.compile(
        r"^(<!-- not run: [^\n]+ -->\n)?(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)^```\n(?:\n?```text\n(.*?)^```\n)?",
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(document.count("\n", 0, match.start(3)) + 1, match[3], match[4], match[5], bool(match[1]), match[2])
        for match in fence.finditer(document)
    ]


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a console block with the output that follows each."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def same(output: str, shown: str) -> bool:
    """Whether the output equals the one in the document, except for white space at line ends."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()) + r"\n" for line in shown.splitlines()
    ]
    return re.fullmatch("".join(lines), "".join(f"{line.rstrip()}\n" for line in output.splitlines())) is not None


def run_python(block: Block, namespace: dict, name: str) -> str:
    """The output of the block; line numbers in a traceback are those of the document."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * block.line + block.text, name, "exec"), namespace)
    return output.getvalue()


def run_shell(command: str, folder: Path) -> str:
    """The output of the command on both streams."""
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, in which `rushlight` and `python` run the package under test."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "rushlight": f"#!{sys.executable}\nfrom rushlight.cli import main\nmain()\n",
        "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runnable(document: Path):
    """The document as a parameter, marked if it needs PyTorch."""
    marks = [pytest.mark.parity] if PYTORCH in document.read_text(encoding="utf-8") else []
    return pytest.param(document, marks=marks, id=document.name)


@pytest.mark.parametrize("document", [runnable(document) for document in DOCUMENTS])
def test_examples_produce_the_documented_output(document, folder):
    namespace = {"__name__": "__main__"}
    wrong = []
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.excepted:
            continue
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            output = run_python(block, namespace, document.name)
            if block.output is not None and not same(output, block.output):
                wrong.append(f"{document.name}:{block.line} prints\n{output}")
        elif block.kind == "console":
            for command, shown in commands(block.text):
                output = run_shell(command, folder)
                if not same(output, shown):
                    wrong.append(f"{document.name}:{block.line} {command} prints\n{output}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_exist(document):
    links = re.findall(
        r"\]\((?!https?:)([^)#]+)[^)]*\)|src=\"(?!https?:)([^\"]+)\"", document.read_text(encoding="utf-8")
    )
    assert [link for pair in links for link in pair if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("output", "shown", "expected"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a  \nb", "a\nb\n", True),
        ("a\nx\ny\nb\n", "a\n...\nb\n", True),
        ("a\n", "a\n...\n", True),
        ("a\nc\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
        ("axb\n", "a.b\n", False),
    ],
)
def test_outputs_are_compared_line_by_line(output, shown, expected):
    assert same(output, shown) is expected


def test_blocks_are_found():
    document = (
        "text\n```python\nprint(1)\n```\n\n```text\n1\n```\n<!-- not run: slow -->\n```console\n$ a\n1\n$ b\n```\n"
        "<!-- file: a.py -->\n```python\nx = 1\n```\n"
    )
    first, second, third = blocks(document)
    assert first == Block(2, "python", "print(1)\n", "1\n", excepted=False, file=None)
    assert (second.kind, second.excepted) == ("console", True)
    assert (third.text, third.file, third.excepted) == ("x = 1\n", "a.py", False)
    assert commands(second.text) == [("a", "1\n"), ("b", "")]
