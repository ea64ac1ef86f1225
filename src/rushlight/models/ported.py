"""Architectures from users' own files: `--port my_model.py`. The Python that the user names is run, and no other."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rushlight.errors import PortError
from rushlight.nn import Module, NameRules

if TYPE_CHECKING:
    from types import CodeType, ModuleType, TracebackType

    from rushlight.models.architecture import Architecture

__all__ = ["NAME", "load_port", "port_line"]

NAME = "ARCHITECTURE"
"""What a port's file calls its model's class."""

_PREFIX = "rushlight_port_"


class _Loader(SourceFileLoader):
    """Reads the source each time: cached bytecode is told from stale by its second, and a file is edited faster."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_port(path: str | os.PathLike[str]) -> Architecture:
    """Runs a Python file and returns the class that it calls `ARCHITECTURE`.

    That is a `Module` with at least

        config_type    a class with from_json(values, *, file) and from_tensors(tensors, *, file)
        rules          a NameRules

    as `rushlight port` writes it and models/gpt2.py has it.

    Raises:
        PortError: there is no such file, it is not Python, it raises an exception, or it has no such class.
    """
    if not isinstance(path, str | os.PathLike):
        raise PortError("a port is named by its path", found=type(path).__name__)
    file = Path(path)
    if not file.is_file():
        what = "a port is a Python file, and this is a folder" if file.is_dir() else "no such file"
        raise PortError(what, file=file, remedy="`rushlight port SOURCE -o my_model.py` writes one")
    architecture = getattr(_run(file), NAME, None)
    if architecture is None:
        raise PortError(f"there is no {NAME}", file=file, remedy=f"at its end, write {NAME} = MyModel")
    if problems := _problems(architecture):
        raise PortError(f"{NAME} is not an architecture: {'; '.join(problems)}", file=file)
    return cast("Architecture", architecture)


def port_line(trace: TracebackType | None) -> tuple[str, int] | None:
    """The file and the line of the innermost frame of `trace` that is in a port; None if none is."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(trace)
        if str(frame.f_globals.get("__name__", "")).startswith(_PREFIX)
    ]
    return frames[-1] if frames else None


def _run(file: Path) -> ModuleType:
    import hashlib  # 4 MB and 4 ms, with OpenSSL; who runs no port needs neither

    path = str(file.resolve())
    # Classes are looked up by their module's name, by dataclasses for one, so that the module has to be registered.
    name = f"{_PREFIX}{file.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path, loader=_Loader(name, path))
    if spec is None or spec.loader is None:
        raise PortError("not a Python file", file=file)
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
    if not (isinstance(architecture, type) and issubclass(architecture, Module)):
        kind = architecture.__name__ if isinstance(architecture, type) else f"a {type(architecture).__name__}"
        return [f"it should be a class of rushlight.nn.Module, and is {kind}"]
    problems = []
    config_type = getattr(architecture, "config_type", None)
    if config_type is None:
        problems.append("it has no config_type")
    problems += [
        f"its config_type has no {method}"
        for method in ("from_json", "from_tensors")
        if config_type is not None and not callable(getattr(config_type, method, None))
    ]
    if not isinstance(getattr(architecture, "rules", None), NameRules):
        problems.append("it has no rules, which should be a NameRules")
    return problems
