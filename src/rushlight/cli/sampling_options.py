"""The command-line flags of the sampling settings, derived from their declaration in `SamplingParams`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.collect import Option, collect
from rushlight.errors import RequestError
from rushlight.generation.sampling.params import MAX_GRAMMAR_CHARS, SETTINGS, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from rushlight.generation.sampling.setting import Setting

DEFAULTS = {each.name: each.default for each in fields(SamplingParams)}


def sampling_options(
    *, without: Collection[str] = (), of_author: Mapping[str, Any] | None = None, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the flags of the sampling settings; it receives them as `settings`.

    Args:
        without: settings that the command does not have.
        of_author: settings whose default is the model author's, or else this one. They are None without their flag.
        defaults: values that differ from those of `SamplingParams`.
    """
    of_author = of_author or {}
    defaults |= dict.fromkeys(of_author)
    options = {
        name: _option(name, each, defaults.get(name, DEFAULTS[name]), of_author.get(name))
        for name, each in SETTINGS.items()
        if each.flags and name not in without
    }
    return collect("settings", options)


def scalar_settings(without: Collection[str]) -> tuple[str, ...]:
    """The settings whose value is a number or a boolean, which a person can type."""
    return tuple(name for name, each in SETTINGS.items() if each.flags and name not in without and _is_scalar(each))


def parse_biases(texts: Sequence[str] | None) -> dict[int, float]:
    """The values of --logit-bias, by token id."""
    return dict(_parse_bias(text) for text in texts or ())


def _option(name: str, declared: Setting, default: Any, otherwise: Any) -> Option:
    type_, convert = _FORMS.get(name, (declared.range.type, lambda value: value))
    more = " Repeatable." if type_ == list[str] else ""
    if otherwise is not None:
        more += f" Default: the author's, or {otherwise}."
    flag = typer.Option(
        *declared.flags,
        metavar=declared.metavar or None,
        rich_help_panel=declared.group,
        help=declared.help + more,
    )
    annotation = Annotated[type_ if default is not None else type_ | None, flag]  # type: ignore[valid-type]
    return Option(annotation, default, convert)


def _is_scalar(declared: Setting) -> bool:
    return declared.range.type in (int, float, bool)


def _parse_bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise typer.BadParameter(
            f"expected ID=X such as 50256=-1.5, found {text!r}", param_hint="--logit-bias"
        ) from None


def _read_schema(file: str | None) -> str | None:
    if file is None:
        return None
    from rushlight.files.text_file import read_text

    # The limit counts characters, which have up to 4 bytes.
    return read_text(file, max_bytes=4 * MAX_GRAMMAR_CHARS, error=RequestError, allow_pipe=True)


_FORMS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "logit_bias": (list[str], parse_biases),
    "json_schema": (str, _read_schema),
}
"""Settings whose value on the command line has another type -> that type, and the conversion."""
