"""Passes as graphs: batches filled up to few shapes give the same losses, gradients and figures."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from fastssl.data.batch import PackedBatch
from fastssl.training import Trainer, TrainingConfig, graphs, trainer
from fastssl.training.distributed import World
from fastssl.training.graphed_update import GraphedUpdate
from fastssl.training.graphs import BatchShape, GraphedPasses, rounded_up
from fastssl.training.step import NumberedBatch, accumulate_gradients, forward_backward
from tests.training.test_step_on_gpu import models

LENGTHS = [(64, 3, 40), (60, 7, 41), (64, 1, 1, 50), (33, 70)]


class Repeated:
    """Stands for a CUDA graph where there is none: does the function again, and forgets what it returned before.

    What the function draws on the host is drawn once.
    """

    made = 0

    def __init__(self, function):
        Repeated.made += 1
        self._function, self._results, self._generator = function, None, torch.get_rng_state()

    def replay(self):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator)
            results = self._function()
        if self._results is None:
            self._results = results
        else:  # a graph's results stay where they are
            for there, result in zip(tree_leaves(self._results), tree_leaves(results), strict=True):
                there.copy_(result)
        return self._results


@pytest.fixture(autouse=True)
def counted():
    Repeated.made = 0


def batch_of(name: str, lengths: tuple[int, ...], number: int = 0) -> PackedBatch:
    generator = torch.Generator().manual_seed(number)
    sequences = [torch.randint(4, 1999, (length,), generator=generator).tolist() for length in lengths]
    if name == "gpt":
        return PackedBatch.from_sequences(sequences, predict_next=True)
    labels = [[token if place % 7 == 0 else -100 for place, token in enumerate(ids)] for ids in sequences]
    return PackedBatch.from_sequences(sequences, labels=labels)


def passes_of(model, passes, batches, seed=5):
    """Return losses, figures and gradients of a step from the same seed of its dropout."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=False)
    numbered = [NumberedBatch(epoch=0, index=i, batch=batch) for i, batch in enumerate(batches)]
    losses, metrics = accumulate_gradients(model, numbered, dtype=torch.float32, world=World(), passes=passes)
    return losses, metrics, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_a_filled_batch_is_the_same_to_the_model(name):
    """Dropout's masks too: real tokens keep their rows and their sequences."""
    model = models()[name].train()
    passes = GraphedPasses(model, torch.float32, Repeated)
    for number in range(3):  # plain, captured, replayed
        for lengths in LENGTHS:
            batches = [batch_of(name, lengths, number)]
            losses, metrics, gradients = passes_of(model, None, batches, number)
            found_losses, found_metrics, found_gradients = passes_of(model, passes, batches, number)
            torch.testing.assert_close(found_losses, losses)
            torch.testing.assert_close(found_gradients, gradients, rtol=1e-4, atol=1e-6)
            assert found_metrics.keys() == metrics.keys()
            for figure, value in metrics.items():
                torch.testing.assert_close(found_metrics[figure], value, check_dtype=False)


def test_gradients_of_several_batches_add_up_and_results_stay():
    model = models()["bert"].train()
    passes = GraphedPasses(model, torch.float32, Repeated)
    batches = [batch_of("bert", (64, 30), number) for number in range(3)]
    expected, found = passes_of(model, None, batches), passes_of(model, passes, batches)
    assert len({float(loss) for loss in found[0]}) == 3
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-6)


def test_a_shape_is_captured_when_it_comes_again(monkeypatch):
    model = models()["gpt"].train()
    passes = GraphedPasses(model, torch.float32, Repeated)
    denominators = {"causal_lm": 100}
    for lengths, made in [((64, 5), 0), ((60, 20), 1), ((62, 30), 1), ((120, 3), 1), ((120, 2), 2)]:
        passes(batch_of("gpt", lengths), denominators)
        assert Repeated.made == made
    monkeypatch.setattr(graphs, "MAX_SHAPES", 2)
    for _ in range(3):
        passes(batch_of("gpt", (120, 120, 20)), denominators)
    assert Repeated.made == 2


def test_other_targets_are_refused():
    """Not computed some other way: who asks for graphs is to know that there are none."""
    passes = GraphedPasses(models()["bert"], torch.float32, Repeated)
    batch = batch_of("bert", (30, 40))
    batch = PackedBatch(**{**vars(batch), "sentence_labels": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match="masked and causal LM alone, but the batches have sentence_labels"):
        passes(batch, batch.target_counts())
    with pytest.raises(ValueError, match="takes packed batches, got a list"):
        passes([], {})


@pytest.mark.parametrize("size", [1, 31, 32, 33, 255, 256, 257, 1000, 5000, 16384, 16385, 99_999])
def test_sizes_are_rounded_up_by_little(size):
    rounded = rounded_up(size)
    assert size <= rounded < max(size * 1.13, size + 32)
    assert rounded_up(rounded) == rounded
    assert len({rounded_up(other) for other in range(size, 2 * size + 1)}) <= 10


@pytest.mark.parametrize("lengths", [*LENGTHS, (1,), (512,) * 3 + (30,), (5,) * 100])
def test_fillers_are_short_sequences_behind_the_batch(lengths):
    batch = batch_of("gpt", lengths)
    shape = BatchShape.of(batch)
    known = graphs._Shape(shape, batch, {})
    known.load(batch, {})
    filled = known.batch
    sizes = filled.cu_seqlens.diff()
    assert filled.num_tokens == shape.num_tokens and int(filled.cu_seqlens[-1]) == shape.num_tokens
    assert sizes[: len(lengths)].tolist() == list(lengths)
    assert int(sizes.min()) >= 0 and int(sizes.max()) <= shape.max_seqlen
    assert (filled.next_tokens[batch.num_tokens :] == -100).all()


class Batches:
    """Four batches of two shapes."""

    def num_batches(self, epoch):
        return 4

    def batch(self, epoch, index):
        return batch_of("bert", LENGTHS[index % 2], index)


def test_a_run_with_graphs_trains_as_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "expect_graphs_to_work", lambda device, num_processes: None)
    monkeypatch.setattr(trainer, "GraphedPasses", partial(GraphedPasses, capture=Repeated))
    monkeypatch.setattr(trainer, "GraphedUpdate", partial(GraphedUpdate, capture=Repeated))
    weights = []
    for with_graphs in (False, True):
        torch.manual_seed(0)
        model = models()["bert"]
        config = TrainingConfig(
            output_dir=str(tmp_path / str(with_graphs)),
            max_steps=6,
            learning_rate=1e-3,
            gradient_accumulation_steps=2,
            warmup_steps=3,
            cuda_graphs=with_graphs,
            save_strategy="no",
            device="cpu",
        )
        Trainer(model, config, Batches()).train()
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert Repeated.made > 0
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


def test_graphs_share_a_pool_that_lives_as_long_as_one_of_them(monkeypatch):
    """PyTorch ends a pool with its last graph: another one that is captured into it is an error."""
    handles, used = iter([(0, 1), (0, 2)]), []

    @contextmanager
    def captured(graph, pool):
        used.append(pool)
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    first, second = (graphs.CudaGraph(lambda: 1) for _ in range(2))
    del first
    third = graphs.CudaGraph(lambda: 1)
    del second, third
    graphs.CudaGraph(lambda: 1)
    assert used == [(0, 1), (0, 1), (0, 1), (0, 2)]


def test_without_a_gpu_the_setting_is_refused(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path), max_steps=1, cuda_graphs=True, device="cpu")
    with pytest.raises(ValueError, match="cuda_graphs=True needs a CUDA GPU, but the model trains on cpu"):
        Trainer(models()["bert"], config, Batches())


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="works in one process, and there are 2"):
        graphs.expect_graphs_to_work(torch.device("cuda", 0), 2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_a_cuda_graph_computes_what_its_operators_do(name):
    model = models()[name].to("cuda").train()
    passes = GraphedPasses(model, torch.bfloat16)
    for number in range(4):
        batch = batch_of(name, LENGTHS[number % 2], number).to("cuda")
        found = []
        for function in (partial(forward_backward, model, dtype=torch.bfloat16), passes):
            torch.manual_seed(3)
            model.zero_grad(set_to_none=False)
            if number > 1 and function is passes:
                torch.cuda.set_sync_debug_mode("error")
            try:
                loss, _ = function(batch, denominators=batch.target_counts())
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-3)
