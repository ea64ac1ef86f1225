"""Folders that appear in full or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rushlight.files.folder import new_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "new") as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("text")
        assert not (tmp_path / "new").exists()
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new" / "sub" / "file").read_text() == "text"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_nothing(tmp_path, error):
    def fill():
        with new_folder(tmp_path / "new") as part:
            (part / "file").write_text("text")
            raise error

    with pytest.raises(error):
        fill()
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled_and_another_one_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as part:
        (part / "file").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "empty") as part:
        (part / "other").touch()
    assert names(tmp_path / "empty") == ["file"]
    assert names(tmp_path) == ["empty"]


def test_a_folder_is_replaced_on_request(tmp_path):
    for name in ("old", "new"):
        with new_folder(tmp_path / "folder", replace=True) as part:
            (part / name).touch()
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


def test_what_a_killed_process_left_is_removed_and_a_running_one_kept(tmp_path):
    code = """
import sys, time
from rushlight.files.folder import new_folder
with new_folder(sys.argv[1]) as part:
    (part / "file").touch()
    print(part, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdout=subprocess.PIPE, text=True)
    try:
        part = Path(process.stdout.readline().strip())
        with new_folder(tmp_path / "new"):
            assert part.exists()
        (tmp_path / "new").rmdir()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert names(tmp_path) == [part.name]
    (tmp_path / ".other.0123.part").mkdir()
    with new_folder(tmp_path / "new"):
        pass
    assert names(tmp_path) == [".other.0123.part", "new"]
