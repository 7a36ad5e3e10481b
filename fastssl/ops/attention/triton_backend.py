"""`attention` by Triton kernels: the whole semantics in both directions, memory linear in the lengths."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.ops.attention import triton_tuning as tuning
from fastssl.ops.attention.projection import of_one_projection
from fastssl.ops.backend import Supports
from fastssl.ops.philox import dropout_scale, dropout_threshold
from fastssl.ops.tile_search import Trial, tile_for
from fastssl.ops.triton_launch import launch

WIDEST_HEAD = 256
_WRITTEN = {
    "attention_forward": ("out", "lse"),
    "attention_grad_q": ("grad_q", "delta", "lse_log2"),
    "attention_grad_kv": ("grad_q", "grad_k", "grad_v"),
}
"""Kernel -> its outputs, but for dropout's decisions: what a search for tiles compares."""
SUPPORTS = Supports(
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_triton=True,
    unverified_on=("cpu",),
    first_on=("cuda",),
    refuses={f"its tiles hold heads of width {WIDEST_HEAD} at most": lambda width, **_: width > WIDEST_HEAD},
)


def forward(q, k, v, *others) -> tuple[Tensor, Tensor]:
    """Return the output, shaped like q, and lse, (H, N) for packed and (B, H, T) for dense input; no graph.

    Arguments are those of the native backend. Where packed lengths lie on a GPU and their bounds are not given, the
    longest is read from there, which waits for the device.
    """
    out, lse, _ = (_forward_op if torch.compiler.is_compiling() else _forward)(q, k, v, *others, 0)
    return out, lse


def forward_saving(
    q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return also dropout's decisions for the backward, (H, W, N) or (B, H, W, T) int32: words of 32 keys, 1 for kept.

    W is 0, so that the backward draws them again, where all would take more memory than q, and where a compiled graph
    would have to read the longest length.
    """
    *others, longest_q, longest_k = numbers
    compiling = torch.compiler.is_compiling()
    if not compiling:
        longest_q, longest_k = _longest_of_both(q, k, bias, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k)
    elif q.dim() == 4:
        longest_k = k.shape[1]
    num_words = 0
    if seed is not None and longest_k is not None:
        num_words = tuning.words_to_keep(longest_k, q.shape[-1], q.element_size())
    tensors = (bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed)
    return (_forward_op if compiling else _forward)(q, k, v, *tensors, *others, longest_q, longest_k, num_words)


def backward(grad_out, grad_lse, q, k, v, *others) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias (float32, or None where it is not wanted), laid out as native does."""
    run = _backward_op if torch.compiler.is_compiling() else _backward
    *grads, grad_bias = run(grad_out, grad_lse, q, k, v, *others, of_one_projection(q, k, v))
    bias_needs_grad = others[-1]
    return *grads, grad_bias if bias_needs_grad else None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None, seed: Tensor | None, window_left: int, window_right: int, dropout_p: float,
    scale: float, max_seqlen_q: int | None, max_seqlen_k: int | None, num_words: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from fastssl.ops.attention.triton_forward import attention_forward

    numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
    call = _Call(q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers, seed is not None)
    out, lse, kept_bits = _outputs(q, num_words)
    call.over_queries(
        attention_forward, tuning.forward_tile(call.shape), out=_rows(out), lse=lse,
        kept_bits=kept_bits if num_words else None, num_words=num_words,
    )  # fmt: skip
    return out, lse, kept_bits


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    kept_bits: Tensor, bias: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None, seed: Tensor | None, window_left: int, window_right: int, dropout_p: float,
    scale: float, max_seqlen_q: int | None, max_seqlen_k: int | None, bias_needs_grad: bool, together: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from fastssl.ops.attention import triton_backward as kernels

    numbers = (window_left, window_right, dropout_p, scale, max_seqlen_q, max_seqlen_k)
    num_words = kept_bits.shape[-2]
    drawn = seed is not None and num_words == 0
    call = _Call(q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *numbers, drawn)
    grads = _gradient_buffers(q, k, together)
    lse = lse.contiguous()
    delta, lse_log2 = torch.empty_like(lse), torch.empty_like(lse)
    given = {"grad_out": _rows(grad_out), "lse": lse, "delta": delta, "lse_log2": lse_log2}
    given |= {"kept_bits": kept_bits.contiguous() if num_words else None, "num_words": num_words}
    given |= {f"grad_{name}": _rows(grad) for name, grad in zip("qkv", grads, strict=True)}
    known = {"out": _rows(out), "grad_lse": None if grad_lse is None else grad_lse.contiguous()}
    if tuning.one_tile_of_keys(call.shape):
        call.over_queries(kernels.attention_delta, tuning.delta_tile(call.shape), **given, **known)
        call.over_keys(kernels.attention_grad_kv, tuning.grad_kv_tile(call.shape), **given)
    else:
        call.over_queries(kernels.attention_grad_q, tuning.grad_q_tile(call.shape), **given, **known)
        call.over_keys(kernels.attention_grad_kv, tuning.grad_kv_tile(call.shape), **(given | {"grad_q": None}))
    if scale <= 0:
        grads[0].mul_(_sign(scale))
    if not bias_needs_grad:
        return *grads, lse.new_empty(0)
    return *grads, call.over_scores(kernels.attention_grad_bias, tuning.grad_bias_tile(call.shape), **given)


_forward_op = torch.library.custom_op("fastssl::triton_attention_forward", _forward, mutates_args=())
_backward_op = torch.library.custom_op("fastssl::triton_attention_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(q, *others):
    return _outputs(q, others[-1])


@_backward_op.register_fake
def _(grad_out, grad_lse, q, k, v, out, lse, kept_bits, bias, *others):
    *_, bias_needs_grad, together = others
    return *_gradient_buffers(q, k, together), lse.new_empty(bias.shape if bias_needs_grad else 0)


def _outputs(q: Tensor, num_words: int) -> tuple[Tensor, Tensor, Tensor]:
    *heads, rows = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    lse = q.new_empty((*heads, rows), dtype=torch.float32)
    return q.new_empty(q.shape), lse, q.new_empty((*heads, num_words, rows), dtype=torch.int32)


def _gradient_buffers(q: Tensor, k: Tensor, together: bool) -> tuple[Tensor, ...]:
    """Return memory for the gradients of q, k and v: apart, or slices of one (..., H + 2 H_k, D) buffer."""
    if not together:
        return q.new_empty(q.shape), k.new_empty(k.shape), k.new_empty(k.shape)
    heads = (q.shape[-2], k.shape[-2], k.shape[-2])
    return q.new_empty(*q.shape[:-2], sum(heads), q.shape[-1]).split_with_sizes(heads, dim=-2)


class _Rows(NamedTuple):
    """A tensor of rows as the kernels take it: columns contiguous, strides in elements."""

    data: Tensor
    batch: int
    row: int
    head: int


def _rows(tensor: Tensor) -> _Rows:
    """Return (N, H, D) or (B, T, H, D) for the kernels; copied where rows lie further apart than 32 bits reach."""
    tensor = _with_contiguous_columns(tensor)
    if tensor.stride(-3) > tuning.FURTHEST_ROW:
        tensor = tensor.contiguous()
    return _Rows(tensor, tensor.stride(0) if tensor.dim() == 4 else 0, tensor.stride(-3), tensor.stride(-2))


def _bias_rows(tensor: Tensor) -> _Rows:
    """Return (H, T, S) or (B, H, T, S) for the kernels."""
    tensor = _with_contiguous_columns(tensor)
    return _Rows(tensor, tensor.stride(0) if tensor.dim() == 4 else 0, tensor.stride(-2), tensor.stride(-3))


def _with_contiguous_columns(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class _Call:
    """What all kernels of one call are given, and how many programs each needs."""

    def __init__(
        self, q, k, v, bias, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, window_left, window_right, dropout_p,
        scale, max_seqlen_q, max_seqlen_k, drawn,
    ):  # fmt: skip
        packed = q.dim() == 3
        longest_q, longest_k = _longest_of_both(q, k, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        self.bias, self.device = bias, q.device
        self.num_sequences = cu_seqlens_q.shape[0] - 1 if packed else q.shape[0]
        self.num_heads, self.num_key_heads = q.shape[-2], k.shape[-2]
        self.shape = tuning.Shape(
            capability=tuning.capability_of(q.device), width=q.shape[-1], element_size=q.element_size(),
            longest_q=longest_q, longest_k=longest_k, dropped=seed is not None, drawn=drawn,
            biased=bias is not None or alibi_slopes is not None,
            windowed=window_left < longest_k or window_right < longest_q,
        )  # fmt: skip
        self.arguments = {
            # The kernels take the maximum of scores before they scale them, and divide a bias by the scale.
            "q": _rows(q if scale > 0 else q * _sign(scale)),
            "k": _rows(k),
            "v": _rows(v),
            "bias": None if bias is None else _bias_rows(bias),
            "alibi_slopes": None if alibi_slopes is None else alibi_slopes.contiguous(),
            "cu_seqlens_q": _on(q.device, cu_seqlens_q),
            "cu_seqlens_k": _on(q.device, cu_seqlens_k),
            "seed": seed,
            "length_q": longest_q,
            "length_k": longest_k,
            "num_rows": q.shape[-3],
            "num_heads": self.num_heads,
            "heads_per_key": self.num_heads // self.num_key_heads,
            "num_sequences": self.num_sequences,
            # No position is further than this from a key, so that a wider window hides nothing.
            "window_left": window_left if window_left < longest_k else None,
            "window_right": window_right if window_right < longest_q else None,
            "scale": abs(scale) or 1.0,
            "threshold": dropout_threshold(dropout_p),
            "keep_scale": dropout_scale(dropout_p),
            "D": q.shape[-1],
            "BLOCK_D": tuning.padded_width(q.shape[-1]),
            "INTERPRETED": self.shape.capability == 0,
        }

    def over_queries(self, kernel, tile: tuning.Tile, **own: object) -> None:
        """Run one program per tile of queries and head."""
        run = partial(self._over_queries, kernel, **own)
        run(self._tile(kernel, tile, self.num_heads * self.num_sequences, run, own))

    def over_keys(self, kernel, tile: tuning.Tile, **own: object) -> None:
        """Run one program per tile of keys and key head."""
        run = partial(self._over_keys, kernel, **own)
        run(self._tile(kernel, tile, self.num_key_heads * self.num_sequences, run, own))

    def _tile(self, kernel, default: tuning.Tile, columns: int, run, own: dict[str, object]) -> tuning.Tile:
        """Return the tile to launch with: the default, or one that was measured."""

        def results(tile: tuning.Tile) -> list[Tensor]:
            run(tile)
            outputs = [own[name] for name in _WRITTEN[kernel.__name__] if own[name] is not None]
            return [one.data if isinstance(one, _Rows) else one for one in outputs]

        return tile_for(
            kernel,
            default,
            lambda: tuning.other_tiles(kernel.__name__, self.shape),
            lambda: tuning.facts_of(self.shape, columns) | self._kinds(own),
            lambda: Trial(run, results),
            self.device,
        )

    def _kinds(self, own: dict[str, object]) -> dict[str, object]:
        """Return what else a compiled kernel depends on, and the shared memory that its tiles take."""
        return {
            "dtype": self.arguments["q"].data.dtype,
            "bias": None if self.bias is None else self.bias.dtype,
            "slopes": self.arguments["alibi_slopes"] is not None,
            "packed": self.arguments["cu_seqlens_q"] is not None,
            "heads_per_key": self.num_heads // self.num_key_heads,
            "keeps": own.get("kept_bits") is not None,
        }

    def _over_queries(self, kernel, tile: tuning.Tile, **own: object) -> None:
        num_tiles = tuning.tiles(self.shape.longest_q, tile.queries)
        columns = self.num_heads * self.num_sequences
        share = self.shape.longest_k * self.num_key_heads / self.num_heads  # of the keys, which several heads read
        self._launch(
            kernel, tile, num_tiles * columns, num_tiles=num_tiles,
            heads_together=tuning.heads_in_cache(self.shape, share, columns), **own,
        )  # fmt: skip

    def _over_keys(self, kernel, tile: tuning.Tile, **own: object) -> None:
        num_tiles = tuning.tiles(max(self.shape.longest_k, 1), tile.keys)
        columns = self.num_key_heads * self.num_sequences
        share = self.shape.longest_q * self.num_heads / self.num_key_heads
        self._launch(
            kernel, tile, num_tiles * columns, num_tiles=num_tiles,
            heads_together=tuning.heads_in_cache(self.shape, share, columns), **own,
        )  # fmt: skip

    def over_scores(self, kernel, tile: tuning.Tile, **own: object) -> Tensor:
        """Run one program per tile of the bias and head, and per sequence where each has its own; return dBias."""
        num_queries, num_keys = self.bias.shape[-2:]
        num_key_tiles = tuning.tiles(num_keys, tile.keys)
        num_tiles = tuning.tiles(num_queries, tile.queries) * num_key_tiles
        programs = num_tiles * self.num_heads
        shared = self.bias.dim() == 3
        num_parts, sequences_each = self.num_sequences, 1
        if shared:
            num_parts, sequences_each = tuning.parts_of_bias(programs, self.num_sequences)
        parts = self.bias.new_empty((num_parts, *self.bias.shape[-3:]), dtype=torch.float32)
        self._launch(
            kernel, tile, programs * num_parts, num_tiles=num_tiles, num_key_tiles=num_key_tiles,
            num_queries_bias=num_queries, num_keys_bias=num_keys, num_parts=num_parts, sequences_each=sequences_each,
            grad_bias=_bias_rows(parts), **own,
        )  # fmt: skip
        if not shared:
            return parts
        return parts[0] if num_parts == 1 else parts.sum(0)

    def _launch(self, kernel, tile: tuning.Tile, programs: int, **own: object) -> None:
        """Launch a kernel, which takes those of the arguments that it names."""
        if programs == 0:
            return
        given = self.arguments | own | {"BLOCK_T": tile.queries, "BLOCK_S": tile.keys}
        names = kernel.arg_names
        first_number, first_constant = names.index("length_q"), names.index("D")
        with torch.cuda.device_of(given["q"].data):
            launch(
                kernel,
                (programs,),
                [given[name] for name in names[:first_number]],
                [given[name] for name in names[first_number:first_constant]],
                options={"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True},
                **{name: given[name] for name in names[first_constant:]},
            )


def _longest_of_both(q, k, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k) -> tuple[int, int]:
    """Return bounds of the lengths of queries and of keys; those that are not given are read on the host."""
    if q.dim() == 4:
        return q.shape[1], k.shape[1]
    longest_q = _longest("q", cu_seqlens_q, max_seqlen_q)
    if cu_seqlens_k is None and max_seqlen_k is None:
        longest_k = longest_q
    else:
        longest_k = _longest("k", cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k, max_seqlen_k)
    if bias is not None:  # it covers the longest sequences, so a bound above its sizes is loose
        longest_q, longest_k = min(longest_q, bias.shape[-2]), min(longest_k, bias.shape[-1])
    return longest_q, longest_k


def _longest(side: str, cu_seqlens: Tensor, bound: int | None) -> int:
    """Return the bound, or else the longest length, which is read on the host."""
    if bound is not None:
        return bound
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"attention: max_seqlen_{side} is needed while a CUDA graph is captured, since the lengths cannot be read "
            f"from the device then; pass a bound of the lengths in cu_seqlens_{side}"
        )
    return int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0


def _sign(scale: float) -> int:
    return (scale > 0) - (scale < 0)


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True).contiguous()
