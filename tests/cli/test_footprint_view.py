"""The sentences about the memory that a model needs."""

import pytest

from rushlight import demo
from rushlight.checkpoint import open_checkpoint
from rushlight.cli.views.footprint import fit, needs
from rushlight.loading.footprint import footprint


@pytest.fixture(scope="module")
def found():
    with open_checkpoint(demo.folder()) as checkpoint:
        return footprint(checkpoint)


def test_the_sentences(found):
    assert needs(found) == (
        "weights in f16 6.8 MiB (f32 13.6 MiB, int8 3.6 MiB, int4 2.5 MiB); keys and values 2.2 MiB for all 512 tokens"
    )
    assert fit(found, 2**30) == "fits in f16, 1.0 GiB available"
    assert fit(found, 6 * 2**20) == "fits with --dtype int8 (5.9 MiB); f16 needs 9.1 MiB, 6.0 MiB available"
    assert fit(found, 2**20) == "does not fit: even int4 needs 4.8 MiB, 1.0 MiB available"


def test_a_long_context_is_stated_for_some_tokens_and_for_all(found):
    found = found._replace(context_length=131072)
    assert needs(found).endswith("keys and values 9.0 MiB for 2,048 tokens, 576.0 MiB for all 131,072 tokens")
