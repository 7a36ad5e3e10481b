"""Hugging Face transformers: its models on its padded tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.data.batch import IGNORED_LABEL, PackedBatch


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return `transformers.BertForMaskedLM` with the weights and the config of a directory, in training mode."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.BertForMaskedLM.from_pretrained(directory, dtype=dtype).train()


def inputs(batch: PackedBatch) -> dict[str, Tensor]:
    """Return a batch as its models take it: padded to the longest sequence, with a mask only where there is padding."""
    labels = torch.full_like(batch.input_ids, IGNORED_LABEL)
    labels[batch.masked_positions] = batch.masked_labels
    padded = {
        "input_ids": batch.unpack(batch.input_ids),
        "token_type_ids": batch.unpack(batch.token_type_ids),
        "labels": batch.unpack(labels, padding_value=IGNORED_LABEL),
    }
    if batch.num_tokens < batch.num_sequences * batch.max_seqlen:
        padded["attention_mask"] = batch.unpack(torch.ones_like(batch.input_ids))
    return padded


def loss(model: nn.Module, padded: Mapping[str, Tensor]) -> Tensor:
    """Return the masked-LM loss."""
    return model(**padded).loss


def masking_collator(vocab_size: int) -> Callable[[list[dict]], Mapping[str, Tensor]]:
    """Return the collator that masks single tokens and pads, over a vocabulary of made-up words."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = special + [f"w{number}" for number in range(vocab_size - len(special))]
    return DataCollatorForLanguageModeling(BertTokenizerFast(vocab={name: i for i, name in enumerate(names)}))


def unmasked_examples(batch: PackedBatch) -> list[dict[str, list[int]]]:
    """Return the sequences of a batch as the collator takes them, with their original tokens."""
    ids = batch.input_ids.clone()
    ids[batch.masked_positions] = batch.masked_labels
    return [{"input_ids": sequence.tolist()} for sequence in ids.split(batch.cu_seqlens.diff().tolist())]
