"""One step of the engine, without threads or a queue: draft tokens, a forward, sampling, and the prefix cache."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from rushlight.backends.batch import Chunk
from rushlight.errors import GenerationError
from rushlight.generation.consistency import Consistency
from rushlight.generation.runner import ModelRunner
from rushlight.generation.sampling.sample_step import SampleTask, host_rows, sample
from rushlight.generation.speculation.controller import SpeculationController

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rushlight.backends.protocol import Array
    from rushlight.generation.block_pool import BlockPool
    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sequence import SequenceState
    from rushlight.generation.speculation.proposer import Proposer


class StepRunner:
    """Runs steps over one KV cache.

    Args:
        model: the model.
        pool: the blocks of the cache.
        proposers: the sources of draft tokens.
        consistency: guards the sequences, the pool and the proposers.

    Attributes:
        speculation: decides on draft tokens.
        n_steps: forwards so far.
        n_computed: tokens computed so far, rejected draft tokens not counted.
        n_sampled: tokens sampled so far, stop tokens included.
        n_drafted: draft tokens verified so far.
        n_accepted: how many of them were accepted.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        proposers: Sequence[Proposer] = (),
        consistency: Consistency | None = None,
    ) -> None:
        self.speculation = SpeculationController(proposers)
        self.n_steps = self.n_computed = self.n_sampled = self.n_drafted = self.n_accepted = 0
        self._pool = pool
        self._backend = model.backend
        self._runner = ModelRunner(model, [part.n_blocks for part in pool.parts])
        self._consistency = Consistency() if consistency is None else consistency

    def run(self, rows: Mapping[SequenceState, int]) -> list[SequenceState]:
        """Computes the next tokens of each sequence, and draft tokens where they pay.

        If all tokens of a sequence are then computed, samples the next one, or several with accepted draft tokens.

        Args:
            rows: the number of tokens to compute, by sequence; at least one sequence, with its blocks allocated.

        Returns:
            The sequences that have finished.

        Raises:
            MemoryLimitError: the device has not enough memory.
        """
        decoding = all(sequence.decoding for sequence in rows)
        with self._consistency:
            drafts = self.speculation.draft(list(rows)) if decoding else {}
        chunks = []
        for s, n in rows.items():
            ids = s.ids[s.n_computed : s.n_computed + n] + drafts.get(s, [])
            table, *others = s.blocks.views
            chunks.append(Chunk(ids, s.n_computed, table, s.scores_prompt or s in drafts, others))
        start = perf_counter()
        logits = self._runner.on_device(chunks)  # not guarded: an interrupt leaves all other sequences intact
        with self._consistency:
            tasks = self._score(rows, chunks, drafts, logits)
            n_before = [task.sequence.n_sampled for task in tasks]
            sample(self._backend, logits, tasks)
            if decoding:
                self.speculation.costs.record(sum(len(chunk.ids) for chunk in chunks), perf_counter() - start)
            for sequence in rows:
                self._pool.commit(sequence.blocks, sequence.ids, sequence.n_computed, sequence.n_prompt)
            self._count(rows, tasks, n_before)
        return [sequence for sequence in rows if sequence.done]

    def _score(
        self,
        rows: Mapping[SequenceState, int],
        chunks: Sequence[Chunk],
        drafts: Mapping[SequenceState, Sequence[int]],
        logits: Array,
    ) -> list[SampleTask]:
        """Advances the sequences by the computed tokens and scores prompts; returns the tokens to sample."""
        tasks = []
        end = 0  # of the sequence's rows in the logits
        for (sequence, n), chunk in zip(rows.items(), chunks, strict=True):
            begin, end = end, end + (len(chunk.ids) if chunk.all_logits else 1)
            if sequence.scores_prompt:
                try:
                    sequence.score(host_rows(self._backend, logits, range(begin, end)))
                except GenerationError as error:
                    sequence.fail(error)
            sequence.n_computed += n
            if sequence.n_pending or sequence.done:
                continue
            if len(sequence.ids) == sequence.end:
                sequence.done = True  # no output was requested, only prompt log-probabilities
            else:
                draft_tokens = drafts.get(sequence, ())
                tasks.append(SampleTask(sequence, range(end - 1 - len(draft_tokens), end), draft_tokens))
        return tasks

    def _count(self, rows: Mapping[SequenceState, int], tasks: Sequence[SampleTask], n_before: Sequence[int]) -> None:
        n_new = [task.sequence.n_sampled - n for task, n in zip(tasks, n_before, strict=True)]
        n_accepted = sum(n - 1 for n in n_new if n)  # every token but the first followed an accepted draft token
        self.n_steps += 1
        self.n_computed += sum(rows.values()) + n_accepted
        self.n_sampled += sum(n_new)
        self.n_drafted += sum(len(task.draft_tokens) for task in tasks)
        self.n_accepted += n_accepted
