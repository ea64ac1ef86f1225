"""The MLX backend beyond the shared suite: steps through `mx.compile`, growing caches, incomplete groups."""

import logging
import shutil

import numpy as np
import pytest
from backend_helpers import ArrayTensor

from rushlight.backends import devices, open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.protocol import Role

pytestmark = pytest.mark.devices

ON = "metal" if any(status.name == "metal" and status.available for status in devices()) else "mlx-cpu"


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.006), ("int4", 0.11)])
@pytest.mark.parametrize("n_in", [1, 31, 32, 96, 128, 1600])
def test_quantised_weights_are_near_the_values(dtype, error, n_in):
    """A product with the identity matrix returns each weight."""
    ops = open_backend(ON, dtype)
    values = np.random.default_rng(0).standard_normal((5, n_in)).astype(np.float32)
    weight = ops.load_weight(ArrayTensor(values), Role.LINEAR)
    found = ops.to_numpy(ops.linear(ops.from_numpy(np.eye(n_in)), weight, None)).T
    assert np.abs(found - values).max() <= error * np.abs(values).max()
    assert weight.values.group == (64 if n_in % 64 == 0 else 32)


def test_int4_keeps_tables_in_six_bits():
    ops = open_backend(ON, "int4")
    values = ArrayTensor(np.ones((3, 64)))
    assert [ops.load_weight(values, role).values.bits for role in (Role.TABLE, Role.LINEAR)] == [6, 4]


STEPS = [(0, 70, [3, 58]), (70, 1, [3, 58]), (0, 2, [25]), (71, 1, [3, 58, 40]), (72, 60, [3, 58, 40])]
"""(position, rows, blocks) of each step."""


@pytest.mark.parametrize("captured", [False, True])
def test_a_cache_grows_as_blocks_are_used_and_keeps_its_contents(captured):
    ops = open_backend(ON, "f32")
    shape = KVShape(2, 2, 4)
    grown, full = ops.kv_cache(shape, 60), ops.kv_cache(shape, 60)
    full.reserve(Batch.of([Chunk([0], 59 * BLOCK_SIZE, range(60))], full))
    assert len(grown.keys[0]) < len(full.keys[0]) == 61 * BLOCK_SIZE
    values = np.random.default_rng(0).standard_normal((60, 2 * BLOCK_SIZE, 8)).astype(np.float32)

    def outputs(cache):
        def forward(batch):
            x = ops.from_numpy(values[len(results), : len(batch.ids)])
            return ops.attention(x, x, x, batch, layer=1, n_head=2, scale=0.5)

        results = []
        run = ops.capture(forward) if captured else forward
        for position, n, table in STEPS:
            results.append(ops.to_numpy(run(Batch.of([Chunk([0] * n, position, table, all_logits=True)], cache))))
        return results

    for found, expected in zip(outputs(grown), outputs(full), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.skipif(ON == "mlx-cpu" and not shutil.which("g++"), reason="MLX compiles with g++ on a CPU")
def test_a_compiled_step_writes_the_cache_and_keeps_its_shape(monkeypatch):
    import mlx.core as mx

    ops = open_backend(ON, "f32")
    mx.enable_compile()
    try:
        traces = []

        def forward(batch):
            traces.append(len(batch.ids))
            x = ops.embedding(batch.ids, table)
            x = ops.activation(x + x * x, "gelu_tanh")
            return ops.attention(x, x, x, batch, layer=0, n_head=2, scale=0.5)

        table = ops.load_weight(ArrayTensor(np.random.default_rng(0).standard_normal((50, 8))), Role.TABLE)
        compiled, plain = (ops.kv_cache(KVShape(1, 2, 4), 10) for _ in range(2))
        run = ops.capture(forward)
        first = 4 * BLOCK_SIZE - 2
        for position, n in [(0, first), *((position, 1) for position in range(first, first + 5))]:
            ids = [(position + i) % 50 for i in range(n)]
            chunks = [Chunk(ids, position, range(5), True), Chunk([7] * n, position, range(5, 10), True)]
            found = ops.to_numpy(run(Batch.of(chunks, compiled)))
            n_traces = len(traces)
            expected = ops.to_numpy(forward(Batch.of(chunks, plain)))
            del traces[n_traces:]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    finally:
        mx.disable_compile()
    # One forward of the prompt, which is not compiled, and one of each width.
    assert traces == [2 * first, 2, 2]


@pytest.mark.skipif(ON == "mlx-cpu" and not shutil.which("g++"), reason="MLX compiles with g++ on a CPU")
@pytest.mark.parametrize(
    "read", [lambda ops, batch, x: ops.to_numpy(x).max(), lambda ops, batch, x: batch.positions[0].item()]
)
def test_a_forward_that_cannot_be_compiled_runs_eagerly(caplog, read):
    import mlx.core as mx

    ops = open_backend(ON, "f32")
    mx.enable_compile()
    try:
        table = ops.load_weight(ArrayTensor(np.random.default_rng(0).standard_normal((50, 8))), Role.TABLE)

        def forward(batch):
            x = ops.embedding(batch.ids, table)
            return ops.attention(x * float(read(ops, batch, x)), x, x, batch, layer=0, n_head=2, scale=0.5)

        run, compiled, plain = ops.capture(forward), *(ops.kv_cache(KVShape(1, 2, 4), 5) for _ in range(2))
        with caplog.at_level(logging.INFO, "rushlight"):
            for position in (3, 4, 5):
                found, expected = (
                    ops.to_numpy(step(Batch.of([Chunk([7], position, range(5))], cache)))
                    for step, cache in ((run, compiled), (forward, plain))
                )
                assert np.array_equal(found, expected)
    finally:
        mx.disable_compile()
    assert [record.message for record in caplog.records] == [
        f"{ON} runs this model without recorded steps: the forward reads an array on the host"
    ]
