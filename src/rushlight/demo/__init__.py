"""The embedded model `tales`, a small GPT-2 that writes fairy tales, to try everything offline.

6 blocks, 192 channels, 512 positions, 3.6 M parameters in F16, and a byte-level BPE of 4,096 tokens; trained from
scratch on public-domain books by `examples/train_tales`, whose README.md has its losses. It is for demonstrations and
tests, and not a good writer: its training sequences had 256 tokens, and beyond those it gets worse.

The folder is an ordinary checkpoint: model.safetensors under the original GPT-2's names, config.json, tokenizer.json.
"""

from pathlib import Path

__all__ = ["NAME", "folder"]

NAME = "tales"
"""Its name as a source; a path of that name takes precedence."""


def folder() -> Path:
    """The folder of the model."""
    return Path(__file__).parent
