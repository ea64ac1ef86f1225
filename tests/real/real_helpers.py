"""What the tests of every trained model check."""

import os

import numpy as np

import rushlight
from rushlight.generation import Context, Engine
from rushlight.proof import verify
from rushlight.proof.record import write_golden
from rushlight.proof.record_source import record_source


def logits(model, ids, rows):
    """The logits of some rows of a text; those of all rows of a long text would not fit in memory."""
    context, found, at = Context(model.language_model, len(ids)), [], 0
    for row in rows:
        found.append(context.feed(ids[at : row + 1])[-1])
        at = row + 1
    return np.array(found)


def greedy(model, ids, n):
    """The greedy tokens with the end-of-text token, as transformers returns them."""
    result = model.generate(ids, max_tokens=n)
    return [*result.ids, *(model.eos_ids[:1] if result.finish_reason == "stop" else ())]


def assert_close(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def assert_verified(folder, tmp_path, texts):
    """Records with transformers, verifies, and finds every module that has weights, and every token, equal."""
    path = tmp_path / "golden.safetensors"
    write_golden(record_source(str(folder), texts=texts), path)
    with rushlight.open_checkpoint(folder) as checkpoint:
        model = rushlight.load(folder, dtype="f32", device="cpu")
        report = verify(model, path, checkpoint=checkpoint)
    assert report.failures == []
    assert report.weights == []
    assert report.logits.greedy[0] == report.logits.greedy[1] > 0
    judged = {result.path for result in report.modules if result.teacher_forced is not None}
    weighted = {name.removeprefix("model.").rpartition(".")[0] for name in checkpoint}
    assert weighted - judged == set()


def assert_same_bits(folder, dtype, prompts, n):
    """Greedy and sampled tokens of several prompts: one at a time, in batches, in chunks, on threads."""
    found = []
    for threads, max_prefill_rows, max_active in ((1, 256, 1), (1, 61, 3), (2, 13, 3), (2, 256, 2)):
        model = rushlight.load(folder, dtype=dtype, device="cpu", threads=threads)
        engine = Engine(model.language_model, max_prefill_rows=max_prefill_rows)
        model._default._engine = os.getpid(), engine
        requests = [
            rushlight.Request(ids, (), {"temperature": 0.8 * (i % 2), "seed": i}) for i, ids in enumerate(prompts)
        ]
        results = dict(model.generate_many(requests, max_active=max_active, max_tokens=n, ignore_eos=True, logprobs=1))
        found.append([(results[i].ids, results[i].logprobs) for i in range(len(prompts))])
    assert found[1:] == found[:1] * 3
