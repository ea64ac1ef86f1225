"""Converted files that change while they are mapped: an error that names them, and no wrong token."""

import os
import subprocess
import sys
import threading

import pytest

import rushlight
from rushlight import Request
from rushlight.errors import CheckpointError, TruncatedError

pytest.importorskip("rushlight.backends._native")

PROMPT = "Once upon a time"


@pytest.fixture
def folder(tmp_path):
    """The embedded model in int4, and its file."""
    return rushlight.convert("tales", tmp_path / "int4", dtype="int4").folder


@pytest.fixture
def file(folder):
    return folder / "model.safetensors"


def cut(file):
    os.truncate(file, 5000)


def rewrite(file):
    data = bytearray(file.read_bytes())
    data[100_000:200_000] = bytes(100_000)
    with file.open("rb+") as opened:
        opened.write(data)


def extend(file):
    with file.open("ab") as opened:
        opened.write(b"more")


def touch(file):
    os.utime(file)


@pytest.mark.parametrize("change", [cut, rewrite, extend, touch])
def test_a_change_between_two_tokens_ends_the_stream(folder, file, change):
    expected = list(rushlight.load(folder).stream(PROMPT, max_tokens=30))
    model = rushlight.load(folder)
    stream = model.stream(PROMPT, max_tokens=30)
    found = [next(stream) for _ in range(3)]
    change(file)

    with pytest.raises(TruncatedError, match="the file was changed while it was being read") as error:
        found += stream
    assert error.value.file == str(file)
    assert "".join(expected).startswith("".join(found))
    for call in (model.logits, model.generate, model.perplexity):
        with pytest.raises(TruncatedError):
            call(PROMPT)
    with pytest.raises(TruncatedError):
        model.module.wte.values("weight")


def test_a_copied_model_does_not_depend_on_its_file(folder, file):
    model = rushlight.load(folder, copy=True)
    expected = model.generate(PROMPT, max_tokens=10).text
    cut(file)
    assert model.generate(PROMPT, max_tokens=10).text == expected


@pytest.mark.parametrize("how", ["renamed over", "removed"])
def test_a_model_whose_file_is_replaced_continues_with_the_old_one(folder, file, tmp_path, how):
    """The mapping keeps the file that it was made of, whose bytes are as they were."""
    model = rushlight.load(folder)
    expected = model.generate(PROMPT, max_tokens=10).text
    if how == "removed":
        file.unlink()
    else:
        rushlight.convert("tales", folder, dtype="int8", force=True)
    assert model.generate(PROMPT, max_tokens=10).text == expected


def test_every_sequence_of_the_engine_ends_with_the_error(folder, file):
    model = rushlight.load(folder)
    model.generate(PROMPT, max_tokens=2)
    cut(file)
    requests = [Request(PROMPT, (), {"max_tokens": 10}) for _ in range(3)]
    results = dict(model.generate_many(requests))
    assert [results[i].file for i in range(3)] == [str(file)] * 3


def test_a_draft_model_in_a_changed_file_is_named(folder, file):
    model = rushlight.load("tales", draft=folder)
    model.generate(PROMPT, max_tokens=10, speculate=True)
    cut(file)
    with pytest.raises(CheckpointError) as error:
        model.generate(PROMPT, max_tokens=10, speculate=True)
    assert error.value.file == str(file)


def test_a_disk_that_fails_is_an_error(folder, file, monkeypatch):
    """Where the file has not changed, the failed read itself is the reason."""
    model = rushlight.load(folder)
    monkeypatch.setattr(type(model._backend._mapped[file].tensor), "require_unchanged", lambda _self, _fd: None)
    cut(file)
    with pytest.raises(CheckpointError, match="cannot be read: its disk reported an error") as error:
        model.generate(PROMPT)
    assert error.value.file == str(file)


PROGRAM = """
import os, random, sys, threading, time
import rushlight
from rushlight.errors import RushlightError

folder, seed, copies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
expected = rushlight.load(folder + "/0", copy=True).generate("Once upon a time", max_tokens=60).text
for i in range(copies):
    file = f"{folder}/{i}/model.safetensors"
    model = rushlight.load(f"{folder}/{i}")
    size = os.path.getsize(file)
    wait, length = random.random() * 0.05, random.choice([0, 4096, random.randrange(size), size - 1])
    def cut():
        time.sleep(wait)
        os.truncate(file, length)
    thread = threading.Thread(target=cut)
    thread.start()
    found = ""
    try:
        while True:
            found = ""
            for text in model.stream("Once upon a time", max_tokens=60):
                found += text
            assert found == expected, (i, found)
    except RushlightError as error:
        assert error.file == file, error
        assert expected.startswith(found), (i, found)
    thread.join()
print("all named")
"""


def truncated(tmp_path, seed, copies):
    first = rushlight.convert("tales", tmp_path / "0", dtype="int4").folder
    for i in range(1, copies):
        folder = tmp_path / str(i)
        folder.mkdir()
        for path in first.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, tmp_path, str(seed), str(copies)],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_file_that_is_cut_while_it_generates_never_ends_the_process(tmp_path):
    done = truncated(tmp_path, seed=1, copies=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all named\n", "")


@pytest.mark.slow
def test_a_thousand_files_that_are_cut(tmp_path):
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        done = truncated(tmp_path / str(seed), seed=seed, copies=200)
        assert (done.returncode, done.stdout, done.stderr) == (0, "all named\n", "")


def test_threads_of_one_process_end_with_errors(folder, file):
    model = rushlight.load(folder)
    errors = []

    def run():
        try:
            while True:
                model.generate(PROMPT, max_tokens=20)
        except CheckpointError as error:
            errors.append(error.file)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    cut(file)
    for thread in threads:
        thread.join()
    assert errors == [str(file)] * 3
