"""BERT from packed tokens to loss: layouts, dropout, checkpointing, losses, precision, errors."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining, BertModel
from fastssl.models.bert_config import BertConfig
from fastssl.nn.backend import set_backend
from fastssl.nn.dropout import site_seeds
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask
from tests.models.peers import ODD_SIZES, padded_inputs

NORM_POSITIONS = pytest.mark.parametrize("norm_position", ["post", "pre"])


def small_model(model_class=BertForPreTraining, **changes):
    torch.manual_seed(3)
    return model_class(BertConfig(**{**ODD_SIZES, "initializer_range": 0.2, **changes}))


def packed_batch(**kwargs) -> PackedBatch:
    inputs = padded_inputs(**kwargs)
    return PackedBatch.from_padded(sentence_labels=inputs.pop("next_sentence_label"), **inputs)


def loss_and_gradients(model, batch, **options):
    model.zero_grad()
    loss = model(batch, **options).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def all_equal(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@NORM_POSITIONS
def test_packed_and_padded_are_the_same(norm_position):
    model = small_model(norm_position=norm_position).eval()
    inputs, batch = padded_inputs(), packed_batch()
    padded = model(**inputs, output_logits=True, output_hidden_states=True)
    packed = model(batch, output_logits=True, output_hidden_states=True)
    assert torch.equal(padded.loss, packed.loss)
    assert torch.equal(padded.logits, batch.unpack(packed.logits))
    for one, other in zip(padded.hidden_states, packed.hidden_states, strict=True):
        assert torch.equal(one, batch.unpack(other))
    assert packed.logits.shape == (batch.num_tokens, 101)
    assert packed.seq_relationship_logits.shape == (4, 2)


def test_padding_changes_no_bit():
    model = small_model().eval()
    inputs = padded_inputs()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = model(input_ids=ids, attention_mask=mask).logits[mask == 1]
    for left, right in ((0, 6), (6, 0), (2, 4)):
        pad = (left, right)
        wide_mask = F.pad(mask, pad)
        # What stands at padding does not matter either.
        got = model(input_ids=F.pad(ids, pad, value=77), attention_mask=wide_mask).logits
        assert torch.equal(got[wide_mask == 1], expected)


@NORM_POSITIONS
def test_a_sequence_does_not_see_its_batch(norm_position):
    model = small_model(norm_position=norm_position).eval()
    sequences = [row[:n].tolist() for row, n in zip(padded_inputs()["input_ids"], (7, 1, 23, 12), strict=True)]
    together = model.bert(PackedBatch.from_sequences(sequences)).last_hidden_state.split([7, 1, 23, 12])
    for sequence, seen in zip(sequences, together, strict=True):
        alone = model.bert(PackedBatch.from_sequences([sequence])).last_hidden_state
        torch.testing.assert_close(seen, alone, rtol=1e-5, atol=1e-5)


def pre_norm_definition(model: BertModel, ids: torch.Tensor) -> torch.Tensor:
    """A pre-norm encoder over one sequence, spelt out in plain torch."""

    def norm(layer, x):
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)

    e = model.embeddings
    x = norm(e.norm, e.word(ids) + e.position(torch.arange(len(ids))) + e.token_type(torch.zeros_like(ids)))
    for block in model.encoder.blocks:
        h = norm(block.attention_norm, x)
        q, k, v = (p.unflatten(-1, (3, -1)).transpose(0, 1) for p in block.attention.qkv(h).chunk(3, dim=-1))
        x = x + block.attention.output(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        x = x + block.mlp.down(F.gelu(block.mlp.up(norm(block.mlp_norm, x))))
    return norm(model.encoder.final_norm, x)


def test_pre_norm_follows_its_definition():
    model = small_model(BertModel, norm_position="pre").double().eval()
    ids = torch.arange(1, 14)
    got = model(PackedBatch.from_sequences([ids.tolist()]), output_hidden_states=True)
    torch.testing.assert_close(got.last_hidden_state, pre_norm_definition(model, ids))
    assert len(got.hidden_states) == 4


def test_embedding_dropout_comes_after_the_norm():
    p, seed = 0.3, torch.tensor(11)
    for norm_position in ("post", "pre"):
        model = small_model(BertModel, num_hidden_layers=0, norm_position=norm_position, hidden_dropout_prob=p).train()
        batch = packed_batch()
        embedded = model.embeddings(batch.input_ids, batch.position_ids, batch.token_type_ids)
        keep = layer_norm_keep_mask(*embedded.shape, p, site_seeds(seed, 1)[0])
        expected = embedded * keep * dropout_scale(p)
        if norm_position == "pre":
            expected = F.layer_norm(expected, expected.shape[-1:], eps=1e-12)
        torch.testing.assert_close(model.encode(batch, seed), expected)


@NORM_POSITIONS
def test_dropout_is_a_function_of_the_seed(norm_position):
    model = small_model(norm_position=norm_position).train()
    batch = packed_batch()
    first = loss_and_gradients(model, batch, seed=5)
    assert all_equal(first, loss_and_gradients(model, batch, seed=torch.tensor(5)))
    assert not torch.equal(first[0], model(batch, seed=6).loss)
    torch.manual_seed(8)
    drawn = model(batch).loss
    assert not torch.equal(drawn, model(batch).loss)
    torch.manual_seed(8)
    assert torch.equal(drawn, model(batch).loss)
    assert torch.equal(model.eval()(batch, seed=5).loss, model(batch, seed=6).loss)


def test_without_probabilities_training_is_evaluation():
    model = small_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = packed_batch()
    assert torch.equal(model.train()(batch, seed=1).loss, model.eval()(batch).loss)


@NORM_POSITIONS
def test_every_dropout_site_uses_its_own_mask(norm_position):
    """With one site left at a time, the loss changes with the seed of the step."""
    batch = packed_batch()
    for changes in ({"hidden_dropout_prob": 0.0}, {"attention_probs_dropout_prob": 0.0}):
        model = small_model(norm_position=norm_position, **changes).train()
        assert not torch.equal(model(batch, seed=1).loss, model(batch, seed=2).loss)


@NORM_POSITIONS
def test_checkpointing_repeats_dropout(norm_position):
    model = small_model(norm_position=norm_position).train()
    batch = packed_batch()
    kept = loss_and_gradients(model, batch, seed=5)
    model.gradient_checkpointing_enable()
    assert all_equal(kept, loss_and_gradients(model, batch, seed=5))
    model.gradient_checkpointing_disable()
    assert all_equal(kept, loss_and_gradients(model, batch, seed=5))


def test_checkpointing_keeps_less():
    model, batch = small_model(num_hidden_layers=6).train(), packed_batch()

    def kept_bytes() -> int:
        storages = {}

        def note(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(batch, seed=1)
        return sum(storages.values())

    everything = kept_bytes()
    model.gradient_checkpointing_enable()
    assert kept_bytes() < 0.7 * everything


@NORM_POSITIONS
def test_backends_agree_with_dropout(norm_position):
    model = small_model(norm_position=norm_position).train()
    batch = packed_batch()
    chosen = loss_and_gradients(model, batch, seed=5)
    set_backend(model, "reference")
    for one, other in zip(chosen, loss_and_gradients(model, batch, seed=5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_losses_and_metrics_are_sums_over_targets():
    model, inputs = small_model().eval(), padded_inputs()
    out = model(**inputs, output_logits=True)
    labels, sentence_labels = inputs["labels"], inputs["next_sentence_label"]
    chosen = labels != -100
    expected = F.cross_entropy(out.logits[chosen], labels[chosen], reduction="sum")
    torch.testing.assert_close(out.metrics["masked_lm_loss_sum"], expected)
    assert out.metrics["masked_lm_count"] == chosen.sum()
    assert out.metrics["masked_lm_correct"] == (out.logits.argmax(-1) == labels)[chosen].sum()
    sentence = F.cross_entropy(out.seq_relationship_logits, sentence_labels, reduction="sum")
    torch.testing.assert_close(out.metrics["sentence_loss_sum"], sentence)
    assert out.metrics["sentence_count"] == 4
    assert out.metrics["sentence_correct"] == (out.seq_relationship_logits.argmax(-1) == sentence_labels).sum()
    torch.testing.assert_close(out.loss, expected / chosen.sum() + sentence / 4)
    assert not any(metric.requires_grad for metric in out.metrics.values())


def test_accumulated_micro_batches_are_one_batch():
    model = small_model().eval()
    whole = padded_inputs()
    halves = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 2), slice(2, 4))]
    expected = loss_and_gradients(model, packed_batch())
    totals = packed_batch().target_counts()
    model.zero_grad()
    losses = [model(**half, loss_denominators=totals).loss for half in halves]
    sum(losses).backward()
    torch.testing.assert_close(sum(losses).detach(), expected[0])
    for parameter, gradient in zip((p for p in model.parameters() if p.grad is not None), expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_nothing_to_predict():
    model, inputs = small_model(BertForMaskedLM).eval(), padded_inputs()
    labels = torch.full_like(inputs["labels"], -100)
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
    assert out.loss == 0
    out.loss.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_sentence_labels_alone():
    model, batch = small_model().eval(), packed_batch()
    out = model(dataclasses.replace(batch, masked_positions=None, masked_labels=None))
    assert set(out.metrics) == {"sentence_loss_sum", "sentence_correct", "sentence_count"}
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("way", ["parameters", "autocast"])
def test_bfloat16_follows_float32(norm_position, way):
    model = small_model(norm_position=norm_position).train()
    batch = packed_batch()
    exact = loss_and_gradients(model, batch, seed=5)[0]
    if way == "parameters":
        model.bfloat16()
        rough = loss_and_gradients(model, batch, seed=5)
        assert all(g.dtype == torch.bfloat16 for g in rough[1:])
    else:
        with torch.autocast("cpu", torch.bfloat16):
            rough = loss_and_gradients(model, batch, seed=5)
        assert all(g.dtype == torch.float32 for g in rough[1:])
    assert abs(rough[0].float() - exact) < 0.05 * exact
    assert all(g.isfinite().all() for g in rough[1:])


def test_wrong_calls_are_explained():
    model, inputs, batch = small_model().eval(), padded_inputs(), packed_batch()
    ids = inputs["input_ids"]
    with pytest.raises(ValueError, match=r"got Tensor; pass padded tensors by name"):
        model(ids)
    with pytest.raises(ValueError, match="got neither"):
        model()
    with pytest.raises(ValueError, match="also input_ids, labels; give one"):
        model(batch, input_ids=ids, labels=inputs["labels"])
    with pytest.raises(ValueError, match="30 tokens is longer than the model's 29 positions"):
        model(input_ids=torch.ones(1, 30, dtype=torch.long))
    with pytest.raises(ValueError, match="input_ids must be at least 0 and below 101, got 101"):
        model(input_ids=torch.tensor([[5, 101]]))
    with pytest.raises(ValueError, match="position_ids must be at least 0 and below 29, got 29"):
        model(input_ids=torch.tensor([[5]]), position_ids=torch.tensor([[29]]))
    with pytest.raises(ValueError, match="token_type_ids must be at least 0 and below 3, got 3"):
        model(input_ids=torch.tensor([[5]]), token_type_ids=torch.tensor([[3]]))
    with pytest.raises(ValueError, match=r"loss_denominators has no 'sentence', got \['masked_lm'\]"):
        model(batch, loss_denominators={"masked_lm": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 10, "num_attention_heads": 3},
            "hidden_size must be a multiple of num_attention_heads=3, got 10",
        ),
        ({"hidden_act": "tanh"}, "hidden_act must be one of gelu, .*, got 'tanh'"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be at least 0 and below 1, got 1.0"),
        ({"norm_position": "both"}, "norm_position must be"),
        ({"pad_token_id": 30522}, "pad_token_id must be None, or below vocab_size=30522"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ],
)
def test_wrong_configs_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        BertConfig(**changes)


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_can_grow(tied):
    model, batch = small_model(tie_word_embeddings=tied).eval(), packed_batch()
    before = model(batch, output_logits=True)
    model.resize_token_embeddings(120)
    after = model(batch, output_logits=True)
    assert model.config.vocab_size == model.bert.config.vocab_size == 120
    torch.testing.assert_close(after.logits[:, :101], before.logits)
    assert after.logits.shape[-1] == 120
    grown = model(PackedBatch.from_sequences([[119, 5]], labels=[[-100, 110]])).loss
    grown.backward()
    assert model.bert.embeddings.word.weight.grad[119].abs().max() > 0
    with pytest.raises(ValueError, match="at least the 120 tokens"):
        model.resize_token_embeddings(119)


def test_fresh_weights_are_berts():
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**{**ODD_SIZES, "hidden_size": 96, "num_attention_heads": 3}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.bert.embeddings.word.weight[0].abs().max() == 0


@pytest.mark.native
@pytest.mark.slow
def test_compiled_step_is_the_eager_one():
    model = small_model(num_hidden_layers=1).train()
    batches = [packed_batch(), packed_batch(lengths=(5, 9), length=9, seed=4)]
    expected = [loss_and_gradients(model, batch, seed=torch.tensor(5)) for batch in batches]
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    for batch, eager in zip(batches, expected, strict=True):
        for one, other in zip(loss_and_gradients(compiled, batch, seed=torch.tensor(5)), eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
