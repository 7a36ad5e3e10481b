"""Our models in lm-eval: the numbers of its own Hugging Face model, on requests and on a whole task."""

import json
from pathlib import Path

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from fastssl.cli.main import main  # noqa: E402
from fastssl.data.tokenizer import Tokenizer  # noqa: E402
from fastssl.models.gpt_causal_lm import GPTForCausalLM  # noqa: E402
from fastssl.models.gpt_config import GPTConfig  # noqa: E402
from fastssl.tasks.harness import FastsslLM  # noqa: E402

TEXT = "The horse and the house stood in the rain, and nobody knew which of them had been there first. 12 + 7 = 19\n"
CONTEXTS = ["The horse ", "The horse", "the rain and the house", "", "nobody knew " * 40, "12 + 7 ="]
CHOICES = [" and the house", " 19", "The first", " which of them\nhad been", " h"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gpt")
    tokenizer = Tokenizer.train_byte_pairs([TEXT] * 3, vocab_size=320)
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=48, initializer_range=0.4,
        bos_token_id=tokenizer.bounds.bos, eos_token_id=tokenizer.bounds.eos,
    )  # fmt: skip
    GPTForCausalLM(config).save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def ours(directory) -> FastsslLM:
    return FastsslLM(str(directory))


@pytest.fixture(scope="module")
def theirs(directory) -> HFLM:
    return HFLM(pretrained=str(directory), device="cpu", batch_size=3, dtype="float32")


def instances(kind: str, arguments) -> list[Instance]:
    return [Instance(kind, {}, own, number) for number, own in enumerate(arguments)]


def test_loglikelihood(ours, theirs):
    requests = instances("loglikelihood", [(context, choice) for context in CONTEXTS for choice in CHOICES])
    found, expected = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (ours, theirs))
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]


def test_greedy_continuations_are_found_to_be_greedy(ours, theirs):
    ids = ours._tokenizer.encode("The horse and the")
    written = ours._model.generate([ids], max_new_tokens=3)[0].tokens
    requests = instances("loglikelihood", [("The horse and the", ours._tokenizer.decode(written))])
    assert (
        ours.loglikelihood(requests, disable_tqdm=True)[0][1] == theirs.loglikelihood(requests, disable_tqdm=True)[0][1]
    )


def test_rolling(ours, theirs):
    requests = instances("loglikelihood_rolling", [(TEXT,), (TEXT * 5,), ("a",)])
    found, expected = (lm.loglikelihood_rolling(requests, disable_tqdm=True) for lm in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-3)


def test_generation(ours, theirs):
    kinds = [
        {"until": ["\n"], "max_gen_toks": 8},
        {"until": ["e", "an"], "max_gen_toks": 12, "do_sample": False},
        {"until": [], "max_gen_toks": 5, "temperature": 0.0},
    ]
    requests = instances("generate_until", [(context, kind) for kind in kinds for context in CONTEXTS if context])
    found, expected = (lm.generate_until(requests, disable_tqdm=True) for lm in (ours, theirs))
    assert found == expected
    assert len(set(found)) > 3


def test_what_cannot_be_done_is_told(ours, directory):
    with pytest.raises(ValueError, match="generation options typical_p are not known"):
        ours.generate_until(instances("generate_until", [("a", {"typical_p": 0.5})]), disable_tqdm=True)
    with pytest.raises(ValueError, match="leaves no room for a context in max_length=48"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 48})]), disable_tqdm=True)
    with pytest.raises(ValueError, match=r"a continuation has \d+ tokens, and the model reads at most 16"):
        shorter = FastsslLM(str(directory), max_length=16)
        shorter.loglikelihood(instances("loglikelihood", [("a", "q" * 40)]), disable_tqdm=True)


def task(folder: Path) -> dict:
    """A multiple-choice task with two examples in each prompt, from a file."""
    file = folder / "animals.jsonl"
    choices = [" the horse", " the house", " rain"]
    names = ("first", "rain", "horse", "house", "nobody") * 4
    rows = [{"question": f"the {name} and", "choices": choices, "gold": n % 3} for n, name in enumerate(names)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "animals", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "fewshot_split": "test", "num_fewshot": 2, "output_type": "multiple_choice",
        "doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip


def test_a_task_gets_the_same_score(directory, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scores = []
    for name in ("fastssl", "hf"):
        arguments = {"pretrained": str(directory)} | ({"dtype": "float32"} if name == "hf" else {})
        report = lm_eval.simple_evaluate(
            model=name, model_args=arguments, tasks=[task(tmp_path)], device="cpu", batch_size=2, bootstrap_iters=0
        )
        samples = [sample["filtered_resps"] for sample in report["samples"]["animals"]]
        scores.append((report["results"]["animals"], samples))
    (ours, our_samples), (theirs, their_samples) = scores
    assert ours["acc,none"] == theirs["acc,none"] and ours["acc_norm,none"] == theirs["acc_norm,none"]
    for mine, other in zip(our_samples, their_samples, strict=True):
        assert [one[0] for one in mine] == pytest.approx([one[0] for one in other], abs=1e-4)


def test_the_harness_own_command_line_knows_us(capsys):
    with pytest.raises(SystemExit) as end:
        main(["lm-eval", "--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_the_command_line_needs_no_device(directory, tmp_path, monkeypatch, caplog, dtype):
    """The harness then says "cuda:0", wherever it runs."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "animals.yaml").write_text(json.dumps(task(tmp_path)))
    flags = ["--model_args", f"pretrained={directory},dtype={dtype}", "--include_path", str(tmp_path)]
    assert main(["lm-eval", "--model", "fastssl", *flags, "--tasks", "animals"]) == 0
    if dtype == "int8" or not torch.cuda.is_available():
        assert "computing on the CPU, not on cuda:0" in caplog.text
    with pytest.raises(ValueError, match="device='cuda:99', but PyTorch"):
        FastsslLM(str(directory), device="cuda:99")
