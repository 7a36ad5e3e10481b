"""Attention backward in Triton where a sequence is short: all gradients of a head of a sequence by one program.

Scores are computed once, not once for dQ and once for dK and dV. The price is fewer programs, and sums of dQ that wait
in memory from one tile of keys to the next: of a head of 512 queries they are 128 KiB, which stay in the L2 cache.
"""

import triton
import triton.language as tl

from fastssl.ops.attention.triton_backward import COUNTS, load_lse
from fastssl.ops.attention.triton_tiles import (
    LOG2_E,
    dropout_bits,
    kept,
    load_bits,
    load_rows,
    locate,
    product,
    rows_of,
    sequence_rows,
    statistics_of,
    store_rows,
    words_of,
)
from fastssl.ops.triton_philox import philox_key


@triton.jit(do_not_specialize=[name for name in COUNTS if not name.startswith("window")])
def attention_grad_whole(
    q, k, v, cu_seqlens_q, cu_seqlens_k, seed, grad_out, lse, delta, kept_bits, sums, grad_q, grad_k, grad_v, length_q,
    length_k, num_rows, num_heads, heads_per_key, num_sequences, num_tiles, heads_together, scale, threshold,
    keep_scale, num_words, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute dV = (M * P)^T dO, dK = scale dS^T Q and dQ = scale dS K of one key head of one sequence, without a mask.

    `sums`, laid out like grad_q in fp32, holds the sums of dS K while tiles of keys follow. Scores are (keys, queries).
    """
    _, key_head, sequence = locate(num_tiles, num_heads // heads_per_key, num_sequences, heads_together, True)
    first_row, num_queries = sequence_rows(cu_seqlens_q, sequence, length_q)
    first_key_row, num_keys = sequence_rows(cu_seqlens_k, sequence, length_k)
    begin_k, begin_v = rows_of(k, sequence, key_head, first_key_row), rows_of(v, sequence, key_head, first_key_row)
    begin_grad_k = rows_of(grad_k, sequence, key_head, first_key_row)
    begin_grad_v = rows_of(grad_v, sequence, key_head, first_key_row)
    if seed is not None and kept_bits is None:
        key_0, key_1 = philox_key(seed)
    scale_log2 = scale * LOG2_E
    for first_key in range(0, num_keys, BLOCK_S):
        first_key = tl.multiple_of(first_key, BLOCK_S)
        tile_k = load_rows(k, begin_k, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
        tile_v = load_rows(v, begin_v, first_key, num_keys, True, D, BLOCK_S, BLOCK_D)
        exists = first_key + tl.arange(0, BLOCK_S)[:, None] < num_keys
        acc_k = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
        acc_v = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
        is_first, is_last = first_key == 0, first_key + BLOCK_S >= num_keys
        for member in range(heads_per_key):
            head = key_head * heads_per_key + member
            begin_q = rows_of(q, sequence, head, first_row)
            begin_grad_out = rows_of(grad_out, sequence, head, first_row)
            begin_grad_q = rows_of(grad_q, sequence, head, first_row)
            begin_sums = rows_of(sums, sequence, head, first_row)
            pointers_lse = statistics_of(lse, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
            pointers_delta = statistics_of(delta, cu_seqlens_q, sequence, head, num_heads, num_rows) + first_row
            begin_bits = words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row)
            for first_query in range(0, num_queries, BLOCK_T):
                first_query = tl.multiple_of(first_query, BLOCK_T)
                query = first_query + tl.arange(0, BLOCK_T)
                if kept_bits is not None:
                    bits = load_bits(begin_bits, first_query, first_key, num_queries, num_rows, BLOCK_T, BLOCK_S)
                elif seed is not None:
                    bits = dropout_bits(
                        first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T, BLOCK_S
                    )
                tile_q = load_rows(q, begin_q, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
                scores = product(tile_k, tl.trans(tile_q), None, INTERPRETED)
                weights = tl.math.exp2(scores * scale_log2 - load_lse(pointers_lse, query, num_queries)[None, :])
                weights = tl.where(exists, weights, 0.0)
                tile_grad_out = load_rows(grad_out, begin_grad_out, first_query, num_queries, True, D, BLOCK_T, BLOCK_D)
                grad = product(tile_v, tl.trans(tile_grad_out), None, INTERPRETED)
                dropped = weights
                if seed is not None:
                    keep = kept(bits, BLOCK_T, BLOCK_S, True, kept_bits is not None)
                    dropped = tl.where(keep, weights, 0.0)
                    grad = tl.where(keep, grad * keep_scale, 0.0)
                acc_v = product(dropped.to(tile_q.dtype), tile_grad_out, acc_v, INTERPRETED)
                delta_tile = tl.load(pointers_delta + query, mask=query < num_queries, other=0.0)
                grad = (weights * (grad - delta_tile[None, :])).to(tile_q.dtype)
                acc_k = product(grad, tile_q, acc_k, INTERPRETED)
                earlier = load_rows(
                    sums, begin_sums, first_query, tl.where(is_first, 0, num_queries), True, D, BLOCK_T, BLOCK_D
                )
                total = product(tl.trans(grad), tile_k, earlier, INTERPRETED)
                end = tl.where(is_last, 0, num_queries)
                store_rows(sums, begin_sums, first_query, end, total, D, BLOCK_T, BLOCK_D)
                end = tl.where(is_last, num_queries, 0)
                store_rows(grad_q, begin_grad_q, first_query, end, total * scale, D, BLOCK_T, BLOCK_D)
        store_rows(grad_k, begin_grad_k, first_key, num_keys, acc_k * scale, D, BLOCK_S, BLOCK_D)
        store_rows(grad_v, begin_grad_v, first_key, num_keys, acc_v * keep_scale, D, BLOCK_S, BLOCK_D)
        tl.debug_barrier()  # what other threads have stored of the sums is read by the next tile
