"""The sizes and options of a GPT: GPT-2 by default, its modern relatives by choice."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from fastssl.nn.mlp import ACTIVATIONS
from fastssl.nn.rotary import RotaryScaling


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes and options of a causal language model; the defaults are gpt2 (124M)."""

    vocab_size: int = 50257
    """V, number of tokens in the vocabulary."""
    hidden_size: int = 768
    """E, width of the model."""
    num_hidden_layers: int = 12
    """L, number of blocks."""
    num_attention_heads: int = 12
    """H, heads of the queries."""
    num_key_value_heads: int | None = None
    """Heads of keys and values, a divisor of H, each shared by as many query heads; None: H."""
    head_dim: int | None = None
    """D, width of a head; None: E / H."""
    intermediate_size: int | None = None
    """F, width inside the feed-forward network; None: 4 E."""
    hidden_act: str = "gelu_new"
    """Activation of the feed-forward network, or of its gate: gelu, gelu_new, gelu_pytorch_tanh, relu or silu."""
    max_position_embeddings: int = 1024
    """Longest sequence, in tokens."""
    position_embedding: Literal["learned", "rotary"] = "learned"
    """How the model knows positions: a vector of each, added to the words; or queries and keys rotated by them."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RotaryScaling | None = None
    """How the rotary wavelengths are stretched; None: not at all."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Kind of the norms in front of each part and behind the last block."""
    norm_eps: float = 1e-5
    """Added to the variance, or to the mean square, in every norm."""
    mlp: Literal["plain", "gated"] = "plain"
    """Feed-forward network: down(act(up(x))), or down(act(gate(x)) * up(x))."""
    bias: bool = True
    """Whether linear maps have biases."""
    qkv_bias: bool | None = None
    """The same of the projections to queries, keys and values alone; None: as `bias`."""
    mlp_bias: bool | None = None
    """The same of the feed-forward network alone; None: as `bias`."""
    sliding_window: int | None = None
    """How many tokens attention sees, its own included; None: all that came before."""
    embedding_dropout_prob: float = 0.1
    """Probability of dropping an element of the embeddings."""
    hidden_dropout_prob: float = 0.1
    """Probability of dropping an element of what each block adds."""
    attention_probs_dropout_prob: float = 0.1
    """Probability of dropping an attention weight."""
    tie_word_embeddings: bool = True
    """Whether the head scores with the word embedding itself, or with a matrix of its own."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; of those that write into the residual stream, this over sqrt(2 L)."""
    bos_token_id: int | None = 50256
    """Token that begins a document; None: there is none."""
    eos_token_id: int | tuple[int, ...] | None = 50256
    """Token, or tokens, that end one: generation stops there; None: there is none."""

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_width(self) -> int:
        """D, width of a head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """F, width inside the feed-forward network."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the maps of the feed-forward network have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens at which generation stops."""
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, tuple | list) else (ids,)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"):
            _expect(name, getattr(self, name), "at least 1", _is_whole(getattr(self, name), 1))
        _expect("num_hidden_layers", self.num_hidden_layers, "at least 0", _is_whole(self.num_hidden_layers, 0))
        for name in ("num_key_value_heads", "head_dim", "intermediate_size", "sliding_window"):
            value = getattr(self, name)
            _expect(name, value, "None, or at least 1", value is None or _is_whole(value, 1))
        self._check_heads()
        _expect("hidden_act", self.hidden_act, f"one of {', '.join(ACTIVATIONS)}", self.hidden_act in ACTIVATIONS)
        for name, choices in {
            "position_embedding": ("learned", "rotary"),
            "norm": ("layer_norm", "rms_norm"),
            "mlp": ("plain", "gated"),
        }.items():
            _expect(name, getattr(self, name), " or ".join(map(repr, choices)), getattr(self, name) in choices)
        for name in ("embedding_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            _expect(name, value, "at least 0 and below 1", isinstance(value, Real) and 0 <= value < 1)
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            _expect(name, value, "above 0", isinstance(value, Real) and value > 0)
        deviation = self.initializer_range
        _expect("initializer_range", deviation, "at least 0", isinstance(deviation, Real) and 0 <= deviation < math.inf)
        first = () if self.bos_token_id is None else (self.bos_token_id,)
        for name, ids in (("bos_token_id", first), ("eos_token_id", self.end_tokens)):
            in_vocabulary = all(_is_whole(token, 0) and token < self.vocab_size for token in ids)
            _expect(name, getattr(self, name), f"None, or below vocab_size={self.vocab_size}", in_vocabulary)

    def _check_heads(self) -> None:
        heads, width = self.num_attention_heads, self.hidden_size
        divides = self.head_dim is not None or width % heads == 0
        _expect("hidden_size", width, f"a multiple of num_attention_heads={heads}, or head_dim given", divides)
        shared = heads % self.key_value_heads == 0
        _expect("num_key_value_heads", self.num_key_value_heads, f"a divisor of num_attention_heads={heads}", shared)
        even = self.position_embedding != "rotary" or self.head_width % 2 == 0
        _expect("head_dim", self.head_width, "even, as rotary positions turn pairs of numbers", even)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and value >= least


def _expect(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"GPTConfig.{name} must be {expected}, got {value!r}")
