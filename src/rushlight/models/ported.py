"""Loads an architecture from a user's file (`--port my_model.py`), which it runs."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rushlight.errors import PortError
from rushlight.models.architecture import PretrainedModel
from rushlight.nn import NameRules

if TYPE_CHECKING:
    from types import CodeType, ModuleType, TracebackType

    from rushlight.models.architecture import Architecture

__all__ = ["NAME", "load_port", "port_line"]

NAME = "ARCHITECTURE"
"""The name under which a port's file defines the model's class."""

_PREFIX = "rushlight_port_"


class _Loader(SourceFileLoader):
    """Never uses cached bytecode, which would miss an edit within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_port(path: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None) -> Architecture:
    """Runs a Python file and returns its `ARCHITECTURE`.

    Args:
        path: the file.
        source: the checkpoint that it is for, for the error message.

    It must be a `PretrainedModel` with a `config_type`, as in models/gpt2.py and in the files of `rushlight port`.

    Raises:
        PortError: the file is missing, is not Python, raises an exception, or has no such class.
    """
    if not isinstance(path, str | os.PathLike):
        raise PortError("expected the path of a port", expected="a str or os.PathLike", found=type(path).__name__)
    file = Path(path)
    if not file.is_file():
        problem = "expected a Python file, found a folder" if file.is_dir() else "no such file"
        raise PortError(problem, file=file, remedy=_write_one(source, file))
    architecture = getattr(_run(file), NAME, None)
    if architecture is None:
        raise PortError(f"{NAME} is not defined", file=file, remedy=f"add a line {NAME} = MyModel at its end")
    if problems := _problems(architecture):
        raise PortError(f"{NAME} is not an architecture: {'; '.join(problems)}", file=file)
    return cast("Architecture", architecture)


def _write_one(source: str | os.PathLike[str] | None, file: Path) -> str:
    shown = "SOURCE" if source is None else shlex.quote(os.fspath(source))
    output = "my_model.py" if file.is_dir() else shlex.quote(str(file))
    return f"`rushlight port {shown} -o {output}` writes one"


def port_line(trace: TracebackType | None) -> tuple[str, int] | None:
    """The file and line of the innermost frame of a traceback that is in a port; None if there is none."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(trace)
        if str(frame.f_globals.get("__name__", "")).startswith(_PREFIX)
    ]
    return frames[-1] if frames else None


def _run(file: Path) -> ModuleType:
    import hashlib  # loads OpenSSL, 4 MB and 4 ms, which only runs with a port need

    path = str(file.resolve())
    # Registered in sys.modules, where dataclasses and others look up the module of a class.
    name = f"{_PREFIX}{file.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path, loader=_Loader(name, path))
    if spec is None or spec.loader is None:
        raise PortError("not a Python file", expected="a name that ends in .py", file=file)
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise PortError(f"line {error.lineno} is not Python: {error.msg}", file=error.filename or file) from error
    except (Exception, SystemExit) as error:
        _, line = port_line(error.__traceback__) or (path, 1)
        raise PortError(f"line {line} raises {type(error).__name__}: {error}", file=file) from error
    return module


def _problems(architecture: object) -> list[str]:
    if not (isinstance(architecture, type) and issubclass(architecture, PretrainedModel)):
        kind = architecture.__name__ if isinstance(architecture, type) else type(architecture).__name__
        return [f"expected a class derived from rushlight.models.PretrainedModel, found {kind}"]
    config_type = getattr(architecture, "config_type", None)
    if config_type is None:
        return ["it has no config_type"]
    problems = [
        f"its config_type has no {method}"
        for method in ("from_json", "from_tensors")
        if not callable(getattr(config_type, method, None))
    ]
    if not isinstance(architecture.rules, NameRules):
        problems.append(f"its rules: expected a NameRules, found {type(architecture.rules).__name__}")
    return problems
