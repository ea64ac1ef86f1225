"""`rushlight inspect` on sparse checkpoints, since it reads only headers."""

import html
import io
import json
import math
import re
import runpy
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from rushlight.cli.views.tree import TreeView
from rushlight.host.memory import human_bytes
from rushlight.loading.inspection import inspect

IMAGES = Path(__file__).parents[2] / "docs" / "images"
N_PARAMETERS = 124_439_808
"""The parameters of GPT-2 small, with its tied head counted once."""

BLOCK = {
    "ln_1.weight": (768,),
    "ln_1.bias": (768,),
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


def gpt2_small(prefix="", buffers=False, head=False):
    """The shapes of GPT-2 small, with optional buffers and head."""
    shapes = {f"{prefix}wte.weight": (50257, 768), f"{prefix}wpe.weight": (1024, 768)}
    for i in range(12):
        shapes |= {f"{prefix}h.{i}.{name}": shape for name, shape in BLOCK.items()}
        if buffers:
            shapes |= {f"{prefix}h.{i}.attn.bias": (1, 1, 1024, 1024), f"{prefix}h.{i}.attn.masked_bias": ()}
    shapes |= {f"{prefix}ln_f.weight": (768,), f"{prefix}ln_f.bias": (768,)}
    return shapes | ({"lm_head.weight": (50257, 768)} if head else {})


def write(path, shapes, metadata=None, dtype="F32"):
    """Writes a sparse checkpoint of zeros."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * (2 if dtype == "BF16" else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def on_terminal(tree, width, **options):
    """Returns the output on a terminal of that width without colours, and whether it had colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system="256", _environ={})
    console.print(TreeView(tree, **options), soft_wrap=True)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()), "\x1b[" in file.getvalue()


def test_the_output_for_gpt2_small(rushlight, path):
    write(path, gpt2_small(), {"format": "pt"})
    done = rushlight("inspect", path)
    assert (done.code, done.err) == (0, "")
    source, facts, blank, *table, blank_too, memory = done.out.splitlines()
    assert (source, blank, blank_too) == (str(path), "", "")
    assert memory == (
        "memory: weights in f32 474.7 MiB (bf16 237.6 MiB, int8 126.4 MiB, int4 76.5 MiB); "
        "keys and values 72.0 MiB for all 1,024 tokens"
    )
    assert facts == "gpt2 · 124,439,808 parameters · 148 tensors · 474.7 MiB · F32 · 1 file · format: pt"
    assert table == [
        "name                    dtype  shape           parameters       size",
        "├── wte.weight          F32    (50257, 768)    38,597,376  147.2 MiB",
        "├── wpe.weight          F32    (1024, 768)        786,432    3.0 MiB",
        "├── h.0 … h.11 ×12             12 × 7,087,872  85,054,464  324.5 MiB",
        "│   ├── ln_1                                        1,536    6.0 KiB",
        "│   │   ├── weight      F32    (768,)                 768    3.0 KiB",
        "│   │   └── bias        F32    (768,)                 768    3.0 KiB",
        "│   ├── attn                                    2,362,368    9.0 MiB",
        "│   │   ├── c_attn                              1,771,776    6.8 MiB",
        "│   │   │   ├── weight  F32    (768, 2304)      1,769,472    6.8 MiB",
        "│   │   │   └── bias    F32    (2304,)              2,304    9.0 KiB",
        "│   │   └── c_proj                                590,592    2.3 MiB",
        "│   │       ├── weight  F32    (768, 768)         589,824    2.2 MiB",
        "│   │       └── bias    F32    (768,)                 768    3.0 KiB",
        "│   ├── ln_2                                        1,536    6.0 KiB",
        "│   │   ├── weight      F32    (768,)                 768    3.0 KiB",
        "│   │   └── bias        F32    (768,)                 768    3.0 KiB",
        "│   └── mlp                                     4,722,432   18.0 MiB",
        "│       ├── c_fc                                2,362,368    9.0 MiB",
        "│       │   ├── weight  F32    (768, 3072)      2,359,296    9.0 MiB",
        "│       │   └── bias    F32    (3072,)              3,072   12.0 KiB",
        "│       └── c_proj                              2,360,064    9.0 MiB",
        "│           ├── weight  F32    (3072, 768)      2,359,296    9.0 MiB",
        "│           └── bias    F32    (768,)                 768    3.0 KiB",
        "└── ln_f                                            1,536    6.0 KiB",
        "    ├── weight          F32    (768,)                 768    3.0 KiB",
        "    └── bias            F32    (768,)                 768    3.0 KiB",
    ]


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("buffers", [False, True], ids=["", "buffers"])
@pytest.mark.parametrize("head", [False, True], ids=["", "head"])
def test_the_number_of_parameters_does_not_depend_on_the_format(path, prefix, buffers, head):
    path.with_name("config.json").write_text("{}")
    tree = inspect(str(write(path, gpt2_small(prefix, buffers, head))))
    assert (tree.n_parameters, tree.architecture) == (N_PARAMETERS, "gpt2")
    assert sum(tensor.mark == "buffer" for tensor in tree.tensors) == 24 * buffers
    assert [tensor.name for tensor in tree.tensors if tensor.mark == "tied"] == ["lm_head.weight"] * head


@pytest.mark.parametrize(
    ("config", "same", "tied"),
    [
        (None, True, True),
        (None, False, False),
        ('{"tie_word_embeddings": false}', True, False),
        ('{"tie_word_embeddings": true}', False, True),
        ("{}", False, True),
        ("not JSON", True, True),
        ("not JSON", False, False),
        ('{"tie_word_embeddings": "yes"}', True, True),
    ],
)
def test_a_tied_head_is_marked(path, config, same, tied):
    """The config decides; without a valid one, the bytes are compared."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    tensors = {"wte.weight": table, "wpe.weight": table, "h.0.attn.c_attn.weight": np.ones((2, 6), np.float32)}
    save_file(tensors | {"lm_head.weight": table if same else table + 1}, path)
    if config is not None:
        path.with_name("config.json").write_text(config)
    tree = inspect(str(path))
    assert {t.name: t.mark for t in tree.tensors}["lm_head.weight"] == ("tied" if tied else None)


@pytest.mark.parametrize(("key", "tied"), [("", False), (', "tie_word_embeddings": true', True)])
def test_the_default_of_a_tied_head_is_that_of_the_architecture(path, key, tied):
    table = np.ones((3, 2), np.float32)
    save_file({"model.embed_tokens.weight": table, "lm_head.weight": table}, path)
    path.with_name("config.json").write_text(f'{{"model_type": "llama"{key}}}')
    tree = inspect(str(path))
    assert {t.name: t.mark for t in tree.tensors}["lm_head.weight"] == ("tied" if tied else None)


def test_marks_are_shown(rushlight, path):
    path.with_name("config.json").write_text("{}")
    out = rushlight("inspect", write(path, gpt2_small(buffers=True, head=True))).out
    assert re.search(r"bias +F32 +\(1, 1, 1024, 1024\) +buffer +4\.0 MiB", out)
    assert re.search(r"lm_head\.weight +F32 +\(50257, 768\) +tied +147\.2 MiB", out)


def test_a_checkpoint_of_an_unknown_architecture_is_shown(rushlight, path):
    out = rushlight("inspect", write(path, {"a.weight": (2, 3), "b": ()})).out
    assert out.splitlines()[1] == "7 parameters · 2 tensors · 28 B · F32 · 1 file"


@pytest.mark.parametrize(("depth", "lines"), [(0, 0), (1, 4), (2, 10)])
def test_depth_limits_the_tree(rushlight, path, depth, lines):
    out = rushlight("inspect", write(path, gpt2_small()), "--depth", depth).out
    assert len(out.splitlines()) == 2 + (2 + lines if lines else 0) + 2


def test_a_negative_depth_is_wrong_usage(rushlight, path):
    assert rushlight("inspect", write(path, gpt2_small()), "--depth", -1).code == 2


def test_full_shows_every_block(rushlight, path):
    out = rushlight("inspect", write(path, gpt2_small()), "--full", "--depth", 1).out
    assert re.findall(r"h\.\d+", out) == [f"h.{i}" for i in range(12)]
    assert "×" not in out


def test_json_is_the_tree(rushlight, path):
    write(path, gpt2_small(buffers=True), {"format": "pt"})
    record = json.loads(rushlight("inspect", path, "--json").out)
    assert record.pop("memory") == {
        "stored": "f32",
        "weight_bytes": {
            "f64": 995_033_088,
            "f32": 497_759_232,
            "f16": 249_122_304,
            "bf16": 249_122_304,
            "int8": 132_573_744,
            "int4": 80_260_464,
        },
        "kv_bytes": {"1024": 75_497_472},
        "context_length": 1024,
    }
    assert record == inspect(str(path)).to_json()
    assert (record["n_parameters"], record["files"]) == (N_PARAMETERS, ["model.safetensors"])


def test_shards_are_one_tree(rushlight, tmp_path):
    halves = [{"wte.weight": (4, 2), "h.0.w": (2, 2)}, {"h.1.w": (2, 2)}]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, shapes in zip(names, halves, strict=True):
        write(tmp_path / name, shapes)
    index = {tensor: name for name, shapes in zip(names, halves, strict=True) for tensor in shapes}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    out = rushlight("inspect", tmp_path).out
    assert "2 files" in out
    assert "h.0.w … h.1.w ×2" in out


def test_mixed_dtypes_are_listed_with_sizes(path):
    tensors = {"a": np.zeros((8, 64), np.float16), "b": np.zeros(8, np.float32)}
    save_file(tensors, path)
    assert "F16 1.0 KiB · F32 32 B" in on_terminal(inspect(str(path)), 200)[0]


@pytest.mark.parametrize("width", [60, 72, 80, 100, 200])
def test_the_table_fits_the_terminal(path, width):
    tree = inspect(str(write(path, gpt2_small(), {"format": "pt"})))
    shown, coloured = on_terminal(tree, width)
    lines = shown.splitlines()
    assert coloured
    assert max(map(len, lines[1:])) <= width
    assert ("━" in shown) == (width >= 80)
    assert ("324.5 MiB" in shown) == (width >= 72)
    assert all(line == line.rstrip() for line in lines)


def test_bars_are_shares_of_all_parameters(path):
    tree = inspect(str(write(path, {"a": (30,), "b.0.w": (5,), "b.1.w": (5,)})))
    bars = re.findall("━+", on_terminal(tree, 200)[0])
    assert [len(bar) for bar in bars] == [18, 6]


def test_a_pipe_gets_complete_names_without_colour(process, path):
    name = "a_very_long_name_" * 20 + ".weight"
    write(path, {name: (2,), "b": (3,)})
    done = process(f"$rushlight inspect {path} | cat", env={"COLUMNS": "40", "TERM": "xterm-256color"})
    assert name in done.out
    assert "\x1b" not in done.out
    assert "│" not in done.out.splitlines()[-1]


def test_no_color_is_honoured(path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="256").print(TreeView(inspect(str(write(path, gpt2_small())))))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", file.getvalue())


def test_an_ascii_encoding_gets_ascii_lines(process, path):
    write(path, {"a.0.w": (2,), "a.1.w": (2,), "b.c": (1,), "b.ü": (1,)})
    done = process(f"$rushlight inspect {path}", env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert "|-- a.0.w ... a.1.w x2" in done.out
    assert "    `-- \\xfc" in done.out


@pytest.mark.parametrize("name", ["", "a\0b", "\x1b[31mred\x1b[0m", "../../etc/passwd", "a\nb", "a\tb", "\u202eabc"])
def test_names_are_escaped(rushlight, path, name):
    write(path, {name: (2,)}, {"format\x1b[2J": "pt\n\x07"})
    done = rushlight("inspect", path)
    assert done.code == 0
    assert len(done.out.splitlines()) == 5
    assert all(c.isprintable() or c == "\n" for c in done.out)
    assert json.loads(rushlight("inspect", path, "--json").out)["tensors"][0]["name"] == name


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/nope]", ":smile:", "[link=file:///etc]x[/link]"])
def test_names_are_not_parsed_as_markup(rushlight, path, name):
    out = rushlight("inspect", write(path, {name: (2,)})).out
    assert f"└── {name}  F32" in out


def test_long_metadata_is_truncated_only_in_the_table(rushlight, path):
    write(path, {"a": (1,)}, {"note": "x" * 10_000})
    assert max(map(len, rushlight("inspect", path).out.splitlines())) < 400
    assert len(json.loads(rushlight("inspect", path, "--json").out)["metadata"]["note"]) == 10_000


def test_deep_names_are_shown(rushlight, path):
    """Ten thousand dots do not exceed the recursion limit."""
    done = rushlight("inspect", write(path, {"." * 10_000 + end: (1,) for end in "ab"} | {"x." * 99 + "y": (1,)}))
    assert done.code == 0
    assert " characters) " in done.out


def test_a_ten_gigabyte_checkpoint_opens_at_once(path):
    start = time.process_time()  # CPU time instead of wall-clock time, since other processes may run
    tree = inspect(str(write(path, {"h.0.w": (50_000, 50_000)})))
    assert tree.nbytes == 10**10
    assert time.process_time() - start < 1


def test_zero_dimensions_and_scalars_are_shown(rushlight, path):
    out = rushlight("inspect", write(path, {"none": (0, 5), "one": ()})).out
    assert re.search(r"none +F32 +\(0, 5\) +0 +0 B", out)
    assert re.search(r"one +F32 +\(\) +1 +4 B", out)


def test_an_empty_checkpoint_is_shown(rushlight, path):
    assert rushlight("inspect", write(path, {})).out.splitlines()[1:] == ["0 parameters · 0 tensors · 0 B · 1 file"]


@pytest.mark.parametrize("content", [b"", b"short", b"\x00" * 100, b"GGUF" + b"\x00" * 100, b"<html></html>" * 9])
def test_invalid_checkpoints_exit_with_2(rushlight, path, content):
    path.write_bytes(content)
    done = rushlight("inspect", path)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(f"error: {re.escape(str(path))}.*\n", done.err)


def test_a_source_is_required(rushlight):
    done = rushlight("inspect")
    assert (done.code, done.out) == (2, "")
    assert "SOURCE" in done.err


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (497_759_232, "474.7 MiB"),
        (2**40, "1.0 TiB"),
        (2**62, "4,194,304.0 TiB"),
    ],
)
def test_human_bytes(n, text):
    assert human_bytes(n) == text


def test_the_screenshot_is_current():
    """Only the text is compared, since Rich's rendering may change."""

    def words(svg):
        return "".join(html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)).split()

    made = runpy.run_path(str(IMAGES / "make_inspect_svg.py"))["screenshot"]()
    assert words((IMAGES / "inspect.svg").read_text(encoding="utf-8")) == words(made)
    assert "124,439,808" in words(made)


def test_a_type_that_is_not_built_in_is_named(rushlight, path):
    write(path, {"model.layers.0.mlp.experts.0.w1.weight": (4, 4)})
    (path.parent / "config.json").write_text('{"model_type": "mixtral"}')
    done = rushlight("inspect", path)
    assert done.code == 0
    assert "mixtral is a mixture-of-experts model, which rushlight does not run" in done.err
    assert "memory" not in done.out
    assert json.loads(rushlight("inspect", path, "--json").out)["memory"] is None


def test_what_does_not_fit_in_memory_is_named(rushlight, path, monkeypatch):
    monkeypatch.setattr("rushlight.host.memory.available_bytes", lambda: 400 * 2**20)
    done = rushlight("inspect", write(path, gpt2_small()))
    assert "memory: weights in f32 474.7 MiB" in done.out
    assert done.err == "note: fits with --dtype bf16 (273.6 MiB of 400.0 MiB available; f32 needs 546.7 MiB)\n"
