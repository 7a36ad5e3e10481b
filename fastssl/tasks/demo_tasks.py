"""The demonstration of the four ways to use a BERT, on labelled data that every Python carries."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.python_tasks import (
    functions_in_documents,
    kinds_of_tokens,
    modules_of_summaries,
    summaries_and_signatures,
)
from fastssl.tasks.comparison.compare_init import compare_init
from fastssl.tasks.comparison.config import CompareInitConfig
from fastssl.tasks.finetuning_config import ExamplesConfig, FinetuningTrainingConfig, StartConfig, TaskName

_SHARE_HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class DemoTasksConfig:
    """The demonstration's few choices."""

    model: Path = Path("runs/demo")
    """Directory of the pretrained model: what `fastssl demo` left, or any BERT."""
    output_dir: Path = Path("runs/demo-tasks")
    """Where the examples and the fine-tuned models go."""
    num_train_epochs: float = 4.0
    """Passes over the examples of each task."""
    max_examples: int | None = None
    """Examples of each task; None takes all."""
    num_threads: int | None = None
    """Threads; None keeps PyTorch's choice."""
    seed: int = 42
    """Of everything random."""

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 20:
            raise ValueError(f"max_examples must be at least 20, got {self.max_examples}")


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """One way of using a BERT."""

    name: str
    """Of its directory."""
    question: str
    """What the model is asked, in words."""
    task: TaskName
    """The task of fine-tuning that it is."""
    examples: Callable[[], list[dict]]
    """Makes its labelled examples."""
    metric: str
    """The figure that is shown."""
    guess: Callable[[Sequence[dict], Sequence[dict]], float]
    """(training examples, held-out examples) -> the figure of a guess that looks at no context."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What came of a task."""

    demo: DemoTask
    """The task."""
    guessed: float
    """The figure of the guess."""
    from_scratch: float
    """The figure after training from random weights."""
    pretrained: float
    """The figure after training from the pretrained model."""
    directory: Path
    """Of the latter's model."""


def _commonest_label(train: Sequence[dict], held_out: Sequence[dict]) -> float:
    label = Counter(row["label"] for row in train).most_common(1)[0][0]
    return sum(row["label"] == label for row in held_out) / len(held_out)


def _commonest_tag_of_each_word(train: Sequence[dict], held_out: Sequence[dict]) -> float:
    counts: dict[str, Counter] = {}
    for row in train:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    overall = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
    pairs = [pair for row in held_out for pair in zip(row["words"], row["tags"], strict=True)]
    return sum(best.get(word, overall) == tag for word, tag in pairs) / len(pairs)


def _one_function_of_each_document(train: Sequence[dict], held_out: Sequence[dict]) -> float:
    return sum(1 / len(row["context"].splitlines()) for row in held_out) / len(held_out)


DEMO_TASKS = (
    DemoTask(
        name="module",
        question="which module is this summary of a function from?",
        task="classification",
        examples=modules_of_summaries,
        metric="accuracy",
        guess=_commonest_label,
    ),
    DemoTask(
        name="signature",
        question="does this summary belong to this signature?",
        task="classification",
        examples=summaries_and_signatures,
        metric="accuracy",
        guess=_commonest_label,
    ),
    DemoTask(
        name="tokens",
        question="what is each token in its line of code?",
        task="tagging",
        examples=kinds_of_tokens,
        metric="accuracy",
        guess=_commonest_tag_of_each_word,
    ),
    DemoTask(
        name="function",
        question="which of these functions is described?",
        task="question_answering",
        examples=functions_in_documents,
        metric="exact_match",
        guess=_one_function_of_each_document,
    ),
)
"""In the order of the lecture: a class of a text, of a pair, of each word; a span of a document."""


def run_demo_task(demo: DemoTask, config: DemoTasksConfig, say: Callable[[str], None]) -> DemoResult | int:
    """Train a task from the pretrained model and from random weights, with the same seed and order.

    Args:
        demo: the task.
        config: the choices of the demonstration.
        say: takes remarks.

    Returns:
        What came of it; the exit code where a signal came.
    """
    examples = demo.examples()[: config.max_examples]
    num_held_out = max(1, round(_SHARE_HELD_OUT * len(examples)))
    held_out, train = examples[:num_held_out], examples[num_held_out:]
    files = [
        _write(config.output_dir / demo.name / name, demo.task, rows)
        for name, rows in (("train", train), ("held-out", held_out))
    ]
    comparison = compare_init(_comparison(demo, config, *files), say=say)
    if isinstance(comparison, int):
        return comparison
    return DemoResult(
        demo=demo,
        guessed=demo.guess(train, held_out),
        from_scratch=comparison.curves["from-scratch"].best_score(),
        pretrained=comparison.curves["pretrained"].best_score(),
        directory=config.output_dir / demo.name / "pretrained",
    )


def _comparison(demo: DemoTask, config: DemoTasksConfig, train: Path, held_out: Path) -> CompareInitConfig:
    return CompareInitConfig(
        task=demo.task,
        examples=ExamplesConfig(train_file=train, eval_file=held_out),
        start=StartConfig(model=str(config.model), dropout=0.0),
        training=FinetuningTrainingConfig(
            output_dir=str(config.output_dir / demo.name),
            num_train_epochs=config.num_train_epochs,
            learning_rate=3e-4,
            warmup_ratio=0.1,
            metric_for_best_model=demo.metric,
            num_threads=config.num_threads,
            seed=config.seed,
            resume_from_checkpoint="last",
        ),
    )


def _write(stem: Path, task: TaskName, rows: Sequence[dict]) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    if task == "question_answering":
        path, content = stem.with_suffix(".json"), json.dumps(_squad(rows), indent=1)
    else:
        path, content = stem.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    return path


def _squad(rows: Sequence[dict]) -> dict[str, object]:
    """Return questions in the format of SQuAD 1.1."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": str(number),
                    "question": row["question"],
                    "answers": [{"text": row["answer"], "answer_start": row["answer_start"]}],
                }
            ],
        }
        for number, row in enumerate(rows)
    ]
    return {"version": "1.1", "data": [{"title": "the standard library", "paragraphs": paragraphs}]}
