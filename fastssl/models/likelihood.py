"""How likely a causal model finds continuations of contexts, reading what they share once.

The log-probability of a continuation c of a context x is the sum over its tokens of ln p(c_i | x, c_1 .. c_{i-1}).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastssl.data.batch import PackedBatch
from fastssl.models.generation.reader import evaluating
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.prefix_tree import LEAST_SHARED, PrefixNode, prefix_tree
from fastssl.nn.kv_cache import KVCache

TOKENS_PER_BATCH = 4096
"""About how many tokens go through the model at once, by default."""
_LOGITS_AT_ONCE = 1 << 24
_CACHED_BATCHES = 2


class Likelihood(NamedTuple):
    """What a model thinks of one continuation."""

    log_probability: float
    """Natural logarithm of its probability behind its context."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest."""
    num_tokens: int
    """Its length."""


class _Request(NamedTuple):
    """A continuation: which rows of what is read predict which tokens."""

    read: list[int]
    """The context, and the continuation but for its last token."""
    first: int
    """The row that predicts the continuation's first token: the context's last."""
    targets: list[int]
    """The continuation."""


def loglikelihoods(
    model: GPTForCausalLM,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    share_prefixes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Return how likely each continuation is behind its context.

    Requests go through the model packed, without padding. A prefix that several of them share, such as the prompt of
    four choices or the demonstrations in front of many questions, is read once into a cache of keys and values, from
    which they go on. Scores are computed of the continuations' rows alone, some hundred rows at a time.

    Args:
        model: in eval mode or not: nothing is dropped out.
        requests: pairs (context, continuation) of token ids; an empty context is the model's `bos_token_id`.
        tokens_per_batch: about how many tokens go through the model at once; caches hold about twice as many.
        share_prefixes: read what requests share once; without, each is read whole: slower, the same but for rounding.
        progress: called with how many requests have been answered since its last call.

    Returns:
        One `Likelihood` for each request, in their order; log-probabilities are sums in fp64 of fp32 numbers.

    Raises:
        ValueError: for an empty continuation, an id outside the vocabulary, a request longer than the model's
            positions, or an empty context where the model has no token to begin with.

    Source: the shared prefix as in Zheng et al. 2023 (arXiv 2312.07104) section 3.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    checked = [_checked(number, request, model) for number, request in enumerate(requests)]
    scores = _Scores(checked, progress)
    roots = prefix_tree([one.read for one in checked], least_shared=LEAST_SHARED if share_prefixes else None)
    with torch.inference_mode(), evaluating(model):
        _Reading(model, scores, tokens_per_batch).run([_Branch(root, 0) for root in roots], None)
    return scores.likelihoods()


def rolling_loglikelihoods(
    model: GPTForCausalLM,
    texts: Sequence[Sequence[int]],
    *,
    first_token: int | None = None,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Likelihood]:
    """Return how likely whole texts of any length are, each token predicted exactly once.

    Args:
        model: in eval mode or not.
        texts: sequences of token ids; an empty one has the log-probability 0.
        first_token: what stands in front of a text; None: the model's `bos_token_id`.
        max_length: longest stretch that is read at once, in tokens; None: the model's positions.
        tokens_per_batch: as in `loglikelihoods`.

    Raises:
        ValueError: as `loglikelihoods`.
    """
    first_token = model.config.bos_token_id if first_token is None else first_token
    if first_token is None:
        raise ValueError("the model has no bos_token_id to stand in front of a text; give first_token")
    longest = model.config.max_position_embeddings
    max_length = longest if max_length is None else min(max_length, longest)
    windows = [list(rolling_windows(text, first_token, max_length)) for text in texts]
    found = iter(loglikelihoods(model, [w for own in windows for w in own], tokens_per_batch=tokens_per_batch))
    return [_joined([next(found) for _ in own]) for own in windows]


def rolling_windows(tokens: Sequence[int], first_token: int, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (context, continuation) pairs that predict each token of a text once.

    Windows of `max_length` tokens follow one another, each behind one token of context; the last, shorter one gets as
    much context as fits.

    Args:
        tokens: the text.
        first_token: the context of the first window.
        max_length: most tokens that are read at once, at least 1.

    Source: EleutherAI's lm-evaluation-harness, `get_rolling_token_windows` and `make_disjoint_window`.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    tokens = list(tokens)
    if tokens:
        yield [first_token], tokens[:max_length]
    for begin in range(max_length, len(tokens), max_length):
        continuation = tokens[begin : begin + max_length]
        # What is read is the context and all of the continuation but its last token.
        yield tokens[begin - (max_length - len(continuation) + 1) : begin], continuation


def _joined(parts: list[Likelihood]) -> Likelihood:
    return Likelihood(sum(p[0] for p in parts), all(p[1] for p in parts), sum(p[2] for p in parts))


def _checked(number: int, request: tuple[Sequence[int], Sequence[int]], model: GPTForCausalLM) -> _Request:
    context, continuation = (_token_ids(number, part) for part in request)
    config = model.config
    if not continuation:
        raise ValueError(f"request {number} has an empty continuation; give at least one token to predict")
    if not context:
        if config.bos_token_id is None:
            raise ValueError(f"request {number} has no context, and the model no bos_token_id to begin with")
        context = [config.bos_token_id]
    read = context + continuation[:-1]
    wrong = [token for token in (*context, *continuation) if not 0 <= token < config.vocab_size]
    if wrong:
        raise ValueError(
            f"request {number} has the token {wrong[0]}, and the model's vocabulary ends at {config.vocab_size}; "
            "encode it with the tokenizer that the model was trained with"
        )
    if len(read) > config.max_position_embeddings:
        raise ValueError(
            f"request {number} has {len(context)} tokens of context and {len(continuation)} to predict, and the model "
            f"has {config.max_position_embeddings} positions; shorten the context"
        )
    return _Request(read, len(context) - 1, continuation)


def _token_ids(number: int, part: Sequence[int]) -> list[int]:
    tokens = list(part)
    if not all(isinstance(token, numbers.Integral) for token in tokens):
        raise ValueError(f"request {number} must be two sequences of token ids, got {part!r} for one; encode it first")
    return [int(token) for token in tokens]


@dataclass(kw_only=True)
class _Pairs:
    """Rows of a pack, what each of them is asked to predict, and for which request."""

    rows: np.ndarray
    targets: np.ndarray
    requests: np.ndarray


class _Scores:
    """Sums the answers to all requests."""

    def __init__(self, requests: Sequence[_Request], progress: Callable[[int], None] | None) -> None:
        self.requests = requests
        self._progress = progress
        self._sums = np.zeros(len(requests))
        self._greedy = np.ones(len(requests), dtype=bool)

    def pairs(self, nodes: Sequence[PrefixNode]) -> _Pairs:
        """Return what the rows of nodes, laid end to end, are to predict."""
        rows, targets, requests, offset = [], [], [], 0
        for node in nodes:
            for number in node.sequences:
                one = self.requests[number]
                begin, end = max(one.first, node.start), min(one.first + len(one.targets), node.end)
                if begin < end:
                    rows.append(np.arange(begin, end) + offset - node.start)
                    targets += one.targets[begin - one.first : end - one.first]
                    requests.append(np.full(end - begin, number))
            offset += len(node.tokens)
        if not rows:
            return _Pairs(rows=np.zeros(0, np.int64), targets=np.zeros(0, np.int64), requests=np.zeros(0, np.int64))
        return _Pairs(rows=np.concatenate(rows), targets=np.array(targets), requests=np.concatenate(requests))

    def add(self, pairs: _Pairs, log_probabilities: Tensor, hits: Tensor) -> None:
        """Add the answers to some pairs."""
        np.add.at(self._sums, pairs.requests, log_probabilities.double().cpu().numpy())
        np.logical_and.at(self._greedy, pairs.requests, hits.cpu().numpy())

    def done(self, nodes: Sequence[PrefixNode]) -> None:
        """Tell the progress: all that goes through these nodes has been answered."""
        if self._progress is not None:
            self._progress(sum(len(node.sequences) for node in nodes))

    def likelihoods(self) -> list[Likelihood]:
        """Return the answers."""
        answers = zip(self._sums.tolist(), self._greedy.tolist(), self.requests, strict=True)
        return [Likelihood(total, greedy, len(one.targets)) for total, greedy, one in answers]


class _Branch(NamedTuple):
    """A node that is to be read, and the row of the cache that holds what stands above it."""

    node: PrefixNode
    row: int


class _Reading:
    """Reads a tree depth first, many nodes at a time."""

    def __init__(self, model: GPTForCausalLM, scores: _Scores, tokens_per_batch: int) -> None:
        self._model, self._scores, self._tokens = model, scores, tokens_per_batch
        self._device = next(model.parameters()).device

    def run(self, branches: Sequence[_Branch], cache: KVCache | None) -> None:
        """Read nodes of one level, which go on from a cache (None: from nothing), and all that is below them."""
        # Leaves leave nothing behind; without a level above they need no cache at all.
        leaves = [branch for branch in branches if not branch.node.children]
        forks = [branch for branch in branches if branch.node.children]
        for kind in (leaves, forks):
            for batch in self._batches(kind, cache is not None or kind is forks):
                nodes = [branch.node for branch in batch]
                self._read(batch, cache)
                if cache is None:
                    self._scores.done(nodes)

    def _read(self, batch: Sequence[_Branch], cache: KVCache | None) -> None:
        nodes = [branch.node for branch in batch]
        own = None
        if cache is not None:
            own = cache.branch([branch.row for branch in batch], max(node.longest for node in nodes))
        elif nodes[0].children:
            own = self._model.new_cache(len(nodes), max(node.longest for node in nodes))
        packed = PackedBatch.from_sequences([node.tokens for node in nodes]).to(self._device)
        self._score(self._model.gpt.encode(packed, cache=own), self._scores.pairs(nodes))
        below = [_Branch(child, row) for row, node in enumerate(nodes) for child in node.children]
        if below:
            self.run(below, own)

    def _score(self, hidden_states: Tensor, pairs: _Pairs) -> None:
        """Add the log-probabilities of targets; the logits of a row are computed once, those of few rows at a time."""
        rows, which = np.unique(pairs.rows, return_inverse=True)
        at_once = max(1, _LOGITS_AT_ONCE // self._model.config.vocab_size)
        for begin in range(0, len(rows), at_once):
            chosen = torch.from_numpy(rows[begin : begin + at_once]).to(self._device)
            logits = self._model.logits(hidden_states.index_select(0, chosen)).float()
            asked = np.flatnonzero((which >= begin) & (which < begin + at_once))
            part = _Pairs(rows=which[asked] - begin, targets=pairs.targets[asked], requests=pairs.requests[asked])
            row, target = (torch.from_numpy(values).to(self._device) for values in (part.rows, part.targets))
            log_probabilities = logits[row, target] - logits.logsumexp(-1)[row]
            self._scores.add(part, log_probabilities, logits.argmax(-1)[row] == target)

    def _batches(self, branches: Sequence[_Branch], cached: bool) -> Iterator[list[_Branch]]:
        """Yield branches of like length together, as many as `tokens_per_batch` and the room of a cache allow."""
        batch: list[_Branch] = []
        tokens = rows_of_cache = 0
        for branch in sorted(branches, key=lambda branch: -branch.node.longest):
            own = len(branch.node.tokens)
            full = tokens + own > self._tokens
            # The first of a batch is its longest, and every row of a cache is as long.
            if cached and batch:
                full |= (rows_of_cache + 1) * batch[0].node.longest > _CACHED_BATCHES * self._tokens
            if batch and full:
                yield batch
                batch, tokens, rows_of_cache = [], 0, 0
            batch.append(branch)
            tokens, rows_of_cache = tokens + own, rows_of_cache + 1
        if batch:
            yield batch
