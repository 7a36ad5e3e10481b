"""GLUE: the tasks that are there, each fine-tuned from one model and measured with its official metric."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fastssl.data.files import sha256_of_file
from fastssl.models import bert_files
from fastssl.tasks.classification.classifier import Classifier, Prediction
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import (
    ExamplesConfig,
    FinetuningConfig,
    FinetuningTrainingConfig,
    StartConfig,
    TuningConfig,
)
from fastssl.tasks.glue.figure import draw_glue
from fastssl.tasks.glue.files import find_tasks, read_examples, read_test
from fastssl.tasks.glue.tasks import GLUE_TASKS, GlueTask, task_named
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.training import RunDirectoryError
from fastssl.training.checkpoint import list_checkpoints
from fastssl.training.config import identity_of
from fastssl.training.distributed import expect_one_process
from fastssl.training.durable import write_whole
from fastssl.training.run_directory import RUN_FILE, differences, tell_differences

FIGURE_FILE, TABLE_FILE, SUMMARY_FILE = "glue.png", "glue.csv", "glue.json"
SUBMISSION_FOLDER = "submission"
_RESULT_FILE = "glue_result.json"
_USUAL_LENGTH = 128
_SELECTION_FIELDS = ("metric_for_best_model", "early_stopping_patience", "eval_steps")


@dataclass(frozen=True, kw_only=True)
class GlueTrainingConfig(FinetuningTrainingConfig):
    """Settings of training with the defaults of GLUE: three epochs, warm-up over a tenth (Devlin et al. 2018, A.3)."""

    warmup_ratio: float = 0.1
    """Warm-up as a share of all steps."""
    resume_from_checkpoint: str | None = "last"
    """Tasks that were stopped go on from their newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class GlueConfig:
    """What to run of GLUE."""

    folder: Path
    """Folder with a folder for each task, such as CoLA, SST-2 or sst2, in the official layouts."""
    tasks: tuple[str, ...] = ()
    """Run these alone, such as sst2 rte; none given: all that are there."""
    max_train_examples: int | None = None
    """Train on so many examples of each task, drawn at random: for a trial."""
    max_seq_length: int | None = None
    """Longer texts are cut, in tokens; None: at 128, or at the model's positions where these are fewer."""
    overwrite: bool = False
    """Start the tasks anew, also those that are finished or were stopped; else a finished task is not run again."""
    start: StartConfig
    """What to start from; every task gets a new head."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """What is trained, and how fast."""
    training: GlueTrainingConfig
    """Length, optimizer, schedule, checkpoints, reports."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            task_named(name)
        if self.max_train_examples is not None and self.max_train_examples < 3:
            raise ValueError(f"max_train_examples must be at least 3, got {self.max_train_examples}")
        if self.start.problem_type is not None:
            raise ValueError("problem_type is set by the tasks of GLUE; leave it out")
        if self.training.resume_from_checkpoint != "last":
            raise ValueError("tasks of GLUE always go on where they stopped; give --overwrite to start them anew")
        if self.training.save_strategy == "no":
            raise ValueError("save_strategy='no' would lose the best weights of each task; leave it out")


@dataclass(frozen=True, kw_only=True)
class GlueResult:
    """How a model does on one task."""

    task: GlueTask
    """Which one."""
    figures: tuple[float, ...]
    """The official figures on the development set, in per cent, in the order of `task.measured`."""
    num_train: int
    """Examples trained on."""

    @property
    def score(self) -> float:
        """The mean of the figures."""
        return statistics.fmean(self.figures)


@dataclass(frozen=True, kw_only=True)
class GlueReport:
    """How a model does on the tasks that ran."""

    results: tuple[GlueResult, ...]
    """One a task, in the order of the paper."""
    missing: Mapping[str, str]
    """Task that did not run -> why."""
    exit_code: int = 0
    """0, or the process's exit code after a signal."""

    @property
    def average(self) -> float:
        """The mean score over the tasks that ran, each counted once."""
        return statistics.fmean(result.score for result in self.results)

    @property
    def human_average(self) -> float:
        """People's mean score over the same tasks; 87.1 over all nine."""
        return statistics.fmean(statistics.fmean(result.task.human) for result in self.results)

    def save(self, directory: Path, *, title: str) -> None:
        """Write the chart, a table as CSV, and everything as JSON."""
        content = {
            "average": self.average,
            "human_average": self.human_average,
            "tasks": {
                r.task.name: {
                    "score": r.score,
                    "figures": dict(zip(r.task.figure_names, r.figures, strict=True)),
                    "human_score": statistics.fmean(r.task.human),
                    "train_examples": r.num_train,
                }
                for r in self.results
            },
            "missing": dict(self.missing),
        }
        write_whole(directory / SUMMARY_FILE, json.dumps(content, indent=1) + "\n")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["task", "figure", "value", "human", "bert_base_cased_dev"])
        for r in self.results:
            columns = (r.task.figure_names, r.figures, r.task.human, r.task.bert_base)
            for name, value, human, published in zip(*columns, strict=True):
                table.writerow([r.task.name, name, f"{value:.2f}", human, published])
        table.writerow(["average", "mean over tasks", f"{self.average:.2f}", f"{self.human_average:.2f}", ""])
        write_whole(directory / TABLE_FILE, text.getvalue())
        means = [(r.score, statistics.fmean(r.task.human), statistics.fmean(r.task.bert_base)) for r in self.results]
        draw_glue(
            [(r.task.name, *scores) for r, scores in zip(self.results, means, strict=True)],
            directory / FIGURE_FILE,
            title=title,
            missing=list(self.missing),
        )


def run_glue(config: GlueConfig, *, say: Callable[[str], None]) -> GlueReport:
    """Fine-tune and measure on every task that is there and wanted, and write the report into the output directory.

    A task has a directory of its own with its model; its checkpoints are deleted when it is finished. Run again, it
    goes on where it stopped. Where a task has test files, predictions in the format of a submission are written.

    Args:
        config: what to do.
        say: takes remarks.

    Raises:
        FileNotFoundError: for a missing folder or model.
        ValueError: where no task is there, one that is named is not, a file is none of GLUE, and as
            `prepare_finetuning`.
        RunDirectoryError: where a task was finished with other settings.
    """
    expect_one_process("glue")
    folders, missing = find_tasks(config.folder)
    wanted = [task_named(name).name for name in config.tasks]
    if absent := [f"{name} ({missing[name]})" for name in dict.fromkeys(wanted) if name in missing]:
        raise ValueError(f"{config.folder} lacks what was asked for: {', '.join(absent)}")
    if not folders:
        raise ValueError(
            f"{config.folder} holds no task of GLUE; expected folders such as CoLA, SST-2 or MRPC with train.tsv and "
            "dev.tsv in them"
        )
    if wanted:
        missing |= {name: "not asked for" for name in folders if name not in wanted}
    # All files are read before anything is trained: a damaged one is told now and not after hours.
    runs = [_GlueRun(config, task, folders[task.name], say) for task in GLUE_TASKS if task.name not in missing]
    results, exit_code = [], 0
    for run in runs:
        found = run.result()
        if isinstance(found, int):
            exit_code = found
            break
        results.append(found)
    report = GlueReport(results=tuple(results), missing=missing, exit_code=exit_code)
    if not exit_code:
        scratch = ", from scratch" if config.start.from_scratch else ""
        title = f"GLUE: {Path(config.start.model).absolute().name}{scratch}"
        report.save(Path(config.training.output_dir), title=title)
    return report


class _GlueRun:
    """One task, from its files, which are checked and rewritten at once, to its result."""

    def __init__(self, config: GlueConfig, task: GlueTask, folder: Path, say: Callable[[str], None]) -> None:
        self._config, self._task, self._folder, self._say = config, task, folder, say
        self._directory = Path(config.training.output_dir) / task.key
        if config.overwrite:
            self._clear()
        self._known = self._finished()
        if self._known is None:
            self._num_train, self._train_file, self._held_out = self._write_examples()

    def result(self) -> GlueResult | int:
        """Return the result, from disk where the task is finished; the exit code where a signal stopped it."""
        if self._known is not None:
            self._say(f"[{self._task.name}] finished before: {self._known.score:.1f} (--overwrite runs it again)")
            return self._known
        self._say(f"[{self._task.name}] in {self._directory}")
        if exit_code := self._train():
            return exit_code
        classifier = Classifier.load(self._directory)
        figures = official_figures(self._task, classifier, self._held_out)
        result = GlueResult(task=self._task, figures=figures, num_train=self._num_train)
        self._predict_tests(classifier)
        self._note(result)
        return result

    def _write_examples(self) -> tuple[int, Path, dict[str, Path]]:
        """Return the number of training examples, their file, and the files of development examples by name."""
        task, examples = self._task, self._directory / "examples"
        train = read_examples(self._folder, task, "train", self._say)
        train = train.sample(
            self._config.max_train_examples, self._config.training.seed, classes=task.problem_type != "regression"
        )
        held_out = {
            split: read_examples(self._folder, task, split, self._say).write(examples / f"{split}.tsv")
            for split in task.splits
        }
        for split, _ in task.tests:
            if (path := self._folder / f"{split}.tsv").is_file():
                read_test(path, task)
        return len(train), train.write(examples / "train.tsv"), held_out

    def _train(self) -> int:
        config = self._config
        finetuning = FinetuningConfig(
            task="classification",
            examples=ExamplesConfig(
                train_file=self._train_file,
                eval_file=next(iter(self._held_out.values())),
                max_seq_length=(
                    _usual_length(config.start.model) if config.max_seq_length is None else config.max_seq_length
                ),
            ),
            start=replace(config.start, fresh_head=True, problem_type=self._task.problem_type),
            tuning=config.tuning,
            training=self._training(),
        )
        return prepare_finetuning(finetuning, say=self._say).run().exit_code

    def _training(self) -> GlueTrainingConfig:
        """Return the settings of the task's training; of two figures the first decides, F1 or Pearson's correlation."""
        training = self._config.training
        metric = training.metric_for_best_model or self._task.measured[0][1]
        return replace(training, output_dir=str(self._directory), metric_for_best_model=metric)

    def _predict_tests(self, classifier: Classifier) -> None:
        for split, name in self._task.tests:
            path = self._folder / f"{split}.tsv"
            if path.is_file():
                predictions = classifier(*read_test(path, self._task).texts)
                submitted = self._directory.parent / SUBMISSION_FOLDER / f"{name}.tsv"
                submitted.parent.mkdir(exist_ok=True)
                write_whole(submitted, submission(predictions))
                self._say(f"[{self._task.name}] {submitted}: {len(predictions):,} predictions for the leaderboard")

    def _settings(self) -> dict[str, object]:
        """Return what decides the result, as JSON values."""
        config, training = self._config, self._training()
        names = ("train", *self._task.splits)
        settings = {
            **{f"{name}.tsv": sha256_of_file(self._folder / f"{name}.tsv") for name in names},
            "max_train_examples": config.max_train_examples,
            "max_seq_length": config.max_seq_length,
            **asdict(config.start),
            **asdict(config.tuning),
            **identity_of(training),
            # A run may go on with others of these, but they say which of its weights are measured.
            **{name: getattr(training, name) for name in _SELECTION_FIELDS},
            "greater_is_better": training.best_is_greater,
        }
        return json.loads(json.dumps(settings, default=str))

    def _finished(self) -> GlueResult | None:
        path = self._directory / _RESULT_FILE
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        # An earlier version may not have noted all of them.
        settings = {name: value for name, value in self._settings().items() if name in content["settings"]}
        if differing := differences(content["settings"], settings):
            raise RunDirectoryError(
                f"{self._directory} holds {self._task.name} with other settings: {tell_differences(differing)}. Repeat "
                "them, give --overwrite to run it again, or choose another output_dir"
            )
        return GlueResult(task=self._task, figures=tuple(content["figures"]), num_train=content["num_train"])

    def _note(self, result: GlueResult) -> None:
        """Note the result, then delete the checkpoints, which nothing needs any more: the model is beside them."""
        content = {"settings": self._settings(), "figures": result.figures, "num_train": result.num_train}
        write_whole(self._directory / _RESULT_FILE, json.dumps(content, indent=1) + "\n")
        for checkpoint in list_checkpoints(self._directory):
            shutil.rmtree(checkpoint)

    def _clear(self) -> None:
        """Delete what an earlier run left, and nothing else."""
        if any((self._directory / name).is_file() for name in (RUN_FILE, _RESULT_FILE)):
            shutil.rmtree(self._directory)


def _usual_length(model: str) -> int:
    """Return where texts are cut: at 128, as BERT's authors did, or at the positions of a model that has fewer."""
    if not Path(model).is_dir():
        return _USUAL_LENGTH
    return min(_USUAL_LENGTH, bert_files.load_config(model).max_position_embeddings)


def official_figures(task: GlueTask, classifier: Classifier, held_out: Mapping[str, Path]) -> tuple[float, ...]:
    """Return the official figures of a task in per cent, in the order of `task.measured`.

    Args:
        task: which one.
        classifier: fine-tuned for it.
        held_out: name of a development file, without its ending -> the file, in the layout of `GlueExamples.write`.
    """
    found = {split: classifier.evaluate(read_labelled_texts(path, ColumnConfig())) for split, path in held_out.items()}
    return tuple(100 * found[split][figure] for split, figure in task.measured)


def submission(predictions: Sequence[Prediction]) -> str:
    """Return predictions in the format of the leaderboard: a header, then the number of each example and its answer.

    Similarities are held to the range of STS-B, from 0 to 5.
    """
    answers = (f"{min(max(p.label, 0.0), 5.0):.3f}" if isinstance(p.label, float) else p.label for p in predictions)
    return "index\tprediction\n" + "".join(f"{number}\t{answer}\n" for number, answer in enumerate(answers))
