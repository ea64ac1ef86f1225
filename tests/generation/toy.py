"""A toy model that, like a real one, reads earlier tokens only from the KV cache."""

import numpy as np

from rushlight.backends import open_backend
from rushlight.backends.batch import KVShape
from rushlight.generation import Engine, LanguageModel, Sampler, SamplingParams, SequenceState

V = 31
KV_SHAPE = KVShape(1, 1, 1)
BLOCK_BYTES = 2 * 64 * 8
"""Of one layer."""
WINDOW_SHAPE = KVShape(3, 1, 1, (70, None, 5))


class ToyModel:
    """Predicts a sum over all tokens so far, each weighted by its position, mod V; read from the KV cache.

    With an `error` of n, it predicts another token at every n-th position.
    """

    shape = KV_SHAPE

    def __init__(self, ops, error=0):
        self.ops = ops
        self.error = error
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        values = (batch.ids * weight(batch.positions))[:, None].astype(np.float64)
        mean = self.ops.attention(0 * values, values, values, batch, layer=0, n_head=1, scale=1.0)
        total = np.rint(mean[:, 0] * (batch.positions + 1)).astype(int)
        if self.error:
            total += batch.positions % self.error == 0
        return np.eye(V)[total[batch.logit_rows] % V]

    @property
    def n_rows(self):
        """The number of rows computed."""
        return sum(len(batch.ids) for batch in self.batches)


class WindowToy(ToyModel):
    """Predicts a sum of three such sums: over the last 70 tokens, over all, and over the last 5."""

    shape = WINDOW_SHAPE

    def __call__(self, batch):
        self.batches.append(batch)
        values = (batch.ids * weight(batch.positions))[:, None].astype(np.float64)
        total = np.zeros(len(batch.ids), int)
        for layer, window in enumerate(WINDOW_SHAPE.windows):
            mean = self.ops.attention(
                0 * values, values, values, batch, layer=layer, n_head=1, scale=1.0, window=window
            )
            n = batch.positions + 1 if window is None else np.minimum(window, batch.positions + 1)
            total += (layer + 1) * np.rint(mean[:, 0] * n).astype(int)
        if self.error:
            total += batch.positions % self.error == 0
        return np.eye(V)[total[batch.logit_rows] % V]

    @staticmethod
    def expected(prompt, n):
        """Returns the n tokens that follow a prompt, by the definition of the model."""
        ids, weighted = list(prompt), [token * weight(position) for position, token in enumerate(prompt)]
        for _ in range(n):
            ids.append((sum(weighted[-70:]) + 2 * sum(weighted) + 3 * sum(weighted[-5:])) % V)
            weighted.append(ids[-1] * weight(len(ids) - 1))
        return ids[len(prompt) :]


def language_model(model, context_length=1000):
    return LanguageModel(model, model.ops, model.shape, context_length, V)


def poison(engine):
    """Fills a block of an engine with NaN whenever it is allocated or freed: what it held cannot be read unnoticed."""
    for model, pool in engine._pools:
        runner = engine._steps._runner if model is engine._model else draft_of(engine)._runner
        cache = runner._cache
        for group, part in zip(pool.groups, pool.parts, strict=True):
            arrays = [array for layer in group.layers for array in (cache.keys[layer], cache.values[layer])]

            def fill(block, arrays=arrays):
                for array in arrays:
                    array[block] = np.nan

            def allocate(allocate=part.allocate, fill=fill):
                block = allocate()
                if block is not None:
                    fill(block)
                return block

            def release(block, *, evict_first=False, release=part.release, part=part, fill=fill):
                release(block, evict_first=evict_first)
                if block in part._free:
                    fill(block)

            part.allocate, part.release = allocate, release


def weight(position):
    return position % 7 + 1


def expected(prompt, n):
    """Returns the n tokens that follow a prompt, by the definition of the model."""
    ids, total = list(prompt), sum(token * weight(position) for position, token in enumerate(prompt))
    for position in range(len(prompt), len(prompt) + n):
        ids.append(total % V)
        total += ids[-1] * weight(position)
    return ids[len(prompt) :]


def toy_engine(*, n_blocks=64, context_length=1000, kind=ToyModel, **options):
    """Returns an engine of a toy model in float64 with memory for that many blocks of one layer."""
    ops = open_backend("reference", "f64")
    model = kind(ops)
    kv_bytes = n_blocks * BLOCK_BYTES
    return Engine(language_model(model, context_length), kv_bytes=kv_bytes, **options), model


def toy_draft(error=5, context_length=1000, kind=ToyModel):
    """Returns a draft model on the same device, and its toy model."""
    ops = open_backend("reference", "f64")
    model = kind(ops, error)
    return language_model(model, context_length), model


def draft_of(engine):
    """The proposer of the engine's draft model."""
    return engine._steps.speculation.proposers[-1]


def use_proposer(engine, proposer):
    """Makes this the only proposer of the engine."""
    engine._steps.speculation.proposers = [proposer]


class FixedRate:
    """A proposer with a constant acceptance rate; subclasses propose."""

    round_s = None

    def __init__(self, rate=0.99):
        self.rate = rate

    def observe(self, sequence):
        return self.rate

    def forget(self, sequence):
        pass

    def reset(self):
        pass


def drafted(prompt, **options):
    """Returns a sequence with draft tokens in every step."""
    return sequence(prompt, **{"speculate": True, **options})


def sequence(prompt, *, max_tokens=20, context_length=1000, stop_ids=(), speculate=False, notify=None, **settings):
    """A sequence, by default without draft tokens: these depend on the time that steps take."""
    sampler = Sampler(SamplingParams(speculate=speculate, **settings), V, prompt)
    return SequenceState(
        prompt, sampler, max_tokens=max_tokens, context_length=context_length, stop_ids=stop_ids, notify=notify
    )


def read_all(engine, one):
    """Returns all tokens of a submitted sequence."""
    tokens = []
    while True:
        engine.run_until(one.is_ready)
        token = one.read()
        if token is None:
            return tokens
        tokens.append(token)


def ids_of(tokens):
    return [token.id for token in tokens]
