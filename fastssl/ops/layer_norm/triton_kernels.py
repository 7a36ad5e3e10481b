"""The Triton kernels of `layer_norm`: a row is read once in each direction and stays in registers between its passes.

Tiles are (ROWS, BLOCK): BLOCK is the power of two that holds a row, so columns beyond WIDTH are masked. Arithmetic is
float32, offsets of rows are 64-bit.
"""

import triton
import triton.language as tl

from fastssl.ops.triton_philox import keep_mask, philox_key, philox_words


@triton.jit
def _rows_of(tile, ROWS: tl.constexpr):
    """Return the 64-bit indices of the rows of a tile."""
    return tile * tl.full((ROWS,), ROWS, tl.int64) + tl.arange(0, ROWS)


@triton.jit
def _load_rows(ptr, row, valid, WIDTH: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, POLICY: tl.constexpr):
    """Return the rows that `row` counts as a float32 tile (ROWS, BLOCK), 0 outside.

    A thread gets VECTOR neighbouring columns, whatever the dtype, so that tiles of several dtypes meet without a way
    through shared memory. Eight of float32 are two loads of 16 bytes.
    """
    ptr += row[:, None] * WIDTH
    valid = valid[:, None]
    if VECTOR == 8 and ptr.dtype.element_ty == tl.float32:
        column = _spread(BLOCK // 2, 4, 8)[None, :]
        low = tl.load(ptr + column, mask=valid & (column < WIDTH), other=0.0, eviction_policy=POLICY)
        high = tl.load(ptr + (column + 4), mask=valid & (column + 4 < WIDTH), other=0.0, eviction_policy=POLICY)
        shape: tl.constexpr = (row.shape[0], BLOCK // 8, 4)
        tile = tl.permute(tl.join(low.reshape(shape), high.reshape(shape)), (0, 1, 3, 2)).reshape(row.shape[0], BLOCK)
    else:
        column = _spread(BLOCK, VECTOR, VECTOR)[None, :]
        tile = tl.load(ptr + column, mask=valid & (column < WIDTH), other=0.0, eviction_policy=POLICY)
    return tile.to(tl.float32)


@triton.jit
def _store_rows(ptr, row, valid, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Store a tile (ROWS, BLOCK) in the dtype of its tensor: the counterpart of `_load_rows`."""
    ptr += row[:, None] * WIDTH
    valid = valid[:, None]
    tile = tile.to(ptr.dtype.element_ty)
    if VECTOR == 8 and ptr.dtype.element_ty == tl.float32:
        column = _spread(BLOCK // 2, 4, 8)[None, :]
        low, high = tl.split(tl.permute(tile.reshape(row.shape[0], BLOCK // 8, 2, 4), (0, 1, 3, 2)))
        tl.store(ptr + column, low.reshape(row.shape[0], BLOCK // 2), mask=valid & (column < WIDTH))
        tl.store(ptr + (column + 4), high.reshape(row.shape[0], BLOCK // 2), mask=valid & (column + 4 < WIDTH))
    else:
        column = _spread(BLOCK, VECTOR, VECTOR)[None, :]
        tl.store(ptr + column, tile, mask=valid & (column < WIDTH))


@triton.jit
def _spread(COUNT: tl.constexpr, RUN: tl.constexpr, STRIDE: tl.constexpr):
    """Return COUNT columns in runs of RUN neighbours that begin STRIDE apart.

    Where a run follows the other this is `tl.arange`, in words from which the compiler reads that a thread should have
    one run, and not as many elements of a small dtype as make 16 bytes.
    """
    place = tl.arange(0, COUNT)
    return place // RUN * STRIDE + place % RUN


@triton.jit
def _kept(row, key_0, key_1, threshold, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Return the dropout mask of a tile whose threads hold VECTOR neighbouring columns."""
    low, high = row.to(tl.uint32)[:, None], (row >> 32).to(tl.uint32)[:, None]
    zero = tl.full((1, 1), 0, tl.uint32)
    if VECTOR == 8:
        group = tl.arange(0, BLOCK // 8)[None, :].to(tl.uint32)
        keep = keep_mask(group, low, high, zero, key_0, key_1, threshold)
    else:
        # Two threads share a group of eight. Each draws all of it and takes its half: that costs less than handing
        # lanes over, and a float32 element is twice the bytes to wait for.
        half = tl.arange(0, BLOCK // 4)[None, :].to(tl.uint32)
        w0, w1, w2, w3 = philox_words(half >> 1, low, high, zero, key_0, key_1)
        first = (half & 1) == 0
        words = tl.join(tl.where(first, w0, w2), tl.where(first, w1, w3))
        keep = tl.join((words & 0xFFFF) >= threshold, words >= (threshold << 16)).reshape(row.shape[0], BLOCK)
    return keep


@triton.jit(do_not_specialize=["num_rows", "threshold"])
def forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    seed_ptr,
    y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    eps,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """y = LN(sum) with sum = residual + dropout(x), and the statistics of ROWS rows a program.

    Not given (None): `residual_ptr`, `bias_ptr`, `seed_ptr` without dropout, `sum_ptr` where the sum is x itself or not
    asked for.
    """
    row = _rows_of(tl.program_id(0), ROWS)
    valid = row < num_rows
    # Activations come once, parameters again and again: the first level of cache keeps the latter.
    total = _load_rows(x_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
    if residual_ptr is not None:
        residual = _load_rows(residual_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
    if seed_ptr is not None:
        key_0, key_1 = philox_key(seed_ptr)
        total = tl.where(_kept(row, key_0, key_1, threshold, BLOCK, VECTOR), total * scale, 0.0)
    # The statistics are those of the sum as it is stored, which is what a backward sees, be it stored or not.
    if residual_ptr is not None:
        total = (total + residual).to(residual_ptr.dtype.element_ty).to(tl.float32)
    elif seed_ptr is not None:
        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)
    if sum_ptr is not None:
        _store_rows(sum_ptr, row, valid, total, WIDTH, BLOCK, VECTOR)

    mean = tl.div_rn(tl.sum(total, axis=1), 1.0 * WIDTH)
    centred = tl.where((tl.arange(0, BLOCK) < WIDTH)[None, :], total - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.div_rn(tl.sum(centred * centred, axis=1), 1.0 * WIDTH) + eps)
    first, always = tl.arange(0, 1), tl.full((1,), True, tl.int1)
    y = centred * rstd[:, None] * _load_rows(weight_ptr, first, always, WIDTH, BLOCK, VECTOR, "evict_last")
    if bias_ptr is not None:
        y += _load_rows(bias_ptr, first, always, WIDTH, BLOCK, VECTOR, "evict_last")
    _store_rows(y_ptr, row, valid, y, WIDTH, BLOCK, VECTOR)
    tl.store(mean_ptr + row, mean, mask=valid)
    tl.store(rstd_ptr + row, rstd, mask=valid)


@triton.jit(do_not_specialize=["num_rows", "threshold"])
def backward_kernel(
    grad_y_ptr,
    grad_sum_ptr,
    sum_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    seed_ptr,
    grad_x_ptr,
    grad_residual_ptr,
    partials_ptr,
    num_rows,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_GROUPS: tl.constexpr,
    VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of x and residual, and one partial sum (2, programs, WIDTH) of those of weight and bias a program.

    Programs stay: each walks over the tiles that begin at its index, the next tiles on their way meanwhile (STAGES).
    Not given (None): `grad_y_ptr` where nothing arrives through y, `grad_sum_ptr` where nothing does through the sum,
    `seed_ptr` without dropout, `grad_residual_ptr` where it is not wanted apart, `partials_ptr` where
    `parameter_kernel` makes the sums.
    """
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    # Threads that hold the same columns of different rows have their own copy of the weight, and sums of their own
    # until the end: (ROW_GROUPS, BLOCK).
    group, all_groups = tl.arange(0, ROW_GROUPS), tl.full((ROW_GROUPS,), True, tl.int1)
    weight = _load_rows(weight_ptr, group * 0, all_groups, WIDTH, BLOCK, VECTOR, "evict_last")
    weight = tl.broadcast_to(weight[None, :, :], (ROWS // ROW_GROUPS, ROW_GROUPS, BLOCK)).reshape(ROWS, BLOCK)
    if partials_ptr is not None:
        grad_weight = tl.zeros((ROW_GROUPS, BLOCK), tl.float32)
        grad_bias = tl.zeros((ROW_GROUPS, BLOCK), tl.float32)
    if seed_ptr is not None:
        key_0, key_1 = philox_key(seed_ptr)
    for tile in tl.range(program, tl.cdiv(num_rows, ROWS), num_programs, num_stages=STAGES):
        row = _rows_of(tile, ROWS)
        valid = row < num_rows
        if grad_y_ptr is not None:
            # Outside, grad_y is 0, and so is whatever it is multiplied with.
            grad_y = _load_rows(grad_y_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
            total = _load_rows(sum_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
            mean = tl.load(mean_ptr + row, mask=valid, other=0.0)[:, None]
            rstd = tl.load(rstd_ptr + row, mask=valid, other=0.0)[:, None]
            normalised = (total - mean) * rstd
            product = grad_y * normalised
            if partials_ptr is not None:
                grad_weight += tl.sum(product.reshape(ROWS // ROW_GROUPS, ROW_GROUPS, BLOCK), axis=0)
                grad_bias += tl.sum(grad_y.reshape(ROWS // ROW_GROUPS, ROW_GROUPS, BLOCK), axis=0)
            # Both sums of a row in one reduction, which halves its barriers.
            sum_g, sum_gn = tl.split(tl.sum(tl.join(grad_y * weight, product * weight), axis=1))
            grad = (grad_y * weight - sum_g[:, None] / WIDTH - normalised * (sum_gn[:, None] / WIDTH)) * rstd
            if grad_sum_ptr is not None:
                grad += _load_rows(grad_sum_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
        else:
            grad = _load_rows(grad_sum_ptr, row, valid, WIDTH, BLOCK, VECTOR, "evict_first")
        if grad_residual_ptr is not None:
            _store_rows(grad_residual_ptr, row, valid, grad, WIDTH, BLOCK, VECTOR)
        if seed_ptr is not None:
            grad = tl.where(_kept(row, key_0, key_1, threshold, BLOCK, VECTOR), grad * scale, 0.0)
        _store_rows(grad_x_ptr, row, valid, grad, WIDTH, BLOCK, VECTOR)
    if partials_ptr is not None:
        at, always = program + tl.arange(0, 1), tl.full((1,), True, tl.int1)
        _store_rows(partials_ptr, at, always, tl.sum(grad_weight, axis=0)[None, :], WIDTH, BLOCK, VECTOR)
        at += num_programs
        _store_rows(partials_ptr, at, always, tl.sum(grad_bias, axis=0)[None, :], WIDTH, BLOCK, VECTOR)


@triton.jit(do_not_specialize=["num_rows"])
def parameter_kernel(
    grad_y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    partials_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Partial sums (2, programs of dimension 1, WIDTH) of rows too wide for `backward_kernel` to keep theirs.

    A program has COLUMNS columns and every so-manieth tile of rows; it reads grad_y and the sum a second time.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    grad_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    grad_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(tl.program_id(1), tl.cdiv(num_rows, ROWS), tl.num_programs(1), num_stages=STAGES):
        row = _rows_of(tile, ROWS)
        valid = row < num_rows
        inside = valid[:, None] & (column < WIDTH)
        at = row[:, None] * WIDTH + column
        grad_y = tl.load(grad_y_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        total = tl.load(sum_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=valid, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=valid, other=0.0)[:, None]
        grad_weight += grad_y * ((total - mean) * rstd)
        grad_bias += grad_y
    at = tl.program_id(1) * WIDTH + column
    tl.store(partials_ptr + at, tl.sum(grad_weight, axis=0)[None, :], mask=column < WIDTH)
    at += tl.num_programs(1) * WIDTH
    tl.store(partials_ptr + at, tl.sum(grad_bias, axis=0)[None, :], mask=column < WIDTH)


@triton.jit(do_not_specialize=["num_partials"])
def sum_partials_kernel(
    partials_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    num_partials,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradients of weight (dimension 1 of the grid: 0) and bias (1) from their partials, in a fixed order.

    Each is rounded once, to the dtype of its parameter.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    partials_ptr += tl.program_id(1) * num_partials * WIDTH
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(0, num_partials, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(partials_ptr + row * WIDTH + column, mask=(row < num_partials) & (column < WIDTH), other=0.0)
    gradient = tl.sum(total, axis=0)[None, :]
    if tl.program_id(1) == 0:
        tl.store(grad_weight_ptr + column, gradient.to(grad_weight_ptr.dtype.element_ty), mask=column < WIDTH)
    else:
        tl.store(grad_bias_ptr + column, gradient.to(grad_bias_ptr.dtype.element_ty), mask=column < WIDTH)
