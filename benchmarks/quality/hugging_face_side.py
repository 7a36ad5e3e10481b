"""The peer's side: Hugging Face's Trainer, used as its example scripts for these tasks use it.

Files are read, aligned and scored by code of this side's own; only the order of the examples is fastssl's.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from benchmarks.quality.problems import Problem
from benchmarks.quality.question_windows import best_answers, question_windows, read_questions
from benchmarks.quality.stopwatch import Stopwatch
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.question_answering.scores import ScoredAnswer, answer_scores

IGNORED = -100


def measure(
    problem: Problem, files: tuple[Path, Path], model: Path, seed: int, folder: Path
) -> tuple[Mapping[str, float], Stopwatch]:
    """Fine-tune and measure; arguments and result as in `fastssl_side.measure`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train, held_out = files
    watch = Stopwatch()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    learn = {"classification": _Classes, "tagging": _Tags, "question_answering": _Answers}[problem.task]
    side = learn(tokenizer, problem.max_seq_length)
    rows = side.training_rows(train)
    transformers.set_seed(seed)
    network = getattr(transformers, side.model_class).from_pretrained(model, **side.head())
    collator = getattr(transformers, side.collator_class)(tokenizer)
    trainer = _trainer(network, rows, collator, problem, seed, folder)
    trainer.train()
    trainer.save_model(str(folder))
    watch.stop()
    watch.steps = trainer.state.global_step
    return side.figures(trainer, held_out), watch


class OrderOfFastssl(Sampler):
    """The order in which fastssl takes the examples, anew in each epoch."""

    def __init__(self, num_examples: int, seed: int) -> None:
        labels = torch.zeros(num_examples)
        self._batches, self._epoch = ExampleBatches(range(num_examples), labels, seed=seed, batch_size=1), 0

    def __len__(self) -> int:
        return len(self._batches.rows)

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(self._batches.order(self._epoch - 1).tolist())


def _trainer(network: Any, rows: list[dict], collator: Any, problem: Problem, seed: int, folder: Path) -> Any:
    import transformers

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return OrderOfFastssl(len(self.train_dataset), seed)

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=problem.batch_size,
        per_device_eval_batch_size=problem.batch_size,
        learning_rate=problem.learning_rate,
        weight_decay=problem.weight_decay,
        num_train_epochs=problem.num_epochs,
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return InOrder(network, arguments, train_dataset=rows, data_collator=collator)


@dataclass
class _Side:
    tokenizer: Any
    max_length: int

    def predict(self, trainer: Any, rows: list[dict]) -> Any:
        """Return the outputs for all rows, padded to the longest row of all."""
        return trainer.predict(rows).predictions


class _Classes(_Side):
    model_class, collator_class = "AutoModelForSequenceClassification", "DataCollatorWithPadding"

    def training_rows(self, path: Path) -> list[dict]:
        return self._rows(path)

    def head(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def figures(self, trainer: Any, path: Path) -> dict[str, float]:
        rows = self._rows(path)
        predicted = self.predict(trainer, rows).argmax(-1)
        return {"accuracy": float(np.mean(predicted == [row["label"] for row in rows]))}

    def _rows(self, path: Path) -> list[dict]:
        with path.open(encoding="utf-8", newline="") as file:
            examples = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        encoded = self.tokenizer([one["sentence"] for one in examples], truncation=True, max_length=self.max_length)
        return [row | {"label": int(one["label"])} for row, one in zip(_rows_of(encoded), examples, strict=True)]


class _Tags(_Side):
    model_class, collator_class = "AutoModelForTokenClassification", "DataCollatorForTokenClassification"

    def training_rows(self, path: Path) -> list[dict]:
        sentences = _read_conllu(path)
        self.names = sorted({tag for _, tags in sentences for tag in tags})
        return self._rows(sentences)

    def head(self) -> dict[str, Any]:
        return {"num_labels": len(self.names)}

    def figures(self, trainer: Any, path: Path) -> dict[str, float]:
        sentences = _read_conllu(path)
        rows = self._rows(sentences)
        predicted = self.predict(trainer, rows).argmax(-1)
        right = 0
        for row, found in zip(rows, predicted, strict=True):
            labels = np.array(row["labels"])
            right += int(((found[: len(labels)] == labels) & (labels != IGNORED)).sum())
        # A word that was cut off, or has no token of its own, counts as wrong.
        return {"accuracy": right / sum(len(words) for words, _ in sentences)}

    def _rows(self, sentences: Sequence[tuple[list[str], list[str]]]) -> list[dict]:
        numbers = {name: number for number, name in enumerate(self.names)}
        words = [words for words, _ in sentences]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)
        rows = []
        for number, (row, (_, tags)) in enumerate(zip(_rows_of(encoded), sentences, strict=True)):
            labels, before = [], None
            for word in encoded.word_ids(number):
                begins = word is not None and word != before
                labels.append(numbers[tags[word]] if begins else IGNORED)
                before = word
            rows.append(row | {"labels": labels})
        return rows


class _Answers(_Side):
    model_class, collator_class = "AutoModelForQuestionAnswering", "DataCollatorWithPadding"

    def training_rows(self, path: Path) -> list[dict]:
        windows = question_windows(self.tokenizer, read_questions(path), self.max_length)
        return [window.inputs | window.span for window in windows]

    def head(self) -> dict[str, Any]:
        return {}

    def figures(self, trainer: Any, path: Path) -> dict[str, float]:
        questions = read_questions(path)
        windows = question_windows(self.tokenizer, questions, self.max_length)
        starts, ends = self.predict(trainer, [window.inputs for window in windows])
        answers = best_answers(questions, windows, starts, ends)
        scored = [
            ScoredAnswer(text=text, gold=tuple(question.answers), no_answer_difference=-np.inf)
            for text, question in zip(answers, questions, strict=True)
        ]
        return answer_scores(scored, np.inf)


def _rows_of(encoded: Mapping[str, list]) -> Iterator[dict]:
    names = ("input_ids", "token_type_ids", "attention_mask")
    for values in zip(*(encoded[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _read_conllu(path: Path) -> list[tuple[list[str], list[str]]]:
    """Return words and parts of speech of each sentence, but for multi-word and empty tokens."""
    sentences = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
        rows = [row for row in rows if row[0].isdigit()]
        sentences.append(([row[1] for row in rows], [row[3] for row in rows]))
    return sentences
