"""GPT from packed tokens to loss: layouts, causality, cache, dropout, checkpointing, precision, errors."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.models.gpt import GPTModel
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn.backend import set_backend
from fastssl.nn.quantized import quantize
from tests.models.gpt_peers import padded_inputs, sequences

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "bos_token_id": 96,
    "eos_token_id": 95,
}
MODERN = {"position_embedding": "rotary", "norm": "rms_norm", "mlp": "gated", "bias": False, "hidden_act": "silu"}
VARIANTS = {
    "gpt2": {},
    "llama": {**MODERN, "num_key_value_heads": 2},
    "window": {**MODERN, "sliding_window": 4},
    "learned window": {"sliding_window": 3, "num_key_value_heads": 1},
}
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def small_model(variant="gpt2", **changes) -> GPTForCausalLM:
    torch.manual_seed(3)
    return GPTForCausalLM(GPTConfig(**{**SIZES, **VARIANTS[variant], **changes}))


@EVERY_VARIANT
def test_packed_and_padded_are_the_same(variant):
    model = small_model(variant).eval()
    inputs = padded_inputs()
    batch = PackedBatch.from_padded(inputs["input_ids"], inputs["attention_mask"], causal_labels=inputs["labels"])
    padded = model(**inputs, output_logits=True, output_hidden_states=True)
    packed = model(batch, output_logits=True, output_hidden_states=True)
    assert torch.equal(padded.loss, packed.loss)
    assert torch.equal(padded.logits, batch.unpack(packed.logits))
    # The loss is the mean over shifted labels, as written down by hand.
    logits, labels = padded.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    torch.testing.assert_close(padded.loss, F.cross_entropy(logits, labels))
    assert packed.metrics["causal_lm_count"] == (labels != -100).sum()


@EVERY_VARIANT
def test_a_future_token_changes_nothing_before_it(variant):
    model = small_model(variant).eval()
    ids = torch.tensor(sequences((20,)))
    for changed in (1, 7, 19):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 90
        before, after = model(input_ids=ids).logits[0], model(input_ids=other).logits[0]
        assert torch.equal(before[:changed], after[:changed])
        assert not torch.equal(before[changed:], after[changed:])


def test_documents_of_a_pack_do_not_see_each_other():
    model = small_model().eval()
    texts = sequences((9, 4, 14))
    logits = model(PackedBatch.from_sequences(texts)).logits.split([9, 4, 14])
    for text, seen in zip(texts, logits, strict=True):
        alone = model(PackedBatch.from_sequences([text])).logits
        torch.testing.assert_close(seen, alone, rtol=1e-5, atol=1e-5)


@EVERY_VARIANT
@pytest.mark.parametrize("runs", [(1, 1, 1, 1), (5, 1, 3, 1), (2, 7)])
def test_cached_and_uncached_logits_are_equal(variant, runs):
    """Texts of different lengths are read in runs; after each, the next token's scores are those of the whole text."""
    model = small_model(variant).eval()
    texts = sequences((11, 3, 17, 8))
    cache = model.new_cache(len(texts), 40)
    read = texts
    with torch.no_grad():
        got = model.next_token_logits(PackedBatch.from_sequences(texts), cache)
        for number, run in enumerate(runs):
            new = sequences([run + (row % 2 if run > 1 else 0) for row in range(4)], seed=number)
            read = [[*text, *more] for text, more in zip(read, new, strict=True)]
            got = model.next_token_logits(PackedBatch.from_sequences(new), cache)
            expected = model.next_token_logits(PackedBatch.from_sequences(read))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert cache.lengths == [len(text) for text in read]


@EVERY_VARIANT
@pytest.mark.parametrize("num_blocks", [0, 1, 3])
def test_the_last_rows_alone_are_those_of_all(variant, num_blocks):
    """Without a cache, with an empty one, and with one that holds texts; it takes the keys and values of all tokens."""
    model = small_model(variant, num_hidden_layers=num_blocks).eval().gpt
    texts, more = (PackedBatch.from_sequences(sequences(lengths, seed=n)) for n, lengths in enumerate([(9, 1), (3, 6)]))
    alone, whole = model.new_cache(2, 40), model.new_cache(2, 40)
    with torch.no_grad():
        for batch, caches in ((texts, (None, None)), (texts, (alone, whole)), (more, (alone, whole))):
            rows = batch.cu_seqlens[1:].long() - 1
            got = model.encode(batch, cache=caches[0], rows=rows)
            expected = model.encode(batch, cache=caches[1])[rows]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(alone.layers, whole.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


def test_selected_rows_of_a_cache_go_on_alone():
    model = small_model("window").eval()
    texts = sequences((11, 3, 17))
    cache = model.new_cache(3, 40)
    with torch.no_grad():
        model.next_token_logits(PackedBatch.from_sequences(texts), cache)
        cache.select([2, 0, 2])
        got = model.next_token_logits(PackedBatch.from_sequences([[1], [2], [3]]), cache)
        read = [[*texts[2], 1], [*texts[0], 2], [*texts[2], 3]]
        expected = model.next_token_logits(PackedBatch.from_sequences(read))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_cache_decodes_by_the_weights_of_the_model_that_asks():
    model, texts = small_model("llama").eval(), PackedBatch.from_sequences(sequences((5, 9)))
    other = small_model("llama").eval()
    with torch.no_grad():
        other.gpt.blocks[1].mlp.down.weight.mul_(2)
        caches = [model.new_cache(2, 40) for _ in range(2)]
        for cache in caches:
            model.next_token_logits(texts, cache)
        step = PackedBatch.from_sequences([[1], [2]])
        model.next_token_logits(step, caches[0])
        caches[0].lengths = list(caches[1].lengths)  # one step back: the slot is written again
        got, expected = (other.next_token_logits(step, cache) for cache in caches)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("changes", "decodes"),
    [
        ({"hidden_act": "gelu"}, True),
        ({"hidden_act": "gelu_new"}, True),
        ({"hidden_act": "relu"}, False),
        (MODERN, True),
        ({**MODERN, "hidden_act": "gelu"}, False),
        ({"num_hidden_layers": 0}, True),
    ],
)
def test_which_models_decode_block_by_block(changes, decodes):
    model, step = small_model(**changes).eval(), PackedBatch.from_sequences([[1], [2]])
    cache = model.new_cache(2, 8)
    assert not model.gpt.decodes(step, cache)
    with torch.no_grad():
        assert model.gpt.decodes(step, cache) is decodes
        assert not model.gpt.decodes(step, None)
        if model.gpt.blocks:
            assert quantize(model).gpt.decodes(step, cache) is decodes


def test_a_cache_has_no_gradients_and_no_more_tokens_than_the_model_has_positions():
    model = small_model().eval()
    cache, texts = model.new_cache(2, 40), PackedBatch.from_sequences(sequences((5, 9)))
    expected = model.next_token_logits(texts)
    found = model.next_token_logits(texts, cache)
    assert expected.requires_grad and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="capacity must be at most the model's 40 positions, got 41"):
        model.new_cache(2, 41)
    small_model("llama").new_cache(2, 41)  # its positions are none that somebody learnt


def test_a_full_cache_and_a_wrong_number_of_sequences():
    model = small_model().eval()
    cache = model.new_cache(2, 8)
    with torch.no_grad():
        model.next_token_logits(PackedBatch.from_sequences(sequences((8, 3))), cache)
        with pytest.raises(ValueError, match=r"cache is full: it has room for 8 tokens .* would have 9"):
            model.next_token_logits(PackedBatch.from_sequences([[1], [2]]), cache)
        assert cache.lengths == [8, 3]
        with pytest.raises(ValueError, match="holds 2 sequences"):
            model.next_token_logits(PackedBatch.from_sequences([[1]]), cache)


def test_a_cache_of_a_sliding_model_is_as_long_as_its_window():
    assert small_model("window").new_cache(1, 40).capacity == 4
    assert small_model("window").new_cache(1, 2).capacity == 2


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_dropout_repeats_with_its_seed_and_under_checkpointing(variant):
    model = small_model(variant).train()
    batch = PackedBatch.from_sequences(sequences(), predict_next=True)

    def loss_and_gradients(seed):
        model.zero_grad()
        loss = model(batch, seed=seed).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    first, again, other = loss_and_gradients(7), loss_and_gradients(7), loss_and_gradients(8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    model.gradient_checkpointing_enable()
    checkpointed = loss_and_gradients(7)
    assert all(torch.equal(a, b) for a, b in zip(first, checkpointed, strict=True))


def test_each_dropout_probability_has_its_sites():
    batch = PackedBatch.from_sequences(sequences(), predict_next=True)
    off = {"embedding_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def loss(model, seed=1) -> float:
        return model(batch, seed=seed).loss.item()

    plain = loss(small_model(**off).eval())
    assert loss(small_model(**off).train()) == plain
    losses = {loss(small_model(**{**off, name: 0.3}).train()) for name in off}
    assert len(losses | {plain}) == 4
    model = small_model(**off)
    model.set_dropout(0.3)
    assert loss(model.train()) not in losses | {plain}


@EVERY_VARIANT
def test_backends_agree(variant):
    model = small_model(variant).eval()
    batch = PackedBatch.from_sequences(sequences(), predict_next=True)
    expected = model(batch, output_logits=True)
    set_backend(model, "reference")
    got = model(batch, output_logits=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_close():
    model = small_model("llama", initializer_range=0.05).eval()
    batch = PackedBatch.from_sequences(sequences(), predict_next=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(batch).loss
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, model(batch).loss, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_growing_keeps_the_old_scores(variant):
    model = small_model(variant, tie_word_embeddings=variant == "gpt2").eval()
    ids = torch.tensor(sequences((9,)))
    before = model(input_ids=ids).logits
    model.resize_token_embeddings(110)
    assert model.config.vocab_size == 110
    assert torch.equal(model(input_ids=ids).logits[..., :97], before)
    with pytest.raises(ValueError, match="at least the 110 tokens there are, got 97"):
        model.resize_token_embeddings(97)


def test_fresh_weights():
    """Radford et al. 2019 §2.3: what writes into the stream starts smaller by sqrt(2 L)."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=500, hidden_size=128, num_hidden_layers=8, num_attention_heads=4,
                               bos_token_id=None, eos_token_id=None))  # fmt: skip
    for block in model.blocks:
        for written in (block.attention.output, block.mlp.down):
            assert written.weight.detach().std() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.attention.qkv.weight.detach().std() == pytest.approx(0.02, rel=0.05)
        assert torch.all(block.mlp_norm.weight == 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads=5, or head_dim given"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads=4, got 3"),
        ({"head_dim": 5, "position_embedding": "rotary"}, "head_dim must be even"),
        ({"norm": "batch"}, "norm must be 'layer_norm' or 'rms_norm', got 'batch'"),
        ({"sliding_window": 0}, "sliding_window must be None, or at least 1, got 0"),
        ({"eos_token_id": (3, 97)}, "eos_token_id must be None, or below vocab_size=97"),
        ({"bos_token_id": "<s>"}, "bos_token_id must be None, or below vocab_size=97, got '<s>'"),
        ({"hidden_size": "32"}, "hidden_size must be at least 1, got '32'"),
        ({"norm_eps": None}, "norm_eps must be above 0, got None"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu"),
        ({"embedding_dropout_prob": 1.0}, "embedding_dropout_prob must be at least 0 and below 1"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SIZES, **changes})


def test_bad_inputs():
    model = small_model()
    with pytest.raises(ValueError, match="41 tokens is longer than the model's 40 positions"):
        model(input_ids=torch.zeros(1, 41, dtype=torch.int64))
    with pytest.raises(ValueError, match="input_ids must be at least 0 and below 97, got 97"):
        model(input_ids=torch.tensor([[1, 97]]))
    with pytest.raises(ValueError, match="labels must be a tensor, got list"):
        model(input_ids=torch.tensor([[1, 2]]), labels=[[1, 2]])
    batch = PackedBatch.from_sequences([[1, 2, 3]], predict_next=True)
    with pytest.raises(ValueError, match="loss_denominators has no 'causal_lm'"):
        model(batch, loss_denominators={"masked_lm": 3})
    with pytest.raises(ValueError, match=r"next_tokens must have shape \(3,\)"):
        dataclasses.replace(batch, next_tokens=torch.tensor([1]))
