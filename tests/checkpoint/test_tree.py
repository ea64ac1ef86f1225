import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.checkpoint.tree import ModuleNode, ModuleTree, fold

N_PARAMETERS = 124_439_808
"""GPT-2 small; its tied head counted once."""


def f32(name, *shape):
    return name, "F32", shape, 4 * math.prod(shape)


def block(stem, width=8):
    return [f32(f"{stem}.ln.weight", width), f32(f"{stem}.ln.bias", width), f32(f"{stem}.mlp.weight", width, 4 * width)]


def gpt2_small():
    yield f32("wte.weight", 50257, 768)
    yield f32("wpe.weight", 1024, 768)
    for i in sorted(range(12), key=str):  # in the order of the file: 0, 1, 10, 11, 2, ...
        for name, *shape in [
            ("ln_1.weight", 768),
            ("ln_1.bias", 768),
            ("attn.c_attn.weight", 768, 2304),
            ("attn.c_attn.bias", 2304),
            ("attn.c_proj.weight", 768, 768),
            ("attn.c_proj.bias", 768),
            ("ln_2.weight", 768),
            ("ln_2.bias", 768),
            ("mlp.c_fc.weight", 768, 3072),
            ("mlp.c_fc.bias", 3072),
            ("mlp.c_proj.weight", 3072, 768),
            ("mlp.c_proj.bias", 768),
        ]:
            yield f32(f"h.{i}.{name}", *shape)
    yield f32("ln_f.weight", 768)
    yield f32("ln_f.bias", 768)


def labels(entries):
    """The tree as nested lists of labels, runs as (first, last, copies)."""
    found = []
    for first, last, node, copies in fold(entries):
        label = first if copies == 1 else (first, last, copies)
        found.append([label, labels(node.entries)] if isinstance(node, ModuleNode) else label)
    return found


def test_gpt2_small():
    tree = ModuleTree.build(gpt2_small())
    assert tree.n_parameters == N_PARAMETERS
    assert tree.nbytes == 4 * N_PARAMETERS
    assert tree.dtypes == {"F32": 4 * N_PARAMETERS}
    assert labels(tree.root.entries) == [
        "wte.weight",
        "wpe.weight",
        [
            ("h.0", "h.11", 12),
            [
                ["ln_1", ["weight", "bias"]],
                ["attn", [["c_attn", ["weight", "bias"]], ["c_proj", ["weight", "bias"]]]],
                ["ln_2", ["weight", "bias"]],
                ["mlp", [["c_fc", ["weight", "bias"]], ["c_proj", ["weight", "bias"]]]],
            ],
        ],
        ["ln_f", ["weight", "bias"]],
    ]


def test_marked_tensors_count_as_bytes_but_not_as_parameters():
    masks = [f32(f"h.{i}.attn.bias", 1, 1, 1024, 1024) for i in range(12)]
    head = f32("lm_head.weight", 50257, 768)
    marks = {name: "buffer" for name, *_ in masks} | {"lm_head.weight": "tied"}
    tree = ModuleTree.build([*gpt2_small(), *masks, head], marks=marks)
    assert tree.n_parameters == N_PARAMETERS
    assert tree.nbytes == 4 * (N_PARAMETERS + 12 * 1024**2 + 50257 * 768)
    assert [t.mark for t in tree.tensors[-2:]] == ["buffer", "tied"]
    assert any(f.copies == 12 for f in fold(tree.root.entries))


def test_a_block_that_differs_is_not_folded():
    tensors = [tensor for i in range(12) for tensor in block(f"h.{i}", width=16 if i == 5 else 8)]
    assert [f[:2] + f[3:] for f in fold(ModuleTree.build(tensors).root.entries)] == [
        ("h.0", "h.4", 5),
        ("h.5", "h.5", 1),
        ("h.6", "h.11", 6),
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda name, dtype, shape, nbytes: (name, "BF16", shape, nbytes // 2), id="dtype"),
        pytest.param(lambda name, dtype, shape, nbytes: (name, dtype, shape[::-1], nbytes), id="shape"),
        pytest.param(lambda name, dtype, shape, nbytes: (name + "_g", dtype, shape, nbytes), id="name"),
    ],
)
def test_blocks_that_differ_in_one_tensor(change):
    one = block("h.1")
    tree = ModuleTree.build([*block("h.0"), *one[:-1], change(*one[-1]), *block("h.2")])
    assert [f.copies for f in fold(tree.root.entries)] == [1, 1, 1]


def test_blocks_that_differ_in_a_mark():
    tree = ModuleTree.build([*block("h.0"), *block("h.1")], marks={"h.1.ln.bias": "buffer"})
    assert [f.copies for f in fold(tree.root.entries)] == [1, 1]


def test_the_order_within_a_block_does_not_matter():
    tree = ModuleTree.build([*block("h.0"), *reversed(block("h.1"))])
    assert [f.copies for f in fold(tree.root.entries)] == [2]


def test_a_gap_in_the_numbers_ends_a_run():
    tree = ModuleTree.build([t for i in (0, 1, 3, 4) for t in block(f"h.{i}")])
    assert [(f.first, f.last) for f in fold(tree.root.entries)] == [("h.0", "h.1"), ("h.3", "h.4")]


def test_numbered_modules_next_to_others_and_nested():
    tensors = [
        f32(f"moe.{i}.experts.{k}.{name}", 4, 4) for i in range(3) for k in range(10) for name in ("w1", "w2")
    ] + [f32(f"moe.{i}.router", 4) for i in range(3)]
    tensors += [f32("net.norm", 4), *block("net.0"), *block("net.1")]
    assert labels(ModuleTree.build(tensors).root.entries) == [
        [("moe.0", "moe.2", 3), [[("experts.0", "experts.9", 10), ["w1", "w2"]], "router"]],
        ["net", ["norm", [("0", "1", 2), [["ln", ["weight", "bias"]], "mlp.weight"]]]],
    ]


def test_modules_of_one_tensor_fold_too():
    tree = ModuleTree.build([f32(f"heads.{i}.weight", 4) for i in range(20)])
    assert labels(tree.root.entries) == [("heads.0.weight", "heads.19.weight", 20)]


def test_numbers_inside_names_do_not_count():
    names = ["h.00.w", "h.01.w", "x1.w", "x2.w", "²", "³", "9" * 5000, "1" * 5000 + ".a", "1" * 5000 + ".b"]
    tree = ModuleTree.build([f32(name, 2) for name in names])
    assert all(f.copies == 1 for f in fold(tree.root.entries))


def test_a_name_that_is_a_tensor_and_a_module():
    tree = ModuleTree.build([f32("a", 1), f32("a.b", 2), f32("a.c", 3), f32("a.b.c", 4), f32("a.b.d", 5)])
    assert labels(tree.root.entries) == ["a", ["a", ["b", "c", ["b", ["c", "d"]]]]]
    assert tree.n_parameters == 15


def test_empty_names_and_parts():
    names = ["", ".", "..", "a.", ".a", "a..b", "a..c"]
    tree = ModuleTree.build([f32(name, 1) for name in names])
    assert tree.n_parameters == len(names)
    assert [t.name for t in tree.tensors] == names


def test_no_tensors():
    tree = ModuleTree.build([])
    assert (tree.n_parameters, tree.nbytes, tree.root.entries) == (0, 0, ())


def test_ten_thousand_dots():
    deep = "." * 10_000
    ladder = [f32("x." * i + "w", 1) for i in range(2_000)]
    tree = ModuleTree.build([f32(deep + "a", 1), f32(deep + "b", 1), *ladder])
    assert tree.n_parameters == 2_002
    assert labels(tree.root.entries)[0] == ["." * 9_999, ["a", "b"]]


@pytest.mark.slow
def test_two_hundred_thousand_tensors_take_seconds():
    tensors = [f32(f"model.layers.{i // 10}.e.{i}.w", 2, 2) for i in range(200_000)]
    start = time.process_time()
    tree = ModuleTree.build(tensors)
    assert time.process_time() - start < 30
    assert tree.n_parameters == 800_000


part = st.sampled_from(["", "a", "b", "0", "1", "2", "10"])


@given(st.lists(st.lists(part, min_size=1, max_size=6).map(".".join), unique=True))
def test_every_name_can_be_read_from_the_tree(names):
    """The labels on the path to a tensor, joined by dots, are its name, and each tensor is in the tree once."""

    def walk(entries, path):
        for label, node in entries:
            if isinstance(node, ModuleNode):
                yield from walk(node.entries, [*path, label])
            else:
                assert ".".join([*path, label]) == node.name
                yield node.name

    tree = ModuleTree.build([f32(name, 1) for name in names])
    assert sorted(walk(tree.root.entries, [])) == sorted(names)


@given(st.lists(st.lists(part, min_size=1, max_size=6).map(".".join), unique=True))
def test_folding_is_lossless(names):
    def count(entries):
        return sum(f.copies * (count(f.node.entries) if isinstance(f.node, ModuleNode) else 1) for f in fold(entries))

    assert count(ModuleTree.build([f32(name, 1) for name in names]).root.entries) == len(names)


def test_json():
    tree = ModuleTree.build(
        [f32("wte.weight", 3, 2), f32("lm_head.weight", 3, 2)],
        source="m.safetensors",
        files=["m.safetensors"],
        metadata={"format": "pt"},
        architecture="gpt2",
        marks={"lm_head.weight": "tied"},
    )
    assert json.loads(json.dumps(tree.to_json())) == {
        "source": "m.safetensors",
        "architecture": "gpt2",
        "files": ["m.safetensors"],
        "metadata": {"format": "pt"},
        "n_tensors": 2,
        "n_parameters": 6,
        "nbytes": 48,
        "dtypes": {"F32": 48},
        "tensors": [
            {"name": "wte.weight", "dtype": "F32", "shape": [3, 2], "nbytes": 24, "mark": None},
            {"name": "lm_head.weight", "dtype": "F32", "shape": [3, 2], "nbytes": 24, "mark": "tied"},
        ],
    }


def test_repr_is_short():
    assert repr(ModuleTree.build([f32("w", 1000, 2)], source="m")) == "<ModuleTree of 'm': 1 tensors, 2,000 parameters>"
