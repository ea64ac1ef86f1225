"""The published GPT-2 compared with published results. Needs its weights, but not PyTorch:

    RUSHLIGHT_GPT2=openai-community/gpt2 pytest tests/parity/test_known_answers.py

The variable is a source as for `rushlight.load`: a file, a folder or a hub id. `rushlight verify` compares the same.
"""

import os

import pytest

import rushlight
from rushlight.proof.known_answers import is_gpt2_124m, known_answers


def test_the_known_answers():
    source = os.environ.get("RUSHLIGHT_GPT2")
    if not source:
        pytest.skip("RUSHLIGHT_GPT2 does not name the weights of GPT-2 124M")
    model = rushlight.load(source)
    assert is_gpt2_124m(model.config)
    assert model.n_parameters == 124_439_808
    answers = list(known_answers(model))
    assert len(answers) == 16
    assert [answer for answer in answers if not answer.right] == []
