"""Every error that rushlight raises on purpose.

    RushlightError
    ├── SourceError              the path, folder or hub id leads to no checkpoint
    ├── CheckpointError          a file of the checkpoint cannot be read as what it should be
    │   ├── FormatError          not safetensors, or safetensors that breaks the format's rules
    │   ├── TruncatedError       bytes are missing: a cut download, or a file changed while it was read
    │   ├── NonFiniteError       a weight is not a finite float32 number
    │   └── GoldenError          not a golden file, or one that this version cannot read
    ├── ConfigError              a config file is malformed, or asks for what the model does not do
    ├── BindError                tensors and model do not fit: every problem at once
    ├── PortError                a user's own model file cannot be used, or is not written to its end
    ├── TokenizerError           the tokenizer is missing, broken, or does not fit the model
    ├── TemplateError            a chat template is malformed, takes too much, or refuses the conversation
    ├── DeviceError              the device asked for is not on this machine
    ├── DtypeError               the device does not compute in the dtype asked for
    ├── JobError                 a batch job does not fit the results that are there
    ├── RequestError             a prompt, a sampling setting or a token id that cannot be honoured
    │   ├── ContextLengthError   the prompt does not leave room in the model's context
    │   ├── MemoryLimitError     weights, or keys and values, do not fit in the memory there is
    │   └── QueueFullError       too many texts are waiting already
    ├── GenerationError          the model produced something that is not a distribution
    ├── ThreadLimitError         a thread cannot be started
    ├── RecordError              the PyTorch module cannot be recorded
    └── LibraryError             a library that only some uses need is not installed

The command line prints `str(error)` on stderr and exits with 2.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BindError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DeviceError",
    "DtypeError",
    "FormatError",
    "GenerationError",
    "GoldenError",
    "JobError",
    "LibraryError",
    "MemoryLimitError",
    "NonFiniteError",
    "PortError",
    "QueueFullError",
    "RecordError",
    "RequestError",
    "RushlightError",
    "SourceError",
    "TemplateError",
    "ThreadLimitError",
    "TokenizerError",
    "TruncatedError",
]


class RushlightError(Exception):
    """Base of all errors raised on purpose; its parts are attributes, so that programs need not parse text.

    Attributes:
        code: a stable snake_case word for the kind of error, for `--json` and the server.
        message: what is wrong, in one sentence without capital or full stop; each of many problems on a line below it.
        file: the file it was found in.
        tensor: the tensor it concerns.
        offset: the byte offset in `file`.
        found, expected: the two sides of a mismatch.
        remedy: the next step, in one sentence without capital or full stop.
    """

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.offset = offset
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        where = [] if self.file is None else [printable_line(self.file) or '""']
        if self.tensor is not None:
            where.append(printable_name(self.tensor) or '""')
        if self.offset is not None:
            where.append(f"byte {self.offset:,}")
        text = ": ".join([*where, printable(self.message)])
        sides = [("expected", self.expected), ("found", self.found)]
        named = ", ".join(f"{side} {printable_line(str(value))}" for side, value in sides if value is not None)
        if named:
            text += f" ({named})"
        if not self.remedy:
            return text
        # No part begins with a capital, since many begin with a name or a command. The message may quote a library's,
        # full stop and all.
        text = f"{text}\n" if "\n" in text else f"{text.removesuffix('.')}; "
        return text + printable(self.remedy)


def printable(text: str) -> str:
    """`text` with control characters escaped, so that a name from a file cannot drive the terminal.

    Newlines and tabs stay, since messages use them; names are for `printable_name`.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


MAX_NAME_CHARS = 400
"""The longest name that is shown whole, in characters."""


def printable_name(name: str) -> str:
    """As `printable_line`, for a name from a file: of one longer than MAX_NAME_CHARS the middle is left out."""
    if len(name) <= MAX_NAME_CHARS:
        return printable_line(name)
    start, end = MAX_NAME_CHARS * 3 // 4, MAX_NAME_CHARS // 4
    return printable_line(f"{name[:start]}… ({len(name):,} characters) …{name[-end:]}")


def printable_line(text: str) -> str:
    """`text` on one line and whole, with every character that is not printable escaped: for sentences and paths."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_ten(names: Sequence[str]) -> list[str]:
    """The first ten of `names`, each as by `printable_name`, and "and N more" if there are more."""
    more = [f"and {len(names) - 10:,} more"] if len(names) > 10 else []
    return [*map(printable_name, names[:10]), *more]


class SourceError(RushlightError):
    """The path, folder or hub id leads to no checkpoint."""

    code = "source_not_found"


class CheckpointError(RushlightError):
    """A file of the checkpoint cannot be read as what it should be."""

    code = "invalid_checkpoint"


class FormatError(CheckpointError):
    """Not safetensors, or safetensors that breaks the format's rules."""

    code = "invalid_format"


class TruncatedError(CheckpointError):
    """Bytes are missing: a cut download, or a file that changed while it was read."""

    code = "truncated_file"


class NonFiniteError(CheckpointError):
    """A weight is not a finite float32 number."""

    code = "non_finite_weights"


class GoldenError(CheckpointError):
    """Not a golden file, or one that this version cannot read."""

    code = "invalid_golden"


class ConfigError(RushlightError):
    """config.json or generation_config.json is malformed, or asks for what the model does not do."""

    code = "invalid_config"


class BindError(RushlightError):
    """Tensors and model do not fit; the message lists every problem at once.

    Attributes:
        problems: (kind, name, detail, mend) of each, in the order of the message.
    """

    code = "checkpoint_does_not_fit"

    def __init__(
        self, message: str, *, problems: Sequence[tuple[str, str, str, str]] = (), remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = tuple(problems)


class PortError(RushlightError):
    """A user's own model file cannot be used, or is not written to its end."""

    code = "invalid_port"


class TokenizerError(RushlightError):
    """The tokenizer is missing, broken, or does not fit the model."""

    code = "invalid_tokenizer"


class TemplateError(RushlightError):
    """A chat template is malformed, takes more time or memory than it may, or refuses the conversation."""

    code = "invalid_chat_template"


class DeviceError(RushlightError):
    """The device asked for is not on this machine."""

    code = "device_not_available"


class DtypeError(RushlightError):
    """The device does not compute in the dtype asked for."""

    code = "dtype_not_available"


class JobError(RushlightError):
    """A batch job does not fit the results that are there: of other requests, damaged, or being written to."""

    code = "job_does_not_fit"


class RequestError(RushlightError):
    """A prompt, a sampling setting or a token id that cannot be honoured."""

    code = "invalid_request"


class ContextLengthError(RequestError):
    """The prompt does not leave room in the model's context."""

    code = "context_length_exceeded"


class MemoryLimitError(RequestError):
    """Weights, or keys and values, or what is computed with them, do not fit in the memory there is.

    Attributes:
        need_bytes, have_bytes: the two sides; need_bytes is None where it is not known.
    """

    code = "not_enough_memory"

    def __init__(
        self, message: str, *, need_bytes: int | None = None, have_bytes: int, remedy: str | None = None
    ) -> None:
        need = "" if need_bytes is None else f"{need_bytes / 1e6:,.1f} MB needed, "
        super().__init__(f"{message}: {need}{have_bytes / 1e6:,.1f} MB there", remedy=remedy)
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class QueueFullError(RequestError):
    """Too many texts are waiting already; later there may be room."""

    code = "queue_full"


class GenerationError(RushlightError):
    """The model produced something that is not a distribution over tokens."""

    code = "generation_failed"


class ThreadLimitError(RushlightError):
    """A thread cannot be started: a limit on processes is reached, or there is no memory for its stack."""

    code = "no_more_threads"


class RecordError(RushlightError):
    """The PyTorch module cannot be recorded."""

    code = "cannot_record"


class LibraryError(RushlightError):
    """A library that only some uses need is not installed."""

    code = "library_not_installed"
