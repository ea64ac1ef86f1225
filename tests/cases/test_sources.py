"""Cases of sources: shards, other heads, unused config keys, an unreachable hub."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import hub  # noqa: F401 (a fixture)
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.checkpoint import hub as hub_module
from rushlight.checkpoint import open_headers
from rushlight.cli import main
from rushlight.errors import BindError, FormatError, RushlightError, SourceError, TruncatedError

INDEX = "model.safetensors.index.json"
FAR = "fedcba9876543210fedcba9876543210fedcba98"


def text(source, **options) -> str:
    return rushlight.load(source, **options).generate("Hello", max_tokens=8).text


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def add(folder: Path, more: dict[str, np.ndarray]) -> Path:
    save_file(tensors(folder) | more, folder / "model.safetensors", {"format": "pt"})
    return folder


def shard(folder: Path, names: list[str], more: dict[str, str] | None = None) -> Path:
    """Splits the weights into files of these names, with an index that also lists `more`."""
    weights = tensors(folder)
    (folder / "model.safetensors").unlink()
    files = {file: dict(list(weights.items())[i :: len(names)]) for i, file in enumerate(names)}
    for file, held in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(held, folder / file)
    weight_map = {tensor: file for file, held in files.items() for tensor in held} | (more or {})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def served(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return end.value.code or 0


# A key of config.json that is no longer used


@pytest.mark.parametrize("n_ctx", [32, 1024, None, "auto"])
def test_n_ctx_is_ignored_next_to_n_positions(make_gpt2, n_ctx, caplog):
    expected = text(make_gpt2("plain", n_positions=65))
    caplog.clear()
    folder = make_gpt2(n_positions=65, n_ctx=n_ctx)
    assert text(folder) == expected
    assert rushlight.load(folder).context_length == 65
    assert rushlight.check(folder).fits
    assert not caplog.records


def test_a_mask_of_another_size_does_not_shorten_the_context(make_gpt2):
    folder = make_gpt2(n_positions=65, n_ctx=32)
    expected = text(folder)
    mask = np.tril(np.ones((1, 1, 32, 32), np.float32))
    add(folder, {f"transformer.h.{i}.attn.bias": mask for i in range(2)})
    assert text(folder) == expected
    assert rushlight.load(folder).context_length == 65


# The index decides which files are shards


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"],
        ["gpt-00001-of-00002.safetensors", "gpt-00002-of-00002.safetensors"],
        ["weights/model-00001-of-00002.safetensors", "weights/deep/model-00001-of-00002.safetensors"],
        ["one.safetensors", "./weights/../two.safetensors"],
    ],
    ids=["unsloth", "gpt", "subfolders", "dots"],
)
def test_a_hub_index_decides_which_files_are_downloaded(make_gpt2, hub, names):  # noqa: F811
    expected = text(make_gpt2("plain"))
    folder = make_gpt2()
    (folder / "weights").mkdir()
    shard(folder, names)
    save_file({"other": np.zeros(1)}, folder / "consolidated.safetensors")
    hub.repos["me/tiny"] = served(folder)
    assert text(folder) == expected
    assert rushlight.inspect("me/tiny").to_json()["tensors"] == rushlight.inspect(folder).to_json()["tensors"]
    assert text("me/tiny") == expected
    assert text("me/tiny", offline=True) == expected
    assert "consolidated.safetensors" not in hub.bodies()
    with open_headers(f"{hub.url}/me/tiny/resolve/main/{INDEX}") as checkpoint:
        assert len(checkpoint) == 28


def test_shards_of_a_subfolder_are_named_with_it(make_gpt2, hub):  # noqa: F811
    names = ["weights/model-00001-of-00002.safetensors", "weights/model-00002-of-00002.safetensors"]
    folder = shard(make_gpt2(), names)
    hub.repos["me/tiny"] = served(folder)
    for source in (folder, folder / INDEX, "me/tiny", f"{hub.url}/me/tiny/resolve/main/{INDEX}"):
        assert rushlight.inspect(source).files == tuple(names)
    assert rushlight.check(folder).fits


def test_a_repository_without_a_file_of_its_index_is_refused_before_the_download(make_gpt2, hub):  # noqa: F811
    folder = shard(make_gpt2(), ["a.safetensors", "b.safetensors"])
    hub.repos["me/tiny"] = served(folder)
    del hub.repos["me/tiny"]["b.safetensors"]
    with pytest.raises(SourceError, match="its index names files that it does not have") as caught:
        rushlight.load("me/tiny")
    assert caught.value.found == "b.safetensors"
    assert "a.safetensors" not in hub.bodies()


@pytest.mark.parametrize("commit", ["../../../evil", "..", "a/b", ["x"]])
def test_a_commit_that_is_a_path_is_not_followed(make_gpt2, hub, tmp_path, commit):  # noqa: F811
    hub.repos["me/tiny"] = served(make_gpt2())
    hub.commit = commit
    with pytest.raises(SourceError, match="not a commit"):
        rushlight.load("me/tiny")
    assert not list(tmp_path.rglob("evil*"))
    assert not hub.bodies()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "a/../../x.safetensors", "/tmp/x.safetensors", "a\\x.safetensors"]
)
def test_a_hub_index_cannot_name_files_outside_the_repository(make_gpt2, hub, name):  # noqa: F811
    folder = make_gpt2()
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    hub.repos["me/tiny"] = served(folder)
    for source in (folder, "me/tiny", f"{hub.url}/me/tiny/resolve/main/{INDEX}"):
        with pytest.raises(FormatError, match=r"not a \.safetensors file inside the folder") as caught:
            open_headers(source)
        assert "or below it" in caught.value.remedy
    with pytest.raises(FormatError):
        rushlight.load("me/tiny")


@pytest.mark.parametrize("link", ["folder", "file"])
def test_a_link_out_of_a_subfolder_is_refused(make_gpt2, tmp_path, link):
    folder = shard(make_gpt2(), ["weights/a.safetensors", "weights/b.safetensors"])
    if link == "folder":
        (folder / "weights").rename(tmp_path / "outside")
        (folder / "weights").symlink_to(tmp_path / "outside")
    else:
        (folder / "weights" / "b.safetensors").rename(tmp_path / "b.safetensors")
        (folder / "weights" / "b.safetensors").symlink_to(tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match="a symbolic link out of the folder"):
        rushlight.load(folder)


# Tensors that the index lists and no file contains


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
def test_a_tied_head_may_be_listed_and_absent(make_gpt2, hub, config, capsys):  # noqa: F811
    expected = text(make_gpt2("plain"))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = shard(make_gpt2(**config), names, {"lm_head.weight": names[1]})
    hub.repos["me/tiny"] = served(folder)
    assert text(folder) == expected
    assert len(rushlight.inspect(folder).tensors) == len(rushlight.inspect("me/tiny").tensors) == 28
    assert rushlight.check(folder).fits
    assert run("check", folder) == 0
    assert capsys.readouterr().out.endswith("fits\n")


def test_any_other_listed_tensor_must_exist(make_gpt2):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    untied = shard(make_gpt2("untied", tie_word_embeddings=False), names, {"lm_head.weight": names[1]})
    more = shard(make_gpt2("more"), names, {"lm_head.weight": names[1], "lm_head.bias": names[1]})
    for folder, name in ((untied, "lm_head.weight"), (more, "lm_head.bias")):
        for use in (rushlight.load, rushlight.inspect, rushlight.check, rushlight.open_checkpoint):
            with pytest.raises(FormatError, match=rf"{name} is not in {names[1]}, nor in any other file"):
                use(folder)
    with pytest.raises(FormatError, match=r"1 problem\n"):
        rushlight.load(more)


# File descriptors


FEW = """
    import resource, sys
    import rushlight
    model = rushlight.load(sys.argv[1])  # imported modules open files of their own first
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    assert len(rushlight.inspect(sys.argv[1]).files) == 300
    assert rushlight.check(sys.argv[1]).fits
    for device in ("cpu", "reference"):
        again = rushlight.load(sys.argv[1], device=device, dtype="f32")
        assert again.generate("Hello", max_tokens=8).ids == model.generate("Hello", max_tokens=8).ids
    print(model.generate("Hello", max_tokens=8).text)
"""


def many_shards(folder: Path) -> Path:
    """The weights in 300 files, most of which contain part of another head."""
    add(folder, {f"v_head.{i}.weight": np.ones((1, 64), np.float32) for i in range(272)})
    return shard(folder, [f"model-{i:05}-of-00300.safetensors" for i in range(300)])


def test_300_shards_need_few_descriptors(make_gpt2):
    expected = text(make_gpt2("plain"))
    folder = many_shards(make_gpt2())
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FEW), str(folder)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


@pytest.mark.parametrize("how", ["rewritten", "cut", "replaced"])
def test_a_shard_that_changes_while_closed_is_an_error(make_gpt2, how):
    with rushlight.open_checkpoint(many_shards(make_gpt2())) as checkpoint:
        tensor = checkpoint["transformer.wte.weight"]
        before, content = tensor.read(), tensor.file.read_bytes()
        if how == "rewritten":
            tensor.file.write_bytes(content[:-1] + b"?")
        elif how == "cut":
            tensor.file.write_bytes(content[:-1])
        else:
            copy = tensor.file.with_name("copy")
            shutil.copy2(tensor.file, copy)
            copy.replace(tensor.file)
        with pytest.raises(TruncatedError, match="the file was changed while it was being read"):
            tensor.read()
        assert before.shape == (257, 64)
    with pytest.raises(ValueError, match="closed file"):
        tensor.read()


def test_shards_are_reopened_from_another_working_directory(make_gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(many_shards(make_gpt2()).parent)
    with rushlight.open_checkpoint("m") as checkpoint:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert checkpoint["transformer.wte.weight"].read().shape == (257, 64)


# Files that are being written


def test_a_file_that_is_written_continuously_is_refused(make_gpt2, monkeypatch):
    path = make_gpt2() / "model.safetensors"
    monkeypatch.setattr(time, "sleep", lambda _: path.touch())
    path.touch()
    with pytest.raises(TruncatedError, match="the file is being written") as caught:
        rushlight.open_checkpoint(path)
    assert "once the program that writes it has finished" in caught.value.remedy


def test_a_file_that_was_just_written_opens_once_it_has_settled(make_gpt2):
    path = make_gpt2() / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content)
    with rushlight.open_checkpoint(path) as checkpoint:
        assert time.time_ns() - path.stat().st_mtime_ns >= 10_000_000
        path.write_bytes(content)
        with pytest.raises(TruncatedError):
            checkpoint["transformer.wte.weight"].read()


# Other heads next to the model


HEADS = {
    "v_head.summary.weight": np.ones((1, 64), np.float32),
    "v_head.summary.bias": np.ones(1, np.float32),
    "multiple_choice_head.summary.weight": np.ones((1, 64), np.float32),
    "score.weight": np.ones((2, 64), np.float32),
}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_other_heads_are_left_out_and_named(make_gpt2, prefix, caplog, capsys):
    expected = text(make_gpt2("plain"))
    folder = make_gpt2()
    body = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors(folder).items()}
    save_file(body | HEADS, folder / "model.safetensors")
    caplog.clear()
    assert text(folder) == expected
    assert caplog.messages == ["ignored parts for other tasks: multiple_choice_head, score, v_head"]
    assert run("check", folder) == 0
    page = capsys.readouterr().out
    assert "note: ignored parts for other tasks" in page
    assert all(name in page for name in HEADS)
    assert page.endswith("fits\n")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lm_head.bias", (257,)),  # of a head that the model has
        ("embed_head.weight", (257, 64)),  # could be the head itself
        ("transformer.v_head.weight", (1, 64)),  # in the body
        ("transformer.h.0.v_head.weight", (1, 64)),
        ("adapter.weight", (64, 64)),
    ],
)
def test_a_tensor_that_the_model_may_need_is_never_left_out(make_gpt2, name, shape):
    folder = add(make_gpt2(), {name: np.ones(shape, np.float32)})
    with pytest.raises(BindError) as caught:
        rushlight.load(folder)
    assert [problem[:2] for problem in caught.value.problems] == [("unexpected", name)]
    assert not rushlight.check(folder).fits


# An unreachable hub


@pytest.fixture
def cached_elsewhere(make_gpt2, hub, tmp_path):  # noqa: F811
    """A model in the cache as other programs leave it, without a list of the repository's files."""
    hub.repos["me/tiny"] = served(make_gpt2("on_the_hub"))
    expected = text("me/tiny")
    shutil.rmtree(tmp_path / "hub" / "models--me--tiny" / "trees")
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    hub.requests.clear()
    return expected


@pytest.fixture
def no_pauses(monkeypatch):
    """Fails if huggingface_hub would pause and retry."""

    def sleep(seconds):
        raise AssertionError(f"a pause of {seconds} s")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", sleep)


@pytest.mark.parametrize("revision", [None, "main", "0123456789abcdef0123456789abcdef01234567"])
def test_a_model_in_the_cache_needs_no_network(hub, cached_elsewhere, no_pauses, revision):  # noqa: F811
    hub.close()
    assert text("me/tiny", revision=revision) == cached_elsewhere
    assert len(rushlight.inspect("me/tiny", revision=revision).tensors) == 28


def test_a_hub_that_never_answers_is_not_waited_for(hub, cached_elsewhere, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(hub_module, "WAIT_FOR_NEWER_S", 0.2)
    hub.silent = True
    started = time.monotonic()
    assert text("me/tiny") == cached_elsewhere
    assert time.monotonic() - started < 5
    assert "did not answer within 0.2 s" in caplog.messages[0]
    assert len(hub.requests) == 1


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_the_cache_works_while_a_proxy_answers_for_the_hub(
    hub,  # noqa: F811
    cached_elsewhere,
    no_pauses,
    status,
):
    hub.status = status
    assert text("me/tiny") == cached_elsewhere
    assert len(hub.requests) == 1


def test_an_incomplete_model_in_the_cache_is_refused_at_once(
    hub,  # noqa: F811
    cached_elsewhere,
    no_pauses,
    tmp_path,
):
    snapshot = next((tmp_path / "hub" / "models--me--tiny" / "snapshots").iterdir())
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="the cache does not have the complete model, and the network is disabled"):
        rushlight.load("me/tiny", offline=True)
    hub.close()
    with pytest.raises(SourceError, match=r"me/tiny exists, and the model cannot be downloaded .*refused") as caught:
        rushlight.load("me/tiny")
    assert f"check that {hub.url} can be reached" in caught.value.remedy


def test_files_that_another_program_left_out_are_downloaded(hub, cached_elsewhere, tmp_path):  # noqa: F811
    snapshot = next((tmp_path / "hub" / "models--me--tiny" / "snapshots").iterdir())
    (snapshot / "vocab.json").unlink()
    assert text("me/tiny") == cached_elsewhere
    assert (snapshot / "vocab.json").exists()
    assert "GET api/models/me/tiny/tree/0123456789abcdef0123456789abcdef01234567" in hub.requests


def test_a_branch_that_moved_is_noticed(hub, make_gpt2, cached_elsewhere):  # noqa: F811
    hub.repos["me/tiny"] = served(make_gpt2("newer", seed=1))
    hub.commit = FAR
    newer = text("me/tiny")
    assert newer != cached_elsewhere
    assert text("me/tiny", offline=True) == newer


# Hostile input


@pytest.mark.parametrize("location", ["http://[::1", "http://[", "https://x:port/", "//[1"])
def test_a_redirect_to_an_invalid_url_is_typed(hub, monkeypatch, location):  # noqa: F811
    def redirect(handler):
        handler.send(302, b"", {"Location": location})

    monkeypatch.setattr(hub.server.RequestHandlerClass, "answer", redirect)
    with pytest.raises(SourceError, match="redirects to a forbidden URL: not a URL"):
        rushlight.inspect(f"{hub.url}/x.safetensors")


@pytest.mark.parametrize("length", [6_000, 200_000])
def test_long_names_are_shortened_in_messages(make_gpt2, capsys, length):
    name = "transformer.h.0." + "x" * length
    folder = add(make_gpt2(), {name: np.ones(3, np.float32)})
    for command in (["check"], ["inspect"], ["generate", "-p", "Hello"]):
        run(command[0], folder, *command[1:])
        shown = "".join(capsys.readouterr())
        assert max(map(len, shown.splitlines())) < 600
        assert "characters)" in shown
    run("inspect", folder, "--json")
    assert name in capsys.readouterr().out
    with pytest.raises(RushlightError) as caught:
        rushlight.load(folder)
    assert caught.value.problems[0][1] == name
