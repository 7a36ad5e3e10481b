"""What the Triton kernels of attention share: who computes which tile, what a tile sees, rows in, scores.

Tensors of rows (q, k, v, out, their gradients, bias) come as named tuples of `triton_backend`: a pointer and its
strides (batch, row, head), columns contiguous. T counts queries, S keys, D columns of a head.
"""

import torch
import triton
import triton.language as tl

from fastssl.ops.triton_philox import GROUP, philox_words

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
HAS_CARRIES = tl.constexpr(torch.version.hip is None)
"""Whether PTX's addition with carry can be written."""


@triton.jit
def locate(num_tiles, num_heads, num_sequences, heads_together, DESCENDING: tl.constexpr):
    """Return (tile, head, sequence) of this program.

    Programs start in the order of their number. Of as many heads as fit in the L2 cache together, first all first
    tiles start (or all last ones), then all next ones: where tiles differ in work, the longest come first.
    """
    num_columns = num_heads * num_sequences
    program = tl.program_id(0)
    first_column = program // (num_tiles * heads_together) * heads_together
    place = program - first_column * num_tiles
    together = tl.minimum(heads_together, num_columns - first_column)
    tile = place // together
    column = first_column + place % together
    if DESCENDING:
        tile = num_tiles - 1 - tile
    return tile, column % num_heads, column // num_heads


@triton.jit
def sequence_rows(cu_seqlens, sequence, length):
    """Return the first row of a sequence and its number of rows; dense sequences start at row 0 of their own."""
    begin = 0
    if cu_seqlens is not None:
        begin = tl.load(cu_seqlens + sequence)
        length = tl.load(cu_seqlens + sequence + 1) - begin
    return begin, length


@triton.jit
def statistics_of(pointer, cu_seqlens, sequence, head, num_heads, num_rows):
    """Return where lse (or delta) of a head begins: (H, N) for packed, (B, H, T) for dense sequences."""
    row = head.to(tl.int64)
    if cu_seqlens is None:
        row += sequence.to(tl.int64) * num_heads
    return pointer + row * num_rows


@triton.jit
def rows_of(rows, sequence, head, first_row):
    """Return where the rows of a head of a sequence begin; 64 bits, since a tensor may pass 2^31 elements."""
    return (
        rows.data
        + tl.cast(sequence, tl.int64) * rows.batch
        + tl.cast(head, tl.int64) * rows.head
        + tl.cast(first_row, tl.int64) * rows.row
    )


@triton.jit
def _pointers(rows, begin, first, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return pointers (BLOCK, BLOCK_D) to the rows from `first` on; within a tile 32 bits do, and save registers."""
    offsets = tl.arange(0, BLOCK)[:, None] * rows.row + tl.arange(0, BLOCK_D)[None, :]
    return begin + tl.cast(first, tl.int64) * rows.row + offsets


@triton.jit
def load_rows(
    rows, begin, first, length, MASKED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Load the tile of rows from `first` on; columns from D on, and with MASKED rows from `length` on, are 0."""
    pointers = _pointers(rows, begin, first, BLOCK, BLOCK_D)
    row = first + tl.arange(0, BLOCK)[:, None] < length
    column = tl.arange(0, BLOCK_D)[None, :] < D
    if MASKED and BLOCK_D != D:
        tile = tl.load(pointers, mask=row & column, other=0.0)
    elif MASKED:
        tile = tl.load(pointers, mask=row, other=0.0)
    elif BLOCK_D != D:
        tile = tl.load(pointers, mask=column, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_rows(
    rows, begin, first, length, values, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Store a tile from row `first` on, but for rows from `length` and columns from D on, in the memory's dtype."""
    mask = first + tl.arange(0, BLOCK)[:, None] < length
    if BLOCK_D != D:
        mask = mask & (tl.arange(0, BLOCK_D)[None, :] < D)
    pointers = _pointers(rows, begin, first, BLOCK, BLOCK_D)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, acc, INTERPRETED: tl.constexpr):
    """Return acc + a @ b in fp32, acc None being 0; fp32 operands are multiplied as such, not rounded to TF32."""
    if INTERPRETED:  # it multiplies 16-bit floats as if they were integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def visible_parts(first, last, shift, left, right, length, BLOCK: tl.constexpr):
    """Return the four bounds of the three parts of what the positions `first` to `last` see.

    A position p sees the indices p + shift - left to p + shift + right below `length`. In the middle part every
    position sees every index of whole tiles, so that nothing needs a mask. All bounds but the last, and those of parts
    that are empty, are multiples of BLOCK.
    """
    begin = tl.full((), 0, tl.int32)
    whole_begin = begin
    end = length
    whole_end = length // BLOCK * BLOCK
    if left is not None:
        begin = tl.maximum(first + shift - left, 0) // BLOCK * BLOCK
        whole_begin = tl.cdiv(tl.maximum(last + shift - left, 0), BLOCK) * BLOCK
    if right is not None:
        end = tl.maximum(tl.minimum(length, last + shift + right + 1), 0)
        whole_end = tl.maximum(tl.minimum(length, first + shift + right + 1), 0) // BLOCK * BLOCK
    whole_begin = tl.minimum(whole_begin, end)
    return begin, whole_begin, tl.maximum(whole_begin, whole_end), end


@triton.jit
def tile_indices(BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BY_KEYS: tl.constexpr):
    """Return the indices of queries and keys within a tile of scores, (queries, keys) or BY_KEYS (keys, queries)."""
    query = tl.expand_dims(tl.arange(0, BLOCK_T), 0 if BY_KEYS else 1)
    key = tl.expand_dims(tl.arange(0, BLOCK_S), 1 if BY_KEYS else 0)
    return query, key


@triton.jit
def is_visible(
    first_query, first_key, num_keys, shift, left, right, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    BY_KEYS: tl.constexpr,
):  # fmt: skip
    """Return which keys of a tile exist and lie in the windows of which queries."""
    query, key = tile_indices(BLOCK_T, BLOCK_S, BY_KEYS)
    visible = first_key + key < num_keys
    position = first_query + query + (shift - first_key)
    if left is not None:
        visible = visible & (key >= position - left)
    if right is not None:
        visible = visible & (key <= position + right)
    return visible


@triton.jit
def scores_of(
    tile_q, tile_k, first_query, first_key, num_queries, num_keys, shift, bias, begin_bias, slope, inverse_scale,
    ALL_QUERIES: tl.constexpr, ALL_KEYS: tl.constexpr, BY_KEYS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return the scores of a tile over the scale, Q K^T + (bias - slope |distance|) / scale.

    ALL_QUERIES and ALL_KEYS tell that all of the tile's exist. The product starts from the bias: added afterwards, it
    would pull the softmax into the layout in which it was loaded.
    """
    query, key = tile_indices(tile_q.shape[0], tile_k.shape[0], BY_KEYS)
    first, second = (tile_k, tile_q) if BY_KEYS else (tile_q, tile_k)
    if bias is None:
        scores = product(first, tl.trans(second), None, INTERPRETED)
    else:
        pointers = begin_bias + tl.cast(first_query, tl.int64) * bias.row + first_key + (query * bias.row + key)
        if ALL_QUERIES:
            addition = tl.load(pointers, mask=first_key + key < num_keys, other=0.0)
        elif ALL_KEYS:
            addition = tl.load(pointers, mask=first_query + query < num_queries, other=0.0)
        else:
            exists = (first_query + query < num_queries) & (first_key + key < num_keys)
            addition = tl.load(pointers, mask=exists, other=0.0)
        scores = product(first, tl.trans(second), _scaled_bias(addition.to(tl.float32), inverse_scale), INTERPRETED)
    if slope is not None:
        scores -= slope * tl.abs(key - query - (first_query + shift - first_key)).to(tl.float32)
    return scores


@triton.jit
def _scaled_bias(bias, inverse_scale):
    """Return bias / scale, of which a finite number stays finite, also once it is in units of powers of two."""
    highest = 3.4e38 * tl.minimum(inverse_scale * LN_2, 1.0)
    scaled = bias * inverse_scale
    every: tl.constexpr = tl.PropagateNan.ALL
    bounded = tl.minimum(tl.maximum(scaled, -highest, propagate_nan=every), highest, propagate_nan=every)
    return tl.where(tl.abs(bias) == float("inf"), scaled, bounded)


@triton.jit
def at_most_one(weights, bias):
    """Return the weights of the backward beside a bias, whose numbers may be so large that lse is known badly."""
    if bias is not None:
        weights = tl.minimum(weights, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return weights


@triton.jit
def bias_of(bias, sequence, head):
    """Return where the bias of a head begins, or 0 where there is none."""
    return 0 if bias is None else rows_of(bias, sequence, head, 0)


@triton.jit  # noqa: RET503, since Triton 3.6 cannot return a None that is written
def slope_of(alibi_slopes, head, inverse_scale):
    """Return the slope of a head over the scale, or None."""
    if alibi_slopes is not None:
        return tl.load(alibi_slopes + head) * inverse_scale


@triton.jit
def dropout_bits(
    first_query, first_key, head, sequence, key_0, key_1, threshold, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Return dropout's decisions about a tile as words of 32 keys, (queries, words).

    They travel as bits, since a boolean tile would change its layout element by element.

    Args:
        first_query, first_key: of the tile; the latter is a multiple of 8.
        head, sequence: numbers of both.
        key_0, key_1, threshold: of the generator.
        BLOCK_T, BLOCK_S: queries and keys of the tile; the latter is a multiple of 32.
    """
    group = ((first_key + tl.arange(0, BLOCK_S // 32) * 32) // GROUP).to(tl.uint32)[None, :]
    row = (first_query + tl.arange(0, BLOCK_T)).to(tl.uint32)[:, None]
    # Nothing is added, but the compiler does not know it: it would compute the keys of all rounds before the loop over
    # the tiles, and hold 20 registers for them.
    nothing = (first_query | first_key) >> 31
    key_0 += nothing.to(tl.uint32)
    key_1 += nothing.to(tl.uint32)
    limit = threshold.to(tl.uint32) << 16
    bits = tl.zeros_like(group + row)
    for byte in tl.static_range(3, -1, -1):
        words = philox_words(group + byte, row, head.to(tl.uint32), sequence.to(tl.uint32), key_0, key_1)
        for word in tl.static_range(3, -1, -1):
            bits = _with_bit(bits, words[word], limit, INTERPRETED)
            bits = _with_bit(bits, words[word] << 16, limit, INTERPRETED)
    return bits


@triton.jit
def _with_bit(bits, number, limit, INTERPRETED: tl.constexpr):
    """Return bits shifted by one place, the lowest now telling whether a number is at least the limit, above 0."""
    if INTERPRETED or not HAS_CARRIES:
        bits = (bits << 1) | (number >= limit).to(tl.uint32)
    else:  # adding what the limit lacks to 2^32 carries just then, and a carry goes into a sum for nothing
        bits = tl.inline_asm_elementwise(
            "{ .reg .u32 sum; add.cc.u32 sum, $2, $3; addc.u32 $0, $1, $1; }", "=r,r,r,r",
            [bits, number, tl.zeros_like(limit) - limit], dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip
    return bits


@triton.jit
def words_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, num_rows, num_words, first_row):
    """Return where the kept words of a head of a sequence begin, (num_words, rows), or 0 where there are none."""
    begin = 0
    if kept_bits is not None:
        rows = tl.cast(num_rows, tl.int64) * num_words
        begin = statistics_of(kept_bits, cu_seqlens_q, sequence, head, num_heads, rows) + first_row
    return begin


@triton.jit
def store_bits(begin, bits, first_query, first_key, num_queries, num_rows, BLOCK_S: tl.constexpr):
    """Keep the words (queries, words) of a tile for the backward; there is memory for those of whole tiles of keys."""
    query, word = tl.arange(0, bits.shape[0])[:, None], tl.arange(0, BLOCK_S // 32)[None, :]
    begin += tl.cast(first_key // 32, tl.int64) * num_rows + first_query
    mask = query < num_queries - first_query
    tl.store(begin + (word * num_rows + query), bits.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def load_bits(
    begin, first_query, first_key, num_queries, num_rows, ALL_QUERIES: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Return the words of a tile as the forward kept them: a tuple of words of 32 keys, each (queries).

    A query that does not exist gets the words of the last one, which takes fewer registers than a mask. Where no query
    of a tile of the forward sees some keys, their words are whatever lay in memory. Either way the weights are 0.
    """
    query = tl.arange(0, BLOCK_T)
    if not ALL_QUERIES:
        query = tl.minimum(query, num_queries - first_query - 1)
    begin += tl.cast(first_key // 32, tl.int64) * num_rows + first_query
    words = ()
    for number in tl.static_range(BLOCK_S // 32):
        word = tl.load(begin + number * num_rows + query)
        words += (word.to(tl.uint32, bitcast=True),)
    return words


@triton.jit
def kept(bits, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BY_KEYS: tl.constexpr, LOADED: tl.constexpr = False):
    """Return which weights, (queries, keys) or BY_KEYS (keys, queries), dropout keeps.

    `bits` are those of `dropout_bits`, or LOADED those of `load_bits`.
    """
    number = tl.arange(0, BLOCK_S // 32)
    _, key = tile_indices(BLOCK_T, BLOCK_S, BY_KEYS)
    bit = tl.full((1, 1), 1, tl.uint32) << (key % 32).to(tl.uint32)
    found = bit * 0
    for word in tl.static_range(BLOCK_S // 32):
        if LOADED:
            column = bits[word]
        else:
            # A sum changes the layout of a column, and no pass of Triton's draws the generator's work after it.
            column = tl.sum(tl.where(number[None, :] == word, bits, 0), 1)
        column = tl.expand_dims(column, 0 if BY_KEYS else 1)
        # One instruction for and-or: a key's bit stands in the mask of its own word alone, which no loop changes.
        found = found | (column & tl.where(key // 32 == word, bit, 0))
    return found != 0
