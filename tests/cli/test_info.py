"""`fastssl info`: the table, the JSON, and what it says of wrong input."""

import json

import pytest
import torch

from fastssl.cli.main import main
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from tests.models.peers import ODD_SIZES


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out


def test_a_preset_with_its_heads(capsys):
    out = shown(capsys, "bert-base-uncased")
    assert "BertForPreTraining, 12 layers, width 768, 12 heads, vocabulary 30,522" in out
    assert out.split("total")[1].split()[0] == "110,106,428"
    assert "545.4 MFLOPs per token" in out


def test_json_of_a_directory(capsys, tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**ODD_SIZES))
    model.save_pretrained(tmp_path)
    found = json.loads(shown(capsys, str(tmp_path), "--json", "--max-seq-length", "20", "--tokens-per-batch", "100"))
    assert found["class"] == "BertForMaskedLM"
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"] == sum(row["total"] for row in found["parameters_by_part"])
    assert found["config"]["hidden_size"] == 36
    assert found["max_seq_length"] == 20
    memory = found["training_memory_bytes"]
    assert memory.pop("total") == sum(memory.values())


def test_real_weights(capsys, minilm_directory):
    found = json.loads(shown(capsys, str(minilm_directory), "--json"))
    assert (found["class"], found["parameters"]) == ("BertModel", 22_713_216)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bert-bsae"], "did you mean 'bert-base'?"),
        (["no/such/model"], "no/such/model is not a directory"),
        (["bert-tiny", "--max-seq-length", "513"], "between 1 and the model's 512 positions, got 513"),
        (["bert-tiny", "--masked-fraction", "1.5"], "masked_fraction must be between 0 and 1, got 1.5"),
        (["bert-tiny", "--tokens-per-batch", "0"], "tokens_per_batch must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_clean_line(capsys, arguments, message):
    assert main(["info", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fastssl: error: ")
    assert error.count("\n") == 1


def test_another_kind_of_model(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert main(["info", str(tmp_path)]) == 1
    assert "holds a model of type 't5', expected bert or one of gpt2, llama, mistral, qwen2" in capsys.readouterr().err


def test_a_tagger(capsys, tmp_path):
    BertForTokenClassification(BertConfig(**ODD_SIZES, labels=("N", "V", "DET"))).save_pretrained(tmp_path)
    found = json.loads(shown(capsys, str(tmp_path), "--json", "--max-seq-length", "20"))
    assert found["class"] == "BertForTokenClassification"
    assert {"classifier": 3 * 36 + 3}.items() <= {r["part"]: r["total"] for r in found["parameters_by_part"]}.items()


def test_a_gpt(capsys, tmp_path):
    out = shown(capsys, "gpt2", "--max-seq-length", "1024")
    assert "GPTForCausalLM, 12 layers, width 768, 12 heads, vocabulary 50,257, 1,024 positions" in out
    assert out.split("total")[1].split()[0] == "124,439,808"
    assert "854.4 MFLOPs per token" in out
    assert "100% predicted" in out
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    model = GPTForCausalLM(GPTConfig(**sizes, vocab_size=50, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path)
    found = json.loads(shown(capsys, str(tmp_path), "--json"))
    assert (found["class"], found["max_seq_length"], found["masked_fraction"]) == ("GPTForCausalLM", 16, 1.0)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["config"]["model_type"] == "gpt2"
