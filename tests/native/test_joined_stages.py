"""Recorded steps whose operations are joined into fewer stages: the bits of the operations one by one."""

import numpy as np
import pytest
from native_helpers import ArrayTensor, _native, place, random

from rushlight.backends.batch import Batch, Chunk, KVShape
from rushlight.backends.cpu import CPUBackend
from rushlight.nn import Activation, Embedding, Linear, Module, ModuleList, NameRules, RMSNorm, Rotary, bind

C, H, K, D, INNER, V = 48, 6, 2, 10, 56, 70
FREQUENCIES = np.array([1.0, 0.3, 0.1, 0.02], np.float32)  # 8 of 10 channels turn


class Attention(Module):
    def __init__(self, layer):
        self.layer = layer
        self.q_proj, self.q_norm = Linear(C, H * D, bias=False), RMSNorm(D, eps=1e-6)
        self.k_proj, self.k_norm = Linear(C, K * D), RMSNorm(D, eps=1e-6)
        self.v_proj = Linear(C, K * D, bias=False)
        self.o_proj = Linear(H * D, C)

    def __call__(self, x, angles, batch):
        q = self.ops.rotary(self.q_norm(self.q_proj(x)), angles, H)
        k = self.ops.rotary(self.k_norm(self.k_proj(x)), angles, K)
        v = self.v_proj(x)
        return self.o_proj(self.ops.attention(q, k, v, batch, layer=self.layer, n_head=H, scale=0.3, window=40))


class Block(Module):
    def __init__(self, layer):
        self.norm1, self.attention = RMSNorm(C, eps=1e-5), Attention(layer)
        self.norm2, self.act = RMSNorm(C, eps=1e-5), Activation("silu")
        self.gate, self.up, self.down = (Linear(C, INNER, bias=False), Linear(C, INNER), Linear(INNER, C, bias=False))

    def __call__(self, x, angles, batch):
        x = x + self.attention(self.norm1(x), angles, batch)
        x_normal = self.norm2(x)
        return x + self.down(self.act(self.gate(x_normal)) * self.up(x_normal))


class Decoder(Module):
    """Normalised, grouped and windowed attention, partly rotary, and a gated MLP."""

    def __init__(self, n_layer):
        self.kv_shape = KVShape(n_layer, K, D)
        self.embed, self.rotary = Embedding(V, C), Rotary(FREQUENCIES)
        self.blocks = ModuleList(Block(layer) for layer in range(n_layer))
        self.norm, self.head = RMSNorm(C, eps=1e-5), Linear(C, V, bias=False)

    def __call__(self, batch):
        x, angles = self.embed(batch.ids), self.rotary(batch.positions)
        for block in self.blocks:
            x = block(x, angles, batch)
        return self.head(self.norm(self.ops.take(x, batch.logit_rows)))


class NamedTensor(ArrayTensor):
    def __init__(self, name, values):
        super().__init__(values)
        self.name = name


def bound(model, ops, scale):
    """A model with random weights on a backend."""
    tensors = {n: NamedTensor(n, scale * random(*s.shape, seed=i)) for i, (n, s) in enumerate(model.named_slots())}
    bind(model, tensors, ops, rules=NameRules(), tie=False, title="random")
    return model


def decoder(ops, n_layer=2):
    return bound(Decoder(n_layer), ops, 0.4)


def recorded(ops, model, batch):
    plan, out = ops.record(model, batch)
    return plan, np.array(out)


@pytest.mark.parametrize(("threads", "width"), [(1, 1), (2, 5), (3, 1)])
def test_joined_stages_compute_the_bits_of_single_operations(isa, requested, threads, width):
    ops = CPUBackend(requested, threads=threads, isa=isa)
    model = decoder(ops)
    ids = np.random.default_rng(0).integers(0, V, (4, 2, width)).tolist()
    eager, joined = (ops.kv_cache(model.kv_shape, 4) for _ in range(2))
    plan = None
    for step, tokens in enumerate(ids):
        chunks = [Chunk(part, 60 * s + step * width, [2 * s, 2 * s + 1]) for s, part in enumerate(tokens)]
        expected = np.array(model(Batch.of(chunks, eager)))
        if plan is None:
            plan, out = recorded(ops, model, Batch.of(chunks, joined))
        else:
            out = np.array(plan.run(Batch.of(chunks, joined)))
        assert np.array_equal(out, expected)


@pytest.mark.parametrize(("dtype", "prepares"), [("f32", False), ("int8", True)])
def test_a_layer_runs_in_as_few_stages_as_its_dependencies_allow(dtype, prepares):
    """Rows | q, k and v | rows | attention | [rows |] o | rows | gate and up | rows | down, with or without the
    quantisation of the attention's output."""
    ops = CPUBackend(dtype, threads=1)
    counts = []
    for n_layer in (1, 2, 5):
        model = decoder(ops, n_layer)
        batch = Batch.of([Chunk([1], 0, [0])], ops.kv_cache(model.kv_shape, 1))
        counts.append(recorded(ops, model, batch)[0].n_stages)
    per_layer = 10 if prepares else 9
    assert np.diff(counts).tolist() == [per_layer, 3 * per_layer]


class RandomProgram(Module):
    """Operations in a random order on random earlier results, most of which are dropped early."""

    def __init__(self, seed, n_operations=24):
        self.seed, self.n_operations = seed, n_operations
        self.embed, self.rotary, self.norm = Embedding(V, C), Rotary(FREQUENCIES), RMSNorm(8, eps=1e-3)
        self.square = ModuleList(Linear(C, C, bias=bool(i % 2)) for i in range(3))
        self.wide, self.narrow = Linear(C, 2 * C), Linear(2 * C, C)
        self.head = Linear(C, V)

    def __call__(self, batch):
        rng = np.random.default_rng(self.seed)
        angles = self.rotary(batch.positions)
        values = [self.embed(batch.ids)]
        operations = [
            lambda x, _: self.square[rng.integers(3)](x),
            lambda x, y: x + y,
            lambda x, y: x * y,
            lambda x, _: x * 0.5,
            lambda x, _: self.norm(x),
            lambda x, _: self.ops.activation(x, "tanh"),
            lambda x, _: self.ops.rotary(x, angles, 4),
            lambda x, y: self.narrow(self.ops.activation(self.wide(x), "silu")) + y,
            lambda x, y: self.ops.split(self.wide(x), 2)[1] + y,
            lambda x, _: self.ops.split(self.wide(x), [3, 3], groups=C // 3)[0],
            lambda x, y: self.ops.attention(x, y, y, batch, layer=rng.integers(2), n_head=4, scale=0.3),
            lambda x, _: self.ops.take(x, batch.logit_rows),
        ]
        for _ in range(self.n_operations):
            x, y = (values[i] for i in rng.integers(len(values), size=2))
            values.append(self.norm(operations[rng.integers(len(operations))](x, y)))
            if len(values) > 3:
                values.pop(rng.integers(3))
        return self.head(values[-1])


@pytest.mark.parametrize("dtype", ["f32", "int8"])
@pytest.mark.parametrize("seed", range(30))
def test_random_programs_compute_the_same_recorded(dtype, seed):
    ops = CPUBackend(dtype, threads=1 + seed % 3)
    model = bound(RandomProgram(seed), ops, 0.3)
    eager, joined = (ops.kv_cache(KVShape(2, 4, C // 4), 3) for _ in range(2))
    n = 1 + seed % 4
    plan = None
    for step in range(3):
        chunks = [Chunk([(seed + step + i) % V], step, [i]) for i in range(min(n, 3))]
        batch = Batch.of(chunks, eager)
        expected = np.array(model(batch))
        assert np.isfinite(expected).all()
        if plan is None:
            plan, out = recorded(ops, model, Batch.of(chunks, joined))
        else:
            out = np.array(plan.run(Batch.of(chunks, joined)))
        assert np.array_equal(out, expected), step


class TestPreparedRows:
    """Quantised activations are kept for the next product of the same array."""

    @pytest.fixture
    def device(self):
        return _native.Device(1, _native.instruction_sets()[0])

    @pytest.fixture(params=["int8", "int6", "int4"])
    def weight(self, device, request):
        return place(device, random(C, 40, seed=1), request.param)

    @staticmethod
    def product(device, x, weight):
        return np.array(device.linear(x, weight, None))

    def test_several_products_of_one_array(self, device, weight):
        x = device.array(random(3, C))
        first = self.product(device, x, weight)
        assert np.array_equal(self.product(device, x, weight), first)

    def test_products_in_two_formats(self, device):
        values = random(3, C)
        x = device.array(values)
        for name in ("int8", "int6", "int4", "int6", "int8", "f32"):
            weight = place(device, random(C, 40, seed=1), name)
            assert np.array_equal(self.product(device, x, weight), self.product(device, device.array(values), weight))

    @pytest.mark.parametrize("viewed_before", [True, False])
    def test_values_written_through_a_view(self, device, weight, viewed_before):
        x = device.array(random(3, C))
        view = np.asarray(x) if viewed_before else None
        before = self.product(device, x, weight)
        (np.asarray(x) if view is None else view)[:] = random(3, C, seed=5)
        after = self.product(device, x, weight)
        assert not np.array_equal(after, before)
        assert np.array_equal(after, self.product(device, device.array(random(3, C, seed=5)), weight))

    def test_values_written_through_a_view_of_a_part(self, device, weight):
        x = device.array(random(3, C))
        self.product(device, x, weight)
        part = device.split(x, 2)[1]
        self.product(device, x, weight)
        np.asarray(part)[:] = 7
        changed = np.hstack([random(3, C)[:, : C // 2], np.full((3, C // 2), 7, np.float32)])
        assert np.array_equal(self.product(device, x, weight), self.product(device, device.array(changed), weight))
