"""The public function `decoder_block`: its meaning, its checks, its choice of backend."""

from torch import Tensor

from fastssl.ops.backend import choose
from fastssl.ops.cached_attention import api as attention
from fastssl.ops.decoder_block import native, reference, stock
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear import api as linear
from fastssl.ops.surroundings import without_autocast

BACKENDS = {"native": native, "stock": stock, "reference": reference}


def decoder_block(
    x: Tensor,
    weights: BlockWeights,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    activation: str = "gelu_tanh",
    window: int | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """A pre-norm block of a decoder for one new token a sequence, for inference: of GPT-2, of Llama.

    ``y = x + out(attention(norm(x)))``, then ``y + down(activation(up(norm(y))))``, where `attention` is
    `cached_attention`, which writes to the caches **in place**, and the maps are `skinny_linear`: the same numbers, in
    one call instead of five. A call that follows on the reading of megabytes finds nothing in the processor's caches of
    what Python and PyTorch need for it, and takes some forty microseconds.

    Args:
        x: (B, E), the new tokens (native: fp32).
        weights: the parameters. H follows from them and from the caches.
        k_cache, v_cache, lengths, window, scale, rotary: as `cached_attention` has them.
        activation: as `skinny_linear` has it.
        backend: "auto", "native", "stock" or "reference".

    Returns:
        (B, E) in x's dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, a full cache, a call that autograd would have to
            record, or a backend that cannot run the call.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" §2.3.
    """
    scale = k_cache.shape[-1] ** -0.5 if scale is None else scale
    options = {"activation": activation, "window": window, "scale": scale, "rotary": rotary}
    if backend == "auto" and native.is_usual(x, weights, window, rotary):
        # As in `skinny_linear`: the kernel's own checks come first. Where they fail, the slower ones below say why.
        try:
            return native.forward(x, weights, k_cache, v_cache, lengths, **options)
        except RuntimeError:
            pass
    _check(x, weights, k_cache, v_cache, lengths, activation, window, rotary)
    facts = _facts(x, weights, k_cache, v_cache, lengths, rotary)
    name = choose("decoder_block", backend, BACKENDS, x.device, x.dtype, facts)
    with without_autocast(x.device):
        return BACKENDS[name].forward(x, weights, k_cache, v_cache, lengths, **options)


def _check(x, weights, k_cache, v_cache, lengths, activation, window, rotary) -> None:
    if x.dim() != 2 or k_cache.dim() != 4:
        raise ValueError(
            f"decoder_block: x must have shape (B, E) and k_cache (B, H_k, S, D), got {tuple(x.shape)} and "
            f"{tuple(k_cache.shape)}"
        )
    if weights.attention_norm.kind != weights.mlp_norm.kind:
        raise ValueError("decoder_block: both norms must be of one kind")
    _, outputs, _ = linear.describe(weights.qkv.weight)
    key_heads, width = k_cache.shape[1], k_cache.shape[3]
    heads = outputs // max(width, 1) - 2 * key_heads
    if heads < 1 or (heads + 2 * key_heads) * width != outputs:
        raise ValueError(
            f"decoder_block: qkv must have (H + 2 H_k) D outputs for {key_heads} key heads of {width} columns, "
            f"got {outputs}"
        )
    plain = {"norm": None, "activation": "none", "residual": None}
    linear.check(x, *weights.qkv, **(plain | {"norm": weights.attention_norm}))
    parts = x.new_empty(len(x), heads + 2 * key_heads, width).split((heads, key_heads, key_heads), dim=1)
    attention.check(*parts, k_cache, v_cache, lengths, window, rotary)
    linear.check(parts[0].flatten(1), *weights.out, **(plain | {"residual": x}))
    linear.check(x, *weights.up, **(plain | {"norm": weights.mlp_norm, "activation": activation}))
    hidden = linear.describe(weights.up.weight)[1] // (2 if activation == "swiglu" else 1)
    linear.check(x.new_empty(len(x), hidden), *weights.down, **(plain | {"residual": x}))


def _facts(x, weights, k_cache, v_cache, lengths, rotary) -> dict[str, object]:
    maps = (weights.qkv, weights.out, weights.up, weights.down)
    plain = [m.weight for m in maps if isinstance(m.weight, Tensor)]
    parameters = [t for norm in (weights.attention_norm, weights.mlp_norm) for t in norm[:2]] + [m.bias for m in maps]
    parameters = [t for t in (*parameters, *(rotary or ())) if t is not None]
    return {
        "weight_dtypes": {linear.describe(m.weight)[0] for m in maps},
        "inputs": max((m.weight.in_features for m in maps if isinstance(m.weight, QuantizedWeight)), default=0),
        "rows": len(x),
        "parameter_dtypes": {t.dtype for t in parameters},
        "packed": all(t.is_contiguous() for t in (*plain, *parameters, lengths)),
        "cache_dtype": k_cache.dtype,
        "cache_strides": k_cache.stride(-1) * v_cache.stride(-1),
    }
