"""The embedder: its loss against the definition and a peer, its directory against sentence-transformers."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastssl import BertConfig, BertForSentenceEmbedding, BertModel, PackedBatch, Tokenizer
from fastssl.models.bert_embedder import in_batch_loss
from fastssl.models.embedding_files import EmbeddingConfig, read_embedding_config
from fastssl.tasks.embedding.embedder import SentenceEmbedder

TEXTS = ["a cat sees a dog", "cat", "the old house by the River is large", "a b c d e f g", "dog dog", "the house"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(TEXTS, vocab_size=80, min_frequency=1)


def make_model(tokenizer: Tokenizer, embedding: EmbeddingConfig | None = None, **options) -> BertForSentenceEmbedding:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=40, initializer_range=0.3, **SIZES)
    return BertForSentenceEmbedding(config, embedding, **options)


def packed(tokenizer: Tokenizer, texts: list[str], num_pairs: int | None = None) -> PackedBatch:
    special = tokenizer.special
    sequences = [[special.cls, *tokenizer.encode(text), special.sep] for text in texts]
    return replace(PackedBatch.from_sequences(sequences), num_pairs=num_pairs)


def definition(embeddings: Tensor, num_pairs: int, temperature: float) -> Tensor:
    """The mean over the anchors, term by term."""
    terms = []
    for i in range(num_pairs):
        cosines = [F.cosine_similarity(embeddings[i], other, dim=0) for other in embeddings[num_pairs:]]
        terms.append(torch.logsumexp(torch.stack(cosines) / temperature, 0) - cosines[i] / temperature)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("others", [0, 4, 7])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_loss_is_the_definition(others: int, temperature: float):
    torch.manual_seed(others)
    embeddings = torch.randn(2 * 4 + others, 12, requires_grad=True)
    loss_sum, num_correct = in_batch_loss(embeddings, 4, temperature)
    exact = embeddings.detach().double().requires_grad_()
    expected = definition(exact, 4, temperature)
    torch.testing.assert_close(loss_sum / 4, expected.float(), rtol=1e-5, atol=1e-6)
    (loss_sum / 4).backward()
    expected.backward()
    torch.testing.assert_close(embeddings.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)
    units = F.normalize(exact.detach(), dim=1)
    assert num_correct == sum((units[4:] @ units[i]).argmax() == i for i in range(4))


@pytest.mark.parametrize("negatives", [False, True])
def test_the_loss_is_sentence_transformers(negatives: bool):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(1)
    columns = [torch.randn(6, 10) for _ in range(3 if negatives else 2)]
    ours = in_batch_loss(torch.cat(columns), 6, 1 / 20)[0] / 6
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0).compute_loss_from_embeddings(columns, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_models_loss_is_of_its_embeddings_and_is_divided_by_the_steps_pairs(tokenizer):
    model, batch = make_model(tokenizer, temperature=0.5).eval(), packed(tokenizer, TEXTS, num_pairs=2)
    assert batch.target_counts() == {"pair": 2}
    output = model(batch)
    expected = definition(output.embeddings.double(), 2, 0.5)
    torch.testing.assert_close(output.loss, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.metrics["pair_loss_sum"], 2 * output.loss.detach())
    torch.testing.assert_close(model(batch, loss_denominators={"pair": 10}).loss, output.loss / 5)
    assert model(packed(tokenizer, TEXTS)).loss is None


def test_padded_input_gives_the_packed_embeddings(tokenizer):
    model, batch = make_model(tokenizer, EmbeddingConfig(pooling=("mean", "max"))).eval(), packed(tokenizer, TEXTS)
    positions = torch.arange(batch.max_seqlen) < batch.cu_seqlens.diff()[:, None]
    padded = model(input_ids=batch.unpack(batch.input_ids), attention_mask=positions.long())
    torch.testing.assert_close(padded.embeddings, model(batch).embeddings)


def test_two_copies_of_a_sentence_differ_by_their_dropout_alone(tokenizer):
    model, batch = make_model(tokenizer), packed(tokenizer, TEXTS + TEXTS, num_pairs=len(TEXTS))
    first, second = model.train()(batch, seed=3).embeddings.chunk(2)
    assert (F.cosine_similarity(first, second) < 0.9999).all()
    first, second = model.eval()(batch).embeddings.chunk(2)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(model.train()(batch, seed=3).loss, model(batch, seed=3).loss, rtol=0, atol=0)


def test_all_but_the_pooler_is_trained(tokenizer):
    model = make_model(tokenizer).train()
    model(packed(tokenizer, TEXTS, num_pairs=3), seed=1).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("max", "mean"), ("mean", "cls")])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("truncate_dim", [None, 20, 1000])
def test_sentence_transformers_loads_the_directory_with_equal_embeddings(
    pooling, normalize, truncate_dim, tokenizer, tmp_path
):
    from sentence_transformers import SentenceTransformer

    embedding = EmbeddingConfig(
        pooling=pooling,
        normalize=normalize,
        max_length=9,
        lowercase=True,
        prompt="the cat: ",
        truncate_dim=truncate_dim,
    )
    make_model(tokenizer, embedding).save_pretrained(tmp_path)
    tokenizer.save(tmp_path, model_max_length=9)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 9
    ours = SentenceEmbedder.load(tmp_path)
    assert read_embedding_config(tmp_path) == (tmp_path, embedding)
    np.testing.assert_allclose(ours(TEXTS), theirs.encode(TEXTS, show_progress_bar=False), atol=1e-5)
    assert ours.width == theirs.get_embedding_dimension() == ours([]).shape[1]


def test_a_directory_comes_back_whole_and_hugging_face_reads_its_body(tokenizer, tmp_path):
    from transformers import AutoModel

    model = make_model(tokenizer, EmbeddingConfig(pooling=("cls",), max_length=20))
    model.save_pretrained(tmp_path)
    again = BertForSentenceEmbedding.from_pretrained(tmp_path, temperature=0.1)
    assert again.embedding == model.embedding and again.temperature == 0.1 and again.width == 32
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not again.bert.pooler.dense.weight.requires_grad
    batch = packed(tokenizer, TEXTS)
    peer = AutoModel.from_pretrained(tmp_path).eval()
    positions = torch.arange(batch.max_seqlen) < batch.cu_seqlens.diff()[:, None]
    theirs = peer(input_ids=batch.unpack(batch.input_ids), attention_mask=positions.long()).last_hidden_state[:, 0]
    torch.testing.assert_close(again(batch).embeddings, theirs, rtol=1e-4, atol=1e-5)
    assert set(load_file(tmp_path / "model.safetensors")) == {name for name, _ in peer.named_parameters()}


def test_any_bert_may_be_the_body(tokenizer, tmp_path, recwarn):
    torch.manual_seed(0)
    BertModel(make_model(tokenizer).config, add_pooling_layer=False).save_pretrained(tmp_path)
    model = BertForSentenceEmbedding.from_pretrained(tmp_path)
    assert model.embedding == EmbeddingConfig(pooling=("mean",), max_length=40)
    assert not recwarn
    assert model(packed(tokenizer, TEXTS)).embeddings.shape == (6, 32)


def test_real_weights_keep_their_numbers(minilm_directory: Path, tmp_path: Path):
    model = BertForSentenceEmbedding.from_pretrained(minilm_directory)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm_directory / name, tmp_path)
    expected, found = (SentenceEmbedder.load(directory)(TEXTS) for directory in (minilm_directory, tmp_path))
    np.testing.assert_array_equal(found, expected)


def test_wrong_settings_and_batches_are_told(tokenizer):
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        make_model(tokenizer, temperature=0)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"at least 1 and at most half of the 6 sequences, got {wrong}"):
            packed(tokenizer, TEXTS, num_pairs=wrong)
