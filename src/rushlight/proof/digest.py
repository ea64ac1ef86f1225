"""Digests that identify weights: one of each tensor, and one of all tensors.

A tensor's digest is the SHA-256 of its shape, as JSON, and of its values: floats as little-endian float32, row by row,
anything else as the bytes in the file. It does not depend on shards or on the order of the tensors. A BF16 checkpoint
has the digests of its exact float32 copy, and an F64 tensor that of its float32 copy. The digest of all is the SHA-256
of the lines "name digest", sorted.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from rushlight.checkpoint.dtypes import FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rushlight.checkpoint import Tensor

__all__ = ["digest_of_all", "tensor_digest", "tensor_digests", "values_digest"]


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor of a checkpoint, by its name in the file."""
    return {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def tensor_digest(tensor: Tensor) -> str:
    """The digest of a tensor's numbers."""
    return values_digest(tensor.float32() if tensor.dtype in FLOAT_DTYPES else tensor.read())


def values_digest(values: NDArray[np.generic]) -> str:
    """The digest of an array; floats must be float32."""
    digest = hashlib.sha256(json.dumps(values.shape).encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_of_all(digests: Mapping[str, str]) -> str:
    """The digest of an entire checkpoint."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
