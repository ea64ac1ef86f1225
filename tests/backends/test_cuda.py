"""The CUDA backend beyond the shared suite: Triton kernels, CUDA graphs, host synchronisation, out of memory."""

import contextlib
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from backend_helpers import ArrayTensor, attend, random, textbook_attention

from rushlight.backends import devices, open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.device_step import HostStep, Scoring
from rushlight.backends.fusion import Fused, Norm, value_of
from rushlight.backends.protocol import LogitAdjustments, Role, SamplingRow
from rushlight.errors import DeviceError
from rushlight.nn import ACTIVATIONS, Slot, tapped
from rushlight.nn.trace import Trace

pytestmark = [
    pytest.mark.devices,
    # NumPy warns when it interprets an activation: 1 / (1 + inf) is intended.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
]

ON = "cuda" if any(status.name == "cuda" and status.available for status in devices()) else "cpu"
"""On a GPU the kernels are compiled; elsewhere Triton interprets them."""


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.manual_seed(0)
    return torch


@pytest.fixture(scope="module")
def plain(torch):
    from rushlight.backends import cuda

    return cuda


@pytest.fixture(scope="module")
def kernels(torch):
    from rushlight.backends import cuda_kernels

    return cuda_kernels


# One more bfloat16 rounding than in PyTorch: Triton's interpreter truncates where a GPU rounds.
DTYPES = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 1.6e-2}


def assert_attention(torch, plain, kernels, dtype, n_head, n_kv_head, head_dim, width, slopes=False, **options):
    """Sequences of one, two and three parts; slots never written or seen hold NaN, and q, k and v are views."""
    torch.manual_seed(head_dim)
    scoring = Scoring(0.3, slopes=torch.rand(n_head).to(ON) if slopes else None, **options)
    n_blocks = 17
    dims = n_blocks * BLOCK_SIZE, n_kv_head, head_dim
    keys, values = (torch.randn(dims).to(ON, getattr(torch, dtype)) for _ in range(2))
    tables = torch.full((4, width), n_blocks - 1, device=ON)
    tables[1, 0], tables[2, :2], tables[3, :4] = 10, torch.tensor([6, 8]), torch.tensor([13, 15, 14, 12])
    lengths = [3 * BLOCK_SIZE + 5, 1, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE]
    if width == 16:
        tables[0, :9] = torch.tensor([3, 1, 7, 9, 11, 0, 4, 5, 2])
        lengths[0] = 8 * BLOCK_SIZE + 5
    else:
        tables[0, :4] = torch.tensor([7, 9, 11, 1])
    places = [int(tables[s, (n - 1) // BLOCK_SIZE]) * BLOCK_SIZE + (n - 1) % BLOCK_SIZE for s, n in enumerate(lengths)]
    for x in (keys, values):
        x[-BLOCK_SIZE:] = np.nan
        x[places] = np.nan
        for s, n in enumerate(lengths):
            for position in range(n - (scoring.window or n)):
                x[int(tables[s, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE] = np.nan
    places, lengths = torch.tensor(places, device=ON), torch.tensor(lengths, device=ON)
    heads = torch.randn(4, n_head + 2 * n_kv_head, head_dim).to(ON, keys.dtype)
    q, k, v = heads.split([n_head, n_kv_head, n_kv_head], 1)

    kept = keys.double(), values.double()
    expected = plain.decode_attention(q.double(), k.double(), v.double(), *kept, places, tables, lengths, scoring)
    found = kernels.decode_attention(q, k, v, keys, values, places, tables, lengths, scoring)
    assert (found.dtype, found.shape) == (q.dtype, q.shape)
    assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()
    for written, plainly in zip((keys, values), kept, strict=True):
        assert torch.equal(written.double().nan_to_num(), plainly.nan_to_num())


HEADS = [(2, 2, 64), (3, 3, 5), (1, 1, 80), (4, 2, 10), (9, 1, 20)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_head", "n_kv_head", "head_dim"), HEADS)
@pytest.mark.parametrize("width", [4, 16])
def test_attention_over_blocks(torch, plain, kernels, dtype, n_head, n_kv_head, head_dim, width):
    assert_attention(torch, plain, kernels, dtype, n_head, n_kv_head, head_dim, width)


@pytest.mark.parametrize(
    "options",
    [
        *({"window": window} for window in (1, 64, 65, 300)),
        {"slopes": True},
        {"softcap": 2.0},
        {"window": 70, "slopes": True, "softcap": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(("n_head", "n_kv_head", "head_dim"), [(2, 2, 64), (3, 1, 256)])
def test_attention_with_a_window_slopes_and_a_softcap(torch, plain, kernels, n_head, n_kv_head, head_dim, options):
    assert_attention(torch, plain, kernels, "float32", n_head, n_kv_head, head_dim, 16, **options)


PRODUCTS = {
    "product": {},
    "norm": {"norm": 1e-5},
    "norm and activation": {"norm": 0.3, "activation": "gelu_tanh"},
    "residual": {"residual": True},
    "all": {"norm": 1e-5, "activation": "silu", "residual": True},
    "no bias": {"norm": 1e-5, "bias": False},
    "norm without a bias": {"norm": 1e-5, "shift": False},
    "rms norm": {"norm": 1e-5, "shift": False, "rms": True, "offset": 1.0},
    "gate": {"activation": "silu", "factor": 0.5, "gated": True},
    "gate and residual": {"norm": 1e-5, "activation": "gelu_tanh", "gated": True, "residual": True},
    "factor": {"activation": "relu", "factor": 0.25, "residual": True},
}


@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
@pytest.mark.parametrize("parts", PRODUCTS)
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1, 18, 72), (1, 4100, 5), (2, 7, 33), (16, 300, 47)])
def test_products_of_few_rows(torch, plain, kernels, dtype, parts, n, n_in, n_out):
    torch.manual_seed(n_in)
    parts, kept = PRODUCTS[parts], torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)

    def random(*shape):
        return torch.randn(*shape).to(ON, kept)

    norm = None
    if "norm" in parts:
        shift = random(n_in) if parts.get("shift", True) else None
        norm = Norm(random(n_in), shift, parts["norm"], parts.get("offset", 0.0), parts.get("rms", False))
    weight = plain.quantise(torch.randn(n_out, n_in, device=ON)) if dtype == "int8" else random(n_out, n_in)
    fused = Fused(
        x=3 * random(n, n_in) + 1,
        norm=norm,
        weight=weight,
        bias=random(n_out) if parts.get("bias", True) else None,
        activation=parts.get("activation"),
        factor=parts.get("factor"),
        gated=random(n, n_out) if "gated" in parts else None,
        residual=random(n, n_out) if "residual" in parts else None,
    )
    found = kernels.linear(fused)
    expected = plain.compute(doubled(fused))
    assert (found.dtype, found.shape) == (kept, (n, n_out))
    limit = DTYPES["bfloat16" if dtype == "int8" else dtype]
    assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("n_head", "head_dim", "n_rotated"), [(2, 10, 10), (3, 10, 4), (1, 64, 64), (2, 8, 2)])
def test_rotary_of_few_rows(torch, kernels, dtype, interleaved, n_head, head_dim, n_rotated):
    """x is a view of wider rows."""
    ops = open_backend("torch-cpu" if ON == "cpu" else ON, "f32")
    x = torch.randn(5, n_head * head_dim + 3).to(ON, getattr(torch, dtype))[:, 3:]
    angles = torch.randn(5, n_rotated).to(ON)
    found = kernels.rotary(x, angles, n_head, interleaved)
    ops._kernels = None
    expected = ops.rotary(x.double(), angles, n_head, interleaved=interleaved)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


def doubled(fused):
    """Returns the same in float64."""
    norm, weight = fused.norm, fused.weight
    return fused._replace(
        x=fused.x.double(),
        norm=norm
        and norm._replace(weight=norm.weight.double(), bias=norm.bias if norm.bias is None else norm.bias.double()),
        weight=weight.values * weight.scales[:, None].double() if isinstance(weight, tuple) else weight.double(),
        bias=None if fused.bias is None else fused.bias.double(),
        residual=None if fused.residual is None else fused.residual.double(),
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_in_a_product(torch, plain, kernels, name):
    x = torch.linspace(-12, 12, 301, device=ON)[None]
    x = torch.cat([x, torch.tensor([[-1e12, -1e4, 1e4, 1e12]], device=ON)], 1)
    fused = Fused(x, weight=torch.eye(x.shape[1], device=ON), activation=name)
    found, expected = kernels.linear(fused)[0], plain.compute(doubled(fused))[0]
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert kernels.linear(fused._replace(x=x * np.nan)).isnan().all()


def test_rows_are_bit_identical_in_batches_of_two_to_sixteen(torch, kernels):
    norm = Norm(torch.randn(200, device=ON), torch.randn(200, device=ON), 1e-5)
    fused = Fused(torch.randn(16, 200, device=ON), norm, torch.randn(40, 200, device=ON), activation="relu")
    whole = kernels.linear(fused)
    for n in (2, 5, 8):
        assert torch.equal(kernels.linear(fused._replace(x=fused.x[:n])), whole[:n])


@pytest.fixture
def tiny(torch):
    """A two-block GPT-2 on PyTorch that uses the kernels, and a cache that holds a prompt of 70 tokens."""
    from rushlight.models.gpt2 import GPT2, GPT2Config

    sizes = {"vocab_size": 90, "n_positions": 600, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 128}

    def tiny(*, fused):
        ops = open_backend("torch-cpu" if ON == "cpu" else ON, "f32")
        if fused:
            from rushlight.backends import cuda_kernels

            ops._kernels = cuda_kernels
        rng = np.random.default_rng(0)
        config = GPT2Config(**sizes)
        model = GPT2(config)
        for path, module in model.named_modules():
            for name, slot in list(vars(module).items()):
                if isinstance(slot, Slot) and path != "lm_head":
                    values = 0.3 * rng.standard_normal(slot.shape).astype(np.float32)
                    setattr(module, name, ops.load_weight(ArrayTensor(values, f"{path}.{name}"), slot.role))
            module.ops = ops
        model.lm_head.weight = ops.tie(model.wte.weight)
        cache = ops.kv_cache(config.kv_shape, 12)
        model(Batch.of([Chunk([i % 90 for i in range(70)], 0, [3, 1])], cache))
        return ops, model, cache

    return tiny


class Launches:
    """Counts the kernels that a GPU would launch: Triton's, and PyTorch's operations that compute."""

    LAUNCH_NOTHING = tuple(
        "view split slice select.int unsqueeze transpose t. expand empty detach alias promote_types".split()
    )

    def __init__(self, torch, kernels, monkeypatch):
        from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

        self.names = names = []

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                name = str(operation).removeprefix("aten.")
                if not name.startswith(Launches.LAUNCH_NOTHING):
                    names.append(name)
                return operation(*args, **(kwargs or {}))

        class Counted:
            def __init__(self, name, kernel):
                self.name, self.kernel = name, kernel

            def __getitem__(self, grid):
                def launch(*args, **kwargs):
                    names.append(self.name)
                    with _disable_current_modes():
                        self.kernel[grid](*args, **kwargs)

                return launch

        for name in ("_attend", "_merge", "_linear"):
            monkeypatch.setattr(kernels, name, Counted(name, getattr(kernels, name)))
        self.counting = Operations


@pytest.mark.parametrize(("position", "parts"), [(70, 1), (300, 2)])
@pytest.mark.parametrize("n", [1, 3])
def test_a_block_of_gpt2_is_five_launches(torch, kernels, tiny, monkeypatch, position, parts, n):
    ops, model, cache = tiny(fused=True)
    launches = Launches(torch, kernels, monkeypatch)
    batch = Batch.of([Chunk([5 + s], position, range(12)) for s in range(n)], cache)
    host = HostStep.of(batch, cache.spares)
    step = host.on_device(ops._upload(host.numbers))
    with launches.counting():
        ops.to_numpy(model(step))
    block = ["_linear", "_attend", *["_merge"] * (parts > 1), "_linear", "_linear", "_linear"]
    embedded = ["embedding.default", "embedding.default", "add.Tensor"]
    assert launches.names == [*embedded, *block * 2, "index_select.default", "_linear"]


def test_a_model_has_the_same_values_through_the_kernels(torch, tiny):
    """A decode step, a short and a long prompt in one batch; a trace holds the computed values."""
    results = []
    for fused in (False, True):
        ops, model, cache = tiny(fused=fused)
        trace = Trace(ops)
        watched = tapped(model, trace.hook)
        for chunks in (
            [Chunk([7], 70, [3, 1])],
            [Chunk([8], 71, [3, 1]), Chunk([1, 2, 3], 0, [2]), Chunk([9], 0, [4])],
            [Chunk([8], 72, [3, 1]), Chunk(range(20), 3, [2])],
        ):
            watched(Batch.of(chunks, cache))
        results.append(({path: trace[path] for path in trace}, [x.cpu() for x in cache.keys + cache.values]))
    (plain, plain_kv), (found, found_kv) = results
    assert list(found) == list(plain)
    for path, values in found.items():
        assert np.abs(values - plain[path]).max() <= 1e-5 * np.abs(plain[path]).max(), path
    for x, y in zip(found_kv, plain_kv, strict=True):
        assert torch.allclose(x[:-BLOCK_SIZE], y[:-BLOCK_SIZE], atol=1e-5)


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rushlight.backends import cuda_kernels as kernels

def attend(one_part, group=1, head_dim=64, window=None, slopes=None, softcap=None):
    sums, out = (None, "*bf16") if one_part else ("*fp32", "*fp32")
    types = ["*bf16"] * 5 + ["*i64"] * 3 + [out, sums, "fp32", window, slopes, softcap] + ["i32"] * 4
    part = 256 if group == 1 else max(8192 // head_dim, 64)
    return kernels._attend, types, (4, group, min(group, 8), head_dim, head_dim, part, 64), {"num_warps": 8}

def linear(
    n, n_in, n_out, *, norm=None, rms=False, values="*bf16", scales=None, activation=None, gated=None, residual=None
):
    shift = None if rms else norm
    types = ["*bf16", norm, shift, values, scales, "*bf16", gated, residual, "*bf16", "i32", "i32"] + ["fp32"] * 3
    tile = kernels._tile(n, n_in, n_out, torch.bfloat16)
    width = min(triton.next_power_of_2(n_in), kernels.MAX_TILE_VALUES // tile[0])
    constants = n_in, rms, activation, *kernels._TYPES[torch.bfloat16], *tile, width
    return kernels._linear, types, constants, {"num_warps": 8 if tile[2] == 4096 else 4, "num_stages": 4}

for kernel, types, constants, options in [
    attend(True),
    attend(False, group=3),
    attend(False, group=9, head_dim=256, window="i32", slopes="*fp32", softcap="fp32"),
    (kernels._merge, ["*fp32", "*fp32", "*i64", "*bf16", "i32", None], (12, 64, 64, 256, 4), {}),
    (kernels._merge, ["*fp32", "*fp32", "*i64", "*bf16", "i32", "i32"], (12, 64, 64, 256, 4), {}),
    (kernels._rotary, ["*bf16", "*fp32", "*bf16", "i32"], (12, 80, 20, False, 128), {}),
    (kernels._rotary, ["*bf16", "*fp32", "*bf16", "i32"], (12, 80, 20, True, 128), {}),
    linear(1, 768, 2304, norm="*bf16", activation="gelu_tanh"),
    linear(1, 3072, 768, values="*i8", scales="*fp32", residual="*bf16"),
    linear(16, 768, 50257, norm="*bf16"),
    linear(1, 768, 2304, norm="*bf16", rms=True, activation="silu", gated="*bf16"),
    linear(16, 768, 2304, norm="*bf16", rms=True),
    linear(16, 3072, 768, values="*i8", scales="*fp32", residual="*bf16"),
]:
    given = dict(zip(kernel.arg_names, [*types, *constants], strict=True))
    known = set(kernel.arg_names[len(types):]) | {name for name, kind in given.items() if kind is None}
    signature = {name: "constexpr" if name in known else kind for name, kind in given.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind and kind[0] == "*"}
    source = ASTSource(kernel, signature, {name: given[name] for name in known}, aligned)
    for capability in (80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"]
        print(kernel.__name__, capability, made.metadata.shared)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA comes for Linux")
def test_kernels_compile_for_ampere_and_hopper():
    """Compiling to machine code needs no GPU. The kernels fit into the smallest shared memory, 99 KB."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 26
    assert max(int(shared) for _, _, shared in lines) <= 99 * 1024


def test_sampling_waits_for_the_device_once(torch, monkeypatch):
    """Only the ids are copied to the host, whatever the settings."""
    ops = open_backend("torch-cpu" if ON == "cpu" else ON)
    adjustments = LogitAdjustments(np.array([1, 4], np.int32), np.array([1.2, 1.0]), np.array([0.0, 2.0]))
    allowed = np.arange(500) % 2 == 0
    rows = [
        SamplingRow(),
        SamplingRow(0.7, 40, 0.9, 0.01, 0.3, adjustments),
        SamplingRow(1.0, uniform=0.9, allowed=allowed),
    ]
    waits = []
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def wait(self, *args, name=name, original=original):
            waits.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, wait)
    ops.sample(torch.linspace(0, 3, 1500, device=ON).view(3, 500), rows)
    assert waits == ["tolist"]


def test_the_token_mask_of_a_model_is_copied_to_the_device_once(torch, monkeypatch):
    ops = open_backend("torch-cpu" if ON == "cpu" else ON)
    allowed, sent = np.arange(7) < 5, []
    original = ops._to_device
    monkeypatch.setattr(ops, "_to_device", lambda values: sent.append(values) or original(values))
    for _ in range(3):
        assert ops.sample(torch.arange(14.0, device=ON).view(2, 7), [SamplingRow(allowed=allowed)] * 2) == [4, 4]
    assert len(sent) == 1


@pytest.fixture
def graphs(torch, monkeypatch):
    """`graphs(ops)`: stand-ins for what needs a GPU. A graph here computes again, from and into the same memory.

    It returns the pools in which graphs were recorded, in that order.
    """
    pools = []

    class Graph:
        def pool(self):
            return self.own_pool

        def replay(self):
            step, forward, out = self.recorded
            out.copy_(value_of(forward(step)))

    @contextlib.contextmanager
    def recording(graph, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        graph.own_pool = object() if pool is None else pool
        pools.append(graph.own_pool)
        Graph.last = graph
        yield

    class Stream:
        def wait_stream(self, other):
            pass

    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": recording,
        "device": lambda device: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def graphs(ops):
        ops._records, ops._stream = True, Stream()
        return pools

    graphs.Graph = Graph
    return graphs


def test_graphs_are_recorded_once_a_shape_and_replayed(torch, graphs):
    ops = open_backend("torch-cpu", "f32")
    pools = graphs(ops)
    table, calls = ops.load_weight(ArrayTensor(random(50, 8)), Role.TABLE), []

    class Forward:
        version = 0

        def __call__(self, step):
            calls.append(tuple(step.ids.shape))
            x = ops.embedding(step.ids, table)
            out = ops.linear(ops.attention(x, x, x, step, layer=0, n_head=2, scale=0.5), table, None)
            if len(calls) == 2 * len(pools):  # a warm-up comes before each recording
                graphs.Graph.last.recorded = step, plain, out.value
            return out

    def plain(step):
        x = ops.embedding(step.ids, table)
        return ops.linear(ops.attention(x, x, x, step, layer=0, n_head=2, scale=0.5), table, None)

    forward = Forward()
    run, shape = ops.capture(forward), KVShape(1, 2, 4)
    cache, other = ops.kv_cache(shape, 15), ops.kv_cache(shape, 15)
    kept = []
    for position in (254, 255, 256, 257):
        for n in (3, 1):
            chunks = [Chunk([position % 50 + s], position, range(5 * s, 5 * s + 5)) for s in range(n)]
            kept.append((run(Batch.of(chunks, cache)), plain(Batch.of(chunks, other)).value))
    for found, expected in kept:
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-6)
    assert calls == [(4,), (4,), (1,), (1,)] * 2  # recorded for block tables of width four and eight
    assert len(pools) == 4
    assert len(set(pools)) == 1

    forward.version = 1
    run(Batch.of(chunks, cache))
    assert pools[-1] not in pools[:-1]  # a pool is not opened again when its graphs are gone


def test_a_forward_that_a_graph_cannot_record_runs_eagerly(torch, graphs, caplog):
    """The forward reads an activation on the host, which a graph would not repeat."""
    ops = open_backend("torch-cpu", "f32")
    pools = graphs(ops)
    table = ops.load_weight(ArrayTensor(random(50, 8)), Role.TABLE)

    def forward(batch):
        x = ops.embedding(batch.ids, table)
        return ops.attention(x * float(ops.to_numpy(x).max()), x, x, batch, layer=0, n_head=2, scale=0.5)

    run, cache, other = ops.capture(forward), *(ops.kv_cache(KVShape(1, 2, 4), 5) for _ in range(2))
    with caplog.at_level(logging.INFO, "rushlight"):
        for position in (3, 4):
            found, expected = (
                step(Batch.of([Chunk([7], position, range(5))], kv)) for step, kv in ((run, cache), (forward, other))
            )
            assert torch.equal(found, expected)
    assert [record.message for record in caplog.records] == [
        "torch-cpu runs this model without recorded steps: the forward reads an array on the host"
    ]
    assert not pools


@pytest.mark.parametrize("options", [{"window": 65}, {"slopes": [0.5, 0.25, 0.1, 0.2]}, {"softcap": 2.0}, {}], ids=str)
def test_a_decode_step_with_windows_slopes_and_softcaps_runs_in_the_kernel(torch, kernels, monkeypatch, options):
    ops = open_backend("torch-cpu" if ON == "cpu" else ON, "f32")
    ops._kernels = kernels
    launched = []
    original = kernels.decode_attention
    monkeypatch.setattr(kernels, "decode_attention", lambda *args: launched.append(1) or original(*args))
    q, k, v = (random(70, n_head * 10, seed=n_head + i) for i, n_head in enumerate((4, 2, 2)))
    found = attend(ops, [(q, k, v)], [[68, 1, 1]], 4, 0.3, **options)[0]
    expected = textbook_attention(q, k, v, 4, 0.3, **options)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(launched) == 2


def test_an_rms_norm_of_entire_rows_is_fused_and_one_of_heads_is_not(torch):
    ops = open_backend("torch-cpu" if ON == "cpu" else ON, "f32")
    x = ops.from_numpy(random(3, 12))
    entire, of_heads = (ops.load_weight(ArrayTensor(random(n)), Role.VECTOR) for n in (12, 4))
    assert ops.rms_norm(x, entire, 1e-5).normed()
    assert isinstance(ops.rms_norm(x, of_heads, 1e-5), torch.Tensor)


def test_running_out_of_memory_is_an_error_with_the_next_step(torch, monkeypatch):
    ops = open_backend("torch-cpu")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rushlight.backends.cuda._zeros", full)
    with pytest.raises(DeviceError, match=r"out of memory: no room for 5 blocks .*--dtype bf16"):
        ops.kv_cache(KVShape(1, 1, 4), 5)


def test_a_gpu_that_pytorch_cannot_use_is_an_error(torch, monkeypatch):
    from rushlight.backends.cuda import TorchBackend

    def too_old(*args, **kwargs):
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    monkeypatch.setattr(torch, "zeros", too_old)
    with pytest.raises(DeviceError, match=r"cannot use cuda: The NVIDIA driver on your system is too old; update"):
        TorchBackend("cuda")
