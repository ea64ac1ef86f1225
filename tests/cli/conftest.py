"""Fixtures that run the command line, in this process or in a new one."""

import io
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from hub_server import hub  # noqa: F401 (a fixture)
from safetensors.numpy import save_file

from rushlight.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    """A stdin that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def rushlight(capsys, monkeypatch):
    """Runs `rushlight ARGUMENTS`, with `stdin` piped in if given and a terminal if not."""

    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "stdin", Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def process():
    """Runs a shell command in which `$rushlight` is the program, in a new process."""
    env = os.environ | {"rushlight": f"{sys.executable} -m rushlight"}

    def run(command, **kwargs):
        done = subprocess.run(
            ["bash", "-c", command], env=env | kwargs.pop("env", {}), capture_output=True, timeout=60, **kwargs
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def bare_gpt2(tmp_path_factory):
    """A model.safetensors with GPT-2's names and vocabulary, one narrow block, and no other files."""
    rng = np.random.default_rng(2)
    shapes = {
        "wte.weight": (50257, 64),
        "wpe.weight": (128, 64),
        "h.0.ln_1.weight": (64,),
        "h.0.ln_1.bias": (64,),
        "h.0.attn.c_attn.weight": (64, 192),
        "h.0.attn.c_attn.bias": (192,),
        "h.0.attn.c_proj.weight": (64, 64),
        "h.0.attn.c_proj.bias": (64,),
        "h.0.ln_2.weight": (64,),
        "h.0.ln_2.bias": (64,),
        "h.0.mlp.c_fc.weight": (64, 256),
        "h.0.mlp.c_fc.bias": (256,),
        "h.0.mlp.c_proj.weight": (256, 64),
        "h.0.mlp.c_proj.bias": (64,),
        "ln_f.weight": (64,),
        "ln_f.bias": (64,),
    }
    path = tmp_path_factory.mktemp("bare") / "model.safetensors"
    save_file({name: rng.normal(0, 0.3, shape).astype(np.float16) for name, shape in shapes.items()}, path)
    return path
