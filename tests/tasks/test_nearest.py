"""The rows that are nearest to queries: those of a full sort, whatever the blocks, with ties in order."""

import numpy as np
import pytest

from fastssl.tasks.embedding import nearest
from fastssl.tasks.embedding.nearest import nearest_rows, row_blocks


def full_sort(queries: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    cosines = np.divide(queries @ rows.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    order = np.argsort(-cosines.round(12), axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(cosines, order, 1), order


@pytest.mark.parametrize("block", [1, 3, 50, 1000])
@pytest.mark.parametrize("top_k", [1, 4, 300])
def test_the_best_are_those_of_a_full_sort(block: int, top_k: int, monkeypatch):
    monkeypatch.setattr(nearest, "_QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(nearest, "_PAIRS_AT_ONCE", 5)
    random = np.random.default_rng(block)
    rows = random.standard_normal((200, 16), dtype=np.float32) * random.uniform(0.01, 100, (200, 1)).astype("f4")
    queries = random.standard_normal((7, 16), dtype=np.float32)
    scores, found = nearest_rows(queries, (rows[i : i + block] for i in range(0, 200, block)), top_k)
    expected_scores, expected = full_sort(queries, rows, top_k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 7, 60])
def test_equal_rows_come_in_their_order_with_equal_scores(block: int):
    random = np.random.default_rng(0)
    three = random.standard_normal((3, 33), dtype=np.float32)
    rows = three[random.integers(0, 3, 60)]
    queries = random.standard_normal((5, 33), dtype=np.float32)
    scores, found = nearest_rows(queries, [rows[i : i + block] for i in range(0, 60, block)], 45)
    whole_scores, whole = nearest_rows(queries, [rows], 45)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(scores, whole_scores)
    assert (np.diff(scores) <= 0).all() and all(len(np.unique(one)) <= 3 for one in scores)
    for one_scores, one in zip(scores, found, strict=True):
        for value in np.unique(one_scores):
            assert (np.diff(one[one_scores == value]) > 0).all()


def test_zeros_are_near_to_nothing_and_half_precision_is_read():
    rows = np.array([[0, 0], [1, 1], [-1, 0]], dtype=np.float16)
    scores, found = nearest_rows(np.array([[2.0, 2.0], [0.0, 0.0]]), [rows], 3)
    np.testing.assert_array_equal(found, [[1, 0, 2], [0, 1, 2]])
    np.testing.assert_allclose(scores, [[1, 0, -np.sqrt(0.5)], [0, 0, 0]])


def test_blocks_of_an_array_are_its_rows():
    array = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(np.concatenate(list(row_blocks(array))), array)
    assert list(row_blocks(np.empty((0, 3)))) == []


def test_nothing_to_find_and_wrong_vectors():
    one = np.ones((1, 4), dtype=np.float32)
    assert nearest_rows(one, [], 3)[1].shape == (1, 0)
    assert nearest_rows(one[:0], [one], 3)[1].shape == (0, 1)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        nearest_rows(one, [one], 0)
    with pytest.raises(ValueError, match=r"must be \(rows, 4\) as the queries, got \(1, 3\)"):
        nearest_rows(one, [one[:, :3]], 1)
    bad = one.copy()
    bad[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"row 1 \(counted from 0\) holds a NaN"):
        nearest_rows(one, [one, bad], 1)
    with pytest.raises(ValueError, match=r"query 0 \(counted from 0\) holds a NaN"):
        nearest_rows(bad, [one], 1)
