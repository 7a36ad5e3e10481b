"""The verb `score`, as a person calls it, for both kinds of models."""

import json

import pytest
import torch

from fastssl.cli.main import main
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.tasks.pseudo_likelihood import PseudoLikelihoodScorer
from tests.tasks.test_in_context import tiny_model

TEXTS = ["the horse and the house", "rain", "", "naïve" * 30]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_log_probabilities_of_a_causal_model(file, tmp_path, capsys):
    directory = tiny_model(tmp_path / "gpt")
    assert main(["score", str(file), "--model", str(directory)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in rows] == TEXTS
    assert [int(row[1]) for row in rows] == [len(text.encode()) for text in TEXTS]
    ids = torch.tensor([[256, *TEXTS[0].encode()]])
    loss = GPTForCausalLM.from_pretrained(directory).eval()(input_ids=ids, labels=ids).loss
    assert float(rows[0][0]) == pytest.approx(-loss.item() * len(TEXTS[0]), abs=1e-2)
    assert float(rows[2][0]) == 0


def test_a_model_without_a_first_token(file, tmp_path, capsys):
    path = tiny_model(tmp_path / "gpt") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": None, "eos_token_id": None}))
    assert main(["score", str(file), "--model", str(path.parent)]) == 1
    assert "neither a first token to put in front of a text nor an end token; name one" in capsys.readouterr().err


def test_pseudo_log_likelihoods_of_bert(file, tmp_path, capsys):
    tokenizer = Tokenizer.train_wordpiece(TEXTS * 3, vocab_size=60)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=200,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert main(["score", str(file), "--model", str(tmp_path), "--json", "--num-threads", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = PseudoLikelihoodScorer.load(tmp_path)(TEXTS)
    assert [row["score"] for row in rows] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert [row["tokens"] for row in rows] == [len(one.tokens) for one in expected]


def test_mistakes_are_told(tmp_path, capsys):
    assert main(["score", str(tmp_path / "nowhere.txt"), "--model", str(tmp_path)]) == 1
    assert "nowhere.txt" in capsys.readouterr().err
