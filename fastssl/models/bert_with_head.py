"""What every BERT is that has a body and, above it, something that is learnt for a task."""

from pathlib import Path

from torch import nn

from fastssl.models import bert_files
from fastssl.models.bert import BertModel
from fastssl.models.bert_config import BertConfig


class BertWithHead(nn.Module):
    """A body `bert`, whose settings are the model's; what stands above it is the subclass's.

    Args:
        config: sizes of the body.
        add_pooling_layer: whether the body has the dense layer over the first token.
    """

    def __init__(self, config: BertConfig, *, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer)

    @property
    def config(self) -> BertConfig:
        """Sizes of the model."""
        return self.bert.config

    def use_sparse_word_gradients(self) -> None:
        """Have the word embedding's gradient as the rows that were read, as ``nn.Embedding(sparse=True)`` does.

        `fastssl.training.Trainer` takes such gradients, in one process, and spends no time on the other rows but for
        AdamW itself; an optimizer of your own must know them.
        """
        self.bert.embeddings.word.sparse = True

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward, and compute the rest again there."""
        self.bert.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward needs."""
        self.bert.gradient_checkpointing_disable()

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.bert.set_dropout(p)

    def resize_token_embeddings(self, new_size: int) -> None:
        """Grow the vocabulary to `new_size`, in place; see `Embeddings.grow`."""
        self.bert.resize_token_embeddings(new_size)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that `transformers` loads; see `fastssl.models.bert_files.save`."""
        bert_files.save(self, directory)
