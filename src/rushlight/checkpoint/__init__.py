"""Safetensors checkpoints from a file, a folder, shards, the hub or a URL: headers, tensors, module tree."""

from rushlight.checkpoint.checkpoint import Checkpoint, PackedTensor, Tensor
from rushlight.checkpoint.naming import display_name
from rushlight.checkpoint.source import open_checkpoint, open_headers
from rushlight.files.json_file import read_config, read_json_object

__all__ = [
    "Checkpoint",
    "PackedTensor",
    "Tensor",
    "display_name",
    "open_checkpoint",
    "open_headers",
    "read_config",
    "read_json_object",
]
