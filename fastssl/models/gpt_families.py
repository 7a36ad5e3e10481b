"""How Hugging Face spells the configs and tensors of the models that `GPTConfig` can describe."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model of Hugging Face's that `GPTConfig` can describe."""

    classes: Mapping[str, str]
    """Our class -> theirs."""
    options: Mapping[str, str]
    """Our field -> their key."""
    fixed: Mapping[str, object]
    """Our fields that the model type decides, and their values."""
    defaults: Mapping[str, object]
    """Their keys -> their values where a file leaves them out."""
    unsupported: Mapping[str, tuple]
    """Their key -> the values under which our numbers are theirs."""
    body: str
    """Prefix of the names of everything but the head."""
    parts: Mapping[str, str]
    """Our module outside of the blocks -> theirs."""
    blocks: str
    """Their list of blocks."""
    block_parts: Mapping[str, tuple[str, ...]]
    """Our module of a block -> theirs, those that stand in it one above the other."""
    transposed: tuple[str, ...] = ()
    """Their modules whose matrices are stored the other way round."""
    buffers: str
    """Pattern of the names of tensors that no model needs."""


_GPT2 = Family(
    classes={"GPTModel": "GPT2Model", "GPTForCausalLM": "GPT2LMHeadModel"},
    options={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "embedding_dropout_prob": "embd_pdrop",
        "hidden_dropout_prob": "resid_pdrop",
        "attention_probs_dropout_prob": "attn_pdrop",
    },
    fixed={
        "position_embedding": "learned",
        "norm": "layer_norm",
        "mlp": "plain",
        "bias": True,
        "qkv_bias": True,
        "mlp_bias": True,
    },
    defaults={},
    unsupported={
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
        "quantization_config": (None,),
    },
    body="transformer.",
    parts={"word": "wte", "position": "wpe", "final_norm": "ln_f"},
    blocks="h",
    block_parts={
        "attention_norm": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.output": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp.up": ("mlp.c_fc",),
        "mlp.down": ("mlp.c_proj",),
    },
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    buffers=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
)
_LLAMA_OPTIONS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "attention_probs_dropout_prob": "attention_dropout",
}
_NO_BIAS = {"bias": False, "qkv_bias": False, "mlp_bias": False}
_LLAMA_DEFAULTS = {
    "attention_bias": False,
    "mlp_bias": False,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama(
    name: str,
    *,
    fixed: Mapping[str, bool],
    options: Mapping[str, str] | None = None,
    unsupported: Mapping[str, tuple] | None = None,
    **defaults: object,
) -> Family:
    return Family(
        classes={"GPTModel": f"{name}Model", "GPTForCausalLM": f"{name}ForCausalLM"},
        options=_LLAMA_OPTIONS | (options or {}),
        fixed={"position_embedding": "rotary", "norm": "rms_norm", "mlp": "gated", **fixed},
        defaults=_LLAMA_DEFAULTS | defaults,
        unsupported={"quantization_config": (None,), "partial_rotary_factor": (1.0, None), **(unsupported or {})},
        body="model.",
        parts={"word": "embed_tokens", "final_norm": "norm"},
        blocks="layers",
        block_parts={
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.output": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down": ("mlp.down_proj",),
        },
        buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    )


FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "llama": _llama("Llama", fixed={}, options={"bias": "attention_bias", "mlp_bias": "mlp_bias"}),
    "mistral": _llama(
        "Mistral",
        fixed=_NO_BIAS,
        options={"sliding_window": "sliding_window"},
        sliding_window=4096,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    ),
    "qwen2": _llama(
        "Qwen2",
        fixed=_NO_BIAS | {"qkv_bias": True},
        unsupported={"use_sliding_window": (False, None)},
        vocab_size=151936,
        intermediate_size=22016,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
"""Hugging Face's model type -> how it is spelt."""
