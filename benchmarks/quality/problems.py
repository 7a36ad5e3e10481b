"""The data sets that both sides learn, their parts, and the settings that both take."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastssl.tasks.finetuning_config import TaskName

_SUBSET_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A data set with the settings of its runs."""

    name: str
    """Of the row."""
    title: str
    """What is learnt from what, in a few words."""
    task: TaskName
    """How."""
    make_files: Callable[[Path, Path], tuple[Path, Path]]
    """(folder of the real data, folder to write to) -> the file to train on and the file to measure on."""
    metric: str
    """The main figure."""
    max_seq_length: int
    """Where texts are cut, or split into windows; in tokens."""
    num_epochs: int
    """Passes over the training file."""
    learning_rate: float
    """Where the linear schedule begins."""
    batch_size: int = 32
    """Sequences per batch."""
    weight_decay: float = 0.01
    """Of matrices."""
    goal: float | None = None
    """What the main figure of fastssl must reach; None: that of its peer."""
    has_peer: bool = True
    """Whether the peer learns it too."""

    @property
    def settings(self) -> str:
        """What decides the scores; rows of other settings are not to be mixed with these."""
        return (
            f"{self.title}; {self.num_epochs} epochs, batch {self.batch_size}, learning rate {self.learning_rate:g}, "
            f"weight decay {self.weight_decay:g}, at most {self.max_seq_length} tokens"
        )


def sst2_files(num_sentences: int | None, data: Path, folder: Path) -> tuple[Path, Path]:
    """Return SST-2, or so many sentences of its training part, drawn once for all seeds."""
    train, dev = data / "sst2" / "train.tsv", data / "sst2" / "dev.tsv"
    if num_sentences is None:
        return train, dev
    with train.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    chosen = np.sort(np.random.default_rng(_SUBSET_SEED).permutation(len(rows))[:num_sentences])
    subset = folder / f"sst2-{num_sentences}.tsv"
    subset.write_text("".join("\t".join(row) + "\n" for row in [header, *(rows[i] for i in chosen)]), encoding="utf-8")
    return subset, dev


def treebank_files(data: Path, folder: Path) -> tuple[Path, Path]:
    """Return UD English EWT's training and development parts."""
    return tuple(data / "ud_en_ewt" / f"en_ewt-ud-{part}.conllu" for part in ("train", "dev"))


def xquad_files(num_training: int, data: Path, folder: Path) -> tuple[Path, Path]:
    """Return the first questions of XQuAD's English part, and the rest."""
    content = json.loads((data / "xquad" / "xquad.en.json").read_text(encoding="utf-8"))
    train, held_out, seen = [], [], 0
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            room = max(num_training - seen, 0)
            seen += len(paragraph["qas"])
            for part, questions in ((train, paragraph["qas"][:room]), (held_out, paragraph["qas"][room:])):
                if questions:
                    part.append(paragraph | {"qas": questions})
    return _write_questions(folder, "xquad", (train, held_out))


def drcd_files(num_training: int, num_held_out: int, data: Path, folder: Path) -> tuple[Path, Path]:
    """Return about so many questions of DRCD's development part from its first documents, and from its last ones."""
    content = json.loads((data / "drcd" / "DRCD_dev.json").read_text(encoding="utf-8"))
    parts = []
    for articles, wanted in ((content["data"], num_training), (content["data"][::-1], num_held_out)):
        paragraphs, found = [], 0
        for article in articles:
            if found >= wanted:
                break
            paragraphs += article["paragraphs"]
            found += sum(len(paragraph["qas"]) for paragraph in article["paragraphs"])
        parts.append(paragraphs)
    return _write_questions(folder, "drcd", parts)


def _write_questions(folder: Path, name: str, parts: Sequence[list]) -> tuple[Path, Path]:
    paths = tuple(folder / f"{name}-{part}.json" for part in ("train", "held-out"))
    for path, paragraphs in zip(paths, parts, strict=True):
        content = {"version": "1.1", "data": [{"title": path.stem, "paragraphs": paragraphs}]}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return paths


def problems() -> dict[str, Problem]:
    """Return all of them by name, in the order in which they are run."""
    found = (
        Problem(
            name="ud",
            title="parts of speech, UD English EWT",
            task="tagging",
            make_files=treebank_files,
            metric="accuracy",
            max_seq_length=256,
            num_epochs=1,
            learning_rate=2e-4,
            goal=0.94,
        ),
        Problem(
            name="xquad",
            title="answers, XQuAD English, 900 questions to train on",
            task="question_answering",
            make_files=partial(xquad_files, 900),
            metric="f1",
            max_seq_length=384,
            num_epochs=3,
            batch_size=16,
            learning_rate=2e-4,
        ),
        Problem(
            name="sst2",
            title="sentiment, 8,000 sentences of SST-2",
            task="classification",
            make_files=partial(sst2_files, 8000),
            metric="accuracy",
            max_seq_length=128,
            num_epochs=1,
            learning_rate=1e-4,
        ),
        Problem(
            name="drcd",
            title="answers in Chinese, DRCD, 150 questions to train on",
            task="question_answering",
            make_files=partial(drcd_files, 150, 100),
            metric="f1",
            max_seq_length=384,
            num_epochs=2,
            batch_size=16,
            learning_rate=2e-4,
        ),
        Problem(
            name="sst2-all",
            title="sentiment, SST-2",
            task="classification",
            make_files=partial(sst2_files, None),
            metric="accuracy",
            max_seq_length=128,
            num_epochs=2,
            learning_rate=1e-4,
            goal=0.9,
            has_peer=False,
        ),
    )
    return {problem.name: problem for problem in found}
