"""The embedded model: tales, a small GPT-2 that writes fairy tales, so that everything can be tried offline.

6 blocks, 192 channels, 512 positions, 3.6 M parameters in F16, its own byte-level BPE of 4,096 tokens; trained from
nothing on public-domain books by `examples/train_tales`, whose README.md says how well. A demonstration and a test
object, not a good writer: it has learnt from stretches of 256 tokens, and what it writes beyond that is worse.

The folder is an ordinary checkpoint: model.safetensors under the original GPT-2's names, config.json, tokenizer.json.
"""

from pathlib import Path

__all__ = ["NAME", "folder"]

NAME = "tales"
"""What it is called wherever a source is named; a path of that name comes first."""


def folder() -> Path:
    """The folder that the model lies in."""
    return Path(__file__).parent
