"""Pseudo-log-likelihoods: equal to masking one token after the other, however they are batched."""

import pytest
import torch

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.tasks.pseudo_likelihood import PseudoLikelihoodScorer, pseudo_log_likelihoods

TEXTS = ["the horse saw the house", "rain", "the [MASK] of the horse", "", "horses, houses and the rain in the house"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(TEXTS * 5, vocab_size=90)


@pytest.fixture(scope="module")
def model(tokenizer) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


@torch.no_grad()
def one_by_one(model: BertForMaskedLM, ids: list[int], mask: int) -> list[float]:
    """The definition."""
    found = []
    for place in range(1, len(ids) - 1):
        masked = [*ids[:place], mask, *ids[place + 1 :]]
        logits = model(input_ids=torch.tensor([masked])).logits[0, place].double()
        found.append(float(logits.log_softmax(-1)[ids[place]]))
    return found


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 4096])
def test_equal_to_masking_in_turn(model, tokenizer, tokens_per_batch):
    special = tokenizer.special
    found = PseudoLikelihoodScorer(model, tokenizer, tokens_per_batch=tokens_per_batch)(TEXTS)
    assert [one.text for one in found] == TEXTS
    for one in found:
        ((ids, _),) = tokenizer.encode_batch([one.text])
        expected = one_by_one(model, [special.cls, *ids.tolist(), special.sep], special.mask)
        assert one.log_probabilities == pytest.approx(expected, abs=1e-5)
        assert one.tokens == tuple(map(tokenizer.id_to_token, ids))
        assert one.score == pytest.approx(sum(expected), abs=1e-4)
    assert found[3].score == 0 and found[3].perplexity == 1
    assert found[1].perplexity == pytest.approx(torch.tensor(found[1].log_probabilities).mean().neg().exp().item())


def test_a_mask_in_the_text_is_ordinary_characters(model, tokenizer):
    assert tokenizer.special_names["mask"] not in PseudoLikelihoodScorer(model, tokenizer)([TEXTS[2]])[0].tokens


def test_all_positions_and_some(model, tokenizer):
    sequences = [[2, 7, 9, 3], [2, 11, 3]]
    everywhere = pseudo_log_likelihoods(model, sequences, mask_token=4)
    some = pseudo_log_likelihoods(model, sequences, mask_token=4, positions=[[2], []])
    assert [len(own) for own in everywhere] == [4, 3] and len(some[1]) == 0
    assert some[0][0] == pytest.approx(everywhere[0][2], abs=1e-6)
    assert sequences == [[2, 7, 9, 3], [2, 11, 3]]


def test_mistakes_are_told(model, tokenizer):
    scorer = PseudoLikelihoodScorer(model, tokenizer)
    with pytest.raises(ValueError, match="and the model reads at most 40; shorten it"):
        scorer(["the horse " * 30])
    with pytest.raises(ValueError, match="got one; put it into a list"):
        scorer("the horse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [[-1]]}, "sequence 0 has 4 tokens, numbered from 0, and none at -1"),
        ({"positions": [[4]]}, "sequence 0 has 4 tokens, numbered from 0, and none at 4"),
        ({"positions": []}, "positions must be given for each of the 1 sequences, got 0"),
        ({"sequences": [[2, 999, 3]]}, "sequence 0 has the token 999, and the vocabulary ends at"),
        ({"sequences": [[2, 7.9, 3]]}, "must hold whole numbers, got float64"),
        ({"sequences": [[2] * 41]}, "sequence 0 has 41 tokens, and the model reads at most 40"),
        ({"mask_token": -1}, "mask_token must be below the vocabulary's"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be at least 1, got 0"),
    ],
)
def test_token_ids_that_are_none(model, change, message):
    with pytest.raises(ValueError, match=message):
        pseudo_log_likelihoods(model, **{"sequences": [[2, 7, 9, 3]], "mask_token": 4} | change)


def test_a_directory_scores_the_same(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    again = PseudoLikelihoodScorer.load(tmp_path)(TEXTS[:1])[0]
    assert again.score == pytest.approx(PseudoLikelihoodScorer(model, tokenizer)(TEXTS[:1])[0].score, abs=1e-5)
