"""The exceptions that rushlight raises.

    RushlightError
    ├── SourceError              the path, folder, URL or hub id does not lead to a checkpoint
    ├── CheckpointError          a file of the checkpoint is invalid
    │   ├── FormatError          not a safetensors file, or one that violates the format
    │   ├── TruncatedError       bytes are missing: an unfinished download, or a file that changed while it was read
    │   ├── NonFiniteError       a weight is not a finite float32 number
    │   └── GoldenError          not a golden file, or one that this version cannot read
    ├── ConfigError              a config file is malformed, or requests an unsupported feature
    ├── BindError                the tensors do not fit the model; lists every problem
    ├── PortError                a user's model file cannot be used, or is unfinished
    ├── TokenizerError           the tokenizer is missing, malformed, or does not fit the model
    ├── TemplateError            a chat template is malformed, exceeds its limits, or refuses the conversation
    ├── DeviceError              the requested device is not available on this machine
    ├── DtypeError               the device does not support the requested dtype
    ├── ConversionError          a checkpoint cannot be converted, or not into this folder
    ├── JobError                 a batch job does not match its existing results
    ├── RequestError             an invalid prompt, sampling setting or token id
    │   ├── ContextLengthError   the prompt leaves no room in the model's context
    │   ├── MemoryLimitError     weights or KV cache do not fit in the available memory
    │   └── QueueFullError       too many requests are waiting
    ├── GenerationError          the model's output is not a distribution over tokens
    ├── ThreadLimitError         a thread cannot be started
    ├── RecordError              the PyTorch module cannot be recorded
    └── LibraryError             an optional library is not installed

The command line prints `str(error)` to stderr and exits with 2.
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
    "ConversionError",
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
    """The base class of rushlight's errors. The parts of a message are attributes, so programs need not parse it.

    Attributes:
        code: the kind of error in snake_case, stable across versions, for `--json` and the server.
        message: the problem, in one sentence without a capital or a full stop; several problems follow on a line each.
        file: the file that has the problem.
        tensor: the tensor that has it.
        offset: the byte offset in `file`.
        found, expected: the two sides of a mismatch.
        remedy: the next step, in one sentence without a capital or a full stop.
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
        # The message may quote a library's, which may end with a full stop.
        text = f"{text}\n" if "\n" in text else f"{text.removesuffix('.')}; "
        return text + printable(self.remedy)


def printable(text: str) -> str:
    """`text` with control characters escaped, so that text from a file cannot control the terminal.

    Newlines and tabs stay, because messages use them; for names, use `printable_name`.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


MAX_NAME_CHARS = 400
"""The longest name that is shown in full."""


def printable_name(name: str) -> str:
    """A name from a file on one line, escaped, and shortened in the middle if it is longer than MAX_NAME_CHARS."""
    if len(name) <= MAX_NAME_CHARS:
        return printable_line(name)
    start, end = MAX_NAME_CHARS * 3 // 4, MAX_NAME_CHARS // 4
    return printable_line(f"{name[:start]}… ({len(name):,} characters) …{name[-end:]}")


def printable_line(text: str) -> str:
    """`text` on one line, in full, with every unprintable character escaped: for sentences and paths."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_ten(names: Sequence[str]) -> list[str]:
    """The first ten of `names`, each escaped by `printable_name`, and "and N more" if there are more."""
    more = [f"and {len(names) - 10:,} more"] if len(names) > 10 else []
    return [*map(printable_name, names[:10]), *more]


class SourceError(RushlightError):
    """The path, folder, URL or hub id does not lead to a checkpoint."""

    code = "source_not_found"


class CheckpointError(RushlightError):
    """A file of the checkpoint is invalid."""

    code = "invalid_checkpoint"


class FormatError(CheckpointError):
    """Not a safetensors file, or one that violates the format."""

    code = "invalid_format"


class TruncatedError(CheckpointError):
    """Bytes are missing: an unfinished download, or a file that changed while it was read."""

    code = "truncated_file"


class NonFiniteError(CheckpointError):
    """A weight is not a finite float32 number."""

    code = "non_finite_weights"


class GoldenError(CheckpointError):
    """Not a golden file, or one that this version cannot read."""

    code = "invalid_golden"


class ConfigError(RushlightError):
    """config.json or generation_config.json is malformed, or requests an unsupported feature."""

    code = "invalid_config"


class BindError(RushlightError):
    """The tensors do not fit the model; the message lists every problem.

    Attributes:
        problems: (kind, name, detail, fix) of each, in the order of the message.
    """

    code = "checkpoint_does_not_fit"

    def __init__(
        self, message: str, *, problems: Sequence[tuple[str, str, str, str]] = (), remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = tuple(problems)


class PortError(RushlightError):
    """A user's model file cannot be used, or is unfinished."""

    code = "invalid_port"


class TokenizerError(RushlightError):
    """The tokenizer is missing, malformed, or does not fit the model."""

    code = "invalid_tokenizer"


class TemplateError(RushlightError):
    """A chat template is malformed, exceeds its limits of time or memory, or refuses the conversation."""

    code = "invalid_chat_template"


class DeviceError(RushlightError):
    """The requested device is not available on this machine."""

    code = "device_not_available"


class DtypeError(RushlightError):
    """The device does not support the requested dtype."""

    code = "dtype_not_available"


class ConversionError(RushlightError):
    """A checkpoint cannot be converted, or not into this folder."""

    code = "cannot_convert"


class JobError(RushlightError):
    """A batch job does not match its existing results: other requests wrote them, or they are damaged or in use."""

    code = "job_does_not_fit"


class RequestError(RushlightError):
    """An invalid prompt, sampling setting or token id."""

    code = "invalid_request"


class ContextLengthError(RequestError):
    """The prompt leaves no room in the model's context."""

    code = "context_length_exceeded"


class MemoryLimitError(RequestError):
    """Weights, KV cache or activations do not fit in the available memory.

    Attributes:
        need_bytes: the memory needed; None if unknown.
        have_bytes: the memory available.
    """

    code = "not_enough_memory"

    def __init__(
        self, message: str, *, need_bytes: int | None = None, have_bytes: int, remedy: str | None = None
    ) -> None:
        need = "" if need_bytes is None else f"{need_bytes / 1e6:,.1f} MB needed, "
        super().__init__(f"{message}: {need}{have_bytes / 1e6:,.1f} MB available", remedy=remedy)
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class QueueFullError(RequestError):
    """Too many requests are waiting; a later attempt may succeed."""

    code = "queue_full"


class GenerationError(RushlightError):
    """The model's output is not a distribution over tokens."""

    code = "generation_failed"


class ThreadLimitError(RushlightError):
    """A thread cannot be started: the process limit is reached, or there is no memory for its stack."""

    code = "no_more_threads"


class RecordError(RushlightError):
    """The PyTorch module cannot be recorded."""

    code = "cannot_record"


class LibraryError(RushlightError):
    """An optional library is not installed."""

    code = "library_not_installed"
