"""See: safetensors checkpoints from a file, a folder, shards or the hub; their headers, their tensors, their tree."""

from rushlight.checkpoint.checkpoint import Checkpoint, Tensor
from rushlight.checkpoint.source import open_checkpoint
from rushlight.checkpoint.strict_json import read_json_object

__all__ = ["Checkpoint", "Tensor", "open_checkpoint", "read_json_object"]
