"""Writes docs/images/inspect.svg: what `rushlight inspect` shows for a GPT-2 small, the mask buffers of 2019 included.

The checkpoint is a header with a hole after it, so nothing is downloaded and nothing is random.
"""

import contextlib
import io
import json
import math
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from rushlight.cli.views.tree import TreeView
from rushlight.loading.inspection import inspect

WIDTH = 92
RUSHLIGHT = TerminalTheme(
    background=(24, 22, 20),
    foreground=(226, 220, 210),
    normal=[
        (24, 22, 20),
        (224, 108, 97),
        (152, 187, 108),
        (240, 176, 80),
        (126, 156, 216),
        (190, 140, 190),
        (122, 184, 176),
        (226, 220, 210),
    ],
)
BLOCK = {
    "ln_1.weight": (768,),
    "ln_1.bias": (768,),
    "attn.bias": (1, 1, 1024, 1024),
    "attn.c_attn.weight": (768, 2304),
    "attn.c_attn.bias": (2304,),
    "attn.c_proj.weight": (768, 768),
    "attn.c_proj.bias": (768,),
    "ln_2.weight": (768,),
    "ln_2.bias": (768,),
    "mlp.c_fc.weight": (768, 3072),
    "mlp.c_fc.bias": (3072,),
    "mlp.c_proj.weight": (3072, 768),
    "mlp.c_proj.bias": (768,),
}
SHAPES = {
    "wte.weight": (50257, 768),
    "wpe.weight": (1024, 768),
    **{f"h.{i}.{name}": shape for i in range(12) for name, shape in BLOCK.items()},
    "ln_f.weight": (768,),
    "ln_f.bias": (768,),
}


def write_checkpoint(path: Path) -> None:
    """A safetensors file of SHAPES in float32, whose data takes no room on the disk."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in SHAPES.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def screenshot() -> str:
    """The SVG."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_checkpoint(Path("model.safetensors"))
        console.print(TreeView(inspect("model.safetensors")))
    return console.export_svg(title="rushlight inspect model.safetensors", theme=RUSHLIGHT, unique_id="inspect")


if __name__ == "__main__":
    Path(__file__).with_name("inspect.svg").write_text(screenshot(), encoding="utf-8")
