"""examples/train_tales: reading books, and a full run on a corpus and a model that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_tales"


@pytest.fixture
def read_books(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from books import read_books

    return read_books


def test_books_are_read_in_order_and_cleaned(read_books, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Second.txt").write_bytes("\ufeffOne\r\nline  — “yes”.\r\n\r\n\r\n\r\nTwo".encode())
    (tmp_path / "a.md").write_text("Title: A\n# Chapter\n\n![picture](x.png)It's *so* [plain].")
    (tmp_path / "c.html").write_text("no book")
    assert list(read_books(tmp_path)) == ["It's so plain.", 'One line -- "yes".\n\nTwo']
    assert list(read_books(tmp_path, only="second")) == ['One line -- "yes".\n\nTwo']
    assert list(read_books(tmp_path, skip="second")) == ["It's so plain."]


@pytest.mark.parity
def test_training_makes_a_model_that_loads(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    books, out = tmp_path / "books", tmp_path / "out"
    books.mkdir()
    for name in "a.md", "b.txt":
        (books / name).write_text("# A tale\n\n" + "Once upon a time there was a king, and the king had a cat.\n" * 50)
    sizes = "--n-layer 2 --n-embd 64 --n-positions 32 --vocab-size 300 --batch-size 2 --block-size 16 --max-steps 3"
    command = [sys.executable, EXAMPLE / "train.py", books, out, *sizes.split(), "--no-compile"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "2 books" in run.stdout
    assert "held-out loss" in run.stdout

    trained, packed = load_file(out / "model.safetensors"), load_file(out / "packed" / "model.safetensors")
    assert {f"transformer.{name}" for name in packed} == set(trained)
    for name, tensor in packed.items():
        assert str(tensor.dtype) == "torch.float16"
        assert (tensor.numpy() == trained[f"transformer.{name}"].numpy().astype(np.float16)).all()
    AutoModelForCausalLM.from_pretrained(out / "packed")
    assert json.loads((out / "packed" / "config.json").read_text())["dtype"] == "float16"
