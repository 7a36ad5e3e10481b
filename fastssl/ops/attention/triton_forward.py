"""Attention forward in Triton: one tile of queries a program, the softmax carried over tiles of keys."""

import triton
import triton.language as tl

from fastssl.ops.attention.triton_tiles import (
    LN_2,
    LOG2_E,
    bias_of,
    dropout_bits,
    is_visible,
    kept,
    load_rows,
    locate,
    product,
    rows_of,
    scores_of,
    sequence_rows,
    slope_of,
    statistics_of,
    store_bits,
    store_rows,
    visible_parts,
    words_of,
)
from fastssl.ops.triton_philox import philox_key


@triton.jit(
    do_not_specialize=[
        "length_q", "length_k", "num_rows", "num_sequences", "num_tiles", "heads_together", "window_left",
        "window_right", "threshold", "num_words",
    ]
)  # fmt: skip
def attention_forward(
    q, k, v, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seed, out, lse, kept_bits, length_q, length_k, num_rows,
    num_heads, heads_per_key, num_sequences, num_tiles, heads_together, window_left, window_right, scale, threshold,
    keep_scale, num_words, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute out and lse of BLOCK_T queries of one head of one sequence; with `kept_bits` keep dropout's decisions."""
    tile, head, sequence = locate(num_tiles, num_heads, num_sequences, heads_together, True)
    first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
    first_key_row, num_keys = sequence_rows(cu_seqlens_k, sequence, length_k)
    first_query = tile * BLOCK_T
    if first_query >= num_queries:
        return
    shift = num_keys - num_queries
    query = first_query + tl.arange(0, BLOCK_T)
    key_head = head // heads_per_key
    begin_q = rows_of(q, sequence, head, first_row)
    begin_k, begin_v = rows_of(k, sequence, key_head, first_key_row), rows_of(v, sequence, key_head, first_key_row)
    tile_q = load_rows(q, begin_q, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
    scale_log2, inverse_scale = scale * LOG2_E, 1.0 / scale
    begin_bias = bias_of(bias, sequence, head)
    slope = slope_of(alibi_slopes, head, inverse_scale)
    if seed is not None:
        key_0, key_1 = philox_key(seed)
    begin_bits = words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row)

    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    maximum = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    last_query = tl.minimum(first_query + BLOCK_T, num_queries) - 1
    bounds = visible_parts(first_query, last_query, shift, window_left, window_right, num_keys, BLOCK_S)
    for part in tl.static_range(0 if window_left is not None else 1, 3):
        for first_key in range(bounds[part], bounds[part + 1], BLOCK_S):
            first_key = tl.multiple_of(first_key, BLOCK_S)
            if seed is not None:
                bits = dropout_bits(
                    first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T, BLOCK_S, INTERPRETED
                )
            if kept_bits is not None:
                store_bits(begin_bits, bits, first_query, first_key, num_queries, num_rows, BLOCK_S)
            tile_k = load_rows(k, begin_k, first_key, num_keys, part != 1, D, BLOCK_S, BLOCK_D)
            scores = scores_of(
                tile_q, tile_k, first_query, first_key, num_queries, num_keys, shift, bias, begin_bias, slope,
                inverse_scale, False, part == 1, False, INTERPRETED,
            )  # fmt: skip
            if part != 1:
                visible = is_visible(
                    first_query, first_key, num_keys, shift, window_left, window_right, BLOCK_T, BLOCK_S, False
                )
                scores = tl.where(visible, scores, float("-inf"))
            raised = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
            unit = tl.where(raised == float("-inf"), 0.0, raised)  # nothing seen yet: any finite unit will do
            weights = tl.math.exp2(scores * scale_log2 - unit[:, None])
            rescale = tl.math.exp2(maximum - unit)
            maximum = raised
            total = total * rescale + tl.sum(weights, 1)
            if seed is not None:
                weights = tl.where(kept(bits, BLOCK_T, BLOCK_S, False), weights, 0.0)
            tile_v = load_rows(v, begin_v, first_key, num_keys, part != 1, D, BLOCK_S, BLOCK_D)
            acc = product(weights.to(tile_v.dtype), tile_v, acc * rescale[:, None], INTERPRETED)

    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    acc = acc * (keep_scale / total)[:, None]
    store_rows(out, rows_of(out, sequence, head, first_row), first_query, num_queries, acc, D, BLOCK_T, BLOCK_D)
    lse_tile = tl.where(blind, float("-inf"), (maximum + tl.math.log2(total)) * LN_2)
    pointers_lse = statistics_of(lse, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row + query
    tl.store(pointers_lse, lse_tile, mask=query < num_queries)
