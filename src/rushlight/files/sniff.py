"""Recognises by its first bytes a file that is not safetensors. Nothing is unpacked or unpickled."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rushlight.errors import printable_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PICKLE_SUFFIXES", "SNIFF_BYTES", "FileKind", "how_to_convert", "sniff", "sniff_text"]

SNIFF_BYTES = 512
"""The number of leading bytes that `sniff` inspects."""
QUOTED_BYTES = 80
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
"""The suffixes of files written by torch.save."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file: its name, which completes "not safetensors but ...", and what the user can do about it."""

    name: str
    remedy: str


_DOWNLOAD_AGAIN = "download it again, from a link to the file itself"
_FIND_SAFETENSORS = "use the .safetensors file of the same model"
_UNPACK = "unpack it and name the .safetensors file in it"

_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), FileKind(name, remedy))
    for pattern, name, remedy in (
        (rb"GGUF", "a GGUF file", _FIND_SAFETENSORS),
        (rb"\x93NUMPY", "a NumPy array (.npy)", _FIND_SAFETENSORS),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras weights", _FIND_SAFETENSORS),
        (rb"\x1f\x8b\x08", "a gzip archive", _UNPACK),
        (rb"\xfd7zXZ\x00", "an xz archive", _UNPACK),
        (rb"BZh[1-9]", "a bzip2 archive", _UNPACK),
        (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", "an HTML page", _DOWNLOAD_AGAIN),
        (rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|error)\b", "an XML document", _DOWNLOAD_AGAIN),
        (rb"\x00{64}", "only zeros, as an unfinished download leaves them", _DOWNLOAD_AGAIN),
    )
)
_LFS_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v\d+\n(?:[^\n]*\n)*?size (\d{1,20})\n")
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[][^\x00]*")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")
_PICKLE = re.compile(rb"\x80[\x02-\x05][^\x00]")
_ZIP = b"PK\x03\x04"
_TORCH_ENTRIES = (b"/data.pkl", b"/byteorder", b"/.format_version", b"/.storage_alignment")


def sniff(start: bytes, path: Path, *, quote: bool = False) -> FileKind | None:
    """The kind of a file that is not safetensors; None if it is unknown.

    Args:
        start: its first `SNIFF_BYTES` bytes.
        path: its path.
        quote: whether to quote the start of a text: for a server's response, which states the reason, but not for a
            local file, which may be private.
    """
    if pointer := _LFS_POINTER.match(start):
        return FileKind(
            f"a Git LFS pointer; the real file has {int(pointer[1]):,} bytes", "run `git lfs pull` in its folder"
        )
    if start.startswith(_ZIP):
        return _zip(start, path)
    if _PICKLE.match(start):
        return FileKind("a Python pickle, such as torch.save writes; pickles are never unpickled", how_to_convert(path))
    if known := next((kind for pattern, kind in _KINDS if pattern.match(start)), None):
        return known
    kind = "JSON" if _JSON.fullmatch(start) else "text" if _TEXT.fullmatch(start) else None
    if kind is None:
        return None
    quoted = f": {printable_name(start[:QUOTED_BYTES].decode('utf-8', errors='replace'))}" if quote else ""
    return FileKind(f"{kind}, such as a server's error message{quoted}", _DOWNLOAD_AGAIN)


def sniff_text(start: bytes, path: Path) -> FileKind | None:
    """As `sniff`, for a file that should be text, such as JSON: None if it can be."""
    return sniff(start + b"\0", path)  # a NUL rules out the kinds that are text


def how_to_convert(*paths: Path) -> str:
    """The command that converts the PyTorch pickles of one model into a .safetensors file next to them."""
    program = (
        "import sys, torch; from safetensors.torch import save_file; "
        "save_file({k: v.contiguous().clone() for file in sys.argv[2:] "
        "for k, v in torch.load(file, map_location='cpu', weights_only=True).items()}, sys.argv[1])"
    )
    target = paths[0].with_name("model.safetensors")
    if target in paths:  # a pickle under the wrong name
        target = target.with_name("converted.safetensors")
    return f'convert it where PyTorch is installed: python -c "{program}" {shlex.join(map(str, [target, *paths]))}'


def _zip(start: bytes, path: Path) -> FileKind:
    """The kind of a zip archive by its first entry's name (PKWARE APPNOTE.TXT 4.3.7: length at 26, name at 30)."""
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    if name.endswith(_TORCH_ENTRIES):
        return FileKind("a PyTorch pickle, written by torch.save; pickles are never unpickled", how_to_convert(path))
    if name.endswith(b".npy"):
        return FileKind("NumPy arrays (.npz)", _FIND_SAFETENSORS)
    return FileKind("a zip archive", _UNPACK)
