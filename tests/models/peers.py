"""Random Hugging Face BERTs and inputs to hold ours against."""

import torch
from torch import Tensor

ODD_SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 53,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
}


def peer_config(**changes):
    """A transformers BertConfig of odd sizes, its weights spread widely enough that every part shows in the output."""
    from transformers import BertConfig

    return BertConfig(**{**ODD_SIZES, "initializer_range": 0.3, **changes})


def peer_model(class_name: str, **changes):
    """A random transformers model in eval mode, biases and norms included in the randomness."""
    import transformers

    torch.manual_seed(len(class_name))
    model = getattr(transformers, class_name)(peer_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "LayerNorm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def padded_inputs(lengths=(7, 1, 23, 12), length=23, vocab_size=101, num_types=3, seed=0) -> dict[str, Tensor]:
    """Right-padded ids (0 among the real ones), mask, token types, labels, and sentence labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    ids = draw(0, vocab_size, len(lengths), length)
    predicted = (torch.rand(ids.shape, generator=generator) < 0.3) & (mask == 1)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": draw(0, num_types, *ids.shape) * mask,
        "labels": torch.where(predicted, draw(0, vocab_size, *ids.shape), -100),
        "next_sentence_label": draw(0, 2, len(lengths)),
    }
