"""The tree of shared prefixes: every sequence stands in it once, along one way."""

import random

import pytest

from fastssl.models.prefix_tree import PrefixNode, prefix_tree


def ways(nodes: list[PrefixNode], above: tuple[int, ...] = ()):
    """Yield (tokens from the root, node) of every node."""
    for node in nodes:
        assert node.start == len(above)
        whole = (*above, *node.tokens)
        yield whole, node
        yield from ways(node.children, whole)


def read_tokens(nodes: list[PrefixNode]) -> int:
    return sum(len(node.tokens) for _, node in ways(nodes))


@pytest.mark.parametrize("least_shared", [None, 1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_is_in_every_node_on_its_way(least_shared, seed):
    draw = random.Random(seed)
    sequences = [[draw.randrange(2) for _ in range(draw.randrange(1, 25))] for _ in range(60)]
    roots = prefix_tree(sequences, least_shared=least_shared)
    held = {number: 0 for number in range(len(sequences))}
    for whole, node in ways(roots):
        assert node.tokens and node.longest >= node.end == len(whole)
        for number in node.sequences:
            own = tuple(sequences[number])
            assert own[: node.end] == whole[: len(own)]
            held[number] += max(0, min(len(own), node.end) - node.start)
        below = [number for child in node.children for number in child.sequences]
        assert not node.children or sorted(below) == sorted(node.sequences)
        assert not node.children or len(node.tokens) >= least_shared
    assert held == {number: len(own) for number, own in enumerate(sequences)}


def test_what_is_shared_stands_once():
    prompts = [[1] * 20 + [2, question] + [3] * 10 for question in (4, 5)]
    sequences = [prompt + choice for prompt in prompts for choice in ([6], [7, 8], [7, 9], [])]
    roots = prefix_tree(sequences)
    assert read_tokens(roots) == 21 + 2 * (11 + 1 + 2 + 2)
    assert len(roots) == 1 and [len(child.children) for child in roots[0].children] == [3, 3]
    assert read_tokens(prefix_tree(sequences, least_shared=None)) == 2 * (33 + 34 + 34)  # one is the way to the others


def test_a_sequence_that_another_begins_with_is_read_on_the_way():
    sequences = [[5] * length for length in range(1, 200)]
    (root,) = prefix_tree(sequences)
    assert root.tokens == [5] * 199 and not root.children and len(root.sequences) == 199


def test_many_levels_are_no_recursion_without_end():
    """Every continuation of a text in the place of its next token: each branches off one token later."""
    sequences = [[1] * length + [2] for length in range(1, 2000)]
    assert read_tokens(prefix_tree(sequences, least_shared=1)) < sum(map(len, sequences))


def test_nothing():
    assert prefix_tree([]) == []
