"""Hooks: whoever looks at a part of a model, or changes what it gives, is called."""

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining
from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_question_answering import BertForQuestionAnswering
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig

SIZES = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS = [
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPTForCausalLM,
]
NOT_CALLED = {"bert", "gpt", "bert.encoder.blocks", "gpt.blocks"}
"""A head calls its body's `encode`; and a list is none to call."""


def build(model_class):
    torch.manual_seed(0)
    if model_class is GPTForCausalLM:
        return model_class(GPTConfig(**SIZES, bos_token_id=None, eos_token_id=None))
    return model_class(BertConfig(**SIZES))


def logits_of(model):
    output = model(input_ids=torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]))
    return next(value for name, value in vars(output).items() if "logits" in name and value is not None)


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("model_class", MODELS)
def test_each_part_is_called_where_nobody_looks_at_the_others(model_class, grads):
    model = build(model_class).eval()
    expected = logits_of(model)
    for name, part in model.named_modules():
        if not name or name in NOT_CALLED:
            continue
        called = []
        handle = part.register_forward_hook(lambda *_, called=called: called.append(True))
        with torch.set_grad_enabled(grads):
            torch.testing.assert_close(logits_of(model), expected)
        assert called, name
        handle.remove()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, GPTForCausalLM])
def test_a_hook_on_the_head_counts_in_the_loss(model_class, tied):
    torch.manual_seed(0)
    if model_class is GPTForCausalLM:
        if tied:
            pytest.skip("the words score by themselves")
        model = model_class(GPTConfig(**SIZES, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False)).eval()
        head = model.head
    else:
        model = model_class(BertConfig(**SIZES, tie_word_embeddings=tied)).eval()
        head = model.masked_lm_head if tied else model.masked_lm_head.decoder
    ids, labels = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, -100, 7, 8]])
    before = model(input_ids=ids, labels=labels, output_logits=True)
    head.register_forward_hook(lambda module, inputs, scores: 3 * scores)
    after = model(input_ids=ids, labels=labels, output_logits=True)
    assert not torch.allclose(before.logits, after.logits)
    shift = model_class is GPTForCausalLM
    logits, targets = (after.logits[:, :-1], labels[:, 1:]) if shift else (after.logits, labels)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(after.loss, expected)
    kept = targets != -100
    kind = "causal_lm" if shift else "masked_lm"
    assert after.metrics[f"{kind}_correct"] == (logits.argmax(-1) == targets)[kept].sum()


def test_a_hook_on_the_words_of_a_tied_model_changes_them_and_their_gradients():
    model, batch = build(BertForMaskedLM).eval(), PackedBatch.from_sequences([[5, 6, 7]], labels=[[-100, 6, -100]])
    word, grads = model.bert.embeddings.word, []
    for hooked in (False, True):
        if hooked:
            word.register_forward_hook(lambda module, inputs, rows: 2 * rows)
        model.zero_grad()
        model(batch).loss.backward()
        grads.append(word.weight.grad.clone())
    assert grads[1][5].abs().sum() > 0 and not torch.allclose(*grads)
