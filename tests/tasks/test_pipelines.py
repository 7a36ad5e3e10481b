"""Every pipeline: streams in order and constant memory, many threads, wrong tasks and models."""

import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import fastssl
from fastssl import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    Tokenizer,
)
from fastssl.tasks.pipelines import PIPELINES
from fastssl.tasks.question_answering.answerer import QuestionAnswerer

TEXTS = [
    "a [MASK] sees a dog",
    "[MASK]",
    "the old house by the [MASK] is large",
    "cat [MASK] cat",
    "[MASK] b c d e f g",
]
DOCUMENT = "the old house by the river is large and a cat sees a dog there"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
MODELS = {
    "text-classification": BertForSequenceClassification,
    "fill-mask": BertForMaskedLM,
    "token-classification": BertForTokenClassification,
    "question-answering": BertForQuestionAnswering,
    "sentence-embedding": BertModel,
    "feature-extraction": BertModel,
}

ENCODERS = sorted(set(PIPELINES) - {"text-generation"})
"""Those that answer with numbers; what writes texts has tests of its own, in test_generation.py."""


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    """A model directory for each task."""
    tokenizer = Tokenizer.train_wordpiece(TEXTS, vocab_size=80, min_frequency=1)
    config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=40, initializer_range=0.3, **SIZES)
    found = {}
    for task, model_class in MODELS.items():
        torch.manual_seed(0)
        found[task] = tmp_path_factory.mktemp(task)
        model_class(config).save_pretrained(found[task])
        tokenizer.save(found[task])
    return found


def ask(pipe, texts: Iterable[str]):
    """Call a pipeline; questions are asked about one document."""
    return pipe(texts, DOCUMENT) if isinstance(pipe, QuestionAnswerer) else pipe(texts)


def stream(pipe, texts: Iterable[str], **options) -> Iterator:
    """Stream through a pipeline."""
    return pipe.stream(((t, DOCUMENT) for t in texts) if isinstance(pipe, QuestionAnswerer) else texts, **options)


def numbers(answers) -> np.ndarray:
    """Every number of some answers, in order."""
    if isinstance(answers, np.ndarray):
        return answers
    found = []
    for one in answers:
        if hasattr(one, "masks"):
            found.append([candidate.probability for mask in one.masks for candidate in mask])
        elif hasattr(one, "question"):
            found.append([one.probability])
        elif hasattr(one, "words"):
            found.append([word.probabilities["LABEL_0"] for word in one.words] + [0.0] * (16 - len(one.words)))
        else:
            found.append([one.probabilities[name] for name in ("LABEL_0", "LABEL_1")])
    return np.array(found)


def one_by_one(stream: Iterator) -> Iterator:
    """The answers of a stream, whether they come in parts or not."""
    for part in stream:
        yield from part if isinstance(part, np.ndarray) else [part]


@pytest.mark.parametrize("task", ENCODERS)
def test_a_stream_is_a_call_that_reads_a_bounded_window_ahead(task, directories):
    pipe = fastssl.pipeline(task, directories[task])
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for text in itertools.cycle(TEXTS):
            taken += 1
            yield text

    answers, ahead = [], []
    for answer in one_by_one(stream(pipe, endless(), texts_at_once=7)):
        answers.append(answer)
        ahead.append(taken - len(answers))
        if len(answers) == 33:
            break
    # The window that is being answered, and the one that is cut into tokens meanwhile.
    assert max(ahead) <= 2 * 7
    texts = list(itertools.islice(itertools.cycle(TEXTS), 33))
    streamed = numbers(np.stack(answers) if isinstance(answers[0], np.ndarray) else answers)
    np.testing.assert_allclose(streamed, numbers(ask(pipe, texts)), atol=1e-5)
    if not isinstance(answers[0], np.ndarray):
        assert [getattr(answer, "question", answer.text) for answer in answers] == texts


@pytest.mark.parametrize("task", ENCODERS)
def test_an_answer_does_not_depend_on_its_neighbours(task, directories):
    pipe = fastssl.pipeline(task, directories[task])
    alone = np.concatenate([numbers(ask(pipe, [text])) for text in TEXTS])
    np.testing.assert_allclose(numbers(ask(pipe, TEXTS)), alone, atol=1e-5)
    np.testing.assert_allclose(numbers(ask(pipe, iter(TEXTS[::-1]))), alone[::-1], atol=1e-5)
    assert len(ask(pipe, [])) == 0 and list(stream(pipe, iter(()))) == []


@pytest.mark.parametrize("task", ENCODERS)
def test_many_threads_may_use_one_pipeline(task, directories):
    pipe = fastssl.pipeline(task, directories[task])
    expected = [numbers(ask(pipe, TEXTS[shift:] * 3)) for shift in range(4)]

    def use(number: int) -> np.ndarray:
        texts = TEXTS[number % 4 :] * 3
        found = list(one_by_one(stream(pipe, texts, texts_at_once=len(texts))))
        return numbers(np.stack(found) if isinstance(found[0], np.ndarray) else found)

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(use, range(24))):
            np.testing.assert_array_equal(found, expected[number % 4])


@pytest.mark.parametrize("task", ENCODERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.05), ("int8", 0.1)])
def test_fewer_bits_are_near(task, dtype, tolerance, directories):
    exact, near = (
        numbers(ask(fastssl.pipeline(task, directories[task], dtype=name), TEXTS)) for name in ("fp32", dtype)
    )
    np.testing.assert_allclose(near, exact, atol=tolerance * np.abs(exact).max())
    assert not np.array_equal(near, exact)


def test_options_are_those_of_the_task(directories):
    cut = fastssl.pipeline("text-classification", directories["text-classification"], max_seq_length=5)
    assert cut.max_seq_length == 5
    assert fastssl.pipeline("sentence-embedding", directories["fill-mask"], pooling=["cls", "max"]).width == 64
    with pytest.raises(ValueError, match="'text-classification' has no option 'pooling'; expected some of max_seq_len"):
        fastssl.pipeline("text-classification", directories["text-classification"], pooling="cls")
    with pytest.raises(ValueError, match="dtype must be one of fp32, bf16, int8, got 'fp8'"):
        fastssl.pipeline("fill-mask", directories["fill-mask"], dtype="fp8")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "classification",
            "no task 'classification'; did you mean 'text-classification', of text-classification",
        ),
        ("fillmask", "did you mean 'fill-mask'"),
        ("zzz", "no task 'zzz'; expected one of text-classification, fill-mask"),
    ],
)
def test_unknown_tasks_are_told_with_the_known_ones(task, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fastssl.pipeline(task, tmp_path)


def test_a_model_of_another_task_is_told(directories):
    with pytest.raises(ValueError, match="was not fine-tuned for classification"):
        fastssl.pipeline("text-classification", directories["fill-mask"])
    with pytest.raises(ValueError, match="without a masked-LM head"):
        fastssl.pipeline("fill-mask", directories["text-classification"])
    with pytest.raises(ValueError, match="was not fine-tuned for question_answering"):
        fastssl.pipeline("question-answering", directories["token-classification"])
    with pytest.raises(ValueError, match="was not fine-tuned for tagging"):
        fastssl.pipeline("token-classification", directories["text-classification"])
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        fastssl.pipeline("sentence-embedding", "nowhere")
    config = directories["feature-extraction"] / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"model_type": "roberta"}))
    with pytest.raises(ValueError, match="a model of type 'roberta', expected 'bert'"):
        fastssl.pipeline("feature-extraction", config.parent)
    config.write_text(json.dumps(values))


def test_pairs_are_streamed_too(directories):
    classifier = fastssl.pipeline("text-classification", directories["text-classification"])
    pairs = list(itertools.product(TEXTS, TEXTS))
    streamed = list(classifier.stream(iter(pairs), texts_at_once=4))
    assert [(one.text, one.pair) for one in streamed] == pairs
    np.testing.assert_allclose(
        numbers(streamed), numbers(classifier(*(list(column) for column in zip(*pairs, strict=True)))), atol=1e-5
    )


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("text-classification", ["a", 3], "strings, or tuples of two strings, got int as number 1"),
        ("text-classification", ["a", ("b", "c")], "all single or all pairs, but number 1 is not a single text"),
        ("text-classification", [("a", "b"), "c"], "all single or all pairs, but number 1 is not a pair"),
        ("sentence-embedding", [("a", "b")], "texts must be strings, got tuple as number 0"),
        ("question-answering", ["a"], "must be tuples of a question and its document, got str as number 0"),
        ("question-answering", [("a", " ")], "the document of number 0 is empty"),
        ("question-answering", [("a", 3)], "the document of number 0 must be a string, got int"),
        ("token-classification", ["a", 3], "must be texts or lists of words, got int as number 1"),
        ("fill-mask", [None], "texts must be strings, got NoneType as number 0"),
        ("fill-mask", "a [MASK]", "must be several strings, got one"),
        ("fill-mask", ["[MASK]", "a cat"], r"the text 'a cat' has no \[MASK\]"),
    ],
)
def test_wrong_texts_are_told_on_the_way(task, texts, message, directories):
    pipe = fastssl.pipeline(task, directories[task])
    with pytest.raises(ValueError, match=message):
        list(pipe.stream(texts))
    with pytest.raises(ValueError, match="texts_at_once must be at least 1, got 0"):
        pipe.stream(["[MASK]"], texts_at_once=0)
