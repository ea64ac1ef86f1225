"""How the tensors of a converted checkpoint are loaded on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.backends.dtypes import CHECKPOINT_DTYPES
from rushlight.checkpoint import PackedTensor
from rushlight.errors import DtypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend, Tensor
    from rushlight.checkpoint import Checkpoint

__all__ = ["memory_dtype", "tensors_for"]


def memory_dtype(checkpoint: Checkpoint, ops: Backend, dtype: str) -> str:
    """The dtype that the weights take memory in: the requested one, or of a converted checkpoint what auto means.

    Raises:
        DtypeError: a converted checkpoint would be rounded a second time.
    """
    conversion = checkpoint.conversion
    if conversion is None:
        return dtype
    converted = conversion.dtype
    if ops.tile_version == conversion.layout:
        exact = {converted}
        auto = converted
    else:
        auto = converted if converted.upper() in CHECKPOINT_DTYPES else "f32"
        exact = {auto, "f32", "f64"}
    if dtype != "auto" and dtype not in exact:
        raise DtypeError(
            f"the weights are converted to {converted}, and not rounded again to {dtype}",
            file=checkpoint.source,
            remedy=f"leave out --dtype, or convert the original: `rushlight convert SOURCE -o FOLDER --dtype {dtype}`",
        )
    return auto if dtype == "auto" else dtype


def tensors_for(checkpoint: Checkpoint, ops: Backend) -> Mapping[str, Tensor]:
    """The tensors as the device takes them: packed, or else their values."""
    if checkpoint.conversion is None or ops.tile_version == checkpoint.conversion.layout:
        return checkpoint
    return {
        name: _Unpacked(tensor) if isinstance(tensor, PackedTensor) else tensor for name, tensor in checkpoint.items()
    }


class _Unpacked:
    """A packed matrix as a tensor of its values, for devices with layouts of their own."""

    def __init__(self, tensor: PackedTensor) -> None:
        self._tensor = tensor
        self.name = tensor.name
        self.dtype = tensor.dtype if tensor.dtype in CHECKPOINT_DTYPES else "F32"
        self.shape = tensor.shape

    def float32(self) -> NDArray[np.float32]:
        return self._tensor.float32()

    def read_into(self, raw: NDArray[np.uint8], start: int) -> None:
        self._tensor.read_into(raw, start)

    def same_data(self, other: object) -> bool:
        return isinstance(other, _Unpacked) and self._tensor.same_data(other._tensor)
