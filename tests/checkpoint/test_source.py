"""Opening sources by name: paths, folders, hub ids, and the bytes that opening reads."""

import json
import os
import pickle
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rushlight.checkpoint import open_checkpoint, source
from rushlight.checkpoint.short_names import SHORT_NAMES
from rushlight.checkpoint.source import could_be_source, repository_of
from rushlight.errors import RushlightError, SourceError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gpt2"


@pytest.fixture(autouse=True)
def hub_requests(monkeypatch):
    """Replaces the hub with an empty one, and returns the list of requested models."""
    requests = []

    def download(name, **_):
        requests.append(name)
        raise SourceError("the hub was asked")

    monkeypatch.setattr(source.hub, "download", download)
    return requests


def write(path: Path, name="a") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(2, "<f4")}, path)
    return path


def refusal(source, **options) -> RushlightError:
    with pytest.raises(RushlightError) as caught:
        open_checkpoint(source, **options)
    return caught.value


# Sources that open


def test_a_file_opens_by_str_or_path(tmp_path):
    path = write(tmp_path / "anything.weights")
    for name in (path, str(path)):
        with open_checkpoint(name) as checkpoint:
            assert checkpoint.source == str(path)
            assert checkpoint.files == (path,)
            assert checkpoint.folder == tmp_path


@pytest.mark.parametrize("others", [[], ["other.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]])
def test_a_folder_opens_its_model_safetensors(tmp_path, others):
    path = write(tmp_path / "model.safetensors")
    for name in others:
        (tmp_path / name).write_bytes(b"not read")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.files == (path,)


def test_a_folder_opens_its_only_safetensors(tmp_path):
    path = write(tmp_path / "weights.safetensors")
    (tmp_path / "README.md").touch()
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.files == (path,)


def test_an_existing_path_takes_precedence_over_a_hub_id(tmp_path, monkeypatch, hub_requests):
    monkeypatch.chdir(tmp_path)
    write(Path("openai-community/gpt2/model.safetensors"))
    write(Path("gpt2"))
    for name in ("openai-community/gpt2", "gpt2", Path("gpt2")):
        with open_checkpoint(name) as checkpoint:
            assert len(checkpoint) == 1
    assert hub_requests == []


def test_sidecars_of_a_link_are_in_the_folder_of_the_link(tmp_path):
    write(tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to("../blobs/0123")
    (tmp_path / "snapshot" / "config.json").touch()
    with open_checkpoint(link) as checkpoint:
        assert checkpoint.folder == tmp_path / "snapshot"
        assert checkpoint.sidecar("config.json") == tmp_path / "snapshot" / "config.json"


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "model.safetensors")
    with open_checkpoint("~/model.safetensors") as checkpoint:
        assert checkpoint.files == (tmp_path / "model.safetensors",)


def test_a_path_that_is_not_utf8_opens(tmp_path):
    path = tmp_path / os.fsdecode(b"m\xff.safetensors")
    path.symlink_to(write(tmp_path / "model.safetensors"))
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint) == 1


def test_a_deleted_working_directory_does_not_matter(tmp_path, monkeypatch):
    path = write(tmp_path / "model.safetensors")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint["a"].read().tolist() == [0, 0]
    assert refusal("./model.safetensors").message == "no such file or folder"


def test_a_sidecar_is_a_path_or_none(tmp_path):
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").touch()
    (tmp_path / "vocab.json").symlink_to("gone")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.sidecar("config.json") == tmp_path / "config.json"
        assert checkpoint.sidecar("tokenizer.json") is None
        assert checkpoint.sidecar("vocab.json") == tmp_path / "vocab.json"  # the link exists, but is broken


@pytest.mark.parametrize(
    "folder", sorted(path for path in FIXTURES.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_checkpoints_of_transformers_open(folder):
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint) > 10
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.sidecar("config.json") == folder / "config.json"
        for tensor in checkpoint.values():
            assert tensor.read().nbytes == tensor.nbytes


# Only the header is read


@pytest.fixture
def bytes_read(monkeypatch):
    """Records the sizes of all reads."""
    sizes = []
    preadv = os.preadv

    def counted(fd, buffers, offset):
        sizes.append(sum(len(buffer) for buffer in buffers))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    return sizes


def write_sparse(path: Path, name: str, n_bytes: int) -> int:
    """Writes a sparse file of one tensor, and returns the length of its header."""
    entry = {"dtype": "F32", "shape": [n_bytes // 4], "data_offsets": [0, n_bytes]}
    header = json.dumps({name: entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + n_bytes)
    return len(header)


def test_opening_10_gb_reads_only_the_header(tmp_path, bytes_read):
    n_header = write_sparse(tmp_path / "model.safetensors", "a", 10_000_000_000)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint["a"].nbytes == 10_000_000_000
        assert checkpoint["a"].n_elements == 2_500_000_000
    assert sum(bytes_read) == 9 + n_header


def test_opening_10_gb_of_shards_reads_only_the_index_and_the_headers(tmp_path, bytes_read):
    files = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    n_headers = sum(write_sparse(tmp_path / file, file, 5_000_000_000) for file in files)
    index = json.dumps({"weight_map": {file: file for file in files}})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with open_checkpoint(tmp_path) as checkpoint:
        assert sum(tensor.nbytes for tensor in checkpoint.values()) == 10_000_000_000
    assert sum(bytes_read) == len(index) + 2 * 9 + n_headers


def test_a_large_tensor_is_read_in_parts_so_that_an_interrupt_arrives(tmp_path, bytes_read):
    write_sparse(tmp_path / "model.safetensors", "a", 40 << 20)
    with open_checkpoint(tmp_path) as checkpoint:
        bytes_read.clear()
        assert not checkpoint["a"].read().any()
    assert sum(bytes_read) == 40 << 20
    assert max(bytes_read) <= 16 << 20


def test_a_short_read_is_continued(tmp_path, monkeypatch):
    save_file({"a": np.arange(100, dtype="<f4")}, tmp_path / "model.safetensors")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:7]], offset))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint["a"].read().tolist() == list(range(100))


# Sources that do not open


@pytest.mark.parametrize(
    "name",
    [
        "./gpt2",
        "../owner/name",
        "/nowhere/gpt2",
        "~/gpt2-that-is-not-there",
        "~nobody-of-this-name/gpt2",
        "model.safetensors",
        "owner/model.safetensors",
        "MODEL.SAFETENSORS",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "model.gguf",
        ".",
        Path("owner/name"),
    ],
)
def test_a_missing_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, hub_requests, name):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    error = refusal(name)
    assert isinstance(error, SourceError)
    assert error.message in {"no such file or folder", "no .safetensors file in this folder"}
    assert hub_requests == []


@pytest.mark.parametrize("name", ["distilgpt2", "openai-community/gpt2", "distilbert/distilgpt2", "a.b-c_d/e.f-g_h"])
def test_a_hub_id_is_looked_up_on_the_hub(tmp_path, monkeypatch, hub_requests, name):
    monkeypatch.chdir(tmp_path)
    assert refusal(name).message == "the hub was asked"
    assert hub_requests == [name]


@pytest.mark.parametrize(
    ("name", "full"),
    [("gpt2", "openai-community/gpt2"), ("qwen3:0.6b", "Qwen/Qwen3-0.6B"), ("qwen3", "Qwen/Qwen3-0.6B")],
)
def test_a_short_name_is_looked_up_in_full_and_said(tmp_path, monkeypatch, hub_requests, caplog, name, full):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "rushlight")
    assert refusal(name).message == "the hub was asked"
    assert hub_requests == [full]
    assert caplog.messages == [f"{name} is {full}"]


@pytest.mark.parametrize("name", ["smollm2", "qwen3:0.6b"])
def test_a_path_takes_precedence_over_a_short_name(tmp_path, monkeypatch, hub_requests, name):
    write(tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with open_checkpoint(name) as checkpoint:
        assert checkpoint.source == name
    assert hub_requests == []


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("qwen3:0.7b", "qwen3:0.6b"),
        ("smolm2:135m", "smollm2:135m"),
        ("Llama3.2:8b", "llama3.2:"),
        ("opt:13b", "opt:1.3b"),
    ],
)
def test_an_unknown_size_suggests_the_known_ones(tmp_path, monkeypatch, hub_requests, name, suggested):
    monkeypatch.chdir(tmp_path)
    error = refusal(name)
    assert error.message == f"{name} is neither an existing path nor a short name of a model"
    assert error.remedy.startswith("did you mean ")
    assert suggested in error.remedy
    assert "`rushlight models` lists all" in error.remedy
    assert hub_requests == []


def test_a_size_of_an_unknown_family_suggests_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("zzzz:9b").remedy == "`rushlight models` lists all"


def test_a_misspelt_short_name_is_looked_up_and_then_suggested(tmp_path, monkeypatch, hub_requests):
    monkeypatch.chdir(tmp_path)
    error = refusal("smolllm2")
    assert hub_requests == ["smolllm2"]
    assert error.remedy.startswith("did you mean smollm2")
    assert refusal("owner/smolllm2").remedy is None


def test_short_names_are_valid():
    for name, full in SHORT_NAMES.items():
        assert could_be_source(name)
        assert full.count("/") == 1
        assert repository_of(name) == repository_of(full) == full
        assert name == name.lower()
        family = name.partition(":")[0]
        assert family in SHORT_NAMES


@pytest.mark.parametrize(
    "name", ["a/b/c", "-x/y", "owner/", "/", "owner\\name", "a b", "ünder/score", "\x1b[31m", "a\nb"]
)
def test_a_name_that_is_neither_a_path_nor_a_hub_id_is_refused(tmp_path, monkeypatch, hub_requests, name):
    monkeypatch.chdir(tmp_path)
    error = refusal(name)
    assert isinstance(error, SourceError)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)
    assert hub_requests == []


@pytest.mark.parametrize(("name", "message"), [("", "the source is empty"), ("a\0b", r"NUL character: a\x00b")])
def test_an_empty_name_and_nul_are_refused(name, message, hub_requests):
    error = refusal(name)
    assert message in error.message
    assert "owner/name" in error.remedy
    assert hub_requests == []


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://example.org/model.safetensors", "download the file"),
        ("HTTP://example.org", "download the file"),
        ("s3://bucket/key", "download the file"),
        ("file:///model.safetensors", "download the file"),
        ("https://huggingface.co/openai-community/gpt2", "use the hub id openai-community/gpt2"),
        ("https://huggingface.co/openai-community/gpt2/blob/main/x", "use the hub id openai-community/gpt2"),
    ],
)
def test_a_url_is_refused_with_a_remedy(url, remedy, hub_requests):
    error = refusal(url)
    assert "is a URL" in error.message
    assert remedy in error.remedy
    assert hub_requests == []


def test_a_revision_of_a_local_path_is_refused(tmp_path):
    write(tmp_path / "model.safetensors")
    error = refusal(tmp_path, revision="v1")
    assert "a revision applies to a model on the hub" in error.message
    assert error.found == "revision v1"


def test_a_folder_of_several_files_without_an_index_is_refused_with_their_names(tmp_path):
    for i in range(12):
        write(tmp_path / f"part{i:02}.safetensors")
    error = refusal(tmp_path)
    assert "several .safetensors files" in error.message
    assert "part00.safetensors, part01.safetensors" in error.found
    assert error.found.endswith("part09.safetensors, and 2 more")
    assert "name one of the files" in error.remedy


def test_a_folder_without_weights_is_refused_with_its_contents(tmp_path):
    assert refusal(tmp_path).found == "an empty folder"
    (tmp_path / "README\x1b.md").touch()
    error = refusal(tmp_path)
    assert error.message == "no .safetensors file in this folder"
    assert error.found == r"README\x1b.md"


@pytest.mark.parametrize(
    "names",
    [["pytorch_model.bin"], ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], ["gpt2.pth"]],
)
def test_a_folder_of_pickles_is_refused_with_the_command_that_converts_them(tmp_path, names):
    folder = tmp_path / "with space"
    folder.mkdir()
    canary = tmp_path / "unpickled"
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    error = refusal(folder)
    assert "never unpickled" in error.message
    assert error.found == ", ".join(names)
    command = shlex.split(error.remedy.partition(": ")[2])
    assert command[:2] == ["python", "-c"]
    assert command[3:] == [str(folder / "model.safetensors"), *(str(folder / name) for name in names)]
    compile(command[2], "the command", "exec")
    assert not canary.exists()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    def deny(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    assert refusal(tmp_path).message == "the folder cannot be read: Permission denied"
