"""`rushlight lens` in the terminal, as JSON and as a page."""

import json
import os
import sys

import pexpect
import pytest

PROMPT = "Once upon a time there was a little fox who lived in the woods"


def test_a_row_per_block_and_a_column_per_token(rushlight):
    done = rushlight("lens", "-p", "Once upon a time")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert head.split() == ["O", "nce", "·upon", "·a", "·time"]
    assert [row.split()[0] for row in rows] == [f"h.{i}" for i in range(6)]
    assert all(len(row.split()) == 11 for row in rows)  # a token and a percentage in each cell


def test_json_has_the_top_of_every_cell(rushlight):
    done = rushlight("lens", "-p", "Once upon a time", "--json", "--top", "3", "--last", "2")
    record = json.loads(done.out)
    assert (record["model"], record["first"]) == ("tales", 3)
    assert [token["text"] for token in record["tokens"]] == ["·a", "·time"]
    assert [block["path"] for block in record["blocks"]] == [f"h.{i}" for i in range(6)]
    for block in record["blocks"]:
        for cell in block["top"]:
            p = [token["p"] for token in cell]
            assert len(p) == 3
            assert p == sorted(p, reverse=True)


def test_a_page_is_written(rushlight, tmp_path):
    done = rushlight("lens", "-p", "A fox", "--html", tmp_path / "lens.html")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"wrote {tmp_path / 'lens.html'}\n"
    assert "logit lens" in (tmp_path / "lens.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [20, 60, 140])
def test_a_terminal_shows_the_positions_that_fit(columns):
    command = ["-m", "rushlight", "lens", "-p", PROMPT]
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    child = pexpect.spawn(sys.executable, command, dimensions=(30, columns), env=env, encoding="utf-8", timeout=60)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    plain = child.before.replace("\r", "")
    n_fit = max(1, (columns - 3) // 16)
    assert f"the last {n_fit} of 16 tokens" in " ".join(plain.split())
    assert plain.count("h.5") == 1


def test_an_empty_prompt_is_an_error(rushlight):
    done = rushlight("lens", "-p", "")
    assert done.code == 2
    assert "no tokens" in done.err
    assert rushlight("lens").code == 2


def test_a_port_is_shown(rushlight, tmp_path):
    port = tmp_path / "port.py"
    assert rushlight("port", "tales", "-o", port).code == 0
    done = rushlight("lens", "tales", "-p", "Once upon", "--port", port)
    assert (done.code, done.out) == (0, rushlight("lens", "tales", "-p", "Once upon").out)
    port.write_text(port.read_text().replace("readout", "read_out"))
    done = rushlight("lens", "tales", "-p", "Once upon", "--port", port)
    assert done.code == 2
    assert "has no method readout" in done.err
