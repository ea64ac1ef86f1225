"""Models on the hub, with a fake hub on this machine."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save

from rushlight.checkpoint import hub as hub_module
from rushlight.checkpoint import hub_resume, open_checkpoint
from rushlight.errors import CheckpointError, RushlightError, SourceError
from rushlight.jobs.identity import CONFIG_FILES
from rushlight.text import TOKENIZER_FILES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = Path(__file__).parents[2] / "src"
REPO = {
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b'{"version": "1.0", "padding": "' + b" " * 2000 + b'"}',
    "model.safetensors": save({"a": np.arange(500, dtype="<f4")}),
    "README.md": b"# A model",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"a pickle",
    "tf_model.h5": b"keras",
    "onnx/model.safetensors": b"another",
    "onnx/config.json": b"{}",
    "64.tflite": b"tflite",
    "flax_model.msgpack": b"flax",
}
WANTED = ["config.json", "model.safetensors", "tokenizer.json"]


def test_every_small_file_that_is_read_is_downloaded():
    assert {*CONFIG_FILES, *TOKENIZER_FILES} <= {*hub_module.SIDECARS}


def refusal(source, **options) -> RushlightError:
    with pytest.raises(RushlightError) as caught:
        open_checkpoint(source, **options)
    return caught.value


def check(source, **options) -> Path:
    """Opens a checkpoint, reads it, and returns its folder."""
    with open_checkpoint(source, **options) as checkpoint:
        assert checkpoint["a"].read().tolist() == list(range(500))
        assert checkpoint.source == source
        return checkpoint.folder


def leftovers(tmp_path) -> list[Path]:
    return list((tmp_path / "hub").rglob("*.incomplete*"))


# Downloading


def test_only_safetensors_and_their_sidecars_are_downloaded(hub, tmp_path):
    hub.repos["owner/name"] = REPO
    folder = check("owner/name")
    assert sorted(hub.bodies()) == WANTED
    assert sorted(path.name for path in folder.iterdir()) == WANTED
    assert folder.is_relative_to(tmp_path / "hub" / "models--owner--name" / "snapshots")
    with open_checkpoint("owner/name") as checkpoint:
        assert checkpoint.sidecar("config.json").read_bytes() == REPO["config.json"]
        assert checkpoint.sidecar("vocab.json") is None


def test_additional_chat_templates_are_downloaded_and_verified(hub):
    more = {"additional_chat_templates/tool_use.jinja": b"tools", "additional_chat_templates/notes.md": b"no"}
    hub.repos["owner/name"] = REPO | more
    folder = check("owner/name")
    assert sorted(hub.bodies()) == sorted([*WANTED, "tool_use.jinja"])
    assert (folder / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"tools"


def test_cached_files_are_not_downloaded_again(hub):
    hub.repos["owner/name"] = REPO
    folder = check("owner/name")
    hub.requests.clear()
    assert check("owner/name") == folder
    assert hub.requests == ["GET api/models/owner/name"]


def test_offline_does_not_use_the_network(hub):
    hub.repos["owner/name"] = REPO
    folder = check("owner/name")
    hub.requests.clear()
    assert check("owner/name", offline=True) == folder
    assert check("owner/name", offline=True, revision=COMMIT) == folder
    assert hub.requests == []


def test_offline_and_not_cached_has_a_remedy(hub):
    hub.repos["owner/name"] = REPO
    error = refusal("owner/name", offline=True)
    assert isinstance(error, SourceError)
    assert "the cache does not have the complete model" in error.message
    assert "without --offline" in error.remedy
    assert hub.requests == []


def test_offline_and_incomplete_in_the_cache_is_an_error(hub):
    hub.repos["owner/name"] = REPO
    (check("owner/name") / "model.safetensors").unlink()
    assert "the cache does not have the complete model" in refusal("owner/name", offline=True).message
    check("owner/name")


def test_a_cache_that_another_program_filled_is_used_offline(hub, tmp_path):
    hub.repos["owner/name"] = REPO
    folder = check("owner/name")
    snapshot = tmp_path / "elsewhere" / "hub" / "models--owner--name"
    shutil.copytree(tmp_path / "hub" / "models--owner--name", snapshot, symlinks=True)
    shutil.rmtree(snapshot / "trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(snapshot.parent))
        hub.requests.clear()
        assert check("owner/name", offline=True) == snapshot / "snapshots" / folder.name
        assert hub.requests == []


def test_shards_are_downloaded_with_their_index(hub):
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    hub.repos["owner/name"] = {
        "model.safetensors.index.json": index,
        "model-00001-of-00002.safetensors": save({"a": np.arange(500, dtype="<f4")}),
        "model-00002-of-00002.safetensors": save({"b": np.zeros(3)}),
        "consolidated.safetensors": b"the same weights again",
        "pytorch_model-00001-of-00002.bin": b"and again",
    }
    check("owner/name")
    assert sorted(hub.bodies()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_single_other_safetensors_file_is_downloaded(hub):
    hub.repos["owner/name"] = {"weights.safetensors": REPO["model.safetensors"], "sub/x.safetensors": b"x"}
    check("owner/name")
    assert hub.bodies() == ["weights.safetensors"]
    check("owner/name", offline=True)


def test_the_cache_works_while_the_network_is_down(hub):
    hub.repos["owner/name"] = REPO
    check("owner/name")
    hub.close()
    check("owner/name")


def test_the_cache_works_while_the_hub_fails(hub):
    hub.repos["owner/name"] = REPO
    check("owner/name")
    hub.status = 503
    check("owner/name")


# Refusals


def test_several_safetensors_and_no_index_are_named(hub):
    hub.repos["owner/name"] = {"x.safetensors": b"x", "y.safetensors": b"y"}
    error = refusal("owner/name")
    assert error.found == "x.safetensors, y.safetensors"
    assert "hf download owner/name FILE" in error.remedy
    assert hub.bodies() == []


def test_pickles_are_named_and_neither_downloaded_nor_unpickled(hub):
    hub.repos["owner/name"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04.", "README.md": b"hello"}
    error = refusal("owner/name")
    assert "never unpickled" in error.message
    assert error.found == "pytorch_model.bin"
    assert "from_pretrained('owner/name').save_pretrained('name')" in error.remedy
    assert "pytorch_model.bin" not in hub.bodies()


@pytest.mark.parametrize(("files", "found"), [({}, "an empty repository"), ({"README.md": b"x"}, "README.md")])
def test_a_repository_without_weights_is_refused(hub, files, found):
    hub.repos["owner/name"] = files
    error = refusal("owner/name")
    assert error.message == "owner/name has no .safetensors file"
    assert error.found == found


GATED = "owner/name is gated: its authors ask you to accept a licence first"


@pytest.mark.parametrize(
    ("status", "code", "message", "remedy"),
    [
        (401, "RepoNotFound", "no path owner/name exists, and the hub has no public model of that name", "HF_TOKEN"),
        (
            404,
            "RepoNotFound",
            "no path owner/name exists, and the hub has no public model of that name",
            "check the spelling",
        ),
        (401, "GatedRepo", GATED, "accept it at http://127.0.0.1"),
        (403, "GatedRepo", GATED, "/owner/name, then run `hf auth login`, or set HF_TOKEN"),
        (401, None, "the hub answered 401 for owner/name", "HF_TOKEN"),
        (403, None, "the hub answered 403 for owner/name", "HF_TOKEN"),
        (404, None, "the hub answered 404 for owner/name", "HF_ENDPOINT"),
        (429, None, "the hub answered 429 for owner/name", "wait some minutes"),
        (500, None, "the hub answered 500 for owner/name", "try again later"),
        (503, None, "the hub answered 503 for owner/name", "try again later"),
    ],
)
def test_a_refusal_of_the_hub_has_a_remedy(hub, status, code, message, remedy):
    hub.status, hub.error_code = status, code
    error = refusal("owner/name")
    assert isinstance(error, SourceError)
    assert error.message == message
    assert remedy in error.remedy
    assert error.__cause__ is not None


def test_an_unknown_model_is_refused(hub):
    assert refusal("owner/nane").message == "no path owner/nane exists, and the hub has no public model of that name"


def test_an_unknown_revision_is_refused(hub):
    hub.repos["owner/name"] = REPO
    error = refusal("owner/name", revision="v9")
    assert error.message == "owner/name has no revision v9"
    assert "/owner/name/tree/main" in error.remedy


@pytest.mark.parametrize("name", ["owner--x/name", "owner/name..x", "owner/name.git", "owner/name-", "x" * 200])
def test_an_invalid_hub_id_is_refused(hub, name):
    assert "nor a valid hub id" in refusal(name).message
    assert hub.requests == []


def test_an_unreachable_hub_is_named(hub):
    hub.close()
    error = refusal("owner/name")
    assert "no path owner/name exists, and the model cannot be downloaded from the hub: " in error.message
    assert f"check that {hub.url} can be reached" in error.remedy


def test_a_full_disk_is_reported_with_another_folder_as_the_remedy(hub, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/blob.incomplete")

    hub.repos["owner/name"] = REPO
    monkeypatch.setattr("rushlight.checkpoint.hub_snapshot.hf_hub_download", fail)
    error = refusal("owner/name")
    assert error.message == "the hub's cache cannot be used: No space left on device"
    assert error.file == "/cache/blob.incomplete"
    assert "HF_HUB_CACHE" in error.remedy


# Downloads that fail


@pytest.fixture
def no_waiting(monkeypatch):
    """Removes the pauses between the retries of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None, time=time.time))


def test_an_interrupted_download_resumes(hub, tmp_path, no_waiting):
    hub.repos["owner/name"] = {"model.safetensors": REPO["model.safetensors"]}
    hub.cuts = 3
    check("owner/name")
    assert hub.cuts == 0
    assert hub.bodies() == ["model.safetensors"] * 4
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_download_is_detected_and_removed(hub, name):
    hub.repos["owner/name"] = REPO
    hub.damaged = {name}
    error = refusal("owner/name")
    assert isinstance(error, CheckpointError)
    assert "a downloaded file of owner/name was damaged, and has been removed" in error.message
    assert error.file.endswith(name)
    assert not Path(error.file).is_symlink()
    assert error.expected != f"hash {error.found}"
    hub.damaged = set()
    hub.requests.clear()
    check("owner/name")
    assert hub.bodies()[0] == name


RUN = """
    from rushlight.checkpoint import open_checkpoint
    with open_checkpoint("owner/name") as checkpoint:
        assert checkpoint["a"].read().tolist() == list(range(500))
"""


def start(hub, tmp_path, code=RUN, **environment) -> subprocess.Popen:
    """A Python process that uses the hub and the cache of this test, without a home folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCE),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    } | environment
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_two_processes_at_once_both_succeed(hub, tmp_path):
    hub.repos["owner/name"] = REPO
    for process in [start(hub, tmp_path), start(hub, tmp_path)]:
        finish(process)
    assert leftovers(tmp_path) == []
    hub.requests.clear()
    finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert hub.requests == []


IN_SMALL_PIECES = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 50\n" + textwrap.dedent(RUN)


def interrupted(hub, tmp_path, how) -> None:
    """A download in another process, which a signal ends after 100 bytes of the first large file."""
    hub.stall = True
    process = start(hub, tmp_path, IN_SMALL_PIECES)
    assert hub.stalled.wait(30)
    time.sleep(0.1)
    process.send_signal(how)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 3
    assert ("KeyboardInterrupt" in err) == (how == signal.SIGINT)
    hub.stall = False
    hub.requests.clear()


def test_an_interrupt_stops_the_download_of_a_small_file_and_leaves_nothing(hub, tmp_path):
    hub.repos["owner/name"] = REPO
    interrupted(hub, tmp_path, signal.SIGINT)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_of_weights_continues_in_another_process(hub, tmp_path, how):
    hub.repos["owner/name"] = {"model.safetensors": REPO["model.safetensors"]}
    interrupted(hub, tmp_path, how)
    [partial] = leftovers(tmp_path)
    n_there = 100 if how == signal.SIGINT else partial.stat().st_size  # what was not flushed is lost
    assert partial.read_bytes() == REPO["model.safetensors"][:n_there]
    assert hub_resume.partial_bytes("owner/name") == n_there
    finish(start(hub, tmp_path, IN_SMALL_PIECES))
    assert hub.ranges == ([f"bytes={n_there}-"] if n_there else [])
    assert leftovers(tmp_path) == []
    finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))


def partial_download(tmp_path, content: bytes) -> Path:
    name = hashlib.sha256(REPO["model.safetensors"]).hexdigest()
    partial = tmp_path / "hub" / "models--owner--name" / "blobs" / f"{name}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content)
    os.utime(partial, (1, 1))
    return partial


@pytest.mark.parametrize("n_there", [0, 1, 1500, len(REPO["model.safetensors"]), 5000])
def test_the_rest_of_a_partial_file_is_downloaded(hub, tmp_path, n_there):
    hub.repos["owner/name"] = REPO
    partial_download(tmp_path, REPO["model.safetensors"].ljust(5000, b"x")[:n_there])
    check("owner/name")
    assert hub.ranges == ([f"bytes={n_there}-"] if n_there in (1, 1500) else [])
    assert hub.bodies().count("model.safetensors") == (n_there != len(REPO["model.safetensors"]))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("n_there", [1500, len(REPO["model.safetensors"])])
def test_a_damaged_partial_file_is_detected_and_removed(hub, tmp_path, n_there):
    hub.repos["owner/name"] = REPO
    partial_download(tmp_path, bytes(n_there))
    assert "was damaged, and has been removed" in refusal("owner/name").message
    assert leftovers(tmp_path) == []
    check("owner/name")


def test_a_partial_file_stays_if_the_hub_fails(hub, tmp_path, monkeypatch, no_waiting):
    hub.repos["owner/name"] = REPO
    partial = partial_download(tmp_path, REPO["model.safetensors"][:700])

    def failing(url, file, **_):
        file.write(REPO["model.safetensors"][700:900])
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(hub_resume, "http_get", failing)
        assert "reset by peer" in refusal("owner/name").message
    assert partial.stat().st_size == 900
    check("owner/name")
    assert hub.ranges == ["bytes=900-"]


READ_ONLY = """
    import os
    from rushlight.checkpoint import open_checkpoint
    def check(**options):
        with open_checkpoint("owner/name", **options) as checkpoint:
            assert checkpoint["a"].read().tolist() == list(range(500))
    check()  # and everything is imported, which another user may not be allowed to
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert not os.access(os.environ["HF_HOME"] + "/hub/models--owner--name/refs/main", os.W_OK, effective_ids=True)
    check()
    check(offline=True)
"""


def test_a_read_only_cache_is_enough(hub, tmp_path_factory):
    hub.repos["owner/name"] = REPO
    home = tmp_path_factory.mktemp("cache")
    finish(start(hub, home))
    for path in [home, *home.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in home.parents:
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        finish(start(hub, home, READ_ONLY))
    finally:
        for path in [home, *home.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
