"""The options that load a model, and loading it with a status line."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from rushlight.cli.collect import Option, collect
from rushlight.cli.options import Bos, Context, Copy, Device, Draft, Dtype, Exact, Offline, Port, Revision, Threads
from rushlight.cli.terminal import note, status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rushlight.runtime.model import Model

LOAD_OPTIONS = {
    "device": Option(Device, "auto"),
    "dtype": Option(Dtype, "auto"),
    "threads": Option(Threads, None),
    "exact": Option(Exact, None),
    "offline": Option(Offline, False),
    "revision": Option(Revision, None),
    "port": Option(Port, None),
    "draft": Option(Draft, None),
    "context": Option(Context, None),
    "add_bos": Option(Bos, True),
    "copy": Option(Copy, False),
}
"""The keywords of `rushlight.load`."""


def load_options(
    *, without: Collection[str] = (), dtype: str = "auto"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the options of `rushlight.load`; it receives them as `load_with`.

    Args:
        without: options that the command does not have.
        dtype: the default of --dtype.
    """
    options = {name: option for name, option in LOAD_OPTIONS.items() if name not in without}
    if "dtype" in options:
        options["dtype"] = Option(Dtype, dtype)
    return collect("load_with", options)


def load_model(source: str | None, load_with: dict[str, Any]) -> Model:
    """Loads a model, None for the embedded one, while stderr shows what is loaded."""
    import rushlight

    # What is loaded is used to the end: searching it for garbage is in vain, while loading and ever after.
    gc.disable()
    try:
        with status(f"loading {source or 'the embedded model'}"):
            return rushlight.load(source, **load_with)
    finally:
        gc.freeze()
        gc.enable()


def note_embedded_model(source: str | None, example: str) -> None:
    """Tells the user that no model was given, and how to give one."""
    if source is None:
        note(f"no model given, using tales, the embedded model; or try: {example}")
