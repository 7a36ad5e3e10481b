"""Masks are filled with the likeliest tokens, alone and together."""

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.tasks.fill_mask import FillMask

TEXTS = ["台灣大學", "台灣是個島", "我愛台灣", "大學生愛大學"] * 2


@pytest.fixture(scope="module")
def chinese():
    """A tiny model that has learnt four Chinese phrases by heart, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_wordpiece(TEXTS, vocab_size=60)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=tokenizer.vocab_size + 3,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            initializer_range=0.1,
        )
    )
    special = tokenizer.special
    sequences, labels = [], []
    for ids in map(tokenizer.encode, TEXTS):
        for hidden in range(len(ids)):
            sequences.append(
                [special.cls, *(special.mask if i == hidden else t for i, t in enumerate(ids)), special.sep]
            )
            labels.append([-100, *(t if i == hidden else -100 for i, t in enumerate(ids)), -100])
    batch = PackedBatch.from_sequences(sequences, labels=labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        optimizer.zero_grad()
        model(batch, seed=step).loss.backward()
        optimizer.step()
    return FillMask(model, tokenizer)


def test_the_lectures_example(chinese):
    (result,) = chinese(["台[MASK]大學"], top_k=4)
    assert result.text == "台[MASK]大學"
    assert result.filled == "台灣大學"
    (candidates,) = result.masks
    assert candidates[0].token == "灣"
    assert candidates[0].probability > 0.5
    probabilities = [candidate.probability for candidate in candidates]
    assert probabilities == sorted(probabilities, reverse=True)


def test_several_masks_and_texts(chinese):
    texts = ["[MASK]灣大[MASK]", "我[MASK]台灣", "台[MASK]大學"]
    results = chinese(texts)
    assert [result.filled for result in results] == ["台灣大學", "我愛台灣", "台灣大學"]
    assert [len(result.masks) for result in results] == [2, 1, 1]
    one_by_one = FillMask(chinese.model, chinese.tokenizer, tokens_per_batch=1)(texts)
    for one, other in zip(results, one_by_one, strict=True):
        assert one.filled == other.filled
        assert one.masks[0][0].probability == pytest.approx(other.masks[0][0].probability, rel=1e-4)


def test_probabilities_are_of_the_tokenizers_vocabulary(chinese):
    size = chinese.tokenizer.vocab_size
    (result,) = chinese(["我[MASK]台灣"], top_k=size)
    assert {candidate.token_id for candidate in result.masks[0]} == set(range(size))
    assert sum(candidate.probability for candidate in result.masks[0]) == pytest.approx(1, rel=1e-4)


def test_directories(chinese, tmp_path, minilm_directory):
    chinese.model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        FillMask.load(tmp_path)
    chinese.tokenizer.save(tmp_path)
    loaded = FillMask.load(tmp_path)
    assert loaded(["台[MASK]大學"])[0].filled == "台灣大學"
    with pytest.raises(ValueError, match="without a masked-LM head"):
        FillMask.load(minilm_directory)


def test_transformers_agrees(chinese, tmp_path):
    import transformers

    chinese.model.save_pretrained(tmp_path)
    chinese.tokenizer.save(tmp_path)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)("台[MASK]大學", return_tensors="pt")
    row = theirs(**inputs).logits[0, inputs["input_ids"][0] == chinese.tokenizer.special.mask][0]
    assert row.argmax() == chinese(["台[MASK]大學"])[0].masks[0][0].token_id


def test_wrong_texts_are_explained(chinese):
    with pytest.raises(ValueError, match=r"the text '台灣大學' has no \[MASK\]"):
        chinese(["台[MASK]大學", "台灣大學"])
    with pytest.raises(ValueError, match=r"has 43 tokens, .* reads at most 16"):
        chinese(["台灣" * 20 + "[MASK]"])
    with pytest.raises(ValueError, match="top_k must be between 1 and"):
        chinese(["[MASK]"], top_k=0)
    smaller = BertForMaskedLM(BertConfig(vocab_size=10, hidden_size=8, num_attention_heads=1, num_hidden_layers=0))
    with pytest.raises(ValueError, match="tokens and the model 10"):
        FillMask(smaller, chinese.tokenizer)
    with pytest.raises(ValueError, match="tokens_per_batch must be at least 1, got 0"):
        FillMask(chinese.model, chinese.tokenizer, tokens_per_batch=0)
    assert chinese([]) == []
