"""Sharded checkpoints."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rushlight.checkpoint import open_checkpoint
from rushlight.errors import CheckpointError, FormatError, RushlightError, SourceError

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_shards(folder, shards=None, weight_map=None, **index):
    """Writes files of tensors {"file": ["a", "b"]} and an index; each tensor contains its number."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = shards or {FIRST: ["a", "b"], SECOND: ["c"]}
    for file, names in shards.items():
        save_file(
            {name: np.full(3, ord(name[0]), "<f4") for name in names}, folder / file, {"format": "pt", "in": file}
        )
    if weight_map is None:
        weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map} | index))
    return folder


def refusal(source) -> RushlightError:
    with pytest.raises(RushlightError) as caught:
        open_checkpoint(source)
    return caught.value


@pytest.mark.parametrize("named", ["folder", "index"])
def test_shards_open_as_one_checkpoint(tmp_path, named):
    write_shards(tmp_path)
    with open_checkpoint(tmp_path if named == "folder" else tmp_path / INDEX) as checkpoint:
        assert list(checkpoint) == ["a", "b", "c"]
        assert checkpoint.files == (tmp_path / FIRST, tmp_path / SECOND)
        assert checkpoint["c"].file == tmp_path / SECOND
        assert checkpoint.folder == tmp_path
        assert checkpoint.metadata == {"format": "pt", "in": FIRST}
        for name, tensor in checkpoint.items():
            assert tensor.read().tolist() == [ord(name)] * 3
    with pytest.raises(ValueError, match="closed file"):
        checkpoint["a"].read()


def test_a_tensor_that_is_not_in_the_index_is_kept(tmp_path):
    write_shards(tmp_path, weight_map={"a": FIRST, "c": SECOND})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint) == ["a", "b", "c"]


# Shards that do not match the index


def test_all_missing_shards_are_named_with_their_tensor_counts(tmp_path):
    write_shards(tmp_path, {FIRST: ["a", "b"], SECOND: ["c"], "z.safetensors": ["z"]})
    (tmp_path / FIRST).unlink()
    (tmp_path / SECOND).unlink()
    error = refusal(tmp_path)
    assert isinstance(error, FormatError)
    assert error.file == str(tmp_path / INDEX)
    assert "2 problems" in error.message
    assert f"{FIRST} is missing; it contains 2 tensors" in error.message
    assert f"{SECOND} is missing; it contains 1 tensor" in error.message
    assert "z.safetensors" not in error.message
    assert "download the missing files" in error.remedy


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_shards(tmp_path, {FIRST: ["a", "b"], SECOND: ["b", "c"]})
    error = refusal(tmp_path)
    assert f"b is in {FIRST} and in {SECOND}" in error.message
    assert "from the same revision" in error.remedy


def test_a_tensor_in_no_shard_is_refused(tmp_path):
    write_shards(tmp_path, weight_map={"a": FIRST, "b": FIRST, "c": SECOND, "d\x1b": SECOND})
    assert rf"d\x1b is not in {SECOND}, nor in any other file" in refusal(tmp_path).message


def test_a_tensor_in_another_shard_than_listed_is_refused(tmp_path):
    write_shards(tmp_path, weight_map={"a": FIRST, "b": SECOND, "c": SECOND})
    assert f"b is in {FIRST}, not in {SECOND}" in refusal(tmp_path).message


def test_ten_problems_are_listed_and_the_rest_counted(tmp_path):
    write_shards(tmp_path, weight_map={f"absent{i:02}": FIRST for i in range(25)})
    message = refusal(tmp_path).message
    assert "25 problems" in message
    assert re.findall(r"\n  (absent\d\d) is not in", message) == [f"absent{i:02}" for i in range(10)]
    assert message.endswith("\n  and 15 more")


def test_every_kind_of_problem_is_reported_at_once(tmp_path):
    write_shards(tmp_path, {FIRST: ["a", "b"], SECOND: ["b", "c"]}, {"a": SECOND, "b": FIRST, "d": FIRST})
    message = refusal(tmp_path).message
    assert "3 problems" in message
    assert "b is in" in message
    assert "a is in" in message
    assert "d is not in" in message


def test_a_broken_shard_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    error = refusal(tmp_path)
    assert error.file == str(tmp_path / SECOND)
    assert "a Git LFS pointer; the real file has 12 bytes" in error.message


def test_open_shards_are_closed_when_a_later_one_is_refused(tmp_path):
    write_shards(tmp_path)
    (tmp_path / SECOND).write_bytes(b"")
    n_open = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        assert isinstance(refusal(tmp_path), CheckpointError)
    assert len(list(Path("/dev/fd").iterdir())) == n_open


@pytest.mark.parametrize(
    "weight_map", [{}, [], "x", 1, True, {"a": 1}, {"a": None}, {"a": ["model.safetensors"]}, {"a": {"b": "c"}}]
)
def test_an_invalid_weight_map_is_refused(tmp_path, weight_map):
    write_shards(tmp_path, weight_map=weight_map)
    assert "does not map tensor names to file names" in refusal(tmp_path).message


@pytest.mark.parametrize("content", ["{}", '{"model_type": "gpt2"}', '{"weight_map": null}'])
def test_json_that_is_not_an_index_is_refused_with_a_remedy(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    error = refusal(path)
    assert "not the index of a checkpoint" in error.message
    assert "name the folder" in error.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "not a JSON object"), ("{", "not JSON"), ('{"weight_map":{"a":"x","a":"y"}}', 'the key "a" appears twice')],
)
def test_an_index_that_is_not_strict_json_is_refused(tmp_path, content, message):
    (tmp_path / INDEX).write_text(content)
    error = refusal(tmp_path)
    assert isinstance(error, FormatError)
    assert message in error.message


# File names and links that leave the folder


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/../../secret.safetensors",
        "https://example.org/secret.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "secret.bin",
        "pytorch_model.bin",
        "",
        ".",
        "..",
        "secret\0.safetensors",
        "/\x1b[31m.safetensors",
        "\x1b[31m.bin",
    ],
)
def test_an_index_names_only_files_inside_its_folder(tmp_path, name):
    folder = write_shards(tmp_path / "model", weight_map={"a": FIRST, "b": name})
    save_file({"b": np.zeros(1)}, tmp_path / "secret.safetensors")
    error = refusal(folder)
    assert isinstance(error, FormatError)
    assert "not a .safetensors file inside the folder" in error.message
    assert "1 problem" in error.message
    assert "\x1b" not in str(error)
    assert "in its own folder" in error.remedy


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "{tmp_path}/secret.safetensors", "../up/secret.safetensors"]
)
def test_a_link_out_of_the_folder_is_refused(tmp_path, target):
    folder = write_shards(tmp_path / "model")
    save_file({"c": np.zeros(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "up").symlink_to(tmp_path)
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(target.format(tmp_path=tmp_path))
    error = refusal(folder)
    assert isinstance(error, FormatError)
    assert f"{SECOND}: a symbolic link out of the folder, to {tmp_path / 'secret.safetensors'}" in error.message


def test_a_link_inside_the_folder_is_followed(tmp_path):
    write_shards(tmp_path)
    (tmp_path / SECOND).rename(tmp_path / "elsewhere.safetensors")
    (tmp_path / SECOND).symlink_to("elsewhere.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint["c"].read().tolist() == [ord("c")] * 3


def test_a_link_to_the_folder_does_not_widen_it(tmp_path):
    write_shards(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    with open_checkpoint(tmp_path / "link") as checkpoint:
        assert len(checkpoint) == 3


def cached(cache, blobs):
    """A model in a cache of huggingface_hub: a snapshot of links into a folder of blobs."""
    snapshot = write_shards(cache / "models--o--m" / "snapshots" / "0123")
    blobs.mkdir(parents=True)
    for number, name in enumerate([FIRST, SECOND, INDEX]):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    return snapshot


@pytest.mark.parametrize("blobs", ["models--o--m/blobs", "blobs/ab"])
def test_links_into_the_blobs_of_the_same_cache_are_followed(tmp_path, blobs):
    snapshot = cached(tmp_path, tmp_path / blobs)
    for source in (snapshot, snapshot / INDEX):
        with open_checkpoint(source) as checkpoint:
            assert len(checkpoint) == 3
            assert checkpoint.folder == snapshot


@pytest.mark.parametrize("blobs", ["models--x--y/blobs", "models--o--m/other", "../outside/blobs"])
def test_links_out_of_the_cache_are_refused(tmp_path, blobs):
    snapshot = cached(tmp_path / "cache", tmp_path / "cache" / blobs)
    assert "2 problems" in refusal(snapshot).message


def test_a_link_in_a_loop_is_refused(tmp_path):
    write_shards(tmp_path)
    (tmp_path / SECOND).unlink()
    (tmp_path / SECOND).symlink_to(SECOND)
    assert "form a loop" in refusal(tmp_path).message


def test_a_broken_link_is_refused(tmp_path):
    write_shards(tmp_path)
    (tmp_path / SECOND).unlink()
    (tmp_path / SECOND).symlink_to("gone.safetensors")
    error = refusal(tmp_path)
    assert isinstance(error, SourceError)
    assert error.found == "a link to gone.safetensors"
