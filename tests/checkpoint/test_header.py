"""The safetensors header: a test for each rule of the format."""

import json
import time
import tracemalloc

import pytest

from rushlight.checkpoint.header import MAX_HEADER_BYTES, Header, TensorInfo, header_bytes, parse_header
from rushlight.errors import FormatError, RushlightError, TruncatedError

ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def entry(dtype="F32", shape="[1]", offsets="[0,4]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def parse(header: str | bytes, data_bytes: int = 4) -> Header:
    header = header.encode() if isinstance(header, str) else header
    return parse_header(header, data_bytes, file="model.safetensors")


def refusal(header: str | bytes, data_bytes: int = 4) -> RushlightError:
    with pytest.raises(FormatError) as caught:
        parse(header, data_bytes)
    assert caught.value.file == "model.safetensors"
    assert str(caught.value).startswith("model.safetensors: ")
    return caught.value


def test_a_valid_header():
    header = parse(
        '{"__metadata__":{"format":"pt"},'
        '"b":{"data_offsets":[4,16],"shape":[2,3],"dtype":"BF16"},'
        '"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   ',
        data_bytes=16,
    )
    assert header.metadata == {"format": "pt"}
    assert list(header.tensors.values()) == [
        TensorInfo("a", "F32", (), 0, 4),
        TensorInfo("b", "BF16", (2, 3), 4, 16),
    ]
    assert header.data_start == 8 + 144


def test_a_header_without_tensors_is_valid():
    assert parse("{}", data_bytes=0).tensors == {}


def test_json_white_space_is_allowed_between_any_two_tokens():
    spaced = ENTRY
    for token in '{}[]:,"':
        spaced = spaced.replace(token, f" \n{token}" if token != '"' else token)
    assert parse(f'{{\t"a"\r: {spaced}\n}} ').tensors == parse(f'{{"a":{ENTRY}}}').tensors


def test_empty_tensors_are_allowed_between_the_others():
    header = parse(
        f'{{"end":{entry(shape="[0]", offsets="[4,4]")},"a":{ENTRY},"start":{entry("U8", "[3,0]", "[0,0]")}}}'
    )
    assert list(header.tensors) == ["start", "a", "end"]


# The length of the header


@pytest.mark.parametrize("n_bytes", [MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_more_than_100_mb_is_refused(n_bytes):
    with pytest.raises(FormatError, match=r"not a safetensors file.*expected at most 100,000,000 bytes") as caught:
        header_bytes(n_bytes.to_bytes(8, "little") + b"{", 2**64)
    assert caught.value.found == f"{n_bytes:,}"
    assert caught.value.offset == 0


@pytest.mark.parametrize("file_bytes", [8, 9, 107])
def test_a_header_longer_than_the_file_means_a_truncated_file(file_bytes):
    start = (100).to_bytes(8, "little") + b"{" * (file_bytes > 8)
    with pytest.raises(TruncatedError, match=r"ends inside its header \(expected at least 108 bytes.*download"):
        header_bytes(start, file_bytes)
    assert header_bytes(start[:8] + b"{", 108) == 100


def test_a_header_that_does_not_begin_with_a_brace_is_refused():
    with pytest.raises(FormatError, match=r"does not begin with a brace \(expected '\{', found '\['\)"):
        header_bytes((2).to_bytes(8, "little") + b"[", 10)


@pytest.mark.parametrize("n_bytes", range(1, len(ENTRY) + 6))
def test_a_length_that_truncates_the_json_is_refused(n_bytes):
    refusal(f'{{"a":{ENTRY}}}'[:n_bytes])


# Not JSON, or not an object


@pytest.mark.parametrize(
    ("header", "offset"),
    [
        (b'{"\xff":1}', 10),
        (b'{"\xc0\xaf":1}', 10),  # an overlong "/"
        (b'{"\xed\xa0\x80":1}', 10),  # half of a surrogate pair
        (b'{"\xf4\x90\x80\x80":1}', 10),  # beyond U+10FFFF
        (b'{"a":' + ENTRY.encode() + b"}\x80", 62),
    ],
)
def test_invalid_utf8_is_refused_with_its_offset(header, offset):
    error = refusal(header)
    assert "not UTF-8" in error.message
    assert error.offset == offset


@pytest.mark.parametrize("name", [r"\ud800", r"\udc00", r"a\ud83d", r"\ude00\ud83d", r"\ud800A"])
def test_half_of_a_surrogate_pair_is_refused(name):
    assert "half of a surrogate pair" in refusal(f'{{"{name}":{ENTRY}}}').message


def test_a_surrogate_pair_is_its_character():
    assert list(parse(rf'{{"\ud83d\ude00":{ENTRY}}}').tensors) == ["😀"]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("[]", "[]"),
        ("null", "null"),
        ('"a"', '"a"'),
        (b"\xef\xbb\xbf{}", r"\ufeff{}"),
        ("", "the end of the header"),
        ("{", "the end of the header"),
        (f'{{"a":{ENTRY}}}{{}}', "{}"),
        (f'{{"a":{ENTRY}}}\0', r"\x00"),
        (f'{{"a":{ENTRY},}}', "}"),
        (f"{{'a':{ENTRY}}}", "'a':"),
        ('{"a":NaN}', "NaN}"),
        ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', '"shape":[NaN]'),
        ('{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', '"shape":[Infinity]'),
        ('{"a":1}', "1}"),
        ('{"a":null}', "null}"),
        ("{\x0b}", r"\x0b}"),
        ('{"a\x01":1}', r"a\x01"),
        (r'{"a\x":1}', r"a\x"),
        ('{"a', '"a'),
        (r'{"a\"', r"a\""),
    ],
)
def test_json_that_is_not_an_object_of_tensors_is_refused_and_shown(header, found):
    error = refusal(header)
    assert found in error.found
    assert error.offset is not None


# Nesting


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"a":[', '{"__metadata__":', '{"a":{"shape":['])
def test_deep_nesting_is_refused_early_and_without_recursion(opening):
    started = time.process_time()
    refusal(opening * 100_000)
    assert time.process_time() - started < 0.5


# Duplicate keys, and metadata


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (f'{{"a":{ENTRY},"a":{ENTRY}}}', "a"),
        (f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}', "a"),
        ('{"__metadata__":{},"__metadata__":{}}', "__metadata__"),
        ('{"__metadata__":{"k":"1","k":"1"}}', "k"),
        ('{"a":{"dtype":"F32","shape":[1],"dtype":"F32","data_offsets":[0,4]}}', "dtype"),
        ('{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', "shape"),
        ('{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[1],"data_offsets":[0,4]}}', "data_offsets"),
    ],
)
def test_a_duplicate_key_is_refused(header, key):
    assert f'the key "{key}" appears twice' in refusal(header).message


@pytest.mark.parametrize("value", ["1", "null", "true", '["a"]', '{"b":"c"}', "1.5"])
def test_metadata_values_must_be_strings(value):
    error = refusal(f'{{"__metadata__":{{"a":{value}}}}}')
    assert error.expected == "a string"
    assert error.found.startswith(value)


@pytest.mark.parametrize("metadata", ["null", "[]", '"a"', "1"])
def test_metadata_must_be_an_object(metadata):
    assert refusal(f'{{"__metadata__":{metadata}}}').expected == "'{'"


# The ranges of the data


@pytest.mark.parametrize(
    ("a", "b", "message", "tensor"),
    [
        ("[0,4]", "[0,4]", "overlap those of a", "b"),
        ("[0,4]", "[2,6]", "overlap those of a", "b"),
        ("[0,4]", "[8,12]", "leave a gap after those of a", "b"),
        ("[4,8]", "[8,12]", "leave a gap after the start of the data", "a"),
        ("[4,0]", "[4,8]", "end before they begin", "a"),
    ],
)
def test_overlapping_ranges_and_gaps_are_refused(a, b, message, tensor):
    error = refusal(f'{{"a":{entry(offsets=a)},"b":{entry(offsets=b)}}}', data_bytes=12)
    assert message in error.message
    assert error.tensor == tensor


@pytest.mark.parametrize("data_bytes", [0, 1, 3, 4, 7])
def test_truncated_data_is_refused_with_the_number_of_missing_bytes(data_bytes):
    header = f'{{"a":{ENTRY},"b":{entry(offsets="[4,8]")}}}'
    with pytest.raises(TruncatedError, match=f"bytes missing: {8 - data_bytes} .*download the file again") as caught:
        parse(header, data_bytes)
    assert caught.value.tensor == ("a" if data_bytes < 4 else "b")


@pytest.mark.parametrize("data_bytes", [5, 1000])
def test_bytes_after_the_last_tensor_are_counted(data_bytes):
    assert f"extra bytes: {data_bytes - 4:,}" in refusal(f'{{"a":{ENTRY}}}', data_bytes).message


@pytest.mark.parametrize(("shape", "offsets"), [("[2]", "[0,4]"), ("[1]", "[0,8]"), ("[]", "[0,0]"), ("[0]", "[0,4]")])
def test_a_range_that_does_not_match_the_shape_is_refused(shape, offsets):
    error = refusal(f'{{"a":{entry(shape=shape, offsets=offsets)}}}')
    assert error.tensor == "a"
    assert "do not match shape and dtype" in error.message
    assert "bytes for F32" in error.expected


# Dimensions


@pytest.mark.parametrize(
    "dimension", ["-1", "1.0", "1e0", '"1"', "true", "null", "[1]", "01", "+1", "0x1", "-0", "١", ""]
)
def test_a_dimension_must_be_a_whole_number(dimension):
    error = refusal(f'{{"a":{entry(shape=f"[1,{dimension}]")}}}')
    assert error.tensor == "a"
    assert f"[1,{dimension}"[:8] in error.found or ascii(dimension)[1:-1] in error.found


@pytest.mark.parametrize("number", [str(2**64), "9" * 20, "9" * 21, "1" * 5000])
def test_a_number_of_more_than_64_bits_is_refused(number):
    assert refusal(f'{{"a":{entry(shape=f"[{number}]")}}}').tensor == "a"
    assert refusal(f'{{"a":{entry(offsets=f"[0,{number}]")}}}').tensor == "a"


@pytest.mark.parametrize(
    "shape",
    [
        [2**63, 2**63],
        [2**64 - 1],
        [2**32, 2**32],
        [2**61],  # 2**63 bytes
        [0, 2**63, 2**63],
        [2**63, 2**63, 0],
        [0, 2**64 - 1],
    ],
)
def test_an_overflowing_shape_is_refused_even_with_a_zero_in_it(shape):
    error = refusal(f'{{"a":{entry(shape=json.dumps(shape), offsets="[0,0]")}}}', data_bytes=0)
    assert "overflows 64 bits" in error.message
    assert error.found == shape


def test_a_huge_shape_in_a_small_file_means_a_truncated_file():
    with pytest.raises(TruncatedError, match=f"bytes missing: {2**62:,}"):
        parse(f'{{"a":{entry("U8", f"[{2**62}]", f"[0,{2**62}]")}}}', data_bytes=0)


@pytest.mark.parametrize("shape", ["[0]", "[0,5]", "[5,0,7]"])
def test_a_dimension_of_zero_is_valid(shape):
    assert parse(f'{{"a":{entry(shape=shape, offsets="[0,0]")}}}', data_bytes=0).tensors["a"].end == 0


# Rank and dtype


def test_a_rank_of_32_is_valid_and_one_of_33_is_not():
    assert len(parse(f'{{"a":{entry(shape=json.dumps([1] * 32))}}}').tensors["a"].shape) == 32
    for rank in (33, 10_000):
        error = refusal(f'{{"a":{entry(shape=json.dumps([1] * rank))}}}')
        assert error.tensor == "a"
        assert "at most 32 whole numbers" in error.expected


@pytest.mark.parametrize("dtype", ["f32", "FLOAT32", "float32", "", "F33", "F32 ", "é", "<f4"])
def test_an_unknown_dtype_is_refused_with_the_known_ones(dtype):
    error = refusal(f'{{"a":{entry(dtype)}}}')
    assert "unknown dtype" in error.message
    assert "F32" in error.expected
    assert "BF16" in error.expected
    assert error.tensor == "a"


@pytest.mark.parametrize(("dtype", "shape"), [("F4", "[8]"), ("F6_E2M3", "[16]"), ("F6_E3M2", "[16]")])
def test_a_dtype_smaller_than_a_byte_is_refused_as_such(dtype, shape):
    error = refusal(f'{{"a":{entry(dtype, shape)}}}')
    assert "smaller than a byte" in error.message
    assert error.found == dtype


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_a_missing_field_is_named(missing):
    fields = {name: value for name, value in json.loads(ENTRY).items() if name != missing}
    assert refusal(json.dumps({"a": fields})).message == f"the entry is missing {missing}"


@pytest.mark.parametrize("offsets", ["[]", "[0]", "[0,4,4]", "null", '"0,4"', "[0,-4]", "[0,4.0]", "{}"])
def test_offsets_must_be_two_whole_numbers(offsets):
    assert "begin, end" in refusal(f'{{"a":{entry(offsets=offsets)}}}').expected


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "a"),
        ("\0", r"\x00"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\nb", "a"),
    ],
)
def test_any_string_is_a_valid_name_and_is_escaped_in_messages(name, shown):
    assert list(parse(json.dumps({name: json.loads(ENTRY)})).tensors) == [name]
    error = refusal(json.dumps({name: {"dtype": "F32"}}))
    assert error.tensor == name
    assert shown in str(error)
    assert "\x1b" not in str(error)
    assert "\0" not in str(error)
    twice = json.dumps(name)
    assert all(char.isprintable() for char in str(refusal(f"{{{twice}:{ENTRY},{twice}:{ENTRY}}}")))


def test_a_very_long_key_does_not_make_a_very_long_message():
    long = "k" * 1_000_000
    assert len(str(refusal(f'{{"__metadata__":{{"{long}":"","{long}":""}}}}'))) < 500
    assert len(str(refusal(f'{{"a":{entry(long)}}}'))) < 500


# Size


def large_header(n_tensors: int) -> bytes:
    stem = "transformer.h"
    return (
        "{"
        + ",".join(
            f'"{stem}.{i:06}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(n_tensors)
        )
        + "}"
    ).encode()


def test_time_is_linear_in_the_header():
    seconds = {}
    for n in (2_000, 20_000):
        header = large_header(n)
        started = time.process_time()
        assert len(parse(header, n).tensors) == n
        seconds[n] = time.process_time() - started
    assert seconds[20_000] < 40 * max(seconds[2_000], 0.01)


def test_memory_is_a_few_times_the_header():
    header = large_header(1_000)
    tracemalloc.start()
    parse(header, 1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(header)


@pytest.mark.slow
def test_200_000_tensors_in_an_11_mb_header():
    header = large_header(200_000)
    assert len(header) > 11_000_000
    started = time.process_time()
    assert len(parse(header, 200_000).tensors) == 200_000
    assert time.process_time() - started < 20


@pytest.mark.parametrize("filler", ["[],", "{},", '"",', "0,", " "])
def test_a_header_of_empty_values_is_refused_before_they_are_stored(filler):
    header = ('{"a":{"dtype":"F32","shape":[' + filler * 300_000).encode()
    tracemalloc.start()
    refusal(header)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(header)
