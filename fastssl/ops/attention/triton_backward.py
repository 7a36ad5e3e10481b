"""Attention backward in Triton: every gradient is summed by one program in a fixed order, nothing is atomic.

One kernel walks over the keys for a tile of queries (dQ), and leaves two statistics of them, delta and lse_log2, for
the others: one walks over the queries for a tile of keys (dK, dV), and with a bias one over the sequences for a tile of
scores (dBias). Where a sequence has one tile of keys, the second makes dQ too, and the statistics have their own
kernel. Weights are recomputed from lse. Dropout's decisions are read where the forward kept them (`kept_bits`), else
they are drawn again.
"""

import triton
import triton.language as tl

from fastssl.ops.attention.triton_tiles import (
    LOG2_E,
    at_most_one,
    bias_of,
    dropout_bits,
    is_visible,
    kept,
    load_bits,
    load_rows,
    locate,
    product,
    rows_of,
    scores_of,
    sequence_rows,
    slope_of,
    statistics_of,
    store_rows,
    visible_parts,
    words_of,
)
from fastssl.ops.triton_philox import philox_key

COUNTS = [
    "length_q", "length_k", "num_rows", "num_sequences", "num_tiles", "heads_together", "window_left", "window_right",
    "threshold", "num_words",
]  # fmt: skip
"""Arguments that change from batch to batch: a kernel compiled for one value would be compiled again and again."""


@triton.jit
def load_statistics(pointers, query, num_queries, ALL: tl.constexpr, OTHER: tl.constexpr):
    """Return a statistic of queries, OTHER where there is no query; with ALL there are no such."""
    if ALL:
        values = tl.load(pointers + query)
    else:
        values = tl.load(pointers + query, mask=query < num_queries, other=OTHER)
    return values


@triton.jit
def meets(first_query, first_key, num_queries, num_keys, left, right, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return whether some query of a tile may see some key of a tile."""
    shift = num_keys - num_queries
    seen = (first_query < num_queries) & (first_key < num_keys)
    if left is not None:
        seen = seen & (first_key + BLOCK_S > first_query + shift - left)
    if right is not None:
        seen = seen & (first_key < first_query + BLOCK_T + shift + right)
    return seen


@triton.jit
def statistics_for(
    tile_grad_out, out, grad_lse, lse, delta, lse_log2, keep_scale, cu_seqlens_q, sequence, head, num_heads, num_rows,
    first_row, first_query, num_queries, D: tl.constexpr,
):  # fmt: skip
    """Store and return delta and lse of the queries of a tile of dO, as the other kernels want them.

    delta = (rowsum(dO * O) - dlse) / keep_scale: what dropout keeps is scaled up at the end, so that until then all
    else is scaled down. lse_log2 = lse / ln(2), and +inf where a query sees nothing, so that its weights are 0.
    """
    BLOCK_T: tl.constexpr = tile_grad_out.shape[0]
    query = first_query + tl.arange(0, BLOCK_T)
    exists = query < num_queries
    begin = rows_of(out, sequence, head, first_row)
    tile_out = load_rows(out, begin, first_query, num_queries, True, D, BLOCK_T, tile_grad_out.shape[1])
    tile_delta = tl.sum(tile_out.to(tl.float32) * tile_grad_out.to(tl.float32), 1)
    if grad_lse is not None:
        pointers = statistics_of(grad_lse, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
        tile_delta -= tl.load(pointers + query, mask=exists, other=0.0)
    tile_delta *= 1.0 / keep_scale
    pointers = statistics_of(delta, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
    tl.store(pointers + query, tile_delta, mask=exists)
    pointers = statistics_of(lse, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
    tile_lse = tl.load(pointers + query, mask=exists, other=float("-inf"))
    tile_lse = tl.where(tile_lse == float("-inf"), float("inf"), tile_lse * LOG2_E)
    pointers = statistics_of(lse_log2, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
    tl.store(pointers + query, tile_lse, mask=exists)
    return tile_delta, tile_lse


@triton.jit(do_not_specialize=["length_q", "num_rows", "num_sequences", "num_tiles", "heads_together"])
def attention_delta(
    out, grad_out, grad_lse, lse, delta, lse_log2, cu_seqlens_q, length_q, num_rows, num_heads, num_sequences,
    num_tiles, heads_together, keep_scale, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute delta and lse_log2 of BLOCK_T queries of one head."""
    tile, head, sequence = locate(num_tiles, num_heads, num_sequences, heads_together, True)
    first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
    first_query = tile * BLOCK_T
    if first_query >= num_queries:
        return
    begin_grad_out = rows_of(grad_out, sequence, head, first_row)
    tile_grad_out = load_rows(grad_out, begin_grad_out, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
    statistics_for(
        tile_grad_out, out, grad_lse, lse, delta, lse_log2, keep_scale, cu_seqlens_q, sequence, head, num_heads,
        num_rows, first_row, first_query, num_queries, D,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def attention_grad_q(
    q, k, v, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seed, out, grad_out, grad_lse, lse, delta, lse_log2,
    kept_bits, grad_q, length_q, length_k, num_rows, num_heads, heads_per_key, num_sequences, num_tiles, heads_together,
    window_left, window_right, scale, threshold, keep_scale, num_words, D: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute dQ = scale dS K, delta and lse_log2 of BLOCK_T queries of one head of one sequence."""
    tile, head, sequence = locate(num_tiles, num_heads, num_sequences, heads_together, True)
    first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
    first_key_row, num_keys = sequence_rows(cu_seqlens_k, sequence, length_k)
    first_query = tile * BLOCK_T
    if first_query >= num_queries:
        return
    shift = num_keys - num_queries
    key_head = head // heads_per_key
    begin_q, begin_grad_out = rows_of(q, sequence, head, first_row), rows_of(grad_out, sequence, head, first_row)
    begin_k, begin_v = rows_of(k, sequence, key_head, first_key_row), rows_of(v, sequence, key_head, first_key_row)
    tile_q = load_rows(q, begin_q, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
    tile_grad_out = load_rows(grad_out, begin_grad_out, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
    tile_delta, tile_lse = statistics_for(
        tile_grad_out, out, grad_lse, lse, delta, lse_log2, keep_scale, cu_seqlens_q, sequence, head, num_heads,
        num_rows, first_row, first_query, num_queries, D,
    )  # fmt: skip
    scale_log2, inverse_scale = scale * LOG2_E, 1.0 / scale
    begin_bias = bias_of(bias, sequence, head)
    slope = slope_of(alibi_slopes, head, inverse_scale)
    if seed is not None and kept_bits is None:
        key_0, key_1 = philox_key(seed)
    begin_bits = words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row)

    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    last_query = tl.minimum(first_query + BLOCK_T, num_queries) - 1
    bounds = visible_parts(first_query, last_query, shift, window_left, window_right, num_keys, BLOCK_S)
    for part in tl.static_range(0 if window_left is not None else 1, 3):
        for first_key in range(bounds[part], bounds[part + 1], BLOCK_S):
            first_key = tl.multiple_of(first_key, BLOCK_S)
            if kept_bits is not None:
                bits = load_bits(begin_bits, first_query, first_key, num_queries, num_rows, False, BLOCK_T, BLOCK_S)
            elif seed is not None:
                bits = dropout_bits(
                    first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T, BLOCK_S, INTERPRETED
                )
            tile_k = load_rows(k, begin_k, first_key, num_keys, part != 1, D, BLOCK_S, BLOCK_D)
            scores = scores_of(
                tile_q, tile_k, first_query, first_key, num_queries, num_keys, shift, bias, begin_bias, slope,
                inverse_scale, False, part == 1, False, INTERPRETED,
            )  # fmt: skip
            weights = at_most_one(tl.math.exp2(scores * scale_log2 - tile_lse[:, None]), bias)
            if part != 1:
                visible = is_visible(
                    first_query, first_key, num_keys, shift, window_left, window_right, BLOCK_T, BLOCK_S, False
                )
                weights = tl.where(visible, weights, 0.0)
            tile_v = load_rows(v, begin_v, first_key, num_keys, part != 1, D, BLOCK_S, BLOCK_D)
            grad = product(tile_grad_out, tl.trans(tile_v), None, INTERPRETED)
            if seed is not None:
                grad = tl.where(kept(bits, BLOCK_T, BLOCK_S, False, kept_bits is not None), grad, 0.0)
            grad = weights * (grad - tile_delta[:, None])
            acc = product(grad.to(tile_k.dtype), tile_k, acc, INTERPRETED)

    begin = rows_of(grad_q, sequence, head, first_row)
    store_rows(grad_q, begin, first_query, num_queries, acc * (scale * keep_scale), D, BLOCK_T, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def attention_grad_kv(
    q, k, v, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seed, grad_out, delta, lse_log2, kept_bits, grad_q, grad_k,
    grad_v, length_q, length_k, num_rows, num_heads, heads_per_key, num_sequences, num_tiles, heads_together,
    window_left, window_right, scale, threshold, keep_scale, num_words, D: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute dV = (M * P)^T dO and dK = scale dS^T Q of BLOCK_S keys of one key head of one sequence.

    With `grad_q`, where a sequence has one tile of keys, also dQ = scale dS K. Scores are transposed: (keys, queries).
    """
    tile, key_head, sequence = locate(
        num_tiles, num_heads // heads_per_key, num_sequences, heads_together, window_right is None
    )
    first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
    first_key_row, num_keys = sequence_rows(cu_seqlens_k, sequence, length_k)
    first_key = tile * BLOCK_S
    if grad_q is None and first_key >= num_keys:
        return
    shift = num_keys - num_queries
    begin_k, begin_v = rows_of(k, sequence, key_head, first_key_row), rows_of(v, sequence, key_head, first_key_row)
    tile_k = load_rows(k, begin_k, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
    tile_v = load_rows(v, begin_v, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
    if seed is not None and kept_bits is None:
        key_0, key_1 = philox_key(seed)
    last_key = tl.minimum(first_key + BLOCK_S, num_keys) - 1
    bounds = visible_parts(first_key, last_key, -shift, window_right, window_left, num_queries, BLOCK_T)
    if grad_q is not None:  # dQ of queries that see nothing is wanted too
        whole = num_queries // BLOCK_T * BLOCK_T if window_left is None and window_right is None else 0
        bounds = (0, 0, whole, num_queries)

    scale_log2, inverse_scale = scale * LOG2_E, 1.0 / scale
    acc_k = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    acc_v = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for member in range(heads_per_key):
        head = key_head * heads_per_key + member
        begin_q, begin_grad_out = rows_of(q, sequence, head, first_row), rows_of(grad_out, sequence, head, first_row)
        pointers_lse = statistics_of(lse_log2, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
        pointers_delta = statistics_of(delta, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
        begin_bias = bias_of(bias, sequence, head)
        slope = slope_of(alibi_slopes, head, inverse_scale)
        begin_bits = words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row)
        for part in tl.static_range(0 if window_right is not None else 1, 3):
            for first_query in range(bounds[part], bounds[part + 1], BLOCK_T):
                first_query = tl.multiple_of(first_query, BLOCK_T)
                query = first_query + tl.arange(0, BLOCK_T)
                if kept_bits is not None:
                    bits = load_bits(
                        begin_bits, first_query, first_key, num_queries, num_rows, part == 1, BLOCK_T, BLOCK_S
                    )
                elif seed is not None:
                    bits = dropout_bits(
                        first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T, BLOCK_S, INTERPRETED
                    )
                tile_q = load_rows(q, begin_q, first_query, num_queries, part != 1, D, BLOCK_T, BLOCK_D)
                scores = scores_of(
                    tile_q, tile_k, first_query, first_key, num_queries, num_keys, shift, bias, begin_bias, slope,
                    inverse_scale, part == 1, False, True, INTERPRETED,
                )  # fmt: skip
                tile_lse = load_statistics(pointers_lse, query, num_queries, part == 1, float("inf"))
                weights = at_most_one(tl.math.exp2(scores * scale_log2 - tile_lse[None, :]), bias)
                if part != 1 or grad_q is not None:
                    visible = is_visible(
                        first_query, first_key, num_keys, shift, window_left, window_right, BLOCK_T, BLOCK_S, True
                    )
                    weights = tl.where(visible, weights, 0.0)
                tile_grad_out = load_rows(
                    grad_out, begin_grad_out, first_query, num_queries, part != 1, D, BLOCK_T, BLOCK_D
                )
                grad = product(tile_v, tl.trans(tile_grad_out), None, INTERPRETED)
                tile_delta = load_statistics(pointers_delta, query, num_queries, part == 1, 0.0)
                if seed is None:
                    dropped = weights
                    grad = weights * (grad - tile_delta[None, :])
                else:
                    dropped = tl.where(kept(bits, BLOCK_T, BLOCK_S, True, kept_bits is not None), weights, 0.0)
                    grad = dropped * grad - weights * tile_delta[None, :]
                acc_v = product(dropped.to(tile_q.dtype), tile_grad_out, acc_v, INTERPRETED)
                grad = grad.to(tile_q.dtype)
                acc_k = product(grad, tile_q, acc_k, INTERPRETED)
                if grad_q is not None:
                    tile_grad_q = product(tl.trans(grad), tile_k, None, INTERPRETED) * (scale * keep_scale)
                    begin_grad_q = rows_of(grad_q, sequence, head, first_row)
                    store_rows(grad_q, begin_grad_q, first_query, num_queries, tile_grad_q, D, BLOCK_T, BLOCK_D)

    begin_k = rows_of(grad_k, sequence, key_head, first_key_row)
    store_rows(grad_k, begin_k, first_key, num_keys, acc_k * (scale * keep_scale), D, BLOCK_S, BLOCK_D)
    begin_v = rows_of(grad_v, sequence, key_head, first_key_row)
    store_rows(grad_v, begin_v, first_key, num_keys, acc_v * keep_scale, D, BLOCK_S, BLOCK_D)


@triton.jit(do_not_specialize=[*COUNTS, "num_queries_bias", "num_keys_bias", "num_key_tiles", "sequences_each"])
def attention_grad_bias(
    q, k, v, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seed, grad_out, delta, lse_log2, kept_bits, grad_bias,
    length_q, length_k, num_queries_bias, num_keys_bias, num_rows, num_heads, heads_per_key, num_sequences,
    sequences_each, num_parts, num_tiles, num_key_tiles, window_left, window_right, scale, threshold, keep_scale,
    num_words, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute dBias = dS of one tile of scores of one head, summed over `sequences_each` sequences in their order."""
    tile, head, part = locate(num_tiles, num_heads, num_parts, 1, False)
    first_query = tile // num_key_tiles * BLOCK_T
    first_key = tile % num_key_tiles * BLOCK_S
    query = first_query + tl.arange(0, BLOCK_T)
    key = first_key + tl.arange(0, BLOCK_S)
    scale_log2, inverse_scale = scale * LOG2_E, 1.0 / scale
    slope = slope_of(alibi_slopes, head, inverse_scale)
    if seed is not None and kept_bits is None:
        key_0, key_1 = philox_key(seed)
    acc = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
    for index in range(tl.minimum(sequences_each, num_sequences - part * sequences_each)):
        sequence = part * sequences_each + index
        first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
        first_key_row, num_keys = sequence_rows(cu_seqlens_k, sequence, length_k)
        shift = num_keys - num_queries
        begin_bias = bias_of(bias, sequence, head)
        begin_bits = words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row)
        if meets(first_query, first_key, num_queries, num_keys, window_left, window_right, BLOCK_T, BLOCK_S):
            if kept_bits is not None:
                bits = load_bits(begin_bits, first_query, first_key, num_queries, num_rows, False, BLOCK_T, BLOCK_S)
            elif seed is not None:
                bits = dropout_bits(
                    first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T, BLOCK_S, INTERPRETED
                )
            begin = rows_of(q, sequence, head, first_row)
            tile_q = load_rows(q, begin, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
            begin = rows_of(k, sequence, head // heads_per_key, first_key_row)
            tile_k = load_rows(k, begin, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
            scores = scores_of(
                tile_q, tile_k, first_query, first_key, num_queries, num_keys, shift, bias, begin_bias, slope,
                inverse_scale, False, False, False, INTERPRETED,
            )  # fmt: skip
            pointers_lse = statistics_of(lse_log2, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
            tile_lse = load_statistics(pointers_lse, query, num_queries, False, float("inf"))
            weights = at_most_one(tl.math.exp2(scores * scale_log2 - tile_lse[:, None]), bias)
            visible = is_visible(
                first_query, first_key, num_keys, shift, window_left, window_right, BLOCK_T, BLOCK_S, False
            )
            weights = tl.where(visible, weights, 0.0)
            begin = rows_of(grad_out, sequence, head, first_row)
            tile_grad_out = load_rows(grad_out, begin, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
            begin = rows_of(v, sequence, head // heads_per_key, first_key_row)
            tile_v = load_rows(v, begin, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
            grad = product(tile_grad_out, tl.trans(tile_v), None, INTERPRETED)
            if seed is not None:
                grad = tl.where(kept(bits, BLOCK_T, BLOCK_S, False, kept_bits is not None), grad, 0.0)
            pointers_delta = statistics_of(delta, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
            tile_delta = load_statistics(pointers_delta, query, num_queries, False, 0.0)
            acc += weights * (grad - tile_delta[:, None])
    pointers = bias_of(grad_bias, part, head) + query.to(tl.int64)[:, None] * grad_bias.row + key[None, :]
    tl.store(pointers, acc * keep_scale, mask=(query[:, None] < num_queries_bias) & (key[None, :] < num_keys_bias))
