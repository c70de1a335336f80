"""Batches on their way to a device: the same, in the same order and from any position, one ahead of who takes them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.schema import Batch
from narrows.train.resident import Resident
from narrows.train.upload import Uploaded, uploaded

CPU = torch.device("cpu")


def rows(count: int) -> Batch:
    numbers = torch.arange(count, dtype=torch.float32).reshape(count, 1)
    return Batch(numbers, torch.arange(count).reshape(count, 1), numbers > 3, numbers[:, 0])


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 3), st.data())
def test_uploaded_batches_are_those_of_the_stream_from_any_position(count, size, epoch, data):
    stream = Resident(rows(count), size, seed=3)
    sent = Uploaded(stream, CPU)
    assert sent.rows == count
    wanted = list(stream.epoch(epoch))
    place = data.draw(st.none() | st.sampled_from([position for _, position in wanted]) if wanted else st.none())
    wanted = list(stream.epoch(epoch, place))
    given_ = list(sent.epoch(epoch, place))
    assert [position for _, position in given_] == [position for _, position in wanted]
    for (batch, _), (other, _) in zip(given_, wanted, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch.tensors(), other.tensors(), strict=True))


def test_one_batch_is_ahead_and_a_stream_that_is_left_is_closed():
    taken, closed = [], []

    class Noting(Resident):
        def epoch(self, number, position=None):
            try:
                for item in super().epoch(number, position):
                    taken.append(item[1]["batch"])
                    yield item
            finally:
                closed.append(True)

    batches = Uploaded(Noting(rows(50), 10), CPU).epoch(0)
    assert [next(batches)[1]["batch"] for _ in range(2)] == [1, 2] and taken == [1, 2, 3]
    batches.close()
    assert closed and taken == [1, 2, 3]


def test_training_on_a_cpu_uploads_nothing():
    stream = Resident(rows(10), 5)
    assert uploaded(stream, CPU) is stream
