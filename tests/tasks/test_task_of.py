"""What a directory says it was fine-tuned for."""

import json

import pytest

from fastssl.tasks.task_of import task_of


def directory(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return tmp_path


def test_a_head_has_its_task(tmp_path):
    assert task_of(directory(tmp_path, "BertForTokenClassification")) == "tagging"


def test_a_bert_without_one_is_to_be_trained(tmp_path):
    with pytest.raises(ValueError, match=r"holds a BertForMaskedLM, which was not fine-tuned.*fastssl finetune"):
        task_of(directory(tmp_path, "BertForMaskedLM"))


def test_a_gpt_is_not_to_be_trained_for_one(tmp_path):
    with pytest.raises(ValueError, match="holds a GPT2LMHeadModel; what has a task here is a BERT") as caught:
        task_of(directory(tmp_path, "GPT2LMHeadModel"))
    assert "finetune" not in str(caught.value)
