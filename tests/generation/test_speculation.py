"""Speculative decoding: prompt lookup, the number of draft tokens, and their verification."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import FixedRate, V, expected, ids_of, read_all, sequence, toy_engine, use_proposer

from rushlight.generation.block_table import BlockTable, SequenceBlocks
from rushlight.generation.speculation.controller import MAX_DRAFT_TOKENS, SpeculationController, plan_drafts
from rushlight.generation.speculation.prompt_lookup import PromptLookup, SequenceLookup
from rushlight.generation.speculation.step_costs import FORGET_STEPS, StepCosts
from rushlight.generation.speculation.suffix_index import SuffixIndex


def longest_repeat(ids):
    """The length of the longest suffix of ids that also occurs earlier, by brute force."""
    n = len(ids)
    return next((k for k in range(n - 1, 0, -1) if any(ids[i : i + k] == ids[-k:] for i in range(n - k))), 0)


@given(st.lists(st.integers(0, 2), max_size=60))
def test_prompt_lookup_finds_the_longest_suffix_that_occurred_before(ids):
    index = SuffixIndex()
    for n, token in enumerate(ids, 1):
        index.append(token)
        length, end = index.match()
        assert length == longest_repeat(ids[:n])
        assert end < n
        assert ids[end - length : end] == ids[n - length : n]


def test_the_index_is_linear_in_the_sequence():
    for ids in ([1] * 4000, [i % 7 for i in range(4000)], [random.Random(1).randrange(3) for _ in range(4000)]):
        index = SuffixIndex()
        for token in ids:
            index.append(token)
        assert len(index._lengths) <= 2 * len(ids)
        assert sum(map(len, index._edges)) <= 3 * len(ids)


def test_a_match_at_the_end_continues_into_the_draft_tokens():
    lookup = SequenceLookup()
    lookup.observe([9, 1, 2, 3, 1, 2, 3, 1])
    assert lookup.propose(8) == [2, 3, 1, 2, 3, 1, 2, 3]


def test_no_draft_tokens_without_a_match():
    lookup = SequenceLookup()
    assert lookup.observe([1, 2, 3, 4]) == 0
    assert lookup.propose(5) == []


def test_the_acceptance_rate_is_learned():
    lookup = SequenceLookup()
    text = [1, 2, 3] * 6
    rates = [lookup.observe(text[:n]) for n in range(4, 19)]
    assert rates[0] == 0
    assert rates[-1] > 0.7
    rng = random.Random(0)
    noise = []
    for _ in range(300):
        noise.append(rng.randrange(4))
        last = lookup.observe(text + noise)
    assert last < 0.6


def test_draft_tokens_are_added_while_they_save_time():
    def flat(n):
        return 1.0 + 0.01 * n

    def steep(n):
        return float(n)

    assert plan_drafts([0.9], [100], flat)[0] == MAX_DRAFT_TOKENS
    assert plan_drafts([0.9], [3], flat)[0] == 3
    assert not plan_drafts([0.9], [100], steep)
    assert not plan_drafts([0.0, 0.01], [9, 9], flat)
    mixed = plan_drafts([0.9, 0.3], [20, 20], lambda n: 1.0 + 0.2 * n)
    assert mixed[0] > mixed[1]


def test_a_round_of_a_draft_model_is_shared_by_its_sequences():
    def flat(n):
        return 1.0 + 0.01 * n

    def slow(_):
        return 5.0

    def cheap(n):
        return 0.4 + 0.01 * n

    def linear(n):
        return 0.4 * n

    assert not plan_drafts([0.9], [100], flat, [slow])
    together = plan_drafts([0.8] * 8, [100] * 8, flat, [cheap] * 8)
    assert sorted(together) == list(range(8))
    assert not plan_drafts([0.8] * 8, [100] * 8, flat, [linear] * 8)
    drafts = plan_drafts([0.9, 0.5], [9, 9], flat, [None, slow])
    assert drafts[0] > 3
    assert not drafts[1]


def test_step_costs_are_measured_and_expire():
    costs = StepCosts()
    costs.record(1, 1.0)
    assert [costs.estimate(n) for n in (1, 2, 11)] == pytest.approx([1.0, 1.1, 2.0])
    for _ in range(100):
        costs.record(5, 3.0)
    assert [costs.estimate(n) for n in (1, 3, 5, 6)] == pytest.approx([1.0, 2.0, 3.0, 3.1])
    costs.record(5, 1000.0)
    assert costs.estimate(5) < 5
    for _ in range(FORGET_STEPS + 1):
        costs.record(1, 1.0)
    assert not costs.is_measured(5)


def test_a_repetitive_sequence_gets_several_tokens_per_step():
    prompt = [0, 0, 0, 0]  # as the model continues, by its definition
    engine, model = toy_engine()
    one = sequence(prompt, max_tokens=50, speculate=True)
    engine.submit(one)
    assert ids_of(read_all(engine, one)) == expected(prompt, 50) == [0] * 50
    assert len(model.batches) < 10
    assert engine.pool.n_held == 0


def test_rejected_draft_tokens_do_not_change_the_output():
    class Wrong(FixedRate):
        """Proposes some correct draft tokens, then wrong ones."""

        def propose(self, limits):
            return {one: self.some(expected(one.ids, n), rng.randrange(n + 1)) for one, n in limits.items()}

        def some(self, right, n_right):
            return right[:n_right] + [(token + 1) % V for token in right[n_right:]]

    rng = random.Random(2)
    engine, _ = toy_engine(n_blocks=9)
    use_proposer(engine, Wrong())
    sequences = [
        sequence([i] * (30 + 20 * i), max_tokens=90, stop_ids={11} if i == 2 else (), speculate=True) for i in range(4)
    ]
    for one in sequences:
        engine.submit(one)
    for i, one in enumerate(sequences):
        tokens = ids_of(read_all(engine, one))
        assert tokens == expected([i] * (30 + 20 * i), 90)[: len(tokens)]
        assert len(tokens) == 90 or (i == 2 and tokens[-1] == 11)
    assert engine.pool.n_held == 0


def simulated_s(text, n_prompt, row_s):
    """Returns the time to generate a text with prompt lookup, if a step takes 1 s and each further row row_s."""

    def step_s(n_rows):
        return 1 + row_s * (n_rows - 1)

    lookup, n, seconds = SequenceLookup(), n_prompt, 0.0
    while n < len(text):
        n_drafts = plan_drafts([lookup.observe(text[:n])], [len(text) - n - 1], step_s)[0]
        draft_tokens = lookup.propose(n_drafts) if n_drafts else []
        seconds += step_s(1 + len(draft_tokens))
        n += 1
        for draft_token in draft_tokens:
            if draft_token != text[n - 1]:
                break
            n += 1
    return seconds


@pytest.mark.parametrize("row_s", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("n_words", [2000, 100, 20])
def test_output_without_matches_is_hardly_slower(n_words, row_s):
    rng = random.Random(n_words)
    text = [rng.randrange(n_words) for _ in range(600)]
    assert simulated_s(text, 100, row_s) < 1.03 * 500


@pytest.mark.parametrize(("row_s", "gain"), [(0.02, 8), (0.1, 4.5), (0.2, 3)])
def test_repetitive_output_is_several_times_faster(row_s, gain):
    text = [i % 13 for i in range(600)]
    assert simulated_s(text, 100, row_s) < 500 / gain


class Named(FixedRate):
    """Proposes the same token for every sequence, and records its calls."""

    def __init__(self, token, rate):
        super().__init__(rate)
        self.token = token
        self.calls = []
        self.forgotten = []

    def propose(self, limits):
        self.calls.append(dict(limits))
        return {one: [self.token] for one in limits}

    def forget(self, sequence):
        self.forgotten.append(sequence)


def decoding(prompt, **settings):
    """A sequence with room for draft tokens."""
    one = sequence(prompt, **settings)
    one.blocks = SequenceBlocks([BlockTable(0, [0])])
    return one


def test_the_proposer_with_the_highest_acceptance_rate_is_used_and_ties_go_to_the_first():
    low, high, equal = Named(1, 0.5), Named(2, 0.9), Named(3, 0.9)
    one, other, without = (decoding([i], speculate=speculate) for i, speculate in enumerate((True, True, False)))
    controller = SpeculationController([low, high, equal])
    assert controller.draft([one, other, without]) == {one: [2], other: [2]}
    assert high.calls == [{one: MAX_DRAFT_TOKENS, other: MAX_DRAFT_TOKENS}]
    assert low.calls == equal.calls == []
    controller.forget(one)
    assert low.forgotten == high.forgotten == equal.forgotten == [one]


def test_without_a_measured_step_only_forced_sequences_have_draft_tokens():
    proposer = Named(1, 0.99)
    automatic, forced = decoding([1], speculate=None), decoding([2], speculate=True)
    controller = SpeculationController([proposer])
    assert controller.draft([automatic, forced]) == {forced: [1]}
    controller.costs.record(2, 1.0)
    assert controller.draft([automatic, forced]) == {automatic: [1], forced: [1]}
    assert SpeculationController().draft([automatic, forced]) == {}


def test_prompt_lookup_indexes_each_sequence_separately_and_drops_finished_ones():
    lookup = PromptLookup()
    one, other = sequence([1, 2, 3, 1, 2]), sequence([4, 5, 4])
    for each in (one, other):
        lookup.observe(each)
    assert lookup.propose({one: 2, other: 1}) == {one: [3, 1], other: [5]}
    lookup.forget(one)
    lookup.forget(one)
    assert list(lookup._lookups) == [other]
    lookup.reset()
    assert lookup._lookups == {}
