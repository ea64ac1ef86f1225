"""The exit codes of the command line."""

from __future__ import annotations

CHECK_FAILED = 1
"""A check ran and failed: a checkpoint does not fit, a port diverges, lines of a batch job have errors."""

BAD_INPUT = 2
"""Wrong usage, invalid input, a full disk, or too little memory."""

DEFECT = 70
"""A bug in rushlight (EX_SOFTWARE of sysexits.h)."""

INTERRUPTED = 130
"""128 + SIGINT."""

BROKEN_PIPE = 141
"""128 + SIGPIPE: the reader of the output went away, as `head` does."""
