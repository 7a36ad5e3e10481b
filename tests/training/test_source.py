import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.training.source import InterleavedSource, steps_in_epochs


class Numbers:
    """Batches that are their own (epoch, index)."""

    def __init__(self, sizes):
        self.sizes = sizes

    def num_batches(self, epoch):
        return self.sizes[epoch % len(self.sizes)]

    def batch(self, epoch, index):
        assert 0 <= index < self.num_batches(epoch)
        return epoch, index


def sequence(source, epochs):
    return [source.batch(epoch, index) for epoch in range(epochs) for index in range(source.num_batches(epoch))]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), world=st.integers(1, 5))
def test_processes_share_the_sequence_of_batches(sizes, world):
    source, epochs = Numbers(sizes), 2 * len(sizes)
    whole = sequence(source, epochs)
    for rank in range(world):
        assert sequence(InterleavedSource(source, rank, world), epochs) == whole[rank::world]


def test_known_sizes_spare_the_epochs_behind():
    class Forward(Numbers):
        def num_batches(self, epoch):
            assert epoch >= 2, "epochs 0 and 1 need no planning"
            return super().num_batches(epoch)

    for rank in range(2):
        fresh = InterleavedSource(Numbers([3, 4, 5]), rank, 2)
        resumed = InterleavedSource(Forward([3, 4, 5]), rank, 2, [3, 4])
        assert [resumed.num_batches(epoch) for epoch in range(4)] == [fresh.num_batches(epoch) for epoch in range(4)]
        assert resumed.batch(2, 1) == fresh.batch(2, 1)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    epochs=st.sampled_from([0.25, 0.5, 1, 1.5, 2, 3]),
    per_step=st.integers(1, 4),
)
def test_steps_see_every_batch(sizes, epochs, per_step):
    source = Numbers(sizes)
    whole, part = math.floor(epochs), epochs % 1
    batches = len(sequence(source, whole)) + math.ceil(part * source.num_batches(whole))
    steps = steps_in_epochs(source, epochs, per_step)
    assert (steps - 1) * per_step < batches <= steps * per_step
