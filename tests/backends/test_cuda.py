"""What the CUDA backend has beyond the shared suite: Triton kernels, what a choice waits for, memory that runs out."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from rushlight.backends import devices, open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.protocol import Changes, Draw
from rushlight.errors import DeviceError

pytestmark = pytest.mark.devices

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


DTYPES = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_head", "head_dim"), [(2, 64), (3, 5), (1, 16)])
def test_attention_over_blocks(torch, plain, kernels, dtype, n_head, head_dim):
    """Sequences of one, two and three parts; a block that nobody has holds NaN, and q is a view of another array."""
    n_blocks = 14
    dims = n_blocks * BLOCK_SIZE, n_head, head_dim
    keys, values = (torch.randn(dims).to(ON, getattr(torch, dtype)) for _ in range(2))
    for x in (keys, values):
        x[-BLOCK_SIZE:] = np.nan
    tables = torch.full((4, 16), n_blocks - 1, device=ON)
    tables[0, :9] = torch.tensor([3, 1, 7, 9, 11, 0, 4, 5, 2])
    tables[1, 0], tables[2, :2], tables[3, :4] = 10, torch.tensor([6, 8]), torch.tensor([0, 5, 12, 3])
    lengths = torch.tensor([8 * BLOCK_SIZE + 5, 1, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE], device=ON)
    q = torch.randn(4, 3 * n_head * head_dim).to(ON, keys.dtype).chunk(3, -1)[1].unflatten(-1, (n_head, head_dim))

    found = kernels.decode_attention(q, keys, values, tables, lengths, 0.3)
    expected = plain.decode_attention(q.double(), keys.double(), values.double(), tables, lengths, 0.3)
    assert (found.dtype, found.shape) == (q.dtype, q.shape)
    assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1, 18, 72), (3, 200, 33), (16, 128, 64)])
def test_int8_linear(torch, plain, kernels, dtype, bias, n, n_in, n_out):
    weight = plain.quantise(torch.randn(n_out, n_in, device=ON))
    x = torch.randn(n, n_in).to(ON, getattr(torch, dtype))
    shift = torch.randn(n_out).to(ON, x.dtype) if bias else None

    found = kernels.int8_linear(x, *weight, shift)
    expected = x.double() @ (weight.values * weight.scales[:, None].double()).T + (0 if shift is None else shift)
    assert (found.dtype, found.shape) == (x.dtype, (n, n_out))
    # On a GPU, TF32 keeps bf16 and f16 but rounds f32, which no weights of eight bits come with.
    limit = 2e-3 if (ON, dtype) == ("cuda", "float32") else DTYPES[dtype]
    assert (found - expected).abs().max() <= limit * expected.abs().max()


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rushlight.backends import cuda_kernels

arguments = {
    "_attend_part": ("*bf16 *bf16 *bf16 *i64 *i64 *fp32 *fp32 fp32 i32 i32", (12, 64, 64, 256, 64)),
    "_merge_parts": ("*fp32 *fp32 *bf16 i32", (12, 64, 64, 4)),
    "_int8_linear": ("*bf16 *i8 *fp32 *bf16 *bf16 i32 i32 i32", (True, 16, 32, 128)),
}
for name, (types, constants) in arguments.items():
    kernel = getattr(cuda_kernels, name)
    types = types.split()
    n = len(types)
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)], strict=True))
    source = ASTSource(kernel, signature, dict(zip(kernel.arg_names[n:], constants, strict=True)))
    for capability in (80, 90):
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
        print(name, capability)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA comes for Linux")
def test_kernels_compile_for_ampere_and_hopper():
    """Down to machine code, which needs no GPU."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_a_choice_waits_for_the_device_once(torch, monkeypatch):
    """Whatever is asked for: the ids come back, and nothing before them."""
    ops = open_backend("torch-cpu" if ON == "cpu" else ON)
    changes = Changes(np.array([1, 4], np.int32), np.array([1.2, 1.0]), np.array([0.0, 2.0]))
    allowed = np.arange(500) % 2 == 0
    draws = [Draw(), Draw(0.7, 40, 0.9, 0.01, 0.3, changes), Draw(1.0, share=0.9, allowed=allowed)]
    waits = []
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def wait(self, *args, name=name, original=original):
            waits.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, wait)
    ops.choose(torch.linspace(0, 3, 1500, device=ON).view(3, 500), draws)
    assert waits == ["tolist"]


def test_the_mask_of_a_model_is_sent_once(torch, monkeypatch):
    ops = open_backend("torch-cpu" if ON == "cpu" else ON)
    allowed, sent = np.arange(7) < 5, []
    original = ops._sent
    monkeypatch.setattr(ops, "_sent", lambda values: sent.append(values) or original(values))
    for _ in range(3):
        assert ops.choose(torch.arange(14.0, device=ON).view(2, 7), [Draw(allowed=allowed)] * 2) == [4, 4]
    assert len(sent) == 1


def test_graphs_are_recorded_once_a_shape_and_replayed(torch, monkeypatch):
    """With stand-ins for what needs a GPU: a graph here computes the forward again, from and into the same memory."""
    ops = open_backend("torch-cpu", "f32")
    table = torch.randn(50, 8)
    calls, recorded = [], []

    def forward(step):
        x = ops.embedding(step.ids, table)
        calls.append((step, ops.attention(x, x, x, step, layer=0, n_head=2, scale=0.5)))
        return calls[-1][1]

    class Graph:
        def replay(self):
            step, logits = self.call
            logits.copy_(forward(step))

    @contextlib.contextmanager
    def recording(graph, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        assert len(calls) == len(recorded) + 1  # warmed up
        yield
        graph.call = calls[-1]
        recorded.append(tuple(calls[-1][0].tables.shape))

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
    ops._records, ops._stream, ops._pool = True, Stream(), None

    run, shape = ops.capture(forward), KVShape(1, 2, 4)
    cache, plain = ops.kv_cache(shape, 6), ops.kv_cache(shape, 6)
    kept = []
    for position in (62, 63, 64, 65):
        for n in (3, 1):
            chunks = [Chunk([position % 50 + s], position, [2 * s, 2 * s + 1]) for s in range(n)]
            calls[len(recorded) :] = []  # so that the next recording sees its own warm-up
            kept.append((run(Batch.of(chunks, cache)), forward(Batch.of(chunks, plain))))
    assert recorded == [(4, 1), (1, 1), (4, 2), (1, 2)]
    for found, expected in kept:
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-6)


def test_memory_that_runs_out_is_said(torch, monkeypatch):
    ops = open_backend("torch-cpu")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rushlight.backends.cuda._zeros", full)
    with pytest.raises(DeviceError, match=r"no memory left for 5 blocks .*--dtype bf16"):
        ops.kv_cache(KVShape(1, 1, 4), 5)


def test_a_gpu_that_pytorch_cannot_use_is_an_error(torch, monkeypatch):
    from rushlight.backends.cuda import TorchBackend

    def too_old(*args, **kwargs):
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    monkeypatch.setattr(torch, "zeros", too_old)
    with pytest.raises(DeviceError, match=r"cannot use cuda: The NVIDIA driver on your system is too old; update"):
        TorchBackend("cuda")
