"""`rushlight inspect` with --stats, --html and --open, and on a URL."""

import functools
import http.server
import io
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pexpect
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.stats import measure
from rushlight.cli.views.tree import TreeView
from rushlight.loading.inspection import module_tree


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {f"h.{i}.w": np.float32([[1, 2], [3, 4 + i]]) for i in range(2)}
    save_file(weights | {"bad": np.float32([np.nan, np.inf, 0.5])}, path)
    return path


@pytest.fixture
def url(path):
    """The URL of the file on a server without range requests."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=path.parent)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{path.name}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_stats_are_columns(rushlight, path):
    done = rushlight("inspect", path, "--stats")
    assert (done.code, done.err) == (0, "")
    rows = {line.split()[1]: line.split() for line in done.out.splitlines()[4:]}
    assert done.out.splitlines()[3].split()[-6:] == ["min", "max", "mean", "std", "NaN", "Inf"]
    assert rows["h.0.w"][-6:] == ["1", "4", "2.5", "1.118", "0", "0"]
    assert rows["h.1.w"][-6:-3] == ["1", "5", "2.75"]
    assert rows["bad"][-6:] == ["0.5", "0.5", "0.5", "0", "1", "1"]


@pytest.mark.parametrize(
    ("width", "others"),
    [(46, ""), (50, "dtype"), (62, "dtype shape"), (72, "dtype shape parameters"), (76, "dtype shape parameters size")],
)
def test_a_narrow_terminal_keeps_the_statistics(path, width, others):
    with open_checkpoint(path) as checkpoint:
        view = TreeView(module_tree(checkpoint), stats=measure(checkpoint.values()))
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True, color_system=None).print(view, soft_wrap=True)
    _, table = file.getvalue().split("\n\n")
    assert max(map(len, table.splitlines())) <= width
    assert table.splitlines()[0].split() == f"name {others} min max mean std NaN Inf".split()


def test_progress_is_shown_on_a_terminal_and_erased(path):
    child = pexpect.spawn(
        sys.executable, ["-m", "rushlight", "inspect", str(path), "--stats"], encoding="utf-8", timeout=30
    )
    child.expect("reading")
    child.expect("NaN")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_stats_are_in_the_json(rushlight, path):
    tensors = {t["name"]: t for t in json.loads(rushlight("inspect", path, "--stats", "--json").out)["tensors"]}
    assert tensors["bad"]["stats"] == {"min": 0.5, "max": 0.5, "mean": 0.5, "std": 0.0, "n_nan": 1, "n_inf": 1}
    assert "stats" not in json.loads(rushlight("inspect", path, "--json").out)["tensors"][0]


def test_a_page_is_written(rushlight, path, tmp_path):
    page = tmp_path / "out.html"
    done = rushlight("inspect", path, "--html", page)
    assert (done.code, done.out, done.err) == (0, "", f"wrote {page}\n")
    assert "h.0.w" in page.read_text(encoding="utf-8")
    assert '"n_nan":1' in (rushlight("inspect", path, "--html", page, "--stats"), page.read_text(encoding="utf-8"))[1]


def test_a_page_and_json(rushlight, path, tmp_path):
    done = rushlight("inspect", path, "--html", tmp_path / "out.html", "--json")
    assert json.loads(done.out)["n_tensors"] == 3
    assert (tmp_path / "out.html").exists()


def test_an_unwritable_page(rushlight, path, tmp_path):
    done = rushlight("inspect", path, "--html", tmp_path / "none" / "out.html")
    assert done.code == 2
    assert "No such file or directory" in done.err


@pytest.mark.parametrize("found", [True, False])
def test_open_opens_the_page(rushlight, path, monkeypatch, found):
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or found)
    done = rushlight("inspect", path, "--open")
    assert done.code == 0
    page = Path(done.err.splitlines()[0].removeprefix("wrote "))
    assert shown == [page.as_uri()]
    assert ("no browser found" in done.err) is not found
    page.unlink()
    page.parent.rmdir()


def test_a_url_can_be_inspected_but_not_read_or_run(rushlight, url, path):
    done = rushlight("inspect", url, "--json")
    assert json.loads(done.out)["tensors"] == json.loads(rushlight("inspect", path, "--json").out)["tensors"]
    for command in (["inspect", url, "--stats"], ["generate", url, "-p", "x"]):
        done = rushlight(*command)
        assert (done.code, done.out) == (2, "")
        assert "download the" in done.err
