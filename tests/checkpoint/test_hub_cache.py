"""Listing and deleting the models in the hub's cache: healthy, broken, and not a cache at all."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from rushlight.checkpoint import hub as hub_module
from rushlight.checkpoint.hub_cache import cache_folder, cached_models, delete, find_cached
from rushlight.errors import SourceError

WEIGHTS = save({"a": np.arange(500, dtype="<f4")})
REPO = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": WEIGHTS}
SIZE = len(REPO["config.json"]) + len(WEIGHTS)
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'


@pytest.fixture
def cache(hub, tmp_path) -> Path:
    """An empty cache, and a hub with owner/name, other/name and owner/second."""
    for name in ("owner/name", "other/name", "owner/second"):
        hub.repos[name] = dict(REPO)
    return tmp_path / "hub"


def only() -> object:
    [model] = cached_models()
    return model


def refusal(call, *arguments) -> SourceError:
    with pytest.raises(SourceError) as caught:
        call(*arguments)
    return caught.value


def test_no_cache_and_an_empty_cache_have_no_models(cache):
    assert cached_models() == []
    cache.mkdir()
    assert cached_models() == []


def test_a_downloaded_model_has_no_problems(cache):
    folder = hub_module.download("owner/name")
    model = only()
    assert (model.repo_id, model.problems, model.snapshot) == ("owner/name", (), folder)
    assert SIZE <= model.nbytes < SIZE + 10_000  # the hub's list of files is there too
    assert model.folder == cache / "models--owner--name"


def test_data_sets_and_other_files_are_left_out(cache):
    hub_module.download("owner/name")
    for name in ("datasets--owner--data", "models-x", ".locks"):
        (cache / name).mkdir(exist_ok=True)
    (cache / "version.txt").write_text("1")
    (cache / "models--").mkdir()
    assert only().repo_id == "owner/name"


def test_the_main_branch_is_the_snapshot_that_is_loaded(cache, hub):
    hub_module.download("owner/name")
    first = only().commits
    hub.commit = "f" * 40
    hub_module.download("owner/name")
    assert only().commits == ("f" * 40, *first)
    (cache / "models--owner--name" / "refs" / "main").write_text(first[0])
    assert only().commits == (*first, "f" * 40)


def blob(folder: Path, name: str) -> Path:
    return (folder / name).resolve()


def test_a_dangling_link_is_named(cache):
    folder = hub_module.download("owner/name")
    blob(folder, "model.safetensors").unlink()
    first, second = only().problems
    assert first == "1 link to a file that is missing: model.safetensors"
    assert second == "the weights were not downloaded"


def test_a_half_download_is_named(cache):
    folder = hub_module.download("owner/name")
    blob(folder, "config.json").with_name("abc.123.incomplete").write_bytes(b"x" * 1234)
    assert only().problems == ("1 half download of 1,234 bytes",)


def test_missing_shards_are_named(cache, hub):
    hub.repos["owner/name"] = {
        "model.safetensors.index.json": INDEX,
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": save({"b": np.zeros(3)}),
    }
    folder = hub_module.download("owner/name")
    assert only().problems == ()
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert only().problems == ("1 of 2 shards are missing: model-00002-of-00002.safetensors",)
    index = blob(folder, "model.safetensors.index.json")
    index.chmod(0o644)
    index.write_text("{}")
    assert only().problems[0].startswith("model.safetensors.index.json is invalid: ")


@pytest.mark.parametrize(
    ("name", "problem"),
    [("pytorch_model.bin", "no safetensors, only pickles"), ("config.json", "the weights were not downloaded")],
)
def test_a_model_without_safetensors_is_named(cache, name, problem):
    snapshot = cache / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / name).write_bytes(b"x")
    assert only().problems == (problem,)


def test_a_branch_without_its_commit_and_an_empty_folder_are_named(cache):
    (cache / "models--owner--name" / "refs").mkdir(parents=True)
    assert only().problems == ("nothing was downloaded",)
    (cache / "models--owner--name" / "refs" / "main").write_text("0123456789abcdef")
    assert only().problems == (
        "the main branch is at 0123456789ab, which was not downloaded",
        "nothing was downloaded",
    )


def test_a_file_in_place_of_a_folder_is_named(cache):
    cache.mkdir()
    (cache / "models--owner--name").write_text("x")
    assert only().problems == ("nothing was downloaded",)


def test_a_cache_that_cannot_be_read_is_refused(cache, monkeypatch):
    cache.write_text("not a folder")
    error = refusal(cached_models)
    assert error.message == "the hub's cache cannot be read: Not a directory"
    assert "HF_HUB_CACHE" in error.remedy


# Finding


@pytest.mark.parametrize("name", ["owner/second", "OWNER/Second", "second", "Second"])
def test_a_model_is_found_by_its_complete_name(cache, name):
    for repo in ("owner/name", "owner/second"):
        hub_module.download(repo)
    assert find_cached(name).repo_id == "owner/second"


def test_a_model_is_found_by_its_short_name(cache, hub):
    hub.repos["Qwen/Qwen3-0.6B"] = REPO
    hub_module.download("Qwen/Qwen3-0.6B")
    assert find_cached("qwen3:0.6b").repo_id == find_cached("qwen3").repo_id == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "message", "found"),
    [
        ("name", "name is the name of several models in the cache", "other/name, owner/name"),
        ("nam", "nam is part of the name of a model in the cache", "other/name, owner/name"),
        ("seco", "seco is part of the name of a model in the cache", "owner/second"),
        ("owner", "owner is part of the name of a model in the cache", "owner/name, owner/second"),
        ("third", "the cache has no model third", None),
        ("", "the cache has no model ", None),
        ("../name", "the cache has no model ../name", None),
    ],
)
def test_an_incomplete_or_unknown_name_is_refused(cache, name, message, found):
    for repo in ("owner/name", "other/name", "owner/second"):
        hub_module.download(repo)
    error = refusal(find_cached, name)
    assert (error.message, error.found) == (message, found)


# Deleting


def test_only_the_named_model_is_deleted_although_commits_are_equal(cache):
    for repo in ("owner/name", "other/name"):
        hub_module.download(repo)
    model = find_cached("owner/name")
    assert delete(model) == model.nbytes > SIZE
    assert [left.repo_id for left in cached_models()] == ["other/name"]
    assert only().problems == ()


def test_all_snapshots_are_deleted(cache, hub):
    hub_module.download("owner/name")
    hub.commit = "f" * 40
    hub_module.download("owner/name")
    delete(only())
    assert cached_models() == []


def test_a_broken_model_is_deleted(cache):
    folder = hub_module.download("owner/name")
    blob(folder, "model.safetensors").unlink()
    model = only()
    assert delete(model) == model.nbytes
    assert not model.folder.exists()


def test_nothing_outside_the_cache_is_deleted(cache, tmp_path):
    folder = hub_module.download("owner/name")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x" * 100_000)
    (folder / "link").symlink_to(precious / "file")
    (folder / "folder").symlink_to(precious, target_is_directory=True)
    assert delete(only()) < 100_000
    assert (precious / "file").read_text() == "x" * 100_000


@pytest.mark.parametrize("target", ["elsewhere", "hub/models--owner--second"])
def test_a_model_that_is_a_link_is_not_deleted(cache, tmp_path, target):
    hub_module.download("owner/second")
    if target == "elsewhere":
        shutil.copytree(cache / "models--owner--second", tmp_path / target, symlinks=True)
    (cache / "models--owner--name").symlink_to(tmp_path / target, target_is_directory=True)
    error = refusal(delete, find_cached("owner/name"))
    assert "link" in error.message
    assert (tmp_path / target / "snapshots").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may change everything")
def test_a_read_only_cache_is_refused_before_anything_is_deleted(cache):
    hub_module.download("owner/name")
    model = only()
    (model.folder / "blobs").chmod(0o555)
    try:
        error = refusal(delete, model)
    finally:
        (model.folder / "blobs").chmod(0o755)
    assert error.file == str(model.folder / "blobs")
    assert only().problems == ()


def test_a_folder_without_permissions_is_refused_before_anything_is_deleted(cache, monkeypatch):
    hub_module.download("owner/name")
    model = only()
    blobs = str(model.folder / "blobs")
    monkeypatch.setattr(os, "access", lambda path, _: str(path) != blobs)
    error = refusal(delete, model)
    assert (error.file, error.message) == (blobs, "cannot be deleted from: Permission denied")
    assert only().problems == ()


def test_the_cache_is_where_the_environment_says(cache, tmp_path):
    assert cache_folder() == tmp_path / "hub"


def test_deleting_reads_no_other_model(cache):
    hub_module.download("owner/name")
    hub_module.download("owner/second")
    main = cache / "models--owner--second" / "refs" / "main"
    main.unlink()
    os.mkfifo(main)  # whoever reads it waits for ever
    delete(find_cached("owner/name"))
    assert [model.repo_id for model in cached_models()] == ["owner/second"]


def test_a_named_pipe_in_place_of_a_folder_is_not_deleted(cache):
    cache.mkdir()
    os.mkfifo(cache / "models--owner--pipe")
    assert "cannot be deleted: not a folder" in str(refusal(delete, only()))
