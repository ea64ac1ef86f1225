"""Every instruction set computes the same bits, here and on the machines where the digests were recorded."""

import hashlib
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from native_helpers import DTYPES, MARKED_ISAS, Sequences, _native, place, random
from test_backend import NAMES, load
from test_plan import Modern

import rushlight
from rushlight.backends.cpu import CPUBackend
from rushlight.errors import DeviceError
from rushlight.generation import Context, LanguageModel
from rushlight.nn import ACTIVATIONS

OTHERS = MARKED_ISAS[:-1]
"""The instruction sets that are compared with `portable`; empty on a processor without any."""

LENGTHS = [*range(1, 50), 63, 64, 65, 100, 192, 200, 768]


def on(isa, *, exact=True):
    return _native.Device(2, isa, exact)


def assert_same(compute, isa):
    """Asserts that compute(device) gives the same bits as on `portable`, NaN for NaN."""
    np.testing.assert_array_equal(compute(on(isa)), compute(on("portable")))


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("n_in", [1, 2, 31, 33, 64, 515, 1100])
def test_products_are_bit_identical(other, weights, n_in):
    matrix, x, bias = random(n_in, 100), 3 * random(26, n_in, seed=1), random(100, seed=2)

    def compute(device):
        weight = place(device, matrix, weights)
        rows = [device.linear(device.array(x[:n]), weight, device.vector(bias)) for n in (1, 2, 5, 26)]
        table = device.embedding(np.arange(100, dtype=np.int32), weight)
        return np.concatenate([np.asarray(each).ravel() for each in (*rows, table)])

    assert_same(compute, other)


def of_each_length(norm):
    """Returns norm(x, weight, bias) of five rows of each length, one after another."""
    found = [norm(3 * random(5, n) + 5, random(n, seed=1), random(n, seed=2)) for n in LENGTHS]
    return np.concatenate([np.asarray(each).ravel() for each in found])


@pytest.mark.parametrize("other", OTHERS)
def test_layer_norm_is_bit_identical(other):
    def compute(device):
        return of_each_length(
            lambda x, weight, bias: device.layer_norm(device.array(x), device.vector(weight), device.vector(bias), 1e-5)
        )

    assert_same(compute, other)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_of_two_groups_is_bit_identical(other, offset):
    def compute(device):
        return of_each_length(
            lambda x, weight, _: device.rms_norm(
                device.array(np.hstack([x, x[::-1] + 1])), device.vector(weight), 1e-5, offset
            )
        )

    assert_same(compute, other)


@pytest.mark.parametrize("other", OTHERS)
def test_layer_norm_without_bias_and_products_with_numbers_are_bit_identical(other):
    def compute(device):
        return of_each_length(
            lambda x, weight, _: device.layer_norm(device.array(x), device.vector(weight), None, 1e-5) * 0.22
        )

    assert_same(compute, other)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "n_rotated"), [(2, 2), (5, 4), (20, 20), (20, 10), (64, 64), (80, 26), (256, 128)]
)
def test_rotary_is_bit_identical(other, head_dim, n_rotated, interleaved):
    x, frequencies = random(9, 3 * head_dim), np.geomspace(1, 1e-4, n_rotated // 2).astype(np.float32)
    positions = np.array([0, 1, 5, 63, 64, 511, 4_095, 131_071, 1_000_003], np.int32)

    def compute(device):
        angles = device.angles(positions, device.vector(frequencies), 1.2)
        rotated = device.rotary(device.array(x), angles, 3, interleaved=interleaved)
        return np.concatenate([np.asarray(angles), np.asarray(rotated)], axis=1)

    assert_same(compute, other)


@pytest.mark.parametrize("other", OTHERS)
def test_activations_and_exp_are_bit_identical(other):
    x = np.concatenate([random(40_001) * 10, np.linspace(-110, 110, 40_001, dtype=np.float32), [np.inf, -np.inf, 0]])
    x = x.astype(np.float32)[None]
    for name in ACTIVATIONS:
        assert_same(lambda device, name=name: np.asarray(device.activation(device.array(x), name)), other)
    assert_same(lambda device: np.asarray(device.exp(device.array(x))), other)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 1), (3, 5), (2, 16), (2, 33), (1, 64), (1, 200)])
def test_attention_is_bit_identical(other, kv_format, n_head, head_dim):
    qkv = [3 * random(150, n_head * head_dim, seed=seed) for seed in range(3)]
    assert_same(lambda device: Sequences(device, [qkv], n_head, kv_format).feed_in([[1, 1, 15, 60, 73]], 0.3)[0], other)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"window": 64, "slopes": True}, {"softcap": 4.0}, {"window": 65, "softcap": 4.0}]
)
def test_attention_with_options_is_bit_identical(other, kv_format, group, options):
    slopes = {"slopes": np.geomspace(0.5, 0.004, 2 * group).astype(np.float32)} if "slopes" in options else {}
    qkv = [3 * random(150, width, seed=seed) for seed, width in enumerate((40 * group, 40, 40))]
    assert_same(
        lambda device: Sequences(device, [qkv], 2 * group, kv_format, **options | slopes).feed_in(
            [[1, 1, 15, 60, 73]], 0.3
        )[0],
        other,
    )


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("window", [None, 600])
def test_attention_of_several_chains_is_bit_identical(other, kv_format, window):
    qkv = [3 * random(1100, width, seed=seed) for seed, width in enumerate((60, 20, 20))]
    assert_same(
        lambda device: Sequences(device, [qkv], 3, kv_format, window=window).feed_in([[500, 597, 1, 1, 1]], 0.3)[0],
        other,
    )


def nearest_float32(exact):
    """Returns a Fraction rounded once to float32, ties to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    finite = [value for value in around if np.isfinite(value)]
    return min(finite, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.uint32)) & 1))


def hard_sums():
    """Triples w, x, c for which w x + c is near a tie, cancels, or is subnormal; and some of any size."""
    generator = np.random.default_rng(5)
    w, x = generator.standard_normal((2, 600)).astype(np.float32)
    products = w.astype(np.float64) * x
    c = [*generator.standard_normal(150).astype(np.float32), *-products[150:300].astype(np.float32)]
    # A sum halfway between two floats but for the least part of the product.
    c += [*(products[300:450] * 2.0**25).astype(np.float32), *(products[450:] * 2.0**49).astype(np.float32)]
    w[::7] *= np.float32(1e-30)
    x[::14] *= np.float32(1e-12)
    ties = [(1 + 2.0**-12, 1 + 2.0**-12, 2.0**k) for k in range(-4, 30)]
    ties += [(1 + 2.0**-23, 1 - 2.0**-24, sign * 2.0**k) for k in range(-30, 30) for sign in (1, -1)]
    return np.array([*zip(w, x, c, strict=True), *ties], np.float32)


def test_a_multiply_add_rounds_once(isa):
    w, x, c = hard_sums().T
    expected = [
        nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(d)))
        for a, b, d in zip(w, x, c, strict=True)
    ]
    device = on(isa)
    found = []
    for weight, activation, addend in zip(w, x, c, strict=True):  # the sum begins with 1 · c, which is exact
        matrix = np.array([[addend], [weight]], np.float32)
        row = device.array(np.array([[1, activation]], np.float32))
        found.append(np.asarray(device.linear(row, place(device, matrix, "f32"), None))[0, 0])
    np.testing.assert_array_equal(np.array(found), np.array(expected))
    assert (np.array(found) != w * x + c).any()  # two roundings would show


@cache
def logits_of(name, dtype, isa):
    ops = CPUBackend(dtype, threads=2, isa=isa, exact=True)
    model, config = load(name, ops)
    assert ops.arithmetic == "exact"
    ids = config.vocab_size // 2 - np.arange(9)
    return Context(LanguageModel.of(model, ops, config), 9).feed(ids.tolist(), all_logits=True)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["auto", *DTYPES])
def test_logits_of_entire_models_are_bit_identical(other, name, dtype):
    np.testing.assert_array_equal(logits_of(name, dtype, other), logits_of(name, dtype, "portable"))


PROMPT = "Once upon a time there was a king who had three sons, and the youngest"
DIGESTS = {
    "f32": "f1b00dabdfb02ca4",
    "f16": "3ff91dbf4f4f48b5",
    "bf16": "cccdb19809f1a4d5",
    "int8": "b1bd99539e23a3bd",
    "int4": "4e3ef6ce1e5118e4",
}
"""Truncated SHA-256 of the logits of the embedded model after each token of PROMPT."""


@pytest.mark.parametrize("dtype", DIGESTS)
def test_logits_equal_those_of_other_machines(isa, dtype, monkeypatch):
    monkeypatch.setenv("RUSHLIGHT_ISA", isa)
    logits = rushlight.load(dtype=dtype, exact=True).logits(PROMPT)
    assert hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()[:16] == DIGESTS[dtype]


DECODER_DIGESTS = {
    "f32": "a93b6742f0e3ca4d",
    "f16": "5e54e8dd6ca056e0",
    "bf16": "f3598f0a6c5bb80b",
    "int8": "b240d923731ddb58",
    "int4": "c581e51e51759177",
}
"""Truncated SHA-256 of the logits of a two-layer decoder with every operation that GPT-2 does not use."""


@pytest.mark.parametrize("dtype", DECODER_DIGESTS)
def test_a_decoder_with_every_operation_equals_other_machines(isa, dtype):
    ops = CPUBackend(dtype, threads=2, isa=isa, exact=True)
    model = Modern(ops)
    ids = [int(i) for i in np.random.default_rng(3).integers(0, model.vocab_size, 140)]
    found = Context(LanguageModel.of(model, ops, model), len(ids)).feed(ids, all_logits=True)
    assert hashlib.sha256(np.ascontiguousarray(found, "<f4").tobytes()).hexdigest()[:16] == DECODER_DIGESTS[dtype]


BF16_DIGESTS = {"avx512vnni": "32b954db8e77bd2c", "amx": "2517a98386b688a6"}
"""Truncated SHA-256 of products by the bf16 instructions of each set that has some."""


def test_products_by_bf16_instructions_equal_other_machines(isa):
    if isa not in BF16_DIGESTS:
        pytest.skip(f"{isa} has no instructions for bf16")
    device, digest = on(isa, exact=False), hashlib.sha256()
    for n_in, n_out, rows in [(31, 33, 1), (70, 40, 5), (768, 100, 33), (1000, 64, 97), (3072, 32, 17)]:
        weight = place(device, random(n_in, n_out), "bf16")
        x = np.ldexp(random(rows, n_in, seed=1), -7 * np.arange(rows)[:, None] % 140 - 130)  # from subnormal to 8
        products = np.asarray(device.linear(device.array(x), weight, None))
        digest.update(np.ascontiguousarray(products, "<f4").tobytes())
    assert digest.hexdigest()[:16] == BF16_DIGESTS[isa]


def test_sampled_text_equals_that_of_other_machines(isa, monkeypatch):
    monkeypatch.setenv("RUSHLIGHT_ISA", isa)
    result = rushlight.load(device="cpu").generate(PROMPT, max_tokens=16, temperature=0.9, top_p=0.9, top_k=200, seed=7)
    assert result.text == ", the first he had always said, was found that the wrecks"


def test_arithmetic_names_the_set_only_where_the_bits_depend_on_it(isa):
    products_of_bf16 = isa in ("avx512vnni", "amx")
    for dtype in DTYPES:
        ops = CPUBackend(dtype, isa=isa)
        assert ops.arithmetic == (isa if dtype == "bf16" and products_of_bf16 else "exact")
        assert CPUBackend(dtype, isa=isa, exact=True).arithmetic == "exact"


def test_the_environment_requests_exact_results(isa, monkeypatch):
    monkeypatch.setenv("RUSHLIGHT_EXACT", "1")
    assert CPUBackend("bf16", isa=isa).arithmetic == "exact"
    monkeypatch.setenv("RUSHLIGHT_EXACT", "0")
    assert CPUBackend("bf16", isa=isa, exact=True).arithmetic == "exact"
    monkeypatch.setenv("RUSHLIGHT_EXACT", "yes")
    with pytest.raises(DeviceError, match=r"RUSHLIGHT_EXACT is 'yes'.*expected 0 or 1"):
        CPUBackend("bf16", isa=isa)


@pytest.mark.parametrize(("device", "dtype"), [("reference", "f32"), ("cpu", "f64")])
def test_exact_is_refused_on_other_devices(device, dtype):
    with pytest.raises(DeviceError, match=r"does not compute the same bits on every machine.*leave out --exact"):
        rushlight.load(device=device, dtype=dtype, exact=True)
