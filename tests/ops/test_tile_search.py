"""A search for the tiles of Triton kernels: every tile computes the same, the fastest is taken, and it is kept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from fastssl.ops import search_tiles, tile_search
from fastssl.ops.attention import triton_tuning
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.layer_norm import triton_backend as layer_norm_backend
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.ops.tile_search import TileSearch, Trial, rounded_size, tile_for, using
from fastssl.ops.triton_device import Processors
from fastssl.training import trainer
from tests.training.stand_in import StandInModel, make_trainer

CPU = torch.device("cpu")


class Size(NamedTuple):
    size: int


class Clock:
    """Measures nothing: launches take the seconds that it is told, those of the tiles in order."""

    def __init__(self, *seconds: float):
        self.seconds, self.launches = seconds, []

    def __call__(self, launches, device):
        for launch in launches:
            launch()
        self.launches.append(len(launches))
        return list(self.seconds[: len(launches)]) or [1.0] * len(launches)


def kernel() -> None:
    """Stands for a kernel."""


KERNEL = SimpleNamespace(fn=kernel, __name__="kernel", cache_key="as it is now")
TILES = [Size(1), Size(2), Size(3)]


def ask(search, *, facts=None, results=lambda tile: [torch.ones(3)], kernel=KERNEL, tiles=TILES, device=CPU):
    """Return the tile that a search gives a kernel."""
    trial = Trial(lambda tile: None, results)
    return search.tile(kernel, tiles[0], lambda: tiles[1:], facts or {"width": 64}, lambda: trial, device)


def searching(directory, *seconds: float) -> tuple[TileSearch, Clock]:
    clock = Clock(*seconds)
    return TileSearch(directory, clock, device_type="cpu"), clock


@pytest.mark.parametrize(
    ("seconds", "expected"), [((1.0, 0.5, 0.7), 2), ((1.0, 1.5, 1.7), 1), ((1.0, 0.98, 0.99), 1), ((1.0, 1.1, 0.9), 3)]
)
def test_the_fastest_tile_is_taken_if_it_is_worth_it(tmp_path, seconds, expected):
    search, clock = searching(tmp_path, *seconds)
    assert [ask(search).size for _ in range(2)] == [expected, expected]
    assert clock.launches == [3]


def test_what_was_found_is_kept(tmp_path, capsys):
    ask(searching(tmp_path, 1.0, 0.5, 0.7)[0])
    assert "Size(size=2) in place of Size(size=1): 500000.0 us in place of 1000000.0" in capsys.readouterr().err
    later, clock = searching(tmp_path, 1.0, 1.0, 0.1)
    assert ask(later) == Size(2) and not clock.launches
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["tile"] == {"size": 2} and content["call"]["width"] == "64"
    assert [row["microseconds"] for row in content["measured"]] == [1e6, 5e5, 7e5]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"size": 2', '"size": 9', 1),  # no tile of today's
        lambda text: text.replace("64", "65"),
    ],
)
def test_a_file_that_holds_something_else_is_measured_anew(tmp_path, damage):
    ask(searching(tmp_path, 1.0, 0.5, 0.7)[0])
    (file,) = tmp_path.iterdir()
    file.write_text(damage(file.read_text()))
    search, clock = searching(tmp_path, 1.0, 1.0, 0.1)
    assert ask(search) == Size(3) and clock.launches == [3]
    assert ask(searching(tmp_path)[0]) == Size(3)


def test_another_call_or_another_kernel_is_another_question(tmp_path):
    search, clock = searching(tmp_path, 1.0, 0.5, 0.7)
    ask(search)
    ask(search, facts={"width": 65})
    ask(search, kernel=SimpleNamespace(**{**vars(KERNEL), "cache_key": "as it will be"}))
    assert len(clock.launches) == 2  # a process has one source
    later, clock = searching(tmp_path, 1.0, 0.5, 0.7)
    ask(later, kernel=SimpleNamespace(**{**vars(KERNEL), "cache_key": "as it will be"}))
    assert len(clock.launches) == 1 and len(list(tmp_path.iterdir())) == 3


def test_tiles_that_fail_or_are_wrong_are_out(tmp_path):
    """Also one that leaves untouched what the one before it has written."""
    out = torch.empty(4)

    def results(tile):
        if tile.size == 2:
            raise RuntimeError("out of resource: shared memory")
        if tile.size == 3:
            out.copy_(torch.tensor([1.0, 2.0, 3.0, 4.1]))
        if tile.size in (1, 5):
            out.copy_(torch.tensor([1.0, torch.inf, 3.0, 4.0]))
        return [out, None, torch.tensor([tile.size])]

    search, clock = searching(tmp_path, 1.0, 0.5)
    assert ask(search, results=results, tiles=[Size(size) for size in (1, 2, 5, 4, 3)]) == Size(5)
    assert clock.launches == [2]


def test_a_default_that_fails_is_told(tmp_path):
    def results(tile):
        raise RuntimeError("an illegal instruction")

    with pytest.raises(RuntimeError, match="illegal instruction"):
        ask(searching(tmp_path)[0], results=results)


def test_a_kept_tile_that_cannot_run_here_is_measured_anew(tmp_path):
    """A call of the same kind may need more shared memory, for pointers that lie otherwise."""
    ask(searching(tmp_path, 1.0, 0.5, 0.7)[0])
    search, clock = searching(tmp_path, 1.0, 0.9)

    def launch(tile):
        if tile.size == 2:
            raise RuntimeError("out of resource: shared memory")

    trial = Trial(launch, lambda tile: [launch(tile), torch.ones(3)])
    assert search.tile(KERNEL, TILES[0], lambda: TILES[1:], {"width": 64}, lambda: trial, CPU) == Size(3)
    assert clock.launches == [2]


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_results_that_say_nothing_are_not_kept(tmp_path, value):
    """The next call may say more; the third one in vain is the last."""
    search, clock = searching(tmp_path, 1.0, 0.5, 0.7)
    nothing = lambda tile: [torch.ones(3), torch.full((3,), value)]  # noqa: E731
    assert [ask(search, results=nothing) for _ in range(2)] == [Size(1)] * 2
    assert ask(search) == Size(2) and clock.launches == [3]
    search, clock = searching(tmp_path / "other", 1.0, 0.5, 0.7)
    assert [ask(search, results=nothing) for _ in range(3)] == [Size(1)] * 3
    assert ask(search) == Size(1) and not clock.launches


@pytest.mark.parametrize(
    ("change", "same"), [(1e-4, True), (0.2, False), (torch.nan, False), (torch.inf, False), (-torch.inf, False)]
)
def test_results_are_compared_in_pieces(monkeypatch, change, same):
    monkeypatch.setattr(tile_search, "COMPARED_AT_ONCE", 20)
    expected = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
    expected[2, 3], expected[5, 1], expected[6, 0] = torch.inf, torch.nan, -torch.inf
    found = expected.clone()
    assert tile_search._is_close(found, expected)
    found[12, 6] += change
    assert tile_search._is_close(found, expected) is same
    found[12, 6], found[2, 3] = expected[12, 6], torch.nan
    assert not tile_search._is_close(found, expected)


def test_without_memory_for_a_search_nothing_is_lost(tmp_path, capsys):
    def results(tile):
        raise torch.OutOfMemoryError

    search, _ = searching(tmp_path)
    assert [ask(search, results=results) for _ in range(2)] == [Size(1)] * 2
    assert capsys.readouterr().err.count("there is no memory left to try other tiles") == 1
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_told_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    search, clock = searching(tmp_path / "file", 1.0, 0.5, 0.7)
    assert [ask(search, facts={"width": width}).size for width in (1, 2, 1, 2)] == [2] * 4
    assert clock.launches == [3, 3]
    assert capsys.readouterr().err.count("tiles that are found are not kept") == 1


def test_nothing_is_measured_while_a_graph_is_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    clock = Clock(1.0, 0.5, 0.7)
    assert ask(TileSearch(tmp_path, clock), device=torch.device("cuda", 0)) == Size(1)
    assert not clock.launches


def test_other_devices_are_left_alone(tmp_path):
    assert ask(TileSearch(tmp_path, Clock(1.0, 0.5, 0.7))) == Size(1)


def test_nothing_is_asked_where_nobody_searches():
    assert tile_for(KERNEL, Size(7), None, None, None, CPU) == Size(7)


def test_a_context_ends(tmp_path):
    with search_tiles(tmp_path):
        outer = tile_search._search
        assert outer._directory == tmp_path
        with using(None):
            assert tile_search._search is None
        assert tile_search._search is outer
    assert tile_search._search is None
    with pytest.raises(RuntimeError, match="in between"), search_tiles():
        assert tile_search._search._directory == Path.home() / ".cache" / "fastssl" / "tiles"
        raise RuntimeError("in between")
    assert tile_search._search is None


def test_a_run_searches_where_it_is_told_to(tmp_path, monkeypatch):
    """From its first step to its last."""
    seen = []
    monkeypatch.setattr(trainer, "expect_search_to_work", lambda device: None)
    hook = torch.nn.Module.register_forward_pre_hook
    for on in (True, False):
        model = StandInModel()
        hook(model, lambda *_: seen.append(tile_search._search is not None))
        make_trainer(tmp_path / str(on), model=model, max_steps=2, search_tiles=on).train()
    assert seen == [True, True, False, False] and tile_search._search is None


def test_a_run_on_a_cpu_does_not(tmp_path):
    with pytest.raises(ValueError, match="search_tiles=True needs a CUDA GPU, but the model is on cpu"):
        make_trainer(tmp_path, search_tiles=True)


@pytest.mark.parametrize(("size", "rounded"), [(0, 1), (1, 1), (2, 2), (3, 4), (512, 512), (513, 1024)])
def test_sizes_are_rounded_to_powers_of_two(size, rounded):
    assert rounded_size(size) == rounded


def step_of_attention(dtype=torch.bfloat16, **options):
    case = AttentionCase(**{"lengths_q": (139,), "heads": 1, "key_heads": 1, "width": 16, "dropout_p": 0.2, **options})
    inputs = {name: x.requires_grad_() for name, x in case.inputs(dtype).items()}
    out = attention(**inputs, **case.options(), backend="triton")
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs.values())]


def step_of_layer_norm(dtype=torch.float32, num_rows=37):
    x, residual = (torch.randn(num_rows, 200, dtype=dtype).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(200).requires_grad_() for _ in range(2))
    out = layer_norm(x, weight, bias, eps=1e-5, residual=residual, dropout_p=0.1, seed=3, backend="triton")
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (x, residual, weight, bias))]


def step_of_bias_gelu():
    x, bias = torch.randn(9, 300).requires_grad_(), torch.randn(300).requires_grad_()
    out = bias_gelu(x, bias, approximate="none", backend="triton")
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (x, bias))]


def step_of_cross_entropy():
    hidden, weight, bias = (torch.randn(size).requires_grad_() for size in [(12, 16), (999, 16), (999,)])
    targets = torch.arange(12)
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, backend="triton")
    return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight, bias))]


STEPS = {
    "attention": (step_of_attention, 3),
    "attention, one tile of keys": (lambda: step_of_attention(lengths_q=(20, 9), causal=True), 2),
    "attention, fp32": (lambda: step_of_attention(torch.float32, lengths_q=(70,), causal=True, alibi=True), 3),
    "layer norm": (step_of_layer_norm, 2),
    "layer norm, bf16": (lambda: step_of_layer_norm(torch.bfloat16), 2),
    "bias gelu": (step_of_bias_gelu, 2),
    "cross-entropy": (step_of_cross_entropy, 1),
}
"""A call in both directions, and how many of its kernels are searched for."""
HARDWARE = ("num_warps", "num_stages", "stages")


@pytest.mark.triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's share; a GPU has a test of its own")
@pytest.mark.parametrize("name", STEPS)
def test_every_tile_that_is_tried_computes_the_same(name, tmp_path):
    """The search holds each to the default one; here the last one is said to be the fastest, and taken."""
    step, num_kernels = STEPS[name]
    tried = []

    class Counting(TileSearch):
        def _measured(self, tiles, question, file, trial, device):
            # Warps and stages mean nothing to the interpreter.
            kinds = {tuple(v for k, v in tile._asdict().items() if k not in HARDWARE): tile for tile in tiles[1:]}
            kinds = list(dict.fromkeys([tiles[0], *kinds.values()]))
            tried.append(len(kinds))
            tile_search._clear(trial.results(kinds[0]))
            assert all(one.isfinite().all() for one in trial.results(kinds[0]) if one is not None)
            return super()._measured(kinds, question, file, trial, device)

    torch.manual_seed(0)
    expected = step()
    with using(Counting(tmp_path, lambda launches, _: [1.0] * (len(launches) - 1) + [0.1], device_type="cpu")):
        torch.manual_seed(0)
        found = step()
    assert len(tried) == num_kernels and min(tried) >= 3
    taken = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert sorted(len(one["measured"]) for one in taken) == sorted(tried)
    assert all(one["tile"].items() <= one["measured"][-1].items() for one in taken)
    for one, other in zip(found, expected, strict=True):
        rtol, atol = (2e-2, 2e-3) if one.dtype == torch.bfloat16 else (1e-4, 1e-4)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's share")
def test_what_was_found_serves_other_sizes(tmp_path, monkeypatch):
    """Of one power of two; what follows from the number of rows is computed for each."""
    programs, measured = [], []
    search = TileSearch(tmp_path, lambda launches, _: [measured.append(1) or 1.0 for _ in launches], device_type="cpu")
    tiling = layer_norm_backend.backward_tiling
    monkeypatch.setattr(
        layer_norm_backend, "backward_tiling", lambda *args: (programs.append(tiling(*args)), programs[-1])[1]
    )
    with using(search):
        for num_rows in (60, 40):
            step_of_layer_norm(num_rows=num_rows)
            assert programs[-1] == tiling(num_rows, 200, (torch.float32,) * 2, Processors(2, 100 * 1024))
            measured.append(num_rows)
    assert measured[-2:] == [60, 40] and len({one.programs for one in programs[-2:]}) == 2


@pytest.mark.triton
def test_calls_of_attention_that_compile_otherwise_are_kinds_of_their_own(tmp_path):
    """Tiles that fit the shared memory of one may not fit that of another."""
    kinds = []

    class Listening(TileSearch):
        def tile(self, kernel, default, others, facts, trial, device):
            kinds.append((kernel.__name__, *facts.items()))
            return default

    base = {"lengths_q": (40,), "dropout_p": 0.0}
    calls = [
        *({}, {"alibi": True}, {"bias": "own"}, {"bias": "own", "alibi": True}, {"dense": True}, {"causal": True}),
        *({"dropout_p": 0.1}, {"lengths_q": (70,)}, {"width": 32}),
    ]
    with using(Listening(tmp_path)):
        for dtype in (torch.bfloat16, torch.float16):
            for options in calls:
                step_of_attention(dtype, **base | options)
    forwards = [kind for kind in kinds if kind[0] == "attention_forward"]
    assert len(set(forwards)) == len(forwards) == 2 * len(calls)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("length", [100, 128, 129, 5000])
def test_tiles_of_attention_keep_what_the_other_kernels_count_on(capability, length):
    for width in (16, 64, 80, 128, 256):
        for element_size in (2, 4):
            for dropped in (False, True):
                shape = triton_tuning.Shape(
                    capability=capability, width=width, element_size=element_size, longest_q=length, longest_k=length,
                    dropped=dropped, drawn=dropped, biased=False, windowed=False,
                )  # fmt: skip
                for kernel in triton_tuning.TILES:
                    tiles = list(triton_tuning.other_tiles(kernel, shape))
                    assert len(set(tiles)) == len(tiles) <= 18
                    for tile in tiles:
                        assert triton_tuning.MOST_KEYS % tile.keys == 0 and tile.keys % 32 == 0
                        if kernel == "attention_grad_kv":
                            assert (length <= tile.keys) == triton_tuning.one_tile_of_keys(shape)


@pytest.mark.triton
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_search_on_a_gpu(tmp_path):
    case = AttentionCase(lengths_q=(512,) * 4, heads=12, key_heads=12, width=64)
    inputs = {name: x.to("cuda", torch.bfloat16).requires_grad_() for name, x in case.inputs(torch.float32).items()}
    options = case.options() | {"cu_seqlens_q": case.options()["cu_seqlens_q"].cuda(), "max_seqlen_q": 512}

    def step():
        out = attention(**inputs, **options, backend="triton")
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs.values())]

    expected = step()
    with search_tiles(tmp_path):
        found = step()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
    files = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert len(files) == 3
    for content in files:
        assert len(content["measured"]) > 3
        times = {tuple(row.values())[:-1]: row["microseconds"] for row in content["measured"]}
        assert times[tuple(content["tile"].values())] <= content["measured"][0]["microseconds"]
