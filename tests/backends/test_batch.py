import numpy as np
import pytest

from rushlight.backends import open_backend
from rushlight.backends.batch import Batch, Chunk
from rushlight.errors import RequestError


def test_block_tables_are_views_however_long_they_are():
    table, other = np.arange(2048, dtype=np.int32), np.full(2048, -1, np.int32)
    batch = Batch.of([Chunk([7], 2047 * 64, table, other_blocks=[other])], cache=None)
    for group, given in enumerate((table, other)):
        [found] = batch.tables(group)
        assert found is given
    [span] = batch.spans(1)
    assert span.blocks is other


def test_the_rows_of_chunks_are_concatenated():
    batch = Batch.of([Chunk([7, 8, 9], 0, [2, 5], all_logits=True), Chunk([4], 130, [0, 1, 3])], cache=None)
    assert batch.ids.tolist() == [7, 8, 9, 4]
    assert batch.positions.tolist() == [0, 1, 2, 130]
    assert batch.row_starts.tolist() == [0, 3, 4]
    assert [[table.tolist() for table in group] for group in batch.block_tables] == [[[2, 5], [0, 1, 3]]]
    assert batch.logit_rows.tolist() == [0, 1, 2, 3]
    assert {array.dtype for array in (batch.ids, batch.positions, batch.row_starts, batch.logit_rows)} == {
        np.dtype(np.int32)
    }


def test_only_the_last_row_gets_logits_unless_all_do():
    batch = Batch.of([Chunk([1, 2, 3], 0, [0]), Chunk([4, 5], 9, [1])], cache=None)
    assert batch.logit_rows.tolist() == [2, 4]


def test_spans_have_each_sequences_rows():
    first, second = Batch.of([Chunk([1, 2, 3], 5, [4]), Chunk([6], 0, [1])], cache=None).spans()
    assert (first.rows, first.position, first.blocks.tolist()) == (slice(0, 3), 5, [4])
    assert (second.rows, second.position, second.blocks.tolist()) == (slice(3, 4), 0, [1])


def test_unfolded_rows_end_with_the_sequence():
    batch = Batch.of([Chunk([1, 2, 3], 0, [4]), Chunk([6], 0, [1])], cache=None)
    assert batch.unfold_rows(3, 1).tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, -1], [-1, 3, -1]]
    assert batch.unfold_rows(2, 1).tolist() == [[-1, 0], [0, 1], [1, 2], [-1, 3]]
    assert batch.unfold_rows(1, 0).tolist() == [[0], [1], [2], [3]]


def test_a_continued_sequence_cannot_be_unfolded():
    with pytest.raises(RequestError, match="expected an entire sequence, found a continuation"):
        Batch.of([Chunk([1], 0, [0]), Chunk([2], 1, [1])], cache=None).unfold_rows(3, 1)


def test_an_entire_sequence_needs_no_cache():
    batch = Batch.of_sequence([5, 6, 7])
    assert (batch.ids.tolist(), batch.positions.tolist(), batch.logit_rows.tolist()) == (
        [5, 6, 7],
        [0, 1, 2],
        [0, 1, 2],
    )
    assert batch.unfold_rows(2, 1).tolist() == [[-1, 0], [0, 1], [1, 2]]


def test_ids_may_be_an_array():
    batch = Batch.of([Chunk([7, 8], 0, [0]), Chunk(np.array([4, 5]), 0, [1])], cache=None)
    assert batch.ids.tolist() == [7, 8, 4, 5]


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_attention_without_a_cache_is_refused(device):
    ops = open_backend(device, "f32")
    x = ops.from_numpy(np.ones((2, 4), np.float32))
    with pytest.raises(RequestError, match=r"attention needs a KV cache, .* call its logits"):
        ops.attention(x, x, x, Batch.of_sequence([5, 6]), layer=0, n_head=1, scale=1.0)
