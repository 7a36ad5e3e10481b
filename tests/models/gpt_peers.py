"""Random Hugging Face GPTs and inputs to hold ours against."""

import torch
from torch import Tensor

SIZES = {"vocab_size": 97, "initializer_range": 0.3, "bos_token_id": 96, "eos_token_id": 95}
GPT2_SIZES = {**SIZES, "n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 31}
LLAMA_SIZES = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 43,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 31,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
PEERS = {
    "gpt2": ("GPT2", GPT2_SIZES),
    "gpt2-inner": ("GPT2", {**GPT2_SIZES, "n_inner": 50, "activation_function": "relu", "n_head": 1}),
    "gpt2-untied": ("GPT2", {**GPT2_SIZES, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", LLAMA_SIZES),
    "llama-tied": ("Llama", {**LLAMA_SIZES, "tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 6}),
    "llama-biases": ("Llama", {**LLAMA_SIZES, "attention_bias": True}),
    "llama-mlp-bias": ("Llama", {**LLAMA_SIZES, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-linear": (
        "Llama",
        {**LLAMA_SIZES, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}},
    ),
    "llama3": ("Llama", {**LLAMA_SIZES, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**LLAMA_SIZES, "sliding_window": 5, "head_dim": 8}),
    "qwen2": ("Qwen2", {**LLAMA_SIZES, "num_key_value_heads": 1}),
}
"""Name -> Hugging Face's prefix and the sizes of its config."""


def peer(name: str, kind: str = "causal", **changes):
    """A random transformers model in eval mode, biases and norms included in the randomness."""
    import transformers

    prefix, sizes = PEERS[name]
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **changes})
    config._attn_implementation = "eager"
    causal = "GPT2LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
    torch.manual_seed(len(name))
    model = getattr(transformers, causal if kind == "causal" else f"{prefix}Model")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def padded_inputs(lengths=(7, 1, 23, 12), length=23, vocab_size=97, seed=0) -> dict[str, Tensor]:
    """Right-padded ids, mask, and the ids as labels, some of them not to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, vocab_size, (len(lengths), length), generator=generator) * mask
    hidden = torch.rand(ids.shape, generator=generator) < 0.1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(hidden | (mask == 0), -100),
    }


def sequences(lengths=(7, 1, 23, 12), vocab_size=97, seed=0) -> list[list[int]]:
    """Sequences of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size - 2, (n,), generator=generator).tolist() for n in lengths]
