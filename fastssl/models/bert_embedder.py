"""BERT with one vector for each sentence, trained so that the vectors of what belongs together are near.

Source: Reimers and Gurevych 2019, "Sentence-BERT" (1908.10084); the loss: Henderson et al. 2017, "Efficient Natural
Language Response Suggestion for Smart Reply" (1705.00652) §4.4, and van den Oord, Li and Vinyals 2018, "Representation
Learning with Contrastive Predictive Coding" (1807.03748) §2.3, InfoNCE.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.models import bert_files
from fastssl.models.bert import BertModel
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_with_head import BertWithHead
from fastssl.models.embedding_files import EmbeddingConfig, read_embedding_config, write_embedding_config
from fastssl.models.losses import LossSum
from fastssl.nn.pooling import POOLINGS

DEFAULT_TEMPERATURE = 0.05
"""Of the softmax over similarities: as in SimCSE; sentence-transformers' scale of 20 is its inverse."""


@dataclass(kw_only=True)
class BertEmbeddingOutput:
    """What `BertForSentenceEmbedding` returns. W is the width of an embedding."""

    loss: Tensor | None = None
    """0-d: the mean over the pairs (of the whole step, see `loss_denominators`); None without pairs."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums "pair_loss_sum", "pair_correct", "pair_count"."""
    embeddings: Tensor
    """(B, W) fp32."""


class BertForSentenceEmbedding(BertWithHead):
    """``pooling(h)``: one vector for each sequence, divided by its length, and then truncated, where the embedding's
    config says so.

    The loss of P pairs (a_i, b_i), with texts b_(P+1) ... b_C that belong to none of them (hard negatives), is

        mean over i of -log( exp(cos(a_i, b_i) / t) / sum over all j of exp(cos(a_i, b_j) / t) )

    so that the texts of the other pairs of the batch are what an anchor is told apart from (InfoNCE, or multiple
    negatives ranking); of truncated vectors, where there is a truncation, as those will be used. Only a batch is known
    to it: with gradient accumulation, or several processes, the negatives are those of the micro-batch.

    Directories are those of sentence-transformers. The pooler of the body is kept as it is, and not trained.

    Args:
        config: sizes of the body.
        embedding: how token vectors become one.
        temperature: t, above 0; not saved.
    """

    def __init__(
        self,
        config: BertConfig,
        embedding: EmbeddingConfig | None = None,
        *,
        temperature: float = DEFAULT_TEMPERATURE,
    ) -> None:
        super().__init__(config)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.bert.pooler.requires_grad_(False)
        self.embedding = embedding or EmbeddingConfig(max_length=config.max_position_embeddings)
        self.temperature = temperature

    @property
    def width(self) -> int:
        """W, number of columns of the embeddings."""
        return self.embedding.width(self.config.hidden_size)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
    ) -> BertEmbeddingOutput:
        """Embed each sequence.

        Args:
            batch: packed tokens, with `num_pairs` for a loss.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "pair" -> number of pairs of the whole optimizer step; None: of this batch.

        Raises:
            ValueError: as `BertModel.forward`.
        """
        batch = self.bert.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        embeddings = sentence_vectors(self.bert, batch, self.embedding, seed)
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        if batch.num_pairs is not None:
            loss_sum, num_correct = in_batch_loss(embeddings, batch.num_pairs, self.temperature)
            losses.add("pair", loss_sum, num_correct, batch.num_pairs)
        return BertEmbeddingOutput(loss=losses.loss, metrics=losses.metrics, embeddings=embeddings)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        embedding: EmbeddingConfig | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        dtype: torch.dtype = torch.float32,
    ) -> "BertForSentenceEmbedding":
        """Read a directory of sentence-transformers, or the Hugging Face directory of any BERT.

        Args:
            directory: of the model.
            embedding: instead of what the directory says; see `fastssl.models.embedding_files.read_embedding_config`.
            temperature: of the loss.
            dtype: of the parameters, whatever the file's.
        """
        model_directory, found = read_embedding_config(directory)
        with warnings.catch_warnings():
            # Of a pooler that is not there: it is not used.
            warnings.simplefilter("ignore", UserWarning)
            body = BertModel.from_pretrained(model_directory, dtype=dtype)
        with torch.device("meta"):
            model = cls(body.config, embedding or found, temperature=temperature)
        model.bert, model.load_report = body, body.load_report
        model.bert.pooler.requires_grad_(False)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that sentence-transformers loads, once the tokenizer's files are beside it."""
        bert_files.save(self.bert, directory)
        write_embedding_config(directory, self.embedding, hidden_size=self.config.hidden_size)

    def set_max_length(self, max_length: int) -> None:
        """Note that texts are cut after so many tokens, special ones included."""
        self.embedding = replace(self.embedding, max_length=max_length)


def sentence_vectors(
    body: BertModel, batch: PackedBatch, embedding: EmbeddingConfig, seed: int | Tensor | None = None
) -> Tensor:
    """Return one vector for each sequence, (B, W) fp32.

    Normalised before it is truncated, as in sentence-transformers: what is left has a length below 1.

    Args:
        body: the encoder.
        batch: packed tokens.
        embedding: pooling, normalisation and truncation.
        seed: of dropout, in training mode.
    """
    if embedding.pooling == ("cls",):
        pooled = body.encode_first_tokens(batch, seed)
    else:
        hidden_states = body.encode(batch, seed)
        pooled = torch.cat([POOLINGS[name](hidden_states, batch.cu_seqlens) for name in embedding.pooling], dim=-1)
    vectors = F.normalize(pooled.float(), dim=-1) if embedding.normalize else pooled.float()
    return vectors[:, : embedding.truncate_dim]


def in_batch_loss(embeddings: Tensor, num_pairs: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the sum of the anchors' losses, 0-d fp32, and how many have their own text nearest, 0-d.

    Args:
        embeddings: (B, W): P anchors, the P texts that belong to them, and any others.
        num_pairs: P.
        temperature: t of ``softmax(cos / t)``.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        units = F.normalize(embeddings.float(), dim=-1)
        similarities = units[:num_pairs] @ units[num_pairs:].T / temperature
    own = torch.arange(num_pairs, device=embeddings.device)
    loss_sum = F.cross_entropy(similarities, own, reduction="sum")
    return loss_sum, (similarities.argmax(-1) == own).sum()
