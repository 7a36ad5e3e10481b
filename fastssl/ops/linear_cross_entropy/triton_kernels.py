"""The row kernel of `linear_cross_entropy` in Triton, and the product of a gradient with the factor that arrives.

One program sweeps one row twice. The first sweep reads it from memory and forms the log-sum-exp online (Milakov and
Gimelshein 2018, arXiv 1805.02867); the second finds it in the second-level cache and leaves its gradient in its place.

A block is GROUPS groups of GROUP neighbouring classes. A group is one load of 16 bytes of one thread, so that maxima
and sums over it cross no thread, and the running state is one number a group, not one a class.
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-1e38)
"""Where a running maximum begins: finite, so that a logit of -inf has a difference from it."""

_LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x log2 e). Triton's exp2 is one instruction; its exp takes four more to keep results below 1e-38."""

_NOWHERE = tl.constexpr(2**31 - 1)
"""Group of a maximum that no logit has reached."""


@triton.jit
def softmax_cross_entropy(
    logits,  # (rows, row_stride): becomes the gradient of <row_grads, losses>; untouched without gradient
    bias,  # (row_stride) float32, or None
    targets,  # (rows) int64
    row_grads,  # (rows) float32, or None for ones
    losses,  # (rows) float32
    lse,  # (rows) float32
    correct,  # (rows) bool: the target is the first largest logit
    row_stride,  # a multiple of 16 elements; what follows the last class may hold anything, and becomes 0 with gradient
    num_classes,
    ignore_index,  # or None
    label_smoothing,
    z_loss,
    softcap,  # or None
    SMOOTHED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Turn one row of logits into its loss, its log-sum-exp and, in place, its gradient."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    label = tl.load(targets + row)
    is_idle = False if ignore_index is None else label == ignore_index
    if is_idle:
        tl.store(losses + row, 0.0)
        tl.store(lse + row, 0.0)
        tl.store(correct + row, False)
        if WITH_GRADIENT:
            _clear(logits, row_stride, GROUPS, GROUP)
    else:
        # -1, for a label outside the vocabulary, makes the loss and the gradient NaN.
        target = tl.where((label >= 0) & (label < num_classes), label, -1).to(tl.int32)
        # Everything below is relative to the target's logit or to the largest one: large logits keep their digits.
        maximum, log_sum, target_logit, distance, is_first = _sweep(
            logits, bias, target, row_stride, num_classes, softcap, SMOOTHED, GROUPS, GROUP
        )
        log_sum_exp = maximum + log_sum
        loss = log_sum + (maximum - target_logit) + z_loss * log_sum_exp * log_sum_exp
        if SMOOTHED:
            loss -= label_smoothing * (distance / num_classes)
        tl.store(losses + row, loss)
        tl.store(lse + row, log_sum_exp)
        tl.store(correct + row, is_first & (loss == loss))
        if WITH_GRADIENT:
            grad = 1.0 if row_grads is None else tl.load(row_grads + row)
            grad = tl.where(target >= 0, grad, float("nan"))
            _form_gradient(
                logits,
                bias,
                target,
                row_stride,
                num_classes,
                softcap,
                maximum,
                log_sum,
                grad * (1.0 + 2.0 * z_loss * log_sum_exp),
                grad * label_smoothing / num_classes,
                grad * (1.0 - label_smoothing),
                GROUPS,
                GROUP,
            )


@triton.jit
def _sweep(
    logits,
    bias,
    target,
    row_stride,
    num_classes,
    softcap,
    SMOOTHED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Return the largest logit, log sum exp(logit - largest), the target's logit, the sum of all logits' distances
    from the latter, and whether the target is the first of the largest."""
    group = tl.arange(0, GROUPS)
    within = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    target_logit, leads_group = _target(logits, bias, target, num_classes, softcap, GROUP)
    maximum = tl.full([GROUPS], _LOWEST, tl.float32)
    total = tl.zeros([GROUPS], tl.float32)
    distance = tl.zeros([GROUPS], tl.float32)
    first = tl.full([GROUPS], _NOWHERE, tl.int32)
    num_whole = num_classes // (GROUPS * GROUP)
    for block in range(num_whole):
        logit = _logits(logits, bias, block * (GROUPS * GROUP) + within, None, softcap)
        if SMOOTHED:
            distance += tl.sum(logit - target_logit, axis=1)
        maximum, total, first = _include(logit, block * GROUPS + group, maximum, total, first)
    columns = num_whole * (GROUPS * GROUP) + within
    # The padding is read too, since its bound, unlike the vocabulary's, leaves loads of 16 bytes whole.
    logit = _logits(logits, bias, columns, columns < row_stride, softcap)
    if SMOOTHED:
        distance += tl.sum(tl.where(columns < num_classes, logit - target_logit, 0.0), axis=1)
    logit = tl.where(columns < num_classes, logit, -float("inf"))
    maximum, total, first = _include(logit, num_whole * GROUPS + group, maximum, total, first)
    largest = tl.max(maximum, axis=0)
    log_sum = tl.log(tl.sum(total * tl.exp2((maximum - largest) * _LOG2_E), axis=0))
    first_group = tl.min(tl.where(maximum == largest, first, _NOWHERE), axis=0)
    return largest, log_sum, target_logit, tl.sum(distance, axis=0), leads_group & (first_group == target // GROUP)


@triton.jit
def _target(logits, bias, target, num_classes, softcap, GROUP: tl.constexpr):
    """Return the target's logit, NaN for -1, and whether it is the first of the largest in its group.

    Read before the sweeps: in the second, other warps may already have written what this one has yet to read.
    """
    lane = tl.arange(0, GROUP)
    columns = tl.maximum(target, 0) // GROUP * GROUP + lane
    exists = columns < num_classes
    logit = tl.where(exists, _logits(logits, bias, columns, exists, softcap), -float("inf"))
    place = target % GROUP
    target_logit = tl.sum(tl.where(lane == place, logit, 0.0), axis=0)
    precedes = (logit > target_logit) | ((logit == target_logit) & (lane < place))
    is_first = tl.max(precedes.to(tl.int32), axis=0) == 0
    return tl.where(target >= 0, target_logit, float("nan")), is_first


@triton.jit
def _include(logit, group, maximum, total, first):
    """Take a block of logits into the running maximum, sum of exponentials and first group that has the maximum."""
    block_maximum = tl.max(logit, axis=1)
    first = tl.where(block_maximum > maximum, group, first)
    largest = tl.maximum(maximum, block_maximum)
    kept = total * tl.exp2((maximum - largest) * _LOG2_E)
    return largest, kept + tl.sum(tl.exp2((logit - largest[:, None]) * _LOG2_E), axis=1), first


@triton.jit
def _form_gradient(
    logits,
    bias,
    target,
    row_stride,
    num_classes,
    softcap,
    maximum,
    log_sum,
    probability_factor,
    uniform,
    target_share,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write probability_factor * softmax - uniform - target_share [j = target], times the slope of the softcap."""
    log2_sum = log_sum * _LOG2_E
    within = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    for begin in range(0, row_stride, GROUPS * GROUP):
        columns = begin + within
        logit = _logits(logits, bias, columns, columns < row_stride, softcap, FOR_THE_LAST_TIME=True)
        gradient = tl.exp2((logit - maximum) * _LOG2_E - log2_sum) * probability_factor - uniform
        if (target >= begin) & (target < begin + GROUPS * GROUP):
            gradient -= tl.where(columns == target, target_share, 0.0)
        if softcap is not None:
            ratio = logit / softcap
            gradient *= 1.0 - ratio * ratio
        # The products go over the padding too, with a weight of zeros: 0, whatever an infinite operand left there.
        gradient = tl.where(columns < num_classes, gradient, 0.0).to(logits.dtype.element_ty)
        tl.store(logits + columns, gradient, mask=columns < row_stride, eviction_policy="evict_first")


@triton.jit
def _logits(logits, bias, columns, mask, softcap, FOR_THE_LAST_TIME: tl.constexpr = False):
    """Load logits as the softmax sees them, float32: with bias and softcap.

    They leave the first-level cache to the bias, which every row reads again, and at last the second-level cache to
    the rows that have yet to be read again.
    """
    if FOR_THE_LAST_TIME:
        logit = tl.load(logits + columns, mask=mask, eviction_policy="evict_first").to(tl.float32)
    else:
        logit = tl.load(logits + columns, mask=mask, cache_modifier=".cg").to(tl.float32)
    if bias is not None:
        logit += tl.load(bias + columns, mask=mask)
    if softcap is not None:
        logit = softcap * _tanh(logit / softcap)
    return logit


@triton.jit
def _tanh(x):
    """A polynomial below 0.625, where 1 - 2 / (e^2x + 1) would lose digits (Cephes, Moshier 1989)."""
    square = x * x
    series = -5.70498872745e-3
    series = series * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    magnitude = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp2(magnitude * (2.0 * _LOG2_E)) + 1.0)
    return tl.where(magnitude < 0.625, series * square * x + x, tl.where(x < 0.0, -large, large))


@triton.jit
def _clear(row, row_stride, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    within = tl.arange(0, GROUPS * GROUP)
    for begin in range(0, row_stride, GROUPS * GROUP):
        columns = begin + within
        tl.store(row + columns, tl.zeros([GROUPS * GROUP], row.dtype.element_ty), mask=columns < row_stride)


@triton.jit
def scale(values, factor, length, BLOCK: tl.constexpr):
    """Multiply `values` by a number that only the device knows, in float32; by 1, it neither reads nor writes."""
    factor = tl.load(factor).to(tl.float32)
    if factor != 1.0:
        begin = tl.program_id(0).to(tl.int64) * BLOCK
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(begin, length, step):
            places = start + tl.arange(0, BLOCK)
            value = tl.load(values + places, mask=places < length).to(tl.float32)
            tl.store(values + places, (value * factor).to(values.dtype.element_ty), mask=places < length)
