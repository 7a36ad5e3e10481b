"""Likelihoods of continuations: equal to a loop over whole logits, whatever is shared, packed or slid over."""

import itertools
import random

import pytest
import torch

from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.likelihood import Likelihood, loglikelihoods, rolling_loglikelihoods, rolling_windows
from fastssl.nn.quantized import quantize
from tests.models.gpt_peers import PEERS, peer


def random_requests(num_tokens: int = 95, longest: int = 31, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Four choices behind each of some prompts that begin alike, prompts of their own, one continuation twice."""
    draw = random.Random(seed)

    def tokens(number: int) -> list[int]:
        return [draw.randrange(num_tokens) for _ in range(number)]

    demonstrations = tokens(11)
    requests = []
    for _ in range(4):
        prompt = demonstrations + tokens(draw.randrange(1, 10))
        requests += [(prompt, tokens(draw.randrange(1, 7))) for _ in range(4)]
    requests += [(tokens(n), tokens(m)) for n, m in ((1, 1), (1, 31), (31, 1), (16, 16), (2, 5))]
    requests += [requests[0], (requests[1][0], requests[1][1][:1]), ([], tokens(4))]
    draw.shuffle(requests)
    assert max(len(context) + len(continuation) - 1 for context, continuation in requests) <= longest
    return requests


@torch.no_grad()
def one_by_one(model, requests, bos: int) -> list[Likelihood]:
    """The definition, from the logits (1, T, V) of a transformers model."""
    found = []
    for context, continuation in requests:
        context = context or [bos]
        logits = model(input_ids=torch.tensor([context + continuation[:-1]])).logits[0, len(context) - 1 :].double()
        targets = torch.tensor(continuation)
        chosen = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
        found.append(Likelihood(float(chosen.sum()), bool((logits.argmax(-1) == targets).all()), len(targets)))
    return found


def assert_same(ours: list[Likelihood], theirs: list[Likelihood], tolerance: float = 1e-4) -> None:
    assert [one[1:] for one in ours] == [one[1:] for one in theirs]
    assert [one[0] for one in ours] == pytest.approx([one[0] for one in theirs], abs=tolerance, rel=1e-5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt")
    peer("gpt2").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(directory) -> GPTForCausalLM:
    return GPTForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("name", PEERS)
def test_equal_to_transformers(name, tmp_path):
    theirs = peer(name)
    theirs.save_pretrained(tmp_path)
    ours = GPTForCausalLM.from_pretrained(tmp_path).train()
    requests = random_requests()
    # The greedy continuation of a context must be found to be one.
    greedy = ours.generate([requests[0][0]], max_new_tokens=3)[0].tokens
    requests.append((requests[0][0], greedy))
    found = loglikelihoods(ours, requests)
    assert ours.training
    assert found[-1].is_greedy and not all(one.is_greedy for one in found)
    assert_same(found, one_by_one(theirs, requests, bos=96))


@pytest.mark.parametrize("tokens_per_batch", [1, 17, 64, 10_000])
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_how_they_are_batched_changes_nothing(model, tokens_per_batch, share_prefixes):
    requests = random_requests(seed=1)
    options = {"tokens_per_batch": tokens_per_batch, "share_prefixes": share_prefixes}
    assert_same(loglikelihoods(model, requests, **options), loglikelihoods(model, requests), 1e-5)


def test_what_is_shared_is_read_once(model, monkeypatch):
    read = []
    encode = model.gpt.encode

    def counting(batch, *arguments, **options):
        read.append(batch.num_tokens)
        return encode(batch, *arguments, **options)

    monkeypatch.setattr(model.gpt, "encode", counting)
    prompt = list(range(20))
    loglikelihoods(model, [(prompt, [30 + choice, 40, 50]) for choice in range(4)])
    assert sum(read) == 20 + 4 * 2
    read.clear()
    loglikelihoods(model, [(prompt, [30 + choice]) for choice in range(4)])
    assert read == [20]
    read.clear()
    loglikelihoods(model, [(prompt, [30 + choice, 40, 50]) for choice in range(4)], share_prefixes=False)
    assert sum(read) == 4 * 22


def test_progress_counts_every_request(model):
    told = []
    requests = random_requests()
    loglikelihoods(model, requests, tokens_per_batch=20, progress=told.append)
    assert sum(told) == len(requests) and len(told) > 2


def test_probabilities_of_all_next_tokens_sum_to_one(model):
    found = loglikelihoods(model, [([3, 4, 5], [token]) for token in range(97)])
    assert sum(torch.tensor([one.log_probability for one in found]).exp()) == pytest.approx(1, abs=1e-5)
    assert sum(one.is_greedy for one in found) == 1


def test_of_a_quantised_model(model):
    requests = random_requests()
    quantized = quantize(model)
    found = loglikelihoods(quantized, requests)
    alone = [loglikelihoods(quantized, [request])[0] for request in requests]
    assert_same(found, alone, 1e-4)


def test_rolling_windows_predict_each_token_once():
    for length, longest in itertools.product(range(40), (1, 2, 7, 40)):
        tokens = list(range(length))
        windows = list(rolling_windows(tokens, -1, longest))
        assert [token for _, continuation in windows for token in continuation] == tokens
        for context, continuation in windows:
            begin = continuation[0]
            assert context == [-1, *tokens][begin + 1 - len(context) : begin + 1]
            assert len(context) + len(continuation) - 1 <= longest


def test_rolling_windows_are_those_of_the_harness():
    harness = pytest.importorskip("lm_eval.utils")
    for length, longest in itertools.product(range(40), (1, 2, 7, 40)):
        theirs = harness.get_rolling_token_windows(list(range(length)), -1, longest, 1)
        expected = [tuple(map(list, harness.make_disjoint_window(pair))) for pair in theirs]
        assert list(rolling_windows(range(length), -1, longest)) == expected


def test_rolling_loglikelihoods(model):
    texts = [[7] * 3, list(range(80)), [], list(range(31))]
    found = rolling_loglikelihoods(model, texts)
    assert [one.num_tokens for one in found] == [3, 80, 0, 31]
    windows = loglikelihoods(model, list(rolling_windows(texts[1], 96, 31)))
    assert found[1].log_probability == pytest.approx(sum(one.log_probability for one in windows))
    assert found[2].log_probability == 0
    shorter = rolling_loglikelihoods(model, texts[1:2], max_length=5, first_token=0)
    assert shorter[0].log_probability != pytest.approx(found[1].log_probability)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([1], []), "request 1 has an empty continuation"),
        (([1], [97]), "has the token 97"),
        (([-1], [9]), "has the token -1"),
        (([5.9], [9]), "request 1 must be two sequences of token ids, got .5.9. for one; encode it first"),
        (("ab", "c"), "request 1 must be two sequences of token ids, got 'ab' for one"),
        ((list(range(30)), [1, 2, 3]), "30 tokens of context and 3 to predict, and the model has 31 positions"),
    ],
)
def test_mistakes_are_told(model, request_, message):
    with pytest.raises(ValueError, match=message):
        loglikelihoods(model, [([1], [2]), request_])


def test_nothing_asked(model):
    assert loglikelihoods(model, []) == [] and rolling_loglikelihoods(model, []) == []
