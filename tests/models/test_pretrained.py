"""Model directories: published spellings and layouts, and errors that name what is wrong."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from fastssl.data.tokenizer import Tokenizer
from fastssl.models import pretrained
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining, BertModel
from fastssl.models.bert_config import BertConfig
from tests.models.peers import ODD_SIZES

WORD = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def saved(tmp_path):
    """A directory with a model, and its tensors."""
    torch.manual_seed(2)
    model = BertForPreTraining(BertConfig(**ODD_SIZES, initializer_range=0.2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return model, tmp_path, safetensors.torch.load_file(tmp_path / "model.safetensors")


def write(directory, tensors):
    safetensors.torch.save_file(tensors, directory / "model.safetensors")


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_real_weights(minilm_directory):
    from transformers import AutoModel, AutoTokenizer

    texts = ["A saw cannot saw a saw.", "Self-supervision turns text into (input, target) pairs; short.", "!"]
    inputs = AutoTokenizer.from_pretrained(minilm_directory)(texts, padding=True, return_tensors="pt")
    theirs = AutoModel.from_pretrained(minilm_directory).eval()
    ours = BertModel.from_pretrained(minilm_directory).eval()
    assert sum(p.numel() for p in ours.parameters()) == 22_713_216
    assert ours.load_report == pretrained.LoadReport(skipped=("bert.embeddings.position_ids",))
    expected, got = theirs(**inputs), ours(**inputs)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(got.last_hidden_state[real], expected.last_hidden_state[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_a_body_gets_a_fresh_head_and_says_so(minilm_directory):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"no weights for masked_lm_head.bias, masked_lm_head.dense.weight.*fresh"):
        model = BertForMaskedLM.from_pretrained(minilm_directory)
    assert "bert.pooler.dense.weight" in model.load_report.skipped
    assert set(model.load_report.fresh) == {n for n, _ in model.named_parameters() if n.startswith("masked_lm_head")}
    assert model.masked_lm_head.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.masked_lm_head.norm.weight, torch.ones(384))
    assert model.masked_lm_head.bias.abs().max() == 0
    ids = Tokenizer.load(minilm_directory).encode("the [MASK] of england")
    out = model(input_ids=torch.tensor([ids]), labels=torch.tensor([[-100, 5, -100, -100]]))
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_heads_are_added_and_left_out(saved, tmp_path):
    model, directory, _ = saved
    masked = BertForMaskedLM.from_pretrained(directory)
    assert not masked.training
    assert "cls.seq_relationship.weight" in masked.load_report.skipped
    masked.save_pretrained(tmp_path / "masked")
    with pytest.warns(UserWarning, match="bert.pooler.dense.weight"):
        whole = BertForPreTraining.from_pretrained(tmp_path / "masked")
    assert set(whole.load_report.fresh) == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "sentence_head.weight", "sentence_head.bias",
    }  # fmt: skip
    assert torch.equal(whole.masked_lm_head.bias, model.masked_lm_head.bias)


def test_tensors_that_share_memory_in_a_pickle(saved):
    _, directory, tensors = saved
    (directory / "model.safetensors").unlink()
    tensors["cls.predictions.decoder.weight"] = tensors[WORD]
    torch.save(tensors, directory / "pytorch_model.bin")
    change_config(directory, tie_word_embeddings=False)
    model = BertForMaskedLM.from_pretrained(directory)
    assert model.masked_lm_head.decoder.weight.data_ptr() != model.bert.embeddings.word.weight.data_ptr()


def test_historic_names(saved):
    model, directory, tensors = saved
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(29)[None]
    old["cls.predictions.decoder.weight"] = tensors[WORD].clone()
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    write(directory, old)
    loaded = BertForPreTraining.from_pretrained(directory)
    assert same_weights(model, loaded)
    assert loaded.load_report.skipped == (
        "bert.embeddings.position_ids", "cls.predictions.decoder.bias", "cls.predictions.decoder.weight",
    )  # fmt: skip


def test_a_tied_copy_serves_where_the_original_is_missing(saved):
    model, directory, tensors = saved
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    tensors["cls.predictions.decoder.weight"] = tensors.pop(WORD)
    write(directory, tensors)
    assert same_weights(model, BertForPreTraining.from_pretrained(directory))


def test_tied_copies_that_differ_are_named(saved):
    _, directory, tensors = saved
    write(directory, {**tensors, "cls.predictions.decoder.weight": tensors[WORD] + 1})
    with pytest.raises(
        ValueError, match=r"cls.predictions.decoder.weight differs from bert.*tie_word_embeddings.*false"
    ):
        BertForPreTraining.from_pretrained(directory)
    BertModel.from_pretrained(directory)
    change_config(directory, tie_word_embeddings=False)
    loaded = BertForMaskedLM.from_pretrained(directory)
    assert torch.equal(loaded.masked_lm_head.decoder.weight, tensors[WORD] + 1)
    assert torch.equal(loaded.masked_lm_head.bias, tensors["cls.predictions.bias"])


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_kind_of_weight_file(saved, kind, shards):
    model, directory, tensors = saved
    (directory / "model.safetensors").unlink()
    stem, save = {
        "safetensors": ("model.safetensors", safetensors.torch.save_file),
        "pickle": ("pytorch_model.bin", torch.save),
    }[kind]
    names = sorted(tensors)
    files = {f"{i}-of-{shards}.{stem}" if shards > 1 else stem: names[i::shards] for i in range(shards)}
    for file, part in files.items():
        save({name: tensors[name] for name in part}, directory / file)
    if shards > 1:
        weight_map = {name: file for file, part in files.items() for name in part}
        (directory / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_weights(model, BertForPreTraining.from_pretrained(directory))
    if shards > 1:
        (directory / f"1-of-3.{stem}").unlink()
        with pytest.raises(FileNotFoundError, match=f"1-of-3.{stem} is missing, but {stem}.index.json lists"):
            BertForPreTraining.from_pretrained(directory)


@pytest.mark.parametrize("content", ['{"weight_map": ["a"]}', '{"weight_map": null}', "{}", "[]", "{"])
def test_a_damaged_index_of_shards_is_named(saved, content):
    _, directory, _ = saved
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged: no weight_map in it"):
        BertForPreTraining.from_pretrained(directory)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


def test_pickled_code_never_runs(saved, capsys):
    _, directory, tensors = saved
    (directory / "model.safetensors").unlink()
    torch.save({**tensors, "surprise": Code()}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as plain weights"):
        BertForPreTraining.from_pretrained(directory)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", [3, 100, 0.5, -1])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_named(saved, file, cut):
    _, directory, tensors = saved
    if file == "pytorch_model.bin":
        (directory / "model.safetensors").unlink()
        torch.save(tensors, directory / file)
    data = (directory / file).read_bytes()
    (directory / file).write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError, match=rf"{file} (is damaged|cannot be read)"):
        BertForPreTraining.from_pretrained(directory)


def test_missing_surplus_and_misshapen_tensors_are_named(saved):
    _, directory, tensors = saved
    changed = dict(tensors)
    changed["bert.encoder.layer.3.output.dense.bias"] = torch.zeros(36)
    del changed[QUERY], changed["cls.predictions.transform.dense.bias"]
    write(directory, changed)
    with pytest.raises(
        ValueError, match=rf"lacks {QUERY}, cls.predictions.transform.dense.bias; it has unknown .*layer.3"
    ):
        BertForPreTraining.from_pretrained(directory)
    write(directory, {**tensors, QUERY: torch.zeros(36, 35), WORD: torch.zeros(99, 36)})
    with pytest.raises(ValueError) as caught:
        BertForPreTraining.from_pretrained(directory)
    assert f"{QUERY} (36, 35), expected (36, 36)" in str(caught.value)
    assert f"{WORD} (99, 36), expected (101, 36)" in str(caught.value)
    write(directory, {})
    with pytest.raises(ValueError, match=r"it lacks bert\..* and \d+ more"):
        BertModel.from_pretrained(directory)


def test_two_spellings_of_one_tensor(saved):
    _, directory, tensors = saved
    write(directory, {**tensors, "bert.embeddings.LayerNorm.gamma": torch.ones(36)})
    with pytest.raises(ValueError, match=r"two tensors spell bert.embeddings.LayerNorm.weight"):
        BertForPreTraining.from_pretrained(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "holds a model of type 'gpt2', expected 'bert'"),
        ({"id2label": ["x", "y"]}, "id2label must be an object of numbers and names, got "),
        ({"fastssl": 3}, "has fastssl=3, expected an object of options"),
        ({"is_decoder": True}, "sets is_decoder=True, which this BERT does not compute; expected False"),
        ({"add_cross_attention": True}, "sets add_cross_attention=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'.*expected 'absolute'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act must be one of gelu, .*got 'quick_gelu'"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads=5, got 36"),
    ],
)
def test_options_that_change_numbers_are_refused(saved, changes, message):
    _, directory, _ = saved
    change_config(directory, **changes)
    with pytest.raises(ValueError, match=message):
        BertForPreTraining.from_pretrained(directory)


def test_configs_of_published_models(saved):
    model, directory, _ = saved
    values = json.loads((directory / "config.json").read_text())
    for name in ("model_type", "fastssl", "position_embedding_type", "architectures", "torch_dtype"):
        del values[name]
    values |= {"directionality": "bidi", "pooler_type": "first_token_transform", "gradient_checkpointing": False}
    (directory / "config.json").write_text(json.dumps(values))
    assert same_weights(model, BertForPreTraining.from_pretrained(directory))


def test_a_file_in_place_of_a_directory_to_save_to_is_told(saved, tmp_path):
    (tmp_path / "a_file.tsv").write_text("kept")
    with pytest.raises(ValueError, match=r"a_file.tsv must be a directory, but .*a_file.tsv is a file; name another"):
        saved[0].save_pretrained(tmp_path / "a_file.tsv")
    assert (tmp_path / "a_file.tsv").read_text() == "kept"


def test_missing_parts_of_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a directory.*hf download"):
        BertModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('["bert"]')
    with pytest.raises(ValueError, match=r"config.json must hold a JSON object, got list"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(saved, dtype):
    model, directory, _ = saved
    half = BertForPreTraining.from_pretrained(directory, dtype=dtype)
    assert all(p.dtype == dtype for p in half.parameters())
    half.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    again = BertForPreTraining.from_pretrained(directory)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again.bert.pooler.dense.weight, model.bert.pooler.dense.weight, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", ["fp16", torch.int64])
def test_what_no_weights_can_be_is_refused(saved, dtype):
    with pytest.raises(ValueError, match=r"dtype must be a floating-point torch.dtype, such as torch.bfloat16, got"):
        BertModel.from_pretrained(saved[1], dtype=dtype)


def test_pre_norm_is_ours_alone(tmp_path):
    import transformers

    model = BertForPreTraining(BertConfig(**ODD_SIZES, norm_position="pre"))
    model.save_pretrained(tmp_path)
    loaded = BertForPreTraining.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert same_weights(model, loaded)
    with pytest.raises(ValueError, match="fastssl_bert"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    model, directory, _ = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        BertForPreTraining(model.config).save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_grown_vocabulary_is_saved(saved):
    model, directory, _ = saved
    model.resize_token_embeddings(120)
    model.save_pretrained(directory)
    loaded = BertForPreTraining.from_pretrained(directory)
    assert loaded.config.vocab_size == 120
    assert same_weights(model, loaded)


def test_a_full_disk_leaves_the_old_weights(saved, monkeypatch):
    model, directory, _ = saved
    before = (directory / "model.safetensors").read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match=r"could not write .*model.safetensors.*No space left.*intact"):
        model.save_pretrained(directory)
    assert (directory / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
