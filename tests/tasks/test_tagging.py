"""Tagging as a whole: from tagged sentences to a model, and what it makes of words."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from fastssl import BertConfig, BertForMaskedLM, BertForTokenClassification, Tagger, Tokenizer
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import ExamplesConfig, FinetuningConfig
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.labels import LabelSet
from fastssl.tasks.tagging.encoded_words import encode_words
from fastssl.tasks.tagging.scores import TaggingEvaluation, number_tags, tag_logits
from fastssl.tasks.tagging.tagged_sentences import read_tagged_sentences
from fastssl.training import trainer
from fastssl.training.log import read_metrics
from tests.tasks.test_finetuning import make_config, same, weights
from tests.training.stand_in import metrics_only_sinks

DETERMINERS, NOUNS, VERBS = "a the this every".split(), "cat dog tree saw bird house".split(), "sees likes saw".split()
PRONOUNS = "I you we they".split()
NAMES = {"PER": "Ann Bob Carla Lee".split(), "LOC": "Rome Oslo".split()}


@pytest.fixture(autouse=True)
def metrics_only(monkeypatch):
    monkeypatch.setattr(trainer, "default_sinks", metrics_only_sinks)


def write_grammar(path: Path, count: int = 300, *, seed: int = 0) -> Path:
    """Write CoNLL-U sentences in which "saw" is a noun behind a determiner and a verb behind a pronoun or a noun."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        subject = [(rng.choice(DETERMINERS), "DET"), (rng.choice(NOUNS), "N")]
        if rng.integers(2):
            subject = [(rng.choice(PRONOUNS), "N")]
        sentence = [*subject, (rng.choice(VERBS), "V"), (rng.choice(DETERMINERS), "DET"), (rng.choice(NOUNS), "N")]
        rows += [f"{i}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_" for i, (word, tag) in enumerate(sentence, start=1)]
        rows.append("")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_names(path: Path, count: int = 300, *, seed: int = 0) -> Path:
    """Write two-column CoNLL with names of one or two words."""
    rng = np.random.default_rng(seed)
    rows = ["-DOCSTART- O", ""]
    for _ in range(count):
        for label, names in (("PER", NAMES["PER"]), ("LOC", NAMES["LOC"])):
            chosen = rng.choice(names, rng.integers(1, 3) if label == "PER" else 1, replace=False)
            rows += [f"{name} {'I' if i else 'B'}-{label}" for i, name in enumerate(chosen)]
            rows.append(f"{rng.choice(VERBS)} O")
        rows.append("")
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A small body with a masked-LM head, as pretraining leaves it."""
    directory = tmp_path_factory.mktemp("pretrained")
    text = " ".join([*DETERMINERS, *NOUNS, *VERBS, *PRONOUNS, *NAMES["PER"], *NAMES["LOC"], ". - '"])
    tokenizer = Tokenizer.train_wordpiece([text] * 3, vocab_size=120)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.1,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture
def files(tmp_path: Path) -> ExamplesConfig:
    train, held_out = (write_grammar(tmp_path / f"{name}.conllu", seed=i) for i, name in enumerate(("train", "dev")))
    return ExamplesConfig(train_file=train, eval_file=held_out)


def tagging_config(*arguments, **changes) -> FinetuningConfig:
    return replace(make_config(*arguments, **changes), task="tagging")


def tags(tagger: Tagger, sentence: str | list[str]) -> list[str]:
    return [word.tag for word in tagger([sentence])[0].words]


def test_i_saw_a_saw(pretrained, files, tmp_path):
    """The lecture's second case: the two "saw" differ. And all that a run leaves behind."""
    said = []
    run = prepare_finetuning(tagging_config(pretrained, files, tmp_path / "run", max_seq_length=16), say=said.append)
    result = run.run()
    assert said[0] == "one of 3 tags a word (DET, N, V), a new head"
    assert said[1].startswith(f"{files.eval_file}: 300 sentences, ") and "with tags from column 'UPOS'" in said[1]
    assert result.evaluation["eval_accuracy"] > 0.98
    evaluated = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in row]
    assert len(evaluated) == 2 and {"eval_accuracy", "eval_macro_f1"} <= set(evaluated[0])
    assert same(weights(tmp_path / "run"), weights(result.best_checkpoint))
    tagger = Tagger.load(tmp_path / "run")
    assert tagger.max_seq_length == 16
    assert tags(tagger, "I saw a saw") == tags(tagger, ["I", "saw", "a", "saw"]) == ["N", "V", "DET", "N"]
    figures = tagger.evaluate(read_tagged_sentences(files.eval_file, ColumnConfig()))
    (of_best,) = [row for row in evaluated if f"checkpoint-{row['step']}" == result.best_checkpoint.name]
    assert figures == {name: pytest.approx(of_best[f"eval_{name}"], abs=1e-5) for name in figures}
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "run").eval()
    assert theirs.config.id2label == {0: "DET", 1: "N", 2: "V"}
    inputs = AutoTokenizer.from_pretrained(tmp_path / "run")("I saw a saw", return_tensors="pt")
    expected = theirs(**inputs).logits[0, 1:-1].detach()
    torch.testing.assert_close(tagger.logits([["I", "saw", "a", "saw"]]), expected, rtol=1e-4, atol=1e-5)


def test_names(pretrained, tmp_path):
    train, held_out = (write_names(tmp_path / f"{i}.conll", seed=i) for i in range(2))
    files = ExamplesConfig(train_file=train, eval_file=held_out)
    result = prepare_finetuning(tagging_config(pretrained, files, tmp_path / "run")).run()
    assert result.evaluation["eval_span_f1"] > 0.95
    assert result.best_checkpoint is not None
    tagger = Tagger.load(tmp_path / "run")
    by_text, by_words = tagger(["Ann Lee saw Rome", ["Ann", "Lee", "saw", "Rome"]])
    assert [(s.label, s.text, s.first, s.last) for s in by_text.spans] == [
        ("PER", "Ann Lee", 0, 1),
        ("LOC", "Rome", 3, 3),
    ]
    assert by_words.spans == by_text.spans and by_words.text is None
    assert [(word.start, word.end) for word in by_text.words] == [(0, 3), (4, 7), (8, 11), (12, 16)]
    assert by_words.words[0].start is None


def test_resumed_it_ends_in_the_same_weights(pretrained, files, tmp_path):
    training = {"save_steps": 20, "save_total_limit": None, "max_steps": 40}
    whole = prepare_finetuning(tagging_config(pretrained, files, tmp_path / "whole", training=training)).run()
    parts = tagging_config(pretrained, files, tmp_path / "parts", training=training)
    prepare_finetuning(parts).run()
    for step in (38, 40):
        if (tmp_path / "parts" / f"checkpoint-{step}").is_dir():
            (tmp_path / "parts" / f"checkpoint-{step}").rename(tmp_path / f"aside-{step}")
    again = replace(parts, training=replace(parts.training, resume_from_checkpoint="last"))
    resumed = prepare_finetuning(again).run()
    assert resumed.step == whole.step == 40
    assert same(weights(resumed.checkpoint), weights(whole.checkpoint))


def test_balanced_classes_a_preset_and_frozen_layers(pretrained, files, tmp_path):
    changes = {"tuning": {"class_weights": "balanced", "frozen_layers": 1}, "training": {"max_steps": 2}}
    run = prepare_finetuning(tagging_config(pretrained, files, tmp_path / "a", **changes))
    label_set = LabelSet(names=run.parts.model.config.labels, problem_type="single_label_classification")
    numbers = number_tags(read_tagged_sentences(files.train_file, ColumnConfig()), label_set).numbers
    expected = len(numbers) / (3 * torch.bincount(numbers))
    torch.testing.assert_close(run.parts.model.class_weights, expected.float())
    assert run.run().step == 2
    preset = prepare_finetuning(tagging_config("bert-tiny", files, tmp_path / "b")).parts
    assert preset.model.config.vocab_size == preset.tokenizer.vocab_size


def test_a_head_goes_on_with_its_tags_and_others_need_a_word(pretrained, files, tmp_path):
    prepare_finetuning(tagging_config(pretrained, files, tmp_path / "one", training={"max_steps": 2})).run()
    on = prepare_finetuning(tagging_config(tmp_path / "one", files, tmp_path / "two")).parts
    assert torch.equal(on.model.classifier.weight, weights(tmp_path / "one")["classifier.weight"])
    names = {"train_file": write_names(tmp_path / "names.conll"), "eval_file": None}
    with pytest.raises(
        ValueError, match=r"tells DET, N, V apart, but .* has the tags B-LOC, B-PER, I-PER, O; give --fre"
    ):
        prepare_finetuning(tagging_config(tmp_path / "one", files, tmp_path / "three", **names))
    fresh = tagging_config(tmp_path / "one", files, tmp_path / "three", **names, start={"fresh_head": True})
    assert prepare_finetuning(fresh).parts.model.config.labels == ("B-LOC", "B-PER", "I-PER", "O")


def test_remarks_on_what_is_not_as_usual(pretrained, tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    rows = [
        '{"tokens": ["a", "\\u0001"], "tags": ["DET", "N"]}',
        f'{{"tokens": {["a"] * 60}, "tags": {["DET"] * 60}}}'.replace("'", '"'),
        f'{{"tokens": ["{"-" * 50}"], "tags": [null]}}',
    ]
    train.write_text("\n".join(rows), encoding="utf-8")
    held_out.write_text('{"tokens": ["a", "a", "saw"], "tags": ["DET", "DET", "V"]}', encoding="utf-8")
    said = []
    files = ExamplesConfig(train_file=train, eval_file=held_out)
    config = tagging_config(pretrained, files, tmp_path / "run", training={"max_steps": 2})
    run = prepare_finetuning(config, say=said.append)
    for remark in (
        "dev.jsonl: 1 words have tags that the model does not know (V): they count as wrong",
        "train.jsonl: 1 sentences longer than 40 tokens are read in overlapping windows",
        "train.jsonl: 1 words are longer than 40 tokens by themselves: their ends are cut off",
        "train.jsonl: 1 words have no character that the tokenizer knows: [UNK] stands for them",
        "train.jsonl: 1 words have no tag: they are read, but neither learnt nor counted",
    ):
        assert any(text.endswith(remark) for text in said), remark
    targets = sum(
        run.parts.train_data.batch(0, i).target_counts()["token"] for i in range(run.parts.train_data.num_batches(0))
    )
    assert targets == 62
    assert run.run().evaluation["eval_accuracy"] == pytest.approx(2 / 3)
    with pytest.warns(UserWarning, match=r"1 words have tags that the model does not know \(V\)"):
        Tagger.load(tmp_path / "run").evaluate(read_tagged_sentences(held_out, ColumnConfig()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 400}, "between 4 and the model's 40 positions, got 400"),
        ({"start": {"problem_type": "regression"}}, "--problem-type regression is for classification"),
        ({"columns": ColumnConfig(text_pair_column="FORM")}, "text_pair_column is for pairs of texts"),
        ({"columns": ColumnConfig(label_column="NER")}, "no column 'NER'"),
        ({"columns": ColumnConfig(label_column="ID")}, None),
        (
            {"training": {"metric_for_best_model": "span_f1"}},
            "'span_f1' is not measured here; expected one of loss, acc",
        ),
        ({"train_file": Path("nowhere.conllu")}, "nowhere.conllu is not a file"),
    ],
)
def test_settings_that_do_not_fit_are_told(pretrained, files, tmp_path, changes, message):
    config = tagging_config(pretrained, files, tmp_path / "run", **changes)
    if message is None:
        assert prepare_finetuning(config).parts.model.config.labels[:3] == ("1", "2", "3")
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare_finetuning(config)


def test_one_tag_only_and_tags_of_another_task(pretrained, files, tmp_path):
    files.train_file.write_text("1\ta\t_\tDET\t_\t_\t_\t_\t_\t_\n\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"train\.conllu: every tag in column 'UPOS' is DET; a tagger needs at least two"
    ):
        prepare_finetuning(tagging_config(pretrained, files, tmp_path / "run"))
    write_grammar(files.train_file)
    names = write_names(tmp_path / "names.conll")
    with pytest.raises(
        ValueError, match=r"names\.conll, line 3: the tag 'B-PER' in column '2' is not one that the model"
    ):
        prepare_finetuning(tagging_config(pretrained, files, tmp_path / "run", eval_file=names))


SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 53}


def make_tagger(pretrained: Path, *labels: str, **options) -> Tagger:
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(pretrained)
    sizes = {**SIZES, "max_position_embeddings": 24, "initializer_range": 0.3}
    model = BertForTokenClassification(BertConfig(vocab_size=tokenizer.vocab_size, **sizes, labels=labels or None))
    return Tagger(model, tokenizer, **options)


def test_order_and_shapes_whatever_comes(pretrained, monkeypatch):
    monkeypatch.setattr("fastssl.tasks.tagging.scores.TOKENS_PER_BATCH", 9)
    tagger = make_tagger(pretrained, "a", "b", "c")
    sentences = ["the dog", ["every", "saw"], "", [], "I saw\tthe  bird.", ["\x01"], "\x01"]
    together = tagger(sentence for sentence in sentences)
    assert [[word.word for word in one.words] for one in together] == [
        ["the", "dog"],
        ["every", "saw"],
        [],
        [],
        ["I", "saw", "the", "bird", "."],
        ["\x01"],
        [],
    ]
    for sentence, one in zip(sentences, together, strict=True):
        (alone,) = tagger([sentence])
        assert one.text == (sentence if isinstance(sentence, str) else None) and one.spans is None
        for word, other in zip(one.words, alone.words, strict=True):
            assert word.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert list(word.probabilities.values()) == sorted(word.probabilities.values(), reverse=True)
            assert sum(word.probabilities.values()) == pytest.approx(1) and word.tag == next(iter(word.probabilities))
            assert one.text is None or one.text[word.start : word.end] == word.word
    assert tagger([]) == []


def test_long_sentences_lose_no_word(pretrained):
    words = [*NOUNS * 20, "-" * 60, "cat"]
    (found,) = make_tagger(pretrained, "a", "b")([words])
    assert [word.word for word in found.words] == words and all(len(word.probabilities) == 2 for word in found.words)


def test_a_window_is_a_sentence_of_its_own(pretrained, tmp_path):
    """The logits of words in a window are those of Hugging Face for its tokens."""
    tagger = make_tagger(pretrained, "a", "b")
    tagger.model.save_pretrained(tmp_path)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    words = NOUNS * 6  # one token each; 22 fit into a window
    special = tagger.tokenizer.special
    ids = [tagger.tokenizer.token_to_id(word) for word in words]
    for first, end, own in ((0, 22, range(20)), (17, 36, range(20, 36))):
        window = torch.tensor([[special.cls, *ids[first:end], special.sep]])
        expected = theirs(input_ids=window).logits[0, [number - first + 1 for number in own]].detach()
        torch.testing.assert_close(tagger.logits([words])[own.start : own.stop], expected, rtol=1e-4, atol=1e-4)


def test_threads_do_not_disturb_each_other(pretrained):
    tagger = make_tagger(pretrained, "a", "b")
    sentences = [" ".join(NOUNS[: 1 + i % 6]) for i in range(40)]
    expected, found = tagger(sentences), {}

    def work(number: int) -> None:
        found[number] = tagger(sentences)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [[w.tag for w in one.words] for one in found[number]] == [[w.tag for w in one.words] for one in expected]


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_bits(pretrained, tmp_path, dtype):
    exact = make_tagger(pretrained, "a", "b")
    exact.model.save_pretrained(tmp_path)
    exact.tokenizer.save(tmp_path)
    near = Tagger.load(tmp_path, dtype=dtype)
    logits, expected = near.logits([NOUNS]), exact.logits([NOUNS])
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.25)
    with pytest.raises(ValueError, match="dtype must be one of fp32, bf16, int8, got 'fp4'"):
        Tagger.load(tmp_path, dtype="fp4")


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("I saw a saw", "sentences must be several, got one string; put it into a list"),
        ([3], "sentences must be texts or lists of words, got int as number 0"),
        ([["a", None]], "words must be strings, got NoneType"),
        (["\ud800"], "the text .* holds half a character"),
    ],
)
def test_what_are_no_sentences(pretrained, sentences, message):
    with pytest.raises(ValueError, match=message):
        make_tagger(pretrained)(sentences)


def test_a_model_of_another_task_is_refused(pretrained):
    with pytest.raises(ValueError, match=r"was not fine-tuned for tagging .* --task tagging"):
        Tagger.load(pretrained)
    with pytest.raises(ValueError, match="between 4 and the model's 24 positions, got 25"):
        make_tagger(pretrained, max_seq_length=25)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        Tagger.load("nowhere")


def test_an_evaluation_can_be_cancelled_and_leaves_the_mode(pretrained, files):
    tagger = make_tagger(pretrained, "DET", "N", "V")
    held_out = read_tagged_sentences(files.eval_file, ColumnConfig())
    encoded = encode_words(tagger.tokenizer, held_out.words, max_seq_length=24)
    model = tagger.model.train()
    assert tag_logits(model, encoded, cancelled=lambda: True) is None and model.training
    evaluation = TaggingEvaluation(
        sentences=encoded, tags=number_tags(held_out, tagger.label_set), sentence_lengths=list(map(len, held_out.words))
    )
    assert evaluation(model, cancelled=lambda: True) is None
    assert set(evaluation(model)) == {"eval_loss", "eval_accuracy", "eval_macro_f1"} and model.training


@pytest.mark.slow
def test_the_two_saws_with_real_weights(minilm_directory, test_data, tmp_path):
    """Six hundred sentences of a treebank are enough for MiniLM to tell them apart."""
    lines = (test_data / "ud_en_ewt" / "en_ewt-ud-train.conllu").read_text(encoding="utf-8").split("\n\n")
    train = tmp_path / "train.conllu"
    train.write_text("\n\n".join(lines[:600]) + "\n\n", encoding="utf-8")
    config = tagging_config(
        minilm_directory,
        ExamplesConfig(train_file=train),
        tmp_path / "run",
        tuning={"per_device_train_batch_size": 16},
        training={"num_train_epochs": 1, "learning_rate": 3e-4, "warmup_ratio": 0.1, "num_threads": None},
    )
    prepare_finetuning(config).run()
    assert tags(Tagger.load(tmp_path / "run"), "I saw a saw") == ["PRON", "VERB", "DET", "NOUN"]
