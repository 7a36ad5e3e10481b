"""The background loader: the right batches in the right order, errors told, nothing left behind."""

import gc
import itertools
import threading
import time

import pytest
import torch

from fastssl.data.loader import Loader, locate_batch
from tests.data.test_dataset import OBJECTIVES, assert_same, make_data


class CountedBatches:
    """Batches that are their own numbers; epochs of 3, 1, 0, 4, 4, ... batches."""

    def __init__(self, fail_at=None):
        self.drawn, self.planned, self.fail_at = [], set(), fail_at

    def num_batches(self, epoch):
        self.planned.add(epoch)
        return (3, 1, 0, 4)[min(epoch, 3)]

    def batch(self, epoch, index):
        if (epoch, index) == self.fail_at:
            raise OSError("disk gone")
        self.drawn.append((epoch, index))
        return (epoch, index)


@pytest.fixture
def own_threads():
    """The loader threads that the test started and that still run."""
    others = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t not in others and t.name.startswith("fastssl-loader")]


SEQUENCE = [(0, 0), (0, 1), (0, 2), (1, 0), (3, 0), (3, 1), (3, 2), (3, 3), (4, 0), (4, 1)]


@pytest.mark.parametrize("prefetch", [1, 2, 7])
@pytest.mark.parametrize("start", range(8))
def test_epochs_follow_each_other_from_any_batch(start, prefetch):
    with Loader(CountedBatches(), start_batch=start, prefetch=prefetch) as loader:
        seen = [(epoch, index) for epoch, index, _ in itertools.islice(loader, len(SEQUENCE) - start)]
    assert seen == SEQUENCE[start:]


def test_going_to_a_batch_draws_none_before_it():
    data = CountedBatches()
    with Loader(data, start_batch=7, prefetch=1) as loader:
        next(loader)
    assert data.drawn[0] == (3, 3)
    assert locate_batch(CountedBatches(), 8) == (4, 0)


def test_no_more_than_prefetch_batches_wait():
    data = CountedBatches()
    with Loader(data, prefetch=3) as loader:
        deadline = time.monotonic() + 10
        while len(data.drawn) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(data.drawn) == 3
        next(loader)
    assert len(data.drawn) <= 4


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.sentence_objective}-{o.mask_strategy}")
def test_resuming_anywhere_gives_the_uninterrupted_sequence(objective):
    data = make_data(objective, tokens_per_batch=300)
    total = data.num_batches(0) + data.num_batches(1) + 2
    with Loader(data) as loader:
        whole = list(itertools.islice(loader, total))
    for start in (1, data.num_batches(0) - 1, data.num_batches(0), total - 1):
        with Loader(make_data(objective, tokens_per_batch=300), start_batch=start) as loader:
            for epoch, index, batch in whole[start:]:
                again = next(loader)
                assert again[:2] == (epoch, index)
                assert_same(again[2], batch)


def test_an_error_comes_where_its_batch_would_and_closes_the_loader(own_threads):
    loader = Loader(CountedBatches(fail_at=(1, 0)))
    assert [next(loader)[:2] for _ in range(3)] == SEQUENCE[:3]
    with pytest.raises(OSError, match="disk gone"):
        next(loader)
    with pytest.raises(ValueError, match="closed"):
        next(loader)
    assert not own_threads()


def test_an_error_in_planning_is_told():
    class Unplannable(CountedBatches):
        def num_batches(self, epoch):
            raise ValueError("no documents")

    with pytest.raises(ValueError, match="no documents"):
        next(Loader(Unplannable()))


def test_closing_leaves_no_thread_and_can_be_repeated(own_threads):
    loader = Loader(CountedBatches())
    next(loader)
    loader.close()
    loader.close()
    assert not own_threads()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_a_forgotten_loader_ends_its_thread(own_threads):
    Loader(CountedBatches())
    gc.collect()
    deadline = time.monotonic() + 10
    while own_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not own_threads()


def test_batches_are_drawn_in_the_background(own_threads):
    with Loader(make_data()) as loader:
        assert isinstance(next(loader)[2].input_ids, torch.Tensor)
        assert len(own_threads()) == 1


@pytest.mark.parametrize(("change", "message"), [({"start_batch": -1}, "start_batch"), ({"prefetch": 0}, "prefetch")])
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Loader(CountedBatches(), **change)
