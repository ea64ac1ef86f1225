"""Model.trace and Model.patch, with the embedded model."""

import threading

import numpy as np
import pytest

import rushlight
from rushlight.errors import RequestError

TEXT = "Once upon a time there was a fox"


@pytest.fixture(scope="module", params=["auto", "f64", "int8"])
def model(request):
    return rushlight.load(dtype=request.param)


def test_a_trace_has_every_module_and_does_not_change_the_output(model):
    plain = model.logits(TEXT)
    with model.trace() as trace:
        traced = model.logits(TEXT)
    assert np.array_equal(plain, traced)
    assert np.array_equal(trace[""], plain)
    computing = {path for path, module in model.module.named_modules() if hasattr(module, "__call__")}  # noqa: B004
    assert set(trace) == computing
    assert [*trace][:4] == ["wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn"]
    n_tokens, n_embd = len(model.tokenizer.encode(TEXT)), model.config.n_embd
    assert trace["h.3.mlp.c_fc"].shape == (n_tokens, model.config.n_inner)
    assert trace["h.3"].shape == trace["ln_f"].shape == (n_tokens, n_embd)


def test_traced_outputs_add_up_to_the_residual_stream(model):
    """Traced outputs sum to the residual stream exactly, in the order of the model."""
    with model.trace() as trace:
        model.logits(TEXT)
    x = trace["wte"] + trace["wpe"]
    for i in range(model.config.n_layer):
        x = x + trace[f"h.{i}.attn"]
        x = x + trace[f"h.{i}.mlp"]
        assert np.array_equal(x, trace[f"h.{i}"])


def test_a_trace_of_generation_has_a_row_per_token(model):
    plain = model.generate(TEXT, max_tokens=12, temperature=1.0, seed=3)
    with model.trace("h.*.attn", "lm_head") as trace:
        traced = model.generate(TEXT, max_tokens=12, temperature=1.0, seed=3)
    assert traced.ids == plain.ids
    assert set(trace) == {*(f"h.{i}.attn" for i in range(model.config.n_layer)), "lm_head"}
    assert len(trace["h.0.attn"]) == len(plain.prompt_ids) + 11
    assert len(trace["lm_head"]) == 12
    full = model.logits([*plain.prompt_ids, *plain.ids[:-1]])
    assert np.array_equal(trace["lm_head"], full[len(plain.prompt_ids) - 1 :])


def test_traces_and_patches_have_their_own_prefix_cache(model):
    ids = [*range(3, 3 + 100)]
    plain = model.generate(ids, max_tokens=5)
    with model.trace("h.0") as trace:
        assert model.generate(ids, max_tokens=5).stats.cached_tokens == 0
    assert len(trace["h.0"]) == len(ids) + 4
    with model.patch({"h.2": lambda x: 0 * x}):
        patched = model.generate(ids, max_tokens=5)
        assert (patched.stats.cached_tokens, model.generate(ids, max_tokens=5).ids) == (0, patched.ids)
    again = model.generate(ids, max_tokens=5)
    assert (again.ids, again.stats.cached_tokens) == (plain.ids, 64)
    assert patched.ids != plain.ids


def test_a_trace_has_no_draft_tokens(model):
    ids = [5, 6, 7] * 20
    with model.trace("wte") as trace:
        traced = model.generate(ids, max_tokens=20, speculate=True)
    assert len(trace["wte"]) == len(ids) + 19
    assert traced.ids == model.generate(ids, max_tokens=20, speculate=True).ids


def test_an_identity_patch_does_not_change_the_output(model):
    paths = [path for path, module in model.module.named_modules() if path and "__call__" in dir(type(module))]
    with model.patch({path: lambda x: x for path in paths}):
        patched = model.logits(TEXT)
    assert np.array_equal(patched, model.logits(TEXT))


def test_a_patch_replaces_an_output(model):
    """A patched output is passed to later modules and to the trace."""
    with model.patch({"h.2": lambda x: 0 * x, "h.3.attn": lambda x: x + 1}), model.trace() as trace:
        model.logits(TEXT)
    assert not trace["h.2"].any()
    with model.trace() as plain:
        model.logits(TEXT)
    with model.patch({"h.5.mlp": lambda x: 0 * x}), model.trace("h.5.mlp", "h.5", "h.5.attn", "h.4") as trace:
        model.logits(TEXT)
    assert not trace["h.5.mlp"].any()
    assert np.array_equal(trace["h.5"], plain["h.4"] + plain["h.5.attn"])


def test_activation_patching_transfers_a_run(model):
    """With the output of block 2 taken from another text of the same length, the logits are those of that text."""
    ids, other = [5, 6, 7, 8], [9, 10, 11, 12]
    with model.trace("h.2") as trace:
        expected = model.logits(other)
    with model.patch({"h.2": lambda x: trace["h.2"]}):
        assert np.array_equal(model.logits(ids), expected)


def test_a_patch_ends_with_its_block(model):
    plain = model.logits(TEXT)
    with pytest.raises(ZeroDivisionError), model.patch({"h.0": lambda x: 1 / 0}):
        model.logits(TEXT)
    assert np.array_equal(model.logits(TEXT), plain)


def test_other_threads_are_not_traced(model):
    with model.trace() as trace:
        thread = threading.Thread(target=model.logits, args=(TEXT,))
        thread.start()
        thread.join()
    assert len(trace) == 0


def test_an_unknown_path_is_an_error_with_the_nearest_one(model):
    nearest = r"no such module: 'h\.3\.atn'; did you mean 'h\.3\.attn'"
    with pytest.raises(RequestError, match=nearest), model.patch({"h.3.atn": abs}):
        pass
    with pytest.raises(RequestError, match=r"no such module: 'h\.\*\.nothing'"), model.trace("h.*.nothing"):
        pass
    with model.trace("h.0") as trace:
        model.logits(TEXT)
    with pytest.raises(KeyError, match=r"not in the trace: 'h\.1'; did you mean 'h\.0'"):
        trace["h.1"]


def test_a_patch_that_changes_the_shape_is_an_error(model):
    refused = pytest.raises(RequestError, match=r"the patch of h\.0 changed the shape")
    with model.patch({"h.0": lambda x: x[:1]}), refused:
        model.logits(TEXT)


def test_a_trace_creates_its_engine_on_the_first_generation(monkeypatch):
    model = rushlight.load(kv_bytes=4_000_000)
    made = []
    kv_cache = model._backend.kv_cache
    monkeypatch.setattr(
        model._backend, "kv_cache", lambda shape, n: made.append(n) or kv_cache(shape, n), raising=False
    )
    with model.trace("h.0"):
        n_ids = len(model.logits(TEXT))
        assert made == [[-(-n_ids // 64)]]
        model.generate(TEXT, max_tokens=1)
    assert made[1:] == [[4_000_000 // model._backend.kv_block_bytes(model.config.kv_shape)]]
