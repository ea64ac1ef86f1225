"""Converted files: their layout, the values of their panels, and what is refused."""

import json

import numpy as np
import pytest

import rushlight
from rushlight import demo
from rushlight.backends.protocol import Role
from rushlight.checkpoint import PackedTensor, open_checkpoint
from rushlight.checkpoint.packed import ALIGNMENT, LAYOUT, ROLES, TILE_BYTES, Packing, unpack
from rushlight.errors import FormatError, TruncatedError

_native = pytest.importorskip("rushlight.backends._native")


class Memory:
    """A tensor in memory."""

    name, dtype = "test", "F32"

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def float32(self):
        return self.values.copy()

    def read_into(self, raw, start):
        raw[:] = self.values.reshape(-1).view(np.uint8)[start : start + raw.size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model in int4."""
    return rushlight.convert("tales", tmp_path_factory.mktemp("converted") / "int4", dtype="int4").folder


@pytest.fixture
def rewritten(folder, tmp_path):
    """Writes model.safetensors with a changed header; `change` gets the header and rushlight.tensors."""

    def write(change, *, padding=0):
        data = (folder / "model.safetensors").read_bytes()
        n = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + n])
        tensors = json.loads(header["__metadata__"]["rushlight.tensors"])
        before = header["__metadata__"]["rushlight.tensors"]
        change(header, tensors)
        if header["__metadata__"].get("rushlight.tensors") == before:
            header["__metadata__"]["rushlight.tensors"] = json.dumps(tensors)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT + padding)
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
        return path

    return write


def test_the_layout_is_that_of_the_native_code():
    device = _native.Device(1, "portable")
    assert _native.TILE_VERSION == LAYOUT
    assert {form: device.weight(form, 1, 1).nbytes for form in TILE_BYTES} == TILE_BYTES
    assert {*ROLES, "constant"} == {role.value for role in Role}


@pytest.mark.parametrize("form", TILE_BYTES)
@pytest.mark.parametrize(
    ("role", "shape"),
    [("linear", (70, 45)), ("table", (33, 64)), ("conv1d", (45, 70)), ("convolution", (7, 5, 9)), ("linear", (1, 1))],
)
def test_values_are_those_that_the_cpu_computes_with(form, role, shape):
    from rushlight.backends.cpu import CPUBackend

    ops = CPUBackend(form if form != "int6" else "int4", threads=1)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if form == "int6" or (form, role) == ("int4", "table"):  # a table is in int6, any other matrix in int4
        role, shape = ("table", shape[:2]) if form == "int6" else ("linear", shape)
        values = np.ascontiguousarray(values.reshape(*shape[:1], -1)[:, : shape[1]])
    weight = ops.load_weight(Memory(values), Role(role))
    ops.finish_loading()
    packing = Packing(values.shape, "F32", role, form)
    panels = np.frombuffer(weight.tobytes(), np.uint8).reshape(packing.stored[1])
    found = unpack(panels, packing)
    if form == "bf16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    assert found.shape == values.shape
    np.testing.assert_array_equal(found.astype(np.float32), ops.weight_values(weight))


def test_a_long_matrix_is_unpacked_in_pieces(monkeypatch):
    values = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)
    device = _native.Device(1, "portable")
    weight = device.weight("int8", 40, 300)
    device.pack(weight, values.view(np.uint8).reshape(-1), "F32", 40, False, 0)
    packing = Packing((300, 40), "F32", "linear", "int8")
    panels = np.frombuffer(weight.tobytes(), np.uint8).reshape(packing.stored[1])
    whole = unpack(panels, packing)
    monkeypatch.setattr("rushlight.checkpoint.packed.UNPACK_BYTES", 5000)
    np.testing.assert_array_equal(unpack(panels, packing), whole)


def test_the_tensors_have_the_shapes_of_the_source(folder):
    with open_checkpoint(folder) as found, open_checkpoint(demo.folder()) as source:
        assert {name: tensor.shape for name, tensor in found.items()} == {
            name: tensor.shape for name, tensor in source.items()
        }
        assert {tensor.dtype for tensor in found.values()} == {"INT4", "INT6", "F32"}
        assert found.conversion.dtype == "int4"
        assert all(tensor.n_elements == source[name].n_elements for name, tensor in found.items())
        assert sum(tensor.nbytes for tensor in found.values()) < source.files[0].stat().st_size / 2
        assert source.conversion is None


def test_values_are_read_in_chunks_and_as_bytes(folder):
    with open_checkpoint(folder) as found:
        tensor = found["h.0.attn.c_attn.weight"]
        assert isinstance(tensor, PackedTensor)
        values = tensor.float32()
        np.testing.assert_array_equal(np.concatenate(list(tensor.chunks(1000))), values.reshape(-1))
        raw = np.empty(80, np.uint8)
        tensor.read_into(raw, 400)
        np.testing.assert_array_equal(raw.view(np.float32), values.reshape(-1)[100:120])
        assert tensor.same_data(tensor)
        assert not tensor.same_data(found["h.1.attn.c_attn.weight"])
        assert not tensor.same_data(found["h.0.attn.c_attn.bias"])


NAME = "h.0.attn.c_attn.weight"


def metadata(**changes):
    def change(header, _tensors):
        for key, value in changes.items():
            header["__metadata__"].pop(f"rushlight.{key}")
            if value is not None:
                header["__metadata__"][f"rushlight.{key}"] = value

    return change


def entry(**changes):
    return lambda _header, tensors: tensors[NAME].update(changes)


DAMAGED = {
    "no layout": (metadata(layout=None), "the metadata of a converted file lacks rushlight.layout"),
    "layout of the future": (metadata(layout="2"), r"does not read.*found layout 2.*--dtype int4"),
    "layout not a number": (metadata(layout="\x1b[2J"), r"found layout \\x1b\[2J"),
    "unknown dtype": (metadata(dtype="int3"), r"rushlight.dtype is not valid .*found int3"),
    "no dtype": (metadata(dtype=None), "lacks rushlight.dtype"),
    "no version": (metadata(version=None), "lacks rushlight.version"),
    "source not JSON": (metadata(source="{"), "rushlight.source: not JSON"),
    "source without a hash": (metadata(source='{"a": "b"}'), "rushlight.source has no SHA-256 of a"),
    "source of numbers": (metadata(source='{"a": 1}'), "rushlight.source has no SHA-256 of a"),
    "no tensors": (metadata(tensors=None), "lacks rushlight.tensors"),
    "tensors not an object": (
        lambda header, tensors: header["__metadata__"].update({"rushlight.tensors": "hostile"}),
        "rushlight.tensors: not JSON",
    ),
    "a tensor only in the file": (lambda _, tensors: tensors.pop(NAME), rf"{NAME}: only the file has this tensor"),
    "a tensor only in the metadata": (
        lambda _, tensors: tensors.update({"other": tensors[NAME]}),
        "other: only rushlight.tensors has this tensor",
    ),
    "an entry that is a list": (lambda _, tensors: tensors.update({NAME: []}), "format, found list"),
    "an unknown field": (entry(permuted=True), "its entry in rushlight.tensors is not valid"),
    "an unknown role": (entry(role="head"), "expected role vector or table .*found head"),
    "a role that is a list": (entry(role=["linear"]), "expected role"),
    "an unknown format": (entry(format="int5"), "expected format .*found int5"),
    "an unknown source dtype": (entry(dtype="I8"), "expected dtype .*found I8"),
    "a role of another rank": (entry(role="convolution"), "expected a shape of 3 dimensions"),
    "a shape that is a number": (entry(shape=7), "expected a shape of 2 dimensions"),
    "a fractional shape": (entry(shape=[192.0, 576]), "expected dimensions from 1"),
    "a true shape": (entry(shape=[True, 576]), "expected dimensions from 1"),
    "an empty shape": (entry(shape=[0, 576]), "expected dimensions from 1"),
    "a huge shape": (entry(shape=[2**40, 576]), "expected dimensions from 1"),
    "a nested shape": (entry(shape=[[1], 2]), "expected dimensions from 1"),
    "another shape": (entry(shape=[192, 608]), "size of a conv1d .*expected U8 .19, 3456., found U8 .18, 3456."),
    "another format": (entry(format="int8"), "not the size of a conv1d of shape .192, 576. in int8"),
    "a vector that is a matrix": (
        lambda _, tensors: tensors[NAME].update(role="vector", format="f32"),
        "not the size of a vector .*expected F32 .192, 576., found U8",
    ),
    "a vector in int4": (
        lambda _, tensors: tensors["ln_f.bias"].update(format="int4"),
        "ln_f.bias: its entry in rushlight.tensors is not valid .expected format f32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_is_refused_by_name(rewritten, change, message):
    path = rewritten(change)
    with pytest.raises(FormatError, match=message) as error:
        open_checkpoint(path)
    assert error.value.file == str(path)
    with pytest.raises(FormatError, match=message):
        rushlight.load(path)


def test_an_unchanged_copy_is_accepted(rewritten):
    """So that the refusals above have no other cause."""
    open_checkpoint(rewritten(lambda _header, _tensors: None)).close()


def test_misaligned_panels_are_refused(rewritten):
    with pytest.raises(FormatError, match="the panels do not begin at a multiple of 64"):
        open_checkpoint(rewritten(lambda _header, _tensors: None, padding=4))


def test_overlapping_panels_are_refused(rewritten):
    def change(header, _tensors):
        begin, end = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [begin - 64, end - 64]

    with pytest.raises(FormatError, match="overlap"):
        open_checkpoint(rewritten(change))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999999])
def test_a_cut_file_is_refused(folder, tmp_path, share):
    data = (folder / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(TruncatedError):
        rushlight.load(path)


def test_files_of_two_conversions_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr("rushlight.loading.convert.SHARD_BYTES", 1 << 20)
    one, two = (rushlight.convert("tales", tmp_path / dtype, dtype=dtype) for dtype in ("int8", "int4"))
    with open_checkpoint(one.folder) as found:
        assert found.conversion.dtype == "int8"
    index = json.loads((one.folder / "model.safetensors.index.json").read_text())
    other = two.files[-1]
    (one.folder / "other.safetensors").write_bytes((two.folder / other).read_bytes())
    in_two = json.loads((two.folder / "model.safetensors.index.json").read_text())["weight_map"]
    moved = {name for name, file in in_two.items() if file == other}
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f == one.files[0] and n not in moved}
    index["weight_map"] |= dict.fromkeys(moved, "other.safetensors")
    (one.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="not of the same conversion as model-00001"):
        open_checkpoint(one.folder)
