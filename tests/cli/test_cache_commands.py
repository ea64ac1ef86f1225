"""`rushlight pull`, `list` and `rm` over the hub's cache, with a fake hub on this machine."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save

import rushlight as rushlight_module
from rushlight import demo
from rushlight.cli.commands import pull as pull_module

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gpt2"
TALES = {path.name: path.read_bytes() for path in demo.folder().iterdir() if path.suffix in {".json", ".safetensors"}}
EXTRAS = {"pytorch_model.bin": b"pickle", "model.gguf": b"GGUF", "onnx/model.onnx": b"onnx", "README.md": b"# A model"}
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def cache(hub, tmp_path):
    """The folder of the cache, and a hub with the embedded model as owner/tales."""
    hub.repos["owner/tales"] = TALES | EXTRAS
    return tmp_path / "hub"


def memory(monkeypatch, nbytes):
    monkeypatch.setattr("rushlight.host.memory.available_bytes", lambda: nbytes)


# pull


def test_pull_downloads_what_is_read_and_prints_the_folder(rushlight, hub, cache, monkeypatch):
    memory(monkeypatch, 2**30)
    done = rushlight("pull", "owner/tales")
    assert done.code == 0
    folder = Path(done.out.removesuffix("\n"))
    assert folder.is_relative_to(cache)
    assert {path.name for path in folder.iterdir()} == {*TALES}
    assert "owner/tales: 6.8 MiB to download\n" in done.err
    assert "3,554,304 parameters: weights in f16 6.8 MiB (f32 13.6 MiB, int8 3.6 MiB, int4 2.2 MiB)" in done.err
    assert "fits in f16 (9.1 MiB of 1.0 GiB available)" in done.err
    hub.requests.clear()
    again = rushlight("pull", "owner/tales")
    assert (again.code, again.out) == (0, done.out)
    assert "owner/tales: already downloaded\n" in again.err
    assert hub.bodies() == []


def test_a_pulled_model_runs_offline(rushlight, hub, cache):
    hub.repos[SMOLLM2] = TALES
    done = rushlight("pull", "smollm2")
    assert done.code == 0
    assert f"note: smollm2 is {SMOLLM2}\n" in done.err
    done = rushlight("generate", "smollm2", "Once upon a time", "-n", "3", "--offline")
    assert (done.code, done.err) == (0, f"note: smollm2 is {SMOLLM2}\n")
    assert done.out.startswith("Once upon a time")


def test_pull_in_a_pipe_shows_no_bars(process, hub, cache):
    done = process(
        "$rushlight pull owner/tales 2>&1 >/dev/null | cat", env={"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    )
    assert done.out.splitlines()[0] == "owner/tales: 6.8 MiB to download"
    assert len(done.out.splitlines()) == 3
    assert "\r" not in done.out


def test_pull_says_what_fits_before_it_downloads(rushlight, hub, cache, monkeypatch):
    memory(monkeypatch, 6 * 2**20)
    said = []
    monkeypatch.setattr(pull_module, "write_message", lambda text: said.append((text, hub.bodies())))
    assert rushlight("pull", "owner/tales").code == 0
    assert said[2][0] == "fits with --dtype int8 (5.9 MiB of 6.0 MiB available; f16 needs 9.1 MiB)"
    assert all(set(bodies) <= {"config.json", "model.safetensors"} for _, bodies in said)  # its header
    assert not any("tokenizer.json" in bodies for _, bodies in said)


def test_pull_of_a_type_that_is_not_built_in_says_so(rushlight, hub, cache):
    tensors = {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}
    hub.repos["owner/moe"] = {"config.json": b'{"model_type": "qwen2_moe"}', "model.safetensors": save(tensors)}
    done = rushlight("pull", "owner/moe")
    assert done.code == 0
    assert "qwen2_moe is a mixture-of-experts model, which rushlight does not run" in done.err


def test_pull_refuses_what_has_no_safetensors(rushlight, hub, cache):
    hub.repos["owner/pickles"] = {"config.json": b'{"model_type": "opt"}', "pytorch_model.bin": b"pickle"}
    done = rushlight("pull", "owner/pickles")
    assert (done.code, done.out) == (2, "")
    assert "owner/pickles has no safetensors, only pickles, which are never unpickled" in done.err
    assert "from_pretrained('owner/pickles')" in done.err
    assert "pytorch_model.bin" not in hub.bodies()


@pytest.mark.parametrize("source", ["tales", "here"])
def test_pull_refuses_what_is_here(rushlight, cache, tmp_path, monkeypatch, source):
    shutil.copytree(demo.folder(), tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    done = rushlight("pull", source)
    assert done.code == 2
    assert f"{source} is on this machine: there is nothing to download" in done.err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/nothing", "the hub has no public model of that name"),
        ("smollm2:9b", "did you mean smollm2"),
        ("smolllm2", "did you mean smollm2"),
        ("https://huggingface.co/owner/tales", "a URL"),
    ],
)
def test_pull_refuses_an_unknown_name(rushlight, cache, source, expected):
    done = rushlight("pull", source)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err


def test_pull_refuses_a_model_that_exceeds_the_disk(rushlight, hub, cache, monkeypatch):
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    done = rushlight("pull", "owner/tales")
    assert done.code == 2
    assert "not enough disk space for the model (expected 6.8 MiB, found 1.0 MiB)" in done.err
    assert "tokenizer.json" not in hub.bodies()


def test_pull_continues_what_another_process_left(rushlight, hub, cache, monkeypatch):
    weights = TALES["model.safetensors"]
    partial = cache / "models--owner--tales" / "blobs" / f"{hashlib.sha256(weights).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(weights[: 6 * 2**20])
    assert "1 half download of 6,291,456 bytes: `rushlight pull` continues it" in rushlight("list").out
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    done = rushlight("pull", "owner/tales")
    assert done.code == 0
    assert "owner/tales: 6.8 MiB to download, of which 6.0 MiB are there\n" in done.err
    assert f"bytes={6 * 2**20}-" in hub.ranges
    assert not partial.exists()
    assert rushlight("generate", "owner/tales", "Once", "-n", "1", "--offline").code == 0


def test_a_cut_download_continues(rushlight, hub, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    assert rushlight("inspect", "owner/tales").code == 0  # caches the config, so that the weights are cut
    hub.cuts = 3
    done = rushlight("pull", "owner/tales")
    assert done.code == 0
    assert "the size is not known yet: " in done.err
    assert hub.cuts == 0
    assert rushlight("generate", "owner/tales", "Once", "-n", "1", "--offline").code == 0


# list


def test_list_of_an_empty_cache_says_how_to_fill_it(rushlight, cache):
    done = rushlight("list")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"no models in {cache}; `rushlight pull smollm2` downloads one\n"
    assert rushlight("list", "--json").out == "[]\n"


def test_list_shows_what_runs_and_what_is_broken(rushlight, hub, cache, monkeypatch):
    hub.repos[SMOLLM2] = TALES
    bare = FIXTURES / "gelu_new"
    hub.repos["owner/bare"] = {name: (bare / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.repos["owner/t5"] = {"config.json": b'{"model_type": "t5"}', "model.safetensors": save({"a": np.ones(3)})}
    hub.repos["owner/new"] = {
        "config.json": b'{"model_type": "new\\u001b"}',
        "model.safetensors": save({"a": np.ones(3)}),
    }
    hub.repos["owner/odd"] = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": save({"a": np.ones(3)})}
    for name in hub.repos:
        assert rushlight("pull", name).code == 0
    folder = Path(rushlight("pull", "owner/tales").out.strip())
    weights = (folder / "model.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-10])
    memory(monkeypatch, 2**30)
    done = rushlight("list")
    assert done.code == 0
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert list(rows) == ["model", SMOLLM2, "owner/bare", "owner/new", "owner/odd", "owner/t5", "owner/tales"]
    assert rows[SMOLLM2].split(maxsplit=4)[1:] == [
        "gpt2",
        "6.9",
        "MiB",
        "fits in f16 (9.1 MiB of 1.0 GiB available); short name smollm2",
    ]
    assert "  takes token ids only, not text: no tokenizer.json; fits in f32 (" in rows["owner/bare"]
    assert rows["owner/new"].endswith(r"  new\x1b is not built in")
    assert rows["owner/odd"].endswith(
        "  config.json is not valid: `rushlight check` says why; takes token ids only, not text: no tokenizer.json"
    )
    assert rows["owner/t5"].endswith("  t5 is an encoder-decoder model, which rushlight does not run")
    assert "  gpt2  " in rows["owner/tales"]
    assert "bytes" in rows["owner/tales"]
    assert done.err.startswith("6 models, ")

    shown = {each["repo_id"]: each for each in json.loads(rushlight("list", "--json").out)}
    smollm2 = shown[SMOLLM2]
    assert (smollm2["model_type"], smollm2["built_in"], smollm2["problems"]) == ("gpt2", True, [])
    assert (smollm2["fits_in"], smollm2["n_parameters"], smollm2["short_names"][0]) == ("f16", 3_554_304, "smollm2")
    assert smollm2["need_bytes"]["int8"] < smollm2["need_bytes"]["f16"] < smollm2["available_bytes"] == 2**30
    assert Path(smollm2["folder"]).is_relative_to(cache)
    assert shown["owner/t5"]["built_in"] is False
    assert len(shown["owner/tales"]["problems"]) == 1
    assert shown["owner/tales"]["fits_in"] is None


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer_config.json": b"{}"}, "no tokenizer.json"),
        ({"vocab.json": b"{}"}, "a tokenizer without its merges.txt cannot be read"),
        ({"tokenizer.model": b"x"}, "a SentencePiece model can only be read from a tokenizer.json"),
        (
            {"tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizer"}'},
            "the tokenizer is a LlamaTokenizer, but none of its files are here",
        ),
        ({"tokenizer_config.json": b"["}, "not JSON: expecting value in line 1"),
    ],
)
def test_list_says_what_is_missing_of_a_tokenizer(rushlight, hub, cache, files, problem):
    hub.repos["owner/tales"] = {name: TALES[name] for name in ("config.json", "model.safetensors")} | files
    assert rushlight("pull", "owner/tales").code == 0
    row = rushlight("list").out.splitlines()[1]
    assert f"takes token ids only, not text: {problem}" in row
    assert "fits in f16" in row
    [shown] = json.loads(rushlight("list", "--json").out)
    assert len(shown["problems"]) == 1


def test_list_says_what_does_not_fit(rushlight, cache, monkeypatch):
    assert rushlight("pull", "owner/tales").code == 0
    memory(monkeypatch, 2**20)
    assert "does not fit: even int4 needs 4.4 MiB of 1.0 MiB available" in rushlight("list").out


def test_list_shows_a_model_whose_config_is_no_file(rushlight, cache):
    config = Path(rushlight("pull", "owner/tales").out.strip()) / "config.json"
    config.unlink()
    os.mkfifo(config)
    done = rushlight("list")
    assert done.code == 0
    assert "owner/tales" in done.out
    assert "config.json is invalid: not a regular file" in done.out


def test_list_of_a_cache_that_is_a_file(rushlight, cache):
    cache.write_text("x")
    done = rushlight("list")
    assert (done.code, done.out) == (2, "")
    assert "the hub's cache cannot be read: Not a directory" in done.err


def test_the_environment_names_the_cache(process, cache, rushlight, tmp_path):
    assert rushlight("pull", "owner/tales").code == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").symlink_to(cache, target_is_directory=True)
    for env in ({"HF_HUB_CACHE": str(cache)}, {"HF_HOME": str(tmp_path / "home")}):
        done = process("$rushlight list", env={"HF_HUB_OFFLINE": "1", **env})
        assert done.code == 0, done.err
        assert done.out.splitlines()[1].startswith("owner/tales  gpt2  ")


# rm


def answer(monkeypatch, text):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return text

    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.fixture
def pulled(rushlight, cache):
    assert rushlight("pull", "owner/tales").code == 0
    return cache / "models--owner--tales"


def remove(capsys, *arguments):
    from rushlight.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["rm", *arguments])
    return ended.value.code or 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "is_deleted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_rm_asks(pulled, capsys, monkeypatch, text, is_deleted):
    answer(monkeypatch, text)
    code, err = remove(capsys, "tales")
    assert code == 0
    assert err.startswith(f"delete owner/tales, 6.9 MiB in {pulled}? [y/N] ")
    assert err.endswith("deleted owner/tales: 6.9 MiB freed\n" if is_deleted else "nothing was deleted\n")
    assert pulled.exists() != is_deleted


def test_rm_without_asking(pulled, rushlight):
    done = rushlight("rm", "owner/tales", "--yes", stdin=b"")
    assert (done.code, done.out, done.err) == (0, "", "deleted owner/tales: 6.9 MiB freed\n")
    assert not pulled.exists()


def test_rm_in_a_script_needs_yes(pulled, rushlight):
    done = rushlight("rm", "owner/tales", stdin=b"y\n")
    assert done.code == 2
    assert "confirm with --yes" in done.err
    assert pulled.exists()


@pytest.mark.parametrize("name", ["owner", "tale", "/etc", "..", "smollm2"])
def test_rm_refuses_what_is_not_a_complete_name(pulled, rushlight, name):
    done = rushlight("rm", name, "--yes")
    assert done.code == 2
    assert "in the cache" in done.err or "the cache has no model" in done.err
    assert pulled.exists()


def test_completion_of_rm_names_the_downloaded_models(pulled, process, cache):
    env = {"HF_HUB_CACHE": str(cache), "_RUSHLIGHT_COMPLETE": "complete_bash"}
    done = process("$rushlight", env=env | {"COMP_WORDS": "rushlight rm ow", "COMP_CWORD": "2"})
    assert done.out.split() == ["owner/tales"]


# Offline and read-only


def test_pull_offline_prints_what_is_there_and_refuses_what_is_not(pulled, rushlight, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    done = rushlight("pull", "owner/tales")
    assert done.code == 0
    assert Path(done.out.strip()).is_relative_to(pulled)
    assert done.err.startswith("owner/tales: already downloaded\n")
    done = rushlight("pull", "smollm2")
    assert (done.code, done.out) == (2, "")
    assert "the cache does not have the complete model, and the network is disabled" in done.err
    assert hub.requests == []


def test_python_loads_a_short_name(rushlight, hub, cache):
    hub.repos[SMOLLM2] = TALES
    assert rushlight_module.load("smollm2").name == SMOLLM2
    assert rushlight_module.inspect("smollm2").source == SMOLLM2
    assert rushlight_module.check("smollm2", data=False).fits


@pytest.mark.skipif(os.geteuid() == 0, reason="root may change everything")
def test_a_read_only_cache_is_listed_and_not_changed(pulled, rushlight, cache):
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert "fits in f16" in rushlight("list").out
        assert rushlight("pull", "owner/tales").code == 0
        done = rushlight("rm", "owner/tales", "--yes")
        assert done.code == 2
        assert "Permission denied" in done.err
        pulled.chmod(0)
        assert "cannot be read: Permission denied" in rushlight("list").out
    finally:
        for folder in folders:
            folder.chmod(0o755)
