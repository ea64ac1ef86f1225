"""`rushlight.convert`, and loading what it writes."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from architecture_fixtures import Fixture
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight import demo
from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.packed import CONVERTED_DTYPES
from rushlight.errors import ConversionError, DtypeError, FormatError, NonFiniteError, RushlightError, SourceError

_native = pytest.importorskip("rushlight.backends._native")

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROOF = FIXTURES / "proof"
GPT2 = ("gelu_untied", "gelu_pytorch_tanh_sharded", "quick_gelu_f16", "gelu_fast_bf16", "mask_buffers")
ARCHITECTURES = ("bloom", "gemma3_text", "gpt_neox", "phi3", "qwen3")


@pytest.fixture(params=CONVERTED_DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def int4(tmp_path_factory):
    """The embedded model in int4."""
    return rushlight.convert("tales", tmp_path_factory.mktemp("converted") / "int4", dtype="int4").folder


def weights_of(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def assert_same_bits(source, folder, dtype, prompt, **options):
    """Asserts that source and converted folder compute the same logits, mapped and copied."""
    expected = rushlight.load(source, dtype=dtype, **options)
    for copy in (False, True):
        found = rushlight.load(folder, copy=copy, **options)
        assert (found.dtype, found._backend.kv_dtype) == (expected.dtype, expected._backend.kv_dtype)
        assert found.n_parameters == expected.n_parameters
        np.testing.assert_array_equal(found.logits(prompt), expected.logits(prompt))


# The file


def test_the_safetensors_package_reads_the_file(tmp_path, dtype):
    done = rushlight.convert("tales", tmp_path / "new", dtype=dtype)
    assert done.files == ("model.safetensors",)
    with safe_open(done.folder / "model.safetensors", "np") as file:
        names, found = set(file.keys()), file.metadata()
    tensors = load_file(done.folder / "model.safetensors")
    with open_checkpoint(demo.folder()) as source:
        assert names == set(source)
        assert json.loads(found["rushlight.source"]) == {
            "model.safetensors": hashlib.sha256(source.files[0].read_bytes()).hexdigest()
        }
        assert done.source_bytes == sum(tensor.nbytes for tensor in source.values())
        np.testing.assert_array_equal(tensors["ln_f.bias"], source["ln_f.bias"].float32())
    assert done.nbytes == sum(values.nbytes for values in tensors.values())
    assert (found["format"], found["rushlight.dtype"]) == ("rushlight", dtype)
    assert found["rushlight.version"] == rushlight.__version__


def test_every_instruction_set_and_number_of_threads_writes_the_same_bytes(tmp_path, monkeypatch, dtype):
    source = FIXTURES / "gpt2" / GPT2[0]
    found = set()
    for isa in _native.instruction_sets():
        monkeypatch.setenv("RUSHLIGHT_ISA", isa)
        for threads in (1, 2):
            monkeypatch.setattr("rushlight.host.threads.usable_cores", lambda: 2)
            folder = tmp_path / f"{isa}{threads}"
            rushlight.convert(source, folder, dtype=dtype, threads=threads)
            found.add(weights_of(folder))
    assert len(found) == 1


def test_pieces_do_not_change_the_bytes(tmp_path, monkeypatch, dtype):
    rushlight.convert("tales", tmp_path / "whole", dtype=dtype)
    monkeypatch.setattr("rushlight.loading.convert.PIECE_BYTES", 50_000)
    rushlight.convert("tales", tmp_path / "pieces", dtype=dtype)
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "pieces")


def test_files_beside_the_weights_are_copied(tmp_path):
    source = shutil.copytree(demo.folder(), tmp_path / "source", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (source / "additional_chat_templates").mkdir()
    for name in ("LICENSE", "NOTICE.txt", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (source / name).write_text(name)
    for name in ("README.md", "optimizer.pt", "notes.txt", "licensed.bin"):
        (source / name).write_text("not copied")
    folder = rushlight.convert(source, tmp_path / "new", dtype="int8").folder
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    own = {"config.json", "tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"}
    assert copied == own | {"model.safetensors", "LICENSE", "NOTICE.txt"}
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in copied - {"model.safetensors"})


def test_progress_ends_at_the_total(tmp_path):
    reports = []
    rushlight.convert("tales", tmp_path / "new", dtype="f16", progress=lambda *report: reports.append(report))
    assert reports[-1][0] == reports[-1][1]
    assert [report[0] for report in reports] == sorted(report[0] for report in reports)
    assert {report[2] for report in reports} >= {"hashing", "wte.weight", "ln_f.bias"}


# The same bits as the source


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_computes_the_bits_of_its_source(tmp_path, name, dtype):
    source = FIXTURES / "gpt2" / name
    folder = rushlight.convert(source, tmp_path / "new", dtype=dtype).folder
    assert_same_bits(source, folder, dtype, [1, 2, 3, 0, 5])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_compute_the_bits_of_their_sources(tmp_path, name, dtype):
    fixture = Fixture(name)
    source = fixture.write(tmp_path / "source")
    folder = rushlight.convert(source, tmp_path / "new", dtype=dtype).folder
    assert_same_bits(source, folder, dtype, fixture.prompt)


def test_a_port_with_convolutions_computes_the_bits_of_its_source(tmp_path, dtype):
    from rushlight.proof.golden import read_golden

    source, port = PROOF / "encoder.safetensors", PROOF / "encoder.py"
    folder = rushlight.convert(source, tmp_path / "new", dtype=dtype, port=port).folder
    expected = rushlight.load_module(source, port=port, dtype=dtype)
    found = rushlight.load_module(folder, port=port)
    names = [f"blocks.{i}.conv" for i in range(len(expected.blocks))]
    for path in names:
        of = [dict(model.named_modules())[path].values("weight") for model in (found, expected)]
        np.testing.assert_array_equal(*of)
    golden = read_golden(PROOF / "encoder.golden.safetensors")
    reports = [rushlight.verify(model, golden) for model in (found, expected)]
    errors = [[module.free_running for module in report.modules] for report in reports]
    assert errors[0] == errors[1]


def test_shards_compute_the_same_bits(tmp_path, monkeypatch, int4):
    monkeypatch.setattr("rushlight.loading.convert.SHARD_BYTES", 300_000)
    done = rushlight.convert("tales", tmp_path / "new", dtype="int4")
    assert len(done.files) > 3
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.nbytes
    assert set(index["weight_map"].values()) == set(done.files)
    assert_same_bits("tales", done.folder, "int4", "Once upon a time")


def test_a_tied_head_is_stored_once(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tensors = load_file(demo.folder() / "model.safetensors")
    shutil.copy(demo.folder() / "config.json", source)
    save_file({**tensors, "lm_head.weight": tensors["wte.weight"].copy()}, source / "model.safetensors")
    folder = rushlight.convert(source, tmp_path / "both", dtype="int4").folder
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert_same_bits(source, folder, "int4", [1, 2, 3])
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    save_file(tensors, source / "model.safetensors")
    folder = rushlight.convert(source, tmp_path / "head", dtype="int4").folder
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    assert_same_bits(source, folder, "int4", [1, 2, 3])


def test_a_bare_file_is_converted(tmp_path):
    source = shutil.copy(demo.folder() / "model.safetensors", tmp_path / "model.safetensors")
    folder = rushlight.convert(source, tmp_path / "new", dtype="f16").folder
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert_same_bits(source, folder, "f16", [1, 2, 3])


# Other devices and dtypes


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_other_backends_compute_with_the_same_values(int4, device):
    found = rushlight.load(int4, device=device, dtype="f64" if device == "cpu" else "auto")
    packed = rushlight.load(int4)
    assert found.dtype == ("f64" if device == "cpu" else "f32")
    for name in ("wte", "h.3.attn.c_attn", "h.0.mlp.c_proj"):
        of = [dict(model.module.named_modules())[name].values("weight") for model in (found, packed)]
        np.testing.assert_array_equal(*of)
    assert found.logits("The king").argmax(-1).tolist() == packed.logits("The king").argmax(-1).tolist()


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "int8"), ("cpu", "f32"), ("cpu", "bf16")])
def test_another_dtype_is_refused(int4, device, dtype):
    with pytest.raises(DtypeError, match=f"converted to int4, and not rounded again to {dtype}; .*SOURCE") as error:
        rushlight.load(int4, device=device, dtype=dtype)
    assert error.value.file == str(int4)


def test_the_dtype_of_the_folder_may_be_named(int4):
    assert rushlight.load(int4, dtype="int4").dtype == "int4"


def test_weights_are_used_where_they_lie(int4):
    file = int4 / "model.safetensors"
    model = rushlight.load(int4)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(file) in maps.read_text()
    assert list(model._backend._mapped) == [file]
    assert not rushlight.load(int4, copy=True)._backend._mapped


def test_where_mapping_is_not_possible_the_file_is_read(int4, monkeypatch, caplog):
    def refuse(_fd, _bytes):
        raise OSError(errno.ENODEV, "No such device")

    expected = rushlight.load(int4).logits("The")
    monkeypatch.setattr("rushlight.backends.cpu._native.Mapping", refuse)
    with caplog.at_level("INFO", "rushlight"):
        found = rushlight.load(int4)
    assert "cannot be mapped (No such device), and is read into memory" in caplog.text
    np.testing.assert_array_equal(found.logits("The"), expected)


def test_a_role_of_another_port_is_refused(tmp_path):
    folder = rushlight.convert("tales", tmp_path / "new", dtype="int8").folder
    path = folder / "model.safetensors"
    data = path.read_bytes()
    tables = data.count(rb"[512,192],\"dtype\":\"F16\",\"role\":\"table")
    assert tables == 1
    swapped = data.replace(
        rb"[512,192],\"dtype\":\"F16\",\"role\":\"table", rb"[512,192],\"dtype\":\"F16\",\"role\":\"linear"
    )
    n = int.from_bytes(data[:8], "little")
    header = swapped[8 : 8 + n + 1]
    assert header.endswith(b"  ")
    path.write_bytes(data[:8] + header[:-1] + swapped[8 + n + 1 :])
    with pytest.raises(
        FormatError, match=r"wpe.weight: converted for another role in the model .expected table, found linear"
    ):
        rushlight.load(folder)


# What is refused


def test_a_converted_source_is_refused(int4, tmp_path):
    with pytest.raises(ConversionError, match="already converted, to int4"):
        rushlight.convert(int4, tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("dtype", "message"), [("auto", "use one of: f32"), ("q8", "did you mean int8"), (None, "None")]
)
def test_unknown_dtypes_are_refused(tmp_path, dtype, message):
    with pytest.raises(DtypeError, match=message):
        rushlight.convert("tales", tmp_path / "new", dtype=dtype)


def test_targets_that_are_in_use_are_refused(tmp_path):
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "mine").write_text("mine")
    file.touch()
    for target, message in [
        (used, "the folder has files in it"),
        (file, "not a folder"),
        (tmp_path / "no" / "folder", "no such folder"),
        (demo.folder(), "the folder has files in it"),
    ]:
        for force in (False, True):
            with pytest.raises(ConversionError, match=message):
                rushlight.convert("tales", target, dtype="f16", force=force)
    assert (used / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]


def test_force_replaces_only_converted_folders(tmp_path):
    target = tmp_path / "new"
    rushlight.convert("tales", target, dtype="int8")
    with pytest.raises(ConversionError, match="already a converted checkpoint; use --force"):
        rushlight.convert("tales", target, dtype="int4")
    rushlight.convert("tales", target, dtype="int4", force=True)
    assert rushlight.load(target).dtype == "int4"
    path = target / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"rushlight.layout":"1"', b'"rushlight.layout":"9"'))
    with pytest.raises(FormatError, match="found layout 9"):
        rushlight.load(target)
    rushlight.convert("tales", target, dtype="int4", force=True)
    assert path.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_no_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ConversionError, match=r"not enough disk space .expected .* MiB, found 1000 B"):
        rushlight.convert("tales", tmp_path / "new", dtype="f32")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rushlight.files.folder._sync", full)
    with pytest.raises(ConversionError, match="cannot be written: No space left on device") as error:
        rushlight.convert("tales", tmp_path / "new", dtype="int8")
    assert error.value.file == str(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RushlightError])
def test_an_interrupt_leaves_nothing(tmp_path, error):
    def stop(_done, _total, note):
        if note == "h.2.ln_1.weight":
            raise error("stop")

    with pytest.raises(error, match="stop"):
        rushlight.convert("tales", tmp_path / "new", dtype="int8", progress=stop)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(demo.folder() / "config.json", source)
    tensors = load_file(demo.folder() / "model.safetensors")
    tensors["h.1.mlp.c_fc.weight"][3, 5] = np.inf
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(NonFiniteError) as error:
        rushlight.convert(source, tmp_path / "new", dtype="int8")
    assert error.value.tensor == "h.1.mlp.c_fc.weight"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sources_that_do_not_fit_are_refused(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="match no known architecture"):
        rushlight.convert(tmp_path, tmp_path / "new", dtype="int8")
    with pytest.raises(SourceError):
        rushlight.convert(tmp_path / "missing", tmp_path / "new", dtype="int8")


def test_a_killed_conversion_leaves_a_hidden_folder_that_the_next_removes(tmp_path):
    code = """
import sys, time, rushlight
def wait(_done, _total, note):
    if note == "h.2.ln_1.weight":
        print("here", flush=True)
        time.sleep(60)
rushlight.convert("tales", sys.argv[1], dtype="int8", progress=wait)
"""
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [part] = tmp_path.iterdir()
    assert part.name.startswith(".new.")
    assert part.name.endswith(".part")
    rushlight.convert("tales", tmp_path / "new", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
def test_no_moment_of_a_kill_leaves_half_a_folder(tmp_path):
    code = "import sys, rushlight; rushlight.convert('tales', sys.argv[1], dtype='int8', force=True)"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, tmp_path / "new"], check=True)
    longest = time.monotonic() - start
    for i in range(100):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"])
        time.sleep(longest * i / 90)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        visible = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert [path.name for path in visible] in (["new"], [])
        if visible:
            rushlight.load(tmp_path / "new")
    rushlight.convert("tales", tmp_path / "new", dtype="int8", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
