"""`fastssl fill-mask`: tables, JSON, and what it says of wrong input."""

import json

import pytest
import torch

from fastssl.cli.main import main
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model that likes 灣 best everywhere, because its decoder bias says so."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train_wordpiece(["台灣大學", "我愛台灣"] * 2, vocab_size=40)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, num_attention_heads=2, max_position_embeddings=9
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.masked_lm_head.bias[tokenizer.token_to_id("灣")] = 10.0
    model.save_pretrained(path)
    tokenizer.save(path)
    return str(path)


def test_tables(directory, capsys):
    assert main(["fill-mask", "--model", directory, "台[MASK]大學", "台[MASK]大[MASK]", "--top-k", "2"]) == 0
    out = capsys.readouterr().out
    assert "台灣大學" in out
    assert "台灣大灣" in out
    assert "mask 2" in out
    assert out.count("灣") == 6
    assert "%" in out


def test_json(directory, capsys):
    assert main(["fill-mask", "--model", directory, "--json", "--top-k", "3", "台[MASK]大學", "[MASK][MASK]"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert one["filled"] == "台灣大學"
    assert [len(mask) for mask in one["masks"]] == [3]
    assert [len(mask) for mask in two["masks"]] == [3, 3]
    best = one["masks"][0][0]
    assert best["token"] == "灣"
    assert 0.9 < best["probability"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["台灣大學"], "the text '台灣大學' has no [MASK]"),
        (["台[MASK]" * 5], "has 12 tokens, [CLS] and [SEP] included, and the model reads at most 9"),
        (["[MASK]", "--top-k", "99"], "top_k must be between 1 and the"),
        ([], "there is no text to fill"),
    ],
)
def test_wrong_texts(directory, capsys, arguments, message):
    assert main(["fill-mask", "--model", directory, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_that_cannot(tmp_path, capsys, minilm_directory):
    assert main(["fill-mask", "--model", str(tmp_path / "nowhere"), "[MASK]"]) == 1
    assert "no tokenizer at" in capsys.readouterr().err
    assert main(["fill-mask", "--model", str(minilm_directory), "[MASK]"]) == 1
    assert "a model without a masked-LM head" in capsys.readouterr().err
