"""The header parser compared with the reference, the Rust parser of the `safetensors` package, and with its files.

Whatever is accepted here is accepted there, with the same result. What is accepted there and refused here is on the
list in the docstring of `rushlight.checkpoint.header`, and everything on that list is refused.
"""

import json
import math
import re
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import rushlight.checkpoint.header
from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.header import START_BYTES, header_bytes, parse_header
from rushlight.errors import CheckpointError

NUMPY_DTYPES = ["bool", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8", "<c8"]
ITEMSIZE = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "F64": 8, "C64": 8}


def ours(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Returns the tensors that rushlight reads (dtype, shape and bytes by name), or None if it refuses the file."""
    try:
        n_bytes = header_bytes(file[:START_BYTES], len(file))
        header = parse_header(file[8 : 8 + n_bytes], len(file) - 8 - n_bytes)
    except CheckpointError:
        return None
    data = file[header.data_start :]
    return {t.name: (t.dtype, list(t.shape), data[t.begin : t.end]) for t in header.tensors.values()}


def reference(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Returns the same for the reference."""
    try:
        tensors = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in tensors}


def differences(header: str) -> set[str]:
    """The entries of the list that apply to a header that the reference accepts, found with `json`, not our parser."""
    found = set()
    if header[0] in " \t\r\n":
        found.add("white space first")
    top: list[tuple[str, object]] = json.loads(header, object_pairs_hook=lambda pairs: ("object", pairs))[1]
    entries = [(name, value) for name, value in top if name != "__metadata__"]
    for keys in [[name for name, _ in entries], *([k for k, _ in v[1]] for n, v in top if n == "__metadata__" and v)]:
        if len(set(keys)) < len(keys):
            found.add("duplicate key")
    if ("__metadata__", None) in top:
        found.add("null metadata")
    for _, entry in entries:
        if isinstance(entry, list):
            found.add("array for entry")
            dtype, shape, _ = entry
        else:
            fields = dict(entry[1])
            dtype, shape = fields["dtype"], fields["shape"]
            if len(fields) > 3:
                found.add("unknown field")
        if isinstance(dtype, tuple):
            found.add("object for dtype")
            dtype = dtype[1][0][0]
        if dtype in ("F4", "F6_E2M3", "F6_E3M2"):
            found.add("sub-byte dtype")
        elif 0 in shape and math.prod(n for n in shape if n) * ITEMSIZE.get(dtype, 8) >= 2**63:
            found.add("hidden overflow")
        if len(shape) > 32:
            found.add("high rank")
    if escapes_in_an_entry(header):
        found.add("escaped field")
    return found


def escapes_in_an_entry(header: str) -> bool:
    depth, top_key = 0, ""
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[][{}]', header):
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        elif depth == 1:
            top_key = json.loads(token)
        elif "\\" in token and top_key != "__metadata__":
            return True
    return False


def compare(file: bytes) -> None:
    """Asserts that the two parsers agree on a file, or differ as listed."""
    mine, theirs = ours(file), reference(file)
    if theirs is None:
        event("both refuse")
        assert mine is None
        return
    rows = differences(file[8 : 8 + int.from_bytes(file[:8], "little")].decode())
    event(f"refused here alone: {min(rows)}" if rows else "both accept")
    assert mine == (None if rows else theirs)


def framed(header: str | bytes, data: bytes) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header)) + header + data


# The list


EXAMPLES = {
    "duplicate key": '{"a":ENTRY,"a":ENTRY}',
    "null metadata": '{"__metadata__":null,"a":ENTRY}',
    "unknown field": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":0.5}}',
    "array for entry": '{"a":["F32",[1],[0,4]]}',
    "object for dtype": '{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
    "escaped field": r'{"a":{"dt\u0079pe":"F32","shape":[1],"data_offsets":[0,4]}}',
    "white space first": ' {"a":ENTRY}',
    "high rank": f'{{"a":{{"dtype":"F32","shape":{[1] * 33},"data_offsets":[0,4]}}}}',
    "hidden overflow": '{"b":{"dtype":"F32","shape":[0,9223372036854775808,2],"data_offsets":[0,0]},"a":ENTRY}',
    "sub-byte dtype": '{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
}


def example_file(row: str) -> bytes:
    return framed(EXAMPLES[row].replace("ENTRY", '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'), b"\0" * 4)


def test_the_list_in_the_docstring_is_the_one_tested_here():
    docstring = rushlight.checkpoint.header.__doc__
    assert docstring is not None
    listed = re.findall(r"^    (\w[\w -]*?)  +\S", docstring.partition("on purpose:")[2], re.MULTILINE)
    assert listed == list(EXAMPLES)


@pytest.mark.parametrize("row", EXAMPLES)
def test_each_row_is_a_difference(row):
    file = example_file(row)
    assert reference(file) is not None
    assert ours(file) is None
    assert differences(file[8:-4].decode()) == {row}


# Files of the reference


names = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__")
arrays = npst.arrays(st.sampled_from(NUMPY_DTYPES), npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("reference") / "model.safetensors"


@given(
    tensors=st.dictionaries(names, arrays, max_size=3),
    metadata=st.none() | st.dictionaries(names, st.text(st.characters(codec="utf-8"))),
)
def test_files_of_the_reference_are_read_back(path, tensors, metadata):
    if not tensors and not metadata:
        metadata = None  # what version 0.8 writes for an empty dict and no tensors, it cannot read itself
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.keys() == tensors.keys()
        assert checkpoint.metadata == (metadata or {})
        for name, array in tensors.items():
            tensor = checkpoint[name]
            read = tensor.read()
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()
            assert (tensor.shape, tensor.nbytes, tensor.n_elements) == (array.shape, array.nbytes, array.size)


# Nearly valid headers


NUMBERS = [
    "-0",
    "-1",
    "1.0",
    "4e0",
    "01",
    "2",
    "8",
    str(2**62),
    str(2**63),
    str(2**64 - 1),
    str(2**64),
    "null",
    '"1"',
    "[]",
]
VALUES = ["null", "[]", "{}", "1", '"x"', '{"a":{"b":[1]}}', "NaN", "[[[]]]", "1e999", r'"\ud800"']
KEYS = [
    '"t0"',
    '"t1"',
    r'"\u0074\u0031"',
    '""',
    '"__metadata__"',
    r'"__metadata_\u005f"',
    r'"\ud83d\ude00"',
    r'"\ud83d"',
    '"é"',
]
FIELDS = ['"x"', '"dtype"', '"shape"', r'"dt\u0079pe"', '"Dtype"']
METADATA = ['{"k":"v"}', "{}", r'{"k":"\"}{"}', '{"k":"v","k":"w"}', "null", '{"k":1}', "[]"]

spaces = st.sampled_from(["", "", "", " ", "\n\t"])
once_in_20 = st.integers(0, 19).map(lambda n: n == 0)


@st.composite
def entries(draw, begin):
    """The text of an entry whose data begins at `begin`, and the end of its data; mostly valid."""
    dtype = draw(st.sampled_from([*ITEMSIZE, "F4", "F6_E2M3", "f32"]))
    shape = [1] * 33 if draw(once_in_20) else draw(st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=3))
    bits = {"F4": 4, "F6_E2M3": 6}.get(dtype, 8 * ITEMSIZE.get(dtype, 4))
    end = begin + math.prod(shape) * bits // 8
    shape_text = [str(n) for n in shape]
    offsets_text = [str(begin), str(end)]
    if draw(once_in_20):
        shape_text[-1:] = [draw(st.sampled_from(NUMBERS))]
    if draw(once_in_20):
        offsets_text[draw(st.integers(0, 1))] = draw(st.sampled_from(NUMBERS))
    dtype_text = f'"{dtype}"'
    if draw(once_in_20):
        dtype_text = draw(st.sampled_from([f'{{"{dtype}":null}}', rf'"\u00{ord(dtype[0]):02x}{dtype[1:]}"']))
    values = [dtype_text, f"[{draw(spaces)}{','.join(shape_text)}]", f"[{','.join(offsets_text)}{draw(spaces)}]"]
    if draw(once_in_20):
        return f"[{','.join(values)}]", end
    fields = list(zip(['"dtype"', '"shape"', '"data_offsets"'], values, strict=True))
    if draw(once_in_20):
        fields.append((draw(st.sampled_from(FIELDS)), draw(st.sampled_from(VALUES))))
    if draw(once_in_20):
        fields.pop()
    fields = draw(st.permutations(fields))
    return "{" + ",".join(f"{draw(spaces)}{k}:{v}{draw(spaces)}" for k, v in fields) + "}", end


@st.composite
def nearly_headers(draw):
    """Generates a valid or a nearly valid safetensors file."""
    members = []
    end = 0
    for i in range(draw(st.integers(0, 3))):
        text, end = draw(entries(end))
        key = draw(st.sampled_from(KEYS)) if draw(once_in_20) else f'"t{i}"'
        members.append((key, draw(st.sampled_from(VALUES)) if draw(once_in_20) else text))
    if draw(st.booleans()):
        members.append(('"__metadata__"', draw(st.sampled_from(METADATA))))
    members = draw(st.permutations(members))
    header = "{" + ",".join(f"{draw(spaces)}{k}:{draw(spaces)}{v}" for k, v in members) + "}"
    header = " " * draw(once_in_20) + header + draw(spaces)
    return framed(header, b"\0" * max(0, end + draw(once_in_20) - draw(once_in_20)))


@given(nearly_headers())
@settings(max_examples=200)
def test_nearly_valid_headers_are_accepted_or_refused_as_listed(file):
    compare(file)


SOUND_FILES = [
    safetensors.numpy.save(tensors, metadata)
    for tensors, metadata in [
        ({}, None),
        ({"a": np.zeros(1, "<f4")}, None),
        ({"a": np.zeros((2, 3), "<f2"), "b.c": np.zeros(4, "u1")}, {"format": "pt"}),
        ({"é\n": np.zeros((), "<f8"), "": np.zeros((0, 2), "<i4")}, {"k": '"}{', "": ""}),
    ]
]
edits = st.lists(
    st.tuples(
        st.integers(0, 999),
        st.integers(0, 3),
        st.sampled_from([b"", *(bytes([c]) for c in b'{}[]",:\\ \n\0 0129-.eExtrun\xff\xc3')]) | st.binary(max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(st.sampled_from(SOUND_FILES), edits, st.booleans())
@example(SOUND_FILES[1], [(0, 0, b"")], True)
@settings(max_examples=200)
def test_files_with_a_few_bytes_changed_are_accepted_or_refused_as_listed(file, edits, keep_length_true):
    n_bytes = int.from_bytes(file[:8], "little")
    header, data = file[8 : 8 + n_bytes], file[8 + n_bytes :]
    for place, n_removed, inserted in edits:
        at = place % (len(header) + 1)
        header = header[:at] + inserted + header[at + n_removed :]
    compare(framed(header, data) if keep_length_true else file[:8] + header + data)
