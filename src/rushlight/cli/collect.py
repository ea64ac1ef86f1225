"""Declares options that several commands share once, and passes their values to a command as one argument."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        annotation: its type with its typer.Option.
        default: its value without the flag.
        convert: turns the parsed value into the value that the command receives.
    """

    annotation: Any
    default: Any
    convert: Callable[[Any], Any] = lambda value: value


def collect(parameter: str, options: Mapping[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces a keyword-only parameter of a command by options, and passes a dict of their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**arguments: Any) -> None:
            values = {name: option.convert(arguments.pop(name)) for name, option in options.items()}
            command(**arguments, **{parameter: values})

        command.__annotations__[parameter] = Any  # the type may be imported for type checkers only
        parameters: list[inspect.Parameter] = []
        for each in inspect.signature(command, eval_str=True).parameters.values():
            if each.name == parameter:
                parameters += [
                    inspect.Parameter(name, each.kind, default=option.default, annotation=option.annotation)
                    for name, option in options.items()
                ]
            else:
                parameters.append(each)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
