"""The dtype policy: the dtypes of weights and of the computation, and the label to display."""

import pytest

from rushlight.backends import DTYPES, open_backend
from rushlight.backends.dtypes import WEIGHT_BYTES, DtypePolicy
from rushlight.backends.protocol import Role
from rushlight.errors import DtypeError

COMPUTE_DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "f16", "int4": "f16"}


class Tensor:
    def __init__(self, dtype):
        self.dtype = dtype


F32, F16, BF16, F64 = map(Tensor, ("F32", "F16", "BF16", "F64"))


def policy(requested):
    return DtypePolicy("test", requested, COMPUTE_DTYPES)


def test_auto_keeps_the_checkpoints_dtypes():
    auto = policy("auto")
    assert [auto.keep(tensor, Role.LINEAR) for tensor in (BF16, F16, F32, F64)] == ["bf16", "f16", "f32", "f32"]
    assert auto.weight_dtypes == {"bf16", "f16", "f32"}
    assert auto.label == "bf16/f16/f32"


@pytest.mark.parametrize(
    ("tensors", "compute_dtype", "label"),
    [([], "f32", "f32"), ([BF16], "bf16", "bf16"), ([BF16, F16], "f32", "bf16/f16"), ([F64], "f32", "f32")],
)
def test_mixed_weights_are_computed_in_f32(tensors, compute_dtype, label):
    auto = policy("auto")
    for tensor in tensors:
        auto.keep(tensor, Role.LINEAR)
    assert (auto.compute_dtype, auto.label) == (compute_dtype, label)


@pytest.mark.parametrize("requested", COMPUTE_DTYPES)
def test_a_requested_dtype_applies_to_every_weight(requested):
    resolved = policy(requested)
    assert resolved.weight_dtypes == {requested}
    assert resolved.keep(F32, Role.LINEAR) == requested
    assert (resolved.weight_dtypes, resolved.label) == ({requested}, requested)
    assert resolved.compute_dtype == COMPUTE_DTYPES[requested]


def test_int4_keeps_tables_in_more_bits():
    int4 = policy("int4")
    assert [int4.keep(BF16, role) for role in (Role.TABLE, Role.LINEAR)] == ["int6", "int4"]
    assert int4.weight_dtypes == {"int6", "int4"}
    assert (int4.label, int4.compute_dtype) == ("int4", "f16")


def test_vectors_follow_the_activations_and_constants_are_f32():
    for requested, expected in (("int8", "f16"), ("bf16", "bf16"), ("auto", "f16")):
        resolved = policy(requested)
        assert resolved.keep(F16, Role.VECTOR) == expected
        assert resolved.keep(F16, Role.CONSTANT) == "f32"
        assert resolved.weight_dtypes == {"f32" if requested == "auto" else requested}  # vectors are not quantised


def test_an_unsupported_dtype_is_an_error_that_lists_the_others():
    with pytest.raises(DtypeError, match=r"test backend does not support dtype f64 \(expected auto or f32 or f16 or"):
        policy("f64")


def test_every_dtype_has_a_size():
    assert {"auto", *WEIGHT_BYTES} == set(DTYPES)


def test_a_backend_states_its_dtypes(subject, ops):
    assert ops.dtype_label == subject.dtype
    assert ops.weight_dtypes == {subject.dtype}
    half = {"torch-cpu": "bf16", "cuda": "bf16", "mlx-cpu": "f16", "metal": "f16"}
    compute_dtype = subject.dtype
    if subject.device == "cpu":
        compute_dtype = "f32"
    elif subject.dtype in {"int8", "int4"}:
        compute_dtype = half[subject.device]
    assert ops.compute_dtype == compute_dtype
    kv_dtype = compute_dtype if subject.device != "cpu" else "f32" if subject.dtype == "f32" else "f16"
    assert ops.kv_dtype == kv_dtype


def test_the_reference_backend_has_one_dtype():
    ops = open_backend("cpu", "f64")
    assert (ops.weight_dtypes, ops.compute_dtype, ops.kv_dtype, ops.dtype_label) == ({"f64"}, "f64", "f64", "f64")
