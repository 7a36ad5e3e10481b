"""The Triton kernels of `bias_gelu`: each tensor passes through the registers once in each direction.

Tiles are (ROWS, COLUMNS); what lies beyond WIDTH or the last row is masked. Arithmetic is float32, offsets of rows are
64-bit. Both variants are written by their tail h(u) = 1 - Phi(u), u = |t|, of which the rest follows without
cancellation: y = max(t, 0) - u h, and the slope is h - u p for t < 0, 1 - (h - u p) for t > 0, with p = -dh/du.
"""

import triton
import triton.language as tl

_FAR = tl.constexpr(15.0)
"""From here on the tail is 0 in float32."""
_LOG2_DENSITY_AT_0 = tl.constexpr(-1.3257480647361593)
"""log2(1 / sqrt(2 pi))."""
_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_TWICE_SLOPE = tl.constexpr(1.5957691216057308)
"""2 sqrt(2 / pi)."""
_CUBIC = tl.constexpr(0.044715)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tail(u):
    """Return 1 - Phi(u) for 0 <= u <= _FAR, within 7e-8.

    Its logarithm is nearly a parabola, so that few terms do: this polynomial is minimax in the error of the tail.
    """
    log2_tail = u * -3.0271594120279133e-09 + 1.5824609533865441e-07
    log2_tail = u * log2_tail - 3.231039727324969e-06
    log2_tail = u * log2_tail + 3.183522858307697e-05
    log2_tail = u * log2_tail - 0.00013348905486054718
    log2_tail = u * log2_tail - 0.00027849822072312236
    log2_tail = u * log2_tail + 0.007250115741044283
    log2_tail = u * log2_tail - 0.05261823162436485
    log2_tail = u * log2_tail - 0.4591728150844574
    log2_tail = u * log2_tail - 1.1511085033416748
    return tl.exp2(u * log2_tail - 1.0)


@triton.jit
def _tanh_tail(u):
    """Return (1 - tanh(z)) / 2 = 1 / (1 + exp(2 z)) with z = sqrt(2 / pi) (u + 0.044715 u^3)."""
    factor = u * u * (_TWICE_SLOPE * _CUBIC * _LOG2_E) + _TWICE_SLOPE * _LOG2_E
    return 1.0 / (1.0 + tl.exp2(u * factor))


@triton.jit
def _distance(t):
    """Return |t|, at most _FAR; NaN stays."""
    return tl.minimum(tl.abs(t), _FAR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gelu(t, TANH: tl.constexpr):
    u = _distance(t)
    tail = _tanh_tail(u) if TANH else _tail(u)
    return tl.maximum(t, 0.0) - u * tail


@triton.jit
def _slope(t, TANH: tl.constexpr):
    u = _distance(t)
    if TANH:
        tail = _tanh_tail(u)
        density = (tail - tail * tail) * (u * u * (3.0 * _CUBIC * _TWICE_SLOPE) + _TWICE_SLOPE)
    else:
        tail = _tail(u)
        density = tl.exp2(u * u * -_HALF_LOG2_E + _LOG2_DENSITY_AT_0)
    below = tail - u * density
    return tl.where(t < 0, below, 1.0 - below)


@triton.jit
def _load_bias(
    ptr,
    first,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_GROUPS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Return the bias of COLUMNS columns from `first` on as a float32 tile of equal rows, 0 outside.

    Each of the ROW_GROUPS threads that hold the same columns loads them, VECTOR neighbours whatever the dtype: so the
    bias meets the tiles without a way through shared memory. Eight of float32 are two loads of 16 bytes.
    """
    group = tl.arange(0, ROW_GROUPS)[:, None, None] * 0 + tl.arange(0, COLUMNS // VECTOR)[None, :, None]
    group = group * VECTOR + first
    if VECTOR == 8 and ptr.dtype.element_ty == tl.float32:
        column = group + tl.arange(0, 4)[None, None, :]
        low = tl.load(ptr + column, mask=column < WIDTH, other=0.0, eviction_policy="evict_last")
        high = tl.load(ptr + (column + 4), mask=column + 4 < WIDTH, other=0.0, eviction_policy="evict_last")
        bias = tl.permute(tl.join(low, high), (0, 1, 3, 2))
    else:
        column = group + tl.arange(0, VECTOR)[None, None, :]
        bias = tl.load(ptr + column, mask=column < WIDTH, other=0.0, eviction_policy="evict_last")
    bias = bias.to(tl.float32).reshape(1, ROW_GROUPS, COLUMNS)
    return tl.broadcast_to(bias, (ROWS // ROW_GROUPS, ROW_GROUPS, COLUMNS)).reshape(ROWS, COLUMNS)


@triton.jit
def _place(tile, first, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the 64-bit offsets of a tile and whether they are inside."""
    row = tile * tl.full((ROWS,), ROWS, tl.int64) + tl.arange(0, ROWS)
    column = first + tl.arange(0, COLUMNS)[None, :]
    return row[:, None] * WIDTH + column, (row < num_rows)[:, None] & (column < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_GROUPS: tl.constexpr,
    VECTOR: tl.constexpr,
    TANH: tl.constexpr,
):
    """y = GELU(x + bias), a tile a program; programs that follow each other stand side by side in a row."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    first = tl.program_id(0) % blocks * COLUMNS
    at, inside = _place(tl.program_id(0) // blocks, first, num_rows, WIDTH, ROWS, COLUMNS)
    x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = _gelu(x + _load_bias(bias_ptr, first, WIDTH, COLUMNS, ROWS, ROW_GROUPS, VECTOR), TANH)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    grad_y_ptr,
    x_ptr,
    bias_ptr,
    grad_x_ptr,
    partials_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_GROUPS: tl.constexpr,
    VECTOR: tl.constexpr,
    TANH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of x, and partial sums (programs of dimension 1, WIDTH) of it over rows.

    Programs stay: each walks over the tiles of its columns that begin at its index in dimension 1, the next tiles on
    their way meanwhile (STAGES).
    """
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * COLUMNS
    bias = _load_bias(bias_ptr, first, WIDTH, COLUMNS, ROWS, ROW_GROUPS, VECTOR)
    # Threads that hold the same columns of different rows have sums of their own until the end: (ROW_GROUPS, COLUMNS).
    total = tl.zeros((ROW_GROUPS, COLUMNS), tl.float32)
    for tile in tl.range(part, tl.cdiv(num_rows, ROWS), num_parts, num_stages=STAGES):
        at, inside = _place(tile, first, num_rows, WIDTH, ROWS, COLUMNS)
        # Outside, grad_y is 0, and so is the gradient.
        grad_y = tl.load(grad_y_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        grad_x = grad_y * _slope(x + bias, TANH)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        total += tl.sum(grad_x.reshape(ROWS // ROW_GROUPS, ROW_GROUPS, COLUMNS), axis=0)
    column = first + tl.arange(0, COLUMNS)
    at = part.to(tl.int64) * WIDTH + column
    tl.store(partials_ptr + at, tl.sum(total, axis=0), mask=column < WIDTH)


@triton.jit(do_not_specialize=["num_partials"])
def sum_partials_kernel(
    partials_ptr,
    grad_bias_ptr,
    num_partials,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of the bias from its partials, in a fixed order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(0, num_partials, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(partials_ptr + row * WIDTH + column, mask=(row < num_partials) & (column < WIDTH), other=0.0)
    tl.store(grad_bias_ptr + column, tl.sum(total, axis=0)[None, :], mask=column < WIDTH)
