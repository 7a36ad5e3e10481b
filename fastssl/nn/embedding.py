"""The sum of word, position and token-type embeddings, normalised."""

from torch import Tensor, nn

from fastssl.nn.init import grow_rows
from fastssl.nn.norm import LayerNorm
from fastssl.nn.tied_embedding import TiedEmbedding


class Embeddings(nn.Module):
    """``LN(word[ids] + token_type[types] + position[positions])``; the dropout after it belongs to the encoder.

    Args:
        vocab_size: V.
        hidden_size: E.
        max_positions: number of position vectors.
        num_token_types: number of token-type vectors.
        norm_eps: of the norm.
        padding_id: a token whose word vector starts at zero and gets no gradient from being read (as in Hugging
            Face), or None.

    Source: Devlin et al. 2018 (arXiv 1810.04805) §3, figure 2.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        max_positions: int,
        num_token_types: int,
        norm_eps: float,
        padding_id: int | None,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size, padding_idx=padding_id)
        self.position = nn.Embedding(max_positions, hidden_size)
        self.token_type = nn.Embedding(num_token_types, hidden_size)
        self.norm = LayerNorm(hidden_size, norm_eps)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, tied: TiedEmbedding | None = None
    ) -> Tensor:
        """Return (N, E) from three (N) int64 tensors; the words are read from `tied` where a decoder shares them."""
        words = self.word(input_ids) if tied is None else tied.read(input_ids)
        words_and_types = words + self.token_type(token_type_ids)
        return self.norm(words_and_types, residual=self.position(position_ids))

    def tie(self) -> TiedEmbedding:
        """Return the word embedding for one forward pass whose decoder uses it too."""
        return TiedEmbedding.of(self.word)

    def grow(self, vocab_size: int, std: float) -> None:
        """Add word vectors, in place, to a new V of `vocab_size`; see `grow_rows`."""
        grown = grow_rows(self.word.weight, vocab_size, std)
        self.word = nn.Embedding.from_pretrained(grown, freeze=False, padding_idx=self.word.padding_idx)
